"""Resident memory per child: the slope between two sizes of an array on the null backend, journal on disk.

Measures bytes per child that waits, that has SUCCEEDED, per attempt of one that fails beyond its first, and per
one that runs. `settled` is what is resident afterwards (after a garbage collection), `peak` the most that was.
Each size is measured in a process of its own, from after the kernel has opened.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from anybatch import JobStatus
from anybatch.testing.null import NullBackend
from harness import SLOTS, Figure, figure, folder, kernel, main, resident_bytes

FOREVER_S = 1e6
MANY = 1_000_000
ATTEMPTS = 3
Resident = dict[str, int]


def measure(kind: str = "finished", sizes: Sequence[int] = (100_000, 1_000_000)) -> list[Figure]:
    slopes = _slopes(kind, sizes)
    if kind == "retried":
        once = _slopes("finished", sizes)
        slopes = {what: (slope - once[what]) / (ATTEMPTS - 1) for what, slope in slopes.items()}
    per = "further_attempt" if kind == "retried" else f"{kind}_child"
    at = f"{sizes[0]}-{sizes[-1]}"
    return [figure(f"{what}_bytes_per_{per}_{at}", slope, "B") for what, slope in slopes.items()]


def _slopes(kind: str, sizes: Sequence[int]) -> dict[str, float]:
    low, high = (_elsewhere(kind, size) for size in (sizes[0], sizes[-1]))
    return {what: (high[what] - low[what]) / (sizes[-1] - sizes[0]) for what in low}


def _elsewhere(kind: str, size: int) -> Resident:
    """The same in a fresh process."""
    with folder() as path:
        parameters = json.dumps({"kind": kind, "size": size, "path": str(path)})
        done = subprocess.run([sys.executable, __file__, parameters], check=True, stdout=subprocess.PIPE)
    found: Resident = json.loads(done.stdout)
    return found


async def resident(kind: str, size: int, path: str) -> None:
    """Print what one array of this size adds to the resident memory of this process, and end it."""
    null = {
        "running": NullBackend(lambda key: (FOREVER_S, 0)),
        "retried": NullBackend(exit_code=1),
    }.get(kind, NullBackend())
    slots = MANY if kind == "running" else SLOTS
    async with kernel(Path(path), backends={"null": null}, slots=slots, enabled=kind != "waiting") as opened:
        await opened.register_job_definition("noop", command=["noop"], retry=ATTEMPTS)
        gc.collect()
        before = resident_bytes()
        job = await opened.submit_job("array", queue="q", definition="noop", array_size=size)
        if kind in ("finished", "retried"):
            await job.wait()
        while kind == "running" and (await job.describe()).status_summary != _all(JobStatus.RUNNING, size):
            await asyncio.sleep(0.05)
        gc.collect()
        print(json.dumps({"settled": resident_bytes() - before, "peak": resident_bytes("VmHWM") - before}), flush=True)
        os._exit(0)  # ending what runs in an orderly way is not what is measured


def _all(status: JobStatus, size: int) -> dict[JobStatus, int]:
    return {one: size if one is status else 0 for one in JobStatus}


if __name__ == "__main__":
    main(resident if '"size"' in sys.argv[-1] else measure)
