"""The way to an agent runs on any event loop."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from anybatch.backends import agent
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


def test_an_agent_holds_nothing_of_its_starter_open(tmp_path: Path) -> None:
    """uvloop hands its ends of the pipes on, and waits until all are closed."""
    read, write = os.pipe()
    places = ["--state", str(tmp_path / "state"), "--socket", str(tmp_path / "s")]
    command = [sys.executable, "-I", "-S", agent.__file__, *places, "--idle-ms", "500"]

    subprocess.run(command, check=True, pass_fds=[write], start_new_session=True)
    os.close(write)

    os.set_blocking(read, False)
    assert os.read(read, 1) == b""  # the end; BlockingIOError: somebody has it open
    os.close(read)
