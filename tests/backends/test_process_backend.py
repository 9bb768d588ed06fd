"""The process backend with real processes: what it promises an attempt, and what survives which kill."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from anybatch.backends import agent_client
from anybatch.backends.process import ProcessBackend, machine_memory_mib
from anybatch.kernel.backend import AttemptSpec, Backend, Capacity, log_path
from anybatch.kernel.core.errors import BackendError
from process_rig import (
    DEADLINE_S,
    JOB,
    Recorder,
    Rig,
    agent_pid,
    cut_connection,
    is_alive,
    key,
    launch,
    numbers_in,
    output,
    rig,
    root,
    shell,
    until,
)

__all__ = ["rig", "root"]  # fixtures

# ---- what an attempt is promised ----


def test_it_is_a_backend() -> None:
    assert isinstance(ProcessBackend(), Backend)
    assert machine_memory_mib() > 0


@pytest.mark.asyncio
async def test_exit_codes_and_signals_are_reported_with_their_times(rig: Rig) -> None:
    backend, context = await rig.open()
    before_ms = context.clock.now_ms()

    await backend.launch([launch(shell("exit $AWS_BATCH_JOB_ARRAY_INDEX"), range(4), array_size=4)])
    await backend.launch([launch(shell("kill -9 $$"), [0], number=2)])
    await until(lambda: len(context.ends) == 5)

    assert [context.ends[key(index)] for index in range(4)] == [0, 1, 2, 3]
    assert context.ends[key(0, 2)] == 128 + 9
    assert set(context.starts) == set(context.ends)
    for started_ms, stopped_ms in context.times.values():
        assert before_ms - 1_000 <= started_ms <= stopped_ms <= context.clock.now_ms() + 1_000


@pytest.mark.asyncio
async def test_the_host_offers_what_the_options_say(rig: Rig) -> None:
    _, context = await rig.open(context=Recorder(rig.root, memory=512, gpus=[0, 3]))

    assert context.hosts == {"local": Capacity(vcpus_milli=4000, memory_mib=512, gpus=(0, 3), lookahead=64)}


@pytest.mark.asyncio
@pytest.mark.parametrize(("size", "gpus"), [(None, {}), (7, {}), (7, {0: (1, 3)})])
async def test_environment_is_the_base_the_jobs_and_the_attempts(
    rig: Rig, size: int | None, gpus: Mapping[int, tuple[int, ...]]
) -> None:
    backend, context = await rig.open(base_environment={"PATH": "/usr/bin:/bin", "A": "base", "B": "b\udcff"})
    spec = AttemptSpec(command=("env", "-0"), environment={"A": "job's", "C": "c=ü\n"})
    run = launch(spec, array_size=size, gpus=gpus, number=3)

    await backend.launch([run])
    await until(lambda: context.ends)

    shown = (await output(backend, key(0, 3))).split(b"\0")[:-1]
    expected = {"PATH": "/usr/bin:/bin", "A": "job's", "B": "b\udcff", "C": "c=ü\n", **run.variables(0)}
    expected["ANYBATCH_ATTEMPT"] = f"ab-k1-{JOB}-0-3"
    assert dict(os.fsdecode(one).split("=", 1) for one in shown) == expected


@pytest.mark.asyncio
async def test_gpus_of_one_attempt_do_not_reach_the_next(rig: Rig) -> None:
    backend, context = await rig.open()

    await backend.launch([launch(shell("echo $CUDA_VISIBLE_DEVICES"), [0, 1], array_size=2, gpus={0: (5,)})])
    await until(lambda: len(context.ends) == 2)

    assert [await output(backend, key(index)) for index in (0, 1)] == [b"5\n", b"\n"]


@pytest.mark.asyncio
async def test_python_s_ignored_signals_are_not_passed_on(rig: Rig) -> None:
    backend, context = await rig.open()

    await backend.launch([launch(AttemptSpec(command=("grep", "-E", "Sig(Ign|Blk)", "/proc/self/status")))])
    await until(lambda: context.ends)

    masks = (await output(backend, key())).split()[1::2]
    assert [int(mask, 16) & 0x7FFF_FFFF for mask in masks] == [0, 0]  # without the C library's own 32 and 33


@pytest.mark.asyncio
async def test_each_attempt_has_a_session_of_its_own_and_no_input(rig: Rig) -> None:
    backend, context = await rig.open()
    spec = AttemptSpec(
        command=(sys.executable, "-c", "import os,sys; print(os.getpid()==os.getsid(0), sys.stdin.read())")
    )

    await backend.launch([launch(spec)])
    await until(lambda: context.ends)

    assert await output(backend, key()) == b"True \n"


@pytest.mark.asyncio
async def test_working_directories(rig: Rig) -> None:
    backend, context = await rig.open()
    await backend.launch([launch(shell("pwd"))])
    await backend.launch([launch(shell("pwd", workdir="/usr"), number=2)])
    await until(lambda: len(context.ends) == 2)
    other, _ = await rig.open(context=context, workdir="/bin/..")
    await other.launch([launch(shell("pwd -P"), number=3)])
    await until(lambda: len(context.ends) == 3)

    assert await output(backend, key()) == os.fsencode(context.state_dir / "jobs" / JOB) + b"\n"
    assert await output(backend, key(0, 2)) == b"/usr\n"
    assert await output(backend, key(0, 3)) == os.fsencode(os.path.realpath("/bin/..")) + b"\n"


@pytest.mark.asyncio
async def test_scratch_is_an_attempts_own_and_goes_with_it(rig: Rig) -> None:
    backend, context = await rig.open()
    spec = shell('test "$TMPDIR" = "$ANYBATCH_SCRATCH" && mkdir $TMPDIR/d && echo $TMPDIR', scratch=True)

    await backend.launch([launch(spec, [0, 1], array_size=2)])
    await until(lambda: len(context.ends) == 2)

    folders = [Path((await output(backend, key(index))).decode().strip()) for index in (0, 1)]
    assert set(context.ends.values()) == {0}
    assert folders[0] != folders[1]
    await until(lambda: not any(folder.exists() for folder in folders))


@pytest.mark.asyncio
async def test_a_script_runs_with_the_command_as_its_arguments(rig: Rig) -> None:
    backend, context = await rig.open()
    spec = AttemptSpec(script='#!/bin/sh\necho "$2|$1"\nexit 5\n', command=("a b", "ü"))

    await backend.launch([launch(spec, range(3), array_size=3)])
    await until(lambda: len(context.ends) == 3)

    assert [await output(backend, key(index)) for index in range(3)] == ["ü|a b\n".encode()] * 3
    assert set(context.ends.values()) == {5}
    scripts = list((context.state_dir / "scripts").iterdir())
    assert [script.stat().st_mode & 0o777 for script in scripts] == [0o700]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (AttemptSpec(command=("no-such-command",)), "command 'no-such-command' not found in PATH"),
        (AttemptSpec(command=("/no/such/file",)), "'/no/such/file': No such file or directory"),
        (AttemptSpec(command=("/etc/passwd",)), "'/etc/passwd': Permission denied"),
        (AttemptSpec(command=()), "the command is empty"),
        (AttemptSpec(command=("true",), workdir="/no/such"), "working directory '/no/such': No such file or directory"),
        (AttemptSpec(command=(), script="#!/no/interpreter\n"), "the interpreter that its first line names is missing"),
        (AttemptSpec(command=(), script="echo hi\n"), "no script with a #! line"),
        (AttemptSpec(command=("true", "x" * 200_000)), "Argument list too long"),
        (AttemptSpec(command=("true", "nul\0")), "embedded null"),
        (AttemptSpec(command=("true",), script="x" * (9 << 20)), "are over 8388608 bytes"),
    ],
)
async def test_what_cannot_start_says_why_and_costs_nothing_else(rig: Rig, spec: AttemptSpec, reason: str) -> None:
    backend, context = await rig.open()

    await backend.launch([launch(spec, [0, 1], array_size=2), launch(shell("exit 4"), number=2)])
    await until(lambda: len(context.ends) == 3)

    assert context.ends == {key(0): None, key(1): None, key(0, 2): 4}
    assert context.status_reasons[key(1)] == "Task failed to start"
    shown = context.reasons[key(1)]
    assert shown is not None
    assert shown.startswith("CannotStartContainerError: ")
    assert reason in shown


@pytest.mark.asyncio
async def test_the_command_is_searched_in_the_attempts_own_path(rig: Rig) -> None:
    backend, context = await rig.open()
    tool = rig.root / "bin" / "mytool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nexit 6\n")
    tool.chmod(0o755)

    await backend.launch([launch(AttemptSpec(command=("mytool",), environment={"PATH": f"/usr/bin:{tool.parent}"}))])
    await until(lambda: context.ends)

    assert context.ends == {key(): 6}


# ---- logs ----


@pytest.mark.asyncio
async def test_the_log_is_complete_when_the_exit_is_reported(rig: Rig) -> None:
    backend, context = await rig.open()
    complete: list[bool] = []
    report = context.exited

    def exited(job_id: str, number: int, indexes: Sequence[int], *rest: Any, **more: Any) -> None:
        complete.extend(log_path(context.logs_dir, key(index)).stat().st_size == 200_000 for index in indexes)
        report(job_id, number, indexes, *rest, **more)

    context.exited = exited  # type: ignore[method-assign]
    await backend.launch(
        [launch(shell("head -c 100000 /dev/zero; head -c 100000 /dev/zero >&2"), range(8), array_size=8)]
    )
    await until(lambda: len(context.ends) == 8)

    assert complete == [True] * 8


@pytest.mark.asyncio
async def test_follow_reads_until_the_attempt_has_ended(rig: Rig) -> None:
    backend, context = await rig.open()
    gate = rig.root / "gate"
    pieces: list[bytes] = []

    async def follow() -> None:
        async for piece in backend.logs(key(), follow=True):
            pieces.extend([piece])

    await backend.launch([launch(shell(f"echo one; while [ ! -e {gate} ]; do sleep 0.01; done; echo two"))])
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(follow())
        await until(lambda: pieces == [b"one\n"])
        assert await output(backend, key()) == b"one\n"
        assert not reader.done()
        gate.touch()

    assert b"".join(pieces) == b"one\ntwo\n"
    assert context.ends == {key(): 0}
    assert await output(backend, key(0, 9), follow=True) == b""


# ---- ending ----

STUBBORN = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, lambda *_: print("grandchild", flush=True))
    if os.fork() == 0:
        os.environ.clear()
    with open(sys.argv[1], "a") as file:
        file.write("%d\\n" % os.getpid())
    while True:
        time.sleep(1)
signal.signal(signal.SIGTERM, lambda *_: print("main", flush=True))
with open(sys.argv[1], "a") as file:
    file.write("%d\\n" % os.getpid())
while True:
    time.sleep(1)
"""


