"""What users see of jobs, queues, environments and definitions: made when asked for, and forgotten.

Times are UTC, `None` where they do not exist yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from msgspec import Struct

from .backend import HostStatus
from .core.children import NO_CODE
from .core.container import ContainerSpec
from .core.errors import JobFailed
from .core.indexes import in_text
from .core.model import (
    TEXT_ATTEMPT_ENDED,
    TEXT_CHILD_FAILED,
    Dependency,
    DependencyType,
    FailureClass,
    On,
    OnMaxFailures,
    ResourceState,
    ResourceStatus,
    RetryStrategy,
)
from .core.state import DefinitionRow, EnvironmentRow, HostRow, JobRow, KernelState, QueueRow
from .core.states import FAILED, RUNNING, STARTING, STATUSES, SUCCEEDED, JobStatus

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def to_datetime(ms: int) -> datetime:
    """Epoch milliseconds as a UTC time, exactly."""
    return _EPOCH + timedelta(milliseconds=ms)


def _time(ms: int) -> datetime | None:
    return to_datetime(ms) if ms else None


class AttemptDetail(Struct, frozen=True, kw_only=True):
    """One try at running a job or child.

    `exit_code` None: there is none; `stopped_at` None: it is still live; `failure_class` None: it has not failed.
    """

    number: int
    exit_code: int | None
    status_reason: str | None
    reason: str | None
    failure_class: FailureClass | None
    started_at: datetime | None
    stopped_at: datetime | None
    host: str | None
    environment: str | None


class DependencyDetail(Struct, frozen=True, kw_only=True):
    """What a job waits for, or waited for; `job_id` None for SEQUENTIAL; `on` says which end counts."""

    type: DependencyType
    job_id: str | None
    on: On = On.SUCCESS


class JobDetail(Struct, frozen=True, kw_only=True):
    """A job or a child as it is now.

    `started_at`, `stopped_at`, `status_reason`, `reason` and `exit_code` are those of the latest attempt
    (contract ST-12). An array parent has a `status_summary` and no attempts; a child has an `index` and
    a `parent_id`. `array` says which indexes an array has, as `submit_job` takes them, where they are not 0 to
    `array_size` - 1. `changed_at` is when the job, or one of its children, last changed its
    status. `attempts` lists every attempt that was made, oldest first, the live one included.
    """

    id: str
    name: str
    queue: str
    status: JobStatus
    status_reason: str | None
    reason: str | None
    exit_code: int | None
    created_at: datetime
    changed_at: datetime
    started_at: datetime | None
    stopped_at: datetime | None
    attempts: tuple[AttemptDetail, ...]
    array_size: int | None
    array: str | None
    index: int | None
    parent_id: str | None
    status_summary: Mapping[JobStatus, int] | None
    depends_on: tuple[DependencyDetail, ...]
    definition: str | None
    command: tuple[str, ...]
    script: str | None
    environment: Mapping[str, str]
    parameters: Mapping[str, str]
    vcpus: float
    memory_mib: int
    gpus: int
    retry: RetryStrategy
    timeout_s: float | None
    scheduling_priority: int
    container: ContainerSpec | None
    max_running: int | None
    max_failures: int | None
    on_max_failures: OnMaxFailures
    role: str | None
    checkpoint_exit_codes: tuple[int, ...]
    max_checkpoints: int
    reruns: int
    tags: Mapping[str, str]
    is_cancelled: bool
    is_terminated: bool
    client_token: str | None
    principal: str | None
    metadata: Mapping[str, Any]

    def raise_for_status(self) -> JobDetail:
        """Return self, or raise JobFailed if the job FAILED."""
        if self.status is JobStatus.FAILED:
            raise JobFailed(self.id, self.status_reason, self.exit_code)
        return self


class JobRerun(Struct, frozen=True, kw_only=True):
    """A job of which something runs again. `children`: how many of them do; 1 for a single job."""

    id: str
    name: str
    children: int


class JobSummary(Struct, frozen=True, kw_only=True):
    """A job or child in a list."""

    id: str
    name: str
    queue: str
    status: JobStatus
    status_reason: str | None
    exit_code: int | None
    created_at: datetime
    started_at: datetime | None
    stopped_at: datetime | None
    array_size: int | None
    index: int | None
    reason: str | None
    definition: str | None
    is_cancelled: bool
    is_terminated: bool
    position: int
    """Where it stands in lists: what `list_jobs(after=...)` takes."""


class HostState(StrEnum):
    """Whether a host takes attempts."""

    ACTIVE = "ACTIVE"
    DRAINING = "DRAINING"
    """It was drained, and still runs what it had."""
    DRAINED = "DRAINED"
    UNAVAILABLE = "UNAVAILABLE"
    """Its backend keeps it from taking any for now: it cannot be reached, or it keeps failing."""


class HostDetail(Struct, frozen=True, kw_only=True):
    """A host of an environment, with what is free on it. `memory_mib` None: memory is not counted.

    `state_reason` says why it takes no attempts (None: it does). `attempts` counts those on it. `last_contact` and
    `load` (the average over a minute of processes that run or wait to) are what its backend knows now, if it does.
    `is_registered`: it was added by `register_host`.
    """

    name: str
    zone: str | None
    vcpus: float
    free_vcpus: float
    memory_mib: int | None
    free_memory_mib: int | None
    gpus: tuple[int, ...]
    free_gpus: tuple[int, ...]
    attempts: int
    state: HostState = HostState.ACTIVE
    state_reason: str | None = None
    is_registered: bool = False
    last_contact: datetime | None = None
    load: float | None = None


class EnvironmentDetail(Struct, frozen=True, kw_only=True):
    """A compute environment."""

    name: str
    backend: str
    managed: bool
    state: ResourceState
    status: ResourceStatus
    status_reason: str
    min_vcpus: float
    max_vcpus: float
    options: Mapping[str, Any]
    tags: Mapping[str, str]
    metadata: Mapping[str, Any]
    hosts: tuple[HostDetail, ...]
    created_at: datetime


class QueueDetail(Struct, frozen=True, kw_only=True):
    """A job queue. `unfinished` counts its jobs that have not ended, an array as one."""

    name: str
    priority: int
    state: ResourceState
    status: ResourceStatus
    compute_environments: tuple[str, ...]
    tags: Mapping[str, str]
    metadata: Mapping[str, Any]
    retain_succeeded_s: float
    retain_failed_s: float
    unfinished: int
    created_at: datetime


class DefinitionDetail(Struct, frozen=True, kw_only=True):
    """One revision of a job definition."""

    name: str
    revision: int
    is_active: bool
    command: tuple[str, ...]
    script: str | None
    environment: Mapping[str, str]
    parameters: Mapping[str, str]
    vcpus: float
    memory_mib: int
    gpus: int
    retry: RetryStrategy
    timeout_s: float | None
    workdir: str | None
    scratch: bool
    scheduling_priority: int
    container: ContainerSpec | None
    max_running: int | None
    max_failures: int | None
    on_max_failures: OnMaxFailures
    role: str | None
    checkpoint_exit_codes: tuple[int, ...]
    max_checkpoints: int
    tags: Mapping[str, str]
    metadata: Mapping[str, Any]
    created_at: datetime

    @property
    def reference(self) -> str:
        """`name:revision`, as `submit_job` takes it."""
        return f"{self.name}:{self.revision}"


def job_detail(state: KernelState, job: JobRow, index: int | None) -> JobDetail:
    """A job as a whole, or one child of it."""
    spec, is_parent = job.spec, job.size is not None and index is None
    at = index or 0
    attempts = () if is_parent else attempt_details(state, job, at)
    last = attempts[-1] if attempts else None
    status = job.status if index is None else STATUSES[job.children.status[at]]
    status_reason, reason = _parent_reason(job) if is_parent else work_reason(job, at)
    cancelled, terminated = _flags(job, index)
    stopped = job.parent_stopped_ms if is_parent else job.children.stopped_ms(at)
    counts = job.children.counts
    return JobDetail(
        id=job.child_id(index),
        name=job.name,
        queue=job.queue,
        status=status,
        status_reason=status_reason,
        reason=reason,
        exit_code=last.exit_code if last is not None else None,
        created_at=to_datetime(job.created_ms),
        changed_at=to_datetime(job.touched_ms),
        started_at=last.started_at if last is not None else None,
        stopped_at=_time(stopped) if status.is_terminal else None,
        attempts=attempts,
        array_size=job.size if index is None else None,
        array=in_text(job.indexes) if is_parent and job.indexes is not None else None,
        index=None if index is None else job.index_of(index),
        parent_id=None if index is None else job.job_id,
        status_summary={s: counts[b] for b, s in enumerate(STATUSES)} if is_parent else None,
        depends_on=tuple(map(_dependency, job.depends_on)),
        definition=spec.definition,
        command=spec.command,
        script=spec.script,
        environment=spec.environment,
        parameters=spec.parameters,
        vcpus=spec.vcpus_milli / 1000,
        memory_mib=spec.memory_mib,
        gpus=spec.gpus,
        retry=spec.retry,
        timeout_s=None if spec.timeout_ms is None else spec.timeout_ms / 1000,
        scheduling_priority=spec.scheduling_priority,
        container=spec.container,
        max_running=spec.max_running,
        max_failures=spec.max_failures,
        on_max_failures=spec.on_max_failures,
        role=spec.role,
        checkpoint_exit_codes=spec.checkpoint_exit_codes,
        max_checkpoints=spec.max_checkpoints,
        reruns=job.reruns,
        tags=spec.tags,
        is_cancelled=cancelled,
        is_terminated=terminated,
        client_token=job.token,
        principal=job.principal,
        metadata=spec.metadata,
    )


def _flags(job: JobRow, index: int | None) -> tuple[bool, bool]:
    """Whether it was cancelled, and terminated (CT-6)."""
    child = job.flags.get(index) if index is not None else None
    return job.cancelled or child is False, job.terminated or child is True


def _dependency(dependency: Dependency) -> DependencyDetail:
    job_id, index = dependency.job_id, dependency.index if dependency.child is None else dependency.child
    return DependencyDetail(
        type=dependency.type, job_id=job_id if index is None else f"{job_id}:{index}", on=dependency.on
    )


def _parent_reason(job: JobRow) -> tuple[str | None, None]:
    return (job.stopped or TEXT_CHILD_FAILED if job.parent == FAILED else job.stopped), None


def work_reason(job: JobRow, index: int) -> tuple[str | None, str | None]:
    """The status reason and the backend's reason of a single job or child as it is now."""
    status_reason, reason, *_ = job.children.cause_of(index)
    status = job.children.status[index]
    if status < SUCCEEDED:
        stop = job.stopping.get(index)
        return (stop.reason if stop is not None else None), None
    return status_reason or TEXT_ATTEMPT_ENDED, reason


