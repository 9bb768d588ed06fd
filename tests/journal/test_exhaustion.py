"""A full disk stops the kernel in order and loses nothing; missing descriptors stop only what needs new ones."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import structlog
from allowed_skips import NEEDS_MOUNT
from anybatch import InlineAttempt, InlineBackend, JobHandle, JobStatus, JournalError, KernelClosed
from anybatch.kernel.backend import AttemptKey
from anybatch.kernel.journal import FileJournal
from damage_rig import events, look, make_journal, mounted, state_at, wal
from kernel_rig import LastingBackend, kernel_on, live, nothing_left, submit, until

pytestmark = pytest.mark.asyncio


class Room(NamedTuple):
    """A folder on a disk that can be filled, but for so many bytes, and emptied again."""

    folder: Path
    fill: Callable[[int], None]
    free: Callable[[], None]


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Room]:
    with mounted(folder, NEEDS_MOUNT, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        filler = folder / "filler"

        def fill(but: int) -> None:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            os.truncate(filler, filler.stat().st_size - but)

        yield Room(folder, fill, filler.unlink)


@contextlib.contextmanager
def small_files(folder: Path) -> Iterator[Room]:
    """No disk, but a limit on the size of each file: the write-ahead file is what grows."""
    folder.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(but: int) -> None:
        log = max((file.stat().st_size for file in folder.glob("*-wal")), default=0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (log + but, before[1]))

    def free() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    try:
        yield Room(folder, fill, free)
    finally:
        free()


@pytest.fixture(params=[small_disk, small_files], ids=["disk", "file size"])
def room(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Room]:
    with request.param(tmp_path / "small") as found:
        yield found


async def test_a_full_disk_stops_the_kernel_and_loses_nothing_that_was_answered(room: Room) -> None:
    path = room.folder / "j.db"
    backend = LastingBackend()
    acknowledged: list[JobHandle] = []
    with nothing_left():
        async with kernel_on(backend, path) as kernel:
            running = await submit(kernel, "running")
            await until(lambda: backend.live)
            waits = [asyncio.ensure_future(running.wait()) for _ in range(2)]
            room.fill(100_000)

            async def submit_many() -> None:
                while len(acknowledged) < 1000:
                    job = await submit(kernel, f"job-{len(acknowledged)}", environment={"FILL": "x" * 5_000})
                    acknowledged.append(job)

            with pytest.raises(KernelClosed, match=r"the kernel has stopped: .*j\.db cannot be written: .*(full|I/O)"):
                await submit_many()
            results = await asyncio.gather(*waits, return_exceptions=True)
            assert [type(result) for result in results] == [KernelClosed] * 2
            with pytest.raises(KernelClosed, match="cannot be written"):
                await kernel.describe_job(running)
            assert "stop" not in backend.calls
        assert backend.closed
        assert len(acknowledged) > 3
        assert len(backend.live) == 4, "attempts go on"
        room.free()
        async with kernel_on(backend, path) as kernel:
            assert kernel.journal_loss is None
            assert (await kernel.describe_job(running)).status is JobStatus.RUNNING
            for job in acknowledged:
                assert (await kernel.describe_job(job)).id == job.id
            await until(lambda: backend.calls.count("start") == 2)
            backend.exit(AttemptKey(running.id, 0, 1))
            assert (await kernel.wait(running)).status is JobStatus.SUCCEEDED
            await submit(kernel, "more")


async def test_a_disk_that_is_too_full_for_a_snapshot_stops_nothing(room: Room) -> None:
    """Only the next recovery is longer: the kernel goes on, and the next snapshot is tried later."""
    path = room.folder / "j.db"
    journal = FileJournal(path)
    journal.begin_epoch(1)
    journal.commit(1, events(1))
    await journal.sync()
    room.fill(200_000)
    with pytest.raises(JournalError, match="cannot be written"):
        journal.put_snapshot(state_at(1, 1_000_000))
    assert not journal.wants_snapshot()
    assert journal.commit(2, events(2)) == 2, "no half-open transaction swallows it"
    await journal.sync()
    room.free()
    journal.put_snapshot(state_at(2))
    await journal.close()
    found = await asyncio.to_thread(look, path)
    found.check()
    assert (found.last, found.loss) == (2, None)


async def test_a_kernel_goes_on_without_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FileJournal, data: bytes) -> None:
        raise JournalError("no room for a snapshot")

    monkeypatch.setattr(FileJournal, "put_snapshot", refuse)
    monkeypatch.setattr(FileJournal, "wants_snapshot", lambda self: True)
    path = tmp_path / "j.db"
    with structlog.testing.capture_logs() as logs:
        async with kernel_on(path=path) as kernel:
            job = await submit(kernel)
            assert (await job.wait()).status is JobStatus.SUCCEEDED
    assert "snapshot_not_written" in {entry["event"] for entry in logs}
    monkeypatch.undo()
    async with kernel_on(path=path) as kernel:
        assert (await kernel.describe_job(job)).status is JobStatus.SUCCEEDED


async def test_a_failed_sync_is_never_taken_for_a_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure the operating system may say that all is well, for it has forgotten what it could not write."""
    path = tmp_path / "j.db"
    journal = FileJournal(path)
    journal.begin_epoch(1)
    journal.commit(1, events(1))
    await journal.sync()
    journal.commit(2, events(2))
    with monkeypatch.context() as broken:

        def fdatasync(fd: int) -> None:
            raise OSError(5, "Input/output error")

        broken.setattr(os, "fdatasync", fdatasync)
        with pytest.raises(JournalError, match="synced to disk: Input/output error"):
            await journal.sync()
    with pytest.raises(JournalError, match="an earlier sync has failed"):
        await journal.sync()
    with pytest.raises(JournalError, match="an earlier sync has failed"):
        await journal.close()
    again = FileJournal(path)
    assert again._mark.found is not None
    assert (again._mark.found.clean, again._mark.found.synced) == (False, 1)
    await again.close()
    (await asyncio.to_thread(look, path)).check()


