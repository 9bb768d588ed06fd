"""Runs the benchmarks, each in fresh processes and in turns with its peers, and prints their figures.

    python benchmarks/run.py                      all of them, at full size (about an hour)
    python benchmarks/run.py --quick              small sizes: does it all still work?
    python benchmarks/run.py --only null_array true_processes --n 2000 --rounds 3
    python benchmarks/run.py --out results.json   also results.md (the table) and results.svg (a plot)
    python benchmarks/run.py --into results.json --seconds 120    the rounds that the file lacks, for so long

With --into a run is made in pieces: the file keeps every round with its time and the load just before it, and a piece
adds those that are missing, on the same commit and machine only. The exit status is 75 as long as some are left.

ANYBATCH_BENCH_DIR names the folder for journals (else the system's for temporary files), ANYBATCH_BENCH_LOGS one for
the logs of real processes (else beside the journal), ANYBATCH_BENCH_PEERS a Python that has the peers' packages
(parsl, ray, distributed, arq, saq, hyperqueue; else this one); redis-server, parallel and valgrind are looked for in
PATH. What is not there is named.

Without either the figures go to standard output as JSON, the table to standard error. Wall times of one run
mean little on a machine that does other things too; the ratio to a peer of the same round does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import plot

HERE = Path(__file__).resolve().parent
FORMAT = 2
SESSIONS_MAX = 1_000  # commands of an SSH session each: slow, and their rate does not depend on their number
Figure = dict[str, Any]
PEER_S_MAX = 300
UNFINISHED = 75  # exit status
FASTEST = "fastest_engine"  # of those measured in the same round
IDLE_S = 0.3  # for how long it is looked before a round what others have the machine do
ENGINES = {  # peers that are engines: their script, with its further arguments
    "parsl_threads": ("peers/parsl_threads",),
    "parsl_htex": ("peers/parsl_htex",),
    "ray": ("peers/ray_tasks",),
    "dask": ("peers/dask_tasks",),
    "arq": ("peers/redis_queues", "arq"),
    "saq": ("peers/redis_queues", "saq"),
    "hyperqueue": ("peers/hyperqueue_tasks",),
    "gnu_parallel": ("peers/gnu_parallel",),
}
WITHOUT_NOOP = ("hyperqueue", "gnu_parallel")  # their tasks are processes
SHAPES = (
    "some_fail",
    "all_fail_at_once",
    "n_to_n",
    "sequential",
    "many_arrays",
    "many_queues",
    "chain",
    "fan_in",
    "cancel_midway",
    "asked_meanwhile",
    "three_consumers",
)


class Part(NamedTuple):
    """One process: a benchmark's file and the parameters of its `measure`; `engine`: a peer's that it is."""

    file: str
    parameters: dict[str, Any]
    engine: str | None = None


class Benchmark(NamedTuple):
    """What is run in turns, `rounds` times; figures of its parts can be each other's peers."""

    name: str
    rounds: int
    parts: tuple[Part, ...]
    needs: str | None = None
    """A program without which it is left out."""


