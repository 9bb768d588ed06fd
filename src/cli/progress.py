"""Progress on standard error: bars on a terminal, plain lines elsewhere. A look costs the same for any array."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

import anybatch
from anybatch import JobStatus
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

LINE_EVERY_S: Final = (2.0, 60.0)
"""Between two plain lines about an array that only goes on: at first, and at most (the pause doubles)."""
BAR_CELLS_MAX: Final = 40
NAME_CELLS_MAX: Final = 32
ROWS_BESIDE: Final = 4
"""Lines of the terminal that are kept free of bars."""
STYLES: Final = {"succeeded": "green", "failed": "red", "running": "yellow", "waiting": "dim"}
GLYPHS: Final = {"succeeded": "█", "failed": "x", "running": "▒", "waiting": "·"}
ASCII_GLYPHS: Final = {"succeeded": "#", "failed": "x", "running": "=", "waiting": "."}


def seconds(value: float) -> str:
    """A length of time for people: 3.2 s, 4:05, 1:02:03."""
    if value < 60:
        return f"{value:.1f} s"
    whole = int(value)
    minutes = f"{whole // 60 % 60}:{whole % 60:02}"
    return f"{whole // 3600}:{minutes:0>5}" if whole >= 3600 else minutes


def counts_of(detail: anybatch.JobDetail) -> dict[str, int]:
    """How many of the job (children, or the job itself) have succeeded, failed, run and wait."""
    by_status: Mapping[JobStatus, int] = detail.status_summary or {detail.status: 1}
    counts = dict.fromkeys(STYLES, 0)
    for status, count in by_status.items():
        key = status.lower() if status.is_terminal or status is JobStatus.RUNNING else "waiting"
        counts[key] += count
    return counts


class Row:
    """How a job stands, as last seen."""

    def __init__(self, name: str, size: int | None) -> None:
        self.name = name
        self.size = size
        self.detail: anybatch.JobDetail | None = None
        self.why: str | None = None
        """Why a single job has failed."""
        self.counts = {**dict.fromkeys(STYLES, 0), "waiting": size or 1}
        self._began: float | None = None
        self._ended: float | None = None

    def see(self, detail: anybatch.JobDetail, now: float) -> None:
        """Take over what the kernel says."""
        self.detail = detail
        self.counts = counts_of(detail)
        if self._began is None and self.counts["waiting"] < (self.size or 1):
            self._began = now
        if self._ended is None and detail.status.is_terminal:
            self._ended = now

    @property
    def status(self) -> str:
        """One word for the job as a whole."""
        if self.detail is not None and self.detail.status.is_terminal:
            return self.detail.status.lower()
        return "waiting" if self._began is None else "running"

    def elapsed(self, now: float) -> float | None:
        """Seconds since the job was first seen to run; None before."""
        return None if self._began is None else (self._ended or now) - self._began

    def text(self) -> str:
        """The counts, those that are not 0; for a single job its status."""
        if self.size is None:
            return self.status if self.why is None else f"{self.status}: {self.why}"
        some = ", ".join(f"{n} {what}" for what, n in self.counts.items() if n and what != "succeeded")
        done = f"{self.counts['succeeded']}/{self.size}"
        return f"{done} ({some})" if some else done


class Progress(Protocol):
    """What shows how a run goes on."""

    def show(self, rows: list[Row]) -> None:
        """Some time has passed, or something has changed."""

    def note(self, text: str) -> None:
        """Something to read, once."""

    def stopping(self, text: str) -> None:
        """The run is being ended before its time; `text` says what is waited for."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def make_progress(name: str, console: Console, *, keep: bool) -> Progress:
    """Bars if the console is a terminal. `keep`: the last picture stays when all is done."""
    return Bars(name, console, keep=keep) if console.is_terminal and not console.is_dumb_terminal else Lines(console)


