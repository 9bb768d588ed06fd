"""An engine as a host: attempts on their way from a launch to a container that ran, was reported and is removed.

Who does what: `put` and `stop` are called by the backend; starters create and start containers, a few at a time;
the watch tells of starts and ends; finishers keep logs, report, and remove what is durable. Nothing has a task or a
connection of its own: an attempt that runs is an entry in a table.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from ..kernel.backend import AttemptKey, BackendContext, Capacity, Launch
from ..kernel.logs import Log
from ._docker_attempt import Attempt, Marks, Step, grouped
from ._docker_ends import REASON_CHARS_MAX, REMOVED
from ._docker_engine import Engine, EngineError, EngineGone
from ._docker_images import Images
from ._docker_pool import Pool
from ._docker_spec import Defaults, Owner, names_of
from ._docker_starts import STOPPED, Resolver, Starts
from ._docker_watch import Watch

log = Log("anybatch.docker")

FINISHERS_MAX: Final = 4
SIGNALLERS_MAX: Final = 4
SETTLE_S: Final = 60.0
"""For the ends of what ended without a kernel to be reported before `start` returns."""
UNKNOWN_MS: Final = 600_000
"""For those that take longer than that."""
UNKNOWN_SLACK_MS: Final = 60_000
"""By how much the kernel's own bound on what is out of reach is longer than ours."""
UNSTARTED: Final = ("created", "initialized", "configured")
"""States of a container that has never run, in Docker's and Podman's words."""
ENDED: Final = ("exited", "stopped", "dead", "removing")
TIDY_S: Final = 5.0
"""For containers to be removed whose attempts' ends are on disk."""
CLOSE_S: Final = 30.0
"""For what is ended with a kernel that nobody comes back to."""


