"""One SSH host: its connection, kept and made anew; its agent; and whether it takes attempts.

There is one task per host: connect, settle with the agent, watch for signs of life, and when the connection is lost
begin again. What was launched stays held meanwhile (agent_client.py). A host that is gone for longer than the grace is
given up: reported down, its attempts with it, and offered anew as one that takes none. When it is back, whatever its
agent still has of them is found, stopped, and changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, cast

import anyio
import asyncssh
import msgspec

from ..kernel.backend import AttemptKey, BackendContext, Capacity, HostStatus, Launch
from ..kernel.core.errors import BackendError
from ..kernel.logs import Log
from ._agent_link import CLOSE_TIMEOUT_S, Link
from ._ssh_channel import Far
from ._ssh_connect import HostError, connect, jump_task
from ._ssh_files import HostFiles
from ._ssh_options import HostSpec, SshOptions
from ._ssh_reports import HostReports
from .agent_client import AgentClient, AgentSettings

AGENT: Final = Path(__file__).with_name("agent.py").read_bytes()
AGENT_SHA: Final = hashlib.sha256(AGENT).hexdigest()
MEMORY_SHARE: Final = 0.9
"""Of a host's memory; the rest is for its system."""
AGENT_IDLE_MS: Final = 60_000
SETTLE_S: Final = 60.0
"""For a connection to be settled once it is made: a new agent may first have to end what a killed one left."""
SILENT_MAX: Final = 3
"""Signs of life that may be missing."""
RETRY_S: Final = 0.5
RETRY_S_MAX: Final = 30.0
"""Between tries to connect: from the first, doubled each time, to the last."""
OUTAGES_MAX: Final = 5
OUTAGES_S: Final = 300.0
"""So many lost connections, or killed agents, in so long are a reason for quarantine."""
FAILURES_MAX: Final = 3
"""So are so many attempts in a row that could not be started for the host's own trouble."""
UNKNOWN_SLACK_MS: Final = 60_000

log = Log("anybatch.backends")


class Facts(msgspec.Struct, frozen=True):
    """What the far side tells of its host."""

    cpus: int
    memory_mib: int
    gpus: tuple[int, ...]
    python: str
    state: str
    environment: dict[str, str]
    load: float
    jobs: tuple[str, ...]


class Place(msgspec.Struct, frozen=True):
    """Where a kernel's things of one environment and host are, below the folder on the host."""

    kernel: str
    environment: str
    host: str

    @property
    def parts(self) -> list[str]:
        """Names of folders, safe and short; a hash keeps apart what looks alike."""
        digest = hashlib.sha256(f"{self.environment}\0{self.host}".encode()).hexdigest()[:8]
        names = [re.sub(r"[^A-Za-z0-9_-]", "-", name)[:40] for name in (self.environment, self.host)]
        return [self.kernel, "-".join([*names, digest])]


