"""An engine as a host: attempts on their way from a launch to a container that ran, was reported and is removed.

Who does what: `put` and `stop` are called by the backend; starters create and start containers, a few at a time;
the watch tells of starts and ends; finishers keep logs, report, and remove what is durable. Nothing has a task or a
connection of its own: an attempt that runs is an entry in a table.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from ..kernel.backend import AttemptKey, BackendContext, Capacity, Launch
from ..kernel.core.container import ContainerSpec
from ..kernel.core.model import TEXT_NOT_STARTED
from ..kernel.logs import Log
from ._docker_attempt import Attempt, Marks, Step
from ._docker_ends import REASON_CHARS_MAX, REMOVED, Ends
from ._docker_engine import Engine, EngineError, EngineGone, short
from ._docker_images import Images, PullFailed
from ._docker_pool import Pool
from ._docker_spec import (
    Defaults,
    Owner,
    create_body,
    epoch_ms,
    image_of,
    names_of,
    script_archive,
    script_folder,
    shared_volumes,
)
from ._docker_watch import Watch

log = Log("anybatch.docker")

TRIES_MAX: Final = 5
"""Of creating and starting a container on an engine that is there but does not answer."""
FINISHERS_MAX: Final = 4
SIGNALLERS_MAX: Final = 4
SETTLE_S: Final = 60.0
"""For the ends of what ended without a kernel to be reported before `start` returns."""
UNKNOWN_MS: Final = 600_000
"""For those that take longer than that."""
TIDY_S: Final = 5.0
"""For containers to be removed whose attempts' ends are on disk."""
CLOSE_S: Final = 30.0
"""For what is ended with a kernel that nobody comes back to."""

Resolver = Callable[[str], Awaitable[str]]
"""Gives a secret's value for its `value_from`; what it raises keeps the attempt from starting."""


