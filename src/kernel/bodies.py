"""What users write, as the core takes it: definitions, jobs, queues, environments. Keywords are the public names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from . import arguments as args
from .array_arguments import array_of
from .backend import EnvironmentSettings
from .container_arguments import make_container
from .core.errors import InvalidValue
from .core.inputs import SubmitJob
from .core.model import (
    MAX_CHECKPOINTS,
    NO_OVERRIDES,
    RETAIN_FAILED_MS,
    RETAIN_SUCCEEDED_MS,
    DefinitionBody,
    EnvironmentBody,
    OnMaxFailures,
    Overrides,
    QueueBody,
    ResourceState,
)
from .registry import BackendRegistry


def definition(
    *,
    command: Any = None,
    script: Any = None,
    environment: Any = None,
    parameters: Any = None,
    vcpus: Any = 1,
    memory: Any = 0,
    gpus: Any = 0,
    retry: Any = 1,
    timeout: Any = None,
    workdir: Any = None,
    scratch: Any = False,
    image: Any = None,
    container: Any = None,
    tags: Any = None,
    scheduling_priority: Any = 0,
    metadata: Any = None,
    max_running: Any = None,
    max_failures: Any = None,
    on_max_failures: Any = None,
    role: Any = None,
    checkpoint_exit_codes: Any = None,
    max_checkpoints: Any = None,
) -> DefinitionBody:
    """A job definition's; see `Kernel.register_job_definition`."""
    return DefinitionBody(
        command=() if command is None else args.command("command", command),
        script=None if script is None else args.script("script", script),
        environment=args.texts("environment", environment),
        parameters=args.texts("parameters", parameters),
        vcpus_milli=args.milli("vcpus", vcpus),
        memory_mib=args.mebibytes("memory", memory),
        gpus=args.whole("gpus", gpus),
        retry=args.retry("retry", retry),
        timeout_ms=None if timeout is None else args.milliseconds("timeout", timeout),
        workdir=None if workdir is None else args.workdir("workdir", workdir),
        scratch=args.flag("scratch", scratch),
        container=make_container(image, container),
        tags=args.texts("tags", tags),
        scheduling_priority=args.whole("scheduling_priority", scheduling_priority),
        metadata=args.metadata("metadata", metadata),
        max_running=args.optional_whole("max_running", max_running),
        max_failures=args.optional_whole("max_failures", max_failures),
        on_max_failures=(
            OnMaxFailures.CANCEL
            if on_max_failures is None
            else args.on_max_failures("on_max_failures", on_max_failures)
        ),
        role=args.optional_text("role", role),
        checkpoint_exit_codes=args.exit_codes("checkpoint_exit_codes", checkpoint_exit_codes) or (),
        max_checkpoints=MAX_CHECKPOINTS if max_checkpoints is None else args.whole("max_checkpoints", max_checkpoints),
    )


_OVERRIDES: Final[Sequence[tuple[str, str, Callable[[str, Any], Any]]]] = (
    ("command", "command", args.command),
    ("script", "script", args.script),
    ("environment", "environment", args.texts),
    ("parameters", "parameters", args.texts),
    ("vcpus", "vcpus_milli", args.milli),
    ("memory", "memory_mib", args.mebibytes),
    ("gpus", "gpus", args.whole),
    ("retry", "retry", args.retry),
    ("timeout", "timeout_ms", args.milliseconds),
    ("workdir", "workdir", args.workdir),
    ("scratch", "scratch", args.flag),
    ("tags", "tags", args.texts),
    ("scheduling_priority", "scheduling_priority", args.whole),
    ("metadata", "metadata", args.metadata),
    ("max_running", "max_running", args.whole),
    ("max_failures", "max_failures", args.whole),
    ("on_max_failures", "on_max_failures", args.on_max_failures),
    ("role", "role", args.text),
    ("checkpoint_exit_codes", "checkpoint_exit_codes", args.exit_codes),
    ("max_checkpoints", "max_checkpoints", args.whole),
)
"""What a submit may give beside its container: the keyword, the field that it fills, and how it is taken."""


