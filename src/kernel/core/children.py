"""Columns: an array job's children as a few typed arrays. A child is an index, never an object.

A single job has the same columns with one row. The status column is at once the index of what is
waiting: the next runnable child is found by a byte search from a cursor, a run of them by stripping a
slice, so that taking or cancelling many children costs what the memory operation costs.

What every child needs from the start is one byte of status and two each for the attempt number and the
exit code. Times and hosts (20 bytes) come with the first placement, reasons (2 bytes) with the first
unusual one, history heads (4 bytes) with the first retry. Each further attempt costs 20 bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from .errors import KernelBug
from .states import RUNNABLE, STATUSES, WORK_EDGES

NO_CODE: Final = -1
"""Stands for an absent exit code in the code column."""
NUMBER_MAX: Final = 0xFFFF
"""Of an attempt's number: the most attempts that a child can have in all, reruns and all."""
NO_ROW: Final = 0xFFFFFFFF
DURATION_MAX: Final = 0xFFFFFFFE
"""Of an earlier attempt, in milliseconds (49 days); as long and longer ones are kept beside the column."""
NEVER_RAN: Final = 0xFFFFFFFF
"""In the place of a duration: the attempt ended without having run."""
FAR: Final = 0xFFFFFFFF
"""In the place of a start: it is kept beside the column."""
ORIGIN_MS: Final = 86_400_000
"""How long before a job's first earlier attempt its column of starts begins."""
REASONS_MAX: Final = 0xFFFF
"""Distinct reasons kept for one job; later ones are replaced by `REASON_OVERFLOW`."""
TOGETHER_LEAST: Final = 16
"""Children that end together without having run, from which their time is kept with their reason: a reason takes as
much as so many times."""
REASON_OVERFLOW: Final = "(this job has more distinct reasons than are kept)"


class Cause(NamedTuple):
    """Why a child, or an attempt of it, ended as it did; all None for the ordinary end of a program."""

    status_reason: str | None = None
    reason: str | None = None
    """The backend's."""
    failure: str | None = None
    """A FailureClass."""
    at_ms: int = 0
    """When, of many that ended together and have no times of their own; 0 where the columns say it."""


ORDINARY: Final = Cause()
ORDINARY_ONLY: Final = (ORDINARY,)


class PastAttempt(NamedTuple):
    """An attempt that has ended and was followed by another; times in epoch ms, 0 where absent."""

    number: int
    code: int
    started_ms: int
    stopped_ms: int
    host: int
    cause: Cause


class History:
    """Earlier attempts, appended in the order in which they ended, linked per child from `head`.

    A row takes 20 bytes: times are 4 bytes each, from `origin_ms` on; what does not fit is kept beside the columns.
    """

    __slots__ = ("code", "duration", "far", "head", "host", "long", "origin_ms", "prev", "reason", "started")

    def __init__(self, size: int) -> None:
        self.head = array("I", [NO_ROW]) * size
        self.prev = array("I")
        self.started = array("I")
        self.duration = array("I")
        self.host = array("I")
        self.code = array("h")
        self.reason = array("H")
        self.origin_ms = 0
        self.long: dict[int, int] = {}
        """Durations of rows that say DURATION_MAX."""
        self.far: dict[int, int] = {}
        """Starts of rows that say FAR."""

    def append(self, index: int, started: int, stopped: int, host: int, code: int, reason: int) -> None:
        """Add a child's latest earlier attempt. `started` 0: it never ran, and `stopped` is kept instead."""
        row = len(self.prev)
        self.prev.append(self.head[index])
        self.head[index] = row
        self.host.append(host)
        self.code.append(code)
        self.reason.append(reason)
        self.append_times(row, started, stopped)

    def append_times(self, row: int, started: int, stopped: int) -> None:
        """Add the times of the next row."""
        if started:
            duration = max(0, stopped - started)
            if duration >= DURATION_MAX:
                self.long[row] = duration
                duration = DURATION_MAX
        else:
            started, duration = stopped, NEVER_RAN
        if not row:
            self.origin_ms = started - ORIGIN_MS
        offset = started - self.origin_ms
        if not 0 <= offset < FAR:
            self.far[row] = started
            offset = FAR
        self.started.append(offset)
        self.duration.append(duration)

    def times(self, row: int) -> tuple[int, int]:
        """When an attempt started (0: it never ran) and stopped, in epoch ms."""
        begin, duration = self.far.get(row, self.origin_ms + self.started[row]), self.duration[row]
        if duration == NEVER_RAN:
            return 0, begin
        return begin, begin + self.long.get(row, duration)

    def rows(self, index: int) -> list[int]:
        """The rows of one child, oldest first."""
        found = []
        row = self.head[index]
        while row != NO_ROW:
            found.append(row)
            row = self.prev[row]
        found.reverse()
        return found


