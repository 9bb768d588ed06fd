"""The command line as a process of its own, in a folder of its own."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ANYBATCH = [sys.executable, "-m", "anybatch"]


class Done:
    """A command line that has ended."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    def expect(self, status: int) -> Done:
        assert self.status == status, f"status {self.status}\n{self.out}\n{self.err}"
        return self

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def resume(self) -> list[str]:
        """The arguments of the command that goes on, as it was told to the user."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("to go on with this run: ")]
        words = shlex.split(line.partition(": ")[2])
        assert words[:3] == ANYBATCH
        return words[3:]


class Cli:
    """Runs `anybatch` in `folder`, with the state folder beside it."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder, self.state = folder, state
        inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        self.environment = {**inherited, "XDG_STATE_HOME": str(state), "PYTHONUTF8": "1", "TERM": "xterm-256color"}

    def write(self, name: str, text: str, *, mode: int = 0o644) -> str:
        path = self.folder / name
        path.write_text(text)
        path.chmod(mode)
        return name

    def popen(self, *arguments: str, **changes: Any) -> subprocess.Popen[str]:
        options: dict[str, Any] = {
            "cwd": self.folder,
            "env": self.environment,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        # A signal that is ignored here would be ignored there: background jobs of a shell ignore SIGINT.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.Popen([*ANYBATCH, *arguments], **{**options, **changes})
        finally:
            signal.signal(signal.SIGINT, before)

    def __call__(self, *arguments: str, **changes: Any) -> Done:
        with self.popen(*arguments, **changes) as process:
            return finish(process)

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """The same, still running; it is killed if the test does not see to its end."""
        with self.popen(*arguments) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def fifo(self, name: str) -> Path:
        path = self.folder / name
        os.mkfifo(path)
        return path


def finish(process: subprocess.Popen[str]) -> Done:
    out, err = process.communicate()
    return Done(process.returncode, out, err)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    folder = tmp_path / "work"
    folder.mkdir()
    return Cli(folder, tmp_path / "state")
