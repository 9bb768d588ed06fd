"""Submitting an array, beside submitting a single job, both acknowledged as durable (synced to disk).

Measures the latency (ms) and the CPU time (us, all threads) of `submit_job`, in turns, on a queue whose work all
waits. Each figure is the median of `turns` calls; one call before them warms up.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from harness import Figure, Took, figure, folder, kernel, main


async def measure(sizes: Sequence[int] = (10_000, 1_000_000), turns: int = 30) -> list[Figure]:
    wall: dict[int, list[float]] = {size: [] for size in (1, *sizes)}
    cpu: dict[int, list[float]] = {size: [] for size in (1, *sizes)}
    with folder() as path:
        async with kernel(path, enabled=False) as opened:
            await opened.register_job_definition("noop", command=["noop"])
            for turn in range(turns + 1):
                for size in wall if turn % 2 else reversed(wall):
                    with Took() as took:
                        await opened.submit_job(
                            "job", queue="q", definition="noop", array_size=None if size == 1 else size
                        )
                    if turn:
                        wall[size].append(took.wall_s)
                        cpu[size].append(took.cpu_s)
    found = [
        figure("submit_ms_single", statistics.median(wall[1]) * 1e3, "ms"),
        figure("submit_cpu_us_single", statistics.median(cpu[1]) * 1e6, "us"),
    ]
    for size in sizes:
        found += [
            figure(f"submit_ms_{size}", statistics.median(wall[size]) * 1e3, "ms", peer="submit_ms_single"),
            figure(f"submit_cpu_us_{size}", statistics.median(cpu[size]) * 1e6, "us", peer="submit_cpu_us_single"),
        ]
    return found


if __name__ == "__main__":
    main(measure)
