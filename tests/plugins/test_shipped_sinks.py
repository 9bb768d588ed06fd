"""The sinks that come with anybatch, against the real thing: files, an HTTP server, a scrape."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import msgspec
import pytest
import pytest_asyncio
import structlog
from aiohttp import web
from anybatch.kernel.sink import EventGap, Sink, SinkContext, SinkError, SinkEvent
from anybatch.kernel.stream import EventId, JobEvent
from anybatch.plugins.jsonl_sink import JsonlSink
from anybatch.plugins.log_sink import LogSink
from anybatch.plugins.prometheus_sink import PrometheusSink
from anybatch.plugins.webhook_sink import WebhookSink
from anybatch.testing.sink_kit import SinkDescription, SinkRuleBroken, check_sink, status_event

pytestmark = pytest.mark.asyncio


async def opened(sink: Any, folder: Path, **options: Any) -> Any:
    made = msgspec.convert(options, sink.Options)
    await sink.open(SinkContext(name="s", kernel_id="k", options=made, folder=folder))
    return sink


def lines(path: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


def ids(records: Sequence[dict[str, Any]]) -> list[EventId]:
    return [EventId(*record["id"]) for record in records if record["type"] == "status"]


# ---- JSON Lines ----


async def test_jsonl_conforms(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"

    async def received() -> list[EventId]:
        return ids(lines(path))

    done = await check_sink(SinkDescription(make=JsonlSink, options={"path": str(path)}, received=received))
    assert "delivers_in_order" in done


async def test_jsonl_takes_a_torn_line_off_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    sink = await opened(JsonlSink(), tmp_path, path="e.jsonl")
    await sink.deliver([status_event(1), status_event(2)])
    await sink.close()
    path.write_bytes(path.read_bytes()[:-7])

    await opened(sink, tmp_path, path="e.jsonl")
    assert ids(lines(path)) == [EventId(1, 1)]
    await sink.deliver([status_event(2)])
    await sink.close()
    assert ids(lines(path)) == [EventId(1, 1), EventId(1, 2)]


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_000])
async def test_jsonl_finds_the_end_of_the_last_whole_line(tmp_path: Path, size: int) -> None:
    path = tmp_path / "e.jsonl"
    path.write_bytes(b"{}\n" + b"x" * size)
    sink = await opened(JsonlSink(), tmp_path, path="e.jsonl")
    await sink.close()
    assert path.read_bytes() == b"{}\n"


async def test_jsonl_rotates_and_keeps_as_many_files_as_told(tmp_path: Path) -> None:
    sink = await opened(JsonlSink(), tmp_path, path="logs/e.jsonl", rotate_bytes=1_000, keep=2)
    for n in range(1, 31):
        await sink.deliver([status_event(n)])
    await sink.close()
    files = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert files == ["e.jsonl", "e.jsonl.1", "e.jsonl.2"]
    found = [ident for name in reversed(files) for ident in ids(lines(tmp_path / "logs" / name))]
    assert found == [EventId(1, n) for n in range(found[0].sequence, 31)]
    assert all((tmp_path / "logs" / name).stat().st_size < 2_000 for name in files)


async def test_jsonl_lines_say_what_the_schema_says(tmp_path: Path) -> None:
    sink = await opened(JsonlSink(), tmp_path, path="e.jsonl")
    await sink.deliver([status_event(1, indexes=range(3)), status_event(3, indexes=(1, 5))])
    await sink.close()
    run, listed = lines(tmp_path / "e.jsonl")
    assert run == {
        "version": 1, "type": "status", "kernel": "k", "id": [1, 1], "at": "2030-01-01T00:00:00.000Z",
        "job_id": "00000000-0000-4000-8000-000000000001", "job_name": "kit", "queue": "q", "status": "SUCCEEDED",
        "array_size": 10_000, "indexes": {"start": 0, "stop": 3}, "attempt": 1, "exit_codes": [0, 0, 0],
        "status_reason": None, "reason": None,
    }  # fmt: skip
    assert listed["indexes"] == [1, 5]

    each = await opened(JsonlSink(), tmp_path, path="each.jsonl", per_child=True)
    await each.deliver([status_event(1, indexes=range(3))])
    await each.close()
    assert [(r["job_id"][-2:], r["indexes"], r["exit_codes"]) for r in lines(tmp_path / "each.jsonl")] == [
        (":0", None, [0]), (":1", None, [0]), (":2", None, [0]),
    ]  # fmt: skip


# ---- the webhook ----


class Endpoint:
    """An HTTP server that keeps what it is posted, and answers as told."""

    def __init__(self) -> None:
        self.posts: list[tuple[dict[str, str], bytes]] = []
        self.answer: tuple[int, dict[str, str]] = (204, {})
        self.runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/hook", self._post)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self.runner.addresses[0][1]

    async def stop(self) -> None:
        assert self.runner is not None
        await self.runner.cleanup()

    async def _post(self, request: web.Request) -> web.Response:
        body = await request.read()
        status, headers = self.answer
        if status < 300:
            self.posts.append(({k.lower(): v for k, v in request.headers.items()}, body))
        return web.Response(status=status, headers=headers, text="no thanks" if status >= 300 else None)

    def events(self) -> list[dict[str, Any]]:
        return [event for _, body in self.posts for event in msgspec.json.decode(body)]

    async def received(self) -> list[EventId]:
        return ids([event["data"] for event in self.events()])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"


@pytest_asyncio.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    made = Endpoint()
    await made.start()
    yield made
    await made.stop()


async def test_the_webhook_conforms(endpoint: Endpoint) -> None:
    about = SinkDescription(
        make=WebhookSink,
        options={"url": endpoint.url},
        received=endpoint.received,
        break_off=endpoint.stop,
        mend=endpoint.start,
    )
    assert "raises_what_it_cannot_deliver" in await check_sink(about)


async def test_the_webhook_posts_cloudevents_signed(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush\n")
    sink = await opened(WebhookSink(), tmp_path, url=endpoint.url, secret_file="secret")
    await sink.deliver([status_event(1), status_event(2)])
    await sink.close()

    ((headers, body),) = endpoint.posts
    assert headers["content-type"].startswith("application/cloudevents-batch+json")
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    wanted = base64.b64encode(hmac.new(b"hush", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{wanted}"
    first = endpoint.events()[0]
    assert (first["specversion"], first["type"], first["id"]) == ("1.0", "anybatch.job.status.v1", "k/1.1")
    assert (first["source"], first["subject"]) == ("anybatch/k", first["data"]["job_id"])


async def test_a_secret_in_base64_is_decoded(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", "whsec_" + base64.b64encode(b"\x00\xff").decode())
    sink = await opened(WebhookSink(), tmp_path, url=endpoint.url, secret_env="HOOK_SECRET")
    await sink.deliver([status_event(1)])
    await sink.close()
    ((headers, body),) = endpoint.posts
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    wanted = base64.b64encode(hmac.new(b"\x00\xff", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{wanted}"


async def test_a_missing_secret_is_an_error_that_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="secret_file"):
        await opened(WebhookSink(), tmp_path, url="http://127.0.0.1:9/", secret_file="nowhere")
    with pytest.raises(SinkError, match="NO_SUCH_VARIABLE"):
        await opened(WebhookSink(), tmp_path, url="http://127.0.0.1:9/", secret_env="NO_SUCH_VARIABLE")


@pytest.mark.parametrize(
    ("answer", "after"),
    [
        ((503, {"Retry-After": "17"}), 17.0),
        ((500, {}), None),
        ((404, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), None),
        ((302, {"Location": "http://127.0.0.1:9/"}), None),
    ],
)
async def test_a_refusal_is_an_error_that_tells_what_was_said(
    endpoint: Endpoint, tmp_path: Path, answer: tuple[int, dict[str, str]], after: float | None
) -> None:
    endpoint.answer = answer
    sink = await opened(WebhookSink(), tmp_path, url=endpoint.url)
    with pytest.raises(SinkError, match=rf"answered {answer[0]} .*no thanks") as raised:
        await sink.deliver([status_event(1)])
    assert raised.value.retry_after_s == after
    await sink.close()


async def test_a_large_batch_is_posted_in_parts(endpoint: Endpoint, tmp_path: Path) -> None:
    sink = await opened(WebhookSink(), tmp_path, url=endpoint.url)
    events: list[SinkEvent] = [status_event(n, indexes=tuple(range(0, 40_000, 2))) for n in range(1, 20)]
    await sink.deliver(events)
    await sink.close()
    assert len(endpoint.posts) > 1
    assert all(len(body) < 1_500_000 for _, body in endpoint.posts)
    assert await endpoint.received() == [EventId(1, n) for n in range(1, 20)]


# ---- Prometheus ----


async def scrape(sink: PrometheusSink) -> dict[str, float]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{sink.port}/metrics") as response,
    ):
        text = await response.text()
    return {m[1]: float(m[2]) for m in re.finditer(r"^(anybatch\S+) (\S+)$", text, re.MULTILINE)}


async def test_prometheus_counts_each_event_once(tmp_path: Path) -> None:
    sink = await opened(PrometheusSink(), tmp_path, port=0)
    try:
        batch = [status_event(1, indexes=range(5)), status_event(2, indexes=range(5)), status_event(3)]
        await sink.deliver(batch)
        await sink.deliver(batch)
        await sink.deliver([EventGap(after=EventId(1, 3), next=8, at=batch[0].at, reason="x")])
        found = await scrape(sink)
    finally:
        await sink.close()
    assert found['anybatch_status_changes_total{queue="q",status="SUCCEEDED"}'] == 6
    assert found['anybatch_status_changes_total{queue="q",status="RUNNING"}'] == 5
    assert found['anybatch_jobs_total{queue="q",status="SUCCEEDED"}'] == 1
    assert found['anybatch_attempts_ended_total{queue="q",result="succeeded"}'] == 6
    assert found["anybatch_events_missed_total"] == 4
    assert found["anybatch_last_event_timestamp_seconds"] == batch[0].at.timestamp()
    assert sink.port == 0


async def test_prometheus_says_which_port_it_cannot_have(tmp_path: Path, endpoint: Endpoint) -> None:
    with pytest.raises(SinkError, match=f"port {endpoint.port}"):
        await opened(PrometheusSink(), tmp_path, port=endpoint.port)


async def test_prometheus_conforms(tmp_path: Path) -> None:
    made: list[PrometheusSink] = []
    seen: list[EventId] = []

    class Watched(PrometheusSink):
        """Tells which events it has counted."""

        def _count(self, event: JobEvent) -> None:
            super()._count(event)
            seen.append(event.id)

    def make() -> Sink:
        made.append(Watched())
        return made[-1]

    async def received() -> list[EventId]:
        return seen

    assert await check_sink(SinkDescription(make=make, options={"port": 0}, received=received))


# ---- the log ----


@pytest.fixture
def plain_log() -> Iterator[None]:
    """structlog as it is unless a service configures it, whatever other tests have left."""
    kept = structlog.get_config() if structlog.is_configured() else None
    structlog.reset_defaults()
    yield
    if kept is not None:
        structlog.configure(**kept)


@pytest.mark.usefixtures("plain_log")
async def test_the_log_has_a_line_per_event(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = await opened(LogSink(), tmp_path)
    with caplog.at_level(logging.INFO, "anybatch.events"):
        await sink.deliver([status_event(1, indexes=range(2)), status_event(2)])
        gap = EventGap(after=EventId(1, 2), next=5, at=status_event(1).at, reason="forgotten")
        await sink.deliver([gap])
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "ERROR"]
    assert "job_status" in caplog.text
    assert "events_missing" in caplog.text


@pytest.mark.usefixtures("plain_log")
async def test_the_log_conforms(caplog: pytest.LogCaptureFixture) -> None:
    async def received() -> list[EventId]:
        found = re.findall(r"\bid=\[(\d+), (\d+)\]", caplog.text)
        return [EventId(int(epoch), int(sequence)) for epoch, sequence in found]

    with caplog.at_level(logging.INFO, "anybatch.events"):
        assert await check_sink(SinkDescription(make=LogSink, received=received))


# ---- the kit itself: each rule can be broken ----


class Kept:
    """A sink that conforms, in memory. Its wrong variants break one rule each."""

    api_version = 1

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        pass

    place: ClassVar[list[EventId]]
    down = False

    async def open(self, context: SinkContext) -> None:
        pass

    async def deliver(self, events: Sequence[SinkEvent]) -> None:
        if self.down:
            raise SinkError("down")
        self.place.extend(event.id for event in events if isinstance(event, JobEvent))

    async def close(self) -> None:
        pass


class OldVersion(Kept):
    api_version = 0


class AnyOption(Kept):
    class Options(msgspec.Struct):
        pass


class Backwards(Kept):
    async def deliver(self, events: Sequence[SinkEvent]) -> None:
        await super().deliver(events[::-1])


class Late(Kept):
    """Delivers when it is closed."""

    async def open(self, context: SinkContext) -> None:
        self.held: list[SinkEvent] = []

    async def deliver(self, events: Sequence[SinkEvent]) -> None:
        self.held += events

    async def close(self) -> None:
        await super().deliver(getattr(self, "held", []))


class NoRuns(Kept):
    async def deliver(self, events: Sequence[SinkEvent]) -> None:
        await super().deliver([e for e in events if isinstance(e, JobEvent) and e.indexes is None])


class NoGaps(Kept):
    async def deliver(self, events: Sequence[SinkEvent]) -> None:
        if not any(isinstance(event, EventGap) for event in events):
            await super().deliver(events)


class Once(Kept):
    """Takes a batch whose beginning it has seen for one that it has seen."""

    async def deliver(self, events: Sequence[SinkEvent]) -> None:
        first = events[0]
        if not isinstance(first, JobEvent) or first.id not in self.place:
            await super().deliver(events)


class Swallows(Kept):
    async def deliver(self, events: Sequence[SinkEvent]) -> None:
        if not self.down:
            await super().deliver(events)


class OneLife(Kept):
    closed = False

    async def deliver(self, events: Sequence[SinkEvent]) -> None:
        if not self.closed:
            await super().deliver(events)

    async def close(self) -> None:
        self.closed = True


class Fragile(Kept):
    """Raises something of its own when it is cancelled."""

    async def deliver(self, events: Sequence[SinkEvent]) -> None:
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            raise ValueError("what now?") from None
        await super().deliver(events)


class NeedsOpen(Kept):
    opened = False

    async def open(self, context: SinkContext) -> None:
        self.opened = True

    async def close(self) -> None:
        if not self.opened:
            raise SinkRuleBroken("closes_without_open", "it raises")


BROKEN: dict[type[Kept], str] = {
    OldVersion: "states_its_version",
    AnyOption: "checks_its_options",
    Backwards: "delivers_in_order",
    Late: "delivers_in_order",
    NoRuns: "takes_runs",
    NoGaps: "takes_a_gap",
    Once: "takes_repeats",
    OneLife: "goes_on_after_close",
    Swallows: "raises_what_it_cannot_deliver",
    Fragile: "survives_a_cancelled_delivery",
    NeedsOpen: "closes_without_open",
}


@pytest.mark.parametrize("kind", [Kept, *BROKEN], ids=lambda kind: kind.__name__)
async def test_each_rule_of_the_kit_can_be_broken(kind: type[Kept]) -> None:
    place: list[EventId] = []

    class One(kind):  # type: ignore[misc,valid-type]
        pass

    One.place = place

    async def set_down(value: bool) -> None:
        One.down = value

    async def received() -> list[EventId]:
        return place

    about = SinkDescription(make=One, received=received, break_off=lambda: set_down(True), mend=lambda: set_down(False))
    if kind is Kept:
        assert len(await check_sink(about)) == len(set(BROKEN.values()))
        return
    with pytest.raises(SinkRuleBroken) as raised:
        await check_sink(about)
    assert raised.value.rule == BROKEN[kind]
