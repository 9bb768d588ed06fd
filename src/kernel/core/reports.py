"""Deciding what backends report. Never refused; what no longer concerns a live attempt changes nothing."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Final, NamedTuple

from .children import NO_CODE, NUMBER_MAX
from .events import (
    AnyEvent,
    AttemptsEnded,
    AttemptsPlaced,
    AttemptsStarted,
    EnvironmentStatusChanged,
    HostJoined,
    HostLeft,
    HostsListed,
    run_fields,
)
from .inputs import AllListed, Ended, EnvironmentFailed, Found, HostDown, HostUp, Started, Unknown
from .model import (
    OUT_OF_MEMORY_PREFIX,
    TEXT_ATTEMPT_ENDED,
    TEXT_CHECKPOINTED,
    TEXT_CHECKPOINTED_LAST,
    TEXT_KERNEL_CLOSED,
    TEXT_NOT_STARTED,
    TEXT_TIMED_OUT,
    Action,
    ExitKind,
    FailureClass,
    ResourceStatus,
    StopKind,
    checkpoints_text,
    host_lost_text,
)
from .retry import matching_action, wants_retry
from .state import HostRow, JobRow, KernelState, Stop
from .states import FAILED, RUNNABLE, RUNNING, STARTING, SUCCEEDED

UNKNOWN_MS_MAX = 60_000
"""How long an attempt that its backend cannot find may stay so before it counts as lost."""
REASON_CHARS_MAX = 255
"""Of a backend's reason (contract section 8)."""


class Outcome(NamedTuple):
    """What becomes of an ended attempt: the events' fields of the same names."""

    status: int
    status_reason: str | None = None
    reason: str | None = None
    counts: bool = True
    failure: FailureClass | None = None


FINE: Final = Outcome(SUCCEEDED)


def decide_started(state: KernelState, report: Started) -> Iterator[AnyEvent]:
    """Attempts run: STARTING -> RUNNING (ST-6)."""
    job = state.jobs.get(report.job)
    if job is None:
        return
    status, number, n, own = job.children.status, job.children.number, report.number, _own(state, job, report)
    if state.unknown:
        for i in report.indexes:
            state.unknown.pop((job.serial, i, n), None)
    if report.at_ms is None:
        fresh = [i for i in report.indexes if status[i] == STARTING and number[i] == n and i in own]
        ages: list[int] | int = 0
    else:
        pairs = [
            (i, at)
            for i, at in zip(report.indexes, report.at_ms, strict=True)
            if status[i] == STARTING and number[i] == n and i in own
        ]
        fresh = [i for i, _ in pairs]
        ages = _ages(state, job, [at for _, at in pairs])
    if fresh and len(set(fresh)) == len(fresh):
        yield AttemptsStarted(job.serial, *run_fields(fresh), n, ages)
    elif fresh:
        yield AttemptsStarted(job.serial, *run_fields(sorted(set(fresh))), n, 0)


def _own(state: KernelState, job: JobRow, report: Started | Ended) -> Container[int]:
    """The indexes on which this report's environment may speak: those whose latest attempt is on a host of it."""
    hosts = job.children.host
    if len(state.environments) == 1 or not report.environment or hosts is None:
        return range(job.children.size)
    environment = state.environments.get(report.environment)
    own = set(environment.hosts.values()) if environment is not None else set()
    return {i for i in report.indexes if hosts[i] in own}


def _ages(state: KernelState, job: JobRow, at_ms: Sequence[int]) -> int | list[int]:
    """How long ago each was; one number where all are the same.

    A host's clock may differ from ours: a time in the future counts as now, one before the job's as the job's.
    """
    now, least = state.now_ms, job.created_ms
    ages = [0 if at >= now else now - (at if at > least else least) for at in at_ms]
    return ages[0] if ages and ages.count(ages[0]) == len(ages) else ages


