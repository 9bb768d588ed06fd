"""Planning: which runnable work goes to which host.

Queues by priority. In a queue, what was retried first, then submission order; children by index. Of a
queue's environments, the first in its order that has room; of an environment's hosts, the one that
fits best (the least free vCPUs that are enough; among equals the least free memory, then the fewest free
GPUs). Work of one shape waits in one lane: once the head of a lane fits nowhere, nothing behind it in that
lane can, so a round costs what it places plus one try per lane, whatever the number of waiting jobs.

A job that runs as many children as it may (`max_running`) leaves its lane, and comes back with the end of one.

What fits nowhere is passed by what does, but only for `PASSED_MS_MAX`: from then on the head of its lane holds
the host that is nearest to having room for it, and nothing behind it, in its queue or in one of lower
priority, is placed there until it has been.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final, TypeVar

from .container import IMAGE_REQUIRED
from .events import AttemptsPlaced, run_fields
from .model import ResourceState, ResourceStatus, Shape
from .state import MEMORY_UNCOUNTED, EnvironmentRow, HostRow, JobRow, KernelState, Lane, QueueRow
from .states import RUNNABLE

PASSED_MS_MAX: Final = 300_000
"""How long others may pass work that fits nowhere, counted from the last time that any of its job was placed."""

Entry = TypeVar("Entry", int, tuple[int, int, int, int])
"""Of a lane's heaps."""

Held = dict[int, JobRow]
"""Host serials with the job that each is kept for."""


def placements(state: KernelState, most: int) -> Iterator[AttemptsPlaced]:
    """One placement at a time, at most `most` attempts in all; each must be applied before the next is asked for."""
    held: Held = {}
    for queue in state.queues_by_priority():
        environments = _open_environments(state, queue)
        blocked: set[Shape] = set()
        while environments and most > 0 and (lane := _first_lane(state, queue, blocked)) is not None:
            able = [e for e in environments if honours(e, lane.shape)]
            placed = _place_head(state, lane, able, held, most)
            if placed is None:
                blocked.add(lane.shape)
                _hold(state, lane, able, held)
            else:
                most -= len(placed)
                yield placed


def _open_environments(state: KernelState, queue: QueueRow) -> list[EnvironmentRow]:
    if not queue.lanes:
        return []
    return [e for e in map(state.environments.get, queue.body.compute_environments) if e and is_open(e)]


def reservations(state: KernelState) -> Held:
    """The hosts that are kept now, each with the job that it is kept for: what `placements` would find."""
    held: Held = {}
    for queue in state.queues_by_priority():
        environments = _open_environments(state, queue)
        blocked: set[Shape] = set()
        while environments and (lane := _first_lane(state, queue, blocked)) is not None:
            blocked.add(lane.shape)
            able = [e for e in environments if honours(e, lane.shape)]
            if all(best_host(state, environment, lane.shape, held) is None for environment in able):
                _hold(state, lane, able, held)
    return held


def _hold(state: KernelState, lane: Lane, environments: Sequence[EnvironmentRow], held: Held) -> None:
    """Keep a host for the head of a lane that fits nowhere, once it has been passed for long enough."""
    job = state.jobs[lane.front[0][1] if lane.front else lane.jobs[0]]
    if state.now_ms - job.waiting_since_ms < PASSED_MS_MAX:
        return
    hosts = [state.hosts[serial] for environment in environments for serial in environment.hosts.values()]
    fitting = [host for host in hosts if not host.closed and host.serial not in held and could_fit(host, job.shape)]
    if fitting:
        held[min(fitting, key=lambda host: _distance(host, job.shape)).serial] = job


def _distance(host: HostRow, shape: Shape) -> tuple[float, int, int, int, int]:
    """How far a host is from having room: the largest share of the shape that is missing, then the least free.

    It shrinks while nothing is placed there, so that the host that is kept changes for a nearer one only.
    """
    free = (host.free_vcpus_milli, host.free_memory_mib, len(host.free_gpus))
    missing = max((wanted - there) / wanted if wanted else 0.0 for wanted, there in zip(shape[:3], free, strict=True))
    return (max(missing, 0.0), -free[0], -free[1], -free[2], host.serial)


def could_fit(host: HostRow, shape: Shape) -> bool:
    """Whether an attempt of the shape fits on the host when nothing else runs there."""
    memory = MEMORY_UNCOUNTED if host.memory_mib is None else host.memory_mib
    return shape.vcpus_milli <= host.vcpus_milli and shape.memory_mib <= memory and shape.gpus <= len(host.gpus)


def honours(environment: EnvironmentRow, shape: Shape) -> bool:
    """Whether an environment does all that the attempt's container asks for, or takes it without one."""
    if not shape.container:
        return IMAGE_REQUIRED not in environment.container
    return all(field in environment.container for field in shape.container)


def is_open(environment: EnvironmentRow) -> bool:
    """Whether an environment takes placements now (CE-6, CE-7)."""
    return (
        environment.listed
        and environment.status is ResourceStatus.VALID
        and environment.body.state is ResourceState.ENABLED
    )


def _first_lane(state: KernelState, queue: QueueRow, blocked: set[Shape]) -> Lane | None:
    """The lane whose head comes first; heads that no longer wait are taken off on the way."""
    best: Lane | None = None
    best_key = (0, 0)
    for lane in list(queue.lanes.values()):
        if lane.shape in blocked:
            continue
        key = _head_key(state, lane)
        if key is None:
            del queue.lanes[lane.shape]
        elif best is None or key < best_key:
            best, best_key = lane, key
    return best


