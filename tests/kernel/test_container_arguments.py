"""What users write of a container: our names or AWS's, every mistake named by its path; and notes of what waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anybatch
import pytest
from anybatch.kernel.backend import Capabilities, Launch
from anybatch.kernel.container_arguments import make_container
from anybatch.kernel.core.container import ContainerSpec, MountPoint, Volume
from anybatch.testing.null import NullBackend

AWS = {
    "user": "nobody",
    "readonlyRootFilesystem": True,
    "volumes": [{"name": "data", "host": {"sourcePath": "/data"}}, {"name": "own", "host": {}}],
    "mountPoints": [{"sourceVolume": "data", "containerPath": "/mnt", "readOnly": True}],
    "ulimits": [{"name": "nofile", "softLimit": 10, "hardLimit": 20}],
    "linuxParameters": {
        "initProcessEnabled": True,
        "sharedMemorySize": 64,
        "maxSwap": 0,
        "swappiness": 5,
        "tmpfs": [{"containerPath": "/t", "size": 8, "mountOptions": ["noexec"]}],
        "devices": [{"hostPath": "/dev/null", "permissions": ["READ"]}],
    },
    "secrets": [{"name": "TOKEN", "valueFrom": "token"}],
    "logConfiguration": {"logDriver": "json-file", "options": {"max-file": "1"}, "secretOptions": None},
    "privileged": None,
}


def test_aws_names_and_ours_mean_the_same() -> None:
    found = make_container("busybox", AWS)
    assert found is not None
    assert found.image == "busybox"
    assert found.volumes == (Volume(name="data", host_path="/data"), Volume(name="own"))
    assert found.mount_points == (MountPoint(source_volume="data", container_path="/mnt", read_only=True),)
    assert make_container(None, found) == found
    assert set(found.fields()) >= {"linux_parameters.swappiness", "secrets", "log_configuration"}
    assert "privileged" not in found.fields()


VOLUME, LINUX = "container.volumes[0]", "container.linux_parameters"
DEVICE = {"hostPath": "/d", "permissions": ["X"]}


@pytest.mark.parametrize(
    ("image", "container", "field", "text"),
    [
        (7, None, "image", "an image is text"),
        ("", None, "image", "an image is text"),
        (None, "busybox", "container", "maps its fields to values"),
        ("a", {"image": "b"}, "container.image", "give it once"),
        ("a", {"priviledged": True}, "container.priviledged", "did you mean privileged"),
        ("a", {"privileged": "yes"}, "container.privileged", "expected `bool"),
        ("a", {"jobRoleArn": "arn:..."}, "container.jobRoleArn", "an argument of its own: role"),
        ("a", {"command": ["x"]}, "container.command", "an argument of its own: command"),
        ("a", {"volumes": [{"name": 1}]}, "container.volumes[0].name", "expected `str`"),
        ("a", {"volumes": [{}]}, "container.volumes[0]", "missing required field `name`"),
        ("a", {"volumes": [{"name": "a", "efsVolumeConfiguration": {}}]}, f"{VOLUME}.efsVolumeConfiguration", "mount"),
        ("a", {"user": "a", "User": "b"}, "container.User", "twice"),
        ("a", {7: 1}, "container.7", "the fields here are"),
        ("a", {"linuxParameters": {"maxSwap": "1"}}, "container.linux_parameters.max_swap", "expected `int"),
        ("a", {"linuxParameters": {"devices": [DEVICE]}}, f"{LINUX}.devices[0].permissions[0]", "invalid enum value"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_by_its_path(image: Any, container: Any, field: str, text: str) -> None:
    with pytest.raises(anybatch.InvalidValue, match=text) as refused:
        make_container(image, container)
    assert refused.value.field == field


@pytest.mark.asyncio
async def test_a_definition_keeps_its_container_and_exist_ok_compares_it() -> None:
    async with anybatch.Kernel() as kernel:
        made = await kernel.register_job_definition("d", image="busybox", container=AWS, memory=8)
        assert made.container is not None
        assert made.container.image == "busybox"
        again = await kernel.register_job_definition("d", image="busybox", container=AWS, memory=8, exist_ok=True)
        assert again.revision == 1
        with pytest.raises(anybatch.Conflict, match="another container"):
            await kernel.register_job_definition("d", image="other", container=AWS, memory=8, exist_ok=True)


@pytest.mark.asyncio
async def test_apply_takes_an_image() -> None:
    async with anybatch.Kernel() as kernel:
        await kernel.apply({"definitions": {"d": {"image": "busybox", "container": {"user": "nobody"}}}})
        (found,) = await kernel.describe_job_definitions()
        assert found.container == ContainerSpec(image="busybox", user="nobody")
        with pytest.raises(anybatch.ConfigError, match=r"definitions\.d\.container\.usr"):
            await kernel.apply({"definitions": {"d": {"image": "busybox", "container": {"usr": "nobody"}}}})


@pytest.mark.asyncio
async def test_processes_run_a_definition_without_its_image_when_asked_to(tmp_path: Any) -> None:
    async with anybatch.Kernel(tmp_path / "batch.db") as kernel:
        await kernel.create_compute_environment("local", backend="process", max_vcpus=1)
        await kernel.create_job_queue("q", priority=1, compute_environments=["local"])
        await kernel.register_job_definition(
            "d", image="no/such:image", container={"user": "x"}, command=["echo", "hi"]
        )
        with pytest.raises(anybatch.InvalidValue, match=r"image: 'no/such:image' .*\(backend process\).*ignore_image"):
            await kernel.submit_job("refused", queue="q", definition="d")
        await kernel.update_compute_environment("local", options={"ignore_image": True})
        job = await kernel.submit_job("runs", queue="q", definition="d")
        assert (await job.wait()).status == "SUCCEEDED"
        assert await job.read_logs() == b"hi\n"
        assert (await job.describe()).container == ContainerSpec(image="no/such:image", user="x")
        with pytest.raises(anybatch.InvalidValue, match="give a command"):
            await kernel.submit_job("bare", queue="q", image="no/such:image")


class Pulling(NullBackend):
    """Says what attempts wait for, and starts them only once asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: list[Launch] = []

    async def launch(self, launches: Sequence[Launch]) -> None:
        assert self._context is not None
        for launch in launches:
            self._context.waiting(launch.job_id, launch.number, launch.indexes, reason="pulling busybox: 3 of 7 MB")
        self.pending += launches

    async def go(self) -> None:
        pending, self.pending = self.pending, []
        await super().launch(pending)


