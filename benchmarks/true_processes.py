"""Real processes: /bin/true n times, at most `slots` at once.

Measures attempts/s of an array on the process backend (journal on disk, a session, a log file and a durable exit
for each attempt), from the call of submit to the return of wait; the kernel's CPU per attempt (us, all threads),
the agent's own, and that of the attempts themselves (creating their logs included: `file_create_us` says what a
file costs on this file system just now). Peers, none of which keeps output or a record of anything:

- xargs: `xargs -P slots -n 1 /bin/true`
- asyncio: `slots` coroutines that call create_subprocess_exec and wait
- posix_spawn: one forked Python loop per CPU of os.posix_spawn, with a new session and a log file per process
- vfork: vfork_loop.c, the least that the machine takes (where there is a C compiler)

With `engines` it is compared with those (benchmarks/peers/). With `enforcement` it measures what memory limits cost.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import anybatch
from harness import AgentCpu, Figure, Took, agent_cpu, figure, file_create_us, folder, kernel, logs_folder, main

TRUE = shutil.which("true") or "/bin/true"
PEERS = ("xargs", "asyncio", "posix_spawn", "vfork")
Run = Callable[[], object]
Enforcement = Literal["none", "watch", "cgroup"]
LIMIT_MIB = 64  # of each attempt, where limits are measured


def measure(
    who: str = "kernel",
    n: int = 10_000,
    slots: int = 8,
    engines: Sequence[str] = (),
    enforcement: Enforcement | None = None,
) -> list[Figure]:
    if who == "kernel" and enforcement is not None:
        return asyncio.run(with_limits(n, slots, enforcement))
    if who == "kernel":
        return asyncio.run(through_kernel(n, slots, engines))
    with folder() as path:
        run = PREPARE[who](n, slots, logs_folder(path))
        if run is None:
            return []
        with Took(children=True) as took:
            run()
    return [
        figure(f"{who}_per_s@{slots}", n / took.wall_s, "1/s", better="neither", took=took),
        figure(f"{who}_cpu_us@{slots}", took.cpu_s / n * 1e6, "us", better="neither"),
    ]


class Ran(NamedTuple):
    """An array through a kernel: how long it took, CPU seconds of the agent, and what a file costs here (us)."""

    took: Took
    agent: AgentCpu
    create_us: float


async def array(n: int, slots: int, options: dict[str, Any] | None = None, memory: int = 0) -> Ran | None:
    """Run an array of /bin/true; None where the environment cannot do what the options ask for."""
    with folder() as path:
        logs = logs_folder(path)
        async with kernel(path, backend="process", slots=slots, options=options) as opened:
            if (await opened.describe_compute_environments(["bench"]))[0].status != "VALID":
                return None
            await opened.register_job_definition("true", command=[TRUE], memory=memory)
            create_us = file_create_us(logs)
            before = agent_cpu(path)
            with Took() as took:
                job = await opened.submit_job("array", queue="q", definition="true", array_size=n)
                detail = await job.wait()
            after = agent_cpu(path)
            assert detail.status is anybatch.JobStatus.SUCCEEDED, detail
    own, attempts = (a - b for a, b in zip(after, before, strict=True))
    return Ran(took, AgentCpu(own, attempts), create_us)


async def through_kernel(n: int, slots: int, engines: Sequence[str] = ()) -> list[Figure]:
    ran = await array(n, slots)
    assert ran is not None
    rate, took = n / ran.took.wall_s, ran.took
    name, at = f"attempts_per_s@{slots}", "" if engines else f"@{slots}"
    return [
        *(figure(f"{name}/{one}", rate, "1/s", better="more", peer=f"{one}_per_s{at}", took=took)
          for one in engines or PEERS),
        figure(f"kernel_cpu_us@{slots}", took.cpu_s / n * 1e6, "us"),
        figure(f"agent_cpu_us@{slots}", ran.agent.own_s / n * 1e6, "us"),
        figure(f"attempt_cpu_us@{slots}", ran.agent.attempts_s / n * 1e6, "us", better="neither"),
        figure(f"file_create_us@{slots}", ran.create_us, "us", better="neither"),
    ]  # fmt: skip


async def with_limits(n: int, slots: int, enforcement: Enforcement) -> list[Figure]:
    """What it costs to hold attempts to their memory: all that is spent on one, the attempt itself included."""
    ran = await array(n, slots, {"memory_enforcement": enforcement}, LIMIT_MIB)
    if ran is None:
        return []
    total = (ran.took.cpu_s + sum(ran.agent)) / n * 1e6
    none = enforcement == "none"
    return [
        figure(f"attempts_per_s@{slots}_{enforcement}", n / ran.took.wall_s, "1/s", better="more",
               peer=None if none else f"attempts_per_s@{slots}_none", took=ran.took),
        figure(f"cpu_us@{slots}_{enforcement}", total, "us", peer=None if none else f"cpu_us@{slots}_none"),
    ]  # fmt: skip


# -- peers: each gets ready, and returns what is to be timed (None: it is not available) -----------------


def xargs(n: int, slots: int, path: Path) -> Run | None:
    program = shutil.which("xargs")
    if program is None:
        return None
    command, lines = [program, "-P", str(slots), "-n", "1", TRUE], "".join(f"{i}\n" for i in range(n))
    return lambda: subprocess.run(command, input=lines, text=True, check=True)


def asyncio_loop(n: int, slots: int, path: Path) -> Run:
    left = iter(range(n))

    async def worker() -> None:
        for _ in left:
            process = await asyncio.create_subprocess_exec(TRUE)
            assert await process.wait() == 0

    async def workers() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(slots):
                group.create_task(worker())

    return lambda: asyncio.run(workers())


def posix_spawn(n: int, slots: int, path: Path) -> Run:
    loops = min(slots, len(os.sched_getaffinity(0)))

    def loop(which: int) -> None:
        """The share of one forked loop."""
        left, places, failed = len(range(which, n, loops)), len(range(which, slots, loops)), 0
        for i in range(left + places):
            if i >= places:
                failed |= os.waitpid(-1, 0)[1]
            if i < left:
                log = str(path / f"{which}-{i}.log")
                actions = [
                    (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ]
                os.posix_spawn(TRUE, [TRUE], os.environ, file_actions=actions, setsid=True)
        os._exit(failed != 0)

    def run() -> None:
        pids = []
        for which in range(loops):
            pid = os.fork()
            if pid == 0:
                loop(which)
            pids.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * loops

    return run


def vfork(n: int, slots: int, path: Path) -> Run | None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    program = path.parent / "vfork_loop"
    source = Path(__file__).with_name("vfork_loop.c")
    subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)
    return lambda: subprocess.run([str(program), str(n), str(slots), TRUE], check=True)


PREPARE: dict[str, Callable[[int, int, Path], Run | None]] = {
    "xargs": xargs,
    "asyncio": asyncio_loop,
    "posix_spawn": posix_spawn,
    "vfork": vfork,
}

if __name__ == "__main__":
    main(measure)
