"""The crash campaign's kernel: works on one journal until it is killed, writing down all that it has been told.

`crash.py` runs this in a child process, again and again on the same folder. What it writes there, a line at a time:

    wants     a submit that is about to be asked for, with its client token
    acks      a submit that was answered: token and job id, synced after the reply
    stops     a cancel or terminate, before ("want") and after ("ack") the reply
    events    every event of the stream, each once: a later kernel goes on after the last one here
    effects   "K <attempt>": the exit of the attempt is known; between the lines that attempts write themselves
    ended     what was said of a job that has ended, compared at later starts
    trouble   what must not be
    environment.json   where the work runs: name of the backend, and the environment's settings (crash.py writes it)
    final.json   everything, once all work is done
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anybatch
from anybatch import JobDetail, JobEvent, Kernel
from anybatch.backends.process import ProcessBackend
from anybatch.backends.ssh import SshBackend

JOURNAL = "j.db"
VCPUS = 12
UNFINISHED_MOST = 40
"""Jobs under way; nothing is submitted above it."""
CHECKED_AT_START = 150
"""Ended jobs that each start compares with what was said of them before."""

SCRIPT = r"""#!/bin/sh
# MODE PAUSE CODES: leave lines in $EFFECTS, and exit with the code for this index and attempt.
# CODES: "0/3,0" - even indexes exit with 0, odd ones with 3 at the first attempt and with 0 at all later ones.
say() {
    read -r up _ </proc/uptime
    echo "$1 $AWS_BATCH_JOB_ID/$AWS_BATCH_JOB_ATTEMPT $$ $up $2" >>"$EFFECTS"
}
mode=$1 pause=$2
if [ "$mode" = beats ]; then
    trap '' TERM
    while :; do say B; sleep 0.04; done
fi
say S
i=${AWS_BATCH_JOB_ARRAY_INDEX:-0} n=$AWS_BATCH_JOB_ATTEMPT
IFS=/; set -- $3; shift $((i % $#))
IFS=,; set -- $1; [ "$n" -gt $# ] && n=$#; shift $((n - 1))
code=$1; unset IFS
case $mode in
plain) sleep "$pause" ;;
quick) ;;
polite) trap 'say T 7; exit 7' TERM; sleep "$pause" & wait $! ;;
tree) setsid "$0" beats & sleep "$pause" ;;
beating) for _ in 1 2 3 4 5 6 7 8; do say B; sleep 0.05; done ;;
esac
say E "$code"
exit "$code"
"""


def append(path: Path, *entries: Any, sync: bool = False) -> None:
    """Add lines in one write."""
    text = "".join(f"{entry if isinstance(entry, str) else json.dumps(entry)}\n" for entry in entries)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, text.encode())
        if sync:
            os.fdatasync(fd)
    finally:
        os.close(fd)


def lines(path: Path) -> list[Any]:
    """The JSON lines of a file; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def plain(detail: JobDetail) -> dict[str, Any]:
    """What is compared of a job or child."""
    return {
        "id": detail.id,
        "token": detail.client_token,
        "status": str(detail.status),
        "status_reason": detail.status_reason,
        "exit_code": detail.exit_code,
        "size": detail.array_size,
        "cancelled": detail.is_cancelled,
        "terminated": detail.is_terminated,
        "created": detail.created_at.timestamp(),
        "attempts": [
            {
                "number": one.number,
                "code": one.exit_code,
                "class": None if one.failure_class is None else str(one.failure_class),
                "reason": one.reason,
                "status_reason": one.status_reason,
                "started": None if one.started_at is None else one.started_at.timestamp(),
                "stopped": None if one.stopped_at is None else one.stopped_at.timestamp(),
            }
            for one in detail.attempts
        ],
    }


async def whole(kernel: Kernel, job_id: str) -> dict[str, Any]:
    """A job with its children."""
    found = plain(await kernel.describe_job(job_id))
    found["children"] = [plain(await kernel.describe_job(f"{job_id}:{i}")) for i in range(found["size"] or 0)]
    return found


def event_line(event: JobEvent) -> list[Any]:
    """An event, as it is kept."""
    return [
        *event.id,
        event.job_id,
        str(event.status),
        None if event.indexes is None else list(event.indexes),
        event.attempt,
        None if event.exit_codes is None else list(event.exit_codes),
    ]


