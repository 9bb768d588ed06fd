"""A kernel that runs out of file descriptors, and gets them back: no_descriptors.py JOURNAL. It checks itself."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time

import anybatch.kernel.journal as journal_module
from anybatch import InlineAttempt, InlineBackend, JobStatus, Kernel
from anybatch.backends.process import ProcessBackend
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
    backends = {
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
        print("inline", await run(kernel, "inline"))
        try:
            await before.read_logs()
            raise SystemExit("a log was read without a descriptor")
        except (AnyBatchError, OSError) as e:
            assert "Too many open files" in str(e), repr(e)
        used, began = time.process_time(), time.monotonic()
        while time.monotonic() - began < 0.5:  # measures; nothing is waited for
            await asyncio.sleep(0.1)
        assert time.process_time() - used < 0.25, "it is busy with nothing"

        for fd in taken:
            os.close(fd)
        assert await before.read_logs() == b"before\n"
        assert await run(kernel, "process") is JobStatus.SUCCEEDED
        last = kernel.last_event_id()
    async with Kernel(path, backends=backends) as kernel:
        assert kernel.last_event_id() == (last.epoch + 1, last.sequence + 1) or kernel.last_event_id() > last
        assert (await kernel.describe_job(attempt)).exit_code == 7
    print("done")


asyncio.run(main(sys.argv[1]))
