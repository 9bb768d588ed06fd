"""Nothing is acknowledged, launched or published before its event is committed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from anybatch import JobStatus, Kernel, KernelClosed
from anybatch.kernel.backend import AttemptKey, Launch
from anybatch.kernel.core.errors import JournalError
from kernel_rig import LastingBackend, ManualBackend, RecordedKernel, kernel_on, live, submit, turns, until

pytestmark = pytest.mark.asyncio


class Traced(LastingBackend):
    """Writes its launches into the journal's trace."""

    trace: list[tuple[str, object]]

    async def launch(self, launches: Sequence[Launch]) -> None:
        await super().launch(launches)
        self.trace.append(("launch", [key for launch in launches for key in launch.attempts()]))

    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        self.trace.append(("stop", list(attempts)))
        await super().stop(attempts, grace_ms)


def position(trace: list[tuple[str, object]], kind: str, event: str = "") -> int:
    """Where the first entry of a kind (with an event of this name) stands."""
    for n, (found, about) in enumerate(trace):
        if found == kind and (not event or (isinstance(about, tuple) and event in about)):
            return n
    raise AssertionError(f"no {kind} {event} in {trace}")


@pytest.fixture(params=["file", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "j.db" if request.param == "file" else None


async def test_a_placement_is_committed_before_it_is_launched(path: Path | None) -> None:
    backend = Traced()
    backend.trace = []
    async with kernel_on(backend, path, kind=RecordedKernel) as kernel:
        assert isinstance(kernel, RecordedKernel)
        backend.trace = kernel.trace
        await submit(kernel)
        await until(lambda: backend.live)

        assert position(kernel.trace, "commit", "AttemptsPlaced") < position(kernel.trace, "launch")
        backend.exit_all()


async def test_a_stop_is_committed_before_it_is_handed_over(path: Path | None) -> None:
    backend = Traced()
    backend.trace = []
    async with kernel_on(backend, path, kind=RecordedKernel) as kernel:
        assert isinstance(kernel, RecordedKernel)
        backend.trace = kernel.trace
        job = await submit(kernel)
        await until(lambda: backend.live)
        await job.terminate("enough")
        await job.wait()

        assert position(kernel.trace, "commit", "CancelRequested") < position(kernel.trace, "stop")


async def test_a_change_is_synced_before_its_caller_is_answered(path: Path | None) -> None:
    async with kernel_on(ManualBackend(), path, kind=RecordedKernel) as kernel:
        assert isinstance(kernel, RecordedKernel)
        changes: list[Callable[[], Awaitable[Any]]] = [
            lambda: kernel.register_job_definition("d", command=["x"]),
            lambda: kernel.submit_job("job", queue="q", definition="d", array_size=3),
            lambda: kernel.cancel_job("job", "no more"),
            lambda: kernel.deregister_job_definition("d:1"),
            lambda: kernel.update_job_queue("q", state="DISABLED"),
            lambda: kernel.delete_job_queue("q"),
            lambda: kernel.update_compute_environment("b", state="DISABLED"),
            lambda: kernel.delete_compute_environment("b"),
        ]
        for change in changes:
            before = (await kernel.last_event_id()).sequence
            kernel.recorded.hold_sync = True
            call = asyncio.ensure_future(change())
            await until(lambda before=before: live(kernel).journal.last > before)  # type: ignore[misc]
            await turns()
            assert not call.done()
            kernel.recorded.hold_sync = False
            await call
            synced = max(last for kind, last in kernel.trace if kind == "sync" and isinstance(last, int))
            assert synced > before


async def test_waits_and_events_are_answered_at_commit(path: Path | None) -> None:
    backend = ManualBackend()
    async with kernel_on(backend, path, kind=RecordedKernel) as kernel:
        assert isinstance(kernel, RecordedKernel)
        start = await kernel.last_event_id()
        job = await submit(kernel)
        async with kernel.events(after=start) as events:
            await until(lambda: backend.live)
            kernel.recorded.hold_sync = True
            backend.exit_all()
            assert (await job.wait()).status is JobStatus.SUCCEEDED
            seen = []
            async for event in events:
                seen.append(event.status)
                if event.status.is_terminal:
                    break
            assert seen == ["SUBMITTED", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED"]
            kernel.recorded.hold_sync = False


async def test_when_durable_comes_only_after_the_sync(path: Path | None) -> None:
    backend = ManualBackend()
    async with kernel_on(backend, path, kind=RecordedKernel) as kernel:
        assert isinstance(kernel, RecordedKernel)
        job = await submit(kernel)
        await until(lambda: backend.live)
        kernel.recorded.hold_sync = True
        acknowledged: list[int] = []
        backend.exit_all()
        backend.context.when_durable(lambda: acknowledged.append(live(kernel).synced))
        await job.wait()
        await turns()
        assert acknowledged == []

        ended = (await kernel.last_event_id()).sequence
        kernel.recorded.hold_sync = False
        await until(lambda: acknowledged)

        assert acknowledged[0] >= ended


async def test_progress_is_synced_soon_without_a_caller(path: Path | None) -> None:
    backend = ManualBackend()
    async with kernel_on(backend, path, kind=RecordedKernel) as kernel:
        job = await submit(kernel)
        await until(lambda: backend.live)
        backend.exit_all()
        await job.wait()
        ended = (await kernel.last_event_id()).sequence

        await until(lambda: live(kernel).synced >= ended)


async def fails(kernel: RecordedKernel, failing: str) -> None:
    """From now on commits, or syncs, raise."""
    setattr(kernel.recorded, f"fail_{failing}", True)


@pytest.mark.parametrize("failing", ["commit", "sync"])
async def test_a_kernel_that_cannot_write_answers_nothing_more(path: Path | None, failing: str) -> None:
    backend = LastingBackend()
    try:
        async with kernel_on(backend, path, kind=RecordedKernel) as kernel:
            assert isinstance(kernel, RecordedKernel)
            running = await submit(kernel, "running")
            array = await submit(kernel, "array", array_size=2)
            await until(lambda: len(backend.live) == 3)
            went_on = set(backend.live) - {AttemptKey(running.id, 0, 1)}
            waits = [asyncio.ensure_future(w) for w in (running.wait(), array.wait(), array[1].wait())]
            await turns()
            await fails(kernel, failing)

            calls = [asyncio.ensure_future(submit(kernel, f"more-{n}")) for n in range(3)]
            results = await asyncio.gather(*calls, *waits, return_exceptions=True)

            assert [type(result) for result in results] == [KernelClosed] * 6
            assert "disk" in str(results[0])
            for call in (
                lambda: submit(kernel),
                lambda: kernel.describe_job(running),
                lambda: kernel.wait(running),
                lambda: kernel.cancel_job(running, "x"),
                lambda: kernel.describe_jobs([running]),
                lambda: kernel.describe_compute_environments(),
                lambda: kernel.create_compute_environment("c", backend="b"),
                lambda: kernel.update_compute_environment("b", max_vcpus=2),
                lambda: anext(aiter(kernel.list_jobs())),
            ):
                with pytest.raises(KernelClosed, match="disk"):
                    await call()
            with pytest.raises(KernelClosed):
                kernel.events()
            backend.exit(AttemptKey(running.id, 0, 1))
            await turns()
            assert "stop" not in backend.calls
            raise ZeroDivisionError
    except (ZeroDivisionError, JournalError):
        pass
    assert backend.closed
    assert went_on <= set(backend.live), "what was running goes on"


async def test_a_stream_tells_that_the_kernel_has_stopped(path: Path | None) -> None:
    backend = LastingBackend()

    async def body() -> None:
        async with kernel_on(backend, path, kind=RecordedKernel) as kernel:
            assert isinstance(kernel, RecordedKernel)
            await submit(kernel)
            await until(lambda: backend.live)
            async with kernel.events(after=await kernel.last_event_id()) as events:
                kernel.recorded.fail_commit = True
                backend.exit_all()
                async for _ in events:
                    pass

    with pytest.raises(KernelClosed, match="full"):
        await body()


async def test_a_refusal_does_not_get_ahead_of_a_commit_that_fails() -> None:
    """The second call would be refused because of the first, which is never committed."""
    async with kernel_on(kind=RecordedKernel) as kernel:
        assert isinstance(kernel, RecordedKernel)
        kernel.recorded.fail_commit = True
        results = await asyncio.gather(
            *(kernel.create_job_queue("new", priority=1, compute_environments=["b"]) for _ in range(2)),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [KernelClosed] * 2


async def test_settling_an_environment_ends_when_the_kernel_stops() -> None:
    class Slow(ManualBackend):
        async def start(self, context: Any, known: Sequence[Launch]) -> None:
            await gate.wait()
            await super().start(context, known)

    gate = asyncio.Event()
    async with RecordedKernel(backends={"slow": Slow()}) as kernel:
        creating = asyncio.ensure_future(kernel.create_compute_environment("slow", backend="slow"))
        await until(lambda: "slow" in live(kernel).state.environments)
        kernel.recorded.fail_commit = True
        gate.set()
        with pytest.raises(KernelClosed):
            await creating


async def test_a_bug_in_the_core_stops_the_kernel_and_fails_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    import anybatch.kernel.runtime as runtime_module

    async with kernel_on() as kernel:

        def broken(*_: object) -> None:
            raise IndexError("a bug")

        monkeypatch.setattr(runtime_module, "handle", broken)
        with pytest.raises(KernelClosed, match="a bug"):
            await submit(kernel)


async def test_events_of_one_turn_are_one_commit() -> None:
    async with kernel_on(ManualBackend(), kind=RecordedKernel) as kernel:
        assert isinstance(kernel, RecordedKernel)
        commits = sum(kind == "commit" for kind, _ in kernel.trace)
        await asyncio.gather(*(submit(kernel, f"job-{n}") for n in range(200)))

        assert sum(kind == "commit" for kind, _ in kernel.trace) - commits <= 3


async def test_the_memory_kernel_is_a_kernel() -> None:
    async with Kernel() as kernel:
        assert await kernel.last_event_id() == (1, 1)
