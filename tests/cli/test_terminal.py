"""What a person at a terminal sees."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Cli, Quick

JOBS = """
[jobs.squares]
command = ["sh", "-c", "test $AWS_BATCH_JOB_ARRAY_INDEX != 3"]
array_size = 40
vcpus = 0.1
[jobs.reduce]
command = ["echo", "fine"]
"""
MANY = "\n".join(f'[jobs.j{n}]\ncommand = ["true"]\nvcpus = 0.1' for n in range(30))
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")


class Terminal:
    """A pseudo terminal with `anybatch` at it, in a session of its own."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.master = master
        self.process = process
        self.screen = ""

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def wait(self) -> int:
        """Read until nobody has the terminal open any more, and return the exit status."""
        while piece := self._read():
            self.screen += piece
        return self.process.wait()

    def until(self, text: str) -> None:
        """Read until this has been on the screen."""
        while text not in self.screen:
            piece = self._read()
            assert piece, self.screen
            self.screen += piece

    def _read(self) -> str:
        try:
            return os.read(self.master, 1 << 16).decode(errors="replace")
        except OSError as e:
            if e.errno == errno.EIO:  # so says Linux when the last process has closed the other end
                return ""
            raise


@contextmanager
def terminal(cli: Cli, *arguments: str, rows: int = 24, columns: int = 90) -> Iterator[Terminal]:
    """A terminal of that size. It is the session's own, so Ctrl-C there is a signal to the foreground."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    words = ["sh", "-c", 'exec "$@" < "$0" > "$0" 2>&1', os.ttyname(slave), sys.executable, "-m", "anybatch"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen([*words, *arguments], cwd=cli.folder, env=cli.environment, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, before)
    ready = os.read(master, 1)  # it has opened the terminal: ours can be closed
    os.close(slave)
    found = Terminal(master, process)
    found.screen = ready.decode()
    try:
        yield found
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)


def seen(cli: Cli, *arguments: str, rows: int = 24, columns: int = 90) -> tuple[int, str]:
    """The exit status, and all that was written."""
    with terminal(cli, *arguments, rows=rows, columns=columns) as found:
        return found.wait(), found.screen


def test_bars(cli: Cli) -> None:
    cli.write("jobs.toml", JOBS)
    status, screen = seen(cli, "run", "jobs.toml")
    assert status == 1
    assert "█" in screen
    assert "39/40 (1 failed)" in screen
    assert "2 of 2 jobs ended" in screen
    assert "squares: child 3 failed: exit code 1" in screen
    assert "squares, child 3: exit code 1" in re.sub(r"\x1b\[[0-9;]*m", "", screen)
    assert COLOUR.search(screen)
    assert screen.count("\x1b[?25l") == screen.count("\x1b[?25h") == 1, "the cursor is back"


def test_no_colour(cli: Cli) -> None:
    cli.environment["NO_COLOR"] = "1"
    cli.write("jobs.toml", JOBS)
    _, screen = seen(cli, "run", "jobs.toml")
    assert "█" in screen
    assert not COLOUR.search(screen)


def test_a_dumb_terminal_gets_lines(cli: Cli) -> None:
    cli.environment["TERM"] = "dumb"
    cli.write("jobs.toml", JOBS)
    _, screen = seen(cli, "run", "jobs.toml")
    assert "\x1b" not in screen
    assert "squares: failed 39/40 (1 failed)" in screen


@pytest.mark.parametrize(("rows", "columns"), [(10, 40), (5, 20), (24, 90)])
def test_more_jobs_than_lines(cli: Cli, rows: int, columns: int) -> None:
    cli.write("many.toml", MANY)
    status, screen = seen(cli, "run", "many.toml", rows=rows, columns=columns)
    assert status == 0
    assert re.search(r"\.\.\. and \d+ more", screen)
    assert "many  30 of 30" in re.sub(r"\x1b\[[0-9;]*m", "", screen)


def test_ctrl_c_at_the_terminal(cli: Cli) -> None:
    """It reaches the run and not the attempts, which are ended as on AWS: by SIGTERM."""
    traps = "trap 'echo int >> got' INT; trap 'echo term >> got; exit 1' TERM"
    script = f"{traps}; echo > held; while :; do read x < never; done"
    held = cli.fifo("held")
    cli.fifo("never")
    with terminal(cli, "run", "--", "sh", "-c", script) as found:
        held.read_text()
        found.press(b"\x03")
        assert found.wait() == 128 + signal.SIGINT
    assert "stopping" in found.screen
    assert "interrupted" in found.screen
    assert "to go on with this run: " in found.screen
    assert found.screen.count("\x1b[?25l") == found.screen.count("\x1b[?25h") == 1, "the cursor is back"
    assert (cli.folder / "got").read_text().split() == ["term"]


def test_top_is_drawn_anew_until_ctrl_c_and_leaves_the_terminal_as_it_was(served: Quick) -> None:
    served("submit", "--name", "watched", "-a", "3", "--wait", "--", "true").expect(0)
    served("submit", "--name", "misfit", "--vcpus", "99", "--", "true").expect(0)
    with terminal(served, "top", "-d", "0.1", columns=140, rows=30) as found:
        found.until("NEVER_FITS: needs 99 vCPU")
        assert "watched" in found.screen
        assert COLOUR.search(found.screen)
        served("cancel", "misfit").expect(0)
        found.until("Cancelled by its owner")
        found.press(b"\x03")
        assert found.wait() == 130
        assert found.screen.rstrip().endswith("\x1b[?25h") or "\x1b[?1049l" in found.screen[-200:]
