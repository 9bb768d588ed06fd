"""What outlives what: agents of other versions, a stopped agent, the end of the container that everything runs in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import msgspec
import pytest
from allowed_skips import NEEDS_NAMESPACE
from anybatch.backends import _agent_local, agent_client
from anybatch.backends import agent as agent_module
from anybatch.kernel.backend import log_path
from anybatch.kernel.core.errors import BackendError
from process_rig import (
    DEADLINE_S,
    JOB,
    Recorder,
    Rig,
    agent_pid,
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

EARLIER = Path(__file__).with_name("agent_1_0.txt")  # as it was released with protocol 1.0


def agents_from(folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have new agents run this program."""
    folder.mkdir()
    (folder / "agent.py").write_text(source)
    monkeypatch.setattr(_agent_local, "__file__", str(folder / "_agent_local.py"))


def later_version() -> str:
    """The agent as it might become in a later minor version: messages have further fields, lists further elements."""
    source = Path(agent_module.__file__).read_text()
    for old, new in {
        "PROTOCOL = (1, 1)": "PROTOCOL = (1, 9)",
        '"exited": list(ends.values())}': '"exited": [[*run, "new"] for run in ends.values()], "more": {"x": [1]}}',
        '"t": "settled", "absent": absent}': '"t": "settled", "absent": absent, "more": 1}',
    }.items():
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


