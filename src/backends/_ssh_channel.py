"""A channel of an SSH connection with our own program at its far end (_ssh_far.py), whatever the login shell is.

The login shell gets one command: `exec /bin/sh -c '...'`, with a fixed PATH, which looks for a Python of at least
OLDEST. That reads the program from the channel and executes it. Nothing is installed for it, no variable and nothing
secret is in a command line, and what the login shell prints before is passed over, up to a random word.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import asyncssh
import asyncssh.stream

from ._agent_link import Link
from ._ssh_connect import HostError

OLDEST: Final = (3, 8)
PYTHONS: Final = ("python3", *(f"python3.{minor}" for minor in range(15, 7, -1)))
NOISE_MAX: Final = 1 << 20
"""Bytes that a login shell may print before our program speaks."""
ANSWER_MAX: Final = 64 << 20
"""Bytes of one answer: the names of many files."""
SAID_MAX: Final = 500
"""Bytes of what the other side has said otherwise that an error shows."""
OPEN_TRIES: Final = 5
OPEN_AGAIN_S: Final = 0.2
"""sshd frees a session's place (MaxSessions) a little after its end."""

FAR: Final = Path(__file__).with_name("_ssh_far.py").read_bytes()

_TEST = "import sys; sys.exit(sys.version_info < (3, 8))"
_BOOT = "import sys; i = sys.stdin.buffer; exec(i.read(int(i.readline())))"
_TELL = "import sys; print(sys.version.split()[0])"


class FarError(HostError):
    """What our program at the other end could not do."""


def command(word: str, path: str, python: str | None) -> str:
    """What the login shell is given; csh and fish read it in the same way as POSIX shells."""
    candidates = " ".join([python] if python is not None else PYTHONS)
    script = (
        f"PATH={path}; export PATH; unset ENV LD_PRELOAD; cd /; "
        f'for p in {candidates}; do "$p" -I -S -c "{_TEST}" </dev/null >/dev/null 2>&1 && '
        f'exec "$p" -I -S -c "{_BOOT}" {word}; done; '
        f'for p in {candidates}; do v=$("$p" -c "{_TELL}" 2>/dev/null </dev/null) && echo {word}-old "$p" "$v"; done; '
        f"echo {word}-none"
    )
    return f"exec /bin/sh -c '{script}'"


