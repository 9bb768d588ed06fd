"""A kernel that runs out of file descriptors, and gets them back: no_descriptors.py JOURNAL. It checks itself."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from collections.abc import Mapping

import anybatch.kernel.journal as journal_module
import pytest
from anybatch import InlineAttempt, InlineBackend, JobStatus, Kernel
from anybatch.backends.process import ProcessBackend
from anybatch.kernel.backend import BackendFactory
from anybatch.kernel.core.errors import AnyBatchError
from anybatch.testing.null import NullBackend

journal_module.CHECKPOINT_BYTES = 20_000  # type: ignore[misc]
journal_module.SNAPSHOT_BYTES_MIN = 2_000  # type: ignore[misc]


def take_all() -> list[int]:
    """Leave this process no descriptor."""
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return taken


async def printing(attempt: InlineAttempt) -> int:
    attempt.print("here")
    return 0


async def run(kernel: Kernel, queue: str, **more: object) -> JobStatus:
    command = ["printing"] if queue == "inline" else ["sh", "-c", "echo here"]
    job = await kernel.submit_job("job", queue=queue, command=command, **more)  # type: ignore[arg-type]
    return (await job.wait()).status


async def main(path: str) -> None:
    backends: Mapping[str, BackendFactory] = {
        "null": NullBackend,
        "inline": lambda: InlineBackend({"printing": printing}),
        "process": lambda: ProcessBackend(agent_idle_ms=3_000),
    }
    async with Kernel(path, backends=backends, on_close="stop") as kernel:
        for name in backends:
            await kernel.create_compute_environment(name, backend=name, max_vcpus=4)
            await kernel.create_job_queue(name, priority=1, compute_environments=[name])
            assert await run(kernel, name) is JobStatus.SUCCEEDED
        before = await kernel.submit_job("before", queue="process", command=["sh", "-c", "echo before"])
        await before.wait()

        taken = take_all()
        for n in range(30):  # with snapshots, and folds of the write-ahead file
            assert await run(kernel, "null", array_size=20) is JobStatus.SUCCEEDED, n
        attempt = await kernel.submit_job("within", queue="process", command=["sh", "-c", "exit 7"])
        assert (await attempt.wait()).exit_code == 7
        failing = await kernel.submit_job("printing", queue="inline", command=["printing"])
        assert "Too many open files" in str((await failing.wait()).reason)
        with pytest.raises((AnyBatchError, OSError), match="Too many open files"):
            await before.read_logs()
        used = time.process_time()
        await asyncio.sleep(0.5)  # nothing is waited for: what it takes to do nothing is measured
        assert time.process_time() - used < 0.25, "it is busy with nothing"

        for fd in taken:
            os.close(fd)
        assert await before.read_logs() == b"before\n"
        for name in backends:
            assert await run(kernel, name) is JobStatus.SUCCEEDED
        last = await kernel.last_event_id()
    async with Kernel(path, backends=backends) as kernel:
        assert await kernel.last_event_id() > last
        assert (await kernel.describe_job(attempt)).exit_code == 7
    print("done")


asyncio.run(main(sys.argv[1]))
