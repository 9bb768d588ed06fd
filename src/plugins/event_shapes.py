"""The shapes in which the sinks that come with anybatch give events: the native one, and EventBridge's.

`shape = "anybatch"` is `event_record` (docs/events.md). `shape = "eventbridge"` is what AWS Batch puts onto its event
bus, for consumers that were written for it: see `anybatch.plugins.eventbridge`, which needs the extra `anybatch[aws]`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec
from anybatch.kernel.sink import EventGap, SinkContext, SinkError, SinkEvent, event_record

ShapeName = Literal["anybatch", "eventbridge"]
STATUS_TYPE: Final = "anybatch.job.status.v1"
GAP_TYPE: Final = "anybatch.gap.v1"


class Shaped(msgspec.Struct, frozen=True, kw_only=True):
    """An event as it is given away: the record, and what CloudEvents' envelope says of it.

    `id` is the same each time that the event is given. `subject` is the job's or child's id (None: about none).
    """

    record: dict[str, Any]
    id: str
    type: str
    time: str
    subject: str | None


Send = Callable[[list[Shaped]], Awaitable[None]]
"""Delivers records; raises if it cannot."""


class Shape(Protocol):
    """Makes records of events."""

    async def records(self, events: Sequence[SinkEvent]) -> list[Shaped]:
        """The records, in order; an event may give none, or one for each child."""

    def watch(self, send: Send) -> Coroutine[Any, Any, None] | None:
        """What is to run while the sink is open, for records that no event brings about; None: nothing."""


class ShapeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What such a sink's options say of the shape; see each sink's own."""

    shape: ShapeName = "anybatch"
    per_child: bool = False
    account: str = "123456789012"
    region: str = "us-east-1"

    def check_shape(self) -> None:
        """Raise ValueError for what does not go together."""
        if self.shape == "anybatch":
            if (self.account, self.region) != ("123456789012", "us-east-1"):
                raise ValueError("account and region are for the shape eventbridge")
        elif self.per_child:
            raise ValueError("per_child: the shape eventbridge has an event for each child anyway")
        if not (self.account.isdecimal() and len(self.account) == 12):
            raise ValueError(f"account: {self.account!r} is not an account id of 12 digits")


async def end_watch(watching: asyncio.Task[None] | None) -> None:
    """Return once what ran while a sink was open has ended."""
    if watching is not None:
        watching.cancel()
        await asyncio.wait({watching})


def make_shape(context: SinkContext) -> Shape:
    """The shape that a sink's options ask for.

    Raises:
        SinkError: what it needs is not installed.
    """
    options: ShapeOptions = context.options
    if options.shape == "anybatch":
        return Native(context.kernel_id, per_child=options.per_child)
    try:
        from .eventbridge import EventBridge
    except ImportError as e:
        raise SinkError(f"the shape eventbridge needs the extra anybatch[aws] ({e})") from e
    return EventBridge(context, account=options.account, region=options.region)


class Native:
    """The native shape."""

    def __init__(self, kernel_id: str, *, per_child: bool = False) -> None:
        self._kernel_id = kernel_id
        self._per_child = per_child

    async def records(self, events: Sequence[SinkEvent]) -> list[Shaped]:
        """The records, in order."""
        found = []
        for event in events:
            each = event.expand() if self._per_child and not isinstance(event, EventGap) else (event,)
            found += [shaped(one, self._kernel_id) for one in each]
        return found

    def watch(self, send: Send) -> None:
        """Every record comes from an event."""


def shaped(event: SinkEvent, kernel_id: str) -> Shaped:
    """An event in the native shape."""
    record = event_record(event, kernel_id)
    if isinstance(event, EventGap):
        ident = f"{kernel_id}/gap-{record['next']}"
        return Shaped(record=record, id=ident, type=GAP_TYPE, time=record["at"], subject=None)
    child = record["job_id"].partition(":")[2]
    ident = f"{kernel_id}/{event.id.epoch}.{event.id.sequence}" + (f".{child}" if child else "")
    return Shaped(record=record, id=ident, type=STATUS_TYPE, time=record["at"], subject=record["job_id"])
