"""Where a kernel's control socket is, and how it is found from its journal's path.

The socket is where told, else beside the journal (`<journal>.d/control.sock`), else in the short runtime folder: its
path has to stay under 100 bytes. `<journal>.d/control.json` says where. It may be left of a kernel that was
killed: whether one runs is told by the journal's lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from ..core.errors import AnyBatchError, ControlError, InvalidValue, NotRunning

SOCKET_NAME: Final = "control.sock"
SOCKET_PATH_BYTES_MAX: Final = 99
"""Of a Unix socket's path: what all systems allow is a little more."""
BACKLOG: Final = 128
"""Connections that wait to be taken."""
PROBE_S: Final = 2.0
"""How long to wait for somebody else's socket to answer before its place is taken."""


class Record(msgspec.Struct, frozen=True):
    """What `control.json` says."""

    socket: str
    pid: int
    kernel_id: str
    anybatch: str


def files_of(journal: Path) -> Path:
    """The folder beside a journal."""
    return journal.with_name(journal.name + ".d")


def write_record(files: Path, record: Record) -> None:
    """Say where the socket is."""
    part = files / f"control.json.{os.getpid()}"
    part.touch(mode=0o600)
    part.write_bytes(msgspec.json.encode(record) + b"\n")
    part.replace(files / "control.json")


def remove_record(files: Path) -> None:
    """Say that there is none."""
    with contextlib.suppress(OSError):
        (files / "control.json").unlink()


def read_record(journal: Path) -> Record | None:
    """What the newest kernel on this journal with a socket has said; None: nothing."""
    try:
        return msgspec.json.decode((files_of(journal) / "control.json").read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError):
        return None


def holder(journal: Path) -> str | None:
    """Who holds a journal, for people; None: nobody does."""
    try:
        fd = os.open(files_of(journal) / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            found = json.loads(os.pread(fd, 4096, 0))
            return f"process {found['pid']} on {found['host']} since {found['since']}, {found['command']!r}"
        return "a process that has not said who it is"
    finally:
        os.close(fd)  # and with it that lock
    return None


def find_socket(path: Path) -> Path:
    """The socket to talk to, from its own path or from the journal's.

    Raises:
        NotRunning: there is none.
    """
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(path.stat().st_mode):
            return path
    record, held = read_record(path), holder(path)
    if record is not None:
        if held is None:
            raise NotRunning(f"no kernel runs on {path}: the last one, process {record.pid}, was killed")
        return Path(record.socket)
    if held is not None:
        text = f"the kernel on {path} has no control socket: it was opened without Kernel(path, control=True) ({held})"
        raise NotRunning(text)
    if not path.exists():
        raise NotRunning(f"no kernel runs on {path}: there is neither a journal nor a control socket")
    raise NotRunning(f"no kernel runs on {path}")


def unreachable(path: Path, error: OSError) -> AnyBatchError:
    """Why nobody has taken a call."""
    if isinstance(error, PermissionError):
        return ControlError(f"the control socket {path} is not for this user: {error.strerror}")
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return NotRunning(f"no kernel listens on {path}: it has ended, or was killed")
    return ControlError(f"the control socket {path} cannot be used: {error.strerror or error}")


# -- the server's side ------------------------------------------------------------------------------


def listen(told: Path | None, files: Path, runtime_dir: Callable[[], Path]) -> tuple[socket.socket, Path]:
    """A listening socket of mode 0600, and its path. The caller holds the journal.

    Raises:
        InvalidValue: the path that was told is too long.
        ControlError: it cannot be made there (or nowhere); or another process listens there.
    """
    if told is not None:
        path = Path(os.path.abspath(told))
        if _too_long(path):
            allowed = f"a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes"
            raise InvalidValue("control", str(path), allowed)
        _make_room(path, mine=False)
        try:
            return _bind(path), path
        except OSError as e:
            raise ControlError(f"the control socket {path} cannot be made: {e.strerror or e}") from e
    tried = []
    for path in _places(files, runtime_dir):
        try:
            _make_room(path, mine=True)
            return _bind(path), path
        except OSError as e:
            tried.append(f"{path}: {e.strerror or e}")
    raise ControlError(f"there is no place for a control socket ({'; '.join(tried)}); give its path as control=")


def _places(files: Path, runtime_dir: Callable[[], Path]) -> Iterator[Path]:
    beside = Path(os.path.abspath(files)) / SOCKET_NAME
    if not _too_long(beside):
        yield beside
    yield runtime_dir() / SOCKET_NAME


def _too_long(path: Path) -> bool:
    return len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX


def _make_room(path: Path, *, mine: bool) -> None:
    """Remove a socket that nobody listens on any more. `mine`: nobody else can, for the journal is held."""
    try:
        kind = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(kind):
        raise ControlError(f"the control socket {path} cannot be made: something else is there")
    if not mine:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PROBE_S)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                pass
            except OSError as e:
                raise ControlError(f"the control socket {path} cannot be made: {e.strerror or e}") from e
            else:
                raise ControlError(f"the control socket {path} is another process's, which listens there")
    path.unlink()


def _bind(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(made.fileno(), 0o600)  # on Linux, the mode that the path will have from the first moment
        made.bind(str(path))
        path.chmod(0o600)
        made.listen(BACKLOG)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def peer_uid(connection: socket.socket) -> int | None:
    """The user on the other side; None: the system does not tell, and the socket's mode has to do."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    size = struct.calcsize("3i")
    uid: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, option, size))[1]
    return uid
