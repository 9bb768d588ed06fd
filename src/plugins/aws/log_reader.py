"""The kernel's logs as CloudWatch's streams of events: one stream per attempt, one event per line.

The kernel keeps what an attempt wrote and not when. The time of an event is when this front end first saw it; of what
had ended before anybody looked, when the attempt ended. What was told once stays so while the process lives.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from anybatch import AttemptDetail, Conflict, JobDetail, Kernel, NotFound

from .call import to_ms
from .errors import ApiError
from .job_shapes import log_stream

GROUP: Final = "/aws/batch/job"
EVENT_BYTES_MAX: Final = 256 << 10
"""Of one event, as on CloudWatch; longer lines are several events."""
STREAM_BYTES_MAX: Final = 64 << 20
"""Read of one log; the process backend keeps no more of any."""
KEPT_STREAMS: Final = 1000
"""Streams whose times are remembered."""
KEPT_MARKS: Final = 1000
"""Times remembered of one stream."""
CACHE_BYTES: Final = 32 << 20
"""Of ended logs that are kept ready while a client pages through them."""
_STREAM: Final = re.compile(
    r"(?P<name>.+)/default/(?P<job>[0-9a-f]{32})(?P<index>[0-9a-f]{4,8})(?P<number>[0-9a-f]{4})"
)


class Event(NamedTuple):
    """A line."""

    at_ms: int
    message: str


class Stream(NamedTuple):
    """An attempt's log."""

    name: str
    job: JobDetail
    attempt: AttemptDetail

    @property
    def began_ms(self) -> int:
        """When the attempt began."""
        return to_ms(self.attempt.started_at or self.attempt.stopped_at or self.job.created_at)


def no_group() -> ApiError:
    """The group is not the one that there is."""
    return ApiError("The specified log group does not exist.", code="ResourceNotFoundException")


def no_stream() -> ApiError:
    """There is no such stream."""
    return ApiError("The specified log stream does not exist.", code="ResourceNotFoundException")


def streams_of(job: JobDetail) -> list[Stream]:
    """The streams of a job or child, oldest first: of the attempts that have begun."""
    return [
        Stream(log_stream(job.definition, job.id, attempt.number), job, attempt)
        for attempt in job.attempts
        if attempt.started_at is not None or attempt.stopped_at is not None
    ]


class LogReader:
    """Reads streams, and remembers when it saw what."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._marks: OrderedDict[str, list[tuple[int, int]]] = OrderedDict()
        self._cache: OrderedDict[str, tuple[int, list[Event]]] = OrderedDict()

    async def find(self, name: str) -> Stream:
        """The stream of a name.

        Raises:
            ApiError: there is none.
        """
        match = _STREAM.fullmatch(name)
        if match is None:
            raise no_stream()
        plain = match["job"]
        job_id = "-".join((plain[:8], plain[8:12], plain[12:16], plain[16:20], plain[20:]))
        index, number = int(match["index"], 16), int(match["number"], 16)
        try:
            job = await self._kernel.describe_job(job_id)
            if job.array_size is not None:
                job = await self._kernel.describe_job(f"{job_id}:{index}")
        except NotFound:
            raise no_stream() from None
        for stream in streams_of(job):
            if stream.name == name and stream.attempt.number == number:
                return stream
        raise no_stream()

    async def events(self, stream: Stream) -> list[Event]:
        """What the attempt has written so far, line by line."""
        ended = stream.attempt.stopped_at is not None
        cached = self._cache.get(stream.name)
        if cached is not None:
            return cached[1]
        data = await self._read(stream)
        found = self._cut(stream, data, ended=ended)
        if ended and len(data) <= CACHE_BYTES:
            self._cache[stream.name] = len(data), found
            while sum(size for size, _ in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        return found

    async def _read(self, stream: Stream) -> bytes:
        pieces, size = [], 0
        try:
            async for piece in self._kernel.logs(stream.job.id, attempt=stream.attempt.number):
                pieces.append(piece)
                size += len(piece)
                if size >= STREAM_BYTES_MAX:
                    break
        except (NotFound, Conflict):
            return b""  # gone with its host
        return b"".join(pieces)

    def _cut(self, stream: Stream, data: bytes, *, ended: bool) -> list[Event]:
        marks = self._marks.setdefault(stream.name, [])
        self._marks.move_to_end(stream.name)
        if len(self._marks) > KEPT_STREAMS:
            self._marks.popitem(last=False)
        stopped = stream.attempt.stopped_at
        now = to_ms(stopped) if stopped is not None else int(time.time() * 1000)
        whole = len(data) if ended else data.rfind(b"\n") + 1  # a line that is being written is not told yet
        if whole > (marks[-1][0] if marks else 0):
            if len(marks) >= KEPT_MARKS:
                marks.pop()
            marks.append((whole, max(now, marks[-1][1] if marks else stream.began_ms)))
        found: list[Event] = []
        at, mark = 0, 0
        for line in data[:whole].splitlines(keepends=True) if b"\r" not in data else _lines(data[:whole]):
            at += len(line)
            while marks[mark][0] < at:
                mark += 1
            text = line.removesuffix(b"\n")
            for start in range(0, max(len(text), 1), EVENT_BYTES_MAX):
                piece = text[start : start + EVENT_BYTES_MAX]
                found.append(Event(marks[mark][1], piece.decode(errors="replace")))
        return found


def _lines(data: bytes) -> list[bytes]:
    """Lines that end with a line feed alone: progress bars redraw with carriage returns."""
    found = [line + b"\n" for line in data.split(b"\n")]
    last = found.pop()[:-1]
    return [*found, last] if last else found


async def all_streams(kernel: Kernel, after: int | None = None) -> AsyncIterator[tuple[int, Stream]]:
    """Every stream with its job's position, newest jobs first."""
    async for summary in kernel.list_jobs(after=after):
        if summary.array_size is None:
            for stream in streams_of(await kernel.describe_job(summary.id)):
                yield summary.position, stream
            continue
        async for child in kernel.list_jobs(parent=summary.id):
            if child.started_at is not None or child.stopped_at is not None:
                for stream in streams_of(await kernel.describe_job(child.id)):
                    yield summary.position, stream
