"""Real runs: exit statuses, the summary, resuming, and what goes to which stream."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from anybatch.cli.progress import share
from anybatch.cli.summary import ranges, runs, tail

if TYPE_CHECKING:
    from .conftest import Cli


def text_of(path: Path) -> list[str]:
    return path.read_text().split()


# -- one command --------------------------------------------------------------------------------------


def test_a_command_in_the_callers_folder_with_its_environment(cli: Cli) -> None:
    cli.environment |= {"MINE": "yes", "AWS_BATCH_JOB_ARRAY_INDEX": "outer"}
    done = cli("run", "--", "sh", "-c", 'pwd; echo "$MINE/${AWS_BATCH_JOB_ARRAY_INDEX-none}/$HOME"').expect(0)
    assert f"    | {cli.folder}" in done.out.splitlines()
    assert f"    | yes/none/{os.environ['HOME']}" in done.out.splitlines()


def test_an_array_of_a_command(cli: Cli) -> None:
    done = cli("run", "-a", "20", "-j", "4", "--", "sh", "-c", ": > out.$AWS_BATCH_JOB_ARRAY_INDEX").expect(0)
    assert len(list(cli.folder.glob("out.*"))) == 20
    assert "sh   SUCCEEDED  20/20" in done.out


def test_an_array_of_one_is_a_single_job(cli: Cli) -> None:
    (job,) = cli("run", "-a", "1", "--json", "--name", "only", "--", "true").expect(0).json["jobs"]
    assert (job["name"], job["array_size"], job["status"]) == ("only", None, "SUCCEEDED")


def test_a_commands_options_reach_the_job(cli: Cli) -> None:
    script = "echo x >> tries; test $AWS_BATCH_JOB_ATTEMPT = 3"
    options = ["--retry", "3", "--timeout", "30", "--vcpus", "0.5", "--memory", "64MiB"]
    cli("run", *options, "--", "sh", "-c", script).expect(0)
    assert text_of(cli.folder / "tries") == ["x"] * 3


def test_a_timeout_is_a_failure(cli: Cli) -> None:
    done = cli("run", "--timeout", "0.2", "--", "sleep", "50").expect(1)
    assert "Job attempt duration exceeded timeout" in done.out


def test_a_command_that_is_not_there(cli: Cli) -> None:
    done = cli("run", "--", "no-such-program").expect(1)
    assert "no-such-program: " in done.out
    assert "FAILED" in done.out


def test_more_children_than_the_quota(cli: Cli) -> None:
    done = cli("run", "--json", "--quota", "array_size_max=10001", "-a", "10001", "--vcpus", "0.001", "--", "false")
    (job,) = done.expect(1).json["jobs"]
    assert job["counts"]["FAILED"] == 10001
    (failure,) = job["failures"]
    assert (failure["children"], failure["count"], failure["exit_code"]) == ([[0, 10000]], 10001, 1)
    assert len(done.err.splitlines()) < 40, "a line per child"


# -- a file -------------------------------------------------------------------------------------------

PIPELINE = """
[run]
name = "three stages"

[environments.here]
backend = "process"
max_vcpus = 4

[jobs.last]
command = ["sh", "-c", "cat second.* | sort -n | tail -n 1"]
depends_on = ["second"]

[definitions.stage]
script = "stage.sh"
vcpus = 0.5

[jobs.second]
definition = "stage"
command = ["second", "first"]
array_size = 6
depends_on = [{ job = "first", type = "N_TO_N" }]

