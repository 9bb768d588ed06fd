"""The rules of what a backend is, and of running attempts."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from anybatch.kernel.backend import API_VERSION, AttemptKey, Backend, Capabilities, Capacity, Foretells, Launch
from anybatch.kernel.core.container import CONTAINER_FIELDS

from .kit_context import AFTER_CLOSE, EXITED, LOST, WELL_FORMED
from .kit_rig import SLACK_MS, Rig, needs_commands, needs_expects, needs_files, needs_logs, rule, shown

CODES = (0, 1, 3, 255)
LEAK = "ANYBATCH_KIT_LEAK"
UNKNOWN_OPTION = "anybatch_kit_no_such_option"
EXIT_SIGNALS = (9, 15, 6)
CROWD_LOGS = 20
"""How many logs of a crowd are looked at."""


# -- what it is ---------------------------------------------------------------------------------------


@rule()
async def api_version_is_this_ones(rig: Rig) -> None:
    """A backend states the version of the protocol that it was written for, and it is this one."""
    version = getattr(rig.about.factory(), "api_version", None)
    rig.expect(version == API_VERSION and type(version) is int, f"api_version {version!r}; this is {API_VERSION}")


@rule()
async def it_has_every_part_of_the_protocol(rig: Rig) -> None:
    """A backend has api_version, capabilities, Options, start, launch, stop, logs and close."""
    backend = rig.about.factory()
    names = ("api_version", "capabilities", "Options", "start", "launch", "stop", "logs", "close")
    lacking = [name for name in names if not hasattr(backend, name)]
    rig.expect(not lacking, f"it lacks {', '.join(lacking)}")
    odd = [name for name in names[3:] if not callable(getattr(backend, name))]
    rig.expect(not odd and isinstance(backend, Backend), f"no methods: {', '.join(odd)}")


@rule()
async def options_refuse_unknown_fields(rig: Rig) -> None:
    """Options is a msgspec Struct that takes the environment's options, and refuses what it does not know."""
    kind: Any = rig.about.factory().Options
    rig.expect(isinstance(kind, type) and issubclass(kind, msgspec.Struct), f"Options is {kind!r}, no msgspec Struct")
    options: Mapping[str, Any] = rig.about.options
    try:
        msgspec.convert(options, kind)
    except msgspec.ValidationError as e:
        raise rig.broken(f"it refuses its own options {options!r}: {e}") from e
    try:
        msgspec.convert({**options, UNKNOWN_OPTION: 1}, kind)
    except msgspec.ValidationError:
        return
    raise rig.broken(f"{UNKNOWN_OPTION!r} was taken; forbid_unknown_fields=True refuses it")


@rule()
async def capabilities_are_declared(rig: Rig) -> None:
    """`capabilities` is a Capabilities, True or False and names of container fields, the same for every instance."""
    first, second = rig.about.factory().capabilities, rig.about.factory().capabilities
    rig.expect(isinstance(first, Capabilities), f"capabilities is {first!r}")
    values = msgspec.structs.asdict(first)
    container = values.pop("container")
    odd = {name: value for name, value in values.items() if type(value) is not bool}
    rig.expect(not odd, f"neither True nor False: {odd!r}")
    strange = CONTAINER_FIELDS.symmetric_difference(container) - CONTAINER_FIELDS
    rig.expect(not strange, f"container fields that there are not: {sorted(strange)}")
    rig.expect(first == second, f"one instance says {first!r}, another {second!r}")


@rule(needs=[needs_commands])
async def commands_are_programs(rig: Rig) -> None:
    """With capabilities.commands a `command` is run as a program, with its arguments as they are."""
    session = await rig.open()
    (end,) = await session.run("exit 42")
    rig.expect(end.code == 42, f"a shell that exits with 42 was reported {end}")


@rule()
async def start_offers_hosts(rig: Rig) -> None:
    """When start returns, the hosts of an unmanaged environment have been reported, each with a capacity."""
    session = await rig.open()
    none = [host for host, capacity in session.context.hosts.items() if capacity.vcpus_milli <= 0]
    rig.expect(not none, f"hosts without a vCPU: {none}")


