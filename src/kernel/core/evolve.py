"""evolve: apply one fact to the state. The only writer, the same live and at recovery; cannot refuse."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from .children import ORDINARY, Cause, fill
from .events import (
    AnyEvent,
    ArrayStopped,
    AttemptsEnded,
    AttemptsPlaced,
    AttemptsStarted,
    CancelRequested,
    DefinitionDeregistered,
    DefinitionRegistered,
    EnvironmentDeleted,
    EnvironmentPut,
    EnvironmentStatusChanged,
    HostDeregistered,
    HostDrained,
    HostHeld,
    HostJoined,
    HostLeft,
    HostRegistered,
    HostsListed,
    JobsForgotten,
    JobSubmitted,
    KernelOpened,
    ParentEnded,
    ParentHeld,
    ParentReopened,
    QueueDeleted,
    QueuePut,
    RerunRequested,
    StopRequested,
    TagsPut,
    WorkFailed,
    WorkHeld,
    WorkReleased,
    WorkReopened,
)
from .hosts import apply_host_event, close_or_open
from .indexes import kept
from .model import FailureClass, QueueBody, ResourceStatus, StopKind
from .reopen import reopen_job, reopen_work
from .retention import expect, forget, let_go, refer
from .state import (
    MEMORY_UNCOUNTED,
    DefinitionRow,
    EnvironmentRow,
    HostRow,
    JobRow,
    KernelState,
    NameRow,
    QueueRow,
    Stop,
    writable,
)
from .states import FAILED, PENDING, RUNNABLE, RUNNING, STARTING, STATUSES, Kind, Trigger, next_status
from .tags import put_tags
from .waits import children_ended, link, look, whole_ended

TIMER_SLACK = 1024
"""Outdated entries that the timer heap may hold beyond four times the live ones."""


def evolve(state: KernelState, event: AnyEvent, at_ms: int) -> None:
    """Apply `event`, which happened at `at_ms`."""
    state.now_ms = at_ms
    CHANGES[type(event)](state, event, at_ms)


def _work_released(state: KernelState, event: WorkReleased, at_ms: int) -> None:
    job = state.jobs[event.job]
    _waits(job, at_ms)
    _move_waiting(job, event.each(), RUNNABLE, at_ms)
    _enqueue(state, job)


def _work_held(state: KernelState, event: WorkHeld, at_ms: int) -> None:
    _move_waiting(state.jobs[event.job], event.each(), PENDING, at_ms)


def _work_reopened(state: KernelState, event: WorkReopened, at_ms: int) -> None:
    reopen_work(state, state.jobs[event.job], event.each(), at_ms)


def _parent_held(state: KernelState, event: ParentHeld, at_ms: int) -> None:
    job = state.jobs[event.job]
    job.parent = _parent(job, Trigger.HOLD)


def _parent_ended(state: KernelState, event: ParentEnded, at_ms: int) -> None:
    job = state.jobs[event.job]
    job.parent = _parent(job, Trigger.SUCCEED if event.succeeded else Trigger.FAIL)
    job.parent_stopped_ms = at_ms
    _job_ended(state, job, job.parent)


def _parent_reopened(state: KernelState, event: ParentReopened, at_ms: int) -> None:
    job = state.jobs[event.job]
    job.parent, job.parent_stopped_ms = _parent(job, Trigger.RERUN), 0
    reopen_job(state, job)


def _rerun_requested(state: KernelState, event: RerunRequested, at_ms: int) -> None:
    """Who asked; the events that follow say what it led to."""


def _jobs_forgotten(state: KernelState, event: JobsForgotten, at_ms: int) -> None:
    for gone in event.jobs:
        forget(state, gone.serial)


def _definition_registered(state: KernelState, event: DefinitionRegistered, at_ms: int) -> None:
    row = DefinitionRow(event.name, event.revision, event.body, at_ms)
    state.definitions.setdefault(event.name, {})[event.revision] = row


def _definition_deregistered(state: KernelState, event: DefinitionDeregistered, at_ms: int) -> None:
    state.definitions[event.name][event.revision].active = False


def _queue_put(state: KernelState, event: QueuePut, at_ms: int) -> None:
    if event.name in state.queues:
        _queue_updated(state, state.queues[event.name], event.body)
    else:
        state.queues[event.name] = QueueRow(event.name, event.body, at_ms)
        _expect_anew(state, event.name)


def _queue_deleted(state: KernelState, event: QueueDeleted, at_ms: int) -> None:
    if event.finished:
        del state.queues[event.name]
        _expect_anew(state, event.name)
    else:
        state.queues[event.name].status = ResourceStatus.DELETING


def _tags_put(state: KernelState, event: TagsPut, at_ms: int) -> None:
    put_tags(state, event)


def _host_event(
    state: KernelState, event: HostRegistered | HostDrained | HostDeregistered | HostHeld, at_ms: int
) -> None:
    apply_host_event(state, event)


def _host_left(state: KernelState, event: HostLeft, at_ms: int) -> None:
    host = state.hosts[event.serial]
    state.unrank_host(host)
    del state.environments[host.environment].hosts[host.name]
    del state.hosts[event.serial]


def _kernel_opened(state: KernelState, event: KernelOpened, at_ms: int) -> None:
    state.epoch, state.kernel_id = event.epoch, event.kernel_id
    for environment in state.environments.values():
        environment.listed = False


def _queue_updated(state: KernelState, queue: QueueRow, body: QueueBody) -> None:
    kept = (queue.body.retain_succeeded_ms, queue.body.retain_failed_ms)
    queue.body = body
    if kept != (body.retain_succeeded_ms, body.retain_failed_ms):
        _expect_anew(state, queue.name)


def _expect_anew(state: KernelState, queue: str) -> None:
    """How long this queue's ended jobs are kept has changed. (Rare: the only place that looks at every job.)"""
    for job in state.jobs.values():
        if job.queue == queue and job.ended:
            expect(state, job)


