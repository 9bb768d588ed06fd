"""The SSH backend: attempts on machines reached over SSH, run by an agent on each that outlives the connection.

`SshBackend` is what the kernel sees; _ssh_host.py keeps one host's connection, _ssh_files.py moves its files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, final

import anyio
import anyio.to_thread
import msgspec

from ..kernel.backend import (
    API_VERSION,
    AttemptKey,
    BackendContext,
    Capabilities,
    Capacity,
    EnvironmentSettings,
    Expectation,
    ExpectedHost,
    HostStatus,
    Launch,
    log_path,
)
from ..kernel.core.container import CONTAINER_FIELDS, IMAGE_COMMAND
from ..kernel.core.errors import BackendError
from ..kernel.logs import Log
from ._ssh_files import LOG_PIECE, Lost
from ._ssh_host import SshHost
from ._ssh_options import HostOptions, HostSpec, SshOptions, host_specs

START_S: Final = 90.0
"""For the hosts to be reached when the environment starts; those that are not by then are waited for afterwards."""

log = Log("anybatch.backends")


@final
class SshBackend:
    """Runs attempts on the hosts that its options name and those that are registered."""

    api_version: ClassVar[int] = API_VERSION
    capabilities: ClassVar[Capabilities] = Capabilities(reattach=True, remote=True)
    Options: ClassVar[type[msgspec.Struct]] = SshOptions
    HostOptions: ClassVar[type[msgspec.Struct]] = HostOptions

    def __init__(self) -> None:
        self._hosts: dict[str, SshHost] = {}
        self._context: BackendContext | None = None

    @staticmethod
    def expects(settings: EnvironmentSettings) -> Expectation:
        """The hosts that are named; what is not said of one it tells once it is reached.

        Raises:
            BackendError: the environment is managed, or a file that names hosts cannot be read.
        """
        options, specs = _named(settings)
        return Expectation(hosts=[_expected(spec) for spec in specs.values()], container=_honoured(options))

    async def start(self, context: BackendContext, known: Sequence[Launch]) -> None:
        options, specs = _named(context.settings)
        self._context = context
        context.honours(_honoured(options))
        capacities = self._recall(context)
        gone = [self._hosts.pop(name) for name in list(self._hosts) if name not in specs]
        fresh = []
        by_host: dict[str, list[Launch]] = {}
        for launch in known:
            by_host.setdefault(launch.host, []).append(launch)
        for name, spec in specs.items():
            if name in self._hosts:
                if self._hosts[name].adopt(spec, options, context):
                    fresh.append(self._hosts[name])
            else:
                fresh.append(self._add(spec, options, context, capacities.get(name), by_host.get(name, ())))
        for name in by_host.keys() - specs.keys():
            for launch in by_host[name]:
                context.lost(launch.job_id, launch.number, launch.indexes, reason="its host is not named any more")
        with anyio.move_on_after(START_S):
            await asyncio.gather(
                *(host.close(end=True) for host in gone), *(host.tried.wait() for host in fresh), return_exceptions=True
            )
        for host in fresh:
            host.expect_later()

    def _add(
        self,
        spec: HostSpec,
        options: SshOptions,
        context: BackendContext,
        capacity: Capacity | None,
        known: Sequence[Launch],
    ) -> SshHost:
        host = self._hosts[spec.name] = SshHost(spec, options, context, capacity)
        host.on_capacity = self._remember
        host.tell()
        host.start(known)
        return host

    async def launch(self, launches: Sequence[Launch]) -> None:
        by_host: dict[str, list[Launch]] = {}
        for launch in launches:
            by_host.setdefault(launch.host, []).append(launch)
        for name, some in by_host.items():
            host = self._hosts.get(name)
            if host is not None:
                host.launch(some)
                continue
            for launch in some:
                self._started().lost(launch.job_id, launch.number, launch.indexes, reason="its host is not there")

    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        for host in self._hosts.values():
            held = [key for key in attempts if host.holds(key)]
            if held:
                host.stop(held, grace_ms)

    async def logs(self, attempt: AttemptKey, *, follow: bool) -> AsyncIterator[bytes]:
        """What the attempt has written, read from its host; once it has ended a copy is kept here.

        Raises:
            BackendError: the host on which it is or was cannot be reached now; it is `retryable`.
        """
        kept = log_path(self._started().logs_dir, attempt)
        if kept.exists():
            async for piece in _read(kept):
                yield piece
            return
        host = next((host for host in self._hosts.values() if host.holds(attempt)), None)
        hosts = [host] if host is not None else self._where(attempt)
        away = []
        for one in hosts:
            try:
                copy = _Copy(kept)
                try:
                    async for piece in one.files.read_log(attempt, follow=follow):
                        copy.add(piece)
                        yield piece
                    if copy.size and not one.holds(attempt):
                        copy.keep()
                    if copy.size:
                        return
                finally:
                    copy.close()
            except Lost as error:
                away.append(f"{one.name}: {error}")
        if away:
            raise BackendError(
                f"the log may be on a host that cannot be reached now ({'; '.join(away)})", retryable=True
            )

    def _where(self, attempt: AttemptKey) -> list[SshHost]:
        """The hosts that may have an ended attempt's log: the one that it was on, or any."""
        name = self._started().host_of(attempt)
        return [self._hosts[name]] if name in self._hosts else list(self._hosts.values())

    async def forget(self, job_ids: Sequence[str]) -> None:
        """Remove what the hosts have of these jobs; of a host that is away when it is back."""
        for host in self._hosts.values():
            try:
                await host.files.forget(job_ids)
            except Lost as error:
                log.warning("jobs_not_forgotten", host=host.name, jobs=len(job_ids), error=str(error))

    def host_status(self) -> Mapping[str, HostStatus]:
        return {name: host.status() for name, host in self._hosts.items()}

    async def close(self) -> None:
        """Let go. Attempts go on if a later kernel comes back to them, else they are ended."""
        context, self._context = self._context, None
        hosts, self._hosts = list(self._hosts.values()), {}
        if context is not None:
            done = await asyncio.gather(
                *(host.close(end=not context.durable) for host in hosts), return_exceptions=True
            )
            failed = [f"{host.name}: {error}" for host, error in zip(hosts, done, strict=True) if error is not None]
            if failed:
                raise BackendError("; ".join(failed))

    def _started(self) -> BackendContext:
        if self._context is None:
            raise BackendError("the SSH backend is not started")
        return self._context

    # -- capacities, for hosts that are away when a kernel opens -------------------------------------------

    def _recall(self, context: BackendContext) -> dict[str, Capacity]:
        try:
            return msgspec.json.decode((context.state_dir / "hosts.json").read_bytes(), type=dict[str, Capacity])
        except (OSError, msgspec.MsgspecError):
            return {}

    def _remember(self) -> None:
        context = self._context
        if context is None:
            return
        known = {host.name: host.capacity for host in self._hosts.values() if host.capacity is not None}
        data, path = msgspec.json.encode(known), context.state_dir / "hosts.json"
        with contextlib.suppress(OSError):  # a full disk: then the next kernel asks the hosts
            if not path.exists() or path.read_bytes() != data:
                path.with_suffix(".new").write_bytes(data)
                path.with_suffix(".new").replace(path)


