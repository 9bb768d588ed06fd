"""The far end of an SSH channel: starts or finds the host's agent and passes bytes on to it, or hands out files.

Standard library only, Python 3.8+. It is not installed on the host: a channel's first bytes are this text, and what
runs there reads it and executes it (_ssh_channel.py). Everything it writes comes after a line that begins with
the word that it was started with, since what a login shell prints may come before.

    from the other side: lines of JSON, each a request {"op": ...}; answers are lines of JSON, in order
      agent    folder, place, sha, idle_ms -> {"need": "agent"} if this version is not there (then: a line {"size"} and
               so many bytes) -> {"facts"}; from then on all bytes go to the agent's socket and come from it
      files    folder, place -> {}; then as often as wanted:
                 read   file (a number), path, at, most -> {"size", "at"} and so many bytes (a hole is passed over)
                 done   file -> {}
                 forget jobs -> {}
                 folder job, empty -> {"path"}: the job's working directory, made (with "empty": anew)
                 mark   job, ask -> {"marked": whether its files are here}; unless "ask" they are from now on
                 changed job -> {"path", "files": [[name, size, mtime in ns]], "folders": [name]}: what is new
                 fetched job -> {}: now it has what `changed` told
      sftp     -> {}, and then SFTP
    what fails is answered by {"error": text}
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pwd
import re
import select
import shutil
import socket
import stat
import subprocess
import sys
import time
from typing import Any, Dict, List, Set, Tuple

START_TRIES = 3
EXIT_LOCKED = 75  # as in agent.py
LOCKED_S = 10.0  # for an agent that is ending, or starting, to let go or to listen
NVIDIA_S = 10.0
AGENT_KEPT_S = 30 * 86400  # an agent's file that nobody has used for so long goes
SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/sftp-server",
)
FILES_MAX = 64  # open at once
SAFE_JOB = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class Failure(Exception):
    """What the other side is told."""


def answer(message: Dict[str, Any]) -> None:
    data = b"\n%s %s\n" % (word(), json.dumps(message).encode())
    while data:
        data = data[os.write(1, data) :]


def word() -> bytes:
    return os.fsencode(sys.argv[1])


def request() -> Dict[str, Any]:
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        sys.exit(0)
    asked: Dict[str, Any] = json.loads(line)
    return asked


def private(path: str) -> str:
    """A folder that only this user can enter; made if it is not there."""
    os.makedirs(path, 0o700, exist_ok=True)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise Failure("%s is not a folder of this user's" % path)
    if found.st_mode & 0o077:
        os.chmod(path, 0o700)
    return path


def state_folder(about: Dict[str, Any]) -> Tuple[str, str]:
    home = pwd.getpwuid(os.getuid()).pw_dir
    folder = about["folder"]
    folder = os.path.join(home, folder[2:]) if folder.startswith("~/") else folder
    private(folder)
    path = folder
    for part in about["place"]:
        path = private(os.path.join(path, part))
    return folder, path


# ---- the agent ----


def agent_file(folder: str, sha: str) -> str:
    """The agent's file of this content, asked for if it is not there."""
    agents = private(os.path.join(folder, "agents"))
    path = os.path.join(agents, "%s.py" % sha)
    try:
        with open(path, "rb") as file:
            if hashlib.sha256(file.read()).hexdigest() == sha:
                os.utime(path)
                return path
    except FileNotFoundError:
        pass
    answer({"need": "agent"})
    size = request()["size"]
    data = sys.stdin.buffer.read(size)
    if hashlib.sha256(data).hexdigest() != sha:
        raise Failure("the agent has arrived damaged")
    fresh = "%s.%d" % (path, os.getpid())
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_TRUNC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError:
        remove(fresh)
        raise
    for name in os.listdir(agents):
        old = os.path.join(agents, name)
        if os.path.getmtime(old) < time.time() - AGENT_KEPT_S:
            remove(old)
    return path


def remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def base_environment(path: str) -> Dict[str, str]:
    """What attempts start from: who and where, and nothing of what a profile has set."""
    user = pwd.getpwuid(os.getuid())
    return {
        "PATH": path, "HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name,
        "SHELL": user.pw_shell or "/bin/sh", "LANG": "C.UTF-8",
    }  # fmt: skip


def connect_agent(about: Dict[str, Any], state: str, program: str) -> socket.socket:
    """A socket to the agent of a state folder; it is started if there is none."""
    sockets = private("/tmp/anybatch-%d" % os.getuid())
    name = hashlib.sha256(os.fsencode(os.path.realpath(state))).hexdigest()[:16]
    path = os.path.join(sockets, name + ".sock")
    until = time.monotonic() + LOCKED_S
    while True:
        for one in (advertised(state), path):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(one)
                return sock
            except OSError:
                sock.close()
        status = start_agent(about, state, path, program)
        if status not in (0, EXIT_LOCKED):
            raise Failure("the agent could not be started (status %d)%s" % (status, trouble(state)))
        if time.monotonic() > until:
            raise Failure("an agent holds %s but does not listen" % state)
        if status == EXIT_LOCKED:
            time.sleep(0.1)


