"""After a power cut every acknowledged call is there, and none is answered or started elsewhere before its sync."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import anybatch.kernel.journal as journal_module
import pytest
from anybatch import JobStatus, Kernel, NotFound
from anybatch.kernel.backend import Capabilities
from anybatch.kernel.journal import FileJournal
from anybatch.testing.null import NullBackend
from damage_rig import events, look, quick_folder, wal
from disk_rig import Disk, acknowledgements, trace
from kernel_rig import LastingBackend, RecordedKernel, add_queue, kernel_on, submit, turns, until

SCRIPTS = Path(__file__).parent / "scripts"


async def check_jobs(path: Path, acknowledged: list[str]) -> None:
    """A kernel opens what is left, and knows every job that was acknowledged; cancelled ones are cancelled."""
    async with Kernel(path, backends={"null": NullBackend, "b": NullBackend}) as kernel:
        assert kernel.journal_loss is None
        for line in acknowledged:
            job = await kernel.describe_job(line.removeprefix("ended "))
            if line.startswith("ended "):
                assert job.is_terminated or job.status.is_terminal
        # It is alive: this is also what would tell of a lost queue or environment.
        more = await kernel.submit_job("more", queue="q", command=["x"])
        assert (await more.wait()).status is JobStatus.SUCCEEDED


@pytest.mark.asyncio
async def test_every_acknowledged_call_survives_a_cut_at_each_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without tracing: the write-ahead file is cut to what each sync has covered."""
    synced: list[int] = []
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        is_log = os.readlink(f"/proc/self/fd/{fd}").endswith("-wal")
        size = os.fstat(fd).st_size
        real(fd)
        if is_log:
            synced.append(size)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    acknowledged: list[tuple[int, str]] = []
    path = tmp_path / "run" / "j.db"
    async with kernel_on(path=path) as kernel:
        begun = len(synced)
        shutil.copytree(path.parent, tmp_path / "base")
        base_size = wal(path).stat().st_size

        async def one(n: int) -> None:
            job = await submit(kernel, f"job-{n}", array_size=2)
            acknowledged.append((len(synced), job.id))
            await job.wait()

        for n in range(0, 20, 4):
            await asyncio.gather(*(one(n + i) for i in range(4)))
        log = wal(path).read_bytes()
    monkeypatch.undo()
    assert len(acknowledged) == 20
    cuts = [
        (number, size) for number, size in enumerate(synced, 1) if begun <= number and base_size <= size <= len(log)
    ]
    assert len(cuts) >= 5
    survivors = set()
    for number, size in cuts:
        left = tmp_path / f"cut-{number}"
        shutil.copytree(tmp_path / "base", left)
        wal(left / "j.db").write_bytes(log[:size])
        known = [job for count, job in acknowledged if count <= number]
        survivors.add(len(known))
        await check_jobs(left / "j.db", known)
    assert len(survivors) > 3


def test_every_acknowledged_call_survives_a_cut_at_any_system_call(tmp_path: Path) -> None:
    """From the real system calls: writes that no sync has covered are lost, all or any of them.

    That a call is there at the very moment of its answer shows that its sync came before the answer.
    """
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)
    chance = random.Random(seed)
    root, acknowledged = tmp_path / "run", tmp_path / "acknowledged"
    root.mkdir()
    script = [sys.executable, str(SCRIPTS / "traced_kernel.py"), str(root / "j.db"), str(acknowledged)]
    changes = trace(script, tmp_path / "trace")
    answers = list(acknowledgements(changes, acknowledged))
    assert answers[0][1] == "ready"
    assert len(answers) == 51
    folds = [n for n, change in enumerate(changes) if change.kind == "sync" and change.path == str(root / "j.db")]
    assert len(folds) > 3, "it was folded while it ran"

    at_answers = [n for n, _ in answers]
    around_folds = [n + chance.randrange(-6, 3) for n in folds if n > at_answers[0]]
    anywhere = [chance.randrange(at_answers[0], len(changes)) for _ in range(15)]
    cuts = set(at_answers) | {n for n in around_folds if n > at_answers[0]} | set(anywhere)
    disk = Disk(root)
    checked = 0
    with quick_folder(tmp_path) as folder:
        for n, change in enumerate(changes):
            if n in cuts:
                known = [line for at, line in answers if at <= n and line != "ready"]
                for keeps in (None, chance) if checked % 3 == 0 else (None,):
                    left = folder / f"cut-{n}-{'none' if keeps is None else 'some'}"
                    disk.image(left, keeps)
                    asyncio.run(check_jobs(left / "j.db", known))
                checked += 1
            disk.take(change)
    assert checked == len(cuts)


