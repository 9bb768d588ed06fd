"""explain: why a job is where it is, as stable codes and sentences with figures.

Every rule that can hold a job back names itself here, by looking at the same things as the planner. The first
reason is the one that decides; the others are true as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Final

from msgspec import Struct

from .children import NO_CODE
from .hosts import why_closed
from .model import (
    TEXT_ATTEMPT_ENDED,
    TEXT_DEPENDENCY_FAILED,
    TEXT_NOT_NEEDED,
    DependencyType,
    On,
    ResourceState,
    ResourceStatus,
    Shape,
)
from .placement import Held, could_fit, honours, reservations
from .state import MEMORY_UNCOUNTED, EnvironmentRow, HostRow, JobRow, KernelState, QueueRow
from .states import FAILED, PENDING, RUNNABLE, RUNNING, STARTING, STATUSES, SUCCEEDED
from .waits import is_answered, is_answered_for, is_lost, is_met, status_of

NAMED_MAX: Final = 5
"""Jobs, environments or hosts that one explanation names; the rest is counted."""


class Code(StrEnum):
    """Why a job is where it is. Codes are stable; sentences are for people."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STARTING = "STARTING"
    UNKNOWN = "UNKNOWN"
    """Its backend could not find the attempt just now; in time it counts as lost."""
    WAITS_FOR_JOB = "WAITS_FOR_JOB"
    WAITS_FOR_CHILD = "WAITS_FOR_CHILD"
    WAITS_FOR_END = "WAITS_FOR_END"
    WAITS_FOR_FAILURE = "WAITS_FOR_FAILURE"
    WAITS_IN_SEQUENCE = "WAITS_IN_SEQUENCE"
    QUEUE_DELETING = "QUEUE_DELETING"
    KERNEL_CLOSING = "KERNEL_CLOSING"
    MAX_RUNNING = "MAX_RUNNING"
    CHECKPOINTED = "CHECKPOINTED"
    NEVER_FITS = "NEVER_FITS"
    CANNOT_RUN_IT = "CANNOT_RUN_IT"
    """The environment's backend does not do what the job's container asks for."""
    ENVIRONMENT_INVALID = "ENVIRONMENT_INVALID"
    ENVIRONMENT_DISABLED = "ENVIRONMENT_DISABLED"
    ENVIRONMENT_STARTING = "ENVIRONMENT_STARTING"
    NO_HOST = "NO_HOST"
    HOST_DRAINED = "HOST_DRAINED"
    HOST_UNAVAILABLE = "HOST_UNAVAILABLE"
    NO_CAPACITY = "NO_CAPACITY"
    HOST_RESERVED = "HOST_RESERVED"
    BEHIND_OTHERS = "BEHIND_OTHERS"
    NEXT = "NEXT"


class Reason(Struct, frozen=True):
    """One reason: its code, and a sentence with figures."""

    code: Code
    text: str


def explain(
    state: KernelState, job: JobRow, index: int | None, now_ms: int, *, placing: bool = True
) -> tuple[Reason, ...]:
    """The reasons, the deciding one first; never empty. `placing`: whether the kernel starts new work at all."""
    if job.size is not None and index is None:
        return tuple(_explain_parent(state, job, now_ms, placing=placing))
    return tuple(_explain_work(state, job, index or 0, now_ms, placing=placing))


def _explain_parent(state: KernelState, job: JobRow, now_ms: int, *, placing: bool) -> Iterator[Reason]:
    counts = job.children.counts
    summary = ", ".join(f"{counts[b]} {s}" for b, s in enumerate(STATUSES) if counts[b])
    if job.ended:
        code = Code.SUCCEEDED if job.parent == SUCCEEDED else Code.FAILED
        why = f"; {job.stopped}" if job.stopped else ""
        yield Reason(code, f"its {job.size} children have ended: {summary}{why}")
        return
    for status in (RUNNABLE, PENDING):
        first = job.children.status.find(status)
        if first >= 0:
            for reason in _explain_work(state, job, first, now_ms, placing=placing):
                yield Reason(reason.code, f"child {job.index_of(first)}: {reason.text} (children: {summary})")
            return
    code = Code.RUNNING if counts[RUNNING] else Code.STARTING
    why = f"{job.stopped}; " if job.stopped else ""
    yield Reason(code, f"{why}its last children are under way (children: {summary})")


