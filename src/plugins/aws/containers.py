"""Container definitions: what the kernel runs of them, and how they read back (contract 5.2, 5.3, JD-10)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from anybatch import DefinitionDetail, RetryStrategy
from msgspec import Struct

from .shapes_container import ContainerOverrides, ContainerProperties, ResourceRequirement, TaskContainerOverrides

NO_COMMAND: Final = ("anybatch-no-command",)
"""The command, in the kernel, of a definition that cannot be run here."""
ARRAYS: Final = ("command", "environment", "mountPoints", "resourceRequirements", "secrets", "ulimits", "volumes")
"""Members of a container that are always there when it is read back."""


class Amounts(Struct, frozen=True):
    """What a container needs; None: not said."""

    vcpus: str | None = None
    memory: str | None = None
    gpus: str | None = None


class Compiled(Struct, frozen=True):
    """A revision of a definition, taken apart once.

    `kept` is what this front end keeps with it (empty if it was made through the kernel). `container` is its one
    container as AWS describes it, without what a job adds; None if it has none that can be run here.
    """

    detail: DefinitionDetail
    kept: Mapping[str, Any]
    container: Mapping[str, Any] | None
    capabilities: tuple[str, ...]


def compile_definition(detail: DefinitionDetail) -> Compiled:
    """Take a revision apart."""
    kept = detail.metadata.get("aws")
    kept = kept if isinstance(kept, Mapping) else {}
    container: Mapping[str, Any] | None = None
    if "containerProperties" in kept:
        container = normal_container(kept["containerProperties"])
    elif "ecsProperties" in kept:
        containers = kept["ecsProperties"]["taskProperties"][0]["containers"]
        container = normal_container(containers[0]) if len(containers) == 1 else None
    elif not kept:
        container = normal_container(plain_container(detail))
    return Compiled(detail, kept, container, tuple(kept.get("platformCapabilities", ("EC2",))))


def plain_container(detail: DefinitionDetail) -> dict[str, Any]:
    """A definition that was not made by this API, as a container."""
    return {
        "image": "",
        "command": list(detail.command),
        "environment": variables(detail.environment),
        "resourceRequirements": requirements(detail.vcpus, detail.memory_mib, detail.gpus),
    }


def variables(environment: Mapping[str, str]) -> list[dict[str, str]]:
    """Environment variables as a list of pairs."""
    return [{"name": name, "value": value} for name, value in environment.items()]


def requirements(vcpus: float, memory_mib: int, gpus: int) -> list[dict[str, str]]:
    """Resources as a list of requirements."""
    found = [{"type": "VCPU", "value": f"{vcpus:g}"}]
    if memory_mib:
        found.append({"type": "MEMORY", "value": str(memory_mib)})
    if gpus:
        found.append({"type": "GPU", "value": str(gpus)})
    return found


def normal_container(given: Mapping[str, Any]) -> dict[str, Any]:
    """How a container reads back: arrays are there, empty variables are not (JD-10)."""
    found = {**{name: [] for name in ARRAYS}, **given}
    found["environment"] = [pair for pair in found["environment"] if pair.get("value")]
    if "linuxParameters" in found:
        found["linuxParameters"] = {"devices": [], "tmpfs": [], **found["linuxParameters"]}
    if "logConfiguration" in found:
        found["logConfiguration"] = {"options": {}, "secretOptions": [], **found["logConfiguration"]}
    return found


def environment_of(pairs: Iterable[Any] | None) -> dict[str, str]:
    """Variables by name; those without a name or a value are dropped."""
    return {pair.name: pair.value for pair in pairs or () if pair.name and pair.value}


def amounts(
    needs: Iterable[ResourceRequirement] | None, vcpus: int | None = None, memory: int | None = None
) -> Amounts:
    """What is asked for; a requirement wins over the deprecated member."""
    found = {need.type: need.value for need in needs or ()}
    return Amounts(
        found.get("VCPU", None if vcpus is None else str(vcpus)),
        found.get("MEMORY", None if memory is None else str(memory)),
        found.get("GPU"),
    )


def kernel_amounts(needed: Amounts) -> dict[str, Any]:
    """As arguments of `register_job_definition` and `submit_job`."""
    found: dict[str, Any] = {}
    if needed.vcpus is not None:
        found["vcpus"] = float(needed.vcpus)
    if needed.memory is not None:
        found["memory"] = int(needed.memory)
    if needed.gpus is not None:
        found["gpus"] = int(needed.gpus)
    return found


def kernel_retry(strategy: Any) -> RetryStrategy | dict[str, Any] | None:
    """A retry strategy as the kernel takes it."""
    if strategy is None:
        return None
    entries = [
        {
            "action": entry.action,
            "on_status_reason": entry.onStatusReason,
            "on_reason": entry.onReason,
            "on_exit_code": entry.onExitCode,
        }
        for entry in strategy.evaluateOnExit or ()
    ]
    return {"attempts": strategy.attempts, "evaluate_on_exit": entries}


def retry_shape(retry: RetryStrategy) -> dict[str, Any]:
    """A retry strategy as it reads back (EX-9)."""
    entries = []
    for entry in retry.evaluate_on_exit:
        shape = {"action": entry.action.value}
        if entry.on_status_reason is not None:
            shape["onStatusReason"] = entry.on_status_reason
        if entry.on_reason is not None:
            shape["onReason"] = entry.on_reason
        if entry.on_exit_code is not None:
            shape["onExitCode"] = entry.on_exit_code
        entries.append(shape)
    return {"attempts": retry.attempts, "evaluateOnExit": entries}


def overridden(container: Mapping[str, Any], overrides: Mapping[str, Any], command: tuple[str, ...]) -> dict[str, Any]:
    """A job's container: its definition's with the job's overrides laid over it (PA-6, RR-5, RR-6)."""
    found = dict(container)
    if command != NO_COMMAND:
        found["command"] = list(command)
    if "environment" in overrides:
        merged = {pair["name"]: pair["value"] for pair in container["environment"]}
        merged |= {pair["name"]: pair["value"] for pair in overrides["environment"] if pair.get("value")}
        found["environment"] = variables(merged)
    if "resourceRequirements" in overrides:
        merged = {need["type"]: need["value"] for need in container["resourceRequirements"]}
        merged |= {need["type"]: need["value"] for need in overrides["resourceRequirements"]}
        found["resourceRequirements"] = [{"type": kind, "value": value} for kind, value in merged.items()]
    for name in ("vcpus", "memory", "instanceType"):
        if name in overrides:
            found[name] = overrides[name]
    return found


AnyContainer = ContainerProperties | ContainerOverrides | TaskContainerOverrides
