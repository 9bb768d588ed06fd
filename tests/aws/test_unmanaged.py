"""UNMANAGED environments: SSH hosts that are found through ECS's calls, and this machine where there are none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from anybatch.plugins.aws import AwsSettings, BackendChoice
from aws_rig import Served, container, define, ended, in_status, refused, until
from ssh_rig import Lab, lab

__all__ = ["lab"]  # a fixture
ROLE = "arn:aws:iam::123456789012:role/batch"


@pytest.fixture
def served(lab: Lab) -> Iterator[Served]:
    lab.sshd("lab1")
    lab.sshd("lab2")
    options = lab.options(ignore_image=True)
    options["hosts"]["lab1"] |= {"vcpus": 2, "memory": 512, "zone": "cellar"}
    options["hosts"]["lab2"] |= {"vcpus": 1, "memory": 256}
    environments = {"UNMANAGED": BackendChoice(backend="ssh", options=options)}
    with Served(settings=AwsSettings(environments=environments)) as served:
        client = served.client()
        client.create_compute_environment(computeEnvironmentName="lab", type="UNMANAGED", serviceRole=ROLE)
        client.create_job_queue(
            jobQueueName="q", priority=1, computeEnvironmentOrder=[{"order": 1, "computeEnvironment": "lab"}]
        )
        yield served


@pytest.mark.timeout(180)
def test_ce_4_ssh_hosts_run_jobs_and_are_container_instances(served: Served, lab: Lab) -> None:
    client, ecs, logs = served.client(), served.client("ecs"), served.client("logs")
    [environment] = client.describe_compute_environments()["computeEnvironments"]
    assert (environment["type"], environment["status"]) == ("UNMANAGED", "VALID")
    cluster = environment["ecsClusterArn"]
    assert ecs.list_clusters()["clusterArns"] == [cluster]
    [about] = ecs.describe_clusters(clusters=[cluster])["clusters"]
    assert about["registeredContainerInstancesCount"] == 2

    instances = ecs.list_container_instances(cluster=cluster)["containerInstanceArns"]
    described = ecs.describe_container_instances(cluster=cluster, containerInstances=instances)
    assert described["failures"] == []
    by_name = {one["ec2InstanceId"]: one for one in described["containerInstances"]}
    assert set(by_name) == {"lab1", "lab2"}
    first = by_name["lab1"]
    assert (first["status"], first["agentConnected"]) == ("ACTIVE", True)
    assert {one["name"]: one["integerValue"] for one in first["registeredResources"]} == {"CPU": 2048, "MEMORY": 512}
    assert first["attributes"] == [{"name": "ecs.availability-zone", "value": "cellar"}]

    # an array on both of them; its definition's image is ignored, which the answer says
    answer = client.register_job_definition(
        jobDefinitionName="where",
        type="container",
        containerProperties=container("sh", "-c", "echo child $AWS_BATCH_JOB_ARRAY_INDEX in $AWS_BATCH_CE_NAME"),
    )
    assert answer["ResponseMetadata"]["HTTPHeaders"]["x-anybatch-ignored"] == "containerProperties.image"
    parent = client.submit_job(jobName="a", jobQueue="q", jobDefinition="where", arrayProperties={"size": 6})["jobId"]
    assert ended(client, parent)["status"] == "SUCCEEDED"
    children = client.describe_jobs(jobs=[f"{parent}:{n}" for n in range(6)])["jobs"]
    assert {child["container"]["containerInstanceArn"] for child in children} <= set(instances)
    for n, child in enumerate(children):
        stream = {"logGroupName": "/aws/batch/job", "logStreamName": child["container"]["logStreamName"]}
        assert [one["message"] for one in logs.get_log_events(**stream)["events"]] == [f"child {n} in lab"]

    # what runs is seen on its host, and ended there
    define(client, "sleep", "sleep", "600")
    job = client.submit_job(jobName="s", jobQueue="q", jobDefinition="sleep")["jobId"]
    where = in_status(client, job, "RUNNING")["container"]["containerInstanceArn"]
    [host] = ecs.describe_container_instances(cluster=cluster, containerInstances=[where])["containerInstances"]
    left = {one["name"]: one["integerValue"] for one in host["remainingResources"]}
    there = {one["name"]: one["integerValue"] for one in host["registeredResources"]}
    assert (host["runningTasksCount"], there["CPU"] - left["CPU"], there["MEMORY"] - left["MEMORY"]) == (1, 1024, 32)
    client.terminate_job(jobId=job, reason="enough")
    assert ended(client, job)["statusReason"] == "enough"

    # a drained host, and one that is gone
    served.run(served.kernel.drain_host("lab", "lab2", reason="new disks"))
    assert len(ecs.list_container_instances(cluster=cluster, status="ACTIVE")["containerInstanceArns"]) == 1
    [drained] = ecs.list_container_instances(cluster=cluster, status="DRAINING")["containerInstanceArns"]
    assert drained == by_name["lab2"]["containerInstanceArn"]
    lab.hosts["lab1"].stop()

    def is_gone() -> bool:
        found = ecs.describe_container_instances(cluster=cluster, containerInstances=[first["containerInstanceArn"]])
        [host] = found["containerInstances"]
        return not host["agentConnected"] and bool(host["statusReason"])

    until(is_gone)


@pytest.mark.timeout(180)
def test_hosts_join_an_unmanaged_environment_later(lab: Lab) -> None:
    host = lab.sshd("late")
    options = {**lab.options(ignore_image=True), "hosts": ()}
    environments = {"UNMANAGED": BackendChoice(backend="ssh", options=options)}
    with Served(settings=AwsSettings(environments=environments)) as served:
        client, ecs = served.client(), served.client("ecs")
        client.create_compute_environment(computeEnvironmentName="own", type="UNMANAGED", serviceRole=ROLE)
        client.create_job_queue(
            jobQueueName="q", priority=1, computeEnvironmentOrder=[{"order": 1, "computeEnvironment": "own"}]
        )
        define(client, "hello", "true")
        job = client.submit_job(jobName="x", jobQueue="q", jobDefinition="hello")["jobId"]
        in_status(client, job, "RUNNABLE")
        cluster = client.describe_compute_environments()["computeEnvironments"][0]["ecsClusterArn"]
        assert ecs.list_container_instances(cluster=cluster)["containerInstanceArns"] == []
        served.run(served.kernel.register_host("own", "late", settings=host.entry()))
        assert ended(client, job)["status"] == "SUCCEEDED"
        assert len(ecs.list_container_instances(cluster=cluster)["containerInstanceArns"]) == 1


def test_without_ignore_image_an_ssh_host_refuses_a_container(lab: Lab) -> None:
    lab.sshd("lab1")
    environments = {"UNMANAGED": BackendChoice(backend="ssh", options=lab.options())}
    with Served(settings=AwsSettings(environments=environments)) as served:
        client: Any = served.client()
        client.create_compute_environment(computeEnvironmentName="own", type="UNMANAGED", serviceRole=ROLE)
        client.create_job_queue(
            jobQueueName="q", priority=1, computeEnvironmentOrder=[{"order": 1, "computeEnvironment": "own"}]
        )
        define(client, "hello", "true")
        with refused(client, "the option ignore_image"):
            client.submit_job(jobName="x", jobQueue="q", jobDefinition="hello")
