"""An array of no-op coroutines on the inline backend, journal on disk.

Measures children/s from the call of submit to the return of wait, and CPU per child (us), beside a bare
TaskGroup starting as many no-op coroutines in the same process.
"""

from __future__ import annotations

import anybatch
from harness import SLOTS, Figure, Took, figure, folder, kernel, main, task_group


async def noop(attempt: anybatch.InlineAttempt) -> None:
    """What every child runs."""


async def measure(size: int = 10_000, slots: int = SLOTS, first: str = "kernel") -> list[Figure]:
    took, peer = Took(), Took()
    if first == "taskgroup":
        with peer:
            await task_group(size)
    backends = {"inline": anybatch.InlineBackend({"noop": noop})}
    with folder() as path:
        async with kernel(path, backend="inline", backends=backends, slots=slots) as opened:
            await opened.register_job_definition("noop", command=["noop"])
            with took:
                job = await opened.submit_job("array", queue="q", definition="noop", array_size=size)
                detail = await job.wait()
            assert detail.status is anybatch.JobStatus.SUCCEEDED
    if first != "taskgroup":
        with peer:
            await task_group(size)
    at = f"{size}@{slots}"
    return [
        figure(
            f"children_per_s_{at}", size / took.wall_s, "1/s", better="more", peer=f"taskgroup_per_s_{at}", took=took
        ),
        figure(f"taskgroup_per_s_{at}", size / peer.wall_s, "1/s", better="neither", took=peer),
        figure(f"cpu_us_per_child_{at}", took.cpu_s / size * 1e6, "us"),
    ]


if __name__ == "__main__":
    main(measure)
