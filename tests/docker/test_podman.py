"""The Docker backend on Podman's Docker-compatible socket: what makes an attempt's life, on a private service.

The other tests of this folder run on it too, by ANYBATCH_TEST_DOCKER; docs/docker.md says where it differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anybatch
import pytest
from allowed_skips import NEEDS_PODMAN
from docker_rig import IMAGE, TestEngine
from docker_wait import docker_kernel, is_running, until

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(180)]
START_S = 60.0
STOP_S = 30.0
CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
"""Podman's own limits of open files are higher than a container that it runs in may have."""
SCRIPT = """#!/bin/sh
echo $WORD $1 >&2
touch /out/$AWS_BATCH_JOB_ARRAY_INDEX
exit $AWS_BATCH_JOB_ARRAY_INDEX
"""


@pytest.fixture(scope="module")
def podman() -> Iterator[TestEngine]:
    if shutil.which("podman") is None or os.geteuid() != 0:
        pytest.skip(NEEDS_PODMAN)
    root = Path(tempfile.mkdtemp(prefix="ab-podman-", dir="/tmp"))
    (root / "containers.conf").write_text(CONF)
    places = [f"--root={root}/store", f"--runroot={root}/run", f"--tmpdir={root}/tmp"]
    environment = {**os.environ, "CONTAINERS_CONF": str(root / "containers.conf")}
    found = TestEngine(str(root / "podman.sock"))
    with (root / "log").open("wb") as log:
        arguments = ["podman", *places, "system", "service", "--time=0", found.url]
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    try:
        end = time.monotonic() + START_S
        while not found.is_there():
            if process.poll() is not None or time.monotonic() > end:
                pytest.skip(NEEDS_PODMAN)
            time.sleep(0.05)
        found.make_image()
        if not starts_containers(found):
            pytest.skip(NEEDS_PODMAN)
        yield found
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        process.kill()
        process.wait()
        subprocess.run(["podman", *places, "rm", "--all", "--force", "--time=0"], env=environment, capture_output=True)
        subprocess.run(["umount", "-l", f"{root}/store/overlay"], capture_output=True, check=False)
        shutil.rmtree(root, ignore_errors=True)


def starts_containers(engine: TestEngine) -> bool:
    """Whether it can, on this machine, without any of ours."""
    body = {"Image": IMAGE, "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}
    made = engine.ask("POST", "/containers/create", body)["Id"]
    try:
        engine.ask("POST", f"/containers/{made}/start")
    except RuntimeError:
        return False
    finally:
        engine.ask("DELETE", f"/containers/{made}?force=1")
    return True


@pytest.fixture
def options(podman: TestEngine) -> dict[str, Any]:
    return {"engines": [podman.url], "network": "none"}


async def test_codes_logs_scripts_and_volumes(tmp_path: Path, podman: TestEngine, options: dict[str, Any]) -> None:
    async with docker_kernel(tmp_path / "batch.db", options) as kernel:
        container = {
            "volumes": [{"name": "out", "host_path": str(tmp_path)}],
            "mount_points": [{"source_volume": "out", "container_path": "/out"}],
        }
        job = await kernel.submit_job(
            "job", queue="q", image=IMAGE, array_size=4, memory=64, environment={"WORD": "said"}, container=container,
            script=SCRIPT, command=["this"],
        )  # fmt: skip
        await job.wait()
        for index in range(4):
            child = await job[index].describe()
            assert child.exit_code == index
            assert await job[index].read_logs() == b"said this\n"
            assert (tmp_path / str(index)).exists()
        bad = await kernel.submit_job("bad", queue="q", image=IMAGE, command=["/no/such/program"])
        attempt = (await bad.wait()).attempts[0]
        assert (attempt.failure_class, attempt.exit_code) == ("could not start", None)
        await until(lambda: not podman.containers(), "containers are removed")


async def test_stopping(tmp_path: Path, options: dict[str, Any]) -> None:
    async with docker_kernel(tmp_path / "batch.db", options) as kernel:
        command = ["sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"]
        job = await kernel.submit_job("job", queue="q", image=IMAGE, command=command)
        await is_running(job)
        await job.terminate("enough")
        detail = await job.wait()
        assert (detail.status_reason, detail.attempts[0].exit_code) == ("enough", 9)


async def test_what_runs_and_what_ended_is_found_again(
    tmp_path: Path, podman: TestEngine, options: dict[str, Any]
) -> None:
    command = "echo ready; while ! test -e /out/$AWS_BATCH_JOB_ARRAY_INDEX; do sleep 0.05; done; exit 3"
    container = {
        "volumes": [{"name": "out", "host_path": str(tmp_path)}],
        "mount_points": [{"source_volume": "out", "container_path": "/out"}],
    }
    journal = tmp_path / "batch.db"
    async with docker_kernel(journal, options, on_close="detach") as kernel:
        job = await kernel.submit_job(
            "job", queue="q", image=IMAGE, command=["sh", "-c", command], array_size=2, container=container
        )
        await asyncio.gather(is_running(job[0]), is_running(job[1]))
    (tmp_path / "0").touch()
    await until(lambda: states(podman, job) == ["exited", "running"], "one has ended while no kernel was there")
    async with anybatch.Kernel(journal, on_close="stop") as kernel:
        (tmp_path / "1").touch()
        await kernel.wait(job.id)
        for index in range(2):
            child = await kernel.describe_job(f"{job.id}:{index}")
            assert (len(child.attempts), child.exit_code) == (1, 3)
            assert await kernel.read_logs(f"{job.id}:{index}") == b"ready\n"
        await until(lambda: not podman.containers(), "containers are removed")


def states(engine: TestEngine, job: anybatch.JobHandle) -> list[str]:
    return sorted(one["State"] for one in engine.containers(job=job.id))
