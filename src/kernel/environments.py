"""Environments at work: each compute environment has a driver that owns its backend.

A driver hands launches and stops over in order, with bounds on how long a backend may take. What a
backend does wrong costs its own environment: it turns INVALID with the reason, the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
from msgspec import structs

from . import bodies
from .backend import AttemptKey, AttemptSpec, Backend, Forgets, HostStatus, Launch, WithHosts
from .bound import Bound
from .context import REASON_CHARS_MAX, Context, kept_text
from .core.effects import LaunchAttempts, StopAttempts
from .core.errors import AnyBatchError, BackendError
from .core.indexes import place_of
from .core.inputs import AllListed, Ended, EnvironmentFailed
from .core.model import DEFAULT_GRACE_MS, TEXT_NOT_STARTED, ResourceStatus
from .core.state import JobRow
from .core.states import RUNNING, STARTING
from .logs import Log
from .roles import RoleRequest, Roles

if TYPE_CHECKING:
    from .cleaner import Cleaner
    from .registry import BackendRegistry
    from .runtime import Runtime

log = Log("anybatch.kernel")

START_S_MAX: Final = 120.0
"""For a backend to start and settle what was in flight."""
LAUNCH_S_MAX: Final = 300.0
"""For a backend to take a batch of launches."""
STOP_S_MAX: Final = 60.0
"""For a backend to take a batch of stops."""
CLOSE_S_MAX: Final = 60.0
"""For a backend to let go."""
FORGET_S_MAX: Final = 60.0
"""For a backend to remove what it keeps of forgotten jobs."""
FINISH_S_MAX: Final = 10.0
"""For a call that a backend is busy with when the kernel closes."""


class Driver:
    """Owns one environment's backend from its start to its close."""

    def __init__(self, name: str, runtime: Runtime, registry: BackendRegistry, roles: Roles, runtime_dir: Path) -> None:
        self.name = name
        self.backend: Backend | None = None
        self.notes: dict[AttemptKey, str] = {}
        """What attempts that have not started yet wait for, as their backend says."""
        self.settled = asyncio.Event()
        """Set whenever the backend has started, or has failed to."""
        self._runtime = runtime
        self._registry = registry
        self._roles = roles
        self._runtime_dir = runtime_dir
        self._context: Context | None = None
        self._todo: deque[LaunchAttempts | StopAttempts] = deque()
        self._wake = asyncio.Event()
        self._restart = True
        self._stop = False
        self.backend_name = ""
        self._bound = Bound()
        self._specs: dict[int, AttemptSpec] = {}
        self._strays: list[AttemptKey] = []
        self._forgotten: list[str] = []

    # -- what the runtime asks for ------------------------------------------------------------------

    def put(self, effect: LaunchAttempts | StopAttempts) -> None:
        """Hand a launch or stop over, after those before it."""
        self._todo.append(effect)
        self._wake.set()

    def stop_strays(self, keys: Sequence[AttemptKey]) -> None:
        """End those of these attempts that are not live here as far as the kernel knows."""
        strays = [key for key in keys if not self._is_live(key)]
        if strays:
            self._strays += strays
            self._wake.set()

    def forget(self, job_ids: Sequence[str]) -> None:
        """What the backend keeps of these jobs may go."""
        backend: object = self.backend
        if isinstance(backend, Forgets):
            self._forgotten += job_ids
            self._wake.set()

    def host_status(self) -> Mapping[str, HostStatus]:
        """What the backend knows of its hosts now, as far as it can say."""
        backend: object = self.backend
        if not isinstance(backend, WithHosts):
            return {}
        try:
            return dict(backend.host_status())
        except Exception as e:
            log.warning("host_status_failed", environment=self.name, error=repr(e))
            return {}

    def _is_live(self, key: AttemptKey) -> bool:
        state = self._runtime.state
        job = state.jobs.get(state.ids.get(key.job_id, 0))
        place = None if job is None else place_of(job.indexes, job.children.size, key.index)
        if job is None or place is None or job.children.number[place] != key.number:
            return False
        host = state.hosts.get(job.children.hosts()[place])
        here = host is not None and host.environment == self.name
        return here and job.children.status[place] in (STARTING, RUNNING)

    def restart(self) -> None:
        """Tell the backend of an update, or start it anew if it could not work."""
        self.settled.clear()
        self._restart = True
        self._wake.set()

    def finish(self) -> None:
        """Close the backend and end `run`, with a little time for what the backend is busy with."""
        self._stop = True
        self._bound.shorten(FINISH_S_MAX)
        self._wake.set()

    # -- the loop -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until `finish`."""
        try:
            while not self._stop:
                if self._restart:
                    self._restart = False
                    await self._start()
                    self.settled.set()
                if not (self._todo or self._strays or self._forgotten or self._restart or self._stop):
                    self._wake.clear()
                    await self._wake.wait()
                if self._strays:
                    strays, self._strays = self._strays, []
                    await self._end(strays)
                await self._drain()
                if self._forgotten:
                    await self._forget()
        finally:
            with anyio.CancelScope(shield=True):
                await self._close()
            self._bound.close()
            self.settled.set()

    async def _start(self) -> None:
        row = self._runtime.state.environments.get(self.name)
        if row is None:
            return
        body = row.body
        context = Context(self, bodies.settings(self.name, body, row.registered), self._runtime, self._runtime_dir)
        if self.backend is None or row.status is not ResourceStatus.VALID:
            await self._close()
        try:
            context.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.backend_name = body.backend
            if self.backend is None:
                self.backend = self._registry.make(body.backend, self.name)
            self._context = context
            known = await self._known()
            await self._bounded(self.backend.start(context, known), START_S_MAX)
            able = context.honoured if context.honoured is not None else self.backend.capabilities.container
            hosts, container = tuple(context.hosts), tuple(sorted(able))
            self._runtime.report(AllListed(environment=self.name, hosts=hosts, container=container))
        except Exception as e:
            self._fail("did not start", e)
            await self._close()

    async def _bounded(self, call: Awaitable[None], seconds: float) -> None:
        """Await what a backend does, within its bound. A cancellation that nobody asked for is an error of its own."""
        try:
            await self._bound.keep(call, seconds)
        except asyncio.CancelledError as e:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise BackendError("it was cancelled from inside") from e

    def _fail(self, what: str, error: Exception) -> None:
        """The environment is INVALID from now on."""
        text = f"took longer than its bound and {what}" if isinstance(error, TimeoutError) else str(error)
        if not isinstance(error, (AnyBatchError, TimeoutError)):
            text = f"{type(error).__name__}: {error}"
        reason = kept_text(f"backend {self.backend_name!r} {what}: {text}")[:REASON_CHARS_MAX]
        log.warning("environment_failed", environment=self.name, reason=reason)
        self._runtime.report(EnvironmentFailed(environment=self.name, reason=reason))

    async def _drain(self) -> None:
        """Hand over what has been asked for, in order: launches and stops that stand together in one call."""
        while self._todo and not self._restart:
            if self.backend is not None and self.backend.capabilities.remote and not await self._synced():
                self._todo.clear()  # the kernel has stopped
            if not self._todo or self._restart:
                break
            kind = type(self._todo[0])
            batch: list[LaunchAttempts | StopAttempts] = []
            while self._todo and type(self._todo[0]) is kind:
                batch.append(self._todo.popleft())
            if kind is LaunchAttempts:
                await self._launch([e for e in batch if isinstance(e, LaunchAttempts)])
            else:
                jobs = self._runtime.state.jobs
                stops = [e for e in batch if isinstance(e, StopAttempts) and e.job in jobs]
                await self._end([_key(jobs[e.job], i, number) for e in stops for i, number in e.attempts])

    async def _synced(self) -> bool:
        """Return once all that is committed now is on disk (True), or the kernel has stopped."""
        outcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def done(error: BaseException | None) -> None:
            if not outcome.done():
                outcome.set_result(error is None)

        self._runtime.when_synced(done)
        return await outcome

    async def _launch(self, effects: list[LaunchAttempts]) -> None:
        state = self._runtime.state
        if any(state.jobs[effect.job].spec.role is not None for effect in effects):
            await self._roles.wait()
        # A host that has gone meanwhile has taken its attempts with it.
        effects = [effect for effect in effects if effect.host in state.hosts]
        launches: list[Launch] = []
        for effect in list(effects):
            try:
                launches += self._with_role(self._launch_of(effect))
            except AnyBatchError as e:
                effects.remove(effect)
                self._not_started(effect.job, effect.number, effect.indexes, e)
        if not effects:
            return
        backend = self.backend
        try:
            if backend is None:
                raise BackendError("the environment's backend is not running")
            await self._bounded(backend.launch(launches), LAUNCH_S_MAX)
        except Exception as e:
            if not isinstance(e, BackendError) or not e.retryable:
                self._fail("could not launch", e)
            if backend is not None:
                # Some may run all the same, and must not beside the attempts that follow them.
                keys = [key for launch in launches for key in launch.attempts()]
                with contextlib.suppress(Exception):
                    await self._bounded(backend.stop(keys, 0), STOP_S_MAX)
            for effect in effects:
                self._not_started(effect.job, effect.number, effect.indexes, e)

    def _not_started(self, job: int, number: int, indexes: Sequence[int], error: Exception) -> None:
        self._runtime.report(
            Ended(
                environment=self.name,
                job=job,
                number=number,
                indexes=indexes,
                codes=[None] * len(indexes),
                reason=kept_text(str(error))[:REASON_CHARS_MAX] or type(error).__name__,
                status_reason=TEXT_NOT_STARTED,
            )
        )

    async def _end(self, keys: Sequence[AttemptKey]) -> None:
        if self.backend is None or not keys:
            return
        try:
            await self._bounded(self.backend.stop(keys, DEFAULT_GRACE_MS), STOP_S_MAX)
        except Exception as e:
            self._fail("could not stop attempts", e)

    async def _forget(self) -> None:
        """Have the backend remove what is forgotten; what that fails for costs space, and nothing else."""
        job_ids, self._forgotten = self._forgotten, []
        backend: object = self.backend
        if job_ids and isinstance(backend, Forgets):
            try:
                await self._bounded(backend.forget(job_ids), FORGET_S_MAX)
            except Exception as e:
                log.warning("jobs_not_forgotten", environment=self.name, jobs=len(job_ids), error=repr(e))

    async def _close(self) -> None:
        backend, self.backend = self.backend, None
        self.notes.clear()
        if backend is None:
            return
        try:
            await self._bounded(backend.close(), CLOSE_S_MAX)
        except Exception as e:
            log.warning("backend_close_failed", environment=self.name, error=repr(e))
        if self._context is not None:
            self._context.closed = True
        self._registry.release(self.backend_name, self.name)

    # -- attempts for the backend -------------------------------------------------------------------

    def _launch_of(self, effect: LaunchAttempts) -> Launch:
        state = self._runtime.state
        job = state.jobs[effect.job]
        return Launch(
            job_id=job.job_id,
            number=effect.number,
            indexes=job.shown(effect.indexes),
            host=state.hosts[effect.host].name,
            spec=self._spec(job),
            array_size=job.size,
            gpus={job.index_of(i): job.gpus[i] for i in effect.indexes} if job.gpus else {},
        )

    def _with_role(self, launch: Launch) -> list[Launch]:
        """The same, with what its job's role gives each attempt.

        Raises:
            AnyBatchError: the role gives nothing, and why.
        """
        state = self._runtime.state
        role = state.jobs[state.ids[launch.job_id]].spec.role
        if role is None:
            return [launch]
        body = state.environments[self.name].body
        keys = launch.attempts()
        request = RoleRequest(
            role=role,
            attempts=keys,
            array_size=launch.array_size,
            environment=self.name,
            backend=body.backend,
            options=body.options,
        )
        variables = self._roles.variables(request)
        if not any(variables.values()):
            return [launch]
        spec = launch.spec
        return [
            structs.replace(
                launch,
                indexes=[key.index],
                spec=structs.replace(spec, environment={**variables[key], **spec.environment}),
                gpus={key.index: launch.gpus[key.index]} if key.index in launch.gpus else {},
            )
            for key in keys
        ]

    def _spec(self, job: JobRow) -> AttemptSpec:
        spec = self._specs.get(job.serial)
        if spec is None:
            if len(self._specs) > 1024:
                self._specs.clear()
            spec = self._specs[job.serial] = attempt_spec(job, self.name)
        return spec

    async def _known(self) -> list[Launch]:
        """What was in flight here when the kernel, or the backend, last stopped."""
        state = self._runtime.state
        known: list[Launch] = []
        for launch in self._in_flight():
            serial = state.ids[launch.job_id]
            if launch.known_started or state.jobs[serial].spec.role is None:
                known.append(launch)  # what runs has got what its role gives
                continue
            await self._roles.wait()
            try:
                known += self._with_role(launch)
            except AnyBatchError as e:
                known.append(launch)  # it may run, and is to be ended
                self._strays += launch.attempts()
                self._not_started(serial, launch.number, launch.indexes, e)
        return known

    def _in_flight(self) -> list[Launch]:
        state = self._runtime.state
        row = state.environments[self.name]
        waiting = {(e.job, e.number, i) for e in self._todo if isinstance(e, LaunchAttempts) for i in e.indexes}
        found: dict[tuple[int, int, int, bool], list[int]] = {}
        for host_serial in row.hosts.values():
            for serial in state.hosts[host_serial].load:
                children = state.jobs[serial].children
                for i in state.jobs[serial].live():
                    if children.hosts()[i] == host_serial and (serial, children.number[i], i) not in waiting:
                        key = (serial, children.number[i], host_serial, children.status[i] == RUNNING)
                        found.setdefault(key, []).append(i)
        return [
            Launch(
                job_id=state.jobs[serial].job_id,
                number=number,
                indexes=state.jobs[serial].shown(indexes),
                host=state.hosts[host].name,
                spec=self._spec(state.jobs[serial]),
                array_size=state.jobs[serial].size,
                gpus=_gpus(state.jobs[serial], indexes),
                known_started=running,
            )
            for (serial, number, host, running), indexes in found.items()
        ]


