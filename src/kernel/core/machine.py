"""The one door: `handle(state, input, now)` decides, applies, follows up, and says what to do outside.

Same inputs in the same order give the same events, byte for byte: nothing here or below looks at a
clock, a random number, or anything outside the state. Recovery is `replay`: `evolve` over the log.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

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
    pending: list[Iterator[AnyEvent]] = []
    following: AnyEvent | None = event
    while following is not None:
        evolve(state, following, state.now_ms)
        step.events.append(following)
        step.effects.extend(react(state, following))
        more = follow(state, following)
        if more is not None:
            pending.append(more)
        following = None
        while pending and (following := next(pending[-1], None)) is None:
            pending.pop()


def replay(state: KernelState, events: Iterable[AnyEvent], at_ms: int) -> None:
    """Apply the events of one commit."""
    for event in events:
        evolve(state, event, at_ms)


def decide(state: KernelState, item: Input) -> tuple[Iterable[AnyEvent], Any]:
    """The events that an input leads to by itself, and the reply to a request.

    Events of one input may be worked out lazily: each is applied before the next is asked for.
    """
    kind = type(item)
    answered = ANSWERED.get(kind)
    return (DECISIONS[kind](state, item), None) if answered is None else answered(state, item)


def _plan(state: KernelState, item: Plan) -> Iterable[AnyEvent]:
    return placements(state, item.most)


def _note_unknown(state: KernelState, item: Unknown) -> Iterable[AnyEvent]:
    note_unknown(state, item)
    return ()


def _open_kernel(state: KernelState, item: OpenKernel) -> Iterable[AnyEvent]:
    return [KernelOpened(state.epoch + 1, state.kernel_id or item.kernel_id)]


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


def _decide_tick(state: KernelState, item: Tick) -> Iterator[AnyEvent]:
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


def _decide_stop_running(state: KernelState, item: StopRunning) -> Iterator[AnyEvent]:
    """Every live attempt there is to be ended; its job is RUNNABLE again afterwards."""
    environments = item.environments
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


ANSWERED: Final[dict[type[Input], Callable[[KernelState, Any], tuple[Iterable[AnyEvent], Any]]]] = {
    SubmitJob: decide_submit,
    RerunJob: decide_rerun,
    RegisterDefinition: decide_register,
}
"""Requests that have a reply."""
DECISIONS: Final[dict[type[Input], Callable[[KernelState, Any], Iterable[AnyEvent]]]] = {
    Plan: _plan,
    Started: decide_started,
    Ended: decide_ended,
    Found: decide_found,
    Unknown: _note_unknown,
    Tick: _decide_tick,
    StopJob: _decide_stop,
    StopRunning: _decide_stop_running,
    ChangeTags: decide_change_tags,
    DeregisterDefinition: decide_deregister,
    CreateQueue: decide_create_queue,
    UpdateQueue: decide_update_queue,
    DeleteQueue: decide_delete_queue,
    CreateEnvironment: decide_create_environment,
    UpdateEnvironment: decide_update_environment,
    DeleteEnvironment: decide_delete_environment,
    EnvironmentFailed: decide_environment_failed,
    AllListed: decide_all_listed,
    HostUp: decide_host_up,
    HostDown: decide_host_down,
    HostPaused: decide_host_paused,
    RegisterHost: decide_register_host,
    DrainHost: decide_drain_host,
    DeregisterHost: decide_deregister_host,
    OpenKernel: _open_kernel,
}
