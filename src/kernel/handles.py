"""Handles: a job or a child as an object with methods. A handle holds an id and no state of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING

from .core.errors import InvalidValue, NotFound
from .core.explain import Reason
from .core.indexes import Indexes, in_words, place_of
from .views import JobDetail, JobRerun

if TYPE_CHECKING:
    from .job_calls import JobCalls


class JobHandle:
    """A job, or one child of an array; wherever a job's id is taken, a handle is too."""

    __slots__ = ("_kernel", "_own", "array_size", "id", "name", "warnings")

    def __init__(
        self, kernel: JobCalls, job_id: str, name: str, array_size: int | None, indexes: Indexes | None = None
    ) -> None:
        self._kernel = kernel
        self.id = job_id
        """The job's id, or the child's: `<job>:<index>`."""
        self.name = name
        self.array_size = array_size
        """How many children the job has; None for a single job and for a child."""
        self._own = indexes
        self.warnings: tuple[str, ...] = ()
        """From its submit: what was accepted but is probably not meant."""

    def __getitem__(self, index: int) -> JobHandle:
        """The handle of a child."""
        if isinstance(index, bool) or not isinstance(index, int):
            raise InvalidValue("index", index, "an index is a whole number (int)")
        if self.array_size is None:
            raise NotFound("child", f"{self.id}:{index}", "that job is not an array")
        if place_of(self._own, self.array_size, index) is None:
            there = in_words(self._own, self.array_size)
            raise NotFound("child", f"{self.id}:{index}", f"its indexes are {there}")
        return JobHandle(self._kernel, f"{self.id}:{index}", self.name, None)

    def __iter__(self) -> Iterator[JobHandle]:
        """The handles of the children; none for a single job and for a child."""
        return (JobHandle(self._kernel, f"{self.id}:{index}", self.name, None) for index in self.indexes)

    @property
    def indexes(self) -> Sequence[int]:
        """The indexes of the children, ascending; none for a single job and for a child."""
        return range(len(self)) if self._own is None else self._own

    def __len__(self) -> int:
        """The number of children; 0 for a single job and for a child."""
        return self.array_size or 0

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        size = "" if self.array_size is None else f" array_size={self.array_size}"
        return f"<JobHandle {self.name!r} {self.id}{size}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobHandle) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    async def describe(self) -> JobDetail:
        """What the job is and how it stands."""
        return await self._kernel.describe_job(self)

    async def explain(self) -> tuple[Reason, ...]:
        """Why it is where it is; see `Kernel.explain`."""
        return await self._kernel.explain(self)

    async def wait(self) -> JobDetail:
        """Return what it is once it has ended. Cancelling the wait does not cancel the job."""
        return await self._kernel.wait(self)

    async def cancel(self, reason: str = "Cancelled by its owner") -> None:
        """See `Kernel.cancel_job`."""
        await self._kernel.cancel_job(self, reason)

    async def terminate(self, reason: str = "Terminated by its owner") -> None:
        """See `Kernel.terminate_job`."""
        await self._kernel.terminate_job(self, reason)

    async def rerun(self, *, dependents: bool = False) -> tuple[JobRerun, ...]:
        """See `Kernel.rerun`."""
        return await self._kernel.rerun(self, dependents=dependents)

    def logs(self, *, follow: bool = False, attempt: int | None = None) -> AsyncIterator[bytes]:
        """See `Kernel.logs`."""
        return self._kernel.logs(self, follow=follow, attempt=attempt)

    async def read_logs(self, *, attempt: int | None = None) -> bytes:
        """See `Kernel.read_logs`."""
        return await self._kernel.read_logs(self, attempt=attempt)
