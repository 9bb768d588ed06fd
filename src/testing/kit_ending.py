"""The rules of logs, stops and timeouts."""

from __future__ import annotations

import asyncio
import time

import anyio
from anybatch.kernel.backend import AttemptKey

from .kit_context import EXITED, LOST, TIMED_OUT, Seen
from .kit_rig import (
    BEATLESS_S,
    GRACE_MS,
    HELD_UP_MS,
    LONG_GRACE_MS,
    Rig,
    needs_files,
    needs_logs,
    needs_timeouts,
    needs_trees,
    rule,
)

LINES = 200
FLOOD = 1_000_000
TIMEOUT_MS = 500
STOPPED_CODE = 143
"""128 + SIGTERM."""
KILLED_CODE = 137
"""128 + SIGKILL."""


# -- logs ---------------------------------------------------------------------------------------------


@rule("speak 3", needs=[needs_logs])
async def logs_have_what_was_written(rig: Rig) -> None:
    """The log of an attempt has what it wrote to stdout and to stderr, and nothing else."""
    session = await rig.open()
    launch = session.make("speak 3", range(2))
    await session.launch(launch)
    for key in launch.attempts():
        await session.end_of(key)
        found = sorted((await session.log(key)).decode(errors="replace").splitlines())
        wanted = sorted(f"{stream} {n}" for n in range(3) for stream in ("out", "err"))
        rig.expect(found == wanted, f"the lines of the log are {found}; wanted {wanted}")


@rule("speak 3", needs=[needs_logs])
async def logs_keep_the_order_of_writes(rig: Rig) -> None:
    """Lines stand in the log in the order in which they were written (where streams are apart: in each stream)."""
    session = await rig.open()
    launch = session.make(f"speak {LINES}")
    await session.launch(launch)
    key = launch.attempts()[0]
    await session.end_of(key)
    lines = (await session.log(key)).decode(errors="replace").splitlines()
    out, err = [f"out {n}" for n in range(LINES)], [f"err {n}" for n in range(LINES)]
    for stream, wanted in (("out", out), ("err", err)):
        found = [line for line in lines if line.startswith(stream)]
        rig.expect(found == wanted, f"the lines of std{stream} are not in order: {found[:6]}...")
    if rig.about.orders_streams:
        both = [line for pair in zip(out, err, strict=True) for line in pair]
        rig.expect(lines == both, f"stdout and stderr are not in the order of the writes: {lines[:6]}...")


@rule("flood 3", needs=[needs_logs])
async def logs_are_complete_when_the_end_is_reported(rig: Rig) -> None:
    """Whoever reads a log once the end is reported reads all of it."""
    session = await rig.open()
    readers: list[asyncio.Task[bytes]] = []

    def read(end: Seen) -> None:
        readers.append(asyncio.ensure_future(session.log(end.key)))

    session.context.on_end = read
    try:
        await session.run(f"flood {FLOOD}", range(4))
        sizes = [len(log) for log in await asyncio.gather(*readers)]
    finally:
        session.context.on_end = lambda end: None
    rig.expect(sizes == [FLOOD] * 4, f"logs of {FLOOD} bytes, read when the ends were reported, had {sizes}")


@rule("goodbye 5", needs=[needs_logs])
async def following_shows_what_is_written_meanwhile(rig: Rig) -> None:
    """A followed log gives what an attempt has written while it still runs, and without `follow` reading ends."""
    session = await rig.open()
    launch = session.make("goodbye 5")
    await session.launch(launch)
    key = launch.attempts()[0]
    with anyio.move_on_after(rig.wait_s) as scope:
        found = b""
        async for piece in session.backend.logs(key, follow=True):
            found += piece
            if b"ready" in found:
                break
    rig.expect(not scope.cancelled_caught, f"the followed log of a running attempt has only {found!r}")
    ends = session.context.ends_of(key)
    rig.expect(not ends, f"the followed log said nothing until the end: {ends and str(ends[0])}")
    log = await session.log(key)
    rig.expect(b"ready" in log, f"read without following it has {log!r}")


