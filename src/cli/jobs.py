"""`anybatch ps`, `describe` and `explain`: how jobs stand, and why."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Final

import anybatch

from .output import print_json, print_table, say, span, when
from .summary import ranges, runs, why
from .target import add_command, add_options, carry_out, kernel_of, reference, references

LIMIT: Final = 100
"""Jobs that `ps` lists, unless told otherwise."""
PAGE: Final = 500
"""Jobs that are described in one call."""
GROUPS_MAX: Final = 5
"""Kinds of failure that `describe` tells of an array."""
PS_EXAMPLES: Final = """
  anybatch ps                                     the newest 100 jobs
  anybatch ps --status FAILED                     those that failed
  anybatch ps resize                              the children of an array, by name or id
  anybatch ps --json | jq -r '.[] | select(.status == "RUNNING") | .id'
"""
DESCRIBE_EXAMPLES: Final = """
  anybatch describe resize                        a job by name; an array with its failures in groups
  anybatch describe resize:7                      child 7
  anybatch describe --json 0b6e1f3c-...           all there is to know
"""
EXPLAIN_EXAMPLES: Final = """
  anybatch explain resize                         why it is not running, or why it ended as it did
  anybatch explain resize:7 --json | jq -r '.[0].code'
"""


def add_parsers(commands: Any) -> None:
    """Tell the command line about these commands."""
    ps = add_command(
        commands, "ps", ps_main, brief="list jobs", text="List jobs, newest first, or the children of an array.",
        examples=PS_EXAMPLES,
    )  # fmt: skip
    ps.add_argument("job", nargs="?", metavar="JOB", help="an array, by id or name: list its children")
    ps.add_argument("--status", action="append", metavar="STATUS", help="only of this status; may be given again")
    ps.add_argument("--queue", metavar="NAME", help="only of this queue")
    ps.add_argument("--name", metavar="NAME", help="only of this name, or beginning with it: 'NAME*'")
    ps.add_argument("-n", "--limit", type=int, default=LIMIT, metavar="N", help=f"how many (default {LIMIT}; 0: all)")
    add_options(ps)
    describe = add_command(
        commands, "describe", describe_main, brief="tell all about jobs", text="Tell all about jobs or children.",
        examples=DESCRIBE_EXAMPLES,
    )  # fmt: skip
    describe.add_argument("jobs", nargs="+", metavar="JOB", help="an id or name; with :INDEX a child")
    add_options(describe)
    explain = add_command(
        commands, "explain", explain_main, brief="say why a job is where it is",
        text="Say why a job or child is where it is: a stable code and a sentence each, the deciding one first.",
        examples=EXPLAIN_EXAMPLES,
    )  # fmt: skip
    explain.add_argument("job", metavar="JOB", help="an id or name; with :INDEX a child")
    add_options(explain)


# -- ps ---------------------------------------------------------------------------------------------


def ps_main(options: argparse.Namespace) -> int:
    """List jobs."""

    async def work() -> int:
        async with kernel_of(options, looks=True) as kernel:
            found, more = await _listed(kernel, options)
            if options.json:
                print_json(found)
                return 0
            counts = await _counts(kernel, found)
        rows = [
            (job.id, job.name, job.queue, str(job.status), counts.get(job.id, _result(job)), when(job.created_at),
             span(job.started_at, job.stopped_at))
            for job in found
        ]  # fmt: skip
        print_table(("id", "name", "queue", "status", "children", "submitted", "time"), rows, status=3)
        if more:
            say(f"... and more: -n 0 lists all, -n {2 * options.limit} twice as many")
        return 0

    return carry_out(options, work)


async def _listed(kernel: anybatch.Kernel, options: argparse.Namespace) -> tuple[list[anybatch.JobSummary], bool]:
    """As many as asked for, and whether there are more."""
    statuses = None if options.status is None else [status.upper() for status in options.status]
    found: list[anybatch.JobSummary] = []
    async for job in kernel.list_jobs(queue=options.queue, status=statuses, name=options.name, parent=options.job):
        if options.limit and len(found) == options.limit:
            return found, True
        found.append(job)
    return found, False


async def _counts(kernel: anybatch.Kernel, found: Sequence[anybatch.JobSummary]) -> dict[str, str]:
    """How the children of the arrays stand."""
    arrays = [job.id for job in found if job.array_size is not None]
    details = []
    for at in range(0, len(arrays), PAGE):
        details += await kernel.describe_jobs(arrays[at : at + PAGE])
    return {detail.id: children(detail) for detail in details}


def children(detail: anybatch.JobDetail) -> str:
    """How many children have succeeded, and what becomes of the others."""
    counts = detail.status_summary or {}
    others = [
        f"{count} {status.lower()}"
        for status, count in counts.items()
        if count and status is not anybatch.JobStatus.SUCCEEDED
    ]
    done = f"{counts.get(anybatch.JobStatus.SUCCEEDED, 0)}/{detail.array_size}"
    return f"{done} ({', '.join(others)})" if others else done


def _result(job: anybatch.JobSummary) -> str:
    return "-" if job.exit_code is None else f"exit code {job.exit_code}"


# -- describe ---------------------------------------------------------------------------------------


def describe_main(options: argparse.Namespace) -> int:
    """Tell all about jobs."""

    async def work() -> int:
        async with kernel_of(options, looks=True) as kernel:
            details = await kernel.describe_jobs(await references(kernel, options.jobs))
            if options.json:
                print_json(details)
                return 0
            for n, detail in enumerate(details):
                if n:
                    say("")
                for name, text in [*_facts(detail), *await _failures(kernel, detail)]:
                    say(f"{name + ':':<14}{text}")
        return 0

    return carry_out(options, work)


def _facts(detail: anybatch.JobDetail) -> list[tuple[str, str]]:
    retry = f"{detail.retry.attempts} attempt{'s' if detail.retry.attempts > 1 else ''}"
    if detail.checkpoint_exit_codes:
        codes = ", ".join(map(str, detail.checkpoint_exit_codes))
        retry += f"; again after exit code {codes} (checkpointed), at most {detail.max_checkpoints} times"
    waits = [f"{d.job_id or 'its own children'} ({d.type})" for d in detail.depends_on]
    needs = f"{detail.vcpus:g} vCPU, {detail.memory_mib} MiB" + (f", {detail.gpus} GPU" if detail.gpus else "")
    rows = [
        ("id", detail.id),
        ("name", detail.name),
        ("queue", detail.queue),
        ("status", str(detail.status)),
        ("why", _reason(detail)),
        ("children", children(detail) if detail.array_size is not None else ""),
        ("indexes", detail.array or ""),
        ("limits", _limits(detail)),
        ("command", " ".join(detail.command)),
        ("definition", detail.definition or ""),
        ("needs", needs),
        ("retry", retry),
        ("timeout", "" if detail.timeout_s is None else f"{detail.timeout_s:g} s"),
        ("role", detail.role or ""),
        ("waits for", ", ".join(waits)),
        ("tags", ", ".join(f"{key}={value}" for key, value in detail.tags.items())),
        ("submitted", f"{when(detail.created_at)}{f' by {detail.principal}' if detail.principal else ''}"),
        ("started", when(detail.started_at) if detail.started_at else ""),
        ("ended", f"{when(detail.stopped_at)}" if detail.stopped_at else ""),
    ]
    for attempt in detail.attempts:
        text = f"{why(attempt.exit_code, attempt.status_reason, attempt.reason)}" if attempt.stopped_at else "live"
        host = f" on {attempt.host}" if attempt.host else ""
        kind = f" ({attempt.failure_class})" if attempt.failure_class else ""
        rows.append(
            (f"attempt {attempt.number}", f"{text}{kind}{host}, {span(attempt.started_at, attempt.stopped_at)}")
        )
    return [(name, text) for name, text in rows if text]


def _limits(detail: anybatch.JobDetail) -> str:
    """Of an array."""
    if detail.array_size is None:
        return ""
    most, failures = detail.max_running, detail.max_failures
    stops = ", and what runs with it" if detail.on_max_failures is anybatch.OnMaxFailures.TERMINATE else ""
    found = [] if most is None else [f"at most {most} run at once"]
    return "; ".join(found if failures is None else [*found, f"stops at {failures} failed children{stops}"])


def _reason(detail: anybatch.JobDetail) -> str:
    if detail.status_reason is None and detail.exit_code is None:
        return ""
    return why(detail.exit_code, detail.status_reason, detail.reason)


async def _failures(kernel: anybatch.Kernel, detail: anybatch.JobDetail) -> list[tuple[str, str]]:
    """The failed children of an array, in groups."""
    counts = detail.status_summary
    if counts is None or not counts[anybatch.JobStatus.FAILED]:
        return []
    groups: dict[tuple[int | None, str | None, str | None], list[int]] = {}
    async for child in kernel.list_jobs(parent=detail.id, status="FAILED"):
        if child.index is not None:
            groups.setdefault((child.exit_code, child.status_reason, child.reason), []).append(child.index)
    found = sorted(groups.items(), key=lambda item: -len(item[1]))
    rows = [("failed", f"children {ranges(runs(indexes))}: {why(*cause)}") for cause, indexes in found[:GROUPS_MAX]]
    if len(found) > GROUPS_MAX:
        rows.append(("failed", f"... and for {len(found) - GROUPS_MAX} other reasons"))
    first = found[0][1][0]
    rows.append(("logs", f"anybatch logs {detail.id}:{first}"))
    return rows


# -- explain ----------------------------------------------------------------------------------------


def explain_main(options: argparse.Namespace) -> int:
    """Say why a job is where it is."""

    async def work() -> int:
        async with kernel_of(options, looks=True) as kernel:
            job = await reference(kernel, options.job)
            reasons = await kernel.explain(job)
            if options.json:
                print_json(reasons)
                return 0
            more = [row for detail in await kernel.describe_jobs([job]) for row in await _failures(kernel, detail)]
        rows = [(reason.code, reason.text) for reason in reasons] + [(f"{name}:", text) for name, text in more]
        width = max(len(head) for head, _ in rows)
        for head, text in rows:
            say(f"{head:<{width}}  {text}")
        return 0

    return carry_out(options, work)
