"""`anybatch serve`: readiness, signals, and what becomes of it when something is wrong."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from anybatch.kernel.control import client

if TYPE_CHECKING:
    from .conftest import Quick, Serve


def until(condition: object) -> None:
    end = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.05)


def end(process: subprocess.Popen[str]) -> str:
    """Its output, when it has been told to end and has done so in order."""
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    return out


def test_it_says_when_it_is_ready_and_ends_in_order(quick: Quick, serve: Serve, tmp_path: Path) -> None:
    with serve("--config", "anybatch.toml") as process:
        journal = tmp_path / "state" / "anybatch" / "batch.db"
        (environment,) = quick("environments", "--json").expect(0).json
        assert environment["name"] == "local"
        out = end(process)
    assert out.startswith("created environments.local\ncreated queues.default\nconfiguration applied; 0 entries")
    assert f"\nready: journal {journal}, control socket " in out
    assert out.endswith("ending: attempts go on (all but inline ones), and are found again at the next start\n")
    assert sorted(path.name for path in journal.parent.iterdir()) == ["batch.db", "batch.db.d"]


def test_sighup_applies_the_configuration_again(quick: Quick, serve: Serve) -> None:
    with serve("--config", "anybatch.toml") as process:
        text = (quick.folder / "anybatch.toml").read_text()
        quick.write("anybatch.toml", text.replace("priority = 1", "priority = 7"))
        process.send_signal(signal.SIGHUP)
        until(lambda: quick("queues", "--json").json[0]["priority"] == 7)
        quick.write("anybatch.toml", text.replace("priority = 1", "priority = -1\ncolour = 3"))
        process.send_signal(signal.SIGHUP)
        until(lambda: quick("queues", "--json").status == 0)
        quick.write("anybatch.toml", text.replace("priority = 1", "priority = 8"))
        process.send_signal(signal.SIGHUP)
        until(lambda: quick("queues", "--json").json[0]["priority"] != 7)
        assert quick("queues", "--json").json[0]["priority"] == 8
        assert "updated queues.default\n" in end(process)


def test_systemd_is_told(quick: Quick, serve: Serve, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        address = tmp_path / "notify"
        listener.bind(str(address))
        listener.settimeout(60)
        quick.environment["NOTIFY_SOCKET"] = str(address)
        with serve("--config", "anybatch.toml") as process:
            ready = listener.recv(4096).decode().splitlines()
            assert ready[:2] == ["READY=1", f"MAINPID={process.pid}"]
            process.send_signal(signal.SIGHUP)
            assert [listener.recv(4096), listener.recv(4096)] == [b"RELOADING=1", b"READY=1"]
            end(process)
        assert listener.recv(4096) == b"STOPPING=1"


def test_a_drain_waits_for_what_runs_unless_it_is_told_twice(quick: Quick, serve: Serve, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with serve("--config", "anybatch.toml", "--on-close", "drain") as process:
        quick("submit", "--name", "long", "--", "sh", "-c", f": > '{begun}'; exec sleep 600").expect(0)
        until(begun.exists)
        process.send_signal(signal.SIGTERM)
        until(lambda: quick("submit", "--name", "late", "--", "true").status == 0)
        assert quick("explain", "--json", "late").json[0]["code"] == "KERNEL_CLOSING"
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, out
    assert "what runs is no longer waited for" in out
    with serve("--on-close", "stop"):
        assert [job["status"] for job in quick("ps", "--json").json] != []
        quick("terminate", "--wait", "long").expect(0)


def test_what_cannot_be_is_said_and_ends_it(quick: Quick, serve: Serve) -> None:
    quick.write("bad.toml", "[queues.q]\npriority = 'high'\ncompute_environments = []\n")
    done = quick("serve", "--config", "bad.toml").expect(2)
    assert "bad.toml:2: queues.q.priority" in done.err
    assert quick("serve", "--config", "none.toml").expect(2).err != ""
    quick.write("text.db", "something else")
    assert "not a journal of anybatch" in quick("serve", "--journal", "text.db").expect(3).err
    assert "a socket's path has at most 99 bytes" in quick("serve", "--socket", "x" * 120).expect(2).err
    quick.write("file.sock", "")
    assert "something else is there" in quick("serve", "--socket", "file.sock").expect(3).err
    with serve("--config", "anybatch.toml", "--socket", "here.sock") as process:
        assert stat.S_IMODE(os.stat(quick.folder / "here.sock").st_mode) == 0o600
        assert f"held by another kernel: process {process.pid} on " in quick("serve").expect(3).err
        other = quick("serve", "--journal", "other.db", "--socket", "here.sock").expect(3)
        assert "is another process's, which listens there" in other.err
        assert quick("ps", "--journal", "here.sock").status == 0
    assert not (quick.folder / "here.sock").exists()


def test_a_kernel_that_hangs_is_not_waited_for_for_ever(
    quick: Quick, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CONNECT_S_MAX", 0.5)
    with serve("--config", "anybatch.toml") as process:
        os.kill(process.pid, signal.SIGSTOP)
        assert "has not said that it is a kernel" in quick("ps").expect(3).err
        os.kill(process.pid, signal.SIGCONT)
        monkeypatch.undo()
        assert quick("ps").status == 0


HELLO = '''
import asyncio, contextlib
from pathlib import Path

class Hello:
    """Answers each connection with the number of jobs."""

    api_version = 1

    @staticmethod
    def add_options(parser):
        parser.add_argument("--hello", metavar="PATH")

    @staticmethod
    def is_wanted(options):
        return options.hello is not None

    @staticmethod
    @contextlib.asynccontextmanager
    async def serve(kernel, options, journal):
        async def answer(reader, writer):
            with kernel.acting_as("greeter"):
                await kernel.submit_job("asked", queue="default", command=["true"])
            writer.write(str(len([job async for job in kernel.list_jobs()])).encode())
            writer.close()
        if options.hello == "fails":
            raise RuntimeError("no port left")
        server = await asyncio.start_unix_server(answer, options.hello)
        try:
            yield [f"hello on {options.hello}, beside {journal.name}"]
        finally:
            server.close()
            Path("closed").touch()

class Old(Hello):
    api_version = 0

class Clash(Hello):
    @staticmethod
    def add_options(parser):
        parser.add_argument("--clash")
        parser.add_argument("--config")
'''
FRONT_ENDS = """
[anybatch.frontends]
hello = hello_front:Hello
old = hello_front:Old
clash = hello_front:Clash
counter = my_package:Counter
gone = no_such_module_anywhere:FrontEnd
"""


def with_front_ends(quick: Quick) -> None:
    """Install a distribution with front ends, most of them broken."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text()
    counter = page.split("```python\n", 1)[1].split("```", 1)[0]
    quick.install("greeting", "1.0", FRONT_ENDS, hello_front=HELLO, my_package=counter)


