"""How late the event loop of the embedding service runs its own timers while large arrays run.

Measures by how much a coroutine that sleeps 10 ms wakes late (ms): with nothing else going on for `watch_s`, and
while arrays on the null backend run one after the other for at least as long. The figures are the differences, at
the median, the 99th percentile and at worst.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import anybatch
from harness import SLOTS, Figure, figure, folder, kernel, main, quantile

NAP_S = 0.010


async def sleeper(late_ms: list[float]) -> None:
    while True:
        begin = time.perf_counter()
        await asyncio.sleep(NAP_S)
        late_ms.append((time.perf_counter() - begin - NAP_S) * 1e3)


async def measure(size: int = 100_000, slots: int = SLOTS, watch_s: float = 3.0) -> list[Figure]:
    idle: list[float] = []
    busy: list[float] = []
    with folder() as path:
        async with kernel(path, slots=slots) as opened:
            await opened.register_job_definition("noop", command=["noop"])
            task = asyncio.create_task(sleeper(idle))
            await asyncio.sleep(watch_s)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            task = asyncio.create_task(sleeper(busy))
            await asyncio.sleep(0)
            until = time.perf_counter() + watch_s
            while time.perf_counter() < until:
                job = await opened.submit_job("array", queue="q", definition="noop", array_size=size)
                assert (await job.wait()).status is anybatch.JobStatus.SUCCEEDED
            await asyncio.sleep(2 * NAP_S)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    at = f"{size}@{slots}"
    return [
        figure(f"late_ms_p50_{at}", quantile(busy, 0.5) - quantile(idle, 0.5), "ms"),
        figure(f"late_ms_p99_{at}", quantile(busy, 0.99) - quantile(idle, 0.99), "ms"),
        figure(f"late_ms_max_{at}", max(busy) - max(idle), "ms"),
        figure(f"wakes_{at}", len(busy), "wakes", better="neither"),
    ]


if __name__ == "__main__":
    main(measure)
