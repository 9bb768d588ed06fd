"""A sink that appends every event to a JSON Lines file, with rotation.

A batch is on disk before it counts as delivered. A line that a crash has torn is taken off again when the file is next
opened; the event comes again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, ClassVar, Final

import anyio.to_thread
import msgspec
from anybatch.kernel.sink import SINK_API_VERSION, SinkContext, SinkEvent

from .event_shapes import Shaped, ShapeOptions, end_watch, make_shape

TAIL_BYTES: Final = 64 << 10
"""Read at a time when looking for the end of the last whole line."""


class JsonlOptions(ShapeOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`path`: the file (a relative one beside the journal). `rotate_bytes`: from which size on it becomes `<path>.1`,
    that one `<path>.2`, ...; 0: never. `keep`: how many of those stay. `per_child`: one line per child instead of
    one per run of children. `shape`: "anybatch", or "eventbridge" for what AWS Batch puts onto its event bus, with
    `account` and `region` in its ARNs.
    """

    path: str
    rotate_bytes: int = 64 << 20
    keep: int = 5

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path: it is not empty")
        if self.rotate_bytes < 0 or self.keep < 1:
            raise ValueError("rotate_bytes is 0 or more, keep 1 or more")
        self.check_shape()


class JsonlSink:
    """Appends one JSON object a line (docs/events.md has the schema)."""

    api_version: ClassVar[int] = SINK_API_VERSION
    Options: ClassVar[type[msgspec.Struct]] = JsonlOptions

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._lock = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None

    async def open(self, context: SinkContext) -> None:
        self._options: JsonlOptions = context.options
        self._shape = make_shape(context)
        self._path: Path = context.folder / self._options.path
        self._file = await anyio.to_thread.run_sync(self._open)
        watch = self._shape.watch(self._send)
        if watch is not None:
            self._watching = asyncio.create_task(watch, name=f"anybatch-sink-{context.name}-watch")

    def _open(self) -> BinaryIO:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        file = os.fdopen(fd, "r+b", buffering=0)
        try:
            os.ftruncate(fd, whole_lines(file))
        except BaseException:
            file.close()
            raise
        return file

    async def deliver(self, events: Sequence[SinkEvent]) -> None:
        await self._send(await self._shape.records(events))

    async def _send(self, records: list[Shaped]) -> None:
        async with self._lock:
            await anyio.to_thread.run_sync(self._write, records)

    def _write(self, records: list[Shaped]) -> None:
        assert self._file is not None
        lines = [msgspec.json.encode(one.record) for one in records]
        if not lines:
            return
        lines.append(b"")
        text = memoryview(b"\n".join(lines))
        while text:
            text = text[self._file.write(text) :]
        os.fsync(self._file.fileno())
        limit = self._options.rotate_bytes
        if limit and os.fstat(self._file.fileno()).st_size >= limit:
            self._rotate()

    def _rotate(self) -> None:
        assert self._file is not None
        for n in range(self._options.keep - 1, -1, -1):
            source = self._numbered(n)
            with contextlib.suppress(FileNotFoundError):
                os.replace(source, self._numbered(n + 1))
        old, self._file = self._file, self._open()
        old.close()

    def _numbered(self, n: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{n}") if n else self._path

    async def close(self) -> None:
        watching, self._watching = self._watching, None
        await end_watch(watching)
        file, self._file = self._file, None
        if file is not None:
            file.close()


def whole_lines(file: BinaryIO) -> int:
    """The size of a file up to the end of its last whole line."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - TAIL_BYTES)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
