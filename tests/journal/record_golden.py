"""Records the golden journal of this version, once per format: `python tests/journal/record_golden.py v1`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import anybatch
from anybatch.testing.clock import VirtualClock
from anybatch.testing.null import NullBackend

GOLDEN = Path(__file__).parent / "golden"


def model(key: tuple[str, int, int]) -> tuple[float, int]:
    _, index, number = key
    return 1.0 + index, 3 if index == 1 and number == 1 else 0


async def main(name: str) -> None:
    path, clock = GOLDEN / f"{name}.db", VirtualClock()
    async with anybatch.Kernel(
        path, backends={"null": lambda: NullBackend(model)}, clock=clock, retain_events=1e9
    ) as kernel:
        await kernel.create_compute_environment("null", backend="null", max_vcpus=3, options={"memory": 4096})
        await kernel.create_job_queue(
            "queue", priority=1, compute_environments=["null"], retain_succeeded=3e9, retain_failed=3e9
        )
        await kernel.register_job_definition("step", command=["run", "Ref::what"], parameters={"what": "x"}, retry=2)
        array = await kernel.submit_job("array", queue="queue", definition="step", array_size=5, tags={"a": "b"})
        follow = await kernel.submit_job(
            "follow", queue="queue", definition="step", array_size=5,
            depends_on=[anybatch.n_to_n(array), anybatch.SEQUENTIAL],
        )  # fmt: skip
        single = await kernel.submit_job("single", queue="queue", command=["x"], timeout=0.5, client_token="token")
        await clock.advance(4)
        await kernel.cancel_job(follow[4], "not this one")
        await clock.advance(60)
        await kernel.submit_job("waits", queue="queue", command=["x"], vcpus=64)
        jobs = [array.id, follow.id, single.id, array[1].id, follow[4].id]
        details = await kernel.describe_jobs(jobs)
        told = {
            "jobs": jobs,
            "attempts": {detail.name: len(detail.attempts) for detail in details},
            "ended": {detail.name: detail.status.value for detail in details[:3]},
            "last": (await kernel.last_event_id()).sequence,
        }
    (GOLDEN / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
