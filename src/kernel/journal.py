"""The journal: one ordered, durable log of events, with the snapshots that bound recovery.

A record is one commit: the sequence number of its first event, its time, and its events. Sequence
numbers rise by one per event and never start over; the epoch rises at each open. `commit` hands the
record to the operating system (a killed process loses nothing); `sync` waits until everything committed
so far is on disk (a power cut loses nothing). Who may wait for which is the runtime's business.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sqlite3
import sys
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

import msgspec

from .core.errors import EventsTrimmed, JournalError, JournalLocked
from .core.events import RECORD_VERSION, AnyEvent

APPLICATION_ID: Final = 0x61626A31
"""In the SQLite header, so that `file` and we know a journal from another database ("abj1")."""
SNAPSHOT_BYTES_MIN: Final = 4 << 20
"""Events since the last snapshot before another one is taken."""
CHECKPOINT_BYTES: Final = 16 << 20
"""Written to the write-ahead file before it is folded into the main one, in a thread."""
READ_RECORDS: Final = 256
"""Records read at a time."""
MEMORY_RECORDS_MAX: Final = 200_000
"""Records that a journal in memory keeps; the oldest go first."""

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[AnyEvent])


class Record(msgspec.Struct, frozen=True):
    """One commit: its events have the sequence numbers `first`, `first` + 1, ..."""

    first: int
    epoch: int
    at_ms: int
    events: list[AnyEvent]

    @property
    def last(self) -> int:
        """The sequence number of the last event."""
        return self.first + len(self.events) - 1


class Journal(Protocol):
    """What the runtime needs of a journal. Calls are made from one thread, the event loop's."""

    durable: bool
    """Whether a later process can open it again."""
    last: int
    """The sequence number of the last committed event; 0 when there is none."""
    files: Path
    """The folder for everything that belongs to the journal: logs, the state of backends."""

    @property
    def oldest(self) -> int:
        """The sequence number of the oldest event kept (the next one's when there is none)."""

    def load(self) -> tuple[bytes | None, Iterator[Record]]:
        """The newest snapshot, and the records after it."""

    def begin_epoch(self, epoch: int) -> None:
        """All later commits belong to this epoch."""

    def commit(self, at_ms: int, events: Sequence[AnyEvent]) -> int:
        """Append a record; returns `last`. Raises JournalError: nothing of it was written."""

    async def sync(self) -> int:
        """Wait until all that is committed now is on disk; returns up to which sequence number."""

    def wants_snapshot(self) -> bool:
        """Whether enough has been written since the last snapshot."""

    def put_snapshot(self, data: bytes) -> None:
        """Keep the state as of `last`."""

    def read(self, after: int) -> list[Record]:
        """Some records (at most READ_RECORDS) with events after this sequence number, in order; [] at the end.

        The first may begin with events up to `after`, which the caller skips.
        """

    def epoch_of(self, sequence: int) -> int:
        """The epoch of an event."""

    async def close(self) -> None:
        """Let go of it, everything synced."""


