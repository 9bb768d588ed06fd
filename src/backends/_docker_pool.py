"""A few tasks that work attempts off: what bounds how much is asked of an engine at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from ..kernel.logs import Log
from ._docker_attempt import Attempt

log = Log("anybatch.docker")


class Pool:
    """A few tasks that work off what is put in; there are none while there is nothing to do."""

    def __init__(self, most: int, work: Callable[[Attempt], Awaitable[None]], name: str) -> None:
        self.most = most
        self._work = work
        self._name = name
        self._todo: deque[Attempt] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self.closed = False

    def put(self, attempt: Attempt, *, first: bool = False) -> None:
        """Have this done."""
        if self.closed:
            return
        if first:
            self._todo.appendleft(attempt)
        else:
            self._todo.append(attempt)
        if len(self._tasks) < self.most:
            task = asyncio.create_task(self._run(), name=self._name)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        while self._todo:
            attempt = self._todo.popleft()
            try:
                await self._work(attempt)
            except Exception as e:  # a mistake of ours costs one attempt's step, and is seen
                log.error("docker_step_failed", step=self._name, attempt=str(attempt.key), error=repr(e))

    async def drain(self) -> None:
        """Return once there is nothing to do."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def close(self) -> None:
        """End it where it stands."""
        self.closed = True
        self._todo.clear()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
