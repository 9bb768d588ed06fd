"""Events: the durable facts that the core decided, in order. They are the journal and the event stream.

They are run-shaped: one event says what happened to a run of children of one job, and a single job is
a run of one (index 0). All events of one commit share the commit's time, `at_ms`; times that differ
are kept as an age, in milliseconds before it. Jobs are named by their serial, a small number given at
submit. Kept as msgpack arrays: fields are only ever added at the end, with a default; a change of
meaning is a new tag.

`indexes` None means the range [start, stop); otherwise it lists the children and start/stop are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from .indexes import Kept
from .model import DefinitionBody, Dependency, EnvironmentBody, JobSpec, QueueBody, ResourceStatus, TaggedKind

RECORD_VERSION = 1
"""Of all the records below; a journal with a higher one is refused."""


class Event(Struct, frozen=True, array_like=True):
    """Root of all events."""


class KernelOpened(Event, frozen=True, array_like=True, tag=0):
    """A kernel took the journal over; the epoch rises by one each time."""

    epoch: int
    kernel_id: str


class JobSubmitted(Event, frozen=True, array_like=True, tag=1):
    """A job was accepted: SUBMITTED. `size` None for a single job; `indexes` None: its children's are 0 to size - 1.

    All events name children by their place, from 0 on, whatever their indexes are.
    """

    serial: int
    job_id: str
    name: str
    queue: str
    spec: JobSpec
    size: int | None
    depends_on: tuple[Dependency, ...]
    client_token: str | None
    principal: str | None
    request_id: str | None
    indexes: Kept = None


class _Run(Event, frozen=True, array_like=True):
    job: int
    start: int
    stop: int
    indexes: Sequence[int] | None

    def each(self) -> Sequence[int]:
        """The indexes of the children it is about."""
        return range(self.start, self.stop) if self.indexes is None else self.indexes

    def __len__(self) -> int:
        return self.stop - self.start if self.indexes is None else len(self.indexes)


class WorkHeld(_Run, frozen=True, array_like=True, tag=2):
    """SUBMITTED -> PENDING: dependencies are outstanding."""


class WorkReleased(_Run, frozen=True, array_like=True, tag=3):
    """-> RUNNABLE: nothing is outstanding any more."""


class WorkFailed(_Run, frozen=True, array_like=True, tag=4):
    """-> FAILED without an attempt of its own: a dependency failed (or its queue was deleted)."""

    reason: str


class ParentHeld(Event, frozen=True, array_like=True, tag=5):
    """An array parent: SUBMITTED -> PENDING (AR-3)."""

    job: int


class ParentEnded(Event, frozen=True, array_like=True, tag=6):
    """An array parent: PENDING -> SUCCEEDED or FAILED, after its last child (AR-4, AR-5)."""

    job: int
    succeeded: bool
    reason: str | None = None
    """Why, if not for the failure of children alone."""


class CancelRequested(Event, frozen=True, array_like=True, tag=7):
    """Cancel or terminate of a job (`index` None) or of one child.

    All of it that waits fails (the events that follow); with `terminate`, what runs is to be stopped.
    """

    job: int
    index: int | None
    terminate: bool
    reason: str
    principal: str | None
    request_id: str | None


class AttemptsPlaced(_Run, frozen=True, array_like=True, tag=8):
    """RUNNABLE -> STARTING: attempt `number` of these on this host. `gpus`: device indexes per child, in order."""

    number: int
    host: int
    gpus: Sequence[Sequence[int]] | None


class AttemptsStarted(_Run, frozen=True, array_like=True, tag=9):
    """STARTING -> RUNNING. `ages`: how long ago each began (one number for all, or one each)."""

    number: int
    ages: int | Sequence[int]


class AttemptsEnded(_Run, frozen=True, array_like=True, tag=10):
    """Attempts ended, and the same became of all of them.

    `status` (a status byte): SUCCEEDED, FAILED, or RUNNABLE for another try. `codes` and `ages` are one
    value for all or one each; a code of -1 stands for none. `status_reason` None is the ordinary text,
    `reason` the cause as given by the backend. `counts` False: the try is not held against the job.
    `failure` is a FailureClass, None for a program that ended by itself.
    """

    number: int
    status: int
    codes: int | Sequence[int]
    ages: int | Sequence[int]
    status_reason: str | None
    reason: str | None
    counts: bool
    failure: str | None = None


class StopRequested(_Run, frozen=True, array_like=True, tag=11):
    """These running attempts are to be ended, for the kernel's own reasons (`kind`: a StopKind)."""

    number: int
    kind: str
    reason: str | None = None


class RerunRequested(Event, frozen=True, array_like=True, tag=13):
    """What FAILED of a job (`index` None), or one child, is to run again; `dependents`: and what failed by it.

    The events that follow say what does.
    """

    job: int
    index: int | None
    dependents: bool
    principal: str | None
    request_id: str | None


class WorkReopened(_Run, frozen=True, array_like=True, tag=14):
    """FAILED -> PENDING: these run again. Their attempts so far are kept, and their budgets count anew."""


class ParentReopened(Event, frozen=True, array_like=True, tag=15):
    """An array parent: FAILED -> PENDING, before the first of its children that run again."""

    job: int


