"""Backends that each break one rule of the protocol: the conformance kit has to name it.

Most wrap a right backend, and change what it is told or what it reports.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ClassVar

from anybatch.backends.inline import InlineBackend
from anybatch.backends.process import ProcessBackend
from anybatch.kernel.backend import (
    API_VERSION,
    AttemptKey,
    Backend,
    BackendContext,
    Launch,
)
from anybatch.testing.backend_kit import FUNCTIONS, Description, function_programs

BROKEN: dict[str, list[Description]] = {}
"""By the rule that each breaks."""


class Through:
    """A context that hands everything on; a wrong backend changes some of it."""

    def __init__(self, to: BackendContext, by: Wrapped) -> None:
        self.to = to
        self.by: Any = by

    def __getattr__(self, name: str) -> Any:
        return getattr(self.to, name)


class Wrapped:
    """A right backend, as it is."""

    through: type[Through] = Through
    api_version: ClassVar[Any] = API_VERSION
    capabilities: ClassVar[Any] = InlineBackend.capabilities
    Options: ClassVar[Any] = InlineBackend.Options

    def __init__(self) -> None:
        self.inner = self.make()
        self.launched: dict[AttemptKey, Launch] = {}
        self.context: Any = None

    def make(self) -> Backend:
        return InlineBackend(FUNCTIONS)

    async def start(self, context: BackendContext, known: Sequence[Launch]) -> None:
        self.context = self.through(context, self)
        await self.inner.start(self.context, known)

    async def launch(self, launches: Sequence[Launch]) -> None:
        self.launched.update({key: launch for launch in launches for key in launch.attempts()})
        await self.inner.launch(launches)

    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        await self.inner.stop(attempts, grace_ms)

    async def logs(self, attempt: AttemptKey, *, follow: bool) -> AsyncIterator[bytes]:
        async for piece in self.inner.logs(attempt, follow=follow):
            yield piece

    async def close(self) -> None:
        await self.inner.close()


class WrappedProcesses(Wrapped):
    """A right backend that reattaches."""

    capabilities: ClassVar[Any] = ProcessBackend.capabilities
    Options: ClassVar[Any] = ProcessBackend.Options

    def make(self) -> Backend:
        return ProcessBackend(agent_idle_ms=1_000)


def breaks(rule: str, **about: Any) -> Callable[[type], type]:
    """Say which rule a backend breaks. What it is described as follows from what it wraps."""

    def add(kind: type) -> type:
        fields = {"factory": kind, **about}
        if issubclass(kind, Wrapped) and not issubclass(kind, WrappedProcesses):
            fields = {"programs": function_programs, "kills_trees": False, **fields}
        BROKEN.setdefault(rule, []).append(Description(**fields))
        return kind

    return add


SOON = 0.1
"""A time scale for what is found out by waiting in vain."""
