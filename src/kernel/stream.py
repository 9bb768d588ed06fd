"""The event stream: every status change, in order, from any point that is still kept.

A stream reads from the journal and keeps nothing in memory but the page in hand, so a slow reader holds
up nobody. At a kernel's end the stream ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from msgspec import Struct

from .core.children import NO_CODE
from .core.events import (
    AnyEvent,
    AttemptsEnded,
    AttemptsPlaced,
    AttemptsStarted,
    ForgottenJob,
    JobSubmitted,
    ParentEnded,
    ParentHeld,
    ParentReopened,
    WorkFailed,
    WorkHeld,
    WorkReleased,
    WorkReopened,
)
from .core.indexes import kept, shown
from .core.model import TEXT_ATTEMPT_ENDED, TEXT_CHILD_FAILED
from .core.state import JobRow
from .core.states import STATUSES, JobStatus
from .views import to_datetime

if TYPE_CHECKING:
    from .runtime import Runtime
    from .trimming import ForgottenJobs


class EventId(NamedTuple):
    """Where an event stands: the epoch rises each time a kernel opens the journal, the sequence with each event."""

    epoch: int
    sequence: int


class JobEvent(Struct, frozen=True, kw_only=True):
    """A change of status of a job, or of a run of children of one.

    `array_size` is the array's (None: a single job). `indexes` None: the job as a whole (a single job, or an array
    parent). `attempt` is the attempt's number where the change is one of an attempt. `exit_codes` has one entry per
    index (or one for a single job) where attempts have ended. A retried attempt is a change to RUNNABLE with its exit
    codes.
    """

    id: EventId
    at: datetime
    job_id: str
    job_name: str
    queue: str
    status: JobStatus
    array_size: int | None = None
    indexes: Sequence[int] | None = None
    attempt: int | None = None
    exit_codes: Sequence[int | None] | None = None
    status_reason: str | None = None
    reason: str | None = None

    def expand(self) -> Iterator[JobEvent]:
        """One event per child (with `job_id` the child's); itself where it is about the job as a whole."""
        if self.indexes is None:
            yield self
            return
        for n, index in enumerate(self.indexes):
            yield JobEvent(
                id=self.id,
                at=self.at,
                job_id=f"{self.job_id}:{index}",
                job_name=self.job_name,
                queue=self.queue,
                status=self.status,
                array_size=self.array_size,
                indexes=None,
                attempt=self.attempt,
                exit_codes=None if self.exit_codes is None else (self.exit_codes[n],),
                status_reason=self.status_reason,
                reason=self.reason,
            )


def job_event(
    find: Callable[[int], JobRow | ForgottenJob | None], event: AnyEvent, ident: EventId, at_ms: int
) -> JobEvent | int | None:
    """The public event for a journaled one, or None where no job's status changes.

    The serial of the job where `find` does not know it.
    """
    attempt, codes, status_reason, reason = None, None, None, None
    indexes: Sequence[int] | None = None
    match event:
        case JobSubmitted():
            status, serial = JobStatus.SUBMITTED, event.serial
        case ParentHeld(job=serial) | ParentReopened(job=serial):
            status = JobStatus.PENDING
        case ParentEnded(job=serial, succeeded=succeeded, reason=why):
            status = JobStatus.SUCCEEDED if succeeded else JobStatus.FAILED
            status_reason = None if succeeded else why or TEXT_CHILD_FAILED
        case WorkHeld(job=serial) | WorkReopened(job=serial):
            status, indexes = JobStatus.PENDING, event.each()
        case WorkReleased(job=serial):
            status, indexes = JobStatus.RUNNABLE, event.each()
        case WorkFailed(job=serial):
            status, indexes, status_reason = JobStatus.FAILED, event.each(), event.reason
        case AttemptsPlaced(job=serial):
            status, indexes, attempt = JobStatus.STARTING, event.each(), event.number
        case AttemptsStarted(job=serial):
            status, indexes, attempt = JobStatus.RUNNING, event.each(), event.number
        case AttemptsEnded(job=serial):
            status, indexes, attempt = STATUSES[event.status], event.each(), event.number
            status_reason, reason = event.status_reason or TEXT_ATTEMPT_ENDED, event.reason
            found = [event.codes] * len(event) if isinstance(event.codes, int) else event.codes
            codes = tuple(None if code == NO_CODE else code for code in found)
        case _:
            return None
    job = find(serial)
    if job is None:
        return serial
    return JobEvent(
        id=ident,
        at=to_datetime(at_ms),
        job_id=job.job_id,
        job_name=job.name,
        queue=job.queue,
        status=status,
        array_size=job.size,
        indexes=None if job.size is None or indexes is None else _shown(job, indexes),
        attempt=attempt,
        exit_codes=codes,
        status_reason=status_reason,
        reason=reason,
    )


def _shown(job: JobRow | ForgottenJob, places: Sequence[int]) -> Sequence[int]:
    """The indexes of the children at these places."""
    return job.shown(places) if isinstance(job, JobRow) else shown(kept(job.indexes), places)


async def read_events(
    runtime: Runtime, forgotten: ForgottenJobs, after: int, upto: int | None = None
) -> tuple[list[JobEvent], int]:
    """Some of the public events after this sequence number (and not after `upto`), and up to where that reaches.

    It reaches no further than `after` where nothing has come.

    Raises:
        EventsTrimmed: events after that one are no longer kept.
    """
    jobs, gone, found, last = runtime.state.jobs, dict[int, ForgottenJob](), list[JobEvent](), after
    for record in runtime.journal.read(after):
        if upto is not None and record.last > upto:
            break
        for n, event in enumerate(record.events):
            ident = EventId(record.epoch, record.first + n)
            if ident.sequence <= after:
                continue
            made = job_event(lambda serial: jobs.get(serial) or gone.get(serial), event, ident, record.at_ms)
            if isinstance(made, int):
                left = await forgotten.find(made)
                if left is None:
                    continue
                gone[made] = left
                made = job_event(gone.get, event, ident, record.at_ms)
            if isinstance(made, JobEvent):
                found.append(made)
        last = record.last
    return found, last


class EventStream:
    """An async context manager and iterator of `JobEvent`; made by `Kernel.events`."""

    def __init__(self, runtime: Runtime, forgotten: ForgottenJobs, after: int) -> None:
        self._runtime = runtime
        self._forgotten = forgotten
        self._after = after
        self._page_end = after
        self._news = asyncio.Event()
        self._page: Iterator[JobEvent] = iter(())
        self._unlisten: Callable[[], None] | None = None

    async def __aenter__(self) -> Self:
        self._runtime.check_open()
        self._unlisten = self._runtime.listen(self._news.set)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._unlisten is not None:
            self._unlisten()
            self._unlisten = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobEvent:
        if self._unlisten is None:
            raise RuntimeError("use it as `async with kernel.events() as events`")
        while True:
            # Nothing is awaited between taking an event and returning it: a wait that is given up loses none.
            for event in self._page:
                self._after = event.id.sequence
                return event
            self._after = self._page_end
            if not await self._turn_page():
                raise StopAsyncIteration

    async def _turn_page(self) -> bool:
        """Get the next events, or wait for news; False: there is nothing more to come."""
        runtime = self._runtime
        self._news.clear()
        if not runtime.is_closed:
            events, last = await read_events(runtime, self._forgotten, self._after)
            if last > self._after:
                await asyncio.sleep(0)
                self._page, self._page_end = iter(events), last
                return True
        if runtime.failure is not None:
            runtime.check_open()
        if runtime.is_closed:
            return False
        await self._news.wait()
        return True
