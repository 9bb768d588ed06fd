"""Limits of real processes: memory by cgroup and by watching, the size of logs, look-ahead, GPUs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import anybatch
import anyio
import msgspec
import pytest
from allowed_skips import NEEDS_CGROUP
from anybatch.backends import _agent_local, agent_client
from anybatch.backends import agent as agent_module
from anybatch.backends._agent_link import Hello
from anybatch.backends.process import ProcessBackend, ProcessOptions
from anybatch.kernel.backend import AttemptSpec, Capacity, log_path
from anybatch.kernel.core.errors import BackendError
from process_rig import (
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

OUT_OF_MEMORY = "OutOfMemoryError: Container killed due to memory usage"
MIB = 1 << 20


def cgroup_probe() -> tuple[int, bool]:
    """The version of the memory cgroups that this user may make (0: none), and whether threads may enter them."""
    groups = agent_module.MemoryGroups(f"test-probe-{os.getpid()}")
    groups.open()
    found = groups.version, groups.threads
    groups.close()
    return found


VERSION, THREADS = cgroup_probe()
needs_cgroup = pytest.mark.skipif(VERSION == 0, reason=NEEDS_CGROUP)
EITHER = [pytest.param("cgroup", marks=needs_cgroup), "watch"]


def python(text: str, *arguments: object, memory_mib: int = 0, **fields: Any) -> AttemptSpec:
    command = (sys.executable, "-I", "-S", "-c", text, *map(str, arguments))
    return AttemptSpec(command=command, memory_mib=memory_mib, **fields)


def group_folder(context: Recorder) -> Path:
    """Where this context's agent keeps its memory cgroups."""
    name = hashlib.sha256(os.fsencode(context.state_dir)).hexdigest()[:12]
    folders = [Path(folder) / f"anybatch-{name}" for folder in agent_module.memory_folders()[1]]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


HOLD = "b = bytearray(int(__import__('sys').argv[1]) << 20); __import__('time').sleep(60)"


# ---- memory ----


@pytest.mark.asyncio
@pytest.mark.parametrize("how", EITHER)
async def test_an_attempt_over_its_memory_is_killed_and_says_so(rig: Rig, how: str) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, memory_enforcement=how))
    gate = rig.root / "gate"
    within = f"b = bytearray(40 << 20)\nimport os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)"

    await backend.launch([launch(python(HOLD, 200, memory_mib=100)), launch(python(within, memory_mib=100), number=2)])
    await backend.launch([launch(python(within), number=3)])
    await until(lambda: key() in context.ends)
    await anyio.sleep(0.5)  # the others are looked at in the meantime
    gate.touch()
    await until(lambda: len(context.ends) == 3)

    assert context.ends == {key(): 137, key(0, 2): 0, key(0, 3): 0}
    assert context.reasons == {key(): OUT_OF_MEMORY, key(0, 2): None, key(0, 3): None}
    assert context.status_reasons[key()] is None


@pytest.mark.asyncio
@pytest.mark.parametrize("how", EITHER)
async def test_the_memory_of_a_whole_tree_counts(rig: Rig, how: str) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, memory_enforcement=how))
    pids = rig.root / "pids"
    text = f"""
import os, subprocess, sys, time
for _ in range(3):
    subprocess.Popen([sys.executable, "-I", "-S", "-c", "b = bytearray(60 << 20); import time; time.sleep(60)"],
                     start_new_session=True)
open({str(pids)!r}, "w").write("%d\\n" % os.getpid())
for _ in range(3):
    assert os.wait()[1] == 0
"""
    await backend.launch([launch(python(text, memory_mib=120))])
    await until(lambda: context.ends)

    assert (context.ends, context.reasons) == ({key(): 137}, {key(): OUT_OF_MEMORY})


@needs_cgroup
@pytest.mark.asyncio
async def test_a_child_killed_for_memory_tells_only_if_the_attempt_fails(rig: Rig) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, memory_enforcement="cgroup"))
    child = f"{sys.executable} -I -S -c 'b = bytearray(200 << 20)'"

    await backend.launch([launch(shell(f"{child}; exit 3", memory_mib=50))])
    await until(lambda: len(context.ends) == 1)
    await backend.launch([launch(shell(f"{child}; exit 0", memory_mib=50), number=2)])
    await until(lambda: len(context.ends) == 2)
    await backend.launch([launch(shell("exit 3", memory_mib=50), number=3)])  # in the same cgroup as those before
    await until(lambda: len(context.ends) == 3)

    assert context.ends == {key(): 137, key(0, 2): 0, key(0, 3): 3}
    assert context.reasons == {key(): OUT_OF_MEMORY, key(0, 2): None, key(0, 3): None}


