"""follow: what a fact brings about at once: dependents released or failed, parents ended, queues emptied.

Called after `evolve` has applied an event; reads the state and yields further events. Each is applied,
and followed in turn, before the next is asked for, so that every event is worked out from the state as
it then is: two paths to the same dependent cannot fail it twice. The consequences are journaled like
their cause and in the same commit, so recovery never has to work them out again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .events import (
    AnyEvent,
    AttemptsEnded,
    CancelRequested,
    JobSubmitted,
    ParentEnded,
    ParentHeld,
    QueueDeleted,
    WorkFailed,
    WorkHeld,
    WorkReleased,
    run_fields,
)
from .model import TEXT_DEPENDENCY_FAILED, DependencyType, ResourceStatus
from .state import JobRow, KernelState
from .states import FAILED, PENDING, RUNNABLE, SUBMITTED, SUCCEEDED


def follow(state: KernelState, event: AnyEvent) -> Iterator[AnyEvent]:
    """The events that `event`, just applied, brings about."""
    match event:
        case AttemptsEnded():
            if event.status != RUNNABLE:
                yield from _children_ended(
                    state, state.jobs[event.job], event.each(), succeeded=event.status == SUCCEEDED
                )
        case WorkFailed():
            yield from _children_ended(state, state.jobs[event.job], event.each(), succeeded=False)
        case CancelRequested():
            yield from _cancelled(state.jobs[event.job], event)
        case JobSubmitted():
            yield from _submitted(state, state.jobs[event.serial])
        case ParentEnded():
            yield from _job_ended(state, state.jobs[event.job], succeeded=event.succeeded)
        case _:
            return


def _cancelled(job: JobRow, event: CancelRequested) -> Iterator[AnyEvent]:
    """All that waits of what is cancelled or terminated fails at once (contract 2.5, CT-3)."""
    if event.index is not None:
        if job.children.status[event.index] <= RUNNABLE:
            yield WorkFailed(job.serial, event.index, event.index + 1, None, event.reason)
        return
    for status in (SUBMITTED, PENDING, RUNNABLE):
        waiting = job.children.with_status(status)
        if len(waiting):
            yield WorkFailed(job.serial, *run_fields(waiting), event.reason)


def _submitted(state: KernelState, job: JobRow) -> Iterator[AnyEvent]:
    if job.size is not None:
        yield ParentHeld(job.serial)
    everyone: Sequence[int] = range(job.children.size)
    failed = _failed_at_submit(state, job)
    ready: Sequence[int] = range(0)
    if not job.blockers and len(failed) < len(everyone):
        gone = set(failed)
        ready = _ready(state, job, [i for i in everyone if i not in gone] if gone else everyone)
    held: Sequence[int] = everyone
    if len(ready):
        chosen = set(ready) if len(ready) < len(everyone) else None
        held = [i for i in everyone if i not in chosen] if chosen is not None else range(0)
    if len(held):
        yield WorkHeld(job.serial, *run_fields(held))
    if len(failed):
        yield WorkFailed(job.serial, *run_fields(failed), TEXT_DEPENDENCY_FAILED)
    yield from _released(job, ready)


def _failed_at_submit(state: KernelState, job: JobRow) -> Sequence[int]:
    """The children that fail because what they depend on has already FAILED."""
    failed: set[int] = set()
    for dependency in job.depends_on:
        if dependency.type is DependencyType.SEQUENTIAL:
            continue
        other = state.jobs[dependency.job]
        if dependency.type is DependencyType.N_TO_N:
            failed.update(other.children.with_status(FAILED))
        elif dependency.index is not None:
            if other.children.status[dependency.index] == FAILED:
                return range(job.children.size)
        elif other.ended and not _succeeded(other):
            return range(job.children.size)
    return sorted(failed)


def _succeeded(job: JobRow) -> bool:
    return (job.children.status[0] if job.size is None else job.parent) == SUCCEEDED


def _is_ready(state: KernelState, job: JobRow, index: int) -> bool:
    return job.is_ready(index) and all(state.jobs[s].children.status[index] == SUCCEEDED for s in job.n_to_n)


def _ready(state: KernelState, job: JobRow, candidates: Sequence[int]) -> Sequence[int]:
    """Those of the candidates that wait for no other child; whole-job blockers are the caller's."""
    if not len(candidates):
        return candidates  # nor may the jobs be there that an ended job has waited for
    if job.sequential:
        return [i for i in candidates if _is_ready(state, job, i)]
    for serial in job.n_to_n:
        other = state.jobs[serial].children
        if other.counts[SUCCEEDED] < other.size:
            candidates = [i for i in candidates if other.status[i] == SUCCEEDED]
    return candidates


