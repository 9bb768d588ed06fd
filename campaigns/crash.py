#!/usr/bin/env python3
"""The crash campaign: kill the kernel, its agent or both again and again, then look whether all is as it should be.

    python campaigns/crash.py --kills 300 [--target kernel|agent|both|mixed] [--seed N]
    python campaigns/crash.py --backend ssh --kills 300 [--target kernel|agent|both|sshd|mixed] [--seed N]

A real kernel with a file journal and the process backend, or over hosts that are real sshds of this machine, runs a mix
of work (campaigns/crash_kernel.py) and is killed with SIGKILL at random moments: while it opens, runs and closes. After
the last kill all work is run to its end, and what the attempts have written themselves is compared with what the kernel
says (campaigns/crash_check.py). The figures go to stdout as JSON; the exit status is 1 if anything was wrong, and then
the folder is kept. `--check FOLDER` compares again.

Linux only: what is left running is looked for in /proc.
"""
# ruff: noqa: T201, D103

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from crash_check import check, shown
from crash_hosts import Hosts, NoAnswer
from crash_kernel import VCPUS, append, lines, live

READY_S_MAX = 90.0
"""For a kernel to open and start its environment."""
POLL_S = 0.003
TARGETS = {
    "kernel": (1, 0, 0, 0), "agent": (0, 1, 0, 0), "both": (0, 0, 1, 0), "sshd": (0, 0, 0, 1), "mixed": (6, 3, 3, 4),
}  # fmt: skip
"""How often each is chosen: kernel, agent, both, sshd (where there is one)."""
HOSTS = 2


class Failed(Exception):
    """The campaign cannot go on; the message says why."""