def last_line(path: Path) -> Any:
    """The last JSON line; None if there is none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (256 << 10)))
        found = file.read().splitlines()
    return json.loads(found[-1]) if found else None


class Work:
    """What to submit: a mix, from a random generator."""

    def __init__(self, rng: random.Random, prefix: str) -> None:
        self.rng = rng
        self.prefix = prefix
        self.count = 0

    def _spec(self, mode: str, pause: float, codes: str, **more: Any) -> dict[str, Any]:
        self.count += 1
        retry = {"attempts": self.rng.choice([1, 1, 2, 3, 4]), "host_lost_retries": self.rng.choice([0, 0, 1, 3])}
        args = [mode, f"{pause:.2f}", codes]
        return {"token": f"{self.prefix}-{self.count}", "args": args, "retry": retry, "deps": [], **more}

    def next(self) -> list[list[dict[str, Any]]]:
        """Some jobs in rounds: those of a round are submitted at once, and depend on earlier rounds only."""
        rng = self.rng
        codes = rng.choice(["0", "0", "0/3,0", "5", "1,2,0", "0/0/0/9,8,0", "0/1"])
        pause = rng.choice([0.0, 0.02, 0.1, 0.4, 1.0])
        match rng.randrange(9):
            case 0 | 1:
                return [[self._spec(rng.choice(["plain", "quick"]), pause, codes) for _ in range(rng.randint(1, 6))]]
            case 2:
                return [[self._spec("beating", 0, codes, size=rng.randint(2, 6))]]
            case 3:
                return [[self._spec(rng.choice(["plain", "quick"]), pause, codes, size=rng.randint(2, 30))]]
            case 4:
                size = rng.randint(2, 8)
                first = self._spec("plain", pause / 4, rng.choice(["0", "3,0", codes]), size=size)
                then = self._spec("quick", 0, codes, size=size, deps=[["n_to_n", first["token"]]])
                last = self._spec("plain", pause, "0", deps=[["plain", then["token"]]])
                return [[first], [then], [last]]
            case 5:
                deps = [["sequential", None]]
                return [[self._spec("quick", 0, rng.choice(["0", "3,0", codes]), size=rng.randint(2, 8), deps=deps)]]
            case 6:
                mode = rng.choice(["plain", "polite"])
                return [[self._spec(mode, 60, "0", timeout=rng.choice([0.3, 0.6, 1.0])) for _ in range(2)]]
            case 7:
                return [[self._spec("tree", 0.1 + pause, codes)]]
            case _:
                return [[self._spec("polite", 0.3 + 2 * pause, codes)]]


class Life:
    """One life of the kernel."""

    def __init__(self, folder: Path, seed: str, *, finish: bool, tell: Callable[[str], None]) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.finish = finish
        self.tell = tell
        self.ids: dict[str, str] = {entry["token"]: entry["id"] for entry in lines(folder / "acks")}
        self.unfinished: set[str] = set()
        self.over = asyncio.Event()
        self.work = Work(self.rng, seed)

    async def run(self) -> None:
        """Until SIGTERM; or, to finish, until all is done."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.over.set)
        journal, backends = self.folder / JOURNAL, {"process": ProcessBackend, "ssh": SshBackend}
        async with Kernel(journal, backends=backends, runtime_dir=self.folder / "run") as kernel:
            self.kernel = kernel
            await self.look_back()
            tasks = [asyncio.create_task(self.follow())]
            try:
                await self.resources()
                self.tell("ready")
                others = (self.submit_again(), self.operate(), *(() if self.finish else (self.submit(), self.stop())))
                tasks += map(asyncio.create_task, others)
                for task in tasks:
                    task.add_done_callback(self.task_ended)
                await self.over.wait()
                if self.finish and not any(task.done() and task.exception() for task in tasks):
                    await self.write_final()
            finally:
                for task in tasks:
                    task.cancel()
                done = await asyncio.gather(*tasks, return_exceptions=True)
            for one in done:
                if isinstance(one, BaseException) and not isinstance(one, asyncio.CancelledError):
                    raise one

    def task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.over.set()

    async def resources(self) -> None:
        kernel = self.kernel
        path = self.folder / "environment.json"
        given = json.loads(path.read_text()) if path.exists() else {"backend": "process", "max_vcpus": VCPUS}
        await kernel.create_compute_environment("local", **given, exist_ok=True)
        await self.heal()
        await kernel.create_job_queue("q", priority=1, compute_environments=["local"], exist_ok=True)

    async def heal(self) -> None:
        """What an operator does with an environment that does not work."""
        while not self.over.is_set():
            (found,) = await self.kernel.describe_compute_environments(["local"])
            if found.status is anybatch.ResourceStatus.VALID:
                return
            append(self.folder / "invalid", {"status": str(found.status), "reason": found.status_reason})
            await self.kernel.update_compute_environment("local", state="ENABLED")
            await asyncio.sleep(0.05)

    async def operate(self) -> None:
        while True:
            await self.heal()
            await asyncio.sleep(0.2)

    # -- comparing with earlier lives ---------------------------------------------------------------

    async def look_back(self) -> None:
        """What had ended is what it was; every job that was acknowledged is there."""
        said = {entry["id"]: entry for entry in lines(self.folder / "ended")}
        there = {job.id: job.status async for job in self.kernel.list_jobs()}
        for token, job_id in self.ids.items():
            if job_id not in there:
                self.trouble(f"job {job_id} ({token}) was acknowledged and is not there after a restart")
        self.unfinished = {job_id for job_id, status in there.items() if not status.is_terminal}
        for job_id in self.rng.sample(sorted(said), min(CHECKED_AT_START, len(said))):
            if job_id in there and (now := await whole(self.kernel, job_id)) != said[job_id]:
                self.trouble(f"job {job_id} had ended as {said[job_id]}, now it is {now}")
        new = [job_id for job_id, status in there.items() if status.is_terminal and job_id not in said]
        append(self.folder / "ended", *[await whole(self.kernel, job_id) for job_id in new[:CHECKED_AT_START]])

    def trouble(self, text: str) -> None:
        append(self.folder / "trouble", {"trouble": text})

    # -- following ----------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Write down each event once, and which exits it makes known."""
        path, last = self.folder / "events", last_line(self.folder / "events")
        after = None if last is None else (last[0], last[1])
        async with self.kernel.events(after=after) as events:
            async for event in events:
                # The exit is known before the event is written down: the other way round, a kill loses the note.
                append(self.folder / "effects", *known(event))
                append(path, event_line(event))
                if event.indexes is None and event.status.is_terminal:
                    self.unfinished.discard(event.job_id)
                    if self.finish and not self.unfinished:
                        self.over.set()
        if not self.over.is_set():
            raise RuntimeError("the event stream has ended")

    # -- submitting ---------------------------------------------------------------------------------

    async def submit_again(self) -> None:
        """Ask again for what has had no answer, and for some of what has: a token makes one job."""
        wants = {want["token"]: want for want in lines(self.folder / "wants")}
        for want in wants.values():
            if want["token"] not in self.ids:
                await self.ask(want)
        asked = sorted(self.ids.keys() & wants.keys())  # meanwhile there are new ones
        for token in self.rng.sample(asked, min(3, len(asked))):
            await self.ask(wants[token])
        if self.finish and not self.unfinished:
            self.over.set()

    async def submit(self) -> None:
        while True:
            if len(self.unfinished) < UNFINISHED_MOST:
                for some in self.work.next():
                    append(self.folder / "wants", *some)
                    await asyncio.gather(*map(self.ask, some))
            await asyncio.sleep(self.rng.random() * 0.03)

    async def ask(self, want: dict[str, Any]) -> None:
        depends_on: list[Any] = []
        for kind, token in want["deps"]:
            if kind == "sequential":
                depends_on.append(anybatch.SEQUENTIAL)
            else:
                depends_on.append(self.ids[token] if kind == "plain" else anybatch.n_to_n(self.ids[token]))
        job = await self.kernel.submit_job(
            want["token"],
            queue="q",
            script=SCRIPT,
            command=want["args"],
            environment={"EFFECTS": str(self.folder / "effects")},
            array_size=want.get("size"),
            depends_on=depends_on,
            retry=want["retry"],
            timeout=want.get("timeout"),
            client_token=want["token"],
        )
        append(self.folder / "acks", {"token": want["token"], "id": job.id}, sync=True)
        self.ids[want["token"]] = job.id
        if not (await job.describe()).status.is_terminal:
            self.unfinished.add(job.id)

    async def stop(self) -> None:
        """Now and then, cancel or terminate something."""
        rng = self.rng
        while True:
            await asyncio.sleep(rng.random() * 0.5)
            if not self.unfinished:
                continue
            detail = await self.kernel.describe_job(rng.choice(sorted(self.unfinished)))
            target = detail.id
            if detail.array_size is not None and rng.random() < 0.5:
                target = f"{target}:{rng.randrange(detail.array_size)}"
            how = rng.choice(["cancel", "terminate", "terminate"])
            append(self.folder / "stops", {"phase": "want", "id": target, "how": how})
            await (self.kernel.cancel_job if how == "cancel" else self.kernel.terminate_job)(target, f"campaign: {how}")
            after = await self.kernel.describe_job(target)
            flag = after.is_cancelled if how == "cancel" else after.is_terminated
            entry = {"phase": "ack", "id": target, "how": how, "flag": flag, "ended": after.status.is_terminal}
            append(self.folder / "stops", entry, sync=True)

    # -- the end ------------------------------------------------------------------------------------

    async def write_final(self) -> None:
        kernel, last = self.kernel, await self.kernel.last_event_id()
        events = []
        async with kernel.events() as stream:
            async for event in stream:
                events.append(event_line(event))
                if event.id[1] >= self.newest_recorded():
                    break
        jobs = [await whole(kernel, job.id) async for job in kernel.list_jobs()]
        final = {"kernel_id": kernel.id, "epoch": last.epoch, "jobs": jobs, "events": events}
        new = self.folder / "final.new"
        new.write_text(json.dumps(final))
        new.rename(self.folder / "final.json")

    def newest_recorded(self) -> int:
        last = last_line(self.folder / "events")
        return 0 if last is None else int(last[1])


def known(event: JobEvent) -> Iterable[str]:
    """A line for each attempt whose exit this event tells."""
    if event.attempt is None or event.exit_codes is None:
        return []
    ids = [one.job_id for one in event.expand()]
    return [f"K {job_id}/{event.attempt} {os.getpid()} 0 " for job_id in ids]


def live(folder: Path, seed: str, *, finish: bool, tell: Callable[[str], None]) -> None:
    """Live until told to end (SIGTERM), killed, or finished."""

    async def go() -> None:
        await Life(folder, seed, finish=finish, tell=tell).run()

    asyncio.run(go())
