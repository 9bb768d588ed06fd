"""The agent's protocol and its spool, spoken to directly over its socket."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from allowed_skips import NEEDS_OLD_PYTHON
from anybatch.backends import agent as agent_module

AGENT = Path(agent_module.__file__)
JOB = "0b1c2d3e-5555-4666-8777-88889999aaaa"
DEADLINE_S = 90.0
OLD_PYTHONS = sorted((Path.home() / ".pyenv" / "versions").glob("3.8.*/bin/python"))


class Peer:
    """A client that speaks the protocol by hand."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(str(path))
        self.stream = self.socket.makefile("rb")

    def send(self, *messages: dict[str, Any]) -> None:
        payloads = [json.dumps(message).encode() for message in messages]
        self.socket.sendall(b"".join(len(one).to_bytes(4, "big") + one for one in payloads))

    def receive(self, kind: str) -> dict[str, Any]:
        """The next message of this kind; what comes before is skipped."""
        while True:
            head = self.stream.read(4)
            if len(head) < 4:
                raise ConnectionError("closed by the agent")
            message: dict[str, Any] = json.loads(self.stream.read(int.from_bytes(head, "big")))
            if message["t"] == kind:
                return message

    def exits(self, count: int) -> dict[int, Any]:
        """The next exits, as index: (code, kind, reason)."""
        found: dict[int, Any] = {}
        while len(found) < count:
            for _, _, indexes, codes, _, _, kind, reason, _, _ in self.receive("report")["exited"]:
                found.update({index: (code, kind, reason) for index, code in zip(indexes, codes, strict=True)})
        return found

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


