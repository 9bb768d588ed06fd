"""What the benchmarks share: figures, a kernel with a journal on disk, clocks for CPU time and memory.

Each benchmark is one file with a coroutine or function `measure(**parameters)` that returns figures. Run
alone (`python benchmarks/null_array.py '{"size": 1000}'`) it prints them as JSON; benchmarks/run.py runs each in
fresh processes, in turns with its peers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import anybatch
from anybatch.backends.process import ProcessBackend
from anybatch.kernel.clock import Clock
from anybatch.testing.null import NullBackend

SLOTS = 64
SIZE_MAX = 10_000_000
Figure = dict[str, Any]


def figure(
    name: str,
    value: float,
    unit: str,
    *,
    better: Literal["less", "more", "neither"] = "less",
    peer: str | None = None,
    took: Took | None = None,
    least: float | None = None,
) -> Figure:
    """One measured value. `peer` names the figure of the same benchmark and round that it is compared with.

    `least`: the relative difference between two runs that counts, where it is not compare.py's.
    """
    found: Figure = {"name": name, "value": value, "unit": unit, "better": better, "peer": peer}
    if least is not None:
        found["least"] = least
    if took is not None:
        found |= {"wall_s": took.wall_s, "cpu_s": took.cpu_s}
    return found


def main(measure: Callable[..., Any]) -> None:
    """Run one benchmark's `measure` with the parameters given as JSON, and print its figures as JSON."""
    parameters = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    found = measure(**parameters)
    if asyncio.iscoroutine(found):
        found = asyncio.run(found)
    json.dump(found, sys.stdout)
    print()


# -- clocks -------------------------------------------------------------------------------------------


class Took:
    """Wall time and CPU time (all threads; with `children`, also that of ended child processes) of a block."""

    def __init__(self, *, children: bool = False) -> None:
        self._children = children
        self.wall_s = self.cpu_s = 0.0

    def _cpu_s(self) -> float:
        if not self._children:
            return time.process_time()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + used.ru_utime + used.ru_stime

    def __enter__(self) -> Took:
        self.cpu_s, self.wall_s = -self._cpu_s(), -time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self.wall_s += time.perf_counter()
        self.cpu_s += self._cpu_s()


def resident_bytes(what: Literal["VmRSS", "VmHWM"] = "VmRSS") -> int:
    """Resident memory of this process: now, or its peak. (Linux; 0 elsewhere.)"""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith(what):
                return int(line.split()[1]) << 10
    return 0


def written_bytes() -> int:
    """What this process has had written to disks so far. (Linux; 0 elsewhere.)"""
    with contextlib.suppress(OSError), open("/proc/self/io") as file:
        for line in file:
            if line.startswith("write_bytes"):
                return int(line.split()[1])
    return 0


class AgentCpu(NamedTuple):
    """CPU seconds of the process backend's agent: its own, and that of the attempts that it has reaped."""

    own_s: float
    attempts_s: float


def agent_cpu(state: Path) -> AgentCpu:
    """Of the agent whose command line names this folder. (Linux; zeros elsewhere.)"""
    ticks = os.sysconf("SC_CLK_TCK")
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(state) in (entry / "cmdline").read_bytes():
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                threads = (entry / "task").glob("*/schedstat")
                own = sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
                return AgentCpu(own, (int(fields[13]) + int(fields[14])) / ticks)
    return AgentCpu(0.0, 0.0)


# -- statistics ---------------------------------------------------------------------------------------


def quantile(values: list[float], share: float) -> float:
    """The value below which this share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# -- kernels ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder for a journal, below ANYBATCH_BENCH_DIR if that is set; removed afterwards unless run.py does that.

    On ext4 without a journal of its own, creating a file costs twenty times as much CPU for some minutes after
    many were deleted, so a whole run deletes nothing until its end.
    """
    path = Path(tempfile.mkdtemp(prefix="anybatch-bench-", dir=os.environ.get("ANYBATCH_BENCH_DIR")))
    try:
        yield path
    finally:
        if "ANYBATCH_BENCH_KEEP" not in os.environ:
            shutil.rmtree(path, ignore_errors=True)
            if "ANYBATCH_BENCH_LOGS" in os.environ:
                shutil.rmtree(Path(os.environ["ANYBATCH_BENCH_LOGS"]) / path.name, ignore_errors=True)


def logs_folder(path: Path) -> Path:
    """Where a kernel with its journal in this folder has attempts' logs; elsewhere if ANYBATCH_BENCH_LOGS says so."""
    logs = path / "batch.db.d" / "logs"
    logs.parent.mkdir(mode=0o700)
    elsewhere = os.environ.get("ANYBATCH_BENCH_LOGS")
    if elsewhere:
        (Path(elsewhere) / path.name).mkdir(mode=0o700)
        logs.symlink_to(Path(elsewhere) / path.name)
    else:
        logs.mkdir()
    return logs


def file_create_us(where: Path, n: int = 200) -> float:
    """What creating an empty file here costs at present: CPU time (us)."""
    probe = where / "probe"
    probe.mkdir()
    with Took() as took:
        for i in range(n):
            os.close(os.open(probe / str(i), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    return took.cpu_s / n * 1e6


@contextlib.asynccontextmanager
async def kernel(
    path: Path,
    *,
    backend: str = "null",
    backends: Mapping[str, Any] | None = None,
    slots: int = SLOTS,
    enabled: bool = True,
    options: Mapping[str, Any] | None = None,
    quotas: anybatch.Quotas | None = None,
    on_close: Literal["detach", "stop"] = "stop",
    clock: Clock | None = None,
) -> AsyncIterator[anybatch.Kernel]:
    """A kernel with its journal in this folder, an environment "bench" and a queue "q".

    `options`: of the environment. Without `enabled` all work waits.
    """
    known: dict[str, Any] = {"null": NullBackend(), "process": ProcessBackend(agent_idle_ms=200)}
    async with anybatch.Kernel(
        path / "batch.db",
        backends=known | dict(backends or {}),
        quotas=quotas or anybatch.Quotas(array_size_max=SIZE_MAX),
        on_close=on_close,
        clock=clock,
    ) as opened:
        await opened.create_compute_environment("bench", backend=backend, max_vcpus=slots, options=options)
        await opened.create_job_queue("q", priority=1, compute_environments=["bench"])
        if not enabled:
            await opened.update_compute_environment("bench", state="DISABLED")
        yield opened


async def noop() -> None:
    """What a peer's task does."""


async def task_group(n: int) -> None:
    """The peer of arrays: a bare TaskGroup that starts n no-op coroutines."""
    async with asyncio.TaskGroup() as group:
        for _ in range(n):
            group.create_task(noop())
