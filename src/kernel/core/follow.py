"""follow: what a fact brings about at once: dependents released or failed, parents ended, queues emptied.

Called after `evolve` has applied an event; reads the state and yields further events. Each is applied,
and followed in turn, before the next is asked for, so that every event is worked out from the state as
it then is: two paths to the same dependent cannot fail it twice. The consequences are journaled like
their cause and in the same commit, so recovery never has to work them out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from .events import (
    AnyEvent,
    ArrayStopped,
    AttemptsEnded,
    CancelRequested,
    JobSubmitted,
    ParentEnded,
    ParentHeld,
    QueueDeleted,
    WorkFailed,
    WorkHeld,
    WorkReleased,
    WorkReopened,
    run_fields,
)
from .model import DependencyType, OnMaxFailures, ResourceStatus, stopped_text
from .state import JobRow, KernelState
from .states import FAILED, PENDING, RUNNABLE, SUBMITTED, SUCCEEDED
from .waits import (
    is_answered,
    is_answered_for,
    is_lost,
    is_met,
    is_ready,
    lost_at_submit,
    ready,
    status_of,
    watchers,
    why_lost,
)


def follow(state: KernelState, event: AnyEvent) -> Iterator[AnyEvent] | None:
    """The events that `event`, just applied, brings about; None: there are none."""
    rule = _RULES.get(type(event))
    return None if rule is None else rule(state, event)


def _attempts_ended(state: KernelState, event: AttemptsEnded) -> Iterator[AnyEvent]:
    job = state.jobs[event.job]
    if event.status == FAILED:
        yield from _too_many(job)
    if event.status != RUNNABLE:
        yield from _children_ended(state, job, event.each(), event.status)


def _work_failed(state: KernelState, event: WorkFailed) -> Iterator[AnyEvent]:
    return _children_ended(state, state.jobs[event.job], event.each(), FAILED)


def _array_stopped(state: KernelState, event: ArrayStopped) -> Iterator[AnyEvent]:
    return _ended_unrun(state.jobs[event.job], event.reason)


def _parent_ended(state: KernelState, event: ParentEnded) -> Iterator[AnyEvent]:
    return _job_ended(state, state.jobs[event.job])


def _cancelled(state: KernelState, event: CancelRequested) -> Iterator[AnyEvent]:
    """All that waits of what is cancelled or terminated fails at once (contract 2.5, CT-3)."""
    job = state.jobs[event.job]
    if event.index is not None:
        if job.children.status[event.index] <= RUNNABLE:
            yield WorkFailed(job.serial, event.index, event.index + 1, None, event.reason)
        return
    yield from _ended_unrun(job, event.reason)


def _ended_unrun(job: JobRow, reason: str) -> Iterator[AnyEvent]:
    for status in (SUBMITTED, PENDING, RUNNABLE):
        waiting = job.children.with_status(status)
        if len(waiting):
            yield WorkFailed(job.serial, *run_fields(waiting), reason)


def _too_many(job: JobRow) -> Iterator[AnyEvent]:
    """An array whose children have FAILED as often as they may goes no further. Decision 0043."""
    most, counts = job.spec.max_failures, job.children.counts
    if most is None or job.size is None or job.failures < most:
        return
    terminate = job.spec.on_max_failures is OnMaxFailures.TERMINATE
    over = job.stopped is not None or job.terminated or (job.cancelled and not terminate)
    if not over and counts[SUCCEEDED] + counts[FAILED] < job.size:
        yield ArrayStopped(job.serial, terminate, stopped_text(job.failures, most))


def _submitted(state: KernelState, event: JobSubmitted) -> Iterator[AnyEvent]:
    job = state.jobs[event.serial]
    if job.size is not None:
        yield ParentHeld(job.serial)
    everyone: Sequence[int] = range(job.children.size)
    lost = lost_at_submit(state, job)
    gone = {i for indexes in lost.values() for i in indexes}
    waiting: Sequence[int] = range(0)
    if not job.blockers and len(gone) < len(everyone):
        waiting = ready(state, job, [i for i in everyone if i not in gone] if gone else everyone)
    held: Sequence[int] = everyone
    if len(waiting):
        chosen = set(waiting) if len(waiting) < len(everyone) else None
        held = [i for i in everyone if i not in chosen] if chosen is not None else range(0)
    if len(held):
        yield WorkHeld(job.serial, *run_fields(held))
    for reason, indexes in lost.items():
        # What is lost may have failed in the meantime, with the child before it in a sequence.
        yield from _failed(job, [i for i in indexes if job.children.status[i] == PENDING], reason)
    yield from _released(job, waiting)


def _reopened(state: KernelState, event: WorkReopened) -> Iterator[AnyEvent]:
    """What has had an attempt waits for its own array's order at most; the rest is looked at anew."""
    job = state.jobs[event.job]
    number = job.children.number
    free = [i for i in event.each() if (number[i] or not job.blockers) and is_ready(state, job, i)]
    yield from _released(job, free)