class EngineHost(Starts):
    """One engine of one environment, as a host."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        context: BackendContext,
        *,
        marks: Marks,
        images: Images,
    ) -> None:
        self.name = name
        self.zone: str | None = None
        self.engine = engine
        self.context = context
        self.images = images
        self.defaults = Defaults(image=None, network=None, init=False, cpu_limit=False)
        self.secrets: Resolver | None = None
        self.log_bytes_max = 0
        self.lost_after_ms = UNKNOWN_MS
        self.attempts: dict[AttemptKey, Attempt] = {}
        self.over: dict[AttemptKey, Attempt] = {}
        """Reported, and waiting for that to be durable."""
        self._all_durable = asyncio.Event()
        self._all_durable.set()
        self.owner = Owner(context.kernel_id, context.settings.name)
        self.watch = Watch(engine, self.owner, self, context.clock)
        self._marks = marks
        self._parked: dict[str, list[Attempt]] = {}
        self._pulls: dict[str, asyncio.Task[None]] = {}
        self._starters = Pool(1, self._begin, "anybatch-docker-start")
        self._finishers = Pool(FINISHERS_MAX, self._finish, "anybatch-docker-finish")
        self._removers = Pool(FINISHERS_MAX, self._remove, "anybatch-docker-remove")
        self._signallers = Pool(SIGNALLERS_MAX, self._signal, "anybatch-docker-signal")
        self._watching: asyncio.Task[None] | None = None
        self._gone: str | None = None
        self._going: set[str] = set()
        self._offer = Capacity(vcpus_milli=0)
        """What it offers, as last known."""
        self._expected: tuple[list[Launch], Callable[[Mapping[str, Any]], Capacity]] | None = None
        """What ran there as far as is known, and what it will offer, of an engine that could not be reached yet."""
        self._is_given_up = False
        self._limit: asyncio.TimerHandle | None = None
        """When an engine that is gone is given up."""

    def configure(
        self,
        *,
        defaults: Defaults,
        secrets: Resolver | None,
        at_once: int,
        log_bytes_max: int,
        lost_after_ms: int,
    ) -> None:
        """What the environment's options say; for attempts from now on."""
        self.defaults = defaults
        self.secrets = secrets
        self.log_bytes_max = log_bytes_max
        self.lost_after_ms = lost_after_ms
        self._starters.most = at_once
        if self._limit is not None:
            self._wait_for_it()

    def tell(self, capacity: Capacity | None = None) -> None:
        """Report the host (`capacity`: what it offers from now on), and whether it takes attempts."""
        if capacity is not None:
            self._offer = capacity
        self.context.host_up(self.name, self._offer, self.zone)
        self.context.host_paused(self.name, self._gone)

    # -- opening and closing ----------------------------------------------------------------------

    async def settle(self, known: Sequence[Launch], perhaps: Sequence[Launch] = ()) -> set[AttemptKey]:
        """Find out what became of each known attempt, and what is here besides; reports on all of them.

        `perhaps`: attempts of a host that there is no longer, of which some may be here; those are returned.

        Raises:
            EngineGone: the engine cannot be reached; nothing was reported.
        """
        found = {}
        for one in await self.engine.containers(self.owner.filters()):
            key = self.owner.key(one.get("Labels") or {})
            if key is not None:
                found[key] = one
        ending: list[Attempt] = []
        for launch in known:
            for key in launch.attempts():
                if key not in self.attempts:
                    self._settle_one(key, launch, found.get(key), ending)
        housed = set()
        for launch in perhaps:
            for key in launch.attempts():
                if key in found and key not in self.attempts:
                    housed.add(key)
                    self._settle_one(key, launch, found[key], ending)
        for key, one in found.items():
            if key not in self.attempts and key not in self.over and one.get("State") != "removing":
                self._take_stranger(key, one, ending)
        await self._settle_ends(ending)
        return housed

    def _settle_one(self, key: AttemptKey, launch: Launch, one: dict[str, Any] | None, ending: list[Attempt]) -> None:
        if one is None:
            if launch.known_started or self.owner.name(key) in self._marks:
                self.context.lost(key.job_id, key.number, [key.index], reason=REMOVED)
            else:
                self._enqueue(self._add(Attempt(key, launch)))
        elif one.get("State") in UNSTARTED:
            self._enqueue(self._add(Attempt(key, launch)))
        else:
            self._adopt(self._add(Attempt(key, launch, Step.RUNNING)), one, ending)

    def _take_stranger(self, key: AttemptKey, one: dict[str, Any], ending: list[Attempt]) -> None:
        attempt = Attempt(key, None, Step.RUNNING)
        if one.get("State") in UNSTARTED:  # if it is placed again, it is made anew
            attempt.container = str(one["Id"])
            self._clear_away(attempt)
            return
        self._add(attempt)
        self.context.found(self.name, key.job_id, key.number, [key.index])
        self._adopt(attempt, one, ending)

    def _adopt(self, attempt: Attempt, one: dict[str, Any], ending: list[Attempt]) -> None:
        attempt.container = str(one["Id"])
        attempt.volumes = tuple(names_of(one.get("Labels") or {}))
        if one.get("State") in ENDED:
            ending.append(attempt)
        else:
            self._tell_started(attempt)

    async def _settle_ends(self, ending: Iterable[Attempt]) -> None:
        waiting = set(ending)
        for attempt in waiting:
            self._end(attempt, None)
        limit = asyncio.get_running_loop().time() + SETTLE_S
        while waiting and asyncio.get_running_loop().time() < limit:
            waiting = {attempt for attempt in waiting if attempt.step is not Step.OVER}
            await asyncio.sleep(0.01)
        for attempt in waiting:
            key = attempt.key
            self.context.unknown(key.job_id, key.number, [key.index], for_ms=UNKNOWN_MS)

    def put(self, launch: Launch) -> None:
        """Run these, each once."""
        if self._is_given_up:  # placed before the kernel could be told
            self._lose_to_outage(launch.job_id, launch.number, launch.indexes)
        else:
            super().put(launch)

    def expect(self, known: Sequence[Launch], capacity: Callable[[Mapping[str, Any]], Capacity], why: str) -> None:
        """The engine cannot be reached: settle these, and say what it offers, once it can."""
        self._expected = (list(known), capacity)
        self.watch.begin_away(why)
        self.tell()
        for launch in known:
            for_ms = self.lost_after_ms + UNKNOWN_SLACK_MS
            self.context.unknown(launch.job_id, launch.number, launch.indexes, for_ms=for_ms)

    async def on_there(self, info: Mapping[str, Any]) -> None:
        """The engine has answered."""
        self._wait_no_longer()
        if self._expected is not None:
            known, capacity = self._expected
            self.tell(capacity(info))
            await self.settle(known)
            self._expected = None

    def tell_all(self) -> None:
        """Report what runs, to a new context."""
        for (job_id, number), indexes in self._in(Step.RUNNING).items():
            self.context.started(job_id, number, indexes)

    def begin_watching(self) -> None:
        """Follow what happens on the engine from now on."""
        if self._watching is None:
            self._watching = asyncio.create_task(self.watch.run(), name="anybatch-docker-watch")

    async def close(self, *, end_all: bool) -> None:
        """Let go; with `end_all` everything that is left here is killed and removed."""
        self._wait_no_longer()
        for attempt in self.attempts.values():
            if attempt.killer is not None:
                attempt.killer.cancel()
        if not end_all and self.watch.back.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TIDY_S):  # else the next kernel finds them
                    await self._all_durable.wait()
                    await self._removers.drain()
        tasks = [task for task in (self._watching, *self._pulls.values()) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for pool in (self._starters, self._finishers, self._removers, self._signallers):
            await pool.close()
        if end_all:
            with contextlib.suppress(EngineGone, EngineError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._end_all()
        await self.engine.close()

    async def _end_all(self) -> None:
        while left := await self.engine.containers(self.owner.filters()):
            some = left[:FINISHERS_MAX]
            removals = [self.engine.remove(str(one["Id"]), names_of(one.get("Labels") or {})) for one in some]
            await asyncio.gather(*removals, return_exceptions=True)
            await asyncio.sleep(0.01)  # one that is being removed already is listed for a while

    def use(self, context: BackendContext) -> None:
        """Report to this context from now on; what waited for the earlier one's durability waits for this one's."""
        self.context = context
        for attempt in list(self.over.values()):
            context.when_durable(lambda attempt=attempt: self._acknowledged(attempt))  # type: ignore[misc]

    # -- what the watch tells --------------------------------------------------------------------

    def is_busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self.attempts)

    def on_event(self, kind: str, labels: dict[str, str], at_ms: int) -> None:
        """The engine tells of a start or an end."""
        key = self.owner.key(labels)
        attempt = self.attempts.get(key) if key is not None else None
        if attempt is None:
            return
        if kind == "start" and attempt.step is Step.BEGINNING:
            self._runs(attempt, at_ms)
        elif kind == "oom":
            attempt.oom = True
        elif kind in ("die", "died") and attempt.step is Step.RUNNING:
            attempt.ended_ms = at_ms
            code = labels.get("exitCode", labels.get("containerExitCode", ""))
            self._end(attempt, int(code) if code.isdecimal() else None)
        elif kind in ("destroy", "remove") and attempt.step is Step.RUNNING:
            self._end(attempt, None)

    async def on_list(self, containers: list[dict[str, Any]]) -> None:
        """What the events should have told, and did not; and what was left to remove."""
        there = {}
        for one in containers:
            key = self.owner.key(one.get("Labels") or {})
            if key is not None:
                there[key] = one
        now = asyncio.get_running_loop().time()
        for attempt in list(self.attempts.values()):
            if attempt.step is Step.RUNNING:
                now_there = there.get(attempt.key)
                if now_there is None or now_there.get("State") in ENDED:
                    self._end(attempt, None)
                elif attempt.kill_at is not None and attempt.kill_at < now:
                    self._send(attempt)
        for key, one in there.items():
            if key not in self.attempts and key not in self.over:  # its end is known, or it was never to start
                left = Attempt(key, None)
                left.container, left.volumes = str(one["Id"]), tuple(names_of(one.get("Labels") or {}))
                self._clear_away(left)

    def on_down(self, reason: str) -> None:
        """The engine is gone: nothing is placed here, and what runs is not known of."""
        self._gone = reason
        self.context.host_paused(self.name, reason)
        for (job_id, number), indexes in self._in(Step.RUNNING).items():
            self.context.unknown(job_id, number, indexes, for_ms=self.lost_after_ms + UNKNOWN_SLACK_MS)
        for (job_id, number), indexes in self._in(Step.WAITING).items():
            self.context.waiting(job_id, number, indexes, reason=reason)
        self._wait_for_it()

    def on_still_down(self) -> None:
        """It has been tried again, without success."""
        self._wait_for_it()

    def on_up(self, outage_ms: int) -> None:
        """The engine is there: placement goes on, and what runs is known of again."""
        self._gone, self._is_given_up = None, False
        self._wait_no_longer()
        if not outage_ms:
            return
        self.images.forget_all()
        self.context.host_paused(self.name, None)
        for (job_id, number), indexes in self._in(Step.RUNNING).items():
            self.context.started(job_id, number, indexes)
            self.context.found(self.name, job_id, number, indexes)  # to be stopped, if the kernel has lost it meanwhile

    # -- giving an engine up ----------------------------------------------------------------------

    def _wait_for_it(self) -> None:
        """Give up what is here once the engine has been out of reach for too long."""
        self._wait_no_longer()
        if not self._is_given_up and self.watch.missed_at is not None:
            loop = asyncio.get_running_loop()
            self._limit = loop.call_at(self.watch.missed_at + self.lost_after_ms / 1000, self._give_up)

    def _wait_no_longer(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _give_up(self) -> None:
        """What is here is lost: also what has not begun, as far as is known. The host stays, and takes nothing.

        What there is of these attempts when the engine is back is removed, and nothing of them is begun.
        """
        self._limit, self._is_given_up = None, True
        lost: dict[AttemptKey, None] = {}
        for attempt in list(self.attempts.values()):
            if attempt.step is Step.ENDING and attempt.code is not None:
                self._report(attempt, "its log could not be kept: the engine has been out of reach since")
            else:
                lost[attempt.key] = None
            attempt.given_up = True
            self._leave(attempt)
        if self._expected is not None:
            known, capacity = self._expected
            lost |= {key: None for launch in known for key in launch.attempts()}
            self._expected = ([], capacity)
        for (job_id, number), indexes in grouped(lost).items():
            self._lose_to_outage(job_id, number, indexes)
        self.context.when_durable(lambda: self._marks.drop_all(map(self.owner.name, lost)))

    def _lose_to_outage(self, job_id: str, number: int, indexes: Sequence[int]) -> None:
        reason = f"not reached for {self.lost_after_ms / 1000:g} s: {self._gone}"
        self.context.lost(job_id, number, indexes, reason=reason[:REASON_CHARS_MAX])

    def _in(self, step: Step) -> dict[tuple[str, int], list[int]]:
        """The attempts of this step: indexes per job and attempt number."""
        return grouped(key for key, attempt in self.attempts.items() if attempt.step is step)

    # -- stopping ---------------------------------------------------------------------------------

    def stop(self, key: AttemptKey, grace_ms: int) -> None:
        """End an attempt: SIGTERM now, SIGKILL after the grace; the earliest SIGKILL counts."""
        attempt = self.attempts.get(key)
        if attempt is None or attempt.step in (Step.ENDING, Step.OVER):
            return
        if attempt.step is Step.WAITING:
            self._not_started(attempt, STOPPED)
            return
        loop = asyncio.get_running_loop()
        kill_at = loop.time() + grace_ms / 1000
        first = not attempt.stopped
        attempt.stopped = True
        if attempt.kill_at is None or kill_at < attempt.kill_at:
            attempt.kill_at = kill_at
            if attempt.killer is not None:
                attempt.killer.cancel()
            attempt.killer = loop.call_at(kill_at, self._send, attempt)
        if first and attempt.step is Step.RUNNING:
            self._send(attempt)

    def _send(self, attempt: Attempt) -> None:
        if attempt.step is Step.RUNNING:
            self._signallers.put(attempt)

    async def _signal(self, attempt: Attempt) -> None:
        if attempt.step is not Step.RUNNING:
            return
        late = attempt.kill_at is not None and asyncio.get_running_loop().time() >= attempt.kill_at
        try:
            await self.engine.signal(attempt.container, "SIGKILL" if late else "SIGTERM")
        except EngineGone as e:
            self.watch.doubt(e)
            await self.watch.back.wait()
            self._send(attempt)
        except EngineError as e:
            # Tried again with the next list.
            log.warning("docker_signal_failed", attempt=str(attempt.key), error=str(e))