def decide_ended(state: KernelState, report: Ended) -> Iterator[AnyEvent]:
    """Attempts have ended: what becomes of each (ST-7, ST-8, RT-4, TO-3, CT-2)."""
    job = state.jobs.get(report.job)
    if job is None:
        return
    status, number, n, own = job.children.status, job.children.number, report.number, _own(state, job, report)
    codes = report.codes if report.codes is not None else [0] * len(report.indexes)
    at_ms = report.at_ms if report.at_ms is not None else [state.now_ms] * len(report.indexes)
    plain = report.kind is ExitKind.EXITED and report.reason is None and report.status_reason is None
    plain = plain and not job.stopping
    seen: set[int] = set()
    groups: dict[tuple[bool, Outcome], tuple[list[int], list[int], list[int]]] = {}  # indexes, codes and times
    for i, code, at in zip(report.indexes, codes, at_ms, strict=True):
        was = status[i]
        if (was != RUNNING and was != STARTING) or number[i] != n or i in seen or i not in own:
            continue
        seen.add(i)
        if plain and code == 0:
            kept, outcome = 0, FINE
        else:
            kept = NO_CODE if code is None else _byte(code)
            outcome = _outcome(state, job, i, kept, report)
            if outcome.status == RUNNABLE and n >= NUMBER_MAX:
                outcome = outcome._replace(status=FAILED)
        key = (was == STARTING, outcome)
        group = groups.get(key)
        if group is None:
            group = groups[key] = [], [], []
        group[0].append(i)
        group[1].append(kept)
        group[2].append(at)
    ordered = list(groups.items())
    if len(ordered) > 1:
        # What is tried again comes first: what FAILED may be the end of it all (max_failures).
        ordered.sort(key=lambda group: group[0][1].status == FAILED)
    for (starting, outcome), (indexes, kept_codes, times) in ordered:
        ages = _ages(state, job, times)
        if starting and outcome.status == SUCCEEDED:
            # The exit overtook the start: an attempt that exits with 0 has run.
            yield AttemptsStarted(job.serial, *run_fields(indexes), n, ages)
        same = kept_codes[0] if kept_codes.count(kept_codes[0]) == len(kept_codes) else kept_codes
        yield AttemptsEnded(
            job.serial,
            *run_fields(indexes),
            n,
            outcome.status,
            same,
            ages,
            outcome.status_reason,
            outcome.reason,
            outcome.counts,
            outcome.failure,
        )


def _byte(code: int) -> int:
    """An exit code as it is kept: 0 to 255; a negative one is a signal's, what is larger is cut to its last byte."""
    if 0 <= code <= 255:
        return code
    return 128 - code if -128 < code < 0 else code & 255 or 255


def _outcome(state: KernelState, job: JobRow, index: int, code: int, report: Ended) -> Outcome:
    """What becomes of one attempt. The first recorded cause wins (CT-8)."""
    stop = job.stopping.get(index)
    reason = report.reason[:REASON_CHARS_MAX] if report.reason else None
    if stop is None and report.kind is ExitKind.TIMED_OUT:
        stop = Stop(StopKind.TIMEOUT, None)
    if stop is not None:
        return _stopped(job, index, stop, reason)
    status_reason, failure = report.status_reason, _failure(report)
    if report.kind is ExitKind.LOST:
        status_reason = host_lost_text(_host_name(state, job, index))
    elif code == 0 and failure is None:
        return Outcome(SUCCEEDED, status_reason, reason)
    if failure is None and code in job.spec.checkpoint_exit_codes:
        return _checkpointed(job, index, reason)
    if is_stopped_for_good(job, index):
        return Outcome(FAILED, status_reason, reason, failure=failure)
    exit_code = None if code == NO_CODE else code
    seen = (status_reason or TEXT_ATTEMPT_ENDED, reason, exit_code)
    strategy = job.spec.retry
    in_budget = failure is FailureClass.HOST_LOST and job.lost.get(index, 0) < strategy.host_lost_retries
    if in_budget and matching_action(strategy, *seen) is not Action.EXIT:
        return Outcome(RUNNABLE, status_reason, reason, counts=False, failure=failure)
    used = job.children.number[index] - job.uncounted.get(index, 0)
    again = wants_retry(strategy, used, *seen)
    return Outcome(RUNNABLE if again else FAILED, status_reason, reason, failure=failure)


def _checkpointed(job: JobRow, index: int, reason: str | None) -> Outcome:
    """The exit code asks for another attempt, before evaluateOnExit and `retry` are asked. Decision 0048."""
    most = job.spec.max_checkpoints
    if is_stopped_for_good(job, index):
        return Outcome(FAILED, TEXT_CHECKPOINTED_LAST, reason, failure=FailureClass.CANCELLED)
    if job.checkpoints.get(index, 0) >= most:
        return Outcome(FAILED, checkpoints_text(most), reason)
    return Outcome(RUNNABLE, TEXT_CHECKPOINTED, reason, counts=False, failure=FailureClass.CHECKPOINTED)


def _failure(report: Ended) -> FailureClass | None:
    """The class of what a backend reports; None for a program that ended by itself."""
    if report.kind is ExitKind.LOST:
        return FailureClass.HOST_LOST
    if report.status_reason == TEXT_NOT_STARTED:
        return FailureClass.COULD_NOT_START
    if report.reason is not None and report.reason.startswith(OUT_OF_MEMORY_PREFIX):
        return FailureClass.OUT_OF_MEMORY
    return None


def _stopped(job: JobRow, index: int, stop: Stop, reason: str | None) -> Outcome:
    match stop.kind:
        case StopKind.TERMINATE:
            return Outcome(FAILED, stop.reason, reason, failure=FailureClass.CANCELLED)
        case StopKind.TIMEOUT:
            return Outcome(FAILED, TEXT_TIMED_OUT, reason, failure=FailureClass.TIMEOUT)
        case StopKind.SHUTDOWN:
            target = FAILED if is_stopped_for_good(job, index) else RUNNABLE
            return Outcome(target, TEXT_KERNEL_CLOSED, reason, counts=False, failure=FailureClass.KERNEL_CLOSED)


