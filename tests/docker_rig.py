"""A Docker Engine to test on: one that is there, else a private one of Debian's docker.io, on a socket of its own.

`ANYBATCH_TEST_DOCKER` names an engine to use (also Podman's Docker-compatible socket); otherwise a private `dockerd` is
started where it may be (as root), and with it go, at the end, everything that it has made: processes, mounts,
cgroups, files. The image is made without a registry, of Debian's busybox-static.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

IMAGE = "anybatch-test:busybox"
START_S = 60.0
STOP_S = 30.0
PR_SET_PDEATHSIG = 1
DEFAULT_COMMAND = ["sh", "-c", "echo the image itself"]


class NoEngine(Exception):
    """There is none, and why."""


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class TestEngine:
    """An engine, asked without the backend's own client."""

    __test__ = False

    def __init__(self, path: str) -> None:
        self.path = path
        self.url = f"unix://{path}"

    def ask(self, method: str, target: str, body: Any = None, raw: bytes | None = None) -> Any:
        """A request; returns what came back, of JSON the value. Raises RuntimeError for a refusal."""
        connection = UnixConnection(self.path)
        try:
            data = raw if raw is not None else None if body is None else json.dumps(body).encode()
            kind = "application/x-tar" if raw is not None else "application/json"
            connection.request(method, target, data, {"Content-Type": kind})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {target}: {answer.status} {text[:300]!r}")
        with contextlib.suppress(ValueError):
            return json.loads(text)
        return text

    def is_there(self) -> bool:
        with contextlib.suppress(OSError, RuntimeError, http.client.HTTPException):
            self.ask("GET", "/version")
            return True
        return False

    def containers(self, **labels: str) -> list[dict[str, Any]]:
        """Those with these labels, by our names."""
        wanted = [f"anybatch.{name}={value}" for name, value in labels.items()] or ["anybatch.kernel"]
        found: list[dict[str, Any]] = self.ask(
            "GET", f"/containers/json?all=1&filters={quote(json.dumps({'label': wanted}))}"
        )
        return found

    def inspect(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", f"/containers/{container}/json")
        return found

    def make_image(self, name: str = IMAGE) -> None:
        repository, _, tag = name.partition(":")
        change = f"CMD {json.dumps(DEFAULT_COMMAND)}"
        query = urlencode({"fromSrc": "-", "repo": repository, "tag": tag, "changes": change})
        said = self.ask("POST", f"/images/create?{query}", raw=root_file_system())
        image = said["status"] if isinstance(said, dict) else json.loads(said.splitlines()[-1])["status"]
        self.ask(
            "POST", f"/images/{image}/tag?{urlencode({'repo': repository, 'tag': tag})}"
        )  # Podman's import does not


def root_file_system() -> bytes:
    """A small root file system of busybox, as a tar archive."""
    busybox = next((p for p in ("/bin/busybox", "/usr/bin/busybox") if Path(p).exists()), None)
    if busybox is None:
        raise NoEngine("needs Debian's busybox-static for an image")
    applets = subprocess.run([busybox, "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder in ("bin", "dev", "etc", "proc", "root", "sys", "tmp"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            archive.addfile(entry)
        archive.add(os.path.realpath(busybox), "bin/busybox")
        for applet in applets:
            if applet != "busybox":
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(entry)
        for name, text in (
            ("passwd", "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"),
            ("group", "root:x:0:\n"),
        ):
            entry = tarfile.TarInfo(f"etc/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


class PrivateEngine(TestEngine):
    """A `dockerd` of our own. `stop` and `clean_up` leave nothing of it."""

    __test__ = False

    def __init__(self, *more: str, root: Path | None = None) -> None:
        """`more`: further arguments of dockerd. `root`: its folder, if not a new one."""
        if os.geteuid() != 0:
            raise NoEngine("needs a Docker Engine, or root to start one")
        if shutil.which("dockerd") is None:
            raise NoEngine("needs a Docker Engine: Debian's docker.io")
        self.root = root or Path(tempfile.mkdtemp(prefix="ab-dockerd-", dir="/tmp"))
        self._given = root is not None
        self._more = more
        super().__init__(str(self.root / "docker.sock"))
        self.process: subprocess.Popen[bytes] | None = None
        self.storages: tuple[str | None, ...] = (None, "vfs")
        """Storage drivers to try; the one that works, once that is known. None: the engine's own choice."""

    def start(self) -> None:
        """Start it, or raise NoEngine with what it said."""
        for storage in self.storages:
            self._spawn(storage)
            end = time.monotonic() + START_S
            while time.monotonic() < end and self.process is not None and self.process.poll() is None:
                if self.is_there():
                    self.storages = (storage,)
                    return
                time.sleep(0.05)
            self.stop()
        said = (self.root / "log").read_text(errors="replace").splitlines()[-5:]
        raise NoEngine(f"dockerd does not start here: {' | '.join(said)}")

    def _spawn(self, storage: str | None) -> None:
        (self.root / "daemon.json").write_text("{}")
        arguments = [
            "dockerd", f"--config-file={self.root}/daemon.json", f"--host={self.url}", f"--data-root={self.root}/data",
            f"--exec-root={self.root}/exec", f"--pidfile={self.root}/pid", "--iptables=false", "--ip6tables=false",
            "--bridge=none", "--exec-opt=native.cgroupdriver=cgroupfs", f"--cgroup-parent=/{self.root.name}",
            "--insecure-registry=127.0.0.0/8",
            *([] if storage is None else [f"--storage-driver={storage}"]),
            *self._more,
        ]  # fmt: skip

        def die_with_us() -> None:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=die_with_us,
            )  # fmt: skip

    def kill(self) -> None:
        """As a crash of the engine, not of its containers."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None
        (self.root / "pid").unlink(missing_ok=True)
        # containerd dies with it; where nobody reaps it, the next dockerd would take its process for a living one.
        (self.root / "exec" / "containerd" / "containerd.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        """Stop it in order, within a bound."""
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _left(self) -> list[int]:
        """What still runs of it: everything whose command line has our folder."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and int(folder.name) != os.getpid():
                with contextlib.suppress(OSError):
                    words = (folder / "cmdline").read_bytes().split(b"\0")
                    program = os.path.basename(words[0])
                    ours = any(bytes(self.root) in word for word in words[1:])
                    if ours and program.startswith((b"containerd", b"dockerd", b"docker-proxy")):
                        found.append(int(folder.name))
        return found

    def clean_up(self) -> None:
        """Stop it, and remove what it has made."""
        with contextlib.suppress(OSError, RuntimeError, http.client.HTTPException):
            for one in self.ask("GET", "/containers/json?all=1"):
                self.ask("DELETE", f"/containers/{one['Id']}?force=1&v=1")
        self.stop()
        end = time.monotonic() + STOP_S
        while (left := self._left()) and time.monotonic() < end:
            for process in left:
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)
        for mount in sorted(self._mounts(), reverse=True):
            subprocess.run(["umount", "-l", mount], stderr=subprocess.DEVNULL, check=False)
        if not self._given:
            shutil.rmtree(self.root, ignore_errors=True)
        for top in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*")):
            self._remove_groups(top / self.root.name)

    def _mounts(self) -> list[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [place for line in lines if (place := line.split()[4]).startswith(f"{self.root}/")]

    def _remove_groups(self, folder: Path) -> None:
        if folder.is_dir():
            for child in folder.iterdir():
                if child.is_dir():
                    self._remove_groups(child)
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def engine() -> Iterator[TestEngine]:
    """An engine with the image, for as long as the block lasts. Raises NoEngine."""
    named = os.environ.get("ANYBATCH_TEST_DOCKER", "")
    if named:
        found = TestEngine(named.removeprefix("unix://"))
        if not found.is_there():
            raise NoEngine(f"there is no engine at {named}")
        found.make_image()
        yield found
        return
    private = PrivateEngine()
    try:
        private.start()
        private.make_image()
        yield private
    finally:
        private.clean_up()


@contextlib.contextmanager
def engine_or_skip() -> Iterator[TestEngine]:
    """As `engine`; where there can be none, the test is skipped and says why."""
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(engine())
        except NoEngine as e:
            pytest.skip(str(e))
        yield found