[jobs.first]
definition = "stage"
command = ["first"]
array_size = 6
depends_on = [{ type = "SEQUENTIAL" }]
"""
STAGE = """#!/bin/sh -e
i=$AWS_BATCH_JOB_ARRAY_INDEX
echo "$1.$i" >> order
if test $# = 2; then echo $(( $(cat "$2.$i") * 2 )) > "$1.$i"; else echo $(( i * 10 )) > "$1.$i"; fi
"""


def test_a_file_with_forward_references(cli: Cli) -> None:
    (cli.folder / "jobs").mkdir()
    cli.write("jobs/pipeline.toml", PIPELINE)
    cli.write("jobs/stage.sh", STAGE)
    done = cli("run", "jobs/pipeline.toml").expect(0)
    assert "    | 100" in done.out.splitlines()
    order = text_of(cli.folder / "order")
    assert [entry for entry in order if entry.startswith("first")] == [f"first.{i}" for i in range(6)]
    assert all(order.index(f"first.{i}") < order.index(f"second.{i}") for i in range(6))
    rows = [line.split()[:3] for line in done.out.splitlines()[1:4]]
    assert rows == [["last", "SUCCEEDED", "-"], ["second", "SUCCEEDED", "6/6"], ["first", "SUCCEEDED", "6/6"]]
    assert "three stages: succeeded after" in done.out


ENDS = """
[jobs.load]
command = ["sh", "-c", "exit $CODE"]
[jobs.roll-back]
command = ["sh", "-c", "echo rolled-back >> done"]
depends_on = [{ job = "load", type = "AFTER_FAILURE" }]
[jobs.tidy-up]
command = ["sh", "-c", "echo tidied >> done"]
depends_on = [{ job = "load", type = "AFTER_ANY" }, { job = "roll-back", type = "AFTER_ANY" }]
[jobs.steps]
command = ["sh", "-c", "echo step-$AWS_BATCH_JOB_ARRAY_INDEX >> done; exit $CODE"]
array_size = 3
max_running = 2
depends_on = [{ type = "SEQUENTIAL", on = "any" }, { job = "tidy-up", type = "AFTER_ANY" }]
"""


@pytest.mark.parametrize("code", [0, 1])
def test_jobs_that_wait_for_another_end_than_success(cli: Cli, code: int) -> None:
    """What was to run after a failure only does not make a run fail that had none."""
    cli.write("ends.toml", ENDS)
    cli.environment["CODE"] = str(code)
    done = cli("run", "ends.toml").expect(code)
    rolled_back = ["rolled-back"] if code else []
    assert text_of(cli.folder / "done") == [*rolled_back, "tidied", "step-0", "step-1", "step-2"]
    assert ("Dependent Job succeeded: not needed" in done.out) == (not code)


PICKED = """
[jobs.listed]
command = ["sh", "-c", "echo $AWS_BATCH_JOB_ARRAY_INDEX | tee -a listed; test $AWS_BATCH_JOB_ARRAY_INDEX != 9"]
array = [9, 3, 7]
[jobs.pairs]
command = ["sh", "-c", "echo $AWS_BATCH_JOB_ARRAY_INDEX >> pairs"]
array = "3-7:4,9"
depends_on = [{ job = "listed", type = "N_TO_N" }]
[jobs.spaced]
command = ["sh", "-c", "echo $AWS_BATCH_JOB_ARRAY_INDEX >> spaced"]
array = { start = 100, stop = 120, step = 5 }
depends_on = [{ type = "SEQUENTIAL" }]
"""


def test_arrays_with_indexes_of_their_own(cli: Cli) -> None:
    cli.write("p.toml", PICKED)
    done = cli("run", "p.toml").expect(1)
    assert sorted(text_of(cli.folder / "listed")) == ["3", "7", "9"]
    assert sorted(text_of(cli.folder / "pairs")) == ["3", "7"]
    assert text_of(cli.folder / "spaced") == ["100", "105", "110", "115"]
    lines = done.out.splitlines()
    assert "listed, child 9: exit code 1" in lines
    assert "pairs, child 9: Dependent Job failed" in lines
    (log,) = [line for line in lines if line.startswith("  log: ")]
    assert log.endswith("/9-1.log")
    assert "listed" in cli("check", "p.toml").expect(0).out


def test_a_command_as_an_array_with_indexes_of_its_own(cli: Cli) -> None:
    cli("run", "--array", "5,8", "--", "sh", "-c", "echo $AWS_BATCH_JOB_ARRAY_INDEX >> out").expect(0)
    assert sorted(text_of(cli.folder / "out")) == ["5", "8"]
    assert "--array" in cli("run", "--array", "5-", "--", "true").expect(2).err


BROKEN = """
[jobs.broken]
command = ["sh", "-c", "exit 3"]
array_size = 60
vcpus = 0.5
max_failures = 2
[jobs.after]
command = ["true"]
depends_on = ["broken"]
"""


def test_an_array_that_stops_after_so_many_failures(cli: Cli) -> None:
    cli.write("b.toml", BROKEN)
    done = cli("run", "--json", "b.toml").expect(1).json
    broken, after = done["jobs"]
    assert re.fullmatch(r"Array stopped: \d+ of its children FAILED \(max_failures 2\)", broken["status_reason"])
    assert after["status_reason"] == "Dependent Job failed"
    causes = {failure["status_reason"]: failure for failure in broken["failures"]}
    assert broken["status_reason"] in causes


LONG = """
[jobs.long]
command = ["sh", "-c", "echo x >> steps; test $(wc -l < steps) = 3 || exit 85"]
checkpoint_exit_codes = [85]
max_checkpoints = 2
"""


def test_a_program_that_checkpoints_is_run_again(cli: Cli) -> None:
    cli.write("long.toml", LONG)
    cli("run", "long.toml").expect(0)
    assert text_of(cli.folder / "steps") == ["x"] * 3


FAILING = """
[jobs.squares]
command = ["sh", "-c", '''
    i=$AWS_BATCH_JOB_ARRAY_INDEX
    printf '\\033[31mchild %s\\007 says no\\033[0m\\n' $i
    case $i in 3|7|10|11|12) exit 9;; 5) exit 4;; esac
''']
array_size = 14
vcpus = 0.25
[jobs.after]
command = ["true"]
depends_on = ["squares"]
[jobs.beside]
command = ["echo", "fine"]
"""


def test_failures_are_told_with_children_reasons_and_logs(cli: Cli) -> None:
    cli.write("f.toml", FAILING)
    done = cli("run", "f.toml").expect(1)
    lines = done.out.splitlines()
    assert "squares, children 3,7,10-12 (5 in all): exit code 9" in lines
    assert "squares, child 5: exit code 4" in lines
    assert "after: Dependent Job failed" in lines
    assert "    | child 3 says no" in lines
    assert "    | fine" in lines
    assert "f: failed after" in done.out
    logs = [Path(line.partition("log: ")[2]) for line in lines if line.startswith("  log: ")]
    assert [path.name for path in logs] == ["3-1.log", "7-1.log", "10-1.log", "5-1.log"]
    assert all(path.read_bytes().startswith(b"\x1b[31mchild") for path in logs)
    assert "to go on" not in done.err


def test_the_summary_for_programs(cli: Cli) -> None:
    cli.write("f.toml", FAILING)
    done = cli("run", "--json", "f.toml").expect(1)
    document = done.json
    assert list(document) == [
        "format", "name", "source", "outcome", "exit_status", "error", "mistakes", "journal", "resume", "elapsed_s",
        "jobs",
    ]  # fmt: skip
    assert (document["format"], document["outcome"], document["exit_status"]) == (1, "failed", 1)
    assert document["source"] == str(cli.folder / "f.toml")
    assert document["journal"].startswith(f"{cli.state}/anybatch/runs/f-")
    assert document["resume"] is None
    squares, after, beside = document["jobs"]
    assert list(squares) == [
        "name", "id", "status", "status_reason", "exit_code", "array_size", "counts", "started_at", "stopped_at",
        "elapsed_s", "logs_dir", "log", "failures", "other_failures",
    ]  # fmt: skip
    assert squares["counts"] == {
        "SUBMITTED": 0, "PENDING": 0, "RUNNABLE": 0, "STARTING": 0, "RUNNING": 0, "SUCCEEDED": 8, "FAILED": 6,
    }  # fmt: skip
    assert [failure["children"] for failure in squares["failures"]] == [[[3, 3], [7, 7], [10, 12]], [[5, 5]]]
    assert {failure["failure_class"] for failure in squares["failures"]} == {"application exit"}
    assert after["failures"] == [
        {
            "children": None, "count": 1, "exit_code": None, "status_reason": "Dependent Job failed", "reason": None,
            "failure_class": None, "logs": [],
        }
    ]  # fmt: skip
    assert Path(beside["log"]).read_text() == "fine\n"
    assert all(Path(path).parent == Path(squares["logs_dir"]) for path in squares["failures"][0]["logs"])


def test_nothing_steers_a_terminal_when_piped(cli: Cli) -> None:
    cli.environment |= {"COLUMNS": "20"}
    cli.write("f.toml", FAILING)
    done = cli("run", "f.toml")
    for stream in (done.out, done.err):
        assert "\x1b" not in stream
        assert "\r" not in stream
    assert any(len(line) > 60 for line in done.out.splitlines()), "lines are not folded"
    assert "squares: failed 8/14 (6 failed)" in done.err.splitlines()
    assert "beside: succeeded" in done.err.splitlines()


# -- interrupting and going on ------------------------------------------------------------------------

HELD = """
[environments.local]
backend = "process"
max_vcpus = 1
[jobs.steps]
script = '''#!/bin/sh -e
echo $AWS_BATCH_JOB_ARRAY_INDEX >> ran
if test $AWS_BATCH_JOB_ARRAY_INDEX = 2 && ! test -e open; then echo here > held; exec sleep 1000; fi
'''
array_size = 5
depends_on = [{ type = "SEQUENTIAL" }]
[jobs.end]
command = ["sh", "-c", "echo end >> ran"]
depends_on = ["steps"]
"""


def interrupt(cli: Cli, number: signal.Signals, *arguments: str) -> tuple[list[str], str]:
    """Begin a run of HELD, end it while child 2 runs, and return how to go on with it, and its summary."""
    held = cli.fifo("held")
    with cli.running("run", *arguments) as process:
        assert held.read_text() == "here\n"  # child 2 runs
        process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode == 128 + number, err
    (line,) = [line for line in err.splitlines() if line.startswith("to go on with this run: ")]
    (cli.folder / "open").touch()
    return shlex.split(line.partition(": ")[2])[3:], out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_where_it_was(cli: Cli, number: signal.Signals) -> None:
    cli.write("held.toml", HELD)
    resume, out = interrupt(cli, number, "held.toml")
    assert "held: interrupted after" in out
    assert "2/5 (3 waiting)" in out
    assert text_of(cli.folder / "ran") == ["0", "1", "2"]
    (cli.folder / "held.toml").unlink()  # the journal is enough
    done = cli(*resume, cwd=cli.folder.parent).expect(0)
    assert text_of(cli.folder / "ran") == ["0", "1", "2", "2", "3", "4", "end"]
    assert "going on with" in done.err
    # Once more changes nothing: it has ended.
    again = cli(*resume, "--json").expect(0)
    assert [job["status"] for job in again.json["jobs"]] == ["SUCCEEDED", "SUCCEEDED"]
    assert len(text_of(cli.folder / "ran")) == 7


def test_what_was_stopped_ran_as_one_tree_and_is_gone(cli: Cli) -> None:
    cli.write("held.toml", HELD.replace("exec sleep 1000", "sh -c 'echo $$ > pid; exec sleep 1000'"))
    held = cli.fifo("held")
    pid = cli.fifo("pid")
    with cli.running("run", "held.toml") as process:
        assert held.read_text() == "here\n"
        child = int(pid.read_text())
        process.send_signal(signal.SIGINT)
        process.communicate()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_killed_run_goes_on_with_what_still_runs(cli: Cli) -> None:
    gate = cli.fifo("gate")
    held = cli.fifo("held")
    script = "i=$AWS_BATCH_JOB_ARRAY_INDEX; echo $i >> ran; test $i != 1 || { echo here > held; read x < gate; }"
    arguments = ["-a", "3", "-j", "1", "--journal", "b.db", "--", "sh", "-c", script]
    with cli.running("run", *arguments) as process:
        assert held.read_text() == "here\n"
        process.kill()
    with cli.running("run", *arguments) as process:
        gate.write_text("go on\n")
        _, err = process.communicate()
    assert process.returncode == 0, err
    assert text_of(cli.folder / "ran") == ["0", "1", "2"]


def test_going_on_with_the_file_given_again(cli: Cli) -> None:
    cli.write("held.toml", HELD)
    resume, _ = interrupt(cli, signal.SIGINT, "--journal", "mine/batch.db", "held.toml")
    assert resume == ["run", "--journal", str(cli.folder / "mine/batch.db")]
    cli.write("held.toml", HELD.replace("max_vcpus = 1", "max_vcpus = 2  # settings may change"))
    cli("run", "--journal", "mine/batch.db", "held.toml").expect(0)
    assert text_of(cli.folder / "ran") == ["0", "1", "2", "2", "3", "4", "end"]


def test_another_file_is_refused(cli: Cli) -> None:
    cli.write("held.toml", HELD)
    resume, _ = interrupt(cli, signal.SIGINT, "held.toml")
    journal = resume[resume.index("--journal") + 1]
    other = HELD.replace("[jobs.end]", "[jobs.finish]").replace("array_size = 5", "array_size = 6")
    cli.write("other.toml", other)
    done = cli("run", "--journal", journal, "other.toml").expect(2)
    assert f"--journal: {journal} holds another run, of {cli.folder / 'held.toml'}, whose jobs differ" in done.err
    assert "(only in the journal: end; only in what is given now: finish; different: steps)" in done.err
    assert text_of(cli.folder / "ran") == ["0", "1", "2"], "nothing of either run was begun"
    assert "holds another run" in cli("run", "--journal", journal, "--", "true").expect(2).err
    cli(*resume).expect(0)


def test_going_on_with_a_command(cli: Cli) -> None:
    script = "echo x >> ran; test -e open || { echo here > held; exec sleep 1000; }"
    resume, _ = interrupt(cli, signal.SIGINT, "-a", "3", "-j", "1", "--", "sh", "-c", script)
    assert resume[-2:] == ["-j", "1"]
    cli(*resume).expect(0)
    assert text_of(cli.folder / "ran") == ["x"] * 4


STUBBORN = "trap '' TERM; echo x >> ran; test -e open || { echo here > held; read -r line < gate; }"


def test_a_second_interrupt_only_says_what_is_waited_for(cli: Cli) -> None:
    gate = cli.fifo("gate")
    held = cli.fifo("held")
    with cli.running("run", "-a", "2", "-j", "1", "--", "sh", "-c", STUBBORN) as process:
        assert held.read_text() == "here\n"
        assert process.stderr is not None
        process.send_signal(signal.SIGINT)
        seen = read_until(process, "stopping: ")
        process.send_signal(signal.SIGINT)
        seen += read_until(process, "still stopping")
        (cli.folder / "open").touch()
        gate.write_text("go on\n")
        out, err = process.communicate()
    assert process.returncode == 130
    assert "interrupted" in out
    journal = seen.partition("journal: ")[2].split()[0]
    assert f"run --journal {journal}" in err
    cli("run", "--journal", journal).expect(0)


def test_a_third_interrupt_leaves_at_once_and_the_run_can_go_on(cli: Cli) -> None:
    gate = cli.fifo("gate")
    held = cli.fifo("held")
    with cli.running("run", "-a", "2", "-j", "1", "--", "sh", "-c", STUBBORN) as process:
        assert held.read_text() == "here\n"
        process.send_signal(signal.SIGINT)
        seen = read_until(process, "stopping: ")
        process.send_signal(signal.SIGINT)
        seen += read_until(process, "still stopping")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130
    assert out == ""
    journal = seen.partition("journal: ")[2].split()[0]
    assert f"run --journal {journal}" in err
    (cli.folder / "open").touch()
    with cli.running("run", "--json", "--journal", journal) as process:
        gate.write_text("go on\n")  # what did not end is found again
        out, err = process.communicate()
    assert process.returncode == 0, f"{out}{err}"


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Lines of standard error up to the one with these words."""
    assert process.stderr is not None
    seen = ""
    while words not in seen:
        line = process.stderr.readline()
        assert line, f"it ended: {seen}"
        seen += line
    return seen


