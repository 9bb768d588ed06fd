"""Time for the kernel: epoch milliseconds that never go backwards, and timers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A timer that can be cancelled."""

    def cancel(self) -> None:
        """Do not call; without effect once called."""


class Clock(Protocol):
    """Where the kernel, and backends through their context, get the time from."""

    def now_ms(self) -> int:
        """Epoch milliseconds (UTC); never less than before."""

    def call_at(self, when_ms: int, callback: Callable[[], None]) -> Timer:
        """Call back on the event loop at `when_ms` (at once if it has passed)."""


class SystemClock:
    """The machine's time at the start, carried on by the monotonic clock: it never jumps or goes back.

    `floor_ms` is the least time to begin with: the last one in the journal.
    """

    def __init__(self, floor_ms: int = 0) -> None:
        self._anchor_ns = max(time.time_ns(), floor_ms * 1_000_000) - time.monotonic_ns()

    def now_ms(self) -> int:
        return (self._anchor_ns + time.monotonic_ns()) // 1_000_000

    def call_at(self, when_ms: int, callback: Callable[[], None]) -> Timer:
        delay_ms = max(0, when_ms - self.now_ms())
        return asyncio.get_running_loop().call_later(delay_ms / 1000, callback)
