"""Jobs as AWS describes and lists them (contract 9.4, 9.5, RT-7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from anybatch import AttemptDetail, DependencyType, JobDetail, JobStatus, JobSummary

from .arns import Place
from .call import aws_metadata, to_ms
from .containers import Compiled, overridden, requirements, retry_shape, variables

REASON_CHARS_MAX: Final = 255
"""Of a container's reason (RT-7)."""
DEFINITION_CHARS_MAX: Final = 200
"""Of a definition's name in a log stream's (ST-14)."""
NO_DEFINITION: Final = "anybatch"
"""What a log stream begins with for a job without a definition."""


def cluster_name(environment: str) -> str:
    """The ECS cluster of an environment (CE-4)."""
    return f"{environment}_Batch_{uuid5(NAMESPACE_URL, f'anybatch:environment:{environment}')}"


def container_instance_id(environment: str, host: str) -> str:
    """The id under which ECS knows a host."""
    return uuid5(NAMESPACE_URL, f"anybatch:host:{environment}:{host}").hex


def task_id(job_id: str, number: int) -> str:
    """Of an attempt: the job, the child and the attempt's number can be read from it again."""
    job, _, index = job_id.partition(":")
    return f"{job.replace('-', '')}{int(index or 0):04x}{number:04x}"


def log_stream(definition: str | None, job_id: str, number: int) -> str:
    """The name of an attempt's log stream (ST-14)."""
    name = NO_DEFINITION if definition is None else definition.partition(":")[0][:DEFINITION_CHARS_MAX]
    return f"{name}/default/{task_id(job_id, number)}"


def job_shape(place: Place, job: JobDetail, definition: Compiled | None) -> dict[str, Any]:
    """A job or child in DescribeJobs (DJ-1)."""
    kept = aws_metadata(job.metadata)
    found: dict[str, Any] = {
        "jobArn": place.arn("job", job.id),
        "jobName": job.name,
        "jobId": job.id,
        "jobQueue": place.arn("job-queue", job.queue),
        "status": job.status.value,
        "attempts": [_attempt(place, job, one) for one in job.attempts if one.stopped_at is not None],
        "createdAt": to_ms(job.created_at),
        "retryStrategy": retry_shape(job.retry),
        "dependsOn": [_dependency(one) for one in job.depends_on],
        "parameters": dict(job.parameters),
        "tags": dict(job.tags),
        "propagateTags": kept.get(
            "propagateTags", definition.kept.get("propagateTags", False) if definition else False
        ),
        "platformCapabilities": list(definition.capabilities) if definition else ["EC2"],
        "eksAttempts": [],
        "isCancelled": job.is_cancelled,
        "isTerminated": job.is_terminated,
    }
    if job.definition is not None:
        found["jobDefinition"] = place.arn("job-definition", job.definition)
    if job.status_reason is not None:
        found["statusReason"] = job.status_reason
    if job.started_at is not None:
        found["startedAt"] = to_ms(job.started_at)
    if job.stopped_at is not None:
        found["stoppedAt"] = to_ms(job.stopped_at)
    if job.timeout_s is not None:
        found["timeout"] = {"attemptDurationSeconds": round(job.timeout_s)}
    if job.status_summary is not None:
        summary = {status.value: count for status, count in job.status_summary.items()}
        found["arrayProperties"] = {
            "size": job.array_size,
            "statusSummary": summary,
            "statusSummaryLastUpdatedAt": to_ms(job.changed_at),
        }
    elif job.index is not None:
        found["arrayProperties"] = {"index": job.index}
    container = _container(place, job, definition, kept)
    if definition is not None and "ecsProperties" in definition.kept:
        found["ecsProperties"] = _task(definition, container)
    else:
        found["container"] = container
    return found


def _container(place: Place, job: JobDetail, definition: Compiled | None, kept: Mapping[str, Any]) -> dict[str, Any]:
    base = definition.container if definition is not None else None
    if base is None:
        found = {
            "image": "", "command": list(job.command), "environment": variables(job.environment),
            "resourceRequirements": requirements(job.vcpus, job.memory_mib, job.gpus),
            "volumes": [], "mountPoints": [], "ulimits": [], "secrets": [],
        }  # fmt: skip
    else:
        overrides = kept.get("containerOverrides") or _first_override(kept)
        found = overridden(base, overrides, job.command)
    found.pop("name", None)
    found["networkInterfaces"] = []
    if job.attempts:
        found |= _attempt_container(place, job, job.attempts[-1])
    return found


