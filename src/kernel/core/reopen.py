"""Reopening: what has FAILED goes on. The part of `evolve` that `rerun` needs; see rerun.py for what is chosen."""

from __future__ import annotations

from collections.abc import Sequence

from .children import ORDINARY
from .model import DependencyType, On
from .retention import refer
from .state import JobRow, KernelState, writable
from .states import FAILED, PENDING
from .waits import is_answered, look


def reopen_work(state: KernelState, job: JobRow, indexes: Sequence[int], at_ms: int) -> None:
    """FAILED -> PENDING for these: earlier attempts become history, and every budget counts from here."""
    children, number = job.children, job.children.number
    tried = [i for i in indexes if number[i]]
    waited = [i for i in tried if children.is_archived(i)]
    if waited:
        job.reopened = reopened = writable(job.reopened)
        reopened.update(dict.fromkeys(waited, state.turn))
    children.archive(sorted(set(tried) - set(waited)) if waited else tried)
    _keep_answers(state, job, indexes)
    if job.size is None:
        reopen_job(state, job)
    children.move(indexes, FAILED, PENDING)
    if children.reason is not None:
        children.set_reason(indexes, ORDINARY)
    _, stopped = children.times()
    uncounted, lost, checkpoints, flags = map(writable, (job.uncounted, job.lost, job.checkpoints, job.flags))
    for i in indexes:
        stopped[i] = 0
        if number[i]:
            uncounted[i] = number[i]
        lost.pop(i, None)
        checkpoints.pop(i, None)
        flags.pop(i, None)
    job.uncounted = uncounted
    job.cancelled = job.terminated = False
    job.stopped, job.failures = None, 0
    job.reruns += 1
    job.touched_ms = at_ms


def reopen_job(state: KernelState, job: JobRow) -> None:
    """An ended job goes on: it is found where unfinished ones are, and keeps those that it depends on."""
    names = state.names[job.name]
    names.finished.discard(job.serial)
    names.unfinished[job.serial] = None
    queue = state.queues.get(job.queue)
    if queue is not None:
        queue.unfinished[job.serial] = None
    state.unfinished += 1
    refer(state, job)
    look(state, job)


def _keep_answers(state: KernelState, job: JobRow, indexes: Sequence[int]) -> None:
    """What the failure of these children has answered, child by child, stays answered when it is no more."""
    for serial, n in job.dependents:
        other = state.jobs[serial]
        dependency = other.depends_on[n]
        if dependency.type is not DependencyType.N_TO_N or dependency.on is On.SUCCESS:
            continue
        if not other.ended and not is_answered(other, n):
            waiting = [i for i in indexes if other.children.status[i] == PENDING]
            if waiting:
                other.children_answered = answered = writable(other.children_answered)
                answered.setdefault(n, set()).update(waiting)