def _released(job: JobRow, indexes: Sequence[int]) -> Iterator[AnyEvent]:
    if len(indexes):
        yield WorkReleased(job.serial, *run_fields(indexes))


def _failed(job: JobRow, indexes: Sequence[int]) -> Iterator[AnyEvent]:
    if len(indexes):
        yield WorkFailed(job.serial, *run_fields(indexes), TEXT_DEPENDENCY_FAILED)


def _children_ended(state: KernelState, job: JobRow, indexes: Sequence[int], *, succeeded: bool) -> Iterator[AnyEvent]:
    """Children (or a single job) have ended: who waited for just these, and has the whole ended with them?"""
    if job.sequential:
        for i in indexes:
            yield from _next_in_sequence(state, job, i + 1, succeeded=succeeded)
    for serial, kind in job.dependents:
        if kind is DependencyType.N_TO_N and serial in state.jobs:
            yield from _matching_children(state, state.jobs[serial], indexes, succeeded=succeeded)
    if job.child_dependents:
        which = indexes if isinstance(indexes, range) else set(indexes)
        for i, waiting in job.child_dependents.items():
            for serial in [s for s in waiting if s in state.jobs] if i in which else ():
                yield from _dependency_ended(state, state.jobs[serial], succeeded=succeeded)
    if job.size is None:
        yield from _job_ended(state, job, succeeded=succeeded)
        return
    counts = job.children.counts
    if counts[SUCCEEDED] + counts[FAILED] == job.size and job.parent == PENDING:
        yield ParentEnded(job.serial, counts[FAILED] == 0)


def _next_in_sequence(state: KernelState, job: JobRow, after: int, *, succeeded: bool) -> Iterator[AnyEvent]:
    """SEQUENTIAL: success frees the next child, failure fails all that follow (DEP-8)."""
    status = job.children.status
    if after >= job.children.size or status[after] != PENDING:
        return
    if succeeded:
        if not job.blockers and _is_ready(state, job, after):
            yield WorkReleased(job.serial, after, after + 1, None)
    else:
        tail = status[after:]
        stop = after + len(tail) - len(tail.lstrip(bytes((PENDING,))))
        yield WorkFailed(job.serial, after, stop, None, TEXT_DEPENDENCY_FAILED)


def _matching_children(
    state: KernelState, job: JobRow, indexes: Sequence[int], *, succeeded: bool
) -> Iterator[AnyEvent]:
    """N_TO_N: the children of `job` with these indexes (DEP-7)."""
    children = job.children
    if children.counts[PENDING] == children.size:
        waiting = indexes
    else:
        waiting = [i for i in indexes if children.status[i] == PENDING]
    if not succeeded:
        yield from _failed(job, waiting)
    elif not job.blockers:
        yield from _released(job, _ready(state, job, waiting))


def _dependency_ended(state: KernelState, job: JobRow, *, succeeded: bool) -> Iterator[AnyEvent]:
    """A whole job, or one child, that all of `job` waits for has ended."""
    waiting = job.children.with_status(PENDING)
    if not succeeded:
        yield from _failed(job, waiting)
    elif not job.blockers:
        yield from _released(job, _ready(state, job, waiting))


def _job_ended(state: KernelState, job: JobRow, *, succeeded: bool) -> Iterator[AnyEvent]:
    for serial, kind in job.dependents:
        if kind is DependencyType.AFTER_SUCCESS and serial in state.jobs:
            yield from _dependency_ended(state, state.jobs[serial], succeeded=succeeded)
    queue = state.queues.get(job.queue)
    if queue is not None and queue.status is ResourceStatus.DELETING and not queue.unfinished:
        yield QueueDeleted(queue.name, True, None, None)
