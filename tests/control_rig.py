"""What the tests of the control socket share: a kernel with a client, and peers that speak as they like."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anybatch
from anybatch import Kernel, RemoteKernel
from anybatch.kernel.control import wire
from anybatch.kernel.control.server import ControlServer
from anybatch.testing.null import NullBackend
from kernel_rig import add_queue


@contextlib.asynccontextmanager
async def both(tmp_path: Path, backend: Any = None, **more: Any) -> AsyncIterator[tuple[Kernel, RemoteKernel]]:
    """A kernel with a queue `q`, and a client of it."""
    backends = {"b": NullBackend() if backend is None else backend}
    async with Kernel(tmp_path / "j.db", backends=backends, control=True, **more) as kernel:
        if not await kernel.describe_compute_environments():
            await add_queue(kernel)
        async with anybatch.connect(tmp_path / "j.db") as remote:
            yield kernel, remote


def server_of(kernel: Kernel) -> ControlServer:
    """The server behind a kernel's socket."""
    assert kernel._control is not None
    return kernel._control


class Peer:
    """A client made of bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def receive(self) -> bytes | None:
        return await wire.read_frame(self.reader)

    def send(self, message: Any) -> None:
        self.writer.write(wire.frame(message))

    def hello(self, protocol: int = wire.PROTOCOL) -> None:
        self.send(wire.Hello(anybatch="test", protocol=protocol))

    async def is_cut_off(self) -> bool:
        """Whether the other side ends the connection: waits for it."""
        async with asyncio.timeout(30):
            while await self.receive() is not None:
                pass
        return True


@contextlib.asynccontextmanager
async def peer(kernel: Kernel, *, greets: bool = True) -> AsyncIterator[Peer]:
    """Such a client, connected."""
    assert kernel.control_path is not None
    reader, writer = await asyncio.open_unix_connection(kernel.control_path)
    found = Peer(reader, writer)
    try:
        if greets:
            assert await found.receive() is not None
            found.hello()
        yield found
    finally:
        writer.close()
        writer.transport.abort()
