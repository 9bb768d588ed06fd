"""A kernel on SSH hosts that submits an array and is killed: ssh_kernel.py JOURNAL OPTIONS(JSON) COMMAND SIZE."""

from __future__ import annotations

import asyncio
import json
import sys

import anybatch


async def main(journal: str, options: str, command: str, size: str) -> None:
    async with anybatch.Kernel(journal) as kernel:
        await kernel.create_compute_environment("lab", backend="ssh", managed=False, options=json.loads(options))
        await kernel.create_job_queue("queue", priority=1, compute_environments=["lab"])
        job = await kernel.submit_job("array", queue="queue", command=["sh", "-c", command], array_size=int(size))
        print(job.id, flush=True)
        await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
