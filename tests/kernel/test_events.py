"""The event stream: every status change, in order, from any point that is kept; it ends with the kernel."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import anyio
import pytest
from anybatch import EventId, EventsTrimmed, InvalidValue, JobEvent, JobStatus, Kernel
from anybatch.kernel.backend import AttemptKey
from anybatch.kernel.core.states import TRANSITIONS
from kernel_rig import LastingBackend, ManualBackend, kernel_on, submit, turns, until

pytestmark = pytest.mark.asyncio


@pytest.fixture(params=["file", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "j.db" if request.param == "file" else None


async def read(kernel: Kernel, after: EventId | None = None) -> list[JobEvent]:
    """The events from a point up to the newest."""
    last = await kernel.last_event_id()
    marker = await submit(kernel, "marker", vcpus=1000)
    found = []
    async with kernel.events(after=after) as events:
        async for event in events:
            if event.id > last and event.job_id == marker.id:
                break
            if event.id <= last and event.job_name != "marker":
                found.append(event)
    return found


async def some_work(kernel: Kernel) -> None:
    first = await submit(kernel, "first", array_size=5)
    second = await submit(kernel, "second", depends_on=[first])
    await submit(kernel, "third", depends_on=[second])
    await kernel.cancel_job("third", "no")
    await second.wait()


async def test_every_status_change_is_there_once_and_in_order(path: Path | None) -> None:
    async with kernel_on(path=path) as kernel:
        await some_work(kernel)
        events = await read(kernel)

        ids = [event.id for event in events]
        assert ids == sorted(set(ids))
        changes: dict[str, list[JobStatus]] = {}
        for event in events:
            for one in event.expand():
                changes.setdefault(one.job_id, []).append(one.status)
        allowed = {(source, target) for (_, source, _), target in TRANSITIONS.items()}
        for job_id, statuses in changes.items():
            assert statuses[0] in (JobStatus.SUBMITTED, JobStatus.RUNNABLE)  # children begin with their parent
            assert all(pair in allowed for pair in pairwise(statuses)), statuses
            assert (await kernel.describe_job(job_id)).status is statuses[-1]


async def test_a_stream_goes_on_from_any_event(path: Path | None) -> None:
    async with kernel_on(path=path) as kernel:
        await some_work(kernel)
        events = await read(kernel)
        for n in range(0, len(events), 3):
            assert await read(kernel, after=events[n].id) == events[n + 1 :]


async def test_expand_gives_one_event_per_child(path: Path | None) -> None:
    backend = ManualBackend()
    async with kernel_on(backend, path) as kernel:
        job = await submit(kernel, array_size=3, retry=2)
        await until(lambda: len(backend.live) == 3)
        at = await kernel.last_event_id()
        backend.context.exited(job.id, 1, [2, 0], [7, 0])
        await until(lambda: AttemptKey(job.id, 2, 2) in backend.live)
        ended = [e for event in await read(kernel, at) for e in event.expand() if e.exit_codes is not None]
        assert {(e.job_id, e.status, e.exit_codes, e.attempt, e.indexes) for e in ended} == {
            (f"{job.id}:2", JobStatus.RUNNABLE, (7,), 1, None),
            (f"{job.id}:0", JobStatus.SUCCEEDED, (0,), 1, None),
        }
        assert {e.job_name for e in ended} == {"job"}
        backend.exit_all()


async def test_the_event_of_a_whole_job_expands_to_itself() -> None:
    async with kernel_on() as kernel:
        await (await submit(kernel)).wait()
        for event in await read(kernel):
            assert list(event.expand()) == [event]


async def test_a_stream_is_read_inside_its_context() -> None:
    async with kernel_on() as kernel:
        with pytest.raises(RuntimeError, match="async with"):
            await anext(kernel.events())


async def test_several_consumers_at_once_see_the_same(path: Path | None) -> None:
    async with kernel_on(path=path) as kernel:

        async def consume() -> list[EventId]:
            found = []
            async with kernel.events() as events:
                async for event in events:
                    found.append(event.id)
                    await turns(len(found) % 3)
                    if (event.job_name, event.status) == ("second", JobStatus.SUCCEEDED):
                        break
            return found

        consumers = [asyncio.ensure_future(consume()) for _ in range(3)]
        await turns()
        await some_work(kernel)
        one, two, three = await asyncio.gather(*consumers)
        assert one == two == three
        assert len(one) > 10


async def test_a_wait_for_the_next_event_may_be_given_up_and_taken_up_again(path: Path | None) -> None:
    async with kernel_on(path=path) as kernel, kernel.events(after=await kernel.last_event_id()) as events:
        with anyio.move_on_after(0.01) as scope:
            await anext(aiter(events))
        assert scope.cancelled_caught
        await submit(kernel)
        assert (await anext(aiter(events))).status is JobStatus.SUBMITTED
        assert (await anext(aiter(events))).status is JobStatus.RUNNABLE


async def test_a_slow_consumer_holds_up_nobody_and_misses_nothing(path: Path | None) -> None:
    async with kernel_on(path=path) as kernel:
        async with kernel.events() as events:
            jobs = [await submit(kernel, f"job-{n}", array_size=4) for n in range(100)]
            for job in jobs:
                await job.wait()
            submitted = []
            async for event in events:
                if event.status is JobStatus.SUBMITTED:
                    submitted.append(event.job_id)
                if len(submitted) == len(jobs):
                    break
        assert submitted == [job.id for job in jobs]


async def test_what_is_no_longer_kept_is_said_with_the_oldest_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__("anybatch.kernel.journal", fromlist=["MemoryJournal"]).MemoryJournal.__module__
    monkeypatch.setattr(f"{module}.MEMORY_RECORDS_MAX", 10)
    async with kernel_on() as kernel:
        start = await kernel.last_event_id()
        slow = kernel.events(after=None)
        for n in range(20):
            await (await submit(kernel, f"job-{n}")).wait()
        with pytest.raises(EventsTrimmed) as trimmed:
            await read(kernel, after=start)
        assert trimmed.value.asked == start
        assert trimmed.value.oldest > start
        async with slow as events:
            with pytest.raises(EventsTrimmed):
                await anext(aiter(events))
        kept = await read(kernel)
        assert kept[0].id.sequence >= trimmed.value.oldest[1]
        assert kept[-1].status is JobStatus.SUCCEEDED


async def test_the_epoch_rises_at_each_open_and_the_sequence_goes_on(tmp_path: Path) -> None:
    backend = LastingBackend()
    async with kernel_on(backend, tmp_path / "j.db") as kernel:
        job = await submit(kernel)
        await until(lambda: backend.live)
        kept = await read(kernel)
        assert {event.id.epoch for event in kept} == {1}
    async with kernel_on(backend, tmp_path / "j.db") as kernel:
        await until(lambda: backend.known)
        backend.exit_all()
        await kernel.wait(job.id)
        events = await read(kernel)
        assert events[: len(kept)] == kept
        later = await read(kernel, after=kept[-1].id)
        assert {event.id.epoch for event in later} == {2}
        assert later[-1].status is JobStatus.SUCCEEDED
        assert later[0].id.sequence > kept[-1].id.sequence
        assert (await kernel.last_event_id()).epoch == 2


async def test_a_point_in_the_future_is_refused(tmp_path: Path) -> None:
    async with kernel_on(path=tmp_path / "j.db") as kernel:
        last = await kernel.last_event_id()
        with pytest.raises(InvalidValue, match="newest event"):
            kernel.events(after=EventId(last.epoch, last.sequence + 1))


async def test_times_of_events_are_utc_and_never_go_back(path: Path | None) -> None:
    async with kernel_on(path=path) as kernel:
        await some_work(kernel)
        times = [event.at for event in await read(kernel)]
        assert times == sorted(times)
        assert {str(at.tzinfo) for at in times} == {"UTC"}
