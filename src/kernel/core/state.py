"""The kernel's state: rows, and the indexes that make a step cost what it changes.

Only `evolve` writes here. What can be derived (who waits for whom, lanes, names, timers, free
capacity) is kept in step by the same functions live and at recovery.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

from .children import Children
from .indexes import Indexes, shown
from .model import (
    DefinitionBody,
    Dependency,
    EnvironmentBody,
    JobSpec,
    On,
    QueueBody,
    Quotas,
    ResourceStatus,
    Shape,
    StopKind,
)
from .states import RUNNABLE, RUNNING, STARTING, STATUSES, SUBMITTED, SUCCEEDED, JobStatus

K = TypeVar("K")
V = TypeVar("V")

LOOKAHEAD_US: Final = 50_000
"""How much work a host may hold beyond its capacity: so little that nobody waits for it noticeably."""
MEMORY_UNCOUNTED: Final = 1 << 50
"""MiB offered by a host whose memory is not counted."""
NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})
"""What a job notes of few of its children, or of few jobs, before there is anything: one for all, since what is made
for each of many jobs costs memory and the garbage collector's time."""


def writable(found: Mapping[K, V]) -> dict[K, V]:
    """`found` to write into, or a new dict in its place if it is NOTHING."""
    return found if isinstance(found, dict) else {}


class Stop(NamedTuple):
    """Why a running attempt is being ended, and the caller's reason where there is one."""

    kind: StopKind
    reason: str | None


