"""Delivery to sinks: at least once, in order, from a durable cursor; a bad sink costs only itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import anybatch
import msgspec
import pytest
from anybatch import EventGap, InvalidValue, Kernel, PluginError, SinkError
from anybatch.kernel import sinks as sinks_module
from anybatch.kernel.sink import SINK_API_VERSION, SinkContext, SinkEvent, event_record
from anybatch.kernel.stream import EventId, JobEvent
from anybatch.testing.clock import VirtualClock
from kernel_rig import NoOptions, as_killed, kernel_on, live, nothing_left, submit, turns, until

pytestmark = pytest.mark.asyncio


class ListSink:
    """Keeps what it is given. Tests of bad manners set `fail` or `hold`."""

    api_version: ClassVar[int] = SINK_API_VERSION
    Options: ClassVar[type[msgspec.Struct]] = NoOptions

    def __init__(self) -> None:
        self.events: list[SinkEvent] = []
        self.calls: list[str] = []
        self.fail: Exception | None = None
        self.hold: asyncio.Event | None = None

    async def open(self, context: SinkContext) -> None:
        self.calls.append("open")
        self.context = context

    async def deliver(self, events: Sequence[SinkEvent]) -> None:
        self.calls.append("deliver")
        if self.hold is not None:
            await self.hold.wait()
        if self.fail is not None:
            raise self.fail
        self.events += events

    async def close(self) -> None:
        self.calls.append("close")

    def ids(self) -> list[EventId]:
        return [event.id for event in self.events if isinstance(event, JobEvent)]


async def history(kernel: Kernel) -> list[EventId]:
    """The ids of all events up to now, from the stream that needs no sink."""
    found: list[EventId] = []
    last = live(kernel).journal.last
    await submit(kernel, "marker", vcpus=1000)
    async with kernel.events() as events:
        async for event in events:
            if event.id.sequence > last:
                return found
            found.append(event.id)
    return found


async def caught_up(kernel: Kernel, sink: ListSink, name: str = "s") -> None:
    last = live(kernel).journal.last
    await until(lambda: next(s for s in kernel._sinks.details() if s.name == name).cursor.sequence >= last)


async def test_a_sink_is_given_what_the_stream_tells_once_and_in_order() -> None:
    sink = ListSink()
    with nothing_left():
        async with kernel_on(sinks={"s": sink}) as kernel:
            await (await submit(kernel, "array", array_size=20)).wait()
            wanted = await history(kernel)
            await caught_up(kernel, sink)
            assert sink.ids()[: len(wanted)] == wanted
            assert sink.context.kernel_id == kernel.id
    assert sink.calls[0] == "open"
    assert sink.calls[-1] == "close"
    assert sink.calls.count("open") == 1


async def test_delivery_goes_on_from_the_cursor_in_the_next_kernel(tmp_path: Path) -> None:
    first, second = ListSink(), ListSink()
    async with kernel_on(path=tmp_path / "j.db", sinks={"s": first}) as kernel:
        await (await submit(kernel)).wait()
    async with kernel_on(path=tmp_path / "j.db", sinks={"s": second}) as kernel:
        await (await submit(kernel)).wait()
        wanted = await history(kernel)
        await caught_up(kernel, second)
    assert (first.ids() + second.ids())[: len(wanted)] == wanted


async def test_what_a_killed_kernel_had_not_delivered_comes_from_the_next(tmp_path: Path) -> None:
    first, second = ListSink(), ListSink()
    async with kernel_on(path=tmp_path / "j.db", sinks={"s": first}) as kernel:
        await (await submit(kernel)).wait()
        await caught_up(kernel, first)
        seen = len(first.events)
        first.hold = asyncio.Event()
        await (await submit(kernel)).wait()
        wanted = await history(kernel)
        left = as_killed(tmp_path / "j.db")
        first.hold.set()
    async with kernel_on(path=left, sinks={"s": second}) as kernel:
        await caught_up(kernel, second)
    assert (first.ids()[:seen] + second.ids())[: len(wanted)] == wanted


async def test_nothing_is_delivered_before_it_is_on_disk(tmp_path: Path) -> None:
    sink = ListSink()
    async with kernel_on(path=tmp_path / "j.db", sinks={"s": sink}) as kernel:
        runtime = live(kernel)
        too_early: list[EventId] = []
        deliver = sink.deliver

        async def watched(events: Sequence[SinkEvent]) -> None:
            too_early.extend(e.id for e in events if isinstance(e, JobEvent) and e.id.sequence > runtime.synced)
            await deliver(events)

        sink.deliver = watched  # type: ignore[method-assign]
        for _ in range(5):
            await (await submit(kernel, array_size=50)).wait()
        await caught_up(kernel, sink)
    assert sink.events
    assert too_early == []


async def test_a_raising_sink_holds_up_nobody_and_catches_up() -> None:
    clock, bad, good = VirtualClock(), ListSink(), ListSink()
    bad.fail = SinkError("the endpoint is down")
    async with kernel_on(clock=clock, sinks={"bad": bad, "good": good}) as kernel:
        await (await submit(kernel, array_size=10)).wait()
        await caught_up(kernel, good, "good")
        await until(lambda: kernel._sinks.details()[0].failures)
        detail = kernel._sinks.details()[0]
        assert (detail.name, detail.failures, detail.error) == ("bad", 1, "the endpoint is down")
        assert detail.behind > 0
        await clock.advance(10)
        assert kernel._sinks.details()[0].failures > 1
        bad.fail = None
        await clock.advance(60)
        await caught_up(kernel, bad, "bad")
        assert kernel._sinks.details()[0].error is None
        assert bad.ids() == good.ids()
    assert bad.calls.count("open") == bad.calls.count("close") > 2


async def test_pauses_double_up_to_a_bound_and_a_sink_may_ask_for_a_longer_one() -> None:
    clock, sink = VirtualClock(), ListSink()
    tries: list[int] = []

    async def deliver(events: Sequence[SinkEvent]) -> None:
        tries.append(clock.now_ms())
        raise SinkError("no", retry_after_s=200 if len(tries) == 9 else None)

    sink.deliver = deliver  # type: ignore[method-assign]
    async with kernel_on(clock=clock, sinks={"s": sink}) as kernel:
        await submit(kernel, vcpus=1000)  # never runs, so nothing more is committed
        await until(lambda: kernel._sinks.details()[0].failures and live(kernel).synced == live(kernel).journal.last)
        await clock.advance(600)
    pauses = [b - a for a, b in pairwise(tries)]
    assert pauses[:10] == [500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 200000, 60000]


async def test_a_hanging_sink_is_given_up_when_the_kernel_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks_module, "FLUSH_S_MAX", 0.01)
    sink = ListSink()
    sink.hold = asyncio.Event()
    with nothing_left():
        async with kernel_on(sinks={"s": sink}) as kernel:
            await (await submit(kernel)).wait()
            await until(lambda: "deliver" in sink.calls)
    assert sink.calls[-1] == "close"
    assert sink.events == []


async def test_a_batch_that_takes_too_long_is_an_error_of_the_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks_module, "DELIVER_S_MAX", 0.01)
    sink = ListSink()
    sink.hold = asyncio.Event()
    async with kernel_on(clock=VirtualClock(), sinks={"s": sink}) as kernel:
        await submit(kernel)
        await until(lambda: kernel._sinks.details()[0].failures)
        assert "longer than its bound" in str(kernel._sinks.details()[0].error)


async def test_a_sink_that_cancels_itself_is_an_error_of_the_sink() -> None:
    sink = ListSink()
    sink.fail = asyncio.CancelledError()  # type: ignore[assignment]
    async with kernel_on(clock=VirtualClock(), sinks={"s": sink}) as kernel:
        await submit(kernel)
        await until(lambda: kernel._sinks.details()[0].failures)
        assert "cancelled from inside" in str(kernel._sinks.details()[0].error)


async def test_forgotten_events_are_told_as_a_gap(tmp_path: Path) -> None:
    sink = ListSink()
    path = tmp_path / "j.db"
    async with kernel_on(path=path, sinks={"s": sink}) as kernel:
        await (await submit(kernel)).wait()
        await caught_up(kernel, sink)
    cursor = sink.ids()[-1].sequence
    async with kernel_on(path=path) as kernel:  # the sink is not there meanwhile
        for n in range(3):
            await (await submit(kernel, f"j{n}", array_size=5)).wait()
        journal = live(kernel).journal
        for _ in range(2):  # a recovery needs nothing before the older of two snapshots
            live(kernel)._put_snapshot()
            await (await submit(kernel)).wait()
        before = journal.last - 1
        while journal.trim(before) < before and journal.trim(before) > journal.oldest:
            pass
        oldest = journal.oldest
        assert oldest > cursor + 1
    late = ListSink()
    async with kernel_on(path=path, sinks={"s": late}) as kernel:
        await caught_up(kernel, late)
        gap = late.events[0]
        assert isinstance(gap, EventGap)
        assert (gap.after.sequence >= cursor, gap.next) == (True, oldest)
        assert all(ident.sequence >= oldest for ident in late.ids())
        assert len([event for event in late.events if isinstance(event, EventGap)]) == 1
        assert event_record(gap, kernel.id)["type"] == "gap"


async def test_events_of_a_log_that_was_cut_are_told_as_a_gap(tmp_path: Path) -> None:
    path, sink = tmp_path / "j.db", ListSink()
    async with kernel_on(path=path) as kernel:
        await (await submit(kernel)).wait()
        journal = live(kernel).journal
        journal.put_cursor("s", journal.epoch, journal.last + 500)  # as a log left behind that lost its end
    async with kernel_on(path=path, sinks={"s": sink}) as kernel:
        epoch = live(kernel).journal.epoch
        job = await submit(kernel)
        await job.wait()
        await until(lambda: kernel._sinks.details()[0].cursor.epoch == epoch)  # its old cursor is ahead of the log
        await caught_up(kernel, sink)
        assert isinstance(sink.events[0], EventGap)
        assert {ident.epoch for ident in sink.ids()} == {epoch}
        assert job.id in {event.job_id for event in sink.events if isinstance(event, JobEvent)}


async def test_a_new_sink_begins_with_what_is_kept_or_with_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with kernel_on(path=tmp_path / "j.db") as kernel:
        await (await submit(kernel, "old")).wait()
    options = {"per_child": True}
    sinks = {
        "all": {"plugin": "jsonl", "options": {"path": str(path), **options}},
        "new": {"plugin": "jsonl", "options": {"path": "new.jsonl", **options}, "start": "new"},
    }
    async with kernel_on(path=tmp_path / "j.db", sinks=sinks) as kernel:
        await (await submit(kernel, "young")).wait()
    names = {
        name: {msgspec.json.decode(line)["job_name"] for line in (tmp_path / name).read_bytes().splitlines()}
        for name in ("events.jsonl", "new.jsonl")
    }
    assert names == {"events.jsonl": {"old", "young"}, "new.jsonl": {"young"}}


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (["x"], InvalidValue, "sinks:"),
        ({"": ListSink()}, InvalidValue, "a sink's name"),
        ({"s": 3}, InvalidValue, r"sinks\.s"),
        ({"s": ListSink}, InvalidValue, r"sinks\.s"),
        ({"s": {"plugin": "no such"}}, InvalidValue, "jsonl, log, prometheus, webhook"),
        ({"s": {"plugin": "jsonl"}}, InvalidValue, r"sinks\.s\.options.*path"),
        ({"s": {"plugin": "jsonl", "options": {"path": ""}}}, InvalidValue, r"sinks\.s\.options"),
        ({"s": {"plugin": "jsonl", "options": {"path": "x", "colour": 1}}}, InvalidValue, "colour"),
        ({"s": {"plugin": "log", "start": "middle"}}, InvalidValue, r"sinks\.s\.start"),
        ({"s": {"plug": "log"}}, InvalidValue, r"sinks\.s"),
        ({"s": {"plugin": "webhook", "options": {"url": "ftp://x"}}}, InvalidValue, "url"),
        ({"s": {"plugin": "prometheus", "options": {"port": -1}}}, InvalidValue, "port"),
    ],
)
async def test_bad_settings_name_what_is_wrong(given: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Kernel(sinks=given)


async def test_a_sink_for_another_version_is_refused() -> None:
    class Later(ListSink):
        api_version: ClassVar[int] = SINK_API_VERSION + 1

    with pytest.raises(PluginError, match="version 2; this kernel speaks version 1"):
        Kernel(sinks={"s": Later()})


async def test_a_large_batch_is_handed_over_in_parts_and_the_cursor_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks_module, "BATCH_MAX", 3)
    clock, sink = VirtualClock(), ListSink()
    sizes: list[int] = []
    deliver = sink.deliver

    async def counted(events: Sequence[SinkEvent]) -> None:
        sizes.append(len(events))
        if len(sizes) == 3:
            raise SinkError("once")
        await deliver(events)

    sink.deliver = counted  # type: ignore[method-assign]
    async with kernel_on(clock=clock, sinks={"s": sink}) as kernel:
        await asyncio.gather(*[submit(kernel, f"j{n}") for n in range(9)])
        await until(lambda: kernel._sinks.details()[0].failures)
        await clock.advance(5)
        await caught_up(kernel, sink)
        wanted = await history(kernel)
    assert max(sizes) == 3
    assert sink.ids()[: len(wanted)] == wanted  # nothing twice: what was taken before the error stays taken


async def test_a_sink_costs_an_idle_kernel_nothing() -> None:
    sink = ListSink()
    async with kernel_on(sinks={"s": sink}) as kernel:
        await (await submit(kernel)).wait()
        await caught_up(kernel, sink)
        calls = list(sink.calls)
        await turns(200)
        assert sink.calls == calls
        (detail,) = await kernel.describe_sinks()
        assert isinstance(detail, anybatch.SinkDetail)
        assert (detail.name, detail.plugin, detail.behind, detail.error) == ("s", "ListSink", 0, None)
