"""The crash campaign, a few kills of each kind; and that it notices each thing that it looks for."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(700)
CAMPAIGNS = Path(__file__).resolve().parents[2] / "campaigns"


def run(*arguments: object, program: str | None = None) -> tuple[int, dict[str, Any], str]:
    """The exit status, what it printed, and what it said."""
    command = [sys.executable, *(("-c", program) if program else (str(CAMPAIGNS / "crash.py"),)), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(CAMPAIGNS)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a campaign has left in which all was well."""
    folder = tmp_path_factory.mktemp("campaign") / "left"
    code, result, said = run("--kills", 8, "--seed", 3, "--jobs-least", 80, "--folder", folder, "--keep")
    assert (code, result["verdict"], result["problems"]) == (0, "ok", []), said
    assert result["seed"] == 3
    assert "seed 3" in said
    assert sum(result["kills"].values()) >= 8
    assert result["jobs"] >= 80
    return folder


def test_over_ssh_nothing_is_lost_but_by_kills_of_agents(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("over") / "ssh"
    arguments = ("--backend", "ssh", "--kills", 10, "--seed", 5, "--jobs-least", 40, "--folder", folder)
    code, result, said = run(*arguments)
    assert (code, result["verdict"], result["problems"]) == (0, "ok", []), said
    assert set(result["kills"]) >= {"kernel", "sshd"}
    assert result["environment_invalid"] == 0
    assert not folder.exists()


@pytest.fixture
def copy(left: Path, tmp_path: Path) -> Path:
    """The records of it, to change."""
    folder = tmp_path / "copy"
    shutil.copytree(left, folder, ignore=shutil.ignore_patterns("j.db*", "run"))
    return folder


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], tuple[dict[str, Any], list[str]]]:
    monkeypatch.syspath_prepend(str(CAMPAIGNS))
    found: Callable[[Path], tuple[dict[str, Any], list[str]]] = importlib.import_module("crash_check").check
    return found


