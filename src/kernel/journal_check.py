"""Before a journal is opened: what is there is looked at without touching it, and damage is refused.

With `accept_loss` a damaged journal is made anew from what can be read of it; the damaged files are kept.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from .core.errors import JournalDamaged, JournalError
from .core.events import RECORD_VERSION
from .journal_db import (
    APPLICATION_ID,
    BACKUP_ID,
    are_tables,
    clear,
    connect,
    create,
    epoch_crc,
    finish,
    is_whole,
    read_snapshot,
    record_crc,
)
from .journal_mark import Mark
from .journal_place import sync_folder
from .journal_types import JournalLoss

CHECK_BYTES_MAX: Final = 1 << 30
"""Up to this size every page is looked at when a journal is opened (some 2 GB/s); of a larger one, what is read."""
MAGIC: Final = b"SQLite format 3\0"

RECORDS: Final = "SELECT first, at_ms, count, crc, data FROM log "


class Survey(msgspec.Struct):
    """What can be read. The state can be rebuilt up to event `readable`, from the snapshot at event `base` (0: none).

    `expected`: how far the database itself says that it goes. `wal`: whether the write-ahead file was read too.
    """

    wal: bool
    base: int = 0
    readable: int = 0
    expected: int = 0
    trouble: str | None = None


def check_kind(path: Path) -> str | None:
    """What is wrong with the kind of a file, by its header; None: nothing. An empty file is a journal to be.

    Raises:
        JournalError: it is of a newer version, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(100)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise JournalError(f"{path} cannot be read: {e.strerror}") from e
    if not head:
        return None
    if not head.startswith(MAGIC) or len(head) < 100:
        return "is not a journal of anybatch, nor any other SQLite database"
    if int.from_bytes(head[68:72], "big") != APPLICATION_ID:
        if int.from_bytes(head[68:72], "big") == BACKUP_ID:
            return "is a backup of a journal; `anybatch journal restore` makes a journal of it"
        return "is an SQLite database but not a journal of anybatch"
    check_version(path, int.from_bytes(head[60:64], "big"))
    return None


def check_version(path: Path, version: int) -> None:
    """Raise JournalError for a journal of a newer version."""
    if version > RECORD_VERSION:
        text = f"{path} has record version {version}; this anybatch reads up to {RECORD_VERSION}: use a newer one"
        raise JournalError(text)


def admit(path: Path, folder: Path, mark: Mark | None, *, accept_loss: bool) -> JournalLoss | None:
    """Return if the journal can be opened as it is, or made where there is none, or now that a loss is accepted.

    Raises:
        JournalDamaged: what was committed is missing, or cannot be read. Nothing has been changed.
        JournalError: it is of a newer version.
    """
    known = mark.synced if mark is not None else 0
    size = path.stat().st_size if path.exists() else None
    if size:
        found = examine(path, folder / "check", known)
    else:
        found = Survey(False, trouble=f"the file is {'not there' if size is None else 'empty'}" if known else None)
    if found.trouble is None and found.readable >= known:
        return None
    first, last = found.readable + 1, max(known, found.expected, found.readable)
    why = found.trouble or about_tail(path, mark)
    lost = f"{last - first + 1} events that were committed are missing ({first} to {last})"
    text = f"{path} is damaged: {why}; {lost if last >= first else 'all events that are known of can be read'}."
    if not accept_loss:
        when = f" The last sync was at {_time(mark.at_ms)}, in epoch {mark.epoch}." if mark is not None else ""
        advice = (
            f"{when} Nothing has been changed. Restore {path.name} and the files beside it from a backup, or go on "
            "with what can be read: Kernel(path, accept_loss=True), for one start; the damaged files are kept"
        )
        raise JournalDamaged(f"{text}{advice}", events=last - first + 1, first=first, last=last)
    try:
        kept = set_aside(path, folder)
        _rebuild(path, kept, found)
    except (sqlite3.Error, OSError) as e:
        raise JournalError(f"{text} It could not be made anew: {e}") from e
    return JournalLoss(why=why, events=last - first + 1, first=first, last=last, kept=kept)