class ArrayStopped(Event, frozen=True, array_like=True, tag=16):
    """As many children of an array have FAILED as may: all of it that waits fails (the events that follow).

    With `terminate`, what runs is to be stopped.
    """

    job: int
    terminate: bool
    reason: str


class DefinitionRegistered(Event, frozen=True, array_like=True, tag=20):
    """A new revision."""

    name: str
    revision: int
    body: DefinitionBody
    principal: str | None
    request_id: str | None


class DefinitionDeregistered(Event, frozen=True, array_like=True, tag=21):
    """A revision turned INACTIVE."""

    name: str
    revision: int
    principal: str | None
    request_id: str | None


class QueuePut(Event, frozen=True, array_like=True, tag=22):
    """A job queue was created, or updated to this."""

    name: str
    body: QueueBody
    principal: str | None
    request_id: str | None


class QueueDeleted(Event, frozen=True, array_like=True, tag=23):
    """A job queue is gone, or will be once its last job has ended (`finished` False: it is DELETING)."""

    name: str
    finished: bool
    principal: str | None
    request_id: str | None


class EnvironmentPut(Event, frozen=True, array_like=True, tag=24):
    """A compute environment was created, or updated to this. `restart`: its backend has to know."""

    name: str
    body: EnvironmentBody
    principal: str | None
    request_id: str | None
    restart: bool = True


class EnvironmentDeleted(Event, frozen=True, array_like=True, tag=25):
    """A compute environment is gone."""

    name: str
    principal: str | None
    request_id: str | None


class EnvironmentStatusChanged(Event, frozen=True, array_like=True, tag=26):
    """An environment became VALID or INVALID."""

    name: str
    status: ResourceStatus
    reason: str


class HostJoined(Event, frozen=True, array_like=True, tag=27):
    """A host offers its capacity, for the first time or changed. `serial` names it in later events."""

    serial: int
    environment: str
    name: str
    vcpus_milli: int
    memory_mib: int | None
    gpus: tuple[int, ...]
    zone: str | None
    lookahead: int = 0


class HostLeft(Event, frozen=True, array_like=True, tag=28):
    """A host is gone for good."""

    serial: int
    reason: str


class TagsPut(Event, frozen=True, array_like=True, tag=30):
    """The tags of something are these now. `name` as in ChangeTags; `kind`: a TaggedKind."""

    kind: TaggedKind
    name: str
    tags: dict[str, str]
    principal: str | None
    request_id: str | None


class HostsListed(Event, frozen=True, array_like=True, tag=29):
    """An environment's hosts have told what they hold since the kernel opened; placement may begin.

    `container`: the names of the container fields that it honours.
    """

    environment: str
    container: tuple[str, ...] = ()


class HostRegistered(Event, frozen=True, array_like=True, tag=60):
    """A host was added to an unmanaged environment, or told of anew; its drain, if any, is over."""

    environment: str
    host: str
    settings: dict[str, Any]
    principal: str | None
    request_id: str | None


class HostDrained(Event, frozen=True, array_like=True, tag=61):
    """A host takes no more attempts, for this reason (None: it does again)."""

    environment: str
    host: str
    reason: str | None
    principal: str | None
    request_id: str | None


class HostDeregistered(Event, frozen=True, array_like=True, tag=62):
    """A registered host was taken away."""

    environment: str
    host: str
    principal: str | None
    request_id: str | None


class HostHeld(Event, frozen=True, array_like=True, tag=63):
    """A host takes no attempts for now, as its backend says (`reason` None: it does again)."""

    serial: int
    reason: str | None


class ForgottenJob(Struct, frozen=True, array_like=True):
    """What is left of a job: enough to tell what earlier events are about."""

    serial: int
    job_id: str
    name: str
    queue: str
    size: int | None
    indexes: Kept = None


class JobsForgotten(Event, frozen=True, array_like=True, tag=12):
    """These ended jobs are no longer kept."""

    jobs: tuple[ForgottenJob, ...]


AnyEvent = (
    KernelOpened
    | JobSubmitted
    | WorkHeld
    | WorkReleased
    | WorkFailed
    | ParentHeld
    | ParentEnded
    | CancelRequested
    | AttemptsPlaced
    | AttemptsStarted
    | AttemptsEnded
    | StopRequested
    | RerunRequested
    | WorkReopened
    | ParentReopened
    | ArrayStopped
    | JobsForgotten
    | DefinitionRegistered
    | DefinitionDeregistered
    | QueuePut
    | QueueDeleted
    | EnvironmentPut
    | EnvironmentDeleted
    | EnvironmentStatusChanged
    | HostJoined
    | HostLeft
    | HostsListed
    | TagsPut
    | HostRegistered
    | HostDrained
    | HostDeregistered
    | HostHeld
)


def run_fields(indexes: Sequence[int]) -> tuple[int, int, Sequence[int] | None]:
    """(start, stop, indexes) for an event about these children: a range where they are one.

    `indexes` is sorted ascending where it matters to nobody else; an unsorted list is kept as it is.
    """
    if isinstance(indexes, range) and indexes.step == 1:
        return indexes.start, indexes.stop, None
    n = len(indexes)
    if n == 0:
        return 0, 0, None
    first = indexes[0]
    if n == 1:
        return first, first + 1, None
    if indexes[-1] - first == n - 1 and list(indexes) == list(range(first, first + n)):
        return first, first + n, None
    return 0, 0, indexes
