"""A backup taken under load has all that was answered for, and a copy made of it never meddles with the original."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from anybatch import JobStatus, JournalDamaged, JournalError, Kernel
from anybatch.backends.process import ProcessBackend
from anybatch.kernel import journal_backup
from anybatch.kernel.core.invariants import check_invariants
from anybatch.kernel.journal_backup import back_up, logs_of
from anybatch.kernel.journal_inspect import inspect
from anybatch.kernel.journal_read import files_of, read_state
from anybatch.kernel.journal_restore import EPOCHS_AHEAD, restore
from damage_rig import find, flip, make_journal, untouched

SCRIPT = Path(__file__).parent / "scripts" / "loaded_kernel.py"
LOAD_S = 60.0
ENOUGH = 40
"""Submits answered before, and between, backups."""


def backend() -> ProcessBackend:
    return ProcessBackend(agent_idle_ms=2_000)


class Loaded:
    """A kernel of its own process, and the jobs that it has acknowledged, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "j.db"
        self.jobs: dict[str, str] = {}
        self.ready = threading.Event()
        command = [sys.executable, str(SCRIPT), str(self.path), str(folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line == "ready\n":
                self.ready.set()
            elif line.endswith("\n"):  # the last may have been cut off by the kill
                job_id, name = line.split()
                self.jobs[name] = job_id
        self.ready.set()

    async def acknowledge_more(self) -> None:
        wanted = len(self.jobs) + ENOUGH
        async with asyncio.timeout(LOAD_S):
            while len(self.jobs) < wanted and self.process.poll() is None:
                await asyncio.sleep(0.01)

    async def has_written(self, name: str) -> None:
        """Return once what the first attempt of a job wrote is in its place, which is a little after it was written."""
        log = files_of(self.path) / "logs" / self.jobs[name] / "0-1.log"
        async with asyncio.timeout(LOAD_S):
            while not log.exists():
                await asyncio.sleep(0.01)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def pid(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())

    def runs(self, name: str) -> bool:
        try:
            return Path(f"/proc/{self.pid(name)}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except FileNotFoundError:
            return False


@contextmanager
def loaded(folder: Path) -> Iterator[Loaded]:
    kernel = Loaded(folder)
    try:
        assert kernel.ready.wait(60)
        yield kernel
    finally:
        kernel.kill()
        (folder / "go").touch()  # for its attempts to end


@pytest.mark.asyncio
@pytest.mark.timeout(180)
async def test_a_copy_runs_to_its_end_while_the_originals_attempts_go_on(tmp_path: Path) -> None:
    with loaded(tmp_path) as original:
        await original.has_written("once")
        for number in range(3):
            await original.acknowledge_more()
            before = dict(original.jobs)
            about = back_up(original.path, tmp_path / f"backup-{number}", logs=number == 2).about
            with_ids = read_state(tmp_path / f"backup-{number}").ids
            assert set(before.values()) <= set(with_ids), "what was answered before is in it"
            assert about.attempts >= 2
            found = inspect(original.path)
            assert found.sound, found.trouble
            assert found.held_by is not None
            assert f"process {original.process.pid}" in found.held_by
        original.kill()
        # The copy, on the same machine at the same time.
        report = await asyncio.to_thread(restore, tmp_path / "backup-2", tmp_path / "copy" / "c.db")
        lost = {job.name: (job.tried_again, job.failed) for job in report.lost if not job.name.startswith("load")}
        assert lost == {"once": (0, 1), "thrice": (1, 0)}
        async with Kernel(tmp_path / "copy" / "c.db", backends={"process": backend}) as copy:
            assert copy.id == report.kernel_id != about.kernel_id
            for job in [job async for job in copy.list_jobs()]:
                await copy.wait(job.id)
            once = await copy.describe_job(before["once"])
            assert (once.status, once.status_reason) == (JobStatus.FAILED, "Host EC2 (instance local) terminated.")
            assert [attempt.failure_class for attempt in once.attempts] == ["host lost"]
            thrice = await copy.describe_job(before["thrice"])
            assert (thrice.status, len(thrice.attempts)) == (JobStatus.SUCCEEDED, 2)
            assert await copy.read_logs(thrice.id) == b"again, thrice\n"
            assert await copy.read_logs(once.id) == b"begun by once\n", "the log as it was"
            for name, job_id in before.items():
                if name.startswith("load"):
                    await copy.describe_job(job_id)
        # The original, where nothing has happened to what ran.
        assert original.runs("once")
        assert original.runs("thrice")
        (tmp_path / "go").touch()
        async with Kernel(original.path, backends={"process": backend}, on_close="stop") as kernel:
            assert kernel.id == about.kernel_id
            once = await kernel.wait(original.jobs["once"])
            assert (once.exit_code, len(once.attempts)) == (5, 1)
            assert await kernel.read_logs(once.id) == b"begun by once\nended by once\n"
            for job_id in original.jobs.values():
                await kernel.wait(job_id)
    ran = (tmp_path / "ran").read_text().split()
    assert sorted(ran) == sorted(
        [f"{before['once']}/1", f"{before['thrice']}/1", f"{before['thrice']}/2", f"{before['thrice']}/2"]
    ), "one second attempt in each of the two"


@pytest.mark.asyncio
@pytest.mark.timeout(120)
async def test_what_was_under_way_can_be_run_again_without_counting(tmp_path: Path) -> None:
    with loaded(tmp_path) as original:
        back_up(original.path, tmp_path / "backup")
        original.kill()
        report = await asyncio.to_thread(restore, tmp_path / "backup", tmp_path / "c.db", again=True)
        assert {job.name: (job.tried_again, job.failed) for job in report.lost}["once"] == (1, 0)
        async with Kernel(tmp_path / "c.db", backends={"process": backend}, on_close="stop") as copy:
            once = await copy.wait(original.jobs["once"])
            assert (once.status, len(once.attempts)) == (JobStatus.SUCCEEDED, 2)
            assert once.attempts[0].failure_class == "kernel closed"
            assert (await copy.last_event_id()).epoch > EPOCHS_AHEAD
        assert original.runs("once")


# -- what a backup is, and is not ---------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A small real journal, closed in order."""

    async def fill() -> None:
        async with Kernel(tmp_path / "j.db") as kernel:
            await kernel.create_compute_environment("e", backend="null")
            await kernel.create_job_queue("q", priority=1, compute_environments=["e"])
            for number in range(5):
                await (await kernel.submit_job(f"job-{number}", queue="q", command=["x"])).wait()

    asyncio.run(fill())
    return tmp_path / "j.db"


def test_a_backup_is_no_journal_and_a_journal_no_backup(journal: Path, tmp_path: Path) -> None:
    back_up(journal, tmp_path / "b")
    with pytest.raises(JournalError, match="is a backup of a journal; `anybatch journal restore`"):
        asyncio.run(opened(tmp_path / "b"))
    with pytest.raises(JournalError, match="is a backup already"):
        back_up(tmp_path / "b", tmp_path / "b2")
    with pytest.raises(JournalError, match="is a journal, not a backup"):
        restore(journal, tmp_path / "c.db")
    assert not (tmp_path / "c.db").exists()


async def opened(path: Path) -> str:
    async with Kernel(path) as kernel:
        return kernel.id


def test_each_restore_has_an_id_and_the_same_history(journal: Path, tmp_path: Path) -> None:
    with untouched(journal.parent):
        about = inspect(journal)
    back_up(journal, tmp_path / "b")
    with untouched(tmp_path / "j.db.d"):
        copies = [restore(tmp_path / "b", tmp_path / f"c-{n}.db") for n in range(2)]
    assert len({about.kernel_id, *(copy.kernel_id for copy in copies)}) == 3
    for copy in copies:
        found = inspect(Path(copy.path))
        assert found.sound, found.trouble
        assert (found.first, found.jobs, found.epoch) == (about.first, about.jobs, about.epoch + EPOCHS_AHEAD)
        check_invariants(read_state(copy.path))
        assert asyncio.run(opened(Path(copy.path))) == copy.kernel_id


def test_nothing_is_written_over(journal: Path, tmp_path: Path) -> None:
    back_up(journal, tmp_path / "b")
    with untouched(tmp_path):
        with pytest.raises(JournalError, match="is there already; a backup is never written over"):
            back_up(journal, tmp_path / "b")
        with pytest.raises(JournalError, match="is there already; nothing is ever restored over it"):
            restore(tmp_path / "b", journal)
    (tmp_path / "c.db.d").mkdir()
    with pytest.raises(JournalError, match="a restore that was cut off may have left it"):
        restore(tmp_path / "b", tmp_path / "c.db")
    (tmp_path / "l.logs").mkdir()
    with pytest.raises(JournalError, match="l.logs is there already"):
        back_up(journal, tmp_path / "l", logs=True)
    assert not (tmp_path / "l").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from anybatch.kernel import journal_backup, journal_restore
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
{module}.{name} = die
journal_backup.back_up(Path(sys.argv[1]), Path(sys.argv[2])) if "{module}" == "journal_backup" else \\
    journal_restore.restore(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def killed_in(module: str, name: str, *arguments: Path) -> None:
    """Do it in a process that is killed when it comes to this function."""
    done = subprocess.run([sys.executable, "-c", KILLED.format(module=module, name=name), *arguments], check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_copy_may_be_made_that_starts_nothing_until_it_is_told(tmp_path: Path) -> None:
    async def original() -> str:
        async with Kernel(tmp_path / "j.db") as kernel:
            await kernel.create_compute_environment("e", backend="null", max_vcpus=1)
            await kernel.create_job_queue("q", priority=1, compute_environments=["e"])
            return (await kernel.submit_job("job", queue="q", command=["x"], vcpus=2)).id

    async def copy(job_id: str) -> None:
        async with Kernel(tmp_path / "c.db") as kernel:
            (environment,) = await kernel.describe_compute_environments()
            assert environment.state == "DISABLED"
            await kernel.update_compute_environment("e", max_vcpus=2)
            assert [reason.code for reason in await kernel.explain(job_id)] == ["ENVIRONMENT_DISABLED"]
            await kernel.update_compute_environment("e", state="ENABLED")
            assert (await kernel.wait(job_id)).status is JobStatus.SUCCEEDED

    job_id = asyncio.run(original())
    back_up(tmp_path / "j.db", tmp_path / "b")
    restore(tmp_path / "b", tmp_path / "c.db", disabled=True)
    asyncio.run(copy(job_id))


def test_a_kernel_that_begins_during_a_backup_has_it_made_again(
    journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holders = iter([None, "a kernel"])
    real, calls = journal_backup._back_up, list[Path]()

    def at_first_torn(path: Path, to: Path, *, logs: bool) -> journal_backup.BackupReport:
        calls.append(to)
        if len(calls) == 1:
            raise JournalDamaged("torn")
        return real(path, to, logs=logs)

    monkeypatch.setattr(journal_backup, "holder_of", lambda _: next(holders))
    monkeypatch.setattr(journal_backup, "_back_up", at_first_torn)
    back_up(journal, tmp_path / "b")
    assert len(calls) == 2
    assert inspect(tmp_path / "b").sound


@pytest.mark.parametrize("name", ["copy_rows", "sync_file", "publish"])
def test_a_backup_that_is_killed_leaves_no_half_of_one(journal: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "kept" / "b"
    target.parent.mkdir()
    killed_in("journal_backup", name, journal, target)
    assert not target.exists()
    back_up(journal, target)
    assert [path.name for path in target.parent.iterdir()] == ["b"], "what was left is gone"
    assert inspect(target).sound


@pytest.mark.parametrize("name", ["copy_rows", "handle_end", "publish"])
def test_a_restore_that_is_killed_leaves_no_half_of_one(journal: Path, tmp_path: Path, name: str) -> None:
    back_up(journal, tmp_path / "b")
    killed_in("journal_restore", "encode" if name == "handle_end" else name, tmp_path / "b", tmp_path / "c.db")
    assert not (tmp_path / "c.db").exists()
    if name == "publish":  # the last step of all
        with pytest.raises(JournalError, match="cut off"):
            restore(tmp_path / "b", tmp_path / "c.db")
        os.rename(tmp_path / "c.db.d", tmp_path / "left")
    restore(tmp_path / "b", tmp_path / "c.db")
    assert inspect(tmp_path / "c.db").sound


def test_a_full_disk_is_an_error_and_leaves_nothing(
    journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(journal_backup, "copy_rows", full)
    with pytest.raises(JournalError, match="the backup .* cannot be written: database or disk is full"):
        back_up(journal, tmp_path / "b")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".b", "b"))]


def test_a_damaged_journal_is_not_backed_up_as_if_it_were_whole(tmp_path: Path) -> None:
    made = make_journal(tmp_path / "j.db", records=30)
    flip(made.path, find(made.path, b"7 7 7 7"))
    with pytest.raises(JournalDamaged):
        back_up(made.path, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_missing_tail_is_not_backed_up_as_if_it_were_whole(journal: Path, tmp_path: Path) -> None:
    early = tmp_path / "early"
    early.mkdir()
    back_up(journal, tmp_path / "b")
    (early / "j.db").write_bytes(journal.read_bytes())
    asyncio.run(opened(journal))
    (early / "j.db.d").mkdir()
    (early / "j.db.d" / "mark").write_bytes((files_of(journal) / "mark").read_bytes())
    with pytest.raises(JournalDamaged, match="its end is missing"):
        back_up(early / "j.db", tmp_path / "b2")


def test_a_damaged_backup_is_not_restored(journal: Path, tmp_path: Path) -> None:
    back_up(journal, tmp_path / "b")
    flip(tmp_path / "b", find(tmp_path / "b", b"job-3"))
    assert not inspect(tmp_path / "b").sound
    with pytest.raises(JournalDamaged):
        restore(tmp_path / "b", tmp_path / "c.db")
    assert not (tmp_path / "c.db").exists()
    assert not (tmp_path / "c.db.d").exists()


def test_logs_are_copied_where_asked_for(tmp_path: Path) -> None:
    async def fill() -> str:
        async with Kernel(tmp_path / "j.db", backends={"process": backend}, on_close="stop") as kernel:
            done = await kernel.run(["echo", "hello"])
            return done.job.id

    job_id = asyncio.run(fill())
    back_up(tmp_path / "j.db", tmp_path / "b", logs=True)
    assert [path.name for path in logs_of(tmp_path / "b").iterdir()] == [job_id]
    for name, logs in (("c.db", True), ("d.db", False)):
        assert restore(tmp_path / "b", tmp_path / name, logs=logs).logs is logs
        kept = tmp_path / f"{name}.d" / "logs" / job_id / "0-1.log"
        assert kept.exists() is logs
