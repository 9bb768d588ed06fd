"""The kernel's side of the agent's protocol (agent.py describes it): start or attach, settle, launch, stop, ack.

`AgentClient` speaks for one host to one agent over any asyncio transport: `LocalAgent` (_agent_local.py) connects it
through a Unix socket; another connector (an SSH channel) needs only `connect`. Reports go straight from the transport
into the `BackendContext`, without a task or a queue between.

What was launched and has not been reported ended is kept in `_held`. When the connection drops it is what the
next one settles: the agent says what of it runs, has ended or was never started, so nothing runs twice and
nothing is forgotten, whether it was the connection that died or the agent.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import anyio
import msgspec
from anybatch.kernel.logs import Log

from ..kernel.backend import AttemptKey, AttemptSpec, BackendContext, Capacity, Launch
from ..kernel.core.errors import BackendError
from ._agent_link import CLOSE_TIMEOUT_S, FRAME_MAX, PROTOCOL, Hello, Link, Report, Run

BATCH_MAX = 10_000  # attempts in one frame, far below FRAME_MAX
SPECS_MAX = 256  # specs that the agent remembers for a connection
ATTACH_TIMEOUT_S = 30.0  # for one connection to be made, greeted and settled
RETRY_S = 0.05  # between tries to connect
OUTAGES_MAX = 10  # connections lost within OUTAGES_S before the environment is given up
OUTAGES_S = 60.0
ORPHANS_MS = 5_000  # after a kernel that nobody comes back to is gone without a word, until its attempts are ended

EXITED, TIMED_OUT, LOST = 0, 1, 2  # kinds of end, as in agent.py


log = Log("anybatch.backends")

_encode = msgspec.json.Encoder().encode


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent is told of how to run attempts.

    `memory`: how limits of memory are enforced ("auto": in the best way that the host allows). `log_bytes_max`: of one
    attempt's log (0: no limit). `capacity`: what the agent may run at once, holding the rest back (None: all that it
    is given).
    """

    memory: str = "auto"
    log_bytes_max: int = 0
    capacity: Capacity | None = None


def runs_of(keys: Iterable[AttemptKey]) -> list[Run]:
    """Attempts as runs, one per job and attempt number."""
    runs: dict[tuple[str, int], list[int]] = {}
    for job_id, index, number in keys:
        runs.setdefault((job_id, number), []).append(index)
    return [(job_id, number, indexes) for (job_id, number), indexes in runs.items()]


class Connector(Protocol):
    """How to reach an agent."""

    async def connect(self, make_link: Callable[[], Link]) -> Link:
        """Connect to the agent, starting it if there is none.

        Raises:
            OSError: not just now; trying again may help.
            BackendError: it cannot be started; the message says why.
        """


