"""CreateJobQueue, UpdateJobQueue, DeleteJobQueue, DescribeJobQueues (contract 6.1, 6.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from anybatch import EnvironmentDetail, NotFound, QueueDetail

from .api import Api
from .arns import Place, resource_name
from .call import Call, aws_metadata
from .checks import check_name, check_tags
from .environments import find_environment, status_reason
from .errors import refused, unsupported
from .found import find_one, find_some
from .requests import (
    CreateJobQueueRequest,
    DeleteJobQueueRequest,
    DescribeJobQueuesRequest,
    UpdateJobQueueRequest,
)
from .shapes_job import ComputeEnvironmentOrder, JobStateTimeLimitAction

ENVIRONMENTS_MAX: Final = 3
ACTIONABLE: Final = (
    "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY",
    "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE",
    "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT",
    "MISCONFIGURATION:EC2_INSTANCE_CONFIGURATION_UNSUPPORTED",
)
"""Reasons of a blocked job on which a queue can act (TL-3)."""
TIME_LIMIT_S: Final = (600, 86_400)
PRIORITY_MAX: Final = 1000
"""Of a queue in the strict profile: the range of AWS's console (JQ-1)."""
QUEUE_TYPES: Final = {"FARGATE": "ECS_FARGATE", "FARGATE_SPOT": "ECS_FARGATE"}
"""What a queue is by the type of its environments; ECS for all others."""


async def create_job_queue(api: Api, call: Call, request: CreateJobQueueRequest) -> dict[str, Any]:
    """Create a queue over one to three environments."""
    check_name("jobQueueName", request.jobQueueName)
    if request.serviceEnvironmentOrder:
        raise unsupported("serviceEnvironmentOrder")
    if request.schedulingPolicyArn is not None:
        raise unsupported("schedulingPolicyArn: fair share")
    _check_priority(api, request.priority)
    environments = await _order(api, call, request.computeEnvironmentOrder)
    kind = _queue_type(environments)
    if request.jobQueueType is not None and request.jobQueueType != kind:
        raise refused(
            f"jobQueueType {request.jobQueueType} does not fit the compute environments, which make it {kind}"
        )
    kept: dict[str, Any] = {"jobQueueType": kind}
    kept["computeEnvironmentOrder"] = [entry.plain() for entry in request.computeEnvironmentOrder or ()]
    _keep_actions(api, kept, request.jobStateTimeLimitActions)
    detail = await api.kernel.create_job_queue(
        request.jobQueueName,
        priority=request.priority,
        compute_environments=[environment.name for environment in environments],
        state=request.state or "ENABLED",
        tags=check_tags(request.tags),
        metadata={"aws": kept},
    )
    return _names(call.place, detail.name)


def _names(place: Place, name: str) -> dict[str, str]:
    return {"jobQueueName": name, "jobQueueArn": place.arn("job-queue", name)}


def _check_priority(api: Api, priority: int | None) -> None:
    if priority is not None and api.settings.is_strict and not 0 <= priority <= PRIORITY_MAX:
        raise refused(f"priority must be between 0 and {PRIORITY_MAX}")


def _keep_actions(api: Api, kept: dict[str, Any], actions: list[JobStateTimeLimitAction] | None) -> None:
    """TL-1, TL-3. They are kept with the queue; time_limits.py acts on them."""
    if actions is None:
        return
    for action in actions:
        if not TIME_LIMIT_S[0] <= action.maxTimeSeconds <= TIME_LIMIT_S[1]:
            raise refused(f"maxTimeSeconds must be between {TIME_LIMIT_S[0]} and {TIME_LIMIT_S[1]}")
        if api.settings.is_strict and action.reason not in ACTIONABLE:
            raise refused(f"The reason of an action is one of {', '.join(ACTIONABLE)}: {action.reason[:100]!r}")
        if action.action == "TERMINATE":
            raise refused("The action TERMINATE is for SAGEMAKER_TRAINING queues")
    kept["jobStateTimeLimitActions"] = [action.plain() for action in actions]


