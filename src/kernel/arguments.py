"""From what users write to what the core takes: types, units and forms, each error naming its field."""

from __future__ import annotations

import difflib
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Final

import msgspec

from .core.checks import MEMORY_MIB_MAX, TIMEOUT_MS_MAX, VCPUS_MILLI_MAX
from .core.errors import InvalidValue
from .core.inputs import DependencyRequest
from .core.model import PLAIN, Action, DependencyType, EvaluateOnExit, On, OnMaxFailures, Quotas, RetryStrategy
from .core.states import JobStatus

REVISION_DIGITS_MAX: Final = 9
_MEMORY: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]i?B?|B)?\s*", re.IGNORECASE)
_MIB_PER: Final = {
    "": 1.0, "B": 1 / 2**20, "K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2,
    "KB": 1000 / 2**20, "MB": 1000**2 / 2**20, "GB": 1000**3 / 2**20, "TB": 1000**4 / 2**20,
}  # fmt: skip
BITS_MAX: Final = 63
"""Of an int that the journal can hold."""
SCRIPT_READ_MAX: Final = 16 << 20
"""Bytes read of a script file before it is refused."""


RETRY_FIELDS: Final = ("attempts", "evaluate_on_exit", "host_lost_retries")


class Sequential:
    """The type of `SEQUENTIAL` and of `sequential(...)`."""

    def __init__(self, on: object = On.SUCCESS) -> None:
        self.on = on

    def __repr__(self) -> str:
        return "SEQUENTIAL" if self.on == On.SUCCESS else f"sequential(on={str(self.on)!r})"


SEQUENTIAL: Final = Sequential()
"""In `depends_on` of an array job: child i runs after child i - 1 has SUCCEEDED (contract DEP-2)."""


def sequential(*, on: On | str = On.SUCCESS) -> Sequential:
    """SEQUENTIAL; with `on="any"` (beyond AWS) child i runs after child i - 1 has ended, also when that FAILED."""
    return Sequential(on)


class After:
    """The type of `after_any(job)` and `after_failure(job)`."""

    def __init__(self, kind: DependencyType, job: object) -> None:
        self.kind = kind
        self.job = job

    def __repr__(self) -> str:
        return f"{self.kind.lower()}({self.job!r})"


def after_any(job: object) -> After:
    """In `depends_on`, beyond AWS: once the job, or child, has ended, whether it SUCCEEDED or FAILED."""
    return After(DependencyType.AFTER_ANY, job)


def after_failure(job: object) -> After:
    """In `depends_on`, beyond AWS: once the job, or child, has FAILED.

    If it SUCCEEDS, what waits is not needed: it is FAILED without having run, with a status reason that says so.
    """
    return After(DependencyType.AFTER_FAILURE, job)


class NToN:
    """The type of `n_to_n(job)`."""

    def __init__(self, job: object, on: object = On.SUCCESS) -> None:
        self.job = job
        self.on = on

    def __repr__(self) -> str:
        return f"n_to_n({self.job!r})" if self.on == On.SUCCESS else f"n_to_n({self.job!r}, on={str(self.on)!r})"


def n_to_n(job: object, *, on: On | str = On.SUCCESS) -> NToN:
    """In `depends_on` of an array job: child i runs after child i of `job`, an array of the same size (DEP-2).

    Beyond AWS: `on="any"` goes on after either end of that child, `on="failure"` only after a failure.
    """
    return NToN(job, on)


def text(field: str, value: object) -> str:
    """A str."""
    if not isinstance(value, str):
        raise InvalidValue(field, value, "it is text (str)")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidValue(field, value, "it is text without lone surrogates (which UTF-8 cannot hold)") from None
    return value


def optional_text(field: str, value: object) -> str | None:
    """A str or None."""
    return None if value is None else text(field, value)


