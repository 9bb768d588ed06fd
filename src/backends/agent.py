"""The agent: runs attempts on one host for one kernel and environment, and outlives a killed kernel.

One file, standard library only, Python 3.8+, a single-threaded loop. Started with `python -I -S -X utf8
agent.py --state DIR --socket PATH`; it detaches once its socket listens (exit status 0; EXIT_LOCKED if
another agent holds DIR). It ends by itself when it has had neither attempts nor a connection for
`--idle-ms`, when DIR vanishes (its attempts are ended first), on SIGTERM, or by the message `shutdown`.

Protocol. A frame is a 4-byte big-endian length and that many bytes of JSON: an object whose "t" names it.
A job's attempts travel as runs, lists that may get further elements in a later minor version.

    to the agent
      hello     protocol [major, minor], kernel, environment {}, logs DIR, workdir DIR or null
      settle    runs [[job, number, [index]]], last bool: what the kernel believes to be in flight
      spec      id, command [], script, environment {}, timeout_ms, workdir, scratch; for this connection
      forget    ids: these specs are not used again
      launch    groups [[job, number, array size or null, spec id, [index], {index: [gpu]} or null]]
      stop      grace_ms, runs [[job, number, [index]]]
      ack       seq: exits up to this one are known for good and may be forgotten
      ping · shutdown (grace_ms: end everything, then exit)
    from the agent
      hello     protocol, build, boot, instance, pid, now_ms (its clock, which all its times are from)
      report    seq (of the last exit in it), started [[job, number, [index], [at_ms], [pid]]],
                exited [[job, number, [index], [code], [started_ms], [stopped_ms], kind, reason, status reason]]
      settled   absent runs: never started, so they may be launched
      pong · bye (reason; the connection ends, and the client must not come back)

After `settle` everything held is reported again, then `settled`, then news as it comes. Of two clients the
newer stays. What is reported was spooled before; an exit is reported again until it is acknowledged.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import heapq
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import deque
from typing import Any, Deque, Dict, Iterable, List, Optional, Set, Tuple

PROTOCOL = (1, 0)
FRAME_MAX = 8 << 20  # bytes: holds the largest script; batches are split far below it
EXIT_LOCKED = 75  # exit status: another agent holds the state directory
IDLE_MS = 30_000
TIMEOUT_GRACE_MS = 30_000  # between SIGTERM and SIGKILL when a timeout or a signal to the agent ends an attempt
TICK_MS = 5_000  # how often an idle agent looks whether its state directory is still there
GROUPS_MAX = 256  # jobs whose prepared environments are kept
BURST = 32  # attempts spawned before reaping and reporting have their turn again
REPORT_MAX = 2_000  # exits in one report, so that a frame stays far below FRAME_MAX
OUT_MAX = 32 << 20  # bytes waiting for a client that does not read, before it is cut off
STARTED_DELAY_MS = 4  # a start waits this long for an exit to be reported with: short attempts need one report
ENDING_POLL_MS = 10
LEFTOVERS_S = 5.0  # how long a new agent waits for what a killed one left to vanish
ENDING_MAX_MS = 5_000  # how long an exit waits for killed leftovers to vanish
SPOOL_COMPACT = 4 << 20  # bytes of spool from which it is rewritten to what still matters
LOG_MAX = 256 << 10  # bytes of the agent's own log; one older file of that size is kept
REASON_MAX = 255  # characters, as AWS has it

EXITED, TIMED_OUT, LOST = 0, 1, 2  # kinds of end
PENDING, RUNNING, ENDING, ENDED = 0, 1, 2, 3  # states of an attempt
COULD_NOT_START = "Task failed to start"
DEFAULT_SIGNALS = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT]  # Python or nohup may ignore them
LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND
SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")  # job ids become names of folders

TICKS = os.sysconf("SC_CLK_TCK")  # per second, in /proc/PID/stat

Key = Tuple[str, int, int]  # job id, index, attempt number
encode = json.JSONEncoder(separators=(",", ":")).encode


class StartError(Exception):
    """An attempt could not be started; the message is the reason that users read."""


class ProtocolError(Exception):
    """The client broke the protocol; its connection is closed."""


# ---- the machine ----


def boot_id() -> str:
    """Names this boot of the machine; "unknown" never equals another boot by accident on Linux."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    try:
        return subprocess.check_output(["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], timeout=5).decode().strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def become_subreaper() -> None:
    """Have orphans of attempts re-parented to the agent (Linux), so that none of a tree gets away."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def process_name(pid: int) -> Optional[str]:
    """The ANYBATCH_ATTEMPT of a process; None if it has none, is gone, or there is no /proc."""
    with contextlib.suppress(OSError), open("/proc/%d/environ" % pid, "rb") as file:
        for item in file.read().split(b"\0"):
            if item.startswith(b"ANYBATCH_ATTEMPT="):
                return os.fsdecode(item[17:])
    return None


class Processes:
    """All live processes as /proc shows them now (none where there is no /proc)."""

    def __init__(self) -> None:
        self.children: Dict[int, List[int]] = {}
        self.group: Dict[int, int] = {}
        self.started_ms: Dict[int, float] = {}
        for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
            if not name.isdigit():
                continue
            try:
                with open("/proc/%s/stat" % name, "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if fields[0] in (b"Z", b"X"):
                continue
            pid, age_s = int(name), time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / TICKS
            self.children.setdefault(int(fields[1]), []).append(pid)
            self.group[pid] = int(fields[2])
            self.started_ms[pid] = (time.time() - age_s) * 1000

    def tree(self, roots: Iterable[int]) -> Set[int]:
        """`roots` and all their descendants."""
        found: Set[int] = set()
        waiting = list(roots)
        while waiting:
            pid = waiting.pop()
            if pid not in found:
                found.add(pid)
                waiting.extend(self.children.get(pid, ()))
        return found


def send_signal(pid: int, number: int) -> None:
    """Signal one process, if it is still there. Never a group, never everybody (-1), never init."""
    if pid > 1:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def send_group_signal(pid: int, number: int) -> None:
    """Signal the group that an attempt's main process leads.

    Raises:
        ProcessLookupError: there is none (also for an attempt that was never spawned, whose pid is -1).
    """
    if pid <= 1:
        raise ProcessLookupError
    os.killpg(pid, number)


def end_leftovers(left: Dict[str, Tuple[int, int]]) -> None:
    """SIGKILL what a killed agent's attempts have left, and wait (bounded) till it is gone.

    `left` gives each attempt's process id (-1: unknown) and start (epoch ms) by its name. A process belongs to
    one if its environment names it, if id and start (within two seconds) are its, or if it descends from such.
    """
    until = time.monotonic() + LEFTOVERS_S
    while time.monotonic() < until:
        now = Processes()
        roots = {pid for pid in now.group if process_name(pid) in left}
        roots.update(pid for pid, at in left.values() if pid in now.started_ms and abs(now.started_ms[pid] - at) < 2_000)
        found = now.tree(roots) - {os.getpid()}
        if not found:
            return
        for pid in found:
            send_signal(pid, signal.SIGKILL)
        time.sleep(0.01)


class Trouble:
    """The agent's own log: a file of bounded size; also where its stderr goes."""

    def __init__(self, path: str) -> None:
        self.path = path

    def write(self, text: str) -> None:
        line = "%s %d %s\n" % (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), os.getpid(), text)
        try:
            if os.path.exists(self.path) and os.path.getsize(self.path) > LOG_MAX:
                os.replace(self.path, self.path + ".1")
            with open(self.path, "a", errors="backslashreplace") as file:
                file.write(line[: LOG_MAX // 4])
        except OSError:
            pass  # a full disk must not end the agent


# ---- the spool ----


class Spool:
    """An append-only file of JSON lines that a killed agent's successor reads.

    Lines: `spool` (first: boot, settled, seq), `intent` (about to be spawned: kernel, runs), the reports
    as they were sent, `ack`, `settled`. A torn last line is dropped. Nothing is synced: a machine that
    goes down takes its attempts with it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = -1
        self.size = 0
        self.compact_at = SPOOL_COMPACT

    def read(self) -> List[Dict[str, Any]]:
        """All records up to the first torn or damaged one."""
        try:
            with open(self.path, "rb") as file:
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        records = []
        for line in lines:
            try:
                record = json.loads(line)
                record["t"]
            except (ValueError, TypeError, KeyError):
                break
            records.append(record)
        return records

    def rewrite(self, lines: Iterable[str]) -> None:
        """Replace the whole file."""
        fresh = self.path + ".new"
        data = "".join(line + "\n" for line in lines).encode()
        with open(fresh, "wb") as file:
            file.write(data)
        os.replace(fresh, self.path)
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self.size = len(data)
        self.compact_at = max(SPOOL_COMPACT, 2 * self.size)

    def append(self, line: str) -> None:
        """Write one line whole, or raise OSError and leave the file as it was."""
        data = line.encode() + b"\n"
        try:
            written = os.write(self.fd, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self.fd, self.size)
            raise
        self.size += written


# ---- attempts ----


class Spec:
    """What the attempts of a job share."""

    __slots__ = ("command", "environment", "program", "scratch", "script", "timeout_ms", "workdir")

    def __init__(self, message: Dict[str, Any], base: Dict[str, str]) -> None:
        self.command: List[str] = message["command"]
        self.script: Optional[str] = message.get("script")
        self.environment = dict(base, **message.get("environment", {}))
        self.timeout_ms: Optional[int] = message.get("timeout_ms")
        self.workdir: Optional[str] = message.get("workdir")
        self.scratch: bool = message.get("scratch", False)
        self.program: Optional[str] = None

    def find_program(self, workdir: str, scripts: str) -> str:
        """The file to execute, searched with the attempt's own PATH; kept once found.

        Raises:
            StartError: there is none.
            OSError: the script cannot be written.
        """
        if self.program is not None:
            return self.program
        if self.script is not None:
            self.program = write_script(self.script, scripts)
            return self.program
        if not self.command or not self.command[0]:
            raise StartError("CannotStartContainerError: the command is empty")
        name = self.command[0]
        if "/" in name:
            return os.path.join(workdir, name)
        seen = None
        for folder in self.environment.get("PATH", os.defpath).split(os.pathsep):
            path = os.path.join(workdir, folder, name)
            if os.path.isfile(path):
                if os.access(path, os.X_OK):
                    if os.path.isabs(folder):
                        self.program = path
                    return path
                seen = path
        if seen is not None:
            raise StartError("CannotStartContainerError: command %r: %s is not executable" % (name, seen))
        raise StartError("CannotStartContainerError: command %r not found in PATH" % name)

    def arguments(self, program: str) -> List[str]:
        return self.command if self.script is None else [program, *self.command]


def write_script(text: str, folder: str) -> str:
    """Write a script once per content; return its path."""
    data = os.fsencode(text)
    path = os.path.join(folder, hashlib.sha256(data).hexdigest()[:32])
    if not os.path.exists(path):
        os.makedirs(folder, 0o700, exist_ok=True)
        fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700)
        with open(fd, "wb") as file:
            file.write(data)
        os.replace(path + ".new", path)
    return path


class Group:
    """A run of attempts as they were launched: all of them share this."""

    __slots__ = ("array_size", "environment", "gpus", "job", "kernel", "log_prefix", "number", "spec", "workdir")

    def __init__(self, kernel: str, job: str, number: int) -> None:
        self.kernel = kernel
        self.job = job
        self.number = number
        self.array_size: Optional[int] = None
        self.gpus: Dict[str, List[int]] = {}
        self.spec: Optional[Spec] = None
        self.environment: Dict[str, str] = {}
        self.workdir = "/"
        self.log_prefix = ""

    def variables(self, index: int, name: str) -> Dict[str, str]:
        """The environment of one attempt. Without GPUs it is one dict for all, changed in place."""
        environment = self.environment
        environment["ANYBATCH_ATTEMPT"] = name
        if self.array_size is not None:
            environment["AWS_BATCH_JOB_ID"] = "%s:%d" % (self.job, index)
            environment["AWS_BATCH_JOB_ARRAY_INDEX"] = str(index)
        devices = self.gpus.get(str(index)) if self.gpus else None
        if devices:
            environment = dict(environment)
            environment["CUDA_VISIBLE_DEVICES"] = environment["NVIDIA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
        return environment


class Attempt:
    """One attempt that the agent holds, from its launch until its exit is acknowledged."""

    __slots__ = (
        "group", "index", "state", "pid", "started_ms", "stopped_ms", "code", "kind", "reason", "status", "stop_at_ms",
    )  # fmt: skip

    def __init__(self, group: Group, index: int) -> None:
        self.group = group
        self.index = index
        self.state = PENDING
        self.pid = -1  # none; send_signal and send_group_signal refuse it
        self.started_ms = 0
        self.stopped_ms = 0
        self.code: Optional[int] = None
        self.kind = EXITED
        self.reason: Optional[str] = None
        self.status: Optional[str] = None
        self.stop_at_ms: Optional[int] = None  # when SIGKILL is due, once it is being stopped

    @property
    def key(self) -> Key:
        return (self.group.job, self.index, self.group.number)

    @property
    def name(self) -> str:
        return "ab-%s-%s-%d-%d" % (self.group.kernel, self.group.job, self.index, self.group.number)


def report_line(seq: int, started: Iterable[Attempt], exited: Iterable[Attempt]) -> str:
    """A report, as it is spooled and as it is sent."""
    starts: Dict[Any, List[Any]] = {}
    for one in started:
        group = one.group
        run = starts.get(group)
        if run is None:
            run = starts[group] = [group.job, group.number, [], [], []]
        run[2].append(one.index)
        run[3].append(one.started_ms)
        run[4].append(one.pid)
    ends: Dict[Any, List[Any]] = {}
    for one in exited:
        group = one.group
        sort = (group.job, group.number, one.kind, one.reason, one.status)
        run = ends.get(sort)
        if run is None:
            run = ends[sort] = [group.job, group.number, [], [], [], [], one.kind, one.reason, one.status]
        run[2].append(one.index)
        run[3].append(one.code)
        run[4].append(one.started_ms)
        run[5].append(one.stopped_ms)
    return encode({"t": "report", "seq": seq, "started": list(starts.values()), "exited": list(ends.values())})


def spawn(program: str, arguments: List[str], environment: Dict[str, str], log: str) -> int:
    """Start a program in a session of its own, its output appended to `log`; return its process id."""
    actions = ((os.POSIX_SPAWN_OPEN, 1, log, LOG_FLAGS, 0o600), (os.POSIX_SPAWN_DUP2, 1, 2))
    try:
        return os.posix_spawn(
            program, arguments, environment, file_actions=actions, setsid=True, setsigdef=DEFAULT_SIGNALS
        )
    except NotImplementedError:  # an old C library
        with open(os.open(log, LOG_FLAGS, 0o600), "ab") as out:
            child = subprocess.Popen(
                arguments, executable=program, env=environment, stdout=out, stderr=out, start_new_session=True
            )
        child.returncode = 0  # the agent's own loop reaps it
        return child.pid


# ---- the connection ----


class Connection:
    """One client's connection: frames in, frames out."""

    def __init__(self, agent: Agent, sock: socket.socket) -> None:
        self.agent = agent
        self.sock = sock
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.greeted = False
        self.ready = False  # it has settled: reports may be sent
        self.specs: Dict[int, Spec] = {}
        self.groups: Dict[Any, Group] = {}  # those without GPUs, to use again for the same job
        sock.setblocking(False)
        agent.selector.register(sock, selectors.EVENT_READ, self.on_event)

    def on_event(self) -> None:
        try:
            self._read()
        except ConnectionError:
            self.close()
        except Exception:
            self.agent.trouble.write("connection closed: " + traceback.format_exc())
            self.close()
        if self.outbox:
            self.flush()

    def _read(self) -> None:
        try:
            data = self.sock.recv(1 << 18)
        except (BlockingIOError, InterruptedError):
            return
        if not data:
            raise ConnectionResetError("closed by the client")
        inbox = self.inbox
        inbox += data
        start = 0
        while len(inbox) - start >= 4:
            stop = start + 4 + int.from_bytes(inbox[start : start + 4], "big")
            if stop - start > FRAME_MAX:
                raise ProtocolError("a frame of %d bytes" % (stop - start))
            if len(inbox) < stop:
                break
            self._handle(bytes(inbox[start + 4 : stop]))
            start = stop
        del inbox[:start]

    def _handle(self, payload: bytes) -> None:
        try:
            message = json.loads(payload)
            kind = message["t"]
            if not self.greeted and kind != "hello":
                raise ProtocolError("the first message is not hello")
            handler = getattr(self.agent, "on_" + kind, None)
            if handler is None:
                raise ProtocolError("unknown message %r" % kind)
            handler(self, message)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProtocolError("a malformed message: %r" % error) from error

    def send(self, line: str) -> None:
        """Queue a frame and send what the socket takes."""
        data = line.encode()
        self.outbox += len(data).to_bytes(4, "big") + data
        self.flush()

    def flush(self) -> None:
        try:
            del self.outbox[: self.sock.send(self.outbox)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()
            return
        if len(self.outbox) > OUT_MAX:
            self.agent.trouble.write("connection closed: the client does not read")
            self.close()
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.outbox else 0)
        if self.agent.selector.get_key(self.sock).events != events:
            self.agent.selector.modify(self.sock, events, self.on_event)

    def close(self, wait: bool = False) -> None:
        """Close; with `wait` send what is queued first, for at most a second."""
        if self.sock.fileno() >= 0:
            if wait:
                with contextlib.suppress(OSError):
                    self.sock.settimeout(1)
                    self.sock.sendall(self.outbox)
            self.agent.selector.unregister(self.sock)
            self.sock.close()
        self.outbox.clear()
        self.agent.disconnected(self)


# ---- the agent ----


class Agent:
    """The loop. Each turn: messages and signals in, then reaping, timers, a burst of spawns, one report out."""

    def __init__(self, state: str, socket_path: str, listener: socket.socket, lock: int, idle_ms: int) -> None:
        self.state = state
        self.socket_path = socket_path
        self.listener = listener
        self.lock = lock
        self.idle_ms = idle_ms
        self.scripts = os.path.join(state, "scripts")
        self.trouble = Trouble(os.path.join(state, "agent.log"))
        self.spool = Spool(os.path.join(state, "spool"))
        self.settled = False  # the spool has seen all launches since this boot, so what it does not name never ran
        self.seq = 0
        self.instance = os.urandom(8).hex()
        self.boot = boot_id()
        with open(os.path.abspath(__file__), "rb") as file:
            self.build = hashlib.sha256(file.read()).hexdigest()[:16]
        self.anchor_ns = time.time_ns() - time.monotonic_ns()

        self.attempts: Dict[Key, Attempt] = {}
        self.pending: Deque[Attempt] = deque()
        self.running: Dict[int, Attempt] = {}
        self.ending: List[Attempt] = []  # main process ended, killed leftovers not gone yet
        self.strays: Dict[int, Optional[Attempt]] = {}  # re-parented children, with the attempt they belong to
        self.helpers: Set[int] = set()
        self.timers: List[Tuple[int, int, Attempt]] = []
        self.timer_count = 0
        self.new_started: List[Attempt] = []
        self.new_exited: List[Attempt] = []
        self.unacked: Deque[Tuple[int, List[Attempt]]] = deque()
        self.entered: Optional[Group] = None  # whose working directory the agent is in

        self.kernel = ""
        self.base_environment: Dict[str, str] = {}
        self.logs = state
        self.workdir: Optional[str] = None
        self.absent: List[Any] = []
        self.client: Optional[Connection] = None
        self.connections: Set[Connection] = set()
        self.closing = False
        self.terminated = False
        self.idle_since_ms = self.now_ms()
        self.next_tick_ms = 0

    def now_ms(self) -> int:
        return (self.anchor_ns + time.monotonic_ns()) // 1_000_000

    # -- life --

    def recover(self) -> None:
        """Take over what a former agent left in the spool: its unacknowledged exits, and its lost attempts."""
        records = self.spool.read()
        head = records[0] if records and records[0]["t"] == "spool" else {}
        same_boot = head.get("boot") == self.boot
        self.seq = head.get("seq", 0)
        self.settled = bool(head.get("settled")) and same_boot
        live: Dict[Key, Attempt] = {}
        for record in records[1:]:
            self._recover_record(record, live, same_boot)
        if same_boot and live:
            end_leftovers({one.name: (one.pid, one.started_ms) for one in live.values()})
        for one in live.values():
            one.kind, one.reason = LOST, "the agent was killed" if same_boot else "the machine was restarted"
            self._ended(one)
        self._number(self.new_exited)
        self.new_exited = []
        self._compact()

    def _recover_record(self, record: Dict[str, Any], live: Dict[Key, Attempt], same_boot: bool) -> None:
        if record["t"] == "intent":
            for job, number, indexes in record["runs"]:
                group = Group(record["kernel"], job, number)
                live.update({(job, index, number): Attempt(group, index) for index in indexes})
        elif record["t"] == "report":
            self._recover_report(record, live)
        elif record["t"] == "ack":
            self._acknowledge(record["seq"])
        elif record["t"] == "settled":
            self.settled = same_boot

    def _recover_report(self, record: Dict[str, Any], live: Dict[Key, Attempt]) -> None:
        for run in record["started"]:
            job, number, indexes, at_ms, pids = run[:5]
            for index, at, pid in zip(indexes, at_ms, pids):
                one = live.get((job, index, number))
                if one is not None:
                    one.started_ms, one.pid = at, pid
        ended = []
        for run in record["exited"]:
            job, number, indexes, codes, started, stopped, kind, reason, status = run[:9]
            for index, code, start, stop in zip(indexes, codes, started, stopped):
                one = live.pop((job, index, number), None) or Attempt(Group("", job, number), index)
                one.code, one.started_ms, one.stopped_ms = code, start, stop
                one.kind, one.reason, one.status, one.state = kind, reason, status, ENDED
                self.attempts[one.key] = one
                ended.append(one)
        if ended:
            self.seq = record["seq"]
            self.unacked.append((self.seq, ended))

    def prepare(self) -> None:
        """What must happen in the detached process: signals, the loop's descriptors, the lock's content."""
        become_subreaper()
        self.selector = selectors.DefaultSelector()
        wake_read, wake_write = os.pipe()
        for fd in (wake_read, wake_write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)  # a handler, as what is ignored stays so in attempts
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self.selector.register(wake_read, selectors.EVENT_READ, lambda: os.read(wake_read, 1 << 16))
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        try:
            self.children_fd = os.open("/proc/self/task/%d/children" % os.getpid(), os.O_RDONLY)
        except OSError:
            self.children_fd = -1  # strays in sessions of their own are not found here
        about = {"pid": os.getpid(), "socket": self.socket_path, "instance": self.instance, "protocol": PROTOCOL}
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, encode(about).encode(), 0)
        folder = os.path.join(self.state, "scratch")
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            self._remove(os.path.join(folder, name))

    def _on_sigterm(self, *_: Any) -> None:
        self.terminated = True

    def run(self) -> None:
        """Turn until there is nothing left to do."""
        failures = 0
        while not self._finished():
            try:
                for key, _ in self.selector.select(self._wait_s()):
                    key.data()
                self._turn()
                failures = 0
            except Exception:
                failures += 1
                self.trouble.write(traceback.format_exc())
                if failures > 100:
                    raise
                time.sleep(0.1)
        for connection in list(self.connections):
            connection.close(wait=True)

    def _finished(self) -> bool:
        if self.running or self.pending or self.ending:
            self.idle_since_ms = self.now_ms()
            return False
        if self.closing:
            return True
        if self.connections:
            self.idle_since_ms = self.now_ms()
            return False
        return self.now_ms() - self.idle_since_ms >= self.idle_ms

    def _wait_s(self) -> float:
        if self.pending:
            return 0.0
        if self.ending:
            return ENDING_POLL_MS / 1000
        until = self.next_tick_ms
        if self.new_started:
            until = min(until, self.new_started[0].started_ms + STARTED_DELAY_MS - 1)
        if self.timers:
            until = min(until, self.timers[0][0])
        if not self.running and not self.connections:
            until = min(until, self.idle_since_ms + self.idle_ms)
        return max(0, until - self.now_ms() + 1) / 1000

    def _turn(self) -> None:
        if self.terminated and not self.closing:
            self.shut_down(TIMEOUT_GRACE_MS, "the agent was told to end")
        self._reap()
        self._fire_timers()
        if self.pending:
            self._start_burst()
        if self.new_exited or (self.new_started and self._starts_due()):
            self._flush()

    def _starts_due(self) -> bool:
        return len(self.new_started) > BURST or self.new_started[0].started_ms + STARTED_DELAY_MS <= self.now_ms()

    def _tick(self) -> None:
        """Now and then: is the state directory still ours, and the socket still there?"""
        self.next_tick_ms = self.now_ms() + TICK_MS
        self._kill_strays([])
        try:
            there = os.stat(os.path.join(self.state, "agent.lock")).st_ino == os.fstat(self.lock).st_ino
        except OSError:
            there = False
        if not there and not self.closing:
            self.trouble.write("the state directory is gone")
            self.shut_down(0, "the agent's state directory was removed")
        elif not os.path.exists(self.socket_path) and not self.closing:
            self.selector.unregister(self.listener)
            self.listener.close()
            self.listener = listen(self.socket_path)
            self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        self.entered = None  # a folder may have been removed and made again
        if not self.running:
            os.chdir("/")  # hold no file system

    def shut_down(self, grace_ms: int, lost: Optional[str] = None) -> None:
        """End every attempt, as lost if that is not the kernel's wish, then the agent."""
        self.closing = True
        while self.pending:  # never started: a later agent may
            self.attempts.pop(self.pending.popleft().key, None)
        for one in self.running.values():
            if lost is not None:
                one.kind, one.reason = LOST, lost
        self._stop(list(self.running.values()), grace_ms)

    # -- messages --

    def _accept(self) -> None:
        try:
            sock, _ = self.listener.accept()
        except OSError:
            return
        self.connections.add(Connection(self, sock))

    def disconnected(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if self.client is connection:
            self.client = None

    def on_hello(self, connection: Connection, message: Dict[str, Any]) -> None:
        about: Dict[str, Any] = {"t": "hello", "protocol": PROTOCOL, "build": self.build, "boot": self.boot}
        about.update(instance=self.instance, pid=os.getpid(), now_ms=self.now_ms())
        connection.send(encode(about))
        if message["protocol"][0] != PROTOCOL[0]:
            connection.send(encode({"t": "bye", "reason": "the agent speaks protocol %d.%d" % PROTOCOL}))
            raise ProtocolError("a client of protocol %r" % (message["protocol"],))
        if self.client is not None and self.client is not connection:
            self.client.send(encode({"t": "bye", "reason": "replaced by a newer connection"}))
            if self.client is not None:
                self.client.close()
        self.kernel, self.logs, self.workdir = message["kernel"], message["logs"], message.get("workdir")
        self.base_environment = message["environment"]
        self.absent = []
        self.client = connection
        connection.greeted = True

    def on_settle(self, connection: Connection, message: Dict[str, Any]) -> None:
        """Compare what the kernel believes with what is held; at the last part report everything held."""
        for job, number, indexes in message["runs"]:
            missing = [index for index in indexes if (job, index, number) not in self.attempts]
            if missing and self.settled:
                self.absent.append([job, number, missing])
                continue
            for index in missing:  # this spool has not seen all launches: they may have run
                one = Attempt(Group(self.kernel, job, number), index)
                one.kind, one.reason = LOST, "the agent's record of it is gone"
                self._ended(one)
        if message["last"]:
            if self.new_exited:
                self._flush()
            if not self.settled:
                self.settled = True
                self._note(encode({"t": "settled"}))
            connection.ready = True
            self._report_held(connection)
            connection.send(encode({"t": "settled", "absent": self.absent}))

    def _report_held(self, connection: Connection) -> None:
        running = [one for one in self.attempts.values() if one.state in (RUNNING, ENDING)]
        for start in range(0, len(running), REPORT_MAX):
            connection.send(report_line(0, running[start : start + REPORT_MAX], ()))
        for seq, ended in self.unacked:
            connection.send(report_line(seq, (), ended))

    def on_spec(self, connection: Connection, message: Dict[str, Any]) -> None:
        connection.specs[message["id"]] = Spec(message, self.base_environment)

    def on_forget(self, connection: Connection, message: Dict[str, Any]) -> None:
        for number in message["ids"]:
            connection.specs.pop(number, None)

    def on_launch(self, connection: Connection, message: Dict[str, Any]) -> None:
        """Queue what is not known yet; of what is known, tell the state again. An agent that ends takes nothing."""
        if self.closing:
            return
        for job, number, array_size, spec, indexes, gpus in message["groups"]:
            group = connection.groups.get((job, number, spec))
            if group is None or gpus:
                group = self._group(job, number, array_size, connection.specs[spec], gpus)
                if len(connection.groups) >= GROUPS_MAX:
                    connection.groups.clear()
                if not gpus:
                    connection.groups[(job, number, spec)] = group
            for index in indexes:
                known = self.attempts.get((job, index, number))
                if known is None:
                    one = self.attempts[(job, index, number)] = Attempt(group, index)
                    self.pending.append(one)
                elif known.state == ENDED and known not in self.new_exited:
                    connection.send(report_line(self.seq, (), (known,)))
                elif known.state in (RUNNING, ENDING):
                    connection.send(report_line(0, (known,), ()))

    def _group(self, job: str, number: int, array_size: Optional[int], spec: Spec, gpus: Any) -> Group:
        if SAFE_ID.fullmatch(job) is None:
            raise ProtocolError("job id %r" % job)
        group = Group(self.kernel, job, number)
        group.spec, group.array_size, group.gpus = spec, array_size, gpus or {}
        group.environment = dict(spec.environment, AWS_BATCH_JOB_ATTEMPT=str(number))
        if array_size is None:
            group.environment["AWS_BATCH_JOB_ID"] = job
        else:
            group.environment["AWS_BATCH_JOB_ARRAY_SIZE"] = str(array_size)
        group.workdir = spec.workdir or self.workdir or os.path.join(self.state, "jobs", job)
        group.log_prefix = os.path.join(self.logs, job, "")
        return group

    def on_stop(self, _: Connection, message: Dict[str, Any]) -> None:
        attempts = self.attempts
        named = ((job, index, number) for job, number, indexes in message["runs"] for index in indexes)
        self._stop([attempts[key] for key in named if key in attempts], message["grace_ms"])

    def on_ack(self, _: Connection, message: Dict[str, Any]) -> None:
        self._acknowledge(message["seq"])
        self._note(encode({"t": "ack", "seq": message["seq"]}))
        if self.spool.size > self.spool.compact_at or (not self.attempts and self.spool.size > 1 << 16):
            self._compact()

    def _acknowledge(self, seq: int) -> None:
        while self.unacked and self.unacked[0][0] <= seq:
            for one in self.unacked.popleft()[1]:
                self.attempts.pop(one.key, None)

    def on_ping(self, connection: Connection, _: Dict[str, Any]) -> None:
        connection.send(encode({"t": "pong", "now_ms": self.now_ms()}))

    def on_shutdown(self, _: Connection, message: Dict[str, Any]) -> None:
        self.shut_down(message["grace_ms"])

    # -- starting --

    def _start_burst(self) -> None:
        """Spawn the next pending attempts, after their intent is on disk."""
        burst: List[Attempt] = []
        while self.pending and len(burst) < BURST:
            one = self.pending.popleft()
            if one.state == PENDING:
                burst.append(one)
        if not burst:
            return
        runs: Dict[Group, List[int]] = {}
        for one in burst:
            runs.setdefault(one.group, []).append(one.index)
        listed = [[group.job, group.number, indexes] for group, indexes in runs.items()]
        try:
            self.spool.append(encode({"t": "intent", "kernel": self.kernel, "runs": listed}))
        except OSError as error:
            for one in burst:
                self._not_started(one, "CannotStartContainerError: the agent's spool: %s" % error.strerror)
            return
        for one in burst:
            self._start(one)

    def _start(self, one: Attempt) -> None:
        group, spec = one.group, one.group.spec
        assert spec is not None
        name = one.name
        log = "%s%d-%d.log" % (group.log_prefix, one.index, group.number)
        program = None
        try:
            if group is not self.entered:
                self._enter(group)
            program = spec.program or spec.find_program(group.workdir, self.scripts)
            environment = group.variables(one.index, name)
            if spec.scratch:
                environment = self._with_scratch(environment, name)
            one.started_ms = self.now_ms()
            one.pid = pid = spawn(program, spec.arguments(program), environment, log)
        except StartError as error:
            self._not_started(one, str(error))
        except (OSError, ValueError) as error:
            spec.program = None
            self._not_started(one, self._diagnose(error, program, log))
        else:
            one.state = RUNNING
            self.running[pid] = one
            self.new_started.append(one)
            if spec.timeout_ms is not None:
                self._at(one.started_ms + spec.timeout_ms, one)

    def _enter(self, group: Group) -> None:
        """Make a group's folders, and go to its working directory, which posix_spawn passes on."""
        os.makedirs(group.log_prefix, exist_ok=True)
        assert group.spec is not None
        try:
            if not (group.spec.workdir or self.workdir):
                os.makedirs(group.workdir, 0o700, exist_ok=True)
            os.chdir(group.workdir)
        except OSError as error:
            what = "working directory %r: %s" % (group.workdir, error.strerror)
            raise StartError("CannotStartContainerError: %s" % what) from error
        self.entered = group

    def _with_scratch(self, environment: Dict[str, str], name: str) -> Dict[str, str]:
        folder = os.path.join(self.state, "scratch", name)
        os.makedirs(folder, 0o700, exist_ok=True)
        return dict(environment, ANYBATCH_SCRATCH=folder, TMPDIR=folder)

    def _diagnose(self, error: Exception, program: Optional[str], log: str) -> str:
        """Say which of the things that a spawn touches is at fault."""
        what, why = repr(program), str(error)
        if isinstance(error, OSError):
            why = error.strerror or why
            try:
                os.close(os.open(log, LOG_FLAGS, 0o600))
            except OSError as log_error:
                what, why = "log file %r" % log, str(log_error.strerror)
                self.entered = None  # its folder may be gone: make it again for the next
            else:
                if error.errno == errno.ENOENT and program and os.path.exists(program):
                    why = "the interpreter that its first line names is missing"
                elif error.errno == errno.ENOEXEC:
                    why = "not a program, and no script with a #! line"
        return "CannotStartContainerError: %s: %s" % (what, why)

    def _not_started(self, one: Attempt, reason: str) -> None:
        one.reason, one.status = reason[:REASON_MAX], COULD_NOT_START
        self._ended(one)

    def _ended(self, one: Attempt) -> None:
        """The attempt's end is known: report it in this turn."""
        if not one.stopped_ms:
            one.stopped_ms = self.now_ms()
        one.state = ENDED
        self.attempts[one.key] = one
        self.new_exited.append(one)
        if one.group.spec is not None and one.group.spec.scratch and one.pid > 0:
            self._remove(os.path.join(self.state, "scratch", one.name))

    def _remove(self, path: str) -> None:
        """Remove a folder without holding up the loop."""
        try:
            self.helpers.add(os.posix_spawn("/bin/rm", ["rm", "-rf", "--", path], {}))
        except (OSError, AttributeError) as error:
            self.trouble.write("cannot remove %s: %s" % (path, error))

    # -- ending --

    def _reap(self) -> None:
        """Collect ended children; a main process's end ends what is left of its tree."""
        ended: List[Attempt] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            one = self.running.pop(pid, None)
            if one is None:
                self.strays.pop(pid, None)
                self.helpers.discard(pid)
                continue
            one.code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            one.stopped_ms = self.now_ms()
            one.state = ENDING
            ended.append(one)
        if ended or self.ending:
            self._end_trees(ended)

    def _end_trees(self, ended: List[Attempt]) -> None:
        """Kill what is left of trees without a main process; report those of which nothing is left.

        The numbers are safe: ids are given out in turn, so one that was reaped, or whose group was seen
        alive a few milliseconds ago, is not in use again yet.
        """
        alive = self._kill_strays(ended)
        still: List[Attempt] = []
        for one in self.ending + ended if self.ending else ended:
            try:
                send_group_signal(one.pid, signal.SIGKILL)
            except ProcessLookupError:
                if one not in alive:
                    self._ended(one)
                    continue
            except PermissionError:
                pass  # zombies of it only (macOS), or another user's process
            if self.now_ms() - one.stopped_ms > ENDING_MAX_MS:
                self.trouble.write("%s: processes survive SIGKILL" % one.name)
                self._ended(one)
            else:
                still.append(one)
        self.ending = still

    def _kill_strays(self, ended: List[Attempt]) -> Set[Attempt]:
        """SIGKILL re-parented children whose attempt has ended; return the attempts that had some."""
        if self.children_fd < 0:
            return set()
        children = self._children()
        if len(children) == len(self.running) + len(self.helpers):
            return set()
        self._adopt(children, ended)
        alive: Set[Attempt] = set()
        for pid, owner in self.strays.items():
            if (owner is None and not self.running) or (owner is not None and owner.state != RUNNING):
                send_signal(pid, signal.SIGKILL)
                if owner is not None:
                    alive.add(owner)
        return alive

    def _children(self) -> List[bytes]:
        data = chunk = os.pread(self.children_fd, 1 << 16, 0)
        while len(chunk) > 2_048:  # the kernel gives a page at a time
            chunk = os.pread(self.children_fd, 1 << 16, len(data))
            data += chunk
        return data.split()

    def _adopt(self, children: Iterable[Any], ended: List[Attempt]) -> None:
        """Find out whose the children are that the agent has not spawned.

        One that hides its attempt (no environment to read) lives until nothing runs any more.
        """
        names: Optional[Dict[str, Attempt]] = None
        for pid in set(map(int, children)).difference(self.running, self.strays, self.helpers):
            if names is None:
                names = {one.name: one for group in (self.running.values(), ended, self.ending) for one in group}
            name = process_name(pid)
            self.strays[pid] = names.get(name, GONE) if name is not None else None

    def _stop(self, attempts: List[Attempt], grace_ms: int) -> None:
        """SIGTERM to whole trees now, SIGKILL after the grace. What is stopped already keeps the earlier end."""
        kill_at = self.now_ms() + grace_ms
        fresh: List[Attempt] = []
        for one in attempts:
            if one.state == PENDING:
                self._ended(one)
            elif one.state == RUNNING and (one.stop_at_ms is None or one.stop_at_ms > kill_at):
                if one.stop_at_ms is None:
                    fresh.append(one)
                one.stop_at_ms = kill_at
                self._at(kill_at, one)
        if fresh:
            self._terminate(fresh)
            if grace_ms <= 0:
                self._fire_timers()

    def _terminate(self, attempts: List[Attempt]) -> None:
        processes = Processes()
        if self.children_fd >= 0:
            self._adopt(self._children(), [])
        for one in attempts:
            pid = one.pid
            roots = [pid] + [stray for stray, owner in self.strays.items() if owner is one]
            others = [other for other in processes.tree(roots) if processes.group.get(other) != pid]
            with contextlib.suppress(OSError):
                send_group_signal(pid, signal.SIGTERM)
            for other in others:
                if other != pid:
                    send_signal(other, signal.SIGTERM)

    def _at(self, when_ms: int, one: Attempt) -> None:
        self.timer_count += 1
        heapq.heappush(self.timers, (when_ms, self.timer_count, one))

    def _fire_timers(self) -> None:
        now = self.now_ms()
        late: List[Attempt] = []
        while self.timers and self.timers[0][0] <= now:
            one = heapq.heappop(self.timers)[2]
            if one.state != RUNNING:
                continue
            if one.stop_at_ms is None:
                one.kind = TIMED_OUT
                late.append(one)
            elif one.stop_at_ms <= now:
                with contextlib.suppress(OSError):
                    send_group_signal(one.pid, signal.SIGKILL)
        if late:
            self._stop(late, TIMEOUT_GRACE_MS)
        if len(self.timers) > 1_000 + 4 * len(self.running):  # timeouts of attempts that ended long before them
            self.timers = [timer for timer in self.timers if timer[2].state == RUNNING]
            heapq.heapify(self.timers)
        if now >= self.next_tick_ms:
            self._tick()

    # -- reporting --

    def _flush(self) -> None:
        """Spool and send this turn's starts and exits."""
        started, exited = self.new_started, self.new_exited
        self.new_started, self.new_exited = [], []
        for start in range(0, max(len(exited), 1), REPORT_MAX):
            part = exited[start : start + REPORT_MAX]
            self._number(part)
            line = report_line(self.seq, started, part)
            started = []
            self._note(line)
            if self.client is not None and self.client.ready:
                self.client.send(line)

    def _number(self, exited: List[Attempt]) -> None:
        if exited:
            self.seq += len(exited)
            self.unacked.append((self.seq, exited))

    def _note(self, line: str) -> None:
        """Spool a line; without room for it go on: it is missed only if the agent is killed as well."""
        try:
            self.spool.append(line)
        except OSError as error:
            self.trouble.write("the spool: %s" % error)

    def _compact(self) -> None:
        """Rewrite the spool to what still matters."""
        if self.new_exited:
            self._flush()
        lines = [encode({"t": "spool", "version": 1, "boot": self.boot, "settled": self.settled, "seq": self.seq})]
        running = [one for one in self.attempts.values() if one.state in (RUNNING, ENDING)]
        for one in running:
            run = [one.group.job, one.group.number, [one.index]]
            lines.append(encode({"t": "intent", "kernel": one.group.kernel, "runs": [run]}))
        lines.append(report_line(0, running, ()))
        lines.extend(report_line(seq, (), ended) for seq, ended in self.unacked)
        self.spool.rewrite(lines)


GONE = Attempt(Group("", "", 0), 0)  # stands for an attempt that is not held any more
GONE.state = ENDED


# ---- starting the agent ----


def take_lock(state: str) -> Optional[int]:
    """The descriptor of the state directory's lock, None if another agent holds it."""
    fd = os.open(os.path.join(state, "agent.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def listen(path: str) -> socket.socket:
    """A listening socket that only this user can reach."""
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(8)
    listener.setblocking(False)
    return listener


def detach(trouble: Trouble) -> bool:
    """Fork; the child goes on in a session of its own without the starter's descriptors. True in the child."""
    if os.fork():
        return False
    os.setsid()
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    errors = os.open(trouble.path, LOG_FLAGS, 0o600)
    for fd, target in ((nothing, 0), (nothing, 1), (errors, 2)):
        os.dup2(fd, target)
    os.close(nothing)
    os.close(errors)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="anybatch's agent; started by its process backend")
    parser.add_argument("--state", required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--idle-ms", type=int, default=IDLE_MS)
    options = parser.parse_args()
    state = os.path.abspath(options.state)
    os.makedirs(state, 0o700, exist_ok=True)
    lock = take_lock(state)
    if lock is None:
        return EXIT_LOCKED
    path = os.path.abspath(options.socket)
    agent = Agent(state, path, listen(path), lock, options.idle_ms)
    agent.recover()
    if not detach(agent.trouble):
        os._exit(0)
    agent.prepare()
    try:
        agent.run()
    except BaseException:
        agent.trouble.write(traceback.format_exc())
        raise
    finally:
        if os.path.exists(path):
            os.unlink(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
