"""How values travel: what a caller gives arrives as it was given, so that the kernel's own checks tell what is wrong.

Arguments and the attributes of errors are packed: what MessagePack has no type for is wrapped. What the kernel
returns is not: the client knows its type from the method's annotation.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct
from msgspec.msgpack import Ext

from ..arguments import After, NToN, Sequential
from ..core import errors
from ..core.errors import AnyBatchError, ControlError, KernelBug
from ..core.indexes import Kept, keep
from ..core.model import DependencyType
from ..handles import JobHandle

STRUCT, HANDLE, N_TO_N, SEQUENTIAL, TUPLE, PATH, TEXT, NUMBER, OTHER, AFTER, RANGE = range(1, 12)
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1

_STRUCTS: Final[dict[str, type[Struct]]] = {}
ERRORS: Final[Mapping[str, type[AnyBatchError]]] = {
    name: found for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, AnyBatchError)
}


class Other:
    """Stands for a value of a type that does not travel; it is shown as that was."""

    def __init__(self, shown: str) -> None:
        self._shown = shown

    def __repr__(self) -> str:
        return self._shown


def _encode(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def pack(value: Any) -> Any:
    """A value as what MessagePack has, and wrapped ones."""
    match value:
        case None | bool() | float() | bytes() | Ext():
            return value
        case int():
            value = int(value)
            return value if _INT_MIN <= value <= _INT_MAX else Ext(NUMBER, hex(value).encode())
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                return Ext(TEXT, value.encode(errors="surrogatepass"))
            return str(value)
        case Struct():
            fields = {name: pack(getattr(value, name)) for name in value.__struct_fields__}
            return Ext(STRUCT, _encode([type(value).__name__, fields]))
        case JobHandle():
            return Ext(HANDLE, _encode(_handle(value)))
        case NToN():
            return Ext(N_TO_N, _encode([pack(value.job), pack(value.on)]))
        case Sequential():
            return Ext(SEQUENTIAL, _encode(pack(value.on)))
        case After():
            return Ext(AFTER, _encode([value.kind, pack(value.job)]))
        case range():
            return Ext(RANGE, _encode([pack(value.start), pack(value.stop), pack(value.step)]))
        case os.PathLike():
            return Ext(PATH, os.fsencode(value))
        case tuple():
            return Ext(TUPLE, _encode([pack(entry) for entry in value]))
        case Mapping():
            return {pack(key): pack(entry) for key, entry in value.items()}
        case Iterable() if not isinstance(value, bytearray | memoryview):
            return [pack(entry) for entry in value]
        case _:
            return Ext(OTHER, repr(value).encode(errors="backslashreplace"))


def _struct(name: str) -> type[Struct]:
    """A type of ours, by its name."""
    if name not in _STRUCTS:
        kinds: list[type[Struct]] = [Struct]
        for kind in kinds:
            kinds += kind.__subclasses__()
        _STRUCTS.update((kind.__name__, kind) for kind in kinds if kind.__module__.startswith("anybatch.kernel."))
    if name not in _STRUCTS:
        raise ValueError(f"no type {name!r}")
    return _STRUCTS[name]


def _unpack(code: int, data: memoryview) -> Any:
    match code:
        case 1:
            name, fields = unpack(data)
            return _struct(name)(**fields)
        case 2:
            return unpack(data)[0]
        case 3:
            return NToN(*unpack(data))
        case 4:
            return Sequential(unpack(data))
        case 5:
            return tuple(unpack(data))
        case 6:
            return Path(os.fsdecode(bytes(data)))
        case 7:
            return bytes(data).decode(errors="surrogatepass")
        case 8:
            return int(bytes(data), 16)
        case 9:
            return Other(bytes(data).decode())
        case 10:
            kind, job = unpack(data)
            return After(DependencyType(kind), job)
        case 11:
            return range(*unpack(data))
        case _:
            raise ValueError(f"no kind {code} of value")


def unpack(data: bytes | memoryview | Raw) -> Any:
    """What was packed; a handle as its job's id.

    Raises:
        ValueError, TypeError: that is not packed.
    """
    try:
        return msgspec.msgpack.decode(data, ext_hook=_unpack)
    except (msgspec.MsgspecError, RecursionError) as e:
        raise ValueError(str(e)) from e


def pack_arguments(arguments: Mapping[str, Any]) -> Raw:
    """The arguments of a call, by name."""
    try:
        return Raw(_encode({name: pack(value) for name, value in arguments.items()}))
    except (RecursionError, msgspec.MsgspecError) as e:
        raise errors.InvalidValue("arguments", tuple(arguments), f"values of a call are not nested so deep: {e}") from e


def _handle(handle: JobHandle) -> tuple[str, str, int | None, tuple[str, ...], Kept]:
    return handle.id, handle.name, handle.array_size, handle.warnings, keep(handle._own)


def _plain(value: Any) -> Any:
    match value:
        case JobHandle():
            return _handle(value)
        case os.PathLike():
            return os.fspath(value)
        case Mapping():
            return dict(value)
        case Iterable():
            return list(value)
        case _:
            raise TypeError(f"{type(value).__name__} does not travel")


_RESULTS: Final = msgspec.msgpack.Encoder(enc_hook=_plain)


def result(value: Any) -> Raw:
    """What a method returned, or an item of a stream."""
    return Raw(_RESULTS.encode(value))


# -- errors -----------------------------------------------------------------------------------------


def pack_error(error: Exception) -> Raw:
    """An error: the names of its classes, most special first, its message and its attributes."""
    names = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, AnyBatchError)]
    text = str(error)
    if not names:
        names, text = [KernelBug.__name__], f"the kernel's process raised {type(error).__name__}: {error}"
    return Raw(_encode([names, pack(text), {name: pack(value) for name, value in vars(error).items()}]))


def unpack_error(data: Raw) -> AnyBatchError:
    """The same error on this side: of the most special class that is known here."""
    try:
        names, text, attributes = unpack(data)
        kind = next(ERRORS[name] for name in names if name in ERRORS)
        error = kind.__new__(kind, text)
        error.args = (text,)
        error.__dict__.update(attributes)
    except (ValueError, TypeError, StopIteration) as e:
        return ControlError(f"the kernel has answered with an error that cannot be read: {e!r}")
    return error
