"""The journal: one ordered, durable log of events, with the snapshots that bound recovery.

A record is one commit: the sequence number of its first event, its time, and its events. Sequence
numbers rise by one per event and never start over; the epoch rises at each open. `commit` hands the
record to the operating system (a killed process loses nothing); `sync` waits until everything committed
so far is on disk (a power cut loses nothing). Who may wait for which is the runtime's business.

Two snapshots are kept, and the records after the older one, so that one of them may be unreadable.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from .core.errors import EventsTrimmed, JournalDamaged, JournalError
from .core.events import AnyEvent
from .journal_check import admit, check_kind, set_aside
from .journal_db import add_tables, connect, epoch_crc, is_whole, make, read_snapshot, record_crc, snapshot_crc
from .journal_mark import MarkFile
from .journal_memory import MemoryJournal
from .journal_place import bytes_of, check_place, lock, sync_folder
from .journal_types import READ_RECORDS, TRIM_RECORDS, Journal, JournalLoss, Record
from .logs import Log

__all__ = ["FileJournal", "Journal", "JournalLoss", "MemoryJournal", "Record"]

log = Log("anybatch.kernel")

SNAPSHOT_BYTES_MIN: Final = 4 << 20
"""Events since the last snapshot before another one is taken."""
SNAPSHOTS_KEPT: Final = 2
SNAPSHOT_PART: Final = 256 << 10
"""Bytes of a larger snapshot that are written at a time: some 0.5 ms."""
DROP_PARTS: Final = "DELETE FROM snapshot_part WHERE seq NOT IN (SELECT seq FROM snapshot)"
"""Of snapshots that are not kept, or were not finished."""
DROP_PART: Final = (
    "DELETE FROM snapshot_part"
    " WHERE id = (SELECT MIN(id) FROM snapshot_part WHERE seq NOT IN (SELECT seq FROM snapshot))"
)
PAGE_BYTES: Final = 4096
"""A page of the file: what the smallest change writes."""
CHECKPOINT_BYTES: Final = 16 << 20
"""Written to the write-ahead file before it is folded into the main one, in a thread."""
FOLD_AGAIN_BYTES: Final = 1 << 20
"""Written before the next try when that has not come to its end."""
FOLD_ROUNDS: Final = 8
"""Tries to fold it while commits go on; what came meanwhile is left for the next round."""
FOLD_WAIT_MS: Final = 5
"""How long the last of these waits for a commit to end, or for a reader: then commits wait with it."""
WAL_KEPT_BYTES: Final = 24 << 20
"""What the write-ahead file keeps of a larger size that it once needed."""
TRIM_BYTES: Final = 256 << 10
"""Deleted at a time, about."""
TRIM_PAGES: Final = 64
"""Given back to the file system at a time, when more than half of the file is free."""
MARK_SYNC_S: Final = 1.0
"""How often the mark is synced, at most; it is written at each sync of the log."""

READ: Final = """
SELECT first, at_ms, count, crc, data FROM log
WHERE first >= (SELECT COALESCE(MAX(first), 0) FROM log WHERE first <= ?) ORDER BY first LIMIT ?
"""

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[AnyEvent])


class FileJournal:
    """A journal in one SQLite file (write-ahead log mode); `<path>.d` beside it holds logs and backends' state.

    Commits are written on the calling thread (tens of microseconds); syncs and checkpoints in a thread each.

    Raises:
        JournalLocked: another kernel holds it.
        JournalDamaged: events that were committed are missing, or cannot be read; `accept_loss` goes on without.
        JournalError: it is no journal, of a newer version, in no fit place, or cannot be read or written.
    """

    durable = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        accept_loss: bool = False,
        allow_network_file_system: bool = False,
    ) -> None:
        self.path = Path(os.path.realpath(path))
        self.files = self.path.with_name(self.path.name + ".d")
        self.loss: JournalLoss | None = None
        check_place(self.path, allow_network=allow_network_file_system)
        with contextlib.ExitStack() as undo:
            try:
                # The file of a kernel of this very process must not be opened here: closing it again would take
                # SQLite's locks away. Nobody holds a journal that has no lock file.
                if not (self.files / "lock").exists():
                    self._check_kind()
                self.files.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._lock = lock(self.files / "lock", self.path)
                undo.callback(os.close, self._lock)
                self._mark = MarkFile(self.files / "mark")
                undo.callback(self._mark.close)
                self._admit(accept_loss=accept_loss)
                self._db = connect(self.path)
                undo.callback(self._db.close)
                self._db.execute(f"PRAGMA journal_size_limit={WAL_KEPT_BYTES}")
                self._open()
                self._wal = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
                undo.callback(os.close, self._wal)
                self._folding = connect(self.path)  # now, not when there may be no descriptors left
                undo.callback(self._folding.close)
                self._folding.execute(f"PRAGMA busy_timeout={FOLD_WAIT_MS}")
                self._folding.execute("SELECT COUNT(*) FROM epoch").fetchone()
                sync_folder(self.path.parent)
            except (OSError, sqlite3.Error) as e:
                raise JournalError(f"{self.path} cannot be used as a journal: {e}") from e
            undo.pop_all()
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="anybatch-journal-sync")
        self._folder = ThreadPoolExecutor(1, thread_name_prefix="anybatch-journal-fold")
        self._closing = threading.Event()
        self._since_checkpoint = 0
        self._folded = True
        self._mark_synced_s = 0.0
        self._begun = False
        self._broken = False

    # -- opening ----------------------------------------------------------------------------------

    def _check_kind(self) -> None:
        wrong = check_kind(self.path)
        if wrong is not None:
            raise JournalError(f"{self.path} {wrong}; give another path")

    def _admit(self, *, accept_loss: bool) -> None:
        """Make sure that there is a journal that can be opened as it is."""
        said = self._mark.found
        if said is None:
            self._check_kind()
            if self._mark.unreadable:
                log.warning("journal_mark_unreadable", journal=str(self.path))
        self.loss = admit(self.path, self.files, said, accept_loss=accept_loss)
        self.epoch = said.epoch if said is not None else 0
        if self.loss is not None:
            log.error("journal_loss_accepted", journal=str(self.path), **msgspec.to_builtins(self.loss, enc_hook=str))
        elif not self.path.exists() or not self.path.stat().st_size:
            set_aside(Path(f"{self.path}-wal"), self.files)  # of a database that is no longer there
            make(self.path)

    def _open(self) -> None:
        # What a kernel left that was not closed is written anew and synced, whatever became of its own syncs.
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        add_tables(self._db)
        self._look()

    def _look(self) -> None:
        """See what is there."""
        db = self._db
        row = db.execute("SELECT first, count FROM log ORDER BY first DESC LIMIT 1").fetchone()
        self._snapshot_bytes = 0
        self._snapshots = self._readable_snapshots()
        kept = self._snapshots[-1] if self._snapshots else 0
        self.last = max(row[0] + row[1] - 1 if row else 0, kept)
        self._oldest = self._first_kept()
        self._epochs = db.execute("SELECT first, epoch FROM epoch ORDER BY first").fetchall()
        self.epoch = max(self.epoch, max((epoch for _, epoch in self._epochs), default=0))
        sizes = db.execute("SELECT TOTAL(LENGTH(data)) FROM log WHERE first > ?", (kept,)).fetchone()
        self._since_snapshot = int(sizes[0])

    def _readable_snapshots(self) -> list[int]:
        """Where the snapshots stand, oldest first. What cannot be read is no snapshot."""
        found = []
        for (seq,) in self._db.execute("SELECT seq FROM snapshot ORDER BY seq").fetchall():
            snapshot = read_snapshot(self._db, seq)
            if snapshot is not None:
                found.append(seq)
                self._snapshot_bytes = len(snapshot[2])
            else:
                log.warning("journal_snapshot_unreadable", journal=str(self.path), at=seq)
                self._db.execute("DELETE FROM snapshot WHERE seq = ?", (seq,))
        self._db.execute(DROP_PARTS)  # of one that was not finished, too
        return found

    def _first_kept(self) -> int:
        first: int | None = self._db.execute("SELECT MIN(first) FROM log").fetchone()[0]
        return first or self.last + 1

    def load(self, older: int = 0) -> tuple[bytes | None, Iterator[Record]]:
        if older < len(self._snapshots):
            seq = self._snapshots[-1 - older]
            snapshot = read_snapshot(self._db, seq)
            if snapshot is None:
                raise JournalDamaged(f"{self.path}: the snapshot at event {seq} is not what was written")
            return snapshot[2], self._after(seq)
        if self._oldest > 1:
            raise JournalDamaged(f"{self.path} has no snapshot that can be read, and begins with event {self._oldest}")
        return None, self._after(0)

    def _after(self, sequence: int) -> Iterator[Record]:
        while records := self.read(sequence):
            for record in records:
                if record.first != sequence + 1:
                    raise JournalDamaged(f"{self.path}: events {sequence + 1} to {record.first - 1} are not there")
                yield record
                sequence = record.last

    def begin_epoch(self, epoch: int) -> None:
        try:
            row = (self.last + 1, epoch, epoch_crc(self.last + 1, epoch))
            self._db.execute("INSERT OR REPLACE INTO epoch VALUES (?, ?, ?)", row)
            os.fdatasync(self._wal)
            self._mark.write(self.last, epoch)  # is synced soon after the first commit
        except (sqlite3.Error, OSError) as e:
            raise JournalError(f"{self.path} cannot be written: {e}") from e
        self._epochs.append((self.last + 1, epoch))
        self.epoch = epoch
        self._begun = True

    # -- writing ----------------------------------------------------------------------------------

    def commit(self, at_ms: int, events: Sequence[AnyEvent]) -> int:
        data = _ENCODER.encode(events)
        first, count = self.last + 1, len(events)
        try:
            row = (first, at_ms, count, record_crc(first, at_ms, count, data), data)
            self._db.execute("INSERT INTO log VALUES (?, ?, ?, ?, ?)", row)
        except sqlite3.Error as e:
            raise JournalError(f"{self.path} cannot be written: {e}") from e
        self.last += count
        self._since_snapshot += len(data)
        self._wrote(len(data))
        return self.last

    def _wrote(self, size: int) -> None:
        self._since_checkpoint += size + PAGE_BYTES
        if self._since_checkpoint > (CHECKPOINT_BYTES if self._folded else FOLD_AGAIN_BYTES):
            self._since_checkpoint = 0
            self._folded = True  # until it is known that it has failed
            self._folder.submit(self._fold)

    async def sync(self) -> int:
        last = self.last
        try:
            await asyncio.get_running_loop().run_in_executor(self._syncer, self._sync, last)
        except OSError as e:
            raise JournalError(f"{self.path} cannot be synced to disk: {e.strerror}") from e
        return last

    def _sync_log(self) -> None:
        if self._broken:
            raise OSError(0, "an earlier sync has failed, so nobody knows what is on disk")
        try:
            os.fdatasync(self._wal)
        except OSError:
            self._broken = True
            raise

    def _sync(self, last: int) -> None:
        self._sync_log()
        try:
            self._mark.write(last, self.epoch)
        except OSError as e:  # then it says less than it could
            log.warning("journal_mark_not_written", journal=str(self.path), error=e.strerror)
        if time.monotonic() - self._mark_synced_s > MARK_SYNC_S:
            self._mark_synced_s = time.monotonic()
            self._folder.submit(self._mark.sync)

    def _fold(self) -> None:
        """Fold the write-ahead file into the main one, so that the next commit begins it anew.

        A failure costs space only: the next try comes soon.
        """
        try:
            self._folded = self._folds()
        except sqlite3.Error:
            self._folded = False

    def _folds(self) -> bool:
        for _ in range(FOLD_ROUNDS):
            if self._closing.is_set():
                return True
            last = self.last
            _, pages, folded = self._folding.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if pages == folded and last == self.last:
                return True
        # Commits come so fast that there is always one more: let the next one wait for the few pages that are left.
        busy, _, _ = self._folding.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        return not busy

    def wants_snapshot(self) -> bool:
        return bool(self._since_snapshot > max(SNAPSHOT_BYTES_MIN, 2 * self._snapshot_bytes))

    def put_snapshot(self, data: bytes) -> None:
        for _ in self.snapshot_steps(data):
            pass

    def snapshot_steps(self, data: bytes) -> Iterator[None]:
        seq, crc = self.last, snapshot_crc(self.last, b"")
        self._since_snapshot = 0  # a failure too is followed by a pause
        try:
            if len(data) > SNAPSHOT_PART:
                if seq in self._snapshots:
                    return  # it is there: nothing has happened since
                self._db.execute(DROP_PARTS)  # of one that was given up
                for start in range(0, len(data), SNAPSHOT_PART):
                    part = data[start : start + SNAPSHOT_PART]
                    self._db.execute("INSERT INTO snapshot_part (seq, data) VALUES (?, ?)", (seq, part))
                    crc = zlib.crc32(part, crc)
                    self._wrote(len(part))
                    yield
                self._note_snapshot(seq, crc, b"")
            else:
                self._note_snapshot(seq, snapshot_crc(seq, data), data)
            self._snapshot_bytes = len(data)
            while self._db.execute(DROP_PART).rowcount:
                yield
        except sqlite3.Error as e:
            self._roll_back()
            with contextlib.suppress(sqlite3.Error):
                self._db.execute(DROP_PARTS)
            raise JournalError(f"{self.path} cannot be written: {e}") from e

    def _note_snapshot(self, seq: int, crc: int, data: bytes) -> None:
        """The snapshot is whole: from now on it is the newest."""
        db = self._db
        kept = [*(one for one in self._snapshots if one < seq), seq][-SNAPSHOTS_KEPT:]
        db.execute("BEGIN")
        db.execute("INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?)", (seq, crc, data))
        db.execute("DELETE FROM snapshot WHERE seq < ?", (kept[0],))
        db.execute("COMMIT")
        self._snapshots = kept
        self._wrote(len(data))

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    # -- reading ----------------------------------------------------------------------------------

    @property
    def oldest(self) -> int:
        return min(self._oldest, self.last + 1)

    @property
    def size(self) -> int:
        page, count, free = (
            int(self._db.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_size", "page_count", "freelist_count")
        )
        return page * (count - free)

    def read(self, after: int) -> list[Record]:
        oldest = self.oldest
        if after + 1 < oldest:
            raise EventsTrimmed((self.epoch_of(after), after), (self.epoch_of(oldest), oldest))
        try:
            rows = self._db.execute(
                READ,
                (after + 1, READ_RECORDS),
            ).fetchall()
        except sqlite3.Error as e:
            raise JournalError(f"{self.path} cannot be read: {e}") from e
        records: list[Record] = []
        for first, at_ms, count, crc, data in rows:
            if first + count - 1 <= after:
                continue
            if not is_whole(record_crc, first, at_ms, count, data, said=crc):
                if records:
                    break
                raise JournalDamaged(f"{self.path}: the record of event {first} is not what was written", first=first)
            try:
                records.append(Record(first, self.epoch_of(first), at_ms, _DECODER.decode(data)))
            except msgspec.MsgspecError as e:
                raise JournalError(f"{self.path}: the record of event {first} cannot be read: {e}") from e
        return records

    def epoch_of(self, sequence: int) -> int:
        at = bisect_right(self._epochs, sequence, key=lambda row: row[0])
        return int(self._epochs[at - 1][1]) if at else 0

    # -- sinks ------------------------------------------------------------------------------------

    def cursors(self) -> dict[str, tuple[int, int]]:
        try:
            rows = self._db.execute("SELECT sink, epoch, seq FROM cursor").fetchall()
        except sqlite3.Error as e:
            raise JournalError(f"{self.path} cannot be read: {e}") from e
        return {sink: (epoch, seq) for sink, epoch, seq in rows}

    def put_cursor(self, sink: str, epoch: int, sequence: int) -> None:
        try:
            self._db.execute("INSERT OR REPLACE INTO cursor VALUES (?, ?, ?)", (sink, epoch, sequence))
        except sqlite3.Error as e:
            raise JournalError(f"{self.path} cannot be written: {e}") from e
        self._wrote(0)

    # -- forgetting -------------------------------------------------------------------------------

    def trim(self, before: int) -> int:
        db = self._db
        bound = min(before - 1, self._snapshots[0] if len(self._snapshots) == SNAPSHOTS_KEPT else 0)
        upto = size = 0
        try:
            rows = db.execute("SELECT first, count, LENGTH(data) FROM log ORDER BY first LIMIT ?", (TRIM_RECORDS,))
            for first, count, length in rows.fetchall():
                if first + count - 1 > bound or size > TRIM_BYTES:
                    break
                upto, size = first, size + length
            if upto:
                db.execute("BEGIN")
                db.execute("DELETE FROM log WHERE first <= ?", (upto,))
                oldest = self._first_kept()
                epochs = self._epochs[max(bisect_right(self._epochs, oldest, key=lambda row: row[0]) - 1, 0) :]
                db.execute("DELETE FROM epoch WHERE first < ?", (epochs[0][0] if epochs else 0,))
                db.execute("COMMIT")
                self._oldest, self._epochs = oldest, epochs
                self._wrote(size)
            self._give_back()
        except sqlite3.Error as e:
            self._roll_back()
            log.warning("journal_not_trimmed", journal=str(self.path), error=str(e))
        return self.oldest

    def _give_back(self) -> None:
        """Make the file smaller, a little at a time, when most of it is free."""
        free = self._free_pages()
        if free > TRIM_PAGES and free > self._db.execute("PRAGMA page_count").fetchone()[0] / 2:
            self._vacuum()

    def _free_pages(self) -> int:
        return int(self._db.execute("PRAGMA freelist_count").fetchone()[0])

    def _vacuum(self) -> None:
        # As a script: `execute` stops at the first page, for the statement says that it gives no rows.
        self._db.executescript(f"PRAGMA incremental_vacuum({TRIM_PAGES})")
        self._wrote(TRIM_PAGES * PAGE_BYTES)  # as many pages are written elsewhere, at most

    def give_back(self) -> bool:
        try:
            before = self._free_pages()
            if before:
                self._vacuum()
            # A file of the first days, made without the tables for it, gives nothing back.
            return 0 < self._free_pages() < before
        except sqlite3.Error as e:
            raise JournalError(f"{self.path} cannot be made smaller: {e}") from e

    async def bytes_on_disk(self) -> int:
        await asyncio.get_running_loop().run_in_executor(self._folder, self._truncate)
        return bytes_of(self.path)

    def _truncate(self) -> None:
        """Fold the write-ahead file and make it empty, unless somebody reads it."""
        with contextlib.suppress(sqlite3.Error):
            self._folding.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def pack(self) -> None:
        """Write the file anew without what is free in it. Takes the room of another copy for the time being.

        Raises:
            JournalError: it could not be written; it is as it was.
        """
        try:
            self._db.execute("VACUUM")
        except sqlite3.Error as e:
            raise JournalError(f"{self.path} cannot be packed: {e}") from e

    # -- closing ----------------------------------------------------------------------------------

    async def close(self) -> None:
        self._closing.set()
        try:
            await asyncio.get_running_loop().run_in_executor(self._syncer, self._close)
        except (OSError, sqlite3.Error) as e:
            raise JournalError(f"{self.path} cannot be synced to disk: {e}") from e
        finally:
            self._syncer.shutdown()

    def _close(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, self._lock)
            stack.callback(self._mark.close)
            if self._begun:
                stack.callback(self._finish_mark)
            stack.callback(os.close, self._wal)
            stack.callback(self._db.close)  # folds the write-ahead file into the main one
            stack.callback(self._folding.close)
            stack.callback(self._folder.shutdown)
            if self._begun:
                self._sync_log()

    def _finish_mark(self) -> None:
        if not self._broken:
            with contextlib.suppress(OSError):
                self._mark.write(self.last, self.epoch, clean=True)
                self._mark.sync()
