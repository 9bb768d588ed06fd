"""The rules of new settings, closing, and what a later backend finds again."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
import msgspec
from anybatch.kernel.backend import AttemptKey, Launch

from .kit_child import Holder
from .kit_context import ENDS, EXITED, LOST, REPLACED, STARTED, UNKNOWN
from .kit_rig import (
    GATE_S,
    LEFT_S,
    VCPUS_MILLI,
    Rig,
    Session,
    needs_files,
    needs_logs,
    needs_no_reattach,
    needs_reattach,
    rule,
    shown,
)

GATE_CODE = 7
GATE = f"gate {GATE_CODE} {GATE_S}"
POOLS = ("asyncio_", "AnyIO worker thread")
"""Names of threads that belong to the event loop's pools, not to a backend."""


# -- new settings -------------------------------------------------------------------------------------


async def _restarted(rig: Rig, session: Session, vcpus_milli: int) -> Session:
    """The same backend started again with other settings, as after an update of its environment."""
    later = Session(rig, session.backend, rig.context(max_vcpus_milli=vcpus_milli))
    rig.sessions.append(later)
    await later.start(session.in_flight())
    session.closed = True
    session.context.retire(REPLACED)
    return later


@rule("exit 0")
async def new_settings_are_reported(rig: Rig) -> None:
    """`start` on a backend that works takes new settings: hosts are reported again, with the capacity they now have."""
    session = await rig.open()
    before = dict(session.context.hosts)
    later = await _restarted(rig, session, 2 * VCPUS_MILLI)
    after = later.context.hosts
    rig.expect({*before} == {*after}, f"hosts were {[*before]}, and now are {[*after]}")
    if rig.about.follows_settings:
        told = sum(capacity.vcpus_milli for capacity in after.values())
        rig.expect(told == 2 * VCPUS_MILLI, f"max_vcpus is now {2 * VCPUS_MILLI} (milli), the capacity {told}")
    (end,) = await later.run("exit 0")
    rig.expect(end.code == 0, f"an attempt launched afterwards was reported {end}")


@rule("wait")
async def new_settings_keep_attempts_running(rig: Rig) -> None:
    """Attempts in flight go on when `start` is called again: not ended, not run again, and still to be stopped."""
    session = await rig.open()
    launch = await session.going("wait", range(2))
    later = await _restarted(rig, session, 2 * VCPUS_MILLI)
    await rig.quiet()
    for key in launch.attempts():
        ends = [*session.context.ends_of(key), *later.context.ends_of(key)]
        rig.expect(not ends, f"an attempt in flight was reported {ends and str(ends[0])}")
    await later.stop(launch)
    for key in launch.attempts():
        end = await later.end_of(key)
        rig.expect(end.kind == EXITED, f"stopped afterwards it was reported {end}")
    for index in launch.indexes if rig.about.shares_files and rig.about.logs else ():
        rig.expect(rig.runs(launch, index) == 1, f"index {index} has run {rig.runs(launch, index)} times")


@rule("wait")
async def new_settings_replace_the_context(rig: Rig) -> None:
    """Once `start` has been called again, reports go to the new context, and none to the earlier one."""
    session = await rig.open()
    launch = await session.going("wait")
    later = await _restarted(rig, session, 2 * VCPUS_MILLI)
    key = launch.attempts()[0]
    await later.stop(launch)
    reported = await later.context.until(lambda: later.context.ends_of(key) or session.context.faults, rig.wait_s)
    await rig.quiet()
    for _, text in session.context.faults:
        raise rig.broken(text)
    rig.expect(reported, "the end of an attempt was not reported to the new context")


# -- closing ------------------------------------------------------------------------------------------


@rule("wait")
async def nothing_is_reported_after_close(rig: Rig) -> None:
    """After `close` has returned nothing is reported, whatever becomes of the attempts."""
    session = await rig.open()
    await session.going("wait", range(3))
    if rig.about.programs("gate", "0", "0.2") is not None:
        rig.open_gate()
        await session.launch(session.make("gate 0 0.2"))
    await session.close()
    await rig.quiet()
    await rig.quiet()
    for name, text in session.context.faults:
        raise rig.broken(text, name)


