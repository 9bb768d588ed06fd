"""Files of SSH hosts: scripts, working directories that are sent and fetched, logs, and what is forgotten."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from anybatch.backends import _ssh_files
from anybatch.backends.ssh import SshBackend
from anybatch.kernel.backend import log_path
from anybatch.kernel.core.errors import BackendError
from anybatch.testing.backend_kit import RecordingContext
from ssh_rig import JOB, Bench, Lab, key, launch, output, shell, until

pytestmark = pytest.mark.asyncio

OTHER = "7a1e2d3c-1111-4222-8333-444455556666"


async def ended(context: RecordingContext, *keys: Any) -> None:
    await until(context, lambda: all(context.ends_of(one) for one in keys or (key(),)))


def on_host(lab: Lab, what: str) -> list[Path]:
    """The folders or files of this kind on the hosts, wherever their state is; none of the agent's own."""
    while True:
        try:
            return [path for path in (lab.folder / "far").glob(f"kit/*/{what}") if not path.name.startswith(".")]
        except FileNotFoundError:  # a folder has gone while it was read
            continue


async def test_a_script_is_shipped(lab: Lab, bench: Bench) -> None:
    lab.sshd("host")
    backend, context = await bench.open()
    spec = shell("", script='#!/bin/sh\necho "$0 $*" | sed "s/.*scripts//"; exit 3\n')
    await backend.launch([launch(spec, host="host")])
    await ended(context)
    assert context.ends_of(key())[0].code == 3
    assert (await output(backend, key())).endswith(b" /bin/sh -c \n")


async def test_a_working_directory_is_sent_once_and_what_changes_is_fetched(lab: Lab, bench: Bench) -> None:
    lab.machine("a")
    lab.machine("b")
    work = lab.folder / "work"
    (work / "sub").mkdir(parents=True)
    (work / "in").write_text("41")
    (work / "run").write_text("#!/bin/sh\nexpr $(cat in) + 1\n")
    (work / "run").chmod(0o755)
    (work / "sub" / "deep").write_text("deep")
    (work / "link").symlink_to("in")
    backend, context = await bench.open(workdirs="send and fetch")
    spec = shell("./run > out.$AWS_BATCH_JOB_ARRAY_INDEX; mkdir -p new; cat sub/deep link > new/both; pwd",
                 workdir=str(work))  # fmt: skip
    await backend.launch([launch(spec, [0, 1], host="a", array_size=4), launch(spec, [2, 3], host="b", array_size=4)])
    await ended(context, *map(key, range(4)))
    assert [(end.code, end.reason) for i in range(4) for end in context.ends_of(key(i))] == [(0, None)] * 4
    assert [(work / f"out.{i}").read_text() for i in range(4)] == ["42\n"] * 4
    assert (work / "new" / "both").read_text() == "deep41"
    assert (await output(backend, key())).decode().strip() != str(work)
    (work / "in").write_text("sent already")
    inode = (work / "out.0").stat().st_ino
    await backend.launch([launch(shell("cat in; rm in", workdir=str(work)), [0], host="a", number=2)])
    await ended(context, key(0, 2))
    assert await output(backend, key(0, 2)) == b"41"
    assert (work / "in").read_text() == "sent already"  # what has not changed there is left alone here
    assert (work / "out.0").stat().st_ino == inode
    assert not [path for path in work.rglob("*") if "anybatch" in path.name]


async def test_sent_without_fetching_leaves_this_machine_alone(lab: Lab, bench: Bench) -> None:
    lab.machine("host")
    work = lab.folder / "work"
    work.mkdir()
    (work / "in").write_text("1")
    backend, context = await bench.open(workdirs="send")
    await backend.launch([launch(shell("cat in > out", workdir=str(work)), host="host")])
    await ended(context)
    assert context.ends_of(key())[0].code == 0
    assert [path.name for path in work.iterdir()] == ["in"]


async def test_files_that_cannot_be_sent_or_fetched_fail_their_attempt_only(lab: Lab, bench: Bench) -> None:
    lab.machine("host")
    work = lab.folder / "work"
    work.mkdir()
    backend, context = await bench.open(workdirs="send and fetch")
    gone = shell("true", workdir=str(lab.folder / "nowhere"))
    bad = shell("mkdir d; echo 1 > d/f", workdir=str(work))
    (work / "d").write_text("a file here, a folder there")
    (work / "d").rename(lab.folder / "d")
    await backend.launch([launch(gone, host="host"), launch(shell("exit 4"), host="host", job=OTHER)])
    await ended(context, key(), key(job=OTHER))
    end = context.ends_of(key())[0]
    assert (end.code, end.status_reason) == (None, "Task failed to start")
    assert "its files could not be sent" in (end.reason or "")
    assert context.ends_of(key(job=OTHER))[0].code == 4
    (lab.folder / "work").rmdir()
    work.mkdir()
    slow = shell("while [ ! -e go ]; do sleep 0.05; done; mkdir d; echo 1 > d/f", workdir=str(work))
    await backend.launch([launch(slow, host="host", number=2)])
    await until(context, lambda: context.starts_of(key(0, 2)))
    (work / "d").write_text("a file here, a folder there")
    (on_host(lab, f"jobs/{JOB}")[0] / "go").touch()
    await ended(context, key(0, 2))
    end = context.ends_of(key(0, 2))[0]
    assert end.code is None
    assert "its files could not be fetched" in (end.reason or "")
    assert bad is not None


