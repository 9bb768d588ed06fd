"""Snapshots that are too large to be written at once: in pieces, between commits, and all or nothing."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from anybatch.kernel.core.events import AnyEvent, KernelOpened
from anybatch.kernel.journal import SNAPSHOT_PART, FileJournal

LARGE = bytes(range(256)) * (4 * SNAPSHOT_PART // 256) + b"end"
OTHER = LARGE[::-1]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[FileJournal]:
    opened = open_journal(tmp_path)
    yield opened
    opened._close()


def open_journal(folder: Path) -> FileJournal:
    journal = FileJournal(folder / "j.db")
    journal.begin_epoch(journal.epoch + 1)
    return journal


def commit(journal: FileJournal, count: int = 1) -> None:
    events: list[AnyEvent] = [KernelOpened(1, "k")]
    for _ in range(count):
        journal.commit(1000, events)


def parts(folder: Path) -> int:
    with contextlib.closing(sqlite3.connect(folder / "j.db")) as db, db:
        return int(db.execute("SELECT COUNT(*) FROM snapshot_part").fetchone()[0])


def test_commits_come_between_the_pieces_of_a_large_snapshot(journal: FileJournal) -> None:
    commit(journal, 3)
    steps = 0
    for _ in journal.snapshot_steps(LARGE):
        commit(journal)
        steps += 1
    assert steps >= len(LARGE) // SNAPSHOT_PART
    data, records = journal.load()
    assert data == LARGE
    assert [record.first for record in records] == list(range(4, 4 + steps))


def test_one_that_is_not_finished_does_not_count_and_leaves_nothing(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    commit(journal, 3)
    journal.put_snapshot(b"small")
    commit(journal)
    unfinished = journal.snapshot_steps(LARGE)
    for _ in range(3):
        next(unfinished)
    assert journal.load()[0] == b"small"
    assert parts(tmp_path) == 3
    journal._close()  # as little as a kill would: the rows are in the database

    again = open_journal(tmp_path)
    assert again.load()[0] == b"small"
    assert parts(tmp_path) == 0
    again._close()


def test_one_that_was_given_up_is_not_mixed_with_the_next_of_the_same_place(journal: FileJournal) -> None:
    commit(journal, 3)
    given_up = journal.snapshot_steps(LARGE)
    next(given_up)
    journal.put_snapshot(OTHER)
    assert journal.load()[0] == OTHER
    journal.put_snapshot(OTHER)
    assert journal.load()[0] == OTHER


def test_large_ones_are_found_again_and_the_pieces_of_old_ones_go(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for data in (LARGE, OTHER, LARGE):
        commit(journal)
        journal.put_snapshot(data)
    assert parts(tmp_path) == 2 * (len(LARGE) // SNAPSHOT_PART + 1)
    journal._close()

    again = open_journal(tmp_path)
    assert [again.load(older)[0] for older in range(3)] == [LARGE, OTHER, None]
    again._close()


def test_a_damaged_piece_makes_the_snapshot_unreadable_and_the_one_before_it_serves(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for data in (LARGE, OTHER):
        commit(journal)
        journal.put_snapshot(data)
    journal._close()
    with contextlib.closing(sqlite3.connect(tmp_path / "j.db")) as db, db:
        db.execute("UPDATE snapshot_part SET data = zeroblob(10) WHERE id = (SELECT MAX(id) FROM snapshot_part)")

    again = open_journal(tmp_path)
    assert again.load()[0] == LARGE
    again._close()


def test_a_journal_without_the_table_gets_it(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    commit(journal)
    journal.put_snapshot(b"small")
    journal._close()
    with contextlib.closing(sqlite3.connect(tmp_path / "j.db")) as db, db:
        db.execute("DROP TABLE snapshot_part")

    again = open_journal(tmp_path)
    assert again.load()[0] == b"small"
    commit(again)
    again.put_snapshot(LARGE)
    assert again.load()[0] == LARGE
    again._close()
