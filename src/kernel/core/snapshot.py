"""The state as bytes and back: what bounds recovery, and what two states are compared by.

Kept is what events told; indexes (dependents, lanes, names, timers, free capacity) are made anew by the
functions that keep them in step. Equal states give equal bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from .children import Cause, Children, History
from .evolve import arm_timeouts
from .hosts import close_or_open
from .indexes import Kept, keep
from .indexes import kept as kept_indexes
from .model import (
    DefinitionBody,
    Dependency,
    EnvironmentBody,
    JobSpec,
    QueueBody,
    Quotas,
    ResourceStatus,
    StopKind,
)
from .retention import expect, refer
from .state import (
    LOOKAHEAD_US,
    MEMORY_UNCOUNTED,
    NOTHING,
    DefinitionRow,
    EnvironmentRow,
    HostRow,
    JobRow,
    KernelState,
    NameRow,
    QueueRow,
    Stop,
)
from .states import RUNNABLE, RUNNING, STARTING, STATUSES
from .waits import link, look

SNAPSHOT_VERSION = 1

_COLUMNS = (("host", "I"), ("started", "q"), ("stopped", "q"), ("reason", "H"))
_HISTORY = (
    ("head", "I"),
    ("prev", "I"),
    ("started", "I"),
    ("duration", "I"),
    ("host", "I"),
    ("code", "h"),
    ("reason", "H"),
)


class _Job(Struct, array_like=True):
    """Maps by number are kept as pairs: only keys that are texts have an order that msgspec keeps."""

    serial: int
    job_id: str
    name: str
    queue: str
    spec: JobSpec
    size: int | None
    created_ms: int
    touched_ms: int
    waiting_since_ms: int
    depends_on: tuple[Dependency, ...]
    token: str | None
    principal: str | None
    request_id: str | None
    parent: int
    parent_stopped_ms: int
    cancelled: bool
    terminated: bool
    stopping: list[tuple[int, str, str | None]]
    gpus: list[tuple[int, tuple[int, ...]]]
    uncounted: list[tuple[int, int]]
    lost: list[tuple[int, int]]
    flags: list[tuple[int, bool]]
    status: memoryview
    number: memoryview
    code: memoryview
    columns: list[memoryview | None]
    reasons: Sequence[Cause]
    history: list[memoryview] | None
    long: list[tuple[int, int]]
    answered: int | str = 0
    """As a text, hexadecimal, where it has more bits than msgpack's numbers."""
    reruns: int = 0
    children_answered: list[tuple[int, list[int]]] = []
    failures: int = 0
    stopped: str | None = None
    checkpoints: list[tuple[int, int]] = []
    indexes: Kept = None


class _Queue(Struct, array_like=True):
    name: str
    body: QueueBody
    created_ms: int
    status: ResourceStatus
    front: list[tuple[int, int, int, int]]


class _Host(Struct, array_like=True):
    serial: int
    environment: str
    name: str
    vcpus_milli: int
    memory_mib: int | None
    gpus: tuple[int, ...]
    zone: str | None
    lookahead: int = 0
    recent_us: int = LOOKAHEAD_US + 1
    ahead: list[tuple[int, int]] = []
    paused: str | None = None


class _Environment(Struct, array_like=True):
    name: str
    body: EnvironmentBody
    created_ms: int
    status: ResourceStatus
    status_reason: str
    listed: bool
    registered: dict[str, dict[str, Any]] = {}
    drained: dict[str, str] = {}
    container: tuple[str, ...] = ()


class _Definition(Struct, array_like=True):
    name: str
    revision: int
    body: DefinitionBody
    created_ms: int
    active: bool


class _State(Struct, array_like=True):
    version: int
    kernel_id: str
    epoch: int
    now_ms: int
    next_serial: int
    next_host: int
    turn: int
    jobs: list[_Job]
    definitions: list[_Definition]
    queues: list[_Queue]
    environments: list[_Environment]
    hosts: list[_Host]


def encode(state: KernelState) -> bytes:
    """The state as bytes."""
    return msgspec.msgpack.encode(
        _State(
            SNAPSHOT_VERSION,
            state.kernel_id,
            state.epoch,
            state.now_ms,
            state.next_serial,
            state.next_host,
            state.turn,
            [_job(state.jobs[serial]) for serial in sorted(state.jobs)],
            [
                _Definition(name, revision, row.body, row.created_ms, row.active)
                for name, revisions in sorted(state.definitions.items())
                for revision, row in sorted(revisions.items())
            ],
            _queues(state),
            [
                _Environment(
                    name,
                    row.body,
                    row.created_ms,
                    row.status,
                    row.status_reason,
                    row.listed,
                    row.registered,
                    row.drained,
                    row.container,
                )
                for name, row in sorted(state.environments.items())
            ],
            [
                _Host(
                    serial,
                    row.environment,
                    row.name,
                    row.vcpus_milli,
                    row.memory_mib,
                    row.gpus,
                    row.zone,
                    row.lookahead,
                    row.recent_us,
                    sorted(key for key, host in state.ahead.items() if host == serial) if row.ahead else [],
                    row.paused,
                )
                for serial, row in sorted(state.hosts.items())
            ],
        ),
        order="deterministic",
    )


