#!/usr/bin/env python3
"""The soak: many short jobs for many minutes on short retention, with an eye on what must not grow.

    python campaigns/soak.py --minutes 5 [--rate 50] [--trimmed]

One kernel with a file journal and the process backend; single jobs, arrays, chains and failures come all the time, are
read (describe, list, logs, events) and forgotten a few seconds after their end: `--rate` a second (0: as fast as they
can be run; then as many are known as that happens to be, and resident memory follows the largest number so far). Every
few seconds the kernel's and the agent's memory, descriptors and threads, the journal's size and events, and the files
beside it are sampled; with `--trimmed` events are dropped after a minute, and the journal must stay flat too. A table
goes to stderr as it grows, the figures with their slopes after the warm-up to stdout as JSON. The exit status is 1 if a
figure that must stay flat has grown by more than its bound. Linux only: it reads /proc.
"""
# ruff: noqa: T201, D103, ASYNC110

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import anybatch
import structlog
from anybatch import Kernel

PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
RETAIN_S = 3.0
RETAIN_EVENTS_S = 60.0
"""With --trimmed."""
RATE = 50.0
UNFINISHED_MOST = 60
SAMPLES_LEAST = 10
"""However little time was given."""
WARM_UP = 0.3
"""The share of the time before which figures may still rise."""


class Bound(NamedTuple):
    """How far a figure may have risen from the end of the warm-up to the end: the larger of the two."""

    share: float
    absolute: float


FLAT: dict[str, Bound] = {
    "rss_kib": Bound(0.05, 4 << 10),
    "objects": Bound(0.05, 10_000),
    "descriptors": Bound(0.0, 8),
    "threads": Bound(0.0, 16),
    "tasks": Bound(0.0, 40),
    "known_jobs": Bound(0.25, 300),
    "agent_rss_kib": Bound(0.05, 2 << 10),
    "agent_descriptors": Bound(0.0, 8),
    "wal_kib": Bound(0.25, 8 << 10),
    "other_kib": Bound(0.25, 6 << 10),
    "other_files": Bound(0.25, 600),
}
"""What must not grow, and how much is noise. (Files are read in a pool of threads: more where the machine is busy.)"""
GROWING = ("journal_kib", "journal_events")
"""What grows as long as the journal keeps all events: told, and held to a bound with --trimmed."""
TRIMMED = Bound(0.25, 24 << 10)


def proc(pid: int | str) -> tuple[int, int, int]:
    """Resident memory (KiB), descriptors and threads of a process."""
    rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_KIB
    return rss, len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


def tree(folder: Path) -> tuple[int, int]:
    """KiB on disk, and files and folders, below a folder."""
    size = count = 0
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(root, name)).st_blocks // 2
                count += 1
    return size, count


def kept_events(kernel: Kernel) -> int:
    """Events in the journal. Not asked of the file: a reader there keeps the write-ahead file from being begun anew."""
    assert kernel._runtime is not None
    journal = kernel._runtime.journal
    return journal.last - journal.oldest + 1


def file_kib(path: Path) -> int:
    return path.stat().st_blocks // 2 if path.exists() else 0


async def sample(kernel: Kernel, journal: Path, began: float) -> dict[str, float]:
    """All figures as they are now."""
    files = Path(f"{journal}.d")
    rss, descriptors, threads = proc("self")
    agent_rss, agent_descriptors, _ = proc(agent_of(files))
    other_kib, other_files = await asyncio.to_thread(tree, files)
    return {
        "s": round(time.monotonic() - began, 1),
        "jobs": JOBS.ended,
        "attempts": JOBS.attempts,
        "rss_kib": rss,
        "objects": sys.getallocatedblocks(),
        "descriptors": descriptors,
        "threads": threads,
        "tasks": len(asyncio.all_tasks()),
        "known_jobs": len([job async for job in kernel.list_jobs()]),
        "agent_rss_kib": agent_rss,
        "agent_descriptors": agent_descriptors,
        "journal_kib": file_kib(journal),
        "wal_kib": file_kib(Path(f"{journal}-wal")),
        "journal_events": kept_events(kernel),
        "other_kib": other_kib,
        "other_files": other_files,
    }


