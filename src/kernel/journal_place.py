"""Where a journal may stand, and that only one kernel holds it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from .core.errors import JournalError, JournalLocked

MOUNTS: Final = Path("/proc/self/mountinfo")
NETWORK: Final = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
        "orangefs", "panfs", "smb3", "smbfs",
    }
)  # fmt: skip
NETWORK_FUSE: Final = ("ceph", "davfs", "gcsfuse", "glusterfs", "goofys", "juicefs", "rclone", "s3fs", "sshfs")
"""What stands in a FUSE file system's type ("fuse.sshfs"), or in its source ("s3fs"), where it goes over a network."""


LOCK_TRIES: Final = 5
LOCK_AGAIN_S: Final = 0.01
"""Tries to take a journal's lock, and the pause between two."""


def check_place(path: Path, *, allow_network: bool) -> None:
    """Raise JournalError where a journal cannot be kept. Only looks."""
    try:
        found = path.stat()
    except FileNotFoundError:
        found = None
    except OSError as e:
        raise JournalError(f"{path} cannot be a journal: {e.strerror}") from e
    if found is not None and not stat.S_ISREG(found.st_mode):
        what = "a directory" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise JournalError(f"{path} cannot be a journal: it is {what}; give the path of a file")
    there = path.parent
    while not there.exists():
        there = there.parent
    kind = file_system(there)
    if kind is not None and not allow_network:
        text = (
            f"{path} is on a network file system ({kind}), where locks and shared memory between processes cannot be "
            "trusted: put the journal on a local disk (its hosts and logs may be elsewhere). If only this machine ever "
            "uses that folder, Kernel(path, allow_network_file_system=True) opens it all the same"
        )
        raise JournalError(text)
    if there == path.parent and not os.access(there, os.W_OK | os.X_OK):
        raise JournalError(f"{path} cannot be a journal: the folder {there} cannot be written to")
    if found is not None and not os.access(path, os.R_OK | os.W_OK):
        raise JournalError(f"{path} cannot be a journal: the file cannot be read and written")


def file_system(folder: Path) -> str | None:
    """The type of the network file system that a folder is on; None: it is on a local one, or nobody knows."""
    try:
        device = folder.stat().st_dev
        lines = MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return None
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:  # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
        fields, _, rest = line.partition(" - ")
        if fields.split()[2:3] == [wanted]:
            kind, source, *_ = [*rest.split(), "", ""]
            if kind in NETWORK:
                return kind
            if kind.startswith("fuse") and any(name in f"{kind} {source}" for name in NETWORK_FUSE):
                return kind
    return None


def lock(path: Path, journal: Path) -> int:
    """Hold the journal's lock file for as long as the returned descriptor is open, the process being killed included.

    Raises:
        JournalLocked: another kernel holds it.
        JournalError: the file cannot be used.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise JournalError(f"cannot open the lock file {path}: {e.strerror}") from e
    try:
        _take(fd)
        text = {
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(sys.argv)[:200],
            "pid_namespace": _pid_namespace(),
        }
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(text).encode(errors="backslashreplace"), 0)
    except BlockingIOError:
        holder = _holder(os.pread(fd, 4096, 0))
        os.close(fd)
        raise JournalLocked(f"{journal} is held by another kernel: {holder}") from None
    except OSError as e:
        os.close(fd)
        raise JournalError(f"cannot lock {path}: {e.strerror}") from e
    return fd


def _take(fd: int) -> None:
    """Lock it. Somebody may be looking just now whether it is held (`holder_of`), which takes microseconds."""
    for _ in range(LOCK_TRIES - 1):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(LOCK_AGAIN_S)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def holder_of(path: Path) -> str | None:
    """Who holds a journal, by its lock file; None: nobody does. Only looks.

    Raises:
        JournalError: the file cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise JournalError(f"cannot open the lock file {path}: {e.strerror}") from e
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _holder(os.pread(fd, 4096, 0))
    finally:
        os.close(fd)


def _holder(text: bytes) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        found = json.loads(text)
        elsewhere = found["pid_namespace"] != _pid_namespace() and found["host"] == os.uname().nodename
        where = " (as its container sees it)" if elsewhere else ""
        return f"process {found['pid']}{where} on {found['host']} since {found['since']}, {found['command']!r}"
    return text.decode(errors="replace").strip() or "a process that has not said who it is"


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def bytes_of(path: Path) -> int:
    """What a journal's files take, the write-ahead one included."""
    return sum(os.stat(file).st_size for file in (path, f"{path}-wal") if os.path.exists(file))


def sync_folder(folder: Path) -> None:
    """Make new names in a folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