class Records:
    """The records of a campaign."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.final = json.loads((folder / "final.json").read_text())
        self.effects = (folder / "effects").read_text().splitlines()

    def write(self) -> None:
        (self.folder / "final.json").write_text(json.dumps(self.final))
        (self.folder / "effects").write_text("".join(f"{line}\n" for line in self.effects))

    def lines(self, name: str) -> list[Any]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def put(self, name: str, entries: list[Any]) -> None:
        (self.folder / name).write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))

    def items(self) -> list[dict[str, Any]]:
        return [item for job in self.final["jobs"] for item in (job["children"] or [job])]

    def ended(self, attempts: int = 1) -> dict[str, Any]:
        """An item whose attempts (so many at least) have all left their lines."""
        for item in self.items():
            if len(item["attempts"]) >= attempts and all(
                one["class"] in (None, "application exit")
                and any(line.startswith(f"E {item['id']}/{one['number']} ") for line in self.effects)
                for one in item["attempts"]
            ):
                return item
        raise AssertionError(f"no item with {attempts} attempts that left their lines")

    def find(self, kind: str, key: str) -> int:
        return next(n for n, line in enumerate(self.effects) if line.startswith(f"{kind} {key} "))


def job_forgotten(records: Records) -> str:
    records.final["jobs"].pop()
    return "was acknowledged and is not known"


def job_unfinished(records: Records) -> str:
    records.ended()["status"] = "RUNNABLE"
    return "is RUNNABLE at the end"


def started_twice(records: Records) -> str:
    at = records.find("S", f"{records.ended()['id']}/1")
    records.effects.insert(at, records.effects[at])
    return "was started 2 times"


def ran_on(records: Records) -> str:
    key = f"{records.ended()['id']}/1"
    records.effects.insert(records.find("K", key) + 1, f"B {key} 1 0.0 ")
    return "ran on after its exit was known"


def overlap(records: Records) -> str:
    item = records.ended(2)
    second = records.effects.pop(records.find("S", f"{item['id']}/2"))
    records.effects.insert(records.find("S", f"{item['id']}/1") + 1, second)
    return "began before the attempt before it had ended"


def another_code(records: Records) -> str:
    records.ended()["attempts"][0]["code"] = 77
    return "and the kernel says"


def no_start_line(records: Records) -> str:
    del records.effects[records.find("S", f"{records.ended()['id']}/1")]
    return "has no start line"


def no_end_line(records: Records) -> str:
    del records.effects[records.find("E", f"{records.ended()['id']}/1")]
    return "has no end line"


def no_exit_event(records: Records) -> str:
    del records.effects[records.find("K", f"{records.ended()['id']}/1")]
    return "no event told its exit"


def unknown_attempt(records: Records) -> str:
    records.effects.append("S 00000000-0000-0000-0000-000000000000/1 1 0.0 ")
    return "the kernel knows no such attempt"


def number_left_out(records: Records) -> str:
    records.ended()["attempts"][0]["number"] = 2
    return "has attempts [2"


def lost_for_no_reason(records: Records) -> str:
    records.ended()["attempts"][0]["class"] = "host lost"
    records.put("kills", [kill for kill in records.lines("kills") if kill["target"] == "kernel"])
    return "is lost though no agent was killed"


def tried_too_often(records: Records) -> str:
    records.put(
        "wants", [{**want, "retry": {"attempts": 1, "host_lost_retries": 0}} for want in records.lines("wants")]
    )
    return "should not have been made"


def tried_too_little(records: Records) -> str:
    wants = [{**want, "retry": {"attempts": 10, "host_lost_retries": 9}} for want in records.lines("wants")]
    records.put("wants", wants)
    return "another attempt should have been made"


def ended_otherwise(records: Records) -> str:
    ended = records.lines("ended")
    ended[0]["status_reason"] = "another one"
    records.put("ended", ended)
    return "had ended as"


def two_jobs_of_one_token(records: Records) -> str:
    records.final["jobs"].append(dict(records.final["jobs"][0], id="another"))
    return "made 2 jobs"


def one_token_acknowledged_as_two_jobs(records: Records) -> str:
    acks = records.lines("acks")
    records.put("acks", [*acks, {**acks[0], "id": acks[1]["id"]}])
    return "was acknowledged as several jobs"


def never_answered(records: Records) -> str:
    first = records.lines("acks")[0]["token"]
    records.put("acks", [ack for ack in records.lines("acks") if ack["token"] != first])
    return "never answered"


def event_missing(records: Records) -> str:
    events = records.lines("events")
    records.put("events", events[:5] + events[6:])
    return "events: number 5 was read as"


def event_twice(records: Records) -> str:
    events = records.lines("events")
    records.put("events", events[:6] + events[5:])
    return "events: not in order"


def event_that_cannot_be(records: Records) -> str:
    events = records.lines("events")
    (n, found) = next((n, event) for n, event in enumerate(events) if event[3] == "RUNNING")
    events[n] = [*found[:3], "SUBMITTED", *found[4:]]
    records.put("events", events)
    return "is SUBMITTED after STARTING"


def stop_forgotten(records: Records) -> str:
    item = records.ended()
    records.put("stops", [{"phase": "ack", "id": item["id"], "how": "terminate", "flag": True, "ended": False}])
    return "was acknowledged and is not known"


def stop_without_effect(records: Records) -> str:
    item = records.ended()
    records.put("stops", [{"phase": "ack", "id": item["id"], "how": "terminate", "flag": False, "ended": False}])
    return "was acknowledged and has done nothing"


def dependency_ignored(records: Records) -> str:
    first, second = [job for job in records.final["jobs"] if job["attempts"]][:2]
    wants = {want["token"]: want for want in records.lines("wants")}
    wants[first["token"]]["deps"] = [["plain", second["token"]]]
    second["status"] = "FAILED"
    records.put("wants", list(wants.values()))
    return "had not succeeded"


def array_that_is_not_its_children(records: Records) -> str:
    job = next(job for job in records.final["jobs"] if job["children"])
    job["status"] = "FAILED" if job["status"] == "SUCCEEDED" else "SUCCEEDED"
    return "its children"


def trouble_of_a_kernel(records: Records) -> str:
    records.put("trouble", [{"trouble": "something was odd"}])
    return "something was odd"


CHANGES = [
    job_forgotten, job_unfinished, started_twice, ran_on, overlap, another_code, no_start_line, no_end_line,
    no_exit_event, unknown_attempt, number_left_out, lost_for_no_reason, tried_too_often, tried_too_little,
    ended_otherwise, two_jobs_of_one_token, one_token_acknowledged_as_two_jobs, never_answered, event_missing,
    event_twice, event_that_cannot_be, stop_forgotten, stop_without_effect, dependency_ignored,
    array_that_is_not_its_children, trouble_of_a_kernel,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_each_thing_that_is_wrong_is_noticed(
    copy: Path, check: Callable[[Path], tuple[dict[str, Any], list[str]]], change: Callable[[Records], str]
) -> None:
    assert check(copy)[1] == []
    records = Records(copy)
    words = change(records)
    records.write()
    problems = check(copy)[1]
    assert [problem for problem in problems if words in problem], problems


def test_what_is_wrong_is_the_exit_status(copy: Path) -> None:
    assert run("--check", copy)[0] == 0
    (copy / "final.json").unlink()
    code, result, _ = run("--check", copy)
    assert (code, result["verdict"]) == (1, "FAILED")
    assert "did not come to its end" in result["problems"][0]


WRONG = """
import sys
import crash, crash_kernel
from anybatch.backends.process import ProcessBackend

class Wrong(ProcessBackend):
    async def start(self, context, known):
        for launch in known:
            context.lost(launch.job_id, launch.number, launch.indexes, reason="no idea")
        await super().start(context, [])

crash_kernel.ProcessBackend = Wrong
sys.exit(crash.main())
"""


def test_a_backend_that_gives_up_what_runs_is_noticed(tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path = tmp_path_factory.mktemp("up")
    for seed in range(1, 6):  # until a kill has met something that runs
        folder = tmp_path / str(seed)  # short: paths of sockets are limited
        arguments = ("--kills", 5, "--target", "kernel", "--seed", seed, "--jobs-least", 40, "--folder", folder)
        code, result, said = run(*arguments, program=WRONG)
        if code:
            break
    assert (code, result["verdict"]) == (1, "FAILED")
    assert any("is lost though no agent was killed" in problem for problem in result["problems"]), result["problems"]
    assert f"everything is in {folder}" in said
    assert (folder / "final.json").exists()


def test_a_kernel_that_dies_by_itself_is_noticed(tmp_path: Path) -> None:
    program = "import sys, crash\ncrash.live = lambda *_, **__: sys.exit(3)\nsys.exit(crash.main())"
    code, result, _ = run("--kills", 3, "--seed", 1, "--folder", tmp_path / "f", program=program)
    assert code == 1
    assert "a kernel ended by itself" in result["problems"][0]


def test_what_is_left_running_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CAMPAIGNS))
    left_running = importlib.import_module("crash").left_running
    environment = os.environ | {"ANYBATCH_ATTEMPT": "ab-x", "EFFECTS": str(tmp_path / "effects")}
    assert left_running(tmp_path) == []
    with subprocess.Popen(["sleep", "60"], env=environment) as process:
        try:
            found = left_running(tmp_path)
        finally:
            process.kill()
    assert [f"(process {process.pid})" in one for one in found] == [True]
