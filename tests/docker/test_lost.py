"""An engine out of reach for longer than `lost_after`: what was there is lost, in time, and never begun later.

Most tests have the engine behind a proxy: by what the proxy keeps back it is known how far the engine has come.
"""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anybatch
import pytest
import pytest_asyncio
from docker_proxy import Proxy
from docker_rig import IMAGE, PrivateEngine, TestEngine
from docker_wait import WAIT_S, WAITS, docker_kernel, explains, is_running, until

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(180)]
LOST_AFTER = 0.5


@pytest_asyncio.fixture
async def proxy(tmp_path: Path, docker: TestEngine) -> AsyncIterator[Proxy]:
    async with Proxy(tmp_path / "proxy.sock", docker.path) as proxy:
        yield proxy


@pytest.fixture
def away(options: dict[str, Any], proxy: Proxy) -> dict[str, Any]:
    """Options: the engine behind the proxy, soon given up."""
    return {**options, "engines": [{"url": proxy.url, "name": "far"}], "lost_after": LOST_AFTER, "init": True}


def counting(folder: Path) -> dict[str, Any]:
    """Arguments of a job that notes each attempt that runs in the folder's file."""
    return {
        "image": IMAGE,
        "command": ["sh", "-c", "echo $AWS_BATCH_JOB_ATTEMPT >>/out/runs; echo ready"],
        "container": {
            "volumes": [{"name": "out", "host_path": str(folder)}],
            "mount_points": [{"source_volume": "out", "container_path": "/out"}],
        },
    }


def runs(folder: Path) -> list[str]:
    path = folder / "runs"
    return path.read_text().split() if path.exists() else []


def is_lost(attempt: anybatch.AttemptDetail, host: str = "far") -> None:
    assert (attempt.failure_class, attempt.exit_code) == ("host lost", None)
    assert attempt.status_reason == f"Host EC2 (instance {host}) terminated."
    assert attempt.reason is not None
    assert attempt.reason.startswith("not reached for 0.5 s: the engine at unix://"), attempt.reason


async def test_rt_6_what_was_placed_on_an_engine_that_never_returns_is_lost(
    tmp_path: Path, options: dict[str, Any], private: PrivateEngine
) -> None:
    """One is to be tried again after a lost host, one is not: evaluateOnExit decides. What waits longer is unharmed."""
    about = {**options, "engines": [{"url": private.url, "name": "far"}], "lost_after": LOST_AFTER}
    rule = {"attempts": 3, "evaluate_on_exit": [{"on_status_reason": "Host EC2*", "action": "EXIT"}]}
    async with docker_kernel(tmp_path / "batch.db", about) as kernel:
        ran = await kernel.submit_job("ran", queue="q", **counting(tmp_path))
        await ran.wait()
        assert private.process is not None
        private.process.send_signal(signal.SIGSTOP)  # so that the next jobs are placed before anybody notices
        try:
            again = await kernel.submit_job("again", queue="q", retry=2, **counting(tmp_path))
            ends = await kernel.submit_job("ends", queue="q", retry=rule, **counting(tmp_path))
            for job in (again, ends):
                while (await job.describe()).status != "STARTING":
                    await asyncio.sleep(0.02)
            await asyncio.to_thread(private.kill)
            detail = await ends.wait()
            assert (detail.status, len(detail.attempts)) == ("FAILED", 1)
            is_lost(detail.attempts[0])
            assert (await again.describe()).status == "RUNNABLE"
            await explains(again, "cannot be reached")
        finally:
            private.start()  # in this thread: with it the engine would end
        detail = await again.wait()
        assert (detail.status, len(detail.attempts)) == ("SUCCEEDED", 2)
        is_lost(detail.attempts[0])
        assert runs(tmp_path) == ["1", "2"]  # those of "ran" and "again": what was lost before it began never ran


