"""How an attempt begins: its image is made ready, once for all that wait; its container is created and started."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from ..kernel.backend import Launch
from ..kernel.core.container import ContainerSpec
from ..kernel.core.model import TEXT_NOT_STARTED
from ._docker_attempt import Attempt, Step, grouped
from ._docker_ends import REASON_CHARS_MAX, Ends
from ._docker_engine import EngineError, EngineGone, short
from ._docker_images import Images, PullFailed
from ._docker_pool import Pool
from ._docker_spec import (
    Defaults,
    create_body,
    epoch_ms,
    image_of,
    script_archive,
    script_folder,
    shared_volumes,
)

TRIES_MAX: Final = 5
"""Of creating and starting a container, or of pulling an image, on an engine that is there but does not answer."""
SECRETS_S: Final = 60.0
"""For a resolver to give an attempt's secrets."""
STOPPED: Final = "stopped before it started"

Resolver = Callable[[str], Awaitable[str]]
"""Gives a secret's value for its `value_from`; what it raises keeps the attempt from starting."""


class Starts(Ends):
    """A base of EngineHost: from a launch to a container that runs."""

    images: Images
    defaults: Defaults
    secrets: Resolver | None
    _parked: dict[str, list[Attempt]]
    """Those that wait for an image, by what it is made ready by."""
    _pulls: dict[str, asyncio.Task[None]]
    _starters: Pool
    _signallers: Pool
    _send: Callable[[Attempt], None]
    """Have a signal sent."""
    _gone: str | None
    """Why the engine cannot be reached; None: it can."""

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
        tries = 0
        while any(self.attempts.get(attempt.key) is attempt for attempt in self._parked.get(token, ())):
            try:
                await self.images.make_ready(token, lambda text: self._tell_waiting(token, text))
            except PullFailed as e:
                self._cannot_pull(token, str(e))
                return
            except EngineGone as e:
                tries += await self.watch.answers_after(e)
                if tries >= TRIES_MAX:
                    self._cannot_pull(token, f"CannotPullContainerError: {e}, {tries} times")
                    return
                continue
            for attempt in self._parked.pop(token, ()):
                self._starters.put(attempt)
            return
        self._parked.pop(token, None)  # nobody waits for it any more

    def _cannot_pull(self, token: str, reason: str) -> None:
        for attempt in self._parked.pop(token, ()):
            if self.attempts.get(attempt.key) is attempt:
                self._not_started(attempt, reason)

    def _tell_waiting(self, token: str, text: str) -> None:
        waiting = [one.key for one in self._parked.get(token, ()) if self.attempts.get(one.key) is one]
        for (job_id, number), indexes in grouped(waiting).items():
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
            why = f"no answer within {SECRETS_S:g} s" if isinstance(e, TimeoutError) else short(e)
            if attempt.is_at(Step.BEGINNING):
                self._not_started(attempt, f"ResourceInitializationError: unable to pull secrets: {why}")
            return
        if not attempt.is_at(Step.BEGINNING):  # given up meanwhile
            return
        try:
            await self._create_and_start(attempt, launch, secrets)
        except EngineGone as e:
            self._try_again(attempt, e)
        except EngineError as e:
            self._could_not(attempt, e)
        if attempt.given_up:  # it came into being all the same, too late
            self._clear_away(attempt)

    async def _create_and_start(self, attempt: Attempt, launch: Launch, secrets: Mapping[str, str]) -> None:
        key, spec = attempt.key, launch.spec
        attempt.volumes = tuple(shared_volumes(self.owner, key, spec.container or ContainerSpec()).values())
        body = create_body(self.owner, key, launch, self.defaults, secrets)
        try:
            attempt.container = await self.engine.create(self.owner.name(key), body)
        except EngineError as e:
            if e.status != 409 or not await self._is_there(attempt):
                raise
        if not attempt.is_at(Step.BEGINNING):  # it has run all the same: what became of it is known
            return
        if spec.script is not None:
            await self.engine.put(attempt.container, script_folder(spec.container), script_archive(spec.script))
        if not attempt.is_at(Step.BEGINNING):  # given up meanwhile
            return
        if attempt.stopped:
            self._not_started(attempt, STOPPED)
            self._clear_away(attempt)
            return
        self._marks.add(self.owner.name(key))
        await self.engine.start(attempt.container)
        if attempt.is_at(Step.BEGINNING):
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
        if not attempt.is_at(Step.BEGINNING):
            return
        if attempt.stopped or (attempt.tries >= TRIES_MAX and not self.watch.down_ms):  # what there is of it goes
            self._not_started(attempt, STOPPED if attempt.stopped else f"DockerTimeoutError: {error}")
            self._clear_away(attempt)
            return
        attempt.step = Step.WAITING
        if self._gone is not None:
            self.context.waiting(attempt.key.job_id, attempt.key.number, [attempt.key.index], reason=self._gone)
        self._starters.put(attempt, first=True)

    def _could_not(self, attempt: Attempt, error: EngineError) -> None:
        if not attempt.is_at(Step.BEGINNING):
            return
        if not attempt.container and error.status == 404 and "image" in error.message.lower() and not attempt.tries:
            attempt.tries += 1
            self.images.forget(attempt.token)  # removed since it was pulled
            self._enqueue(attempt)
            return
        what = "CannotStartContainerError" if attempt.container else "CannotCreateContainerError"
        self._not_started(attempt, f"{what}: {short(error.message)}")
        self._clear_away(attempt)

    async def _secrets(self, container: ContainerSpec | None) -> dict[str, str]:
        if container is None:
            return {}
        wanted = {secret.name: secret.value_from for secret in container.secrets or ()}
        if container.log_configuration is not None:
            options = container.log_configuration.secret_options
            wanted.update({f"log/{secret.name}": secret.value_from for secret in options})
        if wanted and self.secrets is None:
            raise LookupError("the environment has neither an option `secrets` nor a resolver")
        found = {}
        async with asyncio.timeout(SECRETS_S):
            for name, value_from in wanted.items():
                found[name] = await self.secrets(value_from) if self.secrets is not None else ""
        return found

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
