"""The operations of AWS Batch: where each is reached, and who answers it (contract section 1)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from msgspec import Struct

from . import cloudwatch, definitions, ecs, environments, jobs, queues, requests, submit, tags
from .api import Api
from .call import Call
from .shape import Shape

Handler = Callable[[Api, Call, Any], Awaitable[dict[str, Any]]]


class Operation(Struct, frozen=True):
    """One operation. `handler` None: it is routed, and answered with a clean error."""

    name: str
    request: type[Shape] | None = None
    handler: Handler | None = None
    bytes_max: int | None = None
    """Of its request, in the strict profile."""


SERVED: Final = (
    Operation("SubmitJob", requests.SubmitJobRequest, submit.submit_job, submit.SUBMIT_BYTES_MAX),
    Operation("DescribeJobs", requests.DescribeJobsRequest, jobs.describe_jobs),
    Operation("ListJobs", requests.ListJobsRequest, jobs.list_jobs),
    Operation("CancelJob", requests.CancelJobRequest, jobs.cancel_job),
    Operation("CancelJobs", requests.CancelJobsRequest, jobs.cancel_jobs),
    Operation("TerminateJob", requests.TerminateJobRequest, jobs.terminate_job),
    Operation("TerminateJobs", requests.TerminateJobsRequest, jobs.terminate_jobs),
    Operation(
        "RegisterJobDefinition",
        requests.RegisterJobDefinitionRequest,
        definitions.register_job_definition,
        definitions.DEFINITION_BYTES_MAX,
    ),
    Operation(
        "DeregisterJobDefinition", requests.DeregisterJobDefinitionRequest, definitions.deregister_job_definition
    ),
    Operation("DescribeJobDefinitions", requests.DescribeJobDefinitionsRequest, definitions.describe_job_definitions),
    Operation("CreateJobQueue", requests.CreateJobQueueRequest, queues.create_job_queue),
    Operation("UpdateJobQueue", requests.UpdateJobQueueRequest, queues.update_job_queue),
    Operation("DeleteJobQueue", requests.DeleteJobQueueRequest, queues.delete_job_queue),
    Operation("DescribeJobQueues", requests.DescribeJobQueuesRequest, queues.describe_job_queues),
    Operation(
        "CreateComputeEnvironment", requests.CreateComputeEnvironmentRequest, environments.create_compute_environment
    ),
    Operation(
        "UpdateComputeEnvironment", requests.UpdateComputeEnvironmentRequest, environments.update_compute_environment
    ),
    Operation(
        "DeleteComputeEnvironment", requests.DeleteComputeEnvironmentRequest, environments.delete_compute_environment
    ),
    Operation(
        "DescribeComputeEnvironments",
        requests.DescribeComputeEnvironmentsRequest,
        environments.describe_compute_environments,
    ),
)
TAG_OPERATIONS: Final = {
    "GET": Operation("ListTagsForResource", requests.ListTagsForResourceRequest, tags.list_tags),
    "POST": Operation("TagResource", requests.TagResourceRequest, tags.tag_resource),
    "DELETE": Operation("UntagResource", requests.UntagResourceRequest, tags.untag_resource),
}
NOT_SERVED: Final = (
    "CreateConsumableResource", "CreateQuotaShare", "CreateSchedulingPolicy", "CreateServiceEnvironment",
    "DeleteConsumableResource", "DeleteQuotaShare", "DeleteSchedulingPolicy", "DeleteServiceEnvironment",
    "DescribeConsumableResource", "DescribeQuotaShare", "DescribeSchedulingPolicies", "DescribeServiceEnvironments",
    "DescribeServiceJob", "GetJobQueueSnapshot", "ListConsumableResources", "ListJobsByConsumableResource",
    "ListQuotaShares", "ListSchedulingPolicies", "ListServiceJobs", "SubmitServiceJob", "TerminateServiceJob",
    "TerminateServiceJobs", "UpdateConsumableResource", "UpdateQuotaShare", "UpdateSchedulingPolicy",
    "UpdateServiceEnvironment", "UpdateServiceJob",
)  # fmt: skip
"""Scheduling policies, snapshots, consumable resources, SageMaker's jobs and quota shares."""

POSTED: Final = {
    f"/v1/{operation.name.lower()}": operation for operation in (*SERVED, *(Operation(name) for name in NOT_SERVED))
}
"""By path; all are POST (W-2)."""
TAGS_PATH: Final = "/v1/tags/"
LOGS: Final = (
    Operation("DescribeLogGroups", cloudwatch.DescribeLogGroupsRequest, cloudwatch.describe_log_groups),
    Operation("DescribeLogStreams", cloudwatch.DescribeLogStreamsRequest, cloudwatch.describe_log_streams),
    Operation("GetLogEvents", cloudwatch.GetLogEventsRequest, cloudwatch.get_log_events),
    Operation("FilterLogEvents", cloudwatch.FilterLogEventsRequest, cloudwatch.filter_log_events),
)
ECS: Final = (
    Operation("ListClusters", ecs.ListClustersRequest, ecs.list_clusters),
    Operation("DescribeClusters", ecs.DescribeClustersRequest, ecs.describe_clusters),
    Operation("ListContainerInstances", ecs.ListContainerInstancesRequest, ecs.list_container_instances),
    Operation("DescribeContainerInstances", ecs.DescribeContainerInstancesRequest, ecs.describe_container_instances),
)
TARGETS: Final[dict[str, tuple[str, Operation]]] = {
    **{f"Logs_20140328.{operation.name}": ("logs", operation) for operation in LOGS},
    **{f"AmazonEC2ContainerServiceV20141113.{operation.name}": ("ecs", operation) for operation in ECS},
}
"""By the header `X-Amz-Target`: the service that a call is signed for, and the operation."""
