"""What jobs, definitions, queues and environments are: frozen values, checked before they get here.

Units: vCPUs in thousandths (`vcpus_milli`), memory in MiB, times in integer epoch milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from msgspec import Struct

from .container import ContainerSpec, container_needs

TEXT_ATTEMPT_ENDED: Final = "Essential container in task exited"
"""The status reason of an ordinary end, whatever the exit code (contract ST-13)."""
TEXT_TIMED_OUT: Final = "Job attempt duration exceeded timeout"
TEXT_DEPENDENCY_FAILED: Final = "Dependent Job failed"
TEXT_NOT_NEEDED: Final = "Dependent Job succeeded: not needed"
"""Of what was to run after a failure only (beyond AWS)."""
TEXT_CHILD_FAILED: Final = "Array Child Job failed"
TEXT_QUEUE_DELETED: Final = "Job queue was deleted"
TEXT_NOT_STARTED: Final = "Task failed to start"
TEXT_KERNEL_CLOSED: Final = "Kernel closed"


TEXT_CHECKPOINTED: Final = "Checkpointed"
"""Of an attempt that is followed by another because its exit code asked for it (beyond AWS)."""
TEXT_CHECKPOINTED_LAST: Final = "Checkpointed, but nothing of its job is started any more"
MAX_CHECKPOINTS: Final = 1000
"""How often a job or child is run again after a checkpoint, unless told otherwise: hourly ones for six weeks."""


def checkpoints_text(most: int) -> str:
    """The status reason of what checkpointed more often than it may; beyond AWS."""
    return f"Checkpointed more than {most} times (max_checkpoints)"


def stopped_text(failed: int, most: int) -> str:
    """The status reason of what has not run of an array that stopped; beyond AWS."""
    return f"Array stopped: {failed} of its children FAILED (max_failures {most})"


def host_lost_text(host: str) -> str:
    """The status reason of an attempt that went with its host; recipes match it as `Host EC2*` (EX-10)."""
    return f"Host EC2 (instance {host}) terminated."


class Quotas(Struct, frozen=True, kw_only=True):
    """The kernel's limits, with AWS's figures as defaults (contract section 8). Raise them as you need."""

    array_size_max: int = 10_000
    dependencies_max: int = 20
    attempts_max: int = 10
    evaluate_on_exit_max: int = 5
    job_queues_max: int = 50
    compute_environments_max: int = 50
    environments_per_queue_max: int = 3
    unfinished_jobs_max: int = 1_000_000
    tags_max: int = 50
    reason_chars_max: int = 1024
    definition_bytes_max: int = 24 * 1024
    submit_bytes_max: int = 30 * 1024
    script_bytes_max: int = 256 * 1024
    metadata_bytes_max: int = 64 * 1024


class Action(StrEnum):
    """What an evaluateOnExit entry decides."""

    RETRY = "retry"
    EXIT = "exit"


class EvaluateOnExit(Struct, frozen=True):
    """One entry: if all given patterns match, `action` is what happens (contract EX-2..EX-8).

    A pattern is exact, or a prefix with a trailing `*`; it is compared case-sensitively with the
    attempt's status reason, its reason, or the decimal text of its exit code. A lone `*` also matches
    a value that is absent.
    """

    action: Action
    on_status_reason: str | None = None
    on_reason: str | None = None
    on_exit_code: str | None = None


class RetryStrategy(Struct, frozen=True):
    """How often a job is tried in all (1 to 10), and which failures end it at once (contract RT-1, EX-3, EX-4).

    Beyond AWS: the first `host_lost_retries` attempts that are lost with their host are followed by another
    without being held against `attempts`, unless an entry of `evaluate_on_exit` says EXIT.
    """

    attempts: int = 1
    evaluate_on_exit: tuple[EvaluateOnExit, ...] = ()
    host_lost_retries: int = 0


class DependencyType(StrEnum):
    """How a job waits for another (contract DEP-2)."""

    AFTER_SUCCESS = "AFTER_SUCCESS"
    """Until that whole job, or child, has SUCCEEDED: AWS's entry without a type."""
    AFTER_ANY = "AFTER_ANY"
    """Beyond AWS: until it has ended, either way."""
    AFTER_FAILURE = "AFTER_FAILURE"
    """Beyond AWS: until it has FAILED."""
    N_TO_N = "N_TO_N"
    SEQUENTIAL = "SEQUENTIAL"


