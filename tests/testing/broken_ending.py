"""Backends that each break one rule of logs, stops and timeouts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from anybatch.kernel.backend import (
    AttemptKey,
    Launch,
    log_path,
)
from testing.broken import SOON, Through, Wrapped, WrappedProcesses, breaks

# -- logs ---------------------------------------------------------------------------------------------


class OtherLogs(Wrapped):
    """Reads logs whole, and changes them."""

    async def logs(self, attempt: AttemptKey, *, follow: bool) -> AsyncIterator[bytes]:
        yield self.change(b"".join([piece async for piece in self.inner.logs(attempt, follow=follow)]))

    def change(self, text: bytes) -> bytes:
        return text


@breaks("logs_have_what_was_written")
class NoErrors(OtherLogs):
    def change(self, text: bytes) -> bytes:
        lines = text.splitlines(True)
        return b"".join([line for line in lines if not line.startswith(b"err")])


@breaks("logs_keep_the_order_of_writes")
class StreamsApart(OtherLogs):
    def change(self, text: bytes) -> bytes:
        lines = text.splitlines(True)
        lines.sort(key=lambda line: line.startswith(b"err"))
        return b"".join(lines)


@breaks("logs_keep_the_order_of_writes", orders_streams=False)
class Backwards(OtherLogs):
    def change(self, text: bytes) -> bytes:
        return b"".join(reversed(text.splitlines(True)))


@breaks("logs_are_complete_when_the_end_is_reported")
class LateLogs(OtherLogs):
    def change(self, text: bytes) -> bytes:
        return text[: len(text) // 2]


@breaks("following_shows_what_is_written_meanwhile", time_scale=SOON)
class FollowsAtTheEnd(OtherLogs):
    """It reads all there is to follow before it gives any."""


@breaks("following_ends_with_the_attempt", time_scale=SOON)
class FollowsForEver(Wrapped):
    async def logs(self, attempt: AttemptKey, *, follow: bool) -> AsyncIterator[bytes]:
        async for piece in self.inner.logs(attempt, follow=follow):
            yield piece
        if follow:
            await asyncio.Event().wait()


@breaks("following_ends_with_the_attempt")
class FollowsNot(Wrapped):
    async def logs(self, attempt: AttemptKey, *, follow: bool) -> AsyncIterator[bytes]:
        async for piece in self.inner.logs(attempt, follow=False):
            yield piece


@breaks("logs_of_the_unknown_are_empty")
class KnowsItsLogs(Wrapped):
    async def logs(self, attempt: AttemptKey, *, follow: bool) -> AsyncIterator[bytes]:
        yield log_path(self.context.logs_dir, attempt).read_bytes()


# -- stops --------------------------------------------------------------------------------------------


@breaks("stopping_ends_attempts")
class StopsAll(Wrapped):
    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        await super().stop([*self.launched], grace_ms)


@breaks("stopping_ends_attempts", time_scale=SOON)
class StopsNone(Wrapped):
    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        pass


@breaks("stopping_gives_notice_first")
class KillsAtOnce(Wrapped):
    killed: Any = frozenset()

    class through(Through):
        def exited(self, job_id: str, number: int, indexes: Any, *rest: Any, **more: Any) -> None:
            if AttemptKey(job_id, indexes[0], number) not in self.by.killed:
                self.to.exited(job_id, number, indexes, *rest, **more)

    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        for key in attempts:
            self.context.exited(key.job_id, key.number, [key.index], [137])
        self.killed = {*attempts}
        await super().stop(attempts, grace_ms)


@breaks("stopping_kills_after_the_grace")
class Impatient(Wrapped):
    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        await super().stop(attempts, grace_ms // 10)


@breaks("stopping_kills_after_the_grace", time_scale=SOON)
class NeverKills(Wrapped):
    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        await super().stop(attempts, 1 << 40)


@breaks("stopping_does_not_hold_up_the_caller", time_scale=SOON)
class WaitsForTheEnd(Wrapped):
    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        await super().stop(attempts, grace_ms)
        await asyncio.sleep(grace_ms / 1000)


@breaks("stopping_twice_is_stopping_once")
class AnswersEachStop(Wrapped):
    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        await super().stop(attempts, grace_ms)
        for key in attempts:
            if grace_ms == 0 and key in self.launched:
                self.context.exited(key.job_id, key.number, [key.index], [137])


@breaks("stopping_twice_is_stopping_once", time_scale=0.2)
class Relents(Wrapped):
    """Each stop puts the kill off."""

    timers: Any = None

    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        self.timers = self.timers or {}
        for key in attempts:
            if key in self.timers:
                self.timers[key].cancel()
            self.timers[key] = asyncio.get_running_loop().call_later(grace_ms / 1000, partial(self._kill, key))

    def _kill(self, key: AttemptKey) -> None:
        self.killing = asyncio.ensure_future(self.inner.stop([key], 0))


@breaks("stopping_the_unknown_is_ignored")
class KnowsWhatItStops(Wrapped):
    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        await super().stop([key for key in attempts if self.launched[key].indexes], grace_ms)


@breaks("stopping_the_unknown_is_ignored")
class StopsAhead(Wrapped):
    """It remembers the stop of what it does not know, for when that is launched."""

    ahead: Any = frozenset()

    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        self.ahead |= {key for key in attempts if key not in self.launched}
        await super().stop(attempts, grace_ms)

    async def launch(self, launches: Sequence[Launch]) -> None:
        await super().launch(launches)
        await self.inner.stop([*self.ahead], 1000)


@breaks("stopping_what_has_not_started_ends_it", time_scale=SOON)
class StopsWhatRuns(Wrapped):
    """A stop that comes before the start is forgotten."""

    async def launch(self, launches: Sequence[Launch]) -> None:
        self.waiting = {key for launch in launches for key in launch.attempts()}
        asyncio.get_running_loop().call_later(0.05, self.waiting.clear)
        await super().launch(launches)

    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        await super().stop([key for key in attempts if key not in self.waiting], grace_ms)


@breaks("timeouts_end_attempts", enforces_timeouts=True, time_scale=SOON)
class PromisesTimeouts(Wrapped):
    """It does not look at them."""


@breaks("timeouts_end_attempts", enforces_timeouts=True)
class TimeoutsAreExits(WrappedProcesses):
    class through(Through):
        def timed_out(self, *args: Any) -> None:
            self.to.exited(*args)
