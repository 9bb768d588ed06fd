"""A sink that counts, for Prometheus: an HTTP endpoint to scrape (`/metrics`).

Counters begin at zero when the kernel's process begins, as Prometheus expects, and count an event once however
often it is delivered. The extra `anybatch[prometheus]` brings what it needs.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import ClassVar
from wsgiref.simple_server import WSGIServer

import msgspec
from anybatch.kernel.sink import SINK_API_VERSION, EventGap, SinkContext, SinkError, SinkEvent
from anybatch.kernel.stream import JobEvent
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server


class PrometheusOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`port`: where to listen (0: any that is free, told by `PrometheusSink.port`). `host`: on which address."""

    port: int = 9642
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65_536:
            raise ValueError("port is 0 to 65535")


class PrometheusSink:
    """Serves these metrics (labels in brackets):

    - `anybatch_status_changes_total` [queue, status]: of single jobs and children
    - `anybatch_jobs_total` [queue, status]: of jobs as a whole: submitted, succeeded, failed
    - `anybatch_attempts_ended_total` [queue, result]: attempts that `succeeded`, `failed` for good, or are `retried`
    - `anybatch_events_missed_total`: of events that it was never given
    - `anybatch_last_event_timestamp_seconds`: the time of the newest event
    """

    api_version: ClassVar[int] = SINK_API_VERSION
    Options: ClassVar[type[msgspec.Struct]] = PrometheusOptions

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["queue", "status"]
        self._changes = Counter(
            "anybatch_status_changes", "Status changes of single jobs and children", labels, registry=self.registry
        )
        self._jobs = Counter("anybatch_jobs", "Jobs as a whole, by status", labels, registry=self.registry)
        self._attempts = Counter(
            "anybatch_attempts_ended", "Attempts that ended", ["queue", "result"], registry=self.registry
        )
        self._missed = Counter("anybatch_events_missed", "Events that were never given", registry=self.registry)
        self._newest = Gauge(
            "anybatch_last_event_timestamp_seconds", "Time of the newest event", registry=self.registry
        )
        self._seen = (0, 0)
        self._server: tuple[WSGIServer, threading.Thread] | None = None

    @property
    def port(self) -> int:
        """The port that it listens on; 0: it does not."""
        return self._server[0].server_port if self._server is not None else 0

    async def open(self, context: SinkContext) -> None:
        options: PrometheusOptions = context.options
        try:
            self._server = start_http_server(options.port, addr=options.host, registry=self.registry)
        except OSError as e:
            raise SinkError(f"port {options.port} of {options.host} cannot be listened on: {e.strerror}") from e

    async def deliver(self, events: Sequence[SinkEvent]) -> None:
        for event in events:
            if isinstance(event, EventGap):
                self._missed.inc(event.next - event.after.sequence - 1)
            elif event.id > self._seen:
                self._seen = event.id
                self._count(event)

    def _count(self, event: JobEvent) -> None:
        status = str(event.status)
        n = 1 if event.indexes is None else len(event.indexes)
        if event.indexes is None and status in ("SUBMITTED", "SUCCEEDED", "FAILED"):
            self._jobs.labels(event.queue, status).inc()
        if event.indexes is not None or event.array_size is None:
            self._changes.labels(event.queue, status).inc(n)
        if event.exit_codes is not None:
            result = {"SUCCEEDED": "succeeded", "FAILED": "failed"}.get(status, "retried")
            self._attempts.labels(event.queue, result).inc(n)
        self._newest.set(event.at.timestamp())

    async def close(self) -> None:
        found, self._server = self._server, None
        if found is not None:
            server, thread = found
            server.shutdown()
            server.server_close()
            thread.join()
