"""Old records can be deleted, a few at a time, and never one that a recovery may need."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import anybatch.kernel.journal as journal_module
import pytest
from anybatch import EventsTrimmed
from anybatch.kernel.journal import FileJournal, Journal, MemoryJournal
from anybatch.kernel.journal_types import TRIM_RECORDS
from damage_rig import events, find, flip, look, state_at

pytestmark = pytest.mark.asyncio


def trim_all(journal: Journal, before: int) -> list[int]:
    """What each call returned, up to the one that changed nothing."""
    found = [journal.oldest]
    while (oldest := journal.trim(before)) > found[-1]:
        found.append(oldest)
    return found


def filled(
    journal: FileJournal | MemoryJournal, records: int, snapshots: tuple[int, ...] = (), size: int = 100
) -> None:
    """Records of three events each."""
    journal.begin_epoch(journal.epoch + 1)
    for n in range(records):
        journal.commit(n, events(journal.last + 1, 3, size))
        if n in snapshots:
            journal.put_snapshot(state_at(journal.last))


@pytest.mark.parametrize("before", [1, 2, 3, 4, 100, 301, 302])
async def test_records_go_whose_events_are_all_before(tmp_path: Path, before: int) -> None:
    file, memory = FileJournal(tmp_path / "j.db"), MemoryJournal(tmp_path)
    for journal in (file, memory):
        filled(journal, 100, snapshots=(98, 99))
        oldest = trim_all(journal, before)[-1]
        kept = 300 if journal is memory else 297  # the older snapshot's place
        assert oldest == min((before - 1) // 3 * 3, kept) + 1
        assert journal.oldest == oldest
        assert next(iter(journal.read(oldest - 1))).first == oldest if oldest <= 300 else journal.read(300) == []
        if oldest > 1:
            with pytest.raises(EventsTrimmed) as error:
                journal.read(oldest - 2)
            assert error.value.oldest == (1, oldest)
        assert journal.commit(5, events(301)) == 301
        await journal.close()


async def test_a_call_deletes_a_bounded_number(tmp_path: Path) -> None:
    file, memory = FileJournal(tmp_path / "j.db"), MemoryJournal(tmp_path)
    for journal in (file, memory):
        filled(journal, 3 * TRIM_RECORDS, snapshots=(3 * TRIM_RECORDS - 2, 3 * TRIM_RECORDS - 1))
        steps = trim_all(journal, journal.last + 1)
        assert len(steps) == 4
        assert max(b - a for a, b in itertools.pairwise(steps)) <= 3 * TRIM_RECORDS
        await journal.close()


@pytest.mark.parametrize("snapshots", [(), (150,)])
async def test_without_two_snapshots_all_is_kept(tmp_path: Path, snapshots: tuple[int, ...]) -> None:
    journal = FileJournal(tmp_path / "j.db")
    filled(journal, 200, snapshots)
    assert trim_all(journal, journal.last + 1) == [1]
    await journal.close()
    (await asyncio.to_thread(look, journal.path)).check(100)


async def test_after_a_trim_the_newest_snapshot_may_still_be_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    journal = FileJournal(path)
    filled(journal, 200, (100, 150))
    oldest = trim_all(journal, journal.last + 1)[-1]
    assert oldest == 101 * 3 + 1
    await journal.close()
    (await asyncio.to_thread(look, path)).check(100)
    flip(path, find(path, state_at(151 * 3)[:60]) + 30)
    found = await asyncio.to_thread(look, path)
    found.check(100)
    assert (found.snapshot, found.last) == (state_at(101 * 3), 600)


async def test_epochs_of_what_is_kept_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    for _ in range(6):
        journal = FileJournal(path)
        filled(journal, 10, (9,))
        await journal.close()
    journal = FileJournal(path)
    assert trim_all(journal, 101)[-1] == 100
    await journal.close()
    journal = FileJournal(path)
    assert [journal.epoch_of(n) for n in (100, 120, 121, 150, 151, 180)] == [4, 4, 5, 5, 6, 6]
    assert journal.epoch == 6
    assert len(journal._epochs) == 3
    await journal.close()


async def test_the_space_is_used_again_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "CHECKPOINT_BYTES", 200_000)
    journal = FileJournal(tmp_path / "j.db")
    journal.begin_epoch(1)

    def pages() -> int:
        return int(journal._db.execute("PRAGMA page_count").fetchone()[0])

    sizes = []
    for _ in range(6):
        for _ in range(200):
            journal.commit(1, events(journal.last + 1, 1, 5_000))
        sizes.append(pages())
        for _ in range(2):
            journal.commit(1, events(journal.last + 1))
            journal.put_snapshot(state_at(journal.last))
        trim_all(journal, journal.last - 1)
    assert max(sizes) < 1.3 * sizes[0]
    while True:  # as retention goes on when nothing is old enough
        before = pages()
        journal.trim(1)
        if pages() == before:
            break
        assert before - pages() <= journal_module.TRIM_PAGES + 1
    assert pages() < sizes[0] / 2
    await journal.close()
    found = await asyncio.to_thread(look, journal.path)
    assert found.last == 6 * 202
    assert journal.path.stat().st_size < sizes[0] * 4096 / 2


async def test_a_trim_that_fails_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    journal = FileJournal(path)
    filled(journal, 50, (40, 49))
    journal._db.execute("PRAGMA query_only=ON")
    assert journal.trim(100) == 1
    journal._db.execute("PRAGMA query_only=OFF")
    assert journal.commit(1, events(journal.last + 1)) == 151
    assert journal.trim(100) == 100
    await journal.close()
