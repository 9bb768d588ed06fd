"""Backups of a journal: one file with all of it as it was at one moment, also while a kernel runs on it.

A backup is no journal: it has another mark in its header, so that no kernel opens it, which would have the original's
id and meddle with its attempts. `journal_restore` makes a journal of it, with an id of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from .core.errors import JournalDamaged, JournalError
from .core.states import RUNNING, STARTING
from .journal_check import RECORDS, is_whole_record, snapshot_row
from .journal_db import BACKUP_ID, CURSOR_TABLE, clear, create, epoch_crc, is_whole
from .journal_mark import read_mark
from .journal_place import holder_of, sync_folder
from .journal_read import Source, files_of, reading, rows_of, snapshots_of, state_of

BACKUP_TABLE: Final = "CREATE TABLE backup (name TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID"
ABOUT: Final = "about"
"""The row that says what the backup is; the others are files that lay beside the journal."""
SIDE_FILES: Final = ("run.json",)
"""Files beside a journal without which it is not all there: the plan of an `anybatch run`."""


class About(Struct, kw_only=True):
    """What a backup is of. `at_ms`: when it was begun. `last`: its last event. `logs`: whether logs are beside it."""

    format: int = 1
    source: str
    kernel_id: str
    epoch: int
    last: int
    at_ms: int
    unfinished_jobs: int
    attempts: int
    logs: bool = False


class BackupReport(Struct, kw_only=True):
    """What was backed up, where to, and how large that is."""

    path: str
    about: About
    bytes: int
    logs: str | None = None


def logs_of(backup: Path) -> Path:
    """Where the logs of a backup are."""
    return backup.with_name(backup.name + ".logs")


def back_up(path: Path, to: Path, *, logs: bool = False) -> BackupReport:
    """Make a backup of the journal at `path` in a file that is not there yet; with `logs`, its logs beside it.

    It holds everything that was acknowledged before this call. The file is there as a whole and on disk, or not at
    all. To be called in another process than the journal's kernel.

    Raises:
        JournalDamaged: something of the journal cannot be read. There is no backup.
        JournalError: the journal cannot be read, or the backup cannot be written.
    """
    held_by = holder_of(files_of(path) / "lock")
    try:
        return _back_up(path, to, logs=logs)
    except JournalDamaged:
        if holder_of(files_of(path) / "lock") == held_by:
            raise
    return _back_up(path, to, logs=logs)  # a kernel has come or gone, and what was read was neither before nor after


def _back_up(path: Path, to: Path, *, logs: bool) -> BackupReport:
    path, to = Path(os.path.realpath(path)), Path(os.path.realpath(to))
    for there in (to, logs_of(to)) if logs else (to,):
        if there.exists() or there.is_symlink():
            raise JournalError(f"{there} is there already; a backup is never written over")
    at_ms, mark = time.time_ns() // 1_000_000, read_mark(files_of(path) / "mark")
    _tidy(to)
    part = to.with_name(f".{to.name}.part-{os.getpid()}")
    try:
        with reading(path) as source:
            if source.is_backup:
                raise JournalError(f"{path} is a backup already; copy the file")
            about = _about(source, at_ms, mark.synced if mark is not None else 0, logs=logs)
            _write(source, part, about)
        if logs:
            _copy_logs(path, to)
        size = part.stat().st_size
        publish(part, to)
    except OSError as e:
        raise JournalError(f"the backup {to} cannot be written: {e.strerror}") from e
    finally:
        with contextlib.suppress(OSError):
            clear(part)
    return BackupReport(path=str(to), about=about, bytes=size, logs=str(logs_of(to)) if logs else None)


def _tidy(to: Path) -> None:
    """Remove what backups to this place have left that were killed."""
    for left in to.parent.glob(f".{to.name}.part-*"):
        pid = left.name.rpartition("-")[2]
        with contextlib.suppress(OSError):
            if pid.isdecimal() and not _is_alive(int(pid)):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def _about(source: Source, at_ms: int, synced: int, *, logs: bool) -> About:
    state, last = state_of(source)
    if last < synced:
        text = f"{source.path} is damaged: its end is missing, events {last + 1} to {synced}"
        raise JournalDamaged(text, events=synced - last, first=last + 1, last=synced)
    counts = [job.children.counts for job in state.jobs.values()]
    return About(
        source=str(source.path),
        kernel_id=state.kernel_id,
        epoch=state.epoch,
        last=last,
        at_ms=at_ms,
        unfinished_jobs=state.unfinished,
        attempts=sum(count[STARTING] + count[RUNNING] for count in counts),
        logs=logs,
    )


def about_of(source: Source) -> About:
    """What a backup says that it is."""
    for (data,) in rows_of(source, "SELECT data FROM backup WHERE name = ?", ABOUT):
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.json.decode(data, type=About)
    raise JournalDamaged(f"{source.path} does not say what it is a backup of")


def _write(source: Source, part: Path, about: About) -> None:
    """All rows, each checked, into a file of their own; on disk when this returns."""
    side = {name: (files_of(source.path) / name) for name in SIDE_FILES}
    rows = [(ABOUT, msgspec.json.encode(about))]
    rows += [(name, file.read_bytes()) for name, file in side.items() if file.is_file()]
    try:
        with contextlib.closing(create(part, BACKUP_ID)) as db:
            db.execute("BEGIN")
            copy_rows(source, db)
            db.execute(BACKUP_TABLE)
            db.executemany("INSERT INTO backup VALUES (?, ?)", rows)
            db.execute("COMMIT")
            said = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
            ends = [first + count - 1 for first, count in db.execute(LAST)]
            last = max([0, *ends, *(seq for (seq,) in db.execute("SELECT seq FROM snapshot"))])
            if said != "ok" or last != about.last:
                raise JournalError(f"the backup {part} is not what was written: {said}, up to event {last}")
    except sqlite3.Error as e:
        raise JournalError(f"the backup {part} cannot be written: {e}") from e
    sync_file(part)


LAST: Final = "SELECT first, count FROM log ORDER BY first DESC LIMIT 1"


def copy_rows(source: Source, db: sqlite3.Connection) -> None:
    """Copy the log, the snapshots, the epochs and the sinks' cursors, each row checked.

    Raises:
        JournalDamaged: one is not what was written.
    """
    path, expected = source.path, 0
    for seq in reversed(snapshots_of(source)):
        row = snapshot_row(source.db, seq)
        if row is None:
            raise JournalDamaged(f"{path} is damaged: the snapshot at event {seq} is not what was written")
        db.execute("INSERT INTO snapshot VALUES (?, ?, ?)", row)
    for record in rows_of(source, f"{RECORDS} ORDER BY first"):
        if not is_whole_record(record) or expected not in (0, record[0]):
            raise JournalDamaged(f"{path} is damaged: the record of event {expected or record[0]} cannot be read")
        expected = record[0] + record[2]
        db.execute("INSERT INTO log VALUES (?, ?, ?, ?, ?)", record)
    for first, epoch, crc in rows_of(source, "SELECT first, epoch, crc FROM epoch"):
        if not is_whole(epoch_crc, first, epoch, said=crc):
            raise JournalDamaged(f"{path} is damaged: the entry of epoch {epoch} is not what was written")
        db.execute("INSERT INTO epoch VALUES (?, ?, ?)", (first, epoch, crc))
    if list(rows_of(source, "SELECT 1 FROM sqlite_master WHERE sql = ?", CURSOR_TABLE)):
        for row in rows_of(source, "SELECT sink, epoch, seq FROM cursor"):
            db.execute("INSERT INTO cursor VALUES (?, ?, ?)", row)


def _copy_logs(path: Path, to: Path) -> None:
    """The logs as they are now, those of running attempts so far as they are written."""
    logs, part = files_of(path) / "logs", to.with_name(f".{to.name}.part-logs-{os.getpid()}")
    part.mkdir(mode=0o700)
    try:
        if logs.is_dir():
            copy_tree(logs, part)
        os.rename(part, logs_of(to))
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sync_folder(to.parent)


def copy_tree(source: Path, to: Path) -> None:
    """Copy the files in a folder, without its folders whose names begin with a dot (a backend's own).

    What is removed meanwhile is left out.
    """
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = to / Path(folder).relative_to(source)
        here.mkdir(mode=0o700, exist_ok=True)
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # its job was forgotten meanwhile
                shutil.copy2(Path(folder) / name, here / name)


def sync_file(path: Path) -> None:
    """Return when the file is on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def publish(part: Path, to: Path) -> None:
    """Give a finished file its name, which nothing has.

    Raises:
        JournalError: something has come there meanwhile.
    """
    try:
        os.link(part, to)  # unlike a rename, it takes nothing's place
    except FileExistsError:
        raise JournalError(f"{to} has come meanwhile; it is left as it is") from None
    except OSError:  # a file system without hard links
        if to.exists():
            raise JournalError(f"{to} has come meanwhile; it is left as it is") from None
        os.rename(part, to)
    sync_folder(to.parent)
