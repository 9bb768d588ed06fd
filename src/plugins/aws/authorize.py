"""What a call needs to be allowed: the action, the resources and the condition keys (contract section 11).

A call is allowed if for each of its needs a policy of the caller allows the action on each required resource, and none
denies it on any. The optional resources of a need (such as the environments of a queue) can be denied, and need not be
allowed by name.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from anybatch import NotFound, RequestError, TaggedKind
from msgspec import Struct

from .api import Api
from .arns import JOB_ID, Place, job_id, parse_arn, resource_name
from .call import Call
from .conditions import Context
from .errors import ApiError, denied
from .policy import Resource, is_allowed, is_denied
from .shapes_container import ContainerProperties

ANY: Final = Resource("*")
"""What the calls are about that AWS cannot restrict by resource."""


class Need(Struct, frozen=True):
    """An action with what it is done to."""

    action: str
    required: tuple[Resource, ...] = (ANY,)
    optional: tuple[Resource, ...] = ()
    values: Mapping[str, Sequence[str]] = {}
    """Condition keys of this need alone."""


Needs = Callable[[Api, Place, Any], Awaitable[list[Need]]]


async def authorize(api: Api, call: Call, operation: str, request: Any) -> None:
    """Pass, or refuse the call.

    Raises:
        ApiError: 403, with the action and the resource that is not allowed.
    """
    if call.principal.is_unrestricted or operation in CHECKED_BY_THEMSELVES:
        return
    needs = NEEDS.get(operation)
    for need in await needs(api, call.place, request) if needs is not None else [Need(f"batch:{operation}")]:
        check(call, need, getattr(request, "tags", None) or {})


def check(call: Call, need: Need, request_tags: Mapping[str, str] | None = None) -> None:
    """One need.

    Raises:
        ApiError: it is not allowed.
    """
    context = Context({**_globals(call), **need.values}, request_tags)
    policies = call.principal.policies
    for resource in need.required:
        if not is_allowed(policies, need.action, resource, context):
            raise _refusal(call, need.action, resource)
    for resource in need.optional:
        if is_denied(policies, need.action, resource, context):
            raise _refusal(call, need.action, resource)


def _refusal(call: Call, action: str, resource: Resource) -> ApiError:
    who = call.principal.arn(call.place.account)
    return denied(f"User: {who} is not authorized to perform: {action} on resource: {resource.arn}")


def _globals(call: Call) -> dict[str, Sequence[str]]:
    now = time.time()
    return {
        "aws:username": (call.principal.name,),
        "aws:userid": (call.principal.user_id,),
        "aws:principalarn": (call.principal.principal_arn(call.place.account),),
        "aws:principalaccount": (call.place.account,),
        "aws:requestedregion": (call.place.region,),
        "aws:currenttime": (str(now),),
        "aws:epochtime": (str(now),),
        "aws:sourceip": (call.remote,),
        "aws:securetransport": ("true" if call.secure else "false",),
        "aws:useragent": (call.user_agent,),
    }


# -- resources --------------------------------------------------------------------------------------


async def _tags(api: Api, kind: TaggedKind, name: str) -> Mapping[str, str]:
    try:
        return await api.kernel.tag_resource(kind, name)
    except RequestError:
        return {}  # what is not there has no tags


async def _resource(api: Api, place: Place, kind: str, given: str) -> Resource:
    """An environment or a queue, by name or ARN."""
    name = resource_name(kind, given)
    tagged = TaggedKind.JOB_QUEUE if kind == "job-queue" else TaggedKind.COMPUTE_ENVIRONMENT
    return Resource(place.arn(kind, name), await _tags(api, tagged, name))


async def _definition(api: Api, place: Place, given: str) -> Resource:
    """The revision that a reference stands for."""
    reference = resource_name("job-definition", given)
    if ":" not in reference:
        try:
            reference = (await api.compiled(reference)).detail.reference
        except NotFound:
            pass
    return Resource(place.arn("job-definition", reference), await _tags(api, TaggedKind.JOB_DEFINITION, reference))


async def job_resource(api: Api, place: Place, given: str) -> Resource:
    """A job; a child has the tags of its array."""
    name = job_id(given)
    parent = name.partition(":")[0]
    tags = await _tags(api, TaggedKind.JOB, parent) if JOB_ID.fullmatch(name) else {}
    return Resource(place.arn("job", name), tags)


def _tagging(request: Any, resource: Resource) -> list[Need]:
    """Tags at creation need the right to tag."""
    return [Need("batch:TagResource", (resource,))] if request.tags else []


def _passing(place: Place, service: str, roles: Iterable[str | None]) -> list[Need]:
    """Roles have to be the caller's to pass on."""
    found = []
    for role in dict.fromkeys(role for role in roles if role):
        arn = role if role.startswith("arn:") else f"arn:aws:iam::{place.account}:role/{role}"
        found.append(Need("iam:PassRole", (Resource(arn),), values={"iam:passedtoservice": (service,)}))
    return found


