"""What came of a run: gathered from the kernel, then told to people or to programs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import anybatch
import msgspec
from anybatch.kernel.backend import AttemptKey, log_path
from msgspec import Struct
from rich.console import Console
from rich.text import Text

from .console import plain
from .progress import seconds

FORMAT: Final = 1
"""Of the report."""
GROUPS_MAX: Final = 8
"""Kinds of failure told of each job."""
RANGES_MAX: Final = 10
"""Ranges of children written out for each kind of failure."""
LOGS_MAX: Final = 3
"""Log files named for each kind of failure, logs quoted in all, and jobs whose output is quoted."""
TAIL_LINES: Final = 5
TAIL_BYTES: Final = 4096
ORDINARY_END: Final = "Essential container in task exited"
STATUS_STYLES: Final = {"SUCCEEDED": "green", "FAILED": "red"}


class Failure(Struct, frozen=True, kw_only=True):
    """Children (or the one single job) that failed in the same way. `children`: first and last index of each run."""

    children: list[tuple[int, int]] | None
    count: int
    exit_code: int | None
    status_reason: str | None
    reason: str | None
    failure_class: str | None
    logs: list[str]


class JobReport(Struct, frozen=True, kw_only=True):
    """One job. `elapsed_s`: from the start of its first attempt to its end; None if it has not ended or never began."""

    name: str
    id: str
    status: str
    status_reason: str | None
    exit_code: int | None
    array_size: int | None
    counts: dict[str, int]
    started_at: datetime | None
    stopped_at: datetime | None
    elapsed_s: float | None
    logs_dir: str
    log: str | None
    failures: list[Failure]
    other_failures: int


class RunReport(Struct, frozen=True, kw_only=True):
    """The document that `--json` prints."""

    format: int = FORMAT
    name: str | None = None
    source: str | None = None
    outcome: str
    exit_status: int
    error: str | None = None
    mistakes: list[anybatch.Mistake] = []
    journal: str | None = None
    resume: list[str] | None = None
    elapsed_s: float = 0.0
    jobs: list[JobReport] = []

    def to_json(self) -> bytes:
        """As text, indented."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)


# -- gathering --------------------------------------------------------------------------------------


class Gathered(Struct, kw_only=True):
    """What takes a look at every child, so that it is done once for each job, when the job has ended."""

    started_at: datetime | None = None
    failures: list[Failure] = []
    other_failures: int = 0


async def gather(kernel: anybatch.Kernel, handle: anybatch.JobHandle, logs: Path) -> Gathered:
    """The failures of a job, in groups, and when its first attempt began."""
    groups: dict[tuple[str | None, str | None, int | None], list[int]] = {}
    started: list[datetime] = []
    if handle.array_size is None:
        detail = await kernel.describe_job(handle)
        started = [attempt.started_at for attempt in detail.attempts if attempt.started_at is not None][:1]
        if detail.status is anybatch.JobStatus.FAILED:
            groups[detail.status_reason, detail.reason, detail.exit_code] = [0]
    else:
        async for child in kernel.list_jobs(parent=handle):
            assert child.index is not None
            if child.started_at is not None and (not started or child.started_at < started[0]):
                started = [child.started_at]
            if child.status is anybatch.JobStatus.FAILED:
                groups.setdefault((child.status_reason, None, child.exit_code), []).append(child.index)
    found = []
    for (status_reason, reason, code), indexes in sorted(groups.items(), key=lambda item: -len(item[1]))[:GROUPS_MAX]:
        paths, kind = [], None
        for index in indexes[:LOGS_MAX]:
            detail = await kernel.describe_job(handle if handle.array_size is None else handle[index])
            reason = detail.reason if reason is None else reason
            if detail.attempts:
                kind = kind or detail.attempts[-1].failure_class
                paths.append(str(log_path(logs, AttemptKey(handle.id, index, detail.attempts[-1].number))))
        found.append(
            Failure(
                children=None if handle.array_size is None else runs(indexes),
                count=len(indexes),
                exit_code=code,
                status_reason=status_reason,
                reason=reason,
                failure_class=kind,
                logs=[path for path in paths if os.path.exists(path)],  # noqa: ASYNC240 (a few, once)
            )
        )
    left_out = sum(map(len, groups.values())) - sum(failure.count for failure in found)
    return Gathered(started_at=started[0] if started else None, failures=found, other_failures=left_out)


def job_report(detail: anybatch.JobDetail, gathered: Gathered, logs: Path, *, stopped: bool) -> JobReport:
    """A job's part of the document. `stopped`: what was last seen to run has been stopped, to run again later."""
    status = detail.status
    counts = {str(status): count for status, count in (detail.status_summary or {status: 1}).items()}
    if stopped:
        again = counts.pop("RUNNING", 0) + counts.pop("STARTING", 0)
        counts["RUNNABLE"] = counts.get("RUNNABLE", 0) + again
        status = status if status not in ("RUNNING", "STARTING") else anybatch.JobStatus.RUNNABLE
    elapsed = None
    if gathered.started_at is not None and detail.stopped_at is not None:
        elapsed = max(0.0, (detail.stopped_at - gathered.started_at).total_seconds())
    log = None
    if detail.attempts:
        log = str(log_path(logs, AttemptKey(detail.id, 0, detail.attempts[-1].number)))
    return JobReport(
        name=detail.name,
        id=detail.id,
        status=status,
        status_reason=detail.status_reason,
        exit_code=detail.exit_code,
        array_size=detail.array_size,
        counts={str(one): counts.get(one, 0) for one in anybatch.JobStatus},
        started_at=gathered.started_at,
        stopped_at=detail.stopped_at,
        elapsed_s=elapsed,
        logs_dir=str(logs / detail.id),
        log=log,
        failures=gathered.failures,
        other_failures=gathered.other_failures,
    )


