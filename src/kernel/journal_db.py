"""The journal's database: its tables, their checksums, and how connections to it are made."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from .core.events import RECORD_VERSION
from .journal_place import sync_folder

APPLICATION_ID: Final = 0x61626A31
"""In the SQLite header, so that `file` and we know a journal from another database ("abj1")."""
BACKUP_ID: Final = 0x61626A62
"""The same for a backup ("abjb"), so that none is opened as a journal: its kernel would be the original's double."""
BUSY_S: Final = 5.0
"""How long to wait where somebody else (a backup, a curious `sqlite3`) holds the database."""

TABLES: Final = (
    "CREATE TABLE epoch (first INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, crc INTEGER NOT NULL)",
    "CREATE TABLE log (first INTEGER PRIMARY KEY, at_ms INTEGER, count INTEGER, crc INTEGER, data BLOB)",
    "CREATE TABLE snapshot (seq INTEGER PRIMARY KEY, crc INTEGER NOT NULL, data BLOB NOT NULL)",
)
CURSOR_TABLE: Final = (
    "CREATE TABLE cursor (sink TEXT PRIMARY KEY, epoch INTEGER NOT NULL, seq INTEGER NOT NULL) WITHOUT ROWID"
)
"""How far each sink has been served. The first journals lack it, so it is made at open; losing it costs repeats."""
PART_TABLE: Final = "CREATE TABLE snapshot_part (id INTEGER PRIMARY KEY, seq INTEGER NOT NULL, data BLOB NOT NULL)"
"""The pieces of snapshots that are too large to be written at once; their rows in `snapshot`, written last, have no
data of their own. Made at open as well."""
LATER_TABLES: Final = {"cursor": CURSOR_TABLE, "snapshot_part": PART_TABLE}
PARTS: Final = "SELECT data FROM snapshot_part WHERE seq = ? ORDER BY id"
_NUMBERS: Final = struct.Struct("<qqq").pack


def record_crc(first: int, at_ms: int, count: int, data: bytes) -> int:
    """The checksum of a record, its numbers included."""
    return zlib.crc32(data, zlib.crc32(_NUMBERS(first, at_ms, count)))


def snapshot_crc(seq: int, data: bytes) -> int:
    """The checksum of a snapshot."""
    return record_crc(seq, 0, 0, data)


def epoch_crc(first: int, epoch: int) -> int:
    """The checksum of the row that says in which epoch events from `first` on were committed."""
    return record_crc(first, epoch, 0, b"")


def is_whole(crc: Callable[..., int], *columns: Any, said: Any) -> bool:
    """Whether columns are what was written, by this checksum of them. Damaged ones may be of any type."""
    try:
        return bool(crc(*columns) == said)
    except (TypeError, struct.error):
        return False


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode that any thread may use, one at a time. It never makes the file."""
    address = f"{path.as_uri()}?mode={'ro' if read_only else 'rw'}"
    db = sqlite3.connect(address, uri=True, isolation_level=None, timeout=BUSY_S, check_same_thread=False)
    try:
        db.execute("PRAGMA synchronous=NORMAL")  # every checkpoint is synced, commits are not: we do that
        db.execute("PRAGMA wal_autocheckpoint=0")
        db.execute("PRAGMA temp_store=MEMORY")  # no descriptors for temporary files
        db.execute("PRAGMA secure_delete=OFF")  # freed pages are not written over
    except BaseException:
        db.close()
        raise
    return db


def create(path: Path, application_id: int = APPLICATION_ID) -> sqlite3.Connection:
    """Make an empty journal in a place where there is nothing, and return a connection to it. It is not synced yet."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    db = connect(path)
    try:
        db.execute("PRAGMA journal_mode=MEMORY")  # `finish` syncs it as a whole
        db.execute("PRAGMA synchronous=OFF")
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.execute("BEGIN")
        db.execute(f"PRAGMA application_id={application_id}")
        db.execute(f"PRAGMA user_version={RECORD_VERSION}")
        for table in (*TABLES, *LATER_TABLES.values()):
            db.execute(table)
        db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db


def finish(db: sqlite3.Connection, new: Path, path: Path) -> None:
    """Put a new journal in its place, whole and on disk. What was there is replaced."""
    db.execute("PRAGMA journal_mode=WAL")
    db.close()
    fd = os.open(new, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    # Nothing of another database may be taken for a part of this one.
    for suffix in ("-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{suffix}")
    os.replace(new, path)
    sync_folder(path.parent)


def make(path: Path) -> None:
    """Make an empty journal: afterwards it is there, whole and on disk, or it is not there."""
    new = path.with_name(path.name + ".new")
    clear(new)
    finish(create(new), new, path)


def add_tables(db: sqlite3.Connection) -> None:
    """Give a journal of the first days the tables that it lacks."""
    there = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    for name, table in LATER_TABLES.items():
        if name not in there:
            db.execute(table)


def are_tables(found: Sequence[str]) -> bool:
    """Whether these statements, as the database gives them, made the tables of a journal."""
    return {*TABLES} <= {*found} <= {*TABLES, *LATER_TABLES.values()}


def read_snapshot(db: sqlite3.Connection, seq: int) -> tuple[int, int, bytes] | None:
    """A snapshot's sequence number, checksum and data, if it is what was written."""
    for crc, data in db.execute("SELECT crc, data FROM snapshot WHERE seq = ?", (seq,)).fetchall():
        if data == b"" and has_parts(db):
            data = b"".join(part for (part,) in db.execute(PARTS, (seq,)))
        if is_whole(snapshot_crc, seq, data, said=crc):
            return seq, crc, data
    return None


def has_parts(db: sqlite3.Connection) -> bool:
    """Whether the journal has the table for pieces of snapshots."""
    return bool(db.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'snapshot_part'").fetchone()[0])


def clear(new: Path) -> None:
    """Remove what an attempt at making a journal has left."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{new}{suffix}")