@needs_cgroup
@pytest.mark.asyncio
async def test_cgroups_are_used_again_with_the_next_limit_and_removed_with_the_agent(rig: Rig) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, memory_enforcement="cgroup", memory=4000))
    folder = group_folder(context)
    name = "memory.limit_in_bytes" if VERSION == 1 else "memory.max"
    show = f"cat {folder}/*/{name}"

    for number, memory_mib in enumerate((64, 128, 32), 1):
        await backend.launch([launch(shell(show, memory_mib=memory_mib), number=number)])
        await until(lambda n=number: len(context.ends) == n)  # type: ignore[misc]
    await backend.launch([launch(shell("true", memory_mib=64), range(50), array_size=50, number=4)])
    await until(lambda: len(context.ends) == 53)

    limits = [await output(backend, key(0, number)) for number in (1, 2, 3)]
    assert limits == [b"%d\n" % (mib * MIB) for mib in (64, 128, 32)]
    assert set(context.ends.values()) == {0}
    assert len([one for one in folder.iterdir() if one.is_dir()]) <= 50
    agent = agent_pid(backend)
    await backend.close()
    os.kill(agent, signal.SIGTERM)
    await until(lambda: not is_alive(agent))
    assert not folder.exists()


@needs_cgroup
@pytest.mark.asyncio
async def test_an_attempt_is_in_its_cgroup_and_one_without_limit_is_not(rig: Rig) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, memory_enforcement="cgroup"))
    for number, memory_mib in enumerate((0, 64, 0, 64, 0), 1):
        await backend.launch([launch(shell("cat /proc/self/cgroup", memory_mib=memory_mib), number=number)])
        await until(lambda n=number: len(context.ends) == n)  # type: ignore[misc]

    inside = [group_folder(context).name.encode() in await output(backend, key(0, number)) for number in range(1, 6)]
    assert inside == [False, True, False, True, False]


@needs_cgroup
@pytest.mark.asyncio
async def test_files_left_in_memory_do_not_count_against_the_next_attempt(rig: Rig) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, memory_enforcement="cgroup"))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        text = f"head -c 40M /dev/zero > {folder}/$AWS_BATCH_JOB_ATTEMPT"
        for number in (1, 2, 3, 4):
            await backend.launch([launch(shell(text, memory_mib=64), number=number)])
            await until(lambda n=number: len(context.ends) == n)  # type: ignore[misc]

    assert set(context.ends.values()) == {0}


@needs_cgroup
@pytest.mark.asyncio
async def test_what_hides_from_its_attempt_is_found_in_its_cgroup(rig: Rig) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, memory_enforcement="cgroup"))
    pids = rig.root / "pids"
    hidden = f"env -i setsid sh -c 'echo $$ > {pids}; exec sleep 60' & while [ ! -s {pids} ]; do sleep 0.01; done"
    await backend.launch([launch(shell("sleep 60"), number=2), launch(shell(hidden, memory_mib=64))])
    await until(lambda: key() in context.ends)

    assert not is_alive(numbers_in(pids)[0])


@needs_cgroup
@pytest.mark.asyncio
async def test_cgroups_of_a_killed_agent_are_removed_by_the_next(rig: Rig) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, memory_enforcement="cgroup"))
    folder, other = group_folder(context), group_folder(context).with_name("anybatch-test-earlier")
    await backend.launch([launch(shell("sleep 60", memory_mib=64), range(3), array_size=3)])
    await until(lambda: len(context.starts) == 3)
    left = {one.name for one in folder.iterdir() if one.is_dir()}
    other.mkdir()  # as of an agent that ran in another cgroup
    (other / "1").mkdir()
    with (context.state_dir / "spool").open("a") as file:
        file.write(json.dumps({"t": "places", "logs": str(context.logs_dir), "groups": str(other)}) + "\n")

    os.kill(agent_pid(backend), signal.SIGKILL)
    await until(lambda: len(context.ends) == 3)

    assert set(context.ends.values()) == {"lost"}
    assert not other.exists()
    assert len(left) == 3
    assert not left & {one.name for one in folder.iterdir() if one.is_dir()}


