"""`anybatch serve`: keeps a kernel running, for other processes to use through its control socket."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import anybatch
from anybatch.kernel.front_end import FrontEnd
from anybatch.kernel.registry import find_front_ends

from .collector import settle
from .console import Out, plain
from .journals import serve_journal
from .output import print_error, say
from .runner import BAD_USE, ENGINE_FAILED

HELP: Final = """\
Keep a kernel running, for other processes: `anybatch ps`, `submit` and so on, and anybatch.connect(PATH).

Ends in order on SIGTERM and SIGINT: by default attempts go on (of processes, containers and SSH hosts), and are found
again at the next start.
SIGHUP reads the configuration again and applies it. With a systemd unit (docs/serve.md) it says when it is ready.
"""
EXAMPLES: Final = """\
examples:
  anybatch serve                                  the journal is ~/.local/state/anybatch/batch.db
  anybatch serve --config anybatch.toml --journal /var/lib/anybatch/batch.db
  anybatch serve --on-close drain                 SIGTERM waits for what runs

exit status:
  0 ended in order     2 bad file or bad use     3 the kernel failed, or another one holds the journal
"""
LOOK_S: Final = 1.0
"""Between two looks at whether the kernel has stopped by itself."""
NAMED_MAX: Final = 20
"""Things that a SIGHUP has changed and that are named."""


def add_parser(commands: Any) -> None:
    """Tell the command line about this command."""
    parser = commands.add_parser(
        "serve",
        help="keep a kernel running, for other processes",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE.toml", help="environments, queues, definitions (docs/config.md)")
    parser.add_argument("--journal", metavar="PATH", help="default: ~/.local/state/anybatch/batch.db")
    parser.add_argument("--socket", metavar="PATH", help="the control socket (default: beside the journal)")
    parser.add_argument(
        "--on-close",
        choices=("detach", "drain", "stop"),
        default="detach",
        help="attempts at the end: let those go on that can (default), wait for all, or stop them to run again",
    )
    parser.add_argument("--ready-fd", type=int, metavar="N", help="write a line to this descriptor when it is ready")
    found, failed = find_front_ends()
    for name in list(found):
        try:
            # On a parser that is thrown away first: half of the options of one that fails must not be left.
            found[name].add_options(argparse.ArgumentParser(parents=[parser], add_help=False))
            found[name].add_options(parser)
        except Exception as e:
            failed[name] = f"its options cannot be added: {type(e).__name__}: {e}"
            del found[name]
    if failed:
        parser.epilog = f"{EXAMPLES}\n" + "".join(f"{_failure(name, why)}\n" for name, why in failed.items())
    parser.set_defaults(main=main, front_ends=found, failed_front_ends=failed)


def _failure(name: str, why: str) -> str:
    return f"front end {name!r} cannot be used: {plain(why)}"


def main(options: argparse.Namespace) -> int:
    """Serve until told to end."""
    try:
        return asyncio.run(_Service(options).main())
    except anybatch.ConfigError as e:
        for mistake in e.mistakes:
            Out(stderr=True).print(plain(str(mistake)), soft_wrap=True)
        return BAD_USE
    except anybatch.RequestError as e:
        print_error(options, e)
        return BAD_USE
    except anybatch.AnyBatchError as e:
        print_error(options, e)
        return ENGINE_FAILED


class _Service:
    """One call of `anybatch serve`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._journal = serve_journal() if options.journal is None else Path(options.journal).absolute()
        self._end = asyncio.Event()
        self._again = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self._body: asyncio.Task[int] | None = None

    async def main(self) -> int:
        """Serve; returns the exit status."""
        config = self._read()
        with self._signals_handled():
            self._body = asyncio.create_task(self._serve(config), name="anybatch-serve")
            try:
                return await self._body
            except asyncio.CancelledError:
                return ENGINE_FAILED if not self._end.is_set() else 0

    def _read(self) -> anybatch.Config | None:
        """The configuration.

        Raises:
            ConfigError: it has mistakes.
        """
        return None if self._options.config is None else anybatch.load_config(self._options.config)

    async def _serve(self, config: anybatch.Config | None) -> int:
        arguments = {} if config is None else config.kernel_arguments()
        options = self._options
        kernel = anybatch.Kernel(self._journal, control=options.socket or True, on_close=options.on_close, **arguments)
        async with kernel, contextlib.AsyncExitStack() as front_ends:
            if config is not None:
                self._tell(await kernel.apply(config))
            for name, why in options.failed_front_ends.items():
                say(_failure(name, why))
            for name, front_end in options.front_ends.items():
                if front_end.is_wanted(options):
                    running = _running(name, front_end, kernel, options, self._journal)
                    for line in await front_ends.enter_async_context(running):
                        say(line)
            settle()
            say(f"ready: journal {self._journal}, control socket {kernel.control_path}, process {os.getpid()}")
            self._ready()
            failed = await self._until_told(kernel)
            notify("STOPPING=1")
            if failed is None:
                say(_ENDING[options.on_close])
        if failed is not None:
            raise failed
        return 0

    async def _until_told(self, kernel: anybatch.Kernel) -> anybatch.KernelClosed | None:
        """Return when it is to end; with why, if the kernel has stopped by itself."""
        while not self._end.is_set():
            if self._again.is_set():
                self._again.clear()
                await self._apply_again(kernel)
            try:
                await kernel.last_event_id()
            except anybatch.KernelClosed as e:
                return e
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._woken()
        return None

    async def _woken(self) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (self._end, self._again)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _apply_again(self, kernel: anybatch.Kernel) -> None:
        """After SIGHUP. A configuration with mistakes changes nothing, and ends nothing."""
        if self._options.config is None:
            say("SIGHUP: there is no --config to read again")
            return
        notify("RELOADING=1")
        try:
            config = await asyncio.to_thread(self._read)
            assert config is not None
            self._tell(await kernel.apply(config))
        except anybatch.RequestError as e:
            say(f"the configuration was not applied, what there was stays: {e}")
        notify("READY=1")

    @staticmethod
    def _tell(applied: anybatch.Applied) -> None:
        for verb, names in (("created", applied.created), ("updated", applied.updated)):
            for name in names[:NAMED_MAX]:
                say(f"{verb} {name}")
            if len(names) > NAMED_MAX:
                say(f"{verb} {len(names) - NAMED_MAX} more")
        say(f"configuration applied; {len(applied.unchanged)} entries were as they should be")

    def _ready(self) -> None:
        notify(f"READY=1\nMAINPID={os.getpid()}\nSTATUS=journal {self._journal}")
        if self._options.ready_fd is not None:
            with contextlib.suppress(OSError):  # nobody wants to know any more
                os.write(self._options.ready_fd, b"ready\n")
                os.close(self._options.ready_fd)

    # -- signals ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals_handled(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGTERM: self._told_to_end, signal.SIGINT: self._told_to_end, signal.SIGHUP: self._again.set}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _told_to_end(self) -> None:
        """The first time in order; the second time a drain is given up, as is a start that takes long."""
        if self._end.is_set() and self._body is not None:
            say("told to end again: what runs is no longer waited for")
            self._body.cancel()
        self._end.set()


@contextlib.asynccontextmanager
async def _running(
    name: str, front_end: type[FrontEnd], kernel: anybatch.Kernel, options: argparse.Namespace, journal: Path
) -> AsyncIterator[list[str]]:
    """A front end, for as long as this lasts; what it raises by itself is told with its name."""
    with _told(name):
        context = front_end.serve(kernel, options, journal)
        lines = await context.__aenter__()
    try:
        yield lines
    except BaseException:
        if not await context.__aexit__(*sys.exc_info()):
            raise
    else:
        with _told(name):
            await context.__aexit__(None, None, None)


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except anybatch.AnyBatchError:
        raise
    except Exception as e:
        raise anybatch.PluginError(f"front end {name!r} failed: {type(e).__name__}: {e}") from e


_ENDING: Final = {
    "detach": "ending: attempts go on (all but inline ones), and are found again at the next start",
    "drain": "ending: nothing more is started, and what runs is waited for; a second signal gives that up",
    "stop": "ending: what runs is stopped (up to 30 s), and runs again at the next start",
}


def notify(state: str) -> None:
    """Tell systemd, if it wants to know (sd_notify(3): a datagram to the socket that it names)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
