"""`anybatch check`: what a configuration file would do, without doing any of it."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final

import anybatch
import msgspec
from anybatch.kernel.config_check import Change, Judged, judge
from anybatch.kernel.config_fit import Fit, check_options, fits, misfits
from anybatch.kernel.config_model import Checker, Config
from anybatch.kernel.config_read import config_of_file
from anybatch.kernel.core.state import KernelState
from anybatch.kernel.journal_read import read_state
from anybatch.kernel.registry import BackendRegistry
from msgspec import Struct
from rich.text import Text

from .console import Out, plain
from .plan import completed
from .table import columns

FINE, NEVER_RUNS, BAD_FILE, CANNOT = 0, 1, 2, 3
FORMAT: Final = 1
OUTCOMES: Final = {FINE: "fine", NEVER_RUNS: "a job can never run", BAD_FILE: "mistakes"}
HELP: Final = """\
Check a configuration file as a whole, and say what it would do: which environments, queues and definitions would be
made or changed, and where each job could run, with the limit that binds. Nothing is made, changed or run.
"""
EXAMPLES: Final = """\
examples:
  anybatch check pipeline.toml
  anybatch check --journal batch.db anybatch.toml       what would `serve` or Kernel.apply change there?
  anybatch check --json anybatch.toml | jq '.mistakes[] | .line, .message'

exit status:
  0 fine     1 a job can never run     2 the file has mistakes, or cannot be read     3 the journal cannot be read
"""


class JobCheck(Struct, kw_only=True):
    """A job, and how it fits into each environment of its queue."""

    name: str
    queue: str
    array_size: int | None
    can_run: bool
    fits: list[Fit]


class CheckReport(Struct, kw_only=True):
    """What is printed with --json. `created` and so on: as `Kernel.apply` says it; `brings`: what the file has not."""

    format: int = FORMAT
    file: str
    outcome: str
    exit_status: int
    mistakes: list[anybatch.Mistake] = []
    created: list[str] = []
    updated: list[str] = []
    unchanged: list[str] = []
    brings: list[str] = []
    jobs: list[JobCheck] = []


def add_parser(commands: Any) -> None:
    """Tell the command line about this command."""
    parser = commands.add_parser(
        "check",
        help="say what a configuration file would do",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE.toml", help="a file for `run`, `serve` or Kernel.apply (docs/config.md)")
    parser.add_argument("--journal", metavar="PATH", help="against what is there in this journal, in use or not")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Check, tell, and return the exit status."""
    try:
        report = _check(options)
    except anybatch.JournalError as e:
        report = CheckReport(file=plain(options.file), outcome="the journal cannot be read", exit_status=CANNOT)
        report.mistakes = [anybatch.Mistake(file=None, line=None, key="--journal", message=str(e))]
    if options.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n")
        return report.exit_status
    errors = Out(stderr=True)
    for mistake in report.mistakes:
        errors.print(plain(str(mistake)), style="red" if errors.is_terminal else "", soft_wrap=True)
    if report.exit_status in (FINE, NEVER_RUNS):
        _print(report)
    return report.exit_status


def _check(options: argparse.Namespace) -> CheckReport:
    file = plain(options.file)
    try:
        given, checker = config_of_file(options.file)
    except anybatch.ConfigError as e:
        return CheckReport(file=file, outcome=OUTCOMES[BAD_FILE], exit_status=BAD_FILE, mistakes=list(e.mistakes))
    config = completed(given, checker, max_vcpus=None, quotas={}) if given.jobs else given
    registry = BackendRegistry()
    state = KernelState(config.quotas) if options.journal is None else read_state(options.journal, config.quotas)
    judged = judge(config, registry, state, checker)
    check_options(judged, registry, state, checker)
    found = fits(judged, registry, state)
    never = misfits(found)
    status = BAD_FILE if checker.mistakes else NEVER_RUNS if never else FINE
    for name, places in never.items():
        checker.add(("jobs", name, *places[0].limited_by[:1]), "; ".join(fit.text for fit in places))
    return CheckReport(
        file=file,
        outcome=OUTCOMES[status],
        exit_status=status,
        mistakes=_sorted(checker),
        created=_of(judged.changes, "created"),
        updated=_of(judged.changes, "updated"),
        unchanged=_of(judged.changes, "unchanged"),
        brings=_brought(given, config),
        jobs=_jobs(config, judged, found),
    )


def _sorted(checker: Checker) -> list[anybatch.Mistake]:
    return sorted(checker.mistakes, key=lambda mistake: mistake.line or 0)


def _of(changes: list[Change], verb: str) -> list[str]:
    return [change.path for change in changes if change.verb == verb]


def _brought(given: Config, config: Config) -> list[str]:
    """What jobs are given to run in because the file has none."""
    environments = [f"environments.{name}" for name in config.environments if name not in given.environments]
    return environments + [f"queues.{name}" for name in config.queues if name not in given.queues]


def _jobs(config: Config, judged: Judged, found: list[Fit]) -> list[JobCheck]:
    jobs = []
    for job in config.jobs:
        row = judged.jobs.get(job.name)
        if row is not None:
            places = [fit for fit in found if fit.job == job.name]
            can_run = not places or any(fit.fits is not False for fit in places)
            jobs.append(JobCheck(name=job.name, queue=row.queue, array_size=row.size, can_run=can_run, fits=places))
    return jobs


def _print(report: CheckReport) -> None:
    out = Out()
    for verb in ("created", "updated", "unchanged"):
        for path in getattr(report, verb):
            brought = path in report.brings and verb == "created"
            note = "  (the file has none: `anybatch run` brings it)" if brought else ""
            words = {"created": "would be created", "updated": "would be changed", "unchanged": "is as it should be"}
            out.print(Text(f"{path}: {words[verb]}{note}"), soft_wrap=True)
    rows = [
        (
            job.name,
            "single" if job.array_size is None else f"{job.array_size} children",
            job.queue,
            fit.environment,
            fit.text,
        )
        for job in report.jobs
        for fit in job.fits
    ]
    if rows:
        for n, line in enumerate(columns([("job", "", "queue", "environment", "attempts"), *rows])):
            out.print(Text(line, style="" if n else "bold"), soft_wrap=True)
    out.print(Text(f"{report.file}: {report.outcome}"), soft_wrap=True)
