"""Events in EventBridge's shape, as AWS Batch gives them (contract EB-1 to EB-5).

`detail` is the job as DescribeJobs tells it, at the moment of the change: events are delivered when they can be, and
by then the job may have gone on, so what it has come to since is taken off again (`as_of`). What cannot be had any
more of that moment is said in docs/events.md.

That a queue is blocked is no event of the kernel's: it is how things stand. Heads of queues are looked at after
something has happened, and each is told of once for each reason, and once more after a restart: consumers may see it
twice, and miss none that lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from anybatch import AttemptDetail, JobDetail, JobEvent, JobStatus, KernelClosed, RequestError
from anybatch.kernel.logs import Log
from anybatch.kernel.sink import EventGap, SinkContext, SinkEvent
from msgspec import structs

from .aws.arns import Place
from .aws.blocked import Blocked
from .aws.call import to_ms
from .aws.changes import Changes
from .aws.containers import Compiled, compile_definition
from .aws.job_shapes import job_shape
from .event_shapes import Send, Shaped, shaped

log = Log("anybatch.eventbridge")

STATE_CHANGE: Final = "Batch Job State Change"
STATE_CHANGE_TYPE: Final = "anybatch.eventbridge.job-state-change.v1"
QUEUE_BLOCKED: Final = "Batch Job Queue Blocked"
QUEUE_BLOCKED_TYPE: Final = "anybatch.eventbridge.queue-blocked.v1"
RETRY_S: Final = 10.0
"""After what could not be told."""
ENDED: Final = (JobStatus.SUCCEEDED, JobStatus.FAILED)
COMPILED_MAX: Final = 1_000
"""Revisions of definitions that are held ready."""


class EventBridge:
    """Makes EventBridge's events of the kernel's."""

    def __init__(self, context: SinkContext, *, account: str, region: str) -> None:
        self._kernel_id = context.kernel_id
        self._kernel = context.kernel
        self._blocked = None if context.kernel is None else Blocked(context.kernel)
        self._told: dict[str, tuple[str, str]] = {}
        self._place = Place(account, region)
        self._compiled: dict[str, Compiled] = {}

    async def records(self, events: Sequence[SinkEvent]) -> list[Shaped]:
        """One for each change of a job or child; none for the entry into SUBMITTED (EB-1). A gap stays a gap."""
        found: list[Shaped] = []
        for event in events:
            if isinstance(event, EventGap):
                found.append(shaped(event, self._kernel_id))
            elif event.status is not JobStatus.SUBMITTED:
                found += [await self._state_change(one) for one in event.expand()]
        return found

    async def watch(self, send: Send) -> None:
        """Tell of queues whose head is blocked, as it comes to that (EB-5)."""
        if self._kernel is None:
            return
        changes, wait_s = Changes(self._kernel), None
        while True:
            try:
                await changes.wait(wait_s)
                await self.tell_blocked(send)
                wait_s = None
            except KernelClosed:
                return
            except Exception as e:  # nothing is lost: what could not be told is told when it can be
                log.warning("blocked_queues_not_told", error=f"{type(e).__name__}: {e}")
                wait_s = RETRY_S

    async def tell_blocked(self, send: Send) -> None:
        """One event for each queue whose head is blocked, once for each job and reason.

        Raises:
            What `send` raises.
        """
        if self._kernel is None or self._blocked is None:
            return
        for queue in await self._kernel.describe_job_queues():
            head = await self._kernel.queue_head(queue.name)
            reason = None if head is None else await self._blocked.reason_of(head.id, queue.name)
            if head is None or reason is None:
                self._told.pop(queue.name, None)
                continue
            told = head.id, reason.partition(" - ")[0]
            job = await self._find(head.id)
            if job is None or self._told.get(queue.name) == told:
                continue
            await send([await self._queue_blocked(job, reason)])
            self._told[queue.name] = told

    async def _queue_blocked(self, job: JobDetail, reason: str) -> Shaped:
        shown = structs.replace(job, status=JobStatus.RUNNABLE, status_reason=reason)
        detail = job_shape(self._place, shown, await self._definition(job))
        at = datetime.now(UTC)
        name = f"anybatch:blocked:{self._kernel_id}:{job.id}:{reason}:{at.isoformat()}"
        resources = [detail["jobArn"], detail["jobQueue"]]
        return envelope(self._place, QUEUE_BLOCKED, QUEUE_BLOCKED_TYPE, name, at, resources, detail)

    async def _state_change(self, event: JobEvent) -> Shaped:
        detail = await self._detail(event)
        # The child's id is part of it: children of one run share the event's.
        name = f"anybatch:event:{self._kernel_id}:{event.id.epoch}.{event.id.sequence}:{event.job_id}"
        return envelope(self._place, STATE_CHANGE, STATE_CHANGE_TYPE, name, event.at, [detail["jobArn"]], detail)

    async def _detail(self, event: JobEvent) -> dict[str, Any]:
        """EB-2."""
        job = await self._find(event.job_id)
        if job is None:
            return bare(self._place, event)
        return job_shape(self._place, as_of(job, event), await self._definition(job))

    async def _find(self, job_id: str) -> JobDetail | None:
        if self._kernel is None:
            return None
        try:
            return await self._kernel.describe_job(job_id)
        except RequestError:
            return None  # it is no longer kept

    async def _definition(self, job: JobDetail) -> Compiled | None:
        if job.definition is None or self._kernel is None:
            return None
        found = self._compiled.get(job.definition)
        if found is None:
            if len(self._compiled) >= COMPILED_MAX:
                self._compiled.clear()
            detail = await self._kernel.describe_job_definition(job.definition)
            found = self._compiled[job.definition] = compile_definition(detail)
        return found


def envelope(
    place: Place, kind: str, type_name: str, name: str, at: datetime, resources: list[str], detail: dict[str, Any]
) -> Shaped:
    """EventBridge's envelope (EB-3). `name` says which event it is: the id is made of it, the same each time."""
    ident = str(uuid5(NAMESPACE_URL, name))
    time = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    record = {
        "version": "0",
        "id": ident,
        "detail-type": kind,
        "source": "aws.batch",
        "account": place.account,
        "time": time,
        "region": place.region,
        "resources": resources,
        "detail": detail,
    }
    return Shaped(record=record, id=ident, type=type_name, time=time, subject=detail["jobId"])