@pytest.mark.asyncio
async def test_stop_ends_the_whole_tree_by_sigterm_then_sigkill(rig: Rig) -> None:
    backend, context = await rig.open()
    pids = rig.root / "pids"
    await backend.launch([launch(AttemptSpec(command=(sys.executable, "-c", STUBBORN, str(pids))))])
    await until(lambda: len(numbers_in(pids)) == 3)

    await backend.stop([key()], 600_000)
    while sorted((await output(backend, key())).split()) != [b"grandchild", b"grandchild", b"main"]:
        await anyio.sleep(0.01)
    assert context.ends == {}
    await backend.stop([key()], 100)
    await backend.stop([key()], 600_000)  # does not put it off
    await until(lambda: context.ends)

    assert context.ends == {key(): 128 + 9}
    assert not any(is_alive(pid) for pid in numbers_in(pids))


@pytest.mark.asyncio
async def test_the_main_process_end_ends_what_it_left_behind(rig: Rig) -> None:
    backend, context = await rig.open()
    pids = rig.root / "pids"
    wait = f"while [ $(cat {pids} | wc -l) -lt 3 ]; do sleep 0.01; done"
    text = f"{sys.executable} -c '{STUBBORN}' {pids} & sleep 60 & {wait}"
    await backend.launch([launch(shell(text)), launch(shell("sleep 60"), number=2)])
    await until(lambda: context.ends)

    assert context.ends == {key(): 0}
    assert len(numbers_in(pids)) == 3
    await until(lambda: not any(is_alive(pid) for pid in numbers_in(pids)[:2]))