@rule("goodbye 5", needs=[needs_logs])
async def following_ends_with_the_attempt(rig: Rig) -> None:
    """A followed log has everything, and ends when the attempt has ended; of an ended one it ends at once."""
    session = await rig.open()
    launch = await session.going("goodbye 5")
    key = launch.attempts()[0]
    reader = asyncio.ensure_future(session.log(key, follow=True))
    try:
        await asyncio.sleep(0.1 * rig.scale)
        rig.expect(not reader.done(), "it ended while the attempt still ran")
        await session.stop(launch)
        await session.end_of(key)
        done, _ = await asyncio.wait({reader}, timeout=rig.wait_s)
        rig.expect(bool(done), "it goes on after the attempt's end")
        for log in (reader.result(), await session.log(key, follow=True)):
            rig.expect(log == b"ready\nbye\n", f"it has {log!r}; the attempt wrote b'ready\\nbye\\n'")
    finally:
        reader.cancel()
        await asyncio.wait({reader})


@rule()
async def logs_of_the_unknown_are_empty(rig: Rig) -> None:
    """The log of an attempt that never was is empty, followed or not; asking for it raises nothing."""
    session = await rig.open()
    for follow in (False, True):
        log = await session.log(AttemptKey("anybatch-kit-no-such-job", 0, 1), follow=follow)
        rig.expect(log == b"", f"it has {log!r}")


# -- stops --------------------------------------------------------------------------------------------


@rule("wait")
async def stopping_ends_attempts(rig: Rig) -> None:
    """A stopped attempt ends, and those beside it go on."""
    session = await rig.open()
    stopped, other = await session.going("wait", range(2)), await session.going("wait")
    await session.stop(stopped)
    for key in stopped.attempts():
        end = await session.end_of(key)
        rig.expect(end.kind == EXITED and end.code not in (0, None), f"a stopped attempt was reported {end}")
    await rig.quiet()
    ends = session.context.ends_of(other.attempts()[0])
    rig.expect(not ends, f"an attempt that nobody stopped was reported {ends and str(ends[0])}")


@rule("goodbye 5", needs=[needs_logs])
async def stopping_gives_notice_first(rig: Rig) -> None:
    """A stop sends SIGTERM (cancels a coroutine): an attempt that ends in its own way has its own exit code."""
    session = await rig.open()
    launch = await session.going("goodbye 5")
    key = launch.attempts()[0]
    await session.stop(launch)
    end = await session.end_of(key)
    log = await session.log(key)
    rig.expect(end.code == 5, f"an attempt that exits with 5 on SIGTERM was reported {end}; its log: {log!r}")
    rig.expect(b"bye" in log, f"its last words are missing from the log: {log!r}")


@rule("stubborn")
async def stopping_kills_after_the_grace(rig: Rig) -> None:
    """An attempt that ignores SIGTERM is killed once the grace is over, not before: exit code 137."""
    session = await rig.open()
    launch = await session.going("stubborn")
    began = time.monotonic()
    await session.stop(launch, GRACE_MS)
    end = await session.end_of(launch.attempts()[0])
    took_ms = (time.monotonic() - began) * 1000
    rig.expect(end.code == KILLED_CODE, f"it was reported {end}; {KILLED_CODE} is SIGKILL's")
    least = GRACE_MS * rig.scale * 0.9
    rig.expect(took_ms >= least, f"it was killed after {took_ms:.0f} ms; its grace was {GRACE_MS * rig.scale:.0f} ms")


@rule("stubborn")
async def stopping_does_not_hold_up_the_caller(rig: Rig) -> None:
    """`stop` returns once it is on its way, not when the grace is over."""
    session = await rig.open()
    launch = await session.going("stubborn")
    began = time.monotonic()
    await session.stop(launch, HELD_UP_MS)
    took_ms, grace_ms = (time.monotonic() - began) * 1000, HELD_UP_MS * rig.scale
    rig.expect(took_ms < 0.5 * grace_ms, f"with a grace of {grace_ms:.0f} ms it took {took_ms:.0f} ms")


