"""Where jobs of a configuration could run, how many attempts at once, and which limit binds, before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec import Struct, structs

from . import bodies
from .backend import Expectation
from .config_check import Judged
from .config_model import Checker
from .core.checks import VCPUS_MILLI_MAX
from .core.errors import BackendError
from .core.explain import is_unmeasured
from .core.model import EnvironmentBody, ResourceState, Shape
from .core.state import JobRow, KernelState
from .registry import BackendRegistry

LIMITS: Final = ("vcpus", "memory", "gpus")
"""What an attempt needs of a host, under the names of a job's keys."""


ANY: Final = 1 << 50
"""More than any attempt asks for."""
NAMED_MAX: Final = 3
"""Hosts that are named in one line."""
EVERY: Final = frozenset(LIMITS)
NONE: Final = frozenset[str]()


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
    """What a host offers; `unknown`: the limits that only the host can tell. Memory None: not known, or not counted."""

    name: str
    vcpus_milli: int
    memory_mib: int | None
    gpus: int
    unknown: frozenset[str] = frozenset()


def fits(judged: Judged, registry: BackendRegistry, state: KernelState) -> list[Fit]:
    """Each job in each environment of its queue, with the hosts that `state` knows, or those to be expected."""
    found = []
    for row in judged.jobs.values():
        for name in judged.state.queues[row.queue].body.compute_environments:
            body = judged.state.environments[name].body
            if not body.backend:  # a stand-in for one that could not be made
                continue
            hosts = _hosts(name, body, registry, state)
            found.append(_unknown(row, name, body) if hosts is None else _fit(row, name, body, hosts))
    return found


def check_options(judged: Judged, registry: BackendRegistry, state: KernelState, checker: Checker) -> None:
    """Note each environment whose options, right in form, are of no use: a file that they name is not there."""
    for change in judged.changes:
        section, _, name = change.path.partition(".")
        if section == "environments":
            try:
                _expected(name, judged.state.environments[name].body, registry, state)
            except BackendError as e:
                key = str(e).partition(": ")[0]
                place = ("environments", name) if key == "managed" else ("environments", name, "options")
                checker.add((*place, key) if key.isidentifier() else place, str(e).removeprefix(f"{key}: "))


def misfits(all_fits: Sequence[Fit]) -> dict[str, list[Fit]]:
    """The jobs that no environment of their queue can ever run, with why."""
    jobs: dict[str, list[Fit]] = {}
    for fit in all_fits:
        jobs.setdefault(fit.job, []).append(fit)
    return {name: found for name, found in jobs.items() if all(fit.fits is False for fit in found)}


def _expected(name: str, body: EnvironmentBody, registry: BackendRegistry, state: KernelState) -> Expectation | None:
    there = state.environments.get(name)
    return registry.expects(body.backend, bodies.settings(name, body, None if there is None else there.registered))


def _hosts(name: str, body: EnvironmentBody, registry: BackendRegistry, state: KernelState) -> list[_Host] | None:
    """The hosts of an environment; None: nothing is known of them."""
    there = state.environments.get(name)
    if there is not None and there.hosts and there.body == body:
        rows = [state.hosts[serial] for serial in there.hosts.values()]
        return [
            _Host(row.name, row.vcpus_milli, row.memory_mib, len(row.gpus), EVERY if is_unmeasured(row) else NONE)
            for row in rows
        ]
    try:
        expected = _expected(name, body, registry, state)
    except BackendError:
        return None  # `check_options` has told that
    if expected is None:
        return None
    return [
        _Host(one.name, one.capacity.vcpus_milli, one.capacity.memory_mib, len(one.capacity.gpus), one.probed)
        for one in expected.hosts
    ]


def _unknown(row: JobRow, name: str, body: EnvironmentBody) -> Fit:
    """For hosts of which only the backend knows, once it has started; managed ones have `max_vcpus` at most."""
    most = _Host("", body.max_vcpus_milli if body.managed else VCPUS_MILLI_MAX, None, 0, frozenset({"memory", "gpus"}))
    fit = _fit(row, name, body, [most])
    if fit.fits is False:
        return fit
    text = f"what its hosts have is known once its backend {body.backend!r} has started"
    if body.managed:
        count = min(_room(most, row.shape)[0], row.children.size)
        text = f"by its vCPUs {_count(count, row.children.size)}; {text.replace('what', 'what else')}"
    return structs.replace(fit, fits=None, at_once=None, text=_when(text, body))