async def test_what_ran_on_an_engine_that_is_gone_for_too_long_is_lost(
    tmp_path: Path, options: dict[str, Any], private: PrivateEngine
) -> None:
    about = {**options, "engines": [{"url": private.url, "name": "far"}], "lost_after": LOST_AFTER}
    async with docker_kernel(tmp_path / "batch.db", about) as kernel:
        job = await kernel.submit_job("job", queue="q", image=IMAGE, command=WAITS)
        await is_running(job)
        await asyncio.to_thread(private.kill)
        try:
            is_lost((await job.wait()).attempts[0])
        finally:
            private.start()  # in this thread: with it the engine would end
        await until(lambda: not private.containers(job=job.id), "what was given up is ended once it can be")


@pytest.mark.parametrize("request_line", [b"^POST .*/containers/create", b"^POST .*/start$"], ids=["create", "start"])
async def test_what_an_engine_may_have_begun_is_removed_when_it_is_back(
    request_line: bytes, tmp_path: Path, away: dict[str, Any], proxy: Proxy, docker: TestEngine
) -> None:
    """The engine has done what it was asked, and nobody was told. The attempt is lost; its late result is no news."""
    async with docker_kernel(tmp_path / "batch.db", away) as kernel:
        proxy.keep_back = re.compile(request_line)
        job = await kernel.submit_job("job", queue="q", retry=2, **counting(tmp_path))
        await asyncio.wait_for(proxy.kept_back.wait(), 60)
        if b"start" in request_line:
            await until(lambda: runs(tmp_path), "it runs, for nobody")
        else:
            await until(lambda: docker.containers(job=job.id), "it is created, for nobody")
        await proxy.cut()
        await until_runnable(job)
        (left,) = docker.containers(job=job.id)
        await proxy.open()
        detail = await job.wait()
        assert (detail.status, len(detail.attempts)) == ("SUCCEEDED", 2)
        is_lost(detail.attempts[0])
        await until(lambda: not docker.containers(job=job.id), f"all is removed, {left['Names']} as well")
    assert runs(tmp_path) == (["1", "2"] if b"start" in request_line else ["2"])


async def until_runnable(job: anybatch.JobHandle) -> None:
    """Its attempt was given up, and the next one waits."""
    end = time.monotonic() + WAIT_S
    while (detail := await job.describe()).status != "RUNNABLE" or not detail.attempts:
        assert time.monotonic() < end, detail
        await asyncio.sleep(0.02)