def agent_of(files: Path) -> int:
    return int(json.loads((files / "environments" / "local" / "agent.lock").read_bytes())["pid"])


class Jobs:
    """What has been asked for, and has ended."""

    def __init__(self) -> None:
        self.under_way = 0
        self.ended = 0
        self.attempts = 0
        self.late = 0
        """Ended jobs that were forgotten before they could be looked at: this process was not given the time."""
        self.wrong: list[str] = []


JOBS = Jobs()


async def one_after_the_other(kernel: Kernel, args: argparse.Namespace) -> None:
    """Submit at a rate (0: as fast as possible), with a bound on what is under way."""
    rng, rate = random.Random(args.seed), args.rate
    running: set[asyncio.Task[None]] = set()
    due = time.monotonic()
    try:
        for n in itertools.count():
            if rate:
                due += 1 / rate
                await asyncio.sleep(max(due - time.monotonic(), 0))
                due = max(due, time.monotonic() - 1)  # what could not be kept up with for longer is not caught up with
            while JOBS.under_way >= UNFINISHED_MOST:
                await asyncio.sleep(0.005)
            JOBS.under_way += 1
            task = asyncio.create_task(guarded(kernel, rng, n, args.retain))
            running.add(task)
            task.add_done_callback(running.discard)
            await asyncio.sleep(0)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def guarded(kernel: Kernel, rng: random.Random, n: int, retain_s: float) -> None:
    try:
        await one(kernel, rng, n, retain_s)
    except (anybatch.AnyBatchError, AssertionError) as e:
        JOBS.wrong.append(f"job {n}: {e!r}")
    finally:
        JOBS.under_way -= 1


async def one(kernel: Kernel, rng: random.Random, n: int, retain_s: float) -> None:
    """One submit, its end, and a look at it."""
    echo = ["sh", "-c", "echo $AWS_BATCH_JOB_ID"]
    match rng.randrange(10):
        case 0:
            job = await kernel.submit_job(f"array-{n}", queue="q", command=echo, array_size=rng.randint(2, 20))
            JOBS.attempts += len(job)
        case 1:
            first = await kernel.submit_job(f"first-{n}", queue="q", command=["true"])
            job = await kernel.submit_job(f"then-{n}", queue="q", command=["true"], depends_on=[first])
            JOBS.attempts += 2
        case 2:
            job = await kernel.submit_job(f"fails-{n}", queue="q", command=["false"], retry=2)
            JOBS.attempts += 2
        case 3:
            job = await kernel.submit_job(f"stopped-{n}", queue="q", command=["sleep", "60"], timeout=60)
            await asyncio.sleep(rng.random() * 0.1)
            await job.terminate("soak")
            JOBS.attempts += 1
        case _:
            job = await kernel.submit_job(f"job-{n}", queue="q", command=echo, client_token=f"token-{n}")
            JOBS.attempts += 1
    detail = await job.wait()
    good = job.name.split("-")[0] not in ("fails", "stopped")
    assert (detail.status is anybatch.JobStatus.SUCCEEDED) is good, detail
    if job.name.startswith("job-"):
        try:
            assert await job.read_logs() == f"{job.id}\n".encode()
        except anybatch.NotFound:
            assert detail.stopped_at is not None
            since_s = (datetime.now(UTC) - detail.stopped_at).total_seconds()
            assert since_s > retain_s, f"forgotten after {since_s:g} s"
            JOBS.late += 1
    JOBS.ended += 1


async def read_events(kernel: Kernel) -> None:
    async with kernel.events() as events:
        async for _ in events:
            pass