def whole(field: str, value: object) -> int:
    """An int."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidValue(field, value, "it is a whole number (int)")
    if value.bit_length() > BITS_MAX:
        raise InvalidValue(field, f"a number of {value.bit_length()} bits", f"it has at most {BITS_MAX} bits")
    return value


def optional_whole(field: str, value: object) -> int | None:
    """An int or None."""
    return None if value is None else whole(field, value)


def flag(field: str, value: object) -> bool:
    """A bool."""
    if not isinstance(value, bool):
        raise InvalidValue(field, value, "it is True or False")
    return value


def on_max_failures(field: str, value: object) -> OnMaxFailures:
    """What becomes of an array that has had `max_failures`."""
    if value not in tuple(OnMaxFailures):
        allowed = "it is 'cancel' (what runs goes on), or 'terminate' (what runs is stopped too)"
        raise InvalidValue(field, value, allowed)
    return OnMaxFailures(str(value))


def exit_codes(field: str, value: object) -> tuple[int, ...] | None:
    """A list of exit codes, or None."""
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise InvalidValue(field, value, "it is a list of exit codes, such as [85]")
    return tuple(whole(f"{field}[{n}]", code) for n, code in enumerate(value))


def number(field: str, value: object) -> float:
    """A finite int or float."""
    if isinstance(value, int):
        value = whole(field, value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) == float("inf"):
        raise InvalidValue(field, value, "it is a number")
    return float(value)


def texts(field: str, value: object) -> dict[str, str]:
    """A mapping of str to str; None is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidValue(field, value, "it maps names to texts, for example {'NAME': 'value'}")
    for name, entry in value.items():
        if not isinstance(name, str):
            raise InvalidValue(field, name, "names are text (str)")
        text(field, name)
        if not isinstance(entry, str):
            raise InvalidValue(f"{field}.{name}", entry, "values are text (str); write numbers as '1'")
        text(f"{field}.{name}", entry)
    return dict(value)


def metadata(field: str, value: object) -> dict[str, Any]:
    """What somebody keeps with a thing: names mapped to plain values, as JSON has them; None is an empty mapping."""
    if value is None:
        return {}
    data = json_object(field, value)
    try:
        plain: dict[str, Any] = msgspec.json.decode(data)
        msgspec.msgpack.encode(plain)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as e:
        raise InvalidValue(field, value, f"it holds what JSON can: {e}") from e
    return plain


def json_object(field: str, value: object) -> bytes:
    """A mapping of names to plain values, as JSON; None is an empty one."""
    if value is None:
        return b"{}"
    if not isinstance(value, Mapping):
        raise InvalidValue(field, value, "it maps names to plain values")
    try:
        return msgspec.json.encode(value if isinstance(value, dict) else dict(value))
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as e:
        raise InvalidValue(field, dict(value), f"it holds what JSON can: {e}") from e


def names(field: str, value: object) -> tuple[str, ...]:
    """A sequence of str."""
    if not isinstance(value, (tuple, list)) and (isinstance(value, (str, bytes)) or not isinstance(value, Sequence)):
        raise InvalidValue(field, value, "it is a list of names")
    return tuple([text(f"{field}[{n}]", entry) for n, entry in enumerate(value)])