# -- when the engine fails ----------------------------------------------------------------------------


def test_a_journal_that_is_in_use(cli: Cli) -> None:
    held = cli.fifo("held")
    with cli.running("run", "--journal", "b.db", "--", "sh", "-c", "echo here > held; exec sleep 1000") as process:
        assert held.read_text() == "here\n"
        done = cli("run", "--journal", "b.db").expect(3)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert "JournalLocked" in done.err
    assert "b.db is held by another kernel" in done.err


def test_a_journal_that_cannot_be_written(cli: Cli) -> None:
    done = cli("run", "--json", "--journal", "/dev/null/b.db", "--", "true").expect(3)
    assert "cannot write /dev/null/b.db.d/run.json" in done.err
    assert (done.json["outcome"], done.json["jobs"]) == ("engine failed", [])


def test_a_damaged_journal(cli: Cli) -> None:
    cli("run", "--journal", "b.db", "--", "true").expect(0)
    (cli.folder / "b.db").write_bytes(b"nonsense" * 1000)
    assert "anybatch run: Journal" in cli("run", "--journal", "b.db").expect(3).err


def test_a_journal_of_something_else(cli: Cli) -> None:
    cli.write("b.db", "")
    assert "is not the journal of an `anybatch run`" in cli("run", "--journal", "b.db", "--", "true").expect(2).err


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_nobody_reads_the_output(cli: Cli, stream: str, options: list[str]) -> None:
    """The work is done all the same, and the status says how it went."""
    read, write = os.pipe()
    os.close(read)
    done = cli("run", *options, "--", "sh", "-c", ": > done; false", **{stream: write})
    os.close(write)
    assert done.status == 1
    assert (cli.folder / "done").exists()
    assert not done.err or "Traceback" not in done.err