@rule("beat", needs=[needs_files])
async def closing_ends_what_nobody_comes_back_to(rig: Rig) -> None:
    """Where `context.durable` is False nobody comes back: attempts end with `close`."""
    session = await rig.open()
    launch = await session.going("beat")
    rig.expect(await rig.beats(launch), "a running attempt marks no beats")
    await session.close()
    await rig.gone(launch, "it goes on after close, with no kernel to come back to it")


def _open_files() -> dict[str, str]:
    found = {}
    folder = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")
    for fd in os.listdir(folder):
        try:
            found[fd] = os.readlink(folder / fd) if folder.is_relative_to("/proc") else fd
        except OSError:
            continue
    return found


def _held(before: tuple[set[asyncio.Task[object]], set[threading.Thread], dict[str, str]]) -> list[str]:
    """What there is now of tasks, threads and open files that was not there before."""
    tasks, threads, files = before
    left = [f"task {task.get_name()}: {task.get_coro()!r}" for task in asyncio.all_tasks() - tasks]
    left += [
        f"thread {thread.name}" for thread in set(threading.enumerate()) - threads if not thread.name.startswith(POOLS)
    ]
    left += [f"file {name}" for fd, name in _open_files().items() if files.get(fd) != name and "/fd" not in name]
    return left


@rule()
async def closing_leaves_nothing_behind(rig: Rig) -> None:
    """After `close` there are no tasks, threads or open files of the backend's."""

    async def use() -> None:
        session = await rig.open()
        for act in ("exit 0", "speak 3", "missing"):
            if rig.about.programs(*act.split()) is not None:
                (end,) = await session.run(act)
                await session.log(end.key, follow=True)
        if rig.about.programs("wait") is not None:
            launch = await session.going("wait", range(2))
            await session.stop(msgspec.structs.replace(launch, indexes=[0]))
            await session.end_of(launch.attempts()[0])
        await session.close()

    await use()  # what is made once for all, such as pools, is made here
    gc.collect()
    before = asyncio.all_tasks(), set(threading.enumerate()), _open_files()
    await use()
    end = time.monotonic() + LEFT_S * rig.patience
    while left := _held(before):
        rig.expect(time.monotonic() < end, "; ".join(left[:5]))
        await anyio.sleep(0.02)


@rule()
async def closing_needs_no_start(rig: Rig) -> None:
    """`close` of a backend that was never started, or could not start, does nothing and raises nothing."""
    await rig.call("close of a backend never started", rig.about.factory().close())
    session = await rig.open()
    await session.close()


# -- found again --------------------------------------------------------------------------------------


def _settled(rig: Rig, session: Session, known: Sequence[Launch]) -> dict[AttemptKey, list[str]]:
    """Right after `start`: what was reported of each known attempt."""
    return {key: [one.kind for one in session.context.told_of(key)] for launch in known for key in launch.attempts()}


def _in_doubt(rig: Rig, session: Session) -> list[Launch]:
    """What the next kernel is told was in flight."""
    known = session.in_flight()
    rig.expect(bool(known), "nothing was in flight any more", "running_attempts_are_reported_started")
    return known


@rule("wait")
async def start_settles_every_known_attempt(rig: Rig) -> None:
    """When `start` returns, each known attempt that had started was reported started, exited, lost or unknown."""
    session = await rig.open(durable=True)
    await session.going("wait", range(3))
    known = _in_doubt(rig, session)
    await session.close()
    later = await rig.open(known, durable=True)
    told = _settled(rig, later, known)
    bare = [key for key, kinds in told.items() if not {*kinds} & {STARTED, UNKNOWN, *ENDS}]
    rig.expect(not bare, f"of {len(bare)} of {len(told)} known attempts start reported nothing: {shown(bare)}")


@rule("wait", needs=[needs_no_reattach])
async def known_attempts_are_reported_lost(rig: Rig) -> None:
    """Without capabilities.reattach what an earlier kernel left is reported lost: once, and not run again."""
    session = await rig.open(durable=True)
    launch = await session.going("wait", range(2))
    known = _in_doubt(rig, session)
    await session.close()
    runs = [rig.runs(launch, index) for index in launch.indexes]
    later = await rig.open(known, durable=True)
    await rig.quiet()
    for key in launch.attempts():
        kinds = [one.kind for one in later.context.told_of(key)]
        rig.expect(kinds == [LOST], f"of an attempt that ended with its backend there are the reports {kinds}")
    rig.expect(runs == [rig.runs(launch, index) for index in launch.indexes], "it was run again")


