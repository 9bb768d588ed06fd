"""Forgetting old events: by age, and by the journal's size, never what a recovery or an unfinished job needs.

Events go oldest first, a few at a time. What is left of a forgotten job (its id and name) is found in the event
that told so, for as long as events about it are kept.
"""

from __future__ import annotations

import asyncio
from typing import Final

from .clock import Timer
from .core.errors import JournalDamaged, JournalError
from .core.events import ForgottenJob, JobsForgotten
from .logs import Log
from .runtime import Runtime

log = Log("anybatch.kernel")

TRIM_EVERY_MS: Final = 60_000
"""How often the journal is looked at."""


class Trimmer:
    """Trims the journal in the background.

    Events are kept until they are older than `keep_ms`, or the journal is larger than `keep_bytes`, and the newest
    snapshots and every unfinished job are past them.
    """

    def __init__(self, runtime: Runtime, keep_ms: int, keep_bytes: int) -> None:
        self._runtime = runtime
        self.keep_ms = keep_ms
        self._keep_bytes = keep_bytes
        self._wake = asyncio.Event()
        self._done = False
        self._timer: Timer | None = None

    def finish(self) -> None:
        """End `run`."""
        self._done = True
        if self._timer is not None:
            self._timer.cancel()
        self._wake.set()

    async def run(self) -> None:
        """Trim from time to time, until `finish`."""
        clock = self._runtime.clock
        while not self._done:
            self._wake.clear()
            self._timer = clock.call_at(clock.now_ms() + TRIM_EVERY_MS, self._wake.set)
            await self._wake.wait()
            more = True
            while more and not self._runtime.is_closed and self._runtime.failure is None:
                try:
                    more = self.trim(self.keep_ms)
                except JournalError as e:  # costs space; who reads those events is told what is wrong with them
                    log.warning("journal_not_trimmed", error=str(e))
                    break
                await asyncio.sleep(0)

    def trim(self, keep_ms: int) -> bool:
        """Trim a few records that are older than so long; whether there may be more.

        Raises:
            JournalError: it cannot be read.
        """
        runtime, journal = self._runtime, self._runtime.journal
        oldest = journal.oldest
        try:
            page = journal.read(oldest - 1)
        except JournalDamaged as e:
            log.warning("journal_record_unreadable", sequence=e.first)
            return journal.trim(e.first + 1) > oldest
        keep_from_ms = runtime.clock.now_ms() - keep_ms
        needed_ms = min((job.created_ms for job in runtime.state.jobs.values() if not job.ended), default=1 << 62)
        too_large = journal.size > self._keep_bytes
        before = oldest
        for record in page:
            if record.at_ms >= needed_ms or (record.at_ms >= keep_from_ms and not too_large):
                break
            before = record.last + 1
        return before > oldest and journal.trim(before) > oldest


class ForgottenJobs:
    """What is left of jobs that are no longer kept, for those who read old events."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._known: dict[int, ForgottenJob] = {}
        self._read_to = 0

    async def find(self, serial: int) -> ForgottenJob | None:
        """The job of a serial, if an event that is kept tells that it was forgotten."""
        if serial not in self._known:
            await self._catch_up()
        return self._known.get(serial)

    async def _catch_up(self) -> None:
        """Read what has come since, for events that tell of forgotten jobs."""
        journal = self._runtime.journal
        if self._read_to < journal.oldest - 1:
            self._known.clear()  # those whose events are gone too; the others are read again
            self._read_to = journal.oldest - 1
        # What is trimmed in between is older than the events that are asked about.
        while records := journal.read(max(self._read_to, journal.oldest - 1)):
            for record in records:
                for event in record.events:
                    if isinstance(event, JobsForgotten):
                        self._known.update((job.serial, job) for job in event.jobs)
            self._read_to = records[-1].last
            await asyncio.sleep(0)