@pytest.mark.asyncio
async def test_memory_that_is_shared_counts_once_where_it_is_watched(rig: Rig) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, memory_enforcement="watch"))
    text = """
import mmap, os, time
held = mmap.mmap(-1, 60 << 20)
held.write(b"x" * (60 << 20))
children = [os.fork() for _ in range(3)]
sum(held[::4096]); time.sleep(1.0)
"""
    await backend.launch([launch(python(text, memory_mib=300))])  # eight processes; looked at while they fork: 163 MiB
    await until(lambda: context.ends)

    assert context.ends == {key(): 0}


@pytest.mark.asyncio
async def test_without_enforcement_nothing_is_killed(rig: Rig) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, memory_enforcement="none"))
    await backend.launch([launch(python("b = bytearray(100 << 20); import time; time.sleep(0.6)", memory_mib=20))])
    await until(lambda: context.ends)

    assert context.ends == {key(): 0}


@pytest.mark.asyncio
async def test_what_the_host_cannot_do_is_an_error_and_no_enforcement_is_said_aloud(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = agent_client.AgentClient._send_settings

    def as_from_elsewhere(self: agent_client.AgentClient, link: Any, said: Hello) -> None:
        send(self, link, msgspec.structs.replace(said, memory=("none",), memory_where="nowhere"))

    monkeypatch.setattr(agent_client.AgentClient, "_send_settings", as_from_elsewhere)
    for how in ("cgroup", "watch"):
        with pytest.raises(BackendError, match=rf"memory_enforcement '{how}' is not possible here, but 'none' \(nowh"):
            await rig.open(context=Recorder(rig.root, memory_enforcement=how))
    said = []
    monkeypatch.setattr(agent_client.log, "warning", lambda event, **more: said.append((event, more["why"])))
    await rig.open(context=Recorder(rig.root, memory_enforcement="none"))
    assert said == []

    backend, _ = await rig.open(context=Recorder(rig.root))
    assert said == [("memory_not_enforced", "nowhere")]
    assert backend.memory_enforcement == "none"


@pytest.mark.asyncio
async def test_enforcement_can_be_changed_while_attempts_run(rig: Rig) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, memory_enforcement="none"))
    spec = python(HOLD, 100, memory_mib=50)
    await backend.launch([launch(spec)])
    await until(lambda: context.starts)
    later = Recorder(rig.root, memory_enforcement="watch")

    await backend.start(later, [msgspec.structs.replace(launch(spec), known_started=True)])
    await until(lambda: later.ends)

    assert backend.memory_enforcement == "watch"
    assert later.ends == {key(): 137}