async def test_closing_after_a_failed_sync_raises_what_the_body_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fdatasync(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with nothing_left():
        async with kernel_on(path=tmp_path / "j.db") as kernel:
            monkeypatch.setattr(os, "fdatasync", fdatasync)
            with pytest.raises(KernelClosed, match="Input/output error"):
                await submit(kernel)
        monkeypatch.undo()


async def test_a_full_log_disk_costs_the_attempt_that_writes_and_nobody_else(tmp_path: Path) -> None:
    async def prints(attempt: InlineAttempt) -> int:
        attempt.write("x" * 100_000)
        return 0

    async def works(attempt: InlineAttempt) -> int:
        return 0

    backend = InlineBackend({"prints": prints, "works": works})
    async with kernel_on(backend, tmp_path / "j.db") as kernel:
        logs = live(kernel).journal.files / "logs"
        with mounted(logs, NEEDS_MOUNT, "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
            first = await (await submit(kernel, command=["prints"])).wait()
            second = await (await submit(kernel, command=["works"])).wait()
        assert (first.status, second.status) == (JobStatus.FAILED, JobStatus.SUCCEEDED)
        assert "No space left" in str(first.reason)


async def test_a_database_that_somebody_else_holds_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """A backup, or a curious `sqlite3`."""
    path = tmp_path / "j.db"
    async with kernel_on(path=path) as kernel:
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        timer = asyncio.get_running_loop().run_in_executor(None, other.execute, "SELECT COUNT(*) FROM log")
        await timer
        other.execute("ROLLBACK")
        other.close()
        assert (await (await submit(kernel)).wait()).status is JobStatus.SUCCEEDED


async def test_without_descriptors_all_goes_on_that_needs_no_new_ones(tmp_path: Path) -> None:
    script = Path(__file__).parent / "scripts" / "no_descriptors.py"
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(script), str(tmp_path / "j.db")],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stdout.endswith("done\n"), done.stdout + done.stderr


async def test_the_write_ahead_file_is_gone_after_a_close_in_order(tmp_path: Path) -> None:
    made = await asyncio.to_thread(make_journal, tmp_path / "j.db")
    assert not wal(made.path).exists()
    assert wal(made.killed).exists()
