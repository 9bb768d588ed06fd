"""A submit that nothing in its queue can ever fit says so at once, and is queued all the same."""

from __future__ import annotations

import anybatch
import pytest
from anybatch.testing.null import NullBackend
from structlog.testing import capture_logs


@pytest.mark.asyncio
async def test_what_can_never_fit_is_said_at_submit_and_runs_once_it_can() -> None:
    async with anybatch.Kernel(backends={"null": NullBackend}) as kernel:
        await kernel.create_compute_environment("small", backend="null", max_vcpus=2)
        await kernel.create_job_queue("q", priority=1, compute_environments=["small"])

        with capture_logs() as logged:
            fits = await kernel.submit_job("fits", queue="q", command=["x"], vcpus=2)
            large = await kernel.submit_job("large", queue="q", command=["x"], vcpus=4)

        assert fits.warnings == ()
        assert large.warnings == ("needs 4 vCPU; environment 'small' has 2 vCPU in all, so it can never run there",)
        assert [line["name"] for line in logged if line["event"] == "job_never_fits"] == ["large"]
        assert (await large.explain())[0].code is anybatch.Code.NEVER_FITS

        await kernel.update_compute_environment("small", max_vcpus=4)

        assert (await large.wait()).status is anybatch.JobStatus.SUCCEEDED
