"""What AWS refuses of definitions and submits, in AWS's words where they are known (contract 5, 8, 9.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from .containers import Amounts, amounts
from .errors import refused, unsupported
from .requests import RegisterJobDefinitionRequest
from .shapes_container import (
    ContainerProperties,
    KeyValuePair,
    ResourceRequirement,
    TaskContainerProperties,
    Volume,
)
from .shapes_job import JobTimeout, RetryStrategy

RESOURCE_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
JOB_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
IMAGE: Final = re.compile(r"[A-Za-z0-9_:./#@-]{1,255}")
USER: Final = re.compile(r"[a-z0-9_][a-z0-9_-]{0,30}")
VOLUME_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,255}")
WHOLE: Final = re.compile(r"[1-9][0-9]{0,8}")
FRACTION: Final = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,3})?")
TIMEOUT_S_MIN: Final = 60
TIMEOUT_S_MAX: Final = 100 * 365 * 86_400
ATTEMPTS_MAX: Final = 10
EVALUATE_MAX: Final = 5
TAGS_MAX: Final = 50
PRIORITY_MAX: Final = 9999
MEMORY_MIB_MIN: Final = 4
REASON_PATTERN: Final = re.compile(r"[0-9A-Za-z.:\s]{0,512}\*?")
CODE_PATTERN: Final = re.compile(r"[0-9]{0,512}\*?")
STATUSES: Final = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED", "FAILED")
ULIMITS: Final = frozenset(
    [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ]
)
_GIB: Final = 1024
FARGATE_MEMORY: Final[Mapping[str, frozenset[int]]] = {
    "0.25": frozenset((512, 1024, 2048)),
    "0.5": frozenset(range(1024, 4097, _GIB)),
    "1": frozenset(range(2048, 8193, _GIB)),
    "2": frozenset(range(4096, 16385, _GIB)),
    "4": frozenset(range(8192, 30721, _GIB)),
    "8": frozenset(range(16384, 61441, 4 * _GIB)),
    "16": frozenset(range(32768, 122881, 8 * _GIB)),
    "32": frozenset((61440, 122880, 249856)),
}
"""The amounts of memory, in MiB, that go with an amount of vCPUs on Fargate (RR-2)."""
NOT_ON_FARGATE: Final = ("vcpus", "memory", "ulimits", "instanceType")
ONLY_ON_FARGATE: Final = (
    "networkConfiguration", "fargatePlatformConfiguration", "ephemeralStorage", "runtimePlatform",
)  # fmt: skip


def check_name(member: str, name: str) -> str:
    """The name of a definition, queue or environment."""
    if not RESOURCE_NAME.fullmatch(name):
        raise refused(f"{member} should match valid pattern [A-Za-z0-9_-]{{1,128}}: {name[:200]!r}")
    return name


def check_tags(tags: Mapping[str, str] | None) -> dict[str, str]:
    """TG-3, contract section 8."""
    found = dict(tags or {})
    if len(found) > TAGS_MAX:
        raise refused(f"A resource can have at most {TAGS_MAX} tags")
    for key, value in found.items():
        if not 1 <= len(key) <= 128 or key.startswith("aws:") or len(value) > 256:
            raise refused(
                f"Invalid tag: {key[:200]!r}: keys have 1 to 128 characters, not beginning with aws:; values 256"
            )
    return found


def check_variables(pairs: Iterable[KeyValuePair] | None) -> None:
    """EV-1."""
    for pair in pairs or ():
        name = pair.name or ""
        if name.startswith("AWS_BATCH"):
            raise refused(f"Environment variable names can not start with AWS_BATCH: {name[:200]}")
        if "=" in name or "\0" in name or "\0" in (pair.value or ""):
            raise refused(f"Environment variable names and values have no '=' or zero byte: {name[:200]!r}")


def check_command(command: list[str] | None) -> None:
    """An argument has no zero byte."""
    if any("\0" in word for word in command or ()):
        raise refused("command: an argument has no zero byte")


def check_requirements(needs: list[ResourceRequirement] | None, *, fargate: bool) -> None:
    """RR-1: each type once, with a number."""
    seen = set()
    for need in needs or ():
        if need.type in seen:
            raise refused(f"resourceRequirements names {need.type} more than once")
        seen.add(need.type)
        if need.type == "VCPU":
            good = FRACTION.fullmatch(need.value) is not None and float(need.value) > 0
        else:
            good = WHOLE.fullmatch(need.value) is not None
        if not good:
            raise refused(f"resourceRequirements: invalid value {need.value[:50]!r} for {need.type}")
        if need.type == "GPU" and fargate:
            raise refused("GPU is not applicable for Fargate.")
        if need.type == "MEMORY" and int(need.value) < MEMORY_MIB_MIN:
            raise refused(f"container memory limit must be greater than {MEMORY_MIB_MIN}")


def check_fargate_amounts(needed: Amounts) -> None:
    """RR-2."""
    if needed.vcpus is None or needed.memory is None:
        return
    allowed = FARGATE_MEMORY.get(f"{float(needed.vcpus):g}")
    if allowed is None or int(needed.memory) not in allowed:
        raise refused(f"Fargate resource requirements ({needed.vcpus} vCPU, {needed.memory} MiB) not valid.")


def check_retry(strategy: RetryStrategy | None) -> None:
    """RT-1, EX-1, EX-2, EX-5, EX-7."""
    if strategy is None:
        return
    if strategy.attempts is None:
        raise refused("RetryAttempts must be provided with retry strategy")
    if not 1 <= strategy.attempts <= ATTEMPTS_MAX:
        raise refused(f"Retry attempts must be between 1 and {ATTEMPTS_MAX}")
    entries = strategy.evaluateOnExit or []
    if len(entries) > EVALUATE_MAX:
        raise refused(f"evaluateOnExit can have at most {EVALUATE_MAX} entries")
    for entry in entries:
        if entry.action.lower() not in ("retry", "exit"):
            raise refused(f"evaluateOnExit action must be RETRY or EXIT: {entry.action[:50]!r}")
        patterns = (entry.onStatusReason, entry.onReason, entry.onExitCode)
        if all(pattern is None for pattern in patterns):
            raise refused("evaluateOnExit: an entry has at least one of onStatusReason, onReason, onExitCode")
        for pattern, form in zip(patterns, (REASON_PATTERN, REASON_PATTERN, CODE_PATTERN), strict=True):
            if pattern is not None and (not pattern or len(pattern) > 512 or not form.fullmatch(pattern)):
                raise refused(f"evaluateOnExit: invalid pattern {pattern[:100]!r}")


def check_timeout(timeout: JobTimeout | None, *, strict: bool) -> float | None:
    """TO-1. Returns the seconds."""
    if timeout is None or timeout.attemptDurationSeconds is None:
        return None
    least = TIMEOUT_S_MIN if strict else 1
    if not least <= timeout.attemptDurationSeconds <= TIMEOUT_S_MAX:
        raise refused(f"attemptDurationSeconds must be at least {least} seconds")
    return float(timeout.attemptDurationSeconds)


def check_priority(priority: int | None) -> None:
    """JD-11."""
    if priority is not None and not 0 <= priority <= PRIORITY_MAX:
        raise refused(f"schedulingPriority must be between 0 and {PRIORITY_MAX}")


def check_mounts(container: ContainerProperties | TaskContainerProperties, volumes: list[Volume] | None) -> None:
    """A mount point names a declared volume."""
    names = set()
    for volume in volumes or ():
        if volume.name is None or not VOLUME_NAME.fullmatch(volume.name):
            raise refused(f"Invalid volume name: {(volume.name or '')[:100]!r}")
        names.add(volume.name)
    for mount in container.mountPoints or ():
        if mount.sourceVolume not in names:
            raise refused(f"Unknown volume '{(mount.sourceVolume or '')[:100]}'.")


def check_common(
    container: ContainerProperties | TaskContainerProperties,
    volumes: list[Volume] | None,
    *,
    fargate: bool,
    strict: bool,
) -> None:
    """What holds of every container."""
    if not container.image:
        raise refused("containerProperties must contain image")
    if not IMAGE.fullmatch(container.image):
        raise refused(f"Invalid image name: {container.image[:300]!r}")
    check_command(container.command)
    check_variables(container.environment)
    check_requirements(container.resourceRequirements, fargate=fargate)
    check_mounts(container, volumes)
    is_checked = strict and container.user is not None and isinstance(container, ContainerProperties)
    if is_checked and not USER.fullmatch(container.user or ""):
        raise refused(f"User '{(container.user or '')[:100]}' does not match regex {USER.pattern}")
    for limit in container.ulimits or ():
        if limit.name not in ULIMITS:
            raise refused(f"Invalid ulimit name: {limit.name[:100]!r}")
    if fargate and container.privileged:
        raise refused("privileged must be false for Fargate.")


def check_container(container: ContainerProperties, *, fargate: bool, strict: bool, complete: bool = True) -> Amounts:
    """A container definition (5.2). Returns what it needs; `complete`: vCPUs and memory have to be there."""
    check_common(container, container.volumes, fargate=fargate, strict=strict)
    for member in NOT_ON_FARGATE if fargate else ONLY_ON_FARGATE:
        if getattr(container, member) is not None and (strict or fargate):
            raise refused(f"{member} {'is ' if fargate else ''}not applicable for {'Fargate' if fargate else 'EC2'}.")
    if container.vcpus is not None and container.vcpus < 1:
        raise refused("vCPU must be at least 1")
    if container.memory is not None and container.memory < MEMORY_MIB_MIN:
        raise refused(f"container memory limit must be greater than {MEMORY_MIB_MIN}")
    given = {need.type for need in container.resourceRequirements or ()}
    if (container.vcpus is not None and "VCPU" in given) or (container.memory is not None and "MEMORY" in given):
        raise refused("vcpus and memory can not be given together with resourceRequirements of the same type")
    found = amounts(container.resourceRequirements, container.vcpus, container.memory)
    if strict and complete and found.vcpus is None:
        raise refused("vCPU is not provided.")
    if strict and complete and found.memory is None:
        raise refused("Memory is not provided.")
    if fargate:
        if strict and container.executionRoleArn is None:
            raise refused("Fargate requires an executionRoleArn.")
        check_fargate_amounts(found)
    if container.secrets and container.executionRoleArn is None and strict:
        raise refused("secrets require an executionRoleArn.")
    return found


def check_registration(request: RegisterJobDefinitionRequest, *, strict: bool) -> None:
    """What is checked of a definition beside its containers (JD-1, JD-2, JD-11, 5.8)."""
    check_name("jobDefinitionName", request.jobDefinitionName)
    kinds = [name for name in ("containerProperties", "ecsProperties", "eksProperties") if getattr(request, name)]
    if request.type == "container" and (len(kinds) != 1 or request.nodeProperties is not None):
        raise refused("A container job definition has exactly one of containerProperties, ecsProperties, eksProperties")
    if request.type == "multinode" and (kinds or request.nodeProperties is None):
        raise refused("A multinode job definition has nodeProperties and nothing else")
    if request.consumableResourceProperties is not None:
        raise unsupported("consumableResourceProperties")
    if "MANAGED_INSTANCES" in (request.platformCapabilities or ()):
        raise unsupported("The platform capability MANAGED_INSTANCES")
    if strict and request.platformCapabilities and request.eksProperties is not None:
        raise refused("platformCapabilities is not applicable to EKS jobs")
    if strict and request.type == "multinode" and "FARGATE" in (request.platformCapabilities or ()):
        raise refused("Multinode jobs are not supported on Fargate")
    if len(request.platformCapabilities or ()) > 1:
        raise refused("platformCapabilities has one entry: EC2 or FARGATE")
    check_retry(request.retryStrategy)
    check_timeout(request.timeout, strict=strict)
    check_priority(request.schedulingPriority)
