"""Waiting: who waits for whom, and which ends answer it.

An entry of `depends_on` asks for one end of what it names: success, failure, or either. It is answered by the first
such end, and stays answered whatever happens there later (a rerun). What is answered is kept per entry, as a bit of
`JobRow.answered`, and per child where that is what N_TO_N is about: a child that has had an attempt waits for nothing
but its own array's order. Every job has in its indexes all entries that name it, from their submit until either is
forgotten; whether one still waits is worked out when an end comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .model import PLAIN, TEXT_DEPENDENCY_FAILED, TEXT_NOT_NEEDED, Dependency, DependencyType, On
from .state import JobRow, KernelState, writable
from .states import FAILED, SUCCEEDED


def is_met(on: On, status: int) -> bool:
    """Whether a status is an end that was waited for."""
    if on is On.SUCCESS:
        return status == SUCCEEDED
    return status == FAILED or (status == SUCCEEDED and on is On.ANY)


def is_lost(on: On, status: int) -> bool:
    """Whether a status is an end after which the one that was waited for does not come."""
    return status >= SUCCEEDED and not is_met(on, status)


def why_lost(on: On) -> str:
    """The status reason of what waited for the other end."""
    return TEXT_NOT_NEEDED if on is On.FAILURE else TEXT_DEPENDENCY_FAILED


def status_of(job: JobRow, index: int | None) -> int:
    """The status byte of a job as a whole, or of one of its children."""
    if index is None:
        return job.parent if job.size is not None else job.children.status[0]
    return job.children.status[index]


# -- the indexes, and what is answered: written by `evolve` alone ------------------------------------------------


def link(state: KernelState, job: JobRow) -> None:
    """Enter a job where those that it names will find it."""
    n_to_n = []
    for n, dependency in enumerate(job.depends_on):
        if dependency.type is DependencyType.SEQUENTIAL:
            job.sequential = dependency.on
            continue
        if dependency.type is DependencyType.N_TO_N:
            n_to_n.append((n, dependency.job, dependency.on))
        other = state.jobs.get(dependency.job)
        if other is None:
            continue  # forgotten, as only what an ended job depended on can be
        if dependency.index is not None:
            other.child_dependents = named = writable(other.child_dependents)
            named.setdefault(dependency.index, {})[job.serial, n] = None
        else:
            other.dependents = whole = writable(other.dependents)
            whole[job.serial, n] = None
    job.n_to_n = tuple(n_to_n)


def unlink(state: KernelState, job: JobRow) -> None:
    """Take a job, which is forgotten, out again."""
    for n, dependency in enumerate(job.depends_on):
        other = state.jobs.get(dependency.job)
        if other is None:
            continue
        if dependency.index is None:
            writable(other.dependents).pop((job.serial, n), None)
        else:
            named = writable(other.child_dependents)
            waiting = named[dependency.index]
            waiting.pop((job.serial, n), None)
            if not waiting:
                del named[dependency.index]


def look(state: KernelState, job: JobRow) -> None:
    """Find out what a job waits for: its entries that no end has answered yet."""
    job.blockers = 0
    for n, dependency in enumerate(job.depends_on):
        other = state.jobs.get(dependency.job)
        if other is not None and not is_answered(job, n):
            _note(job, n, dependency, status_of(other, dependency.index))
            job.blockers += dependency.type in PLAIN and not is_answered(job, n)


def whole_ended(state: KernelState, job: JobRow, status: int) -> None:
    """A job has ended: it answers those who wait for it as a whole."""
    for serial, n in job.dependents:
        _answer(state.jobs[serial], n, status)


def children_ended(state: KernelState, job: JobRow, indexes: Sequence[int], status: int) -> None:
    """Children have ended: they answer those who wait for just them."""
    for serial, n in watchers(job, indexes):
        _answer(state.jobs[serial], n, status)


def _answer(job: JobRow, n: int, status: int) -> None:
    if not job.ended and not is_answered(job, n):
        dependency = job.depends_on[n]
        _note(job, n, dependency, status)
        job.blockers -= dependency.type in PLAIN and is_answered(job, n)


def _note(job: JobRow, n: int, dependency: Dependency, status: int) -> None:
    """Note that an entry is answered, if this status does. One of N_TO_N: once every child's wait is."""
    if dependency.type is not DependencyType.N_TO_N:
        met = is_met(dependency.on, status)
    elif status == FAILED:
        met = dependency.on is On.ANY
    else:
        met = status == SUCCEEDED and dependency.on is not On.FAILURE
    if met:
        job.answered |= 1 << n


# -- questions ---------------------------------------------------------------------------------------------------


def is_answered(job: JobRow, n: int) -> bool:
    """Whether an entry, given by its place in `depends_on`, is answered for all of the job."""
    return bool(job.answered >> n & 1)


def watchers(job: JobRow, indexes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Who names one of these children: (serial, place of the entry)."""
    watched = job.child_dependents
    if not watched:
        return
    if len(indexes) <= len(watched):
        found = [i for i in indexes if i in watched]
    else:
        which = indexes if isinstance(indexes, range) else set(indexes)
        found = [i for i in sorted(watched) if i in which]
    for i in found:
        yield from watched[i]


def is_answered_for(job: JobRow, n: int, index: int) -> bool:
    """Whether an N_TO_N entry is answered for one child, whatever its counterpart's status is now."""
    return is_answered(job, n) or job.children.number[index] > 0 or index in job.children_answered.get(n, ())


def is_ready(state: KernelState, job: JobRow, index: int) -> bool:
    """Whether this child waits for no other child any more; whole jobs are not looked at."""
    if job.sequential is not None and index and not is_met(job.sequential, job.children.status[index - 1]):
        return False
    return all(
        is_answered_for(job, n, index) or is_met(on, state.jobs[serial].children.status[index])
        for n, serial, on in job.n_to_n
    )


def ready(state: KernelState, job: JobRow, candidates: Sequence[int]) -> Sequence[int]:
    """Those of the candidates that wait for no other child; whole jobs are the caller's."""
    if not len(candidates):
        return candidates
    if job.sequential is not None:
        return [i for i in candidates if is_ready(state, job, i)]
    for n, serial, on in job.n_to_n:
        if is_answered(job, n):
            continue
        other = state.jobs[serial].children
        candidates = [i for i in candidates if is_met(on, other.status[i]) or is_answered_for(job, n, i)]
    return candidates


def lost_at_submit(state: KernelState, job: JobRow) -> dict[str, Sequence[int]]:
    """The children that fail because what they wait for does not come any more, by status reason."""
    lost: dict[str, Sequence[int]] = {}
    gone: set[int] = set()
    for dependency in job.depends_on:
        if dependency.type is DependencyType.SEQUENTIAL:
            continue
        other = state.jobs[dependency.job]
        if dependency.type is not DependencyType.N_TO_N:
            if is_lost(dependency.on, status_of(other, dependency.index)):
                return {why_lost(dependency.on): range(job.children.size)}
        elif dependency.on is not On.ANY:
            wrong = other.children.with_status(FAILED if dependency.on is On.SUCCESS else SUCCEEDED)
            reason = why_lost(dependency.on)
            lost[reason] = sorted({*lost.get(reason, ()), *(i for i in wrong if i not in gone)})
            gone.update(wrong)
    return {reason: indexes for reason, indexes in lost.items() if indexes}
