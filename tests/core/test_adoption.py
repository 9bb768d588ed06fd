"""Attempts that a host holds and the log does not know: adopted if their number is the next one, else left alone.

What is left alone is stopped by the environment's driver; that, and that nothing runs twice, is at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from anybatch import JobStatus, Kernel
from anybatch.kernel.backend import AttemptKey, BackendContext, Capabilities, Launch
from anybatch.kernel.core import events as ev
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.machine import Step
from core_rig import Rig, after, launches
from kernel_rig import ManualBackend, kernel_on, live, submit, turns, until


def find(rig: Rig, job: int, *indexes: int, number: int = 1, host: str = "host", environment: str = "env") -> Step:
    return rig.do(ask.Found(environment=environment, host=host, job=job, number=number, indexes=list(indexes) or [0]))


def test_a_waiting_job_takes_its_next_attempt_as_its_own(rig: Rig) -> None:
    job = rig.submit(vcpus=3)
    step = find(rig, job)
    assert step.events == [ev.AttemptsPlaced(job, 0, 1, None, 1, 1, None)]
    assert launches(step) == [(job, 1, [0], 1)], "launching the same attempt again runs it once"
    assert rig.state.hosts[1].free_vcpus_milli == 1000
    assert launches(rig.place()) == []
    rig.start(job)
    rig.exit(job)
    assert rig.status(job) == "SUCCEEDED"
    assert rig.state.hosts[1].free_vcpus_milli == 4000


def test_a_retried_job_takes_the_attempt_after_its_last(rig: Rig) -> None:
    job = rig.submit(attempts=3)
    rig.run(job, code=1)
    assert find(rig, job, number=1).events == []
    assert find(rig, job, number=3).events == []
    assert find(rig, job, number=2).events == [ev.AttemptsPlaced(job, 0, 1, None, 2, 1, None)]
    rig.start(job)
    rig.exit(job)
    assert [attempt.number for attempt in rig.past(job)] == [1]


def test_only_children_that_wait_for_that_number_are_adopted(rig: Rig) -> None:
    job = rig.submit(size=6, attempts=2, vcpus=2)
    rig.run(job, 0, code=1)
    step = find(rig, job, 5, 4, 4, 1, 0, number=1)
    assert step.events == [ev.AttemptsPlaced(job, 4, 6, None, 1, 1, None)], "0 has had its first, 1 is on its way"
    assert rig.statuses(job) == "RsRRss"
    rig.lose(job, 1, 4, 5)
    step = find(rig, job, 0, 4, number=2)
    assert step.events == [ev.AttemptsPlaced(job, 0, 0, [0, 4], 2, 1, None)]


def test_what_is_found_twice_is_adopted_once(rig: Rig) -> None:
    job = rig.submit()
    assert len(find(rig, job).events) == 1
    assert find(rig, job).events == []


def test_what_waits_for_others_has_ended_or_is_unknown_is_not_adopted(rig: Rig) -> None:
    gate = rig.submit("gate")
    pending = rig.submit("pending", after(rig.id(gate)))
    ended, cancelled = rig.submit(), rig.submit()
    rig.run(ended)
    rig.cancel(cancelled)
    for job, number in ((pending, 1), (ended, 1), (ended, 2), (cancelled, 1), (99, 1)):
        step = find(rig, job, number=number)
        assert (step.events, step.effects) == ([], [])


def test_a_host_that_is_not_there_gives_nothing(rig: Rig) -> None:
    job = rig.submit()
    assert find(rig, job, host="elsewhere").events == []
    assert find(rig, job, environment="elsewhere").events == []


def test_gpus_of_unknown_number_are_not_guessed(bare: Rig) -> None:
    bare.environment()
    bare.host(gpus=(0, 1))
    bare.queue()
    assert find(bare, bare.submit(gpus=1)).events == []


def test_a_host_may_hold_more_than_it_offers_and_gets_nothing_more_until_it_fits(rig: Rig) -> None:
    jobs = [rig.submit(vcpus=3) for _ in range(2)]
    for job in jobs:
        find(rig, job)
    assert rig.state.hosts[1].free_vcpus_milli == -2000
    small = rig.submit(vcpus=1)
    assert launches(rig.place()) == []
    rig.exit(jobs[0])
    assert launches(rig.place()) == [(small, 1, [0], 1)]


def test_an_adopted_attempt_has_its_timeout(rig: Rig) -> None:
    job = rig.submit(timeout_ms=5_000)
    find(rig, job)
    rig.start(job)
    assert [type(event) for event in rig.advance(5_000)] == [ev.StopRequested]


def test_an_adopted_job_can_be_terminated(rig: Rig) -> None:
    job = rig.submit()
    find(rig, job)
    rig.terminate(job)
    rig.exit(job, code=143)
    assert rig.status(job) == "FAILED"


# -- end to end ------------------------------------------------------------------------------------------------------


class HostOfAttempts(ManualBackend):
    """Holds attempts that the kernel has never heard of, and runs an attempt once however often it is launched."""

    capabilities: ClassVar[Capabilities] = Capabilities(commands=False, reattach=True)

    def __init__(self) -> None:
        super().__init__()
        self.strange: list[AttemptKey] = []
        self.began: list[AttemptKey] = []

    async def start(self, context: BackendContext, known: Sequence[Launch]) -> None:
        await super().start(context, known)
        for key in self.strange:
            self.began.append(key)
            self.live[key] = None  # type: ignore[assignment]
            context.found("host", key.job_id, key.number, [key.index])
            context.started(key.job_id, key.number, [key.index])

    def settle(self, launch: Launch) -> None:
        self.context.started(launch.job_id, launch.number, launch.indexes)

    async def launch(self, launches: Sequence[Launch]) -> None:
        for launch in launches:
            for key in launch.attempts():
                if key not in self.live:
                    self.began.append(key)
                    self.live[key] = launch
                    self.context.started(key.job_id, key.number, [key.index])


async def waiting_jobs(path: Path) -> tuple[str, str, str]:
    """A journal with a single job and an array that wait for a DISABLED environment, and a job that has ended."""
    async with kernel_on(path=path) as kernel:
        ended = await submit(kernel, "ended")
        await ended.wait()
        await kernel.update_compute_environment("b", state="DISABLED")
        single, array = await submit(kernel, "single"), await submit(kernel, "array", array_size=3)
        return single.id, array.id, ended.id


STRANGER = "00000000-0000-4000-8000-00000000abcd"


@pytest.mark.asyncio
async def test_what_is_found_is_adopted_or_stopped_and_nothing_runs_twice(tmp_path: Path) -> None:
    single, array, ended = await waiting_jobs(tmp_path / "j.db")
    backend = HostOfAttempts()
    adopted = [AttemptKey(single, 0, 1), AttemptKey(array, 1, 1)]
    strays = [AttemptKey(STRANGER, 0, 1), AttemptKey(array, 2, 7), AttemptKey(ended, 0, 1), AttemptKey(ended, 0, 2)]
    backend.strange = [*adopted, *strays]
    async with Kernel(tmp_path / "j.db", backends={"b": backend}) as kernel:
        await until(lambda: len(backend.stopped) >= len(strays))
        assert (await kernel.describe_job(single)).status is JobStatus.RUNNING
        assert (await kernel.describe_job(f"{array}:1")).status is JobStatus.RUNNING
        assert (await kernel.describe_job(f"{array}:2")).status is JobStatus.RUNNABLE
        assert (await kernel.describe_job(ended)).status is JobStatus.SUCCEEDED
        assert sorted(backend.stopped) == sorted(strays)

        await kernel.update_compute_environment("b", state="ENABLED")
        await until(lambda: AttemptKey(array, 0, 1) in backend.began and AttemptKey(array, 2, 1) in backend.began)
        await turns()
        backend.exit_all()
        assert (await kernel.wait(single)).status is JobStatus.SUCCEEDED
        assert (await kernel.wait(array)).status is JobStatus.SUCCEEDED
        assert sorted(backend.stopped) == sorted(strays)
    assert len(backend.began) == len(set(backend.began)), "an attempt that was adopted is not run again"


@pytest.mark.asyncio
async def test_nothing_is_launched_before_what_is_found_is_known(tmp_path: Path) -> None:
    """The environment is open, and has room: all the same the found attempt is the one that counts."""
    async with kernel_on(ManualBackend(starts=False), tmp_path / "j.db", vcpus=1) as kernel:
        await submit(kernel, "holds-the-host")
        job = (await submit(kernel, "waits")).id
    backend = HostOfAttempts()
    backend.strange = [AttemptKey(job, 0, 1)]
    async with Kernel(tmp_path / "j.db", backends={"b": backend}) as kernel:
        await until(lambda: live(kernel).state.environments["b"].listed)
        await turns()
        assert backend.began.count(AttemptKey(job, 0, 1)) == 1
        assert backend.stopped == []
        assert len((await kernel.describe_job(job)).attempts) == 1
        backend.exit_all()
        assert (await kernel.wait(job)).status is JobStatus.SUCCEEDED


@pytest.mark.asyncio
async def test_what_is_found_where_it_is_not_placed_is_stopped(tmp_path: Path) -> None:
    """The power took the placement on `b`; before `b` came back the same attempt was placed on `c`, and runs there."""
    there, here = HostOfAttempts(), HostOfAttempts()
    async with Kernel(tmp_path / "j.db", backends={"b": there, "c": here}) as kernel:
        for name in ("b", "c"):
            await kernel.create_compute_environment(name, backend=name, max_vcpus=1)
        await kernel.create_job_queue("q", priority=1, compute_environments=["c", "b"])
        job = await submit(kernel)
        await until(lambda: here.live)
        key = AttemptKey(job.id, 0, 1)
        there.context.found("host", key.job_id, key.number, [0])
        await until(lambda: there.stopped)
        assert there.stopped == [key], "the second copy goes on running"
        assert here.stopped == []
        here.exit_all()
        assert (await job.wait()).status is JobStatus.SUCCEEDED
