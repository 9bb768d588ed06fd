"""apply: bring environments, queues and definitions to what a configuration says, and touch nothing else.

A service calls it at every start. The whole configuration is checked before anything is changed; what is as it
should be is left alone, so that a definition has a new revision only where something in it changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from . import bodies
from .core.errors import Conflict, InvalidValue
from .core.model import DefinitionBody, EnvironmentBody, QueueBody

if TYPE_CHECKING:
    from .registry import BackendRegistry
    from .resource_calls import ResourceCalls

SECTIONS: Final = ("environments", "queues", "definitions")


class Applied(Struct, frozen=True, kw_only=True):
    """What `apply` did, each as "environments.local"; `unchanged` was there as it should be."""

    created: tuple[str, ...]
    updated: tuple[str, ...]
    unchanged: tuple[str, ...]


class Plan(Struct):
    """A checked configuration."""

    environments: dict[str, EnvironmentBody]
    queues: dict[str, QueueBody]
    definitions: dict[str, DefinitionBody]


def check_config(config: object, registry: BackendRegistry) -> Plan:
    """The configuration as bodies.

    Raises:
        InvalidValue: the first mistake in it; `field` is its path, such as "queues.default.priority".
    """
    if not isinstance(config, Mapping):
        raise InvalidValue("config", config, f"it maps {', '.join(SECTIONS)} to tables")
    unknown = [key for key in config if key not in SECTIONS]
    if unknown:
        raise InvalidValue(str(unknown[0]), config[unknown[0]], f"a configuration has {', '.join(SECTIONS)}")
    return Plan(
        _section(config, "environments", lambda **given: bodies.environment(registry, **given), bodies.environment),
        _section(config, "queues", bodies.queue, bodies.queue),
        _section(config, "definitions", bodies.definition, bodies.definition),
    )


def _section(
    config: Mapping[str, Any], section: str, make: Callable[..., Any], signature: Callable[..., Any]
) -> dict[str, Any]:
    tables = config.get(section, {})
    if not isinstance(tables, Mapping):
        raise InvalidValue(section, tables, "it maps names to tables")
    parameters = {n: p for n, p in inspect.signature(signature).parameters.items() if n != "registry"}
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    found = {}
    for name, table in tables.items():
        path = f"{section}.{name}"
        if not isinstance(table, Mapping):
            raise InvalidValue(path, table, "it is a table")
        for key in table:
            if key not in parameters:
                raise InvalidValue(f"{path}.{key}", table[key], f"the keys here are {', '.join(parameters)}")
        for key in needed:
            if key not in table:
                raise InvalidValue(f"{path}.{key}", None, "it has to be given")
        try:
            found[name] = make(**table)
        except InvalidValue as e:
            raise type(e)(f"{path}.{e.field}", e.value, e.allowed) from None
    return found


async def apply_config(kernel: ResourceCalls, config: object, registry: BackendRegistry) -> Applied:
    """Carry it out: environments, then queues, then definitions."""
    plan = check_config(config, registry)
    state = kernel._open.state
    created, updated, unchanged = list[str](), list[str](), list[str]()
    for name, environment in plan.environments.items():
        path, row = f"environments.{name}", state.environments.get(name)
        if row is None:
            await kernel.put_environment(name, environment)
            created.append(path)
        elif row.body == environment:
            unchanged.append(path)
        else:
            _only(path, "compute environment", row.body, environment, ("backend", "managed", "tags"))
            await kernel.update_compute_environment(
                name,
                state=environment.state.value,
                min_vcpus=environment.min_vcpus_milli / 1000,
                max_vcpus=environment.max_vcpus_milli / 1000,
                options=environment.options,
            )
            updated.append(path)
    for name, queue in plan.queues.items():
        path, there = f"queues.{name}", state.queues.get(name)
        if there is None:
            await kernel.put_queue(name, queue)
            created.append(path)
        elif there.body == queue:
            unchanged.append(path)
        else:
            _only(path, "job queue", there.body, queue, ("tags",))
            await kernel.update_job_queue(
                name,
                priority=queue.priority,
                state=queue.state.value,
                compute_environments=queue.compute_environments,
                retain_succeeded=queue.retain_succeeded_ms / 1000,
                retain_failed=queue.retain_failed_ms / 1000,
            )
            updated.append(path)
    for name, definition in plan.definitions.items():
        path, revisions = f"definitions.{name}", state.definitions.get(name, {})
        newest = revisions[max(revisions)] if revisions else None
        if newest is not None and newest.active and newest.body == definition:
            unchanged.append(path)
        else:
            await kernel.put_definition(name, definition)
            (created if newest is None else updated).append(path)
    return Applied(created=tuple(created), updated=tuple(updated), unchanged=tuple(unchanged))


def _only(path: str, kind: str, there: Struct, asked: Struct, fixed: tuple[str, ...]) -> None:
    for field in fixed:
        old, new = getattr(there, field), getattr(asked, field)
        if old != new:
            why = f"its {field} cannot be changed ({old!r} is there, {new!r} was asked for); use another name"
            raise Conflict(kind, path, why, field=field)