@rule("beat", needs=[needs_no_reattach, needs_files])
async def what_is_lost_has_ended(rig: Rig) -> None:
    """Without capabilities.reattach no attempt goes on after `close`: nothing runs that was reported lost."""
    session = await rig.open(durable=True)
    launch = await session.going("beat")
    await session.close()
    await rig.gone(launch, "it goes on after close, and the next kernel is told that it is lost")


@rule("goodbye 5", needs=[needs_reattach])
async def attempts_outlive_close(rig: Rig) -> None:
    """With capabilities.reattach attempts go on after `close`; `start` reports them started, and a stop ends them."""
    session = await rig.open(durable=True)
    launch = await session.going("goodbye 5", range(2))
    known = _in_doubt(rig, session)
    await session.close()
    await rig.quiet()
    await _go_on(rig, launch, await rig.open(known, durable=True))


async def _go_on(rig: Rig, launch: Launch, later: Session) -> None:
    """Check that attempts of an earlier kernel run, that they can be stopped, and that they have run once."""
    for key in launch.attempts():
        kinds = [one.kind for one in later.context.told_of(key)]
        rig.expect(STARTED in kinds and not {*kinds} & {*ENDS}, f"of a running attempt start reported {kinds}")
    await later.stop(launch)
    for key in launch.attempts():
        end = await later.end_of(key)
        rig.expect((end.kind, end.code) == (EXITED, 5), f"it exits with 5 when stopped, and was reported {end}")
        if rig.about.logs:
            log = await later.log(key)
            rig.expect(log == b"ready\nbye\n", f"its log is {log!r}; wanted b'ready\\nbye\\n'")
    _ran_once(rig, launch)


def _ran_once(rig: Rig, launch: Launch) -> None:
    for index in launch.indexes if rig.about.shares_files else ():
        rig.expect(rig.runs(launch, index) == 1, f"index {index} has run {rig.runs(launch, index)} times")


async def _through(rig: Rig, launch: Launch) -> None:
    """Let gated attempts end, and wait till they have."""
    rig.open_gate()
    if not rig.about.shares_files:
        await anyio.sleep(2 * GATE_S * rig.scale)
    else:
        end = time.monotonic() + rig.wait_s
        while not all("through" in rig.lines(launch, index) for index in launch.indexes):
            rig.expect(time.monotonic() < end, "attempts did not go on while nobody held them")
            await anyio.sleep(0.02)
    await rig.quiet()


async def _ended_meanwhile(rig: Rig, launch: Launch, later: Session) -> None:
    """Check that the ends of attempts that ended while nobody looked are told as they were."""
    for key in launch.attempts():
        end = await later.end_of(key)
        rig.expect((end.kind, end.code) == (EXITED, GATE_CODE), f"it exited with {GATE_CODE}, and was reported {end}")
        if rig.about.logs:
            log = await later.log(key)
            rig.expect(log == b"through\n", f"its log is {log!r}; wanted b'through\\n'")
    await rig.quiet()
    _ran_once(rig, launch)


@rule(GATE, needs=[needs_reattach])
async def ends_after_close_are_reported(rig: Rig) -> None:
    """With capabilities.reattach the next `start` reports attempts that ended meanwhile with their real exit codes."""
    session = await rig.open(durable=True)
    launch = await session.going(GATE, range(2))
    known = _in_doubt(rig, session)
    await session.close()
    await _through(rig, launch)
    await _ended_meanwhile(rig, launch, await rig.open(known, durable=True))


@rule("goodbye 5", needs=[needs_reattach])
async def attempts_outlive_a_killed_kernel(rig: Rig) -> None:
    """With capabilities.reattach attempts go on when the kernel's process is killed, and the next one finds them."""
    async with Holder(rig) as holder:
        launch = await holder.hold("goodbye 5", range(2))
        await holder.kill()
    await rig.quiet()
    await _go_on(rig, launch, await rig.open([msgspec.structs.replace(launch, known_started=True)], durable=True))


