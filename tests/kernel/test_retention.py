"""What a kernel forgets, and what it keeps: jobs, their names and folders, and the events that told of them."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anybatch.kernel.journal as journal_module
import pytest
from anybatch import (
    EventsTrimmed,
    InlineAttempt,
    InlineBackend,
    JobEvent,
    JobHandle,
    JobStatus,
    JournalDamaged,
    Kernel,
    NotFound,
)
from anybatch.kernel.cleaner import Cleaner
from anybatch.kernel.core.events import JobsForgotten
from anybatch.kernel.trimming import TRIM_EVERY_MS
from anybatch.testing.clock import VirtualClock
from anybatch.testing.null import NullBackend
from kernel_rig import LastingBackend, ManualBackend, as_killed, kernel_on, live, nothing_left, submit, turns, until

pytestmark = pytest.mark.asyncio

MINUTE, HOUR, DAY = 60, 3600, 86_400


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture(params=["file", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "j.db" if request.param == "file" else None


async def wrote(attempt: InlineAttempt) -> int:
    attempt.print("wrote")
    return 0


async def waits(attempt: InlineAttempt) -> int:
    attempt.print("wrote")
    await asyncio.Event().wait()
    return 0


def writing() -> InlineBackend:
    """A backend whose jobs write a line each."""
    return InlineBackend({"x": wrote, "wait": waits})


async def keep(kernel: Kernel, seconds: float, failed: float | None = None) -> None:
    await kernel.update_job_queue("q", retain_succeeded=seconds, retain_failed=failed)


async def told(kernel: Kernel, **more: Any) -> list[JobEvent]:
    """Every event that is kept, up to one of a job that is submitted for that."""
    found = []
    async with kernel.events(**more) as events:
        mark = await submit(kernel, "mark")
        async for event in events:
            if event.job_id == mark.id:
                break
            if event.job_name != "mark":
                found.append(event)
    await mark.wait()
    return found


async def names(kernel: Kernel) -> list[str]:
    return [job.name async for job in kernel.list_jobs()]


async def gone(kernel: Kernel, job: JobHandle) -> None:
    """Whoever asks for the job is told that it does not exist."""
    for call in (job.describe, job.wait, job.read_logs):
        with pytest.raises(NotFound):
            await call()
    for reference in (job.id, f"{job.id}:0"):
        with pytest.raises(NotFound):
            await kernel.describe_job(reference)
        with pytest.raises(NotFound):
            await kernel.explain(reference)
        with pytest.raises(NotFound):
            await submit(kernel, "other", depends_on=[reference])


# -- jobs -------------------------------------------------------------------------------------------------------


async def test_by_default_successes_stay_for_a_day_and_failures_for_a_week(path: Path | None) -> None:
    async with kernel_on(path=path) as kernel:
        queue = (await kernel.describe_job_queues(["q"]))[0]
        assert (queue.retain_succeeded_s, queue.retain_failed_s) == (DAY, 7 * DAY)


async def test_a_job_goes_when_its_queue_says_so(path: Path | None, clock: VirtualClock) -> None:
    async with kernel_on(NullBackend(lambda key: (1, key.index)), path, clock=clock) as kernel:
        await keep(kernel, 10, 20)
        fine, mixed = await submit(kernel, "fine", client_token="once"), await submit(kernel, "mixed", array_size=2)
        await clock.advance(1)
        assert (await fine.describe()).status is JobStatus.SUCCEEDED
        assert (await mixed.describe()).status is JobStatus.FAILED
        await clock.advance(9.999)
        assert await names(kernel) == ["mixed", "fine"]
        await clock.advance(0.001)
        assert await names(kernel) == ["mixed"]
        await gone(kernel, fine)
        assert (await submit(kernel, "fine", client_token="once")).id != fine.id
        await clock.advance(10)
        assert await names(kernel) == ["fine"]
        await gone(kernel, mixed)
        state = live(kernel).state
        assert len(state.jobs) == len(state.ids) == len(state.names) == len(state.tokens) == 1


async def test_a_shorter_time_holds_at_once_for_jobs_that_have_ended(path: Path | None, clock: VirtualClock) -> None:
    async with kernel_on(path=path, clock=clock) as kernel:
        job = await submit(kernel)
        await job.wait()
        await clock.advance(MINUTE)
        await keep(kernel, 30)
        await clock.settle()
        await gone(kernel, job)


async def test_what_an_unfinished_job_depends_on_stays(path: Path | None, clock: VirtualClock) -> None:
    backend = ManualBackend()
    async with kernel_on(backend, path, clock=clock) as kernel:
        await keep(kernel, 10)
        first = await submit(kernel, "first")
        second = await submit(kernel, "second", depends_on=[first])
        third = await submit(kernel, "third", depends_on=["second"])
        await until(lambda: backend.live)
        backend.exit_all()
        await until(lambda: backend.live)
        await clock.advance(MINUTE)
        assert (await first.describe()).status is JobStatus.SUCCEEDED
        backend.exit_all()
        await second.wait()
        await clock.settle()
        await gone(kernel, first)
        assert [entry.job_id for entry in (await second.describe()).depends_on] == [first.id]
        await clock.advance(MINUTE)
        assert (await second.describe()).status is JobStatus.SUCCEEDED, "the third runs"
        backend.exit_all()
        await third.wait()
        await clock.advance(MINUTE)
        assert await names(kernel) == []


async def test_whoever_waited_has_the_end_of_a_job_that_goes_at_once(path: Path | None, clock: VirtualClock) -> None:
    backend = ManualBackend()
    async with kernel_on(backend, path, clock=clock) as kernel:
        await keep(kernel, 0.001, 0.001)
        job = await submit(kernel, array_size=2)
        await until(lambda: len(backend.live) == 2)
        waiting = [asyncio.ensure_future(wait) for wait in (job.wait(), job[1].wait())]
        await turns()
        backend.exit_all()
        assert [detail.status for detail in await asyncio.gather(*waiting)] == [JobStatus.SUCCEEDED] * 2
        await clock.advance(1)
        await gone(kernel, job)


async def test_a_reopened_kernel_goes_on_forgetting(tmp_path: Path, clock: VirtualClock) -> None:
    async with kernel_on(path=tmp_path / "j.db", clock=clock) as kernel:
        await keep(kernel, HOUR)
        old = await submit(kernel, "old")
        await old.wait()
        await clock.advance(HOUR / 2)
        await (await submit(kernel, "new")).wait()
        crashed = as_killed(tmp_path / "j.db")
    for opened in (tmp_path / "j.db", crashed):
        later = VirtualClock(clock.now_ms())
        async with kernel_on(path=opened, clock=later) as kernel:
            await later.advance(HOUR / 2)
            assert await names(kernel) == ["new"]
            assert (await submit(kernel, "next")).id != old.id
        async with kernel_on(path=opened, clock=later) as kernel:
            assert await names(kernel) == ["next", "new"]
            await later.advance(2 * HOUR)
            assert await names(kernel) == []
        async with kernel_on(path=opened, clock=later) as kernel:
            assert await names(kernel) == []


async def test_what_is_overdue_at_an_open_goes_then(tmp_path: Path, clock: VirtualClock) -> None:
    async with kernel_on(path=tmp_path / "j.db", clock=clock) as kernel:
        await keep(kernel, HOUR)
        await (await submit(kernel)).wait()
    async with kernel_on(path=tmp_path / "j.db", clock=VirtualClock(clock.now_ms() + DAY * 1000)) as kernel:
        await until(lambda: not live(kernel).state.jobs)


async def test_many_jobs_go_without_one_long_turn(clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anybatch.kernel.core.retention.FORGOTTEN_MOST", 7)
    async with kernel_on(clock=clock) as kernel:
        await keep(kernel, 1)
        jobs = [await submit(kernel, f"job-{n}") for n in range(50)]
        for job in jobs:
            await job.wait()
        await clock.advance(1)
        await until(lambda: not live(kernel).state.jobs)
        told_of = [
            len(event.jobs)
            for record in live(kernel).journal.read(0)
            for event in record.events
            if isinstance(event, JobsForgotten)
        ]
        assert max(told_of) == 7
        assert sum(told_of) == 50


# -- events of jobs that are gone ------------------------------------------------------------------------------------


async def test_events_of_forgotten_jobs_tell_their_ids_and_names(path: Path | None, clock: VirtualClock) -> None:
    async with kernel_on(path=path, clock=clock) as kernel:
        single, array = await submit(kernel, "single"), await submit(kernel, "array", array_size=2)
        await single.wait()
        await array.wait()
        before = await told(kernel)
        assert {(event.job_id, event.job_name) for event in before} == {(single.id, "single"), (array.id, "array")}
        await keep(kernel, 1)
        await clock.advance(MINUTE)
        await gone(kernel, single)
        assert await told(kernel) == before
        middle = before[len(before) // 2].id
        assert await told(kernel, after=middle) == before[len(before) // 2 + 1 :]


async def test_a_later_kernel_reads_them_too(tmp_path: Path, clock: VirtualClock) -> None:
    async with kernel_on(path=tmp_path / "j.db", clock=clock) as kernel:
        job = await submit(kernel, "long-gone", array_size=3)
        await job.wait()
        before = await told(kernel)
        await keep(kernel, 1)
        await clock.advance(MINUTE)
        await gone(kernel, job)
    async with kernel_on(path=tmp_path / "j.db", clock=clock) as kernel:
        assert await told(kernel) == before


async def test_a_reader_that_is_slow_misses_nothing_of_what_goes_meanwhile(clock: VirtualClock) -> None:
    async with kernel_on(clock=clock) as kernel:
        await keep(kernel, 1)
        async with kernel.events() as events:
            jobs = [await submit(kernel, f"job-{n}") for n in range(20)]
            for job in jobs:
                await job.wait()
            seen = [await anext(events) for _ in range(7)]
            await clock.advance(MINUTE)
            assert await names(kernel) == []
            while seen[-1].job_id != jobs[-1].id or seen[-1].status is not JobStatus.SUCCEEDED:
                seen.append(await anext(events))
        ended = [event.job_name for event in seen if event.status is JobStatus.SUCCEEDED]
        assert sorted(ended) == sorted(f"job-{n}" for n in range(20))


# -- folders -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def with_folders(path: Path, clock: VirtualClock) -> AsyncIterator[tuple[Kernel, JobHandle, JobHandle, Path]]:
    """A kernel with a job that has ended and one that runs, both with logs and a folder of the backend's."""
    async with kernel_on(writing(), path, clock=clock) as kernel:
        await keep(kernel, 10)
        old, new = await submit(kernel, "old"), await submit(kernel, "new", command=["wait"])
        await old.wait()
        files = live(kernel).journal.files
        await until(lambda: (files / "logs" / new.id).exists())
        for job in (old, new):
            (files / "environments" / "b" / "jobs" / job.id / "deep").mkdir(parents=True)
        yield kernel, old, new, files


