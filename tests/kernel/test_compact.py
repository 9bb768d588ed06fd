"""Kernel.compact_journal: the journal of a running kernel gets small, and nothing but old events is gone."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import anybatch
import pytest
from anybatch import EventsTrimmed, InvalidValue, JobStatus, JournalError, Kernel, KernelClosed
from anybatch.kernel.journal import TRIM_PAGES, FileJournal
from anybatch.kernel.journal_inspect import inspect
from anybatch.kernel.journal_read import read_state
from anybatch.testing.null import NullBackend
from kernel_rig import as_killed

pytestmark = pytest.mark.asyncio


def opened(path: Path) -> Kernel:
    return Kernel(path, backends={"null": NullBackend})


async def filled(kernel: Kernel, jobs: int = 60) -> None:
    """Some megabytes of events that nothing needs any more, but for the last job."""
    await kernel.create_compute_environment("env", backend="null", max_vcpus=64, exist_ok=True)
    for name in ("q", "kept"):
        await kernel.create_job_queue(name, priority=1, compute_environments=["env"], exist_ok=True)
    for n in range(jobs):
        queue, texts = ("q" if n < jobs - 1 else "kept"), {"FILL": "x" * 20_000}
        job = await kernel.submit_job(f"job-{n}", queue=queue, array_size=50, command=["x"], environment=texts)
        assert (await job.wait()).status is JobStatus.SUCCEEDED
    await kernel.update_job_queue("q", retain_succeeded=0.001)
    while [job async for job in kernel.list_jobs(queue="q", status=JobStatus.SUCCEEDED)]:
        await asyncio.sleep(0.01)


async def test_old_events_go_and_the_file_is_small_while_the_kernel_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    async with opened(path) as kernel:
        await filled(kernel)
        first = await kernel.compact_journal(keep=0)  # the snapshot before this one has all those jobs' texts
        assert first.bytes_before > 1_000_000
        other = await kernel.submit_job("meanwhile", queue="kept", command=["x"])
        done, _ = await asyncio.gather(kernel.compact_journal(keep=0), other.wait())
        assert done.bytes_after < first.bytes_before / 4
        assert done.bytes_after == path.stat().st_size + (tmp_path / "j.db-wal").stat().st_size
        assert (done.path, done.oldest > first.oldest) == (str(path), True)
        assert first.events_removed + done.events_removed == done.oldest - 1
        with pytest.raises(EventsTrimmed):
            async with kernel.events(after=(1, 1)) as events:
                await anext(events)
        alive = as_killed(path)
    found = inspect(alive)
    assert found.sound, found.trouble
    assert {job.name for job in read_state(alive).jobs.values()} == {"job-59", "meanwhile"}
    async with opened(path) as kernel:
        assert (await kernel.describe_job("meanwhile")).status is JobStatus.SUCCEEDED


async def test_young_events_and_those_of_unfinished_jobs_stay(tmp_path: Path) -> None:
    async with opened(tmp_path / "j.db") as kernel:
        await kernel.create_compute_environment("env", backend="null", max_vcpus=64)
        await kernel.create_job_queue("q", priority=1, compute_environments=["env"])
        await kernel.submit_job("waits", queue="q", command=["x"], vcpus=65)
        await filled(kernel, 10)
        await kernel.compact_journal(keep=0)
        done = await kernel.compact_journal(keep=0)
        assert done.events_removed == 0
        async with kernel.events() as events:
            assert (await anext(events)).job_name == "waits"
        await kernel.cancel_job("waits", "no need")
        assert (await kernel.compact_journal(keep=3600)).events_removed == 0
        assert (await kernel.compact_journal()).events_removed == 0  # as the kernel keeps them: seven days
        assert (await kernel.compact_journal(keep=0)).events_removed > 0


async def test_it_never_takes_long_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step deletes or moves a bounded number; others have their turn between any two."""
    free: list[int] = []
    real = FileJournal.give_back

    def step(self: FileJournal) -> bool:
        free.append(self._free_pages())
        return real(self)

    monkeypatch.setattr(FileJournal, "give_back", step)
    async with opened(tmp_path / "j.db") as kernel:
        await filled(kernel)
        await kernel.compact_journal(keep=0)
        await kernel.describe_job_queues()
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.ensure_future(others())
        await kernel.submit_job("more", queue="kept", command=["x"])
        free.clear()
        await kernel.compact_journal(keep=0)
        other.cancel()
    assert turns > len(free) > 1
    assert max(before - after for before, after in itertools.pairwise(free)) <= TRIM_PAGES
    assert free[-1] <= TRIM_PAGES


async def test_what_cannot_be_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path / "j.db") as kernel:
        for keep in (-1, "a", float("nan"), True):
            with pytest.raises(InvalidValue, match="keep"):
                await kernel.compact_journal(keep=keep)  # type: ignore[arg-type]

        def full(self: FileJournal, data: bytes) -> None:
            raise JournalError("no space left")

        with monkeypatch.context() as patch, pytest.raises(JournalError, match="no space"):
            patch.setattr(FileJournal, "snapshot_steps", full)
            await kernel.compact_journal()
        await kernel.compact_journal()
    with pytest.raises(KernelClosed):
        await kernel.compact_journal()


async def test_a_journal_in_memory_lets_events_go_as_well() -> None:
    async with Kernel(backends={"null": NullBackend}) as kernel:
        await kernel.create_compute_environment("env", backend="null", max_vcpus=64)
        done = await kernel.compact_journal(keep=0)
        assert (done.path, done.bytes_before, done.bytes_after) == ("", 0, 0)
        assert done.events_removed > 0


async def test_through_the_control_socket(tmp_path: Path) -> None:
    async with Kernel(tmp_path / "j.db", backends={"null": NullBackend}, control=True) as kernel:
        await filled(kernel, 5)
        async with anybatch.connect(tmp_path / "j.db") as there:
            assert (await there.compact_journal(keep=0)).last == kernel._last_event_id().sequence