def _released(job: JobRow, indexes: Sequence[int]) -> Iterator[AnyEvent]:
    if len(indexes):
        yield WorkReleased(job.serial, *run_fields(indexes))


def _failed(job: JobRow, indexes: Sequence[int], reason: str) -> Iterator[AnyEvent]:
    if len(indexes):
        yield WorkFailed(job.serial, *run_fields(indexes), reason)


def _children_ended(state: KernelState, job: JobRow, indexes: Sequence[int], status: int) -> Iterator[AnyEvent]:
    """Children (or a single job) have ended: who waited for just these, and has the whole ended with them?"""
    if job.sequential is not None:
        for i in indexes:
            yield from _next_in_sequence(state, job, i + 1, status)
    for serial, n in list(job.dependents):
        other = state.jobs[serial]
        if other.depends_on[n].type is DependencyType.N_TO_N:
            yield from _matching_children(state, other, n, indexes, status)
    for serial, n in list(watchers(job, indexes)):
        yield from _dependency_ended(state, state.jobs[serial], n, status)
    if job.size is None:
        yield from _job_ended(state, job)
        return
    counts = job.children.counts
    if counts[SUCCEEDED] + counts[FAILED] == job.size and job.parent == PENDING:
        yield ParentEnded(job.serial, counts[FAILED] == 0, job.stopped)


def _next_in_sequence(state: KernelState, job: JobRow, after: int, status: int) -> Iterator[AnyEvent]:
    """SEQUENTIAL: the end that is waited for frees the next child, another fails all that follow (DEP-8)."""
    statuses, on = job.children.status, job.sequential
    if after >= job.children.size or statuses[after] != PENDING or on is None:
        return
    if is_met(on, status):
        if not job.blockers and is_ready(state, job, after):
            yield WorkReleased(job.serial, after, after + 1, None)
    else:
        tail = statuses[after:]
        stop = after + len(tail) - len(tail.lstrip(bytes((PENDING,))))
        yield WorkFailed(job.serial, after, stop, None, why_lost(on))


def _matching_children(
    state: KernelState, job: JobRow, n: int, indexes: Sequence[int], status: int
) -> Iterator[AnyEvent]:
    """N_TO_N: the children of `job` with these indexes (DEP-7)."""
    children, on = job.children, job.depends_on[n].on
    waiting = indexes
    if children.counts[PENDING] < children.size:
        waiting = [i for i in indexes if children.status[i] == PENDING]
    if not is_met(on, status):
        yield from _failed(job, [i for i in waiting if not is_answered_for(job, n, i)], why_lost(on))
    elif not job.blockers:
        yield from _released(job, ready(state, job, waiting))


def _dependency_ended(state: KernelState, job: JobRow, n: int, status: int) -> Iterator[AnyEvent]:
    """A whole job, or one child, that all of `job` waits for has ended."""
    if job.ended:
        return
    on = job.depends_on[n].on
    if is_answered(job, n):
        if not job.blockers:
            yield from _released(job, ready(state, job, job.children.with_status(PENDING)))
    elif is_lost(on, status):
        yield from _failed(job, job.children.with_status(PENDING), why_lost(on))


def _job_ended(state: KernelState, job: JobRow) -> Iterator[AnyEvent]:
    status = status_of(job, None)
    for serial, n in list(job.dependents):
        other = state.jobs[serial]
        if other.depends_on[n].type is not DependencyType.N_TO_N:
            yield from _dependency_ended(state, other, n, status)
    queue = state.queues.get(job.queue)
    if queue is not None and queue.status is ResourceStatus.DELETING and not queue.unfinished:
        yield QueueDeleted(queue.name, True, None, None)


_RULES: Final[dict[type[AnyEvent], Callable[[KernelState, Any], Iterator[AnyEvent]]]] = {
    AttemptsEnded: _attempts_ended,
    WorkFailed: _work_failed,
    CancelRequested: _cancelled,
    ArrayStopped: _array_stopped,
    JobSubmitted: _submitted,
    WorkReopened: _reopened,
    ParentEnded: _parent_ended,
}
"""By type, since that is one look-up for every event; nothing follows from the others."""
