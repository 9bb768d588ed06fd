"""The errors of anybatch, by whose fault they are.

`RequestError`: the caller's; the same call fails again until it is changed, and nothing has changed.
`BackendError`: the world's; `retryable` says whether the same call may succeed later.
`JournalError`: the state on disk cannot be used as it is. `KernelClosed`: the kernel has stopped.
`ControlError`: a kernel in another process cannot be reached.
`JobFailed`: the job's own end, raised by `JobDetail.raise_for_status`. `KernelBug`: ours.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct


class AnyBatchError(Exception):
    """Root of every error that anybatch raises on purpose."""


class RequestError(AnyBatchError):
    """The request cannot be carried out as it is; nothing has changed."""


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 120 else f"{text[:117]}..."


class InvalidValue(RequestError):
    """A field has a value that is not allowed.

    Attributes: `field` (dotted path of the argument), `value` (as given), `allowed` (what would do).
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field}: {_shown(value)} is not allowed; {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed


class QuotaExceeded(InvalidValue):
    """A value is over one of the kernel's quotas (`anybatch.Quotas`), which `allowed` names."""


class NotFound(RequestError):
    """A name or id stands for nothing. Attributes: `kind` ("job", "job queue", ...), `name`."""

    def __init__(self, kind: str, name: str, hint: str = "") -> None:
        super().__init__(f"{kind} {_shown(name)} does not exist{'; ' + hint if hint else ''}")
        self.kind = kind
        self.name = name


class Conflict(RequestError):
    """The request is well formed but the state of things forbids it (it exists, is in use, ...).

    Attributes: `kind`, `name`, and `field` where one field differs from what is there.
    """

    def __init__(self, kind: str, name: str, why: str, *, field: str | None = None) -> None:
        super().__init__(f"{kind} {_shown(name)}: {why}")
        self.kind = kind
        self.name = name
        self.field = field


class Mistake(Struct, frozen=True, kw_only=True):
    """Something wrong in a configuration: the key, and what is wrong with it. `file`, `line` None: not from a file."""

    file: str | None
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        where = self.file if self.file is None or self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (where, self.key, self.message) if part)


class ConfigError(RequestError):
    """A configuration cannot be used as it is. Attribute: `mistakes`, all that were found, in the file's order."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


class BackendError(AnyBatchError):
    """A backend, or the host behind it, could not do its part."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class PluginError(AnyBatchError):
    """A plugin is not installed, failed to load, or speaks another protocol version."""


class JournalError(AnyBatchError):
    """The journal cannot be opened, read or written; the message says what to do."""


class JournalLocked(JournalError):
    """Another kernel holds the journal."""


class JournalDamaged(JournalError):
    """What was committed is missing or cannot be read; the journal has been left as it is.

    Attributes: `events`, how many are known to be missing, which are `first` to `last` by their sequence numbers.
    """

    def __init__(self, message: str, *, events: int = 0, first: int = 0, last: int = 0) -> None:
        super().__init__(message)
        self.events = events
        self.first = first
        self.last = last


class EventsTrimmed(JournalError):
    """The asked-for events are no longer kept. Attribute: `oldest`, the oldest (epoch, sequence) kept."""

    def __init__(self, asked: tuple[int, int], oldest: tuple[int, int]) -> None:
        super().__init__(f"events after {asked} are no longer kept; the oldest kept is {oldest}")
        self.asked = asked
        self.oldest = oldest


class KernelClosed(AnyBatchError):
    """The kernel is closed, closing, or has stopped after an error that its message names."""


class ControlError(AnyBatchError):
    """A kernel in another process cannot be talked to through its control socket; the message says why."""


class NotRunning(ControlError):
    """No kernel runs there, or it has opened no control socket."""


class JobFailed(AnyBatchError):
    """A job ended FAILED. Attributes: `job_id`, `status_reason`, `exit_code` (None if there is none)."""

    def __init__(self, job_id: str, status_reason: str | None, exit_code: int | None) -> None:
        code = "" if exit_code is None else f" (exit code {exit_code})"
        super().__init__(f"job {job_id} FAILED: {status_reason or 'no reason given'}{code}")
        self.job_id = job_id
        self.status_reason = status_reason
        self.exit_code = exit_code


class KernelBug(AnyBatchError):
    """A broken invariant of the kernel itself. Please report it; the kernel stops and loses nothing."""
