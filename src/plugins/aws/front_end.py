"""AwsFrontEnd: the AWS Batch HTTP API on a kernel."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Final, Self

from aiohttp import web
from anybatch import InvalidValue, Kernel

from .call import Api
from .server import Server
from .settings import BODY_BYTES_MAX, IDLE_S_MAX, AwsSettings, check_settings

DEFAULT_BIND: Final = "127.0.0.1:8642"
STOP_S_MAX: Final = 10.0
"""How long calls that are being answered may go on when the front end closes."""


def parse_bind(bind: str) -> tuple[str, int]:
    """`host:port`, or `[address]:port` for IPv6; port 0 is any free one."""
    host, colon, port = bind.rpartition(":")
    if not colon or not port.isdecimal() or not port.isascii() or not 0 <= int(port) <= 65535 or not host:
        raise InvalidValue("bind", bind, "it is host:port, such as 127.0.0.1:8642")
    return host.removeprefix("[").removesuffix("]"), int(port)


class AwsFrontEnd:
    """Serves a kernel to clients of AWS Batch while the `async with` lasts.

        async with anybatch.Kernel("batch.db") as kernel, AwsFrontEnd(kernel) as front_end:
            print(front_end.url)

    Calls that are being answered when it closes are finished, for up to 10 s.
    """

    def __init__(self, kernel: Kernel, *, bind: str = DEFAULT_BIND, settings: AwsSettings | None = None) -> None:
        self._kernel = kernel
        self._host, self._port = parse_bind(bind)
        self.settings = check_settings(settings or AwsSettings())
        self._runner: web.ServerRunner | None = None

    async def __aenter__(self) -> Self:
        server = Server(Api(self._kernel, self.settings))
        runner = web.ServerRunner(
            web.Server(server.handle, request_factory=_request, access_log=None, keepalive_timeout=IDLE_S_MAX),
            shutdown_timeout=STOP_S_MAX,
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self._port)
            await site.start()
            self._port = runner.addresses[0][1]
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await asyncio.shield(runner.cleanup())

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def url(self) -> str:
        """What clients take as their endpoint."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"


def _request(
    message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]
) -> web.BaseRequest:  # fmt: skip
    """A request whose body is refused while it arrives if it is too large."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=BODY_BYTES_MAX)
