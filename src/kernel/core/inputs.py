"""Inputs: what comes into the core. A request may be refused; a report, a plan or a tick never is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from .indexes import Indexes
from .model import (
    DefinitionBody,
    DependencyType,
    EnvironmentBody,
    ExitKind,
    On,
    Overrides,
    QueueBody,
    ResourceState,
    TaggedKind,
)


class Input(Struct, frozen=True, kw_only=True):
    """Root of all inputs."""


class Request(Input, frozen=True, kw_only=True):
    """An API command, with whose call it was (None: the embedding code's own)."""

    principal: str | None = None
    request_id: str | None = None


class DependencyRequest(Struct, frozen=True):
    """An entry of `depends_on` as asked for: `job` is an id, a child's id, or a job's name."""

    type: DependencyType
    job: str | None = None
    on: On = On.SUCCESS


class SubmitJob(Request, frozen=True, kw_only=True):
    """Queue a job.

    `indexes` are those of its `size` children where they are not 0 to size - 1: ascending, each once. `job_id` is a
    fresh UUID; `definition` is `name` or `name:revision`, or None to use `overrides` alone.
    """

    job_id: str
    name: str
    queue: str
    definition: str | None
    overrides: Overrides
    size: int | None = None
    indexes: Indexes | None = None
    depends_on: tuple[DependencyRequest, ...] = ()
    client_token: str | None = None


class StopJob(Request, frozen=True, kw_only=True):
    """CancelJob, or TerminateJob where `terminate` is set; `job` is an id or a child's id."""

    job: str
    reason: str
    terminate: bool


class RerunJob(Request, frozen=True, kw_only=True):
    """Run again what FAILED of a job; `job` is an id, a name or a child's id. `dependents`: and what failed by it."""

    job: str
    dependents: bool = False


class RegisterDefinition(Request, frozen=True, kw_only=True):
    """Make the next revision of a job definition."""

    name: str
    body: DefinitionBody
    exist_ok: bool = False


class DeregisterDefinition(Request, frozen=True, kw_only=True):
    """Turn a revision INACTIVE."""

    name: str
    revision: int


class CreateQueue(Request, frozen=True, kw_only=True):
    """Create a job queue."""

    name: str
    body: QueueBody
    exist_ok: bool = False


class UpdateQueue(Request, frozen=True, kw_only=True):
    """Change what is not None."""

    name: str
    priority: int | None = None
    state: ResourceState | None = None
    compute_environments: tuple[str, ...] | None = None
    retain_succeeded_ms: int | None = None
    retain_failed_ms: int | None = None
    metadata: dict[str, Any] | None = None


class DeleteQueue(Request, frozen=True, kw_only=True):
    """Delete a DISABLED queue; its jobs are ended."""

    name: str


class CreateEnvironment(Request, frozen=True, kw_only=True):
    """Create a compute environment."""

    name: str
    body: EnvironmentBody
    exist_ok: bool = False


class UpdateEnvironment(Request, frozen=True, kw_only=True):
    """Change what is not None. A change of `options` or limits is told to the backend."""

    name: str
    state: ResourceState | None = None
    min_vcpus_milli: int | None = None
    max_vcpus_milli: int | None = None
    options: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class RegisterHost(Request, frozen=True, kw_only=True):
    """Add a host to an unmanaged environment; `settings` are what its backend is told of it."""

    environment: str
    host: str
    settings: dict[str, Any]


class DrainHost(Request, frozen=True, kw_only=True):
    """A host takes no more attempts (`reason` None: it does again)."""

    environment: str
    host: str
    reason: str | None


class DeregisterHost(Request, frozen=True, kw_only=True):
    """Take a registered host away; `force`: also with attempts on it."""

    environment: str
    host: str
    force: bool = False


class DeleteEnvironment(Request, frozen=True, kw_only=True):
    """Delete a DISABLED environment that no queue names."""

    name: str


class ChangeTags(Request, frozen=True, kw_only=True):
    """Set and remove tags. `name`: of an environment or queue, `name:revision` of a definition, or a job's id."""

    kind: TaggedKind
    name: str
    put: dict[str, str] = {}
    remove: tuple[str, ...] = ()


class OpenKernel(Input, frozen=True, kw_only=True):
    """The first input of every kernel; `kernel_id` is used when the journal is new."""

    kernel_id: str


class Report(Input, frozen=True, kw_only=True):
    """Root of what backends report; `environment` says whose backend."""

    environment: str


class HostUp(Report, frozen=True, kw_only=True):
    """A host offers its capacity."""

    host: str
    vcpus_milli: int
    memory_mib: int | None = None
    gpus: tuple[int, ...] = ()
    zone: str | None = None
    lookahead: int = 0


class HostDown(Report, frozen=True, kw_only=True):
    """A host is gone for good."""

    host: str
    reason: str


class HostPaused(Report, frozen=True, kw_only=True):
    """A host takes no attempts for now (`reason` None: it does again)."""

    host: str
    reason: str | None


class AllListed(Report, frozen=True, kw_only=True):
    """The backend has settled every attempt that it was asked about; `hosts` are those that it has.

    `container`: the names of the container fields that it honours.
    """

    hosts: tuple[str, ...]
    container: tuple[str, ...] = ()


class EnvironmentFailed(Report, frozen=True, kw_only=True):
    """The environment's backend cannot work."""

    reason: str


class Started(Report, frozen=True, kw_only=True):
    """Attempts run. `at_ms` None: now."""

    job: int
    number: int
    indexes: Sequence[int]
    at_ms: Sequence[int] | None = None


class Ended(Report, frozen=True, kw_only=True):
    """Attempts have ended. `codes` None: all 0; an entry of None: there is no code."""

    job: int
    number: int
    indexes: Sequence[int]
    kind: ExitKind = ExitKind.EXITED
    codes: Sequence[int | None] | None = None
    at_ms: Sequence[int] | None = None
    reason: str | None = None
    status_reason: str | None = None


class Found(Report, frozen=True, kw_only=True):
    """A host holds these attempts, which the kernel has not placed as far as its log tells."""

    host: str
    job: int
    number: int
    indexes: Sequence[int]


class Unknown(Report, frozen=True, kw_only=True):
    """Attempts were not found just now. `for_ms`: how long they may stay so (None: UNKNOWN_MS_MAX)."""

    job: int
    number: int
    indexes: Sequence[int]
    for_ms: int | None = None


class Plan(Input, frozen=True, kw_only=True):
    """Place what can be placed, at most `most` attempts (so that one step stays short)."""

    most: int = 10_000


class Tick(Input, frozen=True, kw_only=True):
    """Time has come for whatever is due."""


class StopRunning(Input, frozen=True, kw_only=True):
    """The kernel is closing and ends what runs in these environments (None: in all); its jobs are RUNNABLE again."""

    environments: tuple[str, ...] | None = None