def test_a_front_end_of_anybodys_is_served_and_what_is_broken_costs_itself_only(quick: Quick, serve: Serve) -> None:
    with_front_ends(quick)
    with quick.popen("serve", "--help") as asked:
        out, err = asked.communicate(timeout=60)
    assert asked.returncode == 0, err
    assert "--hello PATH" in out
    assert "--bind HOST:PORT" in out
    assert "--clash" not in out
    with serve("--config", "anybatch.toml", "--hello", "h.sock", "--counter", "c.sock") as process:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(quick.folder / "h.sock"))
            assert client.recv(10) == b"1"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(quick.folder / "c.sock"))
            assert client.recv(10) == b"1\n"
        (job,) = quick("ps", "--json").expect(0).json
        assert job["name"] == "asked"
        assert quick("describe", "--json", "asked").expect(0).json[0]["principal"] == "greeter"
        out = end(process)
    assert (quick.folder / "closed").exists()
    assert "hello on h.sock, beside batch.db\n" in out
    assert out.index("hello on h.sock") < out.index("ready: ")
    assert "front end 'gone' cannot be used: ModuleNotFoundError: No module named 'no_such_module_anywhere'" in out
    assert "front end 'old' cannot be used: PluginError: front end 'old' is for protocol version 0" in out
    assert "front end 'clash' cannot be used: its options cannot be added: ArgumentError: " in out


def test_a_front_end_that_was_asked_for_and_cannot_be_served_ends_it(quick: Quick) -> None:
    with_front_ends(quick)
    with quick.popen("serve", "--hello", "fails") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert "front end 'hello' failed: RuntimeError: no port left" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_end_it(serve: Serve, number: signal.Signals) -> None:
    with serve() as process:
        process.send_signal(number)
        assert process.wait(60) == 0


def test_a_served_kernel_has_the_collector_look_less_often() -> None:
    code = (
        "import gc; from anybatch.cli.collector import settle; settle(); "
        "print(gc.get_freeze_count(), *gc.get_threshold())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    frozen, young, *_ = map(int, done.stdout.split())
    assert frozen > 1000
    assert young == 20_000
