"""One connection to an agent: the messages that come from it, and frames in both directions.

`Link` is an asyncio protocol, so it works over any transport that calls `data_received`: a Unix socket, or
an SSH channel.

Protocol. A frame is a 4-byte big-endian length and that many bytes of JSON: an object whose "t" names it.
A job's attempts travel as runs, lists that may get further elements in a later minor version; messages may get
further fields. What is marked 1.1 is not sent to an agent of 1.0.

    to the agent
      hello     protocol [major, minor], kernel, environment {}, logs DIR, workdir DIR or null,
                orphans_ms: end everything so long after this connection is gone (null: attempts outlive it)
      settle    runs [[job, number, [index]]], last bool: what the kernel believes to be in flight
      settings  (1.1) memory: how limits are enforced from now on ("cgroup", "watch", "none"); log_bytes_max (0: no
                limit); capacity {vcpus_milli, memory_mib, gpus}: what does not fit waits its turn (null: all may run)
      spec      id, command [], script, environment {}, timeout_ms, workdir, scratch, vcpus_milli, memory_mib (0: no
                limit); for this connection
      forget    ids: these specs are not used again
      launch    groups [[job, number, array size or null, spec id, [index], {index: [gpu]} or null]]
      stop      grace_ms, runs [[job, number, [index]]]
      ack       seq: exits up to this one are known for good and may be forgotten
      ping · shutdown (grace_ms: end everything, then exit)
    from the agent
      hello     protocol, build, boot, instance, pid, now_ms (its clock, which all its times are from),
                memory: how it can enforce limits, the best first, memory_where (1.1)
      report    seq (of the last exit in it), started [[job, number, [index], [at_ms], [pid]]],
                exited [[job, number, [index], [code], [started_ms], [stopped_ms], kind, reason, status reason, told]]
                (started_ms 0: it never ran; told (1.1): they were reported started before)
      settled   absent runs: never started, so they may be launched
      pong      now_ms, load (1.1: the average over a minute of processes that run or wait to)
      bye       reason; the connection ends, and the client must not come back

After `settle` everything held is reported again, then `settled`, then news as it comes. Of two clients the
newer stays. What is reported was spooled before; an exit is reported again until it is acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import anyio
import msgspec

PROTOCOL = (1, 1)
FRAME_MAX = 8 << 20  # bytes, as in agent.py
CLOSE_TIMEOUT_S = 10.0  # for what is written to be taken by the other side

Run = tuple[str, int, list[int]]  # job id, attempt number, indexes


# Messages from the agent. A later minor version may add fields and elements: both are skipped.
class Hello(msgspec.Struct, tag_field="t", tag="hello"):
    """The agent's first message."""

    protocol: tuple[int, int]
    build: str
    boot: str
    instance: str
    pid: int
    now_ms: int
    memory: tuple[str, ...] = ("none",)
    memory_where: str = "the agent is of an earlier version"


class StartedRun(msgspec.Struct, array_like=True):
    """Attempts of one job that run."""

    job_id: str
    number: int
    indexes: list[int]
    at_ms: list[int]


class ExitedRun(msgspec.Struct, array_like=True):
    """Attempts of one job that ended in the same way."""

    job_id: str
    number: int
    indexes: list[int]
    codes: list[int | None]
    started_ms: list[int]
    stopped_ms: list[int]
    kind: int
    reason: str | None
    status_reason: str | None
    told: bool = False


class Report(msgspec.Struct, tag_field="t", tag="report"):
    """News; `seq` is what acknowledges its exits."""

    seq: int
    started: list[StartedRun]
    exited: list[ExitedRun]


class Settled(msgspec.Struct, tag_field="t", tag="settled"):
    """Everything held has been reported; `absent` was never started."""

    absent: list[Run]


class Pong(msgspec.Struct, tag_field="t", tag="pong"):
    """Answers a ping. `load`: processes that run or wait to, over a minute."""

    now_ms: int
    load: float | None = None


class Bye(msgspec.Struct, tag_field="t", tag="bye"):
    """The agent refuses this client for good."""

    reason: str


Message = Hello | Report | Settled | Pong | Bye
_decode = msgspec.json.Decoder(Message).decode


class Link(asyncio.Protocol):
    """One connection: frames in, frames out.

    `on_report` gets the agent's news; `on_lost` is called once when the connection has ended.
    """

    def __init__(self, on_report: Callable[[Link, Report], None], on_lost: Callable[[Link], None]) -> None:
        self._on_report = on_report
        self._on_lost = on_lost
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        loop = asyncio.get_running_loop()
        self.greeting: asyncio.Future[Hello] = loop.create_future()
        self.settled: asyncio.Future[Settled] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._writable: asyncio.Future[None] | None = None
        self.refusal: str | None = None
        self.specs: dict[int, tuple[object, int]] = {}  # by identity: the spec (kept alive) and its id
        self.specs_sent = 0
        self.seq = 0  # of the last exit reported
        self.pong: Pong | None = None  # the latest
        self.acking = False  # an acknowledgement waits for the kernel's commit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def connection_lost(self, exc: Exception | None) -> None:
        self.resume_writing()
        error = ConnectionError(self.refusal or f"the agent closed the connection ({exc or 'end of file'})")
        for future in (self.greeting, self.settled):
            if not future.done():
                future.set_exception(error)
                future.exception()  # seen: nobody may be waiting for it
        if not self.closed.done():
            self.closed.set_result(None)
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        start = 0
        while len(data) - start >= 4:
            stop = start + 4 + int.from_bytes(data[start : start + 4], "big")
            if stop - start > FRAME_MAX:
                raise ValueError(f"a frame of {stop - start} bytes from the agent")
            if len(data) < stop:
                break
            self._received(_decode(data[start + 4 : stop]))
            start = stop
        self._buffer = data[start:]

    def _received(self, message: Message) -> None:
        match message:
            case Report():
                self._on_report(self, message)
            case Hello() if not self.greeting.done():
                self.greeting.set_result(message)
            case Settled() if not self.settled.done():
                self.settled.set_result(message)
            case Bye():
                self.refusal = message.reason
            case Pong():
                self.pong = message
            case _:
                pass

    def write(self, *payloads: bytes) -> None:
        """Send frames; what is written to a closed connection is dropped (the next one settles)."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join([len(one).to_bytes(4, "big") + one for one in payloads]))

    async def drain(self) -> None:
        """Wait while the transport holds too much unsent, or is gone."""
        while self._writable is not None:
            await asyncio.shield(self._writable)

    async def close(self) -> None:
        """Send what is written, then close."""
        if self._transport is not None:
            self._transport.close()
            with anyio.move_on_after(CLOSE_TIMEOUT_S) as scope:
                await asyncio.shield(self.closed)
            if scope.cancelled_caught:
                self._transport.abort()
