"""`anybatch logs` and `anybatch events`: what goes on, as it happens."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any, Final

import anybatch

from .output import print_line, say, when
from .summary import ranges, runs, why
from .target import NoTarget, add_command, add_options, carry_out, kernel_of, reference

LOGS_EXAMPLES: Final = """
  anybatch logs resize:7                          what child 7 wrote in its latest attempt
  anybatch logs -f build                          go on until it ends; a job that waits is waited for
  anybatch logs --attempt 1 build                 an earlier attempt
"""
EVENTS_EXAMPLES: Final = """
  anybatch events                                 all that are kept, up to now
  anybatch events --follow                        those to come
  anybatch events --follow --after 3:1200         go on after an event that was seen: none is missed
  anybatch events --follow --json | jq -r 'select(.status == "FAILED") | .job_name'
"""


def add_parsers(commands: Any) -> None:
    """Tell the command line about these commands."""
    logs = add_command(
        commands, "logs", logs_main, brief="show what a job has written",
        text="Show what an attempt of a job or child has written, the latest one unless told otherwise.",
        examples=LOGS_EXAMPLES,
    )  # fmt: skip
    logs.add_argument("job", metavar="JOB", help="an id or name; with :INDEX a child")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the attempt has ended")
    logs.add_argument("--attempt", type=int, metavar="N", help="the attempt, from 1 (default: the latest)")
    add_options(logs)
    events = add_command(
        commands, "events", events_main, brief="show what happens",
        text="Show every change of a job's status, in order: those that are kept, or those to come.",
        examples=EVENTS_EXAMPLES,
    )  # fmt: skip
    events.add_argument("-f", "--follow", action="store_true", help="show those to come, until Ctrl-C")
    events.add_argument("--after", metavar="EPOCH:SEQUENCE", help="begin after this event")
    events.add_argument("--job", metavar="JOB", help="only of this job, by id or name")
    add_options(events)


def logs_main(options: argparse.Namespace) -> int:
    """Write a log to standard output, as it is; with --json a line for each of its lines."""

    async def work() -> int:
        async with kernel_of(options, looks=True) as kernel:
            job = await reference(kernel, options.job)
            pieces = kernel.logs(job, follow=options.follow, attempt=options.attempt)
            async with contextlib.aclosing(pieces) as pieces:  # type: ignore[type-var]  # it is a generator
                rest = b""
                async for piece in pieces:
                    if not options.json:
                        sys.stdout.buffer.write(piece)
                        sys.stdout.buffer.flush()
                        continue
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        print_line({"job_id": job, "line": line.decode(errors="replace")})
                if rest:
                    print_line({"job_id": job, "line": rest.decode(errors="replace")})
        return 0

    return carry_out(options, work)


def _after(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    epoch, _, sequence = text.partition(":")
    if not (epoch.isdecimal() and sequence.isdecimal()):
        raise anybatch.InvalidValue("--after", text, "it is EPOCH:SEQUENCE, as `anybatch events` shows it")
    return int(epoch), int(sequence)


def events_main(options: argparse.Namespace) -> int:
    """Show events."""

    async def work() -> int:
        async with kernel_of(options, looks=True) as kernel:
            if options.follow and isinstance(kernel, anybatch.JournalReader):
                raise NoTarget("there are no events to come: no kernel runs")
            job = None if options.job is None else (await reference(kernel, options.job)).partition(":")[0]
            if job is not None:
                job = (await kernel.job(job)).id
            last = await kernel.last_event_id()
            after = _after(options.after)
            if after is None and options.follow:
                after = last
            if not options.follow and after == tuple(last):
                return 0
            async with kernel.events(after=after) as events:
                async for event in events:
                    if event.id > last and not options.follow:
                        break
                    if job in (None, event.job_id):
                        _print(event, json=options.json)
                    if event.id >= last and not options.follow:
                        break
        return 0

    return carry_out(options, work)


def _print(event: anybatch.JobEvent, *, json: bool) -> None:
    if json:
        print_line({**{name: getattr(event, name) for name in event.__struct_fields__}, "id": list(event.id)})
        return
    which = "" if event.indexes is None else f" {ranges(runs(sorted(event.indexes)))}"
    attempt = "" if event.attempt is None else f" attempt {event.attempt}"
    text = ""
    if event.exit_codes is not None or event.status is anybatch.JobStatus.FAILED:
        codes = sorted({code for code in event.exit_codes or () if code is not None})
        reason = why(codes[0] if len(codes) == 1 else None, event.status_reason, event.reason)
        text = "" if event.status is anybatch.JobStatus.SUCCEEDED else f": {reason}"
        if len(codes) > 1:
            text = f": exit codes {', '.join(map(str, codes[:10]))}"
    at = f"{event.id.epoch}:{event.id.sequence}"
    say(f"{when(event.at)}  {at:>8}  {event.status:<9}  {event.job_name}{which}{attempt}{text}  {event.job_id}")
