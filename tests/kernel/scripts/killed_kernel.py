"""A kernel that submits a few jobs and is killed: by the test that started it, or by itself at a given point.

    killed_kernel.py JOURNAL FOLDER [POINT N [again]]

It prints the id of each job once `submit_job` has returned it, then "ready" once something runs and something has
ended. POINT is before-commit, after-commit, before-launch or after-launch: at the Nth it kills itself (SIGKILL).
With "again" it submits nothing but one job, and prints nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from anybatch import JobHandle, Kernel
from anybatch.backends.process import ProcessBackend
from anybatch.kernel.backend import Launch
from anybatch.kernel.core.events import AnyEvent
from anybatch.kernel.journal import FileJournal, Journal

path, folder = Path(sys.argv[1]), Path(sys.argv[2])
point, count = (sys.argv[3], int(sys.argv[4])) if len(sys.argv) > 3 else ("", 0)
AGENT_IDLE_MS = 3_000


def passed(here: str) -> None:
    """Count down where the end is to come."""
    global count
    if here == point:
        count -= 1
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Watched(FileJournal):
    def commit(self, at_ms: int, events: Sequence[AnyEvent]) -> int:
        passed("before-commit")
        last = super().commit(at_ms, events)
        passed("after-commit")
        return last


class WatchedBackend(ProcessBackend):  # type: ignore[misc]  # final for users; here only to kill at a point
    async def launch(self, launches: Sequence[Launch]) -> None:
        passed("before-launch")
        await super().launch(launches)
        passed("after-launch")


class WatchedKernel(Kernel):
    def _open_journal(self) -> Journal:
        return Watched(path)


def command(then: str) -> list[str]:
    """Note the attempt in the file `ran`, then do as told."""
    return ["sh", "-c", f'echo "$AWS_BATCH_JOB_ID/$AWS_BATCH_JOB_ATTEMPT" >> {folder}/ran; {then}']


async def main() -> None:
    def backend() -> ProcessBackend:
        return WatchedBackend(agent_idle_ms=AGENT_IDLE_MS)

    async with WatchedKernel(path, backends={"process": backend}) as kernel:
        if sys.argv[5:] == ["again"]:
            await kernel.submit_job("again", queue="q", command=["true"])
            await asyncio.Event().wait()
        await kernel.create_compute_environment("local", backend="process", max_vcpus=8)
        await kernel.create_job_queue("q", priority=1, compute_environments=["local"])

        async def submit(name: str, then: str, **more: object) -> JobHandle:
            job = await kernel.submit_job(name, queue="q", command=command(then), **more)  # type: ignore[arg-type]
            print(job.id, name, flush=True)
            return job

        wait = f"while [ ! -e {folder}/go ]; do sleep 0.02; done"
        array = await submit("array", "exit $AWS_BATCH_JOB_ARRAY_INDEX", array_size=3)
        first = await submit("first", "exit 0")
        second = await submit("second", "exit 0", depends_on=[first])
        await submit("third", "exit 4", depends_on=[second])
        long = await submit("long", f"{wait}; touch {folder}/long-ended; exit 5")
        await submit("after", "exit 0", depends_on=[long])
        await submit("retried", f'{wait}; [ "$AWS_BATCH_JOB_ATTEMPT" = 2 ]', retry=3)
        await array.wait()
        async with kernel.events() as events:
            async for event in events:
                if (event.job_id, event.status) == (long.id, "RUNNING"):
                    break
        print("ready", flush=True)
        await asyncio.Event().wait()


asyncio.run(main())