@pytest.mark.asyncio
@pytest.mark.parametrize("held", [False, True], ids=["while it starts them", "before it has read of them"])
async def test_a_stop_that_catches_a_launch_before_its_start_leaves_nothing_running(rig: Rig, held: bool) -> None:
    backend, context = await rig.open()
    ran, agent = rig.root / "ran", agent_pid(backend)
    run = launch(shell(f"echo $AWS_BATCH_JOB_ARRAY_INDEX >> {ran}; sleep 60"), range(300), array_size=300)

    if held:
        os.kill(agent, signal.SIGSTOP)
    await backend.launch([run])
    await backend.stop(run.attempts(), 0)
    await backend.stop([key(0, 77), key(5)], 0)
    if held:
        os.kill(agent, signal.SIGCONT)
    await until(lambda: len(context.ends) == 300)

    assert set(context.ends.values()) <= {None, 128 + 15, 128 + 9}
    never = [one for one, code in context.ends.items() if code is None]
    assert not {one.index for one in never} & set(numbers_in(ran))
    assert never or not held


@pytest.mark.asyncio
async def test_the_agent_ends_attempts_at_their_timeout(rig: Rig) -> None:
    backend, context = await rig.open()

    await backend.launch(
        [launch(shell("sleep 60", timeout_ms=200)), launch(shell("exit 3", timeout_ms=60_000), number=2)]
    )
    await until(lambda: len(context.ends) == 2)

    assert context.ends == {key(): "timed out", key(0, 2): 3}