class Far(asyncssh.SSHClientSession[bytes]):
    """One such channel: requests and answers, and then perhaps an agent's connection."""

    def __init__(self, word: str, python: str | None) -> None:
        self.word = word
        self._python = python
        self.heard = 0.0
        """When anything came last (the loop's time)."""
        self._buffer = bytearray()
        self._said = bytearray()
        self._news = asyncio.Event()
        self._link: Link | None = None
        self._stream: asyncssh.stream.SSHClientStreamSession[bytes] | None = None
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._closed = self._closed_by_us = False
        self._error: Exception | None = None
        self._lock = asyncio.Lock()

    @classmethod
    async def open(cls, connection: asyncssh.SSHClientConnection, path: str, python: str | None) -> Far:
        """Open a channel and send the program; its first request can follow.

        Raises:
            OSError: the connection is lost.
            HostError: no more channels are allowed.
        """
        for tries in range(OPEN_TRIES, 0, -1):
            word = "ab-" + secrets.token_hex(8)
            made = partial(cls, word, python)
            try:
                _, far = await connection.create_session(
                    made, command(word, path, python), encoding=None, request_pty=False
                )
                break
            except asyncssh.ChannelOpenError as error:
                if tries == 1 or connection.is_closed():
                    raise HostError(f"no channel can be opened ({error}): sshd's MaxSessions allows too few") from None
                await anyio.sleep(OPEN_AGAIN_S)
            except asyncssh.Error as error:
                raise ConnectionError(str(error)) from error
        assert isinstance(far, Far)
        far._write(b"%d\n%s" % (len(FAR), FAR))
        return far

    # -- asyncssh's side --

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self.heard = asyncio.get_running_loop().time()
        if datatype is not None:
            self._said = (self._said + data)[-4 * SAID_MAX :]
        elif self._link is not None:
            self._pass_on(data)
        elif self._stream is not None:
            self._stream.data_received(data, datatype)
        else:
            self._buffer += data
            self._news.set()

    def _pass_on(self, data: bytes) -> None:
        assert self._link is not None
        try:
            self._link.data_received(data)
        except Exception as error:  # what no agent says: its connection is of no more use
            self._error = error
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed, self._error = True, self._error or exc
        self._news.set()
        for end in (self._link, self._stream):
            if end is not None:
                end.connection_lost(self._error)

    def eof_received(self) -> bool:
        return bool(self._stream.eof_received()) if self._stream is not None else False

    def pause_writing(self) -> None:
        for end in (self._link, self._stream):
            if end is not None:
                end.pause_writing()

    def resume_writing(self) -> None:
        for end in (self._link, self._stream):
            if end is not None:
                end.resume_writing()

    # -- ours --

    @property
    def is_closed(self) -> bool:
        return self._closed

    def _write(self, data: bytes) -> None:
        """Send it. Nothing is sent to what has ended there: reading on tells why."""
        if self._channel is None or self._closed_by_us:
            raise ConnectionError("the channel is closed")
        if not self._closed and not self._channel.is_closing():
            self._channel.write(data)

    async def ask(self, asked: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """A request, and its answer with the bytes that it announces. One at a time.

        Raises:
            FarError: it could not be done; HostError: there is no Python that would do.
            ConnectionError: the channel has ended.
        """
        async with self._lock:
            self._write(json.dumps(asked).encode() + b"\n" + body)
            found = await self._answer()
            if "error" in found:
                raise FarError(str(found["error"]))
            return found, await self._exactly(int(found.get("size", 0)))

    async def _answer(self) -> dict[str, Any]:
        """The next line of our program's; what else is printed is passed over."""
        passed = 0
        while True:
            line = await self._line()
            first, _, rest = line.partition(b" ")
            if first == self.word.encode():
                found: dict[str, Any] = json.loads(rest)
                return found
            if first == f"{self.word}-none".encode():
                self._no_python()
            passed += len(line)
            self._said = (self._said + line)[-4 * SAID_MAX :]
            if passed > NOISE_MAX:
                raise HostError(f"the login shell prints more than {NOISE_MAX} bytes", lasting=True)

    def _no_python(self) -> None:
        olds = [
            line.split(" ", 1)[1]
            for line in self._said.decode(errors="replace").splitlines()
            if f"{self.word}-old" in line
        ]
        wanted = ".".join(map(str, OLDEST))
        found = f"there is {', '.join(olds)}" if olds else "there is no python3 in the path that is searched"
        advice = "install one, or name it with `python`"
        if self._python is not None and not olds:
            found, advice = f"{self._python!r} is none, or is not there", "name another one with `python`"
        raise HostError(f"the host has no Python {wanted} or newer ({found}): {advice}", lasting=True)

    async def _line(self) -> bytes:
        while True:
            at = self._buffer.find(b"\n")
            if at >= 0:
                line = bytes(self._buffer[:at])
                del self._buffer[: at + 1]
                return line
            if len(self._buffer) > ANSWER_MAX:
                raise HostError(f"an answer of more than {ANSWER_MAX} bytes", lasting=True)
            await self._more()

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._more()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def _more(self) -> None:
        if self._closed:
            said = bytes(self._said[-SAID_MAX:]).decode(errors="replace").strip()
            why = f"; it said: {said}" if said else ""
            raise ConnectionError(f"the login shell or our program has ended ({self._error or 'end of file'}){why}")
        self._news.clear()
        await self._news.wait()

    def become(self, make_link: Callable[[], Link]) -> Link:
        """From now on this is an agent's connection."""
        assert self._channel is not None
        link = self._link = make_link()
        link.connection_made(_Transport(self._channel, self))
        rest, self._buffer = bytes(self._buffer), bytearray()
        if rest:
            self._pass_on(rest)
        if self._closed:
            link.connection_lost(self._error)
        return link

    def streams(self) -> tuple[asyncssh.SSHReader[bytes], asyncssh.SSHWriter[bytes]]:
        """From now on asyncssh speaks over this channel."""
        assert self._channel is not None
        session: asyncssh.stream.SSHClientStreamSession[bytes] = asyncssh.stream.SSHClientStreamSession()
        session.connection_made(self._channel)
        self._stream = session
        rest, self._buffer = bytes(self._buffer), bytearray()
        if rest:
            session.data_received(rest, None)
        return asyncssh.SSHReader(session, self._channel), asyncssh.SSHWriter(session, self._channel)

    def close(self) -> None:
        """Close the channel; what has been written is sent before."""
        self._closed_by_us = True
        if self._channel is not None:
            self._channel.close()


class _Transport(asyncio.Transport):
    """An SSH channel as a transport."""

    def __init__(self, channel: asyncssh.SSHClientChannel[bytes], far: Far) -> None:
        super().__init__()
        self._channel = channel
        self._far = far

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self._far.is_closed and not self._channel.is_closing():
            self._channel.write(bytes(data))

    def is_closing(self) -> bool:
        return self._far.is_closed or self._channel.is_closing()

    def close(self) -> None:
        self._channel.close()

    def abort(self) -> None:
        self._channel.abort()