def _first_override(kept: Mapping[str, Any]) -> Mapping[str, Any]:
    for task in kept.get("ecsPropertiesOverride", {}).get("taskProperties", ()):
        for container in task.get("containers", ()):
            found: Mapping[str, Any] = container
            return found
    return {}


def _task(definition: Compiled, container: dict[str, Any]) -> dict[str, Any]:
    """A task's detail (EC-5), made of its one container."""
    task = dict(definition.kept["ecsProperties"]["taskProperties"][0])
    own = {"exitCode", "reason", "logStreamName", "networkInterfaces"}
    places = {name: container.pop(name) for name in ("containerInstanceArn", "taskArn") if name in container}
    first = dict(task["containers"][0])
    first |= {name: value for name, value in container.items() if name in own or name in first}
    for name in ("command", "environment", "resourceRequirements"):
        first[name] = container[name]
    return {"taskProperties": [{**task, **places, "containers": [first]}]}


def _attempt(place: Place, job: JobDetail, attempt: AttemptDetail) -> dict[str, Any]:
    found: dict[str, Any] = {
        "container": {**_attempt_container(place, job, attempt), "networkInterfaces": []},
        "stoppedAt": to_ms(attempt.stopped_at) if attempt.stopped_at is not None else 0,
    }
    if attempt.started_at is not None:
        found["startedAt"] = to_ms(attempt.started_at)
    if attempt.status_reason is not None:
        found["statusReason"] = attempt.status_reason
    return found


def _attempt_container(place: Place, job: JobDetail, attempt: AttemptDetail) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if attempt.exit_code is not None:
        found["exitCode"] = attempt.exit_code
    if attempt.reason is not None:
        found["reason"] = attempt.reason[:REASON_CHARS_MAX]
    if attempt.environment is not None:
        cluster = cluster_name(attempt.environment)
        found["taskArn"] = place.arn("task", f"{cluster}/{task_id(job.id, attempt.number)}", "ecs")
        if attempt.host is not None:
            instance = container_instance_id(attempt.environment, attempt.host)
            found["containerInstanceArn"] = place.arn("container-instance", f"{cluster}/{instance}", "ecs")
    if attempt.started_at is not None or attempt.stopped_at is not None:
        found["logStreamName"] = log_stream(job.definition, job.id, attempt.number)
    return found


def _dependency(dependency: Any) -> dict[str, str]:
    """DEP-11: the type of a plain one is not told."""
    found = {}
    if dependency.job_id is not None:
        found["jobId"] = dependency.job_id
    if dependency.type is not DependencyType.AFTER_SUCCESS:
        found["type"] = dependency.type.value
    return found


def summary_shape(place: Place, job: JobSummary) -> dict[str, Any]:
    """A job or child in ListJobs (LJ-4)."""
    found: dict[str, Any] = {
        "jobArn": place.arn("job", job.id),
        "jobId": job.id,
        "jobName": job.name,
        "createdAt": to_ms(job.created_at),
        "status": job.status.value,
    }
    if job.status_reason is not None:
        found["statusReason"] = job.status_reason
    if job.started_at is not None:
        found["startedAt"] = to_ms(job.started_at)
    if job.stopped_at is not None:
        found["stoppedAt"] = to_ms(job.stopped_at)
    container: dict[str, Any] = {}
    if job.exit_code is not None:
        container["exitCode"] = job.exit_code
    if job.reason is not None:
        container["reason"] = job.reason[:REASON_CHARS_MAX]
    if container:
        found["container"] = container
    if job.array_size is not None:
        found["arrayProperties"] = {"size": job.array_size}
    elif job.index is not None:
        found["arrayProperties"] = {"index": job.index}
    if job.definition is not None:
        found["jobDefinition"] = place.arn("job-definition", job.definition)
    if job.is_cancelled:
        found["isCancelled"] = True
    if job.is_terminated:
        found["isTerminated"] = True
    return found


LISTED_BY_DEFAULT: Final = JobStatus.RUNNING
"""What ListJobs lists when neither a status nor a filter is given (LJ-2)."""