def submission(
    job_id: str,
    *,
    name: Any,
    queue: Any,
    definition: Any = None,
    array_size: Any = None,
    array: Any = None,
    depends_on: Any = None,
    command: Any = None,
    script: Any = None,
    environment: Any = None,
    parameters: Any = None,
    vcpus: Any = None,
    memory: Any = None,
    gpus: Any = None,
    retry: Any = None,
    timeout: Any = None,
    workdir: Any = None,
    scratch: Any = None,
    image: Any = None,
    container: Any = None,
    tags: Any = None,
    scheduling_priority: Any = None,
    client_token: Any = None,
    metadata: Any = None,
    max_running: Any = None,
    max_failures: Any = None,
    on_max_failures: Any = None,
    role: Any = None,
    checkpoint_exit_codes: Any = None,
    max_checkpoints: Any = None,
) -> SubmitJob:
    """A job's; see `Kernel.submit_job`."""
    given = (
        command, script, environment, parameters, vcpus, memory, gpus, retry, timeout, workdir, scratch, tags,
        scheduling_priority, metadata, max_running, max_failures, on_max_failures, role, checkpoint_exit_codes,
        max_checkpoints,
    )  # fmt: skip
    overrides = NO_OVERRIDES
    if image is not None or container is not None or given.count(None) < len(given):
        found = {
            field: convert(keyword, value)
            for (keyword, field, convert), value in zip(_OVERRIDES, given, strict=True)
            if value is not None
        }
        overrides = Overrides(container=make_container(image, container), **found)
    size, indexes = array_of(array_size, array)
    return SubmitJob(
        job_id=job_id,
        name=args.text("name", name),
        queue=args.text("queue", queue),
        definition=None if definition is None else args.definition("definition", definition),
        overrides=overrides,
        size=size,
        indexes=indexes,
        depends_on=args.dependencies("depends_on", depends_on),
        client_token=args.optional_text("client_token", client_token),
    )


def queue(
    *,
    priority: Any,
    compute_environments: Any,
    state: Any = "ENABLED",
    tags: Any = None,
    retain_succeeded: Any = RETAIN_SUCCEEDED_MS / 1000,
    retain_failed: Any = RETAIN_FAILED_MS / 1000,
    metadata: Any = None,
) -> QueueBody:
    """A job queue's; see `Kernel.create_job_queue`."""
    return QueueBody(
        priority=args.whole("priority", priority),
        compute_environments=args.names("compute_environments", compute_environments),
        state=resource_state(state),
        tags=args.texts("tags", tags),
        retain_succeeded_ms=args.milliseconds("retain_succeeded", retain_succeeded),
        retain_failed_ms=args.milliseconds("retain_failed", retain_failed),
        metadata=args.metadata("metadata", metadata),
    )


def environment(
    registry: BackendRegistry,
    *,
    backend: Any,
    max_vcpus: Any = None,
    min_vcpus: Any = 0,
    managed: Any = True,
    state: Any = "ENABLED",
    options: Any = None,
    tags: Any = None,
    metadata: Any = None,
) -> EnvironmentBody:
    """A compute environment's; see `Kernel.create_compute_environment`."""
    name = args.text("backend", backend)
    return EnvironmentBody(
        backend=name,
        options=args.options("options", options, registry.options(name), f"backend {name!r}"),
        managed=args.flag("managed", managed),
        min_vcpus_milli=args.milli("min_vcpus", min_vcpus),
        max_vcpus_milli=cpus() * 1000 if max_vcpus is None else args.milli("max_vcpus", max_vcpus),
        state=resource_state(state),
        tags=args.texts("tags", tags),
        metadata=args.metadata("metadata", metadata),
    )


def settings(
    name: str, body: EnvironmentBody, hosts: Mapping[str, Mapping[str, Any]] | None = None
) -> EnvironmentSettings:
    """What the backend of an environment is told; `hosts`: those that are registered."""
    return EnvironmentSettings(
        name=name,
        managed=body.managed,
        min_vcpus_milli=body.min_vcpus_milli,
        max_vcpus_milli=body.max_vcpus_milli,
        options=body.options,
        hosts={host: dict(about) for host, about in (hosts or {}).items()},
    )


def cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resource_state(value: object) -> ResourceState:
    """ENABLED or DISABLED."""
    if value not in tuple(ResourceState):
        raise InvalidValue("state", value, "a state is ENABLED or DISABLED")
    return ResourceState(str(value))
