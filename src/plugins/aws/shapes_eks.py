"""Shapes of EKS jobs: kept and given back; such jobs cannot be run here."""

from __future__ import annotations

from typing import Literal

from .shape import Int, Shape


class ImagePullSecret(Shape):
    name: str


class EksContainerEnvironmentVariable(Shape):
    name: str
    value: str | None = None


class EksContainerResourceRequirements(Shape):
    limits: dict[str, str] | None = None
    requests: dict[str, str] | None = None


class EksContainerVolumeMount(Shape):
    name: str | None = None
    mountPath: str | None = None
    subPath: str | None = None
    readOnly: bool | None = None


class EksContainerLinuxCapabilities(Shape):
    add: list[str] | None = None
    drop: list[str] | None = None


class EksSeccompProfile(Shape):
    type: Literal["RuntimeDefault", "Localhost", "Unconfined"]
    localhostProfile: str | None = None


class EksContainerSecurityContext(Shape):
    runAsUser: Int | None = None
    runAsGroup: Int | None = None
    privileged: bool | None = None
    allowPrivilegeEscalation: bool | None = None
    readOnlyRootFilesystem: bool | None = None
    runAsNonRoot: bool | None = None
    capabilities: EksContainerLinuxCapabilities | None = None
    seccompProfile: EksSeccompProfile | None = None


class EksContainer(Shape):
    image: str
    name: str | None = None
    imagePullPolicy: str | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    env: list[EksContainerEnvironmentVariable] | None = None
    resources: EksContainerResourceRequirements | None = None
    volumeMounts: list[EksContainerVolumeMount] | None = None
    securityContext: EksContainerSecurityContext | None = None


class EksHostPath(Shape):
    path: str | None = None


class EksEmptyDir(Shape):
    medium: str | None = None
    sizeLimit: str | None = None


class EksSecret(Shape):
    secretName: str
    optional: bool | None = None


class EksPersistentVolumeClaim(Shape):
    claimName: str
    readOnly: bool | None = None


class EksVolume(Shape):
    name: str
    hostPath: EksHostPath | None = None
    emptyDir: EksEmptyDir | None = None
    secret: EksSecret | None = None
    persistentVolumeClaim: EksPersistentVolumeClaim | None = None


class EksMetadata(Shape):
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    namespace: str | None = None


class EksPodSecurityContext(Shape):
    runAsUser: Int | None = None
    runAsGroup: Int | None = None
    runAsNonRoot: bool | None = None
    seccompProfile: EksSeccompProfile | None = None
    fsGroup: Int | None = None


class EksPodProperties(Shape):
    serviceAccountName: str | None = None
    hostNetwork: bool | None = None
    dnsPolicy: str | None = None
    imagePullSecrets: list[ImagePullSecret] | None = None
    containers: list[EksContainer] | None = None
    initContainers: list[EksContainer] | None = None
    volumes: list[EksVolume] | None = None
    metadata: EksMetadata | None = None
    shareProcessNamespace: bool | None = None
    securityContext: EksPodSecurityContext | None = None


class EksProperties(Shape):
    podProperties: EksPodProperties | None = None


class EksContainerOverride(Shape):
    name: str | None = None
    image: str | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    env: list[EksContainerEnvironmentVariable] | None = None
    resources: EksContainerResourceRequirements | None = None


class EksPodPropertiesOverride(Shape):
    containers: list[EksContainerOverride] | None = None
    initContainers: list[EksContainerOverride] | None = None
    metadata: EksMetadata | None = None


class EksPropertiesOverride(Shape):
    podProperties: EksPodPropertiesOverride | None = None