def _queues(state: KernelState) -> list[_Queue]:
    """With their retried work in order, wherever it stands."""
    retried: dict[str, list[tuple[int, int, int, int]]] = {name: [] for name in state.queues}
    for name, row in state.queues.items():
        for lane in row.lanes.values():
            retried[name] += lane.front
    for job in state.jobs.values():
        if job.parked and job.queue in retried:
            retried[job.queue] += [(turn, job.serial, index, number) for turn, index, number in job.parked]
    return [
        _Queue(
            name, row.body, row.created_ms, row.status,
            sorted(e for e in retried[name] if e[1] in state.jobs and state.jobs[e[1]].still_waits(e[0], *e[2:])),
        )
        for name, row in sorted(state.queues.items())
    ]  # fmt: skip


def _job(job: JobRow) -> _Job:
    children, history = job.children, job.children.history
    columns: list[Any] = [getattr(children, name) for name, _ in _COLUMNS]
    return _Job(
        job.serial, job.job_id, job.name, job.queue, job.spec, job.size, job.created_ms, job.touched_ms,
        job.waiting_since_ms,
        job.depends_on, job.token, job.principal, job.request_id, job.parent, job.parent_stopped_ms,
        job.cancelled, job.terminated,
        [(i, stop.kind.value, stop.reason) for i, stop in sorted(job.stopping.items())],
        sorted(job.gpus.items()), sorted(job.uncounted.items()), sorted(job.lost.items()),
        sorted(job.flags.items()),
        memoryview(children.status), memoryview(children.number), memoryview(children.code),
        [None if column is None else memoryview(column) for column in columns],
        children.reasons,
        None if history is None else _history(history),
        [] if history is None else sorted(history.long.items()),
        job.answered if job.answered < 1 << 63 else hex(job.answered),
        job.reruns, [(n, sorted(found)) for n, found in sorted(job.children_answered.items())],
        job.failures, job.stopped, sorted(job.checkpoints.items()), keep(job.indexes),
    )  # fmt: skip


def _history(history: History) -> list[memoryview]:
    far = array("q", [number for pair in sorted(history.far.items()) for number in pair])
    origin = array("q", [history.origin_ms])
    return [*(memoryview(getattr(history, name)) for name, _ in _HISTORY), memoryview(origin), memoryview(far)]


def decode(data: bytes, quotas: Quotas) -> KernelState:
    """The state that `encode` gave these bytes for.

    Raises:
        msgspec.MsgspecError: they are no such bytes.
        ValueError: they are of a newer version.
    """
    kept = msgspec.msgpack.decode(data, type=_State)
    if kept.version > SNAPSHOT_VERSION:
        raise ValueError(f"the snapshot has version {kept.version}; this anybatch reads up to {SNAPSHOT_VERSION}")
    state = KernelState(quotas)
    state.kernel_id, state.epoch, state.now_ms = kept.kernel_id, kept.epoch, kept.now_ms
    state.next_serial, state.next_host, state.turn = kept.next_serial, kept.next_host, kept.turn
    for d in kept.definitions:
        row = DefinitionRow(d.name, d.revision, d.body, d.created_ms)
        row.active = d.active
        state.definitions.setdefault(d.name, {})[d.revision] = row
    for e in kept.environments:
        environment = state.environments[e.name] = EnvironmentRow(e.name, e.body, e.created_ms)
        environment.status, environment.status_reason, environment.listed = e.status, e.status_reason, e.listed
        environment.registered, environment.drained = dict(e.registered), dict(e.drained)
        environment.container = e.container
    for q in kept.queues:
        state.queues[q.name] = QueueRow(q.name, q.body, q.created_ms)
        state.queues[q.name].status = q.status
    for h in kept.hosts:
        host = state.hosts[h.serial] = HostRow(h.serial, h.environment, h.name)
        host.vcpus_milli, host.memory_mib, host.gpus, host.zone = h.vcpus_milli, h.memory_mib, h.gpus, h.zone
        host.lookahead, host.recent_us, host.ahead = h.lookahead, h.recent_us, len(h.ahead)
        host.paused = h.paused
        state.ahead.update(((serial, index), h.serial) for serial, index in h.ahead)
        state.environments[h.environment].hosts[h.name] = h.serial
    for j in kept.jobs:
        state.jobs[j.serial] = _row(j)
    for job in state.jobs.values():
        _index(state, job)
    for host in state.hosts.values():
        _rank(state, host)
    for q in kept.queues:
        for turn, serial, index, number in q.front:
            state.queues[q.name].lane(state.jobs[serial].shape).front.append((turn, serial, index, number))
    return state