class Host:
    """A state directory, its agent, and the connections to it."""

    def __init__(self, root: Path) -> None:
        self.state, self.socket, self.logs = root / "state", root / "run" / "a.sock", root / "logs"
        self.spool = self.state / "spool"
        self.peers: list[Peer] = []

    def start(self, idle_ms: int = 60_000, python: str = sys.executable) -> int:
        """Start an agent; return the exit status of the starter."""
        command = [python, "-I", "-S", "-X", "utf8", str(AGENT)]
        command += ["--state", str(self.state), "--socket", str(self.socket), "--idle-ms", str(idle_ms)]
        return subprocess.run(command, timeout=DEADLINE_S, check=False).returncode

    def connect(self) -> Peer:
        peer = Peer(self.socket)
        self.peers.append(peer)
        return peer

    def hello(self, **fields: Any) -> dict[str, Any]:
        about = {"t": "hello", "protocol": [1, 0], "kernel": "k1", "environment": {"PATH": os.defpath}, "workdir": "/"}
        return {**about, "logs": str(self.logs), **fields}

    def ready(self) -> Peer:
        """A connection that has settled, with spec 1 (a shell command in $RUN)."""
        peer = self.connect()
        peer.send(self.hello(), {"t": "settle", "runs": [], "last": True})
        peer.receive("settled")
        return peer

    @property
    def pid(self) -> int:
        """The process id of this directory's agent.

        Raises:
            OSError: it has ended, or there was none.
        """
        lock = self.state / "agent.lock"
        until(lock.read_text)  # written a moment after the starter has returned
        pid = int(json.loads(lock.read_text())["pid"])
        if os.fsencode(self.state) not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            raise ProcessLookupError
        return pid

    def kill(self) -> None:
        """Kill the agent; return once it is gone."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_alive(pid))

    def settle(self, *indexes: int) -> dict[int, Any]:
        """Connect as a kernel that believes these in flight; the exits reported for them."""
        peer = self.connect()
        peer.send(self.hello(), {"t": "settle", "runs": [[JOB, 1, list(indexes)]], "last": True})
        return peer.exits(len(indexes))

    def end(self) -> None:
        for peer in self.peers:
            peer.close()
        with contextlib.suppress(OSError, ValueError):
            pid = self.pid
            os.kill(pid, signal.SIGTERM)
            until(lambda: not is_alive(pid))


def spool_lines(*records: dict[str, Any], boot: str | None = None) -> str:
    head = {"t": "spool", "version": 1, "boot": boot or agent_module.boot_id()["boot"], "settled": True, "seq": 0}
    return "".join(json.dumps(record) + "\n" for record in (head, *records))


def spec(text: str, number: int = 1, **fields: Any) -> dict[str, Any]:
    return {"t": "spec", "id": number, "command": ["/bin/sh", "-c", text], **fields}


def launch(*indexes: int, number: int = 1, spec: int = 1, job: str = JOB) -> dict[str, Any]:
    return {"t": "launch", "groups": [[job, number, 100, spec, list(indexes), None]]}


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE_S:g} s"
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def orphan(name: str | None) -> int:
    """A process in a session of its own without a parent, as a killed agent leaves its attempts; its id."""
    environment = {"PATH": os.defpath} if name is None else {"PATH": os.defpath, "ANYBATCH_ATTEMPT": name}
    done = subprocess.run(
        ["setsid", "sh", "-c", "setsid sleep 60 >&- 2>&- & echo $!"],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    return int(done.stdout)


@pytest.fixture
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="ab-", ignore_cleanup_errors=True) as folder:
        host = Host(Path(folder))
        yield host
        host.end()


def test_it_is_one_file_that_python_3_8_understands_with_nothing_but_the_standard_library() -> None:
    tree = ast.parse(AGENT.read_text(), feature_version=(3, 8))

    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_a_state_directory_has_one_agent_and_only_its_user_reaches_it(host: Host) -> None:
    assert host.start() == 0
    first = host.pid

    assert host.start() == agent_module.EXIT_LOCKED
    assert host.pid == first
    assert host.socket.stat().st_mode & 0o777 == 0o600
    assert host.socket.parent.stat().st_mode & 0o777 == 0o700
    assert host.state.stat().st_mode & 0o777 == 0o700


def test_hello_tells_who_the_agent_is(host: Host) -> None:
    host.start()
    peer = host.connect()
    peer.send(host.hello())

    hello = peer.receive("hello")

    assert (hello["protocol"], hello["pid"], len(hello["build"])) == ([1, 1], host.pid, 16)
    assert abs(hello["now_ms"] - time.time() * 1000) < 60_000


def test_another_major_version_is_told_and_closed(host: Host) -> None:
    host.start()
    peer = host.connect()
    peer.send(host.hello(protocol=[2, 0]))

    assert peer.receive("hello")["protocol"] == [1, 1]
    assert "protocol 1.1" in peer.receive("bye")["reason"]
    with pytest.raises(ConnectionError):
        peer.receive("settled")
    host.ready()


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\x02{}",
        b"\0\0\0\x03abc",
        b'\0\0\0\x0e{"t":"settle"}',
        b'\0\0\0\x0d{"t":"hello"}',
        b"\0\0\0\x04null",
    ],
)
def test_garbage_costs_the_connection_only(host: Host, data: bytes) -> None:
    host.start()
    good, bad = host.ready(), host.connect()

    bad.socket.sendall(data)

    with pytest.raises(ConnectionError):
        bad.receive("report")
    good.send({"t": "ping"})
    good.receive("pong")


def test_a_job_id_cannot_leave_the_logs_folder(host: Host) -> None:
    host.start()
    peer = host.ready()
    peer.send(spec("exit 0"), launch(0, job="../x"))

    with pytest.raises(ConnectionError):
        peer.exits(1)
    assert not (host.logs.parent / "x").exists()


def test_frames_may_come_in_any_pieces(host: Host) -> None:
    host.start()
    peer = host.ready()
    payloads = [json.dumps(message).encode() for message in (spec("exit $AWS_BATCH_JOB_ARRAY_INDEX"), launch(3))]
    for byte in b"".join(len(one).to_bytes(4, "big") + one for one in payloads):
        peer.socket.sendall(bytes([byte]))

    assert peer.exits(1) == {3: (3, 0, None)}


def test_an_attempt_stopped_before_its_start_never_runs(host: Host) -> None:
    host.start()
    peer = host.ready()
    ran = host.logs.parent / "ran"
    peer.send(spec(f"touch {ran}"), launch(0), {"t": "stop", "grace_ms": 0, "runs": [[JOB, 1, [0, 7]]]})

    assert peer.exits(1) == {0: (None, 0, None)}
    assert not ran.exists()


def test_exits_are_spooled_before_they_are_reported_and_again_until_acknowledged(host: Host) -> None:
    host.start()
    peer = host.ready()
    peer.send(spec("exit 6"), launch(0))
    report = peer.receive("report")
    while not report["exited"]:
        report = peer.receive("report")
    assert json.dumps(report["exited"], separators=(",", ":")) in host.spool.read_text()

    again = host.connect()
    again.send(host.hello(), {"t": "settle", "runs": [[JOB, 1, [0, 1]]], "last": True})
    assert again.exits(1) == {0: (6, 0, None)}
    assert again.receive("settled")["absent"] == [[JOB, 1, [1]]]
    again.send({"t": "ack", "seq": report["seq"]}, {"t": "settle", "runs": [[JOB, 1, [0]]], "last": True})
    assert again.receive("settled")["absent"] == [[JOB, 1, [0]]]


def test_while_more_is_on_its_way_exits_wait_until_half_of_what_is_left_has_begun(tmp_path: Path) -> None:
    agent = agent_module.Agent(str(tmp_path), str(tmp_path / "a.sock"), socket.socket(socket.AF_UNIX), 0, 1_000)
    agent.selector = selectors.DefaultSelector()
    agent.recover()
    ours, theirs = socket.socketpair()
    connection = agent_module.Connection(agent, ours)
    agent.on_spec(connection, {"id": 1, "command": ["true"]})
    agent.on_launch(connection, launch(*range(16)))
    reported_at: list[int] = []
    while agent.pending:
        one = agent.pending.popleft()
        one.stopped_ms = agent.now_ms() + 60_000  # so that no exit waits too long
        agent._ended(one)
        if agent._is_news_due():
            agent._flush()
            reported_at.append(len(agent.pending))
    connection.close()
    theirs.close()
    agent.listener.close()

    assert reported_at == [8, 4, 2, 1, 0]


def test_a_new_agent_reads_the_spool_of_a_killed_one_despite_a_torn_tail(host: Host) -> None:
    host.start()
    peer = host.ready()
    peer.send(spec("exit 6"), spec("sleep 60", 2), launch(0, 1), launch(2, spec=2))
    peer.exits(2)
    host.kill()
    with host.spool.open("a") as file:
        file.write('{"t":"report","seq":3,"started":[],"exi')

    assert host.start() == 0
    peer = host.connect()
    peer.send(host.hello(), {"t": "settle", "runs": [[JOB, 1, [0, 1, 2, 3]]], "last": True})

    assert peer.exits(3) == {0: (6, 0, None), 1: (6, 0, None), 2: (None, 2, "the agent was killed")}
    assert peer.receive("settled")["absent"] == [[JOB, 1, [3]]]


def test_what_ran_between_intent_and_record_is_found_and_ended(host: Host) -> None:
    host.start()
    host.ready()
    host.kill()
    with host.spool.open("a") as file:
        intent = {"t": "intent", "kernel": "k1", "at": agent_module.uptime_ms(), "runs": [[JOB, 1, [4]]]}
        file.write(json.dumps(intent) + "\n")
    left, stranger = orphan(f"ab-k1-{JOB}-4-1"), orphan(f"ab-k1-{JOB}-5-1")

    assert host.start() == 0
    peer = host.connect()
    peer.send(host.hello(), {"t": "settle", "runs": [[JOB, 1, [4]]], "last": True})

    assert peer.exits(1) == {4: (None, 2, "the agent was killed")}
    assert not is_alive(left)
    assert is_alive(stranger)
    os.kill(stranger, signal.SIGKILL)


def test_sigterm_to_the_agent_ends_its_attempts_as_lost(host: Host) -> None:
    host.start()
    peer = host.ready()
    peer.send(spec("sleep 60"), launch(0))
    while not peer.receive("report")["started"]:
        pass

    agent = host.pid
    os.kill(agent, signal.SIGTERM)

    assert peer.exits(1) == {0: (128 + 15, 2, "the agent was told to end")}
    until(lambda: not is_alive(agent))
    assert not host.socket.exists()


def test_a_full_spool_is_rewritten_to_what_still_matters(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.state.mkdir(0o700)
    spool = agent_module.Spool(str(host.spool))
    spool.rewrite(["{}"])
    spool.append('{"t":"ack","seq":1}')
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: os.pwrite(fd, data[:3], 0))
        with pytest.raises(OSError, match="No space left"):
            spool.append('{"t":"ack","seq":2}')
    spool.append('{"t":"ack","seq":3}')

    assert host.spool.read_text() == '{}\n{"t":"ack","seq":1}\n{"t":"ack","seq":3}\n'
    assert spool.size == host.spool.stat().st_size


def test_a_child_that_hides_its_attempt_is_ended_with_the_last_one(host: Host) -> None:
    host.start()
    peer = host.ready()
    pid = host.logs.parent / "pid"
    hidden = f"env -i setsid sh -c 'echo $$ > {pid}; exec sleep 60' & while [ ! -s {pid} ]; do sleep 0.01; done"
    peer.send(spec(hidden), launch(0))

    assert peer.exits(1) == {0: (0, 0, None)}
    until(lambda: not is_alive(int(pid.read_text())))


# ---- nobody else is signalled, nothing else removed ----


@pytest.mark.parametrize("pid", [-1, 0, 1, -7, pytest.param(os.getpid(), id="own")])
def test_no_signal_goes_to_everybody_or_init_or_itself(pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*what: int) -> None:
        raise AssertionError(what)

    for name in ("kill", "killpg"):
        monkeypatch.setattr(os, name, never)
    monkeypatch.setattr(signal, "pidfd_send_signal", never)
    monkeypatch.setattr(os, "getpgid", lambda _: os.getpid())

    for number in (0, signal.SIGTERM, signal.SIGKILL):
        agent_module.send_signal(pid, number)
        agent_module.send_signal(pid, number, born=0)
        with pytest.raises(ProcessLookupError):
            agent_module.send_group_signal(pid, number)


def test_a_process_that_took_over_a_number_is_not_signalled() -> None:
    pid = orphan(None)
    born = agent_module.Processes().born[pid]

    agent_module.send_signal(pid, signal.SIGKILL, born + 1)
    time.sleep(0.05)
    assert is_alive(pid)

    agent_module.send_signal(pid, signal.SIGKILL, born)
    until(lambda: not is_alive(pid))
    agent_module.send_signal(pid, signal.SIGKILL, born)


@pytest.mark.parametrize(
    "pid", [None, -1, 0, 1, pytest.param(os.getpid(), id="own"), pytest.param(os.getppid(), id="parent")]
)
def test_a_spool_that_names_odd_processes_harms_nobody(host: Host, pid: int | None) -> None:
    """None: an intent whose attempt was never recorded as started. (Run in a container of its own while in doubt.)"""
    at = agent_module.uptime_ms()
    bystander, child = orphan(None), subprocess.Popen(["sleep", "60"])
    records: list[dict[str, Any]] = [{"t": "intent", "kernel": "k1", "at": at, "runs": [[JOB, 1, [4]]]}]
    if pid is not None:
        started = [[JOB, 1, [4], [int(time.time() * 1000)], [pid]]]
        records.append({"t": "report", "seq": 0, "started": started, "exited": []})
    records.append({"t": "reaper", "pid": os.getpid()})
    host.state.mkdir(0o700)
    host.spool.write_text(spool_lines(*records))

    assert host.start() == 0

    assert host.settle(4) == {4: (None, 2, "the agent was killed")}
    assert is_alive(bystander)
    assert child.poll() is None
    os.kill(bystander, signal.SIGKILL)
    child.kill()
    child.wait()


def test_a_name_that_an_unrelated_process_has_copied_does_not_cost_its_life(host: Host) -> None:
    name = f"ab-k1-{JOB}-4-1"
    older = orphan(name)
    time.sleep(0.2)
    intent = {"t": "intent", "kernel": "k1", "at": agent_module.uptime_ms(), "runs": [[JOB, 1, [4]]]}
    environment = {"PATH": os.defpath, "ANYBATCH_ATTEMPT": name}
    younger = orphan(name)
    host.state.mkdir(0o700)
    reaper = int(Path(f"/proc/{younger}/stat").read_text().rpartition(")")[2].split()[1])
    host.spool.write_text(spool_lines({"t": "reaper", "pid": reaper}, intent))
    with subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True) as child:
        assert host.start() == 0
        assert host.settle(4) == {4: (None, 2, "the agent was killed")}

        assert not is_alive(younger)
        assert child.poll() is None  # somebody's child, not an orphan
        assert is_alive(older)  # from before the attempt
        child.kill()
    os.kill(older, signal.SIGKILL)


def test_an_agent_started_from_within_a_leftover_attempt_spares_what_it_runs_in(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    intent = {"t": "intent", "kernel": "k1", "at": 1, "runs": [[JOB, 1, [4]]]}
    host.state.mkdir(0o700)
    host.spool.write_text(spool_lines(intent))
    ended = host.logs.parent / "ended"
    command = f"sleep 60 & {sys.executable} -I -S {AGENT} --state {host.state} --socket {host.socket} --idle-ms 60000"
    environment = {"PATH": os.defpath, "ANYBATCH_ATTEMPT": f"ab-k1-{JOB}-4-1"}

    subprocess.run(["setsid", "sh", "-c", f"({command}; echo $? > {ended}; kill %1) &"], env=environment, check=True)
    until(lambda: ended.exists() and ended.read_text())

    assert ended.read_text() == "0\n"
    assert host.settle(4) == {4: (None, 2, "the agent was killed")}


def test_what_runs_on_without_any_record_is_ended_before_it_is_given_up(host: Host) -> None:
    left = orphan(f"ab-k1-{JOB}-4-1")
    host.start()

    assert host.settle(4) == {4: (None, 2, "the agent's record of it is gone")}
    assert not is_alive(left)


@pytest.mark.parametrize("damage", ["nonsense", "[]", '{"t":"report"}', '{"t":"intent","kernel":"k1","runs":[3]}'])
def test_what_a_damaged_spool_does_not_name_is_not_started_again(host: Host, damage: str) -> None:
    ended = {"t": "report", "seq": 1, "started": [], "exited": [[JOB, 1, [0], [4], [1], [2], 0, None, None]]}
    host.state.mkdir(0o700)
    host.spool.write_text(spool_lines(ended) + damage + "\n" + json.dumps({"t": "settled"}) + "\n")

    assert host.start() == 0

    assert host.settle(0, 1) == {0: (4, 0, None), 1: (None, 2, "the agent's record of it is gone")}


def test_a_kernel_id_cannot_leave_the_scratch_folder(host: Host) -> None:
    host.start()
    peer = host.connect()
    peer.send(host.hello(kernel="../../x"), {"t": "settle", "runs": [], "last": True})

    with pytest.raises(ConnectionError):
        peer.receive("settled")


@pytest.mark.parametrize("group", [[JOB, "1", None, 1, [0], None], [JOB, 1, None, 1, ["0"], None]])
def test_odd_numbers_cost_the_connection_only(host: Host, group: list[Any]) -> None:
    host.start()
    peer = host.ready()
    peer.send(spec("exit 0"), {"t": "launch", "groups": [group]})
    with pytest.raises(ConnectionError):
        peer.exits(1)

    host.ready().send({"t": "ping"})


def test_an_odd_spec_ends_its_attempt_only(host: Host) -> None:
    host.start()
    peer = host.ready()
    odd = {"t": "spec", "id": 2, "command": ["/bin/true", 3], "environment": {}}
    peer.send(odd, spec("exit 5"), launch(0, spec=2), launch(1))

    exits = peer.exits(2)

    assert exits[1] == (5, 0, None)
    assert exits[0][:2] == (None, 0)
    assert exits[0][2].startswith("CannotStartContainerError: ")


def test_a_scratch_folder_that_is_a_link_is_neither_emptied_nor_used(host: Host) -> None:
    precious = host.logs.parent / "precious"
    (precious / "ab-x").mkdir(parents=True)
    host.state.mkdir(0o700)
    (host.state / "scratch").symlink_to(precious)

    host.start()
    peer = host.ready()
    peer.send(spec("exit 0", scratch=True), launch(0))

    assert peer.exits(1)[0][0] is None
    assert [path.name for path in precious.iterdir()] == ["ab-x"]


def test_what_a_killed_agent_left_in_scratch_is_removed_but_not_what_it_links_to(host: Host) -> None:
    precious = host.logs.parent / "precious"
    precious.mkdir()
    (precious / "file").touch()
    left = host.state / "scratch" / "ab-k1-x-0-1"
    left.mkdir(parents=True)
    (left / "link").symlink_to(precious)

    host.start()

    until(lambda: not left.exists())
    assert (precious / "file").exists()


def test_only_a_socket_is_replaced_by_a_socket(host: Host) -> None:
    host.socket.parent.mkdir()
    host.socket.write_text("precious")

    assert host.start() != 0
    assert host.socket.read_text() == "precious"
    (host.state / "agent.lock").unlink()


def test_an_agent_that_ends_leaves_the_socket_of_another_alone(host: Host) -> None:
    host.start()
    agent = host.pid
    other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    other.bind(f"{host.socket}.other")
    os.replace(f"{host.socket}.other", host.socket)
    os.kill(agent, signal.SIGTERM)

    until(lambda: not is_alive(agent))
    assert host.socket.exists()
    other.close()


def test_a_start_that_a_processor_is_free_for_needs_no_other_thread_and_its_tree_ends_with_it(host: Host) -> None:
    host.start()
    peer = host.ready()
    left = host.logs.parent / "left"
    detached = f"setsid sh -c 'echo $$ > {left}; exec sleep 60' & while [ ! -s {left} ]; do sleep 0.01; done"
    peer.send(spec(f"case $AWS_BATCH_JOB_ARRAY_INDEX in 0);; 1) {detached};; 2) exec sleep 60;; esac"), launch(0))
    assert peer.exits(1) == {0: (0, 0, None)}  # the first one shows that it is quick

    peer.send(launch(2))
    until(Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text)
    peer.send(launch(1))
    assert peer.exits(1) == {1: (0, 0, None)}
    assert not is_alive(int(left.read_text()))

    peer.send({"t": "stop", "grace_ms": 60_000, "runs": [[JOB, 1, [2]]]})
    assert peer.exits(1) == {2: (128 + 15, 0, None)}


def test_a_child_that_hides_is_not_taken_for_another_attempts(host: Host) -> None:
    host.start()
    peer = host.ready()
    pid = host.logs.parent / "pid"
    hidden = f"env -i setsid sh -c 'echo $$ > {pid}; exec sleep 60' & while [ ! -s {pid} ]; do sleep 0.01; done"
    peer.send(spec("sleep 60", 2), launch(1, spec=2), spec(hidden), launch(0))
    assert peer.exits(1) == {0: (0, 0, None)}
    assert is_alive(int(pid.read_text()))

    peer.send({"t": "stop", "grace_ms": 60_000, "runs": [[JOB, 1, [1]]]})
    assert peer.exits(1) == {1: (128 + 15, 0, None)}
    until(lambda: not is_alive(int(pid.read_text())))


def test_an_attempt_holds_no_descriptor_but_its_own_three(host: Host) -> None:
    host.start()
    peer = host.ready()
    peer.send(spec("exec ls -l /proc/self/fd"), launch(0))
    assert peer.exits(1) == {0: (0, 0, None)}

    lines = (host.logs / JOB / "0-1.log").read_text().splitlines()[1:]
    shown = {line.split()[-3]: line.split()[-1] for line in lines}
    log = str(next(host.logs.glob(".anybatch-*")) / "1")  # moved to its log's place once it is not empty
    assert {name: shown[name] for name in "012"} == {"0": "/dev/null", "1": log, "2": log}
    assert [target for name, target in shown.items() if name not in "012"] == [
        target for target in shown.values() if target.startswith("/proc/")
    ]


def test_the_agent_keeps_no_descriptor_of_its_starter(host: Host) -> None:
    host.start()

    targets = {int(fd.name): os.readlink(fd) for fd in Path(f"/proc/{host.pid}/fd").iterdir()}

    assert (targets[0], targets[1], targets[2]) == ("/dev/null", "/dev/null", str(host.state / "agent.log"))
    files = {target for target in targets.values() if target.startswith("/")}
    files -= {"/dev/null", *(str(host.state / name) for name in ("agent.log", "agent.lock", "spool"))}
    assert {target for target in files if not target.startswith("/proc/")} == set()


def test_signals_that_the_starter_ignores_or_blocks_work_in_attempts(host: Host) -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    try:
        host.start()
    finally:
        signal.signal(signal.SIGQUIT, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    peer = host.ready()
    peer.send({"t": "spec", "id": 1, "command": ["grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"]}, launch(0))
    assert peer.exits(1) == {0: (0, 0, None)}

    masks = (host.logs / JOB / "0-1.log").read_text().split()[1::2]
    assert [int(mask, 16) & 0x7FFF_FFFF for mask in masks] == [0, 0]


def test_a_kernel_that_nobody_comes_back_to_takes_its_attempts_with_it(host: Host) -> None:
    host.start()
    agent = host.pid
    peer, pid = host.connect(), host.logs.parent / "pid"
    peer.send(host.hello(orphans_ms=100), {"t": "settle", "runs": [], "last": True})
    peer.send(spec(f"echo $$ > {pid}; exec sleep 60"), launch(0))
    until(lambda: pid.exists() and pid.read_text())

    peer.close()

    until(lambda: not is_alive(agent))
    assert not is_alive(int(pid.read_text()))


def test_it_works_on_the_oldest_python_that_it_promises(host: Host) -> None:
    python = next((str(path) for path in OLD_PYTHONS if path.exists()), None) or shutil.which("python3.8")
    if python is None or subprocess.run([python, "-c", ""], capture_output=True).returncode:
        pytest.skip(NEEDS_OLD_PYTHON)
    host.start(python=python)
    peer = host.ready()
    peer.send(spec("sleep 60", 2), launch(9, spec=2), spec("exit $AWS_BATCH_JOB_ARRAY_INDEX"), launch(*range(8)))
    assert peer.exits(8) == {index: (index, 0, None) for index in range(8)}
    peer.send({"t": "stop", "grace_ms": 60_000, "runs": [[JOB, 1, [9]]]})
    assert peer.exits(1) == {9: (128 + 15, 0, None)}

    peer.send({"t": "ack", "seq": 9}, launch(10, spec=2))
    while not any(10 in run[2] for run in peer.receive("report")["started"]):
        pass
    host.kill()
    host.start(python=python)
    assert host.settle(10) == {10: (None, 2, "the agent was killed")}