def _explain_work(state: KernelState, job: JobRow, index: int, now_ms: int, *, placing: bool) -> Iterator[Reason]:
    status = job.children.status[index]
    if status in (SUCCEEDED, FAILED):
        yield _ended(job, index, status)
        yield from _lost(state, job, index)
    elif status in (STARTING, RUNNING):
        yield from _live(state, job, index, now_ms)
    elif status == RUNNABLE:
        yield from _runnable(state, job, index, placing=placing)
        if index in job.checkpoints:
            yield Reason(Code.CHECKPOINTED, f"goes on{_checkpoints(job, index)}")
    else:
        yield from _pending(state, job, index)


def _ended(job: JobRow, index: int, status: int) -> Reason:
    status_reason, reason, *_ = job.children.cause_of(index)
    code = job.children.code[index]
    text = status_reason or TEXT_ATTEMPT_ENDED
    if reason:
        text += f"; {reason}"
    if code != NO_CODE:
        text += f"; exit code {code}"
    if status == FAILED:
        text += f"; {job.children.number[index]} of {_attempts(job, index)} attempts were made"
    return Reason(Code.SUCCEEDED if status == SUCCEEDED else Code.FAILED, text)


def _lost(state: KernelState, job: JobRow, index: int) -> Iterator[Reason]:
    """Of what failed by its dependencies: which of them, as far as they still stand so."""
    if job.children.cause_of(index).status_reason not in (TEXT_DEPENDENCY_FAILED, TEXT_NOT_NEEDED):
        return
    found = []
    for dependency in job.depends_on:
        other, at = state.jobs.get(dependency.job), dependency.index
        if dependency.type is DependencyType.SEQUENTIAL:
            other, at = (job, index - 1) if index else (None, None)
        elif dependency.type is DependencyType.N_TO_N:
            at = index
        if other is not None and is_lost(dependency.on, status_of(other, at)):
            child = "" if at is None else f"child {other.index_of(at)} of "
            found.append(f"it depended on {child}job {other.name!r} ({other.job_id}), which is {_stands(other, at)}")
    for text in found[:NAMED_MAX]:
        yield Reason(Code.FAILED, text)
    if len(found) > NAMED_MAX:
        yield Reason(Code.FAILED, f"and on {len(found) - NAMED_MAX} more that have ended so")


def _stands(job: JobRow, index: int | None) -> str:
    return STATUSES[status_of(job, index)].value


def _attempts(job: JobRow, index: int) -> int:
    """How many attempts there can be: those that the strategy gives, beside those that were not held against it."""
    return job.spec.retry.attempts + job.uncounted.get(index, 0)


def _checkpoints(job: JobRow, index: int) -> str:
    count, most = job.checkpoints.get(index, 0), job.spec.max_checkpoints
    return f" after {count} checkpoint{'' if count == 1 else 's'} (at most {most}: max_checkpoints)" if count else ""


def _live(state: KernelState, job: JobRow, index: int, now_ms: int) -> Iterator[Reason]:
    host = state.hosts.get(job.children.hosts()[index])
    where = f"on host {host.name!r} of environment {host.environment!r}" if host else "on a host that is gone"
    attempt = f"attempt {job.children.number[index]} of {_attempts(job, index)}{_checkpoints(job, index)}"
    stop = job.stopping.get(index)
    if stop is not None:
        why = f"{stop.kind.value}: {stop.reason}" if stop.reason else stop.kind.value
        yield Reason(Code.STOPPING, f"{attempt} is being stopped {where} ({why})")
    lost_ms = state.unknown.get((job.serial, index, job.children.number[index]))
    if lost_ms is not None:
        seconds = max(lost_ms - now_ms, 0) / 1000
        text = f"{attempt} could not be found {where}; unless it is heard of, it counts as lost in {seconds:.0f} s"
        yield Reason(Code.UNKNOWN, text)
    if (job.serial, index) in state.ahead:
        yield Reason(Code.STARTING, f"{attempt} is held ready {where}, and begins when there is room")
    elif job.children.status[index] == STARTING:
        text = f"{attempt} has been handed to the backend {where}, which has not said that it runs"
        yield Reason(Code.STARTING, text)
    else:
        seconds = (now_ms - job.children.times()[0][index]) / 1000
        limit = "" if job.spec.timeout_ms is None else f" of at most {job.spec.timeout_ms / 1000:g}"
        yield Reason(Code.RUNNING, f"{attempt} has run {where} for {seconds:.1f} s{limit}")


