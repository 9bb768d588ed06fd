"""Which methods a kernel has for other processes: all its public ones, found by looking at the class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple, get_args, get_type_hints

from ..stream import EventStream, JobEvent

LOCAL: Final = frozenset({"acting_as", "read_logs"})
"""Methods that the client has as they are: made of other public ones, which keeps their answers small; or about the
caller alone, which every call takes along."""


class Method(NamedTuple):
    """A public method. `kind`: it is awaited for one value, iterated, or an event stream."""

    name: str
    function: Callable[..., Any]
    signature: inspect.Signature
    kind: Literal["call", "stream", "events"]

    @property
    def gives(self) -> Any:
        """The type of what it returns, or of the items of its stream."""
        if self.kind == "events":
            return JobEvent
        found = get_type_hints(self.function)["return"]
        return found if self.kind == "call" else get_args(found)[0]


def methods(kernel: type) -> Mapping[str, Method]:
    """The methods of a kernel's class, by name.

    Raises:
        TypeError: one of them is of a kind that another process cannot call (docs/decisions/0045).
    """
    found = {}
    for name, function in inspect.getmembers(kernel, inspect.isfunction):
        if not name.startswith("_") and name not in LOCAL:
            found[name] = Method(name, function, inspect.signature(function), _kind(function))
    return found


def _kind(function: Callable[..., Any]) -> Literal["call", "stream", "events"]:
    if inspect.iscoroutinefunction(function):
        return "call"
    if inspect.isasyncgenfunction(function):
        return "stream"
    if get_type_hints(function).get("return") is EventStream:
        return "events"
    raise TypeError(f"{function.__qualname__} is neither a coroutine function nor an async generator")
