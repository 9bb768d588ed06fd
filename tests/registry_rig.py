"""A real registry (Debian's docker-registry) on loopback, and a gate in front of it that keeps what it sends back."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from docker_rig import IMAGE, TestEngine, UnixConnection

START_S = 60.0
USER, PASSWORD = "user", "secret"
HTPASSWD = "user:$2y$05$6pJnJCP/L4dNHS5nHknQKeC4s5uEdkFthLwLl.gDhynyOh2PzQO3a\n"
"""As `htpasswd -nbB user secret` has it."""
PADDING = 6 << 20
"""Bytes of an image's own that cannot be compressed: it has to be long enough for its progress to be told."""


class Registry:
    """A registry of its own folder; `at` is its "host:port"."""

    def __init__(self, folder: Path, *, auth: bool = False) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.at = f"127.0.0.1:{probe.getsockname()[1]}"
        self._log = folder / "log"
        self._auth = auth
        (folder / "users").write_text(HTPASSWD)
        access = {"htpasswd": {"realm": "test", "path": str(folder / "users")}}
        about = {
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
            "http": {"addr": self.at},
            **({"auth": access} if auth else {}),
        }
        (folder / "config.yml").write_text(json.dumps(about))  # JSON is YAML
        with self._log.open("wb") as log:
            arguments = ["docker-registry", "serve", str(folder / "config.yml")]
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log)
        end = time.monotonic() + START_S
        while not self._answers():
            assert time.monotonic() < end, self._log.read_text()
            assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"http://{self.at}/v2/", timeout=5).close()
        except urllib.error.HTTPError:
            return True  # it wants to know who asks
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def push(self, engine: TestEngine, name: str, tag: str) -> None:
        """Have an image there, with bytes of its own, and not on the engine."""
        image = f"{self.at}/{name}:{tag}"
        made = engine.ask(
            "POST", "/containers/create", {"Image": IMAGE, "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}
        )["Id"]
        engine.ask("PUT", f"/containers/{made}/archive?path=/", raw=padding())
        engine.ask(
            "POST", f"/commit?container={made}&repo={self.at}/{name}&tag={tag}", {"Cmd": ["echo", f"{tag} runs"]}
        )
        engine.ask("DELETE", f"/containers/{made}?force=1")
        user = {"username": USER, "password": PASSWORD, "serveraddress": self.at} if self._auth else {}
        connection = UnixConnection(engine.path)
        with contextlib.closing(connection):
            auth = base64.urlsafe_b64encode(json.dumps(user).encode()).decode()
            connection.request("POST", f"/images/{self.at}/{name}/push?tag={tag}", headers={"X-Registry-Auth": auth})
            said = connection.getresponse().read()
        assert b'"error"' not in said, said
        engine.ask("DELETE", f"/images/{image}?force=1")

    def manifests(self, name: str) -> int:
        """How often its manifest was fetched: whenever it was pulled."""
        return len(re.findall(rf'"(?:GET|HEAD) /v2/{name}/manifests/\S+ HTTP', self._log.read_text()))

    def blobs(self, name: str) -> list[str]:
        """The layers and configurations that were fetched, each time by an engine that did not have them."""
        return re.findall(rf'"GET /v2/{name}/blobs/(\S+) HTTP', self._log.read_text())

    def layers(self, name: str, tag: str) -> list[str]:
        """Of an image: its layers and its configuration."""
        request = urllib.request.Request(f"http://{self.at}/v2/{name}/manifests/{tag}")
        request.add_header("Accept", "application/vnd.docker.distribution.manifest.v2+json")
        with urllib.request.urlopen(request, timeout=START_S) as answer:
            found = json.load(answer)
        return [one["digest"] for one in (found["config"], *found["layers"])]


def padding() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("padding")
        entry.size = PADDING
        archive.addfile(entry, io.BytesIO(os.urandom(PADDING)))
    return buffer.getvalue()


@contextlib.contextmanager
def registry(*, auth: bool = False) -> Iterator[Registry]:
    """A registry for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="ab-registry-", dir="/tmp") as folder:
        made = Registry(Path(folder), auth=auth)
        try:
            yield made
        finally:
            made.close()


def is_installed() -> bool:
    return shutil.which("docker-registry") is not None


class Gate:
    """Passes on to a registry; `at` is what an image's name has instead of the registry's."""

    def __init__(self) -> None:
        self.at = ""
        self.open = asyncio.Event()
        """While it is not set, a connection gets no more than its first bytes."""


@contextlib.asynccontextmanager
async def gate(registry: Registry, most: int) -> AsyncIterator[Gate]:
    """A gate that keeps back what the registry sends beyond `most` bytes of one connection, until it is opened."""
    made, tasks = Gate(), set[asyncio.Task[None]]()
    host, _, port = registry.at.partition(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        there, onwards = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(copy(reader, onwards, 1 << 62), copy(there, writer, most))
        except OSError:
            pass
        finally:
            onwards.transport.abort()
            writer.transport.abort()
            tasks.discard(task)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int) -> None:
        passed = 0
        while data := await reader.read(1 << 16):
            passed += len(data)
            if passed > most:
                await made.open.wait()
            writer.write(data)
            await writer.drain()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made.at = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        made.open.set()
        server.close()
        if tasks:
            for task in list(tasks):
                task.cancel()
            await asyncio.wait(list(tasks))