class Process:
    """A kernel in a child process."""

    def __init__(self, folder: Path, seed: str, *, finish: bool) -> None:
        self.began = time.monotonic()
        self.status: int | None = None
        self.ready_s: float | None = None
        self.pipe, other = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self.pipe)
                log = os.open(folder / "kernel.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                os.dup2(log, 1)
                os.dup2(log, 2)
                live(folder, seed, finish=finish, tell=lambda word: void(os.write(other, f"{word}\n".encode())))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        os.close(other)

    def poll(self) -> int | None:
        """How it ended; None: it runs. Reaps whatever else has become this process's child."""
        while self.status is None:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == self.pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def pause(self, seconds: float) -> bool:
        """Wait; False: it has ended meanwhile."""
        until = time.monotonic() + seconds
        while self.poll() is None and (left := until - time.monotonic()) > 0:
            time.sleep(min(POLL_S, left))
        return self.status is None

    def wait_ready(self) -> None:
        until = self.began + READY_S_MAX
        while self.ready_s is None:
            if self.poll() is not None:
                raise Failed(f"a kernel ended by itself with status {self.status} as it opened")
            if time.monotonic() > until:
                raise Failed(f"a kernel was not ready within {READY_S_MAX:g} s")
            if select.select([self.pipe], [], [], POLL_S)[0] and os.read(self.pipe, 100):
                self.ready_s = time.monotonic() - self.began

    def kill(self) -> bool:
        """SIGKILL, and wait; False: it had ended before."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        while self.poll() is None:
            time.sleep(POLL_S)
        os.close(self.pipe)
        return self.status == -signal.SIGKILL


def void(_: object) -> None:
    """Nothing."""


def agents(folder: Path) -> list[int]:
    """The agents of this campaign, one that is just starting included."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                words = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
                if b"--state" in words and words[words.index(b"--state") + 1].startswith(os.fsencode(f"{folder}/")):
                    found.append(int(name))
    return found


def left_running(folder: Path) -> list[str]:
    """The attempts of this campaign that still run."""
    found, effects = [], b"EFFECTS=" + os.fsencode(folder / "effects")
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                variables = Path("/proc", name, "environ").read_bytes().split(b"\0")
                attempt = [one for one in variables if one.startswith(b"ANYBATCH_ATTEMPT=")]
                if attempt and effects in variables:
                    found.append(f"{os.fsdecode(attempt[0])} (process {name})")
    return found


class Campaign:
    """One campaign in one folder."""

    def __init__(
        self, folder: Path, seed: int, target: str, *, deadline: float, drain_s: float, jobs_least: int,
        hosts: Hosts | None = None,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.seed = seed
        self.rng = random.Random(seed)
        self.hosts = hosts
        self.weights = TARGETS[target] if hosts else TARGETS[target][:3]
        self.deadline = deadline
        self.drain_s = drain_s
        self.jobs_least = jobs_least
        self.kills = 0
        self.starts = 0
        self.clean = 0
        self.kernel: Process | None = None
        self.ready_s, self.close_s = 0.5, 0.1

    def start(self, *, finish: bool = False) -> Process:
        self.starts += 1
        self.kernel = Process(self.folder, f"{self.seed}-{self.starts}", finish=finish)
        return self.kernel

    def run(self, kills: int) -> None:
        """Kill so often (or until the deadline), go on until there have been enough jobs, then run to the end."""
        while self.kills < kills and time.monotonic() < self.deadline:
            target = self.rng.choices(("kernel", "agent", "both", "sshd")[: len(self.weights)], self.weights)[0]
            kernel = self.kernel or self.start()
            getattr(self, f"kill_{target}")(kernel)
        while len({ack["token"] for ack in lines(self.folder / "acks")}) < self.jobs_least:
            if not self.until_ready(self.kernel or self.start(), 0.1):
                raise Failed("a kernel ended by itself")
        if self.kernel is not None:
            self.close(self.kernel)
        self.finish()

    def killed(self, target: str, phase: str) -> None:
        self.kills += 1
        append(self.folder / "kills", {"target": target, "phase": phase, "at": time.time(), "start": self.starts})

    def kill_kernel(self, kernel: Process) -> None:
        phase = self.rng.choices(("opening", "running", "closing"), (6, 6, 3))[0]
        if phase == "opening" and kernel.ready_s is None:
            going = kernel.pause(self.rng.uniform(0, 1.2 * self.ready_s))
        else:
            phase = "running" if phase == "opening" else phase
            going = self.until_ready(kernel, self.rng.expovariate(2.5))
            if phase == "closing":
                os.kill(kernel.pid, signal.SIGTERM)
                kernel.pause(self.rng.uniform(0, 1.2 * self.close_s))
        if not going:
            raise Failed(f"a kernel ended by itself with status {kernel.status}")
        self.kernel = None
        if kernel.kill():
            self.killed("kernel", phase)
        elif kernel.status != 0 or phase != "closing":
            raise Failed(f"a kernel ended by itself with status {kernel.status} while {phase}")
        else:
            self.clean += 1

    def until_ready(self, kernel: Process, then_s: float) -> bool:
        kernel.wait_ready()
        assert kernel.ready_s is not None
        self.ready_s += 0.1 * (min(kernel.ready_s, 3.0) - self.ready_s)
        return kernel.pause(then_s)

    def kill_agent(self, kernel: Process) -> None:
        """Kill it; now and then the next one too, soon after; now and then close the kernel in order afterwards."""
        if not self.until_ready(kernel, self.rng.expovariate(2)):
            raise Failed(f"a kernel ended by itself with status {kernel.status}")
        self.end_agents("agent", "running")
        if self.rng.random() < 0.3:
            kernel.pause(self.rng.uniform(0, 0.3))
            self.end_agents("agent", "starting")
        if self.rng.random() < 0.2:
            kernel.pause(self.rng.uniform(0, 0.5))
            self.close(kernel)

    def end_agents(self, target: str, phase: str) -> None:
        found = agents(self.folder)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if found:
            self.killed(target, phase)

    def kill_both(self, kernel: Process) -> None:
        if not self.until_ready(kernel, self.rng.expovariate(2)):
            raise Failed(f"a kernel ended by itself with status {kernel.status}")
        gap, agent_first = self.rng.choice([0.0, 0.0, 0.005, 0.05]), self.rng.random() < 0.5
        self.kernel = None
        for agent in (agent_first, not agent_first):
            if agent:
                self.end_agents("both", "agent first" if agent_first else "kernel first")
            elif not kernel.kill():
                raise Failed(f"a kernel ended by itself with status {kernel.status}")
            time.sleep(gap)

    def kill_sshd(self, kernel: Process) -> None:
        """Kill one host's, or a part of it; it is started again, now and then only after the kernel was killed."""
        assert self.hosts is not None
        if kernel.ready_s is not None or self.rng.random() < 0.7:
            going = self.until_ready(kernel, self.rng.expovariate(2))
        else:
            going = kernel.pause(self.rng.uniform(0, 1.2 * self.ready_s))
        n, what = self.rng.randrange(HOSTS), self.rng.choice(("all", "all", "sessions", "listener"))
        if going and self.hosts.kill(n, what):
            self.killed("sshd", what)
        going = going and kernel.pause(self.rng.choice([0.0, 0.05, 0.5, 1.5]))
        if going and self.rng.random() < 0.2:
            self.kill_kernel(kernel)
        if self.hosts.listeners[n] is None:
            self.hosts.start(n)
        if not going:
            raise Failed(f"a kernel ended by itself with status {kernel.status}")

    def close(self, kernel: Process) -> None:
        """Close a kernel in order."""
        kernel.wait_ready()
        began = time.monotonic()
        os.kill(kernel.pid, signal.SIGTERM)
        kernel.pause(READY_S_MAX)
        self.close_s += 0.3 * (min(time.monotonic() - began, 1.0) - self.close_s)
        self.kernel = None
        kernel.kill()
        if kernel.status != 0:
            raise Failed(f"a kernel that was told to close ended with status {kernel.status}")
        self.clean += 1

    def finish(self) -> None:
        """Run what is left to its end; nothing may be left running then."""
        kernel = self.start(finish=True)
        if kernel.pause(self.drain_s):
            raise Failed(f"the work did not come to its end within {self.drain_s:g} s")
        self.kernel = None
        if kernel.status != 0:
            raise Failed(f"the last kernel ended by itself with status {kernel.status}")
        for name in left_running(self.folder):
            append(self.folder / "trouble", {"trouble": f"{name} runs though all has ended"})

    def clean_up(self) -> None:
        """End what is left of the campaign's own processes."""
        if self.kernel is not None:
            self.kernel.kill()
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in agents(self.folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            until = time.monotonic() + 5
            while agents(self.folder) and time.monotonic() < until:
                reap()
                time.sleep(0.02)
        if self.hosts is not None:
            self.hosts.close()
            reap()


def reap() -> None:
    """Collect children that this process was given."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def campaign(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run one; how it went besides what the comparison finds."""
    began = time.monotonic()
    deadline = began + args.minutes * 60 if args.minutes else float("inf")
    hosts = None
    if args.backend == "ssh":
        hosts = Hosts(folder / "hosts", HOSTS)
        environment = {"backend": "ssh", "managed": False, "options": hosts.options(VCPUS // HOSTS)}
        (folder / "environment.json").write_text(json.dumps(environment))
    one = Campaign(
        folder, args.seed, args.target, deadline=deadline, drain_s=args.drain, jobs_least=args.jobs_least, hosts=hosts
    )
    try:
        one.run(args.kills)
    except (Failed, NoAnswer) as e:
        append(folder / "trouble", {"trouble": f"{e}; see {folder}/kernel.log"})
    finally:
        one.clean_up()
    took = round(time.monotonic() - began, 1)
    return {
        "backend": args.backend,
        "target": args.target,
        "restarts": one.starts - 1,
        "closed_in_order": one.clean,
        "duration_s": took,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--target", choices=TARGETS, default="mixed")
    parser.add_argument("--backend", choices=("process", "ssh"), default="process")
    parser.add_argument("--seed", type=int, default=None, help="of what is submitted and when is killed (not of time)")
    parser.add_argument("--minutes", type=float, default=0, help="kill no more after so long (0: no bound)")
    parser.add_argument("--jobs-least", type=int, default=0, help="go on without kills until so many are acknowledged")
    parser.add_argument("--drain", type=float, default=300, help="seconds for the work to end after the last kill")
    parser.add_argument("--folder", type=Path, help="where to work (new; default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="keep the folder also if all is well")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="only compare what an earlier run has left")
    args = parser.parse_args()
    if args.target == "sshd" and args.backend != "ssh":
        parser.error("--target sshd needs --backend ssh")
    if args.check is not None:
        folder, result, keep = args.check, {}, True
    else:
        args.seed = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
        print(f"seed {args.seed}", file=sys.stderr, flush=True)
        if args.folder is not None:
            args.folder.mkdir(parents=True)
        folder = (args.folder or Path(tempfile.mkdtemp(prefix="ab-crash-"))).resolve()
        result, keep = {"seed": args.seed, **campaign(folder, args)}, args.keep
    figures, problems = check(folder)
    verdict = "FAILED" if problems else "ok"
    print(json.dumps({"verdict": verdict, **result, **figures, "problems": shown(problems)}, indent=1))
    if problems or keep:
        print(f"{len(problems)} problems; everything is in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
