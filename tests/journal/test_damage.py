"""Damage is noticed: what was committed is there, or a clear error says what is missing and leaves all as it is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anybatch.kernel.journal_place as place_module
import pytest
import structlog
from allowed_skips import NEEDS_CHATTR
from anybatch import JobStatus, JournalDamaged, JournalError, Kernel, NotFound
from anybatch.kernel.core.events import RECORD_VERSION
from anybatch.kernel.journal import FileJournal
from anybatch.kernel.journal_db import connect
from anybatch.kernel.journal_mark import SLOT_BYTES
from damage_rig import (
    Made,
    commit_more,
    copy_of,
    cut,
    events,
    everything_in,
    find,
    flip,
    look,
    make_journal,
    quick_folder,
    text_of,
    untouched,
    wal,
)
from kernel_rig import kernel_on, submit

# -- a tail that is missing --------------------------------------------------------------------------


def test_a_missing_write_ahead_file_is_reported_with_its_size(tmp_path: Path) -> None:
    made = make_journal(tmp_path / "j.db", fold_at=19)
    in_main = sum(n % 3 + 1 for n in range(20))
    wal(made.killed).unlink()
    with untouched(made.killed.parent), pytest.raises(JournalDamaged) as refused:
        look(made.killed)

    assert (refused.value.first, refused.value.last) == (in_main + 1, made.last)
    assert refused.value.events == made.last - in_main
    for words in ("j.db-wal is not there", f"{made.last - in_main} events", "accept_loss=True", "in epoch 1"):
        assert words in str(refused.value)


def test_an_accepted_loss_is_reported_and_cannot_be_confused_with_what_was_lost(tmp_path: Path) -> None:
    made = make_journal(tmp_path / "j.db", fold_at=19)
    wal(made.killed).unlink()
    damaged = made.killed.read_bytes()
    with structlog.testing.capture_logs() as logs:
        found = look(made.killed, accept_loss=True)

    found.check()
    assert found.loss is not None
    assert (found.last + 1, made.last) == (found.loss.first, found.loss.last)
    assert found.loss.events == made.last - found.last
    assert found.loss.kept is not None
    assert (found.loss.kept / "j.db").read_bytes() == damaged
    assert [(entry["event"], entry["events"]) for entry in logs] == [("journal_loss_accepted", found.loss.events)]
    assert commit_more(made.killed) == found.last + 5
    again = look(made.killed)
    again.check()
    assert again.loss is None
    assert again.epoch == 3, "1 was lost in part, 2 was that of the loss"


@pytest.mark.parametrize("step", [0, 24, 100, 4120, 9000])
def test_a_truncated_write_ahead_file(tmp_path: Path, step: int) -> None:
    """SQLite takes the torn tail for one that was never committed; the mark knows better."""
    made = make_journal(tmp_path / "j.db")
    cut(wal(made.killed), wal(made.killed).stat().st_size - step)
    if step == 0:
        look(made.killed).check()
        return
    with untouched(made.killed.parent), pytest.raises(JournalDamaged, match="its end is missing") as refused:
        look(made.killed)
    found = look(made.killed, accept_loss=True)
    found.check()
    assert found.last == refused.value.first - 1
    assert made.last - found.last <= 9


def test_an_unsynced_tail_may_be_missing(tmp_path: Path) -> None:
    """What nobody was answered for may go with the power; then nothing is reported."""

    async def go() -> tuple[int, int]:
        journal = FileJournal(tmp_path / "a" / "j.db")
        journal.begin_epoch(1)
        journal.commit(1, events(1, 3))
        synced = await journal.sync()
        size = wal(journal.path).stat().st_size
        journal.commit(2, events(4, 3))
        copy_of(journal.path, tmp_path / "b")
        await journal.close()
        return synced, size

    synced, size = asyncio.run(go())
    cut(wal(tmp_path / "b" / "j.db"), size)
    found = look(tmp_path / "b" / "j.db")
    found.check()
    assert found.last == synced


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_a_main_file_that_is_gone_or_empty(tmp_path: Path, how: str) -> None:
    made = make_journal(tmp_path / "j.db")
    made.path.unlink()
    if how == "empty":
        made.path.touch()
    with untouched(tmp_path), pytest.raises(JournalDamaged, match="not there" if how == "gone" else "empty") as refused:
        look(made.path)
    assert refused.value.events == made.last
    found = look(made.path, accept_loss=True)
    assert (found.last, found.records) == (0, [])
    assert found.loss is not None
    assert found.loss.events == made.last


def test_an_older_copy_put_in_its_place_is_a_missing_tail(tmp_path: Path) -> None:
    made = make_journal(tmp_path / "j.db")
    older = made.path.read_bytes()
    commit_more(made.path)
    made.path.write_bytes(older)
    with pytest.raises(JournalDamaged) as refused:
        look(made.path)
    assert (refused.value.first, refused.value.events) == (made.last + 1, 5)


def test_a_journal_moved_without_its_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    made = make_journal(tmp_path / "j.db")
    (tmp_path / "new").mkdir()
    moved = made.path.rename(tmp_path / "new" / "j.db")
    look(moved).check()


@pytest.mark.parametrize("slots", [(0,), (1,), (0, 1)])
def test_a_torn_mark_leaves_the_one_before_it(tmp_path: Path, slots: tuple[int, ...]) -> None:
    made = make_journal(tmp_path / "j.db")
    mark = made.path.with_name("j.db.d") / "mark"
    for slot in slots:
        flip(mark, slot * SLOT_BYTES + 20)
    with structlog.testing.capture_logs() as logs:
        found = look(made.path)
    found.check()
    assert found.last == made.last
    assert [entry["event"] for entry in logs] == ["journal_mark_unreadable"] * (len(slots) == 2)


# -- the file itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0002, 0.3, 0.5, 0.9])
def test_a_truncated_main_file_is_refused_untouched(tmp_path: Path, share: float) -> None:
    made = make_journal(tmp_path / "j.db", snapshots=[10, 20])
    cut(made.path, int(made.path.stat().st_size * share))
    with untouched(tmp_path), pytest.raises(JournalDamaged, match=r"j\.db is damaged"):
        look(made.path)
    found = look(made.path, accept_loss=True)
    found.check()
    assert found.loss is not None
    assert found.last + found.loss.events == made.last


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    with quick_folder(tmp_path) as folder:
        yield folder


def test_any_cut_or_flip_is_harmless_or_reported(quick_path: Path) -> None:
    """Never wrong events, never a silent loss; refused files are left as they are, and what can be read can be kept."""
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)
    chance = random.Random(seed)
    made = make_journal(quick_path / "made" / "j.db", snapshots=[9, 21], fold_at=13)
    closed = copy_of(made.path, quick_path / "closed")
    outcomes = {"whole": 0, "refused": 0, "kept": 0}
    for n in range(100):
        source = chance.choice([closed, made.killed])
        path = copy_of(source, quick_path / f"{n}")
        file = chance.choice([path, wal(path)]) if wal(path).exists() else path
        size = file.stat().st_size
        if chance.random() < 0.3:
            cut(file, at := chance.randrange(size))
            what = f"{source.parent.name}: {file.name} cut at {at}"
        else:
            flip(file, at := chance.randrange(size), bit := chance.randrange(8))
            what = f"{source.parent.name}: {file.name} bit {bit} of {at} flipped"
        before = everything_in(path.parent)
        try:
            found = look(path)
            found.check()
            assert (found.last, found.loss) == (made.last, None)
            outcomes["whole"] += 1
        except JournalError:
            assert everything_in(path.parent) == before, what
            outcomes["refused"] += 1
            try:
                found = look(path, accept_loss=True)
            except JournalError as e:
                if "newer" in str(e):
                    continue
                raise AssertionError(what) from e
            found.check()
            assert found.loss is not None, what
            assert found.last + found.loss.events == made.last, what
            outcomes["kept"] += found.last > 0
        except AssertionError as e:
            raise AssertionError(what) from e
    print(outcomes)
    assert min(outcomes.values()) > 5


def test_a_flip_inside_a_record_names_the_event(tmp_path: Path) -> None:
    made = make_journal(tmp_path / "j.db", snapshots=[5])
    flip(made.path, find(made.path, text_of(40)) + 50)
    with untouched(tmp_path), pytest.raises(JournalDamaged, match="the record of event 40 is not what was written"):
        look(made.path)
    found = look(made.path, accept_loss=True)
    found.check()
    assert found.last == 39
    assert found.loss is not None
    assert found.loss.events == made.last - 39


def test_a_flip_in_old_history_does_not_keep_a_kernel_from_starting(tmp_path: Path) -> None:
    made = make_journal(tmp_path / "j.db", snapshots=[20, 25])
    flip(made.path, find(made.path, text_of(10)) + 50)
    look(made.path).check()

    async def read() -> None:
        journal = FileJournal(made.path)
        try:
            assert [record.first for record in journal.read(7)] == [8]
            with pytest.raises(JournalDamaged, match="event 10"):
                journal.read(9)
            assert journal.read(12)[0].first == 13
        finally:
            await journal.close()

    asyncio.run(read())


def test_a_loss_keeps_what_can_be_read_of_the_history(tmp_path: Path) -> None:
    made = make_journal(tmp_path / "j.db", snapshots=[20])
    last = look(made.path).last
    for n in (10, last):
        flip(made.path, find(made.path, text_of(n)) + 50)
    found = look(made.path, accept_loss=True)
    found.check()
    assert found.snapshot is not None

    async def read() -> tuple[int, int]:
        journal = FileJournal(made.path)
        oldest, first = journal.oldest, journal.read(journal.oldest - 1)[0].first
        await journal.close()
        return oldest, first

    assert asyncio.run(read()) == (13, 13)


# -- snapshots ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("snapshots", [[20], [8, 20]])
def test_an_unreadable_snapshot_is_replaced_by_the_one_before_it_or_the_log(
    tmp_path: Path, snapshots: list[int]
) -> None:
    made = make_journal(tmp_path / "j.db", snapshots=snapshots)
    whole = look(copy_of(made.path, tmp_path / "whole"))
    assert whole.snapshot is not None
    flip(made.path, find(made.path, whole.snapshot[:60]) + 30)
    with structlog.testing.capture_logs() as logs:
        found = look(made.path)
    found.check()
    assert found.last == made.last
    assert [entry["event"] for entry in logs] == ["journal_snapshot_unreadable"]
    assert (found.snapshot is None) == (len(snapshots) == 1)


def test_an_unreadable_snapshot_without_which_nothing_goes_is_an_error(tmp_path: Path) -> None:
    made = make_journal(tmp_path / "j.db", snapshots=[20])
    with contextlib.closing(sqlite3.connect(made.path)) as db, db:
        at = db.execute("SELECT seq FROM snapshot").fetchone()[0]
        db.execute("DELETE FROM log WHERE first <= ?", (at,))
        db.execute("UPDATE snapshot SET data = ?", (b"nonsense",))
    db.close()
    with untouched(tmp_path), pytest.raises(JournalDamaged, match=f"events 1 to {at} are not there"):
        look(made.path)
    found = look(made.path, accept_loss=True)
    assert (found.snapshot, found.records, found.last) == (None, [], 0)


@pytest.mark.asyncio
async def test_a_kernel_replays_from_before_a_snapshot_that_it_cannot_decode(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    async with kernel_on(path=path) as kernel:
        job = await submit(kernel, array_size=3)
        await job.wait()
    db = connect(path)
    at = db.execute("SELECT MAX(seq) FROM snapshot").fetchone()[0]
    db.close()
    journal = FileJournal(path)
    journal.begin_epoch(7)
    assert journal.last == at
    journal.put_snapshot(b"from a future that never came")
    await journal.close()
    with structlog.testing.capture_logs() as logs:
        async with kernel_on(path=path) as kernel:
            assert (await kernel.describe_job(job)).status is JobStatus.SUCCEEDED
            assert await kernel.last_event_id() == (8, at + 1)
            assert kernel.journal_loss is None
    assert "snapshot_unusable" in {entry["event"] for entry in logs}


@pytest.mark.asyncio
async def test_a_kernel_tells_what_it_has_given_up(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    async with kernel_on(path=path) as kernel:
        first = await submit(kernel)
        await first.wait()
    older = path.read_bytes()
    async with kernel_on(path=path) as kernel:
        second = await submit(kernel)
        await second.wait()
        last = await kernel.last_event_id()
    path.write_bytes(older)
    with pytest.raises(JournalDamaged):
        async with Kernel(path):
            pass
    async with kernel_on(path=path, accept_loss=True) as kernel:
        loss = kernel.journal_loss
        assert loss is not None
        assert loss.last == last.sequence
        assert (await kernel.describe_job(first)).status is JobStatus.SUCCEEDED
        with pytest.raises(NotFound):
            await kernel.describe_job(second)
        assert (await kernel.last_event_id()).epoch > last.epoch
        assert (await (await submit(kernel)).wait()).status is JobStatus.SUCCEEDED
    async with kernel_on(path=path) as kernel:
        assert kernel.journal_loss is None


# -- what is no journal, and where none can be ---------------------------------------------------------


def test_a_journal_of_a_newer_version_is_refused_untouched(tmp_path: Path) -> None:
    made = make_journal(tmp_path / "j.db")
    with contextlib.closing(sqlite3.connect(made.path)) as db, db:
        db.execute(f"PRAGMA user_version = {RECORD_VERSION + 1}")
    db.close()
    for accept in (False, True):
        with untouched(tmp_path), pytest.raises(JournalError, match="use a newer one"):
            look(made.path, accept_loss=accept)


def other_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE notes (text)")
    db.close()


@pytest.mark.parametrize("accept", [False, True])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (other_database, "an SQLite database but not a journal"),
        (lambda path: path.write_text("dear diary\n" * 100), "not a journal of anybatch, nor any other SQLite"),
        (lambda path: path.write_text("x"), "not a journal of anybatch, nor any other SQLite"),
        (lambda path: path.mkdir(), "a directory"),
        (lambda path: os.mkfifo(path), "no regular file"),
        (lambda path: path.symlink_to(path), "Too many levels|Symlinks"),
        (lambda path: path.symlink_to("/dev/null"), "no regular file"),
    ],
    ids=["database", "text", "letter", "directory", "fifo", "loop", "device"],
)
def test_what_is_no_journal_is_refused_untouched(tmp_path: Path, make: object, words: str, accept: bool) -> None:
    path = tmp_path / "j.db"
    make(path)  # type: ignore[operator]
    with untouched(tmp_path), pytest.raises(JournalError, match=words) as refused:
        look(path, accept_loss=accept)
    assert type(refused.value) is JournalError
    assert [file.name for file in tmp_path.iterdir()] == ["j.db"]


def test_an_empty_file_becomes_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    path.touch()
    assert look(path).last == 0
    assert commit_more(path) == 5


def test_what_an_interrupted_start_leaves_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    path.with_name("j.db.new").write_text("half a database")
    wal(path).write_text("of a database that is no longer there")
    (tmp_path / "j.db.d" / "check").mkdir(parents=True)
    (tmp_path / "j.db.d" / "check" / "journal").write_text("half a look")
    assert commit_more(path) == 5
    look(path).check()
    assert not path.with_name("j.db.new").exists()
    assert not (tmp_path / "j.db.d" / "check").exists()


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make_journal(tmp_path / "folder" / "j.db")


@pytest.mark.parametrize("where", ["file", "folder"])
def test_what_is_read_only_is_refused_untouched(made: Made, where: str) -> None:
    target = str(made.path if where == "file" else made.path.parent)
    root = os.geteuid() == 0  # whom modes do not hold back
    on, off = (["chattr", "+i"], ["chattr", "-i"]) if root else (["chmod", "a-w"], ["chmod", "u+w"])
    if subprocess.run([*on, target], capture_output=True, check=False).returncode:
        pytest.skip(NEEDS_CHATTR)
    try:
        with untouched(made.path.parent), pytest.raises(JournalError, match=r"cannot be (read and )?written"):
            look(made.path)
        if where == "folder":
            with pytest.raises(JournalError, match="cannot be written to"):
                look(made.path.with_name("new.db"))
    finally:
        subprocess.run([*off, target], check=True)
    look(made.path).check()


@pytest.mark.parametrize(
    ("kind", "source", "refused"),
    [
        ("nfs", "server:/data", True),
        ("nfs4", "server:/data", True),
        ("cifs", "//server/data", True),
        ("smb3", "//server/data", True),
        ("9p", "share", True),
        ("ceph", "mon:/", True),
        ("lustre", "mgs@tcp:/fs", True),
        ("fuse.sshfs", "user@host:", True),
        ("fuse", "s3fs", True),
        ("fuse.glusterfs", "server:/volume", True),
        ("ext4", "/dev/vda", False),
        ("tmpfs", "tmpfs", False),
        ("fuse.mergerfs", "a:b", False),
        ("overlay", "overlay", False),
    ],
)
def test_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, source: str, refused: bool
) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    lines = [
        "21 1 0:999 / /proc rw,relatime shared:5 - nfs4 other:/x rw",
        f"36 35 {os.major(device)}:{os.minor(device)} / /a\\040b rw,noatime master:1 - {kind} {source} rw",
    ]
    mounts.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(place_module, "MOUNTS", mounts)
    path = tmp_path / "deep" / "er" / "j.db"
    if not refused:
        assert look(path).last == 0
        return
    with untouched(tmp_path), pytest.raises(JournalError, match=f"network file system.*{kind}.*local disk"):
        look(path)
    assert not (tmp_path / "deep").exists()

    async def allowed() -> None:
        async with Kernel(path, allow_network_file_system=True) as kernel:
            await kernel.describe_job_queues()

    asyncio.run(allowed())


def test_the_file_systems_of_this_machine_are_found() -> None:
    """The real list: where it can be read, it names the root's."""
    if not place_module.MOUNTS.exists():
        return
    assert place_module.file_system(Path("/proc")) is None
    kinds = [line.partition(" - ")[2].split()[0] for line in place_module.MOUNTS.read_text().splitlines()]
    assert "proc" in kinds
