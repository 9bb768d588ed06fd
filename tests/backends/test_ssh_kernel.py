"""SSH hosts under a real kernel: joined and drained while it works, lost, killed with it, and the example pipeline."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anybatch import BackendError, Code, Conflict, FailureClass, HostState, JobHandle, JobStatus, Kernel, read_journal
from ssh_rig import DEADLINE_S, Lab, Machine

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
HOST_LOST_AGAIN = {
    "attempts": 2,
    "host_lost_retries": 0,
    "evaluate_on_exit": [
        {"on_status_reason": "Host EC2*", "action": "RETRY"},
        {"on_reason": "*", "action": "EXIT"},
    ],
}


async def until(condition: Callable[[], object], what: str = "") -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, what or "it never came to that"
        await anyio.sleep(0.02)


async def log_of(job: JobHandle) -> bytes:
    """Its log, once its host can be reached: one with so short a keepalive is out of reach now and then."""
    end = time.monotonic() + DEADLINE_S
    while True:
        try:
            return await job.read_logs()
        except BackendError:
            assert time.monotonic() < end
            await anyio.sleep(0.02)


async def host_is(kernel: Kernel, name: str, state: HostState) -> Any:
    """Wait until a host is in this state; returns it."""
    with anyio.fail_after(DEADLINE_S):
        while True:
            (detail,) = await kernel.describe_compute_environments(["lab"])
            for host in detail.hosts:
                if host.name == name and host.state is state:
                    return host
            await anyio.sleep(0.02)


async def make(kernel: Kernel, lab: Lab, *hosts: str, **options: Any) -> None:
    await kernel.create_compute_environment(
        "lab", backend="ssh", managed=False, options=lab.options(*hosts, **options), exist_ok=True
    )
    await kernel.create_job_queue("queue", priority=1, compute_environments=["lab"], exist_ok=True)


async def test_hosts_join_are_described_drained_and_leave(lab: Lab, tmp_path: Path) -> None:
    for name in "ab":
        lab.sshd(name)
    async with Kernel(tmp_path / "db") as kernel:
        await make(kernel, lab, "a")
        joined = await kernel.register_host("lab", "b", settings=lab.hosts["b"].entry(zone="z2", vcpus=3))
        assert (joined.state, joined.zone, joined.vcpus, joined.is_registered) == (HostState.ACTIVE, "z2", 3.0, True)
        assert joined.load is not None
        assert joined.last_contact is not None
        job = await kernel.submit_job("wide", queue="queue", command=["sh", "-c", "echo $$; sleep 600"], vcpus=3)
        with anyio.fail_after(DEADLINE_S):
            while (await job.describe()).status is not JobStatus.RUNNING:
                await anyio.sleep(0.02)
        assert (await kernel.drain_host("lab", "b", reason="moves")).state is HostState.DRAINING
        later = await kernel.submit_job("later", queue="queue", command=["true"], vcpus=3)
        assert [reason.code for reason in await later.explain()] == [Code.HOST_DRAINED]
        with pytest.raises(Conflict, match="attempts run on it"):
            await kernel.deregister_host("lab", "b")
        await job.terminate("not wanted")
        assert (await job.wait()).attempts[0].host == "b"
        assert (await kernel.drain_host("lab", "b", undo=True)).state is HostState.ACTIVE
        assert (await later.wait()).status is JobStatus.SUCCEEDED
        await kernel.deregister_host("lab", "b")
        (detail,) = await kernel.describe_compute_environments(["lab"])
        assert [host.name for host in detail.hosts] == ["a"]


async def test_a_registered_host_with_a_wrong_key_says_so_and_is_mended(lab: Lab, tmp_path: Path) -> None:
    lab.sshd("a")
    async with Kernel(tmp_path / "db") as kernel:
        await kernel.create_compute_environment(
            "lab", backend="ssh", managed=False, options=lab.options("a") | {"hosts": []}
        )
        await kernel.create_job_queue("queue", priority=1, compute_environments=["lab"])
        made = await kernel.register_host("lab", "a", settings=lab.hosts["a"].entry(host_key=lab.client_public))
        assert made.state is HostState.UNAVAILABLE
        assert made.state_reason is not None
        assert "IS NOT THE PINNED ONE" in made.state_reason
        job = await kernel.submit_job("j", queue="queue", command=["true"])
        (reason,) = await job.explain()
        assert reason.code is Code.HOST_UNAVAILABLE
        assert "IS NOT THE PINNED ONE" in reason.text
        await kernel.register_host("lab", "a", settings=lab.hosts["a"].entry())
        assert (await job.wait()).status is JobStatus.SUCCEEDED


async def test_explain_says_that_a_host_is_in_quarantine_and_why(lab: Lab, tmp_path: Path) -> None:
    far = lab.folder / "far"
    far.mkdir(mode=0o700)
    lab.machine("a", tmpfs=str(far))
    async with Kernel(tmp_path / "db") as kernel:
        await make(kernel, lab, quarantine=3600)
        filler = await kernel.submit_job(
            "filler", queue="queue", command=["sh", "-c", f"dd if=/dev/zero of={far}/full bs=1024 2>/dev/null; true"]
        )
        await filler.wait()
        fails = await kernel.submit_job("fails", queue="queue", command=["echo", "x" * 9000], array_size=300)
        host = await host_is(kernel, "a", HostState.UNAVAILABLE)
        assert "it is in quarantine until 20" in (host.state_reason or "")
        assert "Task failed to start" in {(await fails[n].describe()).status_reason for n in range(300)}
        later = await kernel.submit_job("later", queue="queue", command=["true"])
        (reason,) = await later.explain()
        assert reason.code is Code.HOST_UNAVAILABLE
        assert "host 'a' takes none for now: it is in quarantine until 20" in reason.text
        assert "No space left on device" in reason.text


async def test_no_key_is_in_what_a_kernel_keeps(lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    lab.sshd("a")
    secret = lab.client_key.read_text().splitlines()[2]
    async with Kernel(tmp_path / "db") as kernel:
        await make(kernel, lab)
        await kernel.register_host("lab", "b", settings=lab.hosts["a"].entry())
        job = await kernel.submit_job("j", queue="queue", command=["true"], array_size=4)
        await job.wait()
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tmp_path / "db" in kept
    for path in [*kept, *(path for path in (lab.folder / "far").rglob("*") if path.is_file())]:
        assert secret.encode() not in path.read_bytes()
    assert secret not in caplog.text
    assert secret.encode() in lab.client_key.read_bytes()


async def test_a_lost_host_fails_its_attempts_as_such_and_evaluate_on_exit_decides(lab: Lab, tmp_path: Path) -> None:
    machine = lab.machine("a")
    pids, gate = tmp_path / "pids", tmp_path / "gate"
    slow = f"echo $$ >> {pids}; while [ ! -e {gate} ]; do sleep 0.05; done; exit 3"
    async with Kernel(tmp_path / "db") as kernel:
        await make(kernel, lab, keepalive=0.3, grace=1.5)
        before = await kernel.submit_job("before", queue="queue", command=["echo", "kept"], vcpus=0.5)
        await before.wait()
        again = await kernel.submit_job(
            "again", queue="queue", command=["sh", "-c", slow], retry=HOST_LOST_AGAIN, vcpus=0.5
        )
        once = await kernel.submit_job(
            "once", queue="queue", command=["sh", "-c", slow], retry={"attempts": 1, "host_lost_retries": 0}, vcpus=0.5
        )
        await until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        machine.cut()
        await host_is(kernel, "a", HostState.UNAVAILABLE)
        lost = await once.wait()
        assert lost.status is JobStatus.FAILED
        assert lost.attempts[0].failure_class is FailureClass.HOST_LOST
        assert (lost.status_reason or "").startswith("Host EC2")
        machine.mend()
        await until(lambda: len(pids.read_text().split()) == 3)
        gate.touch()  # whoever still runs of the first ones would exit with 3 now
        detail = await again.wait()
        assert [one.exit_code for one in detail.attempts] == [None, 3]
        assert (detail.attempts[0].status_reason or "").startswith("Host EC2")
        assert (await once.describe()).attempts == lost.attempts
        assert await log_of(before) == b"kept\n"  # the host that is back keeps what it had
        assert await log_of(once) == b""


async def test_a_killed_kernel_finds_everything_again_and_nothing_runs_twice(lab: Lab, tmp_path: Path) -> None:
    lab.sshd("a")
    lab.sshd("b")
    ran, size = tmp_path / "ran", 60
    command = f"echo $AWS_BATCH_JOB_ARRAY_INDEX >> {ran}; sleep 0.1"
    script = Path(__file__).parent / "scripts" / "ssh_kernel.py"
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(tmp_path / "db"), json.dumps(lab.options()), command, str(size),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    job_id = (await process.stdout.readline()).decode().strip()
    await until(lambda: ran.exists() and len(ran.read_text().split()) > 10)
    process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    async with Kernel(tmp_path / "db") as kernel:
        detail = await kernel.wait(job_id)
        assert detail.status is JobStatus.SUCCEEDED
        children = [await kernel.describe_job(f"{job_id}:{n}") for n in range(size)]
        assert {len(child.attempts) for child in children} == {1}
        assert {child.attempts[0].host for child in children} == {"a", "b"}
    assert Counter(ran.read_text().split()) == Counter(map(str, range(size)))


async def test_what_retention_forgets_goes_from_the_host_too(lab: Lab, tmp_path: Path) -> None:
    lab.sshd("a")
    async with Kernel(tmp_path / "db") as kernel:
        await make(kernel, lab)
        kept = await kernel.submit_job("kept", queue="queue", command=["echo", "kept"])
        await kept.wait()
        await kernel.create_job_queue("short", priority=1, compute_environments=["lab"], retain_succeeded=0.01)
        gone = await kernel.submit_job("gone", queue="short", command=["echo", "gone"])
        assert (await gone.wait()).status is JobStatus.SUCCEEDED

        def there(job: Any) -> list[Path]:
            return list((lab.folder / "far").glob(f"*/*/*/{job.id}"))

        await until(lambda: not there(gone))
        assert len(there(kept)) == 2  # its log, and its folder
        assert await kept.read_logs() == b"kept\n"
        other = await kernel.submit_job("other", queue="queue", command=["echo", "other"])
        await other.wait()
    async with read_journal(tmp_path / "db") as reader:
        assert [piece async for piece in reader.logs("kept")] == [b"kept\n"]
        with pytest.raises(Conflict, match="what it wrote is on host 'a' of environment 'lab', and was not fetched"):
            await anext(reader.logs("other"))


async def test_the_example_pipeline_over_three_hosts_in_two_zones_one_of_which_is_lost(
    lab: Lab, tmp_path: Path
) -> None:
    lab.sshd("a")
    lab.sshd("b")
    lost = lab.machine("c")
    assert isinstance(lost, Machine)
    zones = {"a": "z1", "b": "z2", "c": "z2"}
    hosts = {name: {**lab.hosts[name].entry(), "zone": zone} for name, zone in zones.items()}
    options = lab.options(keepalive=0.3, grace=1.0) | {"hosts": hosts}
    text = (ROOT / "examples" / "pipeline.toml").read_text()
    text = text.replace('script = "stdlib.py" ', f'script = "{ROOT}/examples/stdlib.py"\nworkdir = "{tmp_path}" ')
    lines = [f"options.{key} = {toml(value)}" for key, value in options.items()]
    text += '\n[environments.lab]\nbackend = "ssh"\nmanaged = false\n' + "\n".join(lines) + "\n"
    (tmp_path / "pipeline.toml").write_text(text)
    command = [sys.executable, "-m", "anybatch", "run", "--journal", str(tmp_path / "db"), "pipeline.toml"]
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def begun() -> bool:
        assert run.poll() is None, run.communicate()
        return any(b'"intent"' in path.read_bytes() for path in (lab.folder / "far").glob("*/lab-c-*/spool"))

    await until(begun)
    lost.cut()
    done = await asyncio.to_thread(run.communicate, timeout=120)
    assert run.returncode == 0, done
    assert list((tmp_path / "build" / "example").iterdir())
    async with Kernel(tmp_path / "db", on_close="detach") as kernel:
        (detail,) = await kernel.describe_compute_environments(["lab"])
        assert {host.name: host.zone for host in detail.hosts} == zones
        children = [await kernel.describe_job(f"{job.id}:{n}") for job in await made(kernel) for n in range(32)]
        assert {child.status for child in children} == {JobStatus.SUCCEEDED}
        lost_there = [one for child in children for one in child.attempts if one.failure_class]
        assert {one.failure_class for one in lost_there} == {FailureClass.HOST_LOST}


async def made(kernel: Kernel) -> list[Any]:
    """The pipeline's two arrays."""
    return [await kernel.describe_job(name) for name in ("count", "names")]


def toml(value: Any) -> str:
    """A value as TOML; tables inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)
