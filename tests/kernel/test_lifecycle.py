"""A kernel's life: opening, closing in every way, and that nothing outlives the `async with`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anybatch import InlineAttempt, InlineBackend, JobStatus, JournalError, JournalLocked, Kernel, KernelClosed
from anybatch.backends import inline
from anybatch.kernel import journal as journal_module
from anybatch.kernel import kernel as kernel_module
from anybatch.kernel.backend import AttemptKey
from anybatch.kernel.journal import JournalLoss
from anybatch.kernel.journal_check import admit
from anybatch.testing.null import NullBackend
from kernel_rig import (
    UNTIL_S,
    LastingBackend,
    ManualBackend,
    add_queue,
    as_killed,
    kernel_on,
    live,
    nothing_left,
    submit,
    turns,
    until,
)

pytestmark = pytest.mark.asyncio


@pytest.fixture(params=["file", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "j.db" if request.param == "file" else None


async def forever(attempt: InlineAttempt) -> int:
    attempt.print("began")
    await asyncio.Event().wait()
    return 0


# -- opening and closing --------------------------------------------------------------------------


async def test_nothing_outlives_the_async_with(path: Path | None) -> None:
    with nothing_left():
        async with kernel_on(path=path) as kernel:
            job = await submit(kernel, array_size=50)
            await job.wait()
            async with kernel.events() as events:
                await anext(aiter(events))
        gc.collect()


async def test_a_kernel_that_is_opened_and_closed_leaves_nothing(path: Path | None) -> None:
    with nothing_left():
        async with Kernel(path):
            pass
        if path is None:
            return
        async with Kernel(path):
            pass


async def test_the_folder_of_a_kernel_in_memory_is_removed() -> None:
    async with kernel_on(InlineBackend({"x": forever})) as kernel:
        files = live(kernel).journal.files
        await submit(kernel)
        await until(lambda: list(files.rglob("*.log")))
    assert not files.exists()


async def test_a_kernel_object_is_used_once(path: Path | None) -> None:
    kernel = Kernel(path)
    async with kernel:
        with pytest.raises(KernelClosed, match="used once"):
            await kernel.__aenter__()
        await kernel.describe_job_queues()
    with pytest.raises(KernelClosed, match="used once"):
        async with kernel:
            pass


CALLS: dict[str, Callable[[Kernel], Awaitable[object]]] = {
    "submit_job": lambda k: k.submit_job("j", queue="q", command=["x"]),
    "describe_job": lambda k: k.describe_job("j"),
    "describe_jobs": lambda k: k.describe_jobs(["j"]),
    "job": lambda k: k.job("j"),
    "last_event_id": lambda k: k.last_event_id(),
    "describe_no_jobs": lambda k: k.describe_jobs([]),
    "list_jobs": lambda k: anext(aiter(k.list_jobs())),
    "wait": lambda k: k.wait("j"),
    "cancel_job": lambda k: k.cancel_job("j", "x"),
    "terminate_job": lambda k: k.terminate_job("j", "x"),
    "logs": lambda k: anext(aiter(k.logs("j"))),
    "read_logs": lambda k: k.read_logs("j"),
    "run": lambda k: k.run(["true"]),
    "register": lambda k: k.register_job_definition("d", command=["x"]),
    "deregister": lambda k: k.deregister_job_definition("d:1"),
    "describe_job_definitions": lambda k: k.describe_job_definitions(),
    "create_job_queue": lambda k: k.create_job_queue("q", priority=1, compute_environments=["b"]),
    "update_job_queue": lambda k: k.update_job_queue("q", priority=2),
    "delete_job_queue": lambda k: k.delete_job_queue("q"),
    "describe_job_queues": lambda k: k.describe_job_queues(),
    "create_compute_environment": lambda k: k.create_compute_environment("b", backend="b"),
    "update_compute_environment": lambda k: k.update_compute_environment("b", max_vcpus=3),
    "delete_compute_environment": lambda k: k.delete_compute_environment("b"),
    "describe_compute_environments": lambda k: k.describe_compute_environments(),
}


@pytest.mark.parametrize("call", CALLS)
async def test_every_call_before_entering_and_after_closing_says_that_the_kernel_is_not_open(call: str) -> None:
    kernel = Kernel(backends={"b": NullBackend})
    with pytest.raises(KernelClosed, match="not open"):
        await CALLS[call](kernel)
    async with kernel:
        await add_queue(kernel)
        handle = await submit(kernel)
    with pytest.raises(KernelClosed, match="closed"):
        await CALLS[call](kernel)
    for act in (handle.wait, handle.describe, handle.cancel, handle.terminate, handle.read_logs):
        with pytest.raises(KernelClosed, match="closed"):
            await act()
    with pytest.raises(KernelClosed, match="closed"):
        kernel.events()


async def test_several_kernels_live_in_one_process(tmp_path: Path) -> None:
    with nothing_left():
        async with (
            kernel_on(path=tmp_path / "a.db") as a,
            kernel_on(path=tmp_path / "b.db") as b,
            kernel_on() as c,
        ):
            assert len({a.id, b.id, c.id}) == 3
            jobs = await asyncio.gather(*(submit(k, array_size=20) for k in (a, b, c)))
            done = await asyncio.gather(*(job.wait() for job in jobs))
            assert [detail.status for detail in done] == [JobStatus.SUCCEEDED] * 3
            assert [len(await k.describe_jobs([job])) for k, job in zip((a, b, c), jobs, strict=True)] == [1, 1, 1]


async def test_the_event_loop_goes_on_while_a_large_journal_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = threading.Event()

    def slow(*args: Any, **more: Any) -> JournalLoss | None:
        assert turned.wait(UNTIL_S), "the event loop stands still"
        return admit(*args, **more)

    monkeypatch.setattr(journal_module, "admit", slow)
    asyncio.get_running_loop().call_soon(turned.set)
    async with Kernel(tmp_path / "j.db"):
        pass


async def test_one_journal_serves_one_kernel_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    with nothing_left():
        async with Kernel(path) as first:
            with pytest.raises(JournalLocked, match=str(os.getpid())):
                async with Kernel(path):
                    pass
            await first.describe_job_queues()
        async with Kernel(path) as second:
            assert second.id == first.id


async def test_a_file_that_is_no_journal_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE notes (text)")
    db.close()
    text = tmp_path / "text.db"
    text.write_text("not a database, but a text that is long enough to be looked at " * 20)
    before = path.read_bytes(), text.read_bytes()
    with nothing_left():
        for refused in (path, text, tmp_path):
            with pytest.raises(JournalError, match=refused.name):
                async with Kernel(refused):
                    pass
        gc.collect()
    assert (path.read_bytes(), text.read_bytes()) == before


# -- what becomes of attempts -----------------------------------------------------------------------


async def test_detach_leaves_attempts_that_can_outlive_the_kernel(tmp_path: Path) -> None:
    backend = LastingBackend()
    async with kernel_on(backend, tmp_path / "j.db") as kernel:
        job = await submit(kernel)
        await until(lambda: backend.live)
    assert backend.stopped == []
    assert backend.closed
    assert len(backend.live) == 1

    async with kernel_on(backend, tmp_path / "j.db") as kernel:
        await until(lambda: backend.known)
        assert (backend.known[0].job_id, backend.known[0].number, backend.known[0].known_started) == (job.id, 1, True)
        backend.exit_all(7)
        detail = await kernel.wait(job.id)
        assert [attempt.exit_code for attempt in detail.attempts] == [7]
        assert len(backend.launched) == 1


async def test_detach_stops_what_cannot_outlive_the_kernel_and_runs_it_again_uncounted(tmp_path: Path) -> None:
    began = 0

    async def once(attempt: InlineAttempt) -> int:
        nonlocal began
        began += 1
        if attempt.number == 1:
            await asyncio.Event().wait()
        return 0

    async with kernel_on(InlineBackend({"x": once}), tmp_path / "j.db") as kernel:
        job = await submit(kernel, retry=1)
        await until(lambda: began)
    async with kernel_on(InlineBackend({"x": once}), tmp_path / "j.db") as kernel:
        detail = await kernel.wait(job.id)
        assert detail.status is JobStatus.SUCCEEDED
        assert [attempt.number for attempt in detail.attempts] == [1, 2]
        assert detail.attempts[0].status_reason == "Kernel closed"


async def test_a_killed_kernel_has_lost_its_inline_attempts(tmp_path: Path) -> None:
    async with kernel_on(InlineBackend({"x": forever}), tmp_path / "j.db") as kernel:
        job = await submit(kernel, retry=1)
        again = await submit(kernel, "again", retry=2)
        await until(lambda: sum(host.load.get(2, 0) for host in live(kernel).state.hosts.values()))
        await until(lambda: live(kernel).state.jobs[2].status is JobStatus.RUNNING)
        killed = as_killed(tmp_path / "j.db")

    async def fine(attempt: InlineAttempt) -> None:
        pass

    async with kernel_on(InlineBackend({"x": fine}), killed) as kernel:
        detail = await kernel.wait(job.id)
        assert detail.status is JobStatus.FAILED
        assert detail.status_reason == "Host EC2 (instance inline) terminated."
        assert detail.exit_code is None
        assert (await kernel.wait(again.id)).status is JobStatus.SUCCEEDED


async def test_drain_lets_run_what_runs_and_starts_nothing_more(path: Path | None) -> None:
    backend = LastingBackend()
    async with kernel_on(backend, path, vcpus=2, on_close="drain") as kernel:
        job = await submit(kernel, array_size=4)
        await until(lambda: len(backend.live) == 2)
        asyncio.get_running_loop().call_soon(backend.exit_all)
    assert len(backend.launched) == 2
    assert backend.stopped == []
    assert backend.live == {}
    if path is None:
        return
    async with kernel_on(backend, path) as kernel:
        await until(lambda: len(backend.live) == 2)
        backend.exit_all()
        assert (await kernel.wait(job.id)).status is JobStatus.SUCCEEDED


async def test_stop_ends_everything_and_its_jobs_run_again(tmp_path: Path) -> None:
    backend = LastingBackend()
    async with kernel_on(backend, tmp_path / "j.db", on_close="stop") as kernel:
        job = await submit(kernel, array_size=2, retry=1)
        await until(lambda: len(backend.live) == 2)
    assert len(backend.stopped) == 2
    assert backend.live == {}

    async with kernel_on(backend, tmp_path / "j.db") as kernel:
        await until(lambda: len(backend.live) == 2)
        backend.exit_all()
        assert (await kernel.wait(job.id)).status is JobStatus.SUCCEEDED
        assert [a.exit_code for a in (await kernel.describe_job(f"{job.id}:1")).attempts] == [143, 0]


async def test_a_kernel_in_memory_stops_everything() -> None:
    backend = LastingBackend()
    with nothing_left():
        async with kernel_on(backend) as kernel:
            await submit(kernel, array_size=2)
            await until(lambda: len(backend.live) == 2)
        assert backend.live == {}


async def test_an_attempt_that_does_not_end_delays_the_close_for_a_bounded_time(
    path: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_module, "STOP_S_MAX", 0.05)
    with nothing_left():
        async with kernel_on(ManualBackend(obeys=False), path) as kernel:
            await submit(kernel)
            await turns()


async def test_a_job_that_was_being_terminated_is_stopped_again_after_a_crash(tmp_path: Path) -> None:
    backend = LastingBackend(obeys=False)
    async with kernel_on(backend, tmp_path / "j.db") as kernel:
        job = await submit(kernel, retry=5)
        await until(lambda: backend.live)
        await job.terminate("enough")
        await until(lambda: backend.stopped)
        killed = as_killed(tmp_path / "j.db")
    backend.stopped.clear()
    async with kernel_on(backend, killed) as kernel:
        await until(lambda: backend.stopped)
        backend.exit_all(143)
        detail = await kernel.wait(job.id)
        assert (detail.status, detail.status_reason) == (JobStatus.FAILED, "enough")
        assert len(backend.launched) == 1


# -- bodies that end badly --------------------------------------------------------------------------


async def test_an_error_in_the_body_closes_the_kernel_and_goes_on(path: Path | None) -> None:
    backend = LastingBackend()

    async def body() -> None:
        async with kernel_on(backend, path) as kernel:
            await submit(kernel)
            await until(lambda: backend.live)
            raise ZeroDivisionError

    with nothing_left():
        with pytest.raises(ZeroDivisionError):
            await body()
        assert backend.closed


@pytest.mark.parametrize("on_close", ["drain", "stop", None])
async def test_a_cancelled_body_closes_the_kernel_in_its_default_way(path: Path | None, on_close: str | None) -> None:
    backend = LastingBackend()

    async def body() -> None:
        async with kernel_on(backend, path, on_close=on_close) as kernel:
            await submit(kernel)
            await until(lambda: backend.live)
            await asyncio.Event().wait()

    with nothing_left():
        task = asyncio.ensure_future(body())
        await until(lambda: backend.live)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend.closed
        detached = path is not None and on_close != "stop"
        assert len(backend.live) == (1 if detached else 0)


async def test_a_drain_that_is_cancelled_turns_into_the_default(path: Path | None) -> None:
    backend = LastingBackend()

    async def body() -> None:
        async with kernel_on(backend, path, on_close="drain") as kernel:
            await submit(kernel)
            await until(lambda: backend.live)

    with nothing_left():
        task = asyncio.ensure_future(body())
        await until(lambda: backend.live)
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend.closed
        assert len(backend.live) == (1 if path is not None else 0)


async def test_an_anyio_scope_that_is_cancelled_closes_the_kernel(path: Path | None) -> None:
    with nothing_left():
        with anyio.CancelScope() as scope:
            async with kernel_on(InlineBackend({"x": forever}), path) as kernel:
                await submit(kernel)
                await turns()
                scope.cancel()
                await kernel.wait("job")
        assert scope.cancelled_caught


async def test_a_timeout_around_the_kernel_closes_it(path: Path | None) -> None:
    async def body() -> None:
        async with asyncio.timeout(0.05), kernel_on(InlineBackend({"x": forever}), path) as kernel:
            await (await submit(kernel)).wait()

    with nothing_left(), pytest.raises(TimeoutError):
        await body()


async def test_cancelling_again_and_again_does_not_cut_the_shutdown_short(path: Path | None) -> None:
    class Slow(LastingBackend):
        async def close(self) -> None:
            for _ in range(20):
                await asyncio.sleep(0)
            await super().close()

    backend = Slow()

    async def body() -> None:
        async with kernel_on(backend, path) as kernel:
            await submit(kernel)
            await until(lambda: backend.live)
            await asyncio.Event().wait()

    with nothing_left():
        task = asyncio.ensure_future(body())
        await until(lambda: backend.live)
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
        assert task.cancelled()
        assert backend.closed


async def test_a_cancellation_during_the_shutdown_is_not_lost(path: Path | None) -> None:
    backend = LastingBackend()

    async def body() -> None:
        async with kernel_on(backend, path, on_close="stop") as kernel:
            await submit(kernel)
            await until(lambda: backend.live)
            asyncio.get_running_loop().call_soon(task.cancel)

    with nothing_left():
        task = asyncio.ensure_future(body())
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend.closed


async def test_a_cancellation_while_the_kernel_is_opened_leaves_nothing(path: Path | None) -> None:
    async def body() -> None:
        async with Kernel(path):
            await asyncio.Event().wait()

    with nothing_left():
        for wait in range(8):
            task = asyncio.ensure_future(body())
            await turns(wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


# -- callers at the time of the close ---------------------------------------------------------------


async def test_who_waits_when_the_kernel_closes_is_told(path: Path | None) -> None:
    backend = LastingBackend()
    async with kernel_on(backend, path) as kernel:
        job = await submit(kernel, array_size=2)
        await until(lambda: backend.live)
        waits = [asyncio.ensure_future(w) for w in (job.wait(), job[1].wait(), kernel.wait(job.id))]
        logs = asyncio.ensure_future(anext(aiter((await submit(kernel, "later", vcpus=99)).logs(follow=True)), None))
        await turns()
    results = await asyncio.gather(*waits, logs, return_exceptions=True)
    assert [type(result) for result in results] == [KernelClosed] * 4


async def test_a_stream_ends_with_its_kernel(path: Path | None) -> None:
    async with kernel_on(path=path) as kernel:
        await (await submit(kernel)).wait()

        async def consume() -> list[str]:
            async with kernel.events() as events:
                return [event.status.value async for event in events]

        consumer = asyncio.ensure_future(consume())
        await turns()
    assert (await consumer)[:4] == ["SUBMITTED", "RUNNABLE", "STARTING", "RUNNING"]


async def test_what_is_asked_for_in_the_last_moment_is_answered(path: Path | None) -> None:
    async with kernel_on(LastingBackend(), path) as kernel:
        calls = [asyncio.ensure_future(submit(kernel, f"job-{n}")) for n in range(20)]
        await asyncio.sleep(0)
    for result in await asyncio.gather(*calls, return_exceptions=True):
        assert not isinstance(result, BaseException) or isinstance(result, KernelClosed)


async def test_what_was_answered_in_the_last_moment_is_there_after_a_reopen(tmp_path: Path) -> None:
    async with kernel_on(LastingBackend(), tmp_path / "j.db") as kernel:
        calls = [asyncio.ensure_future(submit(kernel, f"job-{n}")) for n in range(20)]
        await asyncio.sleep(0)
    kept = [
        job.id for job in await asyncio.gather(*calls, return_exceptions=True) if not isinstance(job, BaseException)
    ]
    async with kernel_on(LastingBackend(), tmp_path / "j.db") as kernel:
        assert len(await kernel.describe_jobs(kept)) == len(kept)


async def test_a_coroutine_that_ignores_its_end_is_given_up_after_a_while(
    path: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one thing that can outlive a kernel: it cannot be ended, only left to the event loop."""
    monkeypatch.setattr(kernel_module, "STOP_S_MAX", 0.02)
    monkeypatch.setattr(inline, "CLOSE_S_MAX", 0.02)
    free = asyncio.Event()

    async def stubborn(attempt: InlineAttempt) -> None:
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                pass

    with nothing_left():
        async with kernel_on(InlineBackend({"x": stubborn}), path) as kernel:
            await submit(kernel)
            await turns()
        free.set()
        await turns()


async def test_a_reopened_kernel_knows_everything(tmp_path: Path) -> None:
    backend = LastingBackend()
    async with kernel_on(backend, tmp_path / "j.db") as kernel:
        await kernel.register_job_definition("d", command=["x", "Ref::a"], parameters={"a": "1"}, tags={"t": "v"})
        job = await submit(kernel, array_size=3, definition="d", retry=2, client_token="t")
        await until(lambda: len(backend.live) == 3)
        backend.exit(AttemptKey(job.id, 1, 1), 3)
        await until(lambda: len(backend.launched) == 4)
        await turns()
        killed = as_killed(tmp_path / "j.db")
        before = [await job.describe(), *[await job[n].describe() for n in range(3)]]
        others = [*await kernel.describe_job_definitions(), *await kernel.describe_job_queues()]
    backend.closed = False
    for path in (killed, tmp_path / "j.db"):
        async with kernel_on(backend, path) as kernel:
            again = await kernel.job(job.id)
            assert [await again.describe(), *[await again[n].describe() for n in range(3)]] == before
            assert [*await kernel.describe_job_definitions(), *await kernel.describe_job_queues()] == others
