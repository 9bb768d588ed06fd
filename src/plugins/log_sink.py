"""A sink that logs every event through structlog, as the service around has configured it (else `logging`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec
from anybatch.kernel.logs import Log
from anybatch.kernel.sink import SINK_API_VERSION, EventGap, SinkContext, SinkEvent, event_record

log = Log("anybatch.events")


class LogOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`per_child`: one line per child instead of one per run of children."""

    per_child: bool = False


class LogSink:
    """Logs `job_status` (a FAILED one as a warning) with the event's fields, and `events_missing` for a gap."""

    api_version: ClassVar[int] = SINK_API_VERSION
    Options: ClassVar[type[msgspec.Struct]] = LogOptions

    def __init__(self) -> None:
        self._options = LogOptions()
        self._kernel_id = ""

    async def open(self, context: SinkContext) -> None:
        self._options, self._kernel_id = context.options, context.kernel_id

    async def deliver(self, events: Sequence[SinkEvent]) -> None:
        for event in events:
            each = event.expand() if self._options.per_child and not isinstance(event, EventGap) else (event,)
            for one in each:
                record = event_record(one, self._kernel_id)
                kind = record.pop("type")
                shown = {name: value for name, value in record.items() if value is not None and name != "version"}
                if kind == "gap":
                    log.error("events_missing", **shown)
                elif record["status"] == "FAILED":
                    log.warning("job_status", **shown)
                else:
                    log.info("job_status", **shown)

    async def close(self) -> None:
        pass