def _named(settings: EnvironmentSettings) -> tuple[SshOptions, dict[str, HostSpec]]:
    if settings.managed:
        raise BackendError("managed: SSH hosts are nobody's to start or end: create the environment with managed=False")
    options = msgspec.convert(settings.options, SshOptions)
    return options, host_specs(options, settings.hosts)


def _honoured(options: SshOptions) -> frozenset[str]:
    return CONTAINER_FIELDS - {IMAGE_COMMAND} if options.ignore_image else frozenset()


def _expected(spec: HostSpec) -> ExpectedHost:
    said = {"vcpus": spec.vcpus_milli, "memory": spec.memory_mib, "gpus": spec.gpus}
    capacity = Capacity(vcpus_milli=spec.vcpus_milli or 0, memory_mib=spec.memory_mib, gpus=spec.gpus or ())
    probed = frozenset(limit for limit, value in said.items() if value is None)
    return ExpectedHost(name=spec.name, capacity=capacity, probed=probed)


class _Copy:
    """A log on its way, written to this machine's place for it once it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fresh = path.with_name(f".{path.name}.{os.getpid()}.{id(self)}")
        self._fd = -1
        self.size = 0

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        with contextlib.suppress(OSError):  # without a copy it is read from its host again
            if self._fd < 0:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._fd = os.open(self._fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.write(self._fd, piece)

    def keep(self) -> None:
        with contextlib.suppress(OSError):
            if self._fd >= 0 and os.fstat(self._fd).st_size == self.size:
                self._fresh.replace(self._path)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fresh.unlink(missing_ok=True)


async def _read(path: Path) -> AsyncIterator[bytes]:
    fd = os.open(path, os.O_RDONLY)
    try:
        while piece := await anyio.to_thread.run_sync(os.read, fd, LOG_PIECE):
            yield piece
    finally:
        os.close(fd)
