"""What the tests on a Docker Engine share: waiting, and a kernel with an environment on it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anybatch

WAIT_S = 60.0
WAITS = ["sh", "-c", "echo ready; exec sleep 600"]
"""A command that says that it runs, and runs on."""


async def until(condition: Callable[[], Any], what: str) -> None:
    """Return once the condition holds, without keeping a processor from the engine."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.02)


async def is_running(job: anybatch.JobHandle) -> None:
    """Wait until it runs, and has said so."""
    async for piece in job.logs(follow=True):
        if b"ready" in piece:
            return
    raise AssertionError(f"it never ran: {await job.describe()}")


async def explains(job: anybatch.JobHandle, words: str) -> None:
    """Wait until that is why it does not run."""
    end = time.monotonic() + WAIT_S
    while not any(words in reason.text for reason in await job.explain()):
        assert time.monotonic() < end, await job.explain()
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def docker_kernel(
    journal: Path | None, options: dict[str, Any], **arguments: Any
) -> AsyncIterator[anybatch.Kernel]:
    """A kernel with an environment "docker" and a queue "q"."""
    async with anybatch.Kernel(journal, **{"on_close": "stop", **arguments}) as kernel:
        made = await kernel.create_compute_environment("docker", backend="docker", max_vcpus=8, options=options)
        assert made.status == "VALID", made.status_reason
        await kernel.create_job_queue("q", priority=1, compute_environments=["docker"])
        yield kernel
