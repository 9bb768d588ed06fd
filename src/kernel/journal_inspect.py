"""What a journal holds and whether all of it can be read: the report of `anybatch journal check`. Only reads."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from .core.errors import JournalDamaged, JournalError
from .core.invariants import InvariantBroken, check_invariants
from .core.states import RUNNING, STARTING
from .journal_backup import about_of
from .journal_check import (
    RECORDS,
    Survey,
    about_tail,
    examine,
    is_whole_record,
    snapshot_row,
    survey_open,
)
from .journal_mark import Mark, read_mark
from .journal_place import holder_of
from .journal_read import EVENTS, Source, files_of, kind_of, reading, snapshots_of, state_of, temporary_folder

TROUBLES_MAX: Final = 20
"""Kinds of damage that a report tells of."""
ROUNDS: Final = 3
"""Looks at a journal that a kernel takes over, or lets go of, meanwhile."""


class JournalReport(Struct, kw_only=True):
    """What a look at a journal has found.

    `kind`: "journal" or "backup". `held_by`: the kernel that runs on it. `missing`: the first and last of the events
    that were committed and cannot be recovered. `first` and `last`: the events that are kept. `mark`: what the file
    beside it says of its end: "clean", "open" (a kernel runs, or was killed), or "none". `attempts`: under way.
    """

    path: str
    kind: str
    held_by: str | None
    sound: bool
    trouble: list[str] = []
    missing: tuple[int, int] | None = None
    record_version: int = 0
    kernel_id: str = ""
    epoch: int = 0
    first: int = 0
    last: int = 0
    records: int = 0
    snapshots: list[int] = []
    sinks: dict[str, int] = {}
    mark: str = "none"
    bytes: int = 0
    wal_bytes: int = 0
    jobs: int = 0
    unfinished_jobs: int = 0
    attempts: int = 0


def inspect(path: Path) -> JournalReport:
    """Look at all of it.

    Raises:
        JournalError: it is no journal, is not there, cannot be read, or is of a newer version.
    """
    path = path.resolve()
    for _ in range(ROUNDS):
        held_by = holder_of(files_of(path) / "lock")
        found = _inspect(path, held_by)
        if found.sound or holder_of(files_of(path) / "lock") == held_by:
            break  # else a kernel has come or gone, and what was seen may be neither before nor after
    return found


def _inspect(path: Path, held_by: str | None) -> JournalReport:
    mark = read_mark(files_of(path) / "mark")
    kind = "journal" if held_by is not None else kind_or_damaged(path, mark)
    survey = None
    if held_by is None and kind == "journal":
        with temporary_folder(path) as place:
            survey = examine(path, place / "check", mark.synced if mark is not None else 0)
    report = JournalReport(path=str(path), kind=kind, held_by=held_by, sound=False)
    if kind == "journal" and mark is not None:
        report.mark = "clean" if mark.clean else "open"
    try:
        with reading(path, wal=survey.wal if survey is not None else True) as source:
            _look(source, report, survey or survey_open(path, source.db), mark if kind == "journal" else None)
    except (JournalError, sqlite3.Error) as e:
        if survey is None or survey.trouble is None:
            raise
        _note(report, survey.trouble)
        _note(report, str(e))
    report.sound = not report.trouble
    return report


def kind_or_damaged(path: Path, mark: Mark | None) -> str:
    """The kind of a file; one that lost its header is a journal if there is a mark beside it."""
    try:
        return kind_of(path)
    except JournalError:
        if mark is None or not path.is_file() or not path.stat().st_size:
            raise
        return "journal"


def _note(report: JournalReport, trouble: str) -> None:
    if trouble not in report.trouble and len(report.trouble) < TROUBLES_MAX:
        report.trouble.append(trouble)


def _look(source: Source, report: JournalReport, survey: Survey, mark: Mark | None) -> None:
    path = source.path
    report.bytes = path.stat().st_size
    wal = Path(f"{path}-wal")
    report.wal_bytes = wal.stat().st_size if wal.exists() else 0
    known = mark.synced if mark is not None else 0
    if survey.trouble is not None and not source.is_backup:
        _note(report, survey.trouble)
    elif survey.readable < known:
        _note(report, about_tail(path, mark))
    last = max(known, survey.expected, survey.readable)
    if last > survey.readable:
        report.missing = survey.readable + 1, last
    for look in (_look_at_tables, _look_at_log, _look_at_about, _look_at_state):
        try:
            look(source, report)
        except (sqlite3.Error, JournalError) as e:
            _note(report, str(e))
    if mark is not None:
        report.epoch = max(report.epoch, mark.epoch)


def _look_at_tables(source: Source, report: JournalReport) -> None:
    db = source.db
    report.record_version = db.execute("PRAGMA user_version").fetchone()[0]
    for (said,) in db.execute(f"PRAGMA integrity_check({TROUBLES_MAX})"):
        if said != "ok":
            _note(report, " ".join(said.removeprefix("*** in database main ***").split()))
    for seq in snapshots_of(source):
        if snapshot_row(db, seq) is None:
            _note(report, f"the snapshot at event {seq} is not what was written")
        else:
            report.snapshots.append(seq)
    if db.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'cursor'").fetchone()[0]:
        report.sinks = dict(db.execute("SELECT sink, seq FROM cursor ORDER BY sink").fetchall())


def _look_at_log(source: Source, report: JournalReport) -> None:
    """Every record, the history before the snapshots too."""
    expected = 0
    for record in source.db.execute(f"{RECORDS} ORDER BY first"):
        first, _, count, _, data = record
        if not is_whole_record(record):
            _note(report, f"the record of event {first} is not what was written")
            continue
        if expected and first != expected:
            _note(report, f"events {expected} to {first - 1} are not there")
        try:
            if len(EVENTS.decode(data)) != count:
                _note(report, f"the record of event {first} has other events than it says")
        except msgspec.MsgspecError as e:
            _note(report, f"the record of event {first} cannot be read: {e}")
        report.first = report.first or first
        report.last = expected = first + count
        report.last -= 1
        report.records += 1
    report.last = max(report.last, *report.snapshots, 0)


def _look_at_about(source: Source, report: JournalReport) -> None:
    """Whether a backup is all that it says that it is."""
    if source.is_backup:
        last = about_of(source).last
        if last != report.last:
            _note(report, f"it ends with event {report.last}, and was made up to event {last}")


def _look_at_state(source: Source, report: JournalReport) -> None:
    """What a recovery comes to."""
    try:
        state, _ = state_of(source)
        check_invariants(state)
    except JournalDamaged as e:
        _note(report, str(e).removeprefix(f"{source.path} "))
        return
    except InvariantBroken as e:
        _note(report, f"what it holds is at odds with itself, which is a mistake of anybatch: {e}")
    report.kernel_id, report.epoch = state.kernel_id, state.epoch
    report.jobs, report.unfinished_jobs = len(state.jobs), state.unfinished
    counts = [job.children.counts for job in state.jobs.values()]
    report.attempts = sum(count[STARTING] + count[RUNNING] for count in counts)