class SshHost:
    """One host of an environment. Its capacity as last known is `capacity` (None: never reached)."""

    def __init__(self, spec: HostSpec, options: SshOptions, context: BackendContext, capacity: Capacity | None) -> None:
        self.spec = spec
        self.options = options
        self.capacity = capacity
        self.tried = asyncio.Event()
        """Set once connecting has succeeded or failed for the first time."""
        self.connection: asyncssh.SSHClientConnection | None = None
        self.files = HostFiles(self)
        self.reports = HostReports(self, context)
        self._context = context
        self.place = Place(context.kernel_id, context.settings.name, spec.name)
        self.client = AgentClient(
            cast("BackendContext", self.reports),
            self,
            host=spec.name,
            environment={},
            settings=self._settings(),
            on_lost=self._on_lost,
        )
        self.on_capacity: Callable[[], None] = lambda: None
        self._far: Far | None = None
        self._trouble: str | None = "it has not been reached yet"
        self._quarantine: str | None = None
        self._release: asyncio.TimerHandle | None = None
        self._outages: deque[float] = deque(maxlen=OUTAGES_MAX)
        self._failures = 0
        self._instance: str | None = None
        self._contact_ms: int | None = None
        self._lost_at: float | None = None
        self._given_up = False
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._again = False  # its settings have changed: connect with those

    @property
    def name(self) -> str:
        return self.spec.name

    def _settings(self) -> AgentSettings:
        limit = self.capacity if self.options.lookahead else None
        return AgentSettings(
            memory=self.options.memory_enforcement, log_bytes_max=self.options.log_bytes_max, capacity=limit
        )

    # -- life ------------------------------------------------------------------------------------------

    def start(self, known: Sequence[Launch]) -> None:
        """Take over what was in flight, and begin to connect."""
        self.files.take_over(known)
        self._lost_at = asyncio.get_running_loop().time()
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=f"ssh host {self.name}")

    def expect_later(self) -> None:
        """It is not waited for any longer: what is held stays unknown until it is reached, or given up."""
        if not self.tried.is_set():
            self._down("it does not answer yet")

    def adopt(self, spec: HostSpec, options: SshOptions, context: BackendContext) -> bool:
        """Go on with other settings; True: the connection has to be made anew, as it would be another one."""
        again = self._way(self.spec, self.options) != self._way(spec, options)
        self.spec, self.options, self._context = spec, options, context
        self.reports.context = context
        self.client.report_to(cast("BackendContext", self.reports))
        if self.capacity is not None and self._facts is not None:
            self.capacity = self._measured(self._facts)
        with contextlib.suppress(BackendError):
            self.client.set(self._settings())
        self.tell()
        if again and self.connection is not None:
            self.connection.abort()
        if again:
            self._again = True
            self.tried.clear()
        if again or self.connection is None:
            self._wake.set()
        return again

    @staticmethod
    def _way(spec: HostSpec, options: SshOptions) -> tuple[object, ...]:
        same = msgspec.structs.replace(spec, zone=None, vcpus_milli=None, memory_mib=None, gpus=None)
        return same, options.known_hosts, options.ssh_config, options.use_agent, options.folder, options.path

    async def close(self, *, end: bool) -> None:
        """Let go; with `end` end every attempt and the agent."""
        self._closing = True
        try:
            if end and self.client.link is not None:
                await self.client.shut_down(CLOSE_GRACE_MS)
            else:
                await self.client.detach()
        finally:
            if self._release is not None:
                self._release.cancel()
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])
            await self._disconnect()
            self.files.close()

    # -- what the backend asks ---------------------------------------------------------------------------

    def launch(self, launches: Sequence[Launch]) -> None:
        """Hand these over, or keep them until there is a connection; what comes too late for that is lost."""
        if self._given_up:
            self._lose((one.job_id, one.number, one.indexes) for one in launches)
            return
        ready = self.files.first(launches)
        if ready:
            self.client.post_launch(ready)

    def stop(self, keys: Iterable[AttemptKey], grace_ms: int) -> None:
        """End these; also over a lost connection."""
        rest = self.files.stop(keys)
        self.client.post_stop(rest, grace_ms)

    def holds(self, key: AttemptKey) -> bool:
        """Whether this attempt is under way here."""
        return self.files.holds(key) or self.client.holds(key)

    def status(self) -> HostStatus:
        """What is known of the host now."""
        pong = self.client.link.pong if self.client.link is not None else None
        load = pong.load if pong is not None else self._facts.load if self._facts is not None else None
        self._note_contact()
        return HostStatus(last_contact_ms=self._contact_ms, load=load)

    def _note_contact(self) -> None:
        if self._far is not None and self._far.heard:
            ago_ms = (asyncio.get_running_loop().time() - self._far.heard) * 1000
            self._contact_ms = self._context.clock.now_ms() - round(ago_ms)

    def tell(self) -> None:
        """Report the host, and whether it takes attempts."""
        self._context.host_up(self.name, self.capacity or Capacity(vcpus_milli=0), self.spec.zone)
        self._context.host_paused(self.name, self._trouble or self._quarantine)

    # -- connecting --------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Connect, watch, and connect again."""
        wait_s = RETRY_S
        while not self._closing:
            self._again = False
            try:
                await self._attach()
                wait_s = RETRY_S
                why = "other settings"
                if not self._again:
                    self._up()
                    why = await self._watch()
                await self._disconnect()
            except (HostError, BackendError, OSError) as error:
                await self._disconnect()
                if isinstance(error, HostError) and error.lasting:
                    wait_s = RETRY_S_MAX
                why = str(error) or type(error).__name__
            if self._again:  # what came of the former settings tells nothing
                wait_s = RETRY_S
                continue
            self._down(why)
            self._give_up_if_due()
            self._wake.clear()
            with anyio.move_on_after(min(wait_s, self._until_given_up())):
                await self._wake.wait()
            wait_s = min(2 * wait_s, RETRY_S_MAX)
            self._give_up_if_due()

    _facts: Facts | None = None

    async def _attach(self) -> None:
        with anyio.fail_after(self.options.connect_timeout + SETTLE_S):
            await self.client.attach()
        agent = self.client.agent
        assert agent is not None
        if self._instance not in (None, agent.instance):  # the agent has been killed, or the host was started anew
            self._note_outage("its agent was ended")
        self._instance = agent.instance

    async def connect(self, make_link: Callable[[], Link]) -> Link:
        """The way to the agent (`Connector`): the SSH connection, its one channel, the agent uploaded and started."""
        await self._disconnect()
        connection = self.connection = await connect(self.spec, self.options)
        try:
            with anyio.fail_after(self.options.connect_timeout + SETTLE_S):
                far = self._far = await Far.open(connection, self.options.path, self.spec.python)
                facts = await self._prepare(far)
        except TimeoutError:
            raise HostError("its login shell, or our program there, does not answer") from None
        self._facts = facts
        self.capacity = self._measured(facts)
        self.client.place(environment=facts.environment, logs=f"{facts.state}/logs", orphans_ms=self._orphans_ms())
        with contextlib.suppress(BackendError):
            self.client.set(self._settings())
        self.files.connected(facts.state, facts.jobs)
        self.tell()  # what is found on it now is found on a host that is known
        return far.become(make_link)

    async def _prepare(self, far: Far) -> Facts:
        asked = {
            "op": "agent", "folder": self.options.folder, "place": self.place.parts, "sha": AGENT_SHA,
            "idle_ms": AGENT_IDLE_MS, "path": self.options.path, "gpus": self.spec.gpus is None,
        }  # fmt: skip
        found, _ = await far.ask(asked)
        if found.get("need") == "agent":
            found, _ = await far.ask({"size": len(AGENT)}, AGENT)
        return msgspec.convert(found["facts"], Facts)

    def _orphans_ms(self) -> int | None:
        """A kernel that nobody comes back to is not gone just because its connection is."""
        return None if self._context.durable else round(self.options.grace * 1000)

    def _measured(self, facts: Facts) -> Capacity:
        spec = self.spec
        return Capacity(
            vcpus_milli=facts.cpus * 1000 if spec.vcpus_milli is None else spec.vcpus_milli,
            memory_mib=int(facts.memory_mib * MEMORY_SHARE) if spec.memory_mib is None else spec.memory_mib,
            gpus=facts.gpus if spec.gpus is None else spec.gpus,
            lookahead=self.options.lookahead,
        )

    async def _watch(self) -> str:
        """Return once the connection is lost, with how. A host that is silent is asked for a sign of life."""
        link, far, loop = self.client.link, self._far, asyncio.get_running_loop()
        assert far is not None
        asked = 0
        while link is not None and not link.closed.done():
            quiet = loop.time() - far.heard
            if quiet < self.options.keepalive:
                asked = 0
            elif asked == SILENT_MAX:
                return f"it has given no sign of life for {SILENT_MAX} times {self.options.keepalive:g} s"
            else:
                self.client.ping()
                asked += 1
                quiet = 0.0
            with anyio.move_on_after(max(0.01, self.options.keepalive - quiet)):
                await asyncio.shield(link.closed)
        return "the connection to it was lost"

    async def _disconnect(self) -> None:
        self._note_contact()
        connection, self.connection, self._far = self.connection, None, None
        self.files.disconnected()
        if connection is None:
            await self.files.wind_up()
            return
        jump = jump_task(connection)
        connection.abort()
        with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            await connection.wait_closed()
            if jump is not None:
                await asyncio.wait([jump])
            await self.files.wind_up()

    def _on_lost(self, refusal: str | None) -> None:
        """The agent's connection has ended; `_watch` sees that too."""
        if refusal is not None:
            log.warning("host_refuses", environment=self._context.settings.name, host=self.name, reason=refusal)

    # -- whether it takes attempts -----------------------------------------------------------------------

    def _up(self) -> None:
        self._trouble, self._lost_at, self._given_up = None, None, False
        self.tried.set()
        self.on_capacity()
        self.tell()
        self.files.begin()
        log.info("host_connected", environment=self._context.settings.name, host=self.name)

    def _down(self, why: str) -> None:
        """It is not connected: it takes nothing, and what it runs is waited for."""
        loop = asyncio.get_running_loop()
        if self._lost_at is None:
            self._lost_at = loop.time()
            self._note_outage(why)
        if self._trouble != why:
            log.warning("host_unreachable", environment=self._context.settings.name, host=self.name, reason=why)
        self._trouble = why
        if not self.tried.is_set():
            for job_id, number, indexes in [*self.client.held, *self.files.held()]:
                for_ms = round(self.options.grace * 1000) + UNKNOWN_SLACK_MS
                self._context.unknown(job_id, number, indexes, for_ms=for_ms)
        self.tell()
        self.tried.set()

    def _until_given_up(self) -> float:
        if self._given_up or self._lost_at is None:
            return RETRY_S_MAX
        return max(0.0, self._lost_at + self.options.grace - asyncio.get_running_loop().time())

    def _give_up_if_due(self) -> None:
        """After the grace its attempts are lost; the host stays, as one that takes none and keeps its logs."""
        if self._given_up or self._lost_at is None or self._until_given_up() > 0:
            return
        self._given_up = True
        held = [*self.client.held, *self.files.held()]
        self.client.give_up()
        self.files.give_up()
        self._lose(held)

    def _lose(self, attempts: Iterable[tuple[str, int, Sequence[int]]]) -> None:
        reason = f"not reached for {self.options.grace:g} s: {self._trouble}"
        for job_id, number, indexes in attempts:
            self._context.lost(job_id, number, indexes, reason=reason)

    def _note_outage(self, why: str) -> None:
        now = asyncio.get_running_loop().time()
        self._outages.append(now)
        if len(self._outages) == OUTAGES_MAX and now - self._outages[0] < OUTAGES_S:
            self._outages.clear()
            self.quarantine(f"{OUTAGES_MAX} times in {OUTAGES_S:g} s, the last: {why}")

    def note_start(self) -> None:
        """An attempt could be started."""
        self._failures = 0

    def note_failure(self, reason: str, count: int) -> None:
        """Attempts could not be started because of the host itself."""
        self._failures += count
        if self._failures >= FAILURES_MAX and self._quarantine is None:
            failures, self._failures = self._failures, 0
            self.quarantine(f"{failures} attempts in a row could not be started, the last: {reason}")

    def quarantine(self, why: str) -> None:
        """It keeps failing: it takes nothing until a named time; what runs goes on."""
        seconds = self.options.quarantine
        until = datetime.fromtimestamp(self._context.clock.now_ms() / 1000 + seconds, UTC)
        self._quarantine = f"it is in quarantine until {until:%Y-%m-%d %H:%M:%S} UTC: {why}"
        log.warning("host_quarantined", environment=self._context.settings.name, host=self.name, reason=why)
        if self._release is not None:
            self._release.cancel()
        self._release = asyncio.get_running_loop().call_later(seconds, self._set_free)
        self._context.host_paused(self.name, self._trouble or self._quarantine)

    def _set_free(self) -> None:
        self._quarantine, self._release = None, None
        self._context.host_paused(self.name, self._trouble)


CLOSE_GRACE_MS: Final = 2_000
"""For attempts that still run when a kernel that nobody comes back to is closed, or their host is taken away."""