@rule(needs=[needs_expects])
async def what_is_expected_is_offered(rig: Rig) -> None:
    """If a class tells what to `expect`, start offers those hosts, with what was not left to them to tell."""
    session = await rig.open()
    context, kind = session.context, type(session.backend)
    assert issubclass(kind, Foretells)
    expected = kind.expects(context.settings)
    names = sorted(host.name for host in expected.hosts)
    rig.expect(names == sorted(context.hosts), f"expected were hosts {names}, offered are {sorted(context.hosts)}")
    for host in expected.hosts:
        said, offered = _limits(host.capacity), _limits(context.hosts[host.name])
        wrong = {limit: (said[limit], offered[limit]) for limit in said if said[limit] != offered[limit]}
        wrong = {limit: pair for limit, pair in wrong.items() if limit not in host.probed}
        rig.expect(not wrong, f"host {host.name!r} was expected to offer otherwise than it does: {wrong}")
    honoured = session.backend.capabilities.container if context.honoured is None else context.honoured
    missing = sorted(honoured ^ frozenset(expected.container))
    rig.expect(not missing, f"container fields that are honoured and were not expected, or the reverse: {missing}")


def _limits(capacity: Capacity) -> dict[str, object]:
    """Under the names that `ExpectedHost.probed` has for them."""
    return {"vcpus": capacity.vcpus_milli, "memory": capacity.memory_mib, "gpus": sorted(capacity.gpus)}


# -- exits --------------------------------------------------------------------------------------------


@rule("exit 0", "exit 3")
async def exit_codes_are_reported(rig: Rig) -> None:
    """An attempt that ends by itself is reported exited, with its exit code."""
    session = await rig.open()
    for code in CODES:
        (end,) = await session.run(f"exit {code}")
        rig.expect((end.kind, end.code) == (EXITED, code), f"an attempt that exited with {code} was reported {end}")


@rule("index")
async def each_attempt_has_its_own_end(rig: Rig) -> None:
    """Of attempts launched together each is reported with its own index, whatever that is, and exit code."""
    session = await rig.open()
    launch = session.make("index", [5, 0, 3, 7, 999_999_999], size=6)
    await session.launch(launch)
    ends = {index: await session.end_of(AttemptKey(launch.job_id, index, 1)) for index in launch.indexes}
    told = {index: end.code for index, end in ends.items()}
    wanted = {index: index & 255 for index in launch.indexes}
    rig.expect(told == wanted, f"codes by index, each to be its index's last byte: {told}")
    others = {one.key for one in session.context.seen} - set(launch.attempts())
    rig.expect(not others, f"reports on attempts that were not launched: {shown([*others])}")


@rule("die 9")
async def signals_are_reported_as_128_and_their_number(rig: Rig) -> None:
    """An attempt that a signal n has ended is reported exited with code 128+n."""
    session = await rig.open()
    for number in EXIT_SIGNALS:
        (end,) = await session.run(f"die {number}")
        text = f"an attempt that signal {number} ended was reported {end}"
        rig.expect((end.kind, end.code) == (EXITED, 128 + number), text)


@rule("missing")
async def what_cannot_start_is_reported(rig: Rig) -> None:
    """A program that does not exist: launch does not raise; the attempt is exited without a code, with a reason."""
    session = await rig.open()
    ends = await session.run("missing", range(3))
    for end in ends:
        rig.expect((end.kind, end.code) == (EXITED, None), f"it was reported {end}; its code is to be None")
        rig.expect(bool(end.reason), f"it was reported {end}, without a reason")


@rule("exit 0")
async def each_attempt_ends_once(rig: Rig) -> None:
    """Every launched attempt is reported ended exactly once."""
    session = await rig.open()
    launches = [session.make("exit 0", range(10)), session.make("exit 0"), session.make("exit 0", [4], size=5)]
    await session.launch(*launches)
    for launch in launches:
        for key in launch.attempts():
            await session.end_of(key)
    await rig.quiet()
    twice = [key for launch in launches for key in launch.attempts() if len(session.context.ends_of(key)) > 1]
    rig.expect(not twice, f"ended more than once: {shown(twice)}")


@rule("wait")
async def running_attempts_are_reported_started(rig: Rig) -> None:
    """An attempt that runs is reported started, while it runs."""
    session = await rig.open()
    launch = await session.going("wait", range(2))
    for key in launch.attempts():
        kinds = [one.kind for one in session.context.told_of(key)]
        rig.expect("started" in kinds, f"of a running attempt there are the reports {kinds}")