# ---- once, and only once ----


@pytest.mark.asyncio
async def test_launching_twice_runs_once(rig: Rig) -> None:
    backend, context = await rig.open()
    context.sync = False
    ran, gate = rig.root / "ran", rig.root / "gate"
    run = launch(shell(f"echo 1 >> {ran}; while [ ! -e {gate} ]; do sleep 0.01; done; exit 9"))

    await backend.launch([run])
    await backend.launch([run])
    await until(lambda: context.starts)
    await backend.launch([run])
    await until(lambda: len(context.starts) >= 2)
    gate.touch()
    await until(lambda: context.ends)
    context.ends.clear()
    await backend.launch([run])
    await until(lambda: context.ends)

    assert context.ends == {key(): 9}
    assert numbers_in(ran) == [1]


@pytest.mark.asyncio
async def test_a_thousand_at_once(rig: Rig) -> None:
    backend, context = await rig.open()

    await backend.launch([launch(shell("echo $AWS_BATCH_JOB_ARRAY_INDEX"), range(1000), array_size=1000)])
    await until(lambda: len(context.ends) == 1000)

    assert set(context.ends.values()) == {0}
    logs = [log_path(context.logs_dir, key(index)).read_bytes() for index in range(1000)]
    assert logs == [b"%d\n" % index for index in range(1000)]


@pytest.mark.asyncio
async def test_acknowledged_exits_are_forgotten_and_the_spool_stays_small(rig: Rig) -> None:
    backend, context = await rig.open()
    for number in range(1, 4):
        await backend.launch([launch(AttemptSpec(command=("true",)), range(500), array_size=500, number=number)])
        await until(lambda n=number: len(context.ends) == 500 * n)  # type: ignore[misc]

    spool = context.state_dir / "spool"
    await until(lambda: spool.stat().st_size < 1 << 16)
    assert context.acknowledgements < 1500


# ---- reattachment ----

CLIENT = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = {path!r}
from process_rig import *

