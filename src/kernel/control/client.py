"""The client's side: a kernel in another process, with the methods of Kernel."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from msgspec import Raw

from .. import arguments as args
from ..core.errors import ControlError, InvalidValue, KernelClosed
from ..core.indexes import kept
from ..handles import JobHandle
from ..journal import JournalLoss
from ..kernel import Kernel
from ..runtime import CALLER
from ..stream import EventStream, JobEvent
from . import pack, place
from .surface import Method, methods
from .version import VERSION
from .wire import (
    PROTOCOL,
    TO_CLIENT,
    BadFrame,
    Call,
    Cancel,
    Failure,
    Hello,
    Items,
    More,
    Result,
    ToClient,
    ToServer,
    frame,
    read_frame,
    read_hello,
)

CONNECT_S_MAX: Final = 10.0
"""How long to wait for the other side to say who it is."""
CLOSE_S_MAX: Final = 2.0
"""How long to wait for a connection to be let go of."""

Answers = asyncio.Queue[ToClient | Exception]
"""What has come for one call. The server sends no batch that was not asked for, so it stays short."""


class Link:
    """One connection, which carries many calls at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hello = Hello(anybatch="", protocol=0)
        self.lost: KernelClosed | None = None
        """Why nothing can be called any more."""
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._listening: asyncio.Task[None]
        self._calls: dict[int, Answers] = {}
        self._numbers = itertools.count(1)

    async def open(self) -> None:
        """Connect, and hear who is there.

        Raises:
            NotRunning, ControlError: it is not to be talked to.
        """
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                self._reader, self._writer = await asyncio.open_unix_connection(self.path)
        except OSError as e:  # TimeoutError is one
            raise place.unreachable(self.path, e) from e
        try:
            await self._greet()
        except BaseException:
            self._writer.close()
            raise
        self._listening = asyncio.create_task(self._listen(), name="anybatch-control-client")

    async def _greet(self) -> None:
        try:
            hello = await read_hello(self._reader, CONNECT_S_MAX)
        except BadFrame as e:
            raise ControlError(f"{self.path} is not the control socket of a kernel: {e}") from e
        if hello is None:
            raise ControlError(f"what listens on {self.path} has not said that it is a kernel")
        if hello.refused is not None:
            raise ControlError(f"the kernel on {self.path} refuses: {hello.refused}")
        self._writer.write(frame(Hello(anybatch=VERSION, protocol=PROTOCOL, pid=os.getpid())))
        if hello.protocol != PROTOCOL:
            text = (
                f"the kernel on {self.path} (process {hello.pid}) is of anybatch {hello.anybatch}, which speaks "
                f"version {hello.protocol} of the control protocol; this is anybatch {VERSION}, which speaks version "
                f"{PROTOCOL}: use the same anybatch on both sides"
            )
            raise ControlError(text)
        self.hello = hello

    async def _listen(self) -> None:
        why = "it has ended, or was killed"
        try:
            while (data := await read_frame(self._reader)) is not None:
                message = TO_CLIENT.decode(data)
                if (answers := self._calls.get(message.id)) is not None:
                    answers.put_nowait(message)
        except (BadFrame, msgspec.MsgspecError, RecursionError) as e:
            why = f"it has sent what is no answer: {e}"
        finally:
            self._lose(f"the connection to the kernel (process {self.hello.pid}) is lost: {why}")

    def _lose(self, why: str) -> None:
        if self.lost is None:
            self.lost = KernelClosed(why)
        for answers in self._calls.values():
            answers.put_nowait(KernelClosed(str(self.lost)))
        self._writer.close()

    async def begin(self, method: str, arguments: dict[str, Any]) -> tuple[int, Answers]:
        """Send a call; its number, and where its answers will be."""
        if self.lost is not None:
            raise KernelClosed(str(self.lost))
        ident, answers = next(self._numbers), Answers()
        message = Call(ident, method, pack.pack_arguments(arguments), CALLER.get())
        self._calls[ident] = answers
        try:
            self.send(message)
            with contextlib.suppress(OSError):  # what has become of the connection is told to all
                await self._writer.drain()
        except BaseException:
            self.end(ident, cancel=True)
            raise
        return ident, answers

    def send(self, message: ToServer) -> None:
        """Send a message."""
        try:
            data = frame(message)
        except ValueError as e:
            raise InvalidValue("arguments", "(too large)", str(e)) from e
        if self.lost is None:
            self._writer.write(data)

    def end(self, ident: int, *, cancel: bool) -> None:
        """Nobody waits for that call any more; with `cancel` it may still be going on."""
        del self._calls[ident]
        if cancel:
            self.send(Cancel(ident))

    async def close(self) -> None:
        """Let go of the connection."""
        self._lose("the connection to the kernel is closed")
        self._listening.cancel()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_S_MAX):
                await self._writer.wait_closed()
        await asyncio.wait({self._listening})


