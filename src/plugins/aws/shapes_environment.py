"""Shapes of compute environments."""

from __future__ import annotations

from typing import Literal

from .shape import Int, Shape


class LaunchTemplate(Shape):
    """What a launch template and its overrides share."""

    launchTemplateId: str | None = None
    launchTemplateName: str | None = None
    version: str | None = None
    userdataType: Literal["EKS_BOOTSTRAP_SH", "EKS_NODEADM"] | None = None


class LaunchTemplateSpecificationOverride(LaunchTemplate):
    targetInstanceTypes: list[str] | None = None


class LaunchTemplateSpecification(LaunchTemplate):
    overrides: list[LaunchTemplateSpecificationOverride] | None = None


class Ec2Configuration(Shape):
    imageType: str
    imageIdOverride: str | None = None
    batchImageStatus: str | None = None
    imageKubernetesVersion: str | None = None


class ComputeScalingPolicy(Shape):
    minScaleDownDelayMinutes: Int | None = None


class ManagedInstancesNetworkConfiguration(Shape):
    subnets: list[str]
    securityGroups: list[str]


class InstanceRequirementsRequest(Shape):
    allowedInstanceTypes: list[str] | None = None


class ManagedInstancesStorageConfiguration(Shape):
    storageSizeGiB: Int | None = None


class CapacityReservationRequest(Shape):
    reservationGroupArn: str | None = None
    reservationPreference: str | None = None


class ManagedInstancesLocalStorageConfiguration(Shape):
    useLocalStorage: bool | None = None


class InstanceTemplate(Shape):
    """What an instances' template and its update share."""

    instanceRequirements: InstanceRequirementsRequest | None = None
    storageConfiguration: ManagedInstancesStorageConfiguration | None = None
    monitoring: str | None = None
    capacityReservations: CapacityReservationRequest | None = None
    instanceMetadataTagsPropagation: bool | None = None
    localStorageConfiguration: ManagedInstancesLocalStorageConfiguration | None = None


class InstanceLaunchTemplate(InstanceTemplate, kw_only=True):
    ec2InstanceProfileArn: str
    networkConfiguration: ManagedInstancesNetworkConfiguration
    capacityOptionType: str | None = None
    fipsEnabled: bool | None = None


class InfrastructureOptimization(Shape):
    scaleInAfter: Int | None = None


class ManagedInstancesProvider(Shape):
    infrastructureRoleArn: str
    instanceLaunchTemplate: InstanceLaunchTemplate
    propagateTags: str | None = None
    infrastructureOptimization: InfrastructureOptimization | None = None


ResourceType = Literal["EC2", "SPOT", "FARGATE", "FARGATE_SPOT", "ECS_MANAGED_INSTANCES"]
NewStrategy = Literal[
    "BEST_FIT_PROGRESSIVE",
    "BEST_FIT_PROGRESSIVE_ORDERED",
    "SPOT_CAPACITY_OPTIMIZED",
    "SPOT_PRICE_CAPACITY_OPTIMIZED",
    "SPOT_CAPACITY_OPTIMIZED_PRIORITIZED",
]
"""What an environment can be updated to (CE-12)."""
Strategy = Literal["BEST_FIT", NewStrategy]


class ComputeResources(Shape):
    """What resources and their update share."""

    minvCpus: Int | None = None
    desiredvCpus: Int | None = None
    subnets: list[str] | None = None
    securityGroupIds: list[str] | None = None
    instanceTypes: list[str] | None = None
    ec2KeyPair: str | None = None
    instanceRole: str | None = None
    tags: dict[str, str] | None = None
    placementGroup: str | None = None
    bidPercentage: Int | None = None
    launchTemplate: LaunchTemplateSpecification | None = None
    ec2Configuration: list[Ec2Configuration] | None = None
    imageId: str | None = None
    scalingPolicy: ComputeScalingPolicy | None = None
    capacityTags: dict[str, str] | None = None


class ComputeResource(ComputeResources, kw_only=True):
    type: ResourceType
    maxvCpus: Int
    allocationStrategy: Strategy | None = None
    spotIamFleetRole: str | None = None
    managedInstancesProvider: ManagedInstancesProvider | None = None


class EksAccessEntry(Shape):
    desiredState: Literal["ENABLED", "DISABLED", "INHERIT_FROM_CLUSTER"]
    status: Literal["ACTIVE", "INACTIVE"] | None = None


class EksConfiguration(Shape):
    eksClusterArn: str
    kubernetesNamespace: str
    accessEntry: EksAccessEntry | None = None


class EcsSettings(Shape):
    containerInsights: Literal["ENABLED", "ENHANCED", "DISABLED"] | None = None


class InstanceLaunchTemplateUpdate(InstanceTemplate):
    ec2InstanceProfileArn: str | None = None
    networkConfiguration: ManagedInstancesNetworkConfiguration | None = None


class UpdateManagedInstancesProviderConfiguration(Shape):
    propagateTags: str | None = None
    infrastructureRoleArn: str | None = None
    instanceLaunchTemplate: InstanceLaunchTemplateUpdate | None = None
    infrastructureOptimization: InfrastructureOptimization | None = None


class ComputeResourceUpdate(ComputeResources):
    maxvCpus: Int | None = None
    allocationStrategy: NewStrategy | None = None
    updateToLatestImageVersion: bool | None = None
    type: ResourceType | None = None
    managedInstancesProvider: UpdateManagedInstancesProviderConfiguration | None = None


class UpdatePolicy(Shape):
    terminateJobsOnUpdate: bool | None = None
    jobExecutionTimeoutMinutes: Int | None = None


class EksConfigurationUpdate(Shape):
    accessEntry: EksAccessEntry | None = None