async def test_an_attempt_that_waits_for_its_files_can_be_stopped(
    lab: Lab, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.machine("host")
    work = lab.folder / "work"
    work.mkdir()
    backend, context = await bench.open(workdirs="send")
    files = backend._hosts["host"].files
    monkeypatch.setattr(files, "_start", lambda *_: None)  # a send that takes for ever
    await backend.launch([launch(shell("true", workdir=str(work)), [0, 1], host="host", array_size=2)])
    await backend.stop([key(0)], 1_000)
    assert context.ends_of(key(0))[0].code is None
    assert not context.ends_of(key(1))
    assert backend._hosts["host"].holds(key(1))


@pytest.mark.filterwarnings(
    r"ignore:unclosed file.*\.anybatch-:ResourceWarning"
)  # asyncssh leaves them to the collector
async def test_a_lost_connection_while_files_are_sent_or_fetched_loses_nothing(lab: Lab, bench: Bench) -> None:
    host = lab.machine("host")
    work = lab.folder / "work"
    work.mkdir()
    for n in range(40):
        (work / f"in.{n}").write_bytes(os.urandom(50_000))
    backend, context = await bench.open(workdirs="send and fetch", keepalive=0.3)
    spec = shell("for n in $(seq 0 39); do cp in.$n out.$n; done", workdir=str(work))
    await backend.launch([launch(spec, host="host")])
    await until(context, lambda: on_host(lab, f"jobs/{JOB}/in.*"))
    host.cut()
    await until(context, lambda: context.paused)
    host.mend()
    await until(context, lambda: on_host(lab, f"jobs/{JOB}/out.39"))
    host.cut()
    await until(context, lambda: context.paused)
    host.mend()
    await ended(context)
    assert context.ends_of(key())[0].code == 0
    assert all((work / f"out.{n}").read_bytes() == (work / f"in.{n}").read_bytes() for n in range(40))


async def test_a_host_cannot_have_files_put_elsewhere(lab: Lab, bench: Bench) -> None:
    lab.machine("host")
    work = lab.folder / "work"
    work.mkdir()
    backend, _ = await bench.open(workdirs="send and fetch")
    files = backend._hosts["host"].files
    for name in ("../evil", "/tmp/evil", "a/../../evil"):
        with pytest.raises(BackendError, match="the host names a file"):
            await files._get(work, "/nowhere", [[name, 1, 1]], [])


async def test_logs_stay_on_the_host_until_they_are_fetched_and_a_copy_is_kept(lab: Lab, bench: Bench) -> None:
    host = lab.sshd("host")
    backend, context = await bench.open()
    big = 3 * _ssh_files.LOG_PIECE + 17
    await backend.launch([launch(shell(f"head -c {big} /dev/zero | tr '\\0' x"), host="host")])
    await ended(context)
    copy = log_path(context.logs_dir, key())
    assert not copy.exists()
    assert await output(backend, key()) == b"x" * big
    assert copy.read_bytes() == b"x" * big
    await backend.launch([launch(shell("echo second"), host="host", number=2)])
    await ended(context, key(0, 2))
    host.stop()
    await until(context, lambda: context.paused)
    assert await output(backend, key()) == b"x" * big  # the copy
    with pytest.raises(BackendError, match="on a host that cannot be reached now") as error:
        await output(backend, key(0, 2))
    assert error.value.retryable


async def test_a_reader_that_gives_up_does_not_disturb_the_next(lab: Lab, bench: Bench) -> None:
    lab.sshd("host")
    backend, context = await bench.open()
    await backend.launch([launch(shell("echo one; sleep 600"), host="host"),
                          launch(shell("echo two; exit 1"), host="host", job=OTHER)])  # fmt: skip
    await ended(context, key(job=OTHER))
    follower = backend.logs(key(), follow=True)
    assert await anext(follower) == b"one\n"
    await follower.aclose()  # type: ignore[attr-defined]
    assert await output(backend, key(job=OTHER)) == b"two\n"
    await backend.stop([key()], 0)
    await ended(context)


async def test_what_is_forgotten_is_removed_from_hosts_also_of_one_that_was_away(lab: Lab, bench: Bench) -> None:
    host = lab.sshd("host")
    backend, context = await bench.open()
    for job in (JOB, OTHER):
        await backend.launch([launch(shell("echo hi"), host="host", job=job)])
        await ended(context, key(job=job))
    assert len(on_host(lab, "logs/*-*-*-*-*")) == 2
    assert len(on_host(lab, "jobs/*")) == 2
    await backend.forget([JOB])
    assert [path.name for path in on_host(lab, "[lj]o[gb]s/*-*")] == [OTHER] * 2
    host.stop()
    await until(context, lambda: context.paused)
    await backend.forget([OTHER])
    context.forgotten.add(OTHER)
    host.start()
    await until(context, lambda: not on_host(lab, "[lj]o[gb]s/*-*"))


async def test_channels_on_demand_are_closed_when_nobody_wants_them(
    lab: Lab, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ssh_files, "CHANNEL_IDLE_S", 0.2)
    host = lab.sshd("host")
    backend, context = await bench.open()
    await backend.launch([launch(shell("echo hi"), host="host")])
    await ended(context)
    assert await output(backend, key()) == b"hi\n"
    files = backend._hosts["host"].files
    await until(context, lambda: files._far is None)
    assert host.process is not None
    programs = subprocess.run(["ps", "-o", "args=", "--ppid", str(host.process.pid)], capture_output=True, text=True)
    assert len(programs.stdout.splitlines()) == 1
    assert isinstance(backend, SshBackend)