def _row(kept: _Job) -> JobRow:
    job = JobRow(kept.serial, kept.job_id, kept.name, kept.queue, kept.spec, kept.size, kept.created_ms)
    for name in (
        "touched_ms", "waiting_since_ms",
        "depends_on", "token", "principal", "request_id", "parent", "parent_stopped_ms", "cancelled",
        "terminated", "reruns", "failures", "stopped",
    ):  # fmt: skip
        setattr(job, name, getattr(kept, name))
    job.answered = int(kept.answered, 16) if isinstance(kept.answered, str) else kept.answered
    job.stopping = {i: Stop(StopKind(kind), reason) for i, kind, reason in kept.stopping} or NOTHING
    job.gpus, job.uncounted = dict(kept.gpus) or NOTHING, dict(kept.uncounted) or NOTHING
    job.lost, job.checkpoints = dict(kept.lost) or NOTHING, dict(kept.checkpoints) or NOTHING
    job.flags = dict(kept.flags) or NOTHING
    job.indexes = kept_indexes(kept.indexes)
    job.children_answered = {n: set(found) for n, found in kept.children_answered} or NOTHING
    job.children = _children(kept)
    return job


def _children(kept: _Job) -> Children:
    children = Children(len(kept.status))
    children.status = bytearray(kept.status)
    children.number = _array("H", kept.number)
    children.code = _array("h", kept.code)
    children.counts = [children.status.count(byte) for byte in range(len(STATUSES))]
    for (name, code), data in zip(_COLUMNS, kept.columns, strict=True):
        setattr(children, name, None if data is None else _array(code, data))
    for reason in kept.reasons:
        children.reason_id(reason)
    if kept.history is not None:
        children.history = _kept_history(kept.history, dict(kept.long))
    return children


def _array(code: str, data: memoryview) -> array[int]:
    column = array(code)
    column.frombytes(data)
    return column


def _kept_history(columns: list[memoryview], long: dict[int, int]) -> History:
    history = History(0)
    if len(columns) == len(_HISTORY):
        return _first_history(history, columns, long)
    for (name, code), data in zip(_HISTORY, columns, strict=False):
        setattr(history, name, _array(code, data))
    far = _array("q", columns[-1])
    history.far, history.long = dict(zip(far[::2], far[1::2], strict=True)), long
    history.origin_ms = _array("q", columns[-2])[0]
    return history


def _first_history(history: History, columns: list[memoryview], long: dict[int, int]) -> History:
    """Of the first days: starts were 8 bytes each, and told the end, below zero, of what never ran."""
    for (name, code), data in zip(_HISTORY, columns, strict=True):
        if name not in ("started", "duration"):
            setattr(history, name, _array(code, data))
    for row, (start, duration) in enumerate(zip(_array("q", columns[2]), _array("I", columns[3]), strict=True)):
        history.append_times(row, max(start, 0), start + long.get(row, duration) if start > 0 else -start)
    return history


def _index(state: KernelState, job: JobRow) -> None:
    """Enter a job in every index; the jobs that it waits for are there already."""
    state.ids[job.job_id] = job.serial
    if job.token is not None:
        state.tokens[job.token] = job.serial
    link(state, job)
    name = state.names.setdefault(job.name, NameRow())
    queue = state.queues.get(job.queue)
    if job.ended:
        name.finished.add(job.serial)
        expect(state, job)
    else:
        refer(state, job)
        look(state, job)
        name.unfinished[job.serial] = None
        state.unfinished += 1
        if queue is not None:
            queue.unfinished[job.serial] = None
    children = job.children
    if children.counts[RUNNABLE] and queue is not None:
        queue.lane(job.shape).add(job.serial)
    if children.counts[RUNNING] and job.spec.timeout_ms is not None:
        running = children.with_status(RUNNING)
        for number in sorted({children.number[i] for i in running}):
            arm_timeouts(state, job, [i for i in running if children.number[i] == number], number)
    if children.counts[STARTING] or children.counts[RUNNING]:
        for i in job.live():
            load = state.hosts[children.hosts()[i]].load
            load[job.serial] = load.get(job.serial, 0) + 1


def _rank(state: KernelState, host: HostRow) -> None:
    """Work out what is free on a host."""
    vcpus, memory, taken = 0, 0, set[int]()
    for serial, count in host.load.items():
        job = state.jobs[serial]
        vcpus += count * job.shape.vcpus_milli
        memory += count * job.shape.memory_mib
        for i, devices in job.gpus.items():
            if job.children.hosts()[i] == host.serial:
                taken.update(devices)
    host.free_memory_mib = (MEMORY_UNCOUNTED if host.memory_mib is None else host.memory_mib) - memory
    host.free_gpus = sorted(set(host.gpus) - taken)
    host.free_vcpus_milli = host.vcpus_milli - vcpus
    close_or_open(state, host)
