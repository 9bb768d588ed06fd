"""A process backend with a context that writes down what it is told, for the tests of the backend and its agent."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
import pytest_asyncio
from anybatch.backends.process import ProcessBackend
from anybatch.kernel.backend import AttemptKey, AttemptSpec, Capacity, EnvironmentSettings, Launch
from anybatch.kernel.clock import Clock, SystemClock
from anybatch.kernel.core.errors import BackendError

JOB = "6f1e2d3c-1111-4222-8333-444455556666"
DEADLINE_S = 90.0
"""Nothing waits for so long but where something is wrong, on however busy a machine."""


class Recorder:
    """A `BackendContext` that writes down what it is told. `sync` says whether reports become durable."""

    def __init__(self, root: Path, *, durable: bool = True, **options: Any) -> None:
        self.kernel_id = "k1"
        self.clock: Clock = SystemClock()
        self.settings = EnvironmentSettings(
            name="local", managed=False, min_vcpus_milli=0, max_vcpus_milli=4000, options=options
        )
        self.state_dir, self.logs_dir, self.runtime_dir = root / "state", root / "logs", root / "run"
        for folder in (self.state_dir, self.logs_dir, self.runtime_dir):
            folder.mkdir(exist_ok=True)
        self.durable = durable
        self.sync = True
        self.hosts: dict[str, Capacity] = {}
        self.starts: list[AttemptKey] = []
        self.ends: dict[AttemptKey, int | str | None] = {}  # the exit code, "lost" or "timed out"
        self.reasons: dict[AttemptKey, str | None] = {}
        self.status_reasons: dict[AttemptKey, str | None] = {}
        self.times: dict[AttemptKey, tuple[int, int]] = {}
        self.strangers: list[AttemptKey] = []
        self.failures: list[str] = []
        self.acknowledgements = 0
        self._began: dict[AttemptKey, int] = {}

    def host_up(self, host: str, capacity: Capacity, zone: str | None = None) -> None:
        self.hosts[host] = capacity

    def honours(self, fields: Collection[str]) -> None:
        self.honoured = frozenset(fields)

    def waiting(self, job_id: str, number: int, indexes: Sequence[int], *, reason: str) -> None:
        raise AssertionError("local attempts do not wait")

    def host_down(self, host: str, reason: str) -> None:
        raise AssertionError("the process backend's host does not go")

    def host_paused(self, host: str, reason: str | None) -> None:
        raise AssertionError("the process backend's host takes attempts")

    def is_kept(self, job_id: str) -> bool:
        return True

    def host_of(self, attempt: AttemptKey) -> str | None:
        return None

    def started(self, job_id: str, number: int, indexes: Sequence[int], at_ms: Sequence[int] | None = None) -> None:
        for place, index in enumerate(indexes):
            key = AttemptKey(job_id, index, number)
            self.starts.append(key)
            if at_ms is not None:
                self._began[key] = at_ms[place]

    def exited(
        self,
        job_id: str,
        number: int,
        indexes: Sequence[int],
        codes: Sequence[int | None],
        at_ms: Sequence[int] | None = None,
        *,
        reason: str | None = None,
        status_reason: str | None = None,
        started_ms: Sequence[int] | None = None,
    ) -> None:
        if started_ms is not None:
            fresh = [
                (i, at)
                for i, at in zip(indexes, started_ms, strict=True)
                if AttemptKey(job_id, i, number) not in self._began
            ]
            self.started(job_id, number, [i for i, _ in fresh], [at for _, at in fresh])
        for place, (index, code) in enumerate(zip(indexes, codes, strict=True)):
            key = AttemptKey(job_id, index, number)
            self.ends[key] = code
            self.reasons[key], self.status_reasons[key] = reason, status_reason
            if at_ms is not None:
                self.times[key] = (self._began.get(key, 0), at_ms[place])

    def timed_out(
        self,
        job_id: str,
        number: int,
        indexes: Sequence[int],
        codes: Sequence[int | None],
        at_ms: Sequence[int] | None = None,
    ) -> None:
        self.ends.update({AttemptKey(job_id, index, number): "timed out" for index in indexes})

    def lost(self, job_id: str, number: int, indexes: Sequence[int], *, reason: str) -> None:
        for index in indexes:
            key = AttemptKey(job_id, index, number)
            self.ends[key], self.reasons[key] = "lost", reason

    def found(self, host: str, job_id: str, number: int, indexes: Sequence[int]) -> None:
        self.strangers.extend(AttemptKey(job_id, index, number) for index in indexes)

    def unknown(self, job_id: str, number: int, indexes: Sequence[int], *, for_ms: int | None = None) -> None:
        raise AssertionError("a local agent always knows")

    def failed(self, reason: str) -> None:
        self.failures.append(reason)

    def when_durable(self, callback: Callable[[], None]) -> None:
        if self.sync:
            self.acknowledgements += 1
            asyncio.get_running_loop().call_soon(callback)


def key(index: int = 0, number: int = 1, job: str = JOB) -> AttemptKey:
    return AttemptKey(job, index, number)


def shell(text: str, **fields: Any) -> AttemptSpec:
    return AttemptSpec(command=("/bin/sh", "-c", text), **fields)


def launch(spec: AttemptSpec, indexes: Sequence[int] = (0,), *, number: int = 1, **fields: Any) -> Launch:
    return Launch(job_id=JOB, number=number, indexes=indexes, host="local", spec=spec, **fields)


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for a condition; fail after DEADLINE_S."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE_S:g} s: {what or condition}"
        await anyio.sleep(0.005)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def numbers_in(path: Path) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(word) for word in path.read_text().split()]
    return []


def agent_pid(backend: ProcessBackend) -> int:
    client = backend._client
    assert client is not None
    assert client.agent is not None
    return client.agent.pid


def cut_connection(backend: ProcessBackend) -> asyncio.Future[None]:
    """Cut a backend's connection to its agent; the result is done when the backend has noticed."""
    client = backend._client
    assert client is not None
    assert client._link is not None
    assert client._link._transport is not None
    client._link._transport.abort()
    return client._link.closed


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ab-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
        (Path(folder) / "state").rename(Path(folder) / "gone") if (Path(folder) / "state").exists() else None


class Rig:
    """A root folder, and the backends started on it; all are closed, and their agents ended, at the end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.backends: list[ProcessBackend] = []

    async def open(
        self, known: Sequence[Launch] = (), context: Recorder | None = None, **arguments: Any
    ) -> tuple[ProcessBackend, Recorder]:
        context = context or Recorder(self.root)
        backend = ProcessBackend(agent_idle_ms=arguments.pop("agent_idle_ms", 2_000), **arguments)
        self.backends.append(backend)
        await backend.start(context, known)
        return backend, context


@pytest_asyncio.fixture
async def rig(root: Path) -> AsyncIterator[Rig]:
    rig = Rig(root)
    yield rig
    for backend in rig.backends:
        if backend._client is not None and backend._context is not None:
            backend._context.durable = False
            with contextlib.suppress(BackendError):
                await backend._client.shut_down(0)
            await backend.close()


async def output(backend: ProcessBackend, attempt: AttemptKey, *, follow: bool = False) -> bytes:
    return b"".join([piece async for piece in backend.logs(attempt, follow=follow)])
