"""Shapes of jobs, job definitions and job queues."""

from __future__ import annotations

from typing import Literal

from .shape import Int, Shape
from .shapes_container import ContainerOverrides, ContainerProperties, EcsProperties, EcsPropertiesOverride
from .shapes_eks import EksProperties, EksPropertiesOverride


class ComputeEnvironmentOrder(Shape):
    order: Int
    computeEnvironment: str


class ServiceEnvironmentOrder(Shape):
    order: Int
    serviceEnvironment: str


class JobStateTimeLimitAction(Shape):
    reason: str
    state: Literal["RUNNABLE"]
    maxTimeSeconds: Int
    action: Literal["CANCEL", "TERMINATE"]


class KeyValuesPair(Shape):
    name: str | None = None
    values: list[str] | None = None


class ConsumableResourceRequirement(Shape):
    consumableResource: str | None = None
    quantity: Int | None = None


class ConsumableResourceProperties(Shape):
    consumableResourceList: list[ConsumableResourceRequirement] | None = None


class NodeRangeProperty(Shape):
    targetNodes: str
    container: ContainerProperties | None = None
    instanceTypes: list[str] | None = None
    ecsProperties: EcsProperties | None = None
    eksProperties: EksProperties | None = None
    consumableResourceProperties: ConsumableResourceProperties | None = None


class NodeProperties(Shape):
    numNodes: Int
    mainNode: Int
    nodeRangeProperties: list[NodeRangeProperty]


class EvaluateOnExit(Shape):
    action: str
    onStatusReason: str | None = None
    onReason: str | None = None
    onExitCode: str | None = None


class RetryStrategy(Shape):
    attempts: Int | None = None
    evaluateOnExit: list[EvaluateOnExit] | None = None


class JobTimeout(Shape):
    attemptDurationSeconds: Int | None = None


class ArrayProperties(Shape):
    size: Int | None = None


class JobDependency(Shape):
    jobId: str | None = None
    type: Literal["N_TO_N", "SEQUENTIAL"] | None = None


class NodePropertyOverride(Shape):
    targetNodes: str
    containerOverrides: ContainerOverrides | None = None
    ecsPropertiesOverride: EcsPropertiesOverride | None = None
    instanceTypes: list[str] | None = None
    eksPropertiesOverride: EksPropertiesOverride | None = None
    consumableResourcePropertiesOverride: ConsumableResourceProperties | None = None


class NodeOverrides(Shape):
    numNodes: Int | None = None
    nodePropertyOverrides: list[NodePropertyOverride] | None = None
