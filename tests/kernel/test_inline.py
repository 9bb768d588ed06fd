"""The inline backend: the embedding service's own coroutines as attempts."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from anybatch import InlineAttempt, InlineBackend, InvalidValue, JobStatus, Kernel
from anybatch.testing.clock import VirtualClock
from kernel_rig import add_queue, kernel_on, nothing_left, submit, turns, until

pytestmark = pytest.mark.asyncio


def inline(**functions: Callable[[InlineAttempt], Any]) -> InlineBackend:
    return InlineBackend(functions)


async def test_a_coroutine_is_given_its_arguments_variables_and_log() -> None:
    seen: list[Any] = []

    async def resize(attempt: InlineAttempt) -> None:
        seen.append((attempt.job_id, attempt.index, attempt.number, attempt.args, attempt.environment))
        attempt.print("got", *attempt.args)
        attempt.write(b"\xff\n")

    async with kernel_on(inline(resize=resize)) as kernel:
        job = await submit(kernel, command=["resize", "a.png", "10"], environment={"A": "1"}, array_size=2)
        assert (await job.wait()).status is JobStatus.SUCCEEDED
        assert await job[1].read_logs() == b"got a.png 10\n\xff\n"
        assert sorted(seen, key=lambda entry: entry[1]) == [
            (
                f"{job.id}:{n}", n, 1, ("a.png", "10"),
                {
                    "A": "1", "AWS_BATCH_JOB_ID": f"{job.id}:{n}", "AWS_BATCH_JOB_ATTEMPT": "1",
                    "AWS_BATCH_JQ_NAME": "q", "AWS_BATCH_CE_NAME": "b",
                    "AWS_BATCH_JOB_ARRAY_INDEX": str(n), "AWS_BATCH_JOB_ARRAY_SIZE": "2",
                },
            )
            for n in range(2)
        ]  # fmt: skip


async def returns(value: Any) -> Any:
    return value


def raises(error: BaseException) -> Callable[[], Awaitable[Any]]:
    async def fail() -> None:
        raise error

    return fail


ENDS: dict[str, tuple[Callable[[], Awaitable[Any]], int, str | None]] = {
    "None": (lambda: returns(None), 0, None),
    "0": (lambda: returns(0), 0, None),
    "7": (lambda: returns(7), 7, None),
    "256": (lambda: returns(256), 1, "the function returned 256; an exit code is 0 to 255, or None"),
    "True": (lambda: returns(True), 1, "the function returned True; an exit code is 0 to 255, or None"),
    "text": (lambda: returns("x"), 1, "the function returned 'x'; an exit code is 0 to 255, or None"),
    "an error": (raises(ValueError("bad")), 1, "ValueError: bad"),
    "a base error": (raises(BaseExceptionGroup("g", [ValueError("x")])), 1, "ExceptionGroup: g (1 sub-exception)"),
    "exit()": (raises(SystemExit()), 0, None),
    "exit(3)": (raises(SystemExit(3)), 3, None),
    "exit('sorry')": (raises(SystemExit("sorry")), 1, None),
    "its own cancellation": (raises(asyncio.CancelledError()), 143, None),
}


@pytest.mark.parametrize("end", ENDS)
async def test_each_end_of_a_coroutine_is_an_exit_code(end: str) -> None:
    function, code, reason = ENDS[end]
    async with kernel_on(inline(x=lambda attempt: function())) as kernel:
        detail = await (await submit(kernel)).wait()
        assert (detail.exit_code, detail.reason) == (code, reason)
        assert detail.status is (JobStatus.SUCCEEDED if code == 0 else JobStatus.FAILED)
        assert (await (await submit(kernel, "next")).wait()).exit_code == code


async def test_a_traceback_is_in_the_log_before_the_job_has_ended() -> None:
    async def broken(attempt: InlineAttempt) -> None:
        attempt.print("before")
        raise ValueError("so it is")

    async with kernel_on(inline(x=broken)) as kernel:
        job = await submit(kernel, retry=2)
        await job.wait()
        for attempt in (1, 2):
            log = (await job.read_logs(attempt=attempt)).decode()
            assert log.startswith("before\nTraceback (most recent call last):\n")
            assert "in broken" in log
            assert log.endswith("ValueError: so it is\n")


async def test_a_message_given_to_exit_is_in_the_log() -> None:
    async def leaves(attempt: InlineAttempt) -> None:
        sys.exit("could not go on")

    async with kernel_on(inline(x=leaves)) as kernel:
        job = await submit(kernel)
        await job.wait()
        assert await job.read_logs() == b"could not go on\n"


async def test_what_is_not_there_or_no_coroutine_fails_the_job_with_words() -> None:
    def plain(attempt: InlineAttempt) -> int:
        return 0

    async with kernel_on(inline(x=plain)) as kernel:
        unknown = await (await submit(kernel, command=["y"])).wait()
        assert unknown.status_reason == "Task failed to start"
        assert unknown.reason == "no function is named 'y'; the functions are: x"
        script = await (await submit(kernel, command=None, script="#!/bin/sh\n")).wait()
        assert (script.reason or "").startswith("scripts cannot be run inline")
        assert "TypeError" in ((await (await submit(kernel)).wait()).reason or "")


async def test_functions_are_checked_at_once() -> None:
    with pytest.raises(InvalidValue, match="functions"):
        InlineBackend({"x": 5})  # type: ignore[dict-item]


async def test_terminating_cancels_the_coroutine() -> None:
    cancelled: list[int] = []

    async def slow(attempt: InlineAttempt) -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(attempt.number)
            attempt.print("tidied up")
            raise
        return 0

    async with kernel_on(inline(x=slow)) as kernel:
        job = await submit(kernel, retry=3)
        await until(lambda: job_is(kernel, "RUNNING"))
        await turns()
        await job.terminate("enough")
        detail = await job.wait()
        assert (detail.status_reason, detail.exit_code, cancelled) == ("enough", 143, [1])
        assert await job.read_logs() == b"tidied up\n"


def job_is(kernel: Kernel, status: str) -> bool:
    return {str(row.status) for row in kernel._live.state.jobs.values()} == {status}


async def test_a_coroutine_may_end_its_own_way_when_it_is_cancelled() -> None:
    async def slow(attempt: InlineAttempt) -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return 5
        return 0

    async with kernel_on(inline(x=slow)) as kernel:
        job = await submit(kernel)
        await until(lambda: job_is(kernel, "RUNNING"))
        await job.terminate("enough")
        detail = await job.wait()
        assert (detail.status, detail.exit_code, detail.status_reason) == (JobStatus.FAILED, 5, "enough")


async def test_a_coroutine_past_its_timeout_is_cancelled() -> None:
    async def slow(attempt: InlineAttempt) -> None:
        await asyncio.Event().wait()

    clock = VirtualClock()
    async with kernel_on(inline(x=slow), clock=clock) as kernel:
        job = await submit(kernel, timeout=3600, retry=2)
        await clock.advance(3599)
        assert (await job.describe()).status is JobStatus.RUNNING
        await clock.advance(1)
        detail = await job.wait()
        assert (detail.status_reason, len(detail.attempts)) == ("Job attempt duration exceeded timeout", 1)


async def test_a_coroutine_that_ignores_its_cancellation_is_abandoned_after_the_grace() -> None:
    free = asyncio.Event()

    async def stubborn(attempt: InlineAttempt) -> None:
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                pass

    clock = VirtualClock()
    with nothing_left():
        async with kernel_on(inline(x=stubborn), clock=clock) as kernel:
            job = await submit(kernel)
            await clock.settle()
            await job.terminate("enough")
            await clock.advance(29.9)
            assert (await job.describe()).status is JobStatus.RUNNING
            await clock.advance(0.1)
            detail = await job.wait()
            assert (detail.exit_code, detail.status_reason) == (137, "enough")
            assert detail.reason == "the coroutine ignored its cancellation"
            free.set()
            await turns()
            assert (await job.describe()) == detail


async def test_a_log_is_followed_from_the_submit_to_the_end() -> None:
    say = asyncio.Event()

    async def talks(attempt: InlineAttempt) -> None:
        attempt.print("one")
        await say.wait()
        attempt.print("two")

    async with kernel_on(inline(x=talks)) as kernel:
        job = await submit(kernel)
        pieces = []
        async for piece in job.logs(follow=True):
            pieces.append(piece)
            say.set()
        assert pieces == [b"one\n", b"two\n"]
        held = await submit(kernel, "held", vcpus=99)
        reading = asyncio.ensure_future(held.read_logs())
        assert await reading == b""
        following = asyncio.ensure_future(anext(aiter(held.logs(follow=True)), b"nothing"))
        await turns()
        assert not following.done()
        await held.cancel("no")
        assert await following == b"nothing"


async def test_a_thousand_run_at_once() -> None:
    running = 0
    most = 0
    everybody = asyncio.Event()

    async def one(attempt: InlineAttempt) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 1000:
            everybody.set()
        await everybody.wait()
        running -= 1

    with nothing_left():
        async with kernel_on(inline(x=one), vcpus=1000) as kernel:
            job = await submit(kernel, array_size=1000)
            assert (await job.wait()).status is JobStatus.SUCCEEDED
            assert most == 1000


async def test_capacity_holds() -> None:
    running: set[int | None] = set()

    async def one(attempt: InlineAttempt) -> None:
        running.add(attempt.index)
        assert len(running) <= 3
        await turns(3)
        running.discard(attempt.index)

    async with Kernel(backends={"b": inline(x=one)}) as kernel:
        await add_queue(kernel, vcpus=9, memory=300)
        job = await submit(kernel, array_size=20, memory=100)
        assert (await job.wait()).status is JobStatus.SUCCEEDED


async def test_coroutines_may_use_the_kernel_that_runs_them() -> None:
    async def outer(attempt: InlineAttempt) -> int:
        inner = await submit(kernel, "inner", command=["inner"])
        return 0 if (await inner.wait()).exit_code == 4 else 1

    async with kernel_on(inline(outer=outer, inner=lambda attempt: returns(4))) as kernel:
        assert (await (await submit(kernel, command=["outer"])).wait()).exit_code == 0


async def test_each_attempt_has_a_log_of_its_own(tmp_path: Path) -> None:
    async def counts(attempt: InlineAttempt) -> int:
        attempt.print(attempt.number, attempt.index)
        return 0 if attempt.number == 3 else 1

    async with kernel_on(inline(x=counts), tmp_path / "j.db") as kernel:
        job = await submit(kernel, retry=3, array_size=2)
        await job.wait()
        assert [await job[1].read_logs(attempt=n) for n in (1, 2, 3)] == [b"1 1\n", b"2 1\n", b"3 1\n"]
        assert await job[1].read_logs() == b"3 1\n"
    async with kernel_on(inline(x=counts), tmp_path / "j.db") as kernel:
        assert await kernel.read_logs(f"{job.id}:0", attempt=2) == b"2 0\n"
