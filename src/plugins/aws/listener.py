"""Connections: how many there may be, and how long one may take to say what it wants."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import web

from .settings import BODY_BYTES_MAX, CONNECTIONS_MAX, IDLE_S_MAX, READ_S_MAX

HEADERS_MAX: Final = 100


class Listener(web.Server):
    """aiohttp's server with bounds: connections at a time, the time to the first request, the size of a body.

    Those beyond the bound are closed at once. Later requests of a connection have aiohttp's own bound (`IDLE_S_MAX`).
    """

    def __init__(self, handler: Any) -> None:
        super().__init__(
            handler,
            request_factory=self._request,
            access_log=None,
            keepalive_timeout=IDLE_S_MAX,
            max_headers=HEADERS_MAX,
        )
        self._open = 0
        self._asked: set[Any] = set()

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        """A client has connected."""
        super().connection_made(handler, transport)
        self._open += 1
        if self._open > CONNECTIONS_MAX:
            transport.abort()
            return
        asyncio.get_running_loop().call_later(READ_S_MAX, self._check, handler, transport)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        """A client has gone."""
        self._open -= 1
        self._asked.discard(handler)
        super().connection_lost(handler, exc)

    def _check(self, handler: Any, transport: asyncio.Transport) -> None:
        if handler not in self._asked:  # a client that has gone is not there either, and aborting it does nothing
            transport.abort()

    def _request(
        self, message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]
    ) -> web.BaseRequest:
        self._asked.add(protocol)
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=BODY_BYTES_MAX)