async def _order(api: Api, call: Call, entries: list[ComputeEnvironmentOrder] | None) -> list[EnvironmentDetail]:
    """The environments in their order (JQ-2, JQ-3)."""
    if not entries or len(entries) > ENVIRONMENTS_MAX:
        raise refused(f"computeEnvironmentOrder must have 1 to {ENVIRONMENTS_MAX} entries")
    if len({entry.order for entry in entries}) < len(entries):
        raise refused("computeEnvironmentOrder: each order is given once")
    found = []
    for entry in sorted(entries, key=lambda e: e.order):
        detail = await find_environment(api, call.place, entry.computeEnvironment)
        if detail.status.value != "VALID":
            arn = call.place.arn("compute-environment", detail.name)
            raise refused(
                f"Compute Environment {arn} is not valid. It must be valid before attaching it to the job queue. "
                f"({status_reason(detail)})"
            )
        found.append(detail)
    if len({detail.name for detail in found}) < len(found):
        raise refused("computeEnvironmentOrder names an environment more than once")
    _queue_type(found)
    return found


def _queue_type(environments: list[EnvironmentDetail]) -> str:
    """JQ-3, JQ-4."""
    kinds = set()
    for environment in environments:
        resources = aws_metadata(environment.metadata).get("computeResources", {})
        kinds.add(QUEUE_TYPES.get(resources.get("type", "EC2"), "ECS"))
    if len(kinds) > 1:
        raise refused("All compute environments of a queue are of one kind: EC2 and SPOT, or FARGATE and FARGATE_SPOT")
    return kinds.pop()


async def update_job_queue(api: Api, call: Call, request: UpdateJobQueueRequest) -> dict[str, Any]:
    """Change what is given."""
    detail = await find_queue(api, call.place, request.jobQueue)
    if request.schedulingPolicyArn is not None:
        raise unsupported("schedulingPolicyArn: fair share")
    if request.serviceEnvironmentOrder:
        raise unsupported("serviceEnvironmentOrder")
    _check_priority(api, request.priority)
    kept = dict(aws_metadata(detail.metadata))
    names = None
    if request.computeEnvironmentOrder is not None:
        environments = await _order(api, call, request.computeEnvironmentOrder)
        names = [environment.name for environment in environments]
        kept["jobQueueType"] = _queue_type(environments)
        kept["computeEnvironmentOrder"] = [entry.plain() for entry in request.computeEnvironmentOrder]
    _keep_actions(api, kept, request.jobStateTimeLimitActions)
    await api.kernel.update_job_queue(
        detail.name,
        priority=request.priority,
        state=request.state,
        compute_environments=names,
        metadata={**detail.metadata, "aws": kept},
    )
    return _names(call.place, detail.name)


async def find_queue(api: Api, place: Place, given: str) -> QueueDetail:
    """The one of a name or ARN.

    Raises:
        ApiError: it does not exist.
    """
    return await find_one("job-queue", api.kernel.describe_job_queues, place, given)


async def delete_job_queue(api: Api, call: Call, request: DeleteJobQueueRequest) -> dict[str, Any]:
    """Delete a DISABLED queue; its jobs are ended (JQ-10)."""
    detail = await find_queue(api, call.place, request.jobQueue)
    if detail.state.value != "DISABLED":
        raise refused(f"Cannot delete, {call.place.arn('job-queue', detail.name)} is not DISABLED")
    try:
        await api.kernel.delete_job_queue(detail.name)
    except NotFound:
        pass  # gone in the meantime
    return {}


async def describe_job_queues(api: Api, call: Call, request: DescribeJobQueuesRequest) -> dict[str, Any]:
    """Those named that there are, or a page of all."""
    found, token = await find_some(
        "job-queue", api.kernel.describe_job_queues, request.jobQueues, request.maxResults, request.nextToken
    )
    more = {} if token is None else {"nextToken": token}
    return {"jobQueues": [queue_shape(call.place, detail) for detail in found], **more}


def queue_shape(place: Place, detail: QueueDetail) -> dict[str, Any]:
    """A queue as AWS describes it (JQ-5)."""
    kept = aws_metadata(detail.metadata)
    orders: Mapping[str, int] = {
        resource_name("compute-environment", entry["computeEnvironment"]): entry["order"]
        for entry in kept.get("computeEnvironmentOrder", ())
    }
    order = [
        {"order": orders.get(name, n), "computeEnvironment": place.arn("compute-environment", name)}
        for n, name in enumerate(detail.compute_environments, 1)
    ]
    return {
        **_names(place, detail.name),
        "state": detail.state.value,
        "status": detail.status.value,
        "statusReason": "JobQueue Healthy" if detail.status.value == "VALID" else "",
        "priority": detail.priority,
        "computeEnvironmentOrder": order,
        "serviceEnvironmentOrder": [],
        "jobQueueType": kept.get("jobQueueType", "ECS"),
        "tags": dict(detail.tags),
        "jobStateTimeLimitActions": kept.get("jobStateTimeLimitActions", []),
    }
