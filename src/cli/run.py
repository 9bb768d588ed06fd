"""`anybatch run`: a file of jobs, or one command, on this machine, with a journal that a later call can go on from."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import anybatch
from anybatch.kernel import arguments as args
from anybatch.kernel.config_model import Checker, Config, Place, PlannedJob
from anybatch.kernel.config_read import QUOTA_KEYS, quota
from msgspec import structs

from .console import Out, plain, silence
from .journals import compare, find_kept, new_journal
from .plan import Plan, bad, check, completed, read_plan
from .runner import BAD_USE, Run
from .summary import RunReport, print_report

HELP: Final = """\
Run a file of jobs, or one command, on this machine, and wait for the end.

Attempts run in this folder, with this environment; those of jobs with an image in containers of the
Docker Engine that DOCKER_HOST names, or of this machine. What becomes of each is written to a journal,
from which a run that was interrupted can go on.
"""
EXAMPLES: Final = """\
examples:
  anybatch run pipeline.toml                    run a file (docs/config.md describes it)
  anybatch run -j 4 pipeline.toml               at most 4 vCPUs at once
  anybatch run -a 100 -- ./work.sh out          100 children; each finds its index in AWS_BATCH_JOB_ARRAY_INDEX
  anybatch run --retry 3 --timeout 60 -- make   one job, three attempts of a minute each
  anybatch run --image busybox:1.36 -- date     in a container of Docker, or what speaks its API
  anybatch run --journal runs/b.db big.toml     keep the journal there; if it is there, go on with its run
  anybatch run --json pipeline.toml | jq .outcome

exit status:
  0 all jobs succeeded     1 a job failed     2 bad file or bad use     3 the engine failed
  130 Ctrl-C, 143 SIGTERM: running attempts were stopped; the run can go on (the command is printed)
"""


def add_parser(commands: Any) -> None:
    """Tell the command line about this command."""
    parser = commands.add_parser(
        "run",
        help="run a file of jobs, or one command",
        usage="anybatch run [options] FILE.toml\n       anybatch run [options] [-a N] -- COMMAND [ARG ...]\n"
        "       anybatch run --journal PATH",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", nargs="?", metavar="FILE.toml", help="jobs, and what they run in")
    parser.add_argument(
        "-j",
        "--max-vcpus",
        metavar="N",
        help="vCPUs to use at most, where there is one environment (default: all CPUs)",
    )
    parser.add_argument("--journal", metavar="PATH", help="go on with the run of this journal; a new one if not there")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON document")
    parser.add_argument(
        "--quota", action="append", default=[], metavar="NAME=N", help="raise a limit, e.g. array_size_max=1000000"
    )
    parser.add_argument(
        "--ignore-image", action="store_true", help="run jobs with an image as local processes, as if they had none"
    )
    one = parser.add_argument_group("for a command, written after --")
    one.add_argument("-a", "--array-size", metavar="N", help="run it N times, as an array")
    one.add_argument("--array", metavar="INDEXES", help="run it as an array with these indexes, such as 0-15:4,20")
    one.add_argument("--image", metavar="IMAGE", help="run it in a container; without a command the image's own runs")
    one.add_argument("--name", metavar="NAME", help="the job's name (default: the program's)")
    one.add_argument("--vcpus", metavar="N", help="vCPUs of each attempt (default: 1)")
    one.add_argument("--memory", metavar="SIZE", help="memory of each attempt, in MiB or such as 2GiB")
    one.add_argument("--retry", metavar="N", help="attempts of each child, 1 to 10 (default: 1)")
    one.add_argument("--timeout", metavar="SECONDS", help="for each attempt")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Run, and return the exit status."""
    errors = Out(stderr=True)
    try:
        plan, journal, resumes = _prepare(options)
    except anybatch.ConfigError as e:
        for mistake in e.mistakes:
            errors.print(
                ("" if mistake.file else "anybatch run: ") + str(mistake),
                style="red" if errors.is_terminal else "",
                soft_wrap=True,
            )
        if options.json:
            _print_json(RunReport(outcome="refused", exit_status=BAD_USE, mistakes=list(e.mistakes)))
        return BAD_USE
    run = Run(plan, journal, resumes=resumes, errors=errors, options=options)
    status = asyncio.run(run.main())
    report = run.report(status)
    if options.json:
        _print_json(report)
    else:
        jobs = plan.config.jobs
        waited_for = {after.job for job in jobs for after in job.depends_on}
        print_report(report, Out(), [job.name for job in jobs if job.name not in waited_for])
    if report.error is not None:
        errors.print(f"anybatch run: {report.error}", soft_wrap=True)
    if report.resume is not None:
        errors.print(f"to go on with this run: {shlex.join(report.resume)}", soft_wrap=True)
    return status


