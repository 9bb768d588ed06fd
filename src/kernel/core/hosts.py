"""Hosts that somebody registers, drains or takes away, and hosts that a backend keeps from taking attempts for now.

A drain is kept by the host's name, also while there is no such host; what a backend says of a host is kept with the
host. A host that is closed for either reason stands in no order of free hosts, so no planner sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from .errors import Conflict, InvalidValue, NotFound
from .events import AnyEvent, HostDeregistered, HostDrained, HostHeld, HostRegistered
from .inputs import DeregisterHost, DrainHost, HostPaused, RegisterHost
from .reports import remove_host
from .resources import get_environment
from .state import EnvironmentRow, HostRow, KernelState

HOST_CHARS_MAX: Final = 253
"""Of a host's name: what a domain name may have."""
REGISTERED_MAX: Final = 10_000
"""Hosts that one environment may have registered."""
TEXT_CHARS_MAX: Final = 1000


def decide_register_host(state: KernelState, request: RegisterHost) -> list[AnyEvent]:
    """A host joins an unmanaged environment, or is told of anew; a drain of it ends."""
    environment = get_environment(state, request.environment)
    name = request.host
    if not 1 <= len(name) <= HOST_CHARS_MAX or not name.isprintable() or name != name.strip():
        raise InvalidValue("host", name, f"a host's name has 1 to {HOST_CHARS_MAX} printable characters")
    if environment.body.managed:
        why = "it is managed: its backend brings the hosts. Hosts are registered with an unmanaged one (managed=False)"
        raise Conflict("compute environment", environment.name, why, field="managed")
    known = environment.registered.get(name)
    if known is None and len(environment.registered) >= REGISTERED_MAX:
        raise Conflict("compute environment", environment.name, f"it has {REGISTERED_MAX} registered hosts, the most")
    if known == request.settings and name not in environment.drained:
        return []
    return [HostRegistered(environment.name, name, request.settings, request.principal, request.request_id)]


def decide_drain_host(state: KernelState, request: DrainHost) -> list[AnyEvent]:
    """A host takes no more attempts, and those that it has go on; or (`reason` None) it takes some again."""
    environment = get_environment(state, request.environment)
    if request.host not in environment.hosts and request.host not in environment.registered:
        _missing(environment, request.host)
    if environment.drained.get(request.host) == request.reason:
        return []
    return [HostDrained(environment.name, request.host, request.reason, request.principal, request.request_id)]


def decide_deregister_host(state: KernelState, request: DeregisterHost) -> Iterator[AnyEvent]:
    """A registered host is taken away; with `force` also one that runs attempts, which are lost with it."""
    environment = get_environment(state, request.environment)
    if request.host not in environment.registered:
        if request.host in environment.hosts:
            why = "it was not registered, but stands in the environment's options: take it out there, or drain it"
            raise Conflict("host", request.host, why)
        _missing(environment, request.host)
    serial = environment.hosts.get(request.host)
    host = state.hosts[serial] if serial is not None else None
    busy = sum(host.load.values()) if host is not None else 0
    if busy and not request.force:
        why = f"{busy} attempts run on it: drain it and wait, or deregister it with force, which loses them"
        raise Conflict("host", request.host, why)
    return _deregister(state, environment, host, request)


def _deregister(
    state: KernelState, environment: EnvironmentRow, host: HostRow | None, request: DeregisterHost
) -> Iterator[AnyEvent]:
    if host is not None:
        yield from remove_host(state, host, "the host was deregistered")
    yield HostDeregistered(environment.name, request.host, request.principal, request.request_id)


def _missing(environment: EnvironmentRow, name: str) -> None:
    known = sorted({*environment.hosts, *environment.registered})
    hint = f"the hosts of environment {environment.name!r} are {', '.join(known[:10])}" if known else "it has no host"
    raise NotFound("host", name, hint)


def decide_host_paused(state: KernelState, report: HostPaused) -> list[AnyEvent]:
    """A backend says that a host takes nothing for now, and why; or (`reason` None) that it does again."""
    environment = state.environments.get(report.environment)
    serial = environment.hosts.get(report.host) if environment is not None else None
    reason = report.reason[:TEXT_CHARS_MAX] if report.reason is not None else None
    if serial is None or state.hosts[serial].paused == reason:
        return []
    return [HostHeld(serial, reason)]


# -- applying -----------------------------------------------------------------------------------------


def apply_host_event(state: KernelState, event: HostRegistered | HostDrained | HostDeregistered | HostHeld) -> None:
    """What `evolve` does with these events."""
    match event:
        case HostHeld(serial=serial, reason=reason):
            state.hosts[serial].paused = reason
            close_or_open(state, state.hosts[serial])
            return
        case HostRegistered():
            state.environments[event.environment].registered[event.host] = event.settings
            state.environments[event.environment].drained.pop(event.host, None)
        case HostDrained(reason=None):
            state.environments[event.environment].drained.pop(event.host, None)
        case HostDrained(reason=str(reason)):
            state.environments[event.environment].drained[event.host] = reason
        case HostDeregistered():
            state.environments[event.environment].registered.pop(event.host, None)
            state.environments[event.environment].drained.pop(event.host, None)
    serial = state.environments[event.environment].hosts.get(event.host, 0)
    if serial in state.hosts:
        close_or_open(state, state.hosts[serial])


def close_or_open(state: KernelState, host: HostRow) -> None:
    """Work out whether a host takes attempts, and give it its place among those that do."""
    host.closed = host.paused is not None or host.name in state.environments[host.environment].drained
    state.rank_host(host)


def why_closed(environment: EnvironmentRow, host: HostRow) -> str:
    """Why a host takes no attempts, in words."""
    if host.name in environment.drained:
        return f"host {host.name!r} is drained: {environment.drained[host.name]}"
    return f"host {host.name!r} takes none for now: {host.paused}"
