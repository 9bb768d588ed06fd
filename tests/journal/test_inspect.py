"""A journal is looked at without touching it, whether a kernel runs on it or not; every damage is told."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from anybatch import JournalDamaged, JournalError, JournalLocked, Kernel
from anybatch.kernel.core.invariants import check_invariants
from anybatch.kernel.core.snapshot import encode
from anybatch.kernel.journal import FileJournal
from anybatch.kernel.journal_compact import compact
from anybatch.kernel.journal_inspect import inspect
from anybatch.kernel.journal_read import read_state
from anybatch.testing.null import NullBackend
from damage_rig import cut, find, flip, untouched, wal
from kernel_rig import as_killed


async def fill(path: Path, jobs: int = 20) -> bytes:
    """A journal with some history, closed in order; returns the state at its end."""
    async with Kernel(path, backends={"null": NullBackend}) as kernel:
        await kernel.create_compute_environment("e", backend="null", exist_ok=True, max_vcpus=2)
        await kernel.create_job_queue("q", priority=1, compute_environments=["e"], exist_ok=True)
        for number in range(jobs):
            await (await kernel.submit_job(f"job-{number}", queue="q", command=["x" * 200], array_size=20)).wait()
        await kernel.submit_job("waits", queue="q", command=["x"], vcpus=1000)
    return encode(read_state(path))


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    asyncio.run(fill(tmp_path / "j.db"))
    return tmp_path / "j.db"


def test_a_sound_journal_is_looked_at_and_not_touched(journal: Path) -> None:
    with untouched(journal.parent):
        found = inspect(journal)
    assert found.sound, found.trouble
    assert (found.kind, found.held_by, found.mark, found.epoch) == ("journal", None, "clean", 1)
    assert (found.jobs, found.unfinished_jobs, found.attempts, found.first) == (21, 1, 0, 1)


@pytest.mark.asyncio
async def test_while_a_kernel_runs_it_is_looked_at_under_its_nose(tmp_path: Path) -> None:
    async with Kernel(tmp_path / "j.db", backends={"null": NullBackend}) as kernel:
        await kernel.create_compute_environment("e", backend="null")
        await kernel.create_job_queue("q", priority=1, compute_environments=["e"])
        for number in range(5):
            await kernel.submit_job(f"job-{number}", queue="q", command=["x"])
            found = inspect(tmp_path / "j.db")
            assert found.sound, found.trouble
            assert found.jobs == number + 1, "all that was answered"
            assert f"process {os.getpid()}" in (found.held_by or "")
            assert found.kernel_id == kernel.id


def test_what_a_kill_left_is_sound(tmp_path: Path) -> None:
    async def killed() -> Path:
        async with Kernel(tmp_path / "j.db", backends={"null": NullBackend}) as kernel:
            await kernel.create_compute_environment("e", backend="null")
            return as_killed(tmp_path / "j.db")

    path = asyncio.run(killed())
    with untouched(path.parent):
        found = inspect(path)
    assert found.sound, found.trouble
    assert found.mark == "open"
    assert found.wal_bytes > 0


def halved(path: Path) -> None:
    cut(path, path.stat().st_size // 2)


def without_the_header(path: Path) -> None:
    path.write_bytes(b"\0" * 4096 + path.read_bytes()[4096:])


def without_the_last_record(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM log WHERE first = (SELECT MAX(first) FROM log)")
        db.execute("DELETE FROM snapshot")
    db.close()


def without_one_record_of_old(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM log WHERE first = (SELECT MIN(first) FROM log WHERE first > 30)")
    db.close()


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (halved, ""),
    (without_the_header, "is not a journal of anybatch"),
    (lambda path: flip(path, find(path, b"job-3")), "is not what was written"),
    (without_the_last_record, "its end is missing"),
    (without_one_record_of_old, "are not there"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_damage_is_told_and_nothing_is_touched(journal: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(journal)
    with untouched(journal.parent):
        found = inspect(journal)
    assert not found.sound
    assert any(words in trouble for trouble in found.trouble), found.trouble


def test_a_missing_end_is_told_with_its_size(journal: Path) -> None:
    last = inspect(journal).last
    without_the_last_record(journal)
    found = inspect(journal)
    assert found.missing == (found.last + 1, last)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "is not there"),
        (lambda path: path.mkdir(), "is not a file"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"nonsense" * 100), "is not a journal of anybatch"),
    ],
)
def test_what_is_no_journal_is_an_error(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    make(tmp_path / "x")
    with pytest.raises(JournalError, match=words):
        inspect(tmp_path / "x")


def test_somebody_who_looks_does_not_keep_a_kernel_out(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look takes the lock for a moment, shared; a kernel that begins in that moment tries again."""
    look = os.open(journal.parent / "j.db.d" / "lock", os.O_RDONLY)
    fcntl.flock(look, fcntl.LOCK_SH)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        fcntl.flock(look, fcntl.LOCK_UN)

    monkeypatch.setattr("anybatch.kernel.journal_place.time.sleep", sleep)
    asyncio.run(fill(journal, jobs=0))
    assert len(waits) == 1
    fcntl.flock(look, fcntl.LOCK_SH)
    monkeypatch.setattr("anybatch.kernel.journal_place.time.sleep", waits.append)
    with pytest.raises(JournalLocked):
        FileJournal(journal)
    os.close(look)