# -- operations -------------------------------------------------------------------------------------


async def _submit(api: Api, place: Place, request: Any) -> list[Need]:
    queue = await _resource(api, place, "job-queue", request.jobQueue)
    definition = await _definition(api, place, request.jobDefinition)
    job = Resource(place.arn("job", "*"))
    share = {"batch:shareidentifier": (request.shareIdentifier,)} if request.shareIdentifier is not None else {}
    return [Need("batch:SubmitJob", (queue, definition), (job,), share), *_tagging(request, job)]


def _stop(action: str) -> Needs:
    async def needs(api: Api, place: Place, request: Any) -> list[Need]:
        return [Need(action, (await job_resource(api, place, request.jobId),))]

    return needs


async def _register(api: Api, place: Place, request: Any) -> list[Need]:
    resource = Resource(place.arn("job-definition", request.jobDefinitionName))
    tasks = request.ecsProperties.taskProperties if request.ecsProperties is not None else []
    groups = request.nodeProperties.nodeRangeProperties if request.nodeProperties is not None else []
    containers = [request.containerProperties, *(group.container for group in groups)]
    containers = [container for container in containers if container is not None]
    tasks = [*tasks, *(task for group in groups if group.ecsProperties for task in group.ecsProperties.taskProperties)]
    every = [*containers, *(container for task in tasks for container in task.containers)]
    roles = [
        *(role for container in containers for role in (container.jobRoleArn, container.executionRoleArn)),
        *(role for task in tasks for role in (task.taskRoleArn, task.executionRoleArn)),
    ]
    values: list[Mapping[str, Sequence[str]]] = [_container_values(container) for container in every] or [{}]
    pods = [request.eksProperties.podProperties] if request.eksProperties is not None else []
    if pods:
        values = [_pod_values(pod) for pod in pods if pod is not None] or [{}]
    needs = [Need("batch:RegisterJobDefinition", (resource,), values=one) for one in values]
    return [*needs, *_tagging(request, resource), *_passing(place, "ecs-tasks.amazonaws.com", roles)]


def _container_values(container: ContainerProperties | Any) -> dict[str, Sequence[str]]:
    found: dict[str, Sequence[str]] = {"batch:privileged": ("true" if container.privileged else "false",)}
    if container.image is not None:
        found["batch:image"] = (container.image,)
    if container.user is not None:
        found["batch:user"] = (container.user,)
    log = container.logConfiguration
    if log is not None:
        options = log.options or {}
        found["batch:logdriver"] = (log.logDriver,)
        for option, key in (
            ("awslogs-create-group", "batch:awslogscreategroup"),
            ("awslogs-group", "batch:awslogsgroup"),
            ("awslogs-region", "batch:awslogsregion"),
            ("awslogs-stream-prefix", "batch:awslogsstreamprefix"),
        ):
            if option in options:
                found[key] = (options[option],)
    return found


def _pod_values(pod: Any) -> dict[str, Sequence[str]]:
    containers = [*(pod.containers or ()), *(pod.initContainers or ())]
    security = [container.securityContext for container in containers if container.securityContext is not None]
    found: dict[str, Sequence[str]] = {
        "batch:eksimage": [container.image for container in containers],
        "batch:eksprivileged": ["true" if one.privileged else "false" for one in security] or ["false"],
        "batch:eksrunasuser": [str(one.runAsUser) for one in security if one.runAsUser is not None],
        "batch:eksrunasgroup": [str(one.runAsGroup) for one in security if one.runAsGroup is not None],
    }
    if pod.serviceAccountName is not None:
        found["batch:eksserviceaccountname"] = (pod.serviceAccountName,)
    if pod.metadata is not None and pod.metadata.namespace is not None:
        found["batch:eksnamespace"] = (pod.metadata.namespace,)
    return {key: values for key, values in found.items() if values}


async def _deregister(api: Api, place: Place, request: Any) -> list[Need]:
    return [Need("batch:DeregisterJobDefinition", (await _definition(api, place, request.jobDefinition),))]


