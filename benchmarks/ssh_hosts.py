"""One SSH host: /bin/true n times through a real sshd on loopback, at most `slots` at once.

Measures attempts/s of an array on the SSH backend (journal on disk, each placement synced), from the call of submit to
the return of wait. With `delay_ms` a TCP proxy in a process of its own holds every piece of data back, half of that
each way. `who` is the peer to measure instead:

- process: the same array on the process backend, on this machine
- session: `slots` coroutines that run /bin/true by one asyncssh session per command, over one connection

The login shell is /bin/sh where a mount namespace can be had (a profile's price is not what is measured), else the
user's.

Needs OpenSSH's sshd and ssh-keygen; without them there are no figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anybatch
import asyncssh
from harness import Figure, Took, figure, folder, kernel, main

TRUE = shutil.which("true") or "/bin/true"
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/client_key.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
MaxSessions 1000
"""


def measure(who: str = "ssh", n: int = 10_000, slots: int = 8, delay_ms: int = 0) -> list[Figure]:
    if SSHD is None or shutil.which("ssh-keygen") is None:
        return []
    name = f"@{slots}" + (f"+{delay_ms}ms" if delay_ms else "")
    with folder() as path:
        took = asyncio.run(RUN[who](path, n, slots, delay_ms))
    if who != "ssh":
        return [figure(f"{who}_per_s{name}", n / took.wall_s, "1/s", better="neither", took=took)]
    return [
        *(figure(f"attempts_per_s{name}/{peer}", n / took.wall_s, "1/s", better="more", took=took,
                 peer=f"{peer}_per_s{name}") for peer in ("process", "session")),
        figure(f"kernel_cpu_us{name}", took.cpu_s / n * 1e6, "us"),
    ]  # fmt: skip


async def array(opened: anybatch.Kernel, n: int) -> Took:
    await opened.register_job_definition("true", command=[TRUE])
    await (await opened.submit_job("first", queue="q", definition="true")).wait()
    with Took() as took:
        job = await opened.submit_job("array", queue="q", definition="true", array_size=n)
        detail = await job.wait()
    assert detail.status is anybatch.JobStatus.SUCCEEDED, detail
    return took


async def over_ssh(path: Path, n: int, slots: int, delay_ms: int) -> Took:
    async with sshd(path, delay_ms) as entry:
        options = {"hosts": {"host": entry | {"vcpus": slots}}, "folder": str(path / "far"), "ssh_config": "none"}
        async with anybatch.Kernel(path / "batch.db", on_close="stop") as opened:
            made = await opened.create_compute_environment("bench", backend="ssh", managed=False, options=options)
            assert [host.state_reason for host in made.hosts] == [None], made
            await opened.create_job_queue("q", priority=1, compute_environments=["bench"])
            return await array(opened, n)


async def process(path: Path, n: int, slots: int, delay_ms: int) -> Took:
    async with kernel(path, backend="process", slots=slots) as opened:
        return await array(opened, n)


async def session(path: Path, n: int, slots: int, delay_ms: int) -> Took:
    left = iter(range(n))
    async with sshd(path, delay_ms) as entry:
        key = asyncssh.import_public_key(entry["host_key"])
        async with asyncssh.connect(
            entry["address"], entry["port"], username=entry["user"], client_keys=entry["identity"],
            known_hosts=([key], [], []), config=[], agent_path=None,
        ) as connection:  # fmt: skip

            async def worker() -> None:
                for _ in left:
                    done = await connection.run(TRUE)
                    assert done.exit_status == 0

            with Took() as took:
                async with asyncio.TaskGroup() as group:
                    for _ in range(slots):
                        group.create_task(worker())
            return took


RUN = {"ssh": over_ssh, "process": process, "session": session}


# -- the host -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def sshd(path: Path, delay_ms: int) -> AsyncIterator[dict[str, Any]]:
    """A real sshd, and what an environment's options say of it."""
    for name in ("host_key", "client_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path / name)], check=True)
    path.chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    port = free_port()
    (path / "sshd_config").write_text(CONFIG.format(port=port, folder=path))
    with contextlib.ExitStack() as stack:
        with (path / "sshd.log").open("wb") as log:
            stack.enter_context(running(command(path), stderr=log))
        await answers(port)
        if delay_ms:
            near = free_port()
            stack.enter_context(running([sys.executable, __file__, "proxy", str(near), str(port), str(delay_ms)]))
            await answers(near)
            port = near
        yield {
            "address": "127.0.0.1", "port": port, "user": pwd.getpwuid(os.getuid()).pw_name,
            "identity": [str(path / "client_key")], "host_key": (path / "host_key.pub").read_text().strip(),
        }  # fmt: skip


def command(path: Path) -> list[str]:
    """sshd, with a passwd that gives this user a plain login shell."""
    plain = [str(SSHD), "-D", "-e", "-f", str(path / "sshd_config")]
    user = pwd.getpwuid(os.getuid())
    others = [line for line in Path("/etc/passwd").read_text().splitlines(True) if f":x:{user.pw_uid}:" not in line]
    own = f"{user.pw_name}:x:{user.pw_uid}:{user.pw_gid}::{user.pw_dir}:/bin/sh\n"
    (path / "passwd").write_text(own + "".join(others))
    inside = ["unshare", "--mount", "sh", "-c", f'mount --bind {path}/passwd /etc/passwd && exec "$@"', "sh"]
    with contextlib.suppress(OSError):
        if subprocess.run([*inside, "true"], capture_output=True).returncode == 0:
            return [*inside, *plain]
    return plain


@contextlib.contextmanager
def running(command: list[str], **more: Any) -> Iterator[None]:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, **more)
    try:
        yield
    finally:
        child.terminate()
        child.wait()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def answers(port: int) -> None:
    end = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            greeting = await reader.read(4)
            writer.close()
            if greeting == b"SSH-":
                return
        assert time.monotonic() < end, f"nothing answers on port {port}"
        await asyncio.sleep(0.02)


# -- the delaying proxy -------------------------------------------------------------------------------


async def proxy(near: int, far: int, delay_ms: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", far)
        for one in (writer, other_writer):
            one.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(pump(reader, other_writer), pump(other_reader, writer))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(1 << 16):
            loop.call_later(delay_ms / 2000, writer.write, data)
        loop.call_later(delay_ms / 2000, writer.close)

    server = await asyncio.start_server(serve, "127.0.0.1", near)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1:2] == ["proxy"]:
        asyncio.run(proxy(*map(int, sys.argv[2:])))
    else:
        main(measure)
