"""The command line as a process of its own, in a folder of its own."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from anybatch.cli import main
from ssh_rig import lab

__all__ = ["lab"]  # a fixture

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

    def install(self, name: str, version: str, entry_points: str, **modules: str) -> None:
        """Install a distribution of these entry points and modules for the commands that follow."""
        site = self.folder / "site"
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points)
        for module, text in modules.items():
            (site / f"{module}.py").write_text(text)
        self.environment["PYTHONPATH"] = os.pathsep.join([str(site), self.environment.get("PYTHONPATH", "")])

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


@contextmanager
def serving(cli: Cli, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`anybatch serve`, from when it is ready; it is told to end afterwards, and has to end in order."""
    reader, writer = os.pipe()
    process = cli.popen("serve", *arguments, "--ready-fd", str(writer), pass_fds=[writer], stderr=subprocess.STDOUT)
    os.close(writer)
    with os.fdopen(reader) as ready, process:
        try:
            assert ready.readline() == "ready\n", process.communicate()[0]
            yield process
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
        finally:
            if process.poll() is None:
                process.kill()


class Quick(Cli):
    """The same, but commands are carried out in this process: a tenth of the time. `running` is as it was."""

    def __call__(self, *arguments: str, **changes: Any) -> Done:
        assert not changes
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            for name, value in self.environment.items():
                patch.setenv(name, value)
            try:
                status = main(arguments)
            finally:
                structlog.reset_defaults()
        texts = []
        for stream in (out, err):
            stream.flush()
            assert isinstance(stream.buffer, io.BytesIO)
            texts.append(stream.buffer.getvalue().decode())
        return Done(status, *texts)


LOCAL = """
[environments.local]
backend = "process"
max_vcpus = 2

[queues.default]
priority = 1
compute_environments = ["local"]
"""


@pytest.fixture
def quick(tmp_path: Path) -> Quick:
    (tmp_path / "work").mkdir()
    return Quick(tmp_path / "work", tmp_path / "state")


Serve = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


@pytest.fixture
def serve(quick: Quick) -> Serve:
    """Runs `anybatch serve` with these arguments, in a `with`."""
    quick.write("anybatch.toml", LOCAL)
    return functools.partial(serving, quick)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quick]:
    """Commands that find a kernel, which runs for all tests of a file: with one queue, on local processes."""
    place = tmp_path_factory.mktemp("served")
    (place / "work").mkdir()
    quick = Quick(place / "work", place / "state")
    quick.write("anybatch.toml", LOCAL)
    with serving(quick, "--config", "anybatch.toml", "--on-close", "stop"):
        yield quick


def finish(process: subprocess.Popen[str]) -> Done:
    out, err = process.communicate()
    return Done(process.returncode, out, err)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    folder = tmp_path / "work"
    folder.mkdir()
    return Cli(folder, tmp_path / "state")
