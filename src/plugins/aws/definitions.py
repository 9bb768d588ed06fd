"""RegisterJobDefinition, DeregisterJobDefinition, DescribeJobDefinitions (contract 5.1, LK-2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from anybatch import DefinitionDetail, NotFound

from .api import Api
from .arns import Place, resource_name
from .call import Call, check_ids, make_token, page_size, read_text_token
from .checks import check_container, check_registration, check_tags, check_timeout
from .checks_task import DRIVERS_ON_FARGATE, check_fargate, check_host, check_nodes, check_task
from .containers import (
    NO_COMMAND,
    Amounts,
    amounts,
    compile_definition,
    environment_of,
    kernel_amounts,
    kernel_retry,
    normal_container,
    retry_shape,
)
from .errors import refused, unsupported
from .requests import (
    DeregisterJobDefinitionRequest,
    DescribeJobDefinitionsRequest,
    RegisterJobDefinitionRequest,
)
from .shapes_container import ContainerProperties, TaskContainerProperties, Volume

DEFINITION_BYTES_MAX: Final = 24 * 1024
"""Of a RegisterJobDefinition request (JD-9)."""
EXECUTION: Final = "AWS_EXECUTION_ENV"
"""The variable by which programs know what they run on; ECS sets it, and it reads back nowhere (EV-2)."""
NO_EFFECT: Final = frozenset((
    "jobRoleArn", "executionRoleArn", "taskRoleArn", "instanceType", "networkConfiguration",
    "fargatePlatformConfiguration", "enableExecuteCommand", "ephemeralStorage", "runtimePlatform",
    "repositoryCredentials", "firelensConfiguration", "platformVersion", "ipcMode", "pidMode", "networkMode",
    "startTimeout", "stopTimeout",
))  # fmt: skip
"""Members of a container or task that mean nothing here."""
NOT_RUN: Final = ("nodeProperties", "eksProperties")
"""Members that are kept and given back, and whose jobs are refused; tasks of several containers are, too."""
JOB_ROLES: Final = frozenset(("jobRoleArn", "taskRoleArn"))
OF_CONTAINERS: Final = frozenset((
    "image", "volumes", "mountPoints", "readonlyRootFilesystem", "privileged", "ulimits", "user", "linuxParameters",
    "logConfiguration", "secrets",
))  # fmt: skip
"""Members that mean nothing where a container's command is run as a program of its host."""


async def register_job_definition(api: Api, call: Call, request: RegisterJobDefinitionRequest) -> dict[str, Any]:
    """Make the next revision of a name."""
    strict = api.settings.is_strict
    check_registration(request, strict=strict)
    fargate = "FARGATE" in (request.platformCapabilities or ())
    command: list[str] | None = None
    environment: dict[str, str] = {}
    needed = Amounts()
    spec: dict[str, Any] | None = None
    role: str | None = None
    if request.containerProperties is not None:
        container = request.containerProperties
        needed = check_container(container, fargate=fargate, strict=strict)
        if strict and fargate:
            check_fargate(container, container.volumes, DRIVERS_ON_FARGATE)
            check_host(container.ephemeralStorage, container.runtimePlatform)
        command, environment = container.command, environment_of(container.environment)
        spec = container_spec(container, container.volumes)
        role = container.jobRoleArn
    elif request.ecsProperties is not None:
        only = check_task(request.ecsProperties, fargate=fargate, strict=strict)
        if only is not None:
            needed = amounts(only.resourceRequirements)
            command, environment = only.command, environment_of(only.environment)
            spec = container_spec(only, request.ecsProperties.taskProperties[0].volumes)
            role = request.ecsProperties.taskProperties[0].taskRoleArn
    elif request.nodeProperties is not None:
        check_nodes(request.nodeProperties, strict=strict)
    kept = request.plain()
    for name in ("jobDefinitionName", "tags"):
        kept.pop(name, None)
    call.ignores(*ignored_members(kept, local=api.settings.ignores_images, roles=bool(api.settings.roles)))
    for name in ("propagateTags", "schedulingPriority"):
        if kept.get(name):
            call.ignores(name)
    detail = await api.kernel.register_job_definition(
        request.jobDefinitionName,
        command=command or (NO_COMMAND if spec is None else None),
        container=spec,
        environment={EXECUTION: "AWS_ECS_FARGATE" if fargate else "AWS_ECS_EC2", **environment},
        parameters=request.parameters,
        retry=kernel_retry(request.retryStrategy) or 1,
        timeout=check_timeout(request.timeout, strict=strict),
        scheduling_priority=request.schedulingPriority or 0,
        tags=check_tags(request.tags),
        metadata={"aws": kept},
        role=role or None,
        **kernel_amounts(needed),
    )
    return {
        "jobDefinitionName": detail.name,
        "jobDefinitionArn": definition_arn(call.place, detail.reference),
        "revision": detail.revision,
    }


def container_spec(
    container: ContainerProperties | TaskContainerProperties, volumes: list[Volume] | None
) -> dict[str, Any]:
    """A container as the kernel takes it: what means something outside AWS."""
    for volume in volumes or ():
        if volume.efsVolumeConfiguration is not None or volume.s3filesVolumeConfiguration is not None:
            raise unsupported("A volume on EFS or S3 Files")
    plain = container.plain()
    found = {name: plain[name] for name in OF_CONTAINERS if name in plain}
    if volumes:
        found["volumes"] = [
            {name: value for name, value in volume.plain().items() if name in ("name", "host")} for volume in volumes
        ]
    if container.logConfiguration is not None and container.logConfiguration.logDriver == "awslogs":
        del found["logConfiguration"]  # logs are the kernel's, and read as CloudWatch's (docs/aws.md)
    return found