def _gpus(job: JobRow, places: Sequence[int]) -> dict[int, tuple[int, ...]]:
    return {job.index_of(i): job.gpus[i] for i in places if i in job.gpus}


def _key(job: JobRow, place: int, number: int) -> AttemptKey:
    return AttemptKey(job.job_id, job.index_of(place), number)


def attempt_spec(job: JobRow, environment: str) -> AttemptSpec:
    """What a backend is told of a job, shared by all its attempts there (contract 5.5, EV-1)."""
    spec = job.spec
    return AttemptSpec(
        command=spec.command,
        script=spec.script,
        environment={**spec.environment, "AWS_BATCH_JQ_NAME": job.queue, "AWS_BATCH_CE_NAME": environment},
        vcpus_milli=spec.vcpus_milli,
        memory_mib=spec.memory_mib,
        gpus=spec.gpus,
        timeout_ms=spec.timeout_ms,
        workdir=spec.workdir,
        scratch=spec.scratch,
        container=spec.container,
    )


class Drivers:
    """The drivers of all environments; what the runtime hands effects to."""

    def __init__(
        self,
        runtime: Runtime,
        registry: BackendRegistry,
        roles: Roles,
        runtime_dir: Callable[[], Path],
        spawn: Callable[[Driver], None],
        cleaner: Cleaner,
    ) -> None:
        self._cleaner = cleaner
        self._runtime = runtime
        self._registry = registry
        self._runtime_dir = runtime_dir
        self._spawn = spawn
        self._roles = roles
        self._drivers: dict[str, Driver] = {}

    def open(self) -> None:
        """Start every environment that the journal knows, and stop again what was being stopped."""
        for name in self._runtime.state.environments:
            self.start_environment(name)
        for job in self._runtime.state.jobs.values():
            if job.stopping:
                number = job.children.number
                self.stop(StopAttempts(job.serial, [(i, number[i]) for i in job.stopping]))

    def launch(self, effect: LaunchAttempts) -> None:
        host = self._runtime.state.hosts[effect.host]
        self._drivers[host.environment].put(effect)

    def stop(self, effect: StopAttempts) -> None:
        state = self._runtime.state
        hosts = state.jobs[effect.job].children.hosts()
        by_environment: dict[str, list[tuple[int, int]]] = {}
        for index, number in effect.attempts:
            host = state.hosts.get(hosts[index])
            if host is not None:
                by_environment.setdefault(host.environment, []).append((index, number))
        for name, attempts in by_environment.items():
            self._drivers[name].put(StopAttempts(effect.job, attempts))

    def start_environment(self, name: str) -> None:
        driver = self._drivers.get(name)
        if driver is not None:
            driver.restart()
            return
        driver = self._drivers[name] = Driver(name, self._runtime, self._registry, self._roles, self._runtime_dir())
        self._spawn(driver)

    def close_environment(self, name: str) -> None:
        driver = self._drivers.pop(name, None)
        if driver is not None:
            driver.finish()

    def forget(self, job_ids: Sequence[str]) -> None:
        self._cleaner.forget(job_ids)
        for driver in self._drivers.values():
            driver.forget(job_ids)

    def host_status(self, name: str) -> Mapping[str, HostStatus]:
        """What an environment's backend knows of its hosts now."""
        driver = self._drivers.get(name)
        return driver.host_status() if driver is not None else {}

    def note(self, environment: str, key: AttemptKey) -> str | None:
        """What an attempt that has not started yet waits for, as its backend says."""
        driver = self._drivers.get(environment)
        return driver.notes.get(key) if driver is not None else None

    def __getitem__(self, name: str) -> Driver:
        return self._drivers[name]

    def all(self) -> Iterable[Driver]:
        """Every driver."""
        return list(self._drivers.values())

    async def settle(self, name: str) -> None:
        """Return once the environment's backend has started or failed to, and the kernel has taken note."""
        driver = self._drivers.get(name)
        if driver is None:
            return
        with anyio.move_on_after(START_S_MAX + FINISH_S_MAX):  # a backend may swallow its cancellation
            await driver.settled.wait()
        handled = asyncio.Event()
        self._runtime.when_handled(lambda _: handled.set())
        await handled.wait()