async def main():
    context = Recorder(Path({root!r}))
    context.sync = False
    backend = ProcessBackend(agent_idle_ms=2_000)
    await backend.start(context, [])
    await backend.launch([launch(shell({text!r}), range(6), array_size=6)])
    await until(lambda: len(context.ends) == 1)
    print("ready", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.asyncio
async def test_after_kill_9_of_the_kernel_attempts_go_on_and_keep_their_exit_codes(rig: Rig) -> None:
    ran, gate = rig.root / "ran", rig.root / "gate"
    text = (
        f"echo $AWS_BATCH_JOB_ARRAY_INDEX >> {ran}; [ $AWS_BATCH_JOB_ARRAY_INDEX = 0 ] && exit 10; "
        f"while [ ! -e {gate}$AWS_BATCH_JOB_ARRAY_INDEX ]; do sleep 0.01; done; exit 1$AWS_BATCH_JOB_ARRAY_INDEX"
    )
    path = [str(Path(__file__).parent), *sys.path]
    program = CLIENT.format(path=path, root=str(rig.root), text=text)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"
        process.kill()
    for index in (1, 2):
        (rig.root / f"gate{index}").touch()
    spool = rig.root / "state" / "spool"

    def spooled() -> set[int]:
        reports = [json.loads(line) for line in spool.read_text().splitlines() if '"report"' in line]
        return {code for report in reports for run in report["exited"] for code in run[3]}

    await until(lambda: {10, 11, 12} <= spooled(), "exits spooled")

    run = launch(shell(text), range(6), array_size=6)
    backend, context = await rig.open(
        [msgspec.structs.replace(run, indexes=[0, 1, 2, 3, 4]), launch(shell(text), [6], array_size=7)]
    )
    settled = dict(context.ends)
    assert context.strangers == [key(5)]  # what the kernel does not adopt it stops
    await backend.stop([key(5)], 30_000)
    for index in (3, 4, 6):
        (rig.root / f"gate{index}").touch()
    await until(lambda: len(context.ends) == 7)

    assert {index: settled[key(index)] for index in (0, 1, 2)} == {0: 10, 1: 11, 2: 12}
    assert [context.ends[key(index)] for index in (3, 4)] == [13, 14]
    assert context.ends[key(5)] == 128 + 15  # not known to the kernel any more: stopped by it
    assert key(6) in context.ends  # known, but never handed over: launched now
    assert sorted(numbers_in(ran)) == [0, 1, 2, 3, 4, 5, 6]
    assert await output(backend, key(3)) == b""


@pytest.mark.asyncio
async def test_close_lets_attempts_go_on_if_a_kernel_comes_back(rig: Rig) -> None:
    gate = rig.root / "gate"
    run = launch(shell(f"while [ ! -e {gate} ]; do sleep 0.01; done; exit 3"))
    backend, context = await rig.open()
    await backend.launch([run])
    await until(lambda: context.starts)

    await backend.close()
    gate.touch()
    _, later = await rig.open([msgspec.structs.replace(run, known_started=True)])
    await until(lambda: later.ends)

    assert context.ends == {}
    assert later.ends == {key(): 3}


@pytest.mark.asyncio
async def test_close_ends_attempts_and_agent_if_nobody_comes_back(rig: Rig) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, durable=False))
    agent = agent_pid(backend)
    await backend.launch([launch(shell("sleep 60"))])
    await until(lambda: context.starts)

    await backend.close()

    assert context.ends in ({key(): 128 + 15}, {key(): 128 + 9})  # SIGKILL where the grace was not enough
    await until(lambda: not is_alive(agent))


@pytest.mark.asyncio
async def test_kill_9_of_the_agent_ends_its_attempts_and_reports_them_lost(rig: Rig) -> None:
    backend, context = await rig.open()
    pids = rig.root / "pids"
    spec = AttemptSpec(command=(sys.executable, "-c", STUBBORN, str(pids)))
    await backend.launch([launch(spec), launch(shell("exit 7"), number=2)])
    await until(lambda: len(numbers_in(pids)) == 3 and context.ends == {key(0, 2): 7})

    os.kill(agent_pid(backend), signal.SIGKILL)
    await until(lambda: len(context.ends) == 2)
    await backend.launch([launch(shell("exit 8"), number=3)])
    await until(lambda: len(context.ends) == 3)

    assert context.ends == {key(0, 2): 7, key(): "lost", key(0, 3): 8}
    assert context.reasons[key()] == "the agent was killed"
    assert not any(is_alive(pid) for pid in numbers_in(pids))
    assert context.failures == []


