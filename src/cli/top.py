"""`anybatch top`: a live view of queues, environments and jobs, with what waits and why."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import anybatch
from msgspec import Struct
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .console import Out, plain
from .output import STATUS_STYLES, print_json
from .progress import Bar, counts_of, seconds
from .resources import memory_of, state_of, vcpus_of
from .summary import why
from .target import add_command, add_options, carry_out, kernel_of

DELAY_S: Final = 1.0
"""Between two looks, unless told otherwise."""
DELAY_S_MIN: Final = 0.1
JOBS_MAX: Final = 200
"""Unfinished jobs that are looked at, the newest."""
ENDED_MAX: Final = 5
"""Jobs that have ended and are shown, the newest."""
LOOKED_MAX: Final = 200
"""Jobs among which these are looked for."""
ROWS_BESIDE: Final = 12
"""Lines that a small terminal has for other things than jobs."""
NAME_CELLS_MAX: Final = 24
BAR_CELLS: Final = 20
COUNTS_CELLS_MAX: Final = 36
NARROW_CELLS: Final = 110
"""A terminal that is not as wide shows no queues, and shorter bars."""
PIPE_CELLS: Final = 200
"""The width of a line where nobody says how wide it may be."""
UNFINISHED: Final = [status for status in anybatch.JobStatus if not status.is_terminal]
EXAMPLES: Final = """
  anybatch top                                    until Ctrl-C
  anybatch top --once                             one look, and end; as in a pipe
  anybatch top --json | jq '.jobs[] | {name: .job.name, why: .reasons[0].code}'