@rule("family", needs=[needs_files, needs_trees])
async def stopping_ends_the_whole_tree(rig: Rig) -> None:
    """A stop ends every process of the attempt: those that ignore SIGTERM, and those in sessions of their own."""
    session = await rig.open()
    launch = await session.going("family")
    for suffix in (".child", ".far"):
        within_s = None if suffix == ".child" else BEATLESS_S  # there is no `setsid` everywhere
        rig.expect(
            await rig.beats(launch, suffix, within_s=within_s) or suffix == ".far", "the attempt's child does not run"
        )
    await session.stop(launch, GRACE_MS)
    await session.end_of(launch.attempts()[0])
    await anyio.sleep(GRACE_MS / 1000 * rig.scale)
    for suffix, who in ((".child", "a child that ignores SIGTERM"), (".far", "a grandchild in its own session")):
        await rig.gone(launch, f"{who} goes on after the stop, its grace and the end", suffix)


@rule("stubborn")
async def stopping_twice_is_stopping_once(rig: Rig) -> None:
    """A second stop does not prolong the grace, and neither it nor one after the end brings another report."""
    session = await rig.open()
    launch = await session.going("stubborn")
    key = launch.attempts()[0]
    await session.stop(launch, GRACE_MS)
    await session.stop(launch, LONG_GRACE_MS)
    most = GRACE_MS / 1000 * rig.scale + rig.wait_s / 2
    ended = await session.context.until(lambda: session.context.ends_of(key), most)
    rig.expect(ended, f"stopped with a grace of {GRACE_MS * rig.scale:.0f} ms, then again, it goes on after {most:g} s")
    await session.stop(launch, 0)
    await rig.quiet()
    ends = ", ".join(map(str, session.context.ends_of(key)))
    rig.expect(len(session.context.ends_of(key)) == 1, f"its ends: {ends}")


@rule()
async def stopping_the_unknown_is_ignored(rig: Rig) -> None:
    """A stop of attempts that are not known, or have ended, does nothing: it neither raises nor reports."""
    session = await rig.open()
    unknown = session.make("exit 0") if rig.about.programs("exit", "0") else session.make("wait")
    await session.stop(unknown)
    await session.stop(unknown, 0)
    await rig.quiet()
    told = session.context.told_of(unknown.attempts()[0])
    rig.expect(not told, f"of an attempt that was never launched it reports {told and str(told[0])}")
    if rig.about.programs("exit", "0"):
        await session.launch(unknown)
        key = unknown.attempts()[0]
        end = await session.end_of(key)
        rig.expect(end.code == 0, f"an attempt that was stopped before it was ever launched was reported {end}")
        await session.stop(unknown)
        await rig.quiet()
        rig.expect(len(session.context.ends_of(key)) == 1, "the stop of an ended attempt brought a report")


@rule("wait")
async def stopping_what_has_not_started_ends_it(rig: Rig) -> None:
    """A stop right after the launch, when attempts may not have started yet, ends them too."""
    session = await rig.open()
    launch = session.make("wait", range(40))
    await session.launch(launch)
    await session.stop(launch, GRACE_MS)
    for key in launch.attempts():
        end = await session.end_of(key)
        rig.expect(end.kind != LOST and end.code != 0, f"a stopped attempt was reported {end}")


@rule("wait", needs=[needs_timeouts])
async def timeouts_end_attempts(rig: Rig) -> None:
    """An attempt that runs for longer than its timeout is ended, and reported as timed out (TO-3)."""
    session = await rig.open()
    timeout_ms = round(TIMEOUT_MS * rig.scale)
    launch = session.make("wait", timeout_ms=timeout_ms)
    await session.launch(launch)
    key = launch.attempts()[0]
    end = await session.end_of(key)
    rig.expect(end.kind == TIMED_OUT, f"it was reported {end}")
    starts = session.context.starts_of(key)
    rig.expect(bool(starts), "it was reported timed out, and never started")
    ran_ms = end.when_ms - starts[0].when_ms
    rig.expect(ran_ms >= 0.9 * timeout_ms, f"with a timeout of {timeout_ms} ms it ran for {ran_ms} ms")