# -- jobs -------------------------------------------------------------------------------------------


def _job_submitted(state: KernelState, event: JobSubmitted, at_ms: int) -> None:
    job = JobRow(event.serial, event.job_id, event.name, event.queue, event.spec, event.size, at_ms)
    job.token, job.principal, job.request_id = event.client_token, event.principal, event.request_id
    job.depends_on, job.indexes = event.depends_on, kept(event.indexes)
    state.next_serial = event.serial + 1
    state.jobs[job.serial] = job
    state.ids[job.job_id] = job.serial
    state.names.setdefault(job.name, NameRow()).unfinished[job.serial] = None
    if job.token is not None:
        state.tokens[job.token] = job.serial
    queue = state.queues.get(job.queue)
    if queue is not None:
        queue.unfinished[job.serial] = None
    state.unfinished += 1
    link(state, job)
    look(state, job)
    refer(state, job)


def _parent(job: JobRow, trigger: Trigger) -> int:
    return STATUSES.index(next_status(Kind.PARENT, STATUSES[job.parent], trigger))


def _move_waiting(job: JobRow, indexes: Sequence[int], target: int, at_ms: int) -> None:
    if len(indexes):
        job.children.move(indexes, job.children.status[indexes[0]], target)
        job.touched_ms = at_ms


def _waits(job: JobRow, at_ms: int) -> None:
    """Work of this job becomes RUNNABLE: it waits from now on, if none did already."""
    if not job.children.counts[RUNNABLE]:
        job.waiting_since_ms = at_ms


def _enqueue(state: KernelState, job: JobRow) -> None:
    queue = state.queues.get(job.queue)
    if queue is not None:
        queue.lane(job.shape).add(job.serial)


def _work_failed(state: KernelState, event: WorkFailed, at_ms: int) -> None:
    job, indexes = state.jobs[event.job], event.each()
    if not len(indexes):
        return
    source = job.children.status[indexes[0]]
    children = job.children
    children.move(indexes, source, FAILED)
    children.end_unrun(indexes, at_ms, event.reason)
    job.touched_ms = at_ms
    _children_ended(state, job, indexes, FAILED)


def _to_be_stopped(state: KernelState, event: CancelRequested | ArrayStopped | StopRequested, at_ms: int) -> None:
    """Note what runs and is to be stopped; what waits fails by the events that follow."""
    job = state.jobs[event.job]
    match event:
        case CancelRequested():
            _cancel_requested(job, event)
        case ArrayStopped(reason=reason):
            job.stopped = reason
            if event.terminate:
                _stop(job, job.live(), Stop(StopKind.TERMINATE, reason))
        case StopRequested():
            _stop(job, event.each(), Stop(StopKind(event.kind), event.reason))


def _cancel_requested(job: JobRow, event: CancelRequested) -> None:
    if job.size is None or event.index is None:
        job.cancelled = job.cancelled or not event.terminate
        job.terminated = job.terminated or event.terminate
    else:
        job.flags = flags = writable(job.flags)
        flags[event.index] = event.terminate or flags.get(event.index, False)
    if event.terminate:
        status = job.children.status
        live = job.live() if event.index is None else [i for i in (event.index,) if status[i] in (STARTING, RUNNING)]
        _stop(job, live, Stop(StopKind.TERMINATE, event.reason))