@needs_cgroup
def test_a_cgroup_of_version_2_is_entered_by_a_shell_without_a_limit_above_being_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On files instead of cgroups: what is written where."""
    own = tmp_path / "user" / "app" / "service"
    own.mkdir(parents=True)
    for folder in (own, own.parent, own.parent.parent, tmp_path):
        (folder / "cgroup.subtree_control").write_text("memory" if folder != own else "")
        (folder / "cgroup.procs").write_text(str(os.getpid()) if folder == own else "")
        (folder / "memory.max").write_text("max" if folder != own.parent else "1000000")
    read = agent_module.read_file

    def read_file(*path: str) -> str:
        if path == ("/proc/self/cgroup",):
            return "0::/user/app/service\n"
        return read(os.path.join(*path).replace("/sys/fs/cgroup", str(tmp_path)))

    monkeypatch.setattr(agent_module, "read_file", read_file)
    isdir = os.path.isdir
    monkeypatch.setattr(os.path, "isdir", lambda path: isdir(str(path).replace("/sys/fs/cgroup", str(tmp_path))))

    assert agent_module.memory_folders() == (2, ["/sys/fs/cgroup/user/app/service", "/sys/fs/cgroup/user/app"])

    slot = agent_module.MemorySlot(2, str(tmp_path / "1"))
    for name in ("memory.max", "memory.swap.max"):
        (tmp_path / "1" / name).write_text("max")
    slot.set_limit(5 * MIB)
    assert ((tmp_path / "1" / "memory.max").read_text(), (tmp_path / "1" / "memory.swap.max").read_text()) == (
        str(5 * MIB),
        "0",
    )
    (tmp_path / "1" / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 2\noom_kill 2\noom_group_kill 0\n")
    assert (slot.new_kills(), slot.new_kills()) == (2, 0)
    (tmp_path / "1" / "memory.current").write_text(str(20 * MIB))
    (tmp_path / "1" / "memory.stat").write_text(f"anon 0\nfile {20 * MIB}\nshmem 0\nunevictable 0\n")
    assert slot.is_clean()
    (tmp_path / "1" / "memory.stat").write_text(f"anon 0\nfile {20 * MIB}\nshmem {20 * MIB}\nunevictable 0\n")
    assert not slot.is_clean()


@needs_cgroup
@pytest.mark.asyncio
async def test_a_shell_takes_an_attempt_into_its_cgroup_where_threads_may_not(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of version 2 and of old systems, here in whatever cgroups there are."""
    source = Path(agent_module.__file__).read_text()
    assert source.count("self.threads = self.version == 1") == 1
    folder = rig.root / "agent"
    folder.mkdir()
    changed = source.replace("self.threads = self.version == 1", "self.threads = self.version == 9")
    (folder / "agent.py").write_text(changed)
    monkeypatch.setattr(_agent_local, "__file__", str(folder / "_agent_local.py"))
    backend, context = await rig.open(context=Recorder(rig.root, memory_enforcement="cgroup"))

    await backend.launch([launch(python(HOLD, 200, memory_mib=100)), launch(shell('echo "$0|$1"', memory_mib=9))])
    await backend.launch([launch(AttemptSpec(command=("cat", "/proc/self/cgroup"), memory_mib=64), number=2)])
    await backend.launch([launch(shell("exit 7", memory_mib=64), number=3)])
    nowhere = AttemptSpec(command=(), script="#!/no/interpreter\n", memory_mib=64)
    await backend.launch([launch(nowhere, number=4)])
    await until(lambda: len(context.ends) == 4)

    assert context.ends.pop(key(0, 4)) in (126, 127)
    assert context.ends == {key(): 137, key(0, 2): 0, key(0, 3): 7}
    assert context.reasons[key()] == OUT_OF_MEMORY
    assert group_folder(context).name.encode() in await output(backend, key(0, 2))


# ---- logs ----


@pytest.mark.asyncio
async def test_a_silent_attempt_has_no_log_and_no_folder(rig: Rig) -> None:
    backend, context = await rig.open()
    other = msgspec.structs.replace(launch(shell("true")), job_id=JOB[:-1] + "0")
    await backend.launch(
        [launch(shell("[ $AWS_BATCH_JOB_ARRAY_INDEX != 3 ] || echo x"), range(6), array_size=6), other]
    )
    await until(lambda: len(context.ends) == 7)

    assert list(context.logs_dir.rglob("*.log")) == [log_path(context.logs_dir, key(3))]
    assert [path.name for path in context.logs_dir.iterdir() if path.name[0] != "."] == [JOB]
    assert await output(backend, key(1)) == b""


@pytest.mark.asyncio
async def test_logs_of_a_large_array_are_in_folders_of_a_thousand(rig: Rig) -> None:
    backend, context = await rig.open()
    indexes = [0, 999, 1000, 123_456]
    await backend.launch([launch(shell("echo $AWS_BATCH_JOB_ARRAY_INDEX"), indexes, array_size=200_000)])
    await until(lambda: len(context.ends) == 4)

    found = sorted(str(path.relative_to(context.logs_dir / JOB)) for path in context.logs_dir.rglob("*.log"))
    assert found == ["0-1.log", "1/1000-1.log", "123/123456-1.log", "999-1.log"]
    assert [await output(backend, key(index)) for index in indexes] == [b"%d\n" % index for index in indexes]


