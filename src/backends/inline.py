"""The inline backend: attempts are coroutines of the embedding service, run as tasks in its event loop.

A job's command names the coroutine function and gives its arguments: `command=["resize", "a.png"]` with
`InlineBackend({"resize": resize})`. A coroutine ends with an exit code (None: 0) or an exception (exit code 1,
its traceback in the log). A stop cancels it. When the process ends, what ran is lost with it (host lost).
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import anyio
import msgspec
from anybatch.kernel.backend import (
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
from anybatch.kernel.clock import Timer
from anybatch.kernel.core.errors import InvalidValue

HOST: Final = "inline"
FOLLOW_S: Final = 0.05
"""How often a followed log is looked at."""
CLOSE_S_MAX: Final = 5.0
"""For cancelled coroutines to end when the backend closes; those that do not are left to the event loop."""
LOG_PIECE: Final = 1 << 16
EXIT_CANCELLED: Final = 143
"""The exit code of a coroutine that was stopped and ended by its cancellation: 128 + SIGTERM."""
EXIT_ABANDONED: Final = 137
"""The exit code of a coroutine that would not end within the grace: 128 + SIGKILL."""


class InlineAttempt:
    """What a coroutine is given: its arguments, variables, and a log."""

    __slots__ = ("_at", "_launch", "_logs_dir")

    def __init__(self, launch: Launch, index: int, logs_dir: Path) -> None:
        self._launch = launch
        self._at = index
        self._logs_dir = logs_dir

    @property
    def job_id(self) -> str:
        """The job's id, or the child's."""
        launch = self._launch
        return launch.job_id if launch.array_size is None else f"{launch.job_id}:{self._at}"

    @property
    def index(self) -> int | None:
        """The child's index; None for a single job."""
        return None if self._launch.array_size is None else self._at

    @property
    def number(self) -> int:
        """The attempt's number, from 1."""
        return self._launch.number

    @property
    def args(self) -> tuple[str, ...]:
        """The command after the function's name."""
        return self._launch.spec.command[1:]

    @property
    def environment(self) -> dict[str, str]:
        """The job's variables, the AWS_BATCH_* ones included; the process's own are not in it."""
        return {**self._launch.spec.environment, **self._launch.variables(self._at)}

    def write(self, text: str | bytes) -> None:
        """Append to the attempt's log."""
        path = log_path(self._logs_dir, AttemptKey(self._launch.job_id, self._at, self.number))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(text.encode() if isinstance(text, str) else text)

    def print(self, *values: object) -> None:
        """Append a line to the attempt's log."""
        self.write(" ".join(map(str, values)) + "\n")


Function = Callable[[InlineAttempt], Awaitable[int | None]]


class InlineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`memory`: MiB that attempts may ask for in all (None: not counted)."""

    memory: Annotated[int, msgspec.Meta(ge=0)] | None = None


class InlineBackend:
    """Runs coroutine functions, by name. One object serves one environment."""

    api_version: ClassVar[int] = API_VERSION
    capabilities: ClassVar[Capabilities] = Capabilities(commands=False)
    Options: ClassVar[type[msgspec.Struct]] = InlineOptions

    def __init__(self, functions: Mapping[str, Function] | None = None) -> None:
        self._functions = dict(functions or {})
        for name, function in dict[Any, Any](functions or {}).items():
            if not isinstance(name, str) or not callable(function):
                raise InvalidValue("functions", {name: function}, "it maps names to coroutine functions")
        self._tasks: dict[AttemptKey, asyncio.Task[int | None]] = {}
        self._stopped: dict[AttemptKey, Timer] = {}
        self._exits: dict[tuple[str, int], tuple[list[int], list[int], list[int]]] = {}
        self._abandoned: set[asyncio.Task[int | None]] = set()

    @staticmethod
    def expects(settings: EnvironmentSettings) -> Expectation:
        """One host, with what the options say."""
        options = msgspec.convert(settings.options, InlineOptions)
        capacity = Capacity(vcpus_milli=settings.max_vcpus_milli, memory_mib=options.memory)
        return Expectation(hosts=[ExpectedHost(name=HOST, capacity=capacity)])

    async def start(self, context: BackendContext, known: Sequence[Launch]) -> None:
        self._report()
        self._context = context
        self._loop = asyncio.get_running_loop()
        context.host_up(HOST, self.expects(context.settings).hosts[0].capacity)
        for launch in known:
            gone = [key.index for key in launch.attempts() if key not in self._tasks]
            if gone:
                context.lost(launch.job_id, launch.number, gone, reason="the process that ran it has ended")

    async def launch(self, launches: Sequence[Launch]) -> None:
        for launch in launches:
            name = launch.spec.command[0] if launch.spec.command else ""
            function = self._functions.get(name)
            if function is None or launch.spec.script is not None:
                known = ", ".join(sorted(self._functions)) or "none"
                what = "scripts cannot be run inline" if launch.spec.script else f"no function is named {name!r}"
                self._context.exited(
                    launch.job_id, launch.number, launch.indexes, [None] * len(launch.indexes),
                    status_reason="Task failed to start", reason=f"{what}; the functions are: {known}",
                )  # fmt: skip
                continue
            for key in launch.attempts():
                if key not in self._tasks:
                    self._start(function, launch, key)
            self._context.started(launch.job_id, launch.number, launch.indexes)

    def _start(self, function: Function, launch: Launch, key: AttemptKey) -> None:
        attempt = InlineAttempt(launch, key.index, self._context.logs_dir)
        task = self._tasks[key] = self._loop.create_task(_call(function, attempt))
        task.add_done_callback(partial(self._ended, key, attempt))

    def _ended(self, key: AttemptKey, attempt: InlineAttempt, task: asyncio.Task[int | None]) -> None:
        if self._tasks.get(key) is not task:
            self._abandoned.discard(task)
            return
        del self._tasks[key]
        if self._stopped and (timer := self._stopped.pop(key, None)) is not None:
            timer.cancel()
        code, reason = self._outcome(attempt, task)
        if reason is not None:
            self._context.exited(key.job_id, key.number, [key.index], [code], reason=reason)
            return
        if not self._exits:  # plain exits of one turn of the loop are reported together
            self._loop.call_soon(self._report)
        found = self._exits.get((key.job_id, key.number))
        if found is None:
            found = self._exits[key.job_id, key.number] = [], [], []
        indexes, codes, at_ms = found
        indexes.append(key.index)
        codes.append(code)
        at_ms.append(self._context.clock.now_ms())

    def _report(self) -> None:
        exits, self._exits = self._exits, {}
        for (job_id, number), (indexes, codes, at_ms) in exits.items():
            self._context.exited(job_id, number, indexes, codes, at_ms)

    def _outcome(self, attempt: InlineAttempt, task: asyncio.Task[int | None]) -> tuple[int, str | None]:
        if task.cancelled():
            return EXIT_CANCELLED, None
        error = task.exception()
        if error is None:
            result: object = task.result()
            if result is None:
                return 0, None
            if isinstance(result, int) and not isinstance(result, bool) and 0 <= result <= 255:
                return result, None
            return 1, f"the function returned {result!r}; an exit code is 0 to 255, or None"
        with contextlib.suppress(OSError):  # a full disk, or no descriptors left: the reason is told all the same
            attempt.write("".join(traceback.format_exception(error)))
        return 1, f"{type(error).__name__}: {error}"

    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        for key in attempts:
            task = self._tasks.get(key)
            if task is None or key in self._stopped:
                continue
            clock = self._context.clock
            self._stopped[key] = clock.call_at(clock.now_ms() + grace_ms, partial(self._abandon, key))
            task.cancel()

    def _abandon(self, key: AttemptKey) -> None:
        """The grace is over: the attempt has ended as far as anybody is concerned."""
        task = self._tasks.pop(key, None)
        self._stopped.pop(key, None)
        if task is not None:
            self._abandoned.add(task)
            task.cancel()
            self._context.exited(
                key.job_id, key.number, [key.index], [EXIT_ABANDONED], reason="the coroutine ignored its cancellation"
            )

    async def logs(self, attempt: AttemptKey, *, follow: bool) -> AsyncIterator[bytes]:
        path, at = log_path(self._context.logs_dir, attempt), 0
        while True:
            live = attempt in self._tasks
            if path.exists():
                with path.open("rb") as file:
                    file.seek(at)
                    while piece := file.read(LOG_PIECE):
                        at += len(piece)
                        yield piece
            if not follow or not live:
                return
            await anyio.sleep(FOLLOW_S)

    async def close(self) -> None:
        self._report()
        for timer in self._stopped.values():
            timer.cancel()
        self._stopped.clear()
        tasks = {*self._tasks.values(), *self._abandoned}
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S_MAX)


async def _call(function: Function, attempt: InlineAttempt) -> int | None:
    try:
        return await function(attempt)
    except SystemExit as e:
        # Not for asyncio to see: it would end the event loop.
        if e.code is not None and not isinstance(e.code, int):
            attempt.print(e.code)
        return e.code & 255 if isinstance(e.code, int) else 0 if e.code is None else 1
