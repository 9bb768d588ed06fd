"""Logs of containers: the engine's framed stream taken apart, and kept in the file that belongs to the attempt."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import anyio.to_thread

HEADER: Final = 8
"""Bytes before each frame: the stream, three zeros, and the length."""
BATCH: Final = 256 << 10
"""Bytes gathered before they are written."""
READ: Final = 256 << 10


class Frames:
    """Takes the engine's stream of frames apart; stdout and stderr come out as they came in."""

    def __init__(self) -> None:
        self._left = 0
        self._header = b""

    def feed(self, data: bytes) -> bytes:
        """What of it was written by the container."""
        found, at = [], 0
        while at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                found.append(piece)
                self._left -= len(piece)
                at += len(piece)
                continue
            missing = HEADER - len(self._header)
            self._header += data[at : at + missing]
            at += missing
            if len(self._header) == HEADER:
                self._left = int.from_bytes(self._header[4:], "big")
                self._header = b""
        return b"".join(found)


class Keeper:
    """Writes one log, complete or not at all; of one that is too long the first and the last half.

    `most`: bytes at most (0: no limit). It is made beside its place and moved there by `done`, so a log is never seen
    half kept. The file that is under way has no name of an attempt's log.
    """

    def __init__(self, path: Path, most: int) -> None:
        self._path = path
        self._half = most // 2
        self._beside = path.with_name(f".{path.name}.keeping")
        self._parts: list[Path] = []
        self._count = 0
        self._fd = -1
        self._written = 0
        """Of the part that is being written."""
        self.total = 0

    def write(self, data: bytes) -> None:
        """Keep this, too."""
        self.total += len(data)
        while data:
            if self._fd < 0 or (self._half and self._written >= self._half):
                self._next_part()
            room = len(data) if not self._half else self._half - self._written
            written = os.write(self._fd, data[:room])
            self._written += written
            data = data[written:]

    def _next_part(self) -> None:
        """The head, then halves of which the last two are kept."""
        self._close()
        if not self._parts:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        if len(self._parts) == 3:
            self._parts.pop(1).unlink()
        self._count += 1
        part = self._beside.with_name(f"{self._beside.name}{self._count}")
        self._parts.append(part)
        self._fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._written = 0

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def done(self) -> None:
        """It is complete; one without a byte leaves no file."""
        self._close()
        if not self._parts:
            return
        head, *rest = self._parts
        if rest:
            self._join(head, rest)
        os.replace(head, self._path)
        self._parts = []

    def _join(self, head: Path, rest: list[Path]) -> None:
        sizes = [part.stat().st_size for part in rest]
        skip = max(sum(sizes) - self._half, 0)
        left_out = self.total - head.stat().st_size - (sum(sizes) - skip)
        with head.open("ab") as target:
            if left_out:
                target.write(f"\n[anybatch: {left_out} bytes left out here]\n".encode())
            for part, size in zip(rest, sizes, strict=True):
                with part.open("rb") as source:
                    source.seek(min(skip, size))
                    while piece := source.read(READ):
                        target.write(piece)
                skip = max(skip - size, 0)
                part.unlink()

    def drop(self) -> None:
        """It could not be had: leave nothing."""
        self._close()
        for part in self._parts:
            part.unlink(missing_ok=True)
        self._parts = []


async def keep(pieces: AsyncIterator[bytes], path: Path, most: int) -> None:
    """Read a container's log to its end into the attempt's file. What goes wrong is raised, and leaves no file."""
    keeper, batch, size = Keeper(path, most), list[bytes](), 0
    try:
        async for piece in pieces:
            batch.append(piece)
            size += len(piece)
            if size >= BATCH:
                await anyio.to_thread.run_sync(keeper.write, b"".join(batch))
                batch, size = [], 0
        if batch or keeper.total:
            await anyio.to_thread.run_sync(_finish, keeper, b"".join(batch))
    except BaseException:
        keeper.drop()
        raise


async def note(path: Path, text: str) -> None:
    """A log of one line, where there is no other."""
    keeper = Keeper(path, 0)
    await anyio.to_thread.run_sync(_finish, keeper, text.encode())


def _finish(keeper: Keeper, data: bytes) -> None:
    keeper.write(data)
    keeper.done()


def read_from(path: Path, at: int) -> bytes:
    """A piece of a kept log; nothing at its end, or where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(at)
            return file.read(READ)
    except FileNotFoundError:
        return b""