class AgentClient:
    """One host's attempts, through its agent.

    `host`: its name. `environment`: the variables that attempts start from. `workdir`: the folder of attempts whose
    spec has none (None: one per job, below the agent's state directory). `on_lost`: told when the connection is lost,
    with the agent's reason if it had one; without it this connects again by itself, and fails the environment if
    that does not help.
    """

    def __init__(
        self,
        context: BackendContext,
        connector: Connector,
        *,
        host: str,
        environment: Mapping[str, str],
        workdir: str | None = None,
        settings: AgentSettings | None = None,
        on_lost: Callable[[str | None], None] | None = None,
    ) -> None:
        self._context = context
        self._tell_lost = on_lost
        self._host = host
        self._settings = settings or AgentSettings()
        self.memory = "none"
        """How limits of memory are enforced: "cgroup", "watch" or "none"."""
        self._connector = connector
        self._hello = {
            "t": "hello",
            "protocol": PROTOCOL,
            "kernel": context.kernel_id,
            "environment": dict(environment),
            "logs": str(context.logs_dir),
            "workdir": workdir,
            "orphans_ms": None if context.durable else ORPHANS_MS,
        }
        self.agent: Hello | None = None
        """What the agent said of itself when it was last connected."""
        self._link: Link | None = None  # set while connected and settled
        self._offset_ms = 0  # from the agent's clock to the kernel's
        self._held: dict[tuple[str, int], dict[int, Launch]] = {}
        self._queued: list[Launch] = []  # launched while not connected
        self._strangers: set[AttemptKey] = set()  # found running though the kernel did not name them
        self._stops: dict[AttemptKey, int] = {}  # stops under way, and when each kills
        self._outages: deque[float] = deque(maxlen=OUTAGES_MAX)
        self._reconnecting: asyncio.Task[None] | None = None
        self._closing = False
        self._refused = False

    # -- what the backend calls --

    async def start(self, known: Sequence[Launch]) -> None:
        """Connect, and settle every known attempt.

        Raises:
            BackendError: there is no agent to be had; the message says why.
        """
        for launch in known:
            self._hold(launch)
        await self._attach()

    def settle_later(self, known: Iterable[Launch]) -> None:
        """Take these as launched; the next connection settles them."""
        for launch in known:
            self._hold(launch)

    def place(self, *, environment: Mapping[str, str], logs: str, orphans_ms: int | None) -> None:
        """What the next connection tells the agent of its host."""
        self._hello.update(environment=dict(environment), logs=logs, orphans_ms=orphans_ms)

    def give_up(self) -> None:
        """Hold nothing any more: whatever the agent has is reported `found` when it is connected again."""
        self._held.clear()
        self._queued.clear()
        self._stops.clear()
        self._strangers.clear()

    @property
    def held(self) -> list[tuple[str, int, list[int]]]:
        """Every attempt that is held, or waits for a connection: job id, attempt number, indexes."""
        runs = [(job_id, number, list(run)) for (job_id, number), run in self._held.items()]
        return runs + [(launch.job_id, launch.number, list(launch.indexes)) for launch in self._queued]

    def report_to(self, context: BackendContext) -> None:
        """Report to this context from now on."""
        self._context = context

    @property
    def can_wait(self) -> bool:
        """Whether the agent holds back what does not fit; an earlier version runs all that it is given."""
        return self.agent is not None and self.agent.protocol[1] >= 1

    def set(self, settings: AgentSettings) -> None:
        """Have attempts run in this way from now on.

        Raises:
            BackendError: the host does not allow that.
        """
        self._settings = settings
        if self._link is not None and self.agent is not None:
            self._send_settings(self._link, self.agent)

    async def launch(self, launches: Sequence[Launch]) -> None:
        """Hand these over; without a connection just now, as soon as there is one."""
        self.post_launch(launches)
        if self._link is not None:
            await self._link.drain()

    def post_launch(self, launches: Sequence[Launch]) -> None:
        """As `launch`, without waiting for a transport that holds much unsent."""
        if self._link is None:
            self._queued.extend(launches)
        else:
            self._send_launches(self._link, launches)

    async def stop(self, keys: Sequence[AttemptKey], grace_ms: int) -> None:
        """End these that are held; also over a lost connection."""
        self.post_stop(keys, grace_ms)
        if self._link is not None:
            await self._link.drain()

    def post_stop(self, keys: Sequence[AttemptKey], grace_ms: int) -> None:
        """As `stop`, without waiting for a transport that holds much unsent."""
        kill_at_ms = self._context.clock.now_ms() + grace_ms
        held = [key for key in keys if self.holds(key)]
        for key in held:
            self._stops[key] = min(kill_at_ms, self._stops.get(key, kill_at_ms))
        if self._link is not None and held:
            self._send_stop(self._link, held, grace_ms)

    def ping(self) -> None:
        """Ask the agent for a sign of life."""
        if self._link is not None:
            self._link.write(_encode({"t": "ping"}))

    @property
    def link(self) -> Link | None:
        """The connection, while there is one that has settled."""
        return self._link

    def holds(self, key: AttemptKey) -> bool:
        """Whether this was launched or found here and has not been reported ended."""
        run = self._held.get((key.job_id, key.number))
        if (run is not None and key.index in run) or key in self._strangers:
            return True
        return any(
            one.job_id == key.job_id and one.number == key.number and key.index in one.indexes for one in self._queued
        )

    async def detach(self) -> None:
        """Let go; the agent and its attempts go on."""
        link = await self._end_connecting()
        if link is not None:
            await link.close()

    async def shut_down(self, grace_ms: int) -> None:
        """End every attempt, and the agent; return once it has ended.

        Raises:
            BackendError: it has not ended in time.
        """
        link = await self._end_connecting()
        if link is None and self.agent is not None and not self._refused:  # the connection was lost just before
            with anyio.move_on_after(CLOSE_TIMEOUT_S):
                await self._attach()
            link = self._link
        if link is None:
            return
        link.write(_encode({"t": "shutdown", "grace_ms": grace_ms}))
        with anyio.move_on_after(grace_ms / 1000 + CLOSE_TIMEOUT_S):
            await asyncio.shield(link.closed)
        ended = link.closed.done()
        await link.close()
        if not ended:
            raise BackendError(f"the agent (process {self.agent.pid if self.agent else '?'}) does not end")

    async def _end_connecting(self) -> Link | None:
        self._closing = True
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.wait([self._reconnecting])
        return self._link

    # -- connecting --

    async def _attach(self) -> None:
        """Connect and settle; tries until ATTACH_TIMEOUT_S have passed."""
        until = time.monotonic() + ATTACH_TIMEOUT_S
        while True:
            try:
                with anyio.fail_after(max(1.0, until - time.monotonic())):
                    await self.attach()
                return
            except OSError as error:  # TimeoutError and ConnectionError among them
                if time.monotonic() > until:
                    raise BackendError(f"no connection to the agent: {error}", retryable=True) from error
            await anyio.sleep(RETRY_S)

    async def attach(self) -> None:
        """Connect and settle, once.

        Raises:
            OSError: not just now; trying again may help.
            BackendError: it cannot be; the message says why.
        """
        link = await self._connector.connect(lambda: Link(self._on_report, self._on_lost))
        try:
            await self._greet(link)
            await self._settle(link)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await link.close()
            raise

    async def _greet(self, link: Link) -> None:
        sent_ms = self._context.clock.now_ms()
        # Not by msgspec: variables may hold bytes that are no UTF-8, as Python's surrogates.
        link.write(json.dumps(self._hello).encode())
        hello = await link.greeting
        # It read its clock between our two readings. Where these clocks may be the same they are taken for that.
        least, most = sent_ms - hello.now_ms, self._context.clock.now_ms() - hello.now_ms
        self._offset_ms = 0 if least <= 0 <= most else (least + most) // 2
        if hello.protocol[0] != PROTOCOL[0]:
            theirs, ours = (".".join(map(str, one)) for one in (hello.protocol, PROTOCOL))
            raise BackendError(
                f"the agent (process {hello.pid}) speaks protocol {theirs}, this kernel {ours}; it can be taken over "
                "by a version of anybatch that speaks the same, or ended with SIGTERM, which ends its attempts"
            )
        self._send_settings(link, hello)
        self.agent = hello

    def _send_settings(self, link: Link, hello: Hello) -> None:
        asked = self._settings.memory
        if asked not in ("auto", *hello.memory):
            raise BackendError(
                f"memory_enforcement {asked!r} is not possible here, but {' or '.join(map(repr, hello.memory))} "
                f"({hello.memory_where}; 'auto' takes the best that is possible)"
            )
        self.memory = hello.memory[0] if asked == "auto" else asked
        if hello.protocol[1] >= 1:
            capacity = self._settings.capacity
            told = {
                "t": "settings",
                "memory": self.memory,
                "log_bytes_max": self._settings.log_bytes_max,
                "capacity": None if capacity is None else msgspec.structs.asdict(capacity),
            }
            link.write(_encode(told))
        if self.memory == "none" and asked != "none":
            log.warning(
                "memory_not_enforced", environment=self._context.settings.name, host=self._host, why=hello.memory_where
            )

    async def _settle(self, link: Link) -> None:
        """Learn what became of everything held; start what never was; then go on."""
        runs = [(job_id, number, list(run)) for (job_id, number), run in self._held.items()]
        parts = [part for job_id, number, indexes in runs for part in _parts(job_id, number, indexes)]
        for part in parts:
            link.write(_encode({"t": "settle", "runs": [part], "last": False}))
            await link.drain()
        link.write(_encode({"t": "settle", "runs": [], "last": True}))
        settled = await link.settled
        if link.closed.done():
            raise ConnectionError("the agent closed the connection")
        absent = self._take_absent(settled.absent)
        self._link = link
        queued, self._queued = self._queued, []
        self._send_launches(link, absent + queued)
        now_ms = self._context.clock.now_ms()
        for key, kill_at_ms in list(self._stops.items()):
            self._send_stop(link, [key], max(0, kill_at_ms - now_ms))

    def _take_absent(self, runs: Iterable[Run]) -> list[Launch]:
        """What to launch of the attempts that the agent has never started; one that had run is lost."""
        again: list[Launch] = []
        for job_id, number, indexes in runs:
            run = self._held.get((job_id, number), {})
            groups: dict[int, list[int]] = {}
            launches = {id(launch): launch for launch in run.values()}
            for index in indexes:
                if index in run:
                    groups.setdefault(id(run[index]), []).append(index)
            for identity, some in groups.items():
                launch = launches[identity]
                if launch.known_started:
                    self._drop(job_id, number, some)
                    self._context.lost(job_id, number, some, reason="the agent's record of it is gone")
                else:
                    again.append(msgspec.structs.replace(launch, indexes=some))
        return again

    def _on_lost(self, link: Link) -> None:
        """A connection has ended: make another, unless this was on purpose."""
        if self._link is not link:
            return
        self._link = None
        if self._closing:
            return
        if self._tell_lost is not None:
            self._tell_lost(link.refusal)
            return
        now = time.monotonic()
        self._outages.append(now)
        if link.refusal is not None:
            self._refused = True
            self._context.failed(f"the agent refuses this kernel: {link.refusal}")
        elif len(self._outages) == OUTAGES_MAX and now - self._outages[0] < OUTAGES_S:
            self._context.failed(f"the connection to the agent was lost {OUTAGES_MAX} times in {OUTAGES_S:g} s")
        else:
            self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect())

    async def _reconnect(self) -> None:
        try:
            await self._attach()
        except BackendError as error:
            self._context.failed(str(error))

    # -- sending --

    def _hold(self, launch: Launch) -> None:
        run = self._held.get((launch.job_id, launch.number))
        if run is None:
            run = self._held[launch.job_id, launch.number] = {}
        for index in launch.indexes:
            run[index] = launch

    def _drop(self, job_id: str, number: int, indexes: Iterable[int]) -> None:
        run = self._held.get((job_id, number))
        if run is not None:
            for index in indexes:
                run.pop(index, None)
            if not run:
                del self._held[job_id, number]
        if self._stops or self._strangers:
            for index in indexes:
                self._stops.pop(AttemptKey(job_id, index, number), None)
                self._strangers.discard(AttemptKey(job_id, index, number))

    def _send_launches(self, link: Link, launches: Sequence[Launch]) -> None:
        frames: list[bytes] = []
        groups: list[Any] = []
        for launch in launches:
            spec_id = self._spec_id(link, launch.spec, frames)
            self._hold(launch)
            if spec_id is None:
                self._refuse(launch)
                continue
            for job_id, number, indexes in _parts(launch.job_id, launch.number, launch.indexes):
                gpus = {str(index): launch.gpus[index] for index in indexes if index in launch.gpus}
                group = [job_id, number, launch.array_size, spec_id, indexes, gpus or None]
                if len(indexes) == BATCH_MAX:
                    frames.append(_encode({"t": "launch", "groups": [group]}))
                else:
                    groups.append(group)
            if len(groups) >= 1_000:
                frames.append(_encode({"t": "launch", "groups": groups}))
                groups = []
        if groups:
            frames.append(_encode({"t": "launch", "groups": groups}))
        if frames:
            link.write(*frames)

    def _spec_id(self, link: Link, spec: AttemptSpec, frames: list[bytes]) -> int | None:
        """The number under which the agent knows a spec on this connection; None if it is too large to send."""
        known = link.specs.get(id(spec))
        if known is not None:
            return known[1]
        link.specs_sent += 1
        message = {
            "t": "spec",
            "id": link.specs_sent,
            "command": spec.command,
            "script": spec.script,
            "environment": dict(spec.environment),
            "timeout_ms": spec.timeout_ms,
            "workdir": spec.workdir,
            "scratch": spec.scratch,
            "vcpus_milli": spec.vcpus_milli,
            "memory_mib": spec.memory_mib,
        }
        frame = json.dumps(message).encode()
        if len(frame) > FRAME_MAX - 4:
            return None
        frames.append(frame)
        link.specs[id(spec)] = (spec, link.specs_sent)
        if len(link.specs) > SPECS_MAX:
            _, oldest = link.specs.pop(next(iter(link.specs)))
            frames.append(_encode({"t": "forget", "ids": [oldest]}))
        return link.specs_sent

    def _refuse(self, launch: Launch) -> None:
        reason = f"CannotStartContainerError: command, script and environment are over {FRAME_MAX} bytes"
        self._drop(launch.job_id, launch.number, launch.indexes)
        self._context.exited(
            launch.job_id,
            launch.number,
            launch.indexes,
            [None] * len(launch.indexes),
            reason=reason,
            status_reason="Task failed to start",
        )

    def _send_stop(self, link: Link, keys: Iterable[AttemptKey], grace_ms: int) -> None:
        for run in runs_of(keys):
            for part in _parts(*run):
                link.write(_encode({"t": "stop", "runs": [part], "grace_ms": grace_ms}))

    # -- what the agent reports --

    def _on_report(self, link: Link, report: Report) -> None:
        """Pass news on to the kernel, and have exits acknowledged once they are durable."""
        context, offset = self._context, self._offset_ms
        for start in report.started:
            self._find(start.job_id, start.number, start.indexes)
            context.started(start.job_id, start.number, start.indexes, [at + offset for at in start.at_ms])
        for run in report.exited:
            if not link.settled.done():
                self._find(run.job_id, run.number, run.indexes)
            self._drop(run.job_id, run.number, run.indexes)
            if run.kind == LOST:
                context.lost(run.job_id, run.number, run.indexes, reason=run.reason or "lost by the agent")
                continue
            at_ms = [at + offset for at in run.stopped_ms]
            started_ms = [at + offset for at in run.started_ms] if all(run.started_ms) and not run.told else None
            if not run.told and (started_ms is None or run.kind == TIMED_OUT):
                began = [(index, at + offset) for index, at in zip(run.indexes, run.started_ms, strict=True) if at]
                if began:
                    context.started(run.job_id, run.number, [one[0] for one in began], [one[1] for one in began])
            if run.kind == TIMED_OUT:
                context.timed_out(run.job_id, run.number, run.indexes, run.codes, at_ms)
            else:
                context.exited(
                    run.job_id,
                    run.number,
                    run.indexes,
                    run.codes,
                    at_ms,
                    reason=run.reason,
                    status_reason=run.status_reason,
                    started_ms=started_ms,
                )
        if report.exited:
            link.seq = report.seq
            if not link.acking:
                self._ack_when_durable(link)

    def _find(self, job_id: str, number: int, indexes: Iterable[int]) -> None:
        """Of these, tell of those that the kernel did not name: it adopts them or has them stopped."""
        held, known = self._held.get((job_id, number), {}), self._strangers
        strangers = [one for one in indexes if one not in held and AttemptKey(job_id, one, number) not in known]
        if strangers:
            self._strangers.update(AttemptKey(job_id, index, number) for index in strangers)
            self._context.found(self._host, job_id, number, strangers)

    def _ack_when_durable(self, link: Link) -> None:
        """Acknowledge what was reported up to now once it is durable; one such call is under way at a time."""
        seq = link.seq
        link.acking = True

        def acknowledge() -> None:
            link.write(_encode({"t": "ack", "seq": seq}))  # over a lost connection: they are reported again
            link.acking = False
            if link.seq > seq:
                self._ack_when_durable(link)

        self._context.when_durable(acknowledge)


def _parts(job_id: str, number: int, indexes: Sequence[int]) -> list[Run]:
    """A run in pieces that fit a frame."""
    return [(job_id, number, list(indexes[at : at + BATCH_MAX])) for at in range(0, len(indexes), BATCH_MAX)]