def advertised(state: str) -> str:
    """The socket of the agent that held the lock last; none if the folder is a copy of that agent's."""
    path = os.path.join(state, "agent.lock")
    try:
        with open(path, "rb") as file:
            told = json.loads(file.read())
        found = os.stat(path)
        return str(told["socket"]) if told["lock"] == [found.st_dev, found.st_ino] else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def start_agent(about: Dict[str, Any], state: str, path: str, program: str) -> int:
    command = [sys.executable, "-I", "-S", "-X", "utf8", program, "--state", state, "--socket", path]
    command += ["--idle-ms", str(about["idle_ms"])]
    for _ in range(START_TRIES):
        done = subprocess.run(
            command, env=base_environment(about["path"]), cwd="/", start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        if done.returncode >= 0:
            break
    if done.returncode not in (0, EXIT_LOCKED):
        last = done.stderr.decode(errors="replace").strip()[-500:]
        raise Failure("the agent could not be started: %s%s" % (last, trouble(state)))
    return done.returncode


def trouble(state: str) -> str:
    try:
        with open(os.path.join(state, "agent.log"), "rb") as file:
            return "; the end of its log: " + file.read()[-500:].decode(errors="replace").strip()
    except OSError:
        return ""


def facts(about: Dict[str, Any], state: str) -> Dict[str, Any]:
    """What the other side wants to know of this host."""
    gpus: List[int] = []
    if about["gpus"]:
        try:
            query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
            done = subprocess.run(
                query, env={"PATH": about["path"]}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, timeout=NVIDIA_S,
            )  # fmt: skip
            gpus = [int(one) for one in done.stdout.split()] if done.returncode == 0 else []
        except (OSError, ValueError, subprocess.SubprocessError):
            gpus = []
    return {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_mib": memory_mib(),
        "gpus": gpus,
        "python": "%d.%d.%d" % sys.version_info[:3],
        "state": state,
        "environment": base_environment(about["path"]),
        "load": os.getloadavg()[0],
        "jobs": jobs(state),  # of which something is kept here
    }


def memory_mib() -> int:
    """This machine's memory, or the least limit of the cgroups (version 1 or 2) that this process is in."""
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/proc/self/cgroup") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        lines = []
    for _, names, path in lines:
        if not names:
            root, name = "/sys/fs/cgroup", "memory.max"
        elif "memory" in names.split(","):
            root, name = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        parts = path.strip("/").split("/")
        for depth in range(len(parts) + 1):
            try:
                with open(os.path.join(root, *parts[:depth], name)) as file:
                    least = min(least, int(file.read()))
            except (OSError, ValueError):
                pass
    return least >> 20


def bridge(sock: socket.socket) -> None:
    """Pass bytes on in both directions until one side is closed."""
    sock.setblocking(True)
    poll = select.poll()
    for fd in (0, sock.fileno()):
        poll.register(fd, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            data = os.read(0, 1 << 18) if fd == 0 else sock.recv(1 << 18)
            if not data:
                return
            if fd == 0:
                sock.sendall(data)
            else:
                while data:
                    data = data[os.write(1, data) :]


# ---- files ----


def read(about: Dict[str, Any], state: str, opened: Dict[int, int]) -> Tuple[bytes, int]:
    """A piece of a file below the host's folder; b"" at its end, or if there is no such file.

    It stays with the file that was opened: a log that is shortened when its attempt ends is another one.
    """
    path = os.path.realpath(os.path.join(state, about["path"]))
    if not path.startswith(os.path.realpath(state) + os.sep):
        raise Failure("%s is outside" % about["path"])
    at = about["at"]
    fd = opened.get(about["file"], -1)
    try:
        if fd < 0:
            if len(opened) >= FILES_MAX:
                os.close(opened.pop(next(iter(opened))))
            fd = opened[about["file"]] = os.open(path, os.O_RDONLY)
        start = os.lseek(fd, at, os.SEEK_DATA)
        stop = os.lseek(fd, start, os.SEEK_HOLE)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENXIO):  # there is none yet, or that is its end
            return b"", at
        raise
    data = os.pread(fd, min(about["most"], stop - start), start)
    return data, start + len(data)


def jobs(state: str) -> List[str]:
    found: Set[str] = set()
    for name in ("logs", "jobs", "sent"):
        try:
            found.update(one for one in os.listdir(os.path.join(state, name)) if SAFE_JOB.fullmatch(one))
        except OSError:
            pass
    return sorted(found)


def forget(about: Dict[str, Any], state: str) -> None:
    for job in about["jobs"]:
        if SAFE_JOB.fullmatch(job) is None:
            raise Failure("a job %r" % job)
        for name in ("logs", "jobs"):
            path = os.path.join(state, name, job)
            if not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=True)
        remove(os.path.join(state, "sent", job))


