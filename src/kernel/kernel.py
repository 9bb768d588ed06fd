"""The Kernel class: what a service embeds. Its methods turn calls into requests, and state into views."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import anyio
import anyio.to_thread
import msgspec

from . import arguments as args
from .apply import Applied, apply_config
from .audit import RETAIN_AUDIT_BYTES, RETAIN_AUDIT_S, Audit
from .audit_calls import AuditCalls
from .backend import Backend, BackendFactory
from .cleaner import Cleaner
from .clock import Clock, SystemClock
from .config_model import Config
from .control.place import listen
from .control.server import ControlServer
from .core.container import ContainerSpec
from .core.errors import InvalidValue, KernelClosed, RequestError
from .core.inputs import (
    StopRunning,
)
from .core.model import (
    Quotas,
    RetryStrategy,
)
from .core.states import JobStatus
from .environments import CLOSE_S_MAX, FINISH_S_MAX, Driver, Drivers
from .host_calls import HostCalls
from .identifiers import IdSource, RandomIds
from .job_calls import JobCalls
from .journal import FileJournal, Journal, JournalLoss, MemoryJournal
from .journal_calls import JournalCalls
from .logs import Log
from .registry import BackendRegistry
from .resource_calls import ResourceCalls
from .roles import Roles
from .runtime import CALLER, Runtime
from .runtime_dir import runtime_dir as make_runtime_dir
from .sink import Sink, SinkConfig, SinkDetail
from .sinks import Sinks, make_sinks
from .stream import EventId, EventStream
from .trimming import ForgottenJobs, Trimmer
from .views import (
    JobDetail,
)

log = Log("anybatch.kernel")

OnClose = Literal["detach", "drain", "stop"]

STOP_S_MAX: Final = 90.0
"""How long a closing kernel waits for what it stops: the grace of 30 s, and time for the reports."""
RUN_NAME: Final = "anybatch-run"
"""The environment and the queue that `Kernel.run` makes for itself."""


RETAIN_EVENTS_S: Final = 7 * 86_400.0
"""How long events are kept, unless told otherwise."""
RETAIN_EVENTS_BYTES: Final = 1 << 30
"""How large the journal may grow before events go that are younger, unless told otherwise."""


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


class _ActingAs(contextlib.AbstractContextManager[None]):
    """What `Kernel.acting_as` returns. (Not a generator's context: front ends enter one per call.)"""

    def __init__(self, caller: tuple[str, str | None]) -> None:
        self._caller = caller

    def __enter__(self) -> None:
        self._token = CALLER.set(self._caller)

    def __exit__(self, *_: object) -> None:
        CALLER.reset(self._token)


class Kernel(JobCalls, ResourceCalls, HostCalls, JournalCalls, AuditCalls):
    """A batch engine inside your event loop (asyncio).

    `path` names the journal's file, made if it is not there; without one the journal is in memory and the
    kernel's work ends with it. `backends` adds to, or replaces, the installed backends: a name mapped to a
    factory, or to one backend for one environment. `sinks` says who is given every event: a name, under which
    the sink's place in the log is kept, mapped to a sink or to `{"plugin": ..., "options": {...}}`.

    `on_close` says what becomes of running attempts at the end of the `async with`: "detach" lets those that can
    outlive the process run, to be found again by the next kernel on this journal (default with a file; what cannot
    outlive it is stopped); "drain" starts nothing more and waits for them; "stop" ends them, and their jobs run again
    when the journal is next opened (default in memory). If the body is cancelled, a drain turns into the default.

    A journal in which something that was committed is missing or unreadable is refused (`JournalDamaged`) and left
    as it is; `accept_loss` goes on with what can be read, keeps the damaged files, and tells in `journal_loss`
    what was given up. A journal on a network file system is refused too, unless `allow_network_file_system` says
    that no other machine uses it.

    Events are kept for `retain_events` seconds (7 days), or until the journal is larger than `retain_events_bytes`
    (1 GiB); what a recovery or an unfinished job needs is kept in any case. Ended jobs are kept as their queue says.
    Records of calls through front ends (`audit`) are kept for `retain_audit` seconds (90 days), or until they take
    more than `retain_audit_bytes` (1 GiB).

    `control` opens a control socket (mode 0600), through which other processes of this user have the same methods:
    `anybatch.connect(path of the journal or socket)`, and the command line. It is the socket's path, or True for a
    place beside the journal, or in the runtime folder where that path is too long.

    Methods raise `RequestError` (and change nothing) for what cannot be done as asked, `KernelClosed` once
    the kernel is closed. Wherever a job's id is taken, a handle or the job's name is too.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        backends: Mapping[str, Backend | BackendFactory] | None = None,
        sinks: Mapping[str, Sink | SinkConfig | Mapping[str, Any]] | None = None,
        quotas: Quotas | None = None,
        on_close: OnClose | None = None,
        clock: Clock | None = None,
        ids: IdSource | None = None,
        runtime_dir: str | os.PathLike[str] | None = None,
        accept_loss: bool = False,
        allow_network_file_system: bool = False,
        retain_events: float = RETAIN_EVENTS_S,
        retain_events_bytes: int = RETAIN_EVENTS_BYTES,
        retain_audit: float = RETAIN_AUDIT_S,
        retain_audit_bytes: int = RETAIN_AUDIT_BYTES,
        control: bool | str | os.PathLike[str] = False,
    ) -> None:
        if on_close not in (None, "detach", "drain", "stop"):
            raise InvalidValue("on_close", on_close, "it is 'detach', 'drain' or 'stop'")
        if path is None and on_close == "detach":
            raise InvalidValue("on_close", on_close, "a journal in memory cannot be opened again: 'drain' or 'stop'")
        self._path = args.path("path", path)
        self._default_close: OnClose = "stop" if path is None else "detach"
        self._on_close: OnClose = on_close or self._default_close
        self._quotas = args.quotas("quotas", quotas)
        self._clock = clock
        self._ids = ids or RandomIds()
        self._registry = BackendRegistry(backends)
        self._given_sinks = make_sinks(sinks)
        self._given_runtime_dir = args.path("runtime_dir", runtime_dir)
        self._runtime_path: Path | None = None
        self._temporary: str | None = None
        self._accept_loss = args.flag("accept_loss", accept_loss)
        self._allow_network = args.flag("allow_network_file_system", allow_network_file_system)
        self._retain_events_ms = args.milliseconds("retain_events", retain_events)
        self._retain_events_bytes = args.whole("retain_events_bytes", retain_events_bytes)
        self._retain_audit_ms = args.milliseconds("retain_audit", retain_audit)
        self._retain_audit_bytes = args.whole("retain_audit_bytes", retain_audit_bytes)
        self._wants_control = control is not False
        self._given_control = None if isinstance(control, bool) else args.path("control", control)
        self._control: ControlServer | None = None
        self._roles = Roles()
        self._entered = False
        self._runtime: Runtime | None = None

    # -- life -------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._entered:
            raise KernelClosed("a Kernel object is used once; make another one")
        self._entered = True
        journal = await self._opened_journal()
        clock = self._clock
        try:
            runtime = Runtime(journal, clock or SystemClock(), self._quotas)
            runtime.open(self._ids.kernel_id(), lambda floor: clock or SystemClock(floor))
            self._cleaner = Cleaner(journal.files, runtime.state.ids)
            self._drivers = Drivers(
                runtime, self._registry, self._roles, self._runtime_dir, self._start_driver, self._cleaner
            )
            runtime.effects = self._drivers
            self._runtime = runtime
            self._trimmer = Trimmer(runtime, self._retain_events_ms, self._retain_events_bytes)
            self._forgotten = ForgottenJobs(runtime)
            folder = journal.files if journal.durable else None
            self._audit = Audit(folder, self._retain_audit_ms, self._retain_audit_bytes)
            self._sinks = Sinks(self._given_sinks, runtime, self._forgotten, self)
            self._starting: asyncio.Queue[Driver | None] = asyncio.Queue()
            if self._wants_control:
                await self._open_control(runtime)
            self._roles.open()
            self._drivers.open()
        except BaseException:
            if self._control is not None:
                await self._control.close()
            await journal.close()
            self._remove_temporary()
            raise
        # A task of its own, so that a cancelled body does not cancel the drivers before they could let go;
        # __aexit__ always waits for it.
        self._supervisor = asyncio.create_task(self._supervise(), name="anybatch-supervisor")
        return self

    async def _open_control(self, runtime: Runtime) -> None:
        files = runtime.journal.files
        listener, path = listen(self._given_control, files, self._runtime_dir)
        self._control = ControlServer(self, listener, path, files)
        await self._control.open()

    async def _opened_journal(self) -> Journal:
        """The journal, opened in a thread: a large one may take a while (half a second for each GiB)."""
        if self._path is None:
            return self._open_journal()
        opening = asyncio.create_task(anyio.to_thread.run_sync(self._open_journal), name="anybatch-open")
        interrupted: BaseException | None = None
        with anyio.CancelScope(shield=True):
            while not opening.done():
                try:
                    await asyncio.wait({opening})
                except asyncio.CancelledError as e:
                    interrupted = e
            if interrupted is not None:
                if opening.exception() is None:
                    await opening.result().close()
                raise interrupted
        return opening.result()

    def _open_journal(self) -> Journal:
        if self._path is not None:
            return FileJournal(self._path, accept_loss=self._accept_loss, allow_network_file_system=self._allow_network)
        self._temporary = tempfile.mkdtemp(prefix="anybatch-")
        return MemoryJournal(Path(self._temporary))

    def _remove_temporary(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            if self._runtime_path is not None:
                shutil.rmtree(self._runtime_path, ignore_errors=True)
        elif self._runtime_path is not None:
            with contextlib.suppress(OSError):
                self._runtime_path.rmdir()  # stays while a backend has something in it

    def _runtime_dir(self) -> Path:
        if self._runtime_path is None:
            self._runtime_path = make_runtime_dir(self._live.state.kernel_id, self._given_runtime_dir)
        return self._runtime_path

    def _start_driver(self, driver: Driver) -> None:
        self._starting.put_nowait(driver)

    async def _supervise(self) -> None:
        try:
            async with anyio.create_task_group() as drivers:
                drivers.start_soon(self._cleaner.run, name="anybatch-cleaner")
                drivers.start_soon(self._trimmer.run, name="anybatch-trimmer")
                drivers.start_soon(self._sinks.run, name="anybatch-sinks")
                while (driver := await self._starting.get()) is not None:
                    drivers.start_soon(driver.run, name=f"anybatch-environment-{driver.name}")
        except BaseException as e:
            self._live.fail(e)  # nothing is handed to backends any more
            raise

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
            self._cleaner.finish()
            self._trimmer.finish()
            self._sinks.finish()
            # Bounded: a backend that swallows its cancellation would be waited for for ever.
            _, hanging = await asyncio.wait({self._supervisor}, timeout=CLOSE_S_MAX + FINISH_S_MAX)
            if hanging:
                log.error("kernel_closed_with_a_hanging_backend", kernel=runtime.state.kernel_id)
            else:
                self._supervisor.result()
        finally:
            try:
                await runtime.close()
            finally:
                if self._control is not None:
                    await self._control.close()  # after those who wait through it have been told
                await self._audit.close()
                self._remove_temporary()

    def _to_stop(self, mode: OnClose) -> list[str]:
        """The environments whose attempts are ended: those that cannot outlive the kernel, or all of them."""
        if mode == "drain":
            return []
        return [
            driver.name
            for driver in self._drivers.all()
            if driver.backend is not None and (mode == "stop" or not driver.backend.capabilities.reattach)
        ]

    def acting_as(self, principal: str, *, request_id: str | None = None) -> contextlib.AbstractContextManager[None]:
        """Within the `with`, what this task asks of the kernel is recorded as this principal's, and for that call."""
        return _ActingAs((args.text("principal", principal), args.optional_text("request_id", request_id)))

    @property
    def id(self) -> str:
        """The kernel id, made with the journal."""
        return self._live.state.kernel_id

    @property
    def path(self) -> Path | None:
        """The journal's path; None: it is in memory."""
        return self._path

    @property
    def control_path(self) -> Path | None:
        """The control socket's path; None: there is none."""
        return None if self._control is None else self._control.path

    @property
    def journal_loss(self) -> JournalLoss | None:
        """What was given up when this kernel opened a damaged journal with `accept_loss=True`; None: nothing."""
        return self._live.journal.loss

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
        image: str | None = None,
        container: ContainerSpec | Mapping[str, Any] | None = None,
    ) -> RunResult:
        """Run one command as a job and wait for it; nothing has to be created before.

        It runs as a local process, in an environment and a queue named "anybatch-run", which are made when first
        needed; with an `image` in a container of the Docker Engine, in "anybatch-run-docker". If the call is
        cancelled, the job is terminated.
        """
        state = self._open.state
        contained = image is not None or container is not None
        place = f"{RUN_NAME}-docker" if contained else RUN_NAME
        if place not in state.environments:
            backend = "docker" if contained else "process"
            await self.create_compute_environment(place, backend=backend, exist_ok=True)
        if place not in state.queues:
            await self.create_job_queue(place, priority=1, compute_environments=[place], exist_ok=True)
        submitting = asyncio.ensure_future(
            self.submit_job(
                name,
                queue=place,
                image=image,
                container=container,
                command=command,
                script=script,
                environment=environment,
                vcpus=vcpus,
                memory=memory,
                retry=retry,
                timeout=timeout,
                workdir=workdir,
            )
        )
        try:
            job = await asyncio.shield(submitting)
            detail = await job.wait()
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                with contextlib.suppress(KernelClosed, RequestError):
                    await (await submitting).terminate("The call that ran it was cancelled")
            raise
        return RunResult(job=detail, output=await job.read_logs())

    async def apply(self, config: Config | Mapping[str, Any]) -> Applied:
        """Bring environments, queues and definitions to what `config` says; what it does not name is left alone.

        `config` is what `load_config` has read, or a mapping of the same form (docs/config.md): "environments",
        "queues" and "definitions" map names to tables with the arguments of `create_compute_environment`,
        `create_job_queue` and `register_job_definition`. The whole is checked first. A definition gets a new revision
        only where something changed, so a service can call this at every start. Its `jobs` and `run` are for
        `anybatch run`, its `kernel` for `Kernel(...)`: they are left alone.

        Raises:
            ConfigError: its `mistakes` are all that were found, what cannot be changed among them; nothing changed.
            Conflict: an environment that was just made does not work, so a queue on it cannot be made.
        """
        return await apply_config(self, config, self._registry)

    # -- events -----------------------------------------------------------------------------------

    def events(self, *, after: EventId | tuple[int, int] | None = None) -> EventStream:
        """Every status change after this event, in order, then those to come; None: from the oldest kept.

        Use it as `async with kernel.events() as events: async for event in events: ...`. It ends with the kernel.

        Raises:
            EventsTrimmed: (while iterating) events after that one are no longer kept.
            InvalidValue: there is no such event; with another epoch than its own, the log was cut since it was read.
        """
        runtime = self._open
        if after is None:
            return EventStream(runtime, self._forgotten, runtime.journal.oldest - 1)
        epoch, sequence = args.event_id("after", after)
        if not 0 <= sequence <= runtime.journal.last:
            raise InvalidValue("after", after, f"the newest event is {tuple(self._last_event_id())}")
        found = runtime.journal.epoch_of(sequence)
        if sequence and found != epoch:
            raise InvalidValue("after", after, f"event {sequence} is of epoch {found}: the log is not the one it was")
        return EventStream(runtime, self._forgotten, sequence)

    async def describe_sinks(self) -> tuple[SinkDetail, ...]:
        """How each sink stands: what it has taken, how far it is behind, and its last error."""
        self._live.check_open()
        return self._sinks.details()

    async def last_event_id(self) -> EventId:
        """The id of the newest event: what `events(after=...)` takes to see only later ones."""
        return self._last_event_id()

    async def next_event_id(self, after: EventId | tuple[int, int]) -> EventId:
        """The id of the newest event, as soon as there is one after this: something has changed, not only of jobs.

        Raises:
            InvalidValue: there is no such event yet.
        """
        runtime = self._open
        _, sequence = args.event_id("after", after)
        if not 0 <= sequence <= runtime.journal.last:
            raise InvalidValue("after", after, f"the newest event is {tuple(self._last_event_id())}")
        news = asyncio.Event()
        unlisten = runtime.listen(news.set)
        try:
            while runtime.journal.last == sequence:
                await news.wait()
                news.clear()
                runtime.check_open()
        finally:
            unlisten()
        return self._last_event_id()

    def _last_event_id(self) -> EventId:
        journal = self._open.journal
        return EventId(journal.epoch_of(journal.last), journal.last)
