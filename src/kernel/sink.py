"""The protocol between the kernel and what receives its events.

A sink is given every status change of every job at least once, in the order of the log, from a cursor that is kept
in the journal. A batch that could not be delivered is delivered again, so a sink may see an event twice: after a
crash, or after an error of its own; `JobEvent.id` tells. A sink that is slow, down or raising holds up nobody: the
kernel keeps nothing in memory for it, and goes on from its cursor when it can. What it has not taken by the time when
events are forgotten (`Kernel(retain_events=...)`) is lost to it, and an `EventGap` in their place says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, runtime_checkable

import msgspec

from .core.errors import AnyBatchError
from .stream import EventId, JobEvent

if TYPE_CHECKING:
    from .kernel import Kernel

SINK_API_VERSION: Final = 1
"""The version of this protocol. A sink states the one it was written for as `api_version`."""
EVENT_SCHEMA_VERSION: Final = 1
"""Of what `event_record` returns: fields are added under the same version; a change of meaning is a new one."""


class EventGap(msgspec.Struct, frozen=True, kw_only=True):
    """Events that a sink will never see: they were forgotten, or lost with a damaged journal, before it took them.

    `after`: the last event that it has taken. `next`: the sequence number of the next one that it is given.
    """

    after: EventId
    next: int
    at: datetime
    reason: str


SinkEvent = JobEvent | EventGap


class SinkError(AnyBatchError):
    """A sink could not take a batch. `retry_after_s`: not before that many seconds (None: the kernel's own pace)."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SinkContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a sink is told when it is opened.

    `name`: what this kernel's owner calls it. `options`: checked by `Sink.Options`. `folder`: where relative paths
    begin: the journal's folder (for a journal in memory: the current one). `kernel`: whose events they are, to ask
    how things are now (None in the conformance kit).
    """

    name: str
    kernel_id: str
    options: Any
    folder: Path
    kernel: Kernel | None = None


@runtime_checkable
class Sink(Protocol):
    """What a plugin implements: one instance per name, from `open` to `close`. All calls come one at a time.

    `Options` is a msgspec Struct that checks the sink's options; what it does not know is refused
    (`forbid_unknown_fields=True`).
    """

    api_version: ClassVar[int]
    Options: ClassVar[type[msgspec.Struct]]

    async def open(self, context: SinkContext) -> None:
        """Get ready. Called again, after `close`, if it raises or a delivery fails for long."""

    async def deliver(self, events: Sequence[SinkEvent]) -> None:
        """Take these events. When it returns they are where they belong, and safe there: they do not come again.

        If it raises (`SinkError` or anything else), or takes longer than the kernel's bound, the same events come
        again later, perhaps with more behind them.
        """

    async def close(self) -> None:
        """Let go of everything. Also called after an `open` that failed."""


class SinkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An installed sink, by the name of its entry point, with its options.

    `start`: where one begins that this journal has not served under its name before: with the oldest event that is
    kept, or with what is new.
    """

    plugin: str
    options: Mapping[str, Any] = {}
    start: str = "oldest"


class SinkDetail(msgspec.Struct, frozen=True, kw_only=True):
    """How a sink stands. `cursor`: the last event that it has taken. `behind`: how many are committed after that one.

    `failures`: tries in a row that failed, the last with `error`.
    """

    name: str
    plugin: str
    cursor: EventId
    behind: int
    failures: int = 0
    error: str | None = None


def event_record(event: SinkEvent, kernel_id: str) -> dict[str, Any]:
    """An event as plain values for JSON (docs/events.md has the schema).

    A run of consecutive children is `{"start": 0, "stop": 100}` (half-open), any other a list of indexes; null stands
    for the job as a whole.
    """
    if isinstance(event, EventGap):
        return {
            "version": EVENT_SCHEMA_VERSION,
            "type": "gap",
            "kernel": kernel_id,
            "at": _utc(event.at),
            "after": list(event.after),
            "next": event.next,
            "reason": event.reason,
        }
    indexes: Any = event.indexes
    if isinstance(indexes, range) and indexes.step == 1:
        indexes = {"start": indexes.start, "stop": indexes.stop}
    elif indexes is not None:
        indexes = list(indexes)
    return {
        "version": EVENT_SCHEMA_VERSION,
        "type": "status",
        "kernel": kernel_id,
        "id": list(event.id),
        "at": _utc(event.at),
        "job_id": event.job_id,
        "job_name": event.job_name,
        "queue": event.queue,
        "status": str(event.status),
        "array_size": event.array_size,
        "indexes": indexes,
        "attempt": event.attempt,
        "exit_codes": None if event.exit_codes is None else list(event.exit_codes),
        "status_reason": event.status_reason,
        "reason": event.reason,
    }


def _utc(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"
