"""What SSH hosts suffer: cut cables, restarts, full disks, killed agents, clocks that differ. Attempts run once."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from anybatch.backends import _ssh_host
from anybatch.kernel.backend import AttemptSpec
from anybatch.testing.kit_context import EXITED, LOST, TIMED_OUT
from process_rig import is_alive
from ssh_rig import Bench, Lab, agents_below, key, launch, output, shell, until

pytestmark = pytest.mark.asyncio


def waits_for(gate: Path, ran: Path, code: int = 0) -> AttemptSpec:
    """Notes that it runs, then waits for a file, prints, and exits."""
    return shell(f"echo x >> {ran}; while [ ! -e {gate} ]; do sleep 0.05; done; echo done; exit {code}")


async def test_a_cut_cable_is_noticed_and_attempts_go_on_meanwhile(lab: Lab, bench: Bench) -> None:
    host, gate, ran = lab.machine("host"), lab.folder / "gate", lab.folder / "ran"
    backend, context = await bench.open(keepalive=0.3)
    await backend.launch([launch(waits_for(gate, ran, 4), [0, 1], host="host", array_size=3)])
    await until(context, lambda: context.starts_of(key(0)) and context.starts_of(key(1)))
    host.cut()
    await until(context, lambda: "host" in context.paused)
    assert "it has given no sign of life for 3 times 0.3 s" in context.paused["host"]
    gate.touch()
    await backend.launch([launch(waits_for(gate, ran, 5), [2], host="host", array_size=3)])
    host.mend()
    await until(context, lambda: all(context.ends_of(key(i)) for i in range(3)))
    assert [context.ends_of(key(i))[0].code for i in range(3)] == [4, 4, 5]
    assert ran.read_text() == "x\n" * 3
    assert await output(backend, key(0)) == b"done\n"
    await until(context, lambda: context.paused == {})
    assert all(len(context.ends_of(key(i))) == 1 for i in range(3))


async def test_an_attempt_stopped_behind_a_cut_cable_ends_when_it_is_mended(lab: Lab, bench: Bench) -> None:
    host = lab.machine("host")
    backend, context = await bench.open(keepalive=0.3)
    await backend.launch([launch(shell("sleep 600"), host="host")])
    await until(context, lambda: context.starts_of(key()))
    host.cut()
    await until(context, lambda: context.paused)
    await backend.stop([key()], 1_000)
    host.mend()
    await until(context, lambda: context.ends_of(key()))
    assert context.ends_of(key())[0].code == 143


async def test_sshd_restarted_costs_nothing(lab: Lab, bench: Bench) -> None:
    host, gate, ran = lab.sshd("host"), lab.folder / "gate", lab.folder / "ran"
    backend, context = await bench.open()
    await backend.launch([launch(waits_for(gate, ran, 3), host="host")])
    await until(context, lambda: context.starts_of(key()))
    for _ in range(2):
        host.stop()
        await until(context, lambda: context.paused)
        host.start()
        await until(context, lambda: not context.paused)
    gate.touch()
    await until(context, lambda: context.ends_of(key()))
    assert (context.ends_of(key())[0].code, ran.read_text()) == (3, "x\n")


async def test_a_host_that_is_gone_for_longer_than_the_grace_loses_its_attempts_for_good(
    lab: Lab, bench: Bench
) -> None:
    host, gate, ran = lab.machine("host"), lab.folder / "gate", lab.folder / "ran"
    backend, context = await bench.open(keepalive=0.3, grace=1.5)
    await backend.launch([launch(waits_for(gate, ran), host="host")])
    await until(context, lambda: context.starts_of(key()))
    host.cut()
    await until(context, lambda: context.ends_of(key()))
    end = context.ends_of(key())[0]
    assert (end.kind, "not reached for 1.5 s" in (end.reason or "")) == (LOST, True)
    await backend.launch([launch(shell("exit 6"), host="host", number=2)])  # placed just before it was given up
    await until(context, lambda: context.ends_of(key(0, 2)))
    assert context.ends_of(key(0, 2))[0].kind == LOST
    assert set(context.hosts) == set(context.paused) == {"host"}  # still described, and taking nothing
    host.mend()
    await until(context, lambda: not context.paused)
    await until(context, lambda: key() in context.strangers)  # the kernel has it stopped, as it is not live there
    await backend.stop([key()], 0)
    await until(context, lambda: len(context.ends_of(key())) == 2)
    assert context.ends_of(key())[1].code in (137, 143)


async def test_a_killed_agent_loses_its_attempts_and_the_next_one_ends_them(lab: Lab, bench: Bench) -> None:
    lab.sshd("host")
    pid_file = lab.folder / "pid"
    backend, context = await bench.open()
    await backend.launch([launch(shell(f"echo $$ > {pid_file}; sleep 600"), host="host")])
    await until(context, pid_file.exists)
    client = backend._hosts["host"].client
    assert client.agent is not None
    os.kill(client.agent.pid, signal.SIGKILL)
    await until(context, lambda: context.ends_of(key()))
    end = context.ends_of(key())[0]
    assert (end.kind, end.reason) == (LOST, "the agent was killed")
    assert not is_alive(int(pid_file.read_text()))
    await until(context, lambda: not context.paused)
    await backend.launch([launch(shell("exit 6"), host="host", number=2)])
    await until(context, lambda: context.ends_of(key(0, 2)))
    assert context.ends_of(key(0, 2))[0].code == 6


async def test_a_host_started_anew_has_lost_what_ran_on_it(lab: Lab, bench: Bench) -> None:
    host, ran = lab.machine("host"), lab.folder / "ran"
    backend, context = await bench.open(keepalive=0.3)
    await backend.launch([launch(waits_for(lab.folder / "gate", ran), host="host")])
    await until(context, lambda: context.starts_of(key()))
    host.stop()  # every process there is gone at once, as when the power fails
    await until(context, lambda: context.paused)
    host.start()
    await until(context, lambda: context.ends_of(key()))
    end = context.ends_of(key())[0]
    assert (end.kind, "was restarted" in (end.reason or "")) == (LOST, True)
    assert ran.read_text() == "x\n"


@pytest.mark.parametrize("off_s", [3600, -7200])
async def test_clocks_that_differ_are_translated(lab: Lab, bench: Bench, off_s: int) -> None:
    lab.machine("host", clock_s=off_s)
    work = lab.folder / "work"
    work.mkdir()
    (work / "file").write_text("sent")
    backend, context = await bench.open(keepalive=0.3, workdirs="send and fetch")
    before_ms = context.clock.now_ms()
    changes = shell("date +%s; printf more > file", workdir=str(work))
    late = shell("sleep 600", timeout_ms=300)
    await backend.launch([launch(changes, host="host"), launch(late, host="host", number=2)])
    await until(context, lambda: context.ends_of(key()) and context.ends_of(key(0, 2)))
    for number in (1, 2):
        (start,), (end,) = context.starts_of(key(0, number)), context.ends_of(key(0, number))
        assert start.at_ms is not None
        assert end.at_ms is not None
        assert before_ms - 1_000 <= start.at_ms <= end.at_ms <= context.clock.now_ms() + 1_000
        assert (number, end.kind) in ((1, EXITED), (2, TIMED_OUT))
        if number == 1:
            there_s = int(await output(backend, key()))
            assert abs(there_s - off_s - end.at_ms / 1000) < abs(off_s) / 2
        else:
            assert end.at_ms - start.at_ms >= 300
    assert (work / "file").read_text() == "more"
    contact_ms = backend.host_status()["host"].last_contact_ms
    assert contact_ms is not None
    assert before_ms <= contact_ms <= context.clock.now_ms()


async def test_a_full_disk_is_the_hosts_own_trouble_and_quarantine_ends_by_itself(lab: Lab, bench: Bench) -> None:
    far = lab.folder / "far"
    far.mkdir(mode=0o700)
    lab.machine("host", tmpfs=str(far))
    backend, context = await bench.open(quarantine=2.0)
    filler = f"dd if=/dev/zero of={far}/full bs=1024 2>/dev/null; true"
    await backend.launch([launch(shell(filler), host="host")])
    await until(context, lambda: context.ends_of(key()))
    number = 1
    while "host" not in context.paused:
        number += 1
        assert number < 20, "the host is not taken for what fails"
        await backend.launch([launch(shell("true"), [0], host="host", number=number)])
        await until(context, lambda number=number: context.ends_of(key(0, number)))
    assert "it is in quarantine until 20" in context.paused["host"]
    assert "No space left on device" in context.paused["host"]
    lost = context.ends_of(key(0, number))[0]
    assert (lost.kind, lost.code, lost.status_reason) == (EXITED, None, "Task failed to start")
    await until(context, lambda: not context.paused)


async def test_a_host_whose_disk_is_full_from_the_start_says_so(lab: Lab, bench: Bench) -> None:
    far = lab.folder / "far"
    far.mkdir(mode=0o700)
    lab.machine("host", tmpfs=str(far), tmpfs_size="8k")
    _, context = await bench.open()
    assert "No space left on device" in context.paused["host"]


async def test_a_host_that_keeps_losing_its_connection_is_quarantined(
    lab: Lab, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ssh_host, "RETRY_S", 0.01)
    lab.sshd("host")
    backend, context = await bench.open()
    host = backend._hosts["host"]
    for _ in range(_ssh_host.OUTAGES_MAX):
        await until(context, lambda: host.connection is not None and host.client.link is not None)
        link = host.client.link
        assert link is not None
        assert host.connection is not None
        host.connection.abort()
        await until(context, link.closed.done)
    await until(context, lambda: "quarantine" in context.paused.get("host", ""))
    assert f"{_ssh_host.OUTAGES_MAX} times in 300 s" in context.paused["host"]


async def test_a_kernel_that_opens_while_a_host_is_away_keeps_its_attempts(lab: Lab, bench: Bench) -> None:
    host, gate, ran = lab.machine("host"), lab.folder / "gate", lab.folder / "ran"
    backend, context = await bench.open()
    one = launch(waits_for(gate, ran, 7), host="host")
    await backend.launch([one])
    await until(context, lambda: context.starts_of(key()))
    capacity = context.hosts["host"]
    await backend.close()
    host.cut()
    known = type(one)(job_id=one.job_id, number=1, indexes=[0], host="host", spec=one.spec, known_started=True)
    backend, context = await bench.open([known], connect_timeout=1.0)
    assert context.kinds_of(key()) == ["unknown"]
    assert context.hosts == {"host": capacity}
    assert "does not answer" in context.paused["host"] or "cannot be reached" in context.paused["host"]
    gate.touch()
    host.mend()
    await until(context, lambda: context.ends_of(key()))
    assert (context.ends_of(key())[0].code, ran.read_text()) == (7, "x\n")


async def test_half_of_a_connection_is_not_enough(lab: Lab, bench: Bench) -> None:
    """A firewall that forgets: packets to the host are dropped, nothing tells either side."""
    host = lab.machine("host")
    backend, context = await bench.open(keepalive=0.3)
    subprocess.run(["ip", "route", "add", "blackhole", f"{host.address}/32"], check=True)
    try:
        await until(context, lambda: "host" in context.paused)
    finally:
        subprocess.run(["ip", "route", "del", "blackhole", f"{host.address}/32"], check=True)
    await until(context, lambda: not context.paused)
    await backend.launch([launch(shell("exit 2"), host="host")])
    await until(context, lambda: context.ends_of(key()))
    assert len(agents_below(lab.folder)) == 1
