"""Create-, Update-, DeleteComputeEnvironment and DescribeComputeEnvironments (contract 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from anybatch import EnvironmentDetail, InvalidValue, NotFound, PluginError

from .api import Api
from .arns import Place
from .call import Call, aws_metadata
from .checks import check_name, check_tags
from .checks_environment import (
    FARGATE,
    check_infrastructure,
    check_lengths,
    check_spot,
    check_strategy,
    check_update_policy,
    updated,
)
from .errors import refused, unsupported
from .found import find_one, find_some
from .job_shapes import cluster_name
from .requests import (
    CreateComputeEnvironmentRequest,
    DeleteComputeEnvironmentRequest,
    DescribeComputeEnvironmentsRequest,
    UpdateComputeEnvironmentRequest,
)
from .shapes_environment import ComputeResource, ComputeResourceUpdate

NOT_ON_FARGATE: Final = (
    "allocationStrategy", "minvCpus", "desiredvCpus", "instanceTypes", "imageId", "ec2KeyPair", "instanceRole", "tags",
    "placementGroup", "bidPercentage", "spotIamFleetRole", "launchTemplate", "ec2Configuration", "scalingPolicy",
)  # fmt: skip
USED: Final = frozenset(("type", "maxvCpus"))
"""Members of computeResources that have an effect here; the others are kept and given back."""
UNUSED: Final = ("serviceRole", "context", "ecsSettings", "updatePolicy")
"""Members beside computeResources that have none."""
VCPUS_MAX: Final = 1_000_000
SERVICE_ROLE: Final = "aws-service-role/batch.amazonaws.com/AWSServiceRoleForBatch"
NO_ENGINE: Final = (
    "Start a Docker Engine (or name one in the environment's options) and update the compute environment or restart "
    "the server; or start the server with --images local, which needs none"
)
SCALING_DOWN: Final = (
    "Manually scaling down compute environment is not supported. Disconnecting job queues from compute environment "
    "will cause it to scale-down to minvCpus."
)


async def create_compute_environment(api: Api, call: Call, request: CreateComputeEnvironmentRequest) -> dict[str, Any]:
    """Create an environment on the backend that its type stands for; returns once that has started or failed to."""
    check_name("computeEnvironmentName", request.computeEnvironmentName)
    if request.eksConfiguration is not None:
        raise unsupported("eksConfiguration")
    resources = request.computeResources
    most: int | None
    if request.type == "MANAGED":
        if resources is None:
            raise refused("computeResources must be provided for a MANAGED compute environment")
        if request.unmanagedvCpus is not None:
            raise refused("unmanagedvCpus is for UNMANAGED compute environments")
        kind, least, most = _check_managed(api, resources)
    else:
        if api.settings.is_strict and request.serviceRole is None:
            raise refused("ServiceRole is required.")
        if request.unmanagedvCpus is not None and not 0 <= request.unmanagedvCpus <= VCPUS_MAX:
            raise refused(f"unmanagedvCpus must be between 0 and {VCPUS_MAX}")
        kind, least, most = "UNMANAGED", 0, request.unmanagedvCpus or None
    kept = request.plain()
    for name in ("computeEnvironmentName", "state", "tags"):
        kept.pop(name, None)
    _note_ignored(call, kept)
    choice = api.settings.choice(kind)
    try:
        detail = await api.kernel.create_compute_environment(
            request.computeEnvironmentName,
            backend=choice.backend,
            max_vcpus=most,
            min_vcpus=least,
            managed=request.type == "MANAGED",
            state=request.state or "ENABLED",
            options=choice.options,
            tags=check_tags(request.tags),
            metadata={"aws": kept},
        )
    except PluginError as e:
        raise refused(f"The backend {choice.backend!r} of {kind} environments cannot be used: {e}") from e
    except InvalidValue as e:
        if e.field != "backend":
            raise
        raise refused(
            f"{kind} environments run on the backend {choice.backend!r}, which is not installed here. Start the server "
            "with --images local, or install it."
        ) from e
    return _names(call.place, detail.name)


def _names(place: Place, name: str) -> dict[str, str]:
    return {"computeEnvironmentName": name, "computeEnvironmentArn": place.arn("compute-environment", name)}


def _check_managed(api: Api, resources: ComputeResource) -> tuple[str, int, int]:
    """The type and the limits in vCPUs (CE-2, CE-5, 7.2)."""
    kind = resources.type
    if kind == "ECS_MANAGED_INSTANCES" or resources.managedInstancesProvider is not None or resources.capacityTags:
        raise unsupported("The type ECS_MANAGED_INSTANCES")
    if not 1 <= resources.maxvCpus <= VCPUS_MAX:
        raise refused(f"maxvCpus must be between 1 and {VCPUS_MAX}")
    if api.settings.is_strict:
        check_lengths(kind, resources)
    if kind in FARGATE:
        for member in NOT_ON_FARGATE:
            if getattr(resources, member) is not None:
                raise refused(f"{member} is not applicable for Fargate.")
        if api.settings.is_strict and not resources.subnets:
            raise refused("Resource subnets is required.")
        if api.settings.is_strict and not resources.securityGroupIds:
            raise refused("Resource securityGroupIds is required.")
        return kind, 0, resources.maxvCpus
    if api.settings.is_strict:
        for member, given in (
            ("Resource minvCpus", resources.minvCpus is not None),
            ("Instance role", resources.instanceRole),
            ("Resource subnets", resources.subnets),
            ("Resource instanceTypes", resources.instanceTypes),
        ):
            if not given:
                raise refused(f"{member} is required.")
        check_strategy(kind, resources.allocationStrategy)
        check_spot(resources)
    least = resources.minvCpus or 0
    desired = resources.desiredvCpus if resources.desiredvCpus is not None else least
    if not 0 <= least <= desired <= resources.maxvCpus:
        raise refused("minvCpus <= desiredvCpus <= maxvCpus must hold, none below 0")
    if resources.bidPercentage is not None and not 1 <= resources.bidPercentage <= 100:
        raise refused("bidPercentage must be between 1 and 100")
    return kind, least, resources.maxvCpus


def _note_ignored(call: Call, kept: Mapping[str, Any]) -> None:
    resources = kept.get("computeResources", {})
    if kept.get("type") == "UNMANAGED" and resources:
        call.ignores("computeResources")
    else:  # a minimum of 0 is what there is anyway
        unused = (name for name, value in resources.items() if name not in USED and (name, value) != ("minvCpus", 0))
        call.ignores(*(f"computeResources.{name}" for name in unused))
    call.ignores(*(name for name in UNUSED if name in kept))


async def update_compute_environment(api: Api, call: Call, request: UpdateComputeEnvironmentRequest) -> dict[str, Any]:
    """Change what is given (CE-10, CE-11)."""
    detail = await find_environment(api, call.place, request.computeEnvironment)
    if request.eksConfiguration is not None:
        raise unsupported("eksConfiguration")
    kept = dict(aws_metadata(detail.metadata))
    most: float | None = None
    least: float | None = None
    if request.computeResources is not None:
        if kept.get("type") == "UNMANAGED":
            raise refused("computeResources are not applicable to an UNMANAGED compute environment")
        resources = dict(kept.get("computeResources", {}))
        most, least = _check_update(detail, resources, request.computeResources)
        if api.settings.is_strict:
            check_lengths(resources.get("type", "EC2"), request.computeResources)
            check_infrastructure(resources, request.computeResources)
        kept["computeResources"] = updated(resources, request.computeResources.plain())
    if request.unmanagedvCpus is not None:
        if kept.get("type") != "UNMANAGED":
            raise refused("unmanagedvCpus is for UNMANAGED compute environments")
        if not 0 <= request.unmanagedvCpus <= VCPUS_MAX:
            raise refused(f"unmanagedvCpus must be between 0 and {VCPUS_MAX}")
        kept["unmanagedvCpus"], most = request.unmanagedvCpus, request.unmanagedvCpus or None
    if api.settings.is_strict:
        check_update_policy(request.updatePolicy)
    plain = request.plain()
    kept |= {name: plain[name] for name in UNUSED if name in plain}
    _note_ignored(call, plain)
    await api.kernel.update_compute_environment(
        detail.name,
        state=request.state,
        min_vcpus=least,
        max_vcpus=most,
        metadata={**detail.metadata, "aws": kept},
    )
    return _names(call.place, detail.name)


def _check_update(
    detail: EnvironmentDetail, there: Mapping[str, Any], asked: ComputeResourceUpdate
) -> tuple[float, float]:
    """The limits that result."""
    kind = there.get("type", "EC2")
    if asked.managedInstancesProvider is not None or asked.capacityTags is not None:
        raise unsupported("managedInstancesProvider and capacityTags: the type ECS_MANAGED_INSTANCES")
    if asked.type is not None and asked.type != kind and {asked.type, kind} != {"EC2", "SPOT"}:
        raise refused(f"The type can not be changed from {kind} to {asked.type}")
    if kind in FARGATE:
        for member in NOT_ON_FARGATE:
            if getattr(asked, member, None) is not None:
                raise refused(f"{member} is not applicable for Fargate.")
    most = detail.max_vcpus if asked.maxvCpus is None else asked.maxvCpus
    least = detail.min_vcpus if asked.minvCpus is None else asked.minvCpus
    if not 1 <= most <= VCPUS_MAX or not 0 <= least <= most:
        raise refused("0 <= minvCpus <= maxvCpus must hold, and maxvCpus be at least 1")
    desired = asked.desiredvCpus
    if desired is not None and (not least <= desired <= most or desired < there.get("desiredvCpus", 0)):
        raise refused(SCALING_DOWN)
    if asked.bidPercentage is not None and not 1 <= asked.bidPercentage <= 100:
        raise refused("bidPercentage must be between 1 and 100")
    return most, least


async def find_environment(api: Api, place: Place, given: str) -> EnvironmentDetail:
    """The one of a name or ARN.

    Raises:
        ApiError: it does not exist.
    """
    return await find_one("compute-environment", api.kernel.describe_compute_environments, place, given)


async def delete_compute_environment(api: Api, call: Call, request: DeleteComputeEnvironmentRequest) -> dict[str, Any]:
    """Delete a DISABLED environment that no queue names (CE-16)."""
    detail = await find_environment(api, call.place, request.computeEnvironment)
    if detail.state.value != "DISABLED":
        raise refused(f"Cannot delete, {call.place.arn('compute-environment', detail.name)} is not DISABLED")
    try:
        await api.kernel.delete_compute_environment(detail.name)
    except NotFound:
        pass  # gone in the meantime
    return {}


async def describe_compute_environments(
    api: Api, call: Call, request: DescribeComputeEnvironmentsRequest
) -> dict[str, Any]:
    """Those named that there are, or a page of all."""
    found, token = await find_some(
        "compute-environment",
        api.kernel.describe_compute_environments,
        request.computeEnvironments,
        request.maxResults,
        request.nextToken,
    )
    more = {} if token is None else {"nextToken": token}
    return {"computeEnvironments": [environment_shape(call.place, detail) for detail in found], **more}


def status_reason(detail: EnvironmentDetail) -> str:
    """Why an environment has its status, and what to do about it."""
    if detail.status.value == "VALID":
        return "ComputeEnvironment Healthy"
    if detail.status.value == "INVALID" and detail.backend == "docker":
        return f"{detail.status_reason}. {NO_ENGINE}"
    return detail.status_reason


def environment_shape(place: Place, detail: EnvironmentDetail) -> dict[str, Any]:
    """An environment as AWS describes it (CE-4)."""
    kept = aws_metadata(detail.metadata)
    kind = kept.get("type", "MANAGED" if detail.managed else "UNMANAGED")
    found: dict[str, Any] = {
        **_names(place, detail.name),
        "ecsClusterArn": place.arn("cluster", cluster_name(detail.name), "ecs"),
        "tags": dict(detail.tags),
        "type": kind,
        "state": detail.state.value,
        "status": detail.status.value,
        "statusReason": status_reason(detail),
        "serviceRole": kept.get("serviceRole", f"arn:aws:iam::{place.account}:role/{SERVICE_ROLE}"),
        "updatePolicy": kept.get("updatePolicy", {"terminateJobsOnUpdate": False, "jobExecutionTimeoutMinutes": 30}),
        "containerOrchestrationType": "ECS",
        "uuid": str(uuid5(NAMESPACE_URL, f"anybatch:environment:{detail.name}")),
        "ecsSettings": kept.get("ecsSettings", {"containerInsights": "DISABLED"}),
    }
    if kind == "MANAGED":
        resources: dict[str, Any] = {
            "type": "EC2", "maxvCpus": int(detail.max_vcpus) or 1, "subnets": [], "securityGroupIds": [],
            **kept.get("computeResources", {}),
        }  # fmt: skip
        if resources["type"] in ("EC2", "SPOT"):
            resources.setdefault("minvCpus", 0)
            resources.setdefault("desiredvCpus", resources["minvCpus"])
            resources.setdefault("instanceTypes", ["optimal"])
        found["computeResources"] = resources
    elif "unmanagedvCpus" in kept:
        found["unmanagedvCpus"] = kept["unmanagedvCpus"]
    if "context" in kept:
        found["context"] = kept["context"]
    return found