@pytest.mark.asyncio
async def test_output_never_reaches_the_log_of_a_later_attempt(rig: Rig) -> None:
    """A process that has got hold of a silent attempt's output, and outlives it elsewhere, writes into nothing."""
    backend, context = await rig.open()
    gate, fifo = rig.root / "gate", rig.root / "fifo"
    holder = f"""
import os, socket, sys, time
server = socket.socket(socket.AF_UNIX); server.bind({str(fifo)!r}); server.listen()
_, fds, _, _ = socket.recv_fds(server.accept()[0], 10, 1)
while not os.path.exists({str(gate)!r}): time.sleep(0.01)
os.write(fds[0], b"stray")
"""
    giver = f"""
import os, socket, time
client = socket.socket(socket.AF_UNIX)
while True:
    try: client.connect({str(fifo)!r}); break
    except OSError: time.sleep(0.01)
socket.send_fds(client, [b"x"], [1])
time.sleep(0.1)
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", holder)
    await backend.launch([launch(AttemptSpec(command=(sys.executable, "-c", giver)))])
    await until(lambda: context.ends)
    later = f"while [ ! -e {gate}2 ]; do sleep 0.01; done; echo own"
    await backend.launch([launch(shell(later), range(4), array_size=4, number=2)])
    await until(lambda: len(context.starts) == 5)
    gate.touch()
    assert await process.wait() == 0
    (rig.root / "gate2").touch()
    await until(lambda: len(context.ends) == 5)

    assert [await output(backend, key(index, 2)) for index in range(4)] == [b"own\n"] * 4


def numbered(lines: int) -> str:
    """A program that prints so many lines of 100 bytes, the last of them when the gate is open."""
    return f"for i in range({lines}): print('%099d' % i)"


def paused(lines: int, every: int, gates: Path) -> str:
    """The same, with a stop after so many until the gate of that number is there."""
    return f"""
import os, sys, time
for i in range({lines}):
    if i and i % {every} == 0:
        sys.stdout.flush()
        while not os.path.exists("{gates}/%d" % i): time.sleep(0.01)
    print("%099d" % i)
