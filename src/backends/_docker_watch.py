"""Watching an engine: its stream of events, a list from time to time, and whether it is there at all.

The stream is read first, then all containers are listed, so nothing falls between; what the stream should have told
and did not is found by the next list.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final, Protocol

from ..kernel.clock import Clock
from ..kernel.core.errors import BackendError
from ..kernel.logs import Log
from ._docker_engine import Engine, EngineError, EngineGone
from ._docker_spec import Owner, epoch_ms

log = Log("anybatch.docker")

LIST_EVERY_S: Final = 15.0
"""Between two lists while anything is under way: how late an end is noticed that the stream did not tell."""
SUBSCRIBE_S: Final = 2.0
"""For the stream to begin, before the first list; one that begins later tells of what happened since the last one."""
IDLE_PROBE_S: Final = 60.0
"""The same while nothing is."""
BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Between tries to reach an engine that is gone; the last for good."""
STOPPING_MS: Final = 20_000
"""For so long an engine that is stopped ends its containers, before or after it closes its connections."""
OVERLAP_S: Final = 1.0
"""How far a new stream reaches back before what the last one told."""


class Watched(Protocol):
    """Whom a watch tells."""

    def is_busy(self) -> bool:
        """Whether anything is under way."""

    def on_event(self, kind: str, labels: dict[str, str], at_ms: int) -> None:
        """Something has happened to a container of ours."""

    async def on_there(self, info: dict[str, Any]) -> None:
        """The engine has answered, for the first time or after an outage."""

    async def on_list(self, containers: list[dict[str, Any]]) -> None:
        """All our containers as they are now."""

    def on_down(self, reason: str) -> None:
        """The engine is gone."""

    def on_still_down(self) -> None:
        """It has been tried again, without success."""

    def on_up(self, outage_ms: int) -> None:
        """It is there (again). `outage_ms`: since when it was not (0: it was not missed)."""


class Watch:
    """Watches one engine for one environment."""

    def __init__(self, engine: Engine, owner: Owner, watched: Watched, clock: Clock) -> None:
        self._engine = engine
        self._owner = owner
        self._watched = watched
        self._clock = clock
        self._since = 0.0
        self._doubt = asyncio.Event()
        self._skew_ms = 0
        self.back = asyncio.Event()
        """Set while the engine is there."""
        self.down_ms = 0
        """Since when it has been gone; 0: it is there."""
        self.missed_at: float | None = None
        """Since when, by the loop's clock, it has not answered; None: it has."""
        self.outages = 0
        """How often it has been gone."""
        self.contact_ms = 0
        """When it was last heard of."""
        self._asked_at = 0.0
        """When it was asked what it has yet to answer."""
        self._away = (0, 0)
        """The latest outage: from, to."""

    async def connect(self) -> dict[str, Any]:
        """What the engine says of itself; its clock is compared with ours.

        Raises:
            EngineGone: it cannot be reached.
        """
        info = await self._engine.info()
        self.contact_ms = self._clock.now_ms()
        there = epoch_ms(str(info.get("SystemTime", ""))) or self.contact_ms
        self._skew_ms = 0 if self._engine.place.url.startswith("unix://") else self.contact_ms - there
        if not self._since:
            self._since = there / 1000 - OVERLAP_S
        return info

    def to_ours(self, at_ms: int) -> int:
        """A time by the engine's clock, by ours; never in the future."""
        return min(at_ms + self._skew_ms, self._clock.now_ms())

    def was_away(self, at_ms: int) -> bool:
        """Whether the engine was gone, or about to go, at this time."""
        since, until = (self.down_ms, self._clock.now_ms()) if self.down_ms else self._away
        return bool(since) and since - STOPPING_MS <= at_ms <= until

    def doubt(self, error: Exception) -> None:
        """A request got no answer: look whether the engine is there."""
        if self.back.is_set():
            log.warning("docker_engine_doubted", engine=self._engine.place.url, error=str(error))
        self._miss(asyncio.get_running_loop().time())
        self._doubt.set()

    async def answers_after(self, error: Exception) -> bool:
        """Wait until the engine is there; whether it was all the time, and just did not answer that request."""
        outages, was_down = self.outages, bool(self.down_ms)
        self.doubt(error)
        await self.back.wait()
        return not was_down and self.outages == outages

    def _miss(self, at: float) -> None:
        self.back.clear()
        self.missed_at = at if self.missed_at is None else min(at, self.missed_at)

    def begin_away(self, reason: str) -> None:
        """It could not be reached to begin with."""
        if not self.down_ms:
            self._lose(reason, asyncio.get_running_loop().time())
        self._doubt.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        tries = 0
        while True:
            self._asked_at = asyncio.get_running_loop().time()
            try:
                info = await self.connect()
                await self._watched.on_there(info)
                tries = 0
                await self._follow()
            except (EngineGone, EngineError, BackendError) as e:
                self._lose(str(e), self._asked_at)
            await asyncio.sleep(BACKOFF_S[min(tries, len(BACKOFF_S) - 1)])
            tries += 1

    def _lose(self, reason: str, at: float) -> None:
        self._miss(at)
        if not self.down_ms:
            self.down_ms = self._clock.now_ms()
            self.outages += 1
            log.warning("docker_engine_lost", engine=self._engine.place.url, reason=reason)
            self._watched.on_down(f"the engine at {self._engine.place.url} cannot be reached: {reason}")
        else:
            self._watched.on_still_down()

    async def _follow(self) -> None:
        """Read events and list now and then, until the engine is gone."""
        opened = asyncio.Event()
        reader = asyncio.create_task(self._read(opened.set), name="anybatch-docker-events")
        try:
            await self._pause(reader, opened, SUBSCRIBE_S)
            while True:
                self._doubt.clear()
                self._asked_at = asyncio.get_running_loop().time()
                if not self.back.is_set():
                    await self._engine.probe()
                await self._watched.on_list(await self._engine.containers(self._owner.filters()))
                self.contact_ms = self._clock.now_ms()
                if not self.back.is_set():
                    since, self.down_ms, self.missed_at = self.down_ms, 0, None
                    if since:
                        self._away = (since, self.contact_ms)
                    self.back.set()
                    self._watched.on_up(since)
                await self._pause(reader, self._doubt, LIST_EVERY_S if self._watched.is_busy() else IDLE_PROBE_S)
                if reader.done():
                    self._asked_at = asyncio.get_running_loop().time()
                    reader.result()
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, EngineGone, EngineError):
                await reader

    async def _pause(self, reader: asyncio.Task[None], sooner: asyncio.Event, seconds: float) -> None:
        """Wait for so long, or until this has happened, or the stream has ended."""
        waiting = asyncio.create_task(sooner.wait())
        try:
            await asyncio.wait({reader, waiting}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()

    async def _read(self, on_open: Callable[[], None]) -> None:
        async for event in self._engine.events(self._owner.filters(), self._since, on_open):
            nanoseconds = int(event.get("timeNano") or int(event.get("time", 0)) * 1_000_000_000)
            self._since = max(self._since, nanoseconds / 1e9 - OVERLAP_S)
            self.contact_ms = self._clock.now_ms()
            labels = (event.get("Actor") or {}).get("Attributes") or {}
            kind = str(event.get("Action") or event.get("status") or "")
            self._watched.on_event(kind, labels, self.to_ours(nanoseconds // 1_000_000))
