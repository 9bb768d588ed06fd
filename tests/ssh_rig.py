"""Real sshds for the tests: each a host with an address, a key and a configuration of its own.

`Sshd` runs on a loopback address, as this user. `Machine` is one in network, process and mount namespaces of its own:
its cable can be cut, it can be switched off, and it has a passwd (a login shell) and a clock of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from allowed_skips import NEEDS_NAMESPACE
from anybatch.backends.ssh import SshBackend
from anybatch.kernel.backend import AttemptKey, AttemptSpec, Launch
from anybatch.testing.backend_kit import RecordingContext

SSHD = "/usr/sbin/sshd"
JOB = "6f1e2d3c-1111-4222-8333-444455556666"
DEADLINE_S = 60.0
SUBNETS = 16_000
"""Of 10.64.0.0/10, four addresses each: which ones, the process id says."""

CONFIG = """
Port {port}
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
PrintLastLog no
MaxStartups 100
Subsystem sftp /nonexistent/sftp-server
AllowTcpForwarding yes
"""


def keygen(path: Path) -> str:
    """A new key pair; returns the public key."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text().strip()


class Sshd:
    """One host: an sshd on a loopback address."""

    def __init__(self, folder: Path, name: str, address: str, client_key: Path, **config: str) -> None:
        self.folder, self.name, self.address = folder / name, name, address
        self.folder.mkdir()
        self.folder.chmod(0o755)
        self.client_key = client_key
        self.host_key = keygen(self.folder / "host_key")
        shutil.copy(client_key.with_suffix(".pub"), self.folder / "authorized_keys")
        self.port = self.choose_port()
        self.config = config
        self.process: subprocess.Popen[bytes] | None = None

    def choose_port(self) -> int:
        with socket.socket() as sock:
            sock.bind((self.address, 0))
            return int(sock.getsockname()[1])

    def start(self) -> None:
        """Start sshd, and wait until it answers."""
        Path("/run/sshd").mkdir(exist_ok=True)
        text = CONFIG.format(port=self.port, address=self.address, folder=self.folder)
        own = "".join(f"{key} {value}\n" for key, value in self.config.items())
        (self.folder / "sshd_config").write_text(own + text)  # of two, sshd takes the first
        with (self.folder / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + DEADLINE_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection((self.address, self.port), 1) as sock:
                if sock.recv(4) == b"SSH-":
                    return
            said = (self.folder / "sshd.log").read_text()
            assert self.process.poll() is None, f"sshd has ended: {said}"
            assert time.monotonic() < end, said
            time.sleep(0.02)

    def command(self) -> list[str]:
        return [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]

    def stop(self) -> None:
        """End sshd with all its sessions."""
        process, self.process = self.process, None
        if process is not None:
            for pid in [*descendants(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()

    def entry(self, **more: Any) -> dict[str, Any]:
        """What an environment's options say of it, its key pinned."""
        return {
            "address": self.address, "port": self.port, "user": pwd.getpwuid(os.getuid()).pw_name,
            "identity": [str(self.client_key)], "host_key": self.host_key, **more,
        }  # fmt: skip


class Machine(Sshd):
    """A host in namespaces of its own, with a cable that can be cut."""

    def __init__(
        self, folder: Path, name: str, number: int, client_key: Path, *, shell: str | None = None,
        tmpfs: str | None = None, tmpfs_size: str = "1m", clock_s: int = 0, **config: str,
    ) -> None:  # fmt: skip
        subnet = (os.getpid() * 7 + number) % SUBNETS
        base = (10 << 24) + (64 << 16) + 4 * subnet
        self.near, address = (socket.inet_ntoa((base + n).to_bytes(4, "big")) for n in (1, 2))
        self.namespace, self.cable = f"ab{os.getpid()}-{number}", f"ab{os.getpid() % 100_000}v{number}"
        for command in (
            ["ip", "netns", "add", self.namespace],
            ["ip", "link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.namespace],
            ["ip", "addr", "add", f"{self.near}/30", "dev", self.cable],
            ["ip", "link", "set", self.cable, "up"],
            ["ip", "-n", self.namespace, "addr", "add", f"{address}/30", "dev", "eth0"],
            ["ip", "-n", self.namespace, "link", "set", "eth0", "up"],
            ["ip", "-n", self.namespace, "link", "set", "lo", "up"],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                self.remove()
                pytest.skip(NEEDS_NAMESPACE)
        super().__init__(folder, name, address, client_key, **config)
        self.shell, self.tmpfs, self.tmpfs_size, self.clock_s = shell, tmpfs, tmpfs_size, clock_s

    def choose_port(self) -> int:
        return 22

    def command(self) -> list[str]:
        (self.folder / "tmp").mkdir(exist_ok=True)
        lines = ["mount --make-rprivate /"]
        if self.clock_s:
            lines += self.another_clock()
        if self.shell is not None:
            user = pwd.getpwuid(os.getuid())
            line = f"{user.pw_name}:x:{user.pw_uid}:{user.pw_gid}::{user.pw_dir}:{self.shell}\n"
            others = [
                one for one in Path("/etc/passwd").read_text().splitlines(True) if f":x:{user.pw_uid}:" not in one
            ]
            (self.folder / "passwd").write_text(line + "".join(others))
            lines.append(f"mount --bind {self.folder}/passwd /etc/passwd")
        if self.tmpfs is not None:
            lines.append(f"mount -t tmpfs -o size={self.tmpfs_size},mode=0700 tmpfs {self.tmpfs}")
        lines.append("exec " + " ".join(super().command()))
        inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "sh", "-c", "; ".join(lines)]
        return ["ip", "netns", "exec", self.namespace, *inside]

    def another_clock(self) -> list[str]:
        """Every program of this machine, sshd and the agent among them, sees a clock that is so many seconds off."""
        library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
        if library is None:
            pytest.skip("needs libfaketime (Debian's package faketime)")
        etc = self.folder / "etc"
        if not etc.exists():
            shutil.copytree("/etc", etc, symlinks=True)
            (etc / "ld.so.preload").write_text(f"{library}\n")
            (etc / "faketimerc").write_text(f"{self.clock_s:+}\n")
        return [f"mount --bind {etc} /etc"]

    def stop(self) -> None:
        """Switch it off: every process in it ends at once."""
        super().stop()

    def cut(self) -> None:
        """Cut the cable: nothing arrives any more, and nobody is told."""
        subprocess.run(["ip", "link", "set", self.cable, "down"], check=True)

    def mend(self) -> None:
        subprocess.run(["ip", "link", "set", self.cable, "up"], check=True)

    def remove(self) -> None:
        subprocess.run(["ip", "link", "del", self.cable], capture_output=True)
        subprocess.run(["ip", "netns", "del", self.namespace], capture_output=True)


def descendants(pid: int) -> list[int]:
    """All processes below this one, the deepest first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found[::-1]


class Lab:
    """Hosts, the client's key, and a folder for what anybatch keeps on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client_key = folder / "client_key"
        self.client_public = keygen(self.client_key)
        self.hosts: dict[str, Sshd] = {}

    def sshd(self, name: str, **config: str) -> Sshd:
        """Start a host on a loopback address of its own."""
        address = f"127.0.{1 + os.getpid() % 250}.{10 + len(self.hosts)}"
        host = self.hosts[name] = Sshd(self.folder, name, address, self.client_key, **config)
        host.start()
        return host

    def machine(self, name: str, **more: Any) -> Machine:
        """Start a host in namespaces of its own."""
        host = Machine(self.folder, name, len(self.hosts), self.client_key, **more)
        self.hosts[name] = host
        host.start()
        return host

    def options(self, *names: str, **more: Any) -> dict[str, Any]:
        """Options of an environment with these hosts (all, if none is named)."""
        chosen = names or tuple(self.hosts)
        return {
            "hosts": {name: self.hosts[name].entry() for name in chosen}, "folder": str(self.folder / "far"),
            "ssh_config": "none", "use_agent": False, **more,
        }  # fmt: skip

    def close(self) -> None:
        for host in self.hosts.values():
            host.stop()
            if isinstance(host, Machine):
                host.remove()
        end_agents(self.folder)


def end_agents(folder: Path) -> None:
    """End the agents that keep their things below a folder, by the ids that their lock files tell."""
    for lock in folder.rglob("agent.lock"):
        lock.unlink(missing_ok=True)  # an agent whose folder is gone ends its attempts and itself
    for line in agents_below(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(line, signal.SIGTERM)


def agents_below(folder: Path) -> list[int]:
    """The process ids of agents whose state is below a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"--state" in words and str(folder).encode() in words[words.index(b"--state") + 1]:
                found.append(int(entry.name))
    return found


@pytest.fixture
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="ab-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        made = Lab(Path(folder))
        try:
            yield made
        finally:
            made.close()


def key(index: int = 0, number: int = 1, job: str = JOB) -> AttemptKey:
    return AttemptKey(job, index, number)


def shell(text: str, **fields: Any) -> AttemptSpec:
    return AttemptSpec(command=("/bin/sh", "-c", text), **fields)


def launch(spec: AttemptSpec, indexes: Sequence[int] = (0,), *, host: str, number: int = 1, **fields: Any) -> Launch:
    job = fields.pop("job", JOB)
    return Launch(job_id=job, number=number, indexes=list(indexes), host=host, spec=spec, **fields)


class Bench:
    """A backend on a lab, with a context that writes down what it is told."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.backends: list[SshBackend] = []

    async def open(
        self, known: Sequence[Launch] = (), *hosts: str, durable: bool = True, name: str = "lab", **options: Any
    ) -> tuple[SshBackend, RecordingContext]:
        context = RecordingContext(
            self.lab.folder, options=self.lab.options(*hosts, **options), durable=durable, name=name
        )
        backend = SshBackend()
        self.backends.append(backend)
        await backend.start(context, known)
        return backend, context


@pytest_asyncio.fixture
async def bench(lab: Lab) -> AsyncIterator[Bench]:
    made = Bench(lab)
    yield made
    for backend in made.backends:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(backend.close(), DEADLINE_S)


async def output(backend: SshBackend, attempt: AttemptKey, *, follow: bool = False) -> bytes:
    return b"".join([piece async for piece in backend.logs(attempt, follow=follow)])


async def until(context: RecordingContext, condition: Any, what: str = "") -> None:
    assert await context.until(condition, DEADLINE_S), what or "it never came to that"