def ignored_members(kept: Mapping[str, Any], *, local: bool, roles: bool) -> list[str]:
    """The members of a definition's containers that have no effect here.

    `local`: where images are ignored. `roles`: where job roles are configured.
    """
    names = NO_EFFECT | OF_CONTAINERS if local else NO_EFFECT
    if roles:
        names -= JOB_ROLES

    def ignored(prefix: str, members: Mapping[str, Any]) -> list[str]:
        own_logs = members.get("logConfiguration", {}).get("logDriver") == "awslogs"
        return [f"{prefix}.{name}" for name in members if name in names or (name == "logConfiguration" and own_logs)]

    found = [name for name in NOT_RUN if name in kept]
    if "containerProperties" in kept:
        found += ignored("containerProperties", kept["containerProperties"])
    for task in kept.get("ecsProperties", {}).get("taskProperties", ()):
        if len(task["containers"]) > 1:
            return [*found, "ecsProperties"]
        found += ignored("ecsProperties", task)
        found += ignored("ecsProperties.containers", task["containers"][0])
    return found


def definition_arn(place: Place, reference: str) -> str:
    """Of `name:revision`."""
    return place.arn("job-definition", reference)


async def deregister_job_definition(api: Api, call: Call, request: DeregisterJobDefinitionRequest) -> dict[str, Any]:
    """Turn a revision INACTIVE; one that is not there is left alone, as it is on AWS's emulators (JD-7)."""
    reference = resource_name("job-definition", request.jobDefinition)
    name, _, revision = reference.partition(":")
    if not revision.isdecimal() or not revision.isascii() or len(revision) > 9:
        raise refused(f"{reference[:200]!r} does not name a revision: give name:revision or the full ARN")
    try:
        await api.kernel.deregister_job_definition(f"{name}:{int(revision)}")
    except NotFound:
        if api.settings.is_strict:
            raise refused(f"JobDefinition {request.jobDefinition} not found.") from None
    return {}


async def describe_job_definitions(api: Api, call: Call, request: DescribeJobDefinitionsRequest) -> dict[str, Any]:
    """By reference, or all by name and newest first."""
    if request.jobDefinitions is not None and request.jobDefinitions:
        if request.jobDefinitionName is not None or request.status is not None:
            raise refused("jobDefinitions can not be combined with other parameters")
        references = check_ids(request.jobDefinitions, "job definitions")
        found = []
        for given in references:
            found += await _find(api, resource_name("job-definition", given))
        return {"jobDefinitions": [definition_shape(call.place, detail) for detail in found]}
    if request.status not in (None, "ACTIVE", "INACTIVE"):
        raise refused("status must be ACTIVE or INACTIVE")
    active = None if request.status is None else request.status == "ACTIVE"
    size = page_size(request.maxResults)
    after = read_text_token("definitions", request.nextToken)
    name = request.jobDefinitionName
    try:
        details = await api.kernel.describe_job_definitions(
            None if name is None else resource_name("job-definition", name), active=active
        )
    except NotFound:
        details = []
    if after is not None:
        last, _, revision = after.rpartition(":")
        if not revision.isdecimal() or not revision.isascii() or len(revision) > 18:
            raise refused("The nextToken is not valid")
        place = (last, -int(revision))
        details = [detail for detail in details if (detail.name, -detail.revision) > place]
    result: dict[str, Any] = {
        "jobDefinitions": [definition_shape(call.place, detail) for detail in details[:size]],
    }
    if len(details) > size:
        result["nextToken"] = make_token("definitions", details[size - 1].reference)
    return result


async def _find(api: Api, reference: str) -> list[DefinitionDetail]:
    name, _, revision = reference.partition(":")
    if revision and not (revision.isdecimal() and revision.isascii() and len(revision) <= 9):
        return []
    try:
        if revision:
            return [await api.kernel.describe_job_definition(reference)]
        return await api.kernel.describe_job_definitions(name)
    except NotFound:
        return []


def definition_shape(place: Place, detail: DefinitionDetail) -> dict[str, Any]:
    """A revision as AWS describes it (JD-10)."""
    compiled = compile_definition(detail)
    kept = compiled.kept
    found: dict[str, Any] = {
        "jobDefinitionName": detail.name,
        "jobDefinitionArn": definition_arn(place, detail.reference),
        "revision": detail.revision,
        "status": "ACTIVE" if detail.is_active else "INACTIVE",
        "type": kept.get("type", "container"),
        "parameters": dict(detail.parameters),
        "tags": dict(detail.tags),
        "containerOrchestrationType": "EKS" if "eksProperties" in kept else "ECS",
        "propagateTags": kept.get("propagateTags", False),
    }
    if not kept or "retryStrategy" in kept:
        found["retryStrategy"] = retry_shape(detail.retry)
    if detail.timeout_s is not None:
        found["timeout"] = {"attemptDurationSeconds": round(detail.timeout_s)}
    if "schedulingPriority" in kept:
        found["schedulingPriority"] = kept["schedulingPriority"]
    if "eksProperties" not in kept:
        found["platformCapabilities"] = list(compiled.capabilities)
    if "containerProperties" in kept or not kept:
        assert compiled.container is not None
        found["containerProperties"] = dict(compiled.container)
        if "FARGATE" in compiled.capabilities:
            found["containerProperties"].setdefault("fargatePlatformConfiguration", {"platformVersion": "LATEST"})
    for name in ("eksProperties", "nodeProperties", "ecsProperties"):
        if name in kept:
            found[name] = kept[name]
    if "nodeProperties" in kept:
        groups = [
            {**group, "container": normal_container(group["container"])} if "container" in group else group
            for group in kept["nodeProperties"]["nodeRangeProperties"]
        ]
        found["nodeProperties"] = {**kept["nodeProperties"], "nodeRangeProperties": groups}
    return found
