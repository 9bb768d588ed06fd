"""Handles, ids and names are interchangeable; what there is can be listed, described and created again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anybatch
import pytest
from anybatch import Conflict, JobHandle, JobStatus, Kernel, KernelClosed, NotFound, QueueDetail, RetryStrategy
from anybatch.kernel import job_calls
from anybatch.testing.null import NullBackend
from kernel_rig import ManualBackend, add_queue, kernel_on, snapshot, submit, turns, until

pytestmark = pytest.mark.asyncio


# -- handles --------------------------------------------------------------------------------------


async def test_a_handle_equals_what_names_the_same_job() -> None:
    async with kernel_on(ManualBackend()) as kernel:
        job = await submit(kernel, array_size=3)
        other = await submit(kernel, "other")
        assert await kernel.job(job.id) == await kernel.job("job") == await kernel.job(job) == job
        assert await kernel.job(f"{job.id}:1") == job[1] == await kernel.job(job[1])
        assert len({job, await kernel.job(job.id), job[1], await kernel.job(job[1].id), other}) == 3
        assert job != other
        assert job != job.id
        assert (job.id, job.name, job.array_size, len(job), bool(job)) == (job.id, "job", 3, 3, True)
        assert (other.array_size, len(other), bool(other), job[0].array_size) == (None, 0, True, None)
        assert [child.id for child in job] == [f"{job.id}:{n}" for n in range(3)]
        assert repr(job) == f"<JobHandle 'job' {job.id} array_size=3>"
        assert repr(job[2]) == f"<JobHandle 'job' {job.id}:2>"


CALLS: dict[str, Callable[[Kernel, Any], Awaitable[Any]]] = {
    "describe_job": lambda k, j: k.describe_job(j),
    "describe_jobs": lambda k, j: k.describe_jobs([j]),
    "explain": lambda k, j: k.explain(j),
    "cancel_job": lambda k, j: k.cancel_job(j, "no"),
    "terminate_job": lambda k, j: k.terminate_job(j, "stop"),
    "wait": lambda k, j: k.wait(j),
    "read_logs": lambda k, j: k.read_logs(j),
}


@pytest.mark.parametrize("call", CALLS)
async def test_every_call_takes_a_handle_an_id_or_a_name(call: str) -> None:
    async with kernel_on() as kernel:
        job = await submit(kernel)
        child = (await submit(kernel, "array", array_size=2))[1]
        await child.wait()
        await job.wait()
        of_job = [await CALLS[call](kernel, reference) for reference in (job, job.id, "job")]
        assert of_job[0] == of_job[1] == of_job[2]
        assert await CALLS[call](kernel, child) == await CALLS[call](kernel, child.id)


async def test_a_handle_does_what_the_kernel_does() -> None:
    backend = ManualBackend()
    async with kernel_on(backend, vcpus=1) as kernel:
        job = await submit(kernel, array_size=3)
        await until(lambda: backend.live)
        assert await job.describe() == await kernel.describe_job(job.id)
        assert await job[0].read_logs() == b"log of 1"
        assert [piece async for piece in job[0].logs(attempt=1)] == [b"log of 1"]
        await job[1].cancel()
        await job[2].terminate()
        await job.terminate("all of it")
        assert (await job[1].wait()).status_reason == "Cancelled by its owner"
        assert (await job[2].wait()).status_reason == "Terminated by its owner"
        assert (await job[0].wait()).status_reason == "all of it"


async def test_dependencies_take_handles_ids_names_and_children() -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel:
        first = await submit(kernel, "first", array_size=2)
        jobs = [
            await submit(kernel, f"job-{n}", depends_on=[reference])
            for n, reference in enumerate((first, first.id, "first", first[1], first[1].id, {"job": first}))
        ]
        details = await kernel.describe_jobs(jobs)
        assert [d.depends_on[0].job_id for d in details] == [*[first.id] * 3, *[first[1].id] * 2, first.id]
        assert {d.status for d in details} == {JobStatus.PENDING}


async def test_a_name_is_the_unfinished_job_else_the_newest_finished_one() -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel:
        old = await submit(kernel)
        await until(lambda: backend.live)
        assert await kernel.job("job") == old
        backend.exit_all()
        await old.wait()
        assert await kernel.job("job") == old
        new = await submit(kernel)
        assert await kernel.job("job") == new
        another = await submit(kernel)
        with pytest.raises(Conflict) as several:
            await kernel.job("job")
        assert new.id in str(several.value)
        assert another.id in str(several.value)
        assert old.id not in str(several.value)
        await until(lambda: len(backend.live) == 2)
        backend.exit_all()
        await new.wait()
        await another.wait()
        assert await kernel.job("job") == another


async def test_an_id_of_another_kernel_is_not_found() -> None:
    async with kernel_on() as a, kernel_on() as b:
        job = await submit(a)
        with pytest.raises(NotFound, match=job.id):
            await b.describe_job(job)


# -- describe and list ------------------------------------------------------------------------------


async def ids(listing: Any) -> list[str]:
    return [job.id async for job in listing]


async def test_describe_jobs_answers_in_the_order_asked_for() -> None:
    async with kernel_on(ManualBackend()) as kernel:
        jobs = [await submit(kernel, f"job-{n}", array_size=2) for n in range(4)]
        asked: list[str | JobHandle] = [jobs[2], jobs[0].id, "job-3", jobs[1][1], jobs[2]]
        found = await kernel.describe_jobs(asked)
        assert [d.id for d in found] == [jobs[2].id, jobs[0].id, jobs[3].id, jobs[1][1].id, jobs[2].id]
        assert await kernel.describe_jobs([]) == []
        assert await kernel.describe_jobs(iter(jobs[:1])) == await kernel.describe_jobs(jobs[:1])


async def test_jobs_are_listed_by_queue_status_name_and_parent() -> None:
    backend = ManualBackend()
    async with Kernel(backends={"b": backend}) as kernel:
        await add_queue(kernel, vcpus=2)
        await kernel.create_job_queue("r", priority=1, compute_environments=["b"])
        array = await submit(kernel, "train-1", array_size=3)
        other = await submit(kernel, "train-2", queue="r")
        last = await submit(kernel, "test", queue="r", depends_on=[other])
        await until(lambda: len(backend.live) == 2)
        await turns()

        assert await ids(kernel.list_jobs()) == [last.id, other.id, array.id]
        assert await ids(kernel.list_jobs(queue="r")) == [last.id, other.id]
        assert await ids(kernel.list_jobs(name="test")) == [last.id]
        assert await ids(kernel.list_jobs(name="train*")) == [other.id, array.id]
        assert await ids(kernel.list_jobs(name="train")) == []
        assert await ids(kernel.list_jobs(name="*", queue="q")) == [array.id]
        assert await ids(kernel.list_jobs(status="PENDING")) == [last.id, array.id]
        assert await ids(kernel.list_jobs(status=JobStatus.RUNNABLE)) == [other.id]
        assert await ids(kernel.list_jobs(status=["RUNNABLE", JobStatus.PENDING], queue="r")) == [last.id, other.id]
        assert await ids(kernel.list_jobs(status=[])) == []
        assert await ids(kernel.list_jobs(parent=array)) == [array[n].id for n in range(3)]
        assert await ids(kernel.list_jobs(parent="train-1", status="RUNNING")) == [array[0].id, array[1].id]
        assert await ids(kernel.list_jobs(parent=array.id, queue="r")) == []
        summary = await anext(aiter(kernel.list_jobs(parent=array)))
        detail = await array[0].describe()
        for field in ("id", "name", "queue", "status", "exit_code", "created_at", "started_at", "index"):
            assert getattr(summary, field) == getattr(detail, field)


async def test_a_list_goes_on_while_jobs_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_calls, "LIST_PAGE", 2)
    async with kernel_on() as kernel:
        jobs = [await submit(kernel, f"job-{n}", array_size=5) for n in range(7)]
        seen = []
        async for job in kernel.list_jobs():
            seen.append(job.id)
            await submit(kernel, "new")
        assert [job for job in seen if job in {j.id for j in jobs}] == [job.id for job in reversed(jobs)]
        assert len(seen) == len(set(seen))
        children = []
        async for child in kernel.list_jobs(parent=jobs[0]):
            children.append(child.index)
            await submit(kernel, "new")
        assert children == list(range(5))


async def test_a_list_that_outlasts_its_kernel_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_calls, "LIST_PAGE", 1)
    async with kernel_on() as kernel:
        for n in range(3):
            await submit(kernel, f"job-{n}")
        listing = kernel.list_jobs()
        await anext(aiter(listing))
    with pytest.raises(KernelClosed):
        async for _ in listing:
            pass


async def test_what_a_job_was_given_is_in_its_detail() -> None:
    async with kernel_on() as kernel:
        await kernel.register_job_definition(
            "d", command=["x", "Ref::word", "Ref::other"], parameters={"word": "a", "other": "o"},
            environment={"A": "1", "B": "2"}, vcpus=2, memory="1GiB", retry=2, timeout=1.5, tags={"of": "definition"},
        )  # fmt: skip
        job = await submit(
            kernel, command=None, definition="d", parameters={"word": "b"}, environment={"B": "3"}, vcpus="0.25",
            retry=RetryStrategy(4), tags={"own": "tag"}, scheduling_priority=7,
        )  # fmt: skip
        detail = await job.wait()
        assert detail.command == ("x", "b", "o")
        assert detail.environment == {"A": "1", "B": "3"}
        assert detail.parameters == {"word": "b", "other": "o"}
        assert (detail.vcpus, detail.memory_mib, detail.timeout_s, detail.definition) == (0.25, 1024, 1.5, "d:1")
        assert (detail.retry.attempts, detail.tags, detail.scheduling_priority) == (4, {"own": "tag"}, 7)
        assert (detail.created_at.tzinfo, detail.principal) == (__import__("datetime").UTC, None)


# -- creating again -----------------------------------------------------------------------------------


async def test_what_is_equal_is_returned_and_nothing_changes() -> None:
    async with kernel_on() as kernel:
        made = await kernel.register_job_definition("d", command=["x"], memory="1GiB", tags={"a": "b"})
        before = snapshot(kernel)
        again = await kernel.register_job_definition("d", command=["x"], memory=1024, tags={"a": "b"}, exist_ok=True)
        assert again == made
        queue = await kernel.create_job_queue("q", priority=1, compute_environments=["b"], exist_ok=True)
        assert [queue] == await kernel.describe_job_queues()
        environment = await kernel.create_compute_environment("b", backend="b", max_vcpus=4, exist_ok=True)
        assert [environment] == await kernel.describe_compute_environments()
        assert snapshot(kernel) == before


DIFFERENCES: list[tuple[str, str, dict[str, Any]]] = [
    ("d", "command", {"command": ["y"]}),
    ("d", "environment", {"environment": {"A": "1"}}),
    ("d", "vcpus", {"vcpus": 2}),
    ("d", "memory", {"memory": 5}),
    ("d", "retry", {"retry": 2}),
    ("d", "timeout", {"timeout": 5}),
    ("d", "tags", {"tags": {"a": "b"}}),
    ("q", "priority", {"priority": 2}),
    ("q", "compute_environments", {"compute_environments": ["c"]}),
    ("q", "state", {"state": "DISABLED"}),
    ("b", "max_vcpus", {"max_vcpus": 5}),
    ("b", "options", {"options": {"memory": 5}}),
    ("b", "managed", {"managed": False}),
    ("b", "backend", {"backend": "c"}),
]


@pytest.mark.parametrize(("name", "field", "change"), DIFFERENCES, ids=[f"{n}-{f}" for n, f, _ in DIFFERENCES])
async def test_what_differs_is_a_conflict_that_names_the_field(name: str, field: str, change: dict[str, Any]) -> None:
    async with Kernel(backends={"b": NullBackend, "c": NullBackend}) as kernel:
        await add_queue(kernel)
        await kernel.create_compute_environment("c", backend="c", max_vcpus=4)
        await kernel.register_job_definition("d", command=["x"])
        before = snapshot(kernel)
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "d": lambda: kernel.register_job_definition("d", **{"command": ["x"], **change}, exist_ok=True),
            "q": lambda: kernel.create_job_queue(
                "q", **{"priority": 1, "compute_environments": ["b"], **change}, exist_ok=True
            ),
            "b": lambda: kernel.create_compute_environment(
                "b", **{"backend": "b", "max_vcpus": 4, **change}, exist_ok=True
            ),
        }
        with pytest.raises(Conflict) as refused:
            await calls[name]()
        assert refused.value.field is not None
        assert refused.value.field.startswith(field)
        assert field in str(refused.value)
        assert snapshot(kernel) == before


async def test_of_a_definition_the_newest_revision_counts() -> None:
    async with kernel_on() as kernel:
        for word in ("a", "b"):
            await kernel.register_job_definition("d", command=[word])
        assert (await kernel.register_job_definition("d", command=["b"], exist_ok=True)).revision == 2
        with pytest.raises(Conflict, match="command"):
            await kernel.register_job_definition("d", command=["a"], exist_ok=True)
        assert (await kernel.register_job_definition("d", command=["b"])).revision == 3
        assert [d.revision for d in await kernel.describe_job_definitions("d")] == [3, 2, 1]

        await kernel.deregister_job_definition("d:3")
        assert [d.revision for d in await kernel.describe_job_definitions("d", active=True)] == [2, 1]
        assert (await (await submit(kernel, command=None, definition="d")).describe()).definition == "d:2"
        assert (await (await submit(kernel, command=None, definition="d:1")).describe()).command == ("a",)
        with pytest.raises(NotFound, match="INACTIVE"):
            await submit(kernel, command=None, definition="d:3")
        await kernel.deregister_job_definition("d:3")
        assert (await kernel.register_job_definition("d", command=["b"], exist_ok=True)).revision == 4


async def test_a_definition_detail_stands_for_its_revision() -> None:
    async with kernel_on() as kernel:
        first = await kernel.register_job_definition("d", command=["a"])
        await kernel.register_job_definition("d", command=["b"])
        assert (await (await submit(kernel, command=None, definition=first)).describe()).definition == "d:1"
        await kernel.deregister_job_definition(first)
        assert [d.is_active for d in await kernel.describe_job_definitions("d")] == [True, False]


async def test_queues_and_environments_are_changed_and_deleted_in_order() -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel:
        running = await submit(kernel)
        waiting = await submit(kernel, "waiting", vcpus=99)
        await until(lambda: backend.live)
        assert (await kernel.update_job_queue("q", priority=9, state="DISABLED")).priority == 9
        with pytest.raises(Conflict, match="DISABLED"):
            await submit(kernel, "late")
        await kernel.update_compute_environment("b", state="DISABLED")
        with pytest.raises(Conflict, match="JobQueue"):
            await kernel.delete_compute_environment("b")
        await kernel.delete_job_queue("q")
        assert (await waiting.wait()).status_reason == "Job queue was deleted"
        assert (await running.wait()).status_reason == "Job queue was deleted"
        await until(lambda: not kernel._live.state.queues)
        assert await kernel.describe_job_queues() == []
        await kernel.delete_compute_environment("b")
        assert await kernel.describe_compute_environments() == []
        await until(lambda: backend.closed)
        await add_queue(kernel)
        again = await submit(kernel, "again")
        await until(lambda: backend.live)
        backend.exit_all()
        assert (await again.wait()).status is JobStatus.SUCCEEDED
        assert (await running.describe()).status is JobStatus.FAILED


async def test_an_update_does_not_disturb_what_runs(tmp_path: Path) -> None:
    backend = ManualBackend()
    backend.settle = lambda launch: None  # type: ignore[method-assign]  # it still has them
    async with kernel_on(backend, tmp_path / "j.db") as kernel:
        job = await submit(kernel)
        await until(lambda: backend.live)
        await kernel.update_compute_environment("b", state="DISABLED")
        await kernel.update_compute_environment("b", max_vcpus=7)
        waiting = await submit(kernel, "waiting")
        await turns()
        assert (await job.describe()).status is JobStatus.RUNNING
        assert (await waiting.describe()).status is JobStatus.RUNNABLE
        (host,) = (await kernel.describe_compute_environments())[0].hosts
        assert (host.vcpus, host.attempts) == (7, 1)
        await kernel.update_compute_environment("b", state="ENABLED")
        await until(lambda: len(backend.live) == 2)
        backend.exit_all()
        await waiting.wait()


async def test_everything_public_is_named() -> None:
    for name in anybatch.__all__:
        assert getattr(anybatch, name) is not None


async def test_what_is_deleted_as_it_is_made_is_not_found() -> None:
    async with kernel_on() as kernel:
        made, gone = await asyncio.gather(
            kernel.create_job_queue("new", priority=1, compute_environments=["b"], state="DISABLED"),
            kernel.delete_job_queue("new"),
            return_exceptions=True,
        )
        assert (type(made), type(gone)) in ((NotFound, type(None)), (QueueDetail, NotFound))