# -- small parts --------------------------------------------------------------------------------------


def test_ranges_are_short_and_bounded() -> None:
    assert ranges(runs([3, 7, 10, 11, 12])) == "3,7,10-12"
    assert ranges(runs(range(0, 100, 2))) == "0,2,4,6,8,10,12,14,16,18,..."


@pytest.mark.parametrize(
    ("counts", "cells"),
    [
        ((0, 0, 0, 5), (0, 0, 0, 10)),
        ((10_000, 1, 0, 0), (9, 1, 0, 0)),
        ((1, 1, 1, 9_997), (1, 1, 1, 7)),
        ((1, 0, 1, 1), (4, 0, 3, 3)),
    ],
)
def test_a_bar_shows_all_that_there_is(counts: tuple[int, ...], cells: tuple[int, ...]) -> None:
    names = ("succeeded", "failed", "running", "waiting")
    assert tuple(share(dict(zip(names, counts, strict=True)), 10).values()) == cells


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 10_000 + b"\n1\n2\n\x1b]0;title\x07\x1b[1mthree\x1b[0m\r\n\xff\tfour\n5\n\n")
    assert tail(str(path)) == (["1", "2", "three", "�\tfour", "5"], True)
    path.write_text("a\nb\n")
    assert tail(str(path)) == (["a", "b"], False)
    assert tail(str(tmp_path / "missing")) == ([], False)
