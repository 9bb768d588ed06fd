"""The Docker backend: attempts as containers of one or several Docker Engines (docs/docker.md)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Final, final

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
from ..kernel.core.container import CONTAINER_FIELDS, IMAGE_REQUIRED
from ..kernel.core.errors import BackendError
from ._docker_attempt import Attempt, Marks, Step
from ._docker_engine import Engine, EngineError, EngineGone, Place
from ._docker_host import EngineHost
from ._docker_images import Images, PullPolicy
from ._docker_logs import read_from
from ._docker_spec import Defaults
from ._docker_starts import Resolver

MEMORY_SHARE: Final = 0.9  # of the engine's memory; the rest is for the system
FOLLOW_POLL_S: Final = 0.05
SOCKETS: Final = ("/var/run/docker.sock", "/run/docker.sock")
DEFAULT_NAME: Final = "docker"
MIB: Final = 1 << 20


class EngineOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One engine: a host of the environment.

    `url`: `unix:///path/to/socket` or `tcp://host:port`; with `tls`, a folder with ca.pem, cert.pem and key.pem, it is
    TLS. `name`: the host's (default: the url). `vcpus` and `memory` (MiB) to give out (default: its CPUs, and 90 % of
    its memory), `gpus`: device indexes. `zone` is free text.
    """

    url: str
    tls: str | None = None
    name: str | None = None
    zone: str | None = None
    vcpus: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] | None = None
    memory: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)] | None = None
    gpus: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = ()


class DockerOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Options of a compute environment with this backend (docs/docker.md says more of them).

    `engines`: none: the one that DOCKER_HOST names, else the local socket. `image`: for jobs that name none; without it
    jobs that name none do not run here. `pull`: "missing", "always" (once for each job) or "never". `network`: of all
    containers (None: the engine's default). `secrets`: a folder with one file for each `value_from`. `refuse`:
    container fields that jobs may not use here. `init`: whether containers have an init process where the job does
    not say. `cpu_limit`: vCPUs are a cap, not only a share. `starts_at_once`: containers that are created and started
    at the same time. `log_bytes_max`: of one attempt's log, of which the middle is left out beyond that (0: no limit).
    `lost_after`: seconds that an engine may be out of reach before what ran there counts as lost.
    """

    engines: tuple[str | EngineOptions, ...] = ()
    image: str | None = None
    pull: PullPolicy = "missing"
    network: str | None = None
    secrets: str | None = None
    refuse: tuple[str, ...] = ()
    memory: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)] | None = None
    gpus: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = ()
    zone: str | None = None
    init: bool = False
    cpu_limit: bool = False
    starts_at_once: Annotated[int, msgspec.Meta(ge=1, le=64)] = 6
    log_bytes_max: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] = 64 << 20
    lost_after: Annotated[float, msgspec.Meta(gt=0, le=86_400_000)] = 600.0


@final
class DockerBackend:
    """Runs attempts as containers. What runs outlives the kernel's process, and is found again.

    `secrets`: gives the value for a secret's `value_from` (default: the file of that name in the option's folder).
    """

    api_version: ClassVar[int] = API_VERSION
    capabilities: ClassVar[Capabilities] = Capabilities(reattach=True, remote=True, container=CONTAINER_FIELDS)
    Options: ClassVar[type[msgspec.Struct]] = DockerOptions

    def __init__(self, *, secrets: Resolver | None = None) -> None:
        self._resolver = secrets
        self._context: BackendContext | None = None
        self._hosts: dict[str, EngineHost] = {}
        self._marks: Marks | None = None

    # -- the protocol -----------------------------------------------------------------------------

    @staticmethod
    def expects(settings: EnvironmentSettings) -> Expectation:
        """The engines that the options name; what they do not say an engine tells once it is reached.

        Raises:
            BackendError: an option cannot be used.
        """
        options = msgspec.convert(settings.options, DockerOptions)
        hosts = []
        for name, about in _engines(options).items():
            probed = set()
            if about.vcpus is None and len(options.engines) > 1:
                probed.add("vcpus")
            if about.memory is None and options.memory is None:
                probed.add("memory")
            capacity = _capacity(about, options, settings, {})
            hosts.append(ExpectedHost(name=name, capacity=capacity, probed=frozenset(probed)))
        return Expectation(hosts=hosts, container=_honoured(options, secrets=options.secrets is not None))

    async def start(self, context: BackendContext, known: Sequence[Launch]) -> None:
        """Reach the engines, and settle what they hold.

        Raises:
            BackendError: an option cannot be used; or no engine can be reached and nothing is known to run there.
        """
        options = msgspec.convert(context.settings.options, DockerOptions)
        engines = _engines(options)
        self._context = context
        context.honours(_honoured(options, secrets=options.secrets is not None or self._resolver is not None))
        if self._marks is None:
            self._marks = Marks(context.state_dir / "started")
            await anyio.to_thread.run_sync(self._marks.load)
        for name in [name for name in self._hosts if name not in engines]:
            host = self._hosts.pop(name)
            host.use(context)
            context.host_down(name, "it is no longer among the environment's engines")
            await host.close(end_all=True)
        fresh = []
        for name, about in engines.items():
            if name in self._hosts:
                self._hosts[name].use(context)
            else:
                self._hosts[name] = self._make(name, about, context, self._marks)
                fresh.append(name)
            self._configure(self._hosts[name], options)
            self._hosts[name].zone = about.zone or options.zone
        homeless = [launch for launch in known if launch.host not in engines]
        found = await asyncio.gather(*(
            self._open(name, about, options, [one for one in known if one.host == name], homeless, fresh=name in fresh)
            for name, about in engines.items()
        ))  # fmt: skip
        errors = [one for one in found if isinstance(one, str)]
        self._lose(context, homeless, {key for one in found if not isinstance(one, str) for key in one})
        if len(errors) == len(engines) and not known:
            raise BackendError(f"no Docker Engine can be reached: {'; '.join(errors)}")
        for name in fresh:
            self._hosts[name].begin_watching()

    async def launch(self, launches: Sequence[Launch]) -> None:
        for launch in launches:
            host = self._hosts.get(launch.host)
            if host is None:
                raise BackendError(f"there is no engine {launch.host!r}", retryable=True)
            host.put(launch)

    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        for key in attempts:
            for host in self._hosts.values():
                host.stop(key, grace_ms)

    async def logs(self, attempt: AttemptKey, *, follow: bool) -> AsyncIterator[bytes]:
        """What the attempt has written so far; with `follow`, until it has ended.

        From its engine while it runs, later from its file.
        """
        context, at = self._started(), 0
        while (found := self._find(attempt)) is not None:
            host, one = found
            if one.container and one.step in (Step.RUNNING, Step.ENDING):
                try:
                    passed = 0
                    async for piece in host.engine.logs(one.container, follow=follow):
                        if passed + len(piece) > at:
                            yield piece[max(at - passed, 0) :]
                            at = passed + len(piece)
                        passed += len(piece)
                    if not follow:
                        return
                except (EngineGone, EngineError) as e:
                    if not follow and self._find(attempt) is not None:
                        raise BackendError(f"the log cannot be read now: {e}", retryable=True) from e
            elif not follow:
                return
            await anyio.sleep(FOLLOW_POLL_S)
        path = log_path(context.logs_dir, attempt)
        while piece := await anyio.to_thread.run_sync(read_from, path, at):
            at += len(piece)
            yield piece

    def host_status(self) -> Mapping[str, HostStatus]:
        """When each engine was last heard of."""
        return {n: HostStatus(last_contact_ms=host.watch.contact_ms or None) for n, host in self._hosts.items()}

    async def close(self) -> None:
        """Let go. Containers go on if a later kernel comes back to them, else they are ended."""
        hosts, self._hosts = self._hosts, {}
        end_all = self._context is not None and not self._context.durable
        await asyncio.gather(*(host.close(end_all=end_all) for host in hosts.values()))
        if self._marks is not None:
            self._marks.close()
            self._marks = None

    # -- engines ----------------------------------------------------------------------------------

    def _make(self, name: str, about: EngineOptions, context: BackendContext, marks: Marks) -> EngineHost:
        engine = Engine(Place(url=about.url, tls=about.tls))
        return EngineHost(name, engine, context, marks=marks, images=Images(engine))

    def _configure(self, host: EngineHost, options: DockerOptions) -> None:
        resolver = self._resolver
        if resolver is None and options.secrets is not None:
            resolver = _FolderOfSecrets(Path(options.secrets)).get
        defaults = Defaults(
            image=options.image, network=options.network, init=options.init, cpu_limit=options.cpu_limit
        )
        host.images.policy = options.pull
        host.configure(
            defaults=defaults,
            secrets=resolver,
            at_once=options.starts_at_once,
            log_bytes_max=options.log_bytes_max,
            lost_after_ms=round(options.lost_after * 1000),
        )

    async def _open(
        self,
        name: str,
        about: EngineOptions,
        options: DockerOptions,
        known: Sequence[Launch],
        homeless: Sequence[Launch],
        *,
        fresh: bool,
    ) -> set[AttemptKey] | str:
        """Reach one engine and settle what it holds: those of the homeless that are there, or what was wrong."""
        host, context = self._hosts[name], self._started()
        try:
            info = await host.watch.connect()
            host.tell(_capacity(about, options, context.settings, info))
            if fresh:
                return await host.settle(known, homeless)
            host.tell_all()
        except (EngineGone, EngineError) as e:
            host.expect(known, lambda info: _capacity(about, options, context.settings, info), str(e))
            return f"{about.url}: {e}"
        return set()

    def _lose(self, context: BackendContext, homeless: Sequence[Launch], housed: set[AttemptKey]) -> None:
        """What was on a host that there is no longer, and is on none that there is."""
        for launch in homeless:
            here = housed | {key for host in self._hosts.values() for key in (*host.attempts, *host.over)}
            gone = [key.index for key in launch.attempts() if key not in here]
            reason = f"its host {launch.host!r} is not among the environment's engines"
            if gone:
                context.lost(launch.job_id, launch.number, gone, reason=reason)

    def _find(self, key: AttemptKey) -> tuple[EngineHost, Attempt] | None:
        for host in self._hosts.values():
            if key in host.attempts:
                return host, host.attempts[key]
        return None

    def _started(self) -> BackendContext:
        if self._context is None:
            raise BackendError("the docker backend is not started")
        return self._context


class _FolderOfSecrets:
    """Secrets as files: `value_from` is a path below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def get(self, value_from: str) -> str:
        if ".." in value_from.split("/") or value_from.startswith("/"):
            raise LookupError(f"{value_from!r} is no path below {self._folder}")
        path = self._folder / value_from
        return (await anyio.to_thread.run_sync(path.read_text)).removesuffix("\n")