def _pending(state: KernelState, job: JobRow, index: int) -> Iterator[Reason]:
    waiting = []
    for n, dependency in enumerate(job.depends_on):
        on = dependency.on
        if dependency.type is DependencyType.SEQUENTIAL:
            if index and not is_met(on, job.children.status[index - 1]):
                before = STATUSES[job.children.status[index - 1]]
                text = f"waits for {_ENDS[on]}child {job.index_of(index - 1)} of its own array, which is {before}"
                waiting.append(Reason(Code.WAITS_IN_SEQUENCE, text))
            continue
        if is_answered(job, n):
            continue
        other = state.jobs[dependency.job]
        is_matched = dependency.type is DependencyType.N_TO_N
        at = index if is_matched else dependency.index
        if at is not None:
            status = other.children.status[at]
            if not is_met(on, status) and not (is_matched and is_answered_for(job, n, index)):
                text = f"child {other.index_of(at)} of job {other.name!r} ({other.job_id}), which is {STATUSES[status]}"
                waiting.append(Reason(_CODES.get(on, Code.WAITS_FOR_CHILD), f"waits for {_ENDS[on]}{text}"))
        elif not other.ended:
            text = f"job {other.name!r} ({other.job_id}), which is {other.status}"
            if other.size is not None:
                text += f" with {other.children.counts[SUCCEEDED]} of {other.size} children SUCCEEDED"
            waiting.append(Reason(_CODES.get(on, Code.WAITS_FOR_JOB), f"waits for {_ENDS[on]}{text}"))
    yield from waiting[:NAMED_MAX]
    if len(waiting) > NAMED_MAX:
        yield Reason(waiting[NAMED_MAX].code, f"waits for {len(waiting) - NAMED_MAX} more")


_ENDS: Final = {On.SUCCESS: "", On.ANY: "the end, either way, of ", On.FAILURE: "a failure of "}
_CODES: Final = {On.ANY: Code.WAITS_FOR_END, On.FAILURE: Code.WAITS_FOR_FAILURE}


def _runnable(state: KernelState, job: JobRow, index: int, *, placing: bool) -> Iterator[Reason]:
    queue = state.queues.get(job.queue)
    if queue is None or queue.status is ResourceStatus.DELETING:
        yield Reason(Code.QUEUE_DELETING, f"its queue {job.queue!r} is being deleted")
        return
    if not placing:
        yield Reason(Code.KERNEL_CLOSING, "the kernel is closing and starts nothing more")
    if not job.room(1):
        live = job.children.counts[STARTING] + job.children.counts[RUNNING]
        text = f"{live} children of its array run, and at most {job.spec.max_running} may at once (max_running)"
        yield Reason(Code.MAX_RUNNING, text)
        return
    held = reservations(state)
    reasons = [_environment(state, queue, name, job.shape, held) for name in queue.body.compute_environments]
    usable = [reason for reason in reasons if reason.code is Code.NEXT]
    if usable:
        ahead = _ahead(state, queue, job, index, held, (Code.NEXT,))
        if ahead:
            yield Reason(Code.BEHIND_OTHERS, f"{ahead}; {usable[0].text}")
        else:
            yield Reason(Code.NEXT, f"{usable[0].text}: it is placed in the next round")
        return
    # What can change by itself comes before what cannot: capacity in use before an environment that is too small.
    yield from sorted(reasons, key=lambda reason: _ORDER.index(reason.code))
    if any(reason.code in _BUSY for reason in reasons):
        ahead = _ahead(state, queue, job, index, held, _BUSY)
        if ahead:
            yield Reason(Code.BEHIND_OTHERS, ahead)


_ORDER: Final = (
    Code.HOST_RESERVED, Code.NO_CAPACITY, Code.ENVIRONMENT_STARTING, Code.NO_HOST, Code.HOST_UNAVAILABLE,
    Code.HOST_DRAINED, Code.ENVIRONMENT_DISABLED, Code.ENVIRONMENT_INVALID, Code.NEVER_FITS, Code.CANNOT_RUN_IT,
)  # fmt: skip
_BUSY: Final = (Code.NEXT, Code.HOST_RESERVED, Code.NO_CAPACITY)
"""What an environment has to say that could run the attempt, now or later."""