def runs(indexes: Iterable[int]) -> list[tuple[int, int]]:
    """Rising indexes as first and last of each unbroken run."""
    found: list[tuple[int, int]] = []
    for index in indexes:
        if found and found[-1][1] == index - 1:
            found[-1] = (found[-1][0], index)
        else:
            found.append((index, index))
    return found


def ranges(found: Sequence[tuple[int, int]]) -> str:
    """Runs for people: 3,7,10-12; the first few."""
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found[:RANGES_MAX])
    return f"{text},..." if len(found) > RANGES_MAX else text


def tail(path: str, lines: int = TAIL_LINES) -> tuple[list[str], bool]:
    """The last lines of a log, without what could steer a terminal; and whether that is not all of it."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            data = file.read(TAIL_BYTES)
    except OSError:
        return [], False
    found = [plain(line) for line in data.decode(errors="replace").split("\n")]
    while found and not found[-1].strip():
        found.pop()
    return found[-lines:], len(found) > lines or size > TAIL_BYTES


# -- telling ----------------------------------------------------------------------------------------


def print_report(report: RunReport, console: Console, leaves: Iterable[str]) -> None:
    """For people. `leaves`: names of jobs that no other waits for, whose output is quoted."""
    teller = _Teller(console)
    if report.jobs:
        teller.table(report)
        teller.failures(report)
        teller.outputs([job for job in report.jobs if job.name in set(leaves)])
    teller.end(report)


class _Teller:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._quotes = LOGS_MAX

    def _say(self, *pieces: Any) -> None:
        self._console.print(Text.assemble(*pieces), soft_wrap=True)

    def table(self, report: RunReport) -> None:
        rows = [(job.name, job.status, _children(job), _took(job)) for job in report.jobs]
        heads = ("job", "status", "children", "time")
        widths = [max(len(row[n]) for row in [heads, *rows]) for n in range(3)]
        self._say((_columns(heads, widths), "bold"))
        for row in rows:
            name, status, children, took = _columns(row, widths, cut=False)
            self._say(f"{name}  ", (status, STATUS_STYLES.get(row[1], "")), f"  {children}  {took}".rstrip())

    def failures(self, report: RunReport) -> None:
        for job in report.jobs:
            for failure in job.failures:
                what = job.name
                if failure.children is not None:
                    word = "child" if failure.count == 1 else "children"
                    what = f"{job.name}, {word} {ranges(failure.children)}"
                    what += f" ({failure.count} in all)" if failure.count > 1 else ""
                self._say((what, "red"), f": {why(failure.exit_code, failure.status_reason, failure.reason)}")
                for path in failure.logs:
                    self._say(f"  log: {path}")
                    self._quote(path)
                if failure.count > len(failure.logs) and len(failure.logs) == LOGS_MAX:
                    self._say(f"  more logs: {job.logs_dir}/<index>-<attempt>.log")
            if job.other_failures:
                self._say(f"{job.name}: {job.other_failures} more children failed for other reasons")

    def _quote(self, path: str) -> None:
        if self._quotes:
            lines, _ = tail(path)
            self._quotes -= 1
            for line in lines:
                self._say(("    | ", "dim"), line)

    def outputs(self, jobs: list[JobReport]) -> None:
        """What single jobs wrote at the end of the pipeline: often the result of it all."""
        for job in [job for job in jobs if job.log is not None and job.status == "SUCCEEDED"][:LOGS_MAX]:
            lines, cut = tail(str(job.log))
            if lines:
                self._say(f"{job.name} wrote{', at its end' if cut else ''} ({job.log}):")
            for line in lines:
                self._say(("    | ", "dim"), line)

    def end(self, report: RunReport) -> None:
        style = {"succeeded": "green", "failed": "red"}.get(report.outcome, "yellow")
        self._say(f"{report.name}: ", (report.outcome, f"bold {style}"), f" after {seconds(report.elapsed_s)}")
        if report.journal is not None:
            self._say(f"journal: {report.journal}")


def _columns(row: Sequence[str], widths: list[int], *, cut: bool = True) -> Any:
    cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
    cells.append(row[-1])
    return "  ".join(cells) if cut else cells


def _children(job: JobReport) -> str:
    """How many children have succeeded, and what became of the others."""
    if job.array_size is None:
        return "-"
    waiting = sum(job.counts[status] for status in ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING"))
    rest = [(job.counts["FAILED"], "failed"), (job.counts["RUNNING"], "running"), (waiting, "waiting")]
    some = ", ".join(f"{count} {what}" for count, what in rest if count)
    return f"{job.counts['SUCCEEDED']}/{job.array_size}" + (f" ({some})" if some else "")


def _took(job: JobReport) -> str:
    return "-" if job.elapsed_s is None else seconds(job.elapsed_s)


def why(exit_code: int | None, status_reason: str | None, reason: str | None) -> str:
    """Why something failed, in a line."""
    pieces = [] if exit_code is None else [f"exit code {exit_code}"]
    pieces += [text for text in (status_reason, reason) if text and text != ORDINARY_END]
    return plain("; ".join(pieces)) or "no reason given"
