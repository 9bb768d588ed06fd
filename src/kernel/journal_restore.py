"""From a backup to a journal with a kernel id of its own, which never touches what the original runs.

What ran in the original when the backup was made is nobody's here: its attempts are recorded as lost with their host,
and their jobs go on as their retry strategies say; or, where asked for, they are tried again without counting.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from .core.errors import JournalDamaged, JournalError
from .core.events import AnyEvent, KernelOpened
from .core.inputs import Ended, StopRunning, UpdateEnvironment
from .core.machine import handle, replay
from .core.model import ExitKind, ResourceState
from .core.snapshot import encode
from .core.state import JobRow, KernelState
from .core.states import FAILED
from .identifiers import RandomIds
from .journal import FileJournal
from .journal_backup import ABOUT, About, about_of, copy_rows, copy_tree, logs_of, publish
from .journal_db import create, finish
from .journal_place import check_place, sync_folder
from .journal_read import Source, files_of, reading, recovered, rows_of, state_of

EPOCHS_AHEAD: Final = 1_000_000
"""By how much the copy's epoch is ahead, so that no later event of the original is ever taken for one of the copy's."""
LOST: Final = "the journal was restored from a backup, and what ran then is the original's"


class LostWork(Struct, kw_only=True):
    """A job of which attempts were under way in the backup: how many are tried again, and how many have FAILED."""

    id: str
    name: str
    tried_again: int
    failed: int


class RestoreReport(Struct, kw_only=True):
    """What was restored, and what became of the work that was under way."""

    path: str
    kernel_id: str
    epoch: int
    about: About
    lost: list[LostWork] = []
    logs: bool = False


def restore(backup: Path, to: Path, *, again: bool = False, disabled: bool = False, logs: bool = True) -> RestoreReport:
    """Make a journal at `to`, where there is nothing yet, of a backup.

    `again`: attempts that were under way are not held against their jobs, which are RUNNABLE again. `disabled`: every
    environment is DISABLED, so that nothing runs before somebody enables one. `logs`: with the backup's logs, if it
    has any. The journal is there as a whole and on disk, or not at all.

    Raises:
        JournalDamaged: the backup cannot be read.
        JournalError: it is no backup, or the journal cannot be written.
    """
    backup, to = Path(os.path.realpath(backup)), Path(os.path.realpath(to))
    for there in (to, files_of(to), Path(f"{to}-wal")):
        if there.exists() or there.is_symlink():
            left = " (a restore that was cut off may have left it; remove it then)" if there == files_of(to) else ""
            raise JournalError(f"{there} is there already; nothing is ever restored over it{left}")
    to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_place(to, allow_network=False)
    with contextlib.ExitStack() as undo:
        try:
            folder = Path(tempfile.mkdtemp(prefix=f".{to.name}.restoring-", dir=to.parent))
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            new = folder / to.name
            about, side = _copy(backup, new)
            report = asyncio.run(_open_anew(new, about, again=again, disabled=disabled))
            for name, data in side:
                (files_of(new) / name).write_bytes(data)
            report.logs = logs and logs_of(backup).is_dir()
            if report.logs:
                copy_tree(logs_of(backup), files_of(new) / "logs")
            sync_folder(files_of(new))
            os.rename(files_of(new), files_of(to))
            publish(new, to)
        except OSError as e:
            raise JournalError(f"{to} cannot be made: {e.strerror}") from e
    report.path = str(to)
    return report


def _copy(backup: Path, new: Path) -> tuple[About, list[tuple[Any, ...]]]:
    """A journal with the backup's rows; returns what else is in it."""
    with reading(backup) as source:
        if not source.is_backup:
            raise JournalError(f"{backup} is a journal, not a backup; make one with `anybatch journal backup`")
        about = about_of(source)
        side = list(rows_of(source, "SELECT name, data FROM backup WHERE name != ?", ABOUT))
        _, last = state_of(source)
        if last != about.last:
            raise JournalDamaged(f"{backup} is damaged: it ends with event {last}, not {about.last}")
        try:
            _fill(source, new)
        except sqlite3.Error as e:
            raise JournalError(f"{new} cannot be written: {e}") from e
    return about, side


def _fill(source: Source, new: Path) -> None:
    part = new.with_name(new.name + ".new")
    with contextlib.closing(create(part)) as db:
        db.execute("BEGIN")
        copy_rows(source, db)
        db.execute("COMMIT")
        finish(db, part, new)


async def _open_anew(new: Path, about: About, *, again: bool, disabled: bool) -> RestoreReport:
    """Give the journal its new id and epoch, and let go of what ran."""
    journal = FileJournal(new)
    try:
        state = recovered(journal)
        epoch = max(state.epoch, journal.epoch, about.epoch) + EPOCHS_AHEAD
        kernel_id = RandomIds().kernel_id()
        now_ms = max(state.now_ms, time.time_ns() // 1_000_000)
        journal.begin_epoch(epoch)
        events: list[AnyEvent] = [KernelOpened(epoch, kernel_id)]
        replay(state, events, now_ms)
        state.now_ms = now_ms
        running = {serial: job.live() for serial, job in state.jobs.items() if job.live()}
        if again:
            events += handle(state, StopRunning(environments=None), now_ms).events
        for serial, indexes in running.items():
            events += _lose(state, state.jobs[serial], indexes)
        for name in list(state.environments) if disabled else ():
            request = UpdateEnvironment(name=name, state=ResourceState.DISABLED)
            events += handle(state, request, now_ms).events
        journal.commit(now_ms, events)
        journal.put_snapshot(encode(state))
        await journal.sync()
    finally:
        await journal.close()
    lost = [_lost_work(state.jobs[serial], indexes) for serial, indexes in running.items()]
    return RestoreReport(path=str(new), kernel_id=kernel_id, epoch=epoch, about=about, lost=lost)


def _lose(state: KernelState, job: JobRow, indexes: Sequence[int]) -> list[AnyEvent]:
    """These attempts are lost; the hosts stay, for their backends to say what becomes of them."""
    groups: dict[tuple[str, int], list[int]] = {}
    for index in indexes:
        host = state.hosts[job.children.hosts()[index]]
        groups.setdefault((host.environment, job.children.number[index]), []).append(index)
    events: list[AnyEvent] = []
    for (environment, number), lost in groups.items():
        report = Ended(
            environment=environment,
            job=job.serial,
            number=number,
            indexes=lost,
            kind=ExitKind.LOST,
            codes=[None] * len(lost),
            reason=LOST,
        )
        events += handle(state, report, state.now_ms).events
    return events


def _lost_work(job: JobRow, indexes: Sequence[int]) -> LostWork:
    failed = sum(job.children.status[index] == FAILED for index in indexes)
    return LostWork(id=job.job_id, name=job.name, tried_again=len(indexes) - failed, failed=failed)