"""


@pytest.mark.asyncio
@pytest.mark.parametrize("slow", [False, True], ids=["at once", "while it is looked at"])
async def test_a_long_log_keeps_its_head_and_tail_and_says_so(rig: Rig, slow: bool) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, log_bytes_max=100_000))
    await backend.launch([launch(python(paused(100_000, 20_000, rig.root) if slow else numbered(100_000)))])
    if slow:
        log = log_path(context.logs_dir, key())
        for line in range(20_000, 100_000, 20_000):
            # All of it is written, and its middle given back to the disk.
            await until(lambda n=line: log.exists() and log.stat().st_size == 100 * n)  # type: ignore[misc]
            await until(lambda: log.stat().st_blocks * 512 < 1_000_000)
            (rig.root / str(line)).touch()
    await until(lambda: context.ends)

    text = (await output(backend, key())).decode()
    lines = text.split("\n")
    assert lines[:500] == [f"{index:099}" for index in range(500)]
    assert lines[500:502] == ["", "[anybatch: 9900000 bytes are left out here]"]
    assert lines[502:1002] == [f"{index:099}" for index in range(99_500, 100_000)]
    assert lines[1002:] == [
        "",
        "[anybatch: this log was over its limit of 100000 bytes: 9900000 of its middle are left out]",
        "",
    ]
    assert context.ends == {key(): 0}


@pytest.mark.asyncio
async def test_a_log_at_its_limit_is_left_alone(rig: Rig) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, log_bytes_max=1000))
    await backend.launch([launch(python(numbered(10))), launch(python(numbered(11)), number=2)])
    await until(lambda: len(context.ends) == 2)

    assert len(await output(backend, key())) == 1000
    assert b"over its limit of 1000 bytes: 100 of" in await output(backend, key(0, 2))


@pytest.mark.asyncio
async def test_who_follows_a_long_log_misses_only_what_was_left_out(rig: Rig) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, log_bytes_max=1 << 20))
    await backend.launch([launch(python(paused(100_000, 10_000, rig.root)))])
    seen = bytearray()

    async def follow() -> None:
        async for piece in backend.logs(key(), follow=True):
            seen.extend(piece)

    async with asyncio.TaskGroup() as group:
        group.create_task(follow())
        for line in range(10_000, 100_000, 10_000):
            last = b"%099d\n" % (line - 1)
            await until(lambda text=last: seen.endswith(text))  # type: ignore[misc]
            (rig.root / str(line)).touch()
    found = bytes(seen).split(b"\n")

    assert context.ends == {key(): 0}
    assert found[:5000] == [b"%099d" % index for index in range(5000)]
    assert found[-5000:-1] == [b"%099d" % index for index in range(95_001, 100_000)]
    assert b"\0" not in seen


@pytest.mark.asyncio
async def test_what_attempts_of_a_killed_agent_wrote_is_kept(rig: Rig) -> None:
    backend, context = await rig.open()
    gate = rig.root / "gate"
    wait = f"while [ ! -e {gate} ]; do sleep 0.01; done"
    text = f"[ $AWS_BATCH_JOB_ARRAY_INDEX = 1 ] && exec sleep 60; {wait}; echo late; exec sleep 60"
    await backend.launch([launch(shell("true"), range(3), array_size=3, number=2)])
    await until(lambda: len(context.ends) == 3)
    await backend.launch([launch(shell(text), range(3), array_size=3)])
    await until(lambda: len(context.starts) == 6)
    hidden = next(path for path in context.logs_dir.iterdir() if path.name[0] == ".")

    os.kill(agent_pid(backend), signal.SIGSTOP)
    gate.touch()
    await until(lambda: sum(path.stat().st_size for path in hidden.iterdir()) == 10)
    os.kill(agent_pid(backend), signal.SIGKILL)
    await until(lambda: len(context.ends) == 6)

    assert [await output(backend, key(index)) for index in range(3)] == [b"late\n", b"", b"late\n"]
    assert not log_path(context.logs_dir, key(1)).exists()


# ---- look-ahead ----


@pytest.mark.asyncio
async def test_what_does_not_fit_waits_its_turn_and_its_timeout_counts_from_its_start(rig: Rig) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, lookahead=8, memory=1000))
    ran, gate = rig.root / "ran", rig.root / "gate"
    wait = f"while [ ! -e {gate}$AWS_BATCH_JOB_ARRAY_INDEX ]; do sleep 0.01; done"
    text = f"echo $AWS_BATCH_JOB_ARRAY_INDEX >> {ran}; {wait}"
    whole = AttemptSpec(command=("true",), vcpus_milli=4000, timeout_ms=300)

    await backend.launch([launch(shell(text), range(10), array_size=10), launch(whole, number=2)])  # 4 vCPUs
    await until(lambda: len(numbers_in(ran)) == 4)
    await anyio.sleep(0.4)
    assert context.hosts["local"] == Capacity(vcpus_milli=4000, memory_mib=1000, lookahead=8)
    assert (sorted(numbers_in(ran)), len(context.starts)) == ([0, 1, 2, 3], 4)

    await backend.stop([key(5)], 0)
    await until(lambda: context.ends == {key(5): None})
    (rig.root / "gate2").touch()
    await until(lambda: len(numbers_in(ran)) == 5)
    assert numbers_in(ran)[-1] == 4
    for index in range(10):
        (rig.root / f"gate{index}").touch()
    await until(lambda: len(context.ends) == 11)

    assert sorted(numbers_in(ran)) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    began_ms, ended_ms = context.times[key(0, 2)]
    assert context.ends.pop(key(0, 2)) == ("timed out" if ended_ms - began_ms >= 300 else 0)  # it may be a slow machine
    assert set(context.ends.values()) == {0, None}


@pytest.mark.asyncio
async def test_memory_counts_as_well_and_what_never_fits_runs_alone(rig: Rig) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, lookahead=8, memory=100, memory_enforcement="none"))
    most, now, met = rig.root / "most", rig.root / "now", rig.root / "met"
    now.mkdir()
    # The first two wait for each other.
    meet = f"while [ ! -e {met} ]; do [ $(ls {now} | wc -l) = 2 ] && touch {met}; sleep 0.01; done"
    text = f"touch {now}/$$; ls {now} | wc -l >> {most}; {meet}; ls {now} | wc -l >> {most}; rm {now}/$$"

    await backend.launch(
        [
            launch(shell(text, vcpus_milli=250, memory_mib=50), range(6), array_size=6),
            launch(shell(text, vcpus_milli=250, memory_mib=500), number=2),
            launch(shell(text, vcpus_milli=250, memory_mib=0), number=3),
        ]
    )
    await until(lambda: len(context.ends) == 8)

    assert set(context.ends.values()) == {0}
    assert max(numbers_in(most)[:12]) == 2
    assert numbers_in(most)[12:14] == [1, 1]


@pytest.mark.asyncio
async def test_what_waits_survives_a_lost_connection_and_a_killed_agent(rig: Rig) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, lookahead=8))
    ran, gate = rig.root / "ran", rig.root / "gate"
    text = f"echo $AWS_BATCH_JOB_ARRAY_INDEX >> {ran}; while [ ! -e {gate} ]; do sleep 0.01; done"
    await backend.launch([launch(shell(text, vcpus_milli=2000), range(5), array_size=5)])
    await until(lambda: len(numbers_in(ran)) == len(context.starts) == 2)

    await cut_connection(backend)
    await until(lambda: len(context.starts) >= 4)  # told again
    assert len(numbers_in(ran)) == 2
    os.kill(agent_pid(backend), signal.SIGKILL)
    await until(lambda: len(context.ends) == 2)
    gate.touch()
    await until(lambda: len(context.ends) == 5)

    assert [context.ends[key(index)] for index in range(5)] == ["lost", "lost", 0, 0, 0]
    assert sorted(numbers_in(ran)) == [0, 1, 2, 3, 4]


@pytest.mark.asyncio
async def test_a_kernel_that_goes_leaves_what_waits_to_the_agent(rig: Rig) -> None:
    backend, context = await rig.open(context=Recorder(rig.root, lookahead=8))
    ran, gate = rig.root / "ran", rig.root / "gate"
    text = f"echo $AWS_BATCH_JOB_ARRAY_INDEX >> {ran}; while [ ! -e {gate} ]; do sleep 0.01; done"
    run = launch(shell(text, vcpus_milli=2000), range(4), array_size=4)
    await backend.launch([run])
    await until(lambda: len(numbers_in(ran)) == 2)

    await backend.close()
    gate.touch()
    await until(lambda: len(numbers_in(ran)) == 4)
    _, later = await rig.open([run], context=Recorder(rig.root, lookahead=8))
    await until(lambda: len(later.ends) == 4)

    assert set(later.ends.values()) == {0}


# ---- through a kernel ----


@pytest.mark.asyncio
async def test_gpus_and_reasons_reach_their_attempts_and_jobs(tmp_path: Path) -> None:
    async with anybatch.Kernel(
        tmp_path / "batch.db", backends={"process": ProcessBackend(agent_idle_ms=100)}
    ) as kernel:
        await kernel.create_compute_environment(
            "local", backend="process", max_vcpus=4, options={"gpus": [2, 5, 7], "memory": 4000}
        )
        await kernel.create_job_queue("q", priority=1, compute_environments=["local"])
        devices = 'echo "$CUDA_VISIBLE_DEVICES" > $OUT/${AWS_BATCH_JOB_ARRAY_INDEX:-0}; sleep 0.2'
        await kernel.register_job_definition(
            "gpu", command=["sh", "-c", devices], gpus=1, environment={"OUT": str(tmp_path)}
        )
        await kernel.register_job_definition(
            "big", command=[sys.executable, "-c", "b = bytearray(200 << 20); import time; time.sleep(60)"], memory=100
        )
        many = await kernel.submit_job("many", queue="q", definition="gpu", array_size=3)
        two_folder = tmp_path / "two"
        two_folder.mkdir()
        two = await kernel.submit_job("two", queue="q", definition="gpu", gpus=2, environment={"OUT": str(two_folder)})
        big = await kernel.submit_job("big", queue="q", definition="big")
        detail = await big.wait()
        assert (await many.wait()).status is anybatch.JobStatus.SUCCEEDED
        await two.wait()

    assert sorted((tmp_path / str(index)).read_text() for index in range(3)) == ["2\n", "5\n", "7\n"]
    assert len((two_folder / "0").read_text().split(",")) == 2
    assert (detail.exit_code, detail.reason) == (137, OUT_OF_MEMORY)


def test_options_that_cannot_be_are_refused() -> None:
    for options in ({"memory_enforcement": "maybe"}, {"log_bytes_max": -1}, {"lookahead": -1}, {"lookahead": 5000}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(options, ProcessOptions)
