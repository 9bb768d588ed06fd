"""The journal in memory, for tests and throw-away runs."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from .core.errors import EventsTrimmed
from .core.events import AnyEvent
from .journal_types import READ_RECORDS, TRIM_RECORDS, JournalLoss, Record

MEMORY_RECORDS_MAX: Final = 200_000
"""Records that a journal in memory keeps; the oldest go first."""


class MemoryJournal:
    """A journal for tests and throw-away runs: nothing is written, everything is kept while it is open."""

    durable = False
    loss: JournalLoss | None = None

    def __init__(self, files: Path) -> None:
        self.files = files
        self.last = 0
        self.epoch = 0
        self._records: list[Record] = []
        self._cursors: dict[str, tuple[int, int]] = {}

    @property
    def oldest(self) -> int:
        return self._records[0].first if self._records else self.last + 1

    @property
    def size(self) -> int:
        return 0

    def load(self, older: int = 0) -> tuple[bytes | None, Iterator[Record]]:
        return None, iter(())

    def begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def commit(self, at_ms: int, events: Sequence[AnyEvent]) -> int:
        if len(self._records) >= MEMORY_RECORDS_MAX:
            del self._records[: MEMORY_RECORDS_MAX // 2]
        self._records.append(Record(self.last + 1, self.epoch, at_ms, list(events)))
        self.last += len(events)
        return self.last

    async def sync(self) -> int:
        return self.last

    def wants_snapshot(self) -> bool:
        return False

    def put_snapshot(self, data: bytes) -> None:
        pass

    def snapshot_steps(self, data: bytes) -> Iterator[None]:
        return iter(())

    def read(self, after: int) -> list[Record]:
        if after + 1 < self.oldest:
            raise EventsTrimmed((self.epoch, after), (self.epoch, self.oldest))
        at = bisect_right(self._records, after, key=lambda record: record.last)
        return self._records[at : at + READ_RECORDS]

    def epoch_of(self, sequence: int) -> int:
        return self.epoch

    def cursors(self) -> dict[str, tuple[int, int]]:
        return dict(self._cursors)

    def put_cursor(self, sink: str, epoch: int, sequence: int) -> None:
        self._cursors[sink] = epoch, sequence

    def trim(self, before: int) -> int:
        del self._records[: min(bisect_left(self._records, before, key=lambda record: record.last), TRIM_RECORDS)]
        return self.oldest

    def give_back(self) -> bool:
        return False

    async def bytes_on_disk(self) -> int:
        return 0

    async def close(self) -> None:
        pass
