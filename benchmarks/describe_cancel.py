"""Describing the parent of a waiting array, and cancelling it, beside the same for an array of two.

Measures the time (us) of `describe_job`, and the latency (ms, durable) and CPU time (us, all threads) of
`cancel_job`. Medians of `turns` arrays of each size, in turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import anybatch
from harness import Figure, Took, figure, folder, kernel, main

DESCRIBES = 100


async def measure(sizes: Sequence[int] = (10_000, 1_000_000), turns: int = 11) -> list[Figure]:
    describe: dict[int, list[float]] = {size: [] for size in (2, *sizes)}
    wall: dict[int, list[float]] = {size: [] for size in (2, *sizes)}
    cpu: dict[int, list[float]] = {size: [] for size in (2, *sizes)}
    with folder() as path:
        async with kernel(path, enabled=False) as opened:
            await opened.register_job_definition("noop", command=["noop"])
            for turn in range(turns + 1):
                for size in wall if turn % 2 else reversed(wall):
                    job = await opened.submit_job("job", queue="q", definition="noop", array_size=size)
                    with Took() as described:
                        for _ in range(DESCRIBES):
                            await job.describe()
                    with Took() as cancelled:
                        await job.cancel("benchmark")
                    assert (await job.describe()).status is anybatch.JobStatus.FAILED
                    if turn:
                        describe[size].append(described.wall_s / DESCRIBES)
                        wall[size].append(cancelled.wall_s)
                        cpu[size].append(cancelled.cpu_s)
    found = []
    for size in wall:
        one = None if size == 2 else "2"
        found += [
            figure(f"describe_us_{size}", statistics.median(describe[size]) * 1e6, "us", peer=one and "describe_us_2"),
            figure(f"cancel_ms_{size}", statistics.median(wall[size]) * 1e3, "ms", peer=one and "cancel_ms_2"),
            figure(f"cancel_cpu_us_{size}", statistics.median(cpu[size]) * 1e6, "us", peer=one and "cancel_cpu_us_2"),
        ]
    return found


if __name__ == "__main__":
    main(measure)