@rule("exit 0")
async def reports_are_well_formed(rig: Rig) -> None:
    """Reports have the types of the protocol, one code and time per attempt, and come on the event loop's thread."""
    session = await rig.open()
    await session.run("exit 0", range(5))
    await session.run("exit 0")
    for name, text in session.context.faults:
        raise rig.broken(text, name if name == AFTER_CLOSE else WELL_FORMED)


@rule("exit 0")
async def the_environment_stays_valid(rig: Rig) -> None:
    """A backend that can work does not give its environment up: `failed` is for what needs an administrator."""
    session = await rig.open()
    await session.run("exit 0", range(3))
    await rig.quiet()
    rig.expect(not session.context.failures, f"it said failed({session.context.failures[:1]})")


@rule("exit 0")
async def times_are_in_order(rig: Rig) -> None:
    """Launched, started, ended, now: the times that are reported come in this order."""
    session = await rig.open()
    for act in ("exit 0", "exit 0", "gate 0 0.2"):
        if rig.about.programs(*act.split()) is None:
            continue
        rig.open_gate()
        began_ms = session.context.clock.now_ms()
        launch = session.make(act)
        await session.launch(launch)
        key = launch.attempts()[0]
        end = await session.end_of(key)
        starts = session.context.starts_of(key)
        times = [began_ms, *(one.when_ms for one in starts), end.when_ms, session.context.clock.now_ms()]
        slack = SLACK_MS * rig.patience
        late = [later - earlier for earlier, later in itertools.pairwise(times) if later < earlier - slack]
        shown = [time - began_ms for time in times]
        rig.expect(not late, f"launched, started ({len(starts)} times), ended, now: {shown} ms since the launch")
        stated = [one.at_ms for one in starts[:1] if one.at_ms is not None]
        if stated and end.at_ms is not None:
            rig.expect(stated[0] <= end.at_ms, f"it ended {stated[0] - end.at_ms} ms before it started")


# -- what an attempt is given -------------------------------------------------------------------------


@contextmanager
def _leak() -> Iterator[None]:
    os.environ[LEAK] = "1"
    try:
        yield
    finally:
        del os.environ[LEAK]


async def _variables(rig: Rig, launch: Launch, index: int) -> dict[str, str]:
    session = rig.sessions[-1]
    key = AttemptKey(launch.job_id, index, launch.number)
    end = await session.end_of(key)
    log = await session.log(key)
    rig.expect(end.code == 0, f"an attempt that prints its environment was reported {end}; its log: {log!r}")
    return dict(os.fsdecode(one).split("=", 1) for one in log.split(b"\0") if b"=" in one)


USERS = {"KIT_PLAIN": "a b", "KIT_ODD": "ü=\n'\"$HOME\\", "KIT_EMPTY": "", "AWS_BATCH_JQ_NAME": "q"}


@rule("environment", needs=[needs_logs])
async def variables_reach_the_attempt(rig: Rig) -> None:
    """An attempt has its job's variables as they are, and those of `Launch.variables`, which win (EV-1)."""
    session = await rig.open()
    reserved = {"AWS_BATCH_JOB_ATTEMPT": "99", "AWS_BATCH_JOB_ID": "mine"}
    single = session.make("environment", number=2, environment={**USERS, **reserved})
    array = session.make("environment", [2, 5], size=7, environment={**USERS, **reserved})
    await session.launch(single, array)
    for launch in (single, array):
        for index in launch.indexes:
            found = await _variables(rig, launch, index)
            wanted = {**USERS, **launch.variables(index)}
            wrong = {name: found.get(name) for name, value in wanted.items() if found.get(name) != value}
            shown = {name: wanted[name] for name in wrong}
            rig.expect(not wrong, f"variables of index {index} are {wrong!r}; wanted {shown!r}")
    single_has = await _variables(rig, single, 0)
    extra = {"AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE"} & set(single_has)
    rig.expect(not extra, f"a single job has {extra}")


@rule("environment", needs=[needs_logs])
async def variables_of_the_kernel_stay_out(rig: Rig) -> None:
    """An attempt's environment is a clean base and the job's: what the kernel's process has is not in it."""
    with _leak():
        session = await rig.open()
        launch = session.make("environment")
        await session.launch(launch)
        found = await _variables(rig, launch, 0)
    rig.expect(LEAK not in found, f"a variable of the kernel's process is among the attempt's: {LEAK}")


