"""Job roles in containers: an unmodified SDK finds its credentials, on the host's network and on one of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from allowed_skips import NEEDS_BRIDGE
from anybatch.plugins.aws import AwsSettings, BackendChoice, RoleSource
from aws_rig import Served, add_queue, container, ended
from docker_rig import IMAGE, TestEngine

PROGRAM: Final = Path(__file__).parents[1] / "aws" / "role_program.py"
ROLE: Final = "arn:aws:iam::123456789012:role/submitter"
LINK_LOCAL: Final = "169.254.170.2"


def with_python(*command: str) -> dict[str, Any]:
    """A container that has this machine's Python, with the packages of the tests, read only."""
    real = Path(sys.base_prefix).resolve()
    folders = {"/usr", "/lib", "/lib64", str(real), sys.prefix, str(Path(__file__).parents[2])}
    there = sorted(one for one in folders if Path(one).exists())
    return container(
        *command,
        image=IMAGE,
        jobRoleArn=ROLE,
        volumes=[{"name": f"v{n}", "host": {"sourcePath": one}} for n, one in enumerate(there)],
        mountPoints=[{"sourceVolume": f"v{n}", "containerPath": one, "readOnly": True} for n, one in enumerate(there)],
        resourceRequirements=[{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "512"}],
    )


def served_on(docker: TestEngine, network: str | None, **more: Any) -> Served:
    options = {"engines": [docker.url], "network": network}
    settings = AwsSettings(
        environments={"EC2": BackendChoice(backend="docker", options=options)},
        roles={"submitter": RoleSource(principal="admin")},
    )
    return Served(None, settings, **more)


def check_submits(served: Served) -> None:
    """A container of this server's queue submits a job, and the job runs."""
    client = served.client()
    add_queue(client)
    for name, properties in (
        ("parent", with_python(sys.executable, str(PROGRAM), "submit")),
        ("child", container("true", image=IMAGE)),
    ):
        client.register_job_definition(jobDefinitionName=name, type="container", containerProperties=properties)
    job = ended(client, client.submit_job(jobName="p", jobQueue="q", jobDefinition="parent")["jobId"])
    text = served.run(served.kernel.read_logs(job["jobId"])).decode()
    assert job["status"] == "SUCCEEDED", (job["container"], text)
    found = json.loads(text.splitlines()[-1])
    assert found["method"] == "container-role"
    assert found["arn"] == f"arn:aws:sts::123456789012:assumed-role/submitter/{job['jobId']}-1"
    assert ended(client, found["job"])["status"] == "SUCCEEDED"


def test_on_the_hosts_network(docker: TestEngine) -> None:
    with served_on(docker, "host") as served:
        check_submits(served)


@contextlib.contextmanager
def link_local() -> Iterator[None]:
    """The address at which SDKs look, as one of this machine's own."""
    command = ["ip", "address", "add", f"{LINK_LOCAL}/32", "dev", "lo"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip(NEEDS_BRIDGE)
    if done.returncode != 0 and "exists" not in done.stderr:
        pytest.skip(NEEDS_BRIDGE)
    try:
        yield
    finally:
        if done.returncode == 0:
            subprocess.run(["ip", "address", "del", f"{LINK_LOCAL}/32", "dev", "lo"], check=False)


@contextlib.contextmanager
def bridge(docker: TestEngine) -> Iterator[str]:
    """A bridge network of the engine's."""
    name = f"ab-test-{uuid.uuid4().hex[:8]}"
    try:
        docker.ask("POST", "/networks/create", {"Name": name, "Driver": "bridge"})
    except RuntimeError:
        pytest.skip(NEEDS_BRIDGE)
    try:
        yield name
    finally:
        docker.ask("DELETE", f"/networks/{name}")


def test_on_a_network_of_its_own_by_the_address_of_ecs(docker: TestEngine) -> None:
    with link_local(), bridge(docker) as network, served_on(docker, network, bind_jobs=f"{LINK_LOCAL}:0") as served:
        check_submits(served)


@pytest.mark.parametrize(("network", "where"), [("none", "without a network"), (None, "on a network of their own")])
def test_where_it_cannot_be_delivered_the_attempt_fails_and_says_what_to_do(
    docker: TestEngine, network: str | None, where: str
) -> None:
    with served_on(docker, network) as served:
        client = served.client()
        add_queue(client)
        properties = container("true", image=IMAGE, jobRoleArn=ROLE)
        client.register_job_definition(jobDefinitionName="d", type="container", containerProperties=properties)
        job = ended(client, client.submit_job(jobName="p", jobQueue="q", jobDefinition="d")["jobId"])
        assert job["attempts"][0]["statusReason"] == "Task failed to start"
        assert f"cannot be delivered to containers {where}" in job["container"]["reason"]
        assert "169.254.170.2" in job["container"]["reason"]