def command(field: str, value: object) -> tuple[str, ...]:
    """A program and its arguments."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        allowed = "a command is a list of texts, for example ['sh', '-c', 'echo hello']"
        raise InvalidValue(field, value, allowed)
    words = []
    for n, word in enumerate(value):
        if isinstance(word, os.PathLike):
            word = os.fspath(word)
        words.append(text(f"{field}[{n}]", word))
    return tuple(words)


def milli(field: str, value: object) -> int:
    """A number of vCPUs as thousandths."""
    given = value
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise InvalidValue(field, given, "it is a number of vCPUs, such as 2 or 0.25") from None
    if isinstance(value, float) and not isfinite(value):
        raise InvalidValue(field, given, "it is a number of vCPUs, such as 2 or 0.25")
    amount = number(field, value) * 1000
    if not 0 <= amount <= VCPUS_MILLI_MAX:
        raise InvalidValue(field, given, f"it is a number of vCPUs, 0 to {VCPUS_MILLI_MAX // 1000}")
    if abs(amount - round(amount)) > 1e-6:
        raise InvalidValue(field, value, "vCPUs are counted in steps of 0.001")
    return round(amount)


def mebibytes(field: str, value: object) -> int:
    """An amount of memory in MiB: an int, or a text such as "2GiB" (a fraction of a MiB is rounded up)."""
    if isinstance(value, str):
        match = _MEMORY.fullmatch(value)
        if not match:
            raise InvalidValue(field, value, "memory is a number of MiB, or a text such as '512MiB' or '2GiB'")
        unit = (match[2] or "").upper().replace("IB", "")
        amount = float(match[1]) * _MIB_PER[unit]
        if amount > MEMORY_MIB_MAX:
            raise InvalidValue(field, value, f"memory is at most {MEMORY_MIB_MAX} MiB")
        return int(amount) + (amount > int(amount))
    return whole(field, value)


def milliseconds(field: str, value: object) -> int:
    """Seconds above zero as milliseconds, at least one."""
    seconds = number(field, value)
    if not 0 < seconds <= TIMEOUT_MS_MAX / 1000:
        raise InvalidValue(field, value, "it is a number of seconds above 0 (and at most 100 years)")
    return max(1, round(seconds * 1000))


def retry(field: str, value: object) -> RetryStrategy:
    """A number of attempts, a RetryStrategy, or a mapping with its fields."""
    if isinstance(value, RetryStrategy):
        value = {name: getattr(value, name) for name in RETRY_FIELDS}
    if isinstance(value, Mapping):
        unknown = set(value) - set(RETRY_FIELDS)
        if unknown:
            raise InvalidValue(field, sorted(map(str, unknown))[0], f"a retry strategy has {', '.join(RETRY_FIELDS)}")
        if "attempts" not in value:
            raise InvalidValue(f"{field}.attempts", None, "RetryAttempts must be provided with retry strategy")
        entries = value.get("evaluate_on_exit", ())
        if isinstance(entries, (str, bytes)) or not isinstance(entries, Sequence):
            raise InvalidValue(f"{field}.evaluate_on_exit", entries, "it is a list of EvaluateOnExit entries")
        found = tuple(_entry(f"{field}.evaluate_on_exit[{n}]", entry) for n, entry in enumerate(entries))
        lost = whole(f"{field}.host_lost_retries", value.get("host_lost_retries", 0))
        return RetryStrategy(whole(f"{field}.attempts", value["attempts"]), found, lost)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidValue(field, value, "it is a number of attempts or a RetryStrategy")
    return RetryStrategy(whole(field, value))


def _entry(field: str, value: object) -> EvaluateOnExit:
    known = ("action", "on_status_reason", "on_reason", "on_exit_code")
    if isinstance(value, EvaluateOnExit):
        value = {name: getattr(value, name) for name in known}
    if not isinstance(value, Mapping):
        raise InvalidValue(field, value, f"an entry is an EvaluateOnExit, or maps {', '.join(known)}")
    unknown = set(value) - set(known)
    if unknown:
        raise InvalidValue(field, sorted(map(str, unknown))[0], f"an entry has {', '.join(known)}")
    action = value.get("action")
    if not isinstance(action, str) or action.lower() not in ("retry", "exit"):
        raise InvalidValue(f"{field}.action", action, "an action is 'retry' or 'exit'")
    patterns: list[str | None] = []
    for name in known[1:]:
        pattern = value.get(name)
        if name == "on_exit_code" and isinstance(pattern, int) and not isinstance(pattern, bool):
            pattern = str(pattern)
        patterns.append(optional_text(f"{field}.{name}", pattern))
    return EvaluateOnExit(Action(action.lower()), *patterns)


def script(field: str, value: object) -> str:
    """A script's text. A str that begins with `#!` is one; a path, or any other str, names a file that holds one."""
    if isinstance(value, str) and value.startswith("#!"):
        return text(field, value)
    if not isinstance(value, (str, os.PathLike)):
        raise InvalidValue(field, value, "it is a text that begins with '#!', or the path of a file that does")
    if isinstance(value, str) and "\n" in value:
        raise InvalidValue(field, value, "a script's first line names its interpreter: '#!...'")
    try:
        path = Path(value)
        with path.open("rb") as file:
            data = file.read(SCRIPT_READ_MAX + 1)
    except OSError as e:
        raise InvalidValue(field, os.fspath(value), f"the script's file cannot be read: {e.strerror}") from e
    except (TypeError, ValueError):
        raise InvalidValue(field, value, "it is not the path of a file") from None
    if len(data) > SCRIPT_READ_MAX:
        raise InvalidValue(field, os.fspath(value), f"a script's file has at most {SCRIPT_READ_MAX} bytes")
    try:
        body = data.decode()
    except UnicodeDecodeError:
        raise InvalidValue(field, os.fspath(value), "a script is text in UTF-8") from None
    if not body.startswith("#!"):
        raise InvalidValue(field, os.fspath(value), "a script's first line names its interpreter: '#!...'")
    return body


