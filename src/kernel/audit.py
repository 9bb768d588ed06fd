"""The audit stream: who asked for what through a front end, allowed or refused, reads included.

It stands apart from the journal, in `<journal>.d/audit.db`, so that a read costs no synced commit: what has no effect
on the kernel is written within `FLUSH_S`, in a thread, many at a time. `record` of a change returns once it is written;
a killed process loses at most the reads of the last moments, a power cut the changes of them too (the journal itself
names the principal and the request of every change, synced).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from .core.errors import JournalError
from .logs import Log
from .views import to_datetime

log = Log("anybatch.kernel")

RETAIN_AUDIT_S: Final = 90 * 86_400.0
"""How long records are kept unless told otherwise: as long as CloudTrail's event history."""
RETAIN_AUDIT_BYTES: Final = 1 << 30
"""How large the file may grow before records go that are younger, unless told otherwise."""
FLUSH_S: Final = 0.2
"""How long a record may wait to be written with others."""
BUFFER_MAX: Final = 10_000
"""Records that may wait; one more waits for room."""
ROWS: Final = 100
"""Records of one statement: each statement takes the interpreter's lock from the event loop and gives it back."""
PAGE: Final = 500
"""Records read at a time."""
TRIM_EVERY_S: Final = 3_600.0
TRIM_ROWS: Final = 5_000
"""Records removed at a time."""
DETAIL_BYTES_MAX: Final = 256 << 10
"""Of a record's detail; a larger one is left out, and the record says so."""
BUSY_S: Final = 5.0

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS call (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at_ms INTEGER NOT NULL, front_end TEXT NOT NULL, principal TEXT NOT NULL,
    operation TEXT NOT NULL, request_id TEXT NOT NULL, read_only INTEGER NOT NULL, error_code TEXT, detail BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS call_by_time ON call (at_ms);
"""
_COLUMNS: Final = "at_ms, front_end, principal, operation, request_id, read_only, error_code, detail"


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One call. `detail` is the front end's own account of it (for `aws` a CloudTrail record); `error_code` None: it
    succeeded. Ids rise in the order in which calls were recorded.
    """

    id: int
    at: datetime
    front_end: str
    principal: str
    operation: str
    request_id: str
    read_only: bool
    error_code: str | None
    detail: Mapping[str, Any]


class AuditCall(NamedTuple):
    """What `Audit.record` is told of a call, as a row of the file. Times in epoch milliseconds, `detail` JSON."""

    at_ms: int
    front_end: str
    principal: str
    operation: str
    request_id: str
    read_only: bool
    error_code: str | None
    detail: bytes


class Audit:
    """The records, in a file of their own (`folder` None: in memory). Used on one event loop."""

    def __init__(self, folder: Path | None, keep_ms: int, keep_bytes: int) -> None:
        self._folder = folder
        self._keep_ms = keep_ms
        self._keep_bytes = keep_bytes
        self._db: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="anybatch-audit")
        self._waiting: list[AuditCall] = []
        self._waiters: list[asyncio.Future[None]] = []
        """Who is told once what waits now is written: each has a future of its own, and may be cancelled."""
        self._flushing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._trimmed_s = 0.0

    # -- writing ----------------------------------------------------------------------------------

    async def record(self, call: AuditCall) -> None:
        """Take a call down; one that changes something is written when this returns.

        Raises:
            JournalError: it cannot be written, or there is no room for more that cannot.
        """
        if len(call.detail) > DETAIL_BYTES_MAX:
            text = f"the detail has {len(call.detail)} bytes, more than {DETAIL_BYTES_MAX}"
            call = call._replace(detail=msgspec.json.encode({"omitted": text}))
        while len(self._waiting) >= BUFFER_MAX:
            await self._flush()
        self._waiting.append(call)
        if not call.read_only:
            await self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush_soon)

    def _flush_soon(self) -> None:
        self._timer = None
        self._begin()

    def _begin(self) -> None:
        """Write what waits, if nothing is being written already: whoever writes goes on until nobody waits."""
        if self._flushing is None and (self._waiting or self._waiters):
            self._flushing = asyncio.ensure_future(self._write_waiting())

    async def _flush(self) -> None:
        """Return once what waits now is written."""
        if self._waiting or self._flushing is not None:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            self._begin()
            await waiter

    async def _write_waiting(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiters or self._waiting:
                calls, self._waiting = self._waiting, []
                waiters, self._waiters = self._waiters, []
                try:
                    if calls:
                        await loop.run_in_executor(self._thread, self._write, calls)
                except (sqlite3.Error, OSError) as e:
                    self._waiting[:0] = calls  # for the next try
                    log.error("audit_not_written", records=len(self._waiting), error=str(e))
                    self._release(waiters, f"the audit records cannot be written: {e}")
                    if not self._waiters:
                        return
                except asyncio.CancelledError:
                    self._release([*waiters, *self._waiters], "the event loop ends while audit records are written")
                    raise
                else:
                    self._release(waiters, None)
        finally:
            self._flushing = None

    @staticmethod
    def _release(waiters: list[asyncio.Future[None]], error: str | None) -> None:
        for waiter in waiters:
            if waiter.done():  # it has been cancelled
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(JournalError(error))

    def _write(self, calls: list[AuditCall]) -> None:
        db = self._opened()
        db.execute("BEGIN")
        try:
            for at in range(0, len(calls), ROWS):
                some = calls[at : at + ROWS]
                places = ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?)"] * len(some))
                values = list(itertools.chain.from_iterable(some))
                db.execute(f"INSERT INTO call ({_COLUMNS}) VALUES {places}", values)  # noqa: S608 - our own
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        if time.monotonic() - self._trimmed_s > TRIM_EVERY_S:
            self._trimmed_s = time.monotonic()
            self._trim(db, calls[-1].at_ms)

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            where = ":memory:"
            if self._folder is not None:
                path = self._folder / "audit.db"
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                where = str(path)
            db = sqlite3.connect(where, isolation_level=None, timeout=BUSY_S, check_same_thread=False)
            try:
                db.execute("PRAGMA auto_vacuum=INCREMENTAL")
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=NORMAL")
                db.executescript(_TABLES)
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db

    def _trim(self, db: sqlite3.Connection, now_ms: int) -> None:
        """Remove what is too old, and the oldest of what is too much."""
        while db.execute(
            "DELETE FROM call WHERE id IN (SELECT id FROM call WHERE at_ms < ? ORDER BY id LIMIT ?)",
            (now_ms - self._keep_ms, TRIM_ROWS),
        ).rowcount:
            pass
        while _size(db) > self._keep_bytes:
            if not db.execute("DELETE FROM call WHERE id IN (SELECT id FROM call ORDER BY id LIMIT ?)",
                              (TRIM_ROWS,)).rowcount:  # fmt: skip
                break
        db.executescript("PRAGMA incremental_vacuum")

    # -- reading ----------------------------------------------------------------------------------

    async def read(self, after: int, principal: str | None, operation: str | None) -> AsyncIterator[AuditRecord]:
        """The records after this id, oldest first, up to the newest."""
        with contextlib.suppress(JournalError):
            await self._flush()
        loop = asyncio.get_running_loop()
        while True:
            try:
                page = await loop.run_in_executor(self._thread, self._page, after, principal, operation)
            except (sqlite3.Error, OSError) as e:
                raise JournalError(f"the audit records cannot be read: {e}") from e
            for record in page:
                yield record
            if len(page) < PAGE:
                return
            after = page[-1].id

    def _page(self, after: int, principal: str | None, operation: str | None) -> list[AuditRecord]:
        wanted, values = "id > ?", list[Any]([after])
        for column, value in (("principal", principal), ("operation", operation)):
            if value is not None:
                wanted += f" AND {column} = ?"
                values.append(value)
        query = f"SELECT id, {_COLUMNS} FROM call WHERE {wanted} ORDER BY id LIMIT ?"  # noqa: S608 - our own
        rows = self._opened().execute(query, (*values, PAGE)).fetchall()
        return [
            AuditRecord(
                id=ident, at=to_datetime(at_ms), front_end=front_end, principal=who, operation=what,
                request_id=request_id, read_only=bool(read_only), error_code=error_code,
                detail=msgspec.json.decode(detail),
            )
            for ident, at_ms, front_end, who, what, request_id, read_only, error_code, detail in rows
        ]  # fmt: skip

    # -- closing ----------------------------------------------------------------------------------

    async def close(self) -> None:
        """Write what waits, and let go. What cannot be written is logged."""
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._flush()
        except JournalError as e:
            log.error("audit_records_lost", records=len(self._waiting), error=str(e))
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def _close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()


def _size(db: sqlite3.Connection) -> int:
    page, count, free = (
        int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_size", "page_count", "freelist_count")
    )
    return page * (count - free)
