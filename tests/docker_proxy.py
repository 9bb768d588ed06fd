"""A socket in front of an engine's, by which a test cuts the connection or keeps the engine's answers back."""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path

REQUEST = re.compile(rb"^([A-Z]+) (\S+) HTTP/1\.1\r\n", re.MULTILINE)


class Proxy:
    """`async with` it; `url` is the engine's for who goes through it: a Unix socket at `path`, without one TCP."""

    def __init__(self, path: Path | None, engine: str) -> None:
        self.path = path
        self.url = f"unix://{path}"
        self.keep_back: re.Pattern[bytes] | None = None
        """From the first request like this ("POST /containers/create...") on, nothing comes back from the engine."""
        self.kept_back = asyncio.Event()
        """Such a request has come, and was passed on."""
        self.connections = 0
        self.connections_max = 0
        self.requests: list[bytes] = []
        self._engine = engine
        self._deaf = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def open(self) -> None:
        """Pass everything on (again)."""
        self._deaf, self.keep_back = False, None
        self.kept_back.clear()
        if self.path is not None:
            self._server = await asyncio.start_unix_server(self._serve, self.path)
        else:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.url = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def cut(self) -> None:
        """Close every connection, and take no new one."""
        if self._server is not None:
            self._server.close()
        self.drop()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def drop(self) -> None:
        """Close every connection there is."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        self.connections_max = max(self.connections, self.connections_max)
        try:
            there, onwards = await asyncio.open_unix_connection(self._engine)
            self._writers |= {writer, onwards}
            try:
                await asyncio.gather(
                    self._copy(reader, onwards, requests=True), self._copy(there, writer, requests=False)
                )
            finally:
                self._writers -= {writer, onwards}
                onwards.transport.abort()
        except OSError:
            pass
        finally:
            self.connections -= 1
            writer.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, requests: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if requests:
                    self._look(data)
                elif self._deaf:
                    continue
                writer.write(data)
                await writer.drain()
        if requests or not self._deaf:
            writer.transport.abort()

    def _look(self, data: bytes) -> None:
        for match in REQUEST.finditer(data):
            line = b" ".join(match.groups())
            self.requests.append(line)
            if self.keep_back is not None and self.keep_back.search(line):
                self._deaf = True
                self.kept_back.set()
