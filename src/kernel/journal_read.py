"""Reading a journal, or a backup of one, without taking it over: also while a kernel runs on it, in another process."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from .core.errors import JournalDamaged, JournalError, KernelBug
from .core.events import AnyEvent
from .core.machine import replay
from .core.model import Quotas
from .core.snapshot import decode
from .core.state import KernelState
from .journal_check import Unreadable, check_kind, check_version, records, snapshot_row, view
from .journal_db import BACKUP_ID, connect
from .journal_place import holder_of
from .journal_types import Journal

EVENTS: Final = msgspec.msgpack.Decoder(list[AnyEvent])


class Source(NamedTuple):
    """A journal that is being read, as it was at one moment. `held_by` None: no kernel runs on it."""

    path: Path
    db: sqlite3.Connection
    held_by: str | None
    is_backup: bool


def files_of(path: Path) -> Path:
    """The folder beside a journal that holds what belongs to it."""
    return path.with_name(path.name + ".d")


def kind_of(path: Path) -> str:
    """Either "journal" or "backup", by the header of a file that no kernel of this process holds.

    Raises:
        JournalError: it is neither, is not there, cannot be read, or is of a newer version.
    """
    if not path.exists():
        raise JournalError(f"{path} is not there")
    if not path.is_file():
        raise JournalError(f"{path} is not a file, so it is no journal")
    wrong = check_kind(path)
    if wrong is None and path.stat().st_size:
        return "journal"
    with path.open("rb") as file:
        if file.read(72)[68:] == BACKUP_ID.to_bytes(4, "big"):
            return "backup"
    raise JournalError(f"{path} {wrong or 'is empty'}")


@contextlib.contextmanager
def reading(path: Path, *, wal: bool = True) -> Iterator[Source]:
    """One moment's view of a journal or backup, from another process than its kernel's.

    While a kernel runs it is read under SQLite's own locks, and holds up nobody. Where none does, it is read under
    names of its own, and not a byte of it is touched (`wal` False: without its write-ahead file).

    Raises:
        JournalError: it is no journal, is not there, or cannot be read.
    """
    path = Path(os.path.realpath(path))
    held_by = holder_of(files_of(path) / "lock")
    is_backup = held_by is None and kind_of(path) == "backup"
    with contextlib.ExitStack() as stack:
        try:
            if held_by is not None or is_backup:
                db = stack.enter_context(contextlib.closing(connect(path, read_only=True)))
                db.execute("BEGIN")
                db.execute("SELECT COUNT(*) FROM epoch").fetchone()  # from here on it stays as it is
                check_version(path, db.execute("PRAGMA user_version").fetchone()[0])
            else:
                place = stack.enter_context(temporary_folder(path))
                db = stack.enter_context(view(path, place / "check", wal=wal))
        except sqlite3.Error as e:
            raise unreadable(path, e) from e
        except OSError as e:
            raise JournalError(f"{path} cannot be read: {e.strerror}") from e
        yield Source(path, db, held_by, is_backup)


def unreadable(path: Path, error: sqlite3.Error) -> JournalError:
    """What to raise for a journal that SQLite cannot read: it is in the way of somebody, or it is damaged."""
    if isinstance(error, sqlite3.OperationalError):
        return JournalError(f"{path} cannot be read: {error}")
    return JournalDamaged(f"{path} is damaged: {error}")


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A folder for a while, on the journal's file system if this user may make one there."""
    for parent in (files_of(path), path.parent, None):
        if parent is None or (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
            folder = Path(tempfile.mkdtemp(prefix=".anybatch-", dir=parent))
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def rows_of(source: Source, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
    """The rows of a query.

    Raises:
        JournalError: they cannot be read.
    """
    try:
        yield from source.db.execute(query, values)
    except sqlite3.Error as e:
        raise unreadable(source.path, e) from e


def snapshots_of(source: Source) -> list[int]:
    """After which events there are snapshots, newest first."""
    return [seq for (seq,) in rows_of(source, "SELECT seq FROM snapshot ORDER BY seq DESC")]


def state_of(source: Source, quotas: Quotas | None = None) -> tuple[KernelState, int]:
    """The state that a kernel would recover, and the sequence number of the last event.

    Raises:
        JournalDamaged: it cannot be recovered as a whole.
    """
    db, state, last = source.db, KernelState(quotas or Quotas()), 0
    for seq in snapshots_of(source):
        row = snapshot_row(db, seq)
        if row is not None:
            try:
                state, last = decode(row[2], quotas or Quotas()), seq
                break
            except (msgspec.MsgspecError, ValueError):
                continue  # an older one, or the log from its beginning
    try:
        for first, at_ms, count, _, data in records(db, last):
            replay(state, EVENTS.decode(data), at_ms)
            last = first + count - 1
    except (Unreadable, msgspec.MsgspecError, sqlite3.Error) as e:
        raise JournalDamaged(f"{source.path} is damaged after event {last}: {e}", first=last + 1) from e
    except (KernelBug, KeyError, IndexError, ValueError) as e:
        raise JournalDamaged(
            f"{source.path}: what follows event {last} cannot be applied: {e!r}", first=last + 1
        ) from e
    return state, last


def read_state(path: str | os.PathLike[str], quotas: Quotas | None = None) -> KernelState:
    """The state in a journal, as it is now, without taking it over.

    Raises:
        JournalError: it is no journal, is not there, or cannot be read.
    """
    with reading(Path(path)) as source:
        return state_of(source, quotas)[0]


def recovered(journal: Journal, quotas: Quotas | None = None) -> KernelState:
    """The state in a journal that this process holds, of which nothing has to be given up."""
    for older in itertools.count():
        data, found = journal.load(older)
        try:
            state = KernelState(quotas or Quotas()) if data is None else decode(data, quotas or Quotas())
        except (msgspec.MsgspecError, ValueError):
            continue  # an older one, or the log from its beginning
        break
    for record in found:
        replay(state, record.events, record.at_ms)
    return state
