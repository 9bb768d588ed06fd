"""apply: bring environments, queues and definitions to what a configuration says, and touch nothing else.

A service calls it at every start. The whole configuration is checked before anything is changed; what is as it
should be is left alone, so that a definition has a new revision only where something in it changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from msgspec import Struct

from . import bodies
from .core.errors import Conflict, InvalidValue, NotFound
from .core.inputs import (
    CreateEnvironment,
    CreateQueue,
    RegisterDefinition,
    Request,
    UpdateEnvironment,
    UpdateQueue,
)
from .core.machine import handle
from .core.model import DefinitionBody, EnvironmentBody, QueueBody, ResourceStatus
from .core.state import EnvironmentRow, KernelState, QueueRow

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


class Change(NamedTuple):
    """What one entry of a configuration comes to; `request` None: it is as it should be."""

    path: str
    verb: Literal["created", "updated", "unchanged"]
    request: Request | None


def _changes(state: KernelState, plan: Plan) -> Iterator[Change]:
    """Environments, then queues, then definitions."""
    for name, environment in plan.environments.items():
        path, row = f"environments.{name}", state.environments.get(name)
        if row is None:
            yield Change(path, "created", CreateEnvironment(name=name, body=environment))
        elif row.body == environment:
            yield Change(path, "unchanged", None)
        else:
            _only(path, "compute environment", row.body, environment, ("backend", "managed", "tags"))
            update = UpdateEnvironment(
                name=name,
                state=environment.state,
                min_vcpus_milli=environment.min_vcpus_milli,
                max_vcpus_milli=environment.max_vcpus_milli,
                options=dict(environment.options),
                metadata=dict(environment.metadata),
            )
            yield Change(path, "updated", update)
    for name, queue in plan.queues.items():
        path, there = f"queues.{name}", state.queues.get(name)
        if there is None:
            yield Change(path, "created", CreateQueue(name=name, body=queue))
        elif there.body == queue:
            yield Change(path, "unchanged", None)
        else:
            _only(path, "job queue", there.body, queue, ("tags",))
            fields = ("priority", "state", "compute_environments", "retain_succeeded_ms", "retain_failed_ms")
            given = {field: getattr(queue, field) for field in fields}
            yield Change(path, "updated", UpdateQueue(name=name, metadata=dict(queue.metadata), **given))
    for name, definition in plan.definitions.items():
        path, revisions = f"definitions.{name}", state.definitions.get(name, {})
        newest = revisions[max(revisions)] if revisions else None
        if newest is not None and newest.active and newest.body == definition:
            yield Change(path, "unchanged", None)
        else:
            verb: Literal["created", "updated"] = "created" if newest is None else "updated"
            yield Change(path, verb, RegisterDefinition(name=name, body=definition))


def _rehearse(state: KernelState, changes: Sequence[Change]) -> None:
    """Have the core decide about every change, on a copy of the resources: what it refuses has changed nothing."""
    copy = KernelState(state.quotas)
    for name, row in state.environments.items():
        environment = copy.environments[name] = EnvironmentRow(name, row.body, row.created_ms)
        creating = row.status is ResourceStatus.CREATING  # it is waited for when its time comes
        environment.status = ResourceStatus.VALID if creating else row.status
        environment.status_reason = row.status_reason
    for name, there in state.queues.items():
        copy.queues[name] = QueueRow(name, there.body, there.created_ms)
        copy.queues[name].status = there.status
    copy.definitions = {name: dict(revisions) for name, revisions in state.definitions.items()}
    for path, _, request in changes:
        if request is None:
            continue
        try:
            handle(copy, request, state.now_ms)
        except InvalidValue as e:
            raise type(e)(path if e.field == "name" else f"{path}.{e.field}", e.value, e.allowed) from None
        except NotFound as e:
            allowed = "name environments that are there, or that this configuration makes"
            raise InvalidValue(f"{path}.compute_environments", e.name, allowed) from None
        if isinstance(request, CreateEnvironment | UpdateEnvironment):
            copy.environments[request.name].status = ResourceStatus.VALID


async def apply_config(kernel: ResourceCalls, config: object, registry: BackendRegistry) -> Applied:
    """Check all of it, then carry it out."""
    plan = check_config(config, registry)
    state = kernel._open.state
    changes = list(_changes(state, plan))
    _rehearse(state, changes)
    done: dict[str, list[str]] = {"created": [], "updated": [], "unchanged": []}
    for path, verb, request in changes:
        match request:
            case CreateEnvironment(name=name) | UpdateEnvironment(name=name):
                await kernel._open.request(request)
                await kernel._drivers.settle(name)
            case CreateQueue(name=name) | UpdateQueue(name=name):
                for environment in plan.queues[name].compute_environments:
                    await kernel._drivers.settle(environment)
                await kernel._open.request(request)
            case Request():
                await kernel._open.request(request)
        done[verb].append(path)
    return Applied(**{verb: tuple(paths) for verb, paths in done.items()})


def _only(path: str, kind: str, there: Struct, asked: Struct, fixed: tuple[str, ...]) -> None:
    for field in fixed:
        old, new = getattr(there, field), getattr(asked, field)
        if old != new:
            why = f"its {field} cannot be changed ({old!r} is there, {new!r} was asked for); use another name"
            raise Conflict(kind, path, why, field=field)