def _stop(job: JobRow, indexes: Sequence[int], stop: Stop) -> None:
    """The first reason to end an attempt stays, but for the kernel's own closing: after that the job would go on."""
    stopping = writable(job.stopping)
    for i in indexes:
        if i not in stopping or stopping[i].kind is StopKind.SHUTDOWN:
            stopping[i] = stop
    if stopping:
        job.stopping = stopping


def _children_ended(state: KernelState, job: JobRow, indexes: Sequence[int], status: int) -> None:
    children_ended(state, job, indexes, status)
    if job.size is None:
        _job_ended(state, job, status)


def _job_ended(state: KernelState, job: JobRow, status: int) -> None:
    names = state.names[job.name]
    del names.unfinished[job.serial]
    names.finished.add(job.serial)
    queue = state.queues.get(job.queue)
    if queue is not None:
        del queue.unfinished[job.serial]
    state.unfinished -= 1
    job.parked = None
    whole_ended(state, job, status)
    let_go(state, job)


# -- attempts ---------------------------------------------------------------------------------------


def _attempts_placed(state: KernelState, event: AttemptsPlaced, at_ms: int) -> None:
    job, indexes = state.jobs[event.job], event.each()
    children, n = job.children, len(event)
    children.move(indexes, RUNNABLE, STARTING)
    fill(children.number, indexes, event.number)
    fill(children.hosts(), indexes, event.host)
    host = state.hosts[event.host]
    if event.gpus is not None:
        job.gpus = gpus = writable(job.gpus)
        for i, devices in zip(indexes, event.gpus, strict=True):
            gpus[i] = tuple(devices)
            for device in devices:
                host.free_gpus.remove(device)
    if host.lookahead and (room := host.fits(job.shape, n)) < n and event.gpus is None:
        host.ahead += n - room
        state.ahead.update(((job.serial, i), host.serial) for i in indexes[room:])
    _take(state, host, job, n)
    job.touched_ms = job.waiting_since_ms = at_ms


def _attempts_started(state: KernelState, event: AttemptsStarted, at_ms: int) -> None:
    job, indexes, ages = state.jobs[event.job], event.each(), event.ages
    children = job.children
    children.move(indexes, STARTING, RUNNING)
    _heard_of(state, job, indexes)
    started, _ = children.times()
    if isinstance(ages, int):
        fill(started, indexes, at_ms - ages)
    else:
        for i, age in zip(indexes, ages, strict=True):
            started[i] = at_ms - age
    if job.spec.timeout_ms is not None:
        arm_timeouts(state, job, indexes, event.number)
    job.touched_ms = at_ms


def arm_timeouts(state: KernelState, job: JobRow, indexes: Sequence[int], number: int) -> None:
    """Enter the deadlines of these running attempts, those that fall together as one."""
    assert job.spec.timeout_ms is not None
    started, timers = job.children.times()[0], state.timers
    together: dict[int, list[int]] = {}
    for i in indexes:
        together.setdefault(started[i] + job.spec.timeout_ms, []).append(i)
    for deadline, due in together.items():
        heapq.heappush(timers, (deadline, job.serial, number, tuple(due)))
    if len(timers) > TIMER_SLACK and len(timers) > 4 * sum(len(h.load) for h in state.hosts.values()):
        state.timers = [t for t in timers if is_armed(state, t)]
        heapq.heapify(state.timers)


def _arm_again(state: KernelState, environment: EnvironmentRow) -> None:
    """Its attempts are heard of again: a tick that came before has passed over them."""
    for serial in sorted({serial for host in environment.hosts.values() for serial in state.hosts[host].load}):
        job = state.jobs[serial]
        if job.spec.timeout_ms is not None:
            running, number = job.children.with_status(RUNNING), job.children.number
            for latest in sorted({number[i] for i in running}):
                arm_timeouts(state, job, [i for i in running if number[i] == latest], latest)


def is_armed(state: KernelState, timer: tuple[int, int, int, tuple[int, ...]]) -> bool:
    """Whether a timer still concerns somebody."""
    _, serial, number, indexes = timer
    job = state.jobs.get(serial)
    if job is None:
        return False
    children = job.children
    return any(children.number[i] == number and children.status[i] in (STARTING, RUNNING) for i in indexes)


