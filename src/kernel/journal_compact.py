"""Making a journal small that no kernel runs on: a snapshot, old events gone, and the file packed."""

from __future__ import annotations

import time
from pathlib import Path

from msgspec import Struct

from .core.events import KernelOpened
from .core.machine import replay
from .core.snapshot import encode
from .journal import FileJournal
from .journal_place import bytes_of
from .journal_read import recovered


class CompactReport(Struct, kw_only=True):
    """What it came to. `oldest` and `last`: the events that are kept. Bytes: of the file and its write-ahead file."""

    path: str
    bytes_before: int
    bytes_after: int
    events_removed: int
    oldest: int
    last: int


async def compact(path: Path, *, keep_ms: int) -> CompactReport:
    """Pack a journal; events that are younger than `keep_ms` stay, and what an unfinished job or a recovery needs.

    It counts as an opening: the epoch rises. Cut off at any point it leaves a journal that can be opened.

    Raises:
        JournalLocked: a kernel runs on it.
        JournalDamaged: it cannot be read; nothing has been changed.
        JournalError: it is no journal, or cannot be written. (Where there is none, one is made: look before.)
    """
    journal = FileJournal(path)
    path = journal.path
    try:
        before, oldest = bytes_of(path), journal.oldest
        state = recovered(journal)
        journal.put_snapshot(encode(state))
        opened = KernelOpened(max(state.epoch, journal.epoch) + 1, state.kernel_id)
        journal.begin_epoch(opened.epoch)
        now_ms = max(state.now_ms, time.time_ns() // 1_000_000)
        replay(state, [opened], now_ms)
        journal.commit(now_ms, [opened])
        journal.put_snapshot(encode(state))
        needed_ms = min((job.created_ms for job in state.jobs.values() if not job.ended), default=1 << 62)
        _trim(journal, min(now_ms - keep_ms, needed_ms))
        await journal.sync()
        journal.pack()
        report = CompactReport(
            path=str(path),
            bytes_before=before,
            bytes_after=0,
            events_removed=journal.oldest - oldest,
            oldest=journal.oldest,
            last=journal.last,
        )
    finally:
        await journal.close()
    report.bytes_after = bytes_of(path)
    return report


def _trim(journal: FileJournal, before_ms: int) -> None:
    """Delete the oldest records, up to the first from `before_ms` on."""
    while True:
        oldest = journal.oldest
        upto = oldest
        for record in journal.read(oldest - 1):
            if record.at_ms >= before_ms:
                break
            upto = record.last + 1
        if upto == oldest or journal.trim(upto) == oldest:
            return
