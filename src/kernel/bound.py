"""How long a backend's calls may take, which come one after the other: one timer watches them all.

A timer for each would cost more than most calls do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import anyio


class Bound:
    """Ends the call that is under way once it has taken too long."""

    def __init__(self) -> None:
        self._scope: anyio.CancelScope | None = None
        self._until_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def keep(self, call: Awaitable[None], seconds: float) -> None:
        """Await one call, for so long at most.

        Raises:
            TimeoutError: it took longer, and was cancelled.
        """
        loop = asyncio.get_running_loop()
        self._until_s = loop.time() + seconds
        self._arm(loop)
        try:
            with anyio.CancelScope() as scope:
                self._scope = scope
                await call
        finally:
            self._scope = None
        if scope.cancelled_caught:
            raise TimeoutError

    def shorten(self, seconds: float) -> None:
        """The call that is under way may take so much longer at most."""
        if self._scope is not None:
            loop = asyncio.get_running_loop()
            self._until_s = min(self._until_s, loop.time() + seconds)
            self._arm(loop)

    def close(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look again in time; a timer that comes earlier than that is left, and armed anew once it has come."""
        if self._timer is not None:
            if self._timer.when() <= self._until_s:
                return
            self._timer.cancel()
        self._timer = loop.call_at(self._until_s, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._scope is None:
            return
        if loop.time() < self._until_s:
            self._arm(loop)
        else:
            self._scope.cancel()
