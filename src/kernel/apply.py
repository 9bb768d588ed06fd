"""apply: bring environments, queues and definitions to what a configuration says, and touch nothing else.

A service calls it at every start. The whole configuration is checked before anything is changed; what is as it
should be is left alone, so that a definition has a new revision only where something in it changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from .config_check import judge
from .config_model import Config, checker_of
from .config_read import TABLES, config_of_mapping
from .core.errors import InvalidValue
from .core.inputs import CreateEnvironment, CreateQueue, UpdateEnvironment, UpdateQueue

if TYPE_CHECKING:
    from .registry import BackendRegistry
    from .resource_calls import ResourceCalls


class Applied(Struct, frozen=True, kw_only=True):
    """What `apply` did, each as "environments.local"; `unchanged` was there as it should be."""

    created: tuple[str, ...]
    updated: tuple[str, ...]
    unchanged: tuple[str, ...]


async def apply_config(kernel: ResourceCalls, given: object, registry: BackendRegistry) -> Applied:
    """Check all of it, then carry it out."""
    state = kernel._open.state
    if isinstance(given, Config):
        config, checker = given, checker_of(given)
    elif isinstance(given, Mapping):
        config, checker = config_of_mapping(given)
    else:
        raise InvalidValue("config", given, f"it is a Config (load_config), or maps {', '.join(TABLES)} to tables")
    judged = judge(config, registry, state, checker, jobs=False)
    checker.finish()
    done: dict[str, list[str]] = {"created": [], "updated": [], "unchanged": []}
    for path, verb, requests in judged.changes:
        for request in requests:
            if isinstance(request, CreateQueue | UpdateQueue):
                for environment in judged.state.queues[request.name].body.compute_environments:
                    await kernel._drivers.settle(environment)
            await kernel._open.request(request)
            if isinstance(request, CreateEnvironment | UpdateEnvironment):
                await kernel._drivers.settle(request.name)
        done[verb].append(path)
    return Applied(**{verb: tuple(paths) for verb, paths in done.items()})