class Stream:
    """Items from a stream. A wait that is given up loses none of them."""

    def __init__(self, link: Link, decoder: msgspec.msgpack.Decoder[Any]) -> None:
        self._link = link
        self._decoder = decoder
        self._id = 0
        self._answers: Answers
        self._items: Iterator[Raw] = iter(())
        self._live = False

    async def begin(self, method: str, arguments: dict[str, Any]) -> None:
        """Ask for it."""
        self._id, self._answers = await self._link.begin(method, arguments)
        self._live = True

    async def opened(self) -> None:
        """Return once the server has opened it."""
        try:
            answer = await self._answers.get()
            if isinstance(answer, Result):
                return
            raise _error(answer)
        except BaseException:
            self.end()
            raise

    async def next(self) -> Any:
        """The next item.

        Raises:
            StopAsyncIteration: there is none.
        """
        while True:
            for item in self._items:
                return _decode(self._decoder, item)
            if not self._live:
                raise StopAsyncIteration
            answer = await self._answers.get()
            if not isinstance(answer, Items) or answer.ended:
                self._live = False
                self._link.end(self._id, cancel=False)
            if not isinstance(answer, Items):
                raise _error(answer)
            self._items = iter(answer.items)
            if self._live:
                self._link.send(More(self._id))  # comes while these are looked at

    def end(self) -> None:
        """No more of it is wanted."""
        if self._live:
            self._live = False
            self._link.end(self._id, cancel=True)


class RemoteEvents(EventStream):
    """`events()` of a kernel in another process."""

    def __init__(self, kernel: RemoteKernel, arguments: dict[str, Any]) -> None:
        self._kernel = kernel
        self._arguments = arguments
        self._stream: Stream | None = None

    async def __aenter__(self) -> Self:
        stream = self._kernel._stream(_METHODS["events"])
        await stream.begin("events", self._arguments)
        await stream.opened()
        self._stream = stream
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.end()
            self._stream = None

    async def __anext__(self) -> JobEvent:
        if self._stream is None:
            raise RuntimeError("use it as `async with kernel.events() as events`")
        event: JobEvent = await self._stream.next()
        return event


