"""A `BackendContext` that writes down what a backend reports, and notices what no backend may report.

Of use for an author's own tests too: start a backend with it, launch, and `await context.until(...)`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio
from anybatch.kernel.backend import AttemptKey, Capacity, EnvironmentSettings
from anybatch.kernel.clock import Clock, SystemClock
from anybatch.kernel.core.container import CONTAINER_FIELDS, IMAGE_REQUIRED

WAIT_S: Final = 20.0
"""How long the kit waits for what must happen."""
POLL_S: Final = 0.01
REASON_CHARS_MAX: Final = 255
AMOUNT_MAX: Final = 1 << 50
"""Of a host's vCPUs (milli) or memory (MiB), as the kernel has it."""

WELL_FORMED: Final = "reports_are_well_formed"
AFTER_CLOSE: Final = "nothing_is_reported_after_close"
REPLACED: Final = "new_settings_replace_the_context"
WORKS: Final = "the_environment_stays_valid"

STARTED: Final = "started"
EXITED: Final = "exited"
TIMED_OUT: Final = "timed out"
LOST: Final = "lost"
UNKNOWN: Final = "unknown"
ENDS: Final = (EXITED, TIMED_OUT, LOST)


class RuleBroken(AssertionError):
    """A backend broke a rule. Attributes: `rule` (the check's name), `seen` (what was seen)."""

    def __init__(self, rule: str, seen: str) -> None:
        super().__init__(f"{rule}: {seen}")
        self.rule = rule
        self.seen = seen


class Seen(NamedTuple):
    """One report on one attempt. `at_ms` is as stated (None: not stated), `seen_ms` when it came."""

    kind: str
    key: AttemptKey
    seen_ms: int
    at_ms: int | None = None
    code: int | None = None
    reason: str | None = None
    status_reason: str | None = None

    @property
    def when_ms(self) -> int:
        """When it happened."""
        return self.seen_ms if self.at_ms is None else self.at_ms

    def __str__(self) -> str:
        more = f" with code {self.code}" if self.kind == EXITED else ""
        return f"{self.kind}{more}{f' ({self.reason!r})' if self.reason else ''}"


