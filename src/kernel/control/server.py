"""The server's side: takes connections on the control socket and carries calls out on the kernel.

What a client can cost is bounded: the calls it has open, what is kept of each of its streams, and what is written
to it but not read. One that reads nothing for a while although something waits for it is cut off. When a
connection ends, for whatever reason, so does all that was done for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw

from ..core.errors import AnyBatchError, ControlError, KernelClosed
from ..logs import Log
from . import pack, place
from .surface import Method, methods
from .version import VERSION
from .wire import (
    BATCH_BYTES,
    FRAME_BYTES_MAX,
    PROTOCOL,
    TO_SERVER,
    BadFrame,
    Call,
    Cancel,
    Failure,
    Hello,
    Items,
    More,
    Result,
    ToClient,
    frame,
    read_frame,
    read_hello,
)

if TYPE_CHECKING:
    from ..kernel import Kernel

log = Log("anybatch.control")

CONNECTIONS_MAX: Final = 1_000
"""More are refused."""
CALLS_MAX: Final = 10_000
"""Of one connection at a time, streams and waits included; more are refused."""
PENDING_BYTES_MAX: Final = 2 * FRAME_BYTES_MAX
"""Written to a client but not read by it; with more it is cut off."""
STALL_S_MAX: Final = 60.0
"""How long a client may read nothing of what waits for it."""
HELLO_S_MAX: Final = 10.0
"""How long a client may take to say who it is."""
END_S_MAX: Final = 2.0
"""How long a closing kernel waits for answers to be taken, and then for what was done for a client to end."""


class Stream:
    """What is kept of a stream for a client: one batch, which goes out when it is asked for."""

    def __init__(self, connection: Connection, ident: int) -> None:
        self._connection = connection
        self._id = ident
        self._batch: list[Raw] = []
        self._size = 0
        self._wanted = True  # the call asks for the first one
        self._taken = asyncio.Event()
        self._is_soon = False

    def more(self) -> None:
        """The client asks for the next batch."""
        self._wanted = True
        self._flush()

    async def run(self, items: AsyncIterator[Any]) -> None:
        """Take items as the client asks for them, until the end."""
        async for item in items:
            data = pack.result(item)
            self._batch.append(data)
            self._size += memoryview(data).nbytes
            if self._wanted and not self._is_soon:
                self._is_soon = True  # those that are there at once go together
                asyncio.get_running_loop().call_soon(self._flush)
            while self._size >= BATCH_BYTES:
                await self._wait_taken()
        while self._batch:
            await self._wait_taken()

    async def _wait_taken(self) -> None:
        self._taken.clear()
        await self._taken.wait()

    def _flush(self) -> None:
        self._is_soon = False
        if self._wanted and self._batch:
            batch, self._batch, self._size = self._batch, [], 0
            self._wanted = False
            self._taken.set()
            self._connection.send(Items(self._id, batch, ended=False))


class Connection:
    """One client."""

    def __init__(self, server: ControlServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._kernel = server.kernel
        self._reader = reader
        self._writer = writer
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._streams: dict[int, Stream] = {}
        self._written = 0
        self._stall: asyncio.TimerHandle | None = None
        self._ending = False

    async def run(self) -> None:
        """Serve the client until it goes."""
        try:
            if await self._greet():
                await self._serve()
        except BadFrame as e:
            log.warning("control_client_cut_off", why=str(e))
        finally:
            await self._end()

    async def _greet(self) -> bool:
        """Tell each other who we are; whether calls may follow."""
        server = self._server
        uid = place.peer_uid(self._writer.get_extra_info("socket"))
        refused = None
        if uid not in (None, 0, os.geteuid()):
            refused = f"user {uid} may not use the kernel of user {os.geteuid()}"
            log.warning("control_client_refused", why=refused)
        elif server.is_full:
            refused = f"the kernel has {CONNECTIONS_MAX} connections, which is as many as it takes"
            log.warning("control_client_refused", why=refused)
        self._send(frame(server.hello(refused)))
        if refused is not None:
            return False
        hello = await read_hello(self._reader, server.hello_s)
        return hello is not None and hello.protocol == PROTOCOL  # it has seen our version, and says so

    async def _serve(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                await self._writer.drain()  # who does not take answers asks nothing more
            data = await read_frame(self._reader)
            if data is None or self._ending:
                return
            try:
                message = TO_SERVER.decode(data)
            except (msgspec.MsgspecError, RecursionError) as e:
                raise BadFrame(f"a frame that is no call: {e}") from e
            match message:
                case Call():
                    self._begin(message)
                case More(id=ident):
                    if (stream := self._streams.get(ident)) is not None:
                        stream.more()
                case Cancel(id=ident):
                    if (task := self._calls.get(ident)) is not None:
                        task.cancel()

    def _begin(self, call: Call) -> None:
        if call.id in self._calls:
            raise BadFrame(f"the number {call.id} of a call is in use")
        if len(self._calls) >= CALLS_MAX:
            text = f"a connection has at most {CALLS_MAX} calls at a time"
            self.send(Failure(call.id, pack.pack_error(ControlError(text))))
            return
        task = asyncio.get_running_loop().create_task(self._answer(call), name=f"anybatch-control-{call.method}")
        self._calls[call.id] = task
        task.add_done_callback(lambda _: self._forget(call.id))

    def _forget(self, ident: int) -> None:
        del self._calls[ident]
        self._streams.pop(ident, None)

    async def _answer(self, call: Call) -> None:
        try:
            method, arguments = self._find(call)
            with contextlib.ExitStack() as stack:
                if call.caller is not None:
                    stack.enter_context(self._kernel.acting_as(call.caller[0], request_id=call.caller[1]))
                answer = await self._carry_out(call.id, method, arguments)
        except Exception as e:
            if not isinstance(e, AnyBatchError):
                log.error("control_call_failed", method=call.method, error=repr(e))
            answer = Failure(call.id, pack.pack_error(e))
        except asyncio.CancelledError:  # if it was not the client who gave up, it is told
            self.send(Failure(call.id, pack.pack_error(KernelClosed(f"{call.method}() was given up"))))
            raise
        self.send(answer)

    def _find(self, call: Call) -> tuple[Method, dict[str, Any]]:
        """The method, and its arguments."""
        method = self._server.methods.get(call.method)
        if method is None:
            raise ControlError(f"the kernel is of anybatch {VERSION}, which has no {call.method}()")
        try:
            arguments: dict[str, Any] = pack.unpack(call.arguments)
            method.signature.bind(None, **arguments)
        except (TypeError, ValueError) as e:
            raise ControlError(f"the kernel is of anybatch {VERSION}; {call.method}() there: {e}") from e
        return method, arguments

    async def _carry_out(self, ident: int, method: Method, arguments: dict[str, Any]) -> ToClient:
        bound = getattr(self._kernel, method.name)
        if method.kind == "call":
            return Result(ident, pack.result(await bound(**arguments)))
        await self._stream(ident, method, bound(**arguments))
        return Items(ident, [], ended=True)

    async def _stream(self, ident: int, method: Method, items: Any) -> None:
        stream = self._streams[ident] = Stream(self, ident)
        if method.kind == "events":
            async with items as events:
                self.send(Result(ident, pack.result(None)))
                await stream.run(events)
        else:
            async with contextlib.aclosing(items):
                await stream.run(items)

    # -- what goes out ----------------------------------------------------------------------------

    def send(self, message: ToClient) -> None:
        """Send a message."""
        try:
            data = frame(message)
        except ValueError as e:
            error = ControlError(f"the answer is too large for the control socket: {e}; ask for less at a time")
            data = frame(Failure(message.id, pack.pack_error(error)))
        self._send(data)

    def _send(self, data: bytes) -> None:
        transport = self._writer.transport
        if transport.is_closing():
            return
        transport.write(data)
        self._written += len(data)
        waiting = transport.get_write_buffer_size()
        if waiting > PENDING_BYTES_MAX:
            log.warning("control_client_cut_off", why=f"{waiting} bytes wait for it")
            transport.abort()
        elif waiting and self._stall is None:
            self._watch(self._written - waiting)

    def _watch(self, taken: int) -> None:
        """Look again, after a while, whether the client has taken more than that."""
        loop = asyncio.get_running_loop()
        self._stall = loop.call_later(self._server.stall_s, self._check_stall, taken)

    def _check_stall(self, taken_before: int) -> None:
        self._stall = None
        transport = self._writer.transport
        waiting = transport.get_write_buffer_size()
        taken = self._written - waiting
        if not waiting or transport.is_closing():
            return
        if taken > taken_before:
            self._watch(taken)
        else:
            log.warning("control_client_cut_off", why=f"it has read nothing for {self._server.stall_s:g} s")
            transport.abort()

    # -- the end ----------------------------------------------------------------------------------

    async def finish(self) -> None:
        """The kernel has closed: let what has been answered get through, and end."""
        self._ending = True
        if self._calls:
            _, left = await asyncio.wait(self._calls.values(), timeout=END_S_MAX)
            for task in left:
                task.cancel()
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(END_S_MAX):
                await self._writer.wait_closed()
        self._writer.transport.abort()

    async def _end(self) -> None:
        """End all that is done for this client."""
        calls = list(self._calls.values())
        for task in calls:
            if not self._ending:
                task.cancel()
        if calls:
            _, hanging = await asyncio.wait(calls, timeout=END_S_MAX)
            for task in hanging:
                log.error("control_call_does_not_end", call=task.get_name())
        if self._stall is not None:
            self._stall.cancel()
        if not self._ending:
            self._writer.close()
            self._writer.transport.abort()


class ControlServer:
    """Takes connections for a kernel."""

    def __init__(
        self,
        kernel: Kernel,
        listener: socket.socket,
        path: Path,
        files: Path,
        *,
        stall_s: float = STALL_S_MAX,
        hello_s: float = HELLO_S_MAX,
    ) -> None:
        self.kernel = kernel
        self.methods = methods(type(kernel))
        self.path = path
        self.stall_s, self.hello_s = stall_s, hello_s
        self._listener = listener
        self._inode = path.stat().st_ino
        self._files = files
        self._server: asyncio.Server | None = None
        self._connections: dict[Connection, asyncio.Task[None]] = {}

    @property
    def is_full(self) -> bool:
        """Whether no more clients are taken."""
        return len(self._connections) > CONNECTIONS_MAX

    def hello(self, refused: str | None) -> Hello:
        """Who we are."""
        kernel, loss = self.kernel, self.kernel.journal_loss
        return Hello(
            anybatch=VERSION,
            protocol=PROTOCOL,
            pid=os.getpid(),
            kernel_id=kernel.id,
            journal=None if kernel.path is None else os.path.abspath(kernel.path),
            loss=None if loss is None else msgspec.to_builtins(loss, enc_hook=str),
            refused=refused,
        )

    async def open(self) -> None:
        """Begin to take connections, and say where."""
        self._server = await asyncio.start_unix_server(self._connected, sock=self._listener)
        record = place.Record(str(self.path), os.getpid(), self.kernel.id, VERSION)
        place.write_record(self._files, record)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, reader, writer)
        task = asyncio.get_running_loop().create_task(connection.run(), name="anybatch-control-connection")
        self._connections[connection] = task
        task.add_done_callback(lambda _: self._connections.pop(connection))

    async def close(self) -> None:
        """Take no more connections, and end those that there are. Every wait has a bound."""
        if self._server is not None:
            self._server.close()
        else:
            self._listener.close()
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        place.remove_record(self._files)
        tasks = list(self._connections.values())
        await asyncio.gather(*(connection.finish() for connection in list(self._connections)))
        if tasks:
            _, hanging = await asyncio.wait(tasks, timeout=2 * END_S_MAX)
            for task in hanging:
                task.cancel()
