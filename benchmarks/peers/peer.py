"""What the peers' scripts share. They run with whatever Python has the peer, so nothing here needs anybatch.

A script is called with one argument, JSON: `n` (tasks), `slots` (at once), `work` ("noop", or "true": each runs
/bin/true). It prints its figures as JSON, or ends with NOT_AVAILABLE and says why on standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

NOT_AVAILABLE = 69
TRUE = "/bin/true"
WARM_UP = 16


class Took:
    """Wall time, and the CPU time of this process alone."""

    wall_s = cpu_s = 0.0

    def __enter__(self) -> Took:
        self.wall_s, self.cpu_s = -time.perf_counter(), -time.process_time()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.wall_s += time.perf_counter()
        self.cpu_s += time.process_time()


def run(name: str, measure: Callable[[int, int, str], tuple[Took, str]]) -> None:
    """Call `measure(n, slots, work)`, which returns what it took and the peer's version, and print the figures."""
    parameters: dict[str, Any] = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    n, slots, work = parameters.get("n", 1000), parameters.get("slots", 2), parameters.get("work", "noop")
    try:
        took, version = measure(n, slots, work)
    except (ImportError, FileNotFoundError) as error:
        print(f"{name} is not available: {error}", file=sys.stderr)
        sys.exit(NOT_AVAILABLE)
    found = {"name": f"{name}_per_s", "value": n / took.wall_s, "unit": "1/s", "better": "neither", "peer": None}
    times = {"wall_s": took.wall_s, "cpu_s": took.cpu_s}
    print(json.dumps([{**found, **times, "version": version, "tasks": n}]), flush=True)
    os._exit(0)  # some leave threads and processes behind that end with this one


def noop(number: int) -> int:
    return number


def true(number: int) -> int:
    import subprocess

    return subprocess.run([TRUE], check=True).returncode


WORK: dict[str, Callable[[int], int]] = {"noop": noop, "true": true}
