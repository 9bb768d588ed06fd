"""The Kernel's methods on the hosts of unmanaged environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import arguments as args
from .calls import Calls
from .core.errors import Conflict
from .core.inputs import DeregisterHost, DrainHost, RegisterHost
from .core.resources import get_environment
from .core.state import HostRow
from .views import HostDetail, host_detail


class HostCalls(Calls):
    """The methods on hosts. What they do is kept in the journal, and holds for later kernels too."""

    async def register_host(
        self, environment: str, host: str, *, settings: Mapping[str, Any] | None = None
    ) -> HostDetail:
        """Add a host to an unmanaged environment while it works; return once its backend has tried to reach it.

        `settings` are what the backend wants to know of a host (for SSH: address, user, zone ...: docs/ssh.md). A host
        that is registered already gets the new settings, and one that was drained takes attempts again. What runs
        goes on.

        Raises:
            InvalidValue: also for settings that the backend does not take.
            Conflict: the environment is managed, or its backend takes no hosts.
        """
        name = args.text("environment", environment)
        row = get_environment(self._open.state, name)
        options = self._registry.host_options(row.body.backend)
        if options is None:
            raise Conflict("compute environment", name, f"its backend {row.body.backend!r} takes no hosts")
        checked = args.options("settings", settings, options, f"backend {row.body.backend!r}")
        await self._open.request(RegisterHost(environment=name, host=args.text("host", host), settings=checked))
        await self._drivers.settle(name)
        return self._host(name, host)

    async def drain_host(
        self, environment: str, host: str, *, reason: str = "drained by request", undo: bool = False
    ) -> HostDetail:
        """Place nothing more on a host, of any environment; what runs there goes on. With `undo`, place again.

        A drain is kept by the host's name: it holds for a host that goes and comes back, too.
        """
        name = args.text("environment", environment)
        given = None if args.flag("undo", undo) else args.text("reason", reason) or "drained by request"
        await self._open.request(DrainHost(environment=name, host=args.text("host", host), reason=given))
        return self._host(name, host)

    async def deregister_host(self, environment: str, host: str, *, force: bool = False) -> None:
        """Take a registered host away. With `force` also one that runs attempts: they are lost with it, and ended.

        Raises:
            Conflict: attempts run on it, or it was not registered but stands in the environment's options.
        """
        name = args.text("environment", environment)
        request = DeregisterHost(environment=name, host=args.text("host", host), force=args.flag("force", force))
        await self._open.request(request)
        await self._drivers.settle(name)

    def _host(self, environment: str, host: str) -> HostDetail:
        """The host as it is now; one that its backend has said nothing of is there with nothing to offer."""
        state = self._open.state
        row = get_environment(state, environment)
        if host in row.hosts:
            known = self._drivers.host_status(environment).get(host)
            return host_detail(state, state.hosts[row.hosts[host]], known)
        unknown = HostRow(0, environment, host)
        unknown.paused = f"environment {environment!r} is {row.status}: {row.status_reason}"
        return host_detail(state, unknown)