def attempt_details(state: KernelState, job: JobRow, index: int) -> tuple[AttemptDetail, ...]:
    """Every attempt of a single job or child, oldest first."""
    children = job.children
    found = [
        AttemptDetail(
            number=past.number,
            exit_code=None if past.code == NO_CODE else past.code,
            status_reason=past.cause.status_reason or TEXT_ATTEMPT_ENDED,
            reason=past.cause.reason,
            failure_class=FailureClass(past.cause.failure or FailureClass.APPLICATION_EXIT),
            started_at=_time(past.started_ms),
            stopped_at=_time(past.stopped_ms),
            host=_host_name(state, past.host),
            environment=_host_environment(state, past.host),
        )
        for past in children.past(index)
    ]
    number, status = children.number[index], children.status[index]
    if number > len(found):
        ended = status not in (STARTING, RUNNING)
        status_reason, reason = work_reason(job, index)
        code = children.code[index]
        found.append(
            AttemptDetail(
                number=number,
                exit_code=None if code == NO_CODE else code,
                status_reason=status_reason,
                reason=reason,
                failure_class=_failure_class(job, index),
                started_at=_time(children.times()[0][index]),
                stopped_at=_time(children.stopped_ms(index)) if ended else None,
                host=_host_name(state, children.hosts()[index]),
                environment=_host_environment(state, children.hosts()[index]),
            )
        )
    return tuple(found)