class RecordingContext:
    """Writes reports down in `seen`, hosts in `hosts`, failures of the environment in `failures`.

    `faults` holds (rule, text) for each report that breaks one. With `hold_durable` set nothing becomes durable,
    as in a kernel that is killed before it has synced. `retire` says that reports are over: after `close`
    (the default rule), or since another context has taken this one's place.
    """

    def __init__(
        self,
        folder: Path,
        *,
        options: Mapping[str, Any] | None = None,
        max_vcpus_milli: int = 4000,
        managed: bool = False,
        durable: bool = False,
        kernel_id: str = "kit",
        name: str = "kit",
        clock: Clock | None = None,
    ) -> None:
        self.kernel_id = kernel_id
        self.settings = EnvironmentSettings(
            name=name, managed=managed, min_vcpus_milli=0, max_vcpus_milli=max_vcpus_milli, options=options or {}
        )
        self.clock: Clock = SystemClock() if clock is None else clock
        self.state_dir, self.logs_dir, self.runtime_dir = folder / "state", folder / "logs", folder / "run"
        for path in (self.state_dir, self.logs_dir, self.runtime_dir):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.durable = durable
        self.hold_durable = False
        self.hosts: dict[str, Capacity] = {}
        self.paused: dict[str, str] = {}
        """Hosts that take no attempts for now, with the reason."""
        self.forgotten: set[str] = set()
        """Ids of jobs that the kernel is to know nothing of."""
        self.strangers: dict[AttemptKey, str] = {}
        self.notes: dict[AttemptKey, str] = {}
        """The latest that `waiting` said of each attempt."""
        """Attempts that were found, and where."""
        self.honoured: frozenset[str] | None = None
        """The container fields that the backend said it honours (None: those of its capabilities)."""
        self.failures: list[str] = []
        self.seen: list[Seen] = []
        self.faults: list[tuple[str, str]] = []
        self.on_end: Callable[[Seen], None] = lambda seen: None
        """Called for each end, in the midst of the report."""
        self._ends: dict[AttemptKey, list[Seen]] = {}
        self._starts: dict[AttemptKey, list[Seen]] = {}
        self._retired: str | None = None
        self._thread = threading.get_ident()
        self._news = asyncio.Event()

    # -- what tests ask --

    def starts_of(self, key: AttemptKey) -> list[Seen]:
        return self._starts.get(key, [])

    def ends_of(self, key: AttemptKey) -> list[Seen]:
        return self._ends.get(key, [])

    def told_of(self, key: AttemptKey) -> list[Seen]:
        """Every report on an attempt."""
        return [one for one in self.seen if one.key == key]

    def kinds_of(self, key: AttemptKey, *kinds: str) -> list[str]:
        """The kinds of the reports on an attempt (only these, if any are named)."""
        return [one.kind for one in self.told_of(key) if one.kind in kinds or not kinds]

    async def until(self, condition: Callable[[], object], seconds: float = WAIT_S) -> bool:
        """Wait until the condition holds, at most so long; whether it does."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            self._news.clear()
            with anyio.move_on_after(POLL_S):
                await self._news.wait()
        return True

    def retire(self, rule: str = AFTER_CLOSE) -> None:
        """From now on every report breaks this rule."""
        self._retired = rule

    # -- what backends tell --

    def _fault(self, rule: str, text: str) -> None:
        self.faults.append((rule, text))

    def _check(self, what: str, job_id: object = "", number: object = 0, indexes: Sequence[object] = ()) -> None:
        if threading.get_ident() != self._thread:
            self._fault(WELL_FORMED, f"{what} was called outside the event loop's thread")
        if self._retired is not None:
            self._fault(self._retired, f"{what} was called on a context that is over, for {job_id} {list(indexes)[:5]}")
        if not isinstance(job_id, str):
            self._fault(WELL_FORMED, f"{what}: the job id {job_id!r} is no text")
        if type(number) is not int or number < 0:
            self._fault(WELL_FORMED, f"{what}: the attempt number {number!r} is no number")
        if not {*map(type, indexes)} <= {int}:
            self._fault(WELL_FORMED, f"{what}: indexes that are no numbers: {list(indexes)[:5]!r}")

    def _check_columns(
        self, what: str, indexes: Sequence[int], codes: Sequence[object], times: Sequence[object]
    ) -> None:
        if not len(indexes) == len(codes) == len(times):
            text = f"{len(indexes)} indexes, {len(codes)} codes, {len(times)} times"
            self._fault(WELL_FORMED, f"{what}: {text}")
        if not {*map(type, codes)} <= {int, type(None)}:
            self._fault(WELL_FORMED, f"{what}: exit codes that are no numbers: {list(codes)[:5]!r}")
        elif any(isinstance(code, int) and not 0 <= code <= 255 for code in codes):
            self._fault(WELL_FORMED, f"{what}: exit codes outside 0 to 255: {list(codes)[:5]!r}")
        if not {*map(type, times)} <= {int, type(None)}:
            self._fault(WELL_FORMED, f"{what}: times that are no whole milliseconds: {list(times)[:5]!r}")

    def _check_text(self, what: str, text: object, *, chars_max: int | None = None, optional: bool = True) -> None:
        if not (isinstance(text, str) or (optional and text is None)):
            self._fault(WELL_FORMED, f"{what}: {text!r} is no text")
        elif isinstance(text, str) and chars_max is not None and len(text) > chars_max:
            self._fault(WELL_FORMED, f"{what}: a reason of {len(text)} characters; at most {chars_max}")

    def host_up(self, host: str, capacity: Capacity, zone: str | None = None) -> None:
        self._check("host_up")
        self._check_text("host_up", host, optional=False)
        self._check_text("host_up", zone)
        amounts = (capacity.vcpus_milli, capacity.memory_mib or 0, *capacity.gpus)
        if {*map(type, amounts)} != {int} or not 0 <= min(amounts) <= max(amounts) <= AMOUNT_MAX:
            self._fault(WELL_FORMED, f"host_up: {host!r} with {capacity!r}")
        elif len(set(capacity.gpus)) < len(capacity.gpus):
            self._fault(WELL_FORMED, f"host_up: {host!r} has a GPU twice: {capacity.gpus!r}")
        self.hosts[host] = capacity
        self._news.set()

    def host_down(self, host: str, reason: str) -> None:
        self._check("host_down")
        self._check_text("host_down", reason, optional=False)
        self.hosts.pop(host, None)
        self._news.set()

    def host_paused(self, host: str, reason: str | None) -> None:
        self._check("host_paused")
        self._check_text("host_paused", reason)
        if host not in self.hosts:
            self._fault(WELL_FORMED, f"host_paused: {host!r}, which is no host that was reported up")
        self.paused.pop(host, None)
        if reason is not None:
            self.paused[host] = reason
        self._news.set()

    def is_kept(self, job_id: str) -> bool:
        return job_id not in self.forgotten

    def host_of(self, attempt: AttemptKey) -> str | None:
        return None

    def started(self, job_id: str, number: int, indexes: Sequence[int], at_ms: Sequence[int] | None = None) -> None:
        self._check("started", job_id, number, indexes)
        times: Sequence[int | None] = [None] * len(indexes) if at_ms is None else at_ms
        self._check_columns("started", indexes, [None] * len(indexes), times)
        now = self.clock.now_ms()
        for index, at in zip(indexes, times, strict=False):
            one = Seen(STARTED, AttemptKey(job_id, index, number), now, at)
            self.seen.append(one)
            self._starts.setdefault(one.key, []).append(one)
        self._news.set()

    def exited(
        self,
        job_id: str,
        number: int,
        indexes: Sequence[int],
        codes: Sequence[int | None],
        at_ms: Sequence[int] | None = None,
        *,
        reason: str | None = None,
        status_reason: str | None = None,
        started_ms: Sequence[int] | None = None,
    ) -> None:
        if started_ms is not None:
            self.started(job_id, number, indexes, started_ms)
        self._check_text("exited", reason, chars_max=REASON_CHARS_MAX)
        self._check_text("exited", status_reason)
        self._ended(EXITED, job_id, number, indexes, codes, at_ms, reason, status_reason)

    def timed_out(
        self,
        job_id: str,
        number: int,
        indexes: Sequence[int],
        codes: Sequence[int | None],
        at_ms: Sequence[int] | None = None,
    ) -> None:
        self._ended(TIMED_OUT, job_id, number, indexes, codes, at_ms, None, None)

    def lost(self, job_id: str, number: int, indexes: Sequence[int], *, reason: str) -> None:
        self._check_text("lost", reason, optional=False)
        self._ended(LOST, job_id, number, indexes, [None] * len(indexes), None, reason, None)

    def _ended(
        self,
        kind: str,
        job_id: str,
        number: int,
        indexes: Sequence[int],
        codes: Sequence[int | None],
        at_ms: Sequence[int] | None,
        reason: str | None,
        status_reason: str | None,
    ) -> None:
        self._check(kind, job_id, number, indexes)
        times: Sequence[int | None] = [None] * len(indexes) if at_ms is None else at_ms
        self._check_columns(kind, indexes, codes, times)
        now = self.clock.now_ms()
        for index, code, at in zip(indexes, codes, times, strict=False):
            one = Seen(kind, AttemptKey(job_id, index, number), now, at, code, reason, status_reason)
            self.seen.append(one)
            self._ends.setdefault(one.key, []).append(one)
            self.on_end(one)
        self._news.set()

    def found(self, host: str, job_id: str, number: int, indexes: Sequence[int]) -> None:
        self._check("found", job_id, number, indexes)
        if host not in self.hosts:
            self._fault(WELL_FORMED, f"found: on {host!r}, which is no host that was reported up")
        self.strangers.update({AttemptKey(job_id, index, number): host for index in indexes})
        self._news.set()

    def unknown(self, job_id: str, number: int, indexes: Sequence[int], *, for_ms: int | None = None) -> None:
        self._check(UNKNOWN, job_id, number, indexes)
        now = self.clock.now_ms()
        self.seen += [Seen(UNKNOWN, AttemptKey(job_id, index, number), now) for index in indexes]
        self._news.set()

    def waiting(self, job_id: str, number: int, indexes: Sequence[int], *, reason: str) -> None:
        self._check("waiting", job_id, number, indexes)
        self._check_text("waiting", reason, optional=False)
        self.notes.update({AttemptKey(job_id, index, number): reason for index in indexes})
        self._news.set()

    def honours(self, fields: Collection[str]) -> None:
        self._check("honours")
        self.honoured = frozenset(fields)
        if set(fields) - CONTAINER_FIELDS - {IMAGE_REQUIRED}:
            self._fault(WELL_FORMED, f"honours: container fields that there are not: {sorted(fields)}")

    def failed(self, reason: str) -> None:
        self._check("failed")
        self._check_text("failed", reason, optional=False)
        self.failures.append(reason)
        self._fault(WORKS, f"the backend gave its environment up: {reason}")
        self._news.set()

    def when_durable(self, callback: Callable[[], None]) -> None:
        self._check("when_durable")
        if not self.hold_durable:
            asyncio.get_running_loop().call_soon(self._tell_durable, callback)

    def _tell_durable(self, callback: Callable[[], None]) -> None:
        if self._retired is None:
            callback()