@pytest.mark.asyncio
async def test_what_an_attempt_waits_for_is_its_reason_until_it_starts() -> None:
    backend = Pulling()
    async with anybatch.Kernel(backends={"pulling": backend}) as kernel:
        await kernel.create_compute_environment("e", backend="pulling", max_vcpus=1)
        await kernel.create_job_queue("q", priority=1, compute_environments=["e"])
        job = await kernel.submit_job("j", queue="q", image="busybox")
        while not backend.pending:
            await kernel.describe_job(job)
        detail = await job.describe()
        assert (detail.status, detail.status_reason) == ("STARTING", "pulling busybox: 3 of 7 MB")
        assert (await job.explain())[0].text.endswith("has not said that it runs: pulling busybox: 3 of 7 MB")
        await backend.go()
        assert (await job.wait()).status_reason == "Essential container in task exited"
        assert kernel._drivers["e"].notes == {}


class Boaster(NullBackend):
    capabilities = Capabilities(commands=False)

    async def start(self, context: Any, known: Sequence[Launch]) -> None:
        context.honours(["image", "colour"])
        await super().start(context, known)


@pytest.mark.asyncio
async def test_honouring_what_there_is_not_costs_the_environment() -> None:
    async with anybatch.Kernel(backends={"boaster": Boaster}) as kernel:
        found = await kernel.create_compute_environment("e", backend="boaster", max_vcpus=1)
        assert found.status == "INVALID"
        assert "container fields that there are not: ['colour']" in found.status_reason
