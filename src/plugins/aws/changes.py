"""When to look again at how things stand: once something has happened, and at most so often."""

from __future__ import annotations

import asyncio
from typing import Final

from anybatch import EventId, Kernel

PAUSE_S: Final = 1.0
"""The least time between two looks: what happens at once is looked at once."""


class Changes:
    """A kernel's changes, for one who looks at how things stand after them. Nothing is done while nothing happens."""

    def __init__(self, kernel: Kernel, pause_s: float = PAUSE_S) -> None:
        self._kernel = kernel
        self._pause_s = pause_s
        self._seen: EventId | None = None

    async def wait(self, at_most_s: float | None = None) -> None:
        """Return once something has happened since the last return, or this time is over; the first time at once.

        Raises:
            KernelClosed: nothing will happen any more.
        """
        if self._seen is None:
            self._seen = await self._kernel.last_event_id()
            return
        await asyncio.sleep(self._pause_s)
        try:
            async with asyncio.timeout(at_most_s):
                self._seen = await self._kernel.next_event_id(self._seen)
        except TimeoutError:
            pass