def _failure_class(job: JobRow, index: int) -> FailureClass | None:
    if job.children.status[index] != FAILED:
        return None
    return FailureClass(job.children.cause_of(index).failure or FailureClass.APPLICATION_EXIT)


def _host_name(state: KernelState, serial: int) -> str | None:
    host = state.hosts.get(serial)
    return host.name if host is not None else None


def _host_environment(state: KernelState, serial: int) -> str | None:
    host = state.hosts.get(serial)
    return host.environment if host is not None else None


def job_summary(job: JobRow, index: int | None) -> JobSummary:
    """A row of a list."""
    is_parent = job.size is not None and index is None
    at = index or 0
    children = job.children
    status = job.status if index is None else STATUSES[children.status[at]]
    code = NO_CODE if is_parent else children.code[at]
    started = 0 if is_parent or children.started is None else children.started[at]
    status_reason, reason = _parent_reason(job) if is_parent else work_reason(job, at)
    cancelled, terminated = _flags(job, index)
    stopped = job.parent_stopped_ms if is_parent else children.stopped_ms(at)
    return JobSummary(
        id=job.child_id(index),
        name=job.name,
        queue=job.queue,
        status=status,
        status_reason=status_reason,
        exit_code=None if code == NO_CODE else code,
        created_at=to_datetime(job.created_ms),
        started_at=_time(started),
        stopped_at=_time(stopped) if status.is_terminal else None,
        array_size=job.size if index is None else None,
        index=None if index is None else job.index_of(index),
        reason=reason,
        definition=job.spec.definition,
        is_cancelled=cancelled,
        is_terminated=terminated,
        position=job.serial if index is None else index,
    )


