"""`anybatch journal`: what is said, to people and to programs, and with which exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anybatch
import msgspec
import pytest
from anybatch.kernel.journal_backup import About, BackupReport
from anybatch.kernel.journal_compact import CompactReport
from anybatch.kernel.journal_inspect import JournalReport
from anybatch.kernel.journal_restore import LostWork, RestoreReport

if TYPE_CHECKING:
    from .conftest import Cli

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_from_a_backup_of_a_run_that_goes_on_to_one_of_its_own(cli: Cli) -> None:
    """Backed up while it runs, restored, and gone on with: both come to their ends."""
    held = cli.fifo("held")
    gate = cli.fifo("gate")
    script = (
        'echo "$AWS_BATCH_JOB_ARRAY_INDEX/$AWS_BATCH_JOB_ATTEMPT" >> ran; '
        "test $AWS_BATCH_JOB_ARRAY_INDEX = 0 || test $AWS_BATCH_JOB_ATTEMPT = 2 || { echo here > held; read x < gate; }"
    )
    arguments = ["-a", "2", "-j", "1", "--retry", "2", "--journal", "j.db", "--", "sh", "-c", script]
    with cli.running("run", *arguments) as process:
        assert held.read_text() == "here\n"
        checked = cli("journal", "check", "j.db").expect(0)
        assert f"in use by process {process.pid} on " in checked.out
        assert "1 attempts under way" in checked.out
        done = cli("journal", "backup", "--logs", "j.db", "kept/b").expect(3)
        assert "cannot be written: No such file or directory" in done.err
        (cli.folder / "kept").mkdir()
        done = cli("journal", "backup", "--logs", "j.db", "kept/b").expect(0)
        assert "a journal that is restored from this does not take them over" in done.out
        assert ", by the kernel that runs on it; 0 events removed" in cli("journal", "compact", "j.db").expect(0).out
        assert cli("journal", "compact", "--json", "j.db").expect(0).json["events_removed"] == 0
        restored = cli("journal", "restore", "kept/b", "copy/c.db").expect(0)
        assert "attempts were under way: 1 to run again" in restored.out
        assert "sh: succeeded after" in cli("run", "--journal", "copy/c.db").expect(0).out
        assert process.poll() is None
        gate.write_text("go on\n")
        _, err = process.communicate()
    assert process.returncode == 0, err
    assert sorted((cli.folder / "ran").read_text().split()) == ["0/1", "1/1", "1/2"]


def test_each_outcome_for_programs(cli: Cli) -> None:
    cli("run", "--journal", "j.db", "--", "true").expect(0)
    found = cli("journal", "check", "--json", "j.db").expect(0).json
    assert (found["format"], found["sound"], found["kind"], found["jobs"]) == (1, True, "journal", 1)
    made = cli("journal", "backup", "--json", "j.db", "b").expect(0).json
    assert (made["about"]["kernel_id"], made["about"]["last"]) == (found["kernel_id"], found["last"])
    assert cli("journal", "backup", "--json", "j.db", "b").expect(3).json["kind"] == "JournalError"
    restored = cli("journal", "restore", "--json", "b", "c.db").expect(0).json
    assert restored["kernel_id"] != found["kernel_id"]
    packed = cli("journal", "compact", "--json", "--keep", "0", "c.db").expect(0).json
    assert packed["events_removed"] > 0
    (cli.folder / "j.db").write_bytes((cli.folder / "j.db").read_bytes()[:-5000])
    broken = cli("journal", "check", "--json", "j.db").expect(1).json
    assert not broken["sound"]
    assert broken["trouble"]
    assert cli("journal", "backup", "--json", "j.db", "b2").expect(1).json["exit_status"] == 1
    assert (
        "go on with what can be read: Kernel(path, accept_loss=True)" in cli("journal", "check", "j.db").expect(1).out
    )


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["check", "nowhere.db"], 3, "nowhere.db is not there"),
        (["check", "."], 3, "is not a file, so it is no journal"),
        (["check", "text"], 3, "is not a journal of anybatch"),
        (["backup", "nowhere.db", "b"], 3, "nowhere.db is not there"),
        (["restore", "text", "c.db"], 3, "is not a journal of anybatch"),
        (["compact", "nowhere.db"], 3, "nowhere.db is not there"),
        (["compact", "--keep", "long", "text"], 2, "--keep: 'long' is not allowed; it is a number of seconds"),
        (["check"], 2, "the following arguments are required: JOURNAL"),
        ([], 2, "the following arguments are required: ACTION"),
    ],
)
def test_mistakes_on_purpose(cli: Cli, arguments: list[str], status: int, words: str) -> None:
    cli.write("text", "hello\n" * 50)
    done = cli("journal", *arguments).expect(status)
    assert words in done.err
    assert "Traceback" not in done.err
    assert sorted(path.name for path in cli.folder.iterdir()) == ["text"]


def test_a_kernel_that_cannot_be_asked_is_named(cli: Cli) -> None:
    program = "import anybatch, asyncio, sys\nasync def main():\n    async with anybatch.Kernel('j.db'):\n"
    program += (
        "        print('open', flush=True)\n        await asyncio.to_thread(sys.stdin.read)\nasyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=cli.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        done = cli("journal", "compact", "j.db").expect(3)
        assert f"held by another kernel: process {other.pid}" in done.err
        assert "has no control socket" in done.err
        assert "call its `compact_journal`, or stop it first" in done.err
        assert other.stdin is not None
        other.stdin.close()


def test_every_key_of_the_documents_is_documented() -> None:
    text = (DOCS / "journal.md").read_text()
    structs = (JournalReport, About, BackupReport, RestoreReport, LostWork, CompactReport)
    keys = {field.name for struct in structs for field in msgspec.structs.fields(struct)}
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []
    assert anybatch.JournalDamaged.__name__ in text
