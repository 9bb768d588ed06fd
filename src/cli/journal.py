"""`anybatch journal`: look at a journal, back it up, restore it, make it small."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import anybatch
import msgspec
from anybatch.kernel.journal_backup import BackupReport, back_up
from anybatch.kernel.journal_compact import CompactReport, compact
from anybatch.kernel.journal_inspect import JournalReport, inspect
from anybatch.kernel.journal_restore import RestoreReport, restore
from anybatch.kernel.kernel import RETAIN_EVENTS_S
from msgspec import Struct
from rich.text import Text

from .console import Out, plain

SOUND, DAMAGED, BAD_USE, CANNOT = 0, 1, 2, 3
FORMAT: Final = 1
HELP: Final = """\
Look at a journal, back it up, restore it, make it small. A journal is the file that was given to Kernel(...),
`anybatch serve` or `anybatch run --journal`; what belongs to it is in the folder <journal>.d beside it.
"""
EXAMPLES: Final = """\
examples:
  anybatch journal check batch.db                       is all of it there? also while a kernel runs
  anybatch journal backup batch.db /backup/monday.db    a copy of this moment, while the kernel goes on
  anybatch journal restore /backup/monday.db copy.db    a journal of its own, with a kernel id of its own
  anybatch journal compact batch.db                     old events gone, the file small; also while a kernel runs

exit status:
  0 done; check: sound     1 the journal or backup is damaged     2 bad use
  3 it cannot be done: in use, not there, no journal, cannot be read or written
"""


class Outcome(Struct, kw_only=True):
    """What --json prints of a command that could not do its work."""

    format: int = FORMAT
    error: str
    kind: str
    exit_status: int


def add_parser(commands: Any) -> None:
    """Tell the command line about these commands."""
    parser = commands.add_parser(
        "journal",
        help="check, back up, restore, or compact a journal",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_check(actions)
    _add_backup(actions)
    _add_restore(actions)
    _add_compact(actions)


def _add(actions: Any, name: str, function: Callable[[argparse.Namespace], int], words: str, text: str) -> Any:
    parser = actions.add_parser(
        name, help=words, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(main=lambda options: _guarded(function, options))
    return parser


def _guarded(function: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Do it; what cannot be done is said, and is the exit status."""
    try:
        return function(options)
    except anybatch.JournalError as e:
        status = DAMAGED if isinstance(e, anybatch.JournalDamaged) else CANNOT
        if options.json:
            _print_json(Outcome(error=str(e), kind=type(e).__name__, exit_status=status))
        else:
            Out(stderr=True).print(Text(f"anybatch journal: {plain(str(e))}"), soft_wrap=True)
        return status


def _print_json(document: Struct) -> None:
    encoded = {"format": FORMAT, **msgspec.to_builtins(document)}
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(encoded), indent=2).decode() + "\n")


def _print(*lines: str) -> None:
    out = Out()
    for line in lines:
        out.print(Text(plain(line)), soft_wrap=True)