@pytest.mark.asyncio
@pytest.mark.parametrize("version", ["1.0", "later"])
async def test_attempts_of_an_agent_of_another_version_are_taken_over(
    rig: Rig, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = rig.root / "gate"
    run = launch(shell(f"while [ ! -e {gate} ]; do sleep 0.01; done; echo done; exit 3"), range(3), array_size=3)
    with monkeypatch.context() as patch:
        agents_from(rig.root / "other", EARLIER.read_text() if version == "1.0" else later_version(), patch)
        backend, context = await rig.open(context=Recorder(rig.root, memory_enforcement="none"))
        await backend.launch([run])
        await until(lambda: len(context.starts) == 3)
        agent = agent_pid(backend)
        await backend.close()

    later, found = await rig.open([msgspec.structs.replace(run, known_started=True)])
    assert agent_pid(later) == agent
    await later.launch([launch(shell("echo new; exit 4"), number=2), launch(shell("sleep 60"), number=3)])
    await until(lambda: key(0, 3) in found.starts)
    await later.stop([key(0, 3)], 30_000)
    gate.touch()
    await until(lambda: len(found.ends) == 5)

    assert found.ends == {**{key(index): 3 for index in range(3)}, key(0, 2): 4, key(0, 3): 128 + 15}
    assert [await output(later, one) for one in (key(2), key(0, 2))] == [b"done\n", b"new\n"]
    assert all(0 < started <= stopped for started, stopped in found.times.values())
    assert found.failures == []


@pytest.mark.asyncio
async def test_what_an_agent_of_an_earlier_version_cannot_do_is_said(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        agents_from(rig.root / "other", EARLIER.read_text(), patch)
        await rig.open(context=Recorder(rig.root, memory_enforcement="none"))

    said = []
    monkeypatch.setattr(agent_client.log, "warning", lambda event, **more: said.append((event, more["why"])))
    backend, context = await rig.open(context=Recorder(rig.root, lookahead=8))
    assert said == [("memory_not_enforced", "the agent is of an earlier version")]
    assert backend.memory_enforcement == "none"
    assert context.hosts["local"].lookahead == 0
    with pytest.raises(BackendError, match=r"'watch' is not possible here, but 'none' \(the agent is of an earlier"):
        await rig.open(context=Recorder(rig.root, memory_enforcement="watch"))


@pytest.mark.asyncio
async def test_a_killed_agents_spool_is_read_by_one_of_another_version(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Downwards as well: a rollback must not run anything twice."""
    backend, context = await rig.open()
    context.sync = False
    await backend.launch([launch(shell("echo x; exit 7")), launch(shell("sleep 60"), number=2)])
    await until(lambda: key() in context.ends and key(0, 2) in context.starts)
    agent = agent_pid(backend)
    await backend.close()
    os.kill(agent, signal.SIGKILL)
    await until(lambda: not is_alive(agent))
    agents_from(rig.root / "other", EARLIER.read_text(), monkeypatch)

    known = [launch(shell("exit 9")), launch(shell("exit 9"), number=2), launch(shell("exit 9"), number=3)]
    _, later = await rig.open(known, context=Recorder(rig.root, memory_enforcement="none"))
    await until(lambda: len(later.ends) == 3)

    assert later.ends == {key(): 7, key(0, 2): "lost", key(0, 3): 9}


@pytest.mark.asyncio
async def test_timeouts_that_passed_while_the_agent_stood_still_are_kept_as_it_goes_on(rig: Rig) -> None:
    backend, context = await rig.open()
    gate = rig.root / "gate"
    ends_in_time = shell(f"while [ ! -e {gate} ]; do sleep 0.01; done; exit 5", timeout_ms=600_000)
    await backend.launch([launch(ends_in_time)])
    await until(lambda: context.starts)
    for number in range(2, 9):
        one, wait_ms = key(0, number), 600 * 2 ** (number - 2)
        await backend.launch([launch(shell("sleep 600", timeout_ms=wait_ms), number=number)])
        await until(lambda: one in context.starts)  # noqa: B023 - called at once
        os.kill(agent_pid(backend), signal.SIGSTOP)
        await anyio.sleep(wait_ms / 1000 + 0.2)
        if one not in context.ends:
            break
        os.kill(agent_pid(backend), signal.SIGCONT)  # it was too late to stop it; once more, with more time
    others = {key(0, earlier): "timed out" for earlier in range(2, number)}
    assert context.ends == others

    gate.touch()
    os.kill(agent_pid(backend), signal.SIGCONT)
    await until(lambda: {key(), one} <= context.ends.keys())

    assert context.ends == {**others, key(): 5, one: "timed out"}


SERVICE = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = {path!r}
from process_rig import *

async def main():
    context = Recorder(Path({root!r}))
    backend = ProcessBackend(agent_idle_ms=2_000)
    await backend.start(context, [])
    await backend.launch([launch(shell("echo $$ >> {root}/pids; echo said; exec sleep 60"), range(2), array_size=2)])
    await until(lambda: len(context.starts) == 2 and len(numbers_in(Path({root!r}) / "pids")) == 2)
    await until(lambda: len(list(context.logs_dir.rglob("*.log"))) == 2)
    print("ready", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@pytest.mark.asyncio
async def test_a_container_takes_its_agent_and_attempts_with_it_and_the_next_kernel_is_told(rig: Rig) -> None:
    if subprocess.run([*CONTAINER, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip(NEEDS_NAMESPACE)
    program = SERVICE.format(path=[str(Path(__file__).parent), *sys.path], root=str(rig.root))
    service = subprocess.Popen([*CONTAINER, sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert service.stdout is not None
    with anyio.fail_after(DEADLINE_S):
        line = await anyio.to_thread.run_sync(service.stdout.readline)
    assert line == b"ready\n"

    service.kill()
    service.communicate()
    run = launch(shell("exit 1"), range(3), array_size=3)
    backend, context = await rig.open([msgspec.structs.replace(run, indexes=[0, 1], known_started=True)])
    await until(lambda: len(context.ends) == 2)

    assert context.ends == {key(0): "lost", key(1): "lost"}
    assert context.reasons[key(0)] == agent_module.RESTARTED
    assert [await output(backend, key(index)) for index in (0, 1)] == [b"said\n"] * 2
    assert log_path(context.logs_dir, key(0)).exists()


def test_a_container_in_an_older_ones_namespace_number_is_another() -> None:
    """The kernel gives the number out again soon."""
    if subprocess.run([*CONTAINER, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip(NEEDS_NAMESPACE)
    program = f"import runpy; print(runpy.run_path({agent_module.__file__!r})['boot_id']())"
    command = [*CONTAINER, sys.executable, "-ISc", program]
    found = [subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout for _ in range(12)]
    assert len(set(found)) == len(found)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("began", "reason"),
    [(None, "the agent was killed"), (0, "the agent was killed"), (1, agent_module.RESTARTED)],
    ids=["of an earlier agent", "of this boot", "of an earlier container"],
)
async def test_a_spool_is_of_this_boot_if_the_first_process_is_the_same(
    rig: Rig, began: int | None, reason: str
) -> None:
    context = Recorder(rig.root)
    boot = agent_module.boot_id()
    boot["first_began"] += began or 0
    if began is None:
        del boot["first_began"]
    head = {"t": "spool", "version": 1, **boot, "settled": True, "seq": 0}
    intent = {"t": "intent", "kernel": "k1", "runs": [[JOB, 1, [0]]]}
    (context.state_dir / "spool").write_text(f"{json.dumps(head)}\n{json.dumps(intent)}\n")
    await rig.open([launch(shell("exit 2"))], context)
    assert context.reasons == {key(): reason}


@pytest.mark.asyncio
async def test_timeouts_hold_while_no_kernel_runs(rig: Rig) -> None:
    backend, context = await rig.open()
    context.sync = False  # nothing that it is told becomes durable
    pids = rig.root / "pids"
    run = launch(shell(f"echo $$ > {pids}; exec sleep 600", timeout_ms=500))
    await backend.launch([run])
    await until(lambda: numbers_in(pids))
    await backend.close()
    await until(lambda: not is_alive(numbers_in(pids)[0]))

    _, later = await rig.open([msgspec.structs.replace(run, known_started=True)])
    await until(lambda: later.ends)

    assert later.ends == {key(): "timed out"}


@pytest.mark.asyncio
async def test_a_service_whose_processes_are_all_told_to_end_at_once_loses_or_keeps_each_exit(rig: Rig) -> None:
    """As systemd does it with KillMode=control-group, its default."""
    backend, context = await rig.open()
    pids = rig.root / "pids"
    run = launch(shell(f"echo $$ >> {pids}; exec sleep 600", vcpus_milli=250), range(5), array_size=5)
    await backend.launch([run])
    await until(lambda: len(numbers_in(pids)) == 5 and len(context.starts) == 5)
    agent = agent_pid(backend)
    await backend.close()
    for pid in (*numbers_in(pids)[:3], agent, *numbers_in(pids)[3:]):
        os.kill(pid, signal.SIGTERM)
    await until(lambda: not is_alive(agent))
    assert not any(is_alive(pid) for pid in numbers_in(pids))

    backend, later = await rig.open([msgspec.structs.replace(run, known_started=True)])
    await until(lambda: len(later.ends) == 5)
    assert set(later.ends.values()) <= {128 + 15, "lost"}

    await backend.launch([launch(shell("exit 4"), number=2)])
    await until(lambda: key(0, 2) in later.ends)
    assert later.ends[key(0, 2)] == 4


@pytest.mark.asyncio
async def test_an_agent_that_is_told_to_end_while_no_kernel_runs_keeps_that_for_the_next(rig: Rig) -> None:
    """As systemd does it with a service that is stopped, and docker with a container, if they leave it the time."""
    backend, context = await rig.open()
    pids = rig.root / "pids"
    run = launch(shell(f"echo $$ > {pids}; exec sleep 60"))
    await backend.launch([run])
    await until(lambda: numbers_in(pids) and context.starts)
    agent = agent_pid(backend)
    await backend.close()

    os.kill(agent, signal.SIGTERM)
    await until(lambda: not is_alive(agent))
    assert not is_alive(numbers_in(pids)[0])
    _, later = await rig.open([msgspec.structs.replace(run, known_started=True)])
    await until(lambda: later.ends)

    assert later.ends == {key(): "lost"}
    assert later.reasons[key()] == "the agent was told to end"
