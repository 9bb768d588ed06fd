"""A queue's jobStateTimeLimitActions: the head that is blocked for too long is cancelled (contract TL-1, TL-2, TL-4).

Heads of queues are looked at after something has happened, and when the time of one that is blocked may be over. How
long that has lasted is known since this front end first saw a head of its kind blocked so: after a restart of the
server that begins anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import structlog
from anybatch import Conflict, JobDetail, Kernel, KernelClosed, NotFound
from anybatch.kernel.clock import SystemClock

from .blocked import Blocked
from .call import aws_metadata, to_ms
from .changes import Changes
from .request_ids import request_id

log = structlog.stdlib.get_logger("anybatch.aws")

RETRY_S: Final = 30.0
"""After a look that failed."""
CANCELLED_MAX: Final = 100
"""In one look at a queue; the next look, a moment later, goes on."""
PRINCIPAL: Final = "jobStateTimeLimitActions"
"""Who cancels, in the kernel's events."""
TEXT: Final = "Canceled by JobStateTimeLimit action due to reason: "

Kind = tuple[Any, ...]
"""Jobs that are blocked alike: queue, size, reason."""


class TimeLimits:
    """Acts on the queues of one front end."""

    def __init__(self, kernel: Kernel, blocked: Blocked, now_ms: Callable[[], int] | None = None) -> None:
        self._kernel = kernel
        self._blocked = blocked
        self._now_ms = now_ms or SystemClock().now_ms
        self._since: dict[Kind, int] = {}
        """Since when heads of a kind have been blocked for a reason that their queue acts on."""

    async def run(self) -> None:
        """Look again and again, until cancelled or the kernel is closed."""
        changes, wait_s = Changes(self._kernel), None
        while True:
            try:
                await changes.wait(wait_s)
                wait_s = await self.look()
            except KernelClosed:
                return
            except Exception:  # it costs this look, not the ones after it
                log.exception("aws_time_limits_failed")
                wait_s = RETRY_S

    async def look(self) -> float | None:
        """Cancel heads that have been blocked for longer than their queue allows; in how many seconds the next is due.

        None: nothing is due unless something happens.
        """
        seen: dict[Kind, int] = {}
        due: list[float] = []
        for queue in await self._kernel.describe_job_queues():
            actions = aws_metadata(queue.metadata).get("jobStateTimeLimitActions") or ()
            limits = {str(action["reason"]): int(action["maxTimeSeconds"]) * 1000 for action in actions}
            if limits:
                due += await self._look_at(queue.name, limits, seen)
        self._since = seen
        return min(due, default=None)

    async def _look_at(self, queue: str, limits: dict[str, int], seen: dict[Kind, int]) -> list[float]:
        """[in how many seconds the head is due], or []."""
        for _ in range(CANCELLED_MAX):
            head = await self._kernel.queue_head(queue)
            text = None if head is None else await self._blocked.reason_of(head.id, queue)
            reason = "" if text is None else text.partition(" - ")[0]
            if head is None or reason not in limits:
                return []
            try:
                job = await self._kernel.describe_job(head.id)
            except NotFound:
                continue
            now = self._now_ms()
            kind = (queue, job.vcpus, job.memory_mib, job.gpus, reason)
            seen[kind] = self._since.get(kind, seen.get(kind, now))
            left_ms = max(seen[kind], to_ms(job.changed_at)) + limits[reason] - now
            if left_ms > 0:
                return [left_ms / 1000]
            await self._cancel(job, reason)
        return []

    async def _cancel(self, job: JobDetail, reason: str) -> None:
        """The job; of a child the array, for its other children are blocked as it is."""
        try:
            with self._kernel.acting_as(PRINCIPAL, request_id=request_id()):
                await self._kernel.cancel_job(job.id.partition(":")[0], TEXT + reason)
        except (NotFound, Conflict):  # it has gone or begun in the meantime
            pass
