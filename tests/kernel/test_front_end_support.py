"""What front ends need of the kernel: tags of everything, metadata of their own, a caller's name, lists in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anybatch
import pytest
from anybatch import Conflict, InvalidValue, Kernel, NotFound, QuotaExceeded
from anybatch.kernel.core.events import AnyEvent, JobSubmitted, QueuePut, TagsPut
from anybatch.testing.null import NullBackend
from kernel_rig import ManualBackend, add_queue, kernel_on, live, submit

pytestmark = pytest.mark.asyncio

META = {"image": "busybox", "nested": {"list": [1, 2.5, None, True]}}


def null(path: Path | None) -> Kernel:
    return Kernel(path, backends={"b": NullBackend})


async def test_tg_2_tags_are_merged_and_removed_and_survive_a_restart(tmp_path: Path) -> None:
    async with null(tmp_path / "k.db") as kernel:
        await add_queue(kernel)
        await kernel.register_job_definition("d", command=["x"], tags={"a": "1"})
        job = await submit(kernel, array_size=2)
        names = [("compute environment", "q"), ("job queue", "q"), ("job definition", "d:1"), ("job", job.id)]
        names[0] = ("compute environment", (await kernel.describe_compute_environments())[0].name)
        for kind, name in names:
            await kernel.tag_resource(kind, name, {"a": "2", "b": "3"})
            found = await kernel.tag_resource(kind, name, {"c": "4"}, remove=["b", "never there"])
            assert found == {"a": "2", "c": "4"}
    async with null(tmp_path / "k.db") as kernel:
        for kind, name in names:
            assert await kernel.tag_resource(kind, name) == {"a": "2", "c": "4"}
        assert (await kernel.describe_job(job)).tags == {"a": "2", "c": "4"}
        assert (await kernel.describe_job_queues(["q"]))[0].tags == {"a": "2", "c": "4"}


async def test_tg_1_tags_of_nothing_of_a_child_and_too_many_are_refused() -> None:
    async with kernel_on(ManualBackend()) as kernel:
        job = await submit(kernel, array_size=2)
        with pytest.raises(InvalidValue, match="its array"):
            await kernel.tag_resource("job", job[0].id, {"a": "1"})
        for kind, name in [("job", "job"), ("job queue", "no"), ("job definition", "d"), ("job definition", "d:x")]:
            with pytest.raises(NotFound):
                await kernel.tag_resource(kind, name, {"a": "1"})
        with pytest.raises(InvalidValue, match="kind"):
            await kernel.tag_resource("user", "x", {"a": "1"})
        await kernel.tag_resource("job", job.id, {str(n): "" for n in range(49)})
        with pytest.raises(QuotaExceeded, match="tags"):
            await kernel.tag_resource("job", job.id, {"x": "", "y": ""})
        assert len((await kernel.describe_job(job)).tags) == 49


async def test_metadata_is_kept_and_given_back_everywhere(tmp_path: Path) -> None:
    async with null(tmp_path / "k.db") as kernel:
        await kernel.create_compute_environment("e", backend="b", max_vcpus=1, metadata=META)
        await kernel.create_job_queue("q", priority=1, compute_environments=["e"], metadata=META)
        await kernel.register_job_definition("d", command=["x"], metadata=META)
        await kernel.update_job_queue("q", metadata={"other": 1})
        job = await submit(kernel, definition="d", command=None, metadata={"its": "own"})
    async with null(tmp_path / "k.db") as kernel:
        assert (await kernel.describe_compute_environments())[0].metadata == META
        assert (await kernel.describe_job_queues())[0].metadata == {"other": 1}
        assert (await kernel.describe_job_definition("d")).metadata == META
        assert (await kernel.describe_job(job)).metadata == {"its": "own"}


async def test_metadata_of_another_size_or_kind_is_refused() -> None:
    async with kernel_on(ManualBackend()) as kernel:
        too_much: Any
        for too_much, error in (
            ({"x": "y" * 70_000}, QuotaExceeded),
            ({"x": object()}, InvalidValue),
            ([1], InvalidValue),
            ({"x": 1 << 70}, InvalidValue),
        ):
            with pytest.raises(error, match="metadata"):
                await kernel.register_job_definition("d", command=["x"], metadata=too_much)
            with pytest.raises(error, match="metadata"):
                await submit(kernel, metadata=too_much)
        assert await kernel.describe_job_definitions() == []


async def test_the_backend_is_not_told_of_new_metadata() -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel:
        name = (await kernel.describe_compute_environments())[0].name
        await kernel.update_compute_environment(name, metadata={"a": 1})
        assert backend.calls.count("start") == 1
        assert (await kernel.describe_compute_environments())[0].metadata == {"a": 1}


async def test_what_is_asked_for_within_acting_as_is_recorded_as_the_principals() -> None:
    async with kernel_on(ManualBackend()) as kernel:
        with kernel.acting_as("arn:aws:iam::1:user/ann", request_id="r-1"):
            job = await submit(kernel)
            await kernel.update_job_queue("q", priority=7)
            await kernel.tag_resource("job", job.id, {"a": "1"})
        await kernel.update_job_queue("q", priority=8)
        assert (await kernel.describe_job(job)).principal == "arn:aws:iam::1:user/ann"
        events: list[AnyEvent] = [e for record in live(kernel).journal.read(0) for e in record.events]
        who = [(type(e), e.principal, e.request_id) for e in events if isinstance(e, (JobSubmitted, QueuePut, TagsPut))]
        assert who[1:] == [
            (JobSubmitted, "arn:aws:iam::1:user/ann", "r-1"),
            (QueuePut, "arn:aws:iam::1:user/ann", "r-1"),
            (TagsPut, "arn:aws:iam::1:user/ann", "r-1"),
            (QueuePut, None, None),
        ]


async def test_a_list_can_be_had_in_parts() -> None:
    async with kernel_on(ManualBackend()) as kernel:
        jobs = [await submit(kernel, f"j{n}") for n in range(5)]
        array = await submit(kernel, "array", array_size=3)
        seen: list[str] = []
        after = None
        while True:
            page = [one async for one in kernel.list_jobs(after=after)][:2]
            if not page:
                break
            seen += [one.id for one in page]
            after = page[-1].position
        assert seen == [job.id for job in [array, *reversed(jobs)]]
        assert [one.index async for one in kernel.list_jobs(parent=array, after=0)] == [1, 2]


async def test_a_job_can_be_given_its_id_once() -> None:
    name = "0668da57-1bcc-478b-bc14-5d4f1c1cef48"
    async with kernel_on(ManualBackend()) as kernel:
        assert (await submit(kernel, job_id=name)).id == name
        with pytest.raises(Conflict, match="exists"):
            await submit(kernel, job_id=name)
        for bad in ("x", name.upper(), 7):
            with pytest.raises(InvalidValue, match="job_id"):
                await submit(kernel, job_id=bad)


async def test_a_definition_is_found_by_name_and_by_revision() -> None:
    async with kernel_on(ManualBackend()) as kernel:
        for _ in range(3):
            await kernel.register_job_definition("d", command=["x"])
        await kernel.deregister_job_definition("d:3")
        assert (await kernel.describe_job_definition("d")).revision == 2
        assert not (await kernel.describe_job_definition("d:3")).is_active
        for missing in ("d:4", "e", "e:1"):
            with pytest.raises(NotFound):
                await kernel.describe_job_definition(missing)
        assert [await kernel.resolve_job_definition(given) for given in ("d", "d:1")] == ["d:2", "d:1"]
        for missing in ("d:3", "d:4", "e"):
            with pytest.raises(NotFound):
                await kernel.resolve_job_definition(missing)
    assert [str(kind) for kind in anybatch.TaggedKind][1] == "job queue"
