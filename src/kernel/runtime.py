"""The runtime: the one owner of the state. It turns requests and reports into committed events.

A turn takes every input that has arrived, runs each through the core, plans once, commits once, and
only then lets anything out: launches, stops, replies, notices, events. A turn is synchronous, so nobody
ever sees a state that is not committed. Replies to requests that change something also wait until the
log is synced to disk; one sync at a time serves all that have come meanwhile. Requests that come during
a sync could be answered only after the next one: unless a report brings about a turn before, they are
taken together when it ends.

If a commit or a sync fails, or the core has a bug, the runtime stops: every waiter gets the error,
attempts go on running, and nothing more is answered.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Final, Protocol

from msgspec import structs

from .clock import Clock, Timer
from .core.effects import (
    WANT_PLAN,
    CloseEnvironment,
    Effect,
    ForgetJobs,
    LaunchAttempts,
    NotifyChildren,
    NotifyJob,
    StartEnvironment,
    StopAttempts,
    WantPlan,
)
from .core.errors import JournalError, KernelBug, KernelClosed, RequestError
from .core.events import AnyEvent
from .core.inputs import Input, OpenKernel, Plan, Report, Request, Tick
from .core.machine import handle, next_timer_ms, replay
from .core.model import Quotas
from .core.snapshot import decode, encode
from .core.state import KernelState
from .core.states import SUCCEEDED
from .journal import Journal, Record
from .logs import Log

log = Log("anybatch.kernel")

SYNC_AFTER_S: Final = 0.02
"""How long committed progress may wait for its sync when no caller waits."""
PLAN_MOST: Final = 10_000
"""Attempts placed in one turn; the rest follows in the next."""
INPUTS_MOST: Final = 10_000
"""Inputs taken in one turn; the rest follows in the next."""


CALLER: ContextVar[tuple[str, str | None] | None] = ContextVar("anybatch_caller", default=None)
"""Whose requests these are, and the call that they are made for; None: the embedding code's own."""

SyncWaiter = tuple[int, Callable[[BaseException | None], None]]
"""Up to which sequence number the log has to be on disk, and whom to call back then."""


class EffectHandler(Protocol):
    """Who carries effects on environments out: the environments' drivers."""

    def launch(self, effect: LaunchAttempts) -> None:
        """Run these."""

    def stop(self, effect: StopAttempts) -> None:
        """End these."""

    def start_environment(self, name: str) -> None:
        """Start, or start anew."""

    def close_environment(self, name: str) -> None:
        """Close."""

    def forget(self, job_ids: Sequence[str]) -> None:
        """Remove what is kept of these jobs."""


class _Barrier(Input, frozen=True, kw_only=True):
    """Stands in the inbox for: call back once all before it is handled and synced."""

    callback: Callable[[BaseException | None], None]
    urgent: bool


