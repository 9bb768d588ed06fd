"""The lifecycle: one table, (kind, status, trigger) -> status.

Two kinds of thing have a status. WORK is what attempts run for: a single job, or one child of an
array. PARENT is an array job as a whole, which follows from its children and never runs itself
(contract AR-2). A parent's status changes through `next_status`, a run of children's through
`Children.move`, which allows the table's edges only; any other is a bug of ours, never a state.
docs/states.md is generated from this table.

SUCCEEDED never changes again, and FAILED only by a rerun, which AWS does not have: its rows are in `BEYOND_AWS`.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Final

from .errors import KernelBug


class JobStatus(StrEnum):
    """A job's status, under AWS Batch's names."""

    SUBMITTED = "SUBMITTED"
    PENDING = "PENDING"
    RUNNABLE = "RUNNABLE"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended."""
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED)


STATUSES: Final[tuple[JobStatus, ...]] = tuple(JobStatus)
"""A status's place here is its byte in the status column."""

SUBMITTED, PENDING, RUNNABLE, STARTING, RUNNING, SUCCEEDED, FAILED = range(7)
"""The bytes of the status column, by name."""


class Kind(Enum):
    """What has a status."""

    WORK = "work"
    PARENT = "parent"


class Trigger(Enum):
    """Why a status changes."""

    HOLD = "hold"
    """Dependencies are outstanding; for a parent also: its children are no longer all waiting."""
    RELEASE = "release"
    """Nothing is outstanding."""
    DEPENDENCY_FAILED = "dependency failed"
    CANCEL = "cancel"
    TERMINATE = "terminate"
    PLACE = "place"
    """The scheduler chose a host."""
    START = "start"
    SUCCEED = "succeed"
    """Exit code 0; for a parent: every child SUCCEEDED."""
    RETRY = "retry"
    """The attempt ended and another one is to follow, also after a checkpoint."""
    FAIL = "fail"
    """The attempt failed for good; for a parent: all children ended and at least one FAILED."""
    RERUN = "rerun"
    """Beyond AWS: what FAILED is to run again; a parent goes on with its children."""
    STOP = "stop"
    """Beyond AWS: as many children of the array have FAILED as may (max_failures)."""


_W, _P, _S, _T = Kind.WORK, Kind.PARENT, JobStatus, Trigger

TRANSITIONS: Final[dict[tuple[Kind, JobStatus, Trigger], JobStatus]] = {
    # single jobs and children (contract 2.4; ST-2..ST-9, DEP-6, CT-2)
    (_W, _S.SUBMITTED, _T.HOLD): _S.PENDING,
    (_W, _S.SUBMITTED, _T.RELEASE): _S.RUNNABLE,
    (_W, _S.SUBMITTED, _T.CANCEL): _S.FAILED,
    (_W, _S.SUBMITTED, _T.TERMINATE): _S.FAILED,
    (_W, _S.PENDING, _T.RELEASE): _S.RUNNABLE,
    (_W, _S.PENDING, _T.DEPENDENCY_FAILED): _S.FAILED,
    (_W, _S.PENDING, _T.CANCEL): _S.FAILED,
    (_W, _S.PENDING, _T.TERMINATE): _S.FAILED,
    (_W, _S.RUNNABLE, _T.PLACE): _S.STARTING,
    (_W, _S.RUNNABLE, _T.CANCEL): _S.FAILED,
    (_W, _S.RUNNABLE, _T.TERMINATE): _S.FAILED,
    (_W, _S.STARTING, _T.START): _S.RUNNING,
    (_W, _S.STARTING, _T.RETRY): _S.RUNNABLE,
    (_W, _S.STARTING, _T.FAIL): _S.FAILED,
    (_W, _S.RUNNING, _T.SUCCEED): _S.SUCCEEDED,
    (_W, _S.RUNNING, _T.RETRY): _S.RUNNABLE,
    (_W, _S.RUNNING, _T.FAIL): _S.FAILED,
    # array parents (AR-2..AR-5, CT-3): they end only through their children
    (_P, _S.SUBMITTED, _T.HOLD): _S.PENDING,
    (_P, _S.PENDING, _T.SUCCEED): _S.SUCCEEDED,
    (_P, _S.PENDING, _T.FAIL): _S.FAILED,
    # beyond AWS
    (_W, _S.PENDING, _T.STOP): _S.FAILED,
    (_W, _S.RUNNABLE, _T.STOP): _S.FAILED,
    (_W, _S.FAILED, _T.RERUN): _S.PENDING,
    (_P, _S.FAILED, _T.RERUN): _S.PENDING,
}

BEYOND_AWS: Final = frozenset(
    {(_W, _S.FAILED, _T.RERUN), (_P, _S.FAILED, _T.RERUN), (_W, _S.PENDING, _T.STOP), (_W, _S.RUNNABLE, _T.STOP)}
)
"""The rows that AWS Batch does not have; without a rerun or `max_failures` none of them is used."""


def next_status(kind: Kind, status: JobStatus, trigger: Trigger) -> JobStatus:
    """The status that `trigger` leads to.

    Raises:
        KernelBug: the table has no such row.
    """
    try:
        return TRANSITIONS[kind, status, trigger]
    except KeyError:
        raise KernelBug(f"no transition for a {kind.value} in {status} on {trigger.value!r}") from None


WORK_EDGES: Final = frozenset(
    (STATUSES.index(source), STATUSES.index(target))
    for (kind, source, _), target in TRANSITIONS.items()
    if kind is Kind.WORK
)
"""The table's edges for single jobs and children, as status bytes: what `Children.move` allows."""
