"""The agent: runs attempts on one host for one kernel and environment, and outlives a killed kernel.

One file, standard library only, Python 3.8+: a loop, and a few threads that only spawn. Started with `python
-I -S -X utf8 agent.py --state DIR --socket PATH`; it detaches once its socket listens (exit status 0; EXIT_LOCKED
if another agent holds DIR). It ends by itself when it has had neither attempts nor a connection for `--idle-ms`,
when DIR vanishes (its attempts are ended first), on SIGTERM, or by the message `shutdown`.

_agent_link.py describes the protocol.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import heapq
import json
import os
import queue
import re
import selectors
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterable, List, Optional, Set, Tuple

PROTOCOL = (1, 1)
FRAME_MAX = 8 << 20  # bytes: holds the largest script; batches are split far below it
EXIT_LOCKED = 75  # exit status: another agent holds the state directory
IDLE_MS = 30_000
FIRST_MS = 10_000  # however short that is set: for the first client to come
TIMEOUT_GRACE_MS = 30_000  # between SIGTERM and SIGKILL when a timeout or a signal to the agent ends an attempt
TICK_MS = 5_000  # how often an idle agent looks whether its state directory is still there
GROUPS_MAX = 256  # jobs whose prepared environments are kept
BURST = 32  # attempts handed to the spawning threads at once
SPAWNERS_MAX = 4  # threads; one for each processor, up to this
SPAWN_POLL_MS = 2
SLOW_NS = 2_500_000  # a start that takes longer waits for a processor or a disk
WARY = 48  # after such a start so many of the job are left to the threads
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # that it may use
NAP_S_EACH = 0.00025  # of rest before a turn, for each attempt that runs beyond the number of processors
NAP_S_MAX = 0.003
ALL = 1 << 30
REPORT_MAX = 2_000  # exits in one report, so that a frame stays far below FRAME_MAX
OUT_MAX = 32 << 20  # bytes waiting for a client that does not read, before it is cut off
EXITED_DELAY_MS = 16  # an exit waits this long to be reported with others, while there is enough to start till then
STARTED_DELAY_MS = 20  # a start waits this long for an exit to be reported with: short attempts need one report
ENDING_POLL_MS = 10
AGE_SLACK_MS = 50  # of a process's start: ticks are coarse
START_NEAR_MS = 5_000  # a process that a killed agent's record names began within so long of the record
LEFTOVERS_S = 5.0  # how long a new agent waits for what a killed one left to vanish
ENDING_MAX_MS = 5_000  # how long an exit waits for killed leftovers to vanish
SPOOL_COMPACT = 4 << 20  # bytes of spool from which it is rewritten to what still matters
LOG_MAX = 256 << 10  # bytes of the agent's own log; one older file of that size is kept
REASON_MAX = 255  # characters, as AWS has it
LOOK_MS = 200  # how often running attempts' logs and memory are looked at, if that costs less than 5 % of the time
OUTS_MAX = 256  # files for output that are used again: each costs the agent a descriptor
SLOT_KEPT = 4 << 20  # bytes of files in memory that a memory cgroup may hold when it is used again

EXITED, TIMED_OUT, LOST = 0, 1, 2  # kinds of end
PENDING, SPAWNING, RUNNING, ENDING, ENDED = 0, 1, 2, 3, 4  # states of an attempt
COULD_NOT_START = "Task failed to start"
OUT_OF_MEMORY = "OutOfMemoryError: Container killed due to memory usage"
CGROUP, WATCH, NOT_ENFORCED = "cgroup", "watch", "none"  # how memory limits are enforced
ENTER_AND_RUN = 'echo $$ >"$0" && exec "$@"'  # a shell's; $0 is a cgroup's list of processes
EMBEDDED_NULL = "CannotStartContainerError: an embedded null byte in the command or a variable"
RESTARTED = "the machine, or the container that the agent ran in, was restarted"
NEVER = 1 << 62
set_handler = sys.modules["_signal"].signal  # without signal.signal's enums: a fifth of the price
SIGCHLD, SIG_DFL = int(signal.SIGCHLD), int(signal.SIG_DFL)
DEFAULT_SIGNALS = [signal.SIGPIPE, signal.SIGXFSZ]  # Python ignores them
LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND
SHORTEN_LOG = r"""{ head -c "$2" "$1"; printf '\n[anybatch: %d bytes are left out here]\n' "$3"; tail -c "$2" "$1"
printf '\n[anybatch: this log was over its limit of %d bytes: %d of its middle are left out]\n' "$4" "$3"
} >"$1.cut" && mv "$1.cut" "$1" || rm -f "$1.cut" """
PUNCH_HOLE = 3  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")  # job ids become names of folders

TICKS = os.sysconf("SC_CLK_TCK")  # per second, in /proc/PID/stat
PAGE = os.sysconf("SC_PAGE_SIZE")

Key = Tuple[str, int, int]  # job id, index, attempt number
encode = json.JSONEncoder(separators=(",", ":")).encode


class StartError(Exception):
    """An attempt could not be started; the message is the reason that users read."""


class ProtocolError(Exception):
    """The client broke the protocol; its connection is closed."""


# ---- the machine ----


def boot_id() -> Dict[str, Any]:
    """Names this boot of the machine, and in it the container (process ids mean something within one only)."""
    found = {"boot": "unknown", "first_began": 0}  # a container's number comes again, its first process began later
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        found["boot"] = "%s %s" % (file.read().strip(), os.readlink("/proc/self/ns/pid"))
        found["first_began"] = int(process_stat(1)[19])
    return found


def process_name(pid: int) -> Optional[str]:
    """The ANYBATCH_ATTEMPT of a process; None if it has none, is gone, or there is no /proc."""
    with contextlib.suppress(OSError), open("/proc/%d/environ" % pid, "rb") as file:
        for item in file.read().split(b"\0"):
            if item.startswith(b"ANYBATCH_ATTEMPT="):
                return os.fsdecode(item[17:])
    return None


def process_stat(pid: int) -> List[bytes]:
    """Of /proc/PID/stat from the state on: 1 parent, 2 group, 3 session, 19 start in ticks, 21 resident pages."""
    with open("/proc/%d/stat" % pid, "rb") as file:
        return file.read().rpartition(b")")[2].split()


class Processes:
    """All live processes as /proc shows them now (none where there is no /proc)."""

    def __init__(self) -> None:
        self.children: Dict[int, List[int]] = {}
        self.parent: Dict[int, int] = {}
        self.group: Dict[int, int] = {}
        self.session: Dict[int, int] = {}
        self.born: Dict[int, int] = {}  # in ticks: with the id it names a process for good
        self.pages: Dict[int, int] = {}  # of resident memory
        for pid in map(int, filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc/self") else ())):
            try:
                fields = process_stat(pid)
            except OSError:
                continue
            if fields[0] not in (b"Z", b"X"):
                self.parent[pid], self.group[pid], self.session[pid] = map(int, fields[1:4])
                self.born[pid], self.pages[pid] = int(fields[19]), int(fields[21])
                self.children.setdefault(int(fields[1]), []).append(pid)

    def tree(self, roots: Iterable[int], spared: Iterable[int] = ()) -> Set[int]:
        """`roots` and all their descendants; of what is spared neither it nor what is below."""
        found: Set[int] = set()
        waiting = list(roots)
        while waiting:
            pid = waiting.pop()
            if pid not in found and pid not in spared:
                found.add(pid)
                waiting.extend(self.children.get(pid, ()))
        return found

    def ancestors(self, pid: int) -> Set[int]:
        """A process and all those above it."""
        found = {1}
        while pid > 0 and pid not in found:
            found.add(pid)
            pid = self.parent.get(pid, 0)
        return found

    def leftovers(self, left: Dict[str, Tuple[int, int]], reapers: Set[int]) -> Set[int]:
        """What is left of attempts whose agent was killed.

        `left` gives each attempt's process id (-1: unknown) and when its start was near (`uptime_ms`; 0: unknown)
        by its name; `reapers` are the processes that orphans of that agent were given to. Roots are orphans in
        sessions of their own, no older than their attempt, that carry its name or, where there is none to read, are
        the leader that its record names. What surrounds this process, and what is below it, is never one.
        """
        spared = self.ancestors(os.getpid())
        known = {pid: at for pid, at in left.values() if at > 0}
        roots: List[int] = []
        for pid, parent in self.parent.items():
            if pid in spared or parent not in reapers or self.session[pid] == self.session.get(parent):
                continue
            name, age_ms = process_name(pid), self.born[pid] * 1000 // TICKS + AGE_SLACK_MS
            if name is None and pid in known:
                if self.session[pid] == pid and known[pid] <= age_ms <= known[pid] + START_NEAR_MS:
                    roots.append(pid)
            elif name in left and left[name][1] <= age_ms:
                roots.append(pid)
        led = {pid for pid in roots if self.session[pid] == pid}
        roots += [pid for pid, session in self.session.items() if session in led]
        return self.tree(roots, spared)


def own_memory(pid: int, otherwise: int) -> int:
    """Bytes of resident memory, with its share of what it shares; 0 of what has just ended."""
    with contextlib.suppress(OSError, TypeError):
        return int(re.search(r"Pss: +(\d+)", read_file("/proc/%d/smaps_rollup" % pid))[1]) << 10  # type: ignore[index]
    return 0 if os.path.exists("/proc/self/smaps_rollup") else otherwise


def uptime_ms() -> int:
    """What the starts of processes are measured in: since boot, suspended time included (0 where there is no /proc)."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000) if hasattr(time, "CLOCK_BOOTTIME") else 0