def _head_key(state: KernelState, lane: Lane) -> tuple[int, int] | None:
    front = lane.front
    while front:
        turn, serial, index, number = front[0]
        job = state.jobs.get(serial)
        if job is not None and job.still_waits(turn, index, number):
            if job.room(1):
                return (0, turn)
            job.parked = parked = job.parked or []
            heapq.heappush(parked, (turn, index, number))
        heapq.heappop(front)
    while lane.jobs:
        job = state.jobs.get(lane.jobs[0])
        if job is not None and job.children.counts[RUNNABLE] and job.room(1):
            return (1, lane.jobs[0])
        lane.drop()
    return None


def queue_head(state: KernelState, queue: QueueRow) -> tuple[JobRow, int] | None:
    """The job or child (by its index) that is the queue's first in turn, whether or not it can run; changes nothing."""
    best: tuple[tuple[int, int], JobRow, int] | None = None
    for lane in queue.lanes.values():
        found = _lane_head(state, lane)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    return None if best is None else best[1:]


def _lane_head(state: KernelState, lane: Lane) -> tuple[tuple[int, int], JobRow, int] | None:
    def retried(entry: tuple[int, int, int, int]) -> bool:
        turn, serial, index, number = entry
        job = state.jobs.get(serial)
        return job is not None and job.still_waits(turn, index, number) and job.room(1) > 0

    def waits(serial: int) -> bool:
        job = state.jobs.get(serial)
        return job is not None and bool(job.children.counts[RUNNABLE]) and job.room(1) > 0

    front = _first(lane.front, retried)
    if front is not None:
        return (0, front[0]), state.jobs[front[1]], front[2]
    serial = _first(lane.jobs, waits)
    if serial is not None:
        return (1, serial), state.jobs[serial], state.jobs[serial].children.status.find(RUNNABLE)
    return None


def _first(heap: Sequence[Entry], holds: Callable[[Entry], bool]) -> Entry | None:
    """The least entry of a heap for which this holds; of the others it looks at those that are less, and the next."""
    coming = [(heap[0], 0)] if heap else []
    while coming:
        entry, at = heapq.heappop(coming)
        if holds(entry):
            return entry
        for below in range(2 * at + 1, min(2 * at + 3, len(heap))):
            heapq.heappush(coming, (heap[below], below))
    return None


def _place_head(
    state: KernelState, lane: Lane, environments: Sequence[EnvironmentRow], held: Held, most: int
) -> AttemptsPlaced | None:
    """Place as much of the lane's head as goes to one host, or None if it fits nowhere."""
    shape = lane.shape
    host = next((h for e in environments if (h := best_host(state, e, shape, held)) is not None), None)
    if host is None:
        host = next((h for e in environments if (h := ahead_host(state, e, shape, held)) is not None), None)
    if host is None:
        return None
    room = state.jobs[lane.front[0][1] if lane.front else lane.jobs[0]].room(host.takes(shape, most))
    if lane.front:
        job, indexes = _take_front(state, lane, room)
    else:
        job = state.jobs[lane.jobs[0]]
        indexes = _same_number(job, job.children.next_runnable(room))
    gpus = None
    if shape.gpus:
        free = host.free_gpus
        gpus = [free[n * shape.gpus : (n + 1) * shape.gpus] for n in range(len(indexes))]
    number = job.children.number[indexes[0]] + 1
    return AttemptsPlaced(job.serial, *run_fields(indexes), number, host.serial, gpus)


def _take_front(state: KernelState, lane: Lane, room: int) -> tuple[JobRow, Sequence[int]]:
    """The retried children at the head that share job and attempt number, in their order."""
    front = lane.front
    _, serial, _, number = front[0]
    job = state.jobs[serial]
    chosen: list[int] = []
    while front and len(chosen) < room:
        turn, other, index, tried = front[0]
        if other != serial or tried != number:
            break
        if job.still_waits(turn, index, tried):
            chosen.append(index)
        heapq.heappop(front)
    return job, chosen


def _same_number(job: JobRow, run: range) -> range:
    """The head of a run whose next attempt has one number."""
    number = job.children.number
    first = number[run.start]
    if not first and job.children.history is None:
        return run
    stop = run.start
    while stop < run.stop and number[stop] == first:
        stop += 1
    return range(run.start, stop)


def ahead_host(
    state: KernelState, environment: EnvironmentRow, shape: Shape, held: Collection[int] = ()
) -> HostRow | None:
    """The host with the most free vCPUs, if it has no room for an attempt but takes it ahead; not if it is `held`."""
    host = state.hosts[environment.by_free[-1][-1]] if environment.by_free else None
    if host is None or host.serial in held or not host.takes(shape, 1) or not could_fit(host, shape):
        return None
    return host


def best_host(
    state: KernelState, environment: EnvironmentRow, shape: Shape, held: Collection[int] = ()
) -> HostRow | None:
    """The host with the least free (vCPUs, then memory, then GPUs) on which one attempt fits; none that is `held`."""
    by_free = environment.by_free
    for at in range(bisect_left(by_free, (shape.vcpus_milli, -MEMORY_UNCOUNTED, 0, 0)), len(by_free)):
        host = state.hosts[by_free[at][-1]]
        if host.serial not in held and host.fits(shape, 1):
            return host
    return None
