"""The backend on the page docs/backends.md works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anybatch
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"


@pytest.fixture(scope="module")
def backend() -> Any:
    source = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert source is not None
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(source[1], str(PAGE), "exec"), names)
    return names["SubprocessBackend"]


@pytest.mark.asyncio
async def test_the_pages_backend_runs_an_array_and_reports_codes_and_logs(backend: Any) -> None:
    async with anybatch.Kernel(backends={"subprocess": backend}) as kernel:
        await kernel.create_compute_environment("here", backend="subprocess", max_vcpus=4, options={"nice": 1})
        await kernel.create_job_queue("default", priority=1, compute_environments=["here"])

        job = await kernel.submit_job(
            "j", queue="default", array_size=6, command=["sh", "-c", "echo $AWS_BATCH_JOB_ARRAY_INDEX; exit 3"]
        )
        detail = await job.wait()

        assert detail.status == "FAILED"
        assert (await job[5].describe()).exit_code == 3
        assert await job[5].read_logs() == b"5\n"


@pytest.mark.asyncio
async def test_the_pages_backend_ends_what_is_terminated(backend: Any) -> None:
    async with anybatch.Kernel(backends={"subprocess": backend}) as kernel:
        await kernel.create_compute_environment("here", backend="subprocess", max_vcpus=1)
        await kernel.create_job_queue("default", priority=1, compute_environments=["here"])
        job = await kernel.submit_job("j", queue="default", command=["sleep", "1000"])
        async with kernel.events() as events:
            async for event in events:
                if event.status == "RUNNING":
                    break

        await job.terminate("enough")
        detail = await job.wait()

        assert (detail.status, detail.status_reason, detail.exit_code) == ("FAILED", "enough", 143)


def test_a_useful_backend_fits_in_100_lines() -> None:
    source = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert source is not None
    assert len(source[1].splitlines()) <= 100