def environment_detail(
    state: KernelState, row: EnvironmentRow, now: Mapping[str, HostStatus] | None = None
) -> EnvironmentDetail:
    """An environment with its hosts, and what its backend knows of them now."""
    body, known = row.body, now or {}
    hosts = [state.hosts[serial] for serial in row.hosts.values()]
    return EnvironmentDetail(
        name=row.name,
        backend=body.backend,
        managed=body.managed,
        state=body.state,
        status=row.status,
        status_reason=row.status_reason,
        min_vcpus=body.min_vcpus_milli / 1000,
        max_vcpus=body.max_vcpus_milli / 1000,
        options=body.options,
        tags=body.tags,
        metadata=body.metadata,
        hosts=tuple(host_detail(state, host, known.get(host.name)) for host in hosts),
        created_at=to_datetime(row.created_ms),
    )


def host_detail(state: KernelState, host: HostRow, now: HostStatus | None = None) -> HostDetail:
    """A host, and what its backend knows of it now."""
    row, attempts = state.environments[host.environment], sum(host.load.values())
    drained = row.drained.get(host.name)
    status = HostState.ACTIVE
    if drained is not None:
        status = HostState.DRAINING if attempts else HostState.DRAINED
    elif host.paused is not None:
        status = HostState.UNAVAILABLE
    last_ms = now.last_contact_ms if now is not None else None
    return HostDetail(
        name=host.name,
        zone=host.zone,
        vcpus=host.vcpus_milli / 1000,
        free_vcpus=max(host.free_vcpus_milli, 0) / 1000,
        memory_mib=host.memory_mib,
        free_memory_mib=None if host.memory_mib is None else max(host.free_memory_mib, 0),
        gpus=host.gpus,
        free_gpus=tuple(host.free_gpus),
        attempts=attempts,
        state=status,
        state_reason=host.paused if drained is None else drained,
        is_registered=host.name in row.registered,
        last_contact=None if last_ms is None else to_datetime(last_ms),
        load=now.load if now is not None else None,
    )


def queue_detail(row: QueueRow) -> QueueDetail:
    """A queue."""
    return QueueDetail(
        name=row.name,
        priority=row.body.priority,
        state=row.body.state,
        status=row.status,
        compute_environments=row.body.compute_environments,
        tags=row.body.tags,
        metadata=row.body.metadata,
        retain_succeeded_s=row.body.retain_succeeded_ms / 1000,
        retain_failed_s=row.body.retain_failed_ms / 1000,
        unfinished=len(row.unfinished),
        created_at=to_datetime(row.created_ms),
    )


def definition_detail(row: DefinitionRow) -> DefinitionDetail:
    """A revision."""
    body = row.body
    return DefinitionDetail(
        name=row.name,
        revision=row.revision,
        is_active=row.active,
        command=body.command,
        script=body.script,
        environment=body.environment,
        parameters=body.parameters,
        vcpus=body.vcpus_milli / 1000,
        memory_mib=body.memory_mib,
        gpus=body.gpus,
        retry=body.retry,
        timeout_s=None if body.timeout_ms is None else body.timeout_ms / 1000,
        workdir=body.workdir,
        scratch=body.scratch,
        scheduling_priority=body.scheduling_priority,
        container=body.container,
        max_running=body.max_running,
        max_failures=body.max_failures,
        on_max_failures=body.on_max_failures,
        role=body.role,
        checkpoint_exit_codes=body.checkpoint_exit_codes,
        max_checkpoints=body.max_checkpoints,
        tags=body.tags,
        metadata=body.metadata,
        created_at=to_datetime(row.created_ms),
    )