class Lines:
    """One line per change of a job's status; about an array that goes on, one now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said: dict[str, tuple[str, dict[str, int]]] = {}
        self._next: dict[str, tuple[float, float]] = {}

    def show(self, rows: list[Row]) -> None:
        now = time.monotonic()
        for row in rows:
            status, counts = self._said.get(row.name, ("waiting", row.counts))
            at, pause = self._next.get(row.name, (0.0, LINE_EVERY_S[0]))
            if row.status == status and (row.counts == counts or row.status != "running" or now < at):
                self._said.setdefault(row.name, (status, row.counts))
                continue
            if row.status == status:
                pause = min(2 * pause, LINE_EVERY_S[1])
            self._said[row.name] = (row.status, row.counts)
            self._next[row.name] = (now + pause, pause)
            self.note(self._line(row, now))

    def _line(self, row: Row, now: float) -> str:
        text = f"{row.name}: {row.status} {row.text()}" if row.size else f"{row.name}: {row.text()}"
        elapsed = row.elapsed(now) or 0.0
        ended = row.detail is not None and row.detail.status.is_terminal
        return f"{text} after {seconds(elapsed)}" if ended and elapsed >= 1 else text  # less is not measured well

    def note(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def stopping(self, text: str) -> None:
        self.note(text)

    def close(self) -> None:
        pass


class Bars:
    """A picture that is drawn anew: a row with a bar for each job."""

    def __init__(self, name: str, console: Console, *, keep: bool) -> None:
        self._name = name
        self._console = console
        self._began = time.monotonic()
        self._stopping: str | None = None
        self._live = Live(console=console, auto_refresh=False, transient=not keep, redirect_stdout=False)
        self._live.start()

    def show(self, rows: list[Row]) -> None:
        self._live.update(self._picture(rows), refresh=True)

    def note(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def stopping(self, text: str) -> None:
        self._stopping = text

    def close(self) -> None:
        self._live.stop()

    def _picture(self, rows: list[Row]) -> RenderableType:
        now = time.monotonic()
        ended = sum(row.status in ("succeeded", "failed") for row in rows)
        so_far = f"  {ended} of {len(rows)} jobs ended, {seconds(now - self._began)}"
        head = Text.assemble((self._name, "bold"), so_far, no_wrap=True, overflow="ellipsis")
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, max_width=NAME_CELLS_MAX, overflow="ellipsis")
        table.add_column(min_width=8, max_width=BAR_CELLS_MAX)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True, overflow="ellipsis")
        chosen = self._chosen(rows, max(1, self._console.height - ROWS_BESIDE))
        for row in chosen:
            elapsed = row.elapsed(now)
            text = Text(row.text(), style="red" if row.counts["failed"] else "")
            table.add_row(Text(row.name), Bar(row.counts), "" if elapsed is None else seconds(elapsed), text)
        parts: list[RenderableType] = [head, table]
        if len(chosen) < len(rows):
            others = f"... and {_others(set(rows) - set(chosen))}"
            parts.append(Text(others, style="dim", no_wrap=True, overflow="ellipsis"))
        if self._stopping is not None:
            parts.append(Text(self._stopping, style="yellow", no_wrap=True, overflow="ellipsis"))
        return Group(*parts)

    @staticmethod
    def _chosen(rows: list[Row], most: int) -> list[Row]:
        """What fits, in its order: what runs before what has failed, what waits, and what has succeeded."""
        if len(rows) <= most:
            return rows
        order = ("running", "failed", "waiting", "succeeded")
        first = set(sorted(rows, key=lambda row: order.index(row.status))[:most])
        return [row for row in rows if row in first]


def _others(rows: Iterable[Row]) -> str:
    found = [row.status for row in rows]
    counts = ", ".join(f"{found.count(status)} {status}" for status in STYLES if status in found)
    return f"{len(found)} more jobs ({counts})"


class Bar:
    """Cells in the proportion of the counts; what is not 0 has at least one."""

    def __init__(self, counts: dict[str, int]) -> None:
        self._counts = counts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, BAR_CELLS_MAX)
        glyphs = ASCII_GLYPHS if options.ascii_only else GLYPHS
        cells = share(self._counts, width)
        yield Text.assemble(*((glyphs[what] * n, STYLES[what]) for what, n in cells.items()), no_wrap=True)


def share(counts: dict[str, int], width: int) -> dict[str, int]:
    """`width` cells by count: at least one for what is not 0, the rest by size."""
    total = sum(counts.values()) or 1
    cells = {what: max(width * n // total, 1 if n else 0) for what, n in counts.items()}
    while spare := width - sum(cells.values()):
        step = 1 if spare > 0 else -1
        missing = {what: step * (counts[what] / total - cells[what] / width) for what in cells if cells[what] > -step}
        cells[max(missing, key=lambda what: missing[what])] += step
    return cells
