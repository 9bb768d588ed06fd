"""The process backend: attempts as processes of this machine, run by an agent that outlives the kernel."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, final

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
    Launch,
    log_path,
)
from ..kernel.core.container import CONTAINER_FIELDS, IMAGE_COMMAND
from ..kernel.core.errors import BackendError
from ._agent_local import LocalAgent, default_environment
from .agent_client import AgentClient, AgentSettings

HOST = "local"
MEMORY_SHARE = 0.9  # of the machine's memory; the rest is for the kernel, the agent and the system
LOG_PIECE = 256 << 10  # bytes read from a log at a time
FOLLOW_POLL_S = 0.05
CLOSE_GRACE_MS = 2_000  # for attempts that still run when a kernel that nobody comes back to is closed


class ProcessOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Options of a compute environment with this backend (docs/limits.md says more of them).

    `memory`: MiB to give out (None: 90 % of the machine's or its cgroup's). `gpus`: device indexes.
    `memory_enforcement`: how an attempt is held to its memory: by a cgroup, by watching its resident memory, or not at
    all ("auto": in the best way that the machine allows; what it does not allow is an error). `log_bytes_max`: of one
    attempt's log, of which the middle is left out beyond that (0: no limit). `lookahead`: attempts that the kernel may
    send beyond what runs at once, so that no slot waits for it. `ignore_image`: jobs with an image run here too, as if
    they had none (nor what else stands in their `container`); they need a command or script.
    """

    memory: int | None = None
    gpus: tuple[int, ...] = ()
    zone: str | None = None
    memory_enforcement: Literal["auto", "cgroup", "watch", "none"] = "auto"
    log_bytes_max: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] = 64 << 20
    lookahead: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 64
    ignore_image: bool = False