def _size(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone().isoformat(sep=" ", timespec="seconds")


# -- check ------------------------------------------------------------------------------------------


def _add_check(actions: Any) -> None:
    text = """\
Look at every page, record and snapshot of a journal or a backup, recover its state in memory, and say what is
wrong with it. Nothing is changed. It works while a kernel runs, and holds it up no more than a reader does.

exit status: 0 sound, 1 damaged, 3 it cannot be read"""
    parser = _add(actions, "check", _check, "say whether a journal is all there", text)
    parser.add_argument("journal", metavar="JOURNAL", type=Path)


def _check(options: argparse.Namespace) -> int:
    found = inspect(options.journal)
    if options.json:
        _print_json(found)
    else:
        _print(*_about(found))
    return SOUND if found.sound else DAMAGED


def _about(found: JournalReport) -> list[str]:
    lines = [f"{found.path}: {'sound' if found.sound else 'damaged'}"]
    lines += [f"  {trouble}" for trouble in found.trouble]
    if found.missing is not None:
        first, last = found.missing
        lines.append(f"  {last - first + 1} events that were committed cannot be recovered ({first} to {last})")
    if not found.sound and found.kind == "journal":
        lines.append(
            "  restore a backup, or go on with what can be read: Kernel(path, accept_loss=True) keeps the rest"
        )
    if found.kind == "backup":
        lines.append("it is a backup; `anybatch journal restore` makes a journal of it")
    elif found.held_by is not None:
        lines.append(f"in use by {found.held_by}")
    else:
        ended = {"clean": "closed in order", "open": "its last kernel was killed", "none": "there is no mark beside it"}
        lines.append(f"not in use; {ended[found.mark]}")
    lines.append(f"kernel {found.kernel_id or '?'}, epoch {found.epoch}, record version {found.record_version}")
    lines.append(
        f"events {found.first} to {found.last} in {found.records} records, snapshots at "
        f"{', '.join(map(str, found.snapshots)) or 'none'}, {_size(found.bytes + found.wal_bytes)}"
    )
    lines.append(f"{found.jobs} jobs, {found.unfinished_jobs} of them unfinished; {found.attempts} attempts under way")
    if found.sinks:
        lines.append("sinks: " + ", ".join(f"{name} at event {seq}" for name, seq in found.sinks.items()))
    return lines


# -- backup and restore -----------------------------------------------------------------------------


def _add_backup(actions: Any) -> None:
    text = """\
Copy a journal, as it is at this moment, into one file that is not there yet: everything that the kernel has
answered for. The kernel may go on meanwhile. The file is there as a whole, checked and on disk, or not at all. It is
no journal: `restore` makes one of it. With --logs, what attempts have written is copied to BACKUP.logs/."""
    parser = _add(actions, "backup", _backup, "copy a journal, also while a kernel runs", text)
    parser.add_argument("journal", metavar="JOURNAL", type=Path)
    parser.add_argument("backup", metavar="BACKUP", type=Path)
    parser.add_argument("--logs", action="store_true", help="copy the logs of attempts too")


def _backup(options: argparse.Namespace) -> int:
    done: BackupReport = back_up(options.journal, options.backup, logs=options.logs)
    if options.json:
        _print_json(done)
        return SOUND
    about = done.about
    _print(f"{done.path}: up to event {about.last} of kernel {about.kernel_id}, {_size(done.bytes)}")
    if done.logs is not None:
        _print(f"logs: {done.logs}")
    if about.attempts:
        _print(f"{about.attempts} attempts are under way; a journal that is restored from this does not take them over")
    return SOUND


def _add_restore(actions: Any) -> None:
    text = """\
Make a journal of a backup, where there is nothing yet. It has a kernel id of its own, so that it never touches what the
original runs, and a higher epoch. Attempts that were under way count as lost with their host: their jobs go on as
their retry strategies say. With --again they do not count, and their jobs wait to run again."""
    parser = _add(actions, "restore", _restore, "make a journal of a backup", text)
    parser.add_argument("backup", metavar="BACKUP", type=Path)
    parser.add_argument("journal", metavar="JOURNAL", type=Path)
    parser.add_argument(
        "--again", action="store_true", help="run what was under way again, without counting it as lost"
    )
    parser.add_argument("--disabled", action="store_true", help="with every environment DISABLED: nothing is started")
    parser.add_argument("--no-logs", action="store_true", help="leave the backup's logs out")


def _restore(options: argparse.Namespace) -> int:
    done: RestoreReport = restore(
        options.backup, options.journal, again=options.again, disabled=options.disabled, logs=not options.no_logs
    )
    if options.json:
        _print_json(done)
        return SOUND
    about = done.about
    _print(
        f"{done.path}: kernel {done.kernel_id}, epoch {done.epoch}",
        f"as {about.source} was on {_time(about.at_ms)}, up to event {about.last} of kernel {about.kernel_id}",
    )
    for job in done.lost:
        became = [
            f"{count} {words}" for count, words in ((job.tried_again, "to run again"), (job.failed, "FAILED")) if count
        ]
        _print(f"{job.name} ({job.id}): attempts were under way: {', '.join(became)}")
    return SOUND


# -- compact ----------------------------------------------------------------------------------------


def _add_compact(actions: Any) -> None:
    text = """\
Make a journal small: take a snapshot, delete events that are older than --keep, and give what is free in the file back
to the file system. Events that an unfinished job or a recovery needs stay. A sink that has not been served what goes is
told of the gap. Where a kernel runs on the journal, that one does it, a little at a time, and goes on meanwhile; it has
to have a control socket, as `anybatch serve` and `run` do. Where none runs, pages that are half full are packed too."""
    parser = _add(actions, "compact", _compact, "make a journal small, also while a kernel runs", text)
    parser.add_argument("journal", metavar="JOURNAL", type=Path)
    default = f"{RETAIN_EVENTS_S:g}"
    parser.add_argument("--keep", metavar="SECONDS", default=default, help=f"age of the events to keep ({default})")


def _compact(options: argparse.Namespace) -> int:
    try:
        keep_s = float(options.keep)
        if not 0 <= keep_s < 1e10:
            raise ValueError
    except ValueError:
        text = f"anybatch journal: --keep: {options.keep!r} is not allowed; it is a number of seconds, 0 or more"
        Out(stderr=True).print(Text(plain(text)), soft_wrap=True)
        return BAD_USE
    if not options.journal.exists():
        raise anybatch.JournalError(f"{options.journal} is not there")
    try:
        done = asyncio.run(compact(options.journal, keep_ms=int(keep_s * 1000)))
        by = ""
    except anybatch.JournalLocked as e:
        done = asyncio.run(_compact_there(options.journal, keep_s, e))
        by = ", by the kernel that runs on it"
    if options.json:
        _print_json(done)
    else:
        _print(
            f"{done.path}: {_size(done.bytes_before)} before, {_size(done.bytes_after)} now{by}; "
            f"{done.events_removed} events removed, {done.oldest} to {done.last} kept"
        )
    return SOUND


async def _compact_there(journal: Path, keep_s: float, locked: anybatch.JournalLocked) -> CompactReport:
    """Have it done by the kernel that holds the journal."""
    try:
        async with anybatch.connect(journal) as kernel:
            return await kernel.compact_journal(keep=keep_s)
    except anybatch.NotRunning as e:
        advice = "call its `compact_journal`, or stop it first"
        raise anybatch.JournalLocked(f"{locked}; {e}: {advice}") from None
    except anybatch.AnyBatchError as e:
        raise anybatch.JournalError(f"the kernel on {journal} did not do it: {e}") from e
