"""Deciding a rerun: what has FAILED of a job runs again, in the same job, under the same indexes.

Chosen are the failed children, or the one that is asked for, or a single job that failed. Those that have had an
attempt had all that they waited for, and wait for it no more. Those that never had one (they failed by a dependency,
or were cancelled before) are looked at anew: they are left FAILED where what they wait for is still lost. With
`dependents`, jobs that failed by a dependency on what runs again follow, and so on down; a job is always later
than those that it depends on, so that going by serial meets each after all that it waits for.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Iterator, Sequence

from .children import NUMBER_MAX
from .errors import Conflict, QuotaExceeded
from .events import AnyEvent, ParentReopened, RerunRequested, WorkReopened, run_fields
from .inputs import RerunJob
from .model import PLAIN, TEXT_DEPENDENCY_FAILED, DependencyType, On, ResourceState, ResourceStatus
from .state import JobRow, KernelState
from .states import FAILED, STATUSES
from .submit import find_job
from .waits import is_answered, is_answered_for, is_lost, status_of

Told = list[tuple[int, int]]
"""(job, how many of its children, 1 for a single job) of each job that runs again, the one asked for first."""


def decide_rerun(state: KernelState, request: RerunJob) -> tuple[Iterable[AnyEvent], Told]:
    """The events, and the reply, which is complete once the last event is applied.

    Raises:
        NotFound: there is no such job.
        Conflict: nothing of it can run again, or its queue takes no jobs; the message says why.
        QuotaExceeded: there are as many unfinished jobs as there may be.
    """
    job, index = find_job(state, request.job)
    why = _closed(state, job)
    if why is not None:
        raise Conflict("job", request.job, why)
    if job.ended and state.unfinished >= state.quotas.unfinished_jobs_max:
        allowed = f"at most {state.quotas.unfinished_jobs_max} unfinished jobs (quota unfinished_jobs_max)"
        raise QuotaExceeded("job", request.job, allowed)
    chosen = _chosen(state, job, index, request.job)
    told: Told = []
    return _rerun(state, job, index, chosen, request, told), told


def _closed(state: KernelState, job: JobRow) -> str | None:
    """Why nothing of the job can run now; None if it can."""
    queue = state.queues.get(job.queue)
    if queue is None:
        return f"its queue {job.queue!r} is gone; submit it again, to another"
    if queue.status is not ResourceStatus.VALID:
        return f"its queue {job.queue!r} is {queue.status}"
    if queue.body.state is not ResourceState.ENABLED:
        return f"its queue {job.queue!r} is DISABLED and takes no jobs; update it to ENABLED first"
    if job.is_given_up and not job.ended:
        verb = "terminated" if job.terminated else "cancelled" if job.cancelled else "stopped by its max_failures"
        return f"it was {verb}, and {len(job.live())} of its attempts have yet to end; wait for them first"
    return None


def _chosen(state: KernelState, job: JobRow, index: int | None, name: str) -> Sequence[int]:
    if job.size is not None and index is not None:
        status = job.children.status[index]
        if status != FAILED:
            raise Conflict("child", name, f"it is {STATUSES[status]}; only what has FAILED is run again")
        failed: Sequence[int] = [index]
    else:
        failed = job.children.with_status(FAILED)
        if not len(failed):
            what = "nothing of it has FAILED" if job.size is None else "none of its children has FAILED"
            raise Conflict("job", name, f"it is {job.status}: {what}, and only that is run again")
    chosen, why = hopeful(state, job, failed)
    if not chosen:
        raise Conflict("job", name, why)
    return chosen


def hopeful(state: KernelState, job: JobRow, failed: Sequence[int]) -> tuple[list[int], str]:
    """Those that can run again, ascending, and why the last of the others cannot."""
    why = whole = _lost_whole(state, job)
    number, statuses = job.children.number, job.children.status
    chosen: dict[int, None] = {}
    for i in failed:
        if number[i] >= NUMBER_MAX:
            why = f"it has had {NUMBER_MAX} attempts, the most that are counted"
            continue
        hindrance = None if number[i] else whole or _lost_match(state, job, i)
        is_next = job.sequential is not None and i > 0 and i - 1 not in chosen
        if hindrance is None and is_next and is_lost(job.sequential or On.SUCCESS, statuses[i - 1]):
            before, own = job.index_of(i - 1), job.index_of(i)
            hindrance = f"child {before}, after which child {own} runs, is FAILED; run it again too"
        if hindrance is None:
            chosen[i] = None
        else:
            why = hindrance
    return list(chosen), why or ""


def _lost_whole(state: KernelState, job: JobRow) -> str | None:
    """Why a child that never ran can still not: one of the jobs that all of them wait for."""
    for n, dependency in enumerate(job.depends_on):
        if dependency.type in PLAIN and not is_answered(job, n):
            other = state.jobs.get(dependency.job)
            if other is None:
                return _forgotten(dependency.job_id)
            status = status_of(other, dependency.index)
            if is_lost(dependency.on, status):
                return _still(other.child_id(dependency.index), status)
    return None


def _lost_match(state: KernelState, job: JobRow, index: int) -> str | None:
    """The same for the children that this one alone waits for."""
    for n, serial, on in job.n_to_n:
        if not is_answered_for(job, n, index):
            other = state.jobs.get(serial)
            if other is None:
                return _forgotten(job.depends_on[n].job_id)
            if is_lost(on, other.children.status[index]):
                return _still(other.child_id(index), other.children.status[index])
    return None


def _forgotten(job_id: str | None) -> str:
    return f"it failed by a dependency on job {job_id}, which is no longer kept; submit it again"


def _still(name: str, status: int) -> str:
    text = f"it failed by its dependency on {name}, which is still {STATUSES[status]}"
    return f"{text}; run that again, with dependents=True" if status == FAILED else text


# -- events ------------------------------------------------------------------------------------------------------


def _rerun(
    state: KernelState, job: JobRow, index: int | None, chosen: Sequence[int], request: RerunJob, told: Told
) -> Iterator[AnyEvent]:
    one = None if job.size is None else index
    yield RerunRequested(job.serial, one, request.dependents, request.principal, request.request_id)
    yield from _reopened(job, chosen, told)
    if not request.dependents:
        return
    again: dict[int, Container[int]] = {job.serial: set(chosen)}
    ahead, seen = _followers(job, chosen), {job.serial}
    heapq.heapify(ahead)
    while ahead:
        follower = state.jobs[heapq.heappop(ahead)]
        if follower.serial in seen:
            continue
        seen.add(follower.serial)
        found = [] if _closed(state, follower) else hopeful(state, follower, _concerned(follower, again))[0]
        if found:
            again[follower.serial] = set(found)
            yield from _reopened(follower, found, told)
            for serial in _followers(follower, found):
                heapq.heappush(ahead, serial)


def _reopened(job: JobRow, chosen: Sequence[int], told: Told) -> Iterator[AnyEvent]:
    told.append((job.serial, len(chosen)))
    if job.size is not None and job.ended:
        yield ParentReopened(job.serial)
    yield WorkReopened(job.serial, *run_fields(chosen))


def _followers(job: JobRow, chosen: Sequence[int]) -> list[int]:
    """The jobs that name this one, or one of these children."""
    named = [serial for i in chosen for serial, _ in job.child_dependents.get(i, ())]
    return [*named, *(serial for serial, _ in job.dependents)]


def _concerned(job: JobRow, again: dict[int, Container[int]]) -> list[int]:
    """The children that failed by a dependency on what runs again."""
    children = job.children
    failed = [i for i in children.with_status(FAILED) if children.cause_of(i).status_reason == TEXT_DEPENDENCY_FAILED]
    found: set[int] = set()
    for dependency in job.depends_on:
        if dependency.job not in again:
            continue
        if dependency.type is DependencyType.N_TO_N:
            found.update(i for i in failed if i in again[dependency.job])
        elif dependency.index is None or dependency.index in again[dependency.job]:
            found.update(failed)
    if job.sequential is not None:
        for i in failed:
            if i - 1 in found:
                found.add(i)
    return sorted(found)
