"""What the tests of a journal's damage share: journals with known content, cuts and flips, and a look at all of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from anybatch.kernel.core.events import AnyEvent, KernelOpened
from anybatch.kernel.journal import FileJournal, JournalLoss, Record
from kernel_rig import as_killed


def events(first: int, count: int = 1, size: int = 300) -> tuple[AnyEvent, ...]:
    """Events that tell by themselves where in the log they belong."""
    return tuple(KernelOpened(n, text_of(n, size).decode()) for n in range(first, first + count))


def text_of(sequence: int, size: int = 300) -> bytes:
    """What stands in the file for one of `events`."""
    return b"%d " % sequence * (size // len(b"%d " % sequence))


def state_at(sequence: int, size: int = 5_000) -> bytes:
    """What these journals have for a snapshot."""
    return (b"the state at event %d. " % sequence) * (size // 24 + 1)


@contextlib.contextmanager
def quick_folder(otherwise: Path) -> Iterator[Path]:
    """A folder in memory where there is one: for many journals of which none has to survive the machine."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(prefix="anybatch-test-", dir=shm) as folder:
        yield Path(folder)


class Made(NamedTuple):
    path: Path
    last: int
    killed: Path
    """A copy as a kill would have left it: what was written since `fold_at` is in its write-ahead file."""


def make_journal(
    path: Path, *, records: int = 30, snapshots: Sequence[int] = (), fold_at: int | None = None, size: int = 300
) -> Made:
    """A journal with records of one, two or three events, closed in order; snapshots after the records named."""

    async def fill() -> Made:
        journal = FileJournal(path)
        journal.begin_epoch(1)
        for n in range(records):
            journal.commit(1000 + n, events(journal.last + 1, n % 3 + 1, size))
            if n in snapshots:
                journal.put_snapshot(state_at(journal.last))
            if n == fold_at:
                journal._fold()
        await journal.sync()
        made = Made(path, journal.last, as_killed(path))
        await journal.close()
        return made

    return asyncio.run(fill())


class Found(NamedTuple):
    """All that an opened journal says."""

    snapshot: bytes | None
    records: list[Record]
    last: int
    epoch: int
    loss: JournalLoss | None

    def check(self, size: int = 300) -> None:
        """What it says is what was written: one whole beginning of the log."""
        after = 0
        if self.snapshot is not None:
            after = int(self.snapshot.split(b".")[0].split()[-1])
            assert self.snapshot == state_at(after)
        for record in self.records:
            assert record.first == after + 1
            assert tuple(record.events) == events(record.first, len(record.events), size)
            after = record.last
        assert self.last == after


def look(path: Path, *, accept_loss: bool = False) -> Found:
    """Open the journal as a kernel does, read what a recovery reads, and close it. Raises what the journal raises."""

    async def go() -> Found:
        journal = FileJournal(path, accept_loss=accept_loss)
        try:
            snapshot, records = journal.load()
            found = Found(snapshot, list(records), journal.last, journal.epoch, journal.loss)
            journal.begin_epoch(journal.epoch + 1)
            return found
        finally:
            await journal.close()

    return asyncio.run(go())


def commit_more(path: Path, count: int = 5) -> int:
    """Open it, commit some more, and close it."""

    async def go() -> int:
        journal = FileJournal(path)
        journal.begin_epoch(journal.epoch + 1)
        for _ in range(count):
            journal.commit(2000, events(journal.last + 1))
        await journal.close()
        return journal.last

    return asyncio.run(go())


def everything_in(folder: Path) -> dict[str, bytes]:
    """Each file in a folder, but for the text of the lock."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.is_symlink() and file.name != "lock"
    }


@contextlib.contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Check that each file is byte for byte what it was, and that none has come."""
    before = everything_in(folder)
    yield
    after = everything_in(folder)
    assert after.keys() == before.keys()
    assert [name for name in before if before[name] != after[name]] == []


def copy_of(path: Path, to: Path) -> Path:
    """A copy of a journal's files, to damage."""
    shutil.copytree(path.parent, to)
    return to / path.name


def wal(path: Path) -> Path:
    return Path(f"{path}-wal")


def cut(file: Path, size: int) -> None:
    os.truncate(file, size)


def flip(file: Path, at: int, bit: int = 0) -> None:
    """Turn one bit over."""
    with file.open("r+b") as handle:
        handle.seek(at)
        byte = handle.read(1)[0]
        handle.seek(at)
        handle.write(bytes([byte ^ (1 << bit)]))


def find(file: Path, what: bytes) -> int:
    """Where these bytes stand in a file, for the last time."""
    at = file.read_bytes().rindex(what)
    assert at > 0
    return at


@contextlib.contextmanager
def mounted(folder: Path, needs: str, *arguments: str) -> Iterator[None]:
    """Something mounted at a folder; skips where this user may not mount."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(needs)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
