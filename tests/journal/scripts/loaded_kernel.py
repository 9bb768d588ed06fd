"""A kernel under load, for backups to be taken of it: it submits until it is killed.

    loaded_kernel.py JOURNAL FOLDER

Its attempts write their pids to FOLDER/<job's name>.pid. It prints "<job id> <name>" once a submit has returned, and
"ready" once `once` and `thrice` run: their first attempts wait for FOLDER/go, later ones end at once.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from anybatch import Kernel
from anybatch.backends.process import ProcessBackend

path, folder = Path(sys.argv[1]), Path(sys.argv[2])
HELD = """#!/bin/sh
echo "$AWS_BATCH_JOB_ID/$AWS_BATCH_JOB_ATTEMPT" >> {folder}/ran
if [ "$AWS_BATCH_JOB_ATTEMPT" = 1 ]; then
    echo $$ > {folder}/$1.part && mv {folder}/$1.part {folder}/$1.pid
    echo "begun by $1"
    while [ ! -e {folder}/go ]; do sleep 0.02; done
    echo "ended by $1"
    exit 5
fi
echo "again, $1"
"""


async def main() -> None:
    def backend() -> ProcessBackend:
        return ProcessBackend(agent_idle_ms=3_000)

    async with Kernel(path, backends={"process": backend}) as kernel:
        await kernel.create_compute_environment("local", backend="process", max_vcpus=6, options={"memory": 1000})
        await kernel.create_job_queue("q", priority=1, compute_environments=["local"])
        script = HELD.format(folder=folder)
        for name, tries in (("once", 1), ("thrice", 3)):
            job = await kernel.submit_job(name, queue="q", script=script, command=[name], retry=tries, memory=10)
            print(job.id, name, flush=True)
        while not ((folder / "once.pid").exists() and (folder / "thrice.pid").exists()):
            await asyncio.sleep(0.01)
        print("ready", flush=True)
        for number in range(100_000):
            name = f"load-{number}"
            job = await kernel.submit_job(name, queue="q", command=["true"], array_size=3, vcpus=0.25)
            print(job.id, name, flush=True)


asyncio.run(main())