@final
class ProcessBackend:
    """Runs attempts on one fixed host, this machine, with its vCPUs as given by `max_vcpus`.

    `base_environment`: the variables that attempts start from (default: a clean set that says who and where).
    `workdir`: the folder of attempts whose job names none (default: one folder per job). `agent_idle_ms`: how
    long the agent waits for a kernel once it has nothing to run (default: 30 s).
    """

    api_version: ClassVar[int] = API_VERSION
    capabilities: ClassVar[Capabilities] = Capabilities(reattach=True)
    Options: ClassVar[type[msgspec.Struct]] = ProcessOptions

    def __init__(
        self,
        *,
        base_environment: Mapping[str, str] | None = None,
        workdir: str | None = None,
        agent_idle_ms: int | None = None,
    ) -> None:
        self._base_environment = base_environment
        self._workdir = workdir
        self._agent_idle_ms = agent_idle_ms
        self._context: BackendContext | None = None
        self._client: AgentClient | None = None

    @property
    def memory_enforcement(self) -> str:
        """How attempts are held to their memory at present: "cgroup", "watch" or "none"."""
        return "none" if self._client is None else self._client.memory

    @staticmethod
    def expects(settings: EnvironmentSettings) -> Expectation:
        """One host: the options say what it offers, and the machine where they do not."""
        options = msgspec.convert(settings.options, ProcessOptions)
        memory_mib = int(machine_memory_mib() * MEMORY_SHARE) if options.memory is None else options.memory
        capacity = Capacity(
            vcpus_milli=settings.max_vcpus_milli, memory_mib=memory_mib, gpus=options.gpus, lookahead=options.lookahead
        )
        honoured = CONTAINER_FIELDS - {IMAGE_COMMAND} if options.ignore_image else frozenset[str]()
        return Expectation(hosts=[ExpectedHost(name=HOST, capacity=capacity)], container=honoured)

    async def start(self, context: BackendContext, known: Sequence[Launch]) -> None:
        options = msgspec.convert(context.settings.options, ProcessOptions)
        expected = self.expects(context.settings)
        capacity = expected.hosts[0].capacity
        settings = AgentSettings(
            memory=options.memory_enforcement,
            log_bytes_max=options.log_bytes_max,
            capacity=capacity if options.lookahead else None,
        )
        self._context = context
        context.honours(expected.container)
        self._offer(context, options, capacity)
        if self._client is not None:  # new settings only: what was launched is being looked after
            self._client.report_to(context)
            self._client.set(settings)
            self._offer(context, options, capacity)
            return
        place = f"{context.kernel_id}\0{context.settings.name}\0{context.state_dir.resolve()}"
        name = hashlib.sha256(os.fsencode(place)).hexdigest()[:12]
        connector = LocalAgent(context.state_dir, context.runtime_dir / f"{name}.sock", idle_ms=self._agent_idle_ms)
        environment = default_environment() if self._base_environment is None else self._base_environment
        self._client = AgentClient(
            context, connector, host=HOST, environment=environment, workdir=self._workdir, settings=settings
        )
        await self._client.start(known)
        self._offer(context, options, capacity)

    def _offer(self, context: BackendContext, options: ProcessOptions, capacity: Capacity) -> None:
        if self._client is None or not self._client.can_wait:
            capacity = msgspec.structs.replace(capacity, lookahead=0)
        context.host_up(HOST, capacity, options.zone)

    async def launch(self, launches: Sequence[Launch]) -> None:
        await self._started().launch(launches)

    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        await self._started().stop(attempts, grace_ms)

    async def logs(self, attempt: AttemptKey, *, follow: bool) -> AsyncIterator[bytes]:
        """What the attempt has written so far; with `follow`, until it has ended.

        One that has not started yet has written nothing. One that is not in flight here has ended.
        """
        client = self._started()
        assert self._context is not None
        log = _Log(log_path(self._context.logs_dir, attempt))
        try:
            while True:
                going_on = follow and client.holds(attempt)  # before reading: what it wrote until its end is read
                while piece := await anyio.to_thread.run_sync(log.read):
                    yield piece
                if not going_on:
                    return
                await anyio.sleep(FOLLOW_POLL_S)
        finally:
            log.close()

    async def close(self) -> None:
        """Let go. Attempts go on if a later kernel comes back to them, else they are ended.

        Raises:
            BackendError: the agent does not end.
        """
        client, self._client = self._client, None
        if client is None or self._context is None:
            return
        if self._context.durable:
            await client.detach()
        else:
            await client.shut_down(CLOSE_GRACE_MS)

    def _started(self) -> AgentClient:
        if self._client is None:
            raise BackendError("the process backend is not started")
        return self._client


class _Log:
    """A log that is read while it is written to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._at = 0

    def read(self) -> bytes:
        """What comes next; nothing if there is nothing yet.

        It stays with the file that it has opened: a log that is shortened when its attempt ends is another one. What
        was taken from the middle of a log that grows too long is a hole, and passed over.
        """
        if self._fd < 0:
            try:
                self._fd = os.open(self._path, os.O_RDONLY)
            except FileNotFoundError:
                return b""
        try:
            data = os.lseek(self._fd, self._at, os.SEEK_DATA)
            hole = os.lseek(self._fd, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # that is the end
                raise
            return b""
        piece = os.pread(self._fd, min(LOG_PIECE, hole - data), data)
        self._at = data + len(piece)
        return piece

    def close(self) -> None:
        """Close the file; the next read begins anew."""
        fd, self._fd, self._at = self._fd, -1, 0
        if fd >= 0:
            os.close(fd)


def machine_memory_mib() -> int:
    """This machine's memory, or the least limit of the cgroups (v1 or v2) that this process is in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *_cgroup_limits()]) >> 20


def _cgroup_limits() -> list[int]:
    limits: list[int] = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return limits
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            root, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            root, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        folder = root / group.lstrip("/")
        # In a container the path may be one of the host's: then only the root is there.
        for place in (folder, *folder.parents):
            if place == root or root in place.parents:
                limits.extend(_limit(place / name))
    return limits


def _limit(path: Path) -> list[int]:
    try:
        return [int(path.read_text())]
    except (OSError, ValueError):  # "max" is no number: no limit
        return []
