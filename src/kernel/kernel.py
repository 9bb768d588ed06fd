"""The Kernel class: what a service embeds. Its methods turn calls into requests, and state into views."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import anyio
import msgspec

from . import arguments as args
from .backend import AttemptKey, Backend, BackendFactory
from .clock import Clock, SystemClock
from .core.errors import Conflict, InvalidValue, KernelClosed, NotFound
from .core.inputs import (
    CreateEnvironment,
    CreateQueue,
    DeleteEnvironment,
    DeleteQueue,
    DeregisterDefinition,
    RegisterDefinition,
    StopJob,
    StopRunning,
    SubmitJob,
    UpdateEnvironment,
    UpdateQueue,
)
from .core.model import (
    DefinitionBody,
    EnvironmentBody,
    Overrides,
    QueueBody,
    Quotas,
    ResourceState,
    RetryStrategy,
)
from .core.resources import get_environment, get_queue
from .core.state import JobRow
from .core.states import STATUSES, JobStatus
from .core.submit import find_job
from .environments import Driver, Drivers
from .handles import JobHandle
from .identifiers import IdSource, RandomIds
from .journal import FileJournal, Journal, MemoryJournal
from .registry import BackendRegistry
from .runtime import Runtime
from .runtime_dir import runtime_dir as make_runtime_dir
from .stream import EventId, EventStream
from .views import (
    DefinitionDetail,
    EnvironmentDetail,
    JobDetail,
    JobSummary,
    QueueDetail,
    definition_detail,
    environment_detail,
    job_detail,
    job_summary,
    queue_detail,
)

OnClose = Literal["detach", "drain", "stop"]
State = Literal["ENABLED", "DISABLED"]
JobReference = str | JobHandle
DependsOn = Iterable["JobReference | args.NToN | args.Sequential | Mapping[str, Any]"]

STOP_S_MAX: Final = 90.0
"""How long a closing kernel waits for what it stops: the grace of 30 s, and time for the reports."""
LIST_PAGE: Final = 500
"""Jobs that `list_jobs` looks at between two pauses for the event loop."""
RUN_NAME: Final = "anybatch-run"
"""The environment and the queue that `Kernel.run` makes for itself."""


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """What `Kernel.run` returns: the ended job, and all that it wrote."""

    job: JobDetail
    output: bytes

    @property
    def status(self) -> JobStatus:
        """SUCCEEDED or FAILED."""
        return self.job.status

    @property
    def exit_code(self) -> int | None:
        """The exit code of the latest attempt; None if there is none."""
        return self.job.exit_code

    def raise_for_status(self) -> RunResult:
        """Return self, or raise JobFailed if the job FAILED."""
        self.job.raise_for_status()
        return self


class Kernel:
    """A batch engine inside your event loop (asyncio).

    `path` names the journal's file, made if it is not there; without one the journal is in memory and the
    kernel's work ends with it. `backends` adds to, or replaces, the installed backends: a name mapped to a
    factory, or to one backend for one environment. `on_close` says what becomes of running attempts at the
    end of the `async with`: "detach" lets those that can outlive the process run, to be found again by the
    next kernel on this journal (default with a file; what cannot outlive it is stopped); "drain" starts
    nothing more and waits for them; "stop" ends them, and their jobs run again when the journal is next
    opened (default in memory). If the body is cancelled, a drain turns into the default.

    Methods raise `RequestError` (and change nothing) for what cannot be done as asked, `KernelClosed` once
    the kernel is closed. Wherever a job's id is taken, a handle or the job's name is too.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        backends: Mapping[str, Backend | BackendFactory] | None = None,
        quotas: Quotas | None = None,
        on_close: OnClose | None = None,
        clock: Clock | None = None,
        ids: IdSource | None = None,
        runtime_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if on_close not in (None, "detach", "drain", "stop"):
            raise InvalidValue("on_close", on_close, "it is 'detach', 'drain' or 'stop'")
        if path is None and on_close == "detach":
            raise InvalidValue("on_close", on_close, "a journal in memory cannot be opened again: 'drain' or 'stop'")
        self._path = path
        self._default_close: OnClose = "stop" if path is None else "detach"
        self._on_close: OnClose = on_close or self._default_close
        self._quotas = quotas or Quotas()
        self._clock = clock
        self._ids = ids or RandomIds()
        self._registry = BackendRegistry(backends)
        self._given_runtime_dir = runtime_dir
        self._runtime_path: Path | None = None
        self._temporary: str | None = None
        self._entered = False
        self._runtime: Runtime | None = None

    # -- life -------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._entered:
            raise KernelClosed("a Kernel object is used once; make another one")
        self._entered = True
        journal = self._open_journal()
        clock = self._clock
        try:
            runtime = Runtime(journal, clock or SystemClock(), self._quotas)
            runtime.open(self._ids.kernel_id(), lambda floor: clock or SystemClock(floor))
            self._drivers = Drivers(runtime, self._registry, self._runtime_dir, self._start_driver)
            runtime.effects = self._drivers
            self._runtime = runtime
            self._starting: asyncio.Queue[Driver | None] = asyncio.Queue()
            self._drivers.open()
        except BaseException:
            await journal.close()
            self._remove_temporary()
            raise
        # A task of its own, so that a cancelled body does not cancel the drivers before they could let go;
        # __aexit__ always waits for it.
        self._supervisor = asyncio.create_task(self._supervise(), name="anybatch-supervisor")
        return self

    def _open_journal(self) -> Journal:
        if self._path is not None:
            return FileJournal(self._path)
        self._temporary = tempfile.mkdtemp(prefix="anybatch-")
        return MemoryJournal(Path(self._temporary))

    def _remove_temporary(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        if self._runtime_path is not None and self._temporary is not None:
            shutil.rmtree(self._runtime_path, ignore_errors=True)

    def _runtime_dir(self) -> Path:
        if self._runtime_path is None:
            self._runtime_path = make_runtime_dir(self._live.state.kernel_id, self._given_runtime_dir)
        return self._runtime_path

    def _start_driver(self, driver: Driver) -> None:
        self._starting.put_nowait(driver)

    async def _supervise(self) -> None:
        async with anyio.create_task_group() as drivers:
            while (driver := await self._starting.get()) is not None:
                drivers.start_soon(driver.run, name=f"anybatch-environment-{driver.name}")

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        mode = self._on_close
        interrupted: BaseException | None = None
        if mode == "drain":
            self._live.placing = False
            try:
                if exc_type is None or not issubclass(exc_type, asyncio.CancelledError):
                    await self._live.wait_idle()
            except asyncio.CancelledError as e:
                interrupted, mode = e, self._default_close
            if exc_type is not None and issubclass(exc_type, asyncio.CancelledError):
                mode = self._default_close
        shutdown = asyncio.create_task(self._shut_down(mode), name="anybatch-shutdown")
        with anyio.CancelScope(shield=True):
            while not shutdown.done():
                try:
                    await asyncio.wait({shutdown})
                except asyncio.CancelledError as e:
                    interrupted = e
        shutdown.result()
        if interrupted is not None:
            raise interrupted

    async def _shut_down(self, mode: OnClose) -> None:
        """Stop what is to be stopped, let the backends go, and close the journal. Every wait has a bound."""
        runtime = self._live
        runtime.placing = False
        try:
            stopping = self._to_stop(mode)
            if stopping and runtime.failure is None:
                runtime.report(StopRunning(environments=tuple(stopping)))
                with anyio.move_on_after(STOP_S_MAX):
                    await runtime.wait_idle(stopping)
            for driver in self._drivers.all():
                driver.finish()
            self._starting.put_nowait(None)
            await self._supervisor
        finally:
            await runtime.close()
            self._remove_temporary()

    def _to_stop(self, mode: OnClose) -> list[str]:
        """The environments whose attempts are ended: those that cannot outlive the kernel, or all of them."""
        if mode == "drain":
            return []
        return [
            driver.name
            for driver in self._drivers.all()
            if mode == "stop" or (driver.backend is not None and not driver.backend.capabilities.reattach)
        ]

    @property
    def _live(self) -> Runtime:
        if self._runtime is None:
            raise KernelClosed("the kernel is not open; use it in `async with`")
        return self._runtime

    @property
    def _open(self) -> Runtime:
        runtime = self._live
        runtime.check_open()
        return runtime

    @property
    def id(self) -> str:
        """The kernel id, made with the journal."""
        return self._live.state.kernel_id

    # -- jobs -------------------------------------------------------------------------------------

    async def submit_job(
        self,
        name: str,
        *,
        queue: str,
        definition: str | DefinitionDetail | None = None,
        array_size: int | None = None,
        depends_on: DependsOn | None = None,
        command: Sequence[str] | None = None,
        script: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
        parameters: Mapping[str, str] | None = None,
        vcpus: float | None = None,
        memory: int | str | None = None,
        gpus: int | None = None,
        retry: int | RetryStrategy | Mapping[str, Any] | None = None,
        timeout: float | None = None,
        workdir: str | None = None,
        scratch: bool | None = None,
        tags: Mapping[str, str] | None = None,
        scheduling_priority: int | None = None,
        client_token: str | None = None,
    ) -> JobHandle:
        """Queue a job; returns once that is on disk.

        `definition` is a name (its newest ACTIVE revision) or `name:revision`; without one, `command` or
        `script` says what to run. `array_size` makes it an array of that many children. `depends_on` lists
        jobs that have to have SUCCEEDED (ids, handles, or names: the one unfinished job of that name, else
        its newest finished one), `n_to_n(job)` and `SEQUENTIAL`. What else is given overrides the
        definition: `environment` and `parameters` are merged by name, the rest replaces. `timeout` is in
        seconds per attempt, `memory` in MiB or a text such as "2GiB". A `client_token` used before returns
        the job that it was first used for.

        Raises:
            InvalidValue, QuotaExceeded, NotFound, Conflict: nothing was queued.
        """
        if isinstance(definition, DefinitionDetail):
            definition = definition.reference
        overrides = Overrides(
            command=None if command is None else args.command("command", command),
            script=None if script is None else args.script("script", script),
            environment=args.texts("environment", environment or {}),
            parameters=args.texts("parameters", parameters or {}),
            vcpus_milli=None if vcpus is None else args.milli("vcpus", vcpus),
            memory_mib=None if memory is None else args.mebibytes("memory", memory),
            gpus=None if gpus is None else args.whole("gpus", gpus),
            retry=None if retry is None else args.retry("retry", retry),
            timeout_ms=None if timeout is None else args.milliseconds("timeout", timeout),
            workdir=_workdir(workdir),
            scratch=None if scratch is None else args.flag("scratch", scratch),
            tags=args.texts("tags", tags or {}),
            scheduling_priority=(
                None if scheduling_priority is None else args.whole("scheduling_priority", scheduling_priority)
            ),
        )
        request = SubmitJob(
            job_id=self._ids.job_id(),
            name=args.text("name", name),
            queue=args.text("queue", queue),
            definition=args.optional_text("definition", definition),
            overrides=overrides,
            size=None if array_size is None else args.whole("array_size", array_size),
            depends_on=args.dependencies("depends_on", depends_on),
            client_token=args.optional_text("client_token", client_token),
        )
        serial = await self._open.request(request)
        return self._handle(self._live.state.jobs[serial])

    def _handle(self, job: JobRow, index: int | None = None) -> JobHandle:
        if index is None:
            return JobHandle(self, job.job_id, job.name, job.size)
        return JobHandle(self, f"{job.job_id}:{index}", job.name, None)

    def _find(self, job: object) -> tuple[JobRow, int | None]:
        return find_job(self._open.state, args.job_reference("job", job))

    def job(self, job: JobReference) -> JobHandle:
        """The handle of a job or child."""
        row, index = self._find(job)
        return self._handle(row, index)

    async def describe_job(self, job: JobReference) -> JobDetail:
        """What a job or child is and how it stands."""
        row, index = self._find(job)
        return job_detail(self._live.state, row, index)

    async def describe_jobs(self, jobs: Iterable[JobReference]) -> list[JobDetail]:
        """The same for several, in the order asked for.

        Raises:
            NotFound: one of them does not exist.
        """
        if isinstance(jobs, (str, JobHandle)):
            raise InvalidValue("jobs", jobs, "it is a list of ids or handles; describe_job takes a single one")
        found = [self._find(job) for job in jobs]
        return [job_detail(self._live.state, row, index) for row, index in found]

    async def list_jobs(
        self,
        *,
        queue: str | None = None,
        status: JobStatus | str | Iterable[JobStatus | str] | None = None,
        name: str | None = None,
        parent: JobReference | None = None,
    ) -> AsyncIterator[JobSummary]:
        """Jobs that fit everything given, newest first; or with `parent` the children of an array, by index.

        `name` is exact, or a prefix with a trailing `*`. What is submitted during the iteration may be left out.
        """
        state = self._open.state
        wanted = args.statuses("status", status)
        pattern = args.optional_text("name", name)
        if queue is not None:
            get_queue(state, args.text("queue", queue))
        if parent is not None:
            row, index = self._find(parent)
            if row.size is None or index is not None:
                raise InvalidValue("parent", getattr(parent, "id", parent), "only an array job has children")
            if (queue is not None and row.queue != queue) or not _fits(row.name, pattern):
                return
            for start in range(0, row.size, LIST_PAGE):
                for i in range(start, min(start + LIST_PAGE, row.size)):
                    if wanted is None or STATUSES[row.children.status[i]] in wanted:
                        yield job_summary(row, i)
                await asyncio.sleep(0)
            return
        for serials in _pages(sorted(state.jobs, reverse=True)):
            for serial in serials:
                job = state.jobs.get(serial)
                if job is None or (queue is not None and job.queue != queue):
                    continue
                if (wanted is None or job.status in wanted) and _fits(job.name, pattern):
                    yield job_summary(job, None)
            await asyncio.sleep(0)

    async def wait(self, job: JobReference) -> JobDetail:
        """Return what a job or child is once it has ended. Cancelling the wait does not cancel the job."""
        row, index = self._find(job)
        await self._live.wait_ended(row.serial, index)
        return job_detail(self._live.state, row, index)

    async def cancel_job(self, job: JobReference, reason: str) -> None:
        """End what of the job has not reached STARTING: it is FAILED with this reason (contract 2.5).

        What runs goes on, what has ended stays as it is. An array's children are cancelled each by that rule.
        """
        await self._stop_job(job, reason, terminate=False)

    async def terminate_job(self, job: JobReference, reason: str) -> None:
        """End the job in any status: what waits is FAILED, what runs is stopped (SIGTERM, after 30 s SIGKILL).

        Returns once that is asked for; the job is FAILED with this reason when its attempts have ended.
        """
        await self._stop_job(job, reason, terminate=True)

    async def _stop_job(self, job: JobReference, reason: str, *, terminate: bool) -> None:
        reference = args.job_reference("job", job)
        request = StopJob(job=reference, reason=args.text("reason", reason), terminate=terminate)
        await self._open.request(request)

    async def logs(
        self, job: JobReference, *, follow: bool = False, attempt: int | None = None
    ) -> AsyncIterator[bytes]:
        """What an attempt has written, in pieces; the latest attempt unless `attempt` is given.

        With `follow` until the attempt has ended (a job that waits is waited for).
        """
        row, index = self._find(job)
        if row.size is not None and index is None:
            raise InvalidValue("job", row.job_id, f"an array's logs are its children's; give {row.job_id}:<index>")
        at = index or 0
        if attempt is None and follow:
            await self._wait_attempt(row, at)
        number = row.children.number[at] if attempt is None else args.whole("attempt", attempt)
        if attempt is not None and not 1 <= number <= row.children.number[at]:
            raise NotFound("attempt", str(attempt), f"{row.job_id} has had {row.children.number[at]} attempts")
        if number == 0:
            return
        host = self._live.state.hosts.get(row.children.hosts()[at])
        if host is None:
            raise Conflict("job", row.job_id, "the host that keeps its logs is gone")
        backend = self._drivers[host.environment].backend
        if backend is None:
            await self._drivers.settle(host.environment)
            backend = self._drivers[host.environment].backend
        if backend is None:
            raise Conflict("compute environment", host.environment, "it is INVALID; its logs cannot be read")
        async for piece in backend.logs(AttemptKey(row.job_id, at, number), follow=follow):
            yield piece

    async def _wait_attempt(self, row: JobRow, index: int) -> None:
        """Return once the job has had an attempt, or has ended without one."""
        news = asyncio.Event()
        unlisten = self._live.listen(news.set)
        try:
            while not row.children.number[index] and not STATUSES[row.children.status[index]].is_terminal:
                news.clear()
                await news.wait()
                self._live.check_open()
        finally:
            unlisten()

    async def read_logs(self, job: JobReference, *, attempt: int | None = None) -> bytes:
        """All that an attempt has written so far."""
        return b"".join([piece async for piece in self.logs(job, attempt=attempt)])

    async def run(
        self,
        command: Sequence[str] | None = None,
        *,
        name: str = RUN_NAME,
        script: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
        vcpus: float | None = None,
        memory: int | str | None = None,
        retry: int | RetryStrategy | None = None,
        timeout: float | None = None,
        workdir: str | None = None,
    ) -> RunResult:
        """Run one command as a job and wait for it; nothing has to be created before.

        It runs as a local process, in an environment and a queue named "anybatch-run", which are made when
        first needed. If the wait is cancelled, the job is terminated.
        """
        state = self._open.state
        if RUN_NAME not in state.environments:
            await self.create_compute_environment(RUN_NAME, backend="process", exist_ok=True)
        if RUN_NAME not in state.queues:
            await self.create_job_queue(RUN_NAME, priority=1, compute_environments=[RUN_NAME], exist_ok=True)
        job = await self.submit_job(
            name,
            queue=RUN_NAME,
            command=command,
            script=script,
            environment=environment,
            vcpus=vcpus,
            memory=memory,
            retry=retry,
            timeout=timeout,
            workdir=workdir,
        )
        try:
            detail = await job.wait()
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await job.terminate("The call that ran it was cancelled")
            raise
        return RunResult(job=detail, output=await job.read_logs())

    # -- job definitions --------------------------------------------------------------------------

    async def register_job_definition(
        self,
        name: str,
        *,
        command: Sequence[str] | None = None,
        script: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
        parameters: Mapping[str, str] | None = None,
        vcpus: float = 1,
        memory: int | str = 0,
        gpus: int = 0,
        retry: int | RetryStrategy | Mapping[str, Any] = 1,
        timeout: float | None = None,
        workdir: str | None = None,
        scratch: bool = False,
        tags: Mapping[str, str] | None = None,
        scheduling_priority: int = 0,
        exist_ok: bool = False,
    ) -> DefinitionDetail:
        """Make the next revision of a definition; arguments as in `submit_job`.

        `parameters` are the defaults of the command's `Ref::name` places. With `exist_ok`, the newest revision
        is returned if it is equal.

        Raises:
            Conflict: with `exist_ok`, the newest revision differs in a field, which the error names.
        """
        body = DefinitionBody(
            command=() if command is None else args.command("command", command),
            script=None if script is None else args.script("script", script),
            environment=args.texts("environment", environment or {}),
            parameters=args.texts("parameters", parameters or {}),
            vcpus_milli=args.milli("vcpus", vcpus),
            memory_mib=args.mebibytes("memory", memory),
            gpus=args.whole("gpus", gpus),
            retry=args.retry("retry", retry),
            timeout_ms=None if timeout is None else args.milliseconds("timeout", timeout),
            workdir=_workdir(workdir),
            scratch=args.flag("scratch", scratch),
            tags=args.texts("tags", tags or {}),
            scheduling_priority=args.whole("scheduling_priority", scheduling_priority),
        )
        request = RegisterDefinition(name=args.text("name", name), body=body, exist_ok=args.flag("exist_ok", exist_ok))
        found, revision = await self._open.request(request)
        return definition_detail(self._live.state.definitions[found][revision])

    async def deregister_job_definition(self, definition: str | DefinitionDetail) -> None:
        """Turn a revision, `name:revision`, INACTIVE: no new job can use it; jobs that do go on (JD-6)."""
        reference = (
            definition.reference if isinstance(definition, DefinitionDetail) else args.text("definition", definition)
        )
        name, _, revision = reference.partition(":")
        if not revision.isdecimal():
            raise InvalidValue("definition", reference, "it names one revision: 'name:revision'")
        await self._open.request(DeregisterDefinition(name=name, revision=int(revision)))

    async def describe_job_definitions(
        self, name: str | None = None, *, active: bool | None = None
    ) -> list[DefinitionDetail]:
        """Every revision, of one name or of all, by name and newest first; `active` keeps (in)active ones only."""
        definitions = self._open.state.definitions
        if name is not None and args.text("name", name) not in definitions:
            raise NotFound("job definition", name)
        chosen = sorted(definitions) if name is None else [name]
        rows = [definitions[n][revision] for n in chosen for revision in sorted(definitions[n], reverse=True)]
        return [definition_detail(row) for row in rows if active is None or row.active is active]

    # -- job queues -------------------------------------------------------------------------------

    async def create_job_queue(
        self,
        name: str,
        *,
        priority: int,
        compute_environments: Sequence[str],
        state: State = "ENABLED",
        tags: Mapping[str, str] | None = None,
        exist_ok: bool = False,
    ) -> QueueDetail:
        """Create a queue over one to three environments, tried in this order. Higher priorities go first.

        With `exist_ok`, an equal queue that is there is returned.

        Raises:
            Conflict: it exists (with `exist_ok`: and differs in a field, which the error names), or an
                environment is not VALID.
        """
        body = QueueBody(
            priority=args.whole("priority", priority),
            compute_environments=args.names("compute_environments", compute_environments),
            state=_state(state),
            tags=args.texts("tags", tags or {}),
        )
        for environment in body.compute_environments:
            await self._drivers.settle(environment)
        request = CreateQueue(name=args.text("name", name), body=body, exist_ok=args.flag("exist_ok", exist_ok))
        await self._open.request(request)
        return queue_detail(self._live.state.queues[name])

    async def update_job_queue(
        self,
        name: str,
        *,
        priority: int | None = None,
        state: State | None = None,
        compute_environments: Sequence[str] | None = None,
    ) -> QueueDetail:
        """Change what is given. A DISABLED queue takes no jobs; those that it has go on (JQ-7)."""
        environments = (
            None if compute_environments is None else args.names("compute_environments", compute_environments)
        )
        request = UpdateQueue(
            name=args.text("name", name),
            priority=None if priority is None else args.whole("priority", priority),
            state=None if state is None else _state(state),
            compute_environments=environments,
        )
        await self._open.request(request)
        return queue_detail(self._live.state.queues[name])

    async def delete_job_queue(self, name: str) -> None:
        """Delete a DISABLED queue. Its waiting jobs fail, its running ones are stopped; then it is gone (JQ-10)."""
        await self._open.request(DeleteQueue(name=args.text("name", name)))

    async def describe_job_queues(self, names: Sequence[str] | None = None) -> list[QueueDetail]:
        """All queues, or those named (in that order)."""
        state = self._open.state
        chosen = sorted(state.queues) if names is None else args.names("names", names)
        return [queue_detail(get_queue(state, name)) for name in chosen]

    # -- compute environments ---------------------------------------------------------------------

    async def create_compute_environment(
        self,
        name: str,
        *,
        backend: str,
        max_vcpus: float | None = None,
        min_vcpus: float = 0,
        managed: bool = True,
        state: State = "ENABLED",
        options: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        exist_ok: bool = False,
    ) -> EnvironmentDetail:
        """Create an environment on a backend, and return once that has started or failed to.

        `max_vcpus` None: as many as this process may use CPUs. `options` are the backend's own. If the backend
        cannot start, the environment exists with status INVALID and the reason; `update_compute_environment`
        tries again. With `exist_ok`, an equal environment that is there is returned.

        Raises:
            InvalidValue: also for options that the backend does not take.
            PluginError: the backend is installed but cannot be loaded.
            Conflict: it exists (with `exist_ok`: and differs in a field, which the error names).
        """
        self._check_options(args.text("backend", backend), options or {})
        body = EnvironmentBody(
            backend=backend,
            managed=args.flag("managed", managed),
            min_vcpus_milli=args.milli("min_vcpus", min_vcpus),
            max_vcpus_milli=cpus() * 1000 if max_vcpus is None else args.milli("max_vcpus", max_vcpus),
            state=_state(state),
            options=msgspec.to_builtins(dict(options or {})),
            tags=args.texts("tags", tags or {}),
        )
        request = CreateEnvironment(name=args.text("name", name), body=body, exist_ok=args.flag("exist_ok", exist_ok))
        await self._open.request(request)
        await self._drivers.settle(name)
        return environment_detail(self._live.state, get_environment(self._live.state, name))

    def _check_options(self, backend: str, options: object) -> None:
        if not isinstance(options, Mapping):
            raise InvalidValue("options", options, "it maps the names of the backend's options to values")
        try:
            msgspec.convert(dict(options), self._registry.options(backend))
        except msgspec.ValidationError as e:
            raise InvalidValue("options", dict(options), f"backend {backend!r}: {e}") from e

    async def update_compute_environment(
        self,
        name: str,
        *,
        state: State | None = None,
        min_vcpus: float | None = None,
        max_vcpus: float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> EnvironmentDetail:
        """Change what is given, and return once the backend has started anew.

        A DISABLED environment takes no new attempts; those that run go on (CE-6).
        """
        row = get_environment(self._open.state, args.text("name", name))
        if options is not None:
            self._check_options(row.body.backend, options)
        request = UpdateEnvironment(
            name=name,
            state=None if state is None else _state(state),
            min_vcpus_milli=None if min_vcpus is None else args.milli("min_vcpus", min_vcpus),
            max_vcpus_milli=None if max_vcpus is None else args.milli("max_vcpus", max_vcpus),
            options=None if options is None else msgspec.to_builtins(dict(options)),
        )
        await self._open.request(request)
        await self._drivers.settle(name)
        return environment_detail(self._live.state, get_environment(self._live.state, name))

    async def delete_compute_environment(self, name: str) -> None:
        """Delete a DISABLED environment that no queue names and nothing runs on (CE-16)."""
        await self._open.request(DeleteEnvironment(name=args.text("name", name)))

    async def describe_compute_environments(self, names: Sequence[str] | None = None) -> list[EnvironmentDetail]:
        """All environments with their hosts, or those named (in that order)."""
        state = self._open.state
        chosen = sorted(state.environments) if names is None else args.names("names", names)
        return [environment_detail(state, get_environment(state, name)) for name in chosen]

    # -- events -----------------------------------------------------------------------------------

    def events(self, *, after: EventId | tuple[int, int] | None = None) -> EventStream:
        """Every status change after this event, in order, then those to come; None: from the oldest kept.

        Use it as `async with kernel.events() as events: async for event in events: ...`. It ends with the kernel.

        Raises:
            EventsTrimmed: (while iterating) events after that one are no longer kept.
        """
        runtime = self._open
        if after is None:
            return EventStream(runtime, runtime.journal.oldest - 1)
        if not isinstance(after, tuple) or len(after) != 2 or not all(isinstance(part, int) for part in after):
            raise InvalidValue("after", after, "it is the id of an event: (epoch, sequence)")
        if after[1] > runtime.journal.last or after[1] < 0:
            raise InvalidValue("after", after, f"the newest event is {tuple(self.last_event_id())}")
        return EventStream(runtime, after[1])

    def last_event_id(self) -> EventId:
        """The id of the newest event: what `events(after=...)` takes to see only later ones."""
        journal = self._open.journal
        return EventId(journal.epoch_of(journal.last), journal.last)


def cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workdir(value: object) -> str | None:
    return (
        None if value is None else args.text("workdir", os.fspath(value) if isinstance(value, os.PathLike) else value)
    )


def _state(value: object) -> ResourceState:
    if value not in tuple(ResourceState):
        raise InvalidValue("state", value, "a state is ENABLED or DISABLED")
    return ResourceState(str(value))


def _fits(name: str, pattern: str | None) -> bool:
    if pattern is None:
        return True
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _pages(serials: list[int]) -> Iterable[list[int]]:
    return (serials[at : at + LIST_PAGE] for at in range(0, len(serials), LIST_PAGE))
