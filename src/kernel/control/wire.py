"""What is sent over a control socket: frames of MessagePack, each with its length before it.

The server speaks first, with a `Hello`; the client answers with its own. Both stay as they are in all versions of
anybatch, so that versions that do not understand each other can say so. Then the client sends calls, each with a
number that is not in use, and the server one answer to each: `Result`, `Failure`, or for a stream any number of
`Items`, one batch for each `More` (the call is the first), until one says that it has ended.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

PROTOCOL: Final = 2
"""Rises with what an older client or server would not understand."""
FRAME_BYTES_MAX: Final = 32 << 20
"""Of one frame: a script of the largest size fits, and the details of some 10,000 jobs."""
BATCH_BYTES: Final = 64 << 10
"""Items of a stream that are sent together, about: what a client that does not read can cost per stream."""
_LENGTH: Final = struct.Struct(">I")


class BadFrame(Exception):
    """What has come is not of this protocol."""


class Hello(Struct, kw_only=True):
    """Who speaks. `refused`: why the connection is closed at once. Fields are only ever added, with a default."""

    anybatch: str
    protocol: int
    pid: int = 0
    kernel_id: str = ""
    journal: str | None = None
    loss: Any = None
    refused: str | None = None


class Call(Struct, tag=1, array_like=True):
    """Call a method. `arguments`: a packed map of names to values. `caller`: principal and request id, if given."""

    id: int
    method: str
    arguments: Raw
    caller: tuple[str, str | None] | None = None


class More(Struct, tag=2, array_like=True):
    """Send the next batch of a stream."""

    id: int


class Cancel(Struct, tag=3, array_like=True):
    """Nobody waits for this call any more."""

    id: int


class Result(Struct, tag=1, array_like=True):
    """What a call returned; for an event stream: it is open."""

    id: int
    value: Raw


class Failure(Struct, tag=2, array_like=True):
    """What a call raised, as `pack_error` has it."""

    id: int
    error: Raw


class Items(Struct, tag=3, array_like=True):
    """Some items of a stream; after `ended` nothing more comes."""

    id: int
    items: list[Raw]
    ended: bool


ToServer = Call | More | Cancel
ToClient = Result | Failure | Items

_ENCODER: Final = msgspec.msgpack.Encoder()
_HELLO: Final = msgspec.msgpack.Decoder(Hello)
TO_SERVER: Final = msgspec.msgpack.Decoder(ToServer)
TO_CLIENT: Final = msgspec.msgpack.Decoder(ToClient)


def frame(message: Hello | ToServer | ToClient) -> bytes:
    """A message as it is sent.

    Raises:
        ValueError: it is larger than a frame may be.
    """
    data = _ENCODER.encode(message)
    if len(data) > FRAME_BYTES_MAX:
        raise ValueError(f"{len(data)} bytes; at most {FRAME_BYTES_MAX} are sent at once")
    return _LENGTH.pack(len(data)) + data


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The next frame's content; None at the end, however that came about.

    Raises:
        BadFrame: it says that it is larger than frames are.
    """
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if not 0 < length <= FRAME_BYTES_MAX:
            raise BadFrame(f"a frame of {length} bytes; there are 1 to {FRAME_BYTES_MAX}")
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, OSError):
        return None


async def read_hello(reader: asyncio.StreamReader, seconds: float) -> Hello | None:
    """The other side's first frame; None: it has gone, or said nothing for so long.

    Raises:
        BadFrame: that is something else.
    """
    try:
        async with asyncio.timeout(seconds):
            data = await read_frame(reader)
        return None if data is None else _HELLO.decode(data)
    except TimeoutError:
        return None
    except msgspec.MsgspecError as e:
        raise BadFrame(f"the first frame is no Hello: {e}") from e
