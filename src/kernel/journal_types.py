"""What a journal is to the runtime: the protocol, its record, and what is told of a loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from .core.events import AnyEvent

READ_RECORDS: Final = 256
"""Records read at a time."""
TRIM_RECORDS: Final = 256
"""Records deleted at a time, at most."""


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


class JournalLoss(msgspec.Struct, frozen=True, kw_only=True):
    """What was given up when a damaged journal was opened with `accept_loss=True`.

    `events`: how many are known to be missing, which are `first` to `last` by their sequence numbers (there may
    have been a few more: progress of the last moments that nobody was answered for). `kept`: the folder with the
    damaged files as they were, if there were any.
    """

    why: str
    events: int
    first: int
    last: int
    kept: Path | None


class Journal(Protocol):
    """What the runtime needs of a journal. Calls are made from one thread, the event loop's."""

    durable: bool
    """Whether a later process can open it again."""
    last: int
    """The sequence number of the last committed event; 0 when there is none."""
    epoch: int
    """The highest epoch that any commit, lost ones included, is known to have had."""
    files: Path
    """The folder for everything that belongs to the journal: logs, the state of backends."""
    loss: JournalLoss | None
    """What was given up when it was opened."""

    @property
    def oldest(self) -> int:
        """The sequence number of the oldest event kept (the next one's when there is none)."""

    @property
    def size(self) -> int:
        """How many bytes are in use on disk, snapshots included; 0 for a journal in memory."""

    def load(self, older: int = 0) -> tuple[bytes | None, Iterator[Record]]:
        """The newest snapshot (or the one `older` before it), and the records after it.

        Without a snapshot (None) the records begin with the first event of all. Raises JournalDamaged where they
        are no longer kept, or cannot be read.
        """

    def begin_epoch(self, epoch: int) -> None:
        """All later commits belong to this epoch. It is on disk when this returns."""

    def commit(self, at_ms: int, events: Sequence[AnyEvent]) -> int:
        """Append a record; returns `last`. Raises JournalError: nothing of it was written."""

    async def sync(self) -> int:
        """Wait until all that is committed now is on disk; returns up to which sequence number."""

    def wants_snapshot(self) -> bool:
        """Whether enough has been written since the last snapshot."""

    def put_snapshot(self, data: bytes) -> None:
        """Keep the state as of `last`, and the snapshot before it. Raises JournalError: nothing of it was written."""

    def snapshot_steps(self, data: bytes) -> Iterator[None]:
        """The same, a little at a time: commits may come between. It counts from the last step on; one at a time."""

    def read(self, after: int) -> list[Record]:
        """Some records (at most READ_RECORDS) with events after this sequence number, in order; [] at the end.

        The first may begin with events up to `after`, which the caller skips.
        """

    def epoch_of(self, sequence: int) -> int:
        """The epoch of an event."""

    def cursors(self) -> dict[str, tuple[int, int]]:
        """Per sink: the (epoch, sequence) of the last event that it has taken."""

    def put_cursor(self, sink: str, epoch: int, sequence: int) -> None:
        """A sink has taken every event up to this one. Durable with the next sync; losing it costs repeats only."""

    def trim(self, before: int) -> int:
        """Delete some records (at most TRIM_RECORDS) whose events are all before this sequence number.

        What a recovery needs stays: everything after the older of the two snapshots that are kept. Returns the new
        `oldest`; call again, in a later turn, until that does not rise. A failure costs space, and is only logged.
        """

    def give_back(self) -> bool:
        """Give some of what is free in the file back to the file system; whether there is more.

        Raises JournalError: it could not be written.
        """

    async def bytes_on_disk(self) -> int:
        """What its files take, once what was written has been folded into the main one, as far as readers allow."""

    async def close(self) -> None:
        """Let go of it, everything synced. Raises JournalError where that failed; it is let go of all the same."""