class MemoryJournal:
    """A journal for tests and throw-away runs: nothing is written, everything is kept while it is open."""

    durable = False

    def __init__(self, files: Path) -> None:
        self.files = files
        self.last = 0
        self._epoch = 0
        self._records: list[Record] = []

    @property
    def oldest(self) -> int:
        return self._records[0].first if self._records else self.last + 1

    def load(self) -> tuple[bytes | None, Iterator[Record]]:
        return None, iter(())

    def begin_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def commit(self, at_ms: int, events: Sequence[AnyEvent]) -> int:
        if len(self._records) >= MEMORY_RECORDS_MAX:
            del self._records[: MEMORY_RECORDS_MAX // 2]
        self._records.append(Record(self.last + 1, self._epoch, at_ms, list(events)))
        self.last += len(events)
        return self.last

    async def sync(self) -> int:
        return self.last

    def wants_snapshot(self) -> bool:
        return False

    def put_snapshot(self, data: bytes) -> None:
        pass

    def read(self, after: int) -> list[Record]:
        if after + 1 < self.oldest:
            raise EventsTrimmed((self._epoch, after), (self._epoch, self.oldest))
        at = bisect_right(self._records, after, key=lambda record: record.last)
        return self._records[at : at + READ_RECORDS]

    def epoch_of(self, sequence: int) -> int:
        return self._epoch

    async def close(self) -> None:
        pass


class FileJournal:
    """A journal in one SQLite file (write-ahead log mode); `<path>.d` beside it holds logs and backends' state.

    Commits are written on the calling thread (tens of microseconds); syncs, checkpoints in a thread.

    Raises:
        JournalLocked: another kernel holds it.
        JournalError: it is no journal, of a newer version, or cannot be read or written.
    """

    durable = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self.files = self.path.with_name(self.path.name + ".d")
        try:
            self.files.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as e:
            raise JournalError(f"cannot make the folder {self.files}: {e.strerror}") from e
        self._lock = _lock(self.files / "lock", self.path)
        try:
            self._open()
        except BaseException:
            if hasattr(self, "_db"):
                self._db.close()
            os.close(self._lock)
            raise

    def _open(self) -> None:
        new = not self.path.exists()
        try:
            self._db = _connect(self.path)
            self._prepare(new=new)
            row = self._db.execute("SELECT first, count FROM log ORDER BY first DESC LIMIT 1").fetchone()
            kept = self._db.execute("SELECT MAX(seq) FROM snapshot").fetchone()[0] or 0
            self.last = max(row[0] + row[1] - 1 if row else 0, kept)
            self._epochs = self._db.execute("SELECT first, epoch FROM epoch ORDER BY first").fetchall()
            self._since_snapshot = self._db.execute(
                "SELECT TOTAL(LENGTH(data)) FROM log WHERE first > ?", (kept,)
            ).fetchone()[0]
            size = self._db.execute("SELECT LENGTH(data) FROM snapshot WHERE seq = ?", (kept,)).fetchone()
        except sqlite3.Error as e:
            raise JournalError(f"{self.path} cannot be used as a journal: {e}") from e
        self._snapshot_bytes = size[0] if size else 0
        self._since_checkpoint = 0
        self._epoch = self._epochs[-1][1] if self._epochs else 0
        self._wal = os.open(f"{self.path}-wal", os.O_RDONLY)
        _sync_folder(self.path.parent)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="anybatch-journal")
        self._closing = threading.Event()

    def _prepare(self, *, new: bool) -> None:
        db = self._db
        if not new:
            found = db.execute("PRAGMA application_id").fetchone()[0]
            tables = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
            if found != APPLICATION_ID and tables:
                raise JournalError(
                    f"{self.path} is an SQLite database but not a journal of anybatch; give another path"
                )
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA wal_autocheckpoint=0")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > RECORD_VERSION:
            text = (
                f"{self.path} has record version {version}; this anybatch reads up to {RECORD_VERSION}: use a newer one"
            )
            raise JournalError(text)
        if not version:
            db.executescript(
                f"""
                BEGIN;
                PRAGMA application_id = {APPLICATION_ID};
                PRAGMA user_version = {RECORD_VERSION};
                CREATE TABLE log (
                    first INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, count INTEGER NOT NULL, data BLOB NOT NULL
                );
                CREATE TABLE epoch (first INTEGER PRIMARY KEY, epoch INTEGER NOT NULL);
                CREATE TABLE snapshot (seq INTEGER PRIMARY KEY, data BLOB NOT NULL);
                COMMIT;
                """
            )

    @property
    def oldest(self) -> int:
        return self._db.execute("SELECT MIN(first) FROM log").fetchone()[0] or self.last + 1

    def load(self) -> tuple[bytes | None, Iterator[Record]]:
        row = self._db.execute("SELECT seq, data FROM snapshot ORDER BY seq DESC LIMIT 1").fetchone()
        return (row[1] if row else None), self._after(row[0] if row else 0)

    def _after(self, sequence: int) -> Iterator[Record]:
        while records := self.read(sequence):
            yield from records
            sequence = records[-1].last

    def begin_epoch(self, epoch: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO epoch VALUES (?, ?)", (self.last + 1, epoch))
        self._epochs.append((self.last + 1, epoch))
        self._epoch = epoch

    def commit(self, at_ms: int, events: Sequence[AnyEvent]) -> int:
        data = _ENCODER.encode(events)
        try:
            self._db.execute("INSERT INTO log VALUES (?, ?, ?, ?)", (self.last + 1, at_ms, len(events), data))
        except sqlite3.Error as e:
            raise JournalError(f"{self.path} cannot be written: {e}") from e
        self.last += len(events)
        self._since_snapshot += len(data)
        self._since_checkpoint += len(data) + 4096
        if self._since_checkpoint > CHECKPOINT_BYTES:
            self._since_checkpoint = 0
            self._thread.submit(self._checkpoint)
        return self.last

    async def sync(self) -> int:
        last = self.last
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, os.fdatasync, self._wal)
        except OSError as e:
            raise JournalError(f"{self.path} cannot be synced to disk: {e.strerror}") from e
        return last

    def _checkpoint(self) -> None:
        """Fold the write-ahead file into the main one. A failure costs space only; the next one tries again."""
        if not self._closing.is_set():
            db = _connect(self.path)
            try:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            except sqlite3.Error:
                pass
            finally:
                db.close()

    def wants_snapshot(self) -> bool:
        return bool(self._since_snapshot > max(SNAPSHOT_BYTES_MIN, 2 * self._snapshot_bytes))

    def put_snapshot(self, data: bytes) -> None:
        try:
            self._db.execute("BEGIN")
            self._db.execute("INSERT OR REPLACE INTO snapshot VALUES (?, ?)", (self.last, data))
            self._db.execute("DELETE FROM snapshot WHERE seq < ?", (self.last,))
            self._db.execute("COMMIT")
        except sqlite3.Error as e:
            raise JournalError(f"{self.path} cannot be written: {e}") from e
        self._since_snapshot = 0
        self._snapshot_bytes = len(data)
        self._since_checkpoint += len(data)

    def read(self, after: int) -> list[Record]:
        oldest = self.oldest
        if after + 1 < oldest:
            raise EventsTrimmed((self.epoch_of(after), after), (self.epoch_of(oldest), oldest))
        rows = self._db.execute(
            "SELECT first, at_ms, data FROM log WHERE first >= "
            "(SELECT COALESCE(MAX(first), 0) FROM log WHERE first <= ?) ORDER BY first LIMIT ?",
            (after + 1, READ_RECORDS),
        ).fetchall()
        try:
            records = [Record(first, self.epoch_of(first), at_ms, _DECODER.decode(data)) for first, at_ms, data in rows]
        except msgspec.MsgspecError as e:
            raise JournalError(f"{self.path}: a record after event {after} cannot be read: {e}") from e
        return [record for record in records if record.last > after]

    def epoch_of(self, sequence: int) -> int:
        at = bisect_right(self._epochs, sequence, key=lambda row: row[0])
        return int(self._epochs[at - 1][1]) if at else 0

    async def close(self) -> None:
        self._closing.set()
        try:
            await self.sync()
        finally:
            self._thread.shutdown()
            os.close(self._wal)
            self._db.close()
            os.close(self._lock)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)


def _sync_folder(folder: Path) -> None:
    """Make new names in a folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _lock(path: Path, journal: Path) -> int:
    """Hold the journal's lock file for as long as the descriptor is open."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise JournalError(f"cannot open the lock file {path}: {e.strerror}") from e
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(fd, 4096).decode(errors="replace")
        os.close(fd)
        raise JournalLocked(f"{journal} is held by another kernel: {holder or 'unknown'}") from None
    text = json.dumps({"pid": os.getpid(), "host": os.uname().nodename, "command": _command_line()})
    os.ftruncate(fd, 0)
    os.pwrite(fd, text.encode(), 0)
    return fd


def _command_line() -> str:
    return " ".join(sys.argv)[:200]
