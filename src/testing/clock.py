"""A clock that stands still until told: the tests of timeouts take no time."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

import anyio.lowlevel

SETTLE_TURNS = 50
"""Turns of the event loop that `advance` gives everybody between two timers."""


class _Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def fire(self) -> None:
        if self.callback is not None:
            self.callback()


class VirtualClock:
    """A `Clock` whose time moves only by `advance`. Starts at `start_ms` (epoch milliseconds)."""

    def __init__(self, start_ms: int = 1_800_000_000_000) -> None:
        self._now_ms = start_ms
        self._timers: list[tuple[int, int, _Timer]] = []
        self._order = count()

    def now_ms(self) -> int:
        return self._now_ms

    def call_at(self, when_ms: int, callback: Callable[[], None]) -> _Timer:
        timer = _Timer(callback)
        if when_ms <= self._now_ms:
            asyncio.get_running_loop().call_soon(timer.fire)
            return timer
        heapq.heappush(self._timers, (when_ms, next(self._order), timer))
        return timer

    async def advance(self, seconds: float) -> None:
        """Move on by this much: every timer due on the way fires at its time, and what it sets off is let run."""
        end_ms = self._now_ms + round(seconds * 1000)
        await self.settle()
        while self._timers and self._timers[0][0] <= end_ms:
            when_ms, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                self._now_ms = max(self._now_ms, when_ms)
                timer.fire()
                await self.settle()
        self._now_ms = end_ms
        await self.settle()

    async def settle(self) -> None:
        """Let everybody who can run do so."""
        for _ in range(SETTLE_TURNS):
            await anyio.lowlevel.checkpoint()
