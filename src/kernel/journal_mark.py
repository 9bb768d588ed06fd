"""The mark beside a journal: how far the log was on disk, in which epoch, and whether it was closed in order.

It stands outside the database, so that a tail that is missing there is noticed. It is written after the sync
that it speaks of, so it never claims more than is on disk. Two slots are written in turn, each with a checksum
and a number that rises: a torn write costs one of them, and the other still speaks.
"""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path
from typing import Final

import msgspec

SLOT_BYTES: Final = 4096
"""One slot, so that no two share a sector."""


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What the mark says. `number` rises with each write; `at_ms` is the time of the write."""

    synced: int
    epoch: int
    clean: bool
    number: int = 0
    at_ms: int = 0


class MarkFile:
    """The file. Its methods raise OSError; calls do not overlap, except `sync`."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            found = [_decode(os.pread(self._fd, SLOT_BYTES, at)) for at in (0, SLOT_BYTES)]
            self.unreadable = os.fstat(self._fd).st_size > 0 and found == [None, None]
        except BaseException:
            os.close(self._fd)
            raise
        self.found = max((mark for mark in found if mark is not None), key=lambda mark: mark.number, default=None)
        """What it said when it was opened; None: nothing, or nothing that can be read (`unreadable`)."""
        self._number = self.found.number if self.found is not None else 0

    def write(self, synced: int, epoch: int, *, clean: bool = False) -> None:
        """Say this from now on. A process that is killed after this has said it; for a power cut, `sync` it."""
        self._number += 1
        mark = Mark(synced=synced, epoch=epoch, clean=clean, number=self._number, at_ms=time.time_ns() // 1_000_000)
        text = msgspec.json.encode(mark)
        slot = b"%08x %s" % (zlib.crc32(text), text)
        os.pwrite(self._fd, slot.ljust(SLOT_BYTES - 1) + b"\n", self._number % 2 * SLOT_BYTES)

    def sync(self) -> None:
        """Return when what was written is on disk."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


def read_mark(path: Path) -> Mark | None:
    """What a mark says, without holding it; None: there is none, or none that can be read."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    found = [_decode(data[at : at + SLOT_BYTES]) for at in (0, SLOT_BYTES)]
    return max((mark for mark in found if mark is not None), key=lambda mark: mark.number, default=None)


def _decode(slot: bytes) -> Mark | None:
    crc, _, text = slot.strip().partition(b" ")
    try:
        return msgspec.json.decode(text, type=Mark) if int(crc, 16) == zlib.crc32(text) else None
    except (ValueError, msgspec.MsgspecError):
        return None