def bare(place: Place, event: JobEvent) -> dict[str, Any]:
    """What can be said of a job that is no longer kept."""
    found: dict[str, Any] = {
        "jobArn": place.arn("job", event.job_id),
        "jobName": event.job_name,
        "jobId": event.job_id,
        "jobQueue": place.arn("job-queue", event.queue),
        "status": event.status.value,
        "attempts": [],
    }
    if event.status_reason is not None:
        found["statusReason"] = event.status_reason
    if event.status in ENDED:
        found["stoppedAt"] = to_ms(event.at)
    return found


def as_of(job: JobDetail, event: JobEvent) -> JobDetail:
    """The job, or child, as it was when this happened to it, out of how it is now."""
    attempts = _attempts(job, event)
    last = attempts[-1] if attempts else None
    is_parent = job.status_summary is not None
    ended = event.status in ENDED
    code = event.exit_codes[0] if event.exit_codes else None
    stopped_at = event.at if ended else None if last is None else last.stopped_at
    return structs.replace(
        job,
        status=event.status,
        status_reason=event.status_reason,
        reason=event.reason,
        exit_code=code,
        attempts=attempts,
        started_at=_at_most(job.started_at, event.at) if is_parent else None if last is None else last.started_at,
        stopped_at=stopped_at,
        changed_at=event.at,
    )


def _attempts(job: JobDetail, event: JobEvent) -> tuple[AttemptDetail, ...]:
    """Those that there had been; the one that the event is about ended only if the event is its end."""
    found = []
    for attempt in job.attempts:
        if event.attempt is None:  # of no attempt: it was let run, at first or again, or failed by another cause
            if attempt.stopped_at is not None and (
                attempt.stopped_at < event.at or (attempt.stopped_at == event.at and event.status in ENDED)
            ):
                found.append(attempt)
        elif attempt.number < event.attempt or (attempt.number == event.attempt and event.exit_codes is not None):
            found.append(attempt)
        elif attempt.number == event.attempt:
            started_at = attempt.started_at if event.status is JobStatus.RUNNING else None
            found.append(
                structs.replace(
                    attempt, started_at=started_at, stopped_at=None, exit_code=None, status_reason=None, reason=None
                )
            )
    return tuple(found)


def _at_most(when: datetime | None, most: datetime) -> datetime | None:
    return when if when is not None and when <= most else None
