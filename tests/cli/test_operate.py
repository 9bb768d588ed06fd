"""The commands that talk to a running kernel, or read the journal of one that has ended."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Quick, Serve

COMMANDS = [
    "run", "check", "serve", "submit", "ps", "describe", "logs", "events", "explain", "cancel", "terminate", "rerun",
    "wait", "queues", "environments", "drain", "top", "completion", "plugins",
]  # fmt: skip
UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
CHILDREN = ["sh", "-c", "echo child $AWS_BATCH_JOB_ARRAY_INDEX; test $AWS_BATCH_JOB_ARRAY_INDEX != 2"]


def waits_for(flag: Path) -> list[str]:
    """A command that goes on until this file is there."""
    return ["sh", "-c", f"echo begun; while [ ! -e '{flag}' ]; do sleep 0.05; done; echo done"]


def until(condition: Callable[[], object], what: str = "") -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what or "it never came to that"
        time.sleep(0.05)


# -- a running kernel -------------------------------------------------------------------------------


ODD_CHILDREN = (
    "sh", "-c",
    "echo child $AWS_BATCH_JOB_ARRAY_INDEX of $AWS_BATCH_JOB_ARRAY_SIZE; test $AWS_BATCH_JOB_ARRAY_INDEX != 30",
)  # fmt: skip


def test_an_array_from_submit_to_the_log_of_the_child_that_failed(served: Quick) -> None:
    submitted = served("submit", "-a", "4", "--name", "arr", "--", *CHILDREN).expect(0)
    job = submitted.out.strip()
    assert re.fullmatch(r"[0-9a-f-]{36}", job)
    assert served("wait", "arr").expect(1).out == f"arr {job}: FAILED: Array Child Job failed\n"

    (row,) = [line for line in served("ps").expect(0).out.splitlines() if job in line]
    assert re.search(rf"{job}  arr  +default  FAILED  +3/4 \(1 failed\)  \d\d:\d\d:\d\d", row)
    assert [line.split()[3] for line in served("ps", "arr").out.splitlines()[1:]] == [
        "SUCCEEDED", "SUCCEEDED", "FAILED", "SUCCEEDED"
    ]  # fmt: skip
    told = served("describe", "arr").expect(0).out
    assert "failed:       children 2: exit code 1\n" in told
    assert f"logs:         anybatch logs {job}:2\n" in told
    assert served("explain", "arr").out.splitlines() == [
        "FAILED   its 4 children have ended: 3 SUCCEEDED, 1 FAILED",
        "failed:  children 2: exit code 1",
        f"logs:    anybatch logs {job}:2",
    ]
    for name in ("arr:2", f"{job}:2"):
        assert served("logs", name).expect(0).out == "child 2\n"
    events = served("events", "--job", "arr").expect(0).out.splitlines()
    assert [line.split()[2] for line in (events[0], events[-1])] == ["SUBMITTED", "FAILED"]


def test_json_has_stable_keys_and_times_in_utc(served: Quick) -> None:
    made = served(
        "submit", "--json", "--name", "one", "--tag", "a=b", "--env", "X=1", "--", "sh", "-c", "echo $X"
    ).expect(0)
    assert set(made.json) == {"id", "name", "array_size", "warnings"}
    (ended,) = served("wait", "--json", "one").expect(0).json
    assert (ended["status"], ended["exit_code"], ended["tags"]) == ("SUCCEEDED", 0, {"a": "b"})
    assert UTC.fullmatch(ended["created_at"])
    (listed,) = served("ps", "--json", "--name", "one").expect(0).json
    assert {"id", "name", "queue", "status", "created_at", "array_size"} <= set(listed)
    assert UTC.fullmatch(listed["stopped_at"])
    (described,) = served("describe", "--json", "one").expect(0).json
    assert described == ended
    assert served("explain", "--json", "one").json[0]["code"] == "SUCCEEDED"
    assert served("queues", "--json").json[0]["name"] == "default"
    assert served("environments", "--json").json[0]["hosts"][0]["vcpus"] == 2
    assert json.loads(served("logs", "--json", "one").out) == {"job_id": "one", "line": "1"}
    lines = [json.loads(line) for line in served("events", "--json").out.splitlines()]
    assert [line["status"] for line in lines if line["job_id"] == ended["id"]] == [
        "SUBMITTED", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED"
    ]  # fmt: skip
    assert all(UTC.fullmatch(line["at"]) and len(line["id"]) == 2 for line in lines)


def test_a_log_and_events_are_followed(served: Quick, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with served.running("events", "--follow", "--json") as events, served.running("logs", "-f", "long") as too_early:
        assert too_early.wait(60) == 2
        job = served("submit", "--name", "long", "--", *waits_for(go)).expect(0).out.strip()
        with served.running("logs", "-f", "long") as log:
            assert log.stdout is not None
            assert log.stdout.readline() == "begun\n"
            assert served("logs", "long").out == "begun\n"
            go.touch()
            assert log.communicate(timeout=60)[0] == "done\n"
            assert log.returncode == 0
        assert served("wait", job).status == 0
        assert events.stdout is not None
        seen = []
        while "SUCCEEDED" not in seen:
            seen.append(json.loads(events.stdout.readline())["status"])
        events.send_signal(signal.SIGINT)
        assert events.wait(60) == 130


def test_jobs_are_cancelled_and_terminated_with_a_reason(served: Quick, tmp_path: Path) -> None:
    served("submit", "-a", "5", "--name", "five", "--", *waits_for(tmp_path / "never")).expect(0)
    assert served("cancel", "five:4", "--reason", "bad input").out.startswith("cancelled ")
    assert served("describe", "--json", "five:4").json[0]["status_reason"] == "bad input"
    (job,) = served("terminate", "--json", "--wait", "five").expect(0).json
    assert (job["status"], job["status_summary"]["FAILED"], job["is_terminated"]) == ("FAILED", 5, True)


def test_what_a_cancel_or_terminate_cannot_change_is_said(served: Quick, tmp_path: Path) -> None:
    served("submit", "--wait", "--name", "done", "--", "true").expect(0)
    for command in ("cancel", "terminate"):
        assert served(command, "done").expect(0).out.endswith("which is SUCCEEDED already\n")
    job = served("submit", "--name", "runs", "--", *waits_for(tmp_path / "never")).expect(0).out.strip()
    until(lambda: served("describe", "--json", job).json[0]["status"] == "RUNNING")
    told = served("cancel", "runs").expect(0).out
    assert told == f"left as it is: {job}, which is RUNNING; `anybatch terminate` stops what runs\n"
    assert served("terminate", "--wait", "runs").expect(0).out == "terminated runs\n"


def test_an_array_stops_after_so_many_failures(served: Quick) -> None:
    limits = ["--max-running", "1", "--max-failures", "2", "--on-max-failures", "terminate"]
    served("submit", "-a", "6", "--name", "six", "--wait", *limits, "--", "false").expect(1)
    told = served("describe", "six").expect(0).out
    text = "Array stopped: 2 of its children FAILED (max_failures 2)"
    assert f"why:          {text}\n" in told
    assert f"failed:       children 2-5: {text}\n" in told
    assert "limits:       at most 1 run at once; stops at 2 failed children, and what runs with it\n" in told
    assert f"its 6 children have ended: 6 FAILED; {text}\n" in served("explain", "six").out
    assert "it is 'cancel'" in served("submit", "-a", "2", "--on-max-failures", "x", "--", "true").expect(2).err


def test_an_array_with_indexes_of_its_own(served: Quick) -> None:
    job = served("submit", "--array", "3,7,20-40:10", "--name", "odd", "--", *ODD_CHILDREN).expect(0).out.strip()
    assert served("wait", "odd").status == 1
    told = served("describe", "odd").expect(0).out
    assert "children:     4/5 (1 failed)\n" in told
    assert "indexes:      3,7,20,30,40\n" in told
    assert "failed:       children 30: exit code 1\n" in told
    assert f"logs:         anybatch logs {job}:30\n" in told
    assert served("logs", "odd:30").expect(0).out == "child 30 of 5\n"
    assert [row["index"] for row in served("ps", "--json", "odd").json] == [3, 7, 20, 30, 40]
    assert "exit code 1" in served("explain", "odd:30").expect(0).out
    assert "its indexes are 3, 7, 20, 30, 40" in served("explain", "odd:4").expect(2).err
    events = served("events", "--job", "odd").expect(0).out
    assert re.search(r"FAILED.* 30\b", events), events
    assert served("rerun", "--wait", "odd").expect(1).out.startswith("runs again: odd ")
    text = "each index is given once, and 3 is there twice"
    assert text in served("submit", "--array", "3,3", "--", "true").expect(2).err


def test_a_program_that_checkpoints_is_run_again(served: Quick, tmp_path: Path) -> None:
    steps = tmp_path / "steps"
    program = ["sh", "-c", f"echo $AWS_BATCH_JOB_ATTEMPT >> '{steps}'; test $(wc -l < '{steps}') = 3 || exit 85"]
    served("submit", "--name", "long", "--wait", "--checkpoint-exit-code", "85", "--", *program).expect(0)
    assert steps.read_text().split() == ["1", "2", "3"]
    told = served("describe", "long").expect(0).out
    assert "retry:        1 attempt; again after exit code 85 (checkpointed), at most 1000 times\n" in told
    assert re.search(r"attempt 2: +exit code 85; Checkpointed \(checkpointed\) on local", told), told
    short = ["--checkpoint-exit-code", "1", "--max-checkpoints", "2"]
    served("submit", "--name", "stuck", "--wait", *short, "--", "false").expect(1)
    assert "Checkpointed more than 2 times (max_checkpoints)" in served("explain", "stuck").expect(0).out


def test_what_failed_runs_again_in_the_same_job(served: Quick, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    fails = ["sh", "-c", f"test $AWS_BATCH_JOB_ARRAY_INDEX != 2 -o -e '{mended}'"]
    served("submit", "-a", "4", "--name", "four", "--wait", "--", *fails).expect(1)
    assert "is not allowed" in served("rerun", "four:9").expect(2).err or "exist" in served("rerun", "four:9").err
    assert served("rerun", "--wait", "four").expect(1).out.startswith("runs again: four ")
    mended.touch()
    (job,) = served("rerun", "--json", "--wait", "four").expect(0).json
    assert (job["status"], job["status_summary"]["SUCCEEDED"]) == ("SUCCEEDED", 4)
    (child,) = served("describe", "--json", "four:2").json
    assert [attempt["exit_code"] for attempt in child["attempts"]] == [1, 1, 0]
    assert "FAILED" in served("rerun", "four").expect(2).err


def test_an_environment_is_drained_and_used_again(served: Quick, tmp_path: Path) -> None:
    go = tmp_path / "go"
    served("submit", "--name", "first", "--", *waits_for(go)).expect(0)
    until(lambda: served("environments", "--json").json[0]["hosts"][0]["attempts"])
    with served.running("drain", "local") as drain:
        assert drain.stderr is not None
        assert drain.stderr.readline() == "1 attempt still runs there; Ctrl-C leaves them\n"
        served("submit", "--name", "second", "--", "true").expect(0)
        assert served("explain", "--json", "second").json[0]["code"] == "ENVIRONMENT_DISABLED"
        go.touch()
        out, _ = drain.communicate(timeout=60)
        assert (drain.returncode, out.splitlines()[-1]) == (0, "nothing runs there any more")
    assert "DISABLED" in served("environments").out
    assert served("drain", "--all", "--undo").out == "environment local takes attempts again\n"
    assert served("wait", "second").status == 0
    assert "host local of environment local" in served("drain", "local", "--host", "local", "--no-wait").expect(0).out
    assert served("environments", "--json").json[0]["hosts"][0]["state"] in ("DRAINING", "DRAINED")
    assert served("drain", "local", "--host", "local", "--undo").status == 0


def test_submit_takes_what_a_job_is_made_of(served: Quick) -> None:
    served("submit", "-a", "2", "--name", "a", "--", "true").expect(0)
    more = ["--vcpus", "0.5", "--memory", "64", "--retry", "2", "--timeout", "60", "--parameter", "p=v"]
    served("submit", "-a", "2", "--name", "b", "--each-after", "a", *more, "--", "sh", "-c", "echo Ref::p").expect(0)
    served("submit", "--name", "c", "--after", "b", "--workdir", ".", "--client-token", "t", "--", "pwd").expect(0)
    assert served("submit", "--wait", "--after", "c", "--", "false").expect(1).out.endswith(": FAILED: exit code 1\n")
    assert served("logs", "b:1").out == "v\n"
    assert served("logs", "c").out == f"{served.folder}\n"
    (b,) = served("describe", "--json", "b").json
    assert (b["vcpus"], b["memory_mib"], b["timeout_s"], b["retry"]["attempts"]) == (0.5, 64, 60, 2)
    served("submit", "--name", "not-needed", "--after-failure", "c", "--", "true").expect(0)
    served("submit", "--name", "d", "-a", "4", "--max-running", "1", "--after-any", "not-needed", "--", "false")
    assert [served("wait", name).status for name in ("not-needed", "d")] == [1, 1]
    assert served("describe", "--json", "d").json[0]["max_running"] == 1
    again = served("submit", "--name", "c", "--after", "b", "--workdir", ".", "--client-token", "t", "--", "pwd")
    assert again.out.strip() == served("describe", "--json", "c").json[0]["id"]


# -- mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["describe", "nobody"], "job 'nobody' does not exist"),
        (["logs", "nobody:3"], "job 'nobody' does not exist"),
        (["ps", "--status", "done"], "status: 'DONE' is not allowed"),
        (["ps", "--queue", "none"], "job queue 'none' does not exist"),
        (["submit"], "give a command after --, or --definition"),
        (["submit", "--queue", "none", "--", "true"], "job queue 'none' does not exist"),
        (["submit", "--env", "=", "--retry", "99", "--", "true"], "is not allowed"),
        (["submit", "--tag", "x", "--", "true"], "--tag: 'x' is not allowed; it is NAME=VALUE"),
        (["drain"], "name environments, or give --all"),
        (["drain", "--all", "--host", "h"], "name the one environment"),
        (["drain", "none"], "compute environment 'none' does not exist"),
        (["events", "--after", "yesterday"], "it is EPOCH:SEQUENCE"),
        (["events", "--after", "1:99999"], "the newest event is"),
    ],
)
def test_a_mistake_is_bad_use_and_says_what_is_allowed(served: Quick, words: list[str], text: str) -> None:
    done = served(*words).expect(2)
    assert done.out == ""
    assert text in done.err
    assert "Traceback" not in done.err
    if "submit" not in words:
        error = served(*words, "--json").expect(2).json["error"]
        assert text in error["message"]


@pytest.mark.parametrize("command", ["ps", "queues", "environments", "events"])
def test_without_any_kernel_it_says_how_to_have_one(quick: Quick, command: str) -> None:
    done = quick(command, "--json").expect(3)
    assert "there is no kernel, and no journal of one; start one with `anybatch serve`" in done.err
    assert done.json["error"]["type"] == "NoTarget"
    done = quick(command, "--journal", "none.db").expect(3)
    assert "no kernel runs on none.db: there is neither a journal nor a control socket" in done.err
    quick.write("text.db", "something else")
    assert "is not a journal of anybatch" in quick(command, "--journal", "text.db").expect(3).err


# -- which kernel -----------------------------------------------------------------------------------


def test_a_run_is_reached_from_a_second_terminal(quick: Quick, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with quick.running("run", "--name", "long", "-a", "2", "--", *waits_for(go)) as run:
        until(lambda: "(2 running)" in quick("ps").out)
        (listed,) = quick("ps", "--json").json
        assert (listed["name"], listed["array_size"]) == ("long", 2)
        until(lambda: quick("logs", "long:1").out == "begun\n")
        assert "RUNNING" in quick("explain", "long").out
        go.touch()
        assert run.wait(60) == 0
    done = quick("describe", "long").expect(0)
    assert "children:     2/2\n" in done.out
    assert re.search(r"no kernel runs on .*/batch.db: this is its journal, read only, as of \d\d:\d\d:\d\d", done.err)
    assert quick("logs", "long:0").out == "begun\ndone\n"
    assert quick("wait", "long").status == 0
    assert "`anybatch run --journal" in quick("cancel", "long").expect(3).err


def test_a_run_goes_on_where_there_can_be_no_socket(quick: Quick) -> None:
    (quick.folder / "j.db.d").mkdir()
    quick.write("j.db.d/control.sock", "")
    done = quick("run", "--journal", "j.db", "--", "true").expect(0)
    assert "this run cannot be looked at while it goes on: the control socket " in done.err


def test_of_several_kernels_one_has_to_be_named(
    quick: Quick,
    serve: Serve,
) -> None:
    config = ("--config", "anybatch.toml", "--on-close", "stop")
    with serve(*config), serve(*config, "--journal", "other.db", "--socket", "s"):
        quick("submit", "--name", "here", "--wait", "--", "true").expect(0)
        quick("submit", "--journal", "other.db", "--name", "there", "--wait", "--", "true").expect(0)
        assert "here" in quick("ps").out
        quick.environment["ANYBATCH_JOURNAL"] = str(quick.folder / "other.db")
        assert "there" in quick("ps").out
        assert "there" in quick("ps", "--journal", "s").out
        del quick.environment["ANYBATCH_JOURNAL"]
        with quick.running("run", "--", "sleep", "60") as run:
            until(lambda: quick("ps").status == 3)
            err = quick("ps").err
            assert "2 kernels run; say which:" in err
            assert err.count("--journal ") == 2
            run.send_signal(signal.SIGINT)
            assert run.wait(60) == 130


def test_a_killed_kernel_is_looked_at_and_found_again(quick: Quick, serve: Serve, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with serve("--config", "anybatch.toml") as process:
        quick("submit", "--name", "long", "--", *waits_for(go)).expect(0)
        with quick.running("wait", "long") as wait, quick.running("logs", "-f", "long") as log:
            assert log.stdout is not None
            assert log.stdout.readline() == "begun\n"
            process.kill()
            process.wait()
            for waiter in (wait, log):
                _, err = waiter.communicate(timeout=60)
                assert waiter.returncode == 3
            assert f"the connection to the kernel (process {process.pid}) is lost: it has ended, or was killed" in err
    files = {path.name for path in (tmp_path / "state" / "anybatch").iterdir()}
    assert "RUNNING" in quick("ps").out
    assert f"the last one, process {process.pid}, was killed: this is its journal" in quick("describe", "long").err
    assert {path.name for path in (tmp_path / "state" / "anybatch").iterdir()} == files
    with serve("--on-close", "stop"):
        go.touch()
        assert quick("wait", "long").status == 0
        assert quick("logs", "long").out == "begun\ndone\n"


# -- what is printed --------------------------------------------------------------------------------


@pytest.mark.parametrize(("zone", "hours"), [("AAA-9:30", 9.5), ("BBB+11", -11), ("CCC-14", 14)])
def test_people_are_told_local_times_and_programs_utc(served: Quick, zone: str, hours: float) -> None:
    """The zones are such that in one of them it is another day."""
    name = f"in-{zone[:3]}"
    served("submit", "--name", name, "--wait", "--", "true").expect(0)
    served.environment["TZ"] = zone
    try:

        def there(*words: str) -> str:
            with served.popen(*words) as process:  # a process of its own: the C library reads TZ once
                return process.communicate(timeout=60)[0]

        (job,) = json.loads(there("describe", "--json", name))
        assert UTC.fullmatch(job["created_at"])
        created = datetime.fromisoformat(job["created_at"])
        assert abs((datetime.now().astimezone() - created).total_seconds()) < 600
        shown = f"{created.astimezone(timezone(timedelta(hours=hours))):%H:%M:%S}"
        (line,) = [line for line in there("describe", name).splitlines() if "submitted:" in line]
        assert line.endswith(shown)
        (line,) = [line for line in there("ps").splitlines() if f" {name} " in line]
        assert f" {shown} " in line
        assert there("events", "--job", name).split()[0] == shown
        first, *_ = there("events", "--json", "--job", name).splitlines()
        assert UTC.fullmatch(json.loads(first)["at"])
    finally:
        del served.environment["TZ"]


def test_nothing_is_coloured_in_a_pipe(served: Quick) -> None:
    served("submit", "--name", "bad", "--wait", "--", "false").expect(1)
    for words in (["ps"], ["describe", "bad"], ["queues"], ["environments"], ["events"], ["explain", "bad"], ["top"]):
        assert "\x1b" not in served(*words).expect(0).out
    assert "\x1b" not in served("ps", "nobody").expect(2).err


def test_top_in_a_pipe_is_one_look(served: Quick) -> None:
    served("submit", "--name", "looked-at", "-a", "3", "--wait", "--", "true").expect(0)
    served("submit", "--name", "held", "--vcpus", "99", "--", "true").expect(0)
    lines = served("top").expect(0).out.splitlines()
    (row,) = [line for line in lines if line.startswith("held ")]
    assert re.search(r"held  +default  ·+  RUNNABLE  +\d.*  NEVER_FITS: needs 99 vCPU; environment 'local' has 2", row)
    assert re.search(r"looked-at  +default  █+  3/3  ", "\n".join(lines))
    look = served("top", "--json").expect(0).json
    assert set(look) == {"at", "kernel", "journal", "queues", "environments", "jobs", "more"}
    (held,) = [row for row in look["jobs"] if row["job"]["name"] == "held"]
    assert held["reasons"][0]["code"] == "NEVER_FITS"
    served("cancel", "held").expect(0)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_exit_statuses(quick: Quick, command: str) -> None:
    out = quick(command, "--help").expect(0).out
    assert "examples:\n  anybatch " in out
    assert f"anybatch {command}" in out.partition("examples:")[2]
    assert "exit status" in out
