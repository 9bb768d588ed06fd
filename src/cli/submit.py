"""`anybatch submit`: queue a job on a running kernel."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any, Final

import anybatch

from .actions import tell_ends
from .output import note, print_json, say
from .target import add_command, add_options, carry_out, kernel_of, reference

DEFAULT_QUEUE: Final = "default"
EXAMPLES: Final = """
  anybatch submit -- make test                    a job on the only queue, or the one called "default"
  anybatch submit -a 100 --queue batch -- ./work.sh
  anybatch submit -a 1000 --max-failures 10 -- ./work.sh    stops when ten of them have failed
  anybatch submit --array 3,7,20-90:10 -- ./work.sh         children 3, 7, 20, 30, ..., 90
  anybatch submit --definition resize --parameter input=a.png --wait
  anybatch submit --after resize -- ./report.sh   once that has SUCCEEDED
  anybatch submit --after-failure resize -- ./alert.sh
  job=$(anybatch submit -- ./work.sh) && anybatch logs -f "$job"
"""


def add_parser(commands: Any) -> None:
    """Tell the command line about this command."""
    parser = add_command(
        commands, "submit", main, brief="queue a job", examples=EXAMPLES,
        text="Queue a job, and print its id. It runs where the kernel's environments are: not in this folder, unless "
        "--workdir says\nso, and not with this shell's variables.",
    )  # fmt: skip
    parser.usage = "anybatch submit [options] [-- COMMAND [ARG ...]]"
    parser.add_argument("--queue", metavar="NAME", help="default: the only one, or the one called default")
    parser.add_argument("--definition", metavar="NAME[:REVISION]", help="what to run; the rest overrides it")
    parser.add_argument("--name", metavar="NAME", help="the job's name (default: the definition's or program's)")
    parser.add_argument("-a", "--array-size", type=int, metavar="N", help="run it N times, as an array")
    parser.add_argument("--array", metavar="INDEXES", help="an array with these indexes, such as 0-15:4,20")
    parser.add_argument("--max-running", type=int, metavar="N", help="children that run at once, at most")
    parser.add_argument("--max-failures", type=int, metavar="N", help="stop the array when N children have failed")
    parser.add_argument(
        "--on-max-failures", metavar="WHAT", help="cancel: what runs then goes on (default); terminate: it is stopped"
    )
    parser.add_argument("--after", action="append", default=[], metavar="JOB", help="wait for its success; repeatable")
    for option, text in (
        ("--after-any", "wait for its end, whichever it is"),
        ("--after-failure", "run only if it has FAILED"),
        ("--each-after", "child i waits for its child i"),
    ):
        parser.add_argument(option, action="append", default=[], metavar="JOB", help=text)
    parser.add_argument("--parameter", action="append", default=[], metavar="NAME=VALUE", help="for Ref::NAME")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="a variable; NAME alone: as here"
    )
    parser.add_argument("--image", metavar="IMAGE", help="the container image, where a backend makes containers")
    parser.add_argument("--vcpus", type=float, metavar="N", help="vCPUs of each attempt")
    parser.add_argument("--memory", metavar="SIZE", help="memory of each attempt, in MiB or such as 2GiB")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of each attempt")
    parser.add_argument("--retry", type=int, metavar="N", help="attempts of each child, 1 to 10")
    parser.add_argument(
        "--checkpoint-exit-code", action="append", type=int, default=[], metavar="CODE",
        help="an exit code that says: checkpointed, run me again; repeatable",
    )  # fmt: skip
    parser.add_argument("--max-checkpoints", type=int, metavar="N", help="how often that is done (default 1000)")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="for each attempt")
    parser.add_argument("--role", metavar="ROLE", help="whose credentials the attempts get (docs/aws.md)")
    parser.add_argument("--workdir", metavar="PATH", help="the folder in which it runs")
    parser.add_argument(
        "--tag", action="append", default=[], metavar="NAME=VALUE", help="kept with the job; repeatable"
    )
    parser.add_argument("--client-token", metavar="TEXT", help="the same token again queues no second job")
    parser.add_argument("--wait", action="store_true", help="wait for its end; exit status 1 if it failed")
    add_options(parser)


def main(options: argparse.Namespace) -> int:
    """Submit, and print the id."""

    async def work() -> int:
        async with kernel_of(options) as kernel:
            job = await kernel.submit_job(**await _arguments(kernel, options))
            for warning in job.warnings:
                note(f"anybatch: {warning}")
            if options.wait:
                if not options.json:
                    note(job.id)
                return tell_ends([await job.wait()], json=options.json)
        if options.json:
            print_json({"id": job.id, "name": job.name, "array_size": job.array_size, "warnings": list(job.warnings)})
        else:
            say(job.id)
        return 0

    return carry_out(options, work)


async def _arguments(kernel: anybatch.Kernel, options: argparse.Namespace) -> dict[str, Any]:
    if not options.command and options.definition is None:
        raise anybatch.InvalidValue("COMMAND", options.command, "give a command after --, or --definition")
    depends_on: list[Any] = [await reference(kernel, job) for job in options.after]
    depends_on += [anybatch.after_any(await reference(kernel, job)) for job in options.after_any]
    depends_on += [anybatch.after_failure(await reference(kernel, job)) for job in options.after_failure]
    depends_on += [anybatch.n_to_n(await reference(kernel, job)) for job in options.each_after]
    found = {
        "name": options.name or _name(options),
        "queue": options.queue or await _queue(kernel),
        "definition": options.definition,
        "command": options.command or None,
        "array_size": options.array_size,
        "array": options.array,
        "max_running": options.max_running,
        "image": options.image,
        "max_failures": options.max_failures,
        "on_max_failures": options.on_max_failures,
        "depends_on": depends_on,
        "parameters": _pairs("--parameter", options.parameter),
        "environment": _pairs(
            "--env", [text if "=" in text else f"{text}={os.environ.get(text, '')}" for text in options.env]
        ),
        "vcpus": options.vcpus,
        "memory": int(options.memory) if (options.memory or "").isdecimal() else options.memory,
        "gpus": options.gpus,
        "retry": options.retry,
        "checkpoint_exit_codes": options.checkpoint_exit_code,
        "max_checkpoints": options.max_checkpoints,
        "timeout": options.timeout,
        "role": options.role,
        "workdir": options.workdir and str(Path.cwd() / options.workdir),
        "tags": _pairs("--tag", options.tag),
        "client_token": options.client_token,
    }
    return {name: value for name, value in found.items() if value not in (None, [], {})}


def _name(options: argparse.Namespace) -> str:
    text = options.definition.partition(":")[0] if options.definition else Path(options.command[0]).name
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_")[:128] or "command"


async def _queue(kernel: anybatch.Kernel) -> str:
    """The queue that is meant where none is named."""
    names = [queue.name for queue in await kernel.describe_job_queues()]
    if len(names) == 1:
        return names[0]
    if DEFAULT_QUEUE in names:
        return DEFAULT_QUEUE
    raise anybatch.InvalidValue(
        "--queue", None, f"name one of {', '.join(names)}" if names else "the kernel has none yet"
    )


def _pairs(option: str, texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise anybatch.InvalidValue(option, text, "it is NAME=VALUE")
        found[name] = value
    return found
