"""Timeouts, retries, cancelling and terminating, end to end on the null backend and a clock that stands still."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from anybatch import Action, EvaluateOnExit, JobDetail, JobStatus, Kernel, RetryStrategy
from anybatch.kernel.backend import AttemptKey
from anybatch.testing.clock import VirtualClock
from anybatch.testing.null import NullBackend
from kernel_rig import ManualBackend, as_killed, kernel_on, submit, turns, until

pytestmark = pytest.mark.asyncio

DURATIONS: dict[int, tuple[float, int]] = {}
"""(seconds, exit code) by attempt number, for the model of the kernel below."""


def model(key: AttemptKey) -> tuple[float, int]:
    return DURATIONS.get(key.number, (10.0, 0))


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest_asyncio.fixture
async def kernel(clock: VirtualClock) -> AsyncIterator[Kernel]:
    DURATIONS.clear()
    async with kernel_on(NullBackend(model), clock=clock) as kernel:
        yield kernel


def codes(detail: JobDetail) -> list[int | None]:
    return [attempt.exit_code for attempt in detail.attempts]


async def test_attempts_take_the_time_that_the_model_says(kernel: Kernel, clock: VirtualClock) -> None:
    job = await submit(kernel, array_size=8)  # four at a time
    await clock.advance(9.9)
    assert (await job.describe()).status_summary == {
        status: 4 if status in ("RUNNING", "RUNNABLE") else 0 for status in JobStatus
    }
    await clock.advance(0.1)
    await clock.advance(10)
    detail = await job.wait()
    assert detail.stopped_at is not None
    assert (detail.stopped_at - detail.created_at).total_seconds() == 20
    first = await job[0].describe()
    assert first.started_at is not None
    assert first.stopped_at is not None
    assert (first.stopped_at - first.started_at).total_seconds() == 10


async def test_an_attempt_past_its_timeout_is_ended_and_not_tried_again(kernel: Kernel, clock: VirtualClock) -> None:
    job = await submit(kernel, timeout=4, retry=5)
    await clock.advance(3.9)
    assert (await job.describe()).status is JobStatus.RUNNING
    await clock.advance(0.1)
    detail = await job.wait()
    assert (detail.status, detail.status_reason) == (JobStatus.FAILED, "Job attempt duration exceeded timeout")
    assert codes(detail) == [143]


async def test_the_clock_of_a_timeout_starts_over_with_each_attempt(kernel: Kernel, clock: VirtualClock) -> None:
    DURATIONS.update({1: (3, 1), 2: (3, 1), 3: (3, 0)})
    job = await submit(kernel, timeout=4, retry=3)
    await clock.advance(9)
    assert codes(await job.wait()) == [1, 1, 0]


async def test_a_timeout_above_zero_may_be_short(kernel: Kernel, clock: VirtualClock) -> None:
    job = await submit(kernel, timeout=0.0001)
    await clock.advance(0.001)
    assert (await job.wait()).status_reason == "Job attempt duration exceeded timeout"


async def test_a_timeout_goes_on_through_a_restart(tmp_path: Path, clock: VirtualClock) -> None:
    class Lasting(ManualBackend):
        def settle(self, launch: object) -> None:
            pass

    backend = Lasting()
    async with kernel_on(backend, tmp_path / "j.db", clock=clock) as kernel:
        job = await submit(kernel, timeout=10)
        await until(lambda: backend.live)
        await clock.advance(6)
        held = dict(backend.live)
        killed = as_killed(tmp_path / "j.db")
    backend.live.update(held)
    clock = VirtualClock(clock.now_ms())
    async with kernel_on(backend, killed, clock=clock) as kernel:
        await until(lambda: backend.known)
        await turns()
        backend.stopped.clear()
        await clock.advance(3.9)
        assert backend.stopped == []
        await clock.advance(0.2)
        assert (await kernel.wait(job.id)).status_reason == "Job attempt duration exceeded timeout"


async def test_a_failed_attempt_is_followed_by_another_until_one_succeeds(kernel: Kernel, clock: VirtualClock) -> None:
    DURATIONS.update({1: (1, 3), 2: (1, 4), 3: (1, 0)})
    job = await submit(kernel, retry=10)
    await clock.advance(3)
    detail = await job.wait()
    assert (detail.status, codes(detail)) == (JobStatus.SUCCEEDED, [3, 4, 0])
    assert [attempt.number for attempt in detail.attempts] == [1, 2, 3]
    assert all(a.started_at and a.stopped_at and a.host == "null" for a in detail.attempts)


async def test_a_job_fails_with_its_last_attempt(kernel: Kernel, clock: VirtualClock) -> None:
    DURATIONS.update({n: (1, n) for n in range(1, 4)})
    job = await submit(kernel, retry=3)
    await clock.advance(3)
    detail = await job.wait()
    assert (detail.status, codes(detail), detail.exit_code) == (JobStatus.FAILED, [1, 2, 3], 3)
    assert detail.status_reason == "Essential container in task exited"


EVALUATIONS: list[tuple[Sequence[EvaluateOnExit], list[int]]] = [
    ((EvaluateOnExit(Action.EXIT, on_exit_code="4"),), [3, 4]),
    ((EvaluateOnExit(Action.EXIT, on_exit_code="3*"),), [3]),
    ((EvaluateOnExit(Action.RETRY, on_exit_code="3"), EvaluateOnExit(Action.EXIT, on_reason="*")), [3, 4]),
    ((EvaluateOnExit(Action.EXIT, on_status_reason="Essential*"),), [3]),
    ((EvaluateOnExit(Action.EXIT, on_status_reason="Host EC2*"),), [3, 4, 5]),
    ((EvaluateOnExit(Action.EXIT, on_exit_code="3", on_reason="x*"),), [3, 4, 5]),
]


@pytest.mark.parametrize(("entries", "expected"), EVALUATIONS)
async def test_evaluate_on_exit_decides_in_order(
    kernel: Kernel, clock: VirtualClock, entries: Sequence[EvaluateOnExit], expected: list[int]
) -> None:
    DURATIONS.update({1: (1, 3), 2: (1, 4), 3: (1, 5)})
    job = await submit(kernel, retry=RetryStrategy(3, tuple(entries)))
    await clock.advance(3)
    assert codes(await job.wait()) == expected


async def test_a_retried_job_goes_to_the_front_of_its_queue(clock: VirtualClock) -> None:
    backend = ManualBackend()
    async with kernel_on(backend, vcpus=1, clock=clock) as kernel:
        first = await submit(kernel, "first", retry=2)
        second = await submit(kernel, "second")
        await until(lambda: backend.live)
        backend.exit_all(1)
        await until(lambda: backend.live)
        assert [key.job_id for key in backend.launched] == [first.id, first.id]
        backend.exit_all()
        await until(lambda: backend.live)
        backend.exit_all()
        await second.wait()


async def test_cancel_ends_what_waits_and_leaves_what_runs(kernel: Kernel, clock: VirtualClock) -> None:
    array = await submit(kernel, array_size=6)
    held = await submit(kernel, "held", depends_on=[array])
    await clock.advance(1)
    await array.cancel("no more")
    await held.cancel("nor that")
    assert (await held.wait()).status_reason == "nor that"
    assert (await array[5].describe()).status_reason == "no more"
    assert (await array[0].describe()).status is JobStatus.RUNNING
    await array[1].cancel("too late")
    await clock.advance(10)
    detail = await array.wait()
    assert detail.status_summary is not None
    assert (detail.status_summary[JobStatus.SUCCEEDED], detail.status_summary[JobStatus.FAILED]) == (4, 2)
    await array.cancel("after its end")
    assert await array.describe() == detail


async def test_terminate_ends_what_runs_and_nothing_of_it_is_tried_again(kernel: Kernel, clock: VirtualClock) -> None:
    array = await submit(kernel, array_size=6, retry=5)
    await clock.advance(1)
    await array[0].terminate("just this one")
    one = await array[0].wait()
    assert (one.status_reason, codes(one), one.is_terminated) == ("just this one", [143], True)
    assert (await array.describe()).status is JobStatus.PENDING
    await array.terminate("all")
    detail = await array.wait()
    assert detail.status is JobStatus.FAILED
    assert [(await array[n].describe()).status_reason for n in range(6)] == ["just this one", *["all"] * 5]


async def test_a_job_whose_dependency_failed_fails_without_an_attempt(kernel: Kernel, clock: VirtualClock) -> None:
    DURATIONS[1] = (1, 1)
    first = await submit(kernel, "first")
    second = await submit(kernel, "second", depends_on=[first])
    third = await submit(kernel, "third", depends_on=[second])
    await clock.advance(1)
    assert [(await job.wait()).status_reason for job in (second, third)] == ["Dependent Job failed"] * 2
    assert (await third.describe()).attempts == ()


async def test_higher_queues_first_then_submission_order(clock: VirtualClock) -> None:
    backend = ManualBackend()
    async with kernel_on(backend, vcpus=1, clock=clock) as kernel:
        await kernel.create_job_queue("high", priority=9, compute_environments=["b"])
        order = [await submit(kernel, "running")]
        await until(lambda: backend.live)
        low = [await submit(kernel, f"low-{n}") for n in range(2)]
        order += [await submit(kernel, f"high-{n}", queue="high") for n in range(2)]
        order += low
        for _ in order:
            await until(lambda: backend.live)
            backend.exit_all()
        for job in order:
            await job.wait()
        assert [key.job_id for key in backend.launched] == [job.id for job in order]
