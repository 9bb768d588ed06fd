"""A backend that runs nothing: attempts complete by themselves, at once or after a modelled time."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Annotated, ClassVar

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
)
from anybatch.kernel.clock import Timer
from anybatch.kernel.core.container import CONTAINER_FIELDS

HOST = "null"

Model = Callable[[AttemptKey], tuple[float, int]]
"""Gives an attempt's duration in seconds and its exit code."""


class NullOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`memory`: MiB of its one host (None: not counted). `gpus`: their indexes."""

    memory: Annotated[int, msgspec.Meta(ge=0)] | None = None
    gpus: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = ()


class NullBackend:
    """Completes attempts without running anything.

    Without a `model`, every attempt starts at once and exits on the next turn of the event loop, with exit code
    `exit_code` (or what that function gives for it), in an order shuffled by `seed` and each of up to 100 with an exit
    time of its own; there is no task and no timer per attempt. With a model, exits come when the kernel's clock says
    so. Nothing outlives the process: what was in flight is lost with it.
    """

    api_version: ClassVar[int] = API_VERSION
    capabilities: ClassVar[Capabilities] = Capabilities(commands=False, container=CONTAINER_FIELDS)
    Options: ClassVar[type[msgspec.Struct]] = NullOptions

    def __init__(
        self, model: Model | None = None, *, exit_code: int | Callable[[AttemptKey], int] = 0, seed: int = 0
    ) -> None:
        self._model = model
        self._exit_code = exit_code
        self._random = random.Random(seed)
        self._due: list[Launch] = []
        self._timers: dict[AttemptKey, Timer] = {}
        self._scheduled = False

    @staticmethod
    def expects(settings: EnvironmentSettings) -> Expectation:
        """One host, with what the options say."""
        options = msgspec.convert(settings.options, NullOptions)
        capacity = Capacity(vcpus_milli=settings.max_vcpus_milli, memory_mib=options.memory, gpus=options.gpus)
        return Expectation(
            hosts=[ExpectedHost(name=HOST, capacity=capacity)], container=NullBackend.capabilities.container
        )

    async def start(self, context: BackendContext, known: Sequence[Launch]) -> None:
        self._context = context
        context.host_up(HOST, self.expects(context.settings).hosts[0].capacity)
        due = {key for launch in self._due for key in launch.attempts()}
        for launch in known:
            gone = [key.index for key in launch.attempts() if key not in self._timers and key not in due]
            if gone:
                context.lost(launch.job_id, launch.number, gone, reason="the process that held it has ended")

    async def launch(self, launches: Sequence[Launch]) -> None:
        for launch in launches:
            self._context.started(launch.job_id, launch.number, launch.indexes)
            if self._model is None:
                if launch not in self._due:  # the same twice before the next turn runs once
                    self._due.append(launch)
            else:
                self._schedule(launch, self._model)
        if self._due and not self._scheduled:
            self._scheduled = True
            self._context.clock.call_at(0, self._complete)

    def _complete(self) -> None:
        """Everything launched since the last turn exits, shuffled."""
        self._scheduled = False
        due, self._due = self._due, []
        now = self._context.clock.now_ms()
        for launch in due:
            indexes = list(launch.indexes)
            self._random.shuffle(indexes)
            at_ms = [now - n % 100 for n in range(len(indexes))]
            self._context.exited(launch.job_id, launch.number, indexes, self._codes(launch, indexes), at_ms)

    def _codes(self, launch: Launch, indexes: Sequence[int]) -> list[int]:
        if isinstance(self._exit_code, int):
            return [self._exit_code] * len(indexes)
        return [self._exit_code(AttemptKey(launch.job_id, index, launch.number)) for index in indexes]

    def _schedule(self, launch: Launch, model: Model) -> None:
        now = self._context.clock.now_ms()
        for key in launch.attempts():
            if key in self._timers:
                continue
            seconds, code = model(key)
            self._timers[key] = self._context.clock.call_at(now + round(seconds * 1000), partial(self._exit, key, code))

    def _exit(self, key: AttemptKey, code: int) -> None:
        if self._timers.pop(key, None) is not None:
            self._context.exited(key.job_id, key.number, [key.index], [code])

    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        for key in attempts:
            timer = self._timers.get(key)
            if timer is not None:
                timer.cancel()
                self._exit(key, 143)

    async def logs(self, attempt: AttemptKey, *, follow: bool) -> AsyncIterator[bytes]:
        """Nothing: nothing was run."""
        for piece in list[bytes]():
            yield piece

    async def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