class On(StrEnum):
    """Which end of what is waited for is the one that counts. AWS knows success only."""

    SUCCESS = "success"
    ANY = "any"
    FAILURE = "failure"


PLAIN: Final = {
    DependencyType.AFTER_SUCCESS: On.SUCCESS,
    DependencyType.AFTER_ANY: On.ANY,
    DependencyType.AFTER_FAILURE: On.FAILURE,
}
"""The types that wait for a whole job, or for one child of it."""


class Dependency(Struct, frozen=True):
    """An entry of `depends_on`, resolved: `job` is the serial of the job waited for (-1 for SEQUENTIAL).

    `index` is the place of one child of that job (DEP-14), else None for the whole. `job_id` outlives the job itself;
    `child` is what that child is called, where its array has indexes of its own.
    """

    type: DependencyType
    job: int = -1
    index: int | None = None
    job_id: str | None = None
    on: On = On.SUCCESS
    child: int | None = None


class OnMaxFailures(StrEnum):
    """What becomes of an array in which as many children have FAILED as `max_failures` allows. Beyond AWS."""

    CANCEL = "cancel"
    """What has not started ends, as after a cancel; what runs goes on, and is not tried again."""
    TERMINATE = "terminate"
    """What runs is stopped too."""


class Shape(NamedTuple):
    """What an attempt needs of a host, and of its environment: the names of `container` fields to be honoured."""

    vcpus_milli: int
    memory_mib: int
    gpus: int
    container: tuple[str, ...] = ()


class JobSpec(Struct, frozen=True, kw_only=True, gc=False):
    """What a job runs, with everything resolved at submit; shared by all its children and attempts.

    Its values are plain and lead back to nothing, so that the garbage collector need not look at them.
    """

    command: tuple[str, ...] = ()
    script: str | None = None
    environment: Mapping[str, str] = {}
    parameters: Mapping[str, str] = {}
    vcpus_milli: int = 1000
    memory_mib: int = 0
    gpus: int = 0
    retry: RetryStrategy = RetryStrategy()
    timeout_ms: int | None = None
    workdir: str | None = None
    scratch: bool = False
    tags: Mapping[str, str] = {}
    scheduling_priority: int = 0
    definition: str | None = None
    metadata: Mapping[str, Any] = {}
    container: ContainerSpec | None = None
    max_running: int | None = None
    """Beyond AWS: how many children of an array are STARTING or RUNNING at once, at most."""
    max_failures: int | None = None
    """Beyond AWS: an array stops when so many of its children have FAILED by their own attempts."""
    on_max_failures: OnMaxFailures = OnMaxFailures.CANCEL
    role: str | None = None
    """Whose credentials the attempts get, from who supplies them to this kernel; only the name is kept."""
    checkpoint_exit_codes: tuple[int, ...] = ()
    """Beyond AWS: exit codes that say "checkpointed, run me again", which is not held against `retry`."""
    max_checkpoints: int = MAX_CHECKPOINTS
    """How many times that is done for each child, at most."""

    @property
    def shape(self) -> Shape:
        """What each attempt needs of a host."""
        has_program = bool(self.command) or self.script is not None
        needs = container_needs(self.container, has_program=has_program)
        return Shape(self.vcpus_milli, self.memory_mib, self.gpus, needs)


class DefinitionBody(Struct, frozen=True, kw_only=True):
    """What a revision of a job definition holds. Times in milliseconds, vCPUs in thousandths, memory in MiB.

    `metadata` is whoever made it's own, here as in jobs, queues and environments: kept, given back, never looked at.
    """

    command: tuple[str, ...] = ()
    script: str | None = None
    environment: Mapping[str, str] = {}
    parameters: Mapping[str, str] = {}
    vcpus_milli: int = 1000
    memory_mib: int = 0
    gpus: int = 0
    retry: RetryStrategy = RetryStrategy()
    timeout_ms: int | None = None
    workdir: str | None = None
    scratch: bool = False
    tags: Mapping[str, str] = {}
    scheduling_priority: int = 0
    metadata: Mapping[str, Any] = {}
    container: ContainerSpec | None = None
    max_running: int | None = None
    max_failures: int | None = None
    on_max_failures: OnMaxFailures = OnMaxFailures.CANCEL
    role: str | None = None
    checkpoint_exit_codes: tuple[int, ...] = ()
    max_checkpoints: int = MAX_CHECKPOINTS


