"""The requests of AWS Batch: one shape per operation that is served."""

from __future__ import annotations

from typing import Literal

from .shape import Int, Shape
from .shapes_container import ContainerOverrides, ContainerProperties, EcsProperties, EcsPropertiesOverride
from .shapes_eks import EksProperties, EksPropertiesOverride
from .shapes_environment import (
    ComputeResource,
    ComputeResourceUpdate,
    EcsSettings,
    EksConfiguration,
    EksConfigurationUpdate,
    UpdatePolicy,
)
from .shapes_job import (
    ArrayProperties,
    ComputeEnvironmentOrder,
    ConsumableResourceProperties,
    JobDependency,
    JobStateTimeLimitAction,
    JobTimeout,
    KeyValuesPair,
    NodeOverrides,
    NodeProperties,
    RetryStrategy,
    ServiceEnvironmentOrder,
)


class CancelJobRequest(Shape):
    jobId: str
    reason: str


class CancelJobsRequest(Shape):
    jobs: list[str]
    reason: str


class CreateComputeEnvironmentRequest(Shape):
    computeEnvironmentName: str
    type: Literal["MANAGED", "UNMANAGED"]
    state: Literal["ENABLED", "DISABLED"] | None = None
    unmanagedvCpus: Int | None = None
    computeResources: ComputeResource | None = None
    serviceRole: str | None = None
    tags: dict[str, str] | None = None
    eksConfiguration: EksConfiguration | None = None
    context: str | None = None
    ecsSettings: EcsSettings | None = None


class CreateJobQueueRequest(Shape):
    jobQueueName: str
    priority: Int
    state: Literal["ENABLED", "DISABLED"] | None = None
    schedulingPolicyArn: str | None = None
    computeEnvironmentOrder: list[ComputeEnvironmentOrder] | None = None
    serviceEnvironmentOrder: list[ServiceEnvironmentOrder] | None = None
    jobQueueType: Literal["EKS", "ECS", "ECS_FARGATE", "SAGEMAKER_TRAINING", "ECS_MANAGED_INSTANCES"] | None = None
    tags: dict[str, str] | None = None
    jobStateTimeLimitActions: list[JobStateTimeLimitAction] | None = None


class DeleteComputeEnvironmentRequest(Shape):
    computeEnvironment: str


class DeleteJobQueueRequest(Shape):
    jobQueue: str


class DeregisterJobDefinitionRequest(Shape):
    jobDefinition: str


class DescribeComputeEnvironmentsRequest(Shape):
    computeEnvironments: list[str] | None = None
    maxResults: Int | None = None
    nextToken: str | None = None


class DescribeJobDefinitionsRequest(Shape):
    jobDefinitions: list[str] | None = None
    maxResults: Int | None = None
    jobDefinitionName: str | None = None
    status: str | None = None
    nextToken: str | None = None


class DescribeJobQueuesRequest(Shape):
    jobQueues: list[str] | None = None
    maxResults: Int | None = None
    nextToken: str | None = None


class DescribeJobsRequest(Shape):
    jobs: list[str]


class ListJobsRequest(Shape):
    jobQueue: str | None = None
    arrayJobId: str | None = None
    multiNodeJobId: str | None = None
    jobStatus: str | None = None
    maxResults: Int | None = None
    nextToken: str | None = None
    filters: list[KeyValuesPair] | None = None


class ListTagsForResourceRequest(Shape):
    resourceArn: str


class RegisterJobDefinitionRequest(Shape):
    jobDefinitionName: str
    type: Literal["container", "multinode"]
    parameters: dict[str, str] | None = None
    schedulingPriority: Int | None = None
    containerProperties: ContainerProperties | None = None
    nodeProperties: NodeProperties | None = None
    retryStrategy: RetryStrategy | None = None
    propagateTags: bool | None = None
    timeout: JobTimeout | None = None
    tags: dict[str, str] | None = None
    platformCapabilities: list[Literal["EC2", "FARGATE", "MANAGED_INSTANCES"]] | None = None
    eksProperties: EksProperties | None = None
    ecsProperties: EcsProperties | None = None
    consumableResourceProperties: ConsumableResourceProperties | None = None


class SubmitJobRequest(Shape):
    jobName: str
    jobQueue: str
    jobDefinition: str
    shareIdentifier: str | None = None
    schedulingPriorityOverride: Int | None = None
    arrayProperties: ArrayProperties | None = None
    dependsOn: list[JobDependency] | None = None
    parameters: dict[str, str] | None = None
    containerOverrides: ContainerOverrides | None = None
    nodeOverrides: NodeOverrides | None = None
    retryStrategy: RetryStrategy | None = None
    propagateTags: bool | None = None
    timeout: JobTimeout | None = None
    tags: dict[str, str] | None = None
    eksPropertiesOverride: EksPropertiesOverride | None = None
    ecsPropertiesOverride: EcsPropertiesOverride | None = None
    consumableResourcePropertiesOverride: ConsumableResourceProperties | None = None


class TagResourceRequest(Shape):
    resourceArn: str
    tags: dict[str, str]


class TerminateJobRequest(Shape):
    jobId: str
    reason: str


class TerminateJobsRequest(Shape):
    jobs: list[str]
    reason: str


class UntagResourceRequest(Shape):
    resourceArn: str
    tagKeys: list[str]


class UpdateComputeEnvironmentRequest(Shape):
    computeEnvironment: str
    state: Literal["ENABLED", "DISABLED"] | None = None
    unmanagedvCpus: Int | None = None
    computeResources: ComputeResourceUpdate | None = None
    serviceRole: str | None = None
    updatePolicy: UpdatePolicy | None = None
    context: str | None = None
    ecsSettings: EcsSettings | None = None
    eksConfiguration: EksConfigurationUpdate | None = None


class UpdateJobQueueRequest(Shape):
    jobQueue: str
    state: Literal["ENABLED", "DISABLED"] | None = None
    schedulingPolicyArn: str | None = None
    priority: Int | None = None
    computeEnvironmentOrder: list[ComputeEnvironmentOrder] | None = None
    serviceEnvironmentOrder: list[ServiceEnvironmentOrder] | None = None
    jobStateTimeLimitActions: list[JobStateTimeLimitAction] | None = None