class JobRow:
    """One job: what was submitted, its columns, and who waits for it."""

    __slots__ = (
        "answered", "blockers", "children_answered", "reopened", "reruns",
        "cancelled", "child_dependents", "children", "created_ms", "depends_on", "dependents",
        "gpus", "indexes", "job_id", "name", "n_to_n", "parent", "parent_stopped_ms", "principal", "queue", "referrers",
        "request_id", "sequential", "serial", "shape", "size", "spec", "stopping", "terminated", "token", "touched_ms",
        "uncounted", "checkpoints", "failures", "flags", "lost", "parked", "stopped", "waiting_since_ms",
    )  # fmt: skip

    def __init__(
        self, serial: int, job_id: str, name: str, queue: str, spec: JobSpec, size: int | None, created_ms: int
    ) -> None:
        self.serial = serial
        self.job_id = job_id
        self.name = name
        self.queue = queue
        self.spec = spec
        self.shape: Shape = spec.shape
        self.size = size
        self.created_ms = created_ms
        self.indexes: Indexes | None = None
        """Of its children, by place; None: an index is a place, as on AWS."""
        self.touched_ms = created_ms
        """When a child last changed its status."""
        self.waiting_since_ms = created_ms
        """Since when its RUNNABLE work has waited without any of it being placed."""
        self.depends_on: tuple[Dependency, ...] = ()
        self.token: str | None = None
        self.principal: str | None = None
        self.request_id: str | None = None
        self.children = Children(1 if size is None else size)
        self.parent = SUBMITTED
        """An array parent's status byte; meaningless for a single job."""
        self.parent_stopped_ms = 0
        self.cancelled = False
        self.terminated = False
        self.failures = 0
        """Children that have FAILED by their own attempts, since the last rerun; counted for `max_failures`."""
        self.stopped: str | None = None
        """Why it goes no further: it has had `max_failures`."""
        self.blockers = 0
        """How many of its entries on whole jobs, or on single children of others, have not been answered."""
        self.referrers = 0
        """How many unfinished jobs name it in their `depends_on`, an entry counted once each."""
        self.answered = 0
        """Bit n: entry n of `depends_on` has been answered, and is not asked again."""
        self.children_answered: Mapping[int, set[int]] = NOTHING
        """Per N_TO_N entry: children for which it was answered by a failure that is no more (sparse)."""
        self.reopened: Mapping[int, int] = NOTHING
        """Children that FAILED while they were to be tried again, with the turn at their rerun: entries up to it are
        out of date."""
        self.reruns = 0
        """How many times something of it has been run again."""
        self.n_to_n: tuple[tuple[int, int, On], ...] = ()
        """(place in `depends_on`, job, which end) of each N_TO_N entry."""
        self.sequential: On | None = None
        """After which end of a child the next one goes on; None: they do not wait for each other."""
        self.dependents: Mapping[tuple[int, int], None] = NOTHING
        """(job, place in its `depends_on`) of each entry that names this job as a whole, or N_TO_N."""
        self.child_dependents: Mapping[int, dict[tuple[int, int], None]] = NOTHING
        """The same by child, for those that name one."""
        self.stopping: Mapping[int, Stop] = NOTHING
        self.gpus: Mapping[int, tuple[int, ...]] = NOTHING
        self.uncounted: Mapping[int, int] = NOTHING
        """Attempts per child that are not held against its retry strategy."""
        self.lost: Mapping[int, int] = NOTHING
        """Those of them that were lost with their host."""
        self.checkpoints: Mapping[int, int] = NOTHING
        """Those of them that ended with one of `checkpoint_exit_codes`."""
        self.parked: list[tuple[int, int, int]] | None = None
        """A heap of (turn, index, attempt number so far): retried work that `max_running` keeps out of its lane."""
        self.flags: Mapping[int, bool] = NOTHING
        """Children cancelled (False) or terminated (True) one by one."""

    @property
    def status(self) -> JobStatus:
        """Of the job as a whole."""
        return STATUSES[self.children.status[0] if self.size is None else self.parent]

    @property
    def is_given_up(self) -> bool:
        """Whether nothing of it is started any more: it was cancelled, terminated, or stopped (CT-2)."""
        return self.cancelled or self.terminated or self.stopped is not None

    @property
    def ended(self) -> bool:
        """Whether the job as a whole is SUCCEEDED or FAILED."""
        return (self.children.status[0] if self.size is None else self.parent) >= SUCCEEDED

    def index_of(self, place: int) -> int:
        """What the child at a place is called."""
        return place if self.indexes is None else self.indexes[place]

    def child_id(self, place: int | None) -> str:
        """The id of the child at a place; None: the job's own."""
        return self.job_id if place is None else f"{self.job_id}:{self.index_of(place)}"

    def shown(self, places: Sequence[int]) -> Sequence[int]:
        """The indexes of the children at these places."""
        return places if self.indexes is None else shown(self.indexes, places)

    def room(self, most: int) -> int:
        """How many more children its own cap lets run now, at most `most`."""
        cap, counts = self.spec.max_running, self.children.counts
        return most if cap is None else max(0, min(most, cap - counts[STARTING] - counts[RUNNING]))

    def still_waits(self, turn: int, index: int, number: int) -> bool:
        """Whether retried work still waits for the attempt after `number`; if not, an entry for it is out of date."""
        children = self.children
        is_due = children.status[index] == RUNNABLE and children.number[index] == number
        return is_due and (not self.reopened or turn > self.reopened.get(index, 0))

    def live(self) -> list[int]:
        """The children that are STARTING or RUNNING, ascending."""
        children = self.children
        if not children.counts[STARTING]:
            return list(children.with_status(RUNNING))
        if not children.counts[RUNNING]:
            return list(children.with_status(STARTING))
        return sorted([*children.with_status(STARTING), *children.with_status(RUNNING)])


class Lane:
    """A queue's runnable work of one shape: what was retried first, then jobs in submission order."""

    __slots__ = ("front", "jobs", "members", "shape")

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.front: list[tuple[int, int, int, int]] = []
        """A heap of (turn, job, index, attempt number so far): retried work, in the order in which it came back."""
        self.jobs: list[int] = []
        """A heap of serials; one that has no RUNNABLE child left, or runs as many as it may, is dropped when it comes
        up."""
        self.members: set[int] = set()

    def add(self, serial: int) -> None:
        """The job has runnable children."""
        if serial not in self.members:
            self.members.add(serial)
            heapq.heappush(self.jobs, serial)

    def take_back(self, job: JobRow) -> None:
        """The job may run more children again: it and as much of its retried work return to where they stood."""
        room = job.room(len(job.parked)) if job.parked else 0
        while room and job.parked:
            turn, index, number = heapq.heappop(job.parked)
            if job.still_waits(turn, index, number):
                heapq.heappush(self.front, (turn, job.serial, index, number))
                room -= 1
        self.add(job.serial)

    def drop(self) -> None:
        """Take the first job off."""
        self.members.discard(heapq.heappop(self.jobs))