def test_the_disk_of_these_tests_forgets_what_was_not_synced(tmp_path: Path) -> None:
    """The check above is able to fail: without the syncs before an answer, the answered call is gone."""
    root, acknowledged = tmp_path / "run", tmp_path / "acknowledged"
    root.mkdir()
    script = [sys.executable, str(SCRIPTS / "traced_kernel.py"), str(root / "j.db"), str(acknowledged)]
    changes = trace(script, tmp_path / "trace")
    answers = list(acknowledgements(changes, acknowledged))
    (ready, _), (at, job), *_ = answers
    disk = Disk(root)
    for n, change in enumerate(changes[:at]):
        if n < ready or change.kind != "sync":
            disk.take(change)
    disk.image(tmp_path / "left")
    with pytest.raises(NotFound):
        asyncio.run(check_jobs(tmp_path / "left" / "j.db", [job]))


class RemoteBackend(LastingBackend):
    """One whose hosts outlive the kernel's machine."""

    capabilities: ClassVar[Capabilities] = Capabilities(commands=False, reattach=True, remote=True)


@pytest.mark.asyncio
async def test_a_remote_launch_or_stop_waits_for_the_sync_and_a_local_one_does_not(tmp_path: Path) -> None:
    local, remote = LastingBackend(), RemoteBackend()
    backends = {"l": local, "r": remote}
    async with RecordedKernel(tmp_path / "j.db", backends=backends, on_close="stop") as kernel:
        await add_queue(kernel, "l", name="near")
        await add_queue(kernel, "r", name="far")
        near = [asyncio.ensure_future(submit(kernel, f"near-{n}", queue="near")) for n in range(2)]
        far = [asyncio.ensure_future(submit(kernel, f"far-{n}", queue="far")) for n in range(2)]
        kernel.recorded.hold_sync = True
        await until(lambda: len(local.live) == 2)
        await turns()
        assert remote.calls == ["start"]
        kernel.recorded.hold_sync = False
        jobs = [await call for call in (*near, *far)]
        await until(lambda: len(remote.live) == 2)

        kernel.recorded.hold_sync = True
        stopping = [asyncio.ensure_future(job.terminate("enough")) for job in jobs]
        await until(lambda: not local.live)
        await turns()
        assert len(remote.live) == 2
        assert remote.stopped == []
        kernel.recorded.hold_sync = False
        await asyncio.gather(*stopping)
        await until(lambda: not remote.live)


# -- folding the write-ahead file into the main one ----------------------------------------------------

KILLED = """
import asyncio, sys
import anybatch.kernel.journal as journal_module
from damage_rig import events, state_at
journal_module.CHECKPOINT_BYTES = 20_000

async def main(path):
    journal = journal_module.FileJournal(path)
    journal.begin_epoch(journal.epoch + 1)
    while True:
        for _ in range(5):
            journal.commit(1000, events(journal.last + 1, 2))
        if journal.last % 100 == 0:
            journal.put_snapshot(state_at(journal.last))
        print(await journal.sync(), flush=True)

asyncio.run(main(sys.argv[1]))
"""