def _fit(row: JobRow, name: str, body: EnvironmentBody, hosts: list[_Host]) -> Fit:
    shape, children, cap = row.shape, row.children.size, row.spec.max_running
    wanted = {limit for limit, asked in zip(LIMITS, _asked(shape), strict=True) if asked}
    room = [_room(host, shape) for host in hosts]
    total, sure = min(sum(most for most, _ in room), children), 0
    for host, (most, _) in zip(hosts, room, strict=True):
        sure += 0 if host.unknown & wanted else most
    limited: tuple[str, ...] = ()
    if not hosts:
        text = f"it has no host: `anybatch hosts register {name} HOST`, or name some in its options"
    elif not total:
        limited = tuple(limit for limit in LIMITS if all(limit in by for _, by in room)) or (
            tuple(limit for limit in LIMITS if any(limit in by for _, by in room))
        )
        has = " or ".join(dict.fromkeys(_offers(host, limited) for host in hosts))
        text = f"never: needs {_needs(shape, limited)}; environment {name!r} has {has}"
    elif sure < total and (cap is None or sure < cap):
        text = _to_be_told(hosts, [most for most, _ in room], wanted, min(sure, children))
        fits = True if sure else None
        return Fit(
            job=row.name, queue=row.queue, environment=name, fits=fits, at_once=None, limited_by=(),
            enabled=body.state is ResourceState.ENABLED, text=_when(text, body),
        )  # fmt: skip
    else:
        if cap is not None and cap < total:
            total, limited = cap, ("max_running",)
        elif total < children:
            limited = tuple(limit for limit in LIMITS if any(limit in by for _, by in room))
        text = _count(total, children) + (f", limited by {' and '.join(limited)}" if limited else "")
    return Fit(
        job=row.name,
        queue=row.queue,
        environment=name,
        fits=bool(total) if hosts else None,
        at_once=total if hosts else None,
        limited_by=limited,
        enabled=body.state is ResourceState.ENABLED,
        text=_when(text, body),
    )


def _count(total: int, children: int) -> str:
    return "all at once" if total == children > 1 else f"{total} at once" if children > 1 else "fits"


def _when(text: str, body: EnvironmentBody) -> str:
    enabled = body.state is ResourceState.ENABLED
    return text if enabled else f"{text}; waits while the environment is DISABLED"


def _to_be_told(hosts: Sequence[_Host], room: Sequence[int], wanted: set[str], sure: int) -> str:
    """Which hosts have yet to tell what of theirs, those left out that are too small by what is said of them."""
    asked = [host for host, most in zip(hosts, room, strict=True) if most and host.unknown & wanted]
    limits = [limit for limit in LIMITS if any(limit in host.unknown & wanted for host in asked)]
    names = ", ".join(host.name for host in asked[:NAMED_MAX])
    more = f" and {len(asked) - NAMED_MAX} more" if len(asked) > NAMED_MAX else ""
    begin = f"{sure} at once and more" if sure else "it depends"
    words = " and ".join("vCPUs" if limit == "vcpus" else "GPUs" if limit == "gpus" else limit for limit in limits)
    verb = "is" if words == "memory" and len(asked) == 1 else "are"
    return f"{begin}: the {words} of {names}{more} {verb} known once the environment has started"


def _room(host: _Host, shape: Shape) -> tuple[int, tuple[str, ...]]:
    """How many attempts of the shape an empty host takes, and which limits keep it at that."""
    counts = {}
    offered = (host.vcpus_milli, host.memory_mib, host.gpus)
    for limit, there, asked in zip(LIMITS, offered, _asked(shape), strict=True):
        if there is not None and asked and limit not in host.unknown:
            counts[limit] = there // asked
    most = min(counts.values(), default=ANY)
    return most, tuple(limit for limit, count in counts.items() if count == most)


def _asked(shape: Shape) -> tuple[int, int, int]:
    return shape.vcpus_milli, shape.memory_mib, shape.gpus


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
