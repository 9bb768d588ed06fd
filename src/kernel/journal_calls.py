"""The Kernel's method on its own journal: making it small while the kernel goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from . import arguments as args
from .calls import Calls
from .core.errors import InvalidValue
from .journal_compact import CompactReport
from .trimming import Trimmer

KEEP_S_MAX: Final = 86400 * 36525


class JournalCalls(Calls):
    """A base of Kernel: what can be done to the journal that it runs on."""

    _path: Path | None
    _trimmer: Trimmer

    async def compact_journal(self, *, keep: float | None = None) -> CompactReport:
        """Make the journal small now, a little at a time; the kernel goes on meanwhile.

        A snapshot is taken, events older than `keep` seconds (None: as the kernel keeps them) are deleted, and what is
        free in the file is given back to the file system. Events since the oldest unfinished job's submit stay, and
        those since the snapshot before this one, for a recovery. Pages that are not quite full stay as they are:
        `anybatch journal compact` packs those too while no kernel runs.

        Raises:
            JournalError: it cannot be read or written.
        """
        runtime = self._open
        keep_ms = self._trimmer.keep_ms
        if keep is not None:
            if not 0 <= args.number("keep", keep) <= KEEP_S_MAX:
                raise InvalidValue("keep", keep, "it is a number of seconds, 0 or more (and at most 100 years)")
            keep_ms = round(keep * 1000)
        journal, oldest = runtime.journal, runtime.journal.oldest
        before = await journal.bytes_on_disk()
        await runtime.keep_snapshot()
        while self._trimmer.trim(keep_ms):
            await asyncio.sleep(0)
            runtime.check_open()
        while journal.give_back():
            await asyncio.sleep(0)
            runtime.check_open()
        return CompactReport(
            path="" if self._path is None else str(self._path),
            bytes_before=before,
            bytes_after=await journal.bytes_on_disk(),
            events_removed=journal.oldest - oldest,
            oldest=journal.oldest,
            last=journal.last,
        )
