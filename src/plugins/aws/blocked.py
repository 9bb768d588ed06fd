"""Why a RUNNABLE job cannot be placed, in AWS's words (contract TL-3)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from anybatch import Code, EnvironmentDetail, JobDetail, Kernel, NotFound, Reason

KEPT_S: Final = 1.0
"""For how long an answer holds for further jobs of the same queue, definition and size."""
KEPT_MAX: Final = 1000
TOO_LARGE: Final = (
    "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - The job resource requirement (vCPU/memory/GPU) is higher than that "
    "can be met by the CE(s) attached to the job queue."
)
TOO_MANY_VCPUS: Final = (
    "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE - CE(s) associated with the job queue cannot meet the CPU "
    "requirement of the job."
)
INVALID: Final = "ACTION_REQUIRED - CE(s) associated with the job queue are invalid."
NO_HOSTS: Final = (
    "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - Service cannot fulfill the capacity requested for instance type [{}]"
)
UNDETERMINED: Final = "UNDETERMINED - Batch job is blocked, root cause is undetermined."
_LARGE: Final = frozenset({Code.NEVER_FITS, Code.CANNOT_RUN_IT})


class Blocked:
    """Asks the kernel, and remembers for a moment: clients describe many jobs of one kind again and again."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._kept: dict[tuple[object, ...], str | None] = {}
        self._until = 0.0

    async def status_reason(self, job: JobDetail) -> str | None:
        """Of a RUNNABLE job that no environment of its queue can run now; None: it waits for its turn."""
        now = time.monotonic()
        if now >= self._until or len(self._kept) >= KEPT_MAX:
            self._kept.clear()
            self._until = now + KEPT_S
        key = (job.queue, job.definition, job.vcpus, job.memory_mib, job.gpus)
        if job.definition is None or key not in self._kept:
            self._kept[key] = await self.reason_of(job.id, job.queue, job.vcpus)
        return self._kept[key]

    async def reason_of(self, job_id: str, queue: str, vcpus: float | None = None) -> str | None:
        """The same, as it is just now."""
        try:
            reasons = await self._kernel.blocked(job_id)
            if not reasons:
                return None
            names = (await self._kernel.describe_job_queues([queue]))[0].compute_environments
            environments = await self._kernel.describe_compute_environments(list(names))
            if vcpus is None:
                vcpus = (await self._kernel.describe_job(job_id)).vcpus
        except NotFound:  # something has gone in the meantime
            return None
        return in_aws_words(reasons, environments, vcpus)


def in_aws_words(reasons: Sequence[Reason], environments: Sequence[EnvironmentDetail], vcpus: float) -> str:
    """AWS's text, and after it what it comes from here."""
    codes = {reason.code for reason in reasons}
    if codes <= _LARGE:
        text = TOO_MANY_VCPUS if all(vcpus > one.max_vcpus for one in environments) else TOO_LARGE
    elif codes & {Code.NO_HOST, Code.HOST_UNAVAILABLE}:
        kinds = (one.metadata.get("aws", {}).get("computeResources", {}).get("instanceTypes") for one in environments)
        text = NO_HOSTS.format(", ".join(sorted({kind for some in kinds for kind in some or ("optimal",)})))
    elif Code.ENVIRONMENT_INVALID in codes:
        text = INVALID
    else:  # DISABLED environments, drained hosts
        text = UNDETERMINED
    return f"{text} ({'; '.join(reason.text for reason in reasons)})"
