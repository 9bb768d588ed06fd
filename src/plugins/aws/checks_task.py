"""What AWS refuses of tasks of several containers, of multi-node jobs, and on Fargate (contract 5.2, 5.6, 5.8)."""

from __future__ import annotations

import re
from typing import Final

from .checks import check_common, check_container
from .errors import refused
from .shapes_container import (
    ContainerProperties,
    EcsProperties,
    EcsTaskProperties,
    EphemeralStorage,
    RuntimePlatform,
    TaskContainerProperties,
    Volume,
)
from .shapes_job import NodeProperties, NodeRangeProperty

DRIVERS_ON_FARGATE: Final = ("awslogs", "splunk")
FIRELENS: Final = "awsfirelens"
"""The driver of tasks that have a container for it, on Fargate too."""
STORAGE_GIB: Final = (21, 200)
WAIT_S_MIN: Final = 2
WAIT_S_MAX: Final = 120
"""Of a container's startTimeout and stopTimeout, on Fargate."""
TARGET: Final = re.compile(r"([0-9]{0,4}):([0-9]{0,4})|([0-9]{1,4})", re.ASCII)
NODES_MAX: Final = 1000
GROUPS_MAX: Final = 5


def check_fargate(
    container: ContainerProperties | TaskContainerProperties, volumes: list[Volume] | None, drivers: tuple[str, ...]
) -> None:
    """What a container on Fargate cannot have (5.2)."""
    for volume in volumes or ():
        if volume.host is not None and volume.host.sourcePath is not None:
            raise refused("host.sourcePath is not applicable for Fargate.")
    logs = container.logConfiguration
    if logs is not None and logs.logDriver not in drivers:
        raise refused(f"The log driver {logs.logDriver} is not applicable for Fargate: it is {' or '.join(drivers)}")
    for member in container.linuxParameters.plain() if container.linuxParameters is not None else ():
        if member != "initProcessEnabled":
            raise refused(f"linuxParameters.{member} is not applicable for Fargate.")


def check_host(storage: EphemeralStorage | None, platform: RuntimePlatform | None) -> None:
    """What is asked of Fargate's host (5.2)."""
    least, most = STORAGE_GIB
    if storage is not None and not least <= storage.sizeInGiB <= most:
        raise refused(f"ephemeralStorage.sizeInGiB must be between {least} and {most}")
    if platform is not None and platform.cpuArchitecture not in (None, "X86_64", "ARM64"):
        raise refused("runtimePlatform.cpuArchitecture must be X86_64 or ARM64")


# -- tasks ------------------------------------------------------------------------------------------


def check_task(ecs: EcsProperties, *, fargate: bool, strict: bool) -> TaskContainerProperties | None:
    """A task of containers (5.6). Returns its container if it has one only."""
    if len(ecs.taskProperties) != 1:
        raise refused("taskProperties must have exactly one element")
    task = ecs.taskProperties[0]
    if not 1 <= len(task.containers) <= 10:
        raise refused("A task has 1 to 10 containers")
    names = [container.name for container in task.containers if container.name is not None]
    if len(set(names)) < len(names):
        raise refused("Container names must be unique")
    if all(container.essential is False for container in task.containers):
        raise refused("At least one container must be essential")
    for container in task.containers:
        check_common(container, task.volumes, fargate=fargate, strict=strict)
        _check_waits(container, task.containers, strict=strict)
        if strict:
            _check_times(container, fargate=fargate)
            if fargate:
                check_fargate(container, task.volumes, (*DRIVERS_ON_FARGATE, FIRELENS))
    if strict:
        _check_sharing(task)
    return task.containers[0] if len(task.containers) == 1 else None


def _check_waits(
    container: TaskContainerProperties, containers: list[TaskContainerProperties], *, strict: bool
) -> None:
    """EC-4."""
    essential = {other.name: other.essential is not False for other in containers if other.name is not None}
    for wait in container.dependsOn or ():
        if wait.containerName not in essential:
            raise refused(f"dependsOn names an unknown container: {(wait.containerName or '')[:100]!r}")
        if wait.condition not in ("START", "COMPLETE", "SUCCESS"):
            raise refused("A condition is START, COMPLETE or SUCCESS")
        if strict and wait.condition != "START" and essential[wait.containerName]:
            raise refused(f"The condition {wait.condition} is for containers that are not essential")


def _check_times(container: TaskContainerProperties, *, fargate: bool) -> None:
    """EC-1."""
    for member in ("startTimeout", "stopTimeout"):
        given = getattr(container, member)
        if given is None:
            continue
        if given < WAIT_S_MIN or (fargate and given > WAIT_S_MAX):
            raise refused(f"{member} must be at least {WAIT_S_MIN} seconds, and on Fargate at most {WAIT_S_MAX}")


def _check_sharing(task: EcsTaskProperties) -> None:
    """EC-2."""
    if task.ipcMode not in (None, "host", "task", "none"):
        raise refused("ipcMode must be host, task or none")
    if task.pidMode not in (None, "host", "task"):
        raise refused("pidMode must be host or task")
    check_host(task.ephemeralStorage, task.runtimePlatform)


# -- nodes ------------------------------------------------------------------------------------------


def check_nodes(nodes: NodeProperties, *, strict: bool) -> None:
    """A multi-node job (NP-1, NP-2, NP-3, NP-5)."""
    if not 1 <= nodes.numNodes <= NODES_MAX or not 0 <= nodes.mainNode < nodes.numNodes:
        raise refused(f"numNodes is 1 to {NODES_MAX}, and mainNode one of the nodes")
    if not 1 <= len(nodes.nodeRangeProperties) <= GROUPS_MAX:
        raise refused(f"nodeRangeProperties has 1 to {GROUPS_MAX} entries")
    named: set[int] = set()
    with_vcpus: set[int] = set()
    with_memory: set[int] = set()
    for group in nodes.nodeRangeProperties:
        targets = _targets(group.targetNodes, nodes.numNodes, strict=strict)
        named.update(targets)
        if strict:
            _check_kind(group)
        if group.container is None:
            with_vcpus.update(targets)
            with_memory.update(targets)
            continue
        needed = check_container(group.container, fargate=False, strict=strict, complete=False)
        if needed.vcpus is not None:
            with_vcpus.update(targets)
        if needed.memory is not None:
            with_memory.update(targets)
    if not strict:
        return
    for found, text in (
        (named, "nodeRangeProperties must name every node: {} is in no targetNodes"),
        (with_vcpus, "vCPU is not provided for node {}."),
        (with_memory, "Memory is not provided for node {}."),
    ):
        missing = next((node for node in range(nodes.numNodes) if node not in found), None)
        if missing is not None:
            raise refused(text.format(missing))


def _check_kind(group: NodeRangeProperty) -> None:
    kinds = [group.container, group.ecsProperties, group.eksProperties]
    if sum(kind is not None for kind in kinds) != 1:
        raise refused("An entry of nodeRangeProperties has one of container, ecsProperties, eksProperties")


def _targets(text: str, count: int, *, strict: bool) -> range:
    """`a:b` with both ends in it, `:b`, `a:`, or a single node; in the lenient profile whatever it says."""
    found = TARGET.fullmatch(text)
    if found is not None:
        first, last, single = found.groups()
        if single is not None:
            nodes = range(int(single), int(single) + 1)
        else:
            nodes = range(int(first or 0), int(last) + 1 if last else count)
        if nodes and nodes.stop <= count:
            return nodes
    if strict:
        raise refused(f"targetNodes: {text[:50]!r} is no range of the nodes 0 to {count - 1}")
    return range(0)
