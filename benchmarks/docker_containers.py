"""One Docker Engine: a container that runs /bin/true, n times, and a large array behind a few slots.

Measures containers/s of an array on the Docker backend (journal on disk, logs kept, containers removed), from the call
of submit until nothing of it is left on the engine; meanwhile by how much a sleep of 10 ms is late, and the connections
to the engine, the most that were seen. Of `size` children that are declared, `n` are run, and the rest is cancelled.
`who` is the peer to measure instead:

- bare: `n` times aiodocker's create, start, wait and delete, in `at_once` coroutines; the best of several is the peer

The engine is the one that ANYBATCH_TEST_DOCKER names, else a private dockerd in the folder for temporary files (as
root, Debian's docker.io), with an image made of busybox-static. Without one there are no figures.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiodocker
import aiohttp
import anybatch
from harness import Figure, Took, figure, folder, main

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from docker_rig import IMAGE, NoEngine, TestEngine, engine

COMMAND = ["/bin/true"]
AT_ONCE = (2, 4, 6, 8)
SLOTS = 16
SLEEP_S = 0.01


def measure(
    who: str = "docker", n: int = 150, size: int = 0, at_once: Sequence[int] = AT_ONCE, starts: int | None = None
) -> list[Figure]:
    try:
        with engine() as found, folder() as path:
            if who == "bare":
                return asyncio.run(bare(found, n, at_once))
            return asyncio.run(docker(found, path, n, size, starts))
    except NoEngine as e:
        print(f"docker_containers: {e}", file=sys.stderr)
        return []


# -- the Docker backend ---------------------------------------------------------------------------------


async def docker(found: TestEngine, path: Path, n: int, size: int, starts: int | None) -> list[Figure]:
    options: dict[str, Any] = {"engines": [found.url], "network": "none"}
    if starts is not None:
        options["starts_at_once"] = starts
    async with anybatch.Kernel(path / "batch.db", on_close="stop") as kernel:
        made = await kernel.create_compute_environment("bench", backend="docker", max_vcpus=SLOTS, options=options)
        assert made.status == "VALID", made
        await kernel.create_job_queue("q", priority=1, compute_environments=["bench"])
        first = await kernel.submit_job("first", queue="q", image=IMAGE, command=COMMAND)
        await first.wait()
        await until_gone(found, first)
        seen = Seen(found)
        watching = asyncio.create_task(seen.run())
        with Took() as took:
            job = await kernel.submit_job("array", queue="q", image=IMAGE, command=COMMAND, array_size=size or n)
            if size > n:
                while (done := await succeeded(job)) < n:
                    await asyncio.sleep(0.05)
            else:
                assert (await job.wait()).status == "SUCCEEDED"
                done = n
                await until_gone(found, job)
        watching.cancel()
        if size > n:
            await job.terminate("enough")
            await job.wait()
    name, rate, late = (f"@{size}", None, None) if size > n else ("", "bare_per_s", "bare_sleep_late_ms_p99")
    return [
        figure(f"containers_per_s{name}", done / took.wall_s, "1/s", better="more", took=took,
               peer=rate),
        figure(f"kernel_cpu_ms{name}", took.cpu_s / done * 1e3, "ms"),
        figure(f"sleep_late_ms_p99{name}", seen.late_ms(0.99), "ms", peer=late),
        figure(f"connections{name}", seen.connections, "1"),
    ]  # fmt: skip


async def succeeded(job: anybatch.JobHandle) -> int:
    summary = (await job.describe()).status_summary
    return summary[anybatch.JobStatus.SUCCEEDED] if summary is not None else 0


async def until_gone(found: TestEngine, job: anybatch.JobHandle) -> None:
    while await asyncio.to_thread(found.containers, job=job.id):
        await asyncio.sleep(0.02)


class Seen:
    """How late a sleep is, and how many connections to the engine's socket this process has, as it was seen."""

    def __init__(self, found: TestEngine) -> None:
        self._path = found.path
        self._late: list[float] = []
        self.connections = 0

    async def run(self) -> None:
        while True:
            for _ in range(50):
                began = time.perf_counter()
                await asyncio.sleep(SLEEP_S)
                self._late.append(time.perf_counter() - began - SLEEP_S)
            self.connections = max(self.connections, await asyncio.to_thread(self._count))

    def _count(self) -> int:
        """Of the engine's end, which has the path: those connected (state 03)."""
        lines = Path("/proc/net/unix").read_text().splitlines()
        return sum(line.split()[5] == "03" and line.endswith(f" {self._path}") for line in lines)

    def late_ms(self, share: float) -> float:
        return sorted(self._late)[int(share * len(self._late))] * 1e3


# -- its peer -------------------------------------------------------------------------------------------


async def bare(found: TestEngine, n: int, at_once: Sequence[int]) -> list[Figure]:
    best = None
    seen = Seen(found)
    watching = asyncio.create_task(seen.run())
    for most in at_once:
        took = await loop(found, n, most)
        best = took if best is None or took.wall_s < best.wall_s else best
    watching.cancel()
    assert best is not None
    return [
        figure("bare_per_s", n / best.wall_s, "1/s", better="neither", took=best),
        figure("bare_sleep_late_ms_p99", seen.late_ms(0.99), "ms", better="neither"),
    ]


async def loop(found: TestEngine, n: int, most: int) -> Took:
    body: dict[str, Any] = {"Image": IMAGE, "Cmd": COMMAND, "HostConfig": {"NetworkMode": "none"}}
    left = iter(range(n))
    connector = aiohttp.UnixConnector(found.path, limit=0)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        aiodocker.Docker(url="http://localhost", connector=connector, session=session) as client,
    ):

        async def worker() -> None:
            for _ in left:
                container = await client.containers.create(body)
                await container.start()
                assert (await container.wait())["StatusCode"] == 0
                await container.delete()

        with Took() as took:
            async with asyncio.TaskGroup() as group:
                for _ in range(most):
                    group.create_task(worker())
    print(f"bare at {most} at once: {n / took.wall_s:.2f}/s", file=sys.stderr)
    return took


if __name__ == "__main__":
    main(measure)
