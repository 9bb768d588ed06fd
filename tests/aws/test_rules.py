"""What AWS refuses of definitions, queues and environments, rule by rule, the strict profile refuses, with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest
from anybatch.plugins.aws import AwsSettings
from aws_rig import EC2, Served, add_queue, container, refused

ROLE: Final = "arn:aws:iam::123456789012:role/x"
SMALL: Final = [{"type": "VCPU", "value": "0.25"}, {"type": "MEMORY", "value": "512"}]
NEEDS: Final = [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "32"}]
FARGATE: Final = {"type": "FARGATE", "minvCpus": None, "instanceTypes": None, "instanceRole": None}
REASON: Final = "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT"


@pytest.fixture(scope="module")
def lenient() -> Iterator[Any]:
    """A client of a server with the lenient profile."""
    with Served(settings=AwsSettings(images="local", profile="lenient")) as served:
        add_queue(served.client())
        yield served.client()


def register(client: Any, **request: Any) -> Any:
    return client.register_job_definition(jobDefinitionName="rules", **{"type": "container", **request})


def on_fargate(client: Any, **more: Any) -> Any:
    properties = container("true", executionRoleArn=ROLE, **{"resourceRequirements": SMALL, **more})
    return register(client, platformCapabilities=["FARGATE"], containerProperties=properties)


@pytest.mark.parametrize(
    ("properties", "match"),
    [
        ({"volumes": [{"name": "v", "host": {"sourcePath": "/x"}}]}, "host.sourcePath is not applicable for Fargate."),
        ({"logConfiguration": {"logDriver": "json-file"}}, "log driver json-file is not applicable for Fargate"),
        ({"linuxParameters": {"sharedMemorySize": 64}}, "sharedMemorySize is not applicable for Fargate."),
        ({"linuxParameters": {"devices": [{"hostPath": "/dev/x"}]}}, "devices is not applicable for Fargate."),
        ({"ephemeralStorage": {"sizeInGiB": 20}}, "between 21 and 200"),
        ({"ephemeralStorage": {"sizeInGiB": 201}}, "between 21 and 200"),
        ({"runtimePlatform": {"cpuArchitecture": "Z80"}}, "X86_64 or ARM64"),
        ({"resourceRequirements": [*SMALL, {"type": "GPU", "value": "1"}]}, "GPU is not applicable for Fargate."),
        ({"ulimits": [{"name": "core", "softLimit": 1, "hardLimit": 1}]}, "ulimits is not applicable for Fargate."),
    ],
)
def test_5_2_what_fargate_does_not_have(client: Any, properties: dict[str, Any], match: str) -> None:
    with refused(client, match):
        on_fargate(client, **properties)


def test_5_2_what_fargate_has(client: Any) -> None:
    on_fargate(
        client,
        volumes=[{"name": "v"}],
        logConfiguration={"logDriver": "splunk"},
        linuxParameters={"initProcessEnabled": True},
        ephemeralStorage={"sizeInGiB": 21},
        runtimePlatform={"cpuArchitecture": "ARM64"},
    )
    with refused(client, "runtimePlatform not applicable for EC2."):
        register(client, containerProperties=container("true", runtimePlatform={"cpuArchitecture": "ARM64"}))


def task(name: str, **more: Any) -> dict[str, Any]:
    return {"image": "x", "name": name, "command": ["true"], "resourceRequirements": NEEDS, **more}


@pytest.mark.parametrize(
    ("rule", "containers", "more", "match"),
    [
        ("EC-1", [task("a", startTimeout=1)], {}, "startTimeout must be at least 2 seconds"),
        ("EC-1", [task("a", stopTimeout=1)], {}, "stopTimeout must be at least 2 seconds"),
        ("EC-1", [task(f"a{n}") for n in range(11)], {}, "1 to 10 containers"),
        ("EC-1", [task("a"), task("a")], {}, "must be unique"),
        ("EC-2", [task("a")], {"ipcMode": "bogus"}, "ipcMode must be host, task or none"),
        ("EC-2", [task("a")], {"pidMode": "none"}, "pidMode must be host or task"),
        ("EC-3", [task("a", essential=False)], {}, "must be essential"),
        (
            "EC-4", [task("a", dependsOn=[{"containerName": "b", "condition": "COMPLETE"}]), task("b")], {},
            "COMPLETE is for containers that are not essential",
        ),
    ],
)  # fmt: skip
def test_ec_1_to_ec_4_tasks(
    client: Any, rule: str, containers: list[dict[str, Any]], more: dict[str, Any], match: str
) -> None:
    with refused(client, match):
        register(client, ecsProperties={"taskProperties": [{"containers": containers, **more}]})


def test_ec_4_tasks_that_are_as_they_should_be(client: Any) -> None:
    waits = [
        task("a", dependsOn=[{"containerName": "b", "condition": "SUCCESS"}], startTimeout=2),
        task("b", essential=False),
    ]
    register(client, ecsProperties={"taskProperties": [{"containers": waits, "ipcMode": "task", "pidMode": "host"}]})
    firelens = [task("c", logConfiguration={"logDriver": "awsfirelens"}, resourceRequirements=SMALL)]
    register(client, platformCapabilities=["FARGATE"], ecsProperties={"taskProperties": [{"containers": firelens}]})


def group(nodes: str, **more: Any) -> dict[str, Any]:
    return {"targetNodes": nodes, "container": container("true"), **more}


def nodes(client: Any, *groups: dict[str, Any], count: int = 3, **more: Any) -> Any:
    properties = {"numNodes": count, "mainNode": 0, "nodeRangeProperties": list(groups)}
    return register(client, type="multinode", nodeProperties=properties, **more)


BARE: Final = {"container": {"image": "x", "command": ["true"]}}


@pytest.mark.parametrize(
    ("rule", "groups", "match"),
    [
        ("NP-2", [{"targetNodes": "0:"}], "one of container, ecsProperties, eksProperties"),
        ("NP-3", [group("0:1")], "must name every node: 2 is in no targetNodes"),
        ("NP-3", [group("0:"), group("x")], "targetNodes: 'x' is no range of the nodes 0 to 2"),
        ("NP-3", [group("0:3")], "no range of the nodes"),
        ("NP-3", [group("2:1")], "no range of the nodes"),
        ("NP-5", [group("0:1"), group("2", **BARE)], "vCPU is not provided for node 2."),
    ],
)
def test_np_2_np_3_np_5_groups_of_nodes(client: Any, rule: str, groups: list[dict[str, Any]], match: str) -> None:
    with refused(client, match):
        nodes(client, *groups)


def test_np_3_np_5_every_form_of_a_range_and_what_a_wider_one_gives(client: Any) -> None:
    nodes(client, group(":1"), group("2:"))
    nodes(client, group("0:"), group("1:1", **BARE), group("2", **BARE))
    with refused(client, "not supported on Fargate"):  # MN-11
        nodes(client, group("0:"), platformCapabilities=["FARGATE"])


def test_jd_11_platform_capabilities_are_not_for_eks(client: Any) -> None:
    pods = {"podProperties": {"containers": [{"image": "x"}]}}
    register(client, eksProperties=pods)
    with refused(client, "platformCapabilities is not applicable to EKS jobs"):
        register(client, eksProperties=pods, platformCapabilities=["EC2"])


def test_tl_3_actions_are_for_reasons_that_can_be_acted_on(client: Any, lenient: Any) -> None:
    def actions(*reasons: str) -> list[dict[str, Any]]:
        return [{"reason": one, "state": "RUNNABLE", "maxTimeSeconds": 600, "action": "CANCEL"} for one in reasons]

    for reason in ("UNDETERMINED", "ACTION_REQUIRED", "JOB_RESOURCE_REQUIREMENT", ""):
        with refused(client, "The reason of an action is one of CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY"):
            client.update_job_queue(jobQueue="q", jobStateTimeLimitActions=actions(REASON, reason))
    client.update_job_queue(jobQueue="q", jobStateTimeLimitActions=actions(REASON))
    client.update_job_queue(jobQueue="q", jobStateTimeLimitActions=[])
    lenient.update_job_queue(jobQueue="q", jobStateTimeLimitActions=actions("UNDETERMINED"))
    for seconds in (599, 86_401):
        with refused(client, "between 600 and 86400"):
            client.update_job_queue(
                jobQueue="q", jobStateTimeLimitActions=[{**actions(REASON)[0], "maxTimeSeconds": seconds}]
            )


def create(client: Any, name: str, resources: dict[str, Any], **more: Any) -> Any:
    merged = {member: value for member, value in {**EC2, **resources}.items() if value is not None}
    return client.create_compute_environment(
        **{"computeEnvironmentName": name, "type": "MANAGED", "computeResources": merged, **more}
    )


@pytest.mark.parametrize(
    ("resources", "match"),
    [
        ({"type": "SPOT"}, "spotIamFleetRole is required"),
        ({"type": "SPOT", "allocationStrategy": "BEST_FIT"}, "spotIamFleetRole is required"),
        ({"allocationStrategy": "SPOT_CAPACITY_OPTIMIZED"}, "is for SPOT compute environments"),
        ({"type": "SPOT", "allocationStrategy": "BEST_FIT_PROGRESSIVE_ORDERED"}, "is for EC2 compute environments"),
        ({**FARGATE, "subnets": ["s"] * 17}, "subnets has at most 16 entries for Fargate"),
        ({**FARGATE, "securityGroupIds": ["s"] * 6}, "securityGroupIds has at most 5 entries for Fargate"),
        ({"ec2Configuration": [{"imageType": "ECS_AL2"}] * 3}, "ec2Configuration has 1 to 2 entries"),
        ({"scalingPolicy": {"minScaleDownDelayMinutes": 19}}, "must be 0, or between 20 and 10080"),
    ],
)
def test_7_2_7_3_resources_that_do_not_go_together(client: Any, resources: dict[str, Any], match: str) -> None:
    with refused(client, match):
        create(client, "bad", resources)


def test_7_2_7_3_resources_that_do(client: Any, lenient: Any) -> None:
    create(client, "spot", {"type": "SPOT", "allocationStrategy": "SPOT_CAPACITY_OPTIMIZED"})
    create(client, "fleet", {"type": "SPOT", "spotIamFleetRole": ROLE})
    create(client, "ordered", {"allocationStrategy": "BEST_FIT_PROGRESSIVE_ORDERED"})
    create(client, "slow", {"scalingPolicy": {"minScaleDownDelayMinutes": 0}})
    create(lenient, "spot", {"type": "SPOT"})


def test_ce_2_unmanaged_vcpus_are_not_for_managed_environments(client: Any) -> None:
    with refused(client, "unmanagedvCpus is for UNMANAGED compute environments"):
        create(client, "bad", {}, unmanagedvCpus=4)


def test_ce_10_ce_12_what_can_be_updated_with_best_fit(client: Any, lenient: Any) -> None:
    create(client, "fits", {})
    for resources in ({"instanceTypes": ["c5"]}, {"updateToLatestImageVersion": True}, {"tags": {"a": "b"}}):
        with refused(client, "the allocation strategy of the compute environment is BEST_FIT"):
            client.update_compute_environment(computeEnvironment="fits", computeResources=resources)
    scaling = {"minvCpus": 1, "maxvCpus": 5, "updateToLatestImageVersion": False}
    client.update_compute_environment(computeEnvironment="fits", computeResources=scaling)
    lenient.update_compute_environment(computeEnvironment="q", computeResources={"instanceTypes": ["c5"]})
    create(client, "grows", {"allocationStrategy": "BEST_FIT_PROGRESSIVE"})
    client.update_compute_environment(computeEnvironment="grows", computeResources={"instanceTypes": ["c5"]})
    with refused(client, "is for SPOT compute environments"):
        client.update_compute_environment(
            computeEnvironment="grows", computeResources={"allocationStrategy": "SPOT_CAPACITY_OPTIMIZED"}
        )


def test_ce_13_how_long_an_update_lets_jobs_run(client: Any) -> None:
    create(client, "policy", {})
    policy = {"terminateJobsOnUpdate": False, "jobExecutionTimeoutMinutes": 7_200}
    client.update_compute_environment(computeEnvironment="policy", updatePolicy=policy)
    with refused(client, "between 1 and 7200"):
        client.update_compute_environment(
            computeEnvironment="policy", updatePolicy={**policy, "jobExecutionTimeoutMinutes": 7_201}
        )


def test_ce_14_what_is_empty_clears_on_ec2_and_changes_nothing_on_fargate(client: Any) -> None:
    def resources(name: str) -> dict[str, Any]:
        [found] = client.describe_compute_environments(computeEnvironments=[name])["computeEnvironments"]
        resources: dict[str, Any] = found["computeResources"]
        return resources

    template = {"launchTemplateId": "lt-1"}
    given = {"imageId": "ami-1", "ec2KeyPair": "k", "launchTemplate": template}
    create(client, "clears", {"allocationStrategy": "BEST_FIT_PROGRESSIVE", **given})
    assert {name: resources("clears")[name] for name in given} == given
    empty = {"imageId": "", "ec2KeyPair": "", "launchTemplate": {"launchTemplateId": ""}, "securityGroupIds": []}
    client.update_compute_environment(computeEnvironment="clears", computeResources=empty)
    assert not set(given) & set(resources("clears"))
    assert resources("clears")["securityGroupIds"] == []
    create(client, "stays", FARGATE)
    client.update_compute_environment(computeEnvironment="stays", computeResources={"subnets": [], "maxvCpus": 2})
    assert (resources("stays")["subnets"], resources("stays")["maxvCpus"]) == (["subnet-1"], 2)
