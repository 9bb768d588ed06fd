"""Compares what a crash campaign's attempts and clients wrote down with what the kernel says in the end."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from crash_kernel import lines

SLACK_S = 0.25
"""Between the clocks of those who write times down."""
STOPPED = {"timeout", "cancelled"}
"""Failure classes of attempts that were ended by a signal."""
BY_SIGNAL = {None, 137, 143}
POLITE_CODE = 7

NEXT = {
    None: {"SUBMITTED"},
    "SUBMITTED": {"PENDING", "RUNNABLE", "FAILED"},
    "PENDING": {"RUNNABLE", "FAILED", "SUCCEEDED"},
    "RUNNABLE": {"STARTING", "FAILED"},
    "STARTING": {"RUNNING", "RUNNABLE", "FAILED"},
    "RUNNING": {"SUCCEEDED", "FAILED", "RUNNABLE"},
    "SUCCEEDED": set(),
    "FAILED": set(),
}
"""Which status may follow which."""


class Line(NamedTuple):
    """A line of `effects`: S start, B it runs, E end with a code, T told to end, K its exit is known."""

    at: int
    kind: str
    pid: int
    code: int | None


def read_effects(path: Path) -> dict[str, list[Line]]:
    """The lines of each attempt. Their order in the file is the order in which they were written, all told."""
    found: dict[str, list[Line]] = defaultdict(list)
    for at, text in enumerate(path.read_text().splitlines() if path.exists() else ()):
        kind, name, pid, _, *code = text.split()
        found[name].append(Line(at, kind, int(pid), int(code[0]) if code else None))
    return dict(found)


def intended(want: dict[str, Any], index: int, number: int) -> int:
    """The code with which an attempt exits by itself."""
    groups = want["args"][2].split("/")
    codes = groups[index % len(groups)].split(",")
    return int(codes[min(number, len(codes)) - 1])


class Check:
    """All comparisons; `problems` has what does not fit, `figures` the counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = [entry["trouble"] for entry in lines(folder / "trouble")]
        self.kills = lines(folder / "kills")
        self.figures: dict[str, Any] = {}
        self.attempts = Counter[str]()

    def run(self) -> None:
        if not (self.folder / "final.json").exists():
            self.problems.append("there is no final.json: the campaign did not come to its end")
            return
        self.final = json.loads((self.folder / "final.json").read_text())
        self.jobs: dict[str, dict[str, Any]] = {job["id"]: job for job in self.final["jobs"]}
        self.items = {item["id"]: item for job in self.jobs.values() for item in (job, *job["children"])}
        self.effects = read_effects(self.folder / "effects")
        self.wants = {want["token"]: want for want in lines(self.folder / "wants")}
        self.acks = lines(self.folder / "acks")
        self.by_token = {job["token"]: job for job in self.jobs.values()}
        self.agent_kills = [kill["at"] for kill in self.kills if kill["target"] in ("agent", "both")]
        self.check_submits()
        for job in self.jobs.values():
            if job["token"] in self.wants:
                self.check_job(job, self.wants[job["token"]])
        for name, found in self.effects.items():
            if name not in self.seen:
                self.wrong(f"{name} left lines ({found[:4]}), and the kernel knows no such attempt")
        self.check_stops()
        self.check_ended()
        self.check_events()
        self.count()

    seen: set[str]

    def wrong(self, text: str) -> None:
        self.problems.append(text)

    # -- submits ------------------------------------------------------------------------------------

    def check_submits(self) -> None:
        self.seen = set()
        ids: dict[str, set[str]] = defaultdict(set)
        for ack in self.acks:
            ids[ack["token"]].add(ack["id"])
        for token, found in ids.items():
            if len(found) > 1:
                self.wrong(f"token {token} was acknowledged as several jobs: {sorted(found)}")
            for job_id in found - self.jobs.keys():
                self.wrong(f"job {job_id} ({token}) was acknowledged and is not known")
        for token in self.wants.keys() - ids.keys():
            self.wrong(f"the submit {token} was asked for again until the end and never answered")
        for token, count in Counter(job["token"] for job in self.jobs.values()).items():
            if count > 1:
                self.wrong(f"token {token} made {count} jobs")
            if token not in self.wants:
                self.wrong(f"a job with token {token} that nobody submitted")

    # -- one job ------------------------------------------------------------------------------------

    def check_job(self, job: dict[str, Any], want: dict[str, Any]) -> None:
        children = job["children"]
        if want.get("size") != job["size"] or len(children) != (job["size"] or 0):
            self.wrong(f"job {job['id']} has size {job['size']}, asked for was {want.get('size')}")
        for index, item in enumerate(children or [job]):
            self.check_item(item, want, index)
            self.check_dependencies(item, want, index, children)
        if children:
            good = all(child["status"] == "SUCCEEDED" for child in children)
            if job["status"] != ("SUCCEEDED" if good else "FAILED"):
                self.wrong(f"array {job['id']} is {job['status']}, its children {[c['status'] for c in children]}")

    def check_item(self, item: dict[str, Any], want: dict[str, Any], index: int) -> None:
        """A single job or a child."""
        attempts, name = item["attempts"], item["id"]
        if item["status"] not in ("SUCCEEDED", "FAILED"):
            self.wrong(f"{name} is {item['status']} at the end")
        if [one["number"] for one in attempts] != list(range(1, len(attempts) + 1)):
            self.wrong(f"{name} has attempts {[one['number'] for one in attempts]}")
        before = -1
        for one in attempts:
            key = f"{name}/{one['number']}"
            self.seen.add(key)
            found = [line for line in self.effects.get(key, ()) if line.kind != "K"]
            self.check_attempt(key, one, found, intended(want, index, one["number"]), want)
            if one["class"] == "host lost":
                self.check_lost(key, one, attempts)
            if found and found[0].at < before:
                self.wrong(f"{key} began before the attempt before it had ended")
            before = max([before, *(line.at for line in found)])
        self.check_outcome(item, want)

    def check_attempt(self, key: str, one: dict[str, Any], found: list[Line], code: int, want: dict[str, Any]) -> None:
        kinds = Counter(line.kind for line in found)
        lost, stopped = one["class"] == "host lost", one["class"] in STOPPED
        self.attempts["all"] += 1
        self.attempts[one["class"] or "succeeded"] += 1
        if kinds["S"] > 1 or kinds["E"] > 1:
            self.wrong(f"{key} was started {kinds['S']} times and ended {kinds['E']} times")
        if not kinds["S"] and (found or not (lost or stopped)):
            self.wrong(f"{key} has no start line, and the kernel says {one}")
        ends = [line.code for line in found if line.kind in "ET"]
        if kinds["E"] and code not in ends:
            self.wrong(f"{key} ended with {ends}, intended was {code}")
        if ends and not lost and one["code"] not in ends and not (stopped and one["code"] in BY_SIGNAL):
            self.wrong(f"{key} ended with {ends}, and the kernel says {one}")
        if not ends and not lost and not (stopped and one["code"] in BY_SIGNAL):
            self.wrong(f"{key} has no end line, and the kernel says {one}")
        if kinds["T"] and not (stopped or lost):
            self.wrong(f"{key} was told to end, and the kernel says {one}")
        known = [line.at for line in self.effects.get(key, ()) if line.kind == "K"]
        if not known:
            self.wrong(f"{key}: no event told its exit")
        elif found and found[-1].at > known[0]:
            self.wrong(f"{key} ran on after its exit was known: {found[-1]}")
        if one["class"] == "timeout" and one["started"] is not None:
            limit = want.get("timeout")
            if limit is None or one["stopped"] - one["started"] < limit - SLACK_S:
                self.wrong(f"{key} timed out after {one['stopped'] - one['started']:.2f} s, its limit is {limit}")
        if (one["class"] is None) != (one["code"] == 0) and not stopped and not lost:
            self.wrong(f"{key}: class {one['class']} with code {one['code']}")

    def check_lost(self, key: str, one: dict[str, Any], attempts: list[dict[str, Any]]) -> None:
        """Only a killed agent loses attempts: those that it held."""
        before = [other["stopped"] for other in attempts if other["number"] == one["number"] - 1]
        first = one["started"] or (before or [self.items[key.rpartition("/")[0]]["created"]])[0]
        if not any(first - SLACK_S <= at <= one["stopped"] + SLACK_S for at in self.agent_kills):
            self.wrong(f"{key} is lost though no agent was killed meanwhile: {one}")

    def check_outcome(self, item: dict[str, Any], want: dict[str, Any]) -> None:
        """Attempts follow each other as the retry strategy says."""
        strategy, attempts, name = want["retry"], item["attempts"], item["id"]
        stopped = item["cancelled"] or item["terminated"]
        used = lost = 0
        again = False
        for n, one in enumerate(attempts):
            if n and not again:
                self.wrong(f"{name}: attempt {one['number']} should not have been made: {attempts}")
            if one["class"] == "host lost" and lost < strategy["host_lost_retries"]:
                lost += 1
                again = True
            else:
                used += 1
                again = one["class"] in ("host lost", "application exit") and used < strategy["attempts"]
        if again and not stopped:
            self.wrong(f"{name}: another attempt should have been made: {attempts}, {strategy}")
        if attempts:
            good = attempts[-1]["class"] is None
            if item["status"] != ("SUCCEEDED" if good else "FAILED"):
                self.wrong(f"{name} is {item['status']}, its last attempt {attempts[-1]}")
        elif item["status_reason"] != "Dependent Job failed" and not stopped:
            self.wrong(f"{name} is {item['status']} without an attempt: {item['status_reason']}")

    def check_dependencies(
        self, item: dict[str, Any], want: dict[str, Any], index: int, children: list[dict[str, Any]]
    ) -> None:
        """What it depends on had SUCCEEDED, and written its last line, before its first attempt began."""
        needed: list[dict[str, Any]] = []
        for kind, token in want["deps"]:
            if kind == "sequential":
                needed += children[index - 1 : index] if index else []
                continue
            other = self.by_token.get(token)
            if other is not None:
                needed += [other["children"][index]] if kind == "n_to_n" else (other["children"] or [other])
        failed = [other["id"] for other in needed if other["status"] != "SUCCEEDED"]
        if item["status_reason"] == "Dependent Job failed" and not item["attempts"] and not failed:
            self.wrong(f"{item['id']} failed for a dependency, and none has failed")
        if not item["attempts"]:
            return
        if failed:
            self.wrong(f"{item['id']} ran though {failed} had not succeeded")
        ran = [line.at for line in self.of(item) if line.kind != "K"]
        last = max((line.at for other in needed for line in self.of(other) if line.kind != "K"), default=-1)
        if ran and ran[0] < last:
            self.wrong(f"{item['id']} began before what it depends on had ended")

    def of(self, item: dict[str, Any]) -> list[Line]:
        return [line for one in item["attempts"] for line in self.effects.get(f"{item['id']}/{one['number']}", ())]

    # -- the rest -----------------------------------------------------------------------------------

    def check_stops(self) -> None:
        """What an acknowledged stop had done is done at the end; a terminate of what had not ended has done something.

        A cancel leaves alone what runs, and a timeout that came before a terminate wins (contract CT-2, CT-8).
        """
        for stop in lines(self.folder / "stops"):
            if stop["phase"] == "want":
                continue
            item = self.items.get(stop["id"])
            if item is None:
                self.wrong(f"{stop['id']} was stopped and is not known")
                continue
            flag = item["terminated" if stop["how"] == "terminate" else "cancelled"]
            must = stop["how"] == "terminate" or item["size"] is not None
            if stop["flag"] and not flag:
                self.wrong(f"{stop['how']} of {stop['id']} was acknowledged and is not known: {item}")
            elif must and not stop["flag"] and not stop["ended"] and not timed_out(item):
                self.wrong(f"{stop['how']} of {stop['id']} was acknowledged and has done nothing: {item}")
            elif stop["how"] == "terminate" and stop["flag"] and not stop["ended"] and item["status"] != "FAILED":
                self.wrong(f"{stop['id']} was terminated and is {item['status']}")

    def check_ended(self) -> None:
        """What a kernel said of a job that had ended is what the last kernel says."""
        for said in lines(self.folder / "ended"):
            now = self.jobs.get(said["id"])
            if now != said:
                self.wrong(f"job {said['id']} had ended as {said}, now it is {now}")

    def check_events(self) -> None:
        """The stream, as it was read piece by piece, is complete and in order, and tells all statuses."""
        read, all_of_them = lines(self.folder / "events"), self.final["events"]
        if read != all_of_them:
            self.wrong(f"events: {difference(read, all_of_them)}")
        ids = [(event[0], event[1]) for event in read]
        if any(b[1] <= a[1] or b[0] < a[0] for a, b in pairwise(ids)):
            self.wrong("events: not in order")
        status: dict[str, str] = {}
        ended: dict[str, list[list[Any]]] = defaultdict(list)
        for event in read:
            for name, code in changed(event):
                if event[3] == "SUBMITTED":
                    status |= {child["id"]: "SUBMITTED" for child in self.jobs.get(name, {}).get("children", ())}
                if event[3] not in NEXT[status.get(name)]:
                    self.wrong(f"events: {name} is {event[3]} after {status.get(name)}")
                status[name] = event[3]
                if event[6] is not None:
                    ended[name].append([event[5], code])
        for name, item in self.items.items():
            if status.get(name) != item["status"]:
                self.wrong(f"events: {name} is {status.get(name)}, and the kernel says {item['status']}")
            attempts = [[one["number"], one["code"]] for one in item["attempts"]]
            if ended.get(name, []) != attempts:
                self.wrong(f"events: {name} has attempts {ended.get(name)}, and the kernel says {attempts}")

    def count(self) -> None:
        stops = [stop for stop in lines(self.folder / "stops") if stop["phase"] == "ack"]
        self.figures = {
            "kills": dict(Counter(kill["target"] for kill in self.kills)),
            "kills_by_phase": dict(Counter(f"{kill['target']} {kill['phase']}" for kill in self.kills)),
            "epochs": self.final["epoch"],
            "jobs": len(self.jobs),
            "children": sum(len(job["children"]) for job in self.jobs.values()),
            "attempts": self.attempts["all"],
            "attempts_by_outcome": {k: n for k, n in sorted(self.attempts.items()) if k != "all"},
            "lost": self.attempts["host lost"],
            "submits_answered_twice_or_more": len(self.acks) - len(self.by_token),
            "stops": len(stops),
            "events": len(self.final["events"]),
            "ended_jobs_compared": len(lines(self.folder / "ended")),
            "environment_invalid": len(lines(self.folder / "invalid")),
        }


def timed_out(item: dict[str, Any]) -> bool:
    """Whether the last attempt of a single job or child ended at its timeout."""
    return bool(item["attempts"]) and item["attempts"][-1]["class"] == "timeout"


def changed(event: list[Any]) -> Iterator[tuple[str, int | None]]:
    """Whose status an event changes, with the exit code where there is one."""
    _, _, job_id, _, indexes, _, codes = event
    if indexes is None:
        yield job_id, None if codes is None else codes[0]
        return
    for n, index in enumerate(indexes):
        yield f"{job_id}:{index}", None if codes is None else codes[n]


def difference(read: list[Any], told: list[Any]) -> str:
    """Where two streams part."""
    for n, (a, b) in enumerate(zip(read, told, strict=False)):
        if a != b:
            return f"number {n} was read as {a}, and is {b}"
    return f"{len(read)} were read, there are {len(told)}"


def check(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The figures, and all that is wrong."""
    found = Check(folder)
    found.run()
    return found.figures, found.problems


def shown(problems: Iterable[str]) -> list[str]:
    """The first ones, at a length that can be read."""
    return [text if len(text) < 600 else f"{text[:600]}..." for text in list(problems)[:20]]
