"""A kernel at work, to be traced: traced_kernel.py JOURNAL ACKNOWLEDGED

The id of each job is written to the file ACKNOWLEDGED as soon as `submit_job` has returned it, and "ended ID" once
its cancellation has been answered. The write-ahead file is folded, and snapshots are taken, all the time; now and then
the journal is made small.
"""

from __future__ import annotations

import asyncio
import os
import sys

import anybatch.kernel.journal as journal_module
from anybatch import Kernel
from anybatch.testing.null import NullBackend

journal_module.CHECKPOINT_BYTES = 30_000  # type: ignore[misc]
journal_module.SNAPSHOT_BYTES_MIN = 3_000  # type: ignore[misc]
JOBS = 40


async def main(path: str, acknowledged: str) -> None:
    file = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def acknowledge(line: str) -> None:
        os.write(file, f"{line}\n".encode())

    async with Kernel(path, backends={"null": NullBackend}) as kernel:
        await kernel.create_compute_environment("e", backend="null", max_vcpus=4)
        await kernel.create_job_queue("q", priority=1, compute_environments=["e"])
        acknowledge("ready")

        async def one(n: int) -> None:
            job = await kernel.submit_job(f"job-{n}", queue="q", command=["x"], array_size=2 + n % 3)
            acknowledge(job.id)
            if n % 4 == 0:
                await job.terminate("enough")
                acknowledge(f"ended {job.id}")
            else:
                await job.wait()

        for n in range(0, JOBS, 2):
            await asyncio.gather(one(n), one(n + 1))
            if n % 10 == 0:
                await kernel.compact_journal(keep=0)
    os.close(file)


asyncio.run(main(*sys.argv[1:]))