def folders(files: Path) -> list[str]:
    return sorted(
        str(entry.relative_to(files))
        for at in ("logs", "environments/b/jobs")
        for entry in files.joinpath(at).iterdir()
    )


def of(*jobs: JobHandle) -> list[str]:
    return sorted(f"{at}/{job.id}" for at in ("logs", "environments/b/jobs") for job in jobs)


async def test_the_folders_of_a_forgotten_job_are_removed_and_no_others(tmp_path: Path, clock: VirtualClock) -> None:
    with nothing_left():
        async with with_folders(tmp_path / "j.db", clock) as (_, old, new, files):
            assert folders(files) == of(old, new)
            await clock.advance(10)
            await until(lambda: folders(files) == of(new))


async def test_what_a_killed_kernel_did_not_remove_the_next_one_does(
    tmp_path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the job was forgotten and its folders were still there."""
    with monkeypatch.context() as patch:
        patch.setattr(Cleaner, "forget", lambda self, job_ids: None)
        async with with_folders(tmp_path / "j.db", clock) as (kernel, old, new, files):
            await clock.advance(10)
            await gone(kernel, old)
            assert folders(files) == of(old, new)
            crashed = as_killed(tmp_path / "j.db")
    files = crashed.with_name(crashed.name + ".d")
    assert folders(files) == of(old, new)
    async with kernel_on(writing(), crashed, clock=clock):
        await until(lambda: old.id not in str(folders(files)))
        assert f"logs/{new.id}" in folders(files)


async def test_folders_are_removed_while_a_batch_is_under_way(
    tmp_path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anybatch.kernel.cleaner.BATCH", 3)
    async with kernel_on(writing(), tmp_path / "j.db", clock=clock) as kernel:
        await keep(kernel, 10)
        files = live(kernel).journal.files
        for _ in range(4):
            jobs = [await submit(kernel) for _ in range(5)]
            for job in jobs:
                await job.wait()
            await clock.advance(10)
        await until(lambda: not list((files / "logs").iterdir()))


@pytest.mark.parametrize("failing", ["_on_disk", "_remove"])
async def test_a_disk_that_does_not_answer_costs_space_only(
    tmp_path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def broken(*_: object) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Cleaner, failing, broken)
        async with with_folders(tmp_path / "j.db", clock) as (_, old, new, files):
            await clock.advance(10)
            await turns(200)
            assert (await new.describe()).status is JobStatus.RUNNING
            await until(lambda: folders(files) == (of(old, new) if failing == "_remove" else of(new)))
    async with kernel_on(writing(), tmp_path / "j.db", clock=clock):
        await until(lambda: old.id not in str(folders(files)))


# -- trimming ------------------------------------------------------------------------------------------------------


@pytest.fixture
def snapshots_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot at every commit that has anything in it, so that recovery keeps little."""
    monkeypatch.setattr(journal_module.FileJournal, "wants_snapshot", lambda self: True)


def oldest(kernel: Kernel) -> int:
    return live(kernel).journal.oldest


LOOK = TRIM_EVERY_MS / 1000


async def finished(kernel: Kernel, count: int) -> None:
    for n in range(count):
        await (await submit(kernel, f"job-{n}")).wait()


@pytest.mark.usefixtures("snapshots_often")
async def test_events_go_when_they_are_old_enough(path: Path | None, clock: VirtualClock) -> None:
    async with kernel_on(path=path, clock=clock, retain_events=10 * MINUTE) as kernel:
        start = await kernel.last_event_id()
        await finished(kernel, 10)
        last = await kernel.last_event_id()
        await clock.advance(5 * MINUTE)
        await finished(kernel, 3)
        later = (await kernel.last_event_id()).sequence - last.sequence
        assert oldest(kernel) == 1
        await clock.advance(5 * MINUTE + LOOK)
        assert last.sequence - 10 <= oldest(kernel) - 1 <= last.sequence
        assert {event.job_name for event in await told(kernel, after=last)} == {"job-0", "job-1", "job-2"}
        assert later > 0
        with pytest.raises(EventsTrimmed) as caught:
            await told(kernel, after=start)
        assert caught.value.oldest[1] == oldest(kernel)


@pytest.mark.usefixtures("snapshots_often")
async def test_a_stream_without_a_place_begins_with_the_oldest_kept(tmp_path: Path, clock: VirtualClock) -> None:
    async with kernel_on(path=tmp_path / "j.db", clock=clock, retain_events=10 * MINUTE) as kernel:
        await finished(kernel, 5)
        await clock.advance(9 * MINUTE)
        job = await submit(kernel, "young")
        await job.wait()
        await clock.advance(MINUTE + LOOK)
        assert {event.job_name for event in await told(kernel)} >= {"young"}
        assert {event.job_name for event in await told(kernel)} <= {"young", "job-4"}


@pytest.mark.usefixtures("snapshots_often")
async def test_a_journal_that_is_too_large_gives_up_younger_events(tmp_path: Path, clock: VirtualClock) -> None:
    async with kernel_on(path=tmp_path / "j.db", clock=clock, retain_events_bytes=300_000) as kernel:
        await keep(kernel, 1)
        for n in range(40):
            await (await submit(kernel, f"large-{n}", command=["x", "y" * 20_000])).wait()
            await clock.advance(1)
        assert live(kernel).journal.size > 800_000
        await clock.advance(LOOK)
        assert live(kernel).journal.size < 300_000 + 100_000
        assert oldest(kernel) > 1
        assert "large-39" in {event.job_name for event in await told(kernel)}


async def test_a_journal_below_its_bounds_keeps_all(path: Path | None, clock: VirtualClock) -> None:
    async with kernel_on(path=path, clock=clock) as kernel:
        await finished(kernel, 5)
        await clock.advance(HOUR)
        assert oldest(kernel) == 1


@pytest.mark.usefixtures("snapshots_often")
@pytest.mark.parametrize("bound", [{"retain_events": 1}, {"retain_events_bytes": 1}])
async def test_events_since_an_unfinished_job_came_are_kept(
    tmp_path: Path, clock: VirtualClock, bound: dict[str, Any]
) -> None:
    backend = ManualBackend()
    async with kernel_on(backend, tmp_path / "j.db", clock=clock, **bound) as kernel:

        async def fine(name: str) -> None:
            job = await submit(kernel, name)
            await until(lambda: any(key.job_id == job.id for key in backend.live))
            for key in [key for key in backend.live if key.job_id == job.id]:
                backend.exit(key)
            await job.wait()

        await fine("before")
        await clock.advance(1)
        at = await kernel.last_event_id()
        slow = await submit(kernel, "slow")
        await fine("after")
        await clock.advance(HOUR)
        assert 1 < oldest(kernel) <= at.sequence + 1
        async with kernel.events(after=at) as events:
            assert (await anext(events)).job_name == "slow"
        backend.exit_all()
        await slow.wait()
        await clock.advance(2 * LOOK)
        assert oldest(kernel) > at.sequence + 1


@pytest.mark.parametrize("bound", [{"retain_events": 0.001}, {"retain_events_bytes": 1}])
async def test_a_kernel_reopened_after_trimming_has_everything(
    tmp_path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, bound: dict[str, Any]
) -> None:
    monkeypatch.setattr(journal_module, "SNAPSHOT_BYTES_MIN", 2_000)
    backend = LastingBackend()
    path = tmp_path / "j.db"
    async with kernel_on(backend, path, clock=clock, vcpus=2, **bound) as kernel:
        await kernel.register_job_definition("d", command=["x"])
        jobs = []
        for n in range(30):
            jobs.append(await submit(kernel, f"job-{n}", command=["x", "y" * 500]))
            await until(lambda: backend.live)
            backend.exit_all(n % 2)
            await jobs[-1].wait()
            await clock.advance(LOOK / 4)
        jobs.append(await submit(kernel, "running", array_size=3))
        jobs.append(await submit(kernel, "waits", depends_on=["running"]))
        await until(lambda: len(backend.live) == 2)
        await clock.advance(5 * LOOK)
        assert oldest(kernel) > 30
        before = await kernel.describe_jobs(jobs)
        oldest_kept = oldest(kernel)
        crashed = as_killed(path)
    for opened in (crashed, path):
        async with kernel_on(backend, opened, clock=clock, **bound) as kernel:
            assert oldest(kernel) >= oldest_kept
            assert await kernel.describe_jobs([job.id for job in jobs]) == before
            assert [row.revision for row in await kernel.describe_job_definitions("d")] == [1]
            if opened is path:
                await until(lambda: live(kernel).state.environments["b"].listed)
                for _ in range(4):
                    backend.exit_all()
                    await turns()
                assert (await kernel.wait("waits")).status is JobStatus.SUCCEEDED


async def test_events_that_cannot_be_read_stop_the_trimming_and_nothing_else(
    tmp_path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def damaged(self: object, after: int) -> list[Any]:
        tries.append(after)
        raise JournalDamaged("the record of event 1 is not what was written")

    async with kernel_on(path=tmp_path / "j.db", clock=clock, retain_events=1) as kernel:
        with monkeypatch.context() as patch:
            patch.setattr(journal_module.FileJournal, "read", damaged)
            await clock.advance(3 * LOOK)
            assert len(tries) == 3, "it is tried again, but not without end"
            assert (await (await submit(kernel)).wait()).status is JobStatus.SUCCEEDED


async def test_trimming_while_events_of_forgotten_jobs_are_looked_for_disturbs_nobody(clock: VirtualClock) -> None:
    async with kernel_on(clock=clock) as kernel:
        await keep(kernel, 1)
        await finished(kernel, 400)
        at = await kernel.last_event_id()
        last = await submit(kernel, "last")
        await last.wait()
        await clock.advance(MINUTE)
        async with kernel.events(after=at) as events:
            reading = asyncio.ensure_future(anext(events))
            for _ in range(4):
                await asyncio.sleep(0)
                journal = live(kernel).journal
                while journal.trim(at.sequence) < at.sequence - 10:
                    pass
            assert (await reading).job_id == last.id


async def test_a_job_that_is_forgotten_before_its_submit_is_answered_has_its_handle(tmp_path: Path) -> None:
    async with Kernel(tmp_path / "j.db", backends={"null": NullBackend}) as kernel:
        await kernel.create_compute_environment("env", backend="null", max_vcpus=4)
        await kernel.create_job_queue("q", priority=1, compute_environments=["env"], retain_succeeded=0.001)
        for n in range(20):
            job = await kernel.submit_job(f"j{n}", queue="q", command=["x"], array_size=2)
            assert (job.name, job.array_size, job[1].id) == (f"j{n}", 2, f"{job.id}:1")