def _attempts_ended(state: KernelState, event: AttemptsEnded, at_ms: int) -> None:
    job, indexes, target = state.jobs[event.job], event.each(), event.status
    children, codes, ages, n = job.children, event.codes, event.ages, len(event)
    _free(state, job, indexes, n)
    _heard_of(state, job, indexes)
    if target == RUNNABLE:
        _waits(job, at_ms)
    if not job.room(1):
        job.waiting_since_ms = at_ms  # until now it was its own cap that held the rest back
    children.move(indexes, children.status[indexes[0]], target)
    _, stopped = children.times()
    if isinstance(ages, int):
        fill(stopped, indexes, at_ms - ages)
    else:
        for i, age in zip(indexes, ages, strict=True):
            stopped[i] = at_ms - age
    if not isinstance(codes, int):
        for i, code in zip(indexes, codes, strict=True):
            children.code[i] = code
    else:
        fill(children.code, indexes, codes)
    cause = Cause(event.status_reason, event.reason, event.failure)
    if cause != ORDINARY or children.reason is not None:
        children.set_reason(indexes, cause)
    if job.stopping:
        stopping = writable(job.stopping)
        for i in indexes:
            stopping.pop(i, None)
    job.touched_ms = at_ms
    _note_duration(state, job, indexes[0])
    if target == RUNNABLE:
        _retry(state, job, indexes, counts=event.counts, failure=event.failure)
    else:
        if target == FAILED and event.failure != FailureClass.CANCELLED and job.spec.max_failures is not None:
            job.failures += n
        _children_ended(state, job, indexes, target)
    if job.spec.max_running is not None and children.counts[RUNNABLE]:
        queue = state.queues.get(job.queue)
        if queue is not None:
            queue.lane(job.shape).take_back(job)


def _heard_of(state: KernelState, job: JobRow, indexes: Sequence[int]) -> None:
    """Attempts have begun or ended: they are not ahead of anything any more."""
    if state.ahead:
        for i in indexes:
            host = state.hosts.get(state.ahead.pop((job.serial, i), 0))
            if host is not None:
                host.ahead -= 1


def _note_duration(state: KernelState, job: JobRow, index: int) -> None:
    """Let one attempt of those that ended together tell how long attempts run on its host."""
    host = state.hosts.get(job.children.hosts()[index])
    started, stopped = job.children.times()
    if host is not None and host.lookahead and started[index]:
        host.recent_us = (7 * host.recent_us + 1000 * max(0, stopped[index] - started[index])) // 8


_BUDGETS: Final[dict[str | None, str]] = {FailureClass.HOST_LOST: "lost", FailureClass.CHECKPOINTED: "checkpoints"}
"""Where it is counted what has a budget of its own."""


def _counted(counts: Mapping[int, int], indexes: Sequence[int]) -> dict[int, int]:
    """One more for each of these."""
    found = writable(counts)
    for i in indexes:
        found[i] = found.get(i, 0) + 1
    return found


def _retry(state: KernelState, job: JobRow, indexes: Sequence[int], *, counts: bool, failure: str | None) -> None:
    job.children.archive(indexes)
    if not counts:
        job.uncounted = _counted(job.uncounted, indexes)
        budget = _BUDGETS.get(failure)
        if budget is not None:
            setattr(job, budget, _counted(getattr(job, budget), indexes))
    queue = state.queues.get(job.queue)
    if queue is not None:
        lane = queue.lane(job.shape)
        for i in indexes:
            state.turn += 1
            heapq.heappush(lane.front, (state.turn, job.serial, i, job.children.number[i]))
        lane.add(job.serial)


def _take(state: KernelState, host: HostRow, job: JobRow, n: int) -> None:
    vcpus, memory = job.shape.vcpus_milli, job.shape.memory_mib
    host.load[job.serial] = host.load.get(job.serial, 0) + n
    host.free_memory_mib -= n * memory
    host.free_vcpus_milli -= n * vcpus
    state.rank_host(host)


