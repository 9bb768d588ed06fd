"""Shapes of what a job runs: containers, and tasks of several of them."""

from __future__ import annotations

from typing import Literal

from .shape import Int, Shape


class Host(Shape):
    sourcePath: str | None = None


class EFSAuthorizationConfig(Shape):
    accessPointId: str | None = None
    iam: Literal["ENABLED", "DISABLED"] | None = None


class EFSVolumeConfiguration(Shape):
    fileSystemId: str
    rootDirectory: str | None = None
    transitEncryption: Literal["ENABLED", "DISABLED"] | None = None
    transitEncryptionPort: Int | None = None
    authorizationConfig: EFSAuthorizationConfig | None = None


class S3FilesVolumeConfiguration(Shape):
    fileSystemArn: str
    rootDirectory: str | None = None
    transitEncryptionPort: Int | None = None
    accessPointArn: str | None = None


class Volume(Shape):
    host: Host | None = None
    name: str | None = None
    efsVolumeConfiguration: EFSVolumeConfiguration | None = None
    s3filesVolumeConfiguration: S3FilesVolumeConfiguration | None = None


class KeyValuePair(Shape):
    name: str | None = None
    value: str | None = None


class MountPoint(Shape):
    containerPath: str | None = None
    readOnly: bool | None = None
    sourceVolume: str | None = None


class Ulimit(Shape):
    hardLimit: Int
    name: str
    softLimit: Int


class ResourceRequirement(Shape):
    value: str
    type: Literal["GPU", "VCPU", "MEMORY"]


class Device(Shape):
    hostPath: str
    containerPath: str | None = None
    permissions: list[Literal["READ", "WRITE", "MKNOD"]] | None = None


class Tmpfs(Shape):
    containerPath: str
    size: Int
    mountOptions: list[str] | None = None


class LinuxParameters(Shape):
    devices: list[Device] | None = None
    initProcessEnabled: bool | None = None
    sharedMemorySize: Int | None = None
    tmpfs: list[Tmpfs] | None = None
    maxSwap: Int | None = None
    swappiness: Int | None = None


class Secret(Shape):
    name: str
    valueFrom: str


class LogConfiguration(Shape):
    logDriver: Literal["json-file", "syslog", "journald", "gelf", "fluentd", "awslogs", "splunk", "awsfirelens"]
    options: dict[str, str] | None = None
    secretOptions: list[Secret] | None = None


class NetworkConfiguration(Shape):
    assignPublicIp: Literal["ENABLED", "DISABLED"] | None = None


class FargatePlatformConfiguration(Shape):
    platformVersion: str | None = None


class EphemeralStorage(Shape):
    sizeInGiB: Int


class RuntimePlatform(Shape):
    operatingSystemFamily: str | None = None
    cpuArchitecture: str | None = None


class RepositoryCredentials(Shape):
    credentialsParameter: str


class ContainerProperties(Shape):
    image: str | None = None
    vcpus: Int | None = None
    memory: Int | None = None
    command: list[str] | None = None
    jobRoleArn: str | None = None
    executionRoleArn: str | None = None
    volumes: list[Volume] | None = None
    environment: list[KeyValuePair] | None = None
    mountPoints: list[MountPoint] | None = None
    readonlyRootFilesystem: bool | None = None
    privileged: bool | None = None
    ulimits: list[Ulimit] | None = None
    user: str | None = None
    instanceType: str | None = None
    resourceRequirements: list[ResourceRequirement] | None = None
    linuxParameters: LinuxParameters | None = None
    logConfiguration: LogConfiguration | None = None
    secrets: list[Secret] | None = None
    networkConfiguration: NetworkConfiguration | None = None
    fargatePlatformConfiguration: FargatePlatformConfiguration | None = None
    enableExecuteCommand: bool | None = None
    ephemeralStorage: EphemeralStorage | None = None
    runtimePlatform: RuntimePlatform | None = None
    repositoryCredentials: RepositoryCredentials | None = None


class TaskContainerDependency(Shape):
    containerName: str | None = None
    condition: str | None = None


class FirelensConfiguration(Shape):
    type: Literal["fluentd", "fluentbit"]
    options: dict[str, str] | None = None


class TaskContainerProperties(Shape):
    image: str
    command: list[str] | None = None
    dependsOn: list[TaskContainerDependency] | None = None
    environment: list[KeyValuePair] | None = None
    essential: bool | None = None
    firelensConfiguration: FirelensConfiguration | None = None
    linuxParameters: LinuxParameters | None = None
    logConfiguration: LogConfiguration | None = None
    mountPoints: list[MountPoint] | None = None
    name: str | None = None
    privileged: bool | None = None
    readonlyRootFilesystem: bool | None = None
    repositoryCredentials: RepositoryCredentials | None = None
    resourceRequirements: list[ResourceRequirement] | None = None
    secrets: list[Secret] | None = None
    ulimits: list[Ulimit] | None = None
    user: str | None = None
    startTimeout: Int | None = None
    stopTimeout: Int | None = None


class EcsTaskProperties(Shape):
    containers: list[TaskContainerProperties]
    ephemeralStorage: EphemeralStorage | None = None
    executionRoleArn: str | None = None
    platformVersion: str | None = None
    ipcMode: str | None = None
    taskRoleArn: str | None = None
    pidMode: str | None = None
    networkConfiguration: NetworkConfiguration | None = None
    runtimePlatform: RuntimePlatform | None = None
    volumes: list[Volume] | None = None
    enableExecuteCommand: bool | None = None
    networkMode: str | None = None


class EcsProperties(Shape):
    taskProperties: list[EcsTaskProperties]


class ContainerOverrides(Shape):
    vcpus: Int | None = None
    memory: Int | None = None
    command: list[str] | None = None
    instanceType: str | None = None
    environment: list[KeyValuePair] | None = None
    resourceRequirements: list[ResourceRequirement] | None = None


class TaskContainerOverrides(Shape):
    command: list[str] | None = None
    environment: list[KeyValuePair] | None = None
    name: str | None = None
    resourceRequirements: list[ResourceRequirement] | None = None


class TaskPropertiesOverride(Shape):
    containers: list[TaskContainerOverrides] | None = None


class EcsPropertiesOverride(Shape):
    taskProperties: list[TaskPropertiesOverride] | None = None