def about_tail(path: Path, mark: Mark | None) -> str:
    """What is wrong with a journal that ends before its mark."""
    if mark is not None and not mark.clean and not Path(f"{path}-wal").exists():
        return f"its write-ahead file {path.name}-wal is not there"
    return "its end is missing"


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")


def examine(path: Path, place: Path, known: int) -> Survey:
    """Survey the journal as SQLite would open it; without its write-ahead file, if more can be read that way.

    `place`: a folder of its own for the time being, best on the same file system.
    """
    found = survey(path, place, wal=True)
    wrong = check_kind(path)
    if wrong is not None:
        found.trouble = f"it {wrong}"
    if found.trouble is not None or found.readable < known:
        alone = survey(path, place, wal=False)
        if alone.readable > found.readable:
            alone.trouble = found.trouble or about_tail(path, None)
            alone.expected = max(alone.expected, found.expected)
            return alone
    return found


@contextlib.contextmanager
def view(path: Path, place: Path, *, wal: bool) -> Iterator[sqlite3.Connection]:
    """A connection that only reads, under names of its own, so that SQLite makes and removes its files there."""
    shutil.rmtree(place, ignore_errors=True)
    try:
        place.mkdir(mode=0o700)
        for suffix in ("", "-wal") if wal else ("",):
            if os.path.exists(f"{path}{suffix}"):
                _link(f"{path}{suffix}", f"{place / 'journal'}{suffix}")
        with contextlib.closing(connect(place / "journal", read_only=True)) as db:
            db.execute("PRAGMA writable_schema=ON")  # so that a file that is too short can be read as far as it goes
            yield db
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def survey(path: Path, place: Path, *, wal: bool) -> Survey:
    """What can be read of the journal, with or without its write-ahead file."""
    found = Survey(wal)
    try:
        with view(path, place, wal=wal) as db:
            _survey(path, db, found)
    except (sqlite3.Error, ValueError, TypeError) as e:
        found.trouble = found.trouble or str(e)
    except OSError as e:
        raise JournalError(f"{path} cannot be looked at: {e.strerror}") from e
    return found


def survey_open(path: Path, db: sqlite3.Connection) -> Survey:
    """The same through a connection that there is."""
    found = Survey(wal=True)
    try:
        _survey(path, db, found)
    except (sqlite3.Error, ValueError, TypeError) as e:
        found.trouble = found.trouble or str(e)
    return found


def _survey(path: Path, db: sqlite3.Connection, found: Survey) -> None:
    check_version(path, db.execute("PRAGMA user_version").fetchone()[0])
    if path.stat().st_size <= CHECK_BYTES_MAX:
        said = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if said != "ok":
            found.trouble = " ".join(said.removeprefix("*** in database main ***").split())
    tables = tuple(sql for (sql,) in db.execute("SELECT sql FROM sqlite_master ORDER BY name"))
    if not are_tables(tables):
        found.trouble = found.trouble or "its tables are not those of a journal"
    read_through(db, found)


def read_through(db: sqlite3.Connection, found: Survey) -> None:
    """Everything that a recovery needs. Stops at the first thing that cannot be read."""
    unreadable = 0
    for (seq,) in db.execute("SELECT seq FROM snapshot ORDER BY seq DESC").fetchall():
        if snapshot_row(db, seq) is not None:
            found.base = seq
            break
        unreadable = max(unreadable, seq)
    found.readable = found.base
    try:
        for first, _, count, _, _ in records(db, found.base):
            found.readable = first + count - 1
    except Unreadable as e:
        found.expected = found.readable + 1
        found.trouble = found.trouble or str(e)
    if found.readable < unreadable:
        found.trouble = found.trouble or f"the snapshot at event {unreadable} is not what was written"
    for record in db.execute(f"{RECORDS} ORDER BY first DESC LIMIT 1"):
        if is_whole_record(record):
            found.expected = record[0] + record[2] - 1
    for first, epoch, crc in db.execute("SELECT first, epoch, crc FROM epoch"):
        if not is_whole(epoch_crc, first, epoch, said=crc):
            found.trouble = found.trouble or "an entry of its list of epochs is not what was written"


