"""Retention: ended jobs are forgotten after a while, SUCCEEDED ones sooner than FAILED ones.

A job is kept as long as its queue says (24 hours and 7 days unless told otherwise), counted from its end, and
in any case while an unfinished job depends on it. Forgetting is an event like any other: it happens on a
tick, and what is forgotten is gone from every index at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final

from .events import AnyEvent, ForgottenJob, JobsForgotten
from .indexes import keep
from .model import RETAIN_FAILED_MS, RETAIN_SUCCEEDED_MS, DependencyType
from .state import JobRow, KernelState
from .states import SUCCEEDED
from .waits import unlink

FORGOTTEN_MOST: Final = 1000
"""Jobs forgotten in one step; the rest follows in the next."""


def forgotten_at_ms(state: KernelState, job: JobRow) -> int:
    """When an ended job may be forgotten."""
    queue = state.queues.get(job.queue)
    succeeded = (job.children.status[0] if job.size is None else job.parent) == SUCCEEDED
    if queue is None:
        kept = RETAIN_SUCCEEDED_MS if succeeded else RETAIN_FAILED_MS
    else:
        kept = queue.body.retain_succeeded_ms if succeeded else queue.body.retain_failed_ms
    return ended_ms(job) + kept


def ended_ms(job: JobRow) -> int:
    """When an ended job ended."""
    return job.parent_stopped_ms if job.size is not None else job.children.stopped_ms(0)


def refer(state: KernelState, job: JobRow) -> None:
    """An unfinished job keeps those that it depends on. (Of one that was reopened some may be forgotten.)"""
    for dependency in job.depends_on:
        other = state.jobs.get(dependency.job)
        if dependency.type is not DependencyType.SEQUENTIAL and other is not None:
            other.referrers += 1


def let_go(state: KernelState, job: JobRow) -> None:
    """A job has ended: it no longer keeps others, and its own time runs."""
    expect(state, job)
    for dependency in job.depends_on:
        other = state.jobs.get(dependency.job)
        if other is not None:
            other.referrers -= 1
            if not other.referrers and other.ended:
                expect(state, other)


def expect(state: KernelState, job: JobRow) -> None:
    """Enter the time at which an ended job may be forgotten; an entry that comes too early is put back."""
    heapq.heappush(state.expiries, (forgotten_at_ms(state, job), job.serial))


def decide_forget(state: KernelState) -> Iterator[AnyEvent]:
    """The jobs whose time has come. One that is still depended on comes back when it no longer is."""
    due: set[int] = set()
    while state.expiries and state.expiries[0][0] <= state.now_ms and len(due) < FORGOTTEN_MOST:
        _, serial = heapq.heappop(state.expiries)
        job = state.jobs.get(serial)
        if job is None or not job.ended or job.referrers:
            continue
        if forgotten_at_ms(state, job) > state.now_ms:
            expect(state, job)
        else:
            due.add(serial)
    if due:
        rows = [state.jobs[serial] for serial in sorted(due)]
        yield JobsForgotten(
            tuple(ForgottenJob(r.serial, r.job_id, r.name, r.queue, r.size, keep(r.indexes)) for r in rows)
        )


def forget(state: KernelState, serial: int) -> None:
    """Take a job out of every index."""
    job = state.jobs.pop(serial)
    unlink(state, job)
    del state.ids[job.job_id]
    if job.token is not None and state.tokens.get(job.token) == serial:
        del state.tokens[job.token]
    names = state.names[job.name]
    names.finished.discard(serial)
    if not names.finished and not names.unfinished:
        del state.names[job.name]