@rule(needs=[needs_commands, needs_logs])
async def scripts_are_run_with_the_command_as_arguments(rig: Rig) -> None:
    """A `script` is run by what its first line names, with `command` as its arguments."""
    session = await rig.open()
    launch = session.make("exit 0", range(2))
    spec = msgspec.structs.replace(
        launch.spec, script='#!/bin/sh\necho "$#:$1:$2:$AWS_BATCH_JOB_ARRAY_INDEX"\nexit 9\n', command=("a b", "*")
    )
    launch = msgspec.structs.replace(launch, spec=spec)
    await session.launch(launch)
    for key in launch.attempts():
        end = await session.end_of(key)
        log = await session.log(key)
        rig.expect(end.code == 9, f"a script that exits with 9 was reported {end}; its log: {log!r}")
        rig.expect(log == f"2:a b:*:{key.index}\n".encode(), f"its arguments came out as {log!r}")


# -- running once -------------------------------------------------------------------------------------


@rule("wait")
async def launching_twice_runs_once(rig: Rig) -> None:
    """Launching an attempt again, in the same call or a later one, while it waits or runs, runs it once."""
    session = await rig.open()
    launch = session.make("wait", range(3))
    again = msgspec.structs.replace(launch, indexes=[1, 2])
    await session.launch(launch, again)
    await session.launch(again)
    await session.ready(launch, "wait")
    await session.launch(launch)
    await rig.quiet()
    for index in launch.indexes if rig.about.shares_files and rig.about.logs else ():
        rig.expect(rig.runs(launch, index) == 1, f"index {index} has run {rig.runs(launch, index)} times")
    await session.stop(launch)
    for key in launch.attempts():
        await session.end_of(key)
        if rig.about.logs:
            log = await session.log(key)
            rig.expect(log.count(b"ready") == 1, f"the log of {shown([key])} is {log!r}: it has run more than once")
    await rig.quiet()
    twice = [key for key in launch.attempts() if len(session.context.ends_of(key)) > 1]
    rig.expect(not twice, f"ended twice: {shown(twice)}")


@rule("exit 0")
async def launching_twice_at_once_ends_once(rig: Rig) -> None:
    """Attempts that end at once, and are launched twice before anybody can know, end once."""
    session = await rig.open()
    launch = session.make("exit 0", range(5))
    await session.launch(launch, launch)
    for key in launch.attempts():
        await session.end_of(key)
    await rig.quiet()
    twice = [key for key in launch.attempts() if len(session.context.ends_of(key)) > 1]
    rig.expect(not twice, f"ended twice: {shown(twice)}")


@rule("speak 2", needs=[needs_files, needs_logs])
async def a_later_attempt_runs_again(rig: Rig) -> None:
    """Another attempt number is another attempt: it runs, under its own number, and with a log of its own."""
    session = await rig.open()
    first = session.make("speak 2")
    for number in (1, 2, 3):
        launch = msgspec.structs.replace(first, number=number)
        await session.launch(launch)
        key = launch.attempts()[0]
        await session.end_of(key)
        rig.expect(rig.runs(launch) == 1, f"attempt {number} has run {rig.runs(launch)} times")
        log = await session.log(key)
        rig.expect(log.count(b"out 0") == 1, f"the log of attempt {number} is {log!r}: not its own alone")


@rule("exit 0")
async def a_crowd_is_run(rig: Rig) -> None:
    """Many attempts launched in one call (1,000 unless told otherwise) all run, and all end."""
    session = await rig.open()
    count = rig.about.crowd
    act, codes = "exit 0", {0}
    if rig.about.programs("index") is not None:
        act, codes = "index", set(range(256))
    launch = session.make(act, range(count), size=count)
    await session.launch(launch)
    keys = launch.attempts()
    await rig.until(
        session.context, lambda: all(session.context.ends_of(key) for key in reversed(keys)), f"{count} ends not"
    )
    ends = [session.context.ends_of(key)[0] for key in keys]
    wrong = [end for end in ends if end.kind == LOST or end.code not in codes]
    wrong += [end for end in ends if act == "index" and end.code != end.key.index & 255]
    rig.expect(not wrong, f"{len(wrong)} of {count} did not end as they should; the first: {wrong and str(wrong[0])}")
    if rig.about.shares_files and act == "index":
        odd = [index for index in launch.indexes if rig.runs(launch, index) != 1]
        rig.expect(not odd, f"{len(odd)} of {count} have not run exactly once; the first: {odd[:3]}")
