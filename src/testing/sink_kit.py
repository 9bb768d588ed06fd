"""The conformance kit for sinks: every rule of the protocol as a check, free of any test framework.

    await check_sink(SinkDescription(make=MySink, options={"url": ...}, received=ids_that_have_arrived))

`received` returns the ids of the events that have arrived where the sink delivers to, in the order of their arrival.
`break_off` and `mend`, where given, make that place unreachable and reachable again. A broken rule raises
`SinkRuleBroken`, which names the rule and says what was seen.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
from anybatch.kernel.core.states import JobStatus
from anybatch.kernel.sink import SINK_API_VERSION, EventGap, Sink, SinkContext, SinkEvent
from anybatch.kernel.stream import EventId, JobEvent

BOUND_S: Final = 30.0
"""How long one call of a sink may take in a check."""
MANY: Final = 1_000
"""Events in the largest batch: as many as the kernel ever hands over at once."""


class SinkRuleBroken(AssertionError):
    """A sink broke a rule. Attribute: `rule`."""

    def __init__(self, rule: str, seen: str) -> None:
        super().__init__(f"{rule}: {seen}")
        self.rule = rule


class SinkDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What the kit needs to know of a sink. See the module's text."""

    make: Callable[[], Sink]
    received: Callable[[], Awaitable[Sequence[EventId]]]
    options: Mapping[str, Any] = {}
    break_off: Callable[[], Awaitable[None]] | None = None
    mend: Callable[[], Awaitable[None]] | None = None


def status_event(sequence: int, *, indexes: Sequence[int] | None = None) -> JobEvent:
    """An event as the kernel makes them."""
    return JobEvent(
        id=EventId(1, sequence),
        at=datetime(2030, 1, 1, tzinfo=UTC),
        job_id="00000000-0000-4000-8000-000000000001",
        job_name="kit",
        queue="q",
        status=JobStatus.SUCCEEDED if sequence % 2 else JobStatus.RUNNING,
        array_size=None if indexes is None else 10_000,
        indexes=indexes,
        attempt=1,
        exit_codes=None if not sequence % 2 else (0,) * (1 if indexes is None else len(indexes)),
    )


async def check_sink(about: SinkDescription) -> list[str]:
    """Check every rule that applies; returns their names.

    Raises:
        SinkRuleBroken: the first rule that is broken.
    """
    done = []
    with tempfile.TemporaryDirectory(prefix="anybatch-kit-") as folder:
        kit = _Kit(about, Path(folder))
        for rule in (kit.states_its_version, kit.checks_its_options, kit.delivers_in_order, kit.takes_runs,
                     kit.takes_a_gap, kit.takes_repeats, kit.goes_on_after_close, kit.raises_what_it_cannot_deliver,
                     kit.survives_a_cancelled_delivery, kit.closes_without_open):  # fmt: skip
            if rule == kit.raises_what_it_cannot_deliver and about.break_off is None:
                continue
            await rule(rule.__name__)
            done.append(rule.__name__)
    return done