class QueueRow:
    """A job queue."""

    __slots__ = ("body", "created_ms", "lanes", "name", "status", "unfinished")

    def __init__(self, name: str, body: QueueBody, created_ms: int) -> None:
        self.name = name
        self.body = body
        self.created_ms = created_ms
        self.status = ResourceStatus.VALID
        self.lanes: dict[Shape, Lane] = {}
        self.unfinished: dict[int, None] = {}

    def lane(self, shape: Shape) -> Lane:
        """The lane of a shape, made when first needed."""
        lane = self.lanes.get(shape)
        if lane is None:
            lane = self.lanes[shape] = Lane(shape)
        return lane


class HostRow:
    """A host, with what is free on it."""

    __slots__ = (
        "ahead", "closed", "environment", "free_gpus", "free_memory_mib", "free_vcpus_milli", "gpus", "load",
        "lookahead", "memory_mib", "name", "paused", "rank", "recent_us", "serial", "vcpus_milli", "zone",
    )  # fmt: skip

    def __init__(self, serial: int, environment: str, name: str) -> None:
        self.serial = serial
        self.environment = environment
        self.name = name
        self.vcpus_milli = 0
        self.memory_mib: int | None = None
        self.gpus: tuple[int, ...] = ()
        self.zone: str | None = None
        self.paused: str | None = None
        """Why it takes no attempts for now, as its backend says."""
        self.closed = False
        """Whether it takes no attempts: it is paused, or drained."""
        self.lookahead = 0
        """Attempts that it takes beyond its capacity, to begin with them as soon as there is room."""
        self.ahead = 0
        """Attempts that were placed there beyond its capacity, and have not been heard of since."""
        self.recent_us = LOOKAHEAD_US + 1
        """How long attempts have run here of late, in microseconds."""
        self.free_vcpus_milli = 0
        self.free_memory_mib = 0
        self.free_gpus: list[int] = []
        self.load: dict[int, int] = {}
        """Live attempts on it, per job."""
        self.rank = (0, 0, 0, serial)
        """Free vCPUs, free memory, free GPUs, serial: its place among its environment's hosts."""

    def fits(self, shape: Shape, most: int) -> int:
        """How many attempts of a shape it has room for now, at most `most`."""
        n = most
        if shape.vcpus_milli:
            n = min(n, self.free_vcpus_milli // shape.vcpus_milli)
        if shape.memory_mib:
            n = min(n, self.free_memory_mib // shape.memory_mib)
        if shape.gpus:
            n = min(n, len(self.free_gpus) // shape.gpus)
        return max(n, 0)

    def takes(self, shape: Shape, most: int) -> int:
        """How many attempts of a shape it takes now: what it has room for, and a look-ahead where attempts are short.

        The resources that are free are below zero by as much as is taken ahead. GPUs are assigned at placement, so
        there is none for those.
        """
        room = self.fits(shape, most)
        if room == most or shape.gpus:
            return room
        at_once = self.vcpus_milli // shape.vcpus_milli if shape.vcpus_milli else 1
        more = min(self.lookahead, LOOKAHEAD_US * at_once // max(self.recent_us, 1)) - self.ahead
        return min(most, room + max(more, 0))


class EnvironmentRow:
    """A compute environment and its hosts."""

    __slots__ = (
        "body", "by_free", "container", "created_ms", "drained", "hosts", "listed", "name", "registered", "status",
        "status_reason",
    )  # fmt: skip

    def __init__(self, name: str, body: EnvironmentBody, created_ms: int) -> None:
        self.name = name
        self.body = body
        self.created_ms = created_ms
        self.status = ResourceStatus.CREATING
        self.status_reason = ""
        self.listed = False
        """Whether its hosts have told what they hold since the kernel opened."""
        self.container: tuple[str, ...] = ()
        """The names of the container fields that its backend honours."""
        self.hosts: dict[str, int] = {}
        self.registered: dict[str, dict[str, Any]] = {}
        """Hosts that were added one by one, with what the backend is told of each."""
        self.drained: dict[str, str] = {}
        """Names of hosts that are to take no attempts, with the reason."""
        self.by_free: list[tuple[int, int, int, int]] = []
        """The ranks of those of its hosts that are not closed, ascending: where best fit looks."""


class DefinitionRow:
    """One revision of a job definition."""

    __slots__ = ("active", "body", "created_ms", "name", "plain", "revision")

    def __init__(self, name: str, revision: int, body: DefinitionBody, created_ms: int) -> None:
        self.name = name
        self.revision = revision
        self.body = body
        self.created_ms = created_ms
        self.active = True
        self.plain: JobSpec | None = None
        """What a job runs that changes nothing of it, once there has been one: all of those share it."""


class NameRow:
    """The jobs of one name."""

    __slots__ = ("finished", "unfinished")

    def __init__(self) -> None:
        self.unfinished: dict[int, None] = {}
        self.finished: set[int] = set()


class KernelState:
    """Everything that the kernel knows."""

    __slots__ = (
        "ahead", "definitions", "environments", "epoch", "expiries", "hosts", "ids", "jobs", "kernel_id", "names",
        "next_host", "next_serial", "now_ms", "queues", "quotas", "timers", "tokens", "turn", "unfinished", "unknown",
    )  # fmt: skip

    def __init__(self, quotas: Quotas = Quotas()) -> None:  # noqa: B008 - frozen
        self.quotas = quotas
        self.kernel_id = ""
        self.epoch = 0
        self.now_ms = 0
        self.next_serial = 1
        self.next_host = 1
        self.turn = 0
        """Counts retried work, to keep its order across lanes."""
        self.unfinished = 0
        self.jobs: dict[int, JobRow] = {}
        self.ids: dict[str, int] = {}
        self.names: dict[str, NameRow] = {}
        self.tokens: dict[str, int] = {}
        self.definitions: dict[str, dict[int, DefinitionRow]] = {}
        self.queues: dict[str, QueueRow] = {}
        self.environments: dict[str, EnvironmentRow] = {}
        self.hosts: dict[int, HostRow] = {}
        self.ahead: dict[tuple[int, int], int] = {}
        """(job, index) of what was placed beyond its host's capacity and has not been heard of since, with the host."""
        self.timers: list[tuple[int, int, int, tuple[int, ...]]] = []
        """A heap of (deadline, job, attempt number, children): derived, and entries may be out of date."""
        self.expiries: list[tuple[int, int]] = []
        """A heap of (time, job): when ended jobs may be forgotten; entries may be out of date."""
        self.unknown: dict[tuple[int, int, int], int] = {}
        """(job, index, attempt number) that their backend could not find, with the time at which they count as lost."""

    def queues_by_priority(self) -> list[QueueRow]:
        """Highest priority first; by name among equals."""
        return sorted(self.queues.values(), key=lambda q: (-q.body.priority, q.name))

    def rank_host(self, host: HostRow) -> None:
        """Give a host its place in its environment's order: what is free on it has changed."""
        self.unrank_host(host)
        host.rank = (host.free_vcpus_milli, host.free_memory_mib, len(host.free_gpus), host.serial)
        if not host.closed:
            insort(self.environments[host.environment].by_free, host.rank)

    def unrank_host(self, host: HostRow) -> None:
        """Take a host out of its environment's order."""
        by_free = self.environments[host.environment].by_free
        at = bisect_left(by_free, host.rank)
        if at < len(by_free) and by_free[at] == host.rank:
            del by_free[at]