def _engines(options: DockerOptions) -> dict[str, EngineOptions]:
    """The engines by their hosts' names."""
    given = [EngineOptions(url=one) if isinstance(one, str) else one for one in options.engines]
    if not given:
        url = os.environ.get("DOCKER_HOST") or f"unix://{next((s for s in SOCKETS if Path(s).exists()), SOCKETS[0])}"
        given = [EngineOptions(url=url, name=DEFAULT_NAME)]
    found: dict[str, EngineOptions] = {}
    for one in given:
        if not one.url.startswith(("unix:///", "tcp://")):
            raise BackendError(f"engines: {one.url!r} is not allowed; an engine is unix:///path or tcp://host:port")
        if one.url.startswith("unix://") and one.tls is not None:
            raise BackendError(f"engines: {one.url!r} is a socket of this machine, and has no tls")
        if (name := one.name or one.url) in found:
            raise BackendError(f"engines: two have the name {name!r}")
        found[name] = one
    return found


def _honoured(options: DockerOptions, *, secrets: bool) -> frozenset[str]:
    """The container fields that jobs may use; `secrets`: there is something to get them from."""
    unknown = sorted(set(options.refuse) - CONTAINER_FIELDS)
    if unknown:
        raise BackendError(f"refuse: {unknown[0]!r} is no container field; they are {sorted(CONTAINER_FIELDS)}")
    honoured = CONTAINER_FIELDS - set(options.refuse)
    if not secrets:
        honoured -= {"secrets"}
    return honoured | {IMAGE_REQUIRED} if options.image is None else honoured


def _capacity(
    about: EngineOptions, options: DockerOptions, settings: EnvironmentSettings, info: Mapping[str, object]
) -> Capacity:
    """What an engine offers: a single one the environment's max_vcpus, one of several its own CPUs."""
    if about.vcpus is not None:
        vcpus_milli = round(about.vcpus * 1000)
    elif len(options.engines) <= 1:
        vcpus_milli = settings.max_vcpus_milli
    else:
        vcpus_milli = int(str(info.get("NCPU") or 1)) * 1000
    memory = about.memory or options.memory or int(int(str(info.get("MemTotal") or 0)) * MEMORY_SHARE) // MIB
    return Capacity(vcpus_milli=vcpus_milli, memory_mib=memory or None, gpus=about.gpus or options.gpus)
