"""What a disk holds after a power cut, from the system calls of a process that strace has written down.

What was written to a file is safe once a sync that began after the write has ended. Of the rest a power cut keeps
what it likes: `Disk.image` gives what is left if it keeps nothing of it, or what a chance keeps.
"""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from allowed_skips import NEEDS_STRACE

CALLS = "openat,pwrite64,write,ftruncate,fsync,fdatasync,rename,unlink,link,mkdir,mmap"
HEX = re.compile(r"(?:\\x[0-9a-f]{2})+")
CALL = re.compile(r"^(?P<pid>\d+) +(?P<name>\w+)\((?P<rest>.*)$", re.DOTALL)
RESUMED = re.compile(r"^(?P<pid>\d+) +<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)$", re.DOTALL)
FILE = re.compile(r"^\d+<(?P<path>[^>]*)>", re.DOTALL)
PATHS = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def text(value: str) -> str:
    return HEX.sub(lambda found: bytes.fromhex(found.group().replace("\\x", "")).decode("latin-1"), value)


class Write(NamedTuple):
    """`data` None: the file is cut (or stretched) to `at`."""

    at: int
    data: bytes | None


class Change(NamedTuple):
    """One thing that happened: a `write`, a sync that ended (of the writes before `upto`), a `rename`, an `unlink`."""

    kind: str
    path: str
    write: Write | None = None
    upto: int = 0
    target: str = ""


def trace(command: Sequence[str], output: Path) -> list[Change]:
    """Run a program under strace, and return what it changed on disk, in order. Skips where that cannot be done."""
    tracer = shutil.which("strace")
    if (
        tracer is None
        or subprocess.run([tracer, "-o", "/dev/null", "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip(NEEDS_STRACE)
    options = ["-f", "-y", "-xx", "-s", "10000000", "-e", f"trace={CALLS}", "-o", str(output)]
    done = subprocess.run([tracer, *options, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(_changes(output.read_text().splitlines()))


def _changes(lines: list[str]) -> Iterator[Change]:
    count = 0
    begun: dict[str, tuple[str, int]] = {}
    for line in lines:
        if found := RESUMED.match(line):
            start, upto = begun.pop(found["pid"])
            name, rest = found["name"], start + found["rest"]
        elif found := CALL.match(line):
            name, rest, upto = found["name"], found["rest"], count
            if rest.endswith("<unfinished ...>"):
                begun[found["pid"]] = (rest.removesuffix("<unfinished ...>").rstrip(), count)
                continue
        else:
            continue
        if " = -1 " in rest[-200:]:
            continue
        for change in _change(name, rest, upto):
            count += 1
            yield change


def _change(name: str, rest: str, upto: int) -> Iterator[Change]:
    file = FILE.match(rest)
    path = text(file["path"]) if file is not None else ""
    strings = [bytes.fromhex(found.replace("\\x", "")) for found in PATHS.findall(rest)]
    if name == "pwrite64":
        length, at = (int(n) for n in re.split(r"[ ,()=]+", rest.rsplit('"', 1)[1].rsplit(")", 1)[0])[1:3])
        assert length == len(strings[0])
        yield Change("write", path, Write(at, strings[0]))
    elif name == "write":
        yield Change("append", path, Write(-1, strings[0]))
    elif name == "ftruncate":
        yield Change("write", path, Write(int(rest.split(", ")[1].split(")")[0], 0), None))
    elif name in ("fsync", "fdatasync"):
        yield Change("sync", path, upto=upto)
    elif name == "rename":
        yield Change("rename", strings[0].decode(), target=strings[1].decode())
    elif name == "unlink":
        yield Change("unlink", strings[0].decode())
    elif name == "mmap":
        assert not ("MAP_SHARED" in rest and "PROT_WRITE" in rest) or "-shm" in text(rest), "written without a call"


class File:
    def __init__(self) -> None:
        self.safe = bytearray()
        self.loose: list[tuple[int, Write]] = []

    def sync(self, upto: int) -> None:
        for number, write in self.loose:
            if number < upto:
                _apply(self.safe, write)
        self.loose = [entry for entry in self.loose if entry[0] >= upto]

    def content(self, chance: random.Random | None) -> bytes:
        found = bytearray(self.safe)
        for _, write in self.loose:
            if chance is not None and chance.random() < 0.5:
                _apply(found, write)
        return bytes(found)


def _apply(content: bytearray, write: Write) -> None:
    if write.data is None:
        del content[write.at :]
        content.extend(bytes(write.at - len(content)))
        return
    content.extend(bytes(max(0, write.at - len(content))))
    content[write.at : write.at + len(write.data)] = write.data


class Disk:
    """The files under one folder, at any point of a trace. Names are taken to be safe at once."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.files: dict[str, File] = {}
        self.number = 0

    def take(self, change: Change) -> None:
        number = self.number
        self.number += 1
        if not change.path.startswith(self.root):
            return
        if change.kind == "write" and change.write is not None:
            self.files.setdefault(change.path, File()).loose.append((number, change.write))
        elif change.kind == "sync" and change.path in self.files:
            self.files[change.path].sync(change.upto)
        elif change.kind == "rename":
            self.files[change.target] = self.files.pop(change.path)
        elif change.kind == "unlink":
            self.files.pop(change.path, None)

    def image(self, to: Path, chance: random.Random | None = None) -> None:
        """The folder as it is after a power cut now."""
        for path, file in self.files.items():
            if path.endswith("-shm"):
                continue
            target = to / Path(path).relative_to(self.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.content(chance))


def acknowledgements(changes: Sequence[Change], path: Path) -> Iterator[tuple[int, str]]:
    """(position, line) of each line that the program wrote to a file with one `write` each."""
    for n, change in enumerate(changes):
        if change.kind == "append" and change.path == str(path) and change.write is not None:
            with contextlib.suppress(AttributeError):
                yield n, (change.write.data or b"").decode().strip()
