"""Stress shapes on the null backend (nothing is run), journal on disk: what work costs that is no plain array.

Measures, for each shape, CPU and wall time per attempt or job (us; the shape's function says what is counted), from the
first submit to the end of the last job, beside a plain array of 10,000 in the same process (`plain_cpu_us`). `size`
scales a shape: 10,000 is its full size.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anybatch
from anybatch.kernel.backend import AttemptKey
from anybatch.testing.null import NullBackend
from harness import SIZE_MAX, SLOTS, Figure, Took, figure, folder, kernel, main, quantile

ATTEMPTS = 3
QUEUES = 50
BATCH = 100
Shape = Callable[[int, int], Awaitable[list[Figure]]]


@asynccontextmanager
async def opened(
    slots: int, null: NullBackend | None = None, *, enabled: bool = True
) -> AsyncIterator[anybatch.Kernel]:
    quotas = anybatch.Quotas(array_size_max=SIZE_MAX, dependencies_max=10_000)
    backends = {"null": null or NullBackend()}
    with folder() as path:
        async with kernel(path, backends=backends, slots=slots, enabled=enabled, quotas=quotas) as found:
            await found.register_job_definition("noop", command=["noop"])
            yield found


async def plain(size: int, slots: int) -> float:
    """A plain array: CPU per child (us)."""
    async with opened(slots) as batch:
        with Took() as took:
            job = await batch.submit_job("array", queue="q", definition="noop", array_size=size)
            await job.wait()
    return took.cpu_s / size * 1e6


def costs(took: Took, units: int) -> list[Figure]:
    return [
        figure("cpu_us", took.cpu_s / units * 1e6, "us", peer="plain_cpu_us"),
        figure("wall_us", took.wall_s / units * 1e6, "us"),
    ]


def having(detail: anybatch.JobDetail, status: anybatch.JobStatus) -> int:
    """How many children of an array have this status."""
    return 0 if detail.status_summary is None else detail.status_summary[status]


async def some_fail(size: int, slots: int) -> list[Figure]:
    """One array, 3 attempts: 5 % of the children fail in each of them. Per attempt."""

    def code(key: AttemptKey) -> int:
        return int(key.index * 7919 % 100 < 5)

    async with opened(slots, NullBackend(exit_code=code)) as batch:
        with Took() as took:
            job = await batch.submit_job("array", queue="q", definition="noop", array_size=size, retry=ATTEMPTS)
            detail = await job.wait()
    failed = having(detail, anybatch.JobStatus.FAILED)
    assert failed == sum(i * 7919 % 100 < 5 for i in range(size)), detail
    return costs(took, size + failed * (ATTEMPTS - 1))


async def all_fail_at_once(size: int, slots: int) -> list[Figure]:
    """One array with as many slots as children, all of which fail in one turn of the loop. Per child."""
    async with opened(size, NullBackend(exit_code=1)) as batch:
        with Took() as took:
            job = await batch.submit_job("array", queue="q", definition="noop", array_size=size)
            detail = await job.wait()
    assert detail.status is anybatch.JobStatus.FAILED
    return costs(took, size)


async def n_to_n(size: int, slots: int) -> list[Figure]:
    """An array that depends N_TO_N on another of its size. Per child of both."""
    async with opened(slots) as batch:
        with Took() as took:
            one = await batch.submit_job("one", queue="q", definition="noop", array_size=size)
            depends = [{"job": one, "type": "N_TO_N"}]
            two = await batch.submit_job("two", queue="q", definition="noop", array_size=size, depends_on=depends)
            assert (await two.wait()).status is anybatch.JobStatus.SUCCEEDED
    return costs(took, 2 * size)


async def sequential(size: int, slots: int) -> list[Figure]:
    """An array whose children run one after the other. Per child."""
    async with opened(slots) as batch:
        with Took() as took:
            depends = [{"type": "SEQUENTIAL"}]
            job = await batch.submit_job("array", queue="q", definition="noop", array_size=size, depends_on=depends)
            assert (await job.wait()).status is anybatch.JobStatus.SUCCEEDED
    return costs(took, size)


async def submit_many(
    batch: anybatch.Kernel, count: int, *, queue: str | None = None, chained: bool = False, **more: Any
) -> list[anybatch.JobHandle]:
    """Submit so many jobs, 1,000 at a time at once, as a service with many callers does.

    `queue` None: to all queues in turn. `chained`: each depends on the one before, by its name.
    """
    jobs: list[anybatch.JobHandle] = []
    for start in range(0, count, 1000):
        calls = [
            batch.submit_job(
                f"job-{i}",
                queue=queue or f"q{i % QUEUES}",
                depends_on=[f"job-{i - 1}"] if chained and i else None,
                **more,
            )
            for i in range(start, min(start + 1000, count))
        ]
        jobs += await asyncio.gather(*calls)
    return jobs


async def many_arrays(size: int, slots: int) -> list[Figure]:
    """`size` / 10 arrays of 100. Per child."""
    async with opened(slots) as batch:
        with Took() as took:
            jobs = await submit_many(batch, size // 10, queue="q", definition="noop", array_size=BATCH)
            await asyncio.gather(*(job.wait() for job in jobs))
    return costs(took, size // 10 * BATCH)


async def many_queues(size: int, slots: int) -> list[Figure]:
    """10 x `size` single jobs over 50 queues. Per job."""
    async with opened(slots) as batch:
        await batch.update_job_queue("q", state="DISABLED")
        await batch.delete_job_queue("q")  # the quota is 50
        for number in range(QUEUES):
            await batch.create_job_queue(f"q{number}", priority=number, compute_environments=["bench"])
        with Took() as took:
            jobs = await submit_many(batch, 10 * size, definition="noop")
            await asyncio.gather(*(job.wait() for job in jobs))
    return costs(took, 10 * size)


async def chain(size: int, slots: int) -> list[Figure]:
    """`size` single jobs, each of which depends on the one before. Per job, its submit included."""
    async with opened(slots, enabled=False) as batch:
        with Took() as took:
            job = (await submit_many(batch, size, chained=True, queue="q", definition="noop"))[-1]
            submitted_s = time.perf_counter()
            await batch.update_compute_environment("bench", state="ENABLED")
            assert (await job.wait()).status is anybatch.JobStatus.SUCCEEDED
            ran_s = time.perf_counter() - submitted_s
    return [*costs(took, size), figure("run_us", ran_s / size * 1e6, "us")]


async def fan_in(size: int, slots: int) -> list[Figure]:
    """`size` single jobs, and one that depends on all of them. Per job, its submit included."""
    async with opened(slots) as batch:
        with Took() as took:
            jobs = await submit_many(batch, size, queue="q", definition="noop")
            last = await batch.submit_job("last", queue="q", definition="noop", depends_on=jobs[:10_000])
            assert (await last.wait()).status is anybatch.JobStatus.SUCCEEDED
    return costs(took, size)


async def cancel_midway(size: int, slots: int) -> list[Figure]:
    """Cancel an array of which half has run and some children run: the call, and all CPU till the last has ended."""
    half = size // 2
    async with opened(slots, NullBackend(lambda key: (0.001 if key.index < half else 0.5, 0))) as batch:
        job = await batch.submit_job("array", queue="q", definition="noop", array_size=size)
        while having(await job.describe(), anybatch.JobStatus.SUCCEEDED) < half:
            await asyncio.sleep(0.001)
        with Took() as acknowledged:
            await job.cancel("benchmark")
        with Took() as ended:
            detail = await job.wait()
    assert detail.status is anybatch.JobStatus.FAILED
    return [
        figure("cancel_ms", acknowledged.wall_s * 1e3, "ms"),
        figure("cancel_cpu_us", acknowledged.cpu_s * 1e6, "us"),
        figure("till_ended_cpu_us", (acknowledged.cpu_s + ended.cpu_s) * 1e6, "us"),
    ]


async def asked_meanwhile(size: int, slots: int) -> list[Figure]:
    """Describe an array of 100 x `size` while it runs, and list jobs and its first failed children: time per call."""
    described: list[float] = []
    listed: list[float] = []
    async with opened(slots) as batch:
        job = await batch.submit_job("array", queue="q", definition="noop", array_size=100 * size)
        waiting = asyncio.ensure_future(job.wait())
        while not waiting.done():
            begin = time.perf_counter()
            await job.describe()
            between = time.perf_counter()
            rows = [row async for row in batch.list_jobs(queue="q")]
            listed.append(time.perf_counter() - between)
            described.append(between - begin)
            assert len(rows) == 1
            await asyncio.sleep(0.005)
    return [
        figure(f"{name}_us_{which}", quantile(values, share) * 1e6, "us")
        for name, values in (("describe", described), ("list", listed))
        for which, share in (("p50", 0.5), ("p99", 0.99))
    ]


async def three_consumers(size: int, slots: int) -> list[Figure]:
    """Ten arrays of `size`, one after the other, while three consumers read all events. Per child."""
    seen = [0, 0, 0]

    async def consume(batch: anybatch.Kernel, which: int, last: str) -> None:
        async with batch.events() as events:
            async for event in events:
                seen[which] += 1
                if event.job_id == last and event.status in (anybatch.JobStatus.SUCCEEDED, anybatch.JobStatus.FAILED):
                    return

    async with opened(slots) as batch:
        last = await batch.submit_job("gate", queue="q", definition="noop")
        await last.wait()
        with Took() as took:
            jobs = [await batch.submit_job("array", queue="q", definition="noop", array_size=size) for _ in range(10)]
            readers = [asyncio.ensure_future(consume(batch, which, jobs[-1].id)) for which in range(3)]
            await asyncio.gather(*(job.wait() for job in jobs))
            ran_s = took.wall_s + time.perf_counter()
            await asyncio.gather(*readers)
    assert min(seen) == max(seen) > 0, seen
    return [
        *costs(took, 10 * size),
        figure("behind_ms", (took.wall_s - ran_s) * 1e3, "ms"),
        figure("events_per_child", seen[0] / (10 * size), "events", better="neither"),
    ]


SHAPES: dict[str, Shape] = {
    one.__name__: one
    for one in (
        some_fail,
        all_fail_at_once,
        n_to_n,
        sequential,
        many_arrays,
        many_queues,
        chain,
        fan_in,
        cancel_midway,
        asked_meanwhile,
        three_consumers,
    )
}


async def measure(shape: str = "some_fail", size: int = 10_000, slots: int = SLOTS) -> list[Figure]:
    found = await SHAPES[shape](size, slots)
    if any(one["peer"] for one in found):
        found.append(figure("plain_cpu_us", await plain(10_000, slots), "us", better="neither"))
    return found


if __name__ == "__main__":
    main(measure)
