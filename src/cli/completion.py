"""`anybatch completion`: what a shell needs to complete commands, options and the names of jobs."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anybatch
import argcomplete
from argcomplete.shell_integration import shellcode

from .target import kernel_of

SHELLS: Final = ("bash", "zsh", "fish")
ANSWER_S: Final = 2.0
"""How long a kernel may take to name what there is; then nothing is completed."""
NAMES_MAX: Final = 500
"""Jobs whose names are offered, the newest."""
EXAMPLES: Final = """\
examples:
  anybatch completion bash >> ~/.bashrc
  anybatch completion zsh >> ~/.zshrc                  (after compinit)
  anybatch completion fish > ~/.config/fish/completions/anybatch.fish

Then, in a new shell: anybatch <TAB>, anybatch ps --<TAB>, anybatch logs -f <TAB> (the names of jobs).

exit status:
  0 printed     2 bad use
"""


def add_parser(commands: Any) -> None:
    """Tell the command line about this command."""
    parser = commands.add_parser(
        "completion",
        help="print what a shell needs to complete commands",
        description="Print what a shell needs to complete commands, options and the names of jobs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Print it."""
    sys.stdout.write(shellcode(["anybatch"], shell=options.shell) + "\n")
    return 0


def answer(parser: argparse.ArgumentParser) -> None:
    """If a shell asks for completions, answer it and end the process."""
    for action in _actions(parser):
        completer = COMPLETERS.get(action.dest)
        if completer is not None and action.choices is None:
            action.completer = completer  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False)


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Those of the parser, and of its commands."""
    found = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                found += _actions(one)
    return found


Names = Callable[[anybatch.Kernel], Awaitable[list[str]]]


def _from_kernel(names: Names) -> Callable[..., list[str]]:
    """A completer that asks the kernel which the command would talk to. What goes wrong completes nothing."""

    async def ask(options: argparse.Namespace) -> list[str]:
        async with asyncio.timeout(ANSWER_S), kernel_of(options, looks=True) as kernel:
            return await names(kernel)

    def complete(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
        options = argparse.Namespace(journal=getattr(parsed_args, "journal", None))
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                return [name for name in asyncio.run(ask(options)) if name.startswith(prefix)]
            except (anybatch.AnyBatchError, TimeoutError):
                return []

    return complete


async def _jobs(kernel: anybatch.Kernel) -> list[str]:
    found: dict[str, None] = {}
    async for job in kernel.list_jobs():
        found[job.name] = None
        if len(found) >= NAMES_MAX:
            break
    return list(found)


async def _queues(kernel: anybatch.Kernel) -> list[str]:
    return [queue.name for queue in await kernel.describe_job_queues()]


async def _environments(kernel: anybatch.Kernel) -> list[str]:
    return [environment.name for environment in await kernel.describe_compute_environments()]


async def _definitions(kernel: anybatch.Kernel) -> list[str]:
    return sorted({one.name for one in await kernel.describe_job_definitions(active=True)})


def _statuses(prefix: str, **_: Any) -> list[str]:
    return [status for status in anybatch.JobStatus if status.startswith(prefix.upper())]


COMPLETERS: Final[dict[str, Callable[..., list[str]]]] = {
    "job": _from_kernel(_jobs),
    "jobs": _from_kernel(_jobs),
    "after": _from_kernel(_jobs),
    "each_after": _from_kernel(_jobs),
    "queue": _from_kernel(_queues),
    "queues": _from_kernel(_queues),
    "environments": _from_kernel(_environments),
    "definition": _from_kernel(_definitions),
    "status": _statuses,
}
"""By the argument's name in the parser."""
