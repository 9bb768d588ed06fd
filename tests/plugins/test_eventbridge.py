"""The shape `eventbridge` of the sinks: what AWS Batch puts onto its event bus (contract EB-1 to EB-4)."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from anybatch import EventGap, InlineAttempt, InlineBackend, Kernel
from anybatch.kernel.backend import AttemptKey
from anybatch.kernel.sink import SinkContext, SinkError
from anybatch.kernel.stream import EventId
from anybatch.plugins.event_shapes import Shaped, make_shape
from anybatch.plugins.eventbridge import EventBridge
from anybatch.plugins.jsonl_sink import JsonlOptions, JsonlSink
from anybatch.plugins.webhook_sink import WebhookOptions, cloud_event
from aws_rig import compare, service_model
from kernel_rig import ManualBackend, add_queue, kernel_on, submit, until

pytestmark = pytest.mark.asyncio

ACCOUNT: Final = "111122223333"
REGION: Final = "eu-west-1"


async def second_time(attempt: InlineAttempt) -> int:
    return 3 if attempt.number == 1 else 0


def events_of(path: Path, job: str | None = None) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [one for one in found if job is None or one["detail"]["jobId"] == job]


def sinks(path: Path, **options: Any) -> dict[str, Any]:
    shaped = {"path": str(path), "shape": "eventbridge", "account": ACCOUNT, "region": REGION, **options}
    return {"bus": {"plugin": "jsonl", "options": shaped}}


async def delivered(kernel: Kernel) -> None:
    last = await kernel.last_event_id()
    sink = kernel._sinks

    await until(lambda: sink.details()[0].cursor >= last)


async def test_eb_1_one_event_per_change_of_single_jobs_parents_and_children(tmp_path: Path) -> None:
    path = tmp_path / "bus.jsonl"
    all_there = asyncio.Event()

    async def wait_first(attempt: InlineAttempt) -> int:
        await all_there.wait()
        return await second_time(attempt)

    async with Kernel(
        tmp_path / "b.db", backends={"inline": InlineBackend({"x": wait_first})}, sinks=sinks(path)
    ) as kernel:
        await add_queue(kernel, "inline", name="q", vcpus=2)
        job = await kernel.submit_job("single", queue="q", command=["x"], retry=2)
        array = await kernel.submit_job("array", queue="q", command=["x"], retry=2, array_size=2)
        after = await kernel.submit_job("after", queue="q", command=["x"], depends_on=[job])
        all_there.set()
        for one in (job, array, after):
            await one.wait()
        await delivered(kernel)

    def statuses(job_id: str) -> list[str]:
        return [one["detail"]["status"] for one in events_of(path, job_id)]

    tries = ["RUNNABLE", "STARTING", "RUNNING", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED"]
    assert statuses(job.id) == tries
    assert statuses(f"{array.id}:0") == statuses(f"{array.id}:1") == tries
    assert statuses(array.id) == ["PENDING", "SUCCEEDED"]
    assert statuses(after.id) == ["PENDING", "RUNNABLE", "STARTING", "RUNNING", "FAILED"]


async def test_eb_2_the_detail_is_a_job_detail_of_that_moment(tmp_path: Path) -> None:
    path = tmp_path / "bus.jsonl"
    async with Kernel(
        tmp_path / "b.db", backends={"inline": InlineBackend({"x": second_time})}, sinks=sinks(path)
    ) as kernel:
        await add_queue(kernel, "inline", name="q", vcpus=2)
        await kernel.register_job_definition("d", command=["x"], memory=64)
        job = await kernel.submit_job("j", queue="q", definition="d", retry=2, tags={"team": "a"}, array_size=2)
        await job.wait()
        await delivered(kernel)
    shape = service_model().shape_for("JobDetail")
    for one in events_of(path):
        compare(one["detail"], shape, "detail")
    details = [one["detail"] for one in events_of(path, f"{job.id}:1")]
    assert [len(one["attempts"]) for one in details] == [0, 0, 0, 1, 1, 1, 2]
    assert [one["container"].get("exitCode") for one in details] == [None, None, None, 3, None, None, 0]
    assert ["startedAt" in one for one in details] == [False, False, True, True, False, True, True]
    assert ["stoppedAt" in one for one in details] == [False, False, False, True, False, False, True]
    assert [one.get("statusReason") for one in details] == [
        None, None, None, "Essential container in task exited", None, None, "Essential container in task exited",
    ]  # fmt: skip
    assert details[-1]["attempts"][0]["container"]["exitCode"] == 3
    assert details[-1]["arrayProperties"] == {"index": 1}
    assert details[-1]["tags"] == {"team": "a"}
    # EB-4: what rules match on is plain text.
    assert details[0]["jobQueue"] == f"arn:aws:batch:{REGION}:{ACCOUNT}:job-queue/q"
    assert details[0]["jobDefinition"] == f"arn:aws:batch:{REGION}:{ACCOUNT}:job-definition/d:1"


async def test_eb_2_a_late_delivery_tells_how_it_was_and_not_how_it_is() -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel, kernel.events() as stream:
        job = await submit(kernel, retry=2)
        await until(lambda: backend.live)
        backend.exit(AttemptKey(job.id, 0, 1), 9, reason="OutOfMemoryError: x")
        await until(lambda: backend.live)
        backend.exit(AttemptKey(job.id, 0, 2), 0)
        await job.wait()
        events = []
        async for event in stream:
            events.append(event)
            if event.status.value == "SUCCEEDED":
                break
        options = JsonlOptions(path="x", shape="eventbridge")
        context = SinkContext(name="s", kernel_id=kernel.id, options=options, folder=Path(), kernel=kernel)
        records = await make_shape(context).records(events)
    details = [one.record["detail"] for one in records]
    assert [(one["status"], len(one["attempts"])) for one in details] == [
        ("RUNNABLE", 0), ("STARTING", 0), ("RUNNING", 0), ("RUNNABLE", 1), ("STARTING", 1), ("RUNNING", 1),
        ("SUCCEEDED", 2),
    ]  # fmt: skip
    assert details[3]["container"]["reason"] == "OutOfMemoryError: x"
    assert "reason" not in details[4]["container"]
    assert "exitCode" not in details[5]["container"]


async def test_eb_3_the_envelope_is_eventbridges_and_the_id_stays_the_same(tmp_path: Path) -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel, kernel.events() as stream:
        array = await submit(kernel, array_size=3)
        events = []
        async for event in stream:
            events.append(event)
            if event.status.value == "RUNNABLE":
                break
        options = WebhookOptions(url="http://x", shape="eventbridge", account=ACCOUNT, region=REGION)
        context = SinkContext(name="s", kernel_id=kernel.id, options=options, folder=tmp_path, kernel=kernel)
        records = await make_shape(context).records(events)
        again = await make_shape(context).records(events)
        backend.exit_all()
    assert [one.id for one in again] == [one.id for one in records]
    assert len({one.id for one in records}) == len(records)
    first = records[1].record
    assert set(first) == {
        "version", "id", "detail-type", "source", "account", "time", "region", "resources", "detail",
    }  # fmt: skip
    assert (first["version"], first["detail-type"], first["source"]) == ("0", "Batch Job State Change", "aws.batch")
    assert (first["account"], first["region"]) == (ACCOUNT, REGION)
    assert str(uuid.UUID(first["id"])) == first["id"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first["time"])
    assert first["resources"] == [f"arn:aws:batch:{REGION}:{ACCOUNT}:job/{array.id}:0"]
    cloud = cloud_event(records[1], kernel.id)
    assert cloud["type"] == "anybatch.eventbridge.job-state-change.v1"
    assert (cloud["id"], cloud["subject"], cloud["data"]) == (first["id"], f"{array.id}:0", first)


async def test_a_job_that_is_no_longer_kept_is_told_with_what_its_event_says(tmp_path: Path) -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel, kernel.events() as stream:
        job = await submit(kernel)
        await until(lambda: backend.live)
        backend.exit_all(1)
        await job.wait()
        events = []
        async for event in stream:
            events.append(event)
            if event.status.value == "FAILED":
                break
        context = SinkContext(
            name="s", kernel_id=kernel.id, options=JsonlOptions(path="x", shape="eventbridge"), folder=tmp_path
        )
        records = await make_shape(context).records(events)
    detail = records[-1].record["detail"]
    assert detail["jobId"] == job.id
    assert (detail["status"], detail["statusReason"]) == ("FAILED", "Essential container in task exited")


async def test_a_gap_stays_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "bus.jsonl"
    sink = JsonlSink()
    options = JsonlOptions(path=str(path), shape="eventbridge")
    await sink.open(SinkContext(name="s", kernel_id="k", options=options, folder=tmp_path))
    await sink.deliver([EventGap(after=EventId(1, 2), next=9, at=datetime(2030, 1, 1), reason="gone")])
    await sink.close()
    assert json.loads(path.read_text())["type"] == "gap"


async def test_options_that_do_not_go_together_are_refused() -> None:
    for options, match in (
        ({"shape": "eventbridge", "per_child": True}, "per_child"),
        ({"account": ACCOUNT}, "are for the shape eventbridge"),
        ({"shape": "eventbridge", "account": "1"}, "account"),
        ({"shape": "other"}, "shape"),
    ):
        with pytest.raises(msgspec.ValidationError, match=match):
            msgspec.convert({"path": "x", **options}, JsonlOptions)


async def test_eb_5_a_queue_whose_head_is_blocked_is_told_once_for_each_reason(tmp_path: Path) -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel:
        options = JsonlOptions(path="x", shape="eventbridge", account=ACCOUNT, region=REGION)
        context = SinkContext(name="s", kernel_id=kernel.id, options=options, folder=tmp_path, kernel=kernel)
        bus = make_shape(context)
        assert isinstance(bus, EventBridge)
        told: list[Shaped] = []

        async def send(records: list[Shaped]) -> None:
            told.extend(records)

        async def dead(records: list[Shaped]) -> None:
            raise SinkError("nobody is there")

        running = await submit(kernel, "running")
        await until(lambda: backend.live)
        await bus.tell_blocked(send)
        assert told == []
        # It stays at the head, and the next one passes it.
        await kernel.register_job_definition("d", command=["x"])
        large = await submit(kernel, "large", definition="d", vcpus=100, array_size=2)
        larger = await submit(kernel, "larger", vcpus=200)
        await submit(kernel, "small")
        await until(lambda: len(backend.live) == 2)
        with pytest.raises(SinkError):
            await bus.tell_blocked(dead)
        await bus.tell_blocked(send)
        await bus.tell_blocked(send)
        [first] = told
        await large.terminate("enough")
        await bus.tell_blocked(send)
        assert [one.record["detail"]["jobName"] for one in told] == ["large", "larger"]
        await larger.terminate("enough")
        await bus.tell_blocked(send)
        assert len(told) == 2
        backend.exit_all()
        await running.wait()
    record = first.record
    child = f"{large.id}:0"
    base = f"arn:aws:batch:{REGION}:{ACCOUNT}"
    assert record["detail-type"] == "Batch Job Queue Blocked"
    assert record["resources"] == [f"{base}:job/{child}", f"{base}:job-queue/q"]
    assert (record["detail"]["jobId"], record["detail"]["status"]) == (child, "RUNNABLE")
    assert record["detail"]["statusReason"].startswith("MISCONFIGURATION:")
    compare(record["detail"], service_model().shape_for("JobDetail"), "detail")
    assert (first.type, first.subject) == ("anybatch.eventbridge.queue-blocked.v1", child)


async def test_eb_5_a_sink_that_is_open_tells_of_blocked_queues_as_it_comes_to_that(tmp_path: Path) -> None:
    path = tmp_path / "bus.jsonl"
    heads: list[str] = []

    async with kernel_on(ManualBackend(), tmp_path / "b.db", sinks=sinks(path)) as kernel:
        ask = kernel.queue_head

        async def asked(queue: str) -> Any:
            heads.append(queue)
            return await ask(queue)

        kernel.queue_head = asked  # type: ignore[method-assign]
        job = await submit(kernel, vcpus=100)
        await until(lambda: path.exists() and b"Queue Blocked" in path.read_bytes())
        [told] = [one for one in events_of(path) if one["detail-type"] == "Batch Job Queue Blocked"]
        assert told["detail"]["statusReason"].startswith("MISCONFIGURATION:")
        # An environment that takes nothing any more is no event of a job's, and is told of all the same.
        await kernel.update_compute_environment("b", state="DISABLED")
        await until(lambda: path.read_bytes().count(b"Queue Blocked") == 2)
        [_, told] = [one for one in events_of(path) if one["detail-type"] == "Batch Job Queue Blocked"]
        assert told["detail"]["statusReason"].startswith("UNDETERMINED")
        assert len(heads) <= 6
        await job.terminate("done")
    kinds = [one["detail-type"] for one in events_of(path, job.id)]
    assert kinds.count("Batch Job Queue Blocked") == 2
