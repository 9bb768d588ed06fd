"""A backend's way back to the kernel, with the checks that keep a lie from costing more than its environment."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, Protocol, cast

from .backend import AttemptKey, Capacity, EnvironmentSettings
from .core.container import CONTAINER_FIELDS, IMAGE_REQUIRED
from .core.indexes import place_of
from .core.inputs import Ended, EnvironmentFailed, Found, HostDown, HostPaused, HostUp, Started, Unknown
from .core.model import ExitKind

if TYPE_CHECKING:
    from .clock import Clock
    from .core.state import JobRow
    from .runtime import Runtime

REASON_CHARS_MAX: Final = 1000
AMOUNT_MAX: Final = 1 << 50
"""Of a host's vCPUs (milli) or memory (MiB)."""
WHOLE: Final = frozenset((int,))
WHOLE_OR_NONE: Final = frozenset((int, type(None)))
"""Types of what a backend may report; a boolean is no number."""

P = ParamSpec("P")


def kept_text(value: str) -> str:
    """Text that the journal can keep. Operating systems' texts may hold bytes that are no UTF-8, as surrogates."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value.encode(errors="backslashreplace").decode()


def _checked(report: Callable[Concatenate[Context, P], None]) -> Callable[Concatenate[Context, P], None]:
    """A report that cannot be handled makes the environment INVALID; it neither harms the kernel nor raises."""

    @functools.wraps(report)
    def checked(self: Context, *args: P.args, **more: P.kwargs) -> None:
        if self.closed:
            return
        try:
            report(self, *args, **more)
        except Exception as e:
            self._lied(f"{report.__name__}: {e}")

    return cast("Callable[Concatenate[Context, P], None]", checked)


class ContextOwner(Protocol):
    """What a context needs of the driver that made it."""

    backend_name: str
    notes: dict[AttemptKey, str]

    def stop_strays(self, keys: Sequence[AttemptKey]) -> None:
        """End those of these attempts that are not live as far as the kernel knows."""


class Context:
    """A backend's way back to the kernel (`BackendContext`)."""

    def __init__(
        self, driver: ContextOwner, settings: EnvironmentSettings, runtime: Runtime, runtime_dir: Path
    ) -> None:
        self._driver = driver
        self._runtime = runtime
        self.kernel_id = runtime.state.kernel_id
        self.settings = settings
        self.clock: Clock = runtime.clock
        files = runtime.journal.files
        self.state_dir = files / "environments" / settings.name
        self.logs_dir = files / "logs"
        self.runtime_dir = runtime_dir
        self.durable = runtime.journal.durable
        self.hosts: dict[str, None] = {}
        self.honoured: frozenset[str] | None = None
        """The container fields that the environment honours (None: those of its backend's capabilities)."""
        self.closed = False

    def _lied(self, what: str) -> None:
        self._fail(f"backend {self._driver.backend_name!r} reported what cannot be: {what}")

    def _job(
        self,
        job_id: str,
        number: int,
        indexes: Sequence[int],
        codes: Sequence[int | None] | None = None,
        at_ms: Sequence[int] | None = None,
    ) -> tuple[int, Sequence[int]] | None:
        """The serial of a known job, and the places of its children with these indexes.

        Raises ValueError, or what comes of it, for what the core cannot take.
        """
        state, n = self._runtime.state, len(indexes)
        serial = state.ids.get(job_id)
        if serial is None or not n:
            return None
        places = _places(state.jobs[serial], indexes) if _are_whole(indexes) and type(number) is int else None
        if places is None:
            raise ValueError(f"attempt {number!r} of {job_id}, indexes {list(indexes)[:10]!r}")
        if (codes is not None and len(codes) != n) or (
            at_ms is not None and (len(at_ms) != n or not _are_whole(at_ms))
        ):
            raise ValueError(f"{n} attempts of {job_id} with other numbers of codes or times, or no times")
        if codes is not None and not WHOLE_OR_NONE.issuperset(map(type, codes)):
            raise ValueError(f"exit codes of {job_id} that are no numbers: {list(codes)[:10]!r}")
        return serial, places

    def _forget_notes(self, job_id: str, number: int, indexes: Sequence[int]) -> None:
        notes = self._driver.notes
        if notes:
            for index in indexes:
                notes.pop(AttemptKey(job_id, index, number), None)

    @_checked
    def host_up(self, host: str, capacity: Capacity, zone: str | None = None) -> None:
        amounts = (capacity.vcpus_milli, capacity.memory_mib or 0, capacity.lookahead, *capacity.gpus)
        if {*map(type, amounts)} != {int} or not 0 <= min(amounts) <= max(amounts) <= AMOUNT_MAX:
            raise ValueError(f"{host!r} with {capacity!r}")
        if len(set(capacity.gpus)) < len(capacity.gpus):
            raise ValueError(f"{host!r} with one GPU twice: {capacity.gpus!r}")
        host, zone = kept_text(host), None if zone is None else kept_text(zone)
        self.hosts[host] = None
        self._runtime.report(
            HostUp(
                environment=self.settings.name,
                host=host,
                vcpus_milli=capacity.vcpus_milli,
                memory_mib=capacity.memory_mib,
                gpus=tuple(capacity.gpus),
                zone=zone,
                lookahead=capacity.lookahead,
            )
        )

    @_checked
    def host_down(self, host: str, reason: str) -> None:
        down = HostDown(environment=self.settings.name, host=kept_text(host), reason=kept_text(reason))
        self.hosts.pop(host, None)
        self._runtime.report(down)

    @_checked
    def host_paused(self, host: str, reason: str | None) -> None:
        text = None if reason is None else kept_text(reason)
        self._runtime.report(HostPaused(environment=self.settings.name, host=kept_text(host), reason=text))

    def is_kept(self, job_id: str) -> bool:
        return job_id in self._runtime.state.ids

    def host_of(self, attempt: AttemptKey) -> str | None:
        state = self._runtime.state
        job = state.jobs.get(state.ids.get(attempt.job_id, 0))
        place = None if job is None else place_of(job.indexes, job.children.size, attempt.index)
        if job is None or place is None:
            return None
        children = job.children
        serial = children.hosts()[place] if children.number[place] == attempt.number else 0
        for past in children.past(place):
            serial = past.host if past.number == attempt.number else serial
        host = state.hosts.get(serial)
        return host.name if host is not None and host.environment == self.settings.name else None

    @_checked
    def started(self, job_id: str, number: int, indexes: Sequence[int], at_ms: Sequence[int] | None = None) -> None:
        found = self._job(job_id, number, indexes, None, at_ms)
        if found is not None:
            self._forget_notes(job_id, number, indexes)
            self._runtime.report(
                Started(environment=self.settings.name, job=found[0], number=number, indexes=found[1], at_ms=at_ms)
            )

    @_checked
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
            found = self._job(job_id, number, indexes, codes, started_ms)
            if found is not None:
                self._runtime.report(
                    Started(
                        environment=self.settings.name, job=found[0], number=number, indexes=found[1], at_ms=started_ms
                    )
                )
        self._ended(job_id, number, indexes, ExitKind.EXITED, codes, at_ms, reason, status_reason)

    @_checked
    def timed_out(
        self,
        job_id: str,
        number: int,
        indexes: Sequence[int],
        codes: Sequence[int | None],
        at_ms: Sequence[int] | None = None,
    ) -> None:
        self._ended(job_id, number, indexes, ExitKind.TIMED_OUT, codes, at_ms, None, None)

    @_checked
    def lost(self, job_id: str, number: int, indexes: Sequence[int], *, reason: str) -> None:
        self._ended(job_id, number, indexes, ExitKind.LOST, [None] * len(indexes), None, kept_text(reason), None)

    def _ended(
        self,
        job_id: str,
        number: int,
        indexes: Sequence[int],
        kind: ExitKind,
        codes: Sequence[int | None],
        at_ms: Sequence[int] | None,
        reason: str | None,
        status_reason: str | None,
    ) -> None:
        found = self._job(job_id, number, indexes, codes, at_ms)
        if found is not None:
            self._forget_notes(job_id, number, indexes)
            self._runtime.report(
                Ended(
                    environment=self.settings.name,
                    job=found[0],
                    number=number,
                    indexes=found[1],
                    kind=kind,
                    codes=codes,
                    at_ms=at_ms,
                    reason=None if reason is None else kept_text(reason),
                    status_reason=None if status_reason is None else kept_text(status_reason),
                )
            )

    @_checked
    def found(self, host: str, job_id: str, number: int, indexes: Sequence[int]) -> None:
        keys = [AttemptKey(job_id, index, number) for index in indexes]
        found = self._job(job_id, number, indexes)
        if found is not None:
            job, places = found
            self._runtime.report(
                Found(environment=self.settings.name, host=kept_text(host), job=job, number=number, indexes=places)
            )
        self._runtime.when_handled(lambda error: self._driver.stop_strays(keys) if error is None else None)

    @_checked
    def unknown(self, job_id: str, number: int, indexes: Sequence[int], *, for_ms: int | None = None) -> None:
        found = self._job(job_id, number, indexes)
        if for_ms is not None and (type(for_ms) is not int or for_ms < 0):
            raise ValueError(f"for_ms {for_ms!r}")
        if found is not None:
            job, places = found
            self._runtime.report(
                Unknown(environment=self.settings.name, job=job, number=number, indexes=places, for_ms=for_ms)
            )

    @_checked
    def waiting(self, job_id: str, number: int, indexes: Sequence[int], *, reason: str) -> None:
        if self._job(job_id, number, indexes) is not None:
            text = kept_text(reason)[:REASON_CHARS_MAX]
            self._driver.notes.update({AttemptKey(job_id, index, number): text for index in indexes})

    def honours(self, fields: Collection[str]) -> None:
        strange = set(fields) - CONTAINER_FIELDS - {IMAGE_REQUIRED}
        if strange:
            raise ValueError(f"it honours container fields that there are not: {sorted(strange)}")
        self.honoured = frozenset(fields)

    @_checked
    def failed(self, reason: str) -> None:
        self._fail(kept_text(reason))

    def _fail(self, reason: str) -> None:
        text = kept_text(reason)[:REASON_CHARS_MAX]
        self._runtime.report(EnvironmentFailed(environment=self.settings.name, reason=text))

    def when_durable(self, callback: Callable[[], None]) -> None:
        @_checked
        def acknowledge(self: Context) -> None:
            callback()

        self._runtime.when_handled(lambda error: acknowledge(self) if error is None else None, urgent=False)


def _are_whole(values: Sequence[int]) -> bool:
    """Whether what a backend gives as whole numbers are such, and no booleans."""
    return type(values) is range or WHOLE.issuperset(map(type, values))


def _places(job: JobRow, indexes: Sequence[int]) -> Sequence[int] | None:
    """The places of the children with these indexes; None if one of them is no child's."""
    own, size = job.indexes, job.children.size
    if own is None:
        ends = (indexes[0], indexes[-1]) if type(indexes) is range else indexes
        return indexes if min(ends) >= 0 and max(ends) < size else None
    places = [place_of(own, size, index) for index in indexes]
    found = [place for place in places if place is not None]
    return found if len(found) == len(places) else None
