"""AwsFrontEnd: the AWS Batch HTTP API on a kernel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from aiohttp import web
from anybatch import Conflict, InvalidValue, Kernel
from anybatch.kernel.roles import supply_roles

from .addresses import is_loopback, url_of
from .api import Api
from .authenticate import LOCAL_NAMES
from .certificate import Certificate
from .identity import Credentials, Identity
from .listener import Listener
from .reload import keep_fresh
from .roles import JobRoles, check_jobs_host, check_roles, urls_of
from .server import Server
from .settings import DEFAULT_REGION, AwsSettings, check_settings
from .time_limits import TimeLimits

DEFAULT_BIND: Final = "127.0.0.1:8642"
STOP_S_MAX: Final = 10.0
"""How long calls that are being answered may go on when the front end closes."""


def parse_bind(bind: str) -> tuple[str, int]:
    """`host:port`, or `[address]:port` for IPv6; port 0 is any free one."""
    host, colon, port = bind.rpartition(":")
    if not colon or not port.isdecimal() or not port.isascii() or not 0 <= int(port) <= 65535 or not host:
        raise InvalidValue("bind", bind, "it is host:port, such as 127.0.0.1:8642")
    return host.removeprefix("[").removesuffix("]"), int(port)


class AwsFrontEnd:
    """Serves a kernel to clients of AWS Batch while the `async with` lasts.

        async with anybatch.Kernel("batch.db") as kernel, AwsFrontEnd(kernel) as front_end:
            print(front_end.url)

    `credentials` names the file of principals, keys and policies, which is made with one administrator at the first
    start (mode 0600); without it there is one administrator whose key is made anew each time. `no_auth` lets every
    caller do everything, and is refused unless `bind` is a loopback address. `hosts` adds to the names by which clients
    may call this server (those of loopback, and the one that it is bound to). Calls that are being answered when it
    closes are finished, for up to 10 s. `tls` is a `Certificate`, which is read again when its files change, or a
    context of your own. `bind_jobs` is a second address, in plain HTTP, by which attempts that have a role reach the
    server: a loopback one, or 169.254.170.2 (docs/aws.md, Job roles).

    Raises:
        InvalidValue: a setting or the file of credentials is not as it should be.
        OSError: (at entry) the address cannot be bound.
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        bind: str = DEFAULT_BIND,
        settings: AwsSettings | None = None,
        credentials: str | os.PathLike[str] | None = None,
        no_auth: bool = False,
        hosts: Sequence[str] = (),
        tls: ssl.SSLContext | Certificate | None = None,
        bind_jobs: str | None = None,
    ) -> None:
        self._kernel = kernel
        self._host, self._port = parse_bind(bind)
        self.settings = check_settings(settings or AwsSettings())
        if no_auth and not is_loopback(self._host):
            raise InvalidValue("bind", bind, "without authentication it binds to a loopback address only")
        if no_auth and credentials is not None:
            raise InvalidValue("no_auth", True, "either credentials or no_auth")
        self.identity: Identity | None = None
        if not no_auth:
            self.identity = Identity.new() if credentials is None else Identity.open(credentials)
        check_roles(self.settings.roles, self.identity)
        self._given_hosts = tuple(hosts)
        self._jobs = None if bind_jobs is None else parse_bind(bind_jobs)
        if bind_jobs is not None and self._jobs is not None:
            check_jobs_host(bind_jobs, self._jobs[0])
            if no_auth and not is_loopback(self._jobs[0]):
                raise InvalidValue("bind_jobs", bind_jobs, "without authentication it is a loopback address")
        bound = [self._host] if self._jobs is None else [self._host, self._jobs[0]]
        own = [f"[{host}]" if ":" in host else host for host in bound]
        self._hosts = frozenset(name.lower() for name in (*LOCAL_NAMES, *own, *hosts))
        self._tls = tls
        self._runner: web.ServerRunner | None = None
        self._stack = contextlib.ExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        roles = JobRoles(self._kernel, self.settings, self.identity)
        api = Api(self._kernel, self.settings)
        server = Server(api, self.identity, self._hosts, roles, has_tls=self._tls is not None)
        runner = web.ServerRunner(Listener(server.handle), shutdown_timeout=STOP_S_MAX)
        await runner.setup()
        try:
            context = self._tls.context if isinstance(self._tls, Certificate) else self._tls
            await web.TCPSite(runner, self._host, self._port, ssl_context=context).start()
            self._port = runner.addresses[0][1]
            if self._jobs is not None:
                await web.TCPSite(runner, *self._jobs).start()
                self._jobs = self._jobs[0], runner.addresses[-1][1]
            roles.urls = urls_of(
                (self._host, self._port), self._jobs, secure=self._tls is not None, hosts=self._given_hosts
            )
            self._supply(roles)
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self._tasks.append(asyncio.create_task(TimeLimits(self._kernel, api.blocked).run(), name="anybatch-aws-limits"))
        if self.identity is not None and self.identity.path is not None:
            self._tasks.append(asyncio.create_task(keep_fresh("credentials", self.identity), name="anybatch-aws-keys"))
        if isinstance(self._tls, Certificate):
            self._tasks.append(asyncio.create_task(keep_fresh("certificate", self._tls), name="anybatch-aws-tls"))
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        runner, self._runner = self._runner, None
        if runner is not None:
            await asyncio.shield(runner.cleanup())

    def _supply(self, roles: JobRoles) -> None:
        try:
            self._stack.enter_context(supply_roles(self._kernel, roles.supply))
        except Conflict:
            if self.settings.roles:  # without any it is all the same who says that they have no effect
                raise

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def url(self) -> str:
        """What clients take as their endpoint."""
        return url_of(self._host, self._port, "http" if self._tls is None else "https")

    def export_lines(self) -> list[str]:
        """What to paste into a shell, so that clients there call this server."""
        region = self.settings.region or DEFAULT_REGION
        first = self.identity.first if self.identity is not None else Credentials("no-auth", "no-auth")
        found = {
            "AWS_ENDPOINT_URL_BATCH": self.url,
            "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": self.url,
            "AWS_ENDPOINT_URL_ECS": self.url,
            "AWS_ENDPOINT_URL_STS": self.url,
            "AWS_ACCESS_KEY_ID": first.key,
            "AWS_SECRET_ACCESS_KEY": first.secret,
            "AWS_DEFAULT_REGION": region,
            "AWS_REGION": region,
        }
        return [f"export {name}={value}" for name, value in found.items()]
