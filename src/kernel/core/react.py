"""react: what the outside must do because of one event. Idempotent, and never asked of replayed events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from .effects import (
    WANT_PLAN,
    CloseEnvironment,
    Effect,
    ForgetJobs,
    LaunchAttempts,
    NotifyChildren,
    NotifyJob,
    StartEnvironment,
    StopAttempts,
)
from .events import (
    AnyEvent,
    ArrayStopped,
    AttemptsEnded,
    AttemptsPlaced,
    CancelRequested,
    EnvironmentDeleted,
    EnvironmentPut,
    EnvironmentStatusChanged,
    HostDeregistered,
    HostDrained,
    HostHeld,
    HostJoined,
    HostRegistered,
    HostsListed,
    JobsForgotten,
    ParentEnded,
    QueuePut,
    StopRequested,
    WorkFailed,
    WorkReleased,
)
from .state import JobRow, KernelState
from .states import RUNNABLE


def react(state: KernelState, event: AnyEvent) -> Iterable[Effect]:
    """The effects of `event`, just applied."""
    reaction = _REACTIONS.get(type(event))
    return () if reaction is None else reaction(state, event)


def _attempts_placed(state: KernelState, event: AttemptsPlaced) -> Iterable[Effect]:
    return (LaunchAttempts(event.job, event.number, event.each(), event.host),)


def _attempts_ended(state: KernelState, event: AttemptsEnded) -> Iterable[Effect]:
    return (WANT_PLAN,) if event.status == RUNNABLE else (WANT_PLAN, _ended(state.jobs[event.job], event))


def _work_failed(state: KernelState, event: WorkFailed) -> Iterable[Effect]:
    return (_ended(state.jobs[event.job], event),)


def _parent_ended(state: KernelState, event: ParentEnded) -> Iterable[Effect]:
    return (NotifyJob(event.job),)


def _cancel_requested(state: KernelState, event: CancelRequested) -> Iterable[Effect]:
    return _stopped(state.jobs[event.job], event.index) if event.terminate else ()


def _array_stopped(state: KernelState, event: ArrayStopped) -> Iterable[Effect]:
    return _stopped(state.jobs[event.job], None) if event.terminate else ()


def _stop_requested(state: KernelState, event: StopRequested) -> Iterable[Effect]:
    return (StopAttempts(event.job, [(i, event.number) for i in event.each()]),)


def _room_changed(state: KernelState, event: AnyEvent) -> Iterable[Effect]:
    """There may be room for what waits, or something that there is room for."""
    return (WANT_PLAN,)


def _environment_put(state: KernelState, event: EnvironmentPut) -> Iterable[Effect]:
    return (StartEnvironment(event.name), WANT_PLAN) if event.restart else (WANT_PLAN,)


def _hosts_changed(state: KernelState, event: HostRegistered | HostDeregistered) -> Iterable[Effect]:
    return (StartEnvironment(event.environment), WANT_PLAN)


def _environment_deleted(state: KernelState, event: EnvironmentDeleted) -> Iterable[Effect]:
    return (CloseEnvironment(event.name),)


def _jobs_forgotten(state: KernelState, event: JobsForgotten) -> Iterable[Effect]:
    return (ForgetJobs(tuple(gone.job_id for gone in event.jobs)),)


_REACTIONS: Final[dict[type[AnyEvent], Callable[[KernelState, Any], Iterable[Effect]]]] = {
    AttemptsPlaced: _attempts_placed,
    AttemptsEnded: _attempts_ended,
    WorkReleased: _room_changed,
    WorkFailed: _work_failed,
    ParentEnded: _parent_ended,
    CancelRequested: _cancel_requested,
    ArrayStopped: _array_stopped,
    StopRequested: _stop_requested,
    QueuePut: _room_changed,
    EnvironmentPut: _environment_put,
    EnvironmentDeleted: _environment_deleted,
    EnvironmentStatusChanged: _room_changed,
    HostJoined: _room_changed,
    HostsListed: _room_changed,
    HostDrained: _room_changed,
    HostHeld: _room_changed,
    HostRegistered: _hosts_changed,
    HostDeregistered: _hosts_changed,
    JobsForgotten: _jobs_forgotten,
}
"""By type, since that is one look-up for every event; the others concern nobody outside."""


def _ended(job: JobRow, event: AttemptsEnded | WorkFailed) -> Effect:
    return NotifyJob(event.job) if job.size is None else NotifyChildren(event.job, event.each())


def _stopped(job: JobRow, index: int | None) -> Iterator[Effect]:
    number = job.children.number
    live = [i for i in (sorted(job.stopping) if index is None else (index,)) if i in job.stopping]
    if live:
        yield StopAttempts(job.serial, [(i, number[i]) for i in live])
