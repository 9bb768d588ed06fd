"""What goes wrong around containers: each ends in its failure class, with a reason that a user understands, in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anybatch
import pytest
import pytest_asyncio
from allowed_skips import NEEDS_MOUNT
from anybatch import JobStatus
from damage_rig import mounted
from docker_proxy import Proxy
from docker_rig import IMAGE, NoEngine, PrivateEngine, TestEngine
from docker_wait import WAITS, docker_kernel, explains, is_running, until

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(180)]
ONCE = Path(__file__).parent / "scripts" / "docker_kernel.py"


@pytest_asyncio.fixture
async def kernel(tmp_path: Path, options: dict[str, Any]) -> AsyncIterator[anybatch.Kernel]:
    async with docker_kernel(tmp_path / "batch.db", options) as kernel:
        yield kernel


async def test_a_container_that_somebody_removes_is_lost_and_tried_again(
    kernel: anybatch.Kernel, docker: TestEngine
) -> None:
    retry = {"attempts": 1, "host_lost_retries": 1}
    command = ["sh", "-c", "echo ready; test $AWS_BATCH_JOB_ATTEMPT = 2 || exec sleep 600"]
    job = await kernel.submit_job("job", queue="q", image=IMAGE, command=command, retry=retry)
    await is_running(job)
    (one,) = docker.containers(job=job.id)
    docker.ask("DELETE", f"/containers/{one['Id']}?force=1")
    detail = await job.wait()
    assert (detail.status, len(detail.attempts)) == ("SUCCEEDED", 2)
    assert detail.attempts[0].failure_class == "host lost"
    assert detail.attempts[0].reason == "its container was removed from the engine by someone else"


async def test_a_container_that_somebody_kills_has_failed_by_its_signal(
    kernel: anybatch.Kernel, docker: TestEngine
) -> None:
    job = await kernel.submit_job("job", queue="q", image=IMAGE, command=WAITS)
    await is_running(job)
    docker.ask("POST", f"/containers/{docker.containers(job=job.id)[0]['Id']}/kill")
    detail = await job.wait()
    assert (detail.exit_code, detail.attempts[0].failure_class) == (137, "application exit")
    assert await job.read_logs() == b"ready\n"


async def test_to_3_a_timeout_ends_the_container(kernel: anybatch.Kernel, docker: TestEngine) -> None:
    command = ["sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.05; done"]
    job = await kernel.submit_job("job", queue="q", image=IMAGE, command=command, timeout=0.5)
    detail = await job.wait()
    assert detail.status_reason == "Job attempt duration exceeded timeout"
    assert detail.attempts[0].failure_class == "timeout"
    await until(lambda: not docker.containers(job=job.id), "it is removed")


async def test_an_image_that_is_removed_between_two_jobs_is_looked_for_again(
    kernel: anybatch.Kernel, docker: TestEngine
) -> None:
    docker.make_image("anybatch-test:other")
    first = await kernel.submit_job("job", queue="q", image="anybatch-test:other", command=["true"])
    assert (await first.wait()).status == "SUCCEEDED"
    await until(lambda: not docker.containers(job=first.id), "it is removed")
    docker.ask("DELETE", "/images/anybatch-test:other?force=1")
    second = await kernel.submit_job("job", queue="q", image="anybatch-test:other", command=["true"])
    detail = await second.wait()
    assert detail.reason is not None
    assert detail.reason.startswith("CannotPullContainerError: ")


async def test_strays_of_its_own_and_no_others_are_removed(
    tmp_path: Path, docker: TestEngine, options: dict[str, Any]
) -> None:
    """Left from a kernel of this journal: one of a job that is not there. And one of another kernel."""
    journal = tmp_path / "batch.db"
    async with anybatch.Kernel(journal) as kernel:
        await kernel.create_compute_environment("docker", backend="docker", options=options)
        mine = kernel.id
    body = {"Image": IMAGE, "Cmd": ["sleep", "600"], "HostConfig": {"NetworkMode": "none", "Init": True}}
    made = {}
    for name, owner in (("mine", mine), ("other", "another-kernel")):
        labels = {"kernel": owner, "environment": "docker", "job": str(uuid.uuid4()), "index": "0", "number": "1"}
        labelled = {**body, "Labels": {f"anybatch.{key}": value for key, value in labels.items()}}
        made[name] = docker.ask("POST", "/containers/create", labelled)["Id"]
        docker.ask("POST", f"/containers/{made[name]}/start")
    try:
        async with anybatch.Kernel(journal):
            await until(lambda: not docker.containers(kernel=mine), "the stray is removed")
        assert docker.inspect(made["other"])["State"]["Running"]
    finally:
        docker.ask("DELETE", f"/containers/{made['other']}?force=1")


# -- the engine itself --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_an_engine_that_is_restarted_costs_what_ran_and_nothing_hangs(
    how: str, kernel: anybatch.Kernel, private: PrivateEngine
) -> None:
    retry = {"attempts": 1, "host_lost_retries": 1}
    command = ["sh", "-c", "echo ready; test $AWS_BATCH_JOB_ATTEMPT = 2 || exec sleep 600"]
    container = {"linuxParameters": {"initProcessEnabled": True}}  # so that SIGTERM ends it at once
    job = await kernel.submit_job("job", queue="q", image=IMAGE, command=command, retry=retry, container=container)
    await is_running(job)
    if how == "kill":
        private.kill()  # in this thread, so that the next job is placed before anybody has noticed
    else:
        await asyncio.to_thread(private.stop)
    waits = await kernel.submit_job("waits", queue="q", image=IMAGE, command=["echo", "later"])
    await explains(waits, "cannot be reached")
    private.start()  # in this thread: with it the engine would end
    detail = await job.wait()
    assert detail.status == "SUCCEEDED", detail
    assert [attempt.failure_class for attempt in detail.attempts] == ["host lost", None]
    assert "was restarted while it ran" in (detail.attempts[0].reason or "")
    assert (await waits.wait()).status == "SUCCEEDED"
    assert await waits.read_logs() == b"later\n"


# -- the kernel killed ----------------------------------------------------------------------------------


async def test_containers_outlive_a_kernel_that_is_killed(
    tmp_path: Path, docker: TestEngine, options: dict[str, Any]
) -> None:
    """Some run on and some end while no kernel is there; each runs once, and its real end is known."""
    journal, marks = tmp_path / "batch.db", tmp_path / "marks"
    marks.mkdir()
    arguments = [sys.executable, str(ONCE), str(journal), options["engines"][0], str(marks)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as killed:
        try:
            await until(lambda: len(list(marks.glob("run-*"))) >= 4, "four children run")
        finally:
            os.kill(killed.pid, signal.SIGKILL)
    (marks / "go").touch()
    async with anybatch.Kernel(journal) as kernel:
        (job,) = [kernel_job.id async for kernel_job in kernel.list_jobs()]
        detail = await kernel.wait(job)
        assert detail.status_summary is not None
        assert [detail.status_summary[s] for s in (JobStatus.SUCCEEDED, JobStatus.FAILED)] == [8, 2]
        for index in range(10):
            child = await kernel.describe_job(f"{job}:{index}")
            assert (len(child.attempts), child.exit_code) == (1, 5 if index % 5 == 4 else 0)
            assert await kernel.read_logs(f"{job}:{index}") == b"ready\nthrough\n"
        await until(lambda: not docker.containers(job=job), "containers are removed")
    runs = {path.name: path.read_text() for path in marks.glob("run-*")}
    assert runs == {f"run-{index}": "1\n" for index in range(10)}


@pytest.mark.parametrize("cut", [False, True], ids=["in-order", "engine-away"])
async def test_what_ended_just_before_the_kernel_closes_is_removed(
    cut: bool, tmp_path: Path, docker: TestEngine, options: dict[str, Any]
) -> None:
    """At the close, or by the next kernel where the engine could not be asked; its log is kept in both cases."""
    journal = tmp_path / "batch.db"
    async with Proxy(tmp_path / "proxy.sock", docker.path) as proxy:
        about = {**options, "engines": [proxy.url]}
        async with docker_kernel(journal, about, on_close="detach") as kernel:
            if cut:
                proxy.keep_back = re.compile(b"^DELETE ")
            job = await kernel.submit_job("job", queue="q", image=IMAGE, command=["echo", "said"])
            assert (await job.wait()).status == "SUCCEEDED"
            if cut:
                await asyncio.wait_for(proxy.kept_back.wait(), 60)
                await proxy.cut()
        if cut:
            await proxy.open()
        else:
            assert not docker.containers(job=job.id)
        async with anybatch.Kernel(journal) as kernel:
            await until(lambda: not docker.containers(job=job.id), "they are removed")
            assert await kernel.read_logs(job.id) == b"said\n"


# -- what the engine cannot do ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Iterator[PrivateEngine]:
    """An engine of its own on a small disk."""
    folder = Path(tempfile.mkdtemp(prefix="ab-small-", dir="/tmp"))
    with contextlib.ExitStack() as stack:
        stack.callback(folder.rmdir)
        stack.enter_context(mounted(folder, NEEDS_MOUNT, "-t", "tmpfs", "-o", "size=64m", "tmpfs"))
        try:
            made = PrivateEngine(root=folder)
            stack.callback(made.clean_up)
            made.start()
        except NoEngine as e:
            pytest.skip(str(e))
        made.make_image()
        yield made


async def test_a_disk_that_is_full_fails_what_is_to_be_created_and_says_so(
    tmp_path: Path, small: PrivateEngine, options: dict[str, Any]
) -> None:
    async with docker_kernel(tmp_path / "batch.db", {**options, "engines": [small.url]}) as kernel:
        fill = small.root / "fill"
        with contextlib.suppress(OSError), fill.open("wb", buffering=0) as file:
            while file.write(b"\0" * 4096):
                pass
        job = await kernel.submit_job("job", queue="q", image=IMAGE, command=["true"], retry=2)
        detail = await job.wait()
        assert (detail.status, len(detail.attempts)) == ("FAILED", 2)
        for attempt in detail.attempts:
            assert attempt.failure_class == "could not start"
            assert attempt.reason is not None
            assert attempt.reason.startswith("Cannot"), attempt.reason
            assert "no space left on device" in attempt.reason, attempt.reason
        fill.unlink()
        again = await kernel.submit_job("job", queue="q", image=IMAGE, command=["echo", "room"])
        assert (await again.wait()).status == "SUCCEEDED"
        assert await again.read_logs() == b"room\n"
        await until(lambda: not small.containers(), "nothing is left, of what failed neither")