class Children:
    """The columns of one job."""

    __slots__ = (
        "code", "counts", "cursor", "history", "host", "number", "reason", "reasons", "size", "started", "status",
        "stopped", "_reason_ids",
    )  # fmt: skip

    def __init__(self, size: int) -> None:
        self.size = size
        self.status = bytearray(size)
        self.number = array("H", bytes(2 * size))
        self.code = array("h", [NO_CODE]) * size
        self.counts = [size, *[0] * (len(STATUSES) - 1)]
        self.cursor = 0
        """No child below it is RUNNABLE."""
        self.host: array[int] | None = None
        self.started: array[int] | None = None
        self.stopped: array[int] | None = None
        self.reason: array[int] | None = None
        self.reasons: Sequence[Cause] = ORDINARY_ONLY
        self._reason_ids: dict[Cause, int] | None = None
        self.history: History | None = None

    # -- status ---------------------------------------------------------------------------------

    def move(self, indexes: Sequence[int], source: int, target: int) -> None:
        """Give these children, all of status `source`, the status `target`.

        Raises:
            KernelBug: the table has no such edge.
        """
        if (source, target) not in WORK_EDGES:
            raise KernelBug(f"no transition for work from {STATUSES[source]} to {STATUSES[target]}")
        status, n = self.status, len(indexes)
        if n > 1 and type(indexes) is range:
            status[indexes.start : indexes.stop] = bytes((target,)) * n
        else:
            for i in indexes:
                status[i] = target
        self.counts[source] -= n
        self.counts[target] += n
        if target == RUNNABLE and n:
            lowest = indexes[0] if n == 1 or type(indexes) is range else min(indexes)
            if lowest < self.cursor:
                self.cursor = lowest

    def with_status(self, wanted: int) -> Sequence[int]:
        """The children of one status, ascending; a range where they stand together."""
        count, status = self.counts[wanted], self.status
        if count == 0:
            return range(0)
        first = status.find(wanted)
        if status.rfind(wanted) - first == count - 1:
            return range(first, first + count)
        found, i = [], first - 1
        for _ in range(count):
            i = status.find(wanted, i + 1)
            found.append(i)
        return found

    def next_runnable(self, most: int) -> range:
        """The first run of RUNNABLE children, at most `most` of them; empty when there is none."""
        start = self.status.find(RUNNABLE, self.cursor)
        if start < 0:
            self.cursor = self.size
            return range(0)
        self.cursor = start
        piece = self.status[start : start + most]
        return range(start, start + len(piece) - len(piece.lstrip(b"\x02")))

    # -- times, hosts, reasons --------------------------------------------------------------------

    def times(self) -> tuple[array[int], array[int]]:
        """The columns `started` and `stopped`, made when first needed."""
        if self.started is None or self.stopped is None:
            self.started = array("q", [0]) * self.size
            self.stopped = array("q", [0]) * self.size
        return self.started, self.stopped

    def stopped_ms(self, index: int) -> int:
        """When a child's latest attempt, or its wait for one, ended; 0 if it has not."""
        stopped = self.stopped[index] if self.stopped is not None else 0
        return stopped or self.cause_of(index).at_ms

    def end_unrun(self, indexes: Sequence[int], at_ms: int, reason: str) -> None:
        """Note when and why these children ended that wait for no attempt any more.

        What many have in common is kept once: an array that is cancelled gets no columns of times.
        """
        together = len(indexes) >= TOGETHER_LEAST
        if not together:
            fill(self.times()[1], indexes, at_ms)
        self.set_reason(indexes, Cause(reason, at_ms=at_ms if together else 0))

    def hosts(self) -> array[int]:
        """The column of host serials, made when first needed."""
        if self.host is None:
            self.host = array("I", [0]) * self.size
        return self.host

    def reason_id(self, reason: Cause) -> int:
        """The small number that stands for a reason in this job's column."""
        if reason == ORDINARY:
            return 0
        if self._reason_ids is None:
            self._reason_ids = {ORDINARY: 0}
        ids = self._reason_ids
        known = ids.get(reason)
        if known is None and len(self.reasons) >= REASONS_MAX:
            reason = Cause(None, REASON_OVERFLOW)
            known = ids.get(reason)
        if known is None:
            known = ids[reason] = len(self.reasons)
            self.reasons = reasons = self.reasons if isinstance(self.reasons, list) else list(self.reasons)
            reasons.append(reason)
        return known

    def set_reason(self, indexes: Sequence[int], reason: Cause) -> None:
        """Note why these children are as they are."""
        ident = self.reason_id(reason)
        if self.reason is None:
            if ident == 0:
                return
            everyone = len(indexes) == self.size
            self.reason = array("H", [ident if everyone else 0]) * self.size
            if everyone:
                return
        fill(self.reason, indexes, ident)

    def cause_of(self, index: int) -> Cause:
        """Why a child is as it is."""
        return self.reasons[self.reason[index]] if self.reason is not None else ORDINARY

    # -- attempts ---------------------------------------------------------------------------------

    def archive(self, indexes: Sequence[int]) -> None:
        """Move the latest attempt of these children to their history: another one is to follow."""
        if self.history is None:
            self.history = History(self.size)
        started, stopped = self.times()
        hosts, reasons, append = self.hosts(), self.reason, self.history.append
        for i in indexes:
            append(i, started[i], stopped[i], hosts[i], self.code[i], reasons[i] if reasons is not None else 0)
            started[i] = stopped[i] = 0
            self.code[i] = NO_CODE

    def is_archived(self, index: int) -> bool:
        """Whether the latest attempt of a child is in its history."""
        return self.history is not None and len(self.history.rows(index)) == self.number[index]

    def past(self, index: int) -> Iterator[PastAttempt]:
        """The earlier attempts of a child, oldest first. The latest one is in the columns themselves."""
        history = self.history
        if history is None:
            return
        for number, row in enumerate(history.rows(index), 1):
            begin, end = history.times(row)
            yield PastAttempt(
                number, history.code[row], begin, end, history.host[row], self.reasons[history.reason[row]]
            )


def fill(column: array[int], indexes: Sequence[int], value: int) -> None:
    """Give these rows of a column one value."""
    if len(indexes) > 1 and type(indexes) is range:
        column[indexes.start : indexes.stop] = array(column.typecode, [value]) * len(indexes)
    else:
        for i in indexes:
            column[i] = value
