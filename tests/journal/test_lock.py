"""One kernel at a time: who holds the journal is said, and who is dead is no obstacle."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from allowed_skips import NEEDS_NAMESPACE
from anybatch import JournalError, JournalLocked
from anybatch.kernel.journal import FileJournal
from damage_rig import commit_more, look, make_journal, untouched

HOLD = """
import sys
from anybatch.kernel.journal import FileJournal
journal = FileJournal(sys.argv[1])
journal.begin_epoch(journal.epoch + 1)
print("held", flush=True)
sys.stdin.read()
"""

Holder = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def holder() -> Iterator[Holder]:
    """Start a process that holds a journal; it is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def hold(path: Path, *prefix: str) -> subprocess.Popen[str]:
        command = [*prefix, sys.executable, "-c", HOLD, str(path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_a_held_journal_says_who_holds_it(tmp_path: Path, holder: Holder) -> None:
    path = make_journal(tmp_path / "j.db").path
    process = holder(path)
    said = json.loads((tmp_path / "j.db.d" / "lock").read_text())
    assert said["pid"] == process.pid
    with untouched(tmp_path), pytest.raises(JournalLocked) as refused:
        look(path)
    for words in (f"process {process.pid} on {os.uname().nodename}", f"since {said['since']}", str(path)):
        assert words in str(refused.value)
    with untouched(tmp_path), pytest.raises(JournalLocked):
        look(path, accept_loss=True)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_is_no_obstacle(tmp_path: Path, holder: Holder, how: signal.Signals) -> None:
    path = make_journal(tmp_path / "j.db").path
    process = holder(path)
    process.send_signal(how)
    assert process.wait() == -how
    assert str(process.pid) in (tmp_path / "j.db.d" / "lock").read_text()
    look(path).check()


def test_any_text_in_the_lock_file_is_no_obstacle(tmp_path: Path) -> None:
    path = make_journal(tmp_path / "j.db").path
    (tmp_path / "j.db.d" / "lock").write_bytes(b"\xff\x00 of another age" * 1000)
    look(path).check()


@pytest.mark.parametrize("text", [b"", b"process 7", b"[]", b"\xff"])
def test_a_holder_that_has_not_said_who_it_is(tmp_path: Path, holder: Holder, text: bytes) -> None:
    path = make_journal(tmp_path / "j.db").path
    holder(path)
    (tmp_path / "j.db.d" / "lock").write_bytes(text)
    with pytest.raises(JournalLocked, match="held by another kernel"):
        look(path)


def test_a_holder_in_another_pid_namespace_is_noticed(tmp_path: Path, holder: Holder) -> None:
    """Its process id means nothing here: it may be that of this very process, or of none."""
    prefix = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    try:
        possible = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip(NEEDS_NAMESPACE)
    path = make_journal(tmp_path / "j.db").path
    holder(path, *prefix)
    said = json.loads((tmp_path / "j.db.d" / "lock").read_text())
    assert said["pid"] < 10
    with pytest.raises(JournalLocked, match=rf"process {said['pid']} \(as its container sees it\)"):
        look(path)


def test_a_link_to_a_journal_is_that_journal(tmp_path: Path, holder: Holder) -> None:
    path = make_journal(tmp_path / "real" / "j.db").path
    link = tmp_path / "link.db"
    link.symlink_to(path)
    folder = tmp_path / "folder"
    folder.symlink_to(path.parent)
    look(link).check()
    assert not (tmp_path / "link.db.d").exists()
    process = holder(path)
    for other in (link, folder / "j.db"):
        with pytest.raises(JournalLocked, match=str(process.pid)):
            look(other)


def test_a_second_kernel_of_the_same_process_does_not_break_the_first_ones_locks(tmp_path: Path) -> None:
    """Closing any descriptor of a file takes all POSIX locks of the process on it away: SQLite's too."""
    path = make_journal(tmp_path / "j.db").path

    def locks() -> set[str]:
        inode = f":{path.stat().st_ino} "
        return {line.split(": ", 1)[1] for line in Path("/proc/locks").read_text().splitlines() if inode in line}

    async def go() -> None:
        journal = FileJournal(path)
        try:
            before = locks()
            assert before
            for _ in range(2):
                with pytest.raises(JournalLocked):
                    FileJournal(path)
            assert locks() == before
        finally:
            await journal.close()

    asyncio.run(go())


def test_a_refused_start_lets_go_of_the_lock(tmp_path: Path) -> None:
    made = make_journal(tmp_path / "j.db")
    whole = made.path.read_bytes()
    made.path.write_bytes(whole[: len(whole) // 2])
    for _ in range(3):
        with pytest.raises(JournalError):
            look(made.path)
    made.path.write_bytes(whole)
    assert commit_more(made.path) == made.last + 5
    assert [
        os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.exists() and "j.db" in os.readlink(fd)
    ] == []