@pytest.mark.asyncio
async def test_what_was_never_handed_over_is_launched_and_what_left_no_trace_is_lost(rig: Rig) -> None:
    backend, _context = await rig.open()
    await backend.close()
    run = launch(shell("exit 2"), [0, 1, 2], array_size=3)
    started = msgspec.structs.replace(run, indexes=[1], known_started=True)

    _, later = await rig.open([msgspec.structs.replace(run, indexes=[0]), started])
    await until(lambda: len(later.ends) == 2)

    assert later.ends == {key(0): 2, key(1): "lost"}


@pytest.mark.asyncio
async def test_without_the_spool_nothing_is_started_again(rig: Rig) -> None:
    _, context = await rig.open([launch(shell("exit 2"))])

    assert context.ends == {key(): "lost"}


@pytest.mark.asyncio
async def test_an_attempt_of_an_earlier_boot_is_lost_but_its_recorded_exit_counts(rig: Rig) -> None:
    context = Recorder(rig.root)
    (context.state_dir / "spool").write_text(
        '{"t":"spool","version":1,"boot":"another","settled":true,"seq":0}\n'
        f'{{"t":"intent","kernel":"k1","runs":[["{JOB}",1,[0,1]]]}}\n'
        f'{{"t":"report","seq":1,"started":[],"exited":[["{JOB}",1,[0],[4],[1],[2],0,null,null]]}}\n'
        f'{{"t":"report","seq":2,"started":[],"exited":[["{JOB}",1,[1],[4],[1'
    )

    await rig.open([launch(shell("exit 2"), range(3), array_size=3)], context)

    assert context.ends == {key(0): 4, key(1): "lost", key(2): "lost"}
    assert context.reasons[key(1)] == "the machine, or the container that the agent ran in, was restarted"


@pytest.mark.asyncio
async def test_an_idle_agent_without_a_kernel_ends_by_itself(rig: Rig) -> None:
    backend, context = await rig.open(agent_idle_ms=100)
    agent = agent_pid(backend)
    await backend.launch([launch(shell("exit 1"))])
    await until(lambda: context.ends)
    assert is_alive(agent)

    await backend.close()
    await until(lambda: not is_alive(agent))
    _, later = await rig.open([launch(shell("exit 1"), number=2)])
    await until(lambda: key(0, 2) in later.ends)

    assert later.ends[key(0, 2)] == 1


@pytest.mark.asyncio
async def test_an_agent_whose_state_is_removed_ends_its_attempts_and_itself(rig: Rig) -> None:
    backend, context = await rig.open()
    agent, pids = agent_pid(backend), rig.root / "pids"
    await backend.launch([launch(shell(f"echo $$ > {pids}; exec sleep 60"))])
    await until(lambda: numbers_in(pids))
    await backend.close()

    context.state_dir.rename(rig.root / "moved")

    await until(lambda: not is_alive(agent))
    assert not is_alive(numbers_in(pids)[0])


