"""What the tests of the Kernel share: backends that do as told, journals that keep account, waiting without sleep."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from anybatch import JobHandle, JobStatus, Kernel
from anybatch.kernel.backend import API_VERSION, AttemptKey, BackendContext, Capabilities, Capacity, Launch
from anybatch.kernel.core.errors import JournalError
from anybatch.kernel.core.events import AnyEvent
from anybatch.kernel.core.snapshot import encode
from anybatch.kernel.journal import Journal
from anybatch.kernel.runtime import Runtime
from anybatch.testing.null import NullBackend

UNTIL_S = 90.0


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Let the event loop turn until the condition holds."""
    end = time.monotonic() + UNTIL_S
    while not condition():
        assert time.monotonic() < end, what or "it never came to that"
        await asyncio.sleep(0)


async def turns(count: int = 30) -> None:
    """Give everybody that many turns of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A backend without options."""


class ManualBackend:
    """Holds what it is given until the test ends it. Tests of bad manners override a method.

    Its own record: `calls` in order, `launched`, `live` and `stopped` attempts, `known` at the last start.
    """

    api_version: ClassVar[int] = API_VERSION
    capabilities: ClassVar[Capabilities] = Capabilities(commands=False)
    Options: ClassVar[type[msgspec.Struct]] = NoOptions

    def __init__(self, *, obeys: bool = True, starts: bool = True) -> None:
        self.obeys, self.starts = obeys, starts
        self.calls: list[str] = []
        self.launched: list[AttemptKey] = []
        self.live: dict[AttemptKey, Launch] = {}
        self.stopped: list[AttemptKey] = []
        self.known: list[Launch] = []
        self.closed = False

    async def start(self, context: BackendContext, known: Sequence[Launch]) -> None:
        self.calls.append("start")
        self.context, self.known, self.closed = context, list(known), False
        context.host_up("host", Capacity(vcpus_milli=context.settings.max_vcpus_milli))
        for launch in known:
            self.settle(launch)

    def settle(self, launch: Launch) -> None:
        """What has become of an attempt that was in flight."""
        self.context.lost(launch.job_id, launch.number, launch.indexes, reason="gone with the process")

    async def launch(self, launches: Sequence[Launch]) -> None:
        self.calls.append("launch")
        for launch in launches:
            self.launched += launch.attempts()
            self.live.update(dict.fromkeys(launch.attempts(), launch))
            if self.starts:
                self.context.started(launch.job_id, launch.number, launch.indexes)

    def exit(self, key: AttemptKey, code: int | None = 0, **more: Any) -> None:
        """End an attempt."""
        self.live.pop(key, None)
        self.context.exited(key.job_id, key.number, [key.index], [code], **more)

    def exit_all(self, code: int = 0) -> None:
        for key in list(self.live):
            self.exit(key, code)

    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        self.calls.append("stop")
        self.stopped += attempts
        for key in attempts:
            if self.obeys and key in self.live:
                self.exit(key, 143)

    async def logs(self, attempt: AttemptKey, *, follow: bool) -> AsyncIterator[bytes]:
        yield b"log of " + str(attempt.number).encode()

    async def close(self) -> None:
        self.calls.append("close")
        self.closed = True


class LastingBackend(ManualBackend):
    """One whose attempts outlive the kernel: give the same object to the next kernel, and it finds them again."""

    capabilities: ClassVar[Capabilities] = Capabilities(commands=False, reattach=True)

    def settle(self, launch: Launch) -> None:
        for key in launch.attempts():
            if key in self.live:
                self.context.started(key.job_id, key.number, [key.index])
            else:
                self.context.lost(key.job_id, key.number, [key.index], reason="nobody knows it")


class Recorded:
    """A journal around another one that writes down, in `trace`, what is committed and synced, and fails on demand."""

    def __init__(self, inner: Journal, trace: list[tuple[str, object]]) -> None:
        self.inner, self.trace = inner, trace
        self.fail_commit = self.fail_sync = self.hold_sync = False
        self.before_commit: Callable[[Sequence[AnyEvent]], None] = lambda events: None
        self.after_commit: Callable[[Sequence[AnyEvent]], None] = lambda events: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def commit(self, at_ms: int, events: Sequence[AnyEvent]) -> int:
        if self.fail_commit:
            raise JournalError("the disk is full")
        self.before_commit(events)
        last = self.inner.commit(at_ms, events)
        self.trace.append(("commit", tuple(type(event).__name__ for event in events)))
        self.after_commit(events)
        return last

    async def sync(self) -> int:
        last = self.inner.last
        await until(lambda: not self.hold_sync)
        if self.fail_sync:
            raise JournalError("the disk does not answer")
        last = max(last, 0)
        await self.inner.sync()
        self.trace.append(("sync", last))
        return last