class Overrides(Struct, frozen=True, kw_only=True):
    """What a submit changes of its definition; None leaves the definition's value (contract SJ-5, PA-6).

    `environment` and `parameters` are merged by name, `container` field by field; everything else replaces. A job's
    tags and metadata are its own.
    """

    command: tuple[str, ...] | None = None
    script: str | None = None
    environment: Mapping[str, str] = {}
    parameters: Mapping[str, str] = {}
    vcpus_milli: int | None = None
    memory_mib: int | None = None
    gpus: int | None = None
    retry: RetryStrategy | None = None
    timeout_ms: int | None = None
    workdir: str | None = None
    scratch: bool | None = None
    tags: Mapping[str, str] = {}
    scheduling_priority: int | None = None
    metadata: Mapping[str, Any] = {}
    container: ContainerSpec | None = None
    max_running: int | None = None
    max_failures: int | None = None
    on_max_failures: OnMaxFailures | None = None
    role: str | None = None
    checkpoint_exit_codes: tuple[int, ...] | None = None
    max_checkpoints: int | None = None


NO_OVERRIDES: Final = Overrides()
"""Of a submit that changes nothing."""


class ResourceState(StrEnum):
    """Whether a queue takes submits, or an environment placements."""

    ENABLED = "ENABLED"
    DISABLED = "DISABLED"


class ResourceStatus(StrEnum):
    """The health of a queue or an environment, under AWS's names."""

    CREATING = "CREATING"
    VALID = "VALID"
    INVALID = "INVALID"
    DELETING = "DELETING"


class TaggedKind(StrEnum):
    """What has tags."""

    COMPUTE_ENVIRONMENT = "compute environment"
    JOB_QUEUE = "job queue"
    JOB_DEFINITION = "job definition"
    JOB = "job"


class EnvironmentBody(Struct, frozen=True, kw_only=True):
    """What a compute environment is created with."""

    backend: str
    managed: bool = True
    min_vcpus_milli: int = 0
    max_vcpus_milli: int = 0
    state: ResourceState = ResourceState.ENABLED
    options: Mapping[str, Any] = {}
    tags: Mapping[str, str] = {}
    metadata: Mapping[str, Any] = {}


RETAIN_SUCCEEDED_MS: Final = 24 * 3_600_000
"""How long a SUCCEEDED job is kept unless its queue says otherwise."""
RETAIN_FAILED_MS: Final = 7 * 24 * 3_600_000
"""How long a FAILED job is kept unless its queue says otherwise."""


class QueueBody(Struct, frozen=True, kw_only=True):
    """What a job queue is created with; environments in the order in which they are tried."""

    priority: int
    compute_environments: tuple[str, ...]
    state: ResourceState = ResourceState.ENABLED
    tags: Mapping[str, str] = {}
    retain_succeeded_ms: int = RETAIN_SUCCEEDED_MS
    retain_failed_ms: int = RETAIN_FAILED_MS
    metadata: Mapping[str, Any] = {}


class StopKind(StrEnum):
    """Why the kernel ends a running attempt. The first that is recorded decides what becomes of it."""

    TERMINATE = "terminate"
    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"
    """The kernel is closing: the job is RUNNABLE again, and the attempt does not count as one of its tries."""


class FailureClass(StrEnum):
    """What kind of failure ended an attempt, whatever the wording of its reasons.

    The last two are none: the attempt is not held against the job.
    """

    APPLICATION_EXIT = "application exit"
    """The program ended by itself, with an exit code other than 0 or by a signal."""
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out of memory"
    COULD_NOT_START = "could not start"
    HOST_LOST = "host lost"
    CANCELLED = "cancelled"
    """Terminated, or its queue was deleted, or its array was stopped (`max_failures`)."""
    KERNEL_CLOSED = "kernel closed"
    """Stopped because the kernel closed."""
    CHECKPOINTED = "checkpointed"
    """It ended with one of `checkpoint_exit_codes`, and is run again."""


OUT_OF_MEMORY_PREFIX: Final = "OutOfMemoryError"
"""How a backend's reason begins for an attempt that was killed for its memory, as on ECS (contract 2.6)."""


class ExitKind(StrEnum):
    """How an attempt came to its end, as far as its backend knows."""

    EXITED = "exited"
    TIMED_OUT = "timed out"
    LOST = "lost"


DEFAULT_GRACE_MS: Final = 30_000
"""From SIGTERM to SIGKILL, as on AWS (contract 2.5, TO-3)."""