class EngineHost(Ends):
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
        """Why the engine cannot be reached; None: it can."""
        self._expected: tuple[list[Launch], Callable[[Mapping[str, Any]], Capacity]] | None = None

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
        elif one.get("State") in ("created", "initialized", "configured"):
            self._enqueue(self._add(Attempt(key, launch)))
        else:
            self._adopt(self._add(Attempt(key, launch, Step.RUNNING)), one, ending)

    def _take_stranger(self, key: AttemptKey, one: dict[str, Any], ending: list[Attempt]) -> None:
        attempt = Attempt(key, None, Step.RUNNING)
        if one.get("State") in (
            "created",
            "initialized",
            "configured",
        ):  # never ran: if it is placed again, it is made anew
            attempt.container = str(one["Id"])
            self._removers.put(attempt)
            return
        self._add(attempt)
        self.context.found(self.name, key.job_id, key.number, [key.index])
        self._adopt(attempt, one, ending)

    def _adopt(self, attempt: Attempt, one: dict[str, Any], ending: list[Attempt]) -> None:
        attempt.container = str(one["Id"])
        attempt.volumes = tuple(names_of(one.get("Labels") or {}))
        if one.get("State") in ("exited", "stopped", "dead", "removing"):
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

    def expect(self, known: Sequence[Launch], capacity: Callable[[Mapping[str, Any]], Capacity]) -> None:
        """The engine cannot be reached: settle these, and say what it offers, once it can."""
        self._expected = (list(known), capacity)
        self.watch.down_ms = self.watch.down_ms or self.context.clock.now_ms()
        for launch in known:
            self.context.unknown(launch.job_id, launch.number, launch.indexes, for_ms=self.lost_after_ms)

    async def on_there(self, info: Mapping[str, Any]) -> None:
        """The engine has answered."""
        if self._expected is not None:
            known, capacity = self._expected
            self.context.host_up(self.name, capacity(info), self.zone)
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
        for attempt in self.attempts.values():
            if attempt.killer is not None:
                attempt.killer.cancel()
        if not end_all and self.watch.back.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TIDY_S):  # else the next kernel finds them
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

    def _add(self, attempt: Attempt) -> Attempt:
        self.attempts[attempt.key] = attempt
        return attempt

    # -- launching --------------------------------------------------------------------------------

    def put(self, launch: Launch) -> None:
        """Run these, each once."""
        for key in launch.attempts():
            if key not in self.attempts and key not in self.over:
                self._enqueue(self._add(Attempt(key, launch)))
        if self._gone is not None:  # placed before the kernel could be told
            self.context.waiting(launch.job_id, launch.number, launch.indexes, reason=self._gone)

    def _enqueue(self, attempt: Attempt) -> None:
        assert attempt.launch is not None
        image = image_of(attempt.launch.spec, self.defaults)
        if image is None:
            self._not_started(
                attempt, "CannotCreateContainerError: the job has no image, and the environment no default"
            )
            return
        attempt.step = Step.WAITING
        attempt.token = self.images.token(image, attempt.key.job_id)
        if self.images.is_ready(attempt.token):
            self._starters.put(attempt)
            return
        self._parked.setdefault(attempt.token, []).append(attempt)
        if attempt.token not in self._pulls:
            task = asyncio.create_task(self._prepare(attempt.token), name="anybatch-docker-image")
            self._pulls[attempt.token] = task
            task.add_done_callback(lambda _: self._pulls.pop(attempt.token, None))

    async def _prepare(self, token: str) -> None:
        """Make an image ready, once for all that wait for it."""
        while True:
            try:
                await self.images.make_ready(token, lambda text: self._tell_waiting(token, text))
            except PullFailed as e:
                for attempt in self._parked.pop(token, ()):
                    if self.attempts.get(attempt.key) is attempt:
                        self._not_started(attempt, str(e))
                return
            except EngineGone as e:
                self.watch.doubt(e)
                await self.watch.back.wait()
                continue
            for attempt in self._parked.pop(token, ()):
                self._starters.put(attempt)
            return

    def _tell_waiting(self, token: str, text: str) -> None:
        groups: dict[tuple[str, int], list[int]] = {}
        for attempt in self._parked.get(token, ()):
            if self.attempts.get(attempt.key) is attempt:
                groups.setdefault((attempt.key.job_id, attempt.key.number), []).append(attempt.key.index)
        for (job_id, number), indexes in groups.items():
            self.context.waiting(job_id, number, indexes, reason=text)

    async def _begin(self, attempt: Attempt) -> None:
        """Create and start a container."""
        await self.watch.back.wait()
        if self.attempts.get(attempt.key) is not attempt or attempt.step is not Step.WAITING:
            return
        launch = attempt.launch
        assert launch is not None
        attempt.step = Step.BEGINNING
        try:
            secrets = await self._secrets(launch.spec.container)
        except Exception as e:  # a resolver is somebody else's code
            self._not_started(attempt, f"ResourceInitializationError: unable to pull secrets: {short(e)}")
            return
        try:
            await self._create_and_start(attempt, launch, secrets)
        except EngineGone as e:
            self._try_again(attempt, e)
        except EngineError as e:
            await self._could_not(attempt, e)

    async def _create_and_start(self, attempt: Attempt, launch: Launch, secrets: Mapping[str, str]) -> None:
        key, spec = attempt.key, launch.spec
        attempt.volumes = tuple(shared_volumes(self.owner, key, spec.container or ContainerSpec()).values())
        body = create_body(self.owner, key, launch, self.defaults, secrets)
        try:
            attempt.container = await self.engine.create(self.owner.name(key), body)
        except EngineError as e:
            if e.status != 409 or not await self._is_there(attempt):
                raise
        if attempt.step is not Step.BEGINNING:  # it has run all the same: what became of it is known
            return
        if spec.script is not None:
            await self.engine.put(attempt.container, script_folder(spec.container), script_archive(spec.script))
        if attempt.stopped:
            self._not_started(attempt, "stopped before it started")
            self._removers.put(attempt)
            return
        self._marks.add(self.owner.name(key))
        await self.engine.start(attempt.container)
        if attempt.step is Step.BEGINNING:
            self._runs(attempt, self.context.clock.now_ms())

    async def _is_there(self, attempt: Attempt) -> bool:
        """Whether the name is taken by this very attempt's container; notes how that stands."""
        found = await self.engine.inspect(self.owner.name(attempt.key))
        if self.owner.key((found.get("Config") or {}).get("Labels") or {}) != attempt.key:
            return False
        attempt.container = str(found["Id"])
        state = found.get("State") or {}
        if state.get("Running") or state.get("Status") in ("running", "paused"):
            self._runs(attempt, self.watch.to_ours(epoch_ms(str(state.get("StartedAt", "")))))
        elif state.get("Status") not in ("created", "initialized", "configured") and attempt.step is Step.BEGINNING:
            attempt.step = Step.RUNNING
            self._end(attempt, None)
        return True

    def _try_again(self, attempt: Attempt, error: EngineGone) -> None:
        """The engine has not answered: what it has done is seen when it does."""
        self.watch.doubt(error)
        attempt.tries += 1
        if attempt.step is not Step.BEGINNING:
            return
        if attempt.tries >= TRIES_MAX and not self.watch.down_ms:
            self._not_started(attempt, f"DockerTimeoutError: {error}")
            if attempt.container:
                self._removers.put(attempt)
            return
        attempt.step = Step.WAITING
        if self._gone is not None:
            self.context.waiting(attempt.key.job_id, attempt.key.number, [attempt.key.index], reason=self._gone)
        self._starters.put(attempt, first=True)

    async def _could_not(self, attempt: Attempt, error: EngineError) -> None:
        if attempt.step is not Step.BEGINNING:
            return
        if not attempt.container and error.status == 404 and "image" in error.message.lower() and not attempt.tries:
            attempt.tries += 1
            self.images.forget(attempt.token)  # removed since it was pulled
            self._enqueue(attempt)
            return
        what = "CannotStartContainerError" if attempt.container else "CannotCreateContainerError"
        self._not_started(attempt, f"{what}: {short(error.message)}")
        if attempt.container:
            self._removers.put(attempt)

    async def _secrets(self, container: ContainerSpec | None) -> dict[str, str]:
        if container is None:
            return {}
        wanted = {secret.name: secret.value_from for secret in container.secrets or ()}
        if container.log_configuration is not None:
            options = container.log_configuration.secret_options
            wanted.update({f"log/{secret.name}": secret.value_from for secret in options})
        if wanted and self.secrets is None:
            raise LookupError("the environment has neither an option `secrets` nor a resolver")
        return {name: await self.secrets(value_from) for name, value_from in wanted.items() if self.secrets is not None}

    def _not_started(self, attempt: Attempt, reason: str) -> None:
        """It never ran, and why."""
        key = attempt.key
        self._leave(attempt)
        self._marks.drop(self.owner.name(key))
        self.context.exited(
            key.job_id, key.number, [key.index], [None],
            reason=reason[:REASON_CHARS_MAX], status_reason=TEXT_NOT_STARTED,
        )  # fmt: skip

    # -- running ----------------------------------------------------------------------------------

    def _runs(self, attempt: Attempt, at_ms: int) -> None:
        attempt.step = Step.RUNNING
        attempt.started_ms = attempt.started_ms or at_ms
        self._tell_started(attempt)
        if attempt.stopped:
            self._send(attempt)

    def _tell_started(self, attempt: Attempt) -> None:
        key, attempt.told_started = attempt.key, True
        at_ms = [attempt.started_ms] if attempt.started_ms else None
        self.context.started(key.job_id, key.number, [key.index], at_ms)

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
        elif kind == "destroy" and attempt.step is Step.RUNNING:
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
                if now_there is None or now_there.get("State") in ("exited", "stopped", "dead", "removing"):
                    self._end(attempt, None)
                elif attempt.kill_at is not None and attempt.kill_at < now:
                    self._send(attempt)
        for key, one in there.items():
            if key not in self.attempts and key not in self.over:  # its end is known, or it was never to start
                left = Attempt(key, None)
                left.container, left.volumes = str(one["Id"]), tuple(names_of(one.get("Labels") or {}))
                self._removers.put(left)

    def on_down(self, reason: str) -> None:
        """The engine is gone: nothing is placed here, and what runs is not known of."""
        self._gone = reason
        self.context.host_paused(self.name, reason)
        for (job_id, number), indexes in self._in(Step.RUNNING).items():
            self.context.unknown(job_id, number, indexes, for_ms=self.lost_after_ms)
        for (job_id, number), indexes in self._in(Step.WAITING).items():
            self.context.waiting(job_id, number, indexes, reason=reason)

    def on_up(self, outage_ms: int) -> None:
        """The engine is there: placement goes on, and what runs is known of again."""
        self._gone = None
        if not outage_ms:
            return
        self.images.forget_all()
        self.context.host_paused(self.name, None)
        for (job_id, number), indexes in self._in(Step.RUNNING).items():
            self.context.started(job_id, number, indexes)
            self.context.found(self.name, job_id, number, indexes)  # to be stopped, if it was given up meanwhile

    def _in(self, step: Step) -> dict[tuple[str, int], list[int]]:
        """The attempts of this step: indexes per job and attempt number."""
        found: dict[tuple[str, int], list[int]] = {}
        for key, attempt in self.attempts.items():
            if attempt.step is step:
                found.setdefault((key.job_id, key.number), []).append(key.index)
        return found

    # -- stopping ---------------------------------------------------------------------------------

    def stop(self, key: AttemptKey, grace_ms: int) -> None:
        """End an attempt: SIGTERM now, SIGKILL after the grace; the earliest SIGKILL counts."""
        attempt = self.attempts.get(key)
        if attempt is None or attempt.step in (Step.ENDING, Step.OVER):
            return
        if attempt.step is Step.WAITING:
            self._not_started(attempt, "stopped before it started")
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
            log.warning(
                "docker_signal_failed", attempt=str(attempt.key), error=str(e)
            )  # tried again with the next list