@pytest.mark.asyncio
async def test_an_agent_of_another_protocol_is_refused_in_words(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.open()
    monkeypatch.setattr(agent_client, "PROTOCOL", (2, 0))

    with pytest.raises(BackendError, match=r"speaks protocol 1\.1, this kernel 2\.0"):
        await rig.open()


@pytest.mark.asyncio
async def test_of_two_kernels_the_newer_stays_and_the_older_is_told(rig: Rig) -> None:
    _, older = await rig.open()
    backend, newer = await rig.open()
    await backend.launch([launch(shell("exit 1"))])
    await until(lambda: older.failures and newer.ends)

    assert older.failures == ["the agent refuses this kernel: replaced by a newer connection"]
    assert newer.ends == {key(): 1}


@pytest.mark.asyncio
async def test_an_agent_that_cannot_start_says_why(rig: Rig) -> None:
    context = Recorder(rig.root)
    context.state_dir.rmdir()
    context.state_dir.write_text("a file")

    with pytest.raises(BackendError, match="the agent could not be started"):
        await rig.open(context=context)


@pytest.mark.asyncio
async def test_a_connection_that_drops_changes_nothing(rig: Rig) -> None:
    backend, context = await rig.open()
    ran, gate = rig.root / "ran", rig.root / "gate"
    text = f"echo $AWS_BATCH_JOB_ARRAY_INDEX >> {ran}; while [ ! -e {gate} ]; do sleep 0.01; done; exit 5"
    run = launch(shell(text), range(4), array_size=4)
    await backend.launch([msgspec.structs.replace(run, indexes=[0, 1])])
    await until(lambda: len(context.starts) == 2)

    lost = cut_connection(backend)
    await backend.launch([msgspec.structs.replace(run, indexes=[2])])
    await lost
    await backend.launch([msgspec.structs.replace(run, indexes=[3])])
    gate.touch()
    await until(lambda: len(context.ends) == 4)

    assert set(context.ends.values()) == {5}
    assert sorted(numbers_in(ran)) == [0, 1, 2, 3]
    assert context.failures == []


@pytest.mark.asyncio
async def test_start_again_changes_the_settings_and_nothing_else(rig: Rig) -> None:
    backend, first = await rig.open()
    ran, gate = rig.root / "ran", rig.root / "gate"
    run = launch(shell(f"echo 1 >> {ran}; while [ ! -e {gate} ]; do sleep 0.01; done; exit 5"))
    await backend.launch([run])
    await until(lambda: first.starts)
    agent = agent_pid(backend)

    second = Recorder(rig.root)
    second.settings = msgspec.structs.replace(second.settings, max_vcpus_milli=9000)
    done = launch(shell("exit 1"), number=7)  # its exit is being handled by the kernel: not to be run again
    await backend.start(second, [msgspec.structs.replace(run, known_started=True), done])
    await backend.launch([launch(shell("exit 6"), number=2)])
    await until(lambda: second.ends)
    gate.touch()
    await until(lambda: len(second.ends) == 2)

    assert second.hosts["local"].vcpus_milli == 9000
    assert agent_pid(backend) == agent
    assert (first.ends, first.failures, second.failures) == ({}, [], [])
    assert second.ends == {key(): 5, key(0, 2): 6}
    assert numbers_in(ran) == [1]


@pytest.mark.asyncio
async def test_close_ends_everything_also_just_after_the_connection_was_lost(rig: Rig) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, durable=False))
    agent = agent_pid(backend)
    await backend.launch([launch(shell("sleep 60"))])
    await until(lambda: context.starts)

    await cut_connection(backend)
    await backend.close()

    assert context.ends in ({key(): 128 + 15}, {key(): 128 + 9})  # SIGKILL where the grace was not enough
    await until(lambda: not is_alive(agent))


@pytest.mark.asyncio
async def test_a_copied_state_folder_does_not_lead_to_the_originals_agent(rig: Rig) -> None:
    backend, context = await rig.open()
    await backend.launch([launch(shell("sleep 60"))])
    await until(lambda: context.starts)

    copy = Recorder(rig.root)
    copy.state_dir = rig.root / "copy"
    shutil.copytree(context.state_dir, copy.state_dir)
    other, _ = await rig.open(context=copy)

    assert agent_pid(other) != agent_pid(backend)
    assert context.failures == []


PIPELINE = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = {path!r}
from process_rig import *

async def main():
    context = Recorder(Path({root!r}))
    backend = ProcessBackend(agent_idle_ms=2_000)
    await backend.start(context, [])
    await backend.launch([launch(shell("echo $$ > {root}/pids; exec sleep 60"))])
    await until(lambda: context.starts)
    await backend.close()

asyncio.run(main())
"""


@pytest.mark.asyncio
async def test_a_pipeline_ends_with_the_kernel_and_not_with_its_attempts(rig: Rig) -> None:
    path = [str(Path(__file__).parent), *sys.path]
    program = PIPELINE.format(path=path, root=str(rig.root))

    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, timeout=DEADLINE_S, check=True
    )  # reads until nobody has the other end any more

    assert done.stdout == b""
    await until(lambda: numbers_in(rig.root / "pids"))
    assert is_alive(numbers_in(rig.root / "pids")[0])
    backend, context = await rig.open()
    await backend.stop(context.strangers, 0)
    await until(lambda: context.ends == {key(): 128 + 9} or context.ends == {key(): 128 + 15})