class Runtime:
    """Owns the state, the journal and the inbox. Everything runs on one event loop."""

    def __init__(self, journal: Journal, clock: Clock, quotas: Quotas) -> None:
        self.journal = journal
        self.clock = clock
        self.state = KernelState(quotas)
        self.synced = 0
        """Up to which sequence number the log is on disk."""
        self.placing = True
        """Whether waiting work may be placed (not while draining or closing)."""
        self.failure: BaseException | None = None
        """What has stopped the runtime, if anything has."""
        self.effects: EffectHandler | None = None
        self._inbox: list[tuple[Input, asyncio.Future[Any] | None]] = []
        self._scheduled = False
        self._want_plan = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: Timer | None = None
        self._timer_ms: int | None = None
        self._ended: dict[int, list[asyncio.Future[None]]] = {}
        self._child_ended: dict[int, dict[int, list[asyncio.Future[None]]]] = {}
        self._listeners: list[Callable[[], None]] = []
        self._sync_waiters: list[SyncWaiter] = []
        self._patient_waiters: list[SyncWaiter] = []
        self._sync_task: asyncio.Task[None] | None = None
        self._sync_timer: asyncio.TimerHandle | None = None
        self._snapshot: Iterator[None] | None = None
        """The snapshot that is being written."""

    # -- opening ----------------------------------------------------------------------------------

    def open(self, kernel_id: str, floor: Callable[[int], Clock]) -> None:
        """Recover the state and take the journal over. `floor` gives the clock, which starts no earlier."""
        self._loop = asyncio.get_running_loop()
        records = self._load()
        for record in records:
            try:
                replay(self.state, record.events, record.at_ms)
            except (KernelBug, KeyError, IndexError, ValueError) as e:
                raise JournalError(f"the journal's record {record.first} cannot be applied: {e!r}") from e
        self.state.epoch = max(self.state.epoch, self.journal.epoch)  # not one that a lost event had
        self.clock = floor(self.state.now_ms)
        self.journal.begin_epoch(self.state.epoch + 1)
        step = handle(self.state, OpenKernel(kernel_id=kernel_id), self.clock.now_ms())
        self.journal.commit(self.state.now_ms, step.events)
        self._want_plan = True
        self._wake()

    def _load(self) -> Iterator[Record]:
        """Take the newest snapshot that can be used as the state; returns the records after it."""
        for older in itertools.count():
            snapshot, records = self.journal.load(older)
            if snapshot is None:
                break
            try:
                self.state = decode(snapshot, self.state.quotas)
                break
            except Exception as e:
                log.warning("snapshot_unusable", error=repr(e))
        return records

    # -- inputs -----------------------------------------------------------------------------------

    async def request(self, item: Request) -> Any:
        """Carry a request out; returns its reply once that is durable.

        Raises:
            RequestError: it was refused; nothing has changed.
            KernelClosed: the runtime has stopped.
        """
        self.check_open()
        caller = CALLER.get()
        if caller is not None:
            item = structs.replace(item, principal=caller[0], request_id=caller[1])
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._inbox.append((item, future))
        if self._sync_task is None:  # else it brings about a turn when it ends
            self._wake()
        return await future

    def report(self, item: Report | Input) -> None:
        """Take a backend's report."""
        if not self._closed and self.failure is None:
            self._inbox.append((item, None))
            self._wake()

    def check_open(self) -> None:
        """Raise KernelClosed unless requests are taken."""
        if self.failure is not None:
            raise KernelClosed(f"the kernel has stopped: {self.failure}") from self.failure
        if self._closed:
            raise KernelClosed("the kernel is closed")

    @property
    def is_closed(self) -> bool:
        """Whether `close` has begun."""
        return self._closed

    def _wake(self) -> None:
        if not self._scheduled and self._loop is not None and self.failure is None:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    # -- the turn ---------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._scheduled = False
        if self.failure is not None or self._closed:
            return
        inbox, self._inbox = self._inbox[:INPUTS_MOST], self._inbox[INPUTS_MOST:]
        try:
            self._run_turn(inbox)
        except BaseException as e:
            self._inbox[:0] = inbox  # so that those of this turn who have no answer yet get the error
            self.fail(e)
            if not isinstance(e, Exception):
                raise

    def _run_turn(self, inbox: list[tuple[Input, asyncio.Future[Any] | None]]) -> None:
        state = self.state
        now = self.clock.now_ms()
        events: list[AnyEvent] = []
        effects: list[Effect] = []
        replies: list[tuple[asyncio.Future[Any], Any]] = []
        refusals: list[tuple[asyncio.Future[Any], RequestError]] = []
        barriers: list[_Barrier] = []
        for item, future in inbox:
            if type(item) is _Barrier:
                barriers.append(item)
                continue
            try:
                step = handle(state, item, now)
            except RequestError as e:
                if future is not None:
                    refusals.append((future, e))
                continue
            events += step.events
            effects += step.effects
            if future is not None:
                replies.append((future, step.reply))
        due = next_timer_ms(state)
        if due is not None and due <= now:
            step = handle(state, Tick(), now)
            events += step.events
            effects += step.effects
        self._plan(events, effects, now)
        if events:
            self.journal.commit(state.now_ms, events)
        self._release(effects)
        for future, refusal in refusals:
            if not future.done():
                future.set_exception(refusal)
        for future, reply in replies:
            self._reply_when_synced(future, reply)
        for barrier in barriers:
            self.when_synced(barrier.callback, urgent=barrier.urgent)
        if events:
            self._after_commit()
        if self._inbox or (self._want_plan and self.placing):
            self._wake()
        self._arm()

    def _plan(self, events: list[AnyEvent], effects: list[Effect], now: int) -> None:
        if not self._want_plan:
            self._want_plan = WANT_PLAN in effects
        if not self._want_plan or not self.placing:
            return
        step = handle(self.state, Plan(most=PLAN_MOST), now)
        self._want_plan = sum(len(e.indexes) for e in step.effects if isinstance(e, LaunchAttempts)) >= PLAN_MOST
        events += step.events
        effects += step.effects

    def _release(self, effects: list[Effect]) -> None:
        """Carry out what the committed events ask for."""
        handler = self.effects
        for effect in effects:
            match effect:
                case WantPlan():
                    pass  # has been heeded
                case NotifyChildren(job=job, indexes=indexes):
                    if job in self._child_ended:
                        self._notify_children(job, indexes)
                case LaunchAttempts() if handler is not None:
                    handler.launch(effect)
                case NotifyJob(job=job):
                    for future in self._ended.pop(job, ()):
                        _finish(future)
                case StopAttempts() if handler is not None:
                    handler.stop(effect)
                case StartEnvironment(name=name) if handler is not None:
                    handler.start_environment(name)
                case ForgetJobs(job_ids=job_ids) if handler is not None:
                    handler.forget(job_ids)
                case CloseEnvironment(name=name) if handler is not None:
                    handler.close_environment(name)

    def _after_commit(self) -> None:
        for listener in self._listeners:
            listener()
        if self._snapshot is None and self.journal.wants_snapshot():
            self._snapshot = self.journal.snapshot_steps(encode(self.state))
            self._step_snapshot()
        self._sync_soon()

    def _step_snapshot(self) -> None:
        """Write a piece of the snapshot that is under way; the next after whatever else is to be done by then.

        A snapshot shortens the next recovery; without it, that replays more.
        """
        if self._snapshot is None or self._closed or self._loop is None:
            return
        try:
            for _ in self._snapshot:
                self._loop.call_soon(self._step_snapshot)
                return
        except JournalError as e:
            log.warning("snapshot_not_written", error=str(e))
        self._snapshot = None

    async def keep_snapshot(self) -> None:
        """Write a snapshot of the state as it is now, a little at a time.

        Raises:
            JournalError: it could not be written.
        """
        while self._snapshot is not None:
            await asyncio.sleep(0)
            self.check_open()
        self._snapshot = self.journal.snapshot_steps(encode(self.state))
        try:
            for _ in self._snapshot:
                await asyncio.sleep(0)
                self.check_open()
        finally:
            self._snapshot = None

    def _put_snapshot(self) -> None:
        try:
            self.journal.put_snapshot(encode(self.state))
        except JournalError as e:
            log.warning("snapshot_not_written", error=str(e))

    def _arm(self) -> None:
        due = next_timer_ms(self.state)
        if due == self._timer_ms:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ms = due
        self._timer = None if due is None else self.clock.call_at(due, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = self._timer_ms = None
        self._wake()

    # -- durability -------------------------------------------------------------------------------

    def _reply_when_synced(self, future: asyncio.Future[Any], reply: Any) -> None:
        def release(error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(reply)
            else:
                future.set_exception(KernelClosed(f"the kernel has stopped: {error}"))

        self.when_synced(release)

    def when_synced(self, callback: Callable[[BaseException | None], None], *, urgent: bool = True) -> None:
        """Call back once all that is committed now is on disk (None), or with the error that stopped the kernel.

        What is not urgent causes no sync of its own: it is served by the next one, within `SYNC_AFTER_S`.
        """
        if self.failure is not None:
            callback(self.failure)
            return
        if self.synced >= self.journal.last:
            callback(None)
            return
        if urgent:
            self._sync_waiters.append((self.journal.last, callback))
            self._sync_now()
        else:
            self._patient_waiters.append((self.journal.last, callback))
            self._sync_soon()

    def when_handled(self, callback: Callable[[BaseException | None], None], *, urgent: bool = True) -> None:
        """Call back once every input that has been reported so far is handled, committed and on disk."""
        if self._closed or self.failure is not None:
            callback(self.failure or KernelClosed("the kernel is closed"))
        else:
            self.report(_Barrier(callback=callback, urgent=urgent))

    def _sync_now(self) -> None:
        if self._sync_timer is not None:
            self._sync_timer.cancel()
            self._sync_timer = None
        if self._sync_task is None and self.failure is None:
            self._sync_task = asyncio.get_running_loop().create_task(self._sync())

    async def _sync(self) -> None:
        """Sync until nobody waits: each round serves all that was committed before it began, and takes what came."""
        try:
            while True:
                self.synced = max(self.synced, await self.journal.sync())
                if self._inbox and not self._scheduled:
                    self._turn()
                self._sync_waiters = self._serve(self._sync_waiters)
                self._patient_waiters = self._serve(self._patient_waiters)
                if not self._sync_waiters:
                    break
        except Exception as e:
            self.fail(e)
        finally:
            self._sync_task = None
            if self._inbox:
                self._wake()
        if self.synced < self.journal.last:
            self._sync_soon()

    def _serve(self, waiting: list[SyncWaiter]) -> list[SyncWaiter]:
        """Call back those whose commits are on disk; the others are returned."""
        for last, callback in waiting:
            if last <= self.synced:
                callback(None)
        return [waiter for waiter in waiting if waiter[0] > self.synced]

    def _sync_soon(self) -> None:
        if self._closed or self._sync_timer is not None or self._sync_task is not None or self.failure is not None:
            return
        if self._loop is not None:
            self._sync_timer = self._loop.call_later(SYNC_AFTER_S, self._sync_now)

    def fail(self, error: BaseException) -> None:
        """Stop: nothing more is committed or answered."""
        if self.failure is not None:
            return
        self.failure = error
        log.error("kernel_stopped", error=repr(error))
        stopped = KernelClosed(f"the kernel has stopped: {error}")
        inbox, self._inbox = self._inbox, []
        for item, future in inbox:
            if isinstance(item, _Barrier):
                item.callback(error)
            elif future is not None and not future.done():
                future.set_exception(stopped)
        waiting = [*self._sync_waiters, *self._patient_waiters]
        self._sync_waiters, self._patient_waiters = [], []
        for _, callback in waiting:
            callback(error)
        self._fail_waiters(stopped)

    def _fail_waiters(self, error: BaseException) -> None:
        futures = [f for fs in self._ended.values() for f in fs]
        futures += [f for job in self._child_ended.values() for fs in job.values() for f in fs]
        for future in futures:
            if not future.done():
                future.set_exception(error)
        self._ended.clear()
        self._child_ended.clear()
        for listener in list(self._listeners):
            listener()

    # -- waiting ----------------------------------------------------------------------------------

    async def wait_ended(self, serial: int, index: int | None) -> None:
        """Return once the job, or one child of it, has ended. Cancelling the wait changes nothing else."""
        self.check_open()
        job = self.state.jobs[serial]
        whole = index is None or job.size is None
        if job.ended if whole else job.children.status[index or 0] >= SUCCEEDED:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if whole:
            waiting = self._ended.setdefault(serial, [])
        else:
            waiting = self._child_ended.setdefault(serial, {}).setdefault(index or 0, [])
        waiting.append(future)
        try:
            await future
        finally:
            if future in waiting:
                waiting.remove(future)
            self._forget_waiters(serial, index or 0)

    def _forget_waiters(self, serial: int, index: int) -> None:
        """Keep no empty lists of waiters."""
        if not self._ended.get(serial, True):
            del self._ended[serial]
        children = self._child_ended.get(serial)
        if children is not None:
            if not children.get(index, True):
                del children[index]
            if not children:
                del self._child_ended[serial]

    def _notify_children(self, serial: int, indexes: Sequence[int]) -> None:
        waiting = self._child_ended[serial]
        which = indexes if isinstance(indexes, range) else set(indexes)
        for index in [i for i in waiting if i in which]:
            for future in waiting.pop(index):
                _finish(future)
        if not waiting:
            del self._child_ended[serial]

    async def wait_idle(self, environments: Collection[str] | None = None) -> None:
        """Return once no attempt is live in these environments (None: in any), or the runtime has stopped."""
        news = asyncio.Event()
        unlisten = self.listen(news.set)
        try:
            while self.failure is None and (self._inbox or self._is_busy(environments)):
                news.clear()
                if self._inbox:
                    await asyncio.sleep(0)
                else:
                    await news.wait()
        finally:
            unlisten()

    def _is_busy(self, environments: Collection[str] | None) -> bool:
        hosts = self.state.hosts.values()
        return any(host.load for host in hosts if environments is None or host.environment in environments)

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after every commit, and when the runtime stops; returns how to end that."""
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    # -- closing ----------------------------------------------------------------------------------

    async def close(self) -> None:
        """Handle what has arrived, keep a snapshot, and let go of the journal."""
        while self._inbox and self.failure is None:
            self._turn()
        self._closed = True
        self._snapshot = None
        for timer in (self._timer, self._sync_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._sync_timer = None
        if self.failure is None:
            self._put_snapshot()
        if self._sync_task is not None:
            await asyncio.wait({self._sync_task})
        self._fail_waiters(KernelClosed("the kernel is closed"))
        try:
            await self.journal.close()
        except JournalError as e:
            if self.failure is None:
                raise
            log.warning("journal_close_failed", error=str(e))  # its waiters know what stopped the kernel


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