def is_stopped_for_good(job: JobRow, index: int) -> bool:
    """Whether the job was cancelled, terminated or stopped, or this child was: nothing of it is tried again (CT-2)."""
    return job.is_given_up or index in job.flags


def _host_name(state: KernelState, job: JobRow, index: int) -> str:
    host = state.hosts.get(job.children.hosts()[index])
    return host.name if host is not None else "unknown"


def decide_found(state: KernelState, report: Found) -> Iterator[AnyEvent]:
    """Adopt attempts whose placement was lost with the power: the job waits, and their number is the next one."""
    job, environment = state.jobs.get(report.job), state.environments.get(report.environment)
    host = environment.hosts.get(report.host) if environment is not None else None
    if job is None or host is None:
        return
    status, number = job.children.status, job.children.number
    waiting = sorted({i for i in report.indexes if status[i] == RUNNABLE and number[i] + 1 == report.number})
    if waiting and not job.shape.gpus:
        yield AttemptsPlaced(job.serial, *run_fields(waiting), report.number, host, None)


def note_unknown(state: KernelState, report: Unknown) -> None:
    """Attempts were not found just now: from `for_ms` on, without other news, they count as lost.

    Not an event: a reopened kernel asks its backends again.
    """
    job = state.jobs.get(report.job)
    until_ms = state.now_ms + (UNKNOWN_MS_MAX if report.for_ms is None else report.for_ms)
    if job is not None:
        for i in report.indexes:
            if job.children.number[i] == report.number and job.children.status[i] in (STARTING, RUNNING):
                state.unknown.setdefault((job.serial, i, report.number), until_ms)


# -- hosts and environments -------------------------------------------------------------------------


def decide_host_up(state: KernelState, report: HostUp) -> Iterator[AnyEvent]:
    """A host joins, or its capacity changed; nothing if all is as known."""
    environment = state.environments.get(report.environment)
    if environment is None:
        return
    serial = environment.hosts.get(report.host)
    known = state.hosts[serial] if serial is not None else None
    offer = (report.vcpus_milli, report.memory_mib, report.gpus, report.zone, report.lookahead)
    if known is not None and offer == (known.vcpus_milli, known.memory_mib, known.gpus, known.zone, known.lookahead):
        return
    number = state.next_host if serial is None else serial
    yield HostJoined(number, report.environment, report.host, *offer)


def decide_host_down(state: KernelState, report: HostDown) -> Iterator[AnyEvent]:
    """A host is gone, and every attempt on it lost (RT-6)."""
    environment = state.environments.get(report.environment)
    serial = environment.hosts.get(report.host) if environment is not None else None
    if serial is not None:
        yield from remove_host(state, state.hosts[serial], report.reason)


def remove_host(state: KernelState, host: HostRow, reason: str) -> Iterator[AnyEvent]:
    """A host is gone, with its attempts."""
    for job_serial in sorted(host.load):
        job = state.jobs[job_serial]
        yield from lose(state, job, [i for i in job.live() if job.children.hosts()[i] == host.serial], reason)
    yield HostLeft(host.serial, reason)


def lose(state: KernelState, job: JobRow, indexes: Sequence[int], reason: str) -> Iterator[AnyEvent]:
    """These live attempts are lost."""
    by_number: dict[int, list[int]] = {}
    for i in indexes:
        by_number.setdefault(job.children.number[i], []).append(i)
    for number, lost in by_number.items():
        report = Ended(
            environment="", job=job.serial, number=number, indexes=lost, kind=ExitKind.LOST,
            codes=[None] * len(lost), reason=reason,
        )  # fmt: skip
        yield from decide_ended(state, report)


def decide_all_listed(state: KernelState, report: AllListed) -> Iterator[AnyEvent]:
    """An environment has told all it holds: hosts that it no longer has are gone, and it takes placements."""
    environment = state.environments.get(report.environment)
    if environment is None:
        return
    for name, serial in list(environment.hosts.items()):
        if name not in report.hosts:
            yield from remove_host(state, state.hosts[serial], "the host was not there when the kernel opened again")
    if environment.status is not ResourceStatus.VALID:
        yield EnvironmentStatusChanged(environment.name, ResourceStatus.VALID, "ComputeEnvironment Healthy")
    if not environment.listed or environment.container != report.container:
        yield HostsListed(environment.name, report.container)


def decide_environment_failed(state: KernelState, report: EnvironmentFailed) -> Iterator[AnyEvent]:
    """The backend cannot work: the environment is INVALID, the others go on (CE-7)."""
    environment = state.environments.get(report.environment)
    if environment is not None and (environment.status, environment.status_reason) != (
        ResourceStatus.INVALID,
        report.reason,
    ):
        yield EnvironmentStatusChanged(environment.name, ResourceStatus.INVALID, report.reason)
