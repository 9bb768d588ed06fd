"""Where jobs of a configuration could run, how many attempts at once, and which limit binds, before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec import Struct

from .backend import Capacity, EnvironmentSettings
from .config_check import Judged
from .core.checks import VCPUS_MILLI_MAX
from .core.model import EnvironmentBody, ResourceState, Shape
from .core.state import JobRow, KernelState
from .registry import BackendRegistry

LIMITS: Final = ("vcpus", "memory", "gpus")
"""What an attempt needs of a host, under the names of a job's keys."""


ANY_VCPUS_MILLI: Final = 1 << 50
"""More than any attempt asks for."""


class Fit(Struct, frozen=True, kw_only=True):
    """How the attempts of one job fit into one environment of its queue.

    `fits` None: not known before its backend has started. `at_once`: how many run there when nothing else does, at
    most all that the job has (None: not known). `limited_by`: the limits ("vcpus", "memory", "gpus", "max_running")
    that keep it at that, or that it can never pass; empty where all children run at once. `enabled` False: it takes
    none for now.
    """

    job: str
    queue: str
    environment: str
    fits: bool | None
    at_once: int | None
    limited_by: tuple[str, ...]
    enabled: bool
    text: str


class _Host(NamedTuple):
    """What a host offers; None: not known, or not counted."""

    vcpus_milli: int
    memory_mib: int | None
    gpus: int | None


def fits(judged: Judged, registry: BackendRegistry, state: KernelState) -> list[Fit]:
    """Each job in each environment of its queue, with the hosts that `state` knows, or those to be expected."""
    found = []
    for row in judged.jobs.values():
        for name in judged.state.queues[row.queue].body.compute_environments:
            body = judged.state.environments[name].body
            if not body.backend:  # a stand-in for one that could not be made
                continue
            hosts, known = _hosts(name, body, registry, state)
            found.append(_fit(row, name, body, hosts, known=known))
    return found


def misfits(all_fits: Sequence[Fit]) -> dict[str, list[Fit]]:
    """The jobs that no environment of their queue can ever run, with why."""
    jobs: dict[str, list[Fit]] = {}
    for fit in all_fits:
        jobs.setdefault(fit.job, []).append(fit)
    return {name: found for name, found in jobs.items() if all(fit.fits is False for fit in found)}


def _hosts(name: str, body: EnvironmentBody, registry: BackendRegistry, state: KernelState) -> tuple[list[_Host], bool]:
    """The hosts of an environment, and whether these are all that there is to know."""
    there = state.environments.get(name)
    if there is not None and there.hosts and there.body == body:
        rows = [state.hosts[serial] for serial in there.hosts.values()]
        return [_Host(row.vcpus_milli, row.memory_mib, len(row.gpus)) for row in rows], True
    settings = EnvironmentSettings(
        name=name,
        managed=body.managed,
        min_vcpus_milli=body.min_vcpus_milli,
        max_vcpus_milli=body.max_vcpus_milli,
        options=body.options,
    )
    expected: Sequence[Capacity] | None = registry.expects(body.backend, settings)
    if expected is None:  # an unmanaged environment has what its hosts have, whatever max_vcpus says
        return [_Host(body.max_vcpus_milli if body.managed else VCPUS_MILLI_MAX, None, None)], False
    return [_Host(one.vcpus_milli, one.memory_mib, len(one.gpus)) for one in expected], True


def _fit(row: JobRow, name: str, body: EnvironmentBody, hosts: list[_Host], *, known: bool) -> Fit:
    shape, children, cap = row.shape, row.children.size, row.spec.max_running
    room = [_room(host, shape) for host in hosts]
    total = min(sum(most for most, _ in room), children)
    capped = cap is not None and cap < total
    if cap is not None and capped:
        total = cap
    enabled = body.state is ResourceState.ENABLED
    if not total:
        limited = tuple(limit for limit in LIMITS if all(limit in by for _, by in room)) or (
            tuple(limit for limit in LIMITS if any(limit in by for _, by in room))
        )
        has = " or ".join(dict.fromkeys(_offers(host, limited) for host in hosts)) or "no host"
        text = f"never: needs {_needs(shape, limited)}; environment {name!r} has {has}"
    else:
        limited = (
            ("max_running",)
            if capped
            else ()
            if total == children
            else tuple(limit for limit in LIMITS if any(limit in by for _, by in room))
        )
        text = "all at once" if total == children > 1 else f"{total} at once" if children > 1 else "fits"
        if limited:
            text += f", limited by {' and '.join(limited)}"
        if not known:
            once = f"is known once its backend {body.backend!r} has started"
            text = (
                f"by its vCPUs {text}; what else its hosts have {once}"
                if body.managed
                else f"what its hosts have {once}"
            )
    if not enabled:
        text += "; waits while the environment is DISABLED"
    is_known = known or not total
    return Fit(
        job=row.name,
        queue=row.queue,
        environment=name,
        fits=bool(total) if is_known else None,
        at_once=total if is_known else None,
        limited_by=limited,
        enabled=enabled,
        text=text,
    )


def _room(host: _Host, shape: Shape) -> tuple[int, tuple[str, ...]]:
    """How many attempts of the shape an empty host takes, and which limits keep it at that."""
    counts = {}
    for limit, there, asked in zip(LIMITS, host, (shape.vcpus_milli, shape.memory_mib, shape.gpus), strict=True):
        if there is not None and asked:
            counts[limit] = there // asked
    most = min(counts.values(), default=ANY_VCPUS_MILLI)
    return most, tuple(limit for limit, count in counts.items() if count == most)


def _needs(shape: Shape, limits: Sequence[str]) -> str:
    return _amounts(shape.vcpus_milli, shape.memory_mib, shape.gpus, limits)


def _offers(host: _Host, limits: Sequence[str]) -> str:
    return _amounts(host.vcpus_milli, host.memory_mib, host.gpus, limits)


def _amounts(vcpus_milli: int, memory_mib: int | None, gpus: int | None, limits: Sequence[str]) -> str:
    vcpus = vcpus_milli / 1000
    texts = {
        "vcpus": f"{vcpus:g} vCPU{'' if vcpus == 1 else 's'}",
        "memory": f"{memory_mib} MiB",
        "gpus": f"{gpus} GPU{'' if gpus == 1 else 's'}",
    }
    return " and ".join(texts[limit] for limit in limits)