class _Kit:
    def __init__(self, about: SinkDescription, folder: Path) -> None:
        self.about, self.folder = about, folder
        self.next = 1

    def events(self, n: int, *, indexes: Sequence[int] | None = None) -> list[SinkEvent]:
        made: list[SinkEvent] = [status_event(self.next + i, indexes=indexes) for i in range(n)]
        self.next += n
        return made

    async def opened(self, rule: str) -> Sink:
        sink = self.about.make()
        options = msgspec.convert(dict(self.about.options), sink.Options)
        await self.call(rule, sink.open(SinkContext(name="kit", kernel_id="k1", options=options, folder=self.folder)))
        return sink

    async def call(self, rule: str, made: Awaitable[None]) -> None:
        try:
            with anyio.fail_after(BOUND_S):
                await made
        except TimeoutError:
            raise SinkRuleBroken(rule, f"a call took longer than {BOUND_S:g} s") from None

    async def arrived(self, rule: str, wanted: Sequence[SinkEvent]) -> None:
        """Every one of these has arrived, first arrivals in this order."""
        found = list(dict.fromkeys(await self.about.received()))
        ids = [event.id for event in wanted if isinstance(event, JobEvent)]
        missing = [ident for ident in ids if ident not in found]
        if missing:
            raise SinkRuleBroken(rule, f"{len(missing)} of {len(ids)} events have not arrived, the first {missing[0]}")
        places = [found.index(ident) for ident in ids]
        if places != sorted(places):
            raise SinkRuleBroken(rule, "events arrived out of order")

    async def states_its_version(self, rule: str) -> None:
        sink = self.about.make()
        if getattr(sink, "api_version", None) != SINK_API_VERSION or not isinstance(sink, Sink):
            raise SinkRuleBroken(rule, f"api_version is {getattr(sink, 'api_version', None)!r}, or a method is missing")

    async def checks_its_options(self, rule: str) -> None:
        try:
            msgspec.convert({**self.about.options, "no_such_option": 1}, self.about.make().Options)
        except msgspec.ValidationError:
            return
        raise SinkRuleBroken(rule, "an option that it does not know was accepted")

    async def delivers_in_order(self, rule: str) -> None:
        sink = await self.opened(rule)
        wanted = self.events(MANY) + self.events(1)
        await self.call(rule, sink.deliver(wanted[:MANY]))
        await self.arrived(rule, wanted[:MANY])  # when `deliver` returns, not when `close` does
        await self.call(rule, sink.deliver(wanted[MANY:]))
        await self.arrived(rule, wanted)
        await self.call(rule, sink.close())

    async def takes_runs(self, rule: str) -> None:
        sink = await self.opened(rule)
        wanted = self.events(1, indexes=range(10_000)) + self.events(1, indexes=(3, 5, 9_000))
        await self.call(rule, sink.deliver(wanted))
        await self.arrived(rule, wanted)
        await self.call(rule, sink.close())

    async def takes_a_gap(self, rule: str) -> None:
        sink = await self.opened(rule)
        gap = EventGap(after=EventId(1, self.next), next=self.next + 10, at=datetime.now(UTC), reason="kit")
        self.next += 10
        wanted = self.events(2)
        await self.call(rule, sink.deliver([gap, *wanted]))
        await self.call(rule, sink.deliver([gap]))
        await self.arrived(rule, wanted)
        await self.call(rule, sink.close())

    async def takes_repeats(self, rule: str) -> None:
        sink = await self.opened(rule)
        wanted = self.events(5)
        await self.call(rule, sink.deliver(wanted[:3]))
        await self.call(rule, sink.deliver(wanted))
        await self.arrived(rule, wanted)
        await self.call(rule, sink.close())

    async def goes_on_after_close(self, rule: str) -> None:
        sink = await self.opened(rule)
        wanted = self.events(4)
        await self.call(rule, sink.deliver(wanted[:2]))
        await self.call(rule, sink.close())
        options = msgspec.convert(dict(self.about.options), sink.Options)
        await self.call(rule, sink.open(SinkContext(name="kit", kernel_id="k1", options=options, folder=self.folder)))
        await self.call(rule, sink.deliver(wanted[2:]))
        await self.arrived(rule, wanted)
        await self.call(rule, sink.close())

    async def raises_what_it_cannot_deliver(self, rule: str) -> None:
        assert self.about.break_off is not None
        assert self.about.mend is not None
        sink = await self.opened(rule)
        wanted = self.events(3)
        await self.about.break_off()
        try:
            await self.call(rule, sink.deliver(wanted))
        except SinkRuleBroken:
            raise
        except Exception:
            await self.call(rule, sink.close())
        else:
            raise SinkRuleBroken(rule, "deliver returned although the events could not have arrived")
        finally:
            await self.about.mend()
        sink = await self.opened(rule)
        await self.call(rule, sink.deliver(wanted))
        await self.arrived(rule, wanted)
        await self.call(rule, sink.close())

    async def survives_a_cancelled_delivery(self, rule: str) -> None:
        sink = await self.opened(rule)
        wanted = self.events(50)
        task = asyncio.ensure_future(_run(sink.deliver(wanted)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is not None:
            raise SinkRuleBroken(rule, f"a cancelled delivery raised {task.exception()!r}")
        await self.call(rule, sink.close())
        sink = await self.opened(rule)
        await self.call(rule, sink.deliver(wanted))
        await self.arrived(rule, wanted)
        await self.call(rule, sink.close())

    async def closes_without_open(self, rule: str) -> None:
        await self.call(rule, self.about.make().close())


async def _run(made: Awaitable[None]) -> None:
    await made