def mark(about: Dict[str, Any], state: str) -> bool:
    """Whether a job's files have been sent here; they have from now on, unless this only asks."""
    there = os.path.exists(sent_file(about, state))
    if not about["ask"] and not there:
        note(about, state, known_files(job_folder(about, state)))
    return there


def sent_file(about: Dict[str, Any], state: str) -> str:
    job_folder(about, state)
    return os.path.join(private(os.path.join(state, "sent")), about["job"])


def known_files(folder: str) -> Dict[str, Any]:
    """Files by name with size and time, as the other side knows them."""
    found = tree(folder)
    return {"files": {name: [size, at] for name, size, at, _ in found["files"]}, "folders": found["folders"]}


def note(about: Dict[str, Any], state: str, known: Dict[str, Any]) -> None:
    path = sent_file(about, state)
    with open(os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(known, file)
    os.replace(path + ".new", path)


def changed(about: Dict[str, Any], state: str, now: Dict[str, Any]) -> Dict[str, Any]:
    """What is new or other than the other side knows."""
    try:
        with open(sent_file(about, state)) as file:
            known = json.load(file)
    except (OSError, ValueError):
        known = {"files": {}, "folders": []}
    files = [[name, *what] for name, what in now["files"].items() if known["files"].get(name) != what]
    return {"files": files, "folders": sorted(set(now["folders"]) - set(known["folders"]))}


def job_folder(about: Dict[str, Any], state: str) -> str:
    if SAFE_JOB.fullmatch(about["job"]) is None:
        raise Failure("a job %r" % about["job"])
    return private(os.path.join(private(os.path.join(state, "jobs")), about["job"]))


def tree(top: str) -> Dict[str, Any]:
    """All plain files and folders below a folder; links are left alone."""
    files: List[List[Any]] = []
    folders: List[str] = []
    for path, names, others in os.walk(top):
        names[:] = [name for name in names if not os.path.islink(os.path.join(path, name))]
        folders += [os.path.relpath(os.path.join(path, name), top) for name in names]
        for name in others:
            found = os.lstat(os.path.join(path, name))
            if stat.S_ISREG(found.st_mode):
                full = os.path.relpath(os.path.join(path, name), top)
                files.append([full, found.st_size, found.st_mtime_ns, found.st_mode & 0o777])
    return {"files": files, "folders": folders}


def serve_files(state: str) -> None:
    answer({})
    opened: Dict[int, int] = {}
    seen: Dict[str, Dict[str, Any]] = {}
    while True:
        about = request()
        try:
            op = about["op"]
            if op == "read":
                data, at = read(about, state, opened)
                answer({"size": len(data), "at": at})
                while data:
                    data = data[os.write(1, data) :]
            elif op == "done":
                fd = opened.pop(about["file"], -1)
                if fd >= 0:
                    os.close(fd)
                answer({})
            elif op == "forget":
                forget(about, state)
                answer({})
            elif op == "mark":
                answer({"marked": mark(about, state)})
            elif op == "folder":
                path = job_folder(about, state)
                if about["empty"]:  # what a connection that was lost has left is begun anew
                    shutil.rmtree(path, ignore_errors=True)
                answer({"path": job_folder(about, state)})
            elif op == "changed":
                folder = job_folder(about, state)
                seen[about["job"]] = known_files(folder)
                answer(dict(changed(about, state, seen[about["job"]]), path=folder))
            elif op == "fetched":
                note(about, state, seen.pop(about["job"]))
                answer({})
            else:
                raise Failure("what is %r?" % op)
        except (Failure, OSError) as error:
            answer({"error": str(error)})


def main() -> None:
    about = request()
    try:
        if about["op"] == "sftp":
            for path in SFTP_SERVERS:
                if os.access(path, os.X_OK):
                    answer({})
                    os.execv(path, [path])
            raise Failure("no sftp-server at %s" % ", ".join(SFTP_SERVERS))
        folder, state = state_folder(about)
        if about["op"] == "files":
            serve_files(state)
            return
        program = agent_file(folder, about["sha"])
        sock = connect_agent(about, state, program)
        answer({"facts": facts(about, state)})
    except (Failure, OSError) as error:
        answer({"error": str(error)})
        return
    bridge(sock)


if __name__ == "__main__":
    main()
