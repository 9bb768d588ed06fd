"""Nothing accepted is silently ignored: each member of botocore's model has an effect, is refused, or is told of.

What is told of stands in the header `x-anybatch-ignored` of the answer and in docs/aws.md. A member that a newer model
has is in none of these lists, and fails here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
from anybatch.plugins.aws import AwsSettings, BackendChoice
from anybatch.plugins.aws.definitions import NO_EFFECT, NOT_RUN, OF_CONTAINERS
from anybatch.plugins.aws.environments import UNUSED
from aws_rig import EC2, Served, container, define, refused, service_model

DOCS: Final = Path(__file__).parents[2] / "docs" / "aws.md"
ROLE: Final = "arn:aws:iam::123456789012:role/x"

RUNS: Final = frozenset(("command", "environment", "resourceRequirements", "vcpus", "memory"))
"""Members of a container that have an effect wherever it runs."""
EFFECT: Final[dict[str, frozenset[str]]] = {
    "RegisterJobDefinitionRequest": frozenset((
        "jobDefinitionName", "type", "parameters", "containerProperties", "ecsProperties", "retryStrategy", "timeout",
        "tags", "platformCapabilities",
    )),
    "ContainerProperties": RUNS,
    "EcsTaskProperties": frozenset(("containers",)),
    # dependsOn and essential say nothing of a task's only container; of several the whole task is told of.
    "TaskContainerProperties": RUNS | {"name", "dependsOn", "essential"},
    "SubmitJobRequest": frozenset((
        "jobName", "jobQueue", "jobDefinition", "arrayProperties", "dependsOn", "parameters", "containerOverrides",
        "ecsPropertiesOverride", "retryStrategy", "timeout", "tags",
    )),
    "ContainerOverrides": RUNS,
    "TaskContainerOverrides": RUNS | {"name"},
    "CreateComputeEnvironmentRequest": frozenset((
        "computeEnvironmentName", "type", "state", "unmanagedvCpus", "computeResources", "tags",
    )),
    "ComputeResource": frozenset(("type", "maxvCpus")),
    "CreateJobQueueRequest": frozenset((
        "jobQueueName", "state", "priority", "computeEnvironmentOrder", "jobQueueType", "tags",
        "jobStateTimeLimitActions",
    )),
    "UpdateComputeEnvironmentRequest": frozenset((
        "computeEnvironment", "state", "unmanagedvCpus", "computeResources",
    )),
    "ComputeResourceUpdate": frozenset(("type", "maxvCpus")),
    "UpdateJobQueueRequest": frozenset((
        "jobQueue", "state", "priority", "computeEnvironmentOrder", "jobStateTimeLimitActions",
    )),
}  # fmt: skip
REFUSED: Final[dict[str, frozenset[str]]] = {
    "RegisterJobDefinitionRequest": frozenset(("consumableResourceProperties",)),
    "SubmitJobRequest": frozenset((
        "shareIdentifier", "schedulingPriorityOverride", "nodeOverrides", "eksPropertiesOverride",
        "consumableResourcePropertiesOverride",
    )),
    "CreateComputeEnvironmentRequest": frozenset(("eksConfiguration",)),
    "ComputeResource": frozenset(("managedInstancesProvider", "capacityTags")),
    "CreateJobQueueRequest": frozenset(("schedulingPolicyArn", "serviceEnvironmentOrder")),
    "UpdateComputeEnvironmentRequest": frozenset(("eksConfiguration",)),
    "ComputeResourceUpdate": frozenset(("managedInstancesProvider", "capacityTags")),
    "UpdateJobQueueRequest": frozenset(("schedulingPolicyArn", "serviceEnvironmentOrder")),
}  # fmt: skip

GIVEN: Final[dict[str, Any]] = {
    # of containers and tasks
    "image": "busybox", "jobRoleArn": ROLE, "taskRoleArn": ROLE, "executionRoleArn": ROLE,
    "volumes": [{"name": "v"}], "mountPoints": [{"sourceVolume": "v", "containerPath": "/v"}],
    "readonlyRootFilesystem": True, "privileged": True, "user": "me", "instanceType": "m5.large",
    "ulimits": [{"name": "core", "softLimit": 1, "hardLimit": 1}], "linuxParameters": {"initProcessEnabled": True},
    "logConfiguration": {"logDriver": "awslogs", "options": {"awslogs-group": "mine"}},
    "secrets": [{"name": "A", "valueFrom": "a"}], "networkConfiguration": {"assignPublicIp": "ENABLED"},
    "fargatePlatformConfiguration": {"platformVersion": "LATEST"}, "enableExecuteCommand": True,
    "ephemeralStorage": {"sizeInGiB": 21}, "runtimePlatform": {"cpuArchitecture": "X86_64"},
    "repositoryCredentials": {"credentialsParameter": "a"}, "firelensConfiguration": {"type": "fluentd"},
    "platformVersion": "LATEST", "ipcMode": "task", "pidMode": "task", "networkMode": "host", "startTimeout": 9,
    "stopTimeout": 9,
    # of definitions and submits
    "propagateTags": True, "schedulingPriority": 3,
    # of environments
    "allocationStrategy": "BEST_FIT_PROGRESSIVE", "minvCpus": 1, "desiredvCpus": 1, "instanceTypes": ["c5"],
    "imageId": "ami-1", "subnets": ["s"], "securityGroupIds": ["g"], "ec2KeyPair": "k", "instanceRole": "r",
    "tags": {"a": "b"}, "placementGroup": "p", "bidPercentage": 50, "spotIamFleetRole": ROLE,
    "launchTemplate": {"launchTemplateId": "lt-1"}, "ec2Configuration": [{"imageType": "ECS_AL2023"}],
    "scalingPolicy": {"minScaleDownDelayMinutes": 0}, "serviceRole": ROLE, "context": "c",
    "ecsSettings": {"containerInsights": "ENABLED"}, "updatePolicy": {"terminateJobsOnUpdate": True},
    "updateToLatestImageVersion": True,
}  # fmt: skip


def untold(shape: str) -> dict[str, Any]:
    """The members of a shape that have to be told of, with values."""
    members = set(service_model().shape_for(shape).members)
    effect, refusals = EFFECT[shape], REFUSED.get(shape, frozenset())
    assert not effect & refusals
    assert effect | refusals <= members | RUNS
    rest = members - effect - refusals
    unknown = rest - set(GIVEN) - set(NOT_RUN)
    assert not unknown, f"{shape}: are {sorted(unknown)} without effect? Then tell of them, here and in the docs."
    return {name: GIVEN[name] for name in rest - set(NOT_RUN)}


def told(answer: Any) -> set[str]:
    return set(answer["ResponseMetadata"]["HTTPHeaders"].get("x-anybatch-ignored", "").split(", ")) - {""}


def prefixed(prefix: str, names: Any) -> set[str]:
    return {f"{prefix}.{name}" for name in names}


@pytest.mark.parametrize("images", ["local", "docker"])
def test_members_of_definitions(images: Any) -> None:
    """Where containers are made, their members have an effect, but those that mean nothing outside AWS."""
    with Served(settings=AwsSettings(images=images, profile="lenient")) as served:
        client = served.client()

        def said(names: Any) -> set[str]:
            own_logs = {"logConfiguration"}
            return {name for name in names if images == "local" or name not in OF_CONTAINERS - own_logs}

        own = untold("RegisterJobDefinitionRequest")
        of_container = untold("ContainerProperties")
        properties = {**container("true"), **of_container}
        answer = client.register_job_definition(
            jobDefinitionName="d", type="container", containerProperties=properties, **own
        )
        assert told(answer) == set(own) | prefixed("containerProperties", said(of_container))
        of_task, of_only = untold("EcsTaskProperties"), untold("TaskContainerProperties")
        task = {**of_task, "containers": [{**container("true"), "name": "one", **of_only}]}
        answer = client.register_job_definition(
            jobDefinitionName="t", type="container", ecsProperties={"taskProperties": [task]}
        )
        expected = prefixed("ecsProperties", said(of_task)) | prefixed("ecsProperties.containers", said(of_only))
        assert told(answer) == expected

        several = {"containers": [{"image": "x", "name": name} for name in "ab"]}
        pods = {"podProperties": {"containers": [{"image": "x"}]}}
        nodes = {
            "numNodes": 1, "mainNode": 0,
            "nodeRangeProperties": [{"targetNodes": "0", "container": container("true")}],
        }  # fmt: skip
        for kind, member, value in (
            ("container", "ecsProperties", {"taskProperties": [several]}),
            ("container", "eksProperties", pods),
            ("multinode", "nodeProperties", nodes),
        ):
            answer = client.register_job_definition(jobDefinitionName="n", type=kind, **{member: value})
            assert told(answer) == {member}
        plain = client.register_job_definition(
            jobDefinitionName="p", type="container", propagateTags=False, schedulingPriority=0,
            containerProperties={"image": "x", "command": ["true"], "logConfiguration": {"logDriver": "syslog"}},
        )  # fmt: skip
        assert told(plain) == (
            {"containerProperties.image", "containerProperties.logConfiguration"} if images == "local" else set()
        )
        with refused(client, "not supported here"):
            client.register_job_definition(
                jobDefinitionName="c", type="container", containerProperties=container("true"),
                consumableResourceProperties={"consumableResourceList": []},
            )  # fmt: skip


def test_members_of_submits(served: Served, client: Any) -> None:
    define(client, "plain", "true")
    own, overrides = untold("SubmitJobRequest"), untold("ContainerOverrides")
    assert untold("TaskContainerOverrides") == {}
    submit = {"jobName": "j", "jobQueue": "q", "jobDefinition": "plain"}
    answer = client.submit_job(**submit, **own, containerOverrides=overrides)
    assert told(answer) == set(own) | prefixed("containerOverrides", overrides)
    assert told(client.submit_job(**submit, tags={"a": "b"})) == set()
    values: dict[str, Any] = {"shareIdentifier": "a", "schedulingPriorityOverride": 1}
    for member in REFUSED["SubmitJobRequest"]:
        with refused(client, ""):
            client.submit_job(**submit, **{member: values.get(member, {})})


def test_members_of_environments_and_queues(served: Served) -> None:
    here = BackendChoice(backend="process", options={"ignore_image": True})
    with Served(settings=AwsSettings(profile="lenient", environments={"EC2": here, "UNMANAGED": here})) as lenient:
        client = lenient.client()
        own, resources = untold("CreateComputeEnvironmentRequest"), untold("ComputeResource")
        answer = client.create_compute_environment(
            computeEnvironmentName="e", type="MANAGED", **own,
            computeResources={"type": "EC2", "maxvCpus": 4, **resources},
        )  # fmt: skip
        assert told(answer) == set(own) | prefixed("computeResources", resources)
        own, resources = untold("UpdateComputeEnvironmentRequest"), untold("ComputeResourceUpdate")
        answer = client.update_compute_environment(computeEnvironment="e", computeResources=resources, **own)
        assert told(answer) == set(own) | prefixed("computeResources", resources)
        answer = client.create_compute_environment(
            computeEnvironmentName="u", type="UNMANAGED", unmanagedvCpus=1, computeResources=EC2
        )
        assert told(answer) == {"computeResources"}
        answer = client.create_compute_environment(
            computeEnvironmentName="few", type="MANAGED", computeResources={"type": "EC2", "minvCpus": 0, "maxvCpus": 1}
        )
        assert told(answer) == set()
        assert untold("CreateJobQueueRequest") == {}
        assert untold("UpdateJobQueueRequest") == {}
        order = [{"order": 1, "computeEnvironment": "e"}]
        for member, value in (
            ("schedulingPolicyArn", "arn"),
            ("serviceEnvironmentOrder", [{"order": 1, "serviceEnvironment": "s"}]),
        ):
            with refused(client, "not supported here"):
                client.create_job_queue(
                    jobQueueName="q", priority=1, computeEnvironmentOrder=order, **{member: value}
                )  # fmt: skip


def test_all_that_is_told_of_stands_in_the_docs() -> None:
    text = DOCS.read_text()
    listed = text[text.index("## Differences from AWS Batch") : text.index("## Who may call")]
    names = set(re.findall(r"`([A-Za-z]+)`", listed))
    wanted = NO_EFFECT | OF_CONTAINERS | set(NOT_RUN) | set(UNUSED) | {"propagateTags", "schedulingPriority"}
    assert not wanted - names