def plan(*, quick: bool, n: int | None) -> list[Benchmark]:
    """Everything there is to run. `n`: how many processes the benchmarks of real processes start."""
    small, large, processes = (10_000, 20_000, 100) if quick else (10_000, 1_000_000, 10_000)
    rounds = 1 if quick else 5
    n = n or processes
    turns = {"turns": 2} if quick else {}
    sizes = [100, small] if quick else [small, large]
    containers = tuple(Part("docker_containers", one) for one in ({}, {"who": "bare"}, {"size": 10_000}))
    slopes = [1_000, 10_000] if quick else [100_000, 1_000_000]
    return [
        Benchmark("null_array", rounds, (Part("null_array", {"size": small}),)),
        Benchmark(
            "null_array_large",
            rounds,
            (
                Part("null_array", {"size": small, "taskgroup": False}),
                Part("null_array", {"size": large, "taskgroup": False}),
                Part("null_array", {"size": large}),
            ),
        ),
        Benchmark(
            "null_array_slots", rounds, tuple(Part("null_array", {"size": small, "slots": slots}) for slots in (2, 8))
        ),
        Benchmark("submit", rounds, (Part("submit", {"sizes": sizes} | turns),)),
        Benchmark(
            "aws_api",
            rounds,
            (
                Part(
                    "aws_api",
                    {"submits": 50, "describes": 10, "peer_submits": 20, "connections": 4} | turns if quick else {},
                ),
            ),
        ),
        Benchmark("describe_cancel", rounds, (Part("describe_cancel", {"sizes": sizes} | turns),)),
        *(
            Benchmark(f"shape_{shape}", rounds, (Part("shapes", {"shape": shape, "size": 200 if quick else 10_000}),))
            for shape in SHAPES
        ),
        Benchmark(
            "engines_noop",
            rounds,
            (
                Part("null_array", {"size": small, "taskgroup": False, "engines": [*engines("noop"), FASTEST]}),
                *engine_parts("noop", 50 if quick else 2_000, 8),
            ),
        ),
        Benchmark(
            "memory_limits",
            rounds,
            tuple(
                Part("true_processes", {"n": n // 2, "slots": 8, "enforcement": enforcement})
                for enforcement in ("none", "watch", "cgroup")
            ),
        ),
        Benchmark("inline_array", rounds, (Part("inline_array", {"size": small}),)),
        Benchmark(
            "instructions",
            1 if quick else 3,
            (Part("instructions", {"names": ["child_8_slots", "submit"], "scale": 0.1} if quick else {}),),
            needs="valgrind",
        ),
        Benchmark(
            "responsiveness",
            rounds,
            tuple(
                Part("responsiveness", {"size": size, "watch_s": 0.2 if quick else 3.0})
                for size in ((large,) if quick else (100_000, large))
            ),
        ),
        Benchmark(
            "memory",
            1 if quick else 3,
            tuple(
                Part(
                    "memory",
                    {"kind": kind, "sizes": [slopes[0] // 10, slopes[1] // 10] if kind == "running" else slopes},
                )
                for kind in ("waiting", "finished", "retried", "running")
            ),
        ),
        *(
            Benchmark(
                f"true_processes_{slots}",
                rounds,
                tuple(
                    Part("true_processes", {"who": who, "n": n, "slots": slots})
                    for who in ("kernel", "vfork", "xargs", "asyncio", "posix_spawn")
                ),
            )
            for slots in ((8,) if quick else (2, 8))
        ),
        Benchmark(
            "engines_processes",
            rounds,
            (
                Part("true_processes", {"n": n, "slots": 8, "engines": [*engines("true"), FASTEST]}),
                *engine_parts("true", max(20, n // 10), 8),
            ),
        ),
        *(
            Benchmark(
                f"ssh_hosts_{slots}_{delay_ms}ms",
                rounds,
                tuple(
                    Part("ssh_hosts", {"who": who, "n": most, "slots": slots, "delay_ms": delay_ms})
                    for who, most in (("ssh", n), ("process", n), ("session", min(n, SESSIONS_MAX)))
                ),
            )
            for slots, delay_ms in (() if quick else ((2, 0), (2, 20), (8, 0), (8, 20)))
        ),
        *([] if quick else [Benchmark("docker_containers", rounds, containers)]),
    ]


def engines(work: str) -> list[str]:
    """The peers that can do this work."""
    return [name for name in ENGINES if work != "noop" or name not in WITHOUT_NOOP]


def engine_parts(work: str, n: int, slots: int) -> list[Part]:
    """One process for each of them."""
    return [Part(ENGINES[name][0], {"n": n, "slots": slots, "work": work}, engine=name) for name in engines(work)]


def run_round(benchmark: Benchmark, turn: int, missing: dict[str, str]) -> dict[str, Any]:
    """One round of a benchmark: every part once. Their order, and that of a peer inside one, turns with each round."""
    found: list[Figure] = []
    begun, about = time.monotonic(), {"at": now(), "load": round(os.getloadavg()[0], 2), "others": others()}
    for part in reversed(benchmark.parts) if turn % 2 else benchmark.parts:
        parameters = dict(part.parameters)
        if turn % 2 and part.file in ("null_array", "inline_array"):
            parameters["first"] = "taskgroup"
        if part.engine not in missing:
            found += measure(part._replace(parameters=parameters), missing)
    rates = [one for one in found if one["name"].removesuffix("_per_s") in ENGINES]
    if rates:
        found.append(max(rates, key=lambda one: one["value"]) | {"name": f"{FASTEST}_per_s"})
    took = round(time.monotonic() - begun, 1)
    return {"benchmark": benchmark.name, **about, "took_s": took, "figures": found}


def figures_of(rounds: Iterable[dict[str, Any]]) -> list[Figure]:
    """What all rounds together say, benchmark by benchmark."""
    together: dict[str, dict[str, Figure]] = {}
    turns: dict[str, int] = {}
    for one_round in rounds:
        benchmark = one_round["benchmark"]
        turn = turns[benchmark] = turns.get(benchmark, -1) + 1
        for one in one_round["figures"]:
            first = {"benchmark": benchmark, **one, "values": [], "by_round": {}}
            kept = together.setdefault(benchmark, {}).setdefault(one["name"], first)
            kept["by_round"][turn] = one["value"]
            for clock in {"wall_s", "cpu_s"} & one.keys():
                kept[clock] = [*(kept[clock] if kept["values"] else []), one[clock]]
            kept["values"].append(one["value"])
    return [
        finish(one, found)
        for found in together.values()
        for one in found.values()
        if "/" not in one["name"] or one["peer"] in found
    ]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def others() -> float | None:
    """The share of the machine's processors that is busy just now, with this run at rest. (Linux.)"""

    def ticks() -> tuple[int, int]:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(fields), fields[3] + fields[4]

    try:
        all_before, idle_before = ticks()
        time.sleep(IDLE_S)
        all_after, idle_after = ticks()
    except OSError:
        return None
    return round(1 - (idle_after - idle_before) / max(1, all_after - all_before), 2)


def measure(part: Part, missing: dict[str, str]) -> list[Figure]:
    """Run a part in a fresh process; a peer that cannot be run is noted as missing, with the reason."""
    program = sys.executable if part.engine is None else os.environ.get("ANYBATCH_BENCH_PEERS", sys.executable)
    more = ENGINES[part.engine][1:] if part.engine is not None else ()
    command = [program, str(HERE / f"{part.file}.py"), json.dumps(part.parameters), *more]
    environment = os.environ | {"ANYBATCH_BENCH_KEEP": "1"}
    if part.engine is not None:
        try:
            done = subprocess.run(command, capture_output=True, env=environment, timeout=PEER_S_MAX)
        except subprocess.TimeoutExpired:
            missing[part.engine] = f"it did not end within {PEER_S_MAX} s"
            return []
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"]
            missing[part.engine] = lines[-1]
            say(f"without {part.engine}: {lines[-1]}")
            return []
    else:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    figures: list[Figure] = json.loads(done.stdout.splitlines()[-1])
    return figures


def finish(one: Figure, found: dict[str, Figure]) -> Figure:
    """Add what the rounds together say: median and range, and the same of the ratio to the peer, round by round."""
    rounds = one.pop("by_round")
    peer = found.get(one.pop("peer") or "")
    figure = {key: value for key, value in one.items() if key != "value"} | summary(one["values"])
    if peer is not None and peer is not one:
        others = peer.get("by_round") or dict(enumerate(peer["values"]))
        ratios = [rounds[turn] / others[turn] for turn in rounds if others.get(turn)]
        if ratios:
            figure["peer"] = {"name": peer["name"], "median": summary(peer["values"])["median"]}
            figure["ratio"] = {"values": ratios} | summary(ratios)
    return figure


@contextlib.contextmanager
def work_folders() -> Iterator[None]:
    """Folders for journals and logs below those that the environment names; all is removed at the end of the run."""
    with contextlib.ExitStack() as stack:
        journals = os.environ.get("ANYBATCH_BENCH_DIR")
        os.environ["ANYBATCH_BENCH_DIR"] = stack.enter_context(tempfile.TemporaryDirectory(dir=journals))
        logs = os.environ.get("ANYBATCH_BENCH_LOGS")
        if logs:
            os.environ["ANYBATCH_BENCH_LOGS"] = stack.enter_context(tempfile.TemporaryDirectory(dir=logs))
        yield


def summary(values: Sequence[float]) -> dict[str, float]:
    """How many they are, and where they lie."""
    return {"n": len(values), "median": statistics.median(values), "min": min(values), "max": max(values)}


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    found = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version, "kernel": platform.release()}
    for name in ("anybatch", "msgspec", "anyio", "structlog"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    git = subprocess.run(["git", "-C", str(HERE), "describe", "--always", "--dirty"], capture_output=True, text=True)
    found["commit"] = git.stdout.strip() or "unknown"
    return found


def machine() -> dict[str, Any]:
    """Where they were measured."""
    model = "unknown"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpus": cpus, "model": model, "memory_gb": round(pages / 1e9, 1)}


def table(figures: Iterable[Figure]) -> str:
    """A Markdown table."""
    lines = ["| benchmark | figure | median | min-max | n | peer | ratio (min-max) |", "|---|---|---|---|---|---|---|"]
    for one in figures:
        peer, ratio = one.get("peer"), one.get("ratio")
        beside = f"{peer['name']}: {short(peer['median'])}" if peer else ""
        times = f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})" if ratio else ""
        lines.append(
            f"| {one['benchmark']} | {one['name']} | {short(one['median'])} {one['unit']} "
            f"| {short(one['min'])}-{short(one['max'])} | {one['n']} | {beside} | {times} |"
        )
    return "\n".join(lines)


def short(value: float) -> str:
    """Three digits or more."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def write(result: dict[str, Any], path: Path) -> str:
    """Write the file, the table and the plot; returns the table."""
    result["figures"] = figures_of(result["rounds"])
    shown = table(result["figures"]) + "".join(f"\n\nWithout {who}: {why}" for who, why in result["missing"].items())
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(result, indent=1) + "\n")
    fresh.replace(path)
    path.with_suffix(".md").write_text(shown + "\n")
    path.with_suffix(".svg").write_text(plot.draw(result))
    return shown


def begin(options: argparse.Namespace) -> dict[str, Any]:
    """A result without rounds, or the one that is to be gone on with."""
    result: dict[str, Any] = {
        "format": FORMAT,
        "at": now(),
        "quick": options.quick,
        "n": options.n,
        "versions": versions(),
        "machine": machine(),
        "folders": {name: os.environ.get(f"ANYBATCH_BENCH_{name}", "default") for name in ("DIR", "LOGS")},
        "figures": [],
        "missing": {},
        "rounds": [],
    }
    if options.into and options.into.exists():
        before: dict[str, Any] = json.loads(options.into.read_text())
        for name in ("format", "quick", "n", "versions", "machine", "folders"):
            if before.get(name) != result[name]:
                sys.exit(f"{options.into}: {name} differ: {before.get(name)} there, {result[name]} now")
        return before
    return result


def run_all(options: argparse.Namespace, result: dict[str, Any]) -> tuple[bool, bool]:
    """Run every round that the result lacks; returns whether one failed, and whether time ran out before the last."""
    path, until = options.into or options.out, time.monotonic() + (options.seconds or float("inf"))
    failed = False
    for benchmark in plan(quick=options.quick, n=options.n):
        if options.only and not benchmark.name.startswith(tuple(options.only)):
            continue
        if benchmark.needs and shutil.which(benchmark.needs) is None:
            result["missing"][benchmark.name] = f"there is no {benchmark.needs} in PATH"
        wanted = options.rounds or benchmark.rounds
        done = [one for one in result["rounds"] if one["benchmark"] == benchmark.name]
        while len(done) < wanted and benchmark.name not in result["missing"]:
            if time.monotonic() + max((one["took_s"] for one in done), default=0.0) > until:
                return failed, True
            say(f"{benchmark.name} {len(done) + 1}/{wanted}")
            try:
                done.append(run_round(benchmark, len(done), result["missing"]))
            except subprocess.CalledProcessError as e:  # it costs its own figures, not those of the others
                failed = True
                result["missing"][benchmark.name] = f"{Path(e.cmd[1]).name} ended with status {e.returncode}"
                say(f"without {benchmark.name}: {result['missing'][benchmark.name]}")
            else:
                result["rounds"].append(done[-1])
                if path:
                    write(result, path)
    return failed, False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and one round")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, help="write the figures here")
    where.add_argument("--into", type=Path, help="add the rounds that this file lacks")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="benchmarks whose name begins so")
    parser.add_argument("--n", type=int, help="how many processes to start (default 10000)")
    parser.add_argument("--rounds", type=int, help="how often to run each")
    parser.add_argument("--seconds", type=float, help="begin no round that would probably end later")
    options = parser.parse_args()
    result = begin(options)
    with work_folders():
        failed, unfinished = run_all(options, result)
    if options.into or options.out:
        print(write(result, options.into or options.out))
    else:
        result["figures"] = figures_of(result["rounds"])
        print(json.dumps(result, indent=1))
        say(table(result["figures"]))
    return 1 if failed else UNFINISHED if unfinished else 0


if __name__ == "__main__":
    sys.exit(main())
