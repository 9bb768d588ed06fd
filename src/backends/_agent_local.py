"""The agent of a state directory on this machine: found, or started; and the variables of attempts here."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import anyio

from ..kernel.core.errors import BackendError
from ._agent_link import Link

START_TIMEOUT_S = 20.0  # for a new agent to listen: it may first have to end what a killed one left
START_TRIES = 3  # somebody may kill an agent that is just starting
TROUBLE_TAIL = 2_000  # bytes of the agent's log shown when it cannot be started
EXIT_LOCKED = 75  # as in agent.py


class LocalAgent:
    """Starts, or finds, the agent of a state directory on this machine.

    The agent is a process of its own session that belongs to nobody. Its lock file names its socket, so a
    kernel with another runtime directory finds it as well.
    """

    def __init__(self, state_dir: Path, socket_path: Path, *, idle_ms: int | None = None) -> None:
        if len(os.fsencode(socket_path)) >= 100:
            raise BackendError(
                f"the socket path {str(socket_path)!r} is over 99 bytes; use a shorter runtime directory"
            )
        self._state_dir = state_dir
        self._socket_path = socket_path
        self._idle_ms = idle_ms

    async def connect(self, make_link: Callable[[], Link]) -> Link:
        loop = asyncio.get_running_loop()
        for path in dict.fromkeys((*self._advertised(), self._socket_path)):
            try:
                _, link = await loop.create_unix_connection(make_link, str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                continue
            return link
        await self._start()
        _, link = await loop.create_unix_connection(make_link, str(self._socket_path))
        return link

    def _advertised(self) -> list[Path]:
        """The socket of the agent that held the lock last; none if the folder is a copy of that agent's."""
        path = self._state_dir / "agent.lock"
        try:
            about, found = json.loads(path.read_bytes()), path.stat()
            return [Path(about["socket"])] if about["lock"] == [found.st_dev, found.st_ino] else []
        except (OSError, ValueError, KeyError, TypeError):
            return []

    async def _start(self) -> None:
        """Start an agent; return once it listens (also if another holds the state directory already)."""
        program = Path(__file__).with_name("agent.py")
        command = [sys.executable, "-I", "-S", "-X", "utf8", str(program)]
        command += ["--state", str(self._state_dir), "--socket", str(self._socket_path)]
        if self._idle_ms is not None:
            command += ["--idle-ms", str(self._idle_ms)]
        try:
            with anyio.fail_after(START_TIMEOUT_S):
                for _ in range(START_TRIES):
                    done = await anyio.run_process(
                        command, check=False, start_new_session=True, env=default_environment(), cwd="/"
                    )
                    if done.returncode >= 0:  # not killed while it started
                        break
        except (OSError, TimeoutError) as error:
            why = f"no answer within {START_TIMEOUT_S:g} s" if isinstance(error, TimeoutError) else str(error)
            raise BackendError(f"the agent could not be started: {why}{self._trouble()}", retryable=True) from error
        if done.returncode == EXIT_LOCKED:
            raise ConnectionRefusedError(f"an agent holds {self._state_dir} but does not listen")
        if done.returncode != 0:
            output = done.stderr.decode(errors="replace").strip()[-TROUBLE_TAIL:]
            raise BackendError(f"the agent could not be started (status {done.returncode}): {output}{self._trouble()}")

    def _trouble(self) -> str:
        try:
            tail = (self._state_dir / "agent.log").read_bytes()[-TROUBLE_TAIL:].decode(errors="replace").strip()
        except OSError:
            return ""
        return f"\nthe end of its log: {tail}" if tail else ""


def default_environment() -> dict[str, str]:
    """The clean base that attempts get their variables on: who and where, and nothing else of this process."""
    names = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ")
    return {"PATH": "/usr/local/bin:/usr/bin:/bin"} | {name: os.environ[name] for name in names if name in os.environ}
