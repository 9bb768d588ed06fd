"""Clients that say nonsense, nothing, or too much; that stall, die, or are somebody else: they cost only themselves."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from pathlib import Path
from typing import Any

import anybatch
import msgspec
import pytest
from anybatch import ControlError, Kernel, KernelClosed, NotRunning
from anybatch.kernel.control import client, pack, place, server, wire
from control_rig import Peer, both, peer, server_of
from kernel_rig import ManualBackend, live, submit, until

pytestmark = pytest.mark.asyncio


def call(ident: int, method: str, **arguments: Any) -> wire.Call:
    return wire.Call(ident, method, pack.pack_arguments(arguments))


async def answer(found: Peer) -> Any:
    data = await found.receive()
    assert data is not None
    return wire.TO_CLIENT.decode(data)


def connections(kernel: Kernel) -> int:
    return len(server_of(kernel)._connections)


# -- nonsense ---------------------------------------------------------------------------------------

NONSENSE = {
    "no message pack": struct.pack(">I", 4) + b"\xc1\xc1\xc1\xc1",
    "another message": struct.pack(">I", 1) + b"\x90",
    "deep": struct.pack(">I", 100_000) + b"\x91" * 100_000,
    "too large": struct.pack(">I", wire.FRAME_BYTES_MAX + 1),
    "empty": struct.pack(">I", 0),
    "text": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "an end in the middle": struct.pack(">I", 100) + b"x",
}


@pytest.mark.parametrize("greets", [True, False])
@pytest.mark.parametrize("what", NONSENSE)
async def test_a_malformed_frame_ends_its_connection_and_no_other(tmp_path: Path, what: str, greets: bool) -> None:
    backend = ManualBackend()
    async with both(tmp_path, backend) as (kernel, remote):
        job = await submit(kernel)
        wait = asyncio.ensure_future(remote.wait(job))
        async with peer(kernel, greets=greets) as bad:
            if greets:
                bad.send(call(1, "wait", job=job.id))
            bad.writer.write(NONSENSE[what])
            if what == "an end in the middle":
                bad.writer.write_eof()
            assert await bad.is_cut_off()
        await until(lambda: connections(kernel) == 1)
        await until(lambda: backend.live)
        backend.exit_all()
        assert (await wait).status == "SUCCEEDED"
        assert live(kernel)._ended == {}


async def test_a_wrong_call_is_answered_with_an_error(tmp_path: Path) -> None:
    async with both(tmp_path) as (kernel, _), peer(kernel) as one:
        for n, message in enumerate((
            call(0, "dance"), call(1, "_shut_down"), call(2, "__aexit__"), call(3, "describe_job"),
            call(4, "describe_job", job="x", colour="red"),
            wire.Call(5, "describe_job", msgspec.Raw(b"\x93\x01\x02\x03")),
            wire.Call(6, "describe_job", msgspec.Raw(msgspec.msgpack.encode({"job": msgspec.msgpack.Ext(77, b"")}))),
            wire.Call(7, "describe_job", msgspec.Raw(msgspec.msgpack.encode({"job": msgspec.msgpack.Ext(1, b"\xc1")}))),
            call(8, "read_logs", job="x"),
        )):  # fmt: skip
            one.send(message)
            failure = await answer(one)
            assert isinstance(failure, wire.Failure)
            assert failure.id == n
            error = pack.unpack_error(failure.error)
            assert type(error) is ControlError
            assert "the kernel is of anybatch " in str(error)
        one.send(wire.Cancel(99))
        one.send(wire.More(99))
        one.send(call(10, "describe_jobs", jobs=[]))
        assert (await answer(one)).id == 10


async def test_a_number_that_is_in_use_ends_the_connection(tmp_path: Path) -> None:
    async with both(tmp_path, ManualBackend()) as (kernel, _), peer(kernel) as bad:
        job = await submit(kernel)
        bad.send(call(1, "wait", job=job.id))
        bad.send(call(1, "wait", job=job.id))
        assert await bad.is_cut_off()
        await until(lambda: not live(kernel)._ended)


async def test_a_client_that_does_not_say_who_it_is_is_not_waited_for(tmp_path: Path) -> None:
    async with both(tmp_path) as (kernel, _):
        server_of(kernel).hello_s = 0.05
        async with peer(kernel, greets=False) as silent:
            assert await silent.is_cut_off()


# -- who is it --------------------------------------------------------------------------------------


async def test_another_version_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with both(tmp_path) as (kernel, _):
        monkeypatch.setattr(client, "PROTOCOL", 99)
        monkeypatch.setattr(client, "VERSION", "9.9.9")
        with pytest.raises(ControlError) as wrong:
            async with anybatch.connect(tmp_path / "j.db"):
                pass
        versions = f"version {wire.PROTOCOL} of the control protocol; this is anybatch 9.9.9, which speaks version 99"
        assert f"which speaks {versions}" in str(wrong.value)
        assert not isinstance(wrong.value, NotRunning)
        async with peer(kernel, greets=False) as old:
            old.hello(protocol=0)
            assert await old.is_cut_off()


async def test_a_hello_of_later_versions_is_understood() -> None:
    data = msgspec.msgpack.encode({"anybatch": "2.0", "protocol": 7, "colour": "red"})
    reader = asyncio.StreamReader()
    reader.feed_data(struct.pack(">I", len(data)) + data)
    hello = await wire.read_hello(reader, 10)
    assert hello is not None
    assert (hello.anybatch, hello.protocol) == ("2.0", 7)


async def test_only_this_user_and_root_are_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with both(tmp_path) as (kernel, remote):
        path = kernel.control_path
        assert path is not None
        assert path.stat().st_mode & 0o777 == 0o600
        uids = iter((12345, 0, os.geteuid(), None))
        monkeypatch.setattr(place, "peer_uid", lambda _: next(uids))
        with pytest.raises(ControlError, match=f"user 12345 may not use the kernel of user {os.geteuid()}"):
            async with anybatch.connect(path):
                pass
        for _ in range(3):
            async with anybatch.connect(path) as other:
                assert other.id == remote.id


async def test_the_peers_user_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int | None] = []
    real = place.peer_uid

    def look(found: socket.socket) -> int | None:
        seen.append(real(found))
        return seen[-1]

    monkeypatch.setattr(place, "peer_uid", look)
    async with both(tmp_path):
        assert seen == [os.geteuid()]


async def test_a_socket_that_may_not_be_used_says_so(tmp_path: Path) -> None:
    error = place.unreachable(tmp_path / "x.sock", PermissionError(13, "Permission denied"))
    assert type(error) is ControlError
    assert "is not for this user: Permission denied" in str(error)
    if os.geteuid() != 0:  # root may use it all the same
        async with both(tmp_path) as (kernel, _):
            assert kernel.control_path is not None
            kernel.control_path.chmod(0)
            with pytest.raises(ControlError, match="is not for this user"):
                async with anybatch.connect(tmp_path / "j.db"):
                    pass


# -- too much ---------------------------------------------------------------------------------------


async def test_what_a_stream_keeps_for_a_client_that_does_not_read_is_bounded(tmp_path: Path) -> None:
    class Endless(ManualBackend):
        given = 0

        async def logs(self, attempt: Any, *, follow: bool) -> Any:
            while True:
                self.given += 1
                yield b"x" * 1000

    backend = Endless()
    async with both(tmp_path, backend) as (kernel, remote):
        job = await submit(kernel)
        await until(lambda: backend.live)
        async with peer(kernel) as slow:
            for n in range(20):
                slow.send(call(n, "logs", job=job.id, follow=True))
            await until(lambda: backend.given >= 20 * 2 * wire.BATCH_BYTES // 1003)
            given = backend.given
            for _ in range(200):  # nothing more is taken from them, whatever time passes
                assert (await remote.describe_job(job)).status == "RUNNING"
            assert backend.given <= given + 20
            assert given * 1000 < 20 * 3 * wire.BATCH_BYTES
            for _ in range(20):  # each is given what it has asked for, and then one batch more for each time it asks
                assert isinstance(await answer(slow), wire.Items)
            slow.send(wire.More(3))
            items = await answer(slow)
            assert items.id == 3
            assert sum(len(item) for item in map(bytes, items.items)) >= wire.BATCH_BYTES
        await until(lambda: connections(kernel) == 1)
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "anybatch-control-logs"]


async def test_a_client_that_takes_nothing_is_cut_off(tmp_path: Path) -> None:
    async with both(tmp_path) as (kernel, remote):
        job = await submit(kernel, environment={"A": "x" * 10_000})
        await job.wait()
        server_of(kernel).stall_s = 0.05
        async with peer(kernel) as stalled:
            for n in range(100):
                stalled.send(call(n, "describe_jobs", jobs=[job.id] * 100))
            await until(lambda: connections(kernel) == 1)
            waiting = [c._writer.transport.get_write_buffer_size() for c in server_of(kernel)._connections]
            assert waiting == [0]
            assert (await remote.describe_job(job)).status == "SUCCEEDED"


async def test_a_slow_client_is_not_cut_off(tmp_path: Path) -> None:
    async with both(tmp_path) as (kernel, remote):
        job = await submit(kernel, environment={"A": "x" * 10_000})
        await job.wait()
        server_of(kernel).stall_s = 0.5
        async with peer(kernel) as slow:
            for n in range(20):
                slow.send(call(n, "describe_jobs", jobs=[job.id] * 100))
            for _ in range(20):
                assert isinstance(await answer(slow), wire.Result)
                await remote.describe_job(job)


async def test_more_than_is_kept_for_a_client_cuts_it_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PENDING_BYTES_MAX", 1_000_000)
    async with both(tmp_path) as (kernel, _):
        job = await submit(kernel, environment={"A": "x" * 10_000})
        async with peer(kernel) as stalled:
            for n in range(10):
                stalled.send(call(n, "describe_jobs", jobs=[job.id] * 200))
            await until(lambda: connections(kernel) == 1)


async def test_calls_and_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = ManualBackend()
    async with both(tmp_path, backend) as (kernel, remote):
        job = await submit(kernel)
        monkeypatch.setattr(server, "CALLS_MAX", 3)
        waits = [asyncio.ensure_future(remote.wait(job)) for _ in range(5)]
        done, going = await asyncio.wait(waits, timeout=60, return_when=asyncio.FIRST_EXCEPTION)
        for wait in done:
            with pytest.raises(ControlError, match="at most 3 calls at a time"):
                await wait
        monkeypatch.setattr(server, "CONNECTIONS_MAX", 1)
        with pytest.raises(ControlError, match="refuses: the kernel has 1 connections"):
            async with anybatch.connect(tmp_path / "j.db"):
                pass
        backend.exit_all()
        assert {(await wait).status for wait in going} == {"SUCCEEDED"}


# -- ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abruptly", [True, False])
async def test_what_was_done_for_a_client_that_dies_is_ended(tmp_path: Path, abruptly: bool) -> None:
    backend = ManualBackend()
    async with both(tmp_path, backend) as (kernel, _):
        job = await submit(kernel, array_size=3)
        async with peer(kernel) as dying:
            for n in range(50):
                dying.send(call(n, "wait", job=f"{job.id}:{n % 3}"))
            dying.send(call(100, "events", after=None))
            await until(lambda: len(live(kernel)._child_ended.get(1, {})) == 3)
            await until(lambda: len(live(kernel)._listeners) == 1)
            if abruptly:
                dying.writer.transport.abort()
            else:
                dying.writer.write_eof()
            await until(lambda: connections(kernel) == 1)
        assert live(kernel)._child_ended == {}
        assert live(kernel)._listeners == []
        assert (await job.describe()).status == "PENDING"


async def test_a_stale_socket_is_replaced_and_told_apart_from_a_live_one(tmp_path: Path) -> None:
    files = tmp_path / "j.db.d"
    async with both(tmp_path) as (kernel, _):
        path = kernel.control_path
        assert path is not None
        record = (files / "control.json").read_bytes()
    listener, _ = place.listen(path, files, lambda: tmp_path)
    listener.close()  # as if it had been killed: the file stays
    (files / "control.json").write_bytes(record)
    with pytest.raises(NotRunning, match=r"j.db: the last one, process \d+, was killed"):
        async with anybatch.connect(tmp_path / "j.db"):
            pass
    with pytest.raises(NotRunning, match="no kernel listens on .*: it has ended, or was killed"):
        async with anybatch.connect(path):
            pass
    async with both(tmp_path) as (_, remote):
        assert await remote.describe_jobs([]) == []
    async with Kernel(control=tmp_path / "mine.sock"):
        with pytest.raises(ControlError, match="another process's, which listens there"):
            async with Kernel(control=tmp_path / "mine.sock"):
                pass
        async with anybatch.connect(tmp_path / "mine.sock") as remote:
            assert await remote.describe_jobs([]) == []


async def test_a_kernel_without_a_socket_says_how_to_have_one(tmp_path: Path) -> None:
    async with Kernel(tmp_path / "j.db") as kernel:
        assert kernel.control_path is None
        with pytest.raises(
            NotRunning, match=r"has no control socket: it was opened without .*control=True.* \(process"
        ):
            async with anybatch.connect(tmp_path / "j.db"):
                pass
    with pytest.raises(NotRunning, match="there is neither a journal nor a control socket"):
        async with anybatch.connect(tmp_path / "none.db"):
            pass


async def test_a_path_that_is_too_long_goes_to_the_runtime_folder(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 80)
    deep.mkdir()
    async with Kernel(deep / "j.db", control=True, runtime_dir=tmp_path / "run") as kernel:
        assert kernel.control_path == tmp_path / "run" / kernel.id / "control.sock"
        async with anybatch.connect(deep / "j.db") as remote:
            assert remote.id == kernel.id
    with pytest.raises(anybatch.InvalidValue, match="control: .* a socket's path has at most 99 bytes"):
        async with Kernel(control=tmp_path / ("x" * 100)):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(ControlError, match="something else is there"):
        async with Kernel(control=tmp_path / "file"):
            pass


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", struct.pack(">I", 3) + b"abc"])
async def test_what_is_no_kernel_is_told_apart(tmp_path: Path, says: bytes) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)
        writer.close()

    impostor = await asyncio.start_unix_server(greet, tmp_path / "x.sock")
    with pytest.raises(ControlError, match="is not the control socket of a kernel|has not said that it is a kernel"):
        async with anybatch.connect(tmp_path / "x.sock"):
            pass
    impostor.close()


async def test_a_server_that_sends_nonsense_is_given_up(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.frame(wire.Hello(anybatch="x", protocol=wire.PROTOCOL)) + NONSENSE["no message pack"])
        await reader.read()
        writer.close()
        ended.set()

    impostor = await asyncio.start_unix_server(greet, tmp_path / "x.sock")
    async with anybatch.connect(tmp_path / "x.sock") as remote:
        with pytest.raises(KernelClosed, match="it has sent what is no answer"):
            await remote.wait("x")
    await ended.wait()
    impostor.close()
