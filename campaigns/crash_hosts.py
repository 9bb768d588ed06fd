"""Real sshds for the crash campaign: hosts of this machine on loopback addresses, killed and started again.

Needs OpenSSH's sshd and ssh-keygen. What runs on such a host is found in /proc like any local process.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

ANSWER_S_MAX = 30.0
"""For an sshd to answer once it is started."""
CONFIG = """
ListenAddress {address}
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/client_key.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PrintMotd no
"""


class NoAnswer(Exception):
    """An sshd cannot be started; the message says why."""


class Hosts:
    """So many hosts, each an sshd with a port of its own, and one key for all of them."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        folder.mkdir()
        folder.chmod(0o755)
        for name in ("host_key", "client_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        base = os.getpid() % 60_000
        self.addresses = [f"127.{64 + base // 250}.{base % 250}.{1 + n}" for n in range(count)]
        self.ports = [_free_port(address) for address in self.addresses]
        self.listeners: list[int | None] = [None] * count
        for n in range(count):
            self.start(n)

    def options(self, vcpus: int) -> dict[str, Any]:
        """An environment's options that name them; each offers so many vCPUs."""
        entry = {
            "user": pwd.getpwuid(os.getuid()).pw_name, "identity": [str(self.folder / "client_key")],
            "host_key": (self.folder / "host_key.pub").read_text().strip(), "vcpus": vcpus, "memory": 4096,
        }  # fmt: skip
        places = zip(self.addresses, self.ports, strict=True)
        hosts = {f"h{n}": {"address": at, "port": port, **entry} for n, (at, port) in enumerate(places)}
        # Hosts whose agents are killed all the time are to be used again soon.
        return {
            "hosts": hosts, "folder": str(self.folder / "far"), "ssh_config": "none", "use_agent": False,
            "keepalive": 1, "quarantine": 0.5,
        }  # fmt: skip

    def start(self, n: int) -> None:
        """Start one, and wait until it answers."""
        address, port, config = self.addresses[n], self.ports[n], self.folder / f"sshd_config.{n}"
        config.write_text(CONFIG.format(address=address, port=port, folder=self.folder))
        sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if sshd is None:
            raise NoAnswer("there is no sshd: install OpenSSH's server")
        with (self.folder / f"sshd.log.{n}").open("ab") as log:
            command = [sshd, "-D", "-e", "-f", str(config)]
            # No Popen: whoever runs the campaign reaps every child.
            self.listeners[n] = os.posix_spawn(
                sshd, command, os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, log.fileno(), 1), (os.POSIX_SPAWN_DUP2, log.fileno(), 2)],
            )  # fmt: skip
        until = time.monotonic() + ANSWER_S_MAX
        while True:
            with contextlib.suppress(OSError), socket.create_connection((address, port), 1) as sock:
                if sock.recv(4) == b"SSH-":
                    return
            if time.monotonic() > until:
                raise NoAnswer(f"sshd on {address}:{port} does not answer: see {self.folder}/sshd.log.{n}")
            time.sleep(0.01)

    def kill(self, n: int, what: str) -> bool:
        """SIGKILL its `listener`, its `sessions` or `all` of it; whether there was any."""
        listener = self.listeners[n]
        if listener is None:
            return False
        sessions = descendants(listener) if what != "listener" else []
        for pid in ([] if what == "sessions" else [listener]) + sessions:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if what != "sessions":
            self.listeners[n] = None
        return what != "sessions" or bool(sessions)

    def close(self) -> None:
        for n in range(len(self.listeners)):
            self.kill(n, "all")


def descendants(pid: int) -> list[int]:
    """All processes below this one: of an sshd its connections, their login shells, and our program there."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _free_port(address: str) -> int:
    with socket.socket() as sock:
        sock.bind((address, 0))
        return int(sock.getsockname()[1])