# -- compact ------------------------------------------------------------------------------------------


def test_it_is_smaller_and_says_the_same(journal: Path) -> None:
    before, size = read_state(journal), journal.stat().st_size
    done = asyncio.run(compact(journal, keep_ms=0))
    assert done.bytes_after == journal.stat().st_size < size == done.bytes_before
    assert done.events_removed > 0
    after = read_state(journal)
    check_invariants(after)
    assert after.jobs.keys() == before.jobs.keys()
    assert after.epoch == before.epoch + 1
    found = inspect(journal)
    assert found.sound, found.trouble
    assert (found.first, found.last, found.mark) == (done.oldest, done.last, "clean")


def test_what_is_young_or_needed_by_an_unfinished_job_stays(journal: Path) -> None:
    assert asyncio.run(compact(journal, keep_ms=3_600_000)).events_removed == 0
    done = asyncio.run(compact(journal, keep_ms=0))

    async def events() -> str:
        async with Kernel(journal, backends={"null": NullBackend}) as kernel, kernel.events() as stream:
            async for event in stream:
                if event.job_name == "waits":
                    return event.status
        raise AssertionError

    assert asyncio.run(events()) == "SUBMITTED"
    assert done.events_removed > 0


@pytest.mark.asyncio
async def test_a_journal_in_use_is_left_alone(tmp_path: Path) -> None:
    async with Kernel(tmp_path / "j.db"):
        with pytest.raises(JournalLocked, match=f"process {os.getpid()}"):
            await compact(tmp_path / "j.db", keep_ms=0)


def test_a_damaged_journal_is_left_as_it_is(journal: Path) -> None:
    flip(journal, find(journal, b"job-3"))
    halved(journal)
    with untouched(journal.parent), pytest.raises(JournalDamaged):
        asyncio.run(compact(journal, keep_ms=0))


@pytest.mark.parametrize("at", ["_trim", "pack", "close"])
def test_cut_off_at_any_step_it_can_be_opened(journal: Path, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of the files as a kill at this step would leave them."""
    copies: list[Path] = []
    before = read_state(journal)

    def copy(*_: object, **__: object) -> None:
        copies.append(as_killed(journal))

    if at == "_trim":
        monkeypatch.setattr("anybatch.kernel.journal_compact._trim", copy)
    else:
        real = getattr(FileJournal, at)

        def step(self: FileJournal) -> object:
            done = real(self) if at == "pack" else None
            copy()
            return real(self) if at == "close" else done

        monkeypatch.setattr(FileJournal, at, step)
    asyncio.run(compact(journal, keep_ms=0))
    assert wal(copies[0]).exists()
    found = inspect(copies[0])
    assert found.sound, found.trouble
    assert read_state(copies[0]).jobs.keys() == before.jobs.keys()
    monkeypatch.undo()
    asyncio.run(fill(copies[0], jobs=1))
