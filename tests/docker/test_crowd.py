"""A large array: what it asks of the engine is bounded, whatever its size."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from anybatch import JobStatus
from anybatch.backends._docker_engine import REQUESTS_MAX, STREAMS_MAX
from docker_proxy import Proxy
from docker_rig import IMAGE, TestEngine
from docker_wait import WAITS, docker_kernel, is_running, until

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(300)]
SIZE = 10_000
RUN = 60
FOLLOWED = 30


async def test_connections_are_bounded_with_10_000_children_and_many_followers(
    tmp_path: Path, docker: TestEngine, options: dict[str, Any]
) -> None:
    async with Proxy(tmp_path / "proxy.sock", docker.path) as proxy:
        about = {**options, "engines": [proxy.url], "init": True}
        async with docker_kernel(tmp_path / "batch.db", about) as kernel:
            waits = await kernel.submit_job(
                "waits", queue="q", image=IMAGE, command=WAITS, array_size=FOLLOWED, vcpus=0.1
            )
            await asyncio.gather(*(is_running(waits[index]) for index in range(FOLLOWED)))
            followers = [asyncio.create_task(is_over(waits[index])) for index in range(FOLLOWED)]
            job = await kernel.submit_job("array", queue="q", image=IMAGE, command=["true"], array_size=SIZE, vcpus=0.1)
            while (summary := (await job.describe()).status_summary or {}).get(JobStatus.SUCCEEDED, 0) < RUN:
                assert not summary.get(JobStatus.FAILED)
                await asyncio.sleep(0.05)
            await asyncio.gather(job.terminate("enough"), waits.terminate("enough"))
            await asyncio.gather(job.wait(), waits.wait(), *followers)
            await until(lambda: not docker.containers(job=job.id), "containers are removed")
        assert 1 < proxy.connections_max <= REQUESTS_MAX + STREAMS_MAX


async def is_over(job: Any) -> None:
    async for _ in job.logs(follow=True):
        pass
