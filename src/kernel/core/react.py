"""react: what the outside must do because of one event. Idempotent, and never asked of replayed events."""

from __future__ import annotations

from collections.abc import Iterator

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


def react(state: KernelState, event: AnyEvent) -> Iterator[Effect]:
    """The effects of `event`, just applied."""
    match event:
        case AttemptsPlaced():
            yield LaunchAttempts(event.job, event.number, event.each(), event.host)
        case AttemptsEnded():
            yield WANT_PLAN
            if event.status != RUNNABLE:
                yield from _ended(state.jobs[event.job], event)
        case WorkReleased() | HostJoined() | HostsListed() | QueuePut() | EnvironmentStatusChanged():
            yield WANT_PLAN
        case WorkFailed():
            yield from _ended(state.jobs[event.job], event)
        case ParentEnded():
            yield NotifyJob(event.job)
        case CancelRequested():
            if event.terminate:
                yield from _stopped(state.jobs[event.job], event.index)
        case ArrayStopped():
            if event.terminate:
                yield from _stopped(state.jobs[event.job], None)
        case StopRequested():
            yield StopAttempts(event.job, [(i, event.number) for i in event.each()])
        case EnvironmentPut():
            if event.restart:
                yield StartEnvironment(event.name)
            yield WANT_PLAN
        case HostRegistered() | HostDeregistered():
            yield StartEnvironment(event.environment)
            yield WANT_PLAN
        case HostDrained() | HostHeld():
            yield WANT_PLAN
        case EnvironmentDeleted():
            yield CloseEnvironment(event.name)
        case JobsForgotten():
            yield ForgetJobs(tuple(gone.job_id for gone in event.jobs))
        case _:
            return


def _ended(job: JobRow, event: AttemptsEnded | WorkFailed) -> Iterator[Effect]:
    yield NotifyJob(event.job) if job.size is None else NotifyChildren(event.job, event.each())


def _stopped(job: JobRow, index: int | None) -> Iterator[Effect]:
    number = job.children.number
    live = [i for i in (sorted(job.stopping) if index is None else (index,)) if i in job.stopping]
    if live:
        yield StopAttempts(job.serial, [(i, number[i]) for i in live])
