"""Waiting for jobs, and client tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from anybatch import JobStatus, NotFound
from anybatch.kernel.backend import AttemptKey
from kernel_rig import LastingBackend, ManualBackend, kernel_on, live, submit, turns, until

pytestmark = pytest.mark.asyncio


async def test_everybody_who_waits_is_told() -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel:
        job = await submit(kernel, array_size=3)
        waits = [asyncio.ensure_future(kernel.wait(job)) for _ in range(50)]
        waits += [asyncio.ensure_future(job[1].wait()) for _ in range(50)]
        await until(lambda: len(backend.live) == 3)
        backend.exit(AttemptKey(job.id, 1, 1), 4)
        done = await asyncio.gather(*waits[50:])
        assert {detail.exit_code for detail in done} == {4}
        assert not any(wait.done() for wait in waits[:50])
        backend.exit_all()
        assert {detail.status for detail in await asyncio.gather(*waits)} == {JobStatus.FAILED}
        assert live(kernel)._ended == {}
        assert live(kernel)._child_ended == {}


async def test_cancelling_a_wait_cancels_no_job_and_leaves_nothing() -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel:
        job = await submit(kernel, array_size=2)
        single = await submit(kernel)
        await until(lambda: len(backend.live) == 3)
        waits = [asyncio.ensure_future(w) for w in (job.wait(), job[0].wait(), job[0].wait(), single.wait())]
        await turns()
        for wait in waits[1:]:
            wait.cancel()
        await asyncio.wait(waits[1:])
        assert live(kernel)._child_ended == {}
        waits[0].cancel()
        await asyncio.wait(waits)
        assert live(kernel)._ended == {}
        assert [(await one.describe()).status for one in (job, job[0], single)] == ["PENDING", "RUNNING", "RUNNING"]

        backend.exit_all()
        assert (await job.wait()).status is JobStatus.SUCCEEDED
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await (await submit(kernel, "other")).wait()
        backend.exit_all()


async def test_a_wait_that_is_cancelled_as_the_job_ends_leaves_nothing() -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel:
        for turn in range(6):
            job = await submit(kernel, f"job-{turn}")
            await until(lambda: backend.live)
            wait = asyncio.ensure_future(job.wait())
            await turns()
            backend.exit_all()
            await turns(turn)
            wait.cancel()
            await asyncio.wait({wait})
        assert live(kernel)._ended == {}


async def test_what_has_ended_is_not_waited_for(tmp_path: Path) -> None:
    async with kernel_on(path=tmp_path / "j.db") as kernel:
        job = await submit(kernel, array_size=2)
        await job.wait()
        first = await asyncio.gather(job.wait(), job[1].wait(), kernel.wait(job.id), kernel.wait(f"{job.id}:0"))
        assert {detail.status for detail in first} == {JobStatus.SUCCEEDED}
    async with kernel_on(path=tmp_path / "j.db") as kernel:
        assert (await kernel.wait(job)).status is JobStatus.SUCCEEDED
        assert await kernel.wait(f"{job.id}:0") == first[3]


async def test_a_wait_ends_when_the_job_is_cancelled_or_terminated() -> None:
    backend = ManualBackend()
    async with kernel_on(backend, vcpus=1) as kernel:
        running = await submit(kernel, "running")
        waiting = await submit(kernel, "waiting", array_size=3)
        waits = [asyncio.ensure_future(w) for w in (running.wait(), waiting.wait(), waiting[2].wait())]
        await until(lambda: backend.live)
        await waiting.cancel("not needed")
        await running.terminate("stop it")
        one, two, three = await asyncio.gather(*waits)
        assert (one.status_reason, two.status_reason, three.status_reason) == (
            "stop it", "Array Child Job failed", "not needed",
        )  # fmt: skip
        assert (one.is_terminated, two.is_cancelled) == (True, True)


async def test_a_client_token_used_before_returns_the_first_job(tmp_path: Path) -> None:
    async with kernel_on(LastingBackend(), tmp_path / "j.db") as kernel:
        first = await submit(kernel, client_token="t")
        last = await kernel.last_event_id()
        again = await submit(kernel, "other", client_token="t", array_size=7)
        assert (again.id, again.name, again.array_size) == (first.id, "job", None)
        assert (await first.describe()).client_token == "t"
        assert await kernel.last_event_id() >= last
        assert len([job async for job in kernel.list_jobs()]) == 1
        await kernel.terminate_job(first, "x")
    async with kernel_on(LastingBackend(), tmp_path / "j.db") as kernel:
        assert await submit(kernel, client_token="t") == first
        assert await submit(kernel, client_token="u") != first


async def test_of_many_submits_at_once_with_one_token_one_makes_a_job(tmp_path: Path) -> None:
    async with kernel_on(path=tmp_path / "j.db") as kernel:
        jobs = await asyncio.gather(*(submit(kernel, f"job-{n}", client_token="t") for n in range(20)))
        assert len(set(jobs)) == 1
        assert jobs[0].name == "job-0"


async def test_a_submit_whose_caller_gives_up_is_done_all_the_same() -> None:
    async with kernel_on() as kernel:
        call = asyncio.ensure_future(submit(kernel, client_token="t"))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call})
        job = await submit(kernel, "again", client_token="t")
        assert job.name == "job"


async def test_nobody_waits_for_what_does_not_exist() -> None:
    async with kernel_on() as kernel:
        job = await submit(kernel, array_size=2)
        for reference in ("none", f"{job.id}:2", f"{job.id}:x", job.id[:-1]):
            with pytest.raises(NotFound):
                await kernel.wait(reference)