def blocked(state: KernelState, job: JobRow) -> tuple[Reason, ...]:
    """What keeps every environment of the job's queue from running it; () if one could, now or once it has room.

    Unlike `explain` it does not look at other jobs, so its cost is that of looking at the queue's hosts.
    """
    queue = state.queues.get(job.queue)
    if queue is None:
        return ()
    reasons = [_environment(state, queue, name, job.shape, {}) for name in queue.body.compute_environments]
    if any(reason.code in _OPEN for reason in reasons):
        return ()
    return tuple(sorted(reasons, key=lambda reason: _ORDER.index(reason.code)))


_OPEN: Final = (*_BUSY, Code.ENVIRONMENT_STARTING)


def never_fits(state: KernelState, job: JobRow) -> str | None:
    """Why no environment of the job's queue can ever run it, as things are; None if one could."""
    reasons = blocked(state, job)
    if reasons and all(reason.code in (Code.NEVER_FITS, Code.CANNOT_RUN_IT) for reason in reasons):
        return "; ".join(reason.text for reason in reasons)
    return None


def _environment(state: KernelState, queue: QueueRow, name: str, shape: Shape, held: Held) -> Reason:
    """What this environment has to say about an attempt of the shape."""
    row = state.environments.get(name)
    if row is None:
        return Reason(Code.ENVIRONMENT_INVALID, f"environment {name!r} does not exist any more")
    if row.status is ResourceStatus.INVALID:
        return Reason(Code.ENVIRONMENT_INVALID, f"environment {name!r} is INVALID: {row.status_reason}")
    if row.body.state is not ResourceState.ENABLED:
        return Reason(Code.ENVIRONMENT_DISABLED, f"environment {name!r} is DISABLED")
    if not honours(row, shape):
        missing = ", ".join(field for field in shape.container if field not in row.container)
        text = f"environment {name!r} (backend {row.body.backend}) "
        text += f"does not honour {missing} of its container" if missing else "runs only what has an image"
        return Reason(Code.CANNOT_RUN_IT, text)
    hosts = [state.hosts[serial] for serial in row.hosts.values()]
    if hosts and not any(could_fit(host, shape) or is_unmeasured(host) for host in hosts):
        return Reason(Code.NEVER_FITS, _too_large(row, hosts, shape))
    if row.status is not ResourceStatus.VALID or not row.listed:
        text = f"environment {name!r} is {row.status}: its backend has not said yet what it holds"
        return Reason(Code.ENVIRONMENT_STARTING, text)
    if not hosts:
        return Reason(Code.NO_HOST, f"environment {name!r} has no host")
    closed = [host for host in hosts if host.closed and (could_fit(host, shape) or is_unmeasured(host))]
    usable = [host for host in hosts if not host.closed and could_fit(host, shape)]
    return _room(row, usable, shape, held, _closed(row, closed)) if usable else _all_closed(row, closed)


def is_unmeasured(host: HostRow) -> bool:
    """Whether its capacity is not known yet: its backend has not reached it."""
    return host.closed and not host.vcpus_milli


def _closed(row: EnvironmentRow, hosts: list[HostRow]) -> str:
    """Why hosts take no attempts, in words; "" for no hosts."""
    named = "; ".join(why_closed(row, host) for host in hosts[:NAMED_MAX])
    return named + (f"; and {len(hosts) - NAMED_MAX} more" if len(hosts) > NAMED_MAX else "")


def _all_closed(row: EnvironmentRow, hosts: list[HostRow]) -> Reason:
    drained = all(host.name in row.drained for host in hosts)
    text = f"no host of environment {row.name!r} that could run it takes attempts: {_closed(row, hosts)}"
    return Reason(Code.HOST_DRAINED if drained else Code.HOST_UNAVAILABLE, text)


