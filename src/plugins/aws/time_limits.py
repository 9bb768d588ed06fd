"""A queue's jobStateTimeLimitActions: what has been blocked for too long is cancelled (contract TL-1, TL-2, TL-4).

Looked at from time to time, so an action comes up to `LOOK_S` late, as AWS's are approximate. How long a job has been
blocked is known since this front end first saw it so: after a restart of the server that begins anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final
from uuid import uuid4

import structlog
from anybatch import Conflict, JobStatus, Kernel, KernelClosed, NotFound

from .blocked import Blocked
from .call import aws_metadata

log = structlog.stdlib.get_logger("anybatch.aws")

LOOK_S: Final = 30.0
"""Between two looks. A look goes through the jobs of the queues that have actions, and of no other."""
PRINCIPAL: Final = "jobStateTimeLimitActions"
"""Who cancels, in the kernel's events."""
TEXT: Final = "Canceled by JobStateTimeLimit action due to reason: "


class TimeLimits:
    """Acts on the queues of one front end."""

    def __init__(self, kernel: Kernel, blocked: Blocked, clock: Callable[[], float] = time.monotonic) -> None:
        self._kernel = kernel
        self._blocked = blocked
        self._clock = clock
        self._since: dict[tuple[str, str], float] = {}
        """Since when a job has been blocked for a reason that its queue acts on."""

    async def run(self) -> None:
        """Look again and again, until cancelled or the kernel is closed."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except KernelClosed:
                return
            except Exception:  # it costs this look, not the ones after it
                log.exception("aws_time_limits_failed")

    async def look(self) -> None:
        """Cancel what has been blocked for longer than its queue allows."""
        seen: dict[tuple[str, str], float] = {}
        for queue in await self._kernel.describe_job_queues():
            actions = aws_metadata(queue.metadata).get("jobStateTimeLimitActions") or ()
            limits = {str(action["reason"]): float(action["maxTimeSeconds"]) for action in actions}
            if limits:
                await self._look_at(queue.name, limits, seen)
        self._since = seen

    async def _look_at(self, queue: str, limits: dict[str, float], seen: dict[tuple[str, str], float]) -> None:
        now = self._clock()
        async for job in self._kernel.list_jobs(queue=queue, status=(JobStatus.RUNNABLE, JobStatus.PENDING)):
            if job.status is JobStatus.PENDING and job.array_size is None:
                continue  # an array is PENDING while children of it are RUNNABLE, a single job for its dependencies
            text = await self._blocked.reason_of(job.id, queue)
            reason = "" if text is None else text.partition(" - ")[0]
            if reason not in limits:
                continue
            key = (job.id, reason)
            seen[key] = self._since.get(key, now)
            if now - seen[key] >= limits[reason]:
                await self._cancel(job.id, reason)

    async def _cancel(self, job_id: str, reason: str) -> None:
        try:
            with self._kernel.acting_as(PRINCIPAL, request_id=str(uuid4())):
                await self._kernel.cancel_job(job_id, TEXT + reason)
        except (NotFound, Conflict):  # it has gone or begun in the meantime
            pass
