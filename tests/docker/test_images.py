"""Images from a real registry: pulled once, by whose credentials and by which policy, and what is told meanwhile."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anybatch
import pytest
from docker_rig import TestEngine
from docker_wait import WAIT_S, docker_kernel
from registry_rig import PASSWORD, USER, Registry, gate, is_installed, registry

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not is_installed(), reason="needs Debian's docker-registry"),
]


@pytest.fixture(scope="module")
def open_to_all(docker: TestEngine) -> Iterator[Registry]:
    with registry() as made:
        made.push(docker, "app", "1")
        yield made


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Docker's own configuration, of a user who has not logged in anywhere."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path / "config.json"


def remove(docker: TestEngine, image: str) -> None:
    docker.ask("DELETE", f"/images/{image}?force=1")


async def test_an_image_is_pulled_once_for_all_children_and_its_progress_is_their_reason(
    tmp_path: Path, docker: TestEngine, options: dict[str, Any], open_to_all: Registry
) -> None:
    async with gate(open_to_all, most=2 << 20) as slow, docker_kernel(tmp_path / "batch.db", options) as kernel:
        image = f"{slow.at}/app:1"
        job = await kernel.submit_job("job", queue="q", image=image, array_size=20, vcpus=0.1)
        pattern = re.compile(rf"pulling image {re.escape(image)}: [\d.]+ of [\d.]+ MB")
        end = time.monotonic() + WAIT_S
        while not pattern.fullmatch((child := await job[0].describe()).status_reason or ""):
            assert time.monotonic() < end, child.status_reason
            await asyncio.sleep(0.02)
        assert child.status == "STARTING"
        assert any(pattern.search(reason.text) for reason in await job[7].explain())
        slow.open.set()
        assert (await job.wait()).status == "SUCCEEDED"
        assert await job[19].read_logs() == b"1 runs\n"
    fetched = open_to_all.blobs("app")
    assert open_to_all.layers("app", "1")[-1] in fetched
    assert len(set(fetched)) == len(fetched)
    remove(docker, image)


async def test_a_registry_that_wants_a_password_gets_that_of_dockers_own_configuration(
    tmp_path: Path, docker: TestEngine, options: dict[str, Any], nobody: Path
) -> None:
    with registry(auth=True) as closed:
        closed.push(docker, "closed", "1")
        image = f"{closed.at}/closed:1"
        async with docker_kernel(tmp_path / "batch.db", options) as kernel:
            for users, words in (
                (None, "no basic auth credentials"),
                (f"{USER}:wrong", "unauthorized"),
            ):
                if users is not None:
                    nobody.write_text(config(closed, users))
                detail = await (await kernel.submit_job("job", queue="q", image=image)).wait()
                assert (detail.status, detail.status_reason) == ("FAILED", "Task failed to start")
                assert detail.reason is not None
                assert detail.reason.startswith("CannotPullContainerError: ")
                assert words in detail.reason
                assert PASSWORD not in detail.reason
            nobody.write_text(config(closed, f"{USER}:{PASSWORD}"))
            job = await kernel.submit_job("job", queue="q", image=image)
            assert (await job.wait()).status == "SUCCEEDED"
            assert await job.read_logs() == b"1 runs\n"
        remove(docker, image)


def config(registry: Registry, user: str) -> str:
    """As `docker login` writes it."""
    return json.dumps({"auths": {registry.at: {"auth": base64.b64encode(user.encode()).decode()}}})


async def test_a_credential_helper_is_asked(
    tmp_path: Path, docker: TestEngine, options: dict[str, Any], nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        f"""#!/bin/sh
        test "$1" = get && server=$(cat) || exit 1
        echo "$server" >>{tmp_path}/asked
        echo '{{"ServerURL": "'$server'", "Username": "{USER}", "Secret": "{PASSWORD}"}}'
        """
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with registry(auth=True) as closed:
        closed.push(docker, "closed", "1")
        nobody.write_text(json.dumps({"credHelpers": {closed.at: "test"}}))
        async with docker_kernel(tmp_path / "batch.db", options) as kernel:
            job = await kernel.submit_job("job", queue="q", image=f"{closed.at}/closed:1", array_size=3)
            assert (await job.wait()).status == "SUCCEEDED"
        assert (tmp_path / "asked").read_text() == f"{closed.at}\n"
        remove(docker, f"{closed.at}/closed:1")


async def test_pull_policies(
    tmp_path: Path, docker: TestEngine, options: dict[str, Any], open_to_all: Registry
) -> None:
    image = f"{open_to_all.at}/app:1"

    async def job(kernel: anybatch.Kernel) -> anybatch.JobDetail:
        """A job with three children; how it ended."""
        made = await kernel.submit_job("job", queue="q", image=image, array_size=3)
        await made.wait()
        return await made[2].describe()

    async with docker_kernel(tmp_path / "batch.db", {**options, "pull": "never"}) as kernel:
        detail = await job(kernel)
        assert detail.reason is not None
        assert detail.reason.startswith(f"CannotPullContainerError: image {image} is not on the engine")
        asked = open_to_all.manifests("app")

        await kernel.update_compute_environment("docker", options={**options, "pull": "missing"})
        for _ in range(2):
            assert (await job(kernel)).status == "SUCCEEDED"
        first = open_to_all.manifests("app")
        assert first > asked

        await kernel.update_compute_environment("docker", options={**options, "pull": "never"})
        assert (await job(kernel)).status == "SUCCEEDED"
        assert open_to_all.manifests("app") == first

        await kernel.update_compute_environment("docker", options={**options, "pull": "always"})
        for n in (1, 2):
            assert (await job(kernel)).status == "SUCCEEDED"
            assert open_to_all.manifests("app") == first + n  # once for each job, not for each child
    remove(docker, image)


@pytest.mark.parametrize(
    ("name", "words"),
    [("{at}/app:none", "manifest unknown"), ("{at}/nothing:1", "unknown"), ("127.0.0.1:1/app:1", "refused")],
    ids=["tag", "repository", "registry"],
)
async def test_an_image_that_there_is_not_fails_as_on_ecs(
    tmp_path: Path, options: dict[str, Any], open_to_all: Registry, name: str, words: str
) -> None:
    async with docker_kernel(tmp_path / "batch.db", options) as kernel:
        job = await kernel.submit_job("job", queue="q", image=name.format(at=open_to_all.at), retry=2)
        detail = await job.wait()
        assert (detail.status, len(detail.attempts)) == ("FAILED", 2)
        for attempt in detail.attempts:
            assert attempt.failure_class == "could not start"
            assert attempt.reason is not None
            assert attempt.reason.startswith("CannotPullContainerError: ")
            assert words in attempt.reason


async def test_a_pull_of_which_nothing_is_heard_any_more_fails(
    tmp_path: Path, options: dict[str, Any], open_to_all: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anybatch.backends._docker_engine.STREAM_READ_S", 0.5)
    async with gate(open_to_all, most=0) as slow, docker_kernel(tmp_path / "batch.db", options) as kernel:
        job = await kernel.submit_job("job", queue="q", image=f"{slow.at}/app:1")
        detail = await job.wait()
        assert detail.status == "FAILED"
        assert detail.attempts[0].failure_class == "could not start"
        assert detail.reason is not None
        assert re.match(r"CannotPullContainerError: .*, 5 times$", detail.reason), detail.reason