def send_signal(pid: int, number: int, born: Optional[int] = None) -> None:
    """Signal one process, if it is still there. Never a group, never everybody (-1), never init, never this one.

    `born` tells which process had the id when it was seen. Without it the id must be that of a child not reaped yet.
    """
    if pid <= 1 or pid == os.getpid():
        return
    fd = -1
    with contextlib.suppress(OSError, AttributeError):  # AttributeError: before Python 3.9
        fd = os.pidfd_open(pid) if born is not None else -1
    try:
        if born is None or int(process_stat(pid)[19]) == born:
            if fd >= 0:
                signal.pidfd_send_signal(fd, number)
            else:
                os.kill(pid, number)
    except OSError:
        pass
    finally:
        if fd >= 0:
            os.close(fd)


def send_group_signal(pid: int, number: int) -> None:
    """Signal the group that an attempt's main process leads, a child not reaped yet (ProcessLookupError: none)."""
    if pid <= 1 or pid == os.getpid():  # whose own group is that of its number
        raise ProcessLookupError
    os.killpg(pid, number)


class Trouble:
    """The agent's own log: a file of bounded size; also where its stderr goes."""

    def __init__(self, path: str) -> None:
        self.path = path

    def write(self, text: str) -> None:
        line = "%s %d %s\n" % (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), os.getpid(), text)
        with contextlib.suppress(OSError):  # a full disk must not end the agent
            if os.path.exists(self.path) and os.path.getsize(self.path) > LOG_MAX:
                os.replace(self.path, self.path + ".1")
            with open(self.path, "a", errors="backslashreplace") as file:
                file.write(line[: LOG_MAX // 4])


# ---- the spool ----


class Spool:
    """An append-only file of JSON lines that a killed agent's successor reads.

    Lines: `spool` (first: boot, first_began, settled, seq), `intent` (about to be spawned: kernel, runs, at in
    uptime_ms, outs), reports as sent, `ack`, `settled`, `reaper` (pid: who gets orphans), `places` (logs, memory
    cgroups). A torn line is dropped: nothing was done on its word. Nothing is synced: attempts end with a machine.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = -1
        self.size = 0
        self.compact_at = SPOOL_COMPACT
        self.ahead = ""  # lines that are in no hurry: written before the next one

    def read(self) -> Tuple[List[Dict[str, Any]], bool]:
        """All records up to the first damaged one, and whether there was one."""
        records: List[Dict[str, Any]] = []
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as file:
            for line in file.read().split(b"\n")[:-1]:
                try:
                    record = json.loads(line)
                    record["t"]
                except (ValueError, TypeError, KeyError):
                    return records, True
                records.append(record)
        return records, False

    def rewrite(self, lines: Iterable[str]) -> None:
        """Replace the whole file."""
        fresh, self.ahead = self.path + ".new", ""
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
        data = ("%s%s\n" % (self.ahead, line)).encode()
        try:
            written = os.write(self.fd, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self.fd, self.size)
            raise
        self.size += written
        self.ahead = ""


# ---- limits ----


def read_file(*path: str) -> str:
    fd = os.open(os.path.join(*path), os.O_RDONLY)  # a fifth of the price of open()
    try:
        return os.read(fd, 1 << 16).decode()
    finally:
        os.close(fd)


def write_file(value: Any, *path: str) -> None:
    fd = os.open(os.path.join(*path), os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(fd, b"%d" % value if isinstance(value, int) else value.encode())
    finally:
        os.close(fd)


class MemorySlot:
    """A cgroup with a memory limit, for one attempt after the other."""

    limit = 0
    kills = 0  # of processes in it for lack of memory, up to the attempt that it serves now

    def __init__(self, version: int, path: str) -> None:
        self.version = version
        self.path = path
        os.mkdir(path)

    def new_kills(self) -> int:
        words = read_file(self.path, "memory.oom_control" if self.version == 1 else "memory.events").split()
        before, self.kills = self.kills, int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0
        return self.kills - before

    def kill(self) -> bool:
        """SIGKILL what is in it, not the agent (whose spawning threads may be: version 1); whether there was any."""
        found: Set[int] = set()
        with contextlib.suppress(OSError):
            found.update(set(map(int, read_file(self.path, "cgroup.procs").split())) - {os.getpid()})
            for pid in found:
                send_signal(pid, signal.SIGKILL, int(process_stat(pid)[19]))
        return bool(found)

    def set_limit(self, limit: int) -> None:
        """Limit memory and swap together where both are counted (version 1), else memory without swap (version 2)."""
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"] if self.version == 1 else ["memory.max"]
        names = [name for name in names if os.path.exists(os.path.join(self.path, name))] or names[:1]
        for name in names[::-1] if limit > self.limit > 0 else names:  # the second is never to be less than the first
            write_file(limit, self.path, name)
        if self.version == 2 and os.path.exists(os.path.join(self.path, "memory.swap.max")):
            write_file(0, self.path, "memory.swap.max")
        self.limit = limit

    def is_clean(self) -> bool:
        """Whether next to nothing of an earlier attempt would count against the next one's limit."""
        if int(read_file(self.path, "memory.usage_in_bytes" if self.version == 1 else "memory.current")) <= SLOT_KEPT:
            return True
        words = read_file(self.path, "memory.stat").split()
        return sum(int(words[words.index(name) + 1]) for name in ("shmem", "unevictable") if name in words) <= SLOT_KEPT


def remove_group(path: str) -> None:
    """Remove a cgroup unless there are processes in it; what it holds counts for the group above from then on."""
    with contextlib.suppress(OSError):  # threads of the agent go back to its own group (version 1)
        for tid in read_file(path, "tasks").split():
            if os.path.exists("/proc/self/task/" + tid):
                write_file(tid, os.path.dirname(os.path.dirname(path)), "tasks")
    with contextlib.suppress(OSError):
        os.rmdir(path)


class MemoryGroups:
    """The memory cgroups of this agent's attempts, in a folder below its own cgroup (version 2: or beside it)."""

    def __init__(self, name: str) -> None:
        self.name = "anybatch-" + name
        self.version = 0  # there are none to be had
        self.base = ""
        self.where = "no memory cgroup is open to this user"
        self.threads = False  # the thread that starts a program enters, at no price; else a shell does
        self.free: List[MemorySlot] = []
        self.count = 0

    def open(self) -> None:
        """Find a place where groups can be made, and try one out."""
        version, folders = memory_folders()
        for folder in folders if not self.version else ():
            self.base, self.version = os.path.join(folder, self.name), version
            try:
                self._try(folder)
                self.where = "version %d, below %s" % (version, self.base)
                break
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                self.where = "no memory cgroup below %s: %s" % (folder, error)
                self.close()

    def _try(self, folder: str) -> None:
        for path in (folder, self.base):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
            if self.version == 2 and "memory" not in read_file(path, "cgroup.subtree_control").split():
                write_file("+memory", path, "cgroup.subtree_control")
        self._remove_left()
        # Before 5.2 the system may end the agent for the sake of an attempt in whose group a thread of it is.
        self.threads = self.version == 1 and tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (5, 2)
        slot = self.take(64 << 20)
        if not self.threads:
            command = ["/bin/sh", "-c", ENTER_AND_RUN, os.path.join(slot.path, "cgroup.procs"), "/bin/true"]
            subprocess.run(command, check=True, timeout=5, stderr=subprocess.DEVNULL)
        self.free.append(slot)

    def take(self, limit: int) -> MemorySlot:
        """A group with this limit in bytes. (OSError: none can be made, or the limit cannot be set.)"""
        slot = self.free.pop() if self.free else None
        if slot is not None and not slot.is_clean():
            remove_group(slot.path)
            slot = None
        if slot is None:
            self.count += 1
            slot = MemorySlot(self.version, os.path.join(self.base, str(self.count)))
        if slot.limit != limit:
            slot.set_limit(limit)
        return slot

    def _remove_left(self) -> None:
        for name in filter(str.isdigit, os.listdir(self.base)):
            self.count = max(self.count, int(name))
            remove_group(os.path.join(self.base, name))

    def close(self) -> None:
        """Remove all that can be."""
        self.free, self.version = [], 0
        with contextlib.suppress(OSError):
            self._remove_left()
            os.rmdir(self.base)


def memory_folders() -> Tuple[int, List[str]]:
    """The version of the memory controller, and the cgroups below which this process may try to make its own: the one
    that it is in; version 2: also those above, up to one with a limit (one with processes can have none below it).
    """
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = [line.split(":", 2) for line in read_file("/proc/self/cgroup").splitlines()]
        own = {name: path for _, names, path in lines for name in names.split(",")}
        version, mount = (1, "/sys/fs/cgroup/memory") if "memory" in own else (2, "/sys/fs/cgroup")
        # In a container its own group may be mounted as the topmost.
        for folder in (mount + own["memory" if version == 1 else ""].rstrip("/"), mount):
            if os.path.isdir(folder) and str(os.getpid()) in read_file(folder, "cgroup.procs").split():
                folders = [folder]
                while version == 2 and folders[-1] != mount and read_file(folders[-1], "memory.max").strip() == "max":
                    folders.append(os.path.dirname(folders[-1]))
                return version, folders
    return 0, []


class Out:
    """Where an attempt's output goes: to a file of the agent's (`number`) that is moved to the log's place (0) once it
    is not empty. Most attempts print nothing: such a file serves one after the other, and no log is made.
    """

    cutter = 0  # the process that shortens it
    file: Any = None  # it, open for reading
    fd = -1  # its descriptor
    actions: Any = None  # what the C library opens it by

    def __init__(self, path: str, number: int) -> None:
        self.path = path
        self.number = number

    def size(self) -> int:
        try:
            return os.lseek(self.fd, 0, os.SEEK_END) if self.fd >= 0 else os.stat(self.path).st_size
        except OSError:
            return 0

    def is_free(self) -> bool:
        """Whether nobody can write to it any more (else no lease is given), so that it can serve another attempt."""
        try:
            if self.fd < 0:
                self.file = open(self.path, "rb", buffering=0)  # noqa: SIM115
                self.fd = self.file.fileno()
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except (OSError, AttributeError):
            return False
        return self.number <= OUTS_MAX

    def place(self, log: str) -> None:
        """Move it to where the log belongs. (OSError: that is not possible.)"""
        try:
            os.rename(self.path, log)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(log), exist_ok=True)
            os.rename(self.path, log)
        self.path, self.number, self.actions = log, 0, None

    def free_middle(self, library: Any, keep: int) -> None:
        """Give the disk back all but so many bytes at either end, where the file system can."""
        start, stop = -(-keep // 4096) * 4096, (self.size() - keep) // 4096 * 4096
        with open(self.path, "r+b") as file:
            library.fallocate(file.fileno(), PUNCH_HOLE, ctypes.c_long(start), ctypes.c_long(max(0, stop - start)))


def log_path(logs: str, job: str, index: int, number: int) -> str:
    """The place of an attempt's log, as in src/kernel/backend.py."""
    folder = os.path.join(logs, job, str(index // 1000)) if index >= 1000 else os.path.join(logs, job)
    return os.path.join(folder, "%d-%d.log" % (index, number))


NO_OUT = Out("", 0)


# ---- attempts ----


class Spec:
    """What the attempts of a job share."""

    def __init__(self, message: Dict[str, Any], base: Dict[str, str]) -> None:
        self.command: List[str] = message["command"]
        self.script: Optional[str] = message.get("script")
        self.environment = dict(base, **message.get("environment", {}))
        self.timeout_ms: Optional[int] = message.get("timeout_ms")
        self.workdir: Optional[str] = message.get("workdir")
        self.scratch: bool = message.get("scratch", False)
        self.vcpus: int = message.get("vcpus_milli", 0)
        self.memory: int = message.get("memory_mib", 0) << 20
        self.program: Optional[str] = None
        self.wary = 1  # so many starts are left to the threads
        self.argv: Any = None

    def find_program(self, workdir: str, scripts: str) -> str:
        """The file to execute, searched with the attempt's own PATH; kept once found. (StartError: there is none.)"""
        if self.program is not None:
            return self.program
        if self.script is not None:
            self.program = write_script(self.script, scripts)
            return self.program
        if not self.command or not self.command[0]:
            raise StartError("CannotStartContainerError: the command is empty")
        name = self.command[0]
        if "/" in name:
            return name if name[0] == "/" else os.path.join(workdir, name)
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

    def arguments(self, program: str) -> Any:
        """The arguments as a C array, the same for all attempts."""
        if self.argv is None:
            argv = [os.fsencode(one) for one in (self.command if self.script is None else [program, *self.command])]
            if b"\0" in b"".join(argv):
                raise StartError(EMBEDDED_NULL)
            self.argv = c_strings(argv)
        return self.argv


NO_SPEC = Spec({"command": []}, {})  # of what a killed agent left


def c_strings(items: List[bytes]) -> Any:
    """A C array of strings, with a null pointer at its end."""
    return (ctypes.c_char_p * (len(items) + 1))(*items)


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

    array_size: Optional[int] = None
    spec = NO_SPEC
    workdir = "/"
    own: Optional[List[str]] = None  # names of variables that attempts had beside those that all share
    fixed: Any = None  # these, as a C array with room for an attempt's own at its end
    at = 0  # where that begins

    def __init__(self, kernel: str, job: str, number: int) -> None:
        self.kernel = kernel
        self.job = job
        self.number = number
        self.gpus: Dict[str, List[int]] = {}
        self.environment: Dict[str, str] = {}

    def variables(self, index: int, own: Dict[str, str]) -> Any:
        """The environment of one attempt as a C array: the group's, its own, and those given."""
        own["AWS_BATCH_JOB_ID"] = self.job
        if self.array_size is not None:
            own["AWS_BATCH_JOB_ID"] += ":%d" % index
            own["AWS_BATCH_JOB_ARRAY_INDEX"] = str(index)
        devices = self.gpus.get(str(index)) if self.gpus else None
        if devices:
            own["CUDA_VISIBLE_DEVICES"] = own["NVIDIA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
        if self.own != list(own):
            fixed = [os.fsencode("%s=%s" % item) for item in self.environment.items() if item[0] not in own]
            if b"\0" in b"".join(fixed):
                raise StartError(EMBEDDED_NULL)
            self.fixed, self.at, self.own = c_strings(fixed + [b""] * len(own)), len(fixed), list(own)
        made = type(self.fixed).from_buffer_copy(self.fixed)
        made.fixed, at = self.fixed, self.at  # keeps alive what it points to
        for item in own.items():
            made[at] = ("%s=%s" % item).encode("utf-8", "surrogateescape")
            at += 1
        return made


class Attempt:
    """One attempt that the agent holds, from its launch until its exit is acknowledged."""

    state = PENDING
    pid = -1  # none; send_signal and send_group_signal refuse it
    near_ms = 0  # its start, in uptime_ms; a little early
    started_ms = 0
    stopped_ms = 0
    code: Optional[int] = None
    kind = EXITED
    reason: Optional[str] = None
    status: Optional[str] = None
    stop_at_ms: Optional[int] = None  # when SIGKILL is due, once it is being stopped
    out = NO_OUT
    slot: Optional[MemorySlot] = None
    told = False  # of its start
    counted = False  # it takes part of the capacity
    here = False  # the loop has started it, not another thread: a child of the loop's
    over_memory = False

    def __init__(self, group: Group, index: int) -> None:
        self.group = group
        self.index = index
        self.key: Key = (group.job, index, group.number)

    @property
    def name(self) -> str:
        return "ab-%s-%s-%d-%d" % (self.group.kernel, self.group.job, self.index, self.group.number)


def report_line(seq: int, started: Iterable[Attempt], exited: Iterable[Attempt]) -> str:
    """A report, as it is spooled and as it is sent."""
    starts: Dict[Any, List[Any]] = {}
    for one in started:
        group = one.group
        run = starts.setdefault(group, [group.job, group.number, [], [], []])
        run[2].append(one.index)
        run[3].append(one.started_ms)
        run[4].append(one.pid)
    ends: Dict[Any, List[Any]] = {}
    for one in exited:
        group = one.group
        how = (group, one.kind, one.reason, one.status, one.told)
        run = ends.get(how) or ends.setdefault(how, [group.job, group.number, [], [], [], [], *how[1:]])
        run[2].append(one.index)
        run[3].append(one.code)
        run[4].append(one.started_ms)
        run[5].append(one.stopped_ms)
    return encode({"t": "report", "seq": seq, "started": list(starts.values()), "exited": list(ends.values())})


def intent_line(kernel: str, at: int, attempts: Iterable[Attempt]) -> str:
    """These are about to be started; with the numbers of the agent's own files that they write to (0: none).

    Nothing in it needs quoting: ids have been checked (SAFE_ID).
    """
    runs: Dict[Group, Tuple[List[int], List[int]]] = {}
    for one in attempts:
        indexes, outs = runs.get(one.group) or runs.setdefault(one.group, ([], []))
        indexes.append(one.index)
        outs.append(one.out.number)
    named = ",".join(['["%s",%d,%s]' % (group.job, group.number, run[0]) for group, run in runs.items()])
    files = [run[1] for run in runs.values()]
    return '{"t":"intent","kernel":"%s","at":%d,"runs":[%s],"outs":%s}' % (kernel, at, named, files)


@functools.lru_cache(maxsize=None)
def one_file_system() -> List[str]:
    """The option that keeps this machine's rm from what is mounted below (not every rm has it)."""
    return ["--one-file-system"] if os.system("/bin/rm --help 2>&1 | grep -q one-file-system") == 0 else []


def ended_child() -> int:
    """The process id of a child that has ended and is not reaped yet: its number is still its own. 0: none."""
    try:
        info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    return info.si_pid if info is not None else 0


class FileActions:
    """The C library's note of what a new process does with its descriptors: stdout and stderr go to a log."""

    def __init__(self, library: Any, log: bytes) -> None:
        self.library = library
        self.buffer = ctypes.create_string_buffer(512)
        library.posix_spawn_file_actions_init(self.buffer)
        library.posix_spawn_file_actions_addopen(self.buffer, 1, log, LOG_FLAGS, 0o600)
        library.posix_spawn_file_actions_adddup2(self.buffer, 1, 2)

    def __del__(self) -> None:
        self.library.posix_spawn_file_actions_destroy(self.buffer)


def wake(number: int, frame: Any) -> None:
    """Handles signals that are to wake the loop: what they write to its pipe does."""


class Spawner:
    """Threads that start programs: while the system does, for half a millisecond each, the loop goes on.

    They call the C library themselves, since os.posix_spawn does not let other threads run. Where a processor is free
    and such starts have been quick, the loop makes them itself: that is cheaper than waking a thread.
    """

    def __init__(self, now_ms: Callable[[], int], groups: MemoryGroups) -> None:
        self.now_ms = now_ms
        self.groups = groups
        self.count = 0  # handed over and not taken back
        self.todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.library = ctypes.CDLL(None)
        self.short = ctypes.PyDLL(None)  # for calls that are over before another thread could run
        self.attributes, defaults = ctypes.create_string_buffer(1024), ctypes.create_string_buffer(256)
        self.library.posix_spawnattr_init(self.attributes)
        if self.library.posix_spawnattr_setflags(self.attributes, ctypes.c_short(0x84)):  # SETSID | SETSIGDEF
            raise OSError(errno.ENOSYS, "the C library is too old")
        self.library.sigfillset(defaults)  # all that are not named the C library asks for one by one, and resets
        self.library.posix_spawnattr_setsigdefault(self.attributes, defaults)
        for _ in range(min(SPAWNERS_MAX, CPUS)):
            threading.Thread(target=self._work, daemon=True).start()

    def put(self, one: Attempt, program: str, argv: Any, envp: Any, here: bool) -> None:
        """Start a program in a session of its own, its output to the attempt's file. `here`: in this thread if that is
        likely to be quick.
        """
        out, spec = one.out, one.group.spec
        if out.actions is None:
            out.actions = FileActions(self.short, os.fsencode(out.path))
        self.count += 1
        if not here or spec.wary or one.slot is not None:
            spec.wary = max(0, spec.wary - 1)
            self.todo.put((one, program, argv, envp))
        else:
            one.here, began_ns = True, time.monotonic_ns()
            self._spawn(one, program, argv, envp)
            if time.monotonic_ns() - began_ns > SLOW_NS:
                spec.wary = WARY

    def take(self, least: int) -> List[Tuple[Attempt, str, int]]:
        """What has been started, waiting for so many: attempt, program, process id or negative error."""
        found: List[Any] = []
        while self.count and (len(found) < least or self.done.qsize()):
            found.append(self.done.get())
            self.count -= 1
        return found

    def _work(self) -> None:
        inside: Optional[MemorySlot] = None  # the cgroup that this thread is in
        while True:
            one, program, argv, envp = self.todo.get()
            try:
                if one.slot is not inside and self.groups.threads:
                    write_file(0, one.slot.path if one.slot else os.path.dirname(self.groups.base), "tasks")
                    inside = one.slot
            except OSError as error:
                one.started_ms = self.now_ms()
                self.done.put((one, program, -(error.errno or errno.EINVAL)))
            else:
                self._spawn(one, program, argv, envp)

    def _spawn(self, one: Attempt, program: str, argv: Any, envp: Any) -> None:
        one.started_ms = self.now_ms()
        pid = ctypes.c_int(-1)
        try:
            path, actions = os.fsencode(program), one.out.actions.buffer
            error = self.library.posix_spawn(ctypes.byref(pid), path, actions, self.attributes, argv, envp)
        except Exception as trouble:
            error = getattr(trouble, "errno", None) or errno.EINVAL
        self.done.put((one, program, -error if error else pid.value))


# ---- the connection ----


def check_run(job: Any, number: Any, indexes: List[Any]) -> None:
    """Refuse what cannot be an attempt (ProtocolError): names of files and processes are made from it."""
    if SAFE_ID.fullmatch(job) is None or type(number) is not int or not set(map(type, indexes)) <= {int}:
        raise ProtocolError("attempts that cannot be: %r" % [job, number, indexes[:10]])


class Connection:
    """One client's connection: frames in, frames out."""

    def __init__(self, agent: Agent, sock: socket.socket) -> None:
        self.agent = agent
        self.sock = sock
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.writing = False  # waits until the socket takes more
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
            getattr(self.agent, "on_" + kind)(self, message)
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
        if self.writing != bool(self.outbox):
            self.writing = not self.writing
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.writing else 0)
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
        self.socket_inode = inode(socket_path)
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
        self.here = 0  # of these, those that the loop has started
        self.ending: List[Attempt] = []  # main process ended, killed leftovers not gone yet
        self.strays: Dict[int, Optional[Attempt]] = {}  # re-parented children, with the attempt they belong to
        self.helpers: Set[int] = set()
        self.timers: List[Tuple[int, int, Attempt]] = []
        self.timer_count = 0
        self.new_started: List[Attempt] = []
        self.new_exited: List[Attempt] = []
        self.report_at = 0  # pending attempts with which exits are reported at once: the kernel is to send more
        self.unacked: Deque[Tuple[int, List[Attempt]]] = deque()
        self.reapers: Set[int] = set()  # processes that orphans of a former agent went to
        self.entered: Optional[Group] = None  # whose working directory the agent is in
        self.groups = MemoryGroups(hashlib.sha256(os.fsencode(state)).hexdigest()[:12])
        self.memory = NOT_ENFORCED
        self.next_look_ms = NEVER
        self.log_max = 0  # bytes; 0: no limit
        self.outs: List[Out] = []  # empty, to be used again
        self.outs_count = 0
        self._set_logs(state)
        self.left_outs: Dict[int, Key] = {}  # a killed agent's
        self.capacity: Optional[Dict[str, Any]] = None  # what may run at once
        self.vcpus_used = self.memory_used = 0
        self.full = False  # the next attempt does not fit

        self.kernel = ""
        self.base_environment: Dict[str, str] = {}
        self.workdir: Optional[str] = None
        self.orphans_ms: Optional[int] = None
        self.absent: List[Any] = []
        self.missing: List[Attempt] = []
        self.client: Optional[Connection] = None
        self.connections: Set[Connection] = set()
        self.orphaned_at_ms = NEVER  # when to end all that a kernel left which does not come back
        self.closing = False
        self.terminated = False
        self.idle_since_ms = self.now_ms()
        self.next_tick_ms = 0

    def now_ms(self) -> int:
        return (self.anchor_ns + time.monotonic_ns()) // 1_000_000

    def recover(self) -> None:
        """Take over what a former agent left in the spool: its unacknowledged exits, and its lost attempts.

        What a damaged spool does not name may have run: nothing is started again on its word.
        """
        records, damaged = self.spool.read()
        head = records[0] if records and records[0]["t"] == "spool" else {}
        same_boot = all(head.get(name, value) == value for name, value in self.boot.items())
        live: Dict[Key, Attempt] = {}
        try:
            self.seq = int(head.get("seq", 0))
            self.settled = bool(head.get("settled")) and same_boot
            for record in records:
                self._recover_record(record, live, same_boot)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            damaged = True
        if damaged:
            self.settled = False
            self.trouble.write("the spool is damaged; it is used up to there")
        if same_boot and live:
            self._end_leftovers(live.values())
        self._recover_logs(live)
        if self.groups.base:
            self.groups.close()
        for one in live.values():
            one.kind, one.reason = LOST, "the agent was killed" if same_boot else RESTARTED
            self._ended(one)
        self._number(self.new_exited)
        self.new_exited = []
        self._compact()

    def _end_leftovers(self, attempts: Iterable[Attempt]) -> None:
        """SIGKILL what a killed agent's attempts have left, and wait (bounded) till it is gone."""
        reapers = {1} | (self.reapers or Processes().ancestors(os.getpid()))
        left = {one.name: (one.pid, one.near_ms) for one in attempts}
        until = time.monotonic() + LEFTOVERS_S
        while time.monotonic() < until:
            now = Processes()
            found = now.leftovers(left, reapers)
            if not found:
                return
            for pid in found:
                send_signal(pid, signal.SIGKILL, now.born[pid])
            time.sleep(0.01)
        self.trouble.write("processes that a killed agent left survive SIGKILL")

    def _recover_logs(self, live: Dict[Key, Attempt]) -> None:
        """Move what the attempts of a killed agent have written to where their logs belong."""
        for number, key in self.left_outs.items():
            out = Out(os.path.join(self.outs_folder, str(number)), number)
            with contextlib.suppress(OSError):
                if key in live and out.size():
                    out.place(log_path(self.logs, *key))
        shutil.rmtree(self.outs_folder, ignore_errors=True)

    def _set_logs(self, folder: str) -> None:
        self.logs, self.outs, self.outs_made = folder, [], False
        self.outs_folder = os.path.join(folder, "." + self.groups.name)  # files move within one file system only

    def _recover_record(self, record: Dict[str, Any], live: Dict[Key, Attempt], same_boot: bool) -> None:
        if record["t"] == "intent":
            for job, number, indexes in record["runs"]:
                group = Group(record["kernel"], job, int(number))
                for index in indexes:
                    one = live[job, int(index), int(number)] = Attempt(group, int(index))
                    one.near_ms = int(record.get("at", 0))
            for (job, number, indexes), outs in zip(record["runs"], record.get("outs", ())):
                self.left_outs.update((out, (job, index, number)) for out, index in zip(outs, indexes) if out)
        elif record["t"] == "report":
            self._recover_report(record, live)
        elif record["t"] == "ack":
            self._acknowledge(int(record["seq"]))
        elif record["t"] == "settled":
            self.settled = same_boot
        elif record["t"] == "places":
            self._set_logs(record["logs"])
            self.groups.base = record["groups"]
        elif record["t"] == "reaper":
            self.reapers.add(int(record["pid"]))

    def _recover_report(self, record: Dict[str, Any], live: Dict[Key, Attempt]) -> None:
        for run in record["started"]:
            job, number, indexes, at_ms, pids = run[:5]
            for index, at, pid in zip(indexes, at_ms, pids):
                one = live.get((job, index, number))
                if one is not None:
                    one.started_ms, one.pid = int(at), int(pid)
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
        with contextlib.suppress(OSError, AttributeError):  # so that none of a tree gets away
            ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
        self.selector = selectors.DefaultSelector()
        wake_read, wake_write = os.pipe()
        for fd in (wake_read, wake_write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # what is blocked or ignored here is so in attempts
        for number in set(range(1, 32)) - {*DEFAULT_SIGNALS, signal.SIGKILL, signal.SIGSTOP}:
            if signal.getsignal(number) is signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGCHLD, signal.SIGIO):
            signal.signal(number, wake)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "terminated", True))
        self.groups.open()
        self.spawner = Spawner(self.now_ms, self.groups)
        self.selector.register(wake_read, selectors.EVENT_READ, lambda: os.read(wake_read, 1 << 16))
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        try:
            self.children_fd = os.open("/proc/self/task/%d/children" % os.getpid(), os.O_RDONLY)
        except OSError:
            self.children_fd = -1  # strays in sessions of their own are not found here
        about = {"pid": os.getpid(), "socket": self.socket_path, "instance": self.instance, "protocol": PROTOCOL}
        about["lock"] = inode(self.lock)
        os.ftruncate(self.lock, os.pwrite(self.lock, encode(about).encode(), 0))
        self._note_reaper()
        folder = os.path.join(self.state, "scratch")
        for name in os.listdir(folder) if os.path.isdir(folder) and not os.path.islink(folder) else ():
            self._remove(name)
        self.idle_since_ms = self.now_ms() + max(0, FIRST_MS - self.idle_ms)

    def _note_reaper(self) -> None:
        """Spool whose children this agent's would become, so that a later agent finds them by that."""
        if os.getppid() not in self.reapers:
            self.reapers = {os.getppid()}
            self._note(encode({"t": "reaper", "pid": os.getppid()}))

    def run(self) -> None:
        """Turn until there is nothing left to do."""
        failures = 0
        while not self._finished():
            try:
                for key, _ in self.selector.select(self._wait_s()):
                    key.data()
                self._nap(len(self.running) + self.spawner.count - CPUS)
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
        self.groups.close()

    def _nap(self, crowd: int) -> None:
        """While more runs than there are processors, let a few end, and take note of them together, unsignalled."""
        if crowd > 0:
            set_handler(SIGCHLD, SIG_DFL)
            time.sleep(min(NAP_S_MAX, NAP_S_EACH * crowd))
            set_handler(SIGCHLD, wake)

    def _finished(self) -> bool:
        if self.running or self.pending or self.ending or self.spawner.count:
            self.idle_since_ms = self.now_ms()
            return False
        if self.closing:
            return True
        if self.connections:
            self.idle_since_ms = self.now_ms()
            return False
        return self.now_ms() - self.idle_since_ms >= self.idle_ms

    def _wait_s(self) -> float:
        if self.pending and self.spawner.count < BURST and not self.full:
            return 0.0
        if self.spawner.count:
            return SPAWN_POLL_MS / 1000
        if self.ending:
            return ENDING_POLL_MS / 1000
        until = min(self.next_tick_ms, self.next_look_ms, self.orphaned_at_ms)
        if self.new_started:
            until = min(until, self.new_started[0].started_ms + STARTED_DELAY_MS - 1)
        if self.new_exited:
            until = min(until, self.new_exited[0].stopped_ms + EXITED_DELAY_MS - 1)
        if self.timers:
            until = min(until, self.timers[0][0])
        if not self.running and not self.connections:
            until = min(until, self.idle_since_ms + self.idle_ms)
        return max(0, until - self.now_ms() + 1) / 1000

    def _turn(self) -> None:
        if self.terminated and not self.closing:
            self.shut_down(TIMEOUT_GRACE_MS, "the agent was told to end")
        self._land()
        self._reap()
        self._fire_timers()
        if self.pending and self.spawner.count < BURST:
            self._start_burst()
        if self._is_news_due():
            self._flush()

    def _tick(self) -> None:
        """Now and then: is the state directory still ours, and the socket still there?"""
        self.next_tick_ms = self.now_ms() + TICK_MS
        self._kill_strays([])
        self._note_reaper()
        if inode(os.path.join(self.state, "agent.lock")) != inode(self.lock) and not self.closing:
            self.trouble.write("the state directory is gone")
            self.shut_down(0, "the agent's state directory was removed")
        elif not os.path.exists(self.socket_path) and not self.closing:
            self.selector.unregister(self.listener)
            self.listener.close()
            self.listener = listen(self.socket_path)
            self.socket_inode = inode(self.socket_path)
            self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        self.entered, self.outs_made = None, False  # a folder may have been removed and made again
        if not self.running:
            os.chdir("/")  # hold no file system

    def shut_down(self, grace_ms: int, lost: Optional[str] = None) -> None:
        """End every attempt, as lost if that is not the kernel's wish, then the agent."""
        self.closing = True
        self._land(ALL)
        while self.pending:  # never started: a later agent may
            self.attempts.pop(self.pending.popleft().key, None)
        for one in self.running.values():
            if lost is not None:
                one.kind, one.reason = LOST, lost
        self._stop(list(self.running.values()), grace_ms)

    # -- messages --

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            self.connections.add(Connection(self, self.listener.accept()[0]))

    def disconnected(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if self.client is connection:
            self.client = None
            if self.orphans_ms is not None:
                self.orphaned_at_ms = self.now_ms() + self.orphans_ms

    def on_hello(self, connection: Connection, message: Dict[str, Any]) -> None:
        modes = [CGROUP] * bool(self.groups.version) + [WATCH] * (self.children_fd >= 0) + [NOT_ENFORCED]
        about: Dict[str, Any] = {"t": "hello", "protocol": PROTOCOL, "build": self.build, "boot": self.boot["boot"]}
        about.update(instance=self.instance, pid=os.getpid(), now_ms=self.now_ms())
        connection.send(encode(dict(about, memory=modes, memory_where=self.groups.where)))
        if message["protocol"][0] != PROTOCOL[0]:
            connection.send(encode({"t": "bye", "reason": "the agent speaks protocol %d.%d" % PROTOCOL}))
            raise ProtocolError("a client of protocol %r" % (message["protocol"],))
        if SAFE_ID.fullmatch(message["kernel"]) is None:
            raise ProtocolError("kernel id %r" % message["kernel"])
        if self.client is not None and self.client is not connection:
            self.client.send(encode({"t": "bye", "reason": "replaced by a newer connection"}))
            if self.client is not None:
                self.client.close()
        self.kernel, logs, self.workdir = message["kernel"], message["logs"], message.get("workdir")
        self.base_environment = message["environment"]
        if self.logs != logs:
            self._set_logs(logs)
            self._note(self._places())
        self.orphans_ms = message.get("orphans_ms")
        self.absent, self.missing = [], []
        self.client = connection
        connection.greeted = True

    def _places(self) -> str:
        return encode({"t": "places", "logs": self.logs, "groups": self.groups.base})

    def on_settings(self, _: Connection, message: Dict[str, Any]) -> None:
        """For what is started from now on. capacity null: whatever is launched may run."""
        self.memory, self.log_max = message["memory"], message["log_bytes_max"]
        self.capacity, self.full = message["capacity"], False

    def on_settle(self, connection: Connection, message: Dict[str, Any]) -> None:
        """Compare what the kernel believes with what is held; at the last part report everything held."""
        for job, number, indexes in message["runs"]:
            check_run(job, number, indexes)
            missing = [index for index in indexes if (job, index, number) not in self.attempts]
            if missing and self.settled:
                self.absent.append([job, number, missing])
            elif missing:  # this spool has not seen all launches: they may have run, or run still
                group = Group(self.kernel, job, number)
                self.missing.extend(Attempt(group, index) for index in missing)
        if message["last"]:
            self._land(ALL)
            self._flush()
            self._give_up_missing()
            if not self.settled:
                self.settled = True
                self._note(encode({"t": "settled"}))
            connection.ready = True
            self._report_held(connection)
            absent, self.absent = self.absent, []
            connection.send(encode({"t": "settled", "absent": absent}))

    def _give_up_missing(self) -> None:
        missing, self.missing = self.missing, []
        if missing:
            self._end_leftovers(missing)
        for one in missing:
            one.kind, one.reason = LOST, "the agent's record of it is gone"
            self._ended(one)
        if self.new_exited:
            self._flush()

    def _report_held(self, connection: Connection) -> None:
        running = [one for one in self.attempts.values() if one.state in (RUNNING, ENDING)]
        for start in range(0, len(running), REPORT_MAX):
            connection.send(report_line(0, running[start : start + REPORT_MAX], ()))
        for seq, ended in self.unacked:
            for one in ended:
                one.told = False  # this client may not know
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
            check_run(job, number, indexes)
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
                    one = Attempt(group, index)
                    self.attempts[one.key] = one
                    self.pending.append(one)
                elif known.state == ENDED and known not in self.new_exited:
                    connection.send(report_line(self.seq, (), (known,)))
                elif known.state in (RUNNING, ENDING):
                    connection.send(report_line(0, (known,), ()))
        self.report_at = len(self.pending) // 2

    def _group(self, job: str, number: int, array_size: Optional[int], spec: Spec, gpus: Any) -> Group:
        group = Group(self.kernel, job, number)
        group.spec, group.array_size, group.gpus = spec, array_size, gpus or {}
        group.environment = dict(spec.environment, AWS_BATCH_JOB_ATTEMPT=str(number))
        if array_size is not None:
            group.environment["AWS_BATCH_JOB_ARRAY_SIZE"] = str(array_size)
        group.workdir = spec.workdir or self.workdir or os.path.join(self.state, "jobs", job)
        return group

    def on_stop(self, _: Connection, message: Dict[str, Any]) -> None:
        attempts = self.attempts
        named = ((job, index, number) for job, number, indexes in message["runs"] for index in indexes)
        self._stop([attempts[key] for key in named if key in attempts], message["grace_ms"])

    def on_ack(self, _: Connection, message: Dict[str, Any]) -> None:
        self._acknowledge(message["seq"])
        self.spool.ahead = '{"t":"ack","seq":%d}\n' % message["seq"]
        if self.spool.size > self.spool.compact_at or (not self.attempts and self.spool.size > 1 << 16):
            self._compact()

    def _acknowledge(self, seq: int) -> None:
        while self.unacked and self.unacked[0][0] <= seq:
            for one in self.unacked.popleft()[1]:
                self.attempts.pop(one.key, None)

    def on_ping(self, connection: Connection, _: Dict[str, Any]) -> None:
        connection.send(encode({"t": "pong", "now_ms": self.now_ms(), "load": os.getloadavg()[0]}))

    def on_shutdown(self, _: Connection, message: Dict[str, Any]) -> None:
        self.shut_down(message["grace_ms"])

    # -- starting --

    def _start_burst(self) -> None:
        """Spawn the next pending attempts, after their intent is on disk."""
        burst: List[Attempt] = []
        while self.pending and len(burst) < BURST:
            if self.pending[0].state == PENDING and not self._fits(self.pending[0]):
                break
            one = self.pending.popleft()
            if one.state == PENDING:
                self._count(one, 1)
                one.out = self._take_out()
                burst.append(one)
        if not burst:
            return
        near_ms = uptime_ms()
        try:
            self.spool.append(intent_line(self.kernel, near_ms, burst))
        except OSError as error:
            for one in burst:
                self._not_started(one, "CannotStartContainerError: the agent's spool: %s" % error.strerror)
            return
        for one in burst:
            one.near_ms = near_ms
            self._start(one, len(burst) < SPAWNERS_MAX and len(self.running) + self.spawner.count < CPUS)
        if burst[-1].here:
            self._land()

    def _fits(self, one: Attempt) -> bool:
        """Whether there is room for it beside what runs. What would never fit may run alone."""
        spec, most = one.group.spec, self.capacity
        if most is not None and self.vcpus_used:
            memory_mib = (self.memory_used + spec.memory) >> 20
            self.full = self.vcpus_used + spec.vcpus > most["vcpus_milli"] or memory_mib > (most["memory_mib"] or NEVER)
        return not self.full

    def _count(self, one: Attempt, sign: int) -> None:
        """Add an attempt to what runs, or take it away."""
        if one.counted != (sign > 0):
            one.counted, self.full = sign > 0, False
            self.vcpus_used += sign * one.group.spec.vcpus
            self.memory_used += sign * one.group.spec.memory

    def _take_out(self) -> Out:
        if self.outs:
            return self.outs.pop()
        self.outs_count += 1
        return Out(os.path.join(self.outs_folder, str(self.outs_count)), self.outs_count)

    def _close_out(self, one: Attempt) -> None:
        """An ended attempt's log is in its place, or there is none as it is empty."""
        out, one.out = one.out, NO_OUT
        try:
            if out.size():
                if out.number:
                    out.place(log_path(self.logs, *one.key))
            elif out.number and out.is_free():
                self.outs.append(out)
            else:
                os.unlink(out.path)
        except FileNotFoundError:
            pass
        except OSError as error:
            self.trouble.write("the log of %s: %s" % (one.name, error))

    def _is_cut(self, one: Attempt) -> bool:
        """Whether the log of an ended attempt is within its limit; if not that is being seen to."""
        out, limit = one.out, self.log_max
        if limit and not out.cutter and out.size() > limit:
            with contextlib.suppress(OSError):
                if out.number:
                    out.place(log_path(self.logs, *one.key))
                numbers = map(str, (limit // 2, out.size() - limit, limit))
                command = ["sh", "-c", SHORTEN_LOG, "sh", out.path, *numbers]
                out.cutter = os.posix_spawn("/bin/sh", command, {"PATH": os.defpath})
                self.helpers.add(out.cutter)
        return out.cutter not in self.helpers

    def _look_at_logs(self) -> None:
        """Put the logs of running attempts in their places once there is something in them; keep them short."""
        for one in self.running.values():
            out, size = one.out, one.out.size()
            try:
                if out.number and size:
                    out.place(log_path(self.logs, *one.key))
                if self.log_max and size > self.log_max:
                    out.free_middle(self.spawner.library, self.log_max // 2)
            except OSError as error:
                self.trouble.write("the log of %s: %s" % (one.name, error))

    def _watch_memory(self) -> None:
        """Kill attempts whose processes together have more memory than they may."""
        processes = Processes()
        self._adopt(self._children(), [])
        for one in self.running.values():
            limit = one.group.spec.memory
            if limit:
                tree = processes.tree([one.pid] + [stray for stray, owner in self.strays.items() if owner is one])
                held = {pid: processes.pages.get(pid, 0) * PAGE for pid in tree}
                # Twice: shares are read one by one, and grow when somebody who shares has ended meanwhile.
                if sum(held.values()) > limit and all(sum(map(own_memory, *zip(*held.items()))) > limit for _ in "12"):
                    one.over_memory = True
                    for pid in tree.intersection(processes.born):
                        send_signal(pid, signal.SIGKILL, processes.born[pid])

    def _start(self, one: Attempt, here: bool) -> None:
        group, spec = one.group, one.group.spec
        log, program = one.out.path, None
        try:
            if group is not self.entered:
                self._land(ALL)  # all that is under way starts in the former one's folder
                self._enter(group)
            if not self.outs_made:
                os.makedirs(self.outs_folder, exist_ok=True)
                self.outs_made = True
            program = spec.program or spec.find_program(group.workdir, self.scripts)
            own = {"ANYBATCH_ATTEMPT": one.name}
            if spec.scratch:
                own["ANYBATCH_SCRATCH"] = own["TMPDIR"] = self._scratch(one.name)
            run, arguments = program, spec.arguments(program)
            if spec.memory and self.memory == CGROUP:
                one.slot = self.groups.take(spec.memory)
                if not self.groups.threads:
                    procs = os.path.join(one.slot.path, "cgroup.procs")
                    run, shell = "/bin/sh", ["sh", "-c", ENTER_AND_RUN, procs, program]
                    arguments = c_strings([*map(os.fsencode, shell), *arguments[1:-1]])
            self.spawner.put(one, run, arguments, group.variables(one.index, own), here)
            one.state = SPAWNING
        except StartError as error:
            self._not_started(one, str(error))
        except Exception as error:  # OSError, or what was asked for is odd: an attempt never goes without an end
            self._not_started(one, self._diagnose(error, program, log))

    def _land(self, least: int = 0) -> None:
        """Take note of what has been spawned; wait for so many (ALL) of those under way."""
        for one, program, pid in self.spawner.take(least):
            spec = one.group.spec
            if pid > 0:
                one.pid, one.state = pid, RUNNING
                self.running[pid] = one
                self.here += one.here
                self.new_started.append(one)
                self.next_look_ms = min(self.next_look_ms, one.started_ms + LOOK_MS)
                if spec.timeout_ms is not None:
                    self._at(one.started_ms + spec.timeout_ms, one)
            else:
                spec.program = None  # to be looked for again
                self._not_started(one, self._diagnose(OSError(-pid, os.strerror(-pid)), program, one.out.path))

    def _enter(self, group: Group) -> None:
        """Make a group's folders, and go to its working directory, which posix_spawn passes on."""
        try:
            if not (group.spec.workdir or self.workdir):
                os.makedirs(group.workdir, 0o700, exist_ok=True)
            os.chdir(group.workdir)
        except OSError as error:
            what = "working directory %r: %s" % (group.workdir, error.strerror)
            raise StartError("CannotStartContainerError: %s" % what) from error
        self.entered = group

    def _scratch(self, name: str) -> str:
        folder = os.path.join(self.state, "scratch", name)
        if os.path.islink(os.path.dirname(folder)):
            raise StartError("CannotStartContainerError: %r is a link" % os.path.dirname(folder))
        os.makedirs(folder, 0o700, exist_ok=True)
        return folder

    def _diagnose(self, error: Exception, program: Optional[str], log: str) -> str:
        """Say which of the things that a spawn touches is at fault."""
        what, why = repr(program), str(error)
        if isinstance(error, OSError) and error.filename is not None:
            what, why = repr(error.filename), str(error.strerror)
        elif isinstance(error, OSError):
            why = error.strerror or why
            try:
                os.close(os.open(log, LOG_FLAGS, 0o600))
            except OSError as log_error:
                what, why = "log file %r" % log, str(log_error.strerror)
                self.entered, self.outs_made = None, False
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
        if one.slot is not None:
            slot, one.slot = one.slot, None
            with contextlib.suppress(OSError, ValueError):
                one.over_memory = slot.new_kills() > 0
                self.groups.free.append(slot)
        if one.over_memory and one.code and one.kind == EXITED and one.stop_at_ms is None:
            one.code, one.reason = 128 + signal.SIGKILL, OUT_OF_MEMORY
        self._close_out(one)
        self._count(one, -1)
        one.state = ENDED
        self.attempts[one.key] = one
        self.new_exited.append(one)
        if one.group.spec.scratch:
            self._remove(one.name)

    def _remove(self, name: str) -> None:
        """Remove a scratch folder, and nothing mounted or linked in it, without holding up the loop."""
        path = os.path.join(self.state, "scratch", name)
        if not name.startswith("ab-") or "/" in name or os.path.islink(os.path.dirname(path)):
            return
        try:
            self.helpers.add(os.posix_spawn("/bin/rm", ["rm", "-rf", *one_file_system(), "--", path], {}))
        except (OSError, AttributeError) as error:
            self.trouble.write("cannot remove %s: %s" % (path, error))

    # -- ending --

    def _reap(self) -> None:
        """Collect ended children; a main process's end ends what is left of its tree."""
        ended: List[Attempt] = []
        while True:
            pid = ended_child()
            while pid and pid not in self.running and self.spawner.count:  # it has ended before it was noted
                self._land(1)
                pid = ended_child()  # one that could not start is gone by now
            if pid == 0:
                break
            one = self.running.pop(pid, None)
            if one is not None:
                self.here -= one.here
                try:  # now, while nobody else can have its number
                    send_group_signal(pid, signal.SIGKILL)
                except OSError:
                    pass
            status = os.waitpid(pid, 0)[1]
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
        """Report what nothing is left of; the rest of each tree has had, or gets now, its SIGKILL."""
        alive = self._kill_strays(ended)
        still: List[Attempt] = []
        for one in self.ending + ended:
            if one.slot is not None and one.slot.kill():
                alive.add(one)
            try:
                os.killpg(one.pid, 0)  # only asks: its number may be anybody's by now
            except OSError as error:
                if one not in alive and error.errno != errno.EPERM:
                    (self._ended if self._is_cut(one) else still.append)(one)
                    continue
            if self.now_ms() - one.stopped_ms > ENDING_MAX_MS:
                self.trouble.write("%s: processes survive SIGKILL" % one.name)
                one.slot = None  # not to be used again
                self._ended(one)
            else:
                still.append(one)
        self.ending = still

    def _kill_strays(self, ended: List[Attempt]) -> Set[Attempt]:
        """SIGKILL re-parented children whose attempt has ended; return the attempts that had some."""
        if self.children_fd < 0:
            return set()
        children = self._children()
        if len(children) == len(self.helpers) + self.here:
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
        """The children of this thread: helpers, orphans of attempts, and the attempts that it has started itself."""
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
        self._land(ALL)
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
            others = [other for other in processes.tree(roots) if processes.group.get(other, pid) != pid]
            with contextlib.suppress(OSError):
                send_group_signal(pid, signal.SIGTERM)
            for other in others:
                send_signal(other, signal.SIGTERM, processes.born[other])

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
        if now >= self.orphaned_at_ms:
            self.orphaned_at_ms = NEVER
            if self.client is None and not self.closing:  # of a kernel that nobody comes back to
                self.shut_down(TIMEOUT_GRACE_MS, "the kernel is gone")
        if now >= self.next_look_ms:
            before = time.monotonic()
            self._look_at_logs()
            if self.memory == WATCH:
                self._watch_memory()
            pause_ms = max(LOOK_MS, int(20_000 * (time.monotonic() - before)))
            self.next_look_ms = now + pause_ms if self.running else NEVER
        if now >= self.next_tick_ms:
            self._tick()

    def _is_news_due(self) -> bool:
        """Whether starts and exits are to be reported now: not while there is work enough till more has come."""
        now = self.now_ms()
        if self.new_exited:
            return len(self.pending) <= self.report_at or self.new_exited[0].stopped_ms + EXITED_DELAY_MS <= now
        return bool(self.new_started) and self.new_started[0].started_ms + STARTED_DELAY_MS <= now

    def _flush(self) -> None:
        """Spool and send the exits, and the starts of those that have run for a while."""
        past = self.now_ms() - STARTED_DELAY_MS
        begun = [one for one in self.new_started if one.state != ENDED]  # the end of one that has ended tells its start
        started = [one for one in begun if one.started_ms <= past]
        self.new_started = [one for one in begun if one.started_ms > past]
        exited, self.new_exited = self.new_exited, []
        if exited and len(self.pending) <= self.report_at:
            self.report_at = len(self.pending) // 2  # until more comes: it has been asked for
        if not started and not exited:
            return
        for start in range(0, max(len(exited), 1), REPORT_MAX):
            part = exited[start : start + REPORT_MAX]
            self._number(part)
            line = report_line(self.seq, started, part)
            for one in started:
                one.told = True
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
        if self.spool.fd >= 0:
            self._land(ALL)
        if self.new_exited:
            self._flush()
        lines = [encode({"t": "spool", "version": 1, **self.boot, "settled": self.settled, "seq": self.seq})]
        lines.extend(encode({"t": "reaper", "pid": pid}) for pid in self.reapers)
        lines.append(self._places())
        running = [one for one in self.attempts.values() if one.state in (RUNNING, ENDING)]
        lines.extend(intent_line(one.group.kernel, one.near_ms, [one]) for one in running)
        lines.append(report_line(0, running, ()))
        lines.extend(report_line(seq, (), ended) for seq, ended in self.unacked)
        try:
            self.spool.rewrite(lines)
        except OSError as error:
            if self.spool.fd < 0:  # there is no spool yet
                raise
            self.spool.compact_at *= 2
            self.trouble.write("the spool: %s" % error)


GONE = Attempt(Group("", "", 0), 0)  # stands for an attempt that is not held any more
GONE.state = ENDED


# ---- starting the agent ----


def take_lock(state: str) -> Optional[int]:
    """The descriptor of the state directory's lock, None if another agent holds it."""
    fd = os.open(os.path.join(state, "agent.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd
    os.close(fd)
    return None


def listen(path: str) -> socket.socket:
    """A listening socket that only this user can reach."""
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
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


def inode(path: Any) -> Tuple[int, int]:
    """Which file this is ((0, 0): none)."""
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return 0, 0


def close_inherited() -> None:
    """Close what the starter has left open beside the first three: uvloop hands its ends of their pipes on."""
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else map(str, range(3, 256)):
        with contextlib.suppress(OSError):
            if int(name) > 2:
                os.close(int(name))


def detach(trouble: Trouble) -> bool:
    """Fork; the child goes on in a session of its own without the starter's descriptors. True in the child."""
    starter = os.getpid()
    if os.fork():
        return False
    os.setsid()
    while os.getppid() == starter:  # it is about to exit
        time.sleep(0.001)
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    errors = os.open(trouble.path, LOG_FLAGS, 0o600)
    for fd, target in ((nothing, 0), (nothing, 1), (errors, 2)):
        os.dup2(fd, target)
    for fd in {nothing, errors} - {0, 1, 2}:
        os.close(fd)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="anybatch's agent; started by its process backend")
    parser.add_argument("--state", required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--idle-ms", type=int, default=IDLE_MS)
    options = parser.parse_args()
    close_inherited()
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
        if inode(path) == agent.socket_inode:  # not one that a later agent has put there
            os.unlink(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
