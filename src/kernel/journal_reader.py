"""Looking at a journal that no kernel holds: read only, without its lock, and without writing anything.

It shows what was committed when the last kernel on it ended, or was killed: attempts that can outlive a kernel may have
gone on since, or have ended.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from . import arguments as args
from .backend import AttemptKey, log_path
from .cleaner import Cleaner
from .clock import SystemClock
from .control.place import files_of
from .core.errors import Conflict, InvalidValue, JournalError, KernelBug, NotFound, NotRunning
from .core.inputs import Input, Report, Request
from .core.machine import replay
from .core.model import Quotas
from .core.state import JobRow
from .core.states import SUCCEEDED
from .environments import Drivers
from .job_calls import JobReference
from .journal import FileJournal
from .journal_check import check_kind
from .journal_db import BUSY_S, read_snapshot
from .kernel import Kernel
from .runtime import Runtime
from .sinks import Sinks
from .stream import EventId, EventStream
from .trimming import ForgottenJobs
from .views import to_datetime

LOG_PIECE_BYTES: Final = 64 << 10
"""Read of a log at a time."""


class ReadJournal(FileJournal):
    """A journal that is only read. What is there of a write-ahead file is read too, and nothing is made or removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = files_of(path)
        self.loss = None
        self.epoch = 0
        wrong = check_kind(path)
        if wrong is not None:
            raise JournalError(f"{path} {wrong}")
        self._copies: tempfile.TemporaryDirectory[str] | None = None
        try:
            self._connect(path.absolute())
            self._look()
        except (sqlite3.Error, OSError) as e:
            raise JournalError(f"{path} cannot be read: {e}") from e

    def _connect(self, path: Path) -> None:
        """A journal that was closed has no write-ahead file, and nothing in it is in motion.

        `readonly_shm` keeps SQLite from changing the third file, which a killed kernel has left. Where it is not there
        (in a copy of the other two), SQLite would make it: then copies are looked at.
        """
        how = "immutable=1"
        if os.path.exists(f"{path}-wal"):
            how = "mode=ro&readonly_shm=1"
            if not os.path.exists(f"{path}-shm"):
                self._copies = tempfile.TemporaryDirectory(prefix="anybatch-")
                for suffix in ("", "-wal"):
                    shutil.copyfile(f"{path}{suffix}", f"{self._copies.name}/journal{suffix}")
                path, how = Path(self._copies.name) / "journal", "mode=ro"
        address = f"{path.as_uri()}?{how}"
        self._db = sqlite3.connect(address, uri=True, isolation_level=None, timeout=BUSY_S)

    def _readable_snapshots(self) -> list[int]:
        rows = self._db.execute("SELECT seq FROM snapshot ORDER BY seq").fetchall()
        return [seq for (seq,) in rows if read_snapshot(self._db, seq) is not None]

    async def close(self) -> None:
        self._db.close()
        if self._copies is not None:
            self._copies.cleanup()


class ReadRuntime(Runtime):
    """A state that stays as it is."""

    def recover(self) -> None:
        """Take the state from the journal."""
        for record in self._load():
            try:
                replay(self.state, record.events, record.at_ms)
            except (KernelBug, KeyError, IndexError, ValueError) as e:
                raise JournalError(f"the journal's record {record.first} cannot be applied: {e!r}") from e

    def _refusal(self) -> NotRunning:
        path = getattr(self.journal, "path", None)
        return NotRunning(f"no kernel runs on {path}: it can be looked at, but nothing can be changed or waited for")

    async def request(self, item: Request) -> Any:
        raise self._refusal()

    def report(self, item: Report | Input) -> None:
        raise self._refusal()

    async def wait_ended(self, serial: int, index: int | None) -> None:
        job = self.state.jobs[serial]
        done = job.ended if index is None or job.size is None else job.children.status[index] >= SUCCEEDED
        if not done:
            raise self._refusal()


class PastEvents(EventStream):
    """The events that there are; the stream ends after them."""

    async def _turn_page(self) -> bool:
        return bool(self._runtime.journal.read(self._after)) and await super()._turn_page()


class JournalReader(Kernel):
    """A journal to look at, with the methods of Kernel; made by `read_journal`, used in `async with`.

    Those that change or wait for something raise `NotRunning`. `events` end with the last one. `logs` are found where
    backends on this machine keep them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        found = args.path("path", path)
        if found is None:
            raise InvalidValue("path", path, "it is the path of a journal")
        super().__init__(found)
        self._journal_path = found

    async def __aenter__(self) -> Self:
        path = self._journal_path
        if not path.exists():
            raise JournalError(f"{path} is not there")
        runtime = ReadRuntime(ReadJournal(path), SystemClock(), Quotas())
        try:
            runtime.recover()
        except BaseException:
            await runtime.journal.close()
            raise
        self._runtime = runtime
        cleaner = Cleaner(runtime.journal.files, runtime.state.ids)  # it is not run, and neither are drivers and sinks
        self._drivers = Drivers(runtime, self._registry, self._roles, self._runtime_dir, self._start_driver, cleaner)
        self._forgotten = ForgottenJobs(runtime)
        self._sinks = Sinks(self._given_sinks, runtime, self._forgotten, self)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._live.journal.close()

    @property
    def as_of(self) -> datetime:
        """When the last of what is shown was committed."""
        return to_datetime(self._live.state.now_ms)

    def events(self, *, after: EventId | tuple[int, int] | None = None) -> EventStream:
        made = super().events(after=after)
        return PastEvents(self._live, self._forgotten, made._after)

    async def logs(
        self, job: JobReference, *, follow: bool = False, attempt: int | None = None
    ) -> AsyncIterator[bytes]:
        row, index = self._find(job)
        if row.size is not None and index is None:
            raise InvalidValue("job", row.job_id, f"an array's logs are its children's; give {row.job_id}:<index>")
        last = row.children.number[index or 0]
        number = last if attempt is None else args.whole("attempt", attempt)
        if attempt is not None and not 1 <= number <= last:
            raise NotFound("attempt", str(attempt), f"{row.job_id} has had {last} attempts")
        path = log_path(self._live.journal.files / "logs", AttemptKey(row.job_id, row.index_of(index or 0), number))
        try:
            with path.open("rb") as file:
                while piece := file.read(LOG_PIECE_BYTES):
                    yield piece
                    await asyncio.sleep(0)
        except FileNotFoundError:
            self._check_log_place(row, index or 0)  # an attempt that has written nothing has none
        except OSError as e:
            raise Conflict("job", row.job_id, f"its log {path} cannot be read: {e.strerror}") from e

    def _check_log_place(self, row: JobRow, index: int) -> None:
        """Tell of a log that is not here because its backend keeps it elsewhere."""
        state = self._live.state
        host = state.hosts.get(row.children.hosts()[index])
        backend = state.environments[host.environment].body.backend if host is not None else None
        if host is not None and backend is not None and self._registry.is_remote(backend):
            where = f"host {host.name!r} of environment {host.environment!r}"
            why = f"what it wrote is on {where}, and was not fetched: that takes a running kernel on this journal"
            raise Conflict("job", row.job_id, why)


def read_journal(path: str | os.PathLike[str]) -> JournalReader:
    """Look at the journal of a kernel that is not running: `async with anybatch.read_journal("batch.db") as kernel`.

    Nothing is written, and its lock is not taken; a kernel may be started on it meanwhile.

    Raises:
        JournalError: (on entering) there is none, or it cannot be read.
    """
    return JournalReader(path)
