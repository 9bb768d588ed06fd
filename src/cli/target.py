"""Which kernel a command talks to: how it is found, and what is told when none runs."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import anybatch
from anybatch.kernel.control import place

from .console import Out, plain
from .journals import runs_folder, serve_journal
from .output import print_error, when
from .runner import BAD_USE, ENGINE_FAILED

VARIABLE: Final = "ANYBATCH_JOURNAL"
NAMED_MAX: Final = 10
"""Kernels named where several run."""
EXIT_STATUS: Final = """\
exit status:
  0 done     1 a job failed     2 bad use, or refused     3 no kernel to talk to, or it failed     130 Ctrl-C
"""
FOUND: Final = """\
The kernel is that of --journal, else of the variable ANYBATCH_JOURNAL, else the one that runs: of `anybatch serve`, or
of an `anybatch run`. Where none runs, what only looks reads the journal of the newest, and says so.
"""


class NoTarget(anybatch.AnyBatchError):
    """There is no kernel to talk to, or there are several."""


def add_options(parser: argparse.ArgumentParser, *, json: bool = True) -> None:
    """What all commands that talk to a kernel have."""
    parser.add_argument("--journal", metavar="PATH", help="the kernel's journal, or its control socket")
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON, with times in UTC")


def carry_out(options: argparse.Namespace, work: Callable[[], Awaitable[int]]) -> int:
    """Run a command; what goes wrong is told, and is an exit status."""

    async def begin() -> int:
        return await work()

    try:
        return asyncio.run(begin())
    except anybatch.RequestError as e:
        print_error(options, e)
        return BAD_USE
    except anybatch.AnyBatchError as e:
        print_error(options, e)
        return ENGINE_FAILED


@contextlib.asynccontextmanager
async def kernel_of(options: argparse.Namespace, *, looks: bool = False) -> AsyncIterator[anybatch.Kernel]:
    """The kernel to talk to. With `looks`, a journal that no kernel runs on will do: it is read."""
    path = chosen(options)
    async with contextlib.AsyncExitStack() as stack:
        try:
            kernel: anybatch.Kernel = await stack.enter_async_context(anybatch.connect(path))
        except anybatch.NotRunning as e:
            if not path.is_file():
                raise NoTarget(f"{e}; {_advice()}") from None
            if not looks:
                raise NoTarget(f"{e}; {_start(path)}") from None
            reader = await stack.enter_async_context(anybatch.read_journal(path))
            note = f"{e}: this is its journal, read only, as of {when(reader.as_of)}"
            Out(stderr=True).print(plain(note), soft_wrap=True)
            kernel = reader
        yield kernel


def chosen(options: argparse.Namespace) -> Path:
    """The journal, or socket, to use.

    Raises:
        NoTarget: there is none, or several are as good.
    """
    given = options.journal or os.environ.get(VARIABLE)
    if given:
        return Path(given)
    running = [path for path in _journals() if place.holder(path) is not None]
    if len(running) == 1:
        return running[0]
    if running:
        names = "".join(f"\n  --journal {shlex.quote(str(path))}" for path in running[:NAMED_MAX])
        raise NoTarget(f"{len(running)} kernels run; say which:{names}")
    newest = max(_journals(), key=_age, default=None)
    if newest is None:
        raise NoTarget(f"there is no kernel, and no journal of one; {_advice()}")
    return newest


def _journals() -> list[Path]:
    """Those in the places where `serve` and `run` put them."""
    found = [serve_journal(), *runs_folder().glob("*/batch.db")]
    return [path for path in found if path.is_file()]


def _age(path: Path) -> float:
    """When a journal was last written to."""
    return max((os.stat(name).st_mtime for name in (path, f"{path}-wal") if os.path.exists(name)), default=0.0)


def _advice() -> str:
    return f"start one with `anybatch serve`, or name its journal with --journal PATH or {VARIABLE}"


def _start(path: Path) -> str:
    command = ["anybatch", "serve", "--journal", str(path)]
    if (place.files_of(path) / "run.json").exists():
        command[1] = "run"
    return f"`{shlex.join(command)}` {'goes on with it' if command[1] == 'run' else 'starts one'}"


async def reference(kernel: anybatch.Kernel, text: str) -> str:
    """A job as people write it: an id, a name, or one of these with `:index` for a child."""
    name, colon, index = text.rpartition(":")
    if not colon or not index.isdecimal():
        return text
    with contextlib.suppress(anybatch.NotFound):
        return (await kernel.job(text)).id
    found = await kernel.job(name)
    return found[int(index)].id


async def references(kernel: anybatch.Kernel, texts: list[str]) -> list[str]:
    """The same for several."""
    return [await reference(kernel, text) for text in texts]


def add_command(
    commands: Any, name: str, main: Callable[[argparse.Namespace], int], *, brief: str, text: str, examples: str
) -> argparse.ArgumentParser:
    """A parser for a command that talks to a kernel."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=brief,
        description=f"{text.strip()}\n\n{FOUND}",
        epilog=f"examples:\n{examples.strip(chr(10))}\n\n{EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(main=main)
    return parser
