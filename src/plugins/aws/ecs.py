"""ECS, as far as AWS Batch's clients look there: an environment's cluster and its hosts (contract CE-4)."""

from __future__ import annotations

from typing import Any, Final

from anybatch import EnvironmentDetail, HostDetail, HostState

from .api import Api
from .arns import Place
from .authorize import Need, check
from .call import Call, make_token, page_size, read_text_token, take_page
from .errors import ApiError
from .job_shapes import cluster_name, container_instance_id
from .policy import Resource
from .shape import Int, Shape

VCPU_UNITS: Final = 1024
"""ECS's CPU units of a vCPU."""
STATUSES: Final = ("ACTIVE", "DRAINING", "REGISTERING", "DEREGISTERING", "REGISTRATION_FAILED")
"""Of a container instance, in ECS; the last three are never one's here."""


class ListClustersRequest(Shape):
    """Which clusters there are."""

    nextToken: str | None = None
    maxResults: Int | None = None


class DescribeClustersRequest(Shape):
    """Clusters by name or ARN."""

    clusters: list[str] | None = None


class ListContainerInstancesRequest(Shape):
    """A cluster's hosts."""

    cluster: str | None = None
    nextToken: str | None = None
    maxResults: Int | None = None
    status: str | None = None


class DescribeContainerInstancesRequest(Shape):
    """Hosts by id or ARN."""

    containerInstances: list[str]
    cluster: str | None = None


def _allow(call: Call, action: str, arn: str = "*") -> None:
    if not call.principal.is_unrestricted:
        check(call, Need(f"ecs:{action}", (Resource(arn),)))


async def _clusters(api: Api) -> dict[str, EnvironmentDetail]:
    return {cluster_name(detail.name): detail for detail in await api.kernel.describe_compute_environments()}


async def list_clusters(api: Api, call: Call, request: ListClustersRequest) -> dict[str, Any]:
    """One per environment."""
    _allow(call, "ListClusters")
    size, after = page_size(request.maxResults), read_text_token("clusters", request.nextToken)
    names, last = take_page(sorted(await _clusters(api)), after, size)
    result: dict[str, Any] = {"clusterArns": [call.place.arn("cluster", name, "ecs") for name in names]}
    if last is not None:
        result["nextToken"] = make_token("clusters", last)
    return result


async def describe_clusters(api: Api, call: Call, request: DescribeClustersRequest) -> dict[str, Any]:
    """Those that there are, and the others as failures."""
    there = await _clusters(api)
    found, failures = [], []
    for given in request.clusters or ["default"]:
        name = given.rpartition("/")[2]
        arn = call.place.arn("cluster", name[:255], "ecs")
        _allow(call, "DescribeClusters", arn)
        if name in there:
            found.append(_cluster_shape(call.place, name, there[name]))
        else:
            failures.append({"arn": arn, "reason": "MISSING"})
    return {"clusters": found, "failures": failures}


def _cluster_shape(place: Place, name: str, detail: EnvironmentDetail) -> dict[str, Any]:
    return {
        "clusterArn": place.arn("cluster", name, "ecs"),
        "clusterName": name,
        "status": "ACTIVE",
        "registeredContainerInstancesCount": len(detail.hosts),
        "runningTasksCount": sum(host.attempts for host in detail.hosts),
        "pendingTasksCount": 0,
        "activeServicesCount": 0,
        "statistics": [],
        "tags": [],
        "settings": [],
        "capacityProviders": [],
        "defaultCapacityProviderStrategy": [],
    }


async def _find(api: Api, call: Call, given: str | None, action: str) -> tuple[str, EnvironmentDetail]:
    name = (given or "default").rpartition("/")[2]
    _allow(call, action, call.place.arn("cluster", name[:255], "ecs"))
    detail = (await _clusters(api)).get(name)
    if detail is None:
        raise ApiError("Cluster not found.", code="ClusterNotFoundException")
    return name, detail


def _instance_arn(place: Place, cluster: str, detail: EnvironmentDetail, host: HostDetail) -> str:
    return place.arn("container-instance", f"{cluster}/{container_instance_id(detail.name, host.name)}", "ecs")


async def list_container_instances(api: Api, call: Call, request: ListContainerInstancesRequest) -> dict[str, Any]:
    """A cluster's hosts."""
    cluster, detail = await _find(api, call, request.cluster, "ListContainerInstances")
    size, after = page_size(request.maxResults), read_text_token("hosts", request.nextToken)
    hosts = {_instance_arn(call.place, cluster, detail, host): host for host in detail.hosts}
    if request.status is not None and request.status not in STATUSES:
        raise ApiError(f"status is one of {', '.join(STATUSES)}", code="InvalidParameterException")
    wanted = sorted(arn for arn, host in hosts.items() if request.status in (None, _status(host)))
    names, last = take_page(wanted, after, size)
    result: dict[str, Any] = {"containerInstanceArns": names}
    if last is not None:
        result["nextToken"] = make_token("hosts", last)
    return result


async def describe_container_instances(
    api: Api, call: Call, request: DescribeContainerInstancesRequest
) -> dict[str, Any]:
    """Those that there are, and the others as failures."""
    cluster, detail = await _find(api, call, request.cluster, "DescribeContainerInstances")
    hosts = {container_instance_id(detail.name, host.name): host for host in detail.hosts}
    found, failures = [], []
    for given in request.containerInstances:
        name = given.rpartition("/")[2]
        if name in hosts:
            found.append(_instance_shape(call.place, cluster, detail, hosts[name]))
        else:
            arn = call.place.arn("container-instance", f"{cluster}/{name[:255]}", "ecs")
            failures.append({"arn": arn, "reason": "MISSING"})
    return {"containerInstances": found, "failures": failures}


def _status(host: HostDetail) -> str:
    return "DRAINING" if host.state in (HostState.DRAINING, HostState.DRAINED) else "ACTIVE"


def _instance_shape(place: Place, cluster: str, detail: EnvironmentDetail, host: HostDetail) -> dict[str, Any]:
    return {
        "containerInstanceArn": _instance_arn(place, cluster, detail, host),
        "ec2InstanceId": host.name,
        "status": _status(host),
        "agentConnected": host.state is not HostState.UNAVAILABLE,
        "runningTasksCount": host.attempts,
        "pendingTasksCount": 0,
        **({} if host.state_reason is None else {"statusReason": host.state_reason}),
        "registeredResources": _resources(host.vcpus, host.memory_mib, host.gpus),
        "remainingResources": _resources(max(host.free_vcpus, 0), host.free_memory_mib, host.free_gpus),
        "attributes": [{"name": "ecs.availability-zone", "value": host.zone}] if host.zone is not None else [],
        "version": 1,
        "versionInfo": {},
        "attachments": [],
        "tags": [],
    }


def _resources(vcpus: float, memory_mib: int | None, gpus: tuple[int, ...]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"name": "CPU", "type": "INTEGER", "integerValue": round(vcpus * VCPU_UNITS)}]
    if memory_mib is not None:
        found.append({"name": "MEMORY", "type": "INTEGER", "integerValue": memory_mib})
    if gpus:
        found.append({"name": "GPU", "type": "STRINGSET", "stringSetValue": [str(gpu) for gpu in gpus]})
    return found
