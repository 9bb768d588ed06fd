"""Instructions of the processor per unit of work, counted by valgrind: the same from run to run where times are not.

Measures, for each kind of work on the null backend (or the inline one; journal on disk), the instructions of all
threads per unit (a child, a job, a call), and the blocks of memory per job that Python's allocator keeps. Each is the
slope between two sizes, so that what a kernel costs once cancels. Hashes are fixed, and the time moves on by itself
from one turn of the event loop to the next; what is left to chance is when a thread has synced the journal. That is
0.5 % of an inline child, and 0.2 % or less of anything else.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anybatch
from harness import Figure, figure, folder, kernel, main

TURN_S = 100e-6
"""By how much the time moves on in a turn of the event loop."""
LEAST = 0.01
"""The relative difference between two runs that counts."""
VALGRIND = ("valgrind", "-q", "--tool=cachegrind", "--cache-sim=no")
CACHES = ("--I1=32768,8,64", "--D1=32768,8,64", "--LL=8388608,16,64")
"""Not looked at, but looked for on the machine unless they are named."""


async def array(batch: anybatch.Kernel, size: int, **more: Any) -> None:
    job = await batch.submit_job("array", queue="q", definition="noop", array_size=size, **more)
    assert (await job.wait()).status is anybatch.JobStatus.SUCCEEDED


async def sequential(batch: anybatch.Kernel, size: int) -> None:
    await array(batch, size, depends_on=[{"type": "SEQUENTIAL"}])


async def submits(batch: anybatch.Kernel, size: int) -> None:
    """One after the other, each on disk before the next."""
    for _ in range(size):
        await batch.submit_job("job", queue="q", definition="noop")


async def singles(batch: anybatch.Kernel, size: int) -> None:
    """Jobs submitted together, until all have ended."""
    jobs = await asyncio.gather(*(batch.submit_job(f"job-{i}", queue="q", definition="noop") for i in range(size)))
    await asyncio.gather(*(job.wait() for job in jobs))


async def chain(batch: anybatch.Kernel, size: int) -> None:
    """Jobs each of which depends on the one before, submitted together while none of them can run."""
    await batch.update_compute_environment("bench", state="DISABLED")
    depends = [[f"job-{i - 1}"] if i else None for i in range(size)]
    calls = [batch.submit_job(f"job-{i}", queue="q", definition="noop", depends_on=on) for i, on in enumerate(depends)]
    jobs = await asyncio.gather(*calls)
    await batch.update_compute_environment("bench", state="ENABLED")
    assert (await jobs[-1].wait()).status is anybatch.JobStatus.SUCCEEDED


async def describes(batch: anybatch.Kernel, size: int) -> None:
    job = await batch.submit_job("array", queue="q", definition="noop", array_size=1000)
    for _ in range(size):
        await job.describe()


async def noop(attempt: anybatch.InlineAttempt) -> None:
    """What every inline child runs."""


Work = tuple[Callable[[anybatch.Kernel, int], Awaitable[None]], Mapping[str, Any], Sequence[int]]
WAITING: Mapping[str, Any] = {"enabled": False}
WORK: dict[str, Work] = {  # what is done, on which kernel, and the two sizes
    "child_64_slots": (array, {"slots": 64}, (6_400, 12_800)),
    "child_8_slots": (array, {"slots": 8}, (800, 1_600)),
    "inline_child": (array, {"slots": 64, "backend": "inline"}, (3_200, 9_600)),
    "sequential_child": (sequential, {}, (200, 600)),
    "chain_job": (chain, {}, (200, 600)),
    "single_job": (singles, {}, (400, 1_200)),
    "submit": (submits, WAITING, (200, 400)),
    "describe": (describes, WAITING, (1_000, 3_000)),
}
KEPT = ("chain_job", "single_job", "submit")
"""Of which something stays in memory as long as the job does; memory.py has the bytes of children."""


# -- in the process that is counted -------------------------------------------------------------------


class Paced(selectors.DefaultSelector):
    """A selector that is also the event loop's clock: a turn takes TURN_S, and a wait as long as was asked for."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(timeout)
        self.now_s += TURN_S if found or not timeout else timeout
        return found


class PacedClock:
    """The kernel's clock, by the time of such a loop."""

    def now_ms(self) -> int:
        return 1_800_000_000_000 + round(asyncio.get_running_loop().time() * 1000)

    def call_at(self, when_ms: int, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(max(0, when_ms - self.now_ms()) / 1000, callback)


def paced_loop() -> asyncio.AbstractEventLoop:
    selector = Paced()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s  # type: ignore[method-assign]
    return loop


async def done(name: str, size: int) -> int:
    """Do so many units of this work; returns the blocks that are kept in the end."""
    act, options, _ = WORK[name]
    backends = {"inline": anybatch.InlineBackend({"noop": noop})}
    with folder() as path:
        async with kernel(path, backends=backends, clock=PacedClock(), **options) as batch:
            await batch.register_job_definition("noop", command=["noop"])
            await act(batch, size)
            if "ANYBATCH_BENCH_BLOCKS" in os.environ:
                gc.collect()
            return sys.getallocatedblocks()


def count(names: Sequence[str], scale: float, out: str) -> None:
    """Do each work twice, every time in a process of its own that this one forks: what is loaded is loaded once."""
    for name in names:
        for which in (0, 1):
            size = round(WORK[name][2][which] * scale)
            child = os.fork()
            if not child:
                with asyncio.Runner(loop_factory=paced_loop) as runner:
                    blocks = runner.run(done(name, size))
                Path(out, f"{name}.{which}").write_text(json.dumps([os.getpid(), size, blocks]))
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                sys.exit(f"{name} of {size} has failed")


# -- outside of it ------------------------------------------------------------------------------------


def measure(names: Sequence[str] = tuple(WORK), scale: float = 1.0) -> list[Figure]:
    found = []
    with folder() as out:
        for command, variables in (
            ((*VALGRIND, *CACHES, f"--cachegrind-out-file={out}/counts.%p"), {}),
            ((), {"ANYBATCH_BENCH_BLOCKS": "1"}),
        ):
            parameters = json.dumps({"names": names, "scale": scale, "out": str(out)})
            environment = os.environ | {"PYTHONHASHSEED": "0"} | variables
            program = [*command, sys.executable, __file__, parameters]
            subprocess.run(program, check=True, env=environment, stdout=subprocess.DEVNULL)
            for name in names:
                (pid, low, *few), (other, high, *many) = (
                    json.loads((out / f"{name}.{which}").read_text()) for which in (0, 1)
                )
                if command:
                    slope = (counted(out, other) - counted(out, pid)) / (high - low)
                    found.append(figure(f"instructions_per_{name}", slope, "instructions", least=LEAST))
                elif name in KEPT:
                    slope = (many[0] - few[0]) / (high - low)
                    found.append(figure(f"blocks_per_{name}", slope, "blocks", least=LEAST))
    return found


def counted(out: Path, pid: int) -> int:
    """The instructions of one process."""
    for line in (out / f"counts.{pid}").read_text().splitlines():
        if line.startswith("summary:"):
            return int(line.split()[1])
    raise ValueError(f"valgrind has left no summary of process {pid}")


if __name__ == "__main__":
    main(count if '"out"' in sys.argv[-1] else measure)