class RecordedKernel(Kernel):
    """A kernel on a `Recorded` journal."""

    trace: list[tuple[str, object]]
    recorded: Recorded

    def _open_journal(self) -> Journal:
        self.trace = []
        self.recorded = Recorded(super()._open_journal(), self.trace)
        return self.recorded


def as_killed(path: Path) -> Path:
    """A copy of a kernel's files as they are now: what a kernel killed at this moment leaves behind."""
    for n in range(1000):
        to = path.parent / f"killed-{n}"
        if not to.exists():
            break
    to.mkdir()
    for suffix in ("", "-wal"):
        if (found := path.with_name(path.name + suffix)).exists():
            shutil.copy(found, to / found.name)
    shutil.copytree(path.with_name(path.name + ".d"), to / (path.name + ".d"))
    return to / path.name


def live(kernel: Kernel) -> Runtime:
    """The runtime behind a kernel."""
    runtime = kernel._runtime
    assert runtime is not None
    return runtime


def snapshot(kernel: Kernel) -> tuple[bytes, int]:
    """Everything that a kernel knows but the time, and where its log stands: the same where nothing has changed."""
    state = live(kernel).state
    now_ms, state.now_ms = state.now_ms, 0
    try:
        return encode(state), live(kernel).journal.last
    finally:
        state.now_ms = now_ms


async def add_queue(kernel: Kernel, backend: str = "b", *, name: str = "q", vcpus: float = 4, **options: Any) -> None:
    """An environment (named as its backend) and a queue on it."""
    await kernel.create_compute_environment(backend, backend=backend, max_vcpus=vcpus, options=options)
    await kernel.create_job_queue(name, priority=1, compute_environments=[backend])


@contextlib.asynccontextmanager
async def kernel_on(
    backend: Any = None, path: Path | None = None, *, vcpus: float = 4, kind: type[Kernel] = Kernel, **more: Any
) -> AsyncIterator[Kernel]:
    """A kernel with a queue `q` on an environment `b` of the given backend (default: the null backend)."""
    async with kind(path, backends={"b": NullBackend() if backend is None else backend}, **more) as kernel:
        if not await kernel.describe_compute_environments():
            await add_queue(kernel, vcpus=vcpus)
        yield kernel


@contextlib.asynccontextmanager
async def busy_kernel() -> AsyncIterator[Kernel]:
    """A kernel with a bit of everything."""
    backend = ManualBackend()
    async with Kernel(backends={"b": backend, "null": NullBackend}) as kernel:
        await add_queue(kernel, vcpus=2)
        await kernel.create_job_queue("stopped", priority=1, compute_environments=["b"], state="DISABLED")
        await kernel.register_job_definition("d", command=["x"])
        await kernel.register_job_definition("old", command=["x"])
        await kernel.register_job_definition("ref", command=["x", "Ref::name"])
        await kernel.deregister_job_definition("old:1")
        running = await submit(kernel, "running")
        await submit(kernel, "array", array_size=3)
        await submit(kernel, "twin")
        await submit(kernel, "twin")
        await kernel.create_compute_environment("anybatch-run", backend="null", max_vcpus=1)
        await kernel.create_job_queue("anybatch-run", priority=1, compute_environments=["anybatch-run"])
        await until(lambda: len(backend.live) == 2)
        await turns()
        yield kernel
        assert (await running.describe()).status is JobStatus.RUNNING
        job = await kernel.submit_job("more", queue="anybatch-run", command=["x"])
        assert (await job.wait()).status is JobStatus.SUCCEEDED


async def submit(kernel: Kernel, name: str = "job", **more: Any) -> JobHandle:
    """A job on `q` that runs `x`."""
    return await kernel.submit_job(name, **{"queue": "q", "command": ["x"], **more})


def open_files() -> set[str]:
    """What this process has open, without the event loop's own and the standard ones."""
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(f"{fd.name} {os.readlink(fd)}")
    return {entry for entry in found if "/fd" not in entry.split()[-1]}


def own_threads() -> set[threading.Thread]:
    """All but anyio's pool, which belongs to the event loop and ends with it."""
    return {thread for thread in threading.enumerate() if "AnyIO" not in thread.name}


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Check that tasks, threads and open files are afterwards what they were before."""
    tasks, threads, files = asyncio.all_tasks(), own_threads(), open_files()
    yield
    assert asyncio.all_tasks() - tasks == set()
    assert own_threads() - threads == set()
    assert open_files() - files == set()