def _print_json(report: RunReport) -> None:
    try:
        sys.stdout.write(report.to_json().decode() + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        silence(1)


# -- what to run ------------------------------------------------------------------------------------


def _prepare(options: argparse.Namespace) -> tuple[Plan, Path, bool]:
    """The plan, where its journal is, and whether that is a run to go on with.

    Raises:
        anybatch.ConfigError: nothing was begun.
    """
    _check_use(options)
    path = None if options.journal is None else Path(options.journal).absolute()
    texts = [("--journal", str(path)), ("this folder", os.getcwd()), (options.file or "", options.file or "")]
    for key, text in [*texts, *(("COMMAND", word) for word in options.command or ())]:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise bad(plain(repr(key)[1:-1]), f"{text!a} is not allowed; names and words are text in UTF-8")
    kept = None if path is None else find_kept(path)
    if options.command or options.image:
        plan = _plan_of_command(options)
    elif options.file is not None:
        plan = read_plan(options.file, os.getcwd(), **_settings(options))
    elif kept is not None:
        plan = kept
        if options.quota or options.max_vcpus is not None or options.ignore_image:
            checker = Checker(None, name_of=_option)
            given = completed(kept.config, checker, **_settings(options))
            plan = structs.replace(kept, config=given)
            check(plan, checker)
    else:
        raise bad("--journal", f"{path} is not there, and there is neither a file nor a command to begin with")
    if kept is not None and path is not None:
        compare(path, kept, plan)
        plan.folder = kept.folder
    return plan, path or new_journal(plan), kept is not None


def _check_use(options: argparse.Namespace) -> None:
    """Which options go together."""
    if options.file is not None and (options.command or options.image):
        raise bad(options.file, "give a file, or a command after -- (or its --image), not both")
    if options.command is not None and not options.command:
        raise bad("--", "there is no command after it")
    if options.file is None and not options.command and options.image is None and options.journal is None:
        raise bad("", "nothing to run: give a file, or a command after -- (see anybatch run --help)")
    if not options.command and not options.image:
        for name in ("array_size", "array", "image", "name", "vcpus", "memory", "retry", "timeout"):
            if getattr(options, name) is not None:
                raise bad(_option(("jobs", "", name)), "it is for a command, written after --; a file says it itself")


def _option(place: Place) -> str:
    """The option that gives an argument of the job (or, shorter places, a setting of the run)."""
    name = str(place[2] if len(place) > 2 else place[-1])
    return {"array_size": "-a", "command": "COMMAND"}.get(name, f"--{name.replace('_', '-')}")


def _number(key: str, text: str | None, convert: Callable[[str], Any], what: str) -> Any:
    if text is None:
        return None
    try:
        return convert(text)
    except ValueError:
        raise bad(key, f"{text!r} is not allowed; it is {what}") from None


def _max_vcpus(options: argparse.Namespace) -> float | None:
    if options.max_vcpus is None:
        return None
    try:
        milli = args.milli("--max-vcpus", options.max_vcpus)
    except anybatch.InvalidValue as e:
        raise bad(e.field, f"{e.value!r} is not allowed; {e.allowed}") from None
    if milli < 1:
        text = f"{options.max_vcpus!r} is not allowed; it is a number of vCPUs above 0, in steps of 0.001"
        raise bad("--max-vcpus", text)
    return milli / 1000


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of the run as a whole, as `completed` takes it."""
    return {
        "max_vcpus": _max_vcpus(options),
        "quotas": _quotas(options),
        "ignore_image": options.ignore_image,
    }


def _quotas(options: argparse.Namespace) -> dict[str, int]:
    found = {}
    for text in options.quota:
        name, _, value = text.partition("=")
        if name not in QUOTA_KEYS:
            raise bad("--quota", f"no quota {name!r}{args.meant(name, QUOTA_KEYS)} (allowed: {', '.join(QUOTA_KEYS)})")
        number = _number("--quota", value, int, "NAME=N, with a whole number")
        try:
            found[name] = quota(f"--quota {name}", number)
        except anybatch.InvalidValue as e:
            raise bad(e.field, f"{e.value!r} is not allowed; {e.allowed}") from None
    return found


def _plan_of_command(options: argparse.Namespace) -> Plan:
    size = _number("-a", options.array_size, int, "a whole number")
    if size is not None and size < 1:
        raise bad("-a", f"{size} is not allowed; it is 1 or more")
    arguments = {
        "command": options.command or None,
        "image": options.image,
        "array_size": None if size == 1 else size,
        "array": options.array,
        "vcpus": _number("--vcpus", options.vcpus, float, "a number of vCPUs"),
        "memory": options.memory,
        "retry": _number("--retry", options.retry, int, "a number of attempts"),
        "timeout": _number("--timeout", options.timeout, float, "a number of seconds"),
    }
    name = options.name
    if name is None:
        program = Path(options.command[0]).name if options.command else Path(options.image).name.partition(":")[0]
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", program).strip("-_")[:128] or "command"
    job = PlannedJob(name=name, arguments={key: value for key, value in arguments.items() if value is not None})
    checker = Checker(None, name_of=_option)
    config = completed(Config(name=name, jobs=[job]), checker, **_settings(options))
    plan = Plan(config=config, folder=os.getcwd())
    check(plan, checker)
    return plan
