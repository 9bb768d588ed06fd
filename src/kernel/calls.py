"""What the groups of the Kernel's methods share: the runtime behind them, and how they find a job."""

from __future__ import annotations

from .arguments import job_reference
from .core.errors import KernelClosed
from .core.state import JobRow
from .core.submit import find_job
from .environments import Drivers
from .identifiers import IdSource
from .registry import BackendRegistry
from .runtime import Runtime


class Calls:
    """A base of Kernel: what its methods work on."""

    _runtime: Runtime | None
    _drivers: Drivers
    _registry: BackendRegistry
    _ids: IdSource

    @property
    def _live(self) -> Runtime:
        if self._runtime is None:
            raise KernelClosed("the kernel is not open; use it in `async with`")
        return self._runtime

    @property
    def _open(self) -> Runtime:
        runtime = self._live
        runtime.check_open()
        return runtime

    def _find(self, job: object) -> tuple[JobRow, int | None]:
        """The job, and the child where one is meant, that an id, handle or name stands for."""
        return find_job(self._open.state, job_reference("job", job))
