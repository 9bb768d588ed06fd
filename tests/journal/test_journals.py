"""What every journal does: the one in memory and the one on disk go through the same tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from anybatch import EventsTrimmed
from anybatch.kernel.core.events import AnyEvent, KernelOpened, ParentEnded, ParentHeld
from anybatch.kernel.journal import FileJournal, Journal, MemoryJournal
from anybatch.kernel.journal_types import READ_RECORDS

pytestmark = pytest.mark.asyncio

KINDS: dict[str, Callable[[Path], Journal]] = {
    "file": lambda folder: FileJournal(folder / "j.db"),
    "memory": lambda folder: MemoryJournal(folder),
}


@pytest_asyncio.fixture(params=sorted(KINDS))
async def journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Journal]:
    made = KINDS[request.param](tmp_path)
    yield made
    await made.close()


def some(first: int, count: int) -> list[AnyEvent]:
    """Events that tell their sequence numbers."""
    return [ParentHeld(first + n) for n in range(count)]


def fill(journal: Journal, records: int, size: int = 3) -> None:
    journal.begin_epoch(journal.epoch + 1)
    for n in range(records):
        journal.commit(1000 + n, some(journal.last + 1, size))


async def test_an_empty_journal(journal: Journal) -> None:
    assert (journal.last, journal.oldest, journal.epoch) == (0, 1, 0)
    snapshot, records = journal.load()
    assert (snapshot, list(records), journal.read(0)) == (None, [], [])
    assert await journal.sync() == 0
    assert not journal.wants_snapshot()


async def test_sequence_numbers_rise_by_one_per_event(journal: Journal) -> None:
    journal.begin_epoch(1)
    assert journal.commit(5, some(1, 3)) == 3
    assert journal.commit(5, some(4, 1)) == 4
    assert journal.commit(6, some(5, 2)) == 6
    assert journal.last == 6
    assert [(r.first, r.last, r.epoch, r.at_ms, r.events) for r in journal.read(0)] == [
        (1, 3, 1, 5, some(1, 3)),
        (4, 4, 1, 5, some(4, 1)),
        (5, 6, 1, 6, some(5, 2)),
    ]


@pytest.mark.parametrize(("after", "first"), [(0, 1), (1, 1), (2, 1), (3, 4), (4, 4), (6, 7), (8, 7), (9, None)])
async def test_reading_begins_with_the_record_of_the_next_event(
    journal: Journal, after: int, first: int | None
) -> None:
    fill(journal, 3)
    records = journal.read(after)
    assert (records[0].first if records else None) == first
    assert [record.last for record in records] == [last for last in (3, 6, 9) if last > after]


async def test_events_of_other_kinds_and_texts_come_back_as_they_went_in(journal: Journal) -> None:
    events: list[AnyEvent] = [KernelOpened(1, "käse\0"), ParentHeld(7), ParentEnded(7, False)]
    journal.begin_epoch(1)
    journal.commit(1, events)
    assert journal.read(0)[0].events == events


async def test_a_long_log_is_read_piece_by_piece(journal: Journal) -> None:
    records = READ_RECORDS * 2 + 5
    fill(journal, records, size=1)
    sequence, pieces = 0, list[int]()
    while piece := journal.read(sequence):
        assert piece[0].first == sequence + 1
        pieces.append(len(piece))
        sequence = piece[-1].last
    assert pieces == [READ_RECORDS, READ_RECORDS, 5]


async def test_what_is_committed_is_read_at_once_and_synced_when_asked(journal: Journal) -> None:
    fill(journal, 2)
    assert journal.read(3)[0].events == some(4, 3)
    assert await journal.sync() == 6
    journal.commit(9, some(7, 1))
    assert journal.read(6)[0].first == 7


async def test_an_epoch_is_that_of_its_events(journal: Journal) -> None:
    fill(journal, 2, size=1)
    assert (journal.epoch, journal.epoch_of(1), journal.epoch_of(2)) == (1, 1, 1)


async def test_what_is_trimmed_is_an_error_that_gives_the_oldest_event(journal: Journal) -> None:
    fill(journal, 3)
    journal.put_snapshot(b"a")
    fill(journal, 3)
    journal.put_snapshot(b"b")
    while journal.oldest != (oldest := journal.trim(8)):
        pass
    assert oldest == 7
    assert journal.read(6)[0].first == 7
    with pytest.raises(EventsTrimmed, match="no longer kept") as caught:
        journal.read(5)
    assert caught.value.oldest[1] == 7
    assert caught.value.asked[1] == 5
    assert journal.commit(9, some(19, 1)) == 19


# -- only on disk -------------------------------------------------------------------------------------------


async def test_a_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    first = FileJournal(tmp_path / "j.db")
    fill(first, 2)
    await first.close()

    again = FileJournal(tmp_path / "j.db")
    assert (again.last, again.oldest, again.epoch) == (6, 1, 1)
    again.begin_epoch(2)
    again.commit(1, some(7, 2))
    assert [(record.first, record.epoch) for record in again.read(0)] == [(1, 1), (4, 1), (7, 2)]
    assert [again.epoch_of(n) for n in (1, 6, 7, 8)] == [1, 1, 2, 2]
    await again.close()


async def test_an_epoch_without_a_commit_keeps_no_kernel_out(tmp_path: Path) -> None:
    """What a kill between the two leaves: the epoch has begun, its first event was never written."""
    for epoch in (1, 2, 3):
        journal = FileJournal(tmp_path / "j.db")
        assert journal.epoch == epoch - 1
        journal.begin_epoch(epoch)
        await journal.close()
    journal = FileJournal(tmp_path / "j.db")
    journal.begin_epoch(4)
    journal.commit(1, some(1, 1))
    assert (journal.epoch_of(1), journal.last) == (4, 1)
    await journal.close()


async def test_the_newest_snapshot_and_what_came_after_it(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "j.db")
    fill(journal, 2)
    journal.put_snapshot(b"as of 6")
    journal.commit(1, some(7, 2))
    journal.put_snapshot(b"as of 8")
    journal.commit(2, some(9, 1))
    await journal.close()

    again = FileJournal(tmp_path / "j.db")
    snapshot, records = again.load()
    assert (snapshot, [record.first for record in records]) == (b"as of 8", [9])
    snapshot, records = again.load(older=1)
    assert (snapshot, [record.first for record in records]) == (b"as of 6", [7, 9])
    snapshot, records = again.load(older=2)
    assert (snapshot, [record.first for record in records]) == (None, [1, 4, 7, 9])
    await again.close()


async def test_a_snapshot_at_the_end_leaves_nothing_to_replay(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "j.db")
    fill(journal, 1)
    journal.put_snapshot(b"old")
    journal.put_snapshot(b"new")
    await journal.close()
    again = FileJournal(tmp_path / "j.db")
    snapshot, records = again.load()
    assert (snapshot, list(records), again.last) == (b"new", [], 3)
    await again.close()


async def test_a_snapshot_is_wanted_after_enough_events(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "j.db")
    journal.begin_epoch(1)
    big: list[AnyEvent] = [KernelOpened(1, "x" * (1 << 20))]
    wants = []
    for _ in range(5):
        journal.commit(1, big)
        wants.append(journal.wants_snapshot())
    assert wants == [False, False, False, True, True]
    journal.put_snapshot(b"")
    assert not journal.wants_snapshot()
    await journal.close()
