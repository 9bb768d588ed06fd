"""The link to an agent runs on any event loop's transports."""

from __future__ import annotations

import asyncio

import pytest
from anybatch.backends._agent_link import Link


class ForeignTransport(asyncio.BaseTransport):
    """As uvloop's: it has what a transport has, and is no asyncio.Transport."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.written += data


@pytest.mark.asyncio
async def test_a_link_takes_the_transport_of_another_event_loop() -> None:
    transport = ForeignTransport()
    link = Link(lambda *_: None, lambda *_: None)

    link.connection_made(transport)
    link.write(b"frame")

    assert transport.written == b"\x00\x00\x00\x05frame"