def _free(state: KernelState, job: JobRow, indexes: Sequence[int], n: int) -> None:
    hosts, vcpus, memory = job.children.hosts(), job.shape.vcpus_milli, job.shape.memory_mib
    first = hosts[indexes[0]]
    per_host = {first: n}
    if len(state.hosts) > 1 and any(hosts[i] != first for i in indexes):
        per_host = {}
        for i in indexes:
            per_host[hosts[i]] = per_host.get(hosts[i], 0) + 1
    if job.gpus:
        gpus = writable(job.gpus)
        for i in indexes:
            host = state.hosts.get(hosts[i])
            devices = gpus.pop(i, ())
            if host is not None:
                host.free_gpus = sorted({*host.free_gpus, *devices} & set(host.gpus))
    for serial, count in per_host.items():
        host = state.hosts.get(serial)
        if host is None:
            continue
        left = host.load[job.serial] - count
        if left:
            host.load[job.serial] = left
        else:
            del host.load[job.serial]
        host.free_memory_mib += count * memory
        host.free_vcpus_milli += count * vcpus
        state.rank_host(host)


# -- environments and hosts -------------------------------------------------------------------------


def _environment_changed(
    state: KernelState,
    event: EnvironmentPut | EnvironmentDeleted | EnvironmentStatusChanged | HostsListed,
    at_ms: int,
) -> None:
    match event:
        case EnvironmentPut(name=name, body=body):
            row = state.environments.get(name)
            if row is None:
                state.environments[name] = EnvironmentRow(name, body, at_ms)
            else:
                row.body = body
        case EnvironmentDeleted(name=name):
            for serial in state.environments[name].hosts.values():
                del state.hosts[serial]
            del state.environments[name]
        case EnvironmentStatusChanged(name=name, status=status, reason=reason):
            state.environments[name].status = status
            state.environments[name].status_reason = reason
        case HostsListed(environment=name, container=container):
            state.environments[name].listed = True
            state.environments[name].container = container
            _arm_again(state, state.environments[name])


def _host_joined(state: KernelState, event: HostJoined, at_ms: int) -> None:
    host = state.hosts.get(event.serial)
    if host is None:
        host = state.hosts[event.serial] = HostRow(event.serial, event.environment, event.name)
        state.environments[event.environment].hosts[event.name] = event.serial
        state.next_host = max(state.next_host, event.serial + 1)
    memory = MEMORY_UNCOUNTED if event.memory_mib is None else event.memory_mib
    used_memory = (MEMORY_UNCOUNTED if host.memory_mib is None else host.memory_mib) - host.free_memory_mib
    if host.vcpus_milli == 0 and not host.load:
        used_memory = 0
    used_vcpus = host.vcpus_milli - host.free_vcpus_milli
    # Not from what was offered before: a device in use may have been missing there for a while.
    used_gpus = {device for serial in host.load for device in _devices_on(state.jobs[serial], host)}
    host.lookahead = event.lookahead
    host.vcpus_milli, host.memory_mib, host.gpus, host.zone = (
        event.vcpus_milli,
        event.memory_mib,
        event.gpus,
        event.zone,
    )
    host.free_memory_mib = memory - used_memory
    host.free_gpus = sorted(set(event.gpus) - used_gpus)
    host.free_vcpus_milli = event.vcpus_milli - used_vcpus
    close_or_open(state, host)


def _devices_on(job: JobRow, host: HostRow) -> Iterator[int]:
    for i, devices in job.gpus.items():
        if job.children.hosts()[i] == host.serial:
            yield from devices


CHANGES: Final[dict[type[AnyEvent], Callable[[KernelState, Any, int], None]]] = {
    KernelOpened: _kernel_opened,
    JobSubmitted: _job_submitted,
    WorkHeld: _work_held,
    WorkReleased: _work_released,
    WorkFailed: _work_failed,
    WorkReopened: _work_reopened,
    ParentHeld: _parent_held,
    ParentEnded: _parent_ended,
    ParentReopened: _parent_reopened,
    CancelRequested: _to_be_stopped,
    ArrayStopped: _to_be_stopped,
    StopRequested: _to_be_stopped,
    RerunRequested: _rerun_requested,
    AttemptsPlaced: _attempts_placed,
    AttemptsStarted: _attempts_started,
    AttemptsEnded: _attempts_ended,
    JobsForgotten: _jobs_forgotten,
    DefinitionRegistered: _definition_registered,
    DefinitionDeregistered: _definition_deregistered,
    QueuePut: _queue_put,
    QueueDeleted: _queue_deleted,
    EnvironmentPut: _environment_changed,
    EnvironmentDeleted: _environment_changed,
    EnvironmentStatusChanged: _environment_changed,
    HostsListed: _environment_changed,
    TagsPut: _tags_put,
    HostJoined: _host_joined,
    HostLeft: _host_left,
    HostRegistered: _host_event,
    HostDrained: _host_event,
    HostDeregistered: _host_event,
    HostHeld: _host_event,
}
"""What each event does, by its type: one look-up for each."""
