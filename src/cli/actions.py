"""`anybatch cancel`, `terminate`, `rerun` and `wait`: what is done to jobs that are there."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anybatch

from .output import print_json, say
from .runner import JOB_FAILED, SUCCEEDED
from .summary import why
from .target import add_command, add_options, carry_out, kernel_of, references

CANCEL_EXAMPLES: Final = """
  anybatch cancel resize                          children that run go on, what waits is ended
  anybatch cancel resize:7 --reason "bad input"
"""
TERMINATE_EXAMPLES: Final = """
  anybatch terminate resize                       also stops what runs: SIGTERM, after 30 s SIGKILL
  anybatch terminate --wait resize                ... and returns when it has ended
"""
RERUN_EXAMPLES: Final = """
  anybatch rerun resize                           the failed children, same job, same indexes
  anybatch rerun --dependents --wait resize       and the jobs that failed because of it; exit status 1 if one fails
"""
WAIT_EXAMPLES: Final = """
  anybatch wait resize && echo fine               exit status 1 if it failed
  anybatch wait a b --json | jq -r '.[].status'
"""
Act = Callable[[anybatch.Kernel, str, str], Awaitable[None]]


def add_parsers(commands: Any) -> None:
    """Tell the command line about these commands."""
    cancel = add_command(
        commands, "cancel", cancel_main, brief="end what of a job has not started",
        text="End what of jobs or children has not started. What runs goes on.", examples=CANCEL_EXAMPLES,
    )  # fmt: skip
    terminate = add_command(
        commands, "terminate", terminate_main, brief="end a job, running or not",
        text="End jobs or children in any status: what waits is failed, what runs is stopped.",
        examples=TERMINATE_EXAMPLES,
    )  # fmt: skip
    wait = add_command(
        commands, "wait", wait_main, brief="wait for the end of jobs",
        text="Wait until jobs or children have ended. Ctrl-C ends the wait and no job.", examples=WAIT_EXAMPLES,
    )  # fmt: skip
    rerun = add_command(
        commands, "rerun", rerun_main, brief="run again what failed of a job",
        text="Run again what FAILED of jobs: failed children, one child, or a single job. Earlier attempts are kept.",
        examples=RERUN_EXAMPLES,
    )  # fmt: skip
    rerun.add_argument("--dependents", action="store_true", help="and what failed because of them")
    rerun.add_argument("--wait", action="store_true", help="until they have ended")
    for parser, reason in (
        (cancel, "Cancelled by its owner"),
        (terminate, "Terminated by its owner"),
        (rerun, None),
        (wait, None),
    ):
        parser.add_argument("jobs", nargs="+", metavar="JOB", help="an id or name; with :INDEX a child")
        if reason is not None:
            parser.add_argument("--reason", default=reason, help=f"is kept with the job (default: {reason})")
        add_options(parser)
    terminate.add_argument("--wait", action="store_true", help="until they have ended")


def cancel_main(options: argparse.Namespace) -> int:
    """End what has not started."""
    return _act(options, lambda kernel, job, reason: kernel.cancel_job(job, reason), "cancelled")


def terminate_main(options: argparse.Namespace) -> int:
    """End everything."""
    return _act(options, lambda kernel, job, reason: kernel.terminate_job(job, reason), "terminated")


def rerun_main(options: argparse.Namespace) -> int:
    """Run again what failed; with --wait 1 if it failed again."""

    async def work() -> int:
        async with kernel_of(options) as kernel:
            found: dict[str, anybatch.JobRerun] = {}
            for job in await references(kernel, options.jobs):
                found |= {one.id: one for one in await kernel.rerun(job, dependents=options.dependents)}
            for one in found.values() if not options.json else ():
                say(f"runs again: {one.name} {one.id}" + (f", {one.children} children" if one.children > 1 else ""))
            if options.wait:
                return tell_ends(await asyncio.gather(*map(kernel.wait, found)), json=options.json)
            if options.json:
                print_json(await kernel.describe_jobs(list(found)))
        return 0

    return carry_out(options, work)


def _act(options: argparse.Namespace, act: Act, done: str) -> int:
    async def work() -> int:
        async with kernel_of(options) as kernel:
            jobs = await references(kernel, options.jobs)
            for job in jobs:
                (before,) = await kernel.describe_jobs([job])
                await act(kernel, job, options.reason)
                if not options.json:
                    (after,) = await kernel.describe_jobs([job])
                    say(_left(before, after, done) or f"{done} {job}")
            if getattr(options, "wait", False):
                await asyncio.gather(*map(kernel.wait, jobs))
            if options.json:
                print_json(await kernel.describe_jobs(jobs))
        return 0

    return carry_out(options, work)


def _left(before: anybatch.JobDetail, after: anybatch.JobDetail, done: str) -> str | None:
    """What to say of a job that this could not change."""
    if before.status in (anybatch.JobStatus.SUCCEEDED, anybatch.JobStatus.FAILED):
        return f"left as it is: {before.id}, which is {before.status} already"
    if done == "cancelled" and after.status is anybatch.JobStatus.RUNNING:
        return f"left as it is: {after.id}, which is RUNNING; `anybatch terminate` stops what runs"
    return None


def wait_main(options: argparse.Namespace) -> int:
    """Wait; 1 if one has failed."""

    async def work() -> int:
        async with kernel_of(options, looks=True) as kernel:
            details = await asyncio.gather(*map(kernel.wait, await references(kernel, options.jobs)))
        return tell_ends(details, json=options.json)

    return carry_out(options, work)


def tell_ends(details: list[anybatch.JobDetail], *, json: bool) -> int:
    """Say what has become of jobs; the exit status."""
    if json:
        print_json(details)
    for detail in details if not json else ():
        text = f": {why(detail.exit_code, detail.status_reason, detail.reason)}" if detail.status == "FAILED" else ""
        say(f"{detail.name} {detail.id}: {detail.status}{text}")
    return JOB_FAILED if any(detail.status == "FAILED" for detail in details) else SUCCEEDED