def workdir(field: str, value: object) -> str:
    """A folder's path."""
    found = text(field, os.fspath(value) if isinstance(value, os.PathLike) else value)
    if "\0" in found:
        raise InvalidValue(field, value, "a path has no zero byte")
    return found


def path(field: str, value: object) -> Path | None:
    """A path, or None."""
    if value is None:
        return None
    try:
        found = Path(value)  # type: ignore[arg-type]  # what it does not take, it says
    except TypeError:
        found = Path()
    if not found.name or "\0" in str(found):
        raise InvalidValue(field, value, "it is the path of a file or folder (str or os.PathLike)")
    text(field, str(found).encode(errors="surrogateescape").decode(errors="replace"))
    return found


def event_id(field: str, value: object) -> tuple[int, int]:
    """An event's id: (epoch, sequence)."""
    if not isinstance(value, tuple) or len(value) != 2 or not all(type(part) is int for part in value):
        raise InvalidValue(field, value, "it is the id of an event: (epoch, sequence)")
    return value[0], value[1]


def job_reference(field: str, value: object) -> str:
    """A job's id or name, from a text or from a handle."""
    found = getattr(value, "id", value)
    if not isinstance(found, str) or not found:
        raise InvalidValue(field, value, "it is a job's id, handle or name")
    return found


def job_id(field: str, value: object) -> str:
    """A UUID as job ids are written."""
    found = text(field, value)
    try:
        fits = str(uuid.UUID(found)) == found
    except ValueError:
        fits = False
    if not fits:
        raise InvalidValue(field, value, "it is a UUID in lower case, such as '0668da57-1bcc-478b-bc14-5d4f1c1cef48'")
    return found


def dependencies(field: str, value: object) -> tuple[DependencyRequest, ...]:
    """The entries of `depends_on`."""
    if value is None:
        return ()
    if isinstance(value, (str, bytes, Mapping)) or hasattr(value, "id") or not isinstance(value, Iterable):
        allowed = "it is a list of jobs (ids, handles or names), after_any(job), after_failure(job), n_to_n(job)"
        raise InvalidValue(field, value, f"{allowed} and SEQUENTIAL")
    return tuple(_dependency(f"{field}[{n}]", entry) for n, entry in enumerate(value))


def _dependency(field: str, entry: object) -> DependencyRequest:
    if isinstance(entry, Sequential):
        return DependencyRequest(DependencyType.SEQUENTIAL, on=_on(field, entry.on))
    if isinstance(entry, NToN):
        return DependencyRequest(DependencyType.N_TO_N, job_reference(field, entry.job), _on(field, entry.on))
    if isinstance(entry, After):
        return DependencyRequest(entry.kind, job_reference(field, entry.job), PLAIN[entry.kind])
    if not isinstance(entry, Mapping):
        return DependencyRequest(DependencyType.AFTER_SUCCESS, job_reference(field, entry))
    unknown = set(entry) - {"job", "type", "on"}
    if unknown:
        raise InvalidValue(field, sorted(map(str, unknown))[0], "an entry has job, type and on")
    kind = entry.get("type")
    if kind not in (None, *DependencyType):
        allowed = f"a type is one of {', '.join(DependencyType)}; leave it out for AFTER_SUCCESS"
        raise InvalidValue(f"{field}.type", kind, allowed)
    job = entry.get("job")
    reference = None if job is None else job_reference(f"{field}.job", job)
    found = DependencyType(kind or "AFTER_SUCCESS")
    on = _on(field, entry.get("on", PLAIN.get(found, On.SUCCESS)))
    if PLAIN.get(found, on) is not on:
        allowed = "on goes with N_TO_N and SEQUENTIAL; the other entries' types say it: AFTER_ANY, AFTER_FAILURE"
        raise InvalidValue(f"{field}.on", on.value, allowed)
    return DependencyRequest(found, reference, on)