@rule(GATE, needs=[needs_reattach])
async def ends_after_a_kill_are_reported(rig: Rig) -> None:
    """The real exit codes of what ended while no kernel was there are reported after a kill, too."""
    async with Holder(rig) as holder:
        launch = await holder.hold(GATE, range(2))
        await holder.kill()
    await _through(rig, launch)
    known = msgspec.structs.replace(launch, known_started=True)
    await _ended_meanwhile(rig, launch, await rig.open([known], durable=True))


@rule("exit 3", needs=[needs_reattach])
async def ends_are_kept_until_durable(rig: Rig) -> None:
    """An end that was reported, but has not become durable, is reported again to the next kernel, which asks for it."""
    session = await rig.open(durable=True)
    session.context.hold_durable = True
    launch = session.make("exit 3", range(3))
    await session.launch(launch)
    for key in launch.attempts():
        await session.end_of(key)
    await rig.quiet()
    await session.close()
    later = await rig.open([msgspec.structs.replace(launch, known_started=True)], durable=True)
    for key in launch.attempts():
        end = await later.end_of(key)
        rig.expect((end.kind, end.code) == (EXITED, 3), f"it had exited with 3, and was then reported {end}")
    _ran_once(rig, launch)


@rule("exit 3")
async def what_was_never_launched_is_settled(rig: Rig) -> None:
    """A known attempt that no backend ever saw is run once, or reported lost or unknown: it is not forgotten."""
    session = await rig.open(durable=True)
    launch = session.make("exit 3", range(2))
    await session.close()
    later = await rig.open([launch], durable=True)
    for key in launch.attempts():
        await rig.until(
            later.context, partial(later.context.kinds_of, key, *ENDS, UNKNOWN), f"nothing of {shown([key])}"
        )
        end = later.context.told_of(key)[-1]
        rig.expect(end.kind in (LOST, UNKNOWN) or end.code == 3, f"an attempt that exits with 3 was reported {end}")
    for index in launch.indexes if rig.about.shares_files else ():
        rig.expect(rig.runs(launch, index) <= 1, f"index {index} has run {rig.runs(launch, index)} times")


async def _stranger(rig: Rig, act: str) -> tuple[Session, Launch]:
    """An attempt that runs, with a backend that was started without being told of it."""
    session = await rig.open(durable=True)
    launch = await session.going(act)
    await session.close()
    later = await rig.open([], durable=True)
    later.launched.update(dict.fromkeys(launch.attempts(), launch))
    return later, launch


@rule("goodbye 5", needs=[needs_reattach])
async def strangers_are_found_and_can_be_stopped(rig: Rig) -> None:
    """An attempt that a host holds, and `start` was not given, is reported `found` by then; a stop ends it."""
    later, launch = await _stranger(rig, "goodbye 5")
    key = launch.attempts()[0]
    rig.expect(key in later.context.strangers, "start returned without a word of it")
    if rig.about.shares_files:
        await later.stop(launch)
        end = time.monotonic() + rig.wait_s
        while "bye" not in rig.lines(launch):
            rig.expect(time.monotonic() < end, "it was stopped, and goes on")
            await anyio.sleep(0.02)


@rule(GATE, needs=[needs_reattach])
async def strangers_that_are_adopted_are_reported(rig: Rig) -> None:
    """An attempt that was reported `found`, and is not stopped, is reported on like any other: to its real end."""
    later, launch = await _stranger(rig, GATE)
    await _through(rig, launch)
    await _ended_meanwhile(rig, launch, later)


@rule("speak 3", needs=[needs_reattach, needs_logs])
async def logs_outlive_the_backend(rig: Rig) -> None:
    """The log of an attempt that has ended can be read after `close` and `start`, too."""
    session = await rig.open(durable=True)
    (end,) = await session.run("speak 3")
    log = await session.log(end.key)
    await session.close()
    later = await rig.open(durable=True)
    for follow in (False, True):
        found = await later.log(end.key, follow=follow)
        rig.expect(found == log, f"it was {log!r}, and is {found!r}")
