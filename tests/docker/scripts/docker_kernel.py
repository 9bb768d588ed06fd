"""Runs an array of containers that wait for a file, until it is killed: JOURNAL ENGINE FOLDER."""

from __future__ import annotations

import asyncio
import sys

import anybatch

IMAGE = "anybatch-test:busybox"

COMMAND = """
    echo $AWS_BATCH_JOB_ATTEMPT >>/marks/run-$AWS_BATCH_JOB_ARRAY_INDEX
    echo ready
    while ! test -e /marks/go; do sleep 0.05; done
    echo through
    test $((AWS_BATCH_JOB_ARRAY_INDEX % 5)) != 4 || exit 5
"""


async def main(journal: str, engine: str, folder: str) -> None:
    async with anybatch.Kernel(journal) as kernel:
        options = {"engines": [engine], "network": "none"}
        await kernel.create_compute_environment("docker", backend="docker", max_vcpus=6, options=options)
        await kernel.create_job_queue("q", priority=1, compute_environments=["docker"])
        container = {
            "volumes": [{"name": "marks", "host_path": folder}],
            "mount_points": [{"source_volume": "marks", "container_path": "/marks"}],
        }
        job = await kernel.submit_job(
            "array", queue="q", array_size=10, image=IMAGE, command=["sh", "-c", COMMAND], container=container
        )
        await job.wait()


asyncio.run(main(*sys.argv[1:]))