"""


class Row(Struct, frozen=True):
    """A job, and why it is where it is (unfinished ones only)."""

    job: anybatch.JobDetail
    reasons: tuple[anybatch.Reason, ...]


class Look(Struct, frozen=True, kw_only=True):
    """How everything stands; what --json prints. `more`: whether there are more unfinished jobs."""

    at: datetime
    kernel: str
    journal: str | None
    queues: list[anybatch.QueueDetail]
    environments: list[anybatch.EnvironmentDetail]
    jobs: list[Row]
    more: bool


def add_parser(commands: Any) -> None:
    """Tell the command line about this command."""
    parser = add_command(
        commands, "top", main, brief="watch queues, environments and jobs", examples=EXAMPLES,
        text="Watch queues, environments and jobs: arrays as bars, and what waits with why. In a pipe: one look.",
    )  # fmt: skip
    parser.add_argument("--once", action="store_true", help="one look, and end")
    parser.add_argument("-d", "--delay", type=float, default=DELAY_S, metavar="SECONDS", help="between two looks")
    add_options(parser)


def main(options: argparse.Namespace) -> int:
    """Watch until Ctrl-C."""

    async def work() -> int:
        async with kernel_of(options, looks=True) as kernel:
            out = Out()
            if not out.is_terminal:
                out.width = PIPE_CELLS
            once = options.once or not out.is_terminal or isinstance(kernel, anybatch.JournalReader)
            look = await take_look(kernel)
            if options.json:
                print_json(look)
            elif once:
                with out.capture() as text:
                    out.print(picture(look, rows=None, cells=out.width))
                sys.stdout.write("".join(f"{line.rstrip()}\n" for line in text.get().splitlines()))
            else:
                await _watch(kernel, out, look, max(options.delay, DELAY_S_MIN))
        return 0

    return carry_out(options, work)


async def _watch(kernel: anybatch.Kernel, out: Out, look: Look, delay_s: float) -> None:
    with Live(console=out, auto_refresh=False, screen=True) as live:
        while True:
            rows = max(3, out.height - ROWS_BESIDE)
            live.update(picture(look, rows=rows, cells=out.width), refresh=True)
            await asyncio.sleep(delay_s)
            look = await take_look(kernel)


# -- looking ----------------------------------------------------------------------------------------


async def take_look(kernel: anybatch.Kernel) -> Look:
    """How everything stands. What it costs does not grow with the number of jobs or children."""
    queues, environments = await kernel.describe_job_queues(), await kernel.describe_compute_environments()
    chosen, more = await _newest(kernel, UNFINISHED, JOBS_MAX)
    looked, _ = await _newest(kernel, None, LOOKED_MAX)
    ended = [job for job in looked if job.status.is_terminal and job.stopped_at is not None]
    ended.sort(key=lambda job: job.stopped_at or job.created_at, reverse=True)
    rows = []
    for job in [*chosen, *ended[:ENDED_MAX]]:
        try:
            detail = await kernel.describe_job(job.id)
            reasons = () if detail.status.is_terminal else await kernel.explain(job.id)
        except anybatch.NotFound:  # forgotten meanwhile
            continue
        rows.append(Row(detail, tuple(reasons)))
    path = kernel.path
    return Look(
        at=datetime.now(UTC),
        kernel=kernel.id,
        journal=None if path is None else str(path),
        queues=sorted(queues, key=lambda queue: (-queue.priority, queue.name)),
        environments=environments,
        jobs=rows,
        more=more,
    )


async def _newest(
    kernel: anybatch.Kernel, status: Sequence[anybatch.JobStatus] | None, most: int
) -> tuple[list[anybatch.JobSummary], bool]:
    found: list[anybatch.JobSummary] = []
    async for job in kernel.list_jobs(status=status):
        if len(found) == most:
            return found, True
        found.append(job)
    return found, False


# -- showing ----------------------------------------------------------------------------------------


def picture(look: Look, *, rows: int | None, cells: int) -> RenderableType:
    """The look, with so many jobs (None: all), in lines of so many cells."""
    running = sum(host.attempts for one in look.environments for host in one.hosts)
    unfinished = sum(queue.unfinished for queue in look.queues)
    at = look.at.astimezone().strftime("%H:%M:%S")
    text = f"  {at}  {unfinished} unfinished jobs, {running} attempts on hosts  {look.journal or '(in memory)'}"
    head = Text.assemble(("anybatch", "bold"), plain(text), no_wrap=True, overflow="ellipsis")
    shown, left = look.jobs, 0
    if rows is not None and len(shown) > rows:
        shown, left = shown[:rows], len(shown) - rows
    parts: list[RenderableType] = [
        head,
        Text(),
        _queues(look),
        Text(),
        _environments(look),
        Text(),
        _jobs(look, shown, is_narrow=cells < NARROW_CELLS),
    ]
    if left or look.more:
        parts.append(Text(f"... and {left or ''}{' or more' if look.more and left else ''} more jobs", style="dim"))
    return Group(*parts)


def _table(*heads: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for head in heads:
        table.add_column(head, no_wrap=True, overflow="ellipsis")
    return table


def _status(text: str) -> Text:
    return Text(text, style=STATUS_STYLES.get(text, ""))


def _queues(look: Look) -> Table:
    table = _table("queue", "priority", "status", "unfinished", "environments")
    for queue in look.queues:
        status = _status(state_of(queue.state, queue.status))
        names = ", ".join(queue.compute_environments)
        table.add_row(Text(queue.name), str(queue.priority), status, str(queue.unfinished), Text(names))
    return table


def _environments(look: Look) -> Table:
    table = _table("environment", "backend", "status", "hosts", "attempts", "vCPUs used", "MiB used", "")
    for one in look.environments:
        status = state_of(one.state, one.status)
        note = plain(one.status_reason) if one.status is anybatch.ResourceStatus.INVALID else ""
        closed = [host for host in one.hosts if host.state is not anybatch.HostState.ACTIVE]
        note = note or ", ".join(f"{host.name} is {host.state}" for host in closed[:3])
        table.add_row(
            Text(one.name), Text(one.backend), _status(status), str(len(one.hosts)),
            str(sum(host.attempts for host in one.hosts)), vcpus_of(one.hosts), memory_of(one.hosts), Text(note),
        )  # fmt: skip
    return table


def _jobs(look: Look, rows: Sequence[Row], *, is_narrow: bool) -> Table:
    """A row for each; what is long is cut, the reasons first."""
    cells = [(row.job.name, row.job.queue, _counts(row.job, counts_of(row.job)), _age(look, row.job)) for row in rows]
    heads = ("job", "queue", "children", "age")
    widths = [max(len(head), *(len(cell[n]) for cell in cells), 0) for n, head in enumerate(heads)]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False, expand=True)
    table.add_column(heads[0], no_wrap=True, overflow="ellipsis", width=min(widths[0], NAME_CELLS_MAX))
    if not is_narrow:
        table.add_column(heads[1], no_wrap=True, overflow="ellipsis", width=min(widths[1], NAME_CELLS_MAX))
    table.add_column("", width=BAR_CELLS // 2 if is_narrow else BAR_CELLS)
    table.add_column(heads[2], no_wrap=True, overflow="ellipsis", width=min(widths[2], COUNTS_CELLS_MAX))
    table.add_column(heads[3], no_wrap=True, justify="right", width=widths[3])
    table.add_column("why", no_wrap=True, overflow="ellipsis", ratio=1)
    for row, (name, queue, children, age) in zip(rows, cells, strict=True):
        counts = counts_of(row.job)
        style = "red" if counts["failed"] else ""
        first = [Text(name)] if is_narrow else [Text(name), Text(queue)]
        table.add_row(*first, Bar(counts), Text(children, style=style), age, _why(row))
    return table


def _age(look: Look, job: anybatch.JobDetail) -> str:
    """From its submit to its end, or so far."""
    return seconds(max(0.0, ((job.stopped_at or look.at) - job.created_at).total_seconds()))


def _counts(job: anybatch.JobDetail, counts: dict[str, int]) -> str:
    if job.array_size is None:
        return str(job.status)
    some = ", ".join(f"{n} {what}" for what, n in counts.items() if n and what != "succeeded")
    return f"{counts['succeeded']}/{job.array_size}" + (f" ({some})" if some else "")


def _why(row: Row) -> Text:
    """What holds it back, or how it ended."""
    job = row.job
    if row.reasons:
        reason = row.reasons[0]
        running = reason.code in (anybatch.Code.RUNNING, anybatch.Code.STARTING)
        return Text("" if running else f"{reason.code}: {plain(reason.text)}", style="dim")
    if job.status is anybatch.JobStatus.FAILED:
        return Text(why(job.exit_code, job.status_reason, job.reason), style="red")
    return Text()