def _on(field: str, value: object) -> On:
    if value not in tuple(On):
        raise InvalidValue(f"{field}.on", value, f"it is one of {', '.join(map(repr, map(str, On)))}")
    return On(str(value))


def definition(field: str, value: object) -> str:
    """A definition's `name` or `name:revision`."""
    name, colon, revision = text(field, value).partition(":")
    if colon and not (revision.isdecimal() and revision.isascii() and len(revision) <= REVISION_DIGITS_MAX):
        raise InvalidValue(field, value, "it is a definition's name, or 'name:revision' with a revision such as 3")
    return f"{name}{colon}{revision}"


def references(field: str, value: object) -> list[str]:
    """A list of jobs, each an id, a handle or a name."""
    if isinstance(value, (str, bytes, Mapping)) or hasattr(value, "id") or not isinstance(value, Iterable):
        raise InvalidValue(field, value, "it is a list of ids, handles or names; describe_job takes a single one")
    return [job_reference(f"{field}[{n}]", entry) for n, entry in enumerate(value)]


def options(field: str, value: object, kind: type[msgspec.Struct], plugin: str) -> dict[str, Any]:
    """A plugin's options, checked by its own type, as plain values. `plugin` names it in errors: "backend 'x'"."""
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise InvalidValue(field, value, "it maps the names of options to values")
    known = kind.__struct_encode_fields__
    for name in value if kind.__struct_config__.forbid_unknown_fields else ():
        if name not in known:
            allowed = f"no such option{meant(name, known)} ({plugin} has {', '.join(known) or 'none'})"
            raise InvalidValue(f"{field}.{name}", value[name], allowed)
    try:
        plain = msgspec.to_builtins(dict(value))
        msgspec.convert(plain, kind)
        msgspec.msgpack.encode(plain)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as e:
        named = re.fullmatch(r"(.*) - at `\$\.(\w+)(\S*)`", str(e))
        if named is not None and named[2] in value:
            where, given = f"{field}.{named[2]}", value[named[2]]
            raise InvalidValue(where, given, f"{plugin}: {named[1]}{named[3] and ' at ' + named[3]}") from e
        raise InvalidValue(field, dict(value), f"{plugin}: {e}") from e
    found: dict[str, Any] = plain
    return found


def meant(name: object, known: Iterable[str]) -> str:
    """How a message goes on if something known is near to what was written; else nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def quotas(field: str, value: object) -> Quotas:
    """The kernel's quotas; None: the defaults."""
    if value is None:
        return Quotas()
    if not isinstance(value, Quotas):
        raise InvalidValue(field, value, "it is an anybatch.Quotas")
    for name in Quotas.__struct_fields__:
        if whole(f"{field}.{name}", getattr(value, name)) < 0:
            raise InvalidValue(f"{field}.{name}", getattr(value, name), "a quota is 0 or more")
    return value


def statuses(field: str, value: object) -> frozenset[JobStatus] | None:
    """One status, several, or None for any."""
    if value is None:
        return None
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, Iterable):
        raise InvalidValue(field, value, f"a status is one of {', '.join(JobStatus)}")
    found = set()
    for entry in entries:
        if entry not in tuple(JobStatus):
            raise InvalidValue(field, entry, f"a status is one of {', '.join(JobStatus)}")
        found.add(JobStatus(str(entry)))
    return frozenset(found)