async def _order(api: Api, place: Place, request: Any) -> tuple[Resource, ...]:
    entries = request.computeEnvironmentOrder or ()
    return tuple([await _resource(api, place, "compute-environment", one.computeEnvironment) for one in entries])


async def _create_queue(api: Api, place: Place, request: Any) -> list[Need]:
    queue = Resource(place.arn("job-queue", request.jobQueueName))
    return [Need("batch:CreateJobQueue", (queue,), await _order(api, place, request)), *_tagging(request, queue)]


async def _update_queue(api: Api, place: Place, request: Any) -> list[Need]:
    queue = await _resource(api, place, "job-queue", request.jobQueue)
    return [Need("batch:UpdateJobQueue", (queue,), await _order(api, place, request))]


async def _delete_queue(api: Api, place: Place, request: Any) -> list[Need]:
    return [Need("batch:DeleteJobQueue", (await _resource(api, place, "job-queue", request.jobQueue),))]


async def _create_environment(api: Api, place: Place, request: Any) -> list[Need]:
    environment = Resource(place.arn("compute-environment", request.computeEnvironmentName))
    resources = request.computeResources
    roles = [resources.instanceRole, resources.spotIamFleetRole] if resources is not None else []
    return [
        Need("batch:CreateComputeEnvironment", (environment,)),
        *_tagging(request, environment),
        *_passing(place, "batch.amazonaws.com", [request.serviceRole]),
        *_passing(place, "ec2.amazonaws.com", roles),
    ]


async def _update_environment(api: Api, place: Place, request: Any) -> list[Need]:
    environment = await _resource(api, place, "compute-environment", request.computeEnvironment)
    roles = [request.computeResources.instanceRole] if request.computeResources is not None else []
    return [
        Need("batch:UpdateComputeEnvironment", (environment,)),
        *_passing(place, "batch.amazonaws.com", [request.serviceRole]),
        *_passing(place, "ec2.amazonaws.com", roles),
    ]


async def _delete_environment(api: Api, place: Place, request: Any) -> list[Need]:
    environment = await _resource(api, place, "compute-environment", request.computeEnvironment)
    return [Need("batch:DeleteComputeEnvironment", (environment,))]


async def _arn(api: Api, place: Place, arn: str) -> Resource:
    """What an ARN names, with its tags."""
    named = parse_arn(arn)
    match named.kind:
        case "job-queue" | "compute-environment":
            return await _resource(api, place, named.kind, named.name)
        case "job-definition":
            return await _definition(api, place, named.name)
        case "job":
            return await job_resource(api, place, named.name)
        case _:
            return Resource(arn)


def _tag(action: str) -> Needs:
    async def needs(api: Api, place: Place, request: Any) -> list[Need]:
        keys = getattr(request, "tagKeys", None)
        values: dict[str, Sequence[str]] = {} if keys is None else {"aws:tagkeys": keys}
        return [Need(action, (await _arn(api, place, request.resourceArn),), values=values)]

    return needs


async def _each_by_itself(api: Api, place: Place, request: Any) -> list[Need]:
    """The bulk calls have no action of their own: each job is checked when its turn comes (CT-7)."""
    return []


CHECKED_BY_THEMSELVES: Final = frozenset((
    "DescribeLogGroups", "DescribeLogStreams", "GetLogEvents", "FilterLogEvents",
    "ListClusters", "DescribeClusters", "ListContainerInstances", "DescribeContainerInstances",
))  # fmt: skip
"""Operations of CloudWatch Logs and ECS, whose modules say what they need."""
NEEDS: Final[Mapping[str, Needs]] = {
    "SubmitJob": _submit,
    "CancelJob": _stop("batch:CancelJob"),
    "TerminateJob": _stop("batch:TerminateJob"),
    "CancelJobs": _each_by_itself,
    "TerminateJobs": _each_by_itself,
    "RegisterJobDefinition": _register,
    "DeregisterJobDefinition": _deregister,
    "CreateJobQueue": _create_queue,
    "UpdateJobQueue": _update_queue,
    "DeleteJobQueue": _delete_queue,
    "CreateComputeEnvironment": _create_environment,
    "UpdateComputeEnvironment": _update_environment,
    "DeleteComputeEnvironment": _delete_environment,
    "TagResource": _tag("batch:TagResource"),
    "UntagResource": _tag("batch:UntagResource"),
    "ListTagsForResource": _tag("batch:ListTagsForResource"),
}
"""What is not here is allowed or not as a whole, on "*"."""
