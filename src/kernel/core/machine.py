"""The one door: `handle(state, input, now)` decides, applies, follows up, and says what to do outside.

Same inputs in the same order give the same events, byte for byte: nothing here or below looks at a
clock, a random number, or anything outside the state. Recovery is `replay`: `evolve` over the log.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Any

from msgspec import Struct

from .checks import check_reason
from .effects import Effect
from .events import AnyEvent, CancelRequested, KernelOpened, StopRequested, run_fields
from .evolve import evolve, is_armed
from .follow import follow
from .hosts import decide_deregister_host, decide_drain_host, decide_host_paused, decide_register_host
from .inputs import (
    AllListed,
    ChangeTags,
    CreateEnvironment,
    CreateQueue,
    DeleteEnvironment,
    DeleteQueue,
    DeregisterDefinition,
    DeregisterHost,
    DrainHost,
    Ended,
    EnvironmentFailed,
    Found,
    HostDown,
    HostPaused,
    HostUp,
    Input,
    OpenKernel,
    Plan,
    RegisterDefinition,
    RegisterHost,
    RerunJob,
    Started,
    StopJob,
    StopRunning,
    SubmitJob,
    Tick,
    Unknown,
    UpdateEnvironment,
    UpdateQueue,
)
from .model import StopKind
from .placement import placements
from .react import react
from .reports import (
    decide_all_listed,
    decide_ended,
    decide_environment_failed,
    decide_found,
    decide_host_down,
    decide_host_up,
    decide_started,
    lose,
    note_unknown,
)
from .rerun import decide_rerun
from .resources import (
    decide_create_environment,
    decide_create_queue,
    decide_delete_environment,
    decide_delete_queue,
    decide_deregister,
    decide_register,
    decide_update_environment,
    decide_update_queue,
)
from .retention import decide_forget
from .state import JobRow, KernelState
from .states import RUNNABLE, RUNNING, STARTING
from .submit import decide_submit, find_job
from .tags import decide_change_tags


class Step(Struct):
    """What one input led to: events in order, effects in order, and the reply to a request."""

    events: list[AnyEvent]
    effects: list[Effect]
    reply: Any = None


def handle(state: KernelState, item: Input, now_ms: int) -> Step:
    """Take one input at `now_ms` (never less than before).

    Raises:
        RequestError: a request is refused; the state is as it was.
    """
    state.now_ms = max(state.now_ms, now_ms)
    events, reply = decide(state, item)
    step = Step([], [], reply)
    for event in events:
        _apply(state, event, step)
    return step


def _apply(state: KernelState, event: AnyEvent, step: Step) -> None:
    """Apply an event and all that follows from it, depth first, without recursion."""
    pending: list[Iterator[AnyEvent]] = [iter((event,))]
    while pending:
        following = next(pending[-1], None)
        if following is None:
            pending.pop()
            continue
        evolve(state, following, state.now_ms)
        step.events.append(following)
        step.effects.extend(react(state, following))
        more = follow(state, following)
        if more is not None:
            pending.append(more)


def replay(state: KernelState, events: Iterable[AnyEvent], at_ms: int) -> None:
    """Apply the events of one commit."""
    for event in events:
        evolve(state, event, at_ms)


def decide(state: KernelState, item: Input) -> tuple[Iterable[AnyEvent], Any]:
    """The events that an input leads to by itself, and the reply to a request.

    Events of one input may be worked out lazily: each is applied before the next is asked for.
    """
    match item:
        case Ended():
            return decide_ended(state, item), None
        case Started():
            return decide_started(state, item), None
        case Plan():
            return placements(state, item.most), None
        case SubmitJob():
            return decide_submit(state, item)
        case RerunJob():
            return decide_rerun(state, item)
        case StopJob():
            return _decide_stop(state, item), None
        case Tick():
            return _decide_tick(state), None
        case RegisterDefinition():
            return decide_register(state, item)
        case DeregisterDefinition():
            return decide_deregister(state, item), None
        case CreateQueue():
            return decide_create_queue(state, item), None
        case UpdateQueue():
            return decide_update_queue(state, item), None
        case DeleteQueue():
            return decide_delete_queue(state, item), None
        case _:
            return _decide_rest(state, item), None


def _decide_rest(state: KernelState, item: Input) -> Iterable[AnyEvent]:
    match item:
        case CreateEnvironment():
            return decide_create_environment(state, item)
        case UpdateEnvironment():
            return decide_update_environment(state, item)
        case DeleteEnvironment():
            return decide_delete_environment(state, item)
        case ChangeTags():
            return decide_change_tags(state, item)
        case HostUp():
            return decide_host_up(state, item)
        case HostDown():
            return decide_host_down(state, item)
        case HostPaused():
            return decide_host_paused(state, item)
        case RegisterHost():
            return decide_register_host(state, item)
        case DrainHost():
            return decide_drain_host(state, item)
        case DeregisterHost():
            return decide_deregister_host(state, item)
        case AllListed():
            return decide_all_listed(state, item)
        case EnvironmentFailed():
            return decide_environment_failed(state, item)
        case Found():
            return decide_found(state, item)
        case Unknown():
            note_unknown(state, item)
            return ()
        case StopRunning():
            return _decide_stop_running(state, item.environments)
        case OpenKernel():
            return [KernelOpened(state.epoch + 1, state.kernel_id or item.kernel_id)]
        case _:
            raise TypeError(f"not an input: {item!r}")


def _decide_stop(state: KernelState, request: StopJob) -> list[AnyEvent]:
    """Cancel or terminate (contract 2.5): what it cannot concern any more, it leaves alone."""
    check_reason(request.reason, state.quotas)
    job, index = find_job(state, request.job)
    if job.ended:
        return []
    if not _concerns(job, index, terminate=request.terminate):
        return []
    return [
        CancelRequested(
            job.serial,
            None if job.size is None else index,
            request.terminate,
            request.reason,
            request.principal,
            request.request_id,
        )
    ]


def _concerns(job: JobRow, index: int | None, *, terminate: bool) -> bool:
    """A single job or child that runs is not cancelled, and one that has ended is left alone (CT-3, CT-8)."""
    if job.size is not None and index is None:
        return True
    at = index or 0
    status = job.children.status[at]
    if not terminate or status <= RUNNABLE:
        return status <= RUNNABLE
    stop = job.stopping.get(at)
    return status in (STARTING, RUNNING) and (stop is None or stop.kind is StopKind.SHUTDOWN)


def _decide_tick(state: KernelState) -> Iterator[AnyEvent]:
    """Attempts past their timeout are to be ended (TO-2, TO-3); those not found for too long are lost.

    An environment that has not listed what it holds since the kernel opened may still tell of an exit that came
    in time: its attempts are left until it has.
    """
    due: dict[tuple[int, int], set[int]] = {}  # whichever of them share an entry in the heap
    while state.timers and state.timers[0][0] <= state.now_ms:
        timer = heapq.heappop(state.timers)
        if is_armed(state, timer):
            due.setdefault(timer[1:3], set()).update(timer[3])
    for (serial, number), indexes in sorted(due.items()):
        job = state.jobs[serial]
        children = job.children
        late = [
            i
            for i in sorted(indexes)
            if children.number[i] == number
            and children.status[i] == RUNNING
            and i not in job.stopping
            and is_listed(state, job, i)
        ]
        if late:
            yield StopRequested(serial, *run_fields(late), number, StopKind.TIMEOUT)
    for (serial, index, number), when in sorted(state.unknown.items()):
        if when <= state.now_ms:
            del state.unknown[serial, index, number]
            if serial in state.jobs and state.jobs[serial].children.number[index] == number:
                yield from lose(state, state.jobs[serial], [index], "its backend could not find it any more")

    yield from decide_forget(state)


def is_listed(state: KernelState, job: JobRow, index: int) -> bool:
    """Whether the environment in which this attempt runs has told what it holds."""
    host = state.hosts.get(job.children.hosts()[index])
    return host is not None and state.environments[host.environment].listed


def next_timer_ms(state: KernelState) -> int | None:
    """When the next Tick is due, or None."""
    due = state.timers[0][0] if state.timers else None
    if state.expiries and (due is None or state.expiries[0][0] < due):
        due = state.expiries[0][0]
    if state.unknown:
        unknown = min(state.unknown.values())
        due = unknown if due is None else min(due, unknown)
    return due


def _decide_stop_running(state: KernelState, environments: tuple[str, ...] | None) -> Iterator[AnyEvent]:
    """Every live attempt there is to be ended; its job is RUNNABLE again afterwards."""
    hosts = [h for h in state.hosts.values() if environments is None or h.environment in environments]
    here = {host.serial for host in hosts}
    for serial in sorted({serial for host in hosts for serial in host.load}):
        job = state.jobs[serial]
        by_number: dict[int, list[int]] = {}
        for i in job.live():
            if i not in job.stopping and job.children.hosts()[i] in here:
                by_number.setdefault(job.children.number[i], []).append(i)
        for number, live in by_number.items():
            yield StopRequested(serial, *run_fields(live), number, StopKind.SHUTDOWN)