class Unreadable(Exception):
    """A record is not there, or is not what was written."""


def records(db: sqlite3.Connection, after: int) -> Iterator[tuple[Any, ...]]:
    """The records after a snapshot, each whole and with no gap before it.

    Raises:
        Unreadable: at the first that is not.
    """
    for record in db.execute(f"{RECORDS} WHERE first > ? ORDER BY first", (after,)):
        if not is_whole_record(record):
            raise Unreadable(f"the record of event {after + 1} is not what was written")
        if record[0] != after + 1:
            raise Unreadable(f"events {after + 1} to {record[0] - 1} are not there")
        after += record[2]
        yield record


def is_whole_record(record: tuple[Any, ...]) -> bool:
    """Whether a row of the log is what was written."""
    first, at_ms, count, crc, data = record
    return is_whole(record_crc, first, at_ms, count, data, said=crc)


def snapshot_row(db: sqlite3.Connection, seq: int) -> tuple[int, int, bytes] | None:
    """A snapshot that can be read."""
    with contextlib.suppress(sqlite3.Error, TypeError):
        return read_snapshot(db, seq)
    return None


# -- going on with a loss ---------------------------------------------------------------------------


def set_aside(path: Path, folder: Path) -> Path | None:
    """Give the files that there are second names in a folder of their own, which is returned."""
    there = [suffix for suffix in ("", "-wal") if os.path.exists(f"{path}{suffix}")]
    if not there:
        return None
    number = 1
    while (kept := folder / f"damaged-{number}").exists():
        number += 1
    kept.mkdir(mode=0o700)
    for suffix in there:
        _link(f"{path}{suffix}", f"{kept / path.name}{suffix}")
    sync_folder(kept)
    sync_folder(folder)
    return kept


def _rebuild(path: Path, kept: Path | None, found: Survey) -> None:
    """Put a new journal in the place of a damaged one, with what can be read of it."""
    new = path.with_name(path.name + ".new")
    clear(new)
    db = create(new)
    try:
        if kept is not None and found.readable:
            with view(kept / path.name, kept / "check", wal=found.wal) as source:
                _copy(source, db, found)
        finish(db, new, path)
    finally:
        db.close()


def _copy(source: sqlite3.Connection, db: sqlite3.Connection, found: Survey) -> None:
    db.execute("BEGIN")
    row = snapshot_row(source, found.base)
    if row is not None:
        db.execute("INSERT INTO snapshot VALUES (?, ?, ?)", row)
    with contextlib.suppress(sqlite3.Error, Unreadable):  # as it was when it was surveyed
        for record in records(source, found.base):
            db.execute("INSERT INTO log VALUES (?, ?, ?, ?, ?)", record)
    with contextlib.suppress(sqlite3.Error):  # what came before is history: as much of it as hangs together
        first = found.base + 1
        for record in source.execute(f"{RECORDS} WHERE first <= ? ORDER BY first DESC", (found.base,)):
            if not is_whole_record(record) or record[0] + record[2] != first:
                break
            db.execute("INSERT INTO log VALUES (?, ?, ?, ?, ?)", record)
            first = record[0]
    with contextlib.suppress(sqlite3.Error):
        for first, epoch, crc in source.execute("SELECT first, epoch, crc FROM epoch"):
            if is_whole(epoch_crc, first, epoch, said=crc):
                db.execute("INSERT INTO epoch VALUES (?, ?, ?)", (first, epoch, crc))
    db.execute("COMMIT")
