"""Delivery to sinks: one runner per sink, each with a cursor in the journal.

A runner reads what is synced to disk from its cursor on, hands it over in batches, and moves the cursor once a
batch was taken. After an error it waits, longer each time, opens the sink anew and goes on with the same events.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Awaitable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import msgspec

from . import arguments as args
from .core.errors import AnyBatchError, EventsTrimmed, InvalidValue, PluginError
from .logs import Log
from .registry import GROUPS, load_error
from .runtime import Runtime
from .sink import SINK_API_VERSION, EventGap, Sink, SinkConfig, SinkContext, SinkDetail, SinkError, SinkEvent
from .stream import EventId, read_events
from .trimming import ForgottenJobs
from .views import to_datetime

if TYPE_CHECKING:
    from .kernel import Kernel

log = Log("anybatch.kernel")

BATCH_MAX: Final = 1_000
"""Events handed over at a time, at most; an event may be about many children."""
DELIVER_S_MAX: Final = 60.0
"""How long a sink may take over one batch."""
OPEN_S_MAX: Final = 60.0
CLOSE_S_MAX: Final = 10.0
FLUSH_S_MAX: Final = 5.0
"""How long a closing kernel goes on delivering what is there; the rest is delivered by the next one."""
BACKOFF_MS_MIN: Final = 500
"""The first pause after an error; each further one is twice as long."""
BACKOFF_MS_MAX: Final = 60_000
RETRY_AFTER_S_MAX: Final = 3_600.0
"""The longest pause that a sink can ask for."""
ERROR_CHARS_MAX: Final = 1_024


class SinkRunner:
    """Serves one sink."""

    def __init__(
        self,
        name: str,
        config: SinkConfig,
        sink: Sink,
        options: Any,
        runtime: Runtime,
        forgotten: ForgottenJobs,
        kernel: Kernel,
    ) -> None:
        self.name = name
        self._kernel = kernel
        self.config = config
        self._sink = sink
        self._options = options
        self._runtime = runtime
        self._forgotten = forgotten
        self._news = asyncio.Event()
        self._finishing = asyncio.Event()
        self._failures = 0
        self._error: str | None = None
        self._opened = False
        self._gap: EventGap | None = None
        self._scope = anyio.CancelScope()
        journal = runtime.journal
        at = journal.cursors().get(name)
        if at is None:
            first = journal.oldest - 1 if config.start == "oldest" else journal.last
            at = journal.epoch_of(first), first
            journal.put_cursor(name, *at)
        self._cursor = EventId(*at)

    def detail(self) -> SinkDetail:
        """How it stands."""
        return SinkDetail(
            name=self.name,
            plugin=self.config.plugin,
            cursor=self._cursor,
            behind=max(self._runtime.journal.last - self._cursor.sequence, 0),
            failures=self._failures,
            error=self._error,
        )

    def finish(self) -> None:
        """End `run`, with a little time for what is there."""
        self._finishing.set()
        self._news.set()
        self._scope.deadline = min(self._scope.deadline, anyio.current_time() + FLUSH_S_MAX)

    async def run(self) -> None:
        """Deliver until `finish`, then what is there, for a bounded time."""
        unlisten = self._runtime.listen(self._news.set)
        try:
            with self._scope:
                while not self._finishing.is_set() and self._runtime.failure is None:
                    self._news.clear()
                    if await self._synced():
                        await self._round()
                    if not self._news.is_set():
                        await self._news.wait()
                if not self._failures and await self._synced(urgent=True):
                    await self._round()
        finally:
            unlisten()
            with anyio.CancelScope(shield=True):
                await self._close()

    async def _round(self) -> None:
        """Deliver all that is there; after an error, pause."""
        try:
            await self._serve()
        except Exception as e:
            self._failed(e)
            await self._close()
            await self._pause(e.retry_after_s if isinstance(e, SinkError) else None)

    async def _serve(self) -> None:
        while True:
            events, upto = await self._next()
            if upto == self._cursor.sequence and not events:
                return
            if not self._opened:
                folder = self._runtime.journal.files.parent if self._runtime.journal.durable else Path.cwd()
                kernel_id = self._runtime.state.kernel_id
                context = SinkContext(
                    name=self.name, kernel_id=kernel_id, options=self._options, folder=folder, kernel=self._kernel
                )
                await _bounded(self._sink.open(context), OPEN_S_MAX, "open")
                self._opened = True
            for start in range(0, len(events), BATCH_MAX):
                part = events[start : start + BATCH_MAX]
                await _bounded(self._sink.deliver(part), DELIVER_S_MAX, "take a batch")
                self._gap, ends = None, part[-1]
                if not isinstance(ends, EventGap):
                    self._move(ends.id.sequence)
            self._gap = None
            self._move(upto)
            if self._failures:
                log.info("sink_works_again", sink=self.name, failures=self._failures)
            self._failures, self._error = 0, None

    def _move(self, sequence: int) -> None:
        journal = self._runtime.journal
        self._cursor = EventId(journal.epoch_of(sequence), sequence)
        journal.put_cursor(self.name, *self._cursor)

    async def _next(self) -> tuple[list[SinkEvent], int]:
        """What comes next, and up to where that reaches; after a gap, the gap first."""
        after = self._cursor.sequence if self._gap is None else self._gap.next - 1
        fork = self._fork()
        if self._gap is None and fork is not None:
            after = fork
            self._gap = self._made_gap(fork + 1, "the journal was damaged, and events were lost with it")
        try:
            events, upto = await read_events(self._runtime, self._forgotten, after, self._runtime.synced)
        except EventsTrimmed as e:
            after = e.oldest[1] - 1
            self._gap = self._made_gap(e.oldest[1], "forgotten before the sink took them")
            events, upto = await read_events(self._runtime, self._forgotten, after, self._runtime.synced)
        found: list[SinkEvent] = [*events]
        return ([self._gap, *found] if self._gap is not None else found), upto

    def _made_gap(self, following: int, reason: str) -> EventGap:
        at = to_datetime(self._runtime.clock.now_ms())
        log.warning("sink_has_a_gap", sink=self.name, after=tuple(self._cursor), next=following, reason=reason)
        return EventGap(after=self._cursor, next=following, at=at, reason=reason)

    def _fork(self) -> int | None:
        """Where to go on if the cursor's event is not in this log: before the first event of a later epoch."""
        journal, cursor = self._runtime.journal, self._cursor
        if cursor.sequence <= journal.last and journal.epoch_of(cursor.sequence) <= cursor.epoch:
            return None
        kept = range(journal.oldest, journal.last + 1)
        return journal.oldest + bisect_right(kept, cursor.epoch, key=journal.epoch_of) - 1

    async def _synced(self, *, urgent: bool = False) -> bool:
        """Return once what is committed now is on disk (True), or the kernel has stopped."""
        outcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def done(error: BaseException | None) -> None:
            if not outcome.done():
                outcome.set_result(error is None)

        self._runtime.when_synced(done, urgent=urgent)
        return await outcome

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        text = str(error) if isinstance(error, AnyBatchError) else f"{type(error).__name__}: {error}"
        self._error = text[:ERROR_CHARS_MAX]
        if self._failures & (self._failures - 1) == 0:  # the first, second, fourth, ...
            log.warning("sink_failed", sink=self.name, failures=self._failures, error=self._error)

    async def _pause(self, asked_s: float | None) -> None:
        pause_ms = min(BACKOFF_MS_MIN << min(self._failures - 1, 16), BACKOFF_MS_MAX)
        if asked_s is not None:
            pause_ms = max(pause_ms, round(min(asked_s, RETRY_AFTER_S_MAX) * 1000))
        over = asyncio.Event()
        clock = self._runtime.clock
        timer = clock.call_at(clock.now_ms() + pause_ms, over.set)
        waits = [asyncio.ensure_future(event.wait()) for event in (over, self._finishing)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            for wait in waits:
                wait.cancel()
        self._news.set()

    async def _close(self) -> None:
        if not self._opened and not self._failures:
            return
        self._opened = False
        try:
            await _bounded(self._sink.close(), CLOSE_S_MAX, "close")
        except Exception as e:
            log.warning("sink_close_failed", sink=self.name, error=repr(e))


async def _bounded(call: Awaitable[None], seconds: float, what: str) -> None:
    """Await what a sink does, within its bound. A cancellation that nobody asked for is an error of its own."""
    try:
        with anyio.fail_after(seconds):
            await call
    except TimeoutError as e:
        raise SinkError(f"it took longer than its bound of {seconds:g} s to {what}") from e
    except asyncio.CancelledError as e:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise SinkError(f"it was cancelled from inside as it was to {what}") from e


def make_sinks(
    given: Mapping[str, Sink | SinkConfig | Mapping[str, Any]] | None,
) -> dict[str, tuple[SinkConfig, Sink, Any]]:
    """The sinks that a kernel is given, checked: per name what was asked for, the sink, and its options.

    Raises:
        InvalidValue: the field at fault is named (`sinks.<name>.options...`).
        PluginError: a sink cannot be loaded, or speaks another version of the protocol.
    """
    if given is not None and not isinstance(given, Mapping):
        raise InvalidValue("sinks", given, "it maps names to sinks, or to {'plugin': ..., 'options': {...}}")
    found: dict[str, tuple[SinkConfig, Sink, Any]] = {}
    for name, entry in (given or {}).items():
        field = f"sinks.{name}"
        if not isinstance(name, str) or not name:  # type: ignore[redundant-expr]  # callers may be untyped
            raise InvalidValue("sinks", name, "a sink's name is a text that is not empty")
        config = entry
        if isinstance(entry, Mapping):
            try:
                config = msgspec.convert(entry, SinkConfig)
            except msgspec.ValidationError as e:
                raise InvalidValue(field, entry, f"it is {{'plugin': ..., 'options': {{...}}}}: {e}") from e
        if isinstance(config, SinkConfig):
            if config.start not in ("oldest", "new"):
                raise InvalidValue(f"{field}.start", config.start, "it is 'oldest' or 'new'")
            sink = _load(field, config.plugin)
            found[name] = config, sink, _options(f"{field}.options", config.plugin, sink, config.options)
        elif isinstance(config, Sink) and not isinstance(config, type):
            plugin = type(config).__name__
            _check(plugin, config)
            found[name] = SinkConfig(plugin=plugin), config, _options(f"{field}.options", plugin, config, {})
        else:
            raise InvalidValue(field, entry, "it is a sink, or {'plugin': ..., 'options': {...}}")
    return found


def _load(field: str, plugin: str) -> Sink:
    points = {point.name: point for point in entry_points(group=GROUPS[1])}
    if plugin not in points:
        raise InvalidValue(
            f"{field}.plugin", plugin, f"a sink is one of {', '.join(sorted(points)) or 'none installed'}"
        )
    try:
        made = points[plugin].load()()
    except Exception as e:
        raise PluginError(
            f"sink {plugin!r} ({points[plugin].value}) failed to load: {load_error(points[plugin], e)}"
        ) from e
    _check(plugin, made)
    return made  # type: ignore[no-any-return]


def _check(plugin: str, sink: Any) -> None:
    version = getattr(sink, "api_version", None)
    if version != SINK_API_VERSION:
        text = f"sink {plugin!r} is for protocol version {version}; this kernel speaks version {SINK_API_VERSION}"
        raise PluginError(text)
    missing = [part for part in ("Options", "open", "deliver", "close") if not hasattr(sink, part)]
    if missing:
        raise PluginError(f"sink {plugin!r} lacks {', '.join(missing)}")


def _options(field: str, name: str, sink: Sink, given: object) -> Any:
    return msgspec.convert(args.options(field, given, sink.Options, f"sink {name!r}"), sink.Options)


class Sinks:
    """The runners of all sinks of a kernel."""

    def __init__(
        self,
        made: Mapping[str, tuple[SinkConfig, Sink, Any]],
        runtime: Runtime,
        forgotten: ForgottenJobs,
        kernel: Kernel,
    ) -> None:
        self._runners = [SinkRunner(name, *what, runtime, forgotten, kernel) for name, what in made.items()]

    def details(self) -> tuple[SinkDetail, ...]:
        """How each stands."""
        return tuple(runner.detail() for runner in self._runners)

    def finish(self) -> None:
        """End `run`."""
        for runner in self._runners:
            runner.finish()

    async def run(self) -> None:
        """Serve all of them until `finish`."""
        async with anyio.create_task_group() as group:
            for runner in self._runners:
                group.start_soon(runner.run, name=f"anybatch-sink-{runner.name}")