class RemoteKernel(Kernel):
    """A kernel in another process, with the methods of Kernel; made by `connect`, used in `async with`.

    Calls, waits and streams end with `KernelClosed` when that process ends or is killed. Leaving the `async with` ends
    the connection and what was waited for through it, and nothing else.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        found = args.path("path", path)
        if found is None:
            raise InvalidValue("path", path, "it is the path of a kernel's journal, or of its control socket")
        self._target = found
        self._link: Link | None = None
        self._decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {}

    async def __aenter__(self) -> Self:
        if self._link is not None:
            raise KernelClosed("a connection is used once; make another one")
        link = Link(place.find_socket(self._target))
        await link.open()
        self._link = link
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._linked.close()

    @property
    def _linked(self) -> Link:
        if self._link is None:
            raise KernelClosed("the kernel is not connected; use it in `async with`")
        return self._link

    @property
    def id(self) -> str:
        return self._linked.hello.kernel_id

    @property
    def path(self) -> Path | None:
        journal = self._linked.hello.journal
        return None if journal is None else Path(journal)

    @property
    def control_path(self) -> Path | None:
        return self._linked.path

    @property
    def journal_loss(self) -> JournalLoss | None:
        loss = self._linked.hello.loss
        return None if loss is None else msgspec.convert(loss, JournalLoss, dec_hook=self._made)

    # -- calls ------------------------------------------------------------------------------------

    async def _call(self, method: Method, arguments: dict[str, Any]) -> Any:
        link = self._linked
        ident, answers = await link.begin(method.name, arguments)
        answer: ToClient | Exception | None = None
        try:
            answer = await answers.get()
        finally:
            link.end(ident, cancel=answer is None)
        if isinstance(answer, Result):
            return _decode(self._decoder(method), answer.value)
        raise _error(answer)

    def _stream(self, method: Method) -> Stream:
        return Stream(self._linked, self._decoder(method))

    def _decoder(self, method: Method) -> msgspec.msgpack.Decoder[Any]:
        if method.name not in self._decoders:
            self._decoders[method.name] = msgspec.msgpack.Decoder(method.gives, dec_hook=self._made)
        return self._decoders[method.name]

    def _made(self, kind: type, value: Any) -> Any:
        if kind is JobHandle:
            ident, name, size, warnings, indexes = value
            handle = JobHandle(self, ident, name, size, kept(tuple(indexes) if isinstance(indexes, list) else indexes))
            handle.warnings = tuple(warnings)
            return handle
        if issubclass(kind, os.PathLike):
            return Path(value)
        raise NotImplementedError(f"{kind.__name__} does not travel")


def connect(path: str | os.PathLike[str]) -> RemoteKernel:
    """Talk to a kernel in another process of this user.

    Use it as `async with anybatch.connect("batch.db") as kernel: ...`. `path` is that of its journal, or of its control
    socket. The kernel has one with `Kernel(path, control=True)`, as `anybatch serve` and `anybatch run` do.

    Raises:
        NotRunning: (on entering) no kernel runs there, or it has no control socket.
        ControlError: (on entering) it cannot be talked to; such as one of another version.
    """
    return RemoteKernel(path)


def _error(answer: ToClient | Exception | None) -> Exception:
    match answer:
        case Failure(error=error):
            return pack.unpack_error(error)
        case Exception():
            return answer
        case _:
            return ControlError(f"the kernel has answered with something else than was asked for: {answer!r}")


def _decode(decoder: msgspec.msgpack.Decoder[Any], data: Raw) -> Any:
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as e:
        text = f"the kernel's answer cannot be read, it may be of another version than this anybatch {VERSION}: {e}"
        raise ControlError(text) from e


# -- the methods ------------------------------------------------------------------------------------


def _bind(method: Method, kernel: RemoteKernel, given: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, as they are sent; raises TypeError as a call of the method itself would."""
    arguments = dict(method.signature.bind(kernel, *given, **named).arguments)
    del arguments["self"]
    if arguments.get("script") is not None:
        arguments["script"] = args.script("script", arguments["script"])  # a file is read here, not there
    return arguments


def _remote(method: Method) -> Any:
    """The method that carries this one out in the other process."""
    if method.kind == "call":

        @functools.wraps(method.function)
        async def call(self: RemoteKernel, *given: Any, **named: Any) -> Any:
            return await self._call(method, _bind(method, self, given, named))

        return call
    if method.kind == "stream":

        @functools.wraps(method.function)
        async def stream(self: RemoteKernel, *given: Any, **named: Any) -> AsyncIterator[Any]:
            items = self._stream(method)
            await items.begin(method.name, _bind(method, self, given, named))
            try:
                while True:
                    try:
                        item = await items.next()
                    except StopAsyncIteration:
                        return
                    yield item
            finally:
                items.end()

        return stream

    @functools.wraps(method.function)
    def events(self: RemoteKernel, *given: Any, **named: Any) -> RemoteEvents:
        self._linked  # noqa: B018 - raises unless it is connected
        return RemoteEvents(self, _bind(method, self, given, named))

    return events


_METHODS: Final = methods(Kernel)
for _method in _METHODS.values():
    setattr(RemoteKernel, _method.name, _remote(_method))