async def test_an_engine_that_hangs_is_given_up_as_one_that_is_gone(
    tmp_path: Path, away: dict[str, Any], proxy: Proxy, docker: TestEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anybatch.backends._docker_engine.REQUEST_S", 0.5)
    async with docker_kernel(tmp_path / "batch.db", away) as kernel:
        proxy.keep_back = re.compile(b"^POST .*/containers/create")
        job = await kernel.submit_job("job", queue="q", image=IMAGE, command=["true"])
        is_lost((await job.wait()).attempts[0])
        await proxy.cut()
        await proxy.open()
        await until(lambda: not docker.containers(job=job.id), "it is removed")
        again = await kernel.submit_job("again", queue="q", image=IMAGE, command=["true"])
        assert (await again.wait()).status == "SUCCEEDED"


async def test_an_end_that_is_known_is_told_though_the_log_cannot_be_had(
    tmp_path: Path, away: dict[str, Any], proxy: Proxy
) -> None:
    async with docker_kernel(tmp_path / "batch.db", away) as kernel:
        proxy.keep_back = re.compile(b"^GET .*/logs")
        job = await kernel.submit_job("job", queue="q", image=IMAGE, command=["true"])
        await asyncio.wait_for(proxy.kept_back.wait(), 60)
        await proxy.cut()
        detail = await job.wait()
        assert (detail.status, detail.attempts[0].exit_code) == ("SUCCEEDED", 0)
        assert detail.attempts[0].reason == "its log could not be kept: the engine has been out of reach since"


async def test_a_terminated_job_ends_though_its_engine_is_gone(
    tmp_path: Path, away: dict[str, Any], proxy: Proxy, docker: TestEngine
) -> None:
    async with docker_kernel(tmp_path / "batch.db", away) as kernel:
        job = await kernel.submit_job("job", queue="q", image=IMAGE, command=WAITS, retry=5)
        await is_running(job)
        await proxy.cut()
        await job.terminate("no longer wanted")
        detail = await job.wait()
        assert (detail.status, detail.status_reason) == ("FAILED", "no longer wanted")
        assert detail.attempts[0].failure_class == "cancelled"
        await proxy.open()
        await until(lambda: not docker.containers(job=job.id), "it is removed")


# -- a kernel that opens while the engine is away ---------------------------------------------------------


async def test_what_was_in_flight_is_lost_if_the_engine_is_not_there_when_the_kernel_opens(
    tmp_path: Path, away: dict[str, Any], proxy: Proxy, docker: TestEngine
) -> None:
    journal = tmp_path / "batch.db"
    async with docker_kernel(journal, away, on_close="detach") as kernel:
        job = await kernel.submit_job("job", queue="q", image=IMAGE, command=WAITS, retry=2)
        await is_running(job)
        kernel_id = kernel.id
    await proxy.cut()
    async with anybatch.Kernel(journal, on_close="stop") as kernel:
        again = await kernel.job(job.id)
        await until_runnable(again)
        is_lost((await again.describe()).attempts[0])
        (left,) = docker.containers(kernel=kernel_id)
        await proxy.open()
        while (await again.describe()).status != "RUNNING":
            await asyncio.sleep(0.02)
        await until(lambda: left["Id"] not in ids(docker, kernel_id), "the first attempt is ended")
        assert len(ids(docker, kernel_id)) == 1
        assert len((await again.describe()).attempts) == 2


def ids(docker: TestEngine, kernel_id: str) -> list[str]:
    return [one["Id"] for one in docker.containers(kernel=kernel_id)]


async def test_what_runs_goes_on_if_the_engine_is_back_in_time(
    tmp_path: Path, away: dict[str, Any], proxy: Proxy
) -> None:
    journal = tmp_path / "batch.db"
    about = {**away, "lost_after": 600}
    async with docker_kernel(journal, about, on_close="detach") as kernel:
        command = ["sh", "-c", "echo ready; while ! test -e /out/go; do sleep 0.05; done"]
        arguments = {**counting(tmp_path), "command": command}
        job = await kernel.submit_job("job", queue="q", **arguments)
        await is_running(job)
    await proxy.cut()
    async with anybatch.Kernel(journal, on_close="stop") as kernel:
        again = await kernel.job(job.id)
        await explains(await kernel.submit_job("more", queue="q", image=IMAGE, command=["true"]), "cannot be reached")
        await proxy.open()
        (tmp_path / "go").touch()
        detail = await again.wait()
        assert (detail.status, len(detail.attempts)) == ("SUCCEEDED", 1)


async def test_a_connection_that_is_cut_costs_nothing(
    tmp_path: Path, away: dict[str, Any], proxy: Proxy, docker: TestEngine
) -> None:
    """The engine was there all the time: what runs goes on, and what ended meanwhile has its exit code."""
    command = ["sh", "-c", "echo ready; while ! test -e /out/go; do sleep 0.05; done; exit 7"]
    async with docker_kernel(tmp_path / "batch.db", {**away, "lost_after": 600}) as kernel:
        jobs = [
            await kernel.submit_job("job", queue="q", **{**counting(tmp_path), "command": command}, array_size=4),
            await kernel.submit_job("waits", queue="q", image=IMAGE, command=WAITS),
        ]
        await asyncio.gather(is_running(jobs[1]), *(is_running(jobs[0][i]) for i in range(4)))
        proxy.drop()
        await proxy.cut()
        (tmp_path / "go").touch()
        await until(lambda: len(running(docker, jobs[0])) == 0, "they have ended")
        await proxy.open()
        detail = await jobs[0].wait()
        assert detail.status == "FAILED"
        for index in range(4):
            child = await jobs[0][index].describe()
            assert (len(child.attempts), child.exit_code) == (1, 7)
            assert await jobs[0][index].read_logs() == b"ready\n"
        assert (await jobs[1].describe()).status == "RUNNING"


def running(docker: TestEngine, job: anybatch.JobHandle) -> list[dict[str, Any]]:
    return [one for one in docker.containers(job=job.id) if one["State"] == "running"]