async def soak(args: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    samples: list[dict[str, float]] = []
    journal = folder / "j.db"
    # The kernel's own log goes to stdout unless told otherwise.
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(file=(folder / "kernel.log").open("a")))
    keep_s = RETAIN_EVENTS_S if args.trimmed else 7 * 86_400.0
    async with Kernel(journal, runtime_dir=folder / "run", on_close="stop", retain_events=keep_s) as kernel:
        await kernel.create_compute_environment("local", backend="process", max_vcpus=8)
        kept = {"retain_succeeded": args.retain, "retain_failed": args.retain}
        await kernel.create_job_queue("q", priority=1, compute_environments=["local"], **kept)
        began = time.monotonic()
        tasks = [asyncio.create_task(read_events(kernel))]
        tasks.append(asyncio.create_task(one_after_the_other(kernel, args)))
        try:
            while time.monotonic() - began < args.minutes * 60 or len(samples) < SAMPLES_LEAST:
                await asyncio.wait(tasks, timeout=args.every, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    if task.done():
                        task.result()
                samples.append(await sample(kernel, journal, began))
                show(samples)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        agent = agent_of(Path(f"{journal}.d"))
    with contextlib.suppress(ProcessLookupError):
        os.kill(agent, signal.SIGTERM)
    return samples


def show(samples: Sequence[dict[str, float]]) -> None:
    names = list(samples[-1])
    if len(samples) == 1:
        print(" ".join(f"{name:>17}" for name in names), file=sys.stderr)
    print(" ".join(f"{samples[-1][name]:>17g}" for name in names), file=sys.stderr, flush=True)


def slope(samples: Sequence[dict[str, float]], name: str) -> float:
    """Per second, by least squares."""
    times, values = [one["s"] for one in samples], [one[name] for one in samples]
    middle, mean = sum(times) / len(times), sum(values) / len(values)
    over = sum((t - middle) ** 2 for t in times)
    return sum((t - middle) * (v - mean) for t, v in zip(times, values, strict=True)) / over if over else 0.0


def judge(samples: Sequence[dict[str, float]], *, trimmed: bool) -> tuple[dict[str, Any], list[str]]:
    """Each figure's course after the warm-up, and those that have grown though they must not."""
    after = [one for one in samples if one["s"] >= samples[-1]["s"] * WARM_UP] if samples else []
    if len(after) < 3:
        return {}, ["too few samples after the warm-up"]
    span = after[-1]["s"] - after[0]["s"]
    bounds = FLAT | (dict.fromkeys(GROWING, TRIMMED) if trimmed else {})
    figures: dict[str, Any] = {}
    problems = []
    for name in (*FLAT, *GROWING):
        mean = sum(one[name] for one in after) / len(after)
        per_s = slope(after, name)
        growth = per_s * span
        figures[name] = {
            "first": after[0][name],
            "last": after[-1][name],
            "mean": round(mean, 1),
            "most": max(one[name] for one in after),
            "slope_per_minute": round(per_s * 60, 2),
        }
        bound = bounds.get(name)
        if bound is not None and growth > max(bound.share * mean, bound.absolute):
            problems.append(f"{name} has grown by {growth:.0f} in {span:.0f} s (mean {mean:.0f})")
    return figures, problems


def per_attempt(samples: Sequence[dict[str, float]]) -> int:
    """Bytes of the journal, its write-ahead file included, for each attempt."""
    if not samples:
        return 0
    return round((samples[-1]["journal_kib"] + samples[-1]["wal_kib"]) * 1024 / max(samples[-1]["attempts"], 1))


@contextlib.contextmanager
def working_in(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True)
        yield given.resolve()
        return
    folder = tempfile.mkdtemp(prefix="ab-soak-")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--rate", type=float, default=RATE, help="submits a second (0: as fast as they can be run)")
    parser.add_argument("--every", type=float, default=5, help="seconds between two samples")
    parser.add_argument("--retain", type=float, default=RETAIN_S, help="seconds for which ended jobs are kept")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trimmed", action="store_true", help="drop old events; the journal must stay flat too")
    parser.add_argument("--folder", type=Path, help="where to work (new, and kept; default: a temporary one)")
    args = parser.parse_args()
    with working_in(args.folder) as folder:
        samples = asyncio.run(soak(args, folder))
    figures, problems = judge(samples, trimmed=args.trimmed)
    problems += JOBS.wrong
    took = samples[-1]["s"] if samples else 0
    result = {
        "verdict": "FAILED" if problems else "ok",
        "seed": args.seed,
        "seconds": took,
        "jobs": JOBS.ended,
        "attempts": JOBS.attempts,
        "late": JOBS.late,
        "jobs_per_s": round(JOBS.ended / took, 1) if took else 0,
        "journal_bytes_per_attempt": per_attempt(samples),
        "figures": figures,
        "problems": problems[:20],
    }
    print(json.dumps(result, indent=1))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