def test_nothing_is_lost_by_a_kill_while_it_is_folded_and_read(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)
    chance = random.Random(seed)
    path = tmp_path / "j.db"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    acknowledged = 0
    for _ in range(5):
        command = [sys.executable, "-c", KILLED, str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        acknowledged = int(process.stdout.readline())
        done = threading.Event()
        seen: list[int] = []
        reader = threading.Thread(target=read_along, args=(path, done, seen))
        reader.start()
        for _ in range(chance.randrange(10, 60)):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, process.stdout.read().splitlines()[:-1])])
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        done.set()
        reader.join()
        assert seen == sorted(seen)
        found = look(path)
        found.check()
        assert found.last >= acknowledged
        assert found.loss is None


def read_along(path: Path, done: threading.Event, seen: list[int]) -> None:
    """Another process's look at the file, as a backup takes it."""
    db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)
    while not done.is_set():
        db.execute("BEGIN")
        rows = db.execute("SELECT first, count FROM log ORDER BY first").fetchall()
        assert all(row[0] + row[1] == after[0] for row, after in itertools.pairwise(rows))
        seen.append(rows[-1][0])
        db.execute("COMMIT")
    db.close()


@pytest.mark.asyncio
async def test_commits_that_never_pause_do_not_let_the_write_ahead_file_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "CHECKPOINT_BYTES", 50_000)
    journal = FileJournal(tmp_path / "j.db")
    journal.begin_epoch(1)
    sizes = []
    for n in range(4_000):
        journal.commit(1000, events(journal.last + 1))
        if n % 50 == 49:
            await journal.sync()
            sizes.append(wal(journal.path).stat().st_size)
    await journal.close()
    written = journal.last * 5_000  # a leaf and its parent each time
    assert max(sizes) < written / 3
    await asyncio.to_thread(lambda: look(tmp_path / "j.db").check())


@pytest.mark.asyncio
async def test_what_a_reader_kept_from_being_folded_is_folded_soon_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the file does not stay as large as it was."""
    monkeypatch.setattr(journal_module, "CHECKPOINT_BYTES", 1_000_000)
    monkeypatch.setattr(journal_module, "FOLD_AGAIN_BYTES", 20_000)
    monkeypatch.setattr(journal_module, "WAL_KEPT_BYTES", 500_000)
    journal = FileJournal(tmp_path / "j.db")
    journal.begin_epoch(1)

    def commit_until(done: Callable[[], bool]) -> int:
        """How many bytes had to be committed for that."""
        for n in range(10_000):
            if done():
                return n * 5_000
            journal.commit(1000, events(journal.last + 1))
            journal._folder.submit(int).result()  # let folding come to its end
        raise AssertionError("10,000 commits later it is still not so")

    journal.commit(1000, events(journal.last + 1))
    with contextlib.closing(sqlite3.connect(f"{journal.path.as_uri()}?mode=ro", uri=True)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM log").fetchall()
        commit_until(lambda: wal(journal.path).stat().st_size > 3_000_000)
    assert commit_until(lambda: wal(journal.path).stat().st_size <= 500_000) < 100_000
    await journal.close()
    await asyncio.to_thread(lambda: look(tmp_path / "j.db").check())


@pytest.mark.asyncio
async def test_a_fold_holds_up_no_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, folding = threading.Event(), threading.Event()

    class Slow(FileJournal):
        def _fold(self) -> None:
            folding.set()
            held.wait(20)
            super()._fold()

    monkeypatch.setattr(journal_module, "CHECKPOINT_BYTES", 10_000)
    journal = Slow(tmp_path / "j.db")
    journal.begin_epoch(1)
    while not folding.is_set():
        journal.commit(1000, events(journal.last + 1))
        await asyncio.sleep(0)
    for _ in range(5):
        journal.commit(1000, events(journal.last + 1))
        assert await asyncio.wait_for(journal.sync(), 10) == journal.last
    held.set()
    await journal.close()
    await asyncio.to_thread(lambda: look(tmp_path / "j.db").check())