def _room(row: EnvironmentRow, hosts: list[HostRow], shape: Shape, held: Held, closed: str) -> Reason:
    free = [host for host in hosts if host.fits(shape, 1)]
    if free:
        for host in free:
            if host.serial not in held:
                return Reason(Code.NEXT, f"environment {row.name!r} has room on host {host.name!r}")
        holder = held[free[0].serial]
        kept = f"host {free[0].name!r} of environment {row.name!r} is reserved"
        return Reason(Code.HOST_RESERVED, f"{kept} for job {holder.name!r} ({holder.job_id}), which has waited longer")
    best = max(hosts, key=lambda host: (host.free_vcpus_milli, host.free_memory_mib, len(host.free_gpus)))
    where = "" if len(row.hosts) == 1 else f" on its freest host {best.name!r}"
    there = f"environment {row.name!r} has {offers(best)}, of which {frees(best)} are free{where}"
    return Reason(Code.NO_CAPACITY, f"needs {needs(shape)}; {there}" + (f"; {closed}" if closed else ""))


def _too_large(row: EnvironmentRow, hosts: list[HostRow], shape: Shape) -> str:
    best = max(hosts, key=lambda host: (host.vcpus_milli, host.memory_mib or MEMORY_UNCOUNTED, len(host.gpus)))
    where = "" if len(hosts) == 1 else f" on its largest host {best.name!r}"
    return f"needs {needs(shape)}; environment {row.name!r} has {offers(best)} in all{where}, so it can never run there"


def _ahead(state: KernelState, queue: QueueRow, job: JobRow, index: int, held: Held, able: tuple[Code, ...]) -> str:
    """Who goes first, in words; "" for nobody. What fits nowhere (as `able` says) holds up nobody."""
    for other in state.queues_by_priority():
        if other is queue:
            break
        shared = set(other.body.compute_environments) & set(queue.body.compute_environments)
        if shared and _waiting(state, other, held, able):
            text = f"queue {other.name!r} of priority {other.body.priority} has work waiting, this one has priority "
            return f"{text}{queue.body.priority}" + (
                " and comes after it by name" if other.body.priority == queue.body.priority else ""
            )
    waiting = _waiting(state, queue, held, able)
    mine = waiting.get(job.serial, {}).get(index)
    first = {s: min(turns.values()) for s, turns in waiting.items() if turns and s != job.serial}
    retried = {s for s, turn in first.items() if mine is None or turn < mine}
    earlier = {s for s in waiting if s < job.serial} if mine is None else set()
    if not retried | earlier:
        return ""
    count = len(retried | earlier)
    text = f"{count} {'job' if count == 1 else 'jobs'} of queue {queue.name!r} {'goes' if count == 1 else 'go'} first"
    return text + (f", {len(retried)} of them to be tried again" if retried else "")


def _waiting(state: KernelState, queue: QueueRow, held: Held, able: tuple[Code, ...]) -> dict[int, dict[int, int]]:
    """The jobs with RUNNABLE work that has a chance, each with the turns of its children that were retried."""
    found: dict[int, dict[int, int]] = {}
    for lane in queue.lanes.values():
        names = queue.body.compute_environments
        if not any(_environment(state, queue, name, lane.shape, held).code in able for name in names):
            continue
        for serial in lane.members:
            job = state.jobs.get(serial)
            if job is not None and job.children.counts[RUNNABLE] and job.room(1):
                found[serial] = {}
        for turn, serial, index, number in lane.front:
            if serial in found and state.jobs[serial].still_waits(turn, index, number):
                found[serial][index] = turn
    return found


def needs(shape: Shape) -> str:
    """A shape in words."""
    parts = [f"{shape.vcpus_milli / 1000:g} vCPU"]
    if shape.memory_mib:
        parts.append(f"{shape.memory_mib} MiB")
    if shape.gpus:
        parts.append(f"{shape.gpus} GPU")
    return ", ".join(parts)


def offers(host: HostRow) -> str:
    """A host's capacity in words."""
    parts = [f"{host.vcpus_milli / 1000:g} vCPU"]
    if host.memory_mib is not None:
        parts.append(f"{host.memory_mib} MiB")
    if host.gpus:
        parts.append(f"{len(host.gpus)} GPU")
    return ", ".join(parts)


def frees(host: HostRow) -> str:
    """What is free on a host, in words."""
    parts = [f"{max(host.free_vcpus_milli, 0) / 1000:g} vCPU"]
    if host.memory_mib is not None:
        parts.append(f"{max(host.free_memory_mib, 0)} MiB")
    if host.gpus:
        parts.append(f"{len(host.free_gpus)} GPU")
    return ", ".join(parts)
