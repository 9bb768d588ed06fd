"""SubmitJob (contract 2.0, 5.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from anybatch import SEQUENTIAL, InvalidValue, NotFound, QueueDetail, n_to_n
from msgspec import to_builtins

from .api import Api
from .arns import JOB_ID, job_id, resource_name
from .call import Call, aws_metadata
from .checks import (
    JOB_NAME,
    check_command,
    check_fargate_amounts,
    check_priority,
    check_requirements,
    check_retry,
    check_tags,
    check_timeout,
    check_variables,
)
from .containers import (
    Amounts,
    Compiled,
    amounts,
    environment_of,
    kernel_amounts,
    kernel_retry,
    overridden,
)
from .environments import status_reason
from .errors import refused, unsupported
from .requests import SubmitJobRequest
from .shapes_container import ContainerOverrides, TaskContainerOverrides
from .shapes_job import JobDependency

SUBMIT_BYTES_MAX: Final = 30 * 1024
"""Of a SubmitJob request (contract section 8)."""
ARRAY_SIZE_MIN: Final = 2
DEPENDENCIES_MAX: Final = 20
INVALID_MAX: Final = 3
"""Environments that a refusal names because they are INVALID."""
DEPRECATED_OVERRIDE: Final = (
    "This value was submitted in a deprecated key and may conflict with the value provided by the job definition's "
    "resource requirements."
)


async def submit_job(api: Api, call: Call, request: SubmitJobRequest) -> dict[str, Any]:
    """Queue a job; the answer comes once it is on disk. All or nothing (SJ-3)."""
    strict = api.settings.is_strict
    if not JOB_NAME.fullmatch(request.jobName):
        raise refused(
            f"Job name should match valid pattern [A-Za-z0-9][A-Za-z0-9_-]{{0,127}}: {request.jobName[:200]!r}"
        )
    queue = await _queue(api, resource_name("job-queue", request.jobQueue))
    definition = await _definition(api, request.jobDefinition)
    _check_capability(queue, definition)
    container = _runnable(definition, request)
    override = _override(request, definition)
    extra: dict[str, Any] = {}
    if override is not None:
        extra |= _overrides(override, container, strict=strict)
    if api.settings.images == "local" and not (extra.get("command") or definition.detail.command):
        raise refused(
            "With --images local a job runs its command, not its image's: give one, here or in the definition"
        )
    _check_scheduling(request)
    _check_amounts(container, override, definition, strict=strict)
    check_retry(request.retryStrategy)
    if request.propagateTags:
        call.ignores("propagateTags")
    if request.containerOverrides is not None and request.containerOverrides.instanceType is not None:
        call.ignores("containerOverrides.instanceType")
    kept = _kept(request)
    array = request.arrayProperties
    if strict and array is not None and array.size is not None and array.size < ARRAY_SIZE_MIN:
        raise refused(f"Array size must be between {ARRAY_SIZE_MIN} and 10000")
    try:
        job = await api.kernel.submit_job(
            request.jobName,
            queue=queue.name,
            definition=definition.detail.reference,
            array_size=None if array is None else array.size,
            depends_on=[_dependency(entry) for entry in _dependencies(request)] if request.dependsOn else None,
            parameters=request.parameters,
            retry=kernel_retry(request.retryStrategy),
            timeout=check_timeout(request.timeout, strict=strict),
            tags=check_tags(request.tags) if request.tags else None,
            metadata={"aws": kept} if kept else None,
            **extra,
        )
    except InvalidValue as e:
        raise await _not_honoured(api, e) from e
    return {"jobArn": call.place.arn("job", job.id), "jobName": job.name, "jobId": job.id}


def _kept(request: SubmitJobRequest) -> dict[str, Any]:
    """What is kept with the job, to describe it as it was asked for."""
    given = {name: getattr(request, name) for name in ("containerOverrides", "ecsPropertiesOverride", "propagateTags")}
    return {name: to_builtins(value) for name, value in given.items() if value is not None}


async def _not_honoured(api: Api, error: InvalidValue) -> Exception:
    """The same refusal, with the INVALID environments where they may be why."""
    if error.field != "image" and not error.field.startswith("container."):
        return error
    details = [one for one in await api.kernel.describe_compute_environments() if one.status.value == "INVALID"]
    if not details:
        return error
    invalid = [f"{detail.name} is INVALID: {status_reason(detail)}" for detail in details[:INVALID_MAX]]
    return refused(f"{error}. {'. '.join(invalid)}")


async def _queue(api: Api, name: str) -> QueueDetail:
    try:
        return (await api.kernel.describe_job_queues((name,)))[0]
    except NotFound:
        raise refused(f"JobQueue {name[:200]} not found.") from None


async def _definition(api: Api, given: str) -> Compiled:
    """JD-4, JD-6."""
    reference = resource_name("job-definition", given)
    name, colon, revision = reference.partition(":")
    if colon and not (revision.isdecimal() and revision.isascii() and len(revision) <= 9):
        raise refused(f"JobDefinition {given[:200]} not found.")
    try:
        return await api.compiled(await api.kernel.resolve_job_definition(f"{name}:{int(revision)}" if colon else name))
    except NotFound:
        if given.startswith("arn:") and not (colon and await api.find_compiled(f"{name}:{int(revision)}")):
            raise refused(f"JobDefinition {given[:200]} not found.") from None
        raise refused(f"JobDefinition name {name[:200]} does not exist or is not in ACTIVE status") from None


def _check_capability(queue: QueueDetail, definition: Compiled) -> None:
    """JD-12."""
    kind = aws_metadata(queue.metadata).get("jobQueueType")
    if kind is None or not definition.kept:
        return
    wanted = definition.capabilities[0]
    offered = "FARGATE" if kind == "ECS_FARGATE" else "EC2"
    if wanted != offered:
        raise refused(f"Job Queue is attached to Compute Environment that can not run Jobs with capability {wanted}.")


def _runnable(definition: Compiled, request: SubmitJobRequest) -> Mapping[str, Any]:
    """The container that a job of this definition runs; what cannot be run here is refused."""
    if "nodeProperties" in definition.kept:
        if request.containerOverrides is not None:
            raise refused("containerOverrides can not be given for a multinode job definition")
        raise unsupported("Running multi-node jobs")
    if "eksProperties" in definition.kept:
        raise unsupported("Running EKS jobs")
    if definition.container is None:
        raise unsupported("Running a task of several containers")
    for member in ("nodeOverrides", "eksPropertiesOverride"):
        if getattr(request, member) is not None:
            raise refused(f"{member} does not fit the type of the job definition")
    if request.consumableResourcePropertiesOverride is not None:
        raise unsupported("consumableResourcePropertiesOverride")
    return definition.container


def _override(request: SubmitJobRequest, definition: Compiled) -> ContainerOverrides | TaskContainerOverrides | None:
    """What the request changes of the container (PA-6, PA-7)."""
    is_task = "ecsProperties" in definition.kept
    if request.containerOverrides is not None:
        if is_task:
            raise refused("containerOverrides can not be given for a job definition with ecsProperties")
        return request.containerOverrides
    if request.ecsPropertiesOverride is None:
        return None
    if not is_task:
        raise refused("ecsPropertiesOverride needs a job definition with ecsProperties")
    tasks = request.ecsPropertiesOverride.taskProperties or []
    if len(tasks) > 1 or len(tasks[0].containers or []) > 1 if tasks else False:
        raise refused("ecsPropertiesOverride has more containers than the job definition")
    containers = (tasks[0].containers or []) if tasks else []
    if not containers:
        return None
    assert definition.container is not None
    if containers[0].name != definition.container.get("name"):
        raise refused(f"ecsPropertiesOverride names an unknown container: {(containers[0].name or '')[:100]!r}")
    return containers[0]


def _overrides(
    override: ContainerOverrides | TaskContainerOverrides, container: Mapping[str, Any], *, strict: bool
) -> dict[str, Any]:
    """As arguments of `submit_job`."""
    check_command(override.command)
    check_variables(override.environment)
    check_requirements(override.resourceRequirements, fargate=False)
    found: dict[str, Any] = {}
    if override.command:
        if strict and "" in override.command:
            raise refused("containerOverrides: command may not contain an empty string")
        found["command"] = override.command
    if override.environment:
        found["environment"] = environment_of(override.environment)
    if isinstance(override, ContainerOverrides):
        given = {need["type"] for need in container["resourceRequirements"]}
        twice = (override.vcpus is not None and "VCPU" in given) or (override.memory is not None and "MEMORY" in given)
        if twice and strict:
            raise refused(DEPRECATED_OVERRIDE)
        if (override.vcpus is not None and override.vcpus < 1) or (override.memory is not None and override.memory < 4):
            raise refused("containerOverrides: vcpus is at least 1, memory at least 4")
        found |= kernel_amounts(amounts(override.resourceRequirements, override.vcpus, override.memory))
    else:
        found |= kernel_amounts(amounts(override.resourceRequirements))
    return found


def _check_amounts(
    container: Mapping[str, Any],
    override: ContainerOverrides | TaskContainerOverrides | None,
    definition: Compiled,
    *,
    strict: bool,
) -> None:
    """RR-1, RR-2: what results is complete, and a pair that Fargate has."""
    if not definition.kept:
        return
    merged = overridden(container, override.plain() if override is not None else {}, ())
    needs = {need["type"]: need["value"] for need in merged["resourceRequirements"]}
    vcpus, memory = needs.get("VCPU", merged.get("vcpus")), needs.get("MEMORY", merged.get("memory"))
    if strict and vcpus is None:
        raise refused("vCPU is not provided.")
    if strict and memory is None:
        raise refused("Memory is not provided.")
    if "FARGATE" in definition.capabilities:
        if "GPU" in needs:
            raise refused("GPU is not applicable for Fargate.")
        check_fargate_amounts(Amounts(None if vcpus is None else str(vcpus), None if memory is None else str(memory)))


def _check_scheduling(request: SubmitJobRequest) -> None:
    """SC-1: every queue here is FIFO."""
    check_priority(request.schedulingPriorityOverride)
    if request.shareIdentifier is not None or request.schedulingPriorityOverride is not None:
        raise refused(
            "Job with shareIdentifier or schedulingPriority can only be submitted to job queue with fair share "
            "scheduling policy."
        )


def _dependencies(request: SubmitJobRequest) -> list[JobDependency]:
    found = request.dependsOn or []
    if len(found) > DEPENDENCIES_MAX:
        raise refused(f"Job cannot have more than {DEPENDENCIES_MAX} dependencies")
    return found


def _dependency(entry: JobDependency) -> Any:
    """An entry of `dependsOn` as the kernel takes it (DEP-2, DEP-13, DEP-14)."""
    if entry.type == "SEQUENTIAL":
        if entry.jobId is not None:
            raise refused("A SEQUENTIAL dependency names no job")
        return SEQUENTIAL
    if entry.jobId is None:
        raise refused("A dependency has a jobId, a type, or both")
    found = job_id(entry.jobId)
    if not JOB_ID.fullmatch(found):  # a name, which the kernel would take, is none of AWS's references
        raise refused(f"Job {found[:200]} does not exist")
    return n_to_n(found) if entry.type == "N_TO_N" else found
