"""What arrays and dependencies can do beyond AWS, through the public calls (the rules are in tests/core)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from anybatch import (
    SEQUENTIAL,
    Code,
    Conflict,
    DependencyDetail,
    DependencyType,
    FailureClass,
    InvalidValue,
    JobEvent,
    JobRerun,
    JobStatus,
    NotFound,
    On,
    OnMaxFailures,
    after_any,
    after_failure,
    n_to_n,
    sequential,
)
from anybatch.kernel import bodies
from anybatch.kernel.backend import AttemptKey
from anybatch.testing.null import NullBackend
from kernel_rig import LastingBackend, ManualBackend, kernel_on, submit, turns, until

pytestmark = pytest.mark.asyncio


async def test_a_cap_on_running_children_is_kept_shown_and_explained() -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel:
        job = await submit(kernel, array_size=5, max_running=2)
        await until(lambda: len(backend.launched) == 2)
        assert [key.index for key in backend.launched] == [0, 1]
        assert (await job.describe()).max_running == 2
        assert (await job[4].explain())[0].code is Code.MAX_RUNNING
        await kernel.register_job_definition("d", command=["x"], max_running=3)
        assert [found.max_running for found in await kernel.describe_job_definitions("d")] == [3]
        while backend.live:
            assert len(backend.live) <= 2
            backend.exit(next(iter(backend.live)))
            await until(lambda: backend.live or len(backend.launched) == 5)
        assert (await job.wait()).status is JobStatus.SUCCEEDED


async def test_dependencies_on_another_end_than_success() -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel:
        first = await submit(kernel, array_size=2)
        tidy = await submit(kernel, depends_on=[after_any(first)])
        mend = await submit(kernel, array_size=2, depends_on=[n_to_n(first, on="failure"), sequential(on=On.ANY)])
        idle = await submit(kernel, depends_on=[after_failure(first[1]), {"job": first[0], "type": "AFTER_ANY"}])
        assert (await tidy.explain())[0].code is Code.WAITS_FOR_END
        assert (await idle.explain())[0].code is Code.WAITS_FOR_FAILURE
        assert (await mend.describe()).depends_on == (
            DependencyDetail(type=DependencyType.N_TO_N, job_id=first.id, on=On.FAILURE),
            DependencyDetail(type=DependencyType.SEQUENTIAL, job_id=None, on=On.ANY),
        )
        await until(lambda: len(backend.live) == 2)
        for key, code in zip(list(backend.live), (1, 0), strict=True):
            backend.exit(key, code)
        await until(lambda: len(backend.live) == 2)
        backend.exit_all()
        assert [(await job.wait()).status for job in (tidy, idle)] == ["SUCCEEDED", "FAILED"]
        assert (await idle.describe()).status_reason == "Dependent Job succeeded: not needed"
        ends = [(await child.wait()).status_reason for child in mend]
        assert ends == ["Essential container in task exited", "Dependent Job succeeded: not needed"]


async def test_an_array_that_stops_after_so_many_failures(tmp_path: Path) -> None:
    """Over a restart between the failures: they are counted, told of, and begin anew with a rerun."""
    path, backend = tmp_path / "batch.db", LastingBackend()
    async with kernel_on(backend, path) as kernel:
        job = await submit(kernel, "shards", array_size=6, max_failures=2, on_max_failures="terminate")
        await until(lambda: len(backend.live) == 4)
        backend.exit(next(iter(backend.live)), 1)
        await until(lambda: len(backend.launched) == 5)
    async with kernel_on(backend, path) as kernel:
        job = await kernel.job(job.id)
        detail = await job.describe()
        assert (detail.max_failures, detail.on_max_failures) == (2, OnMaxFailures.TERMINATE)
        seen = await kernel.last_event_id()
        await until(lambda: not backend.closed)
        backend.exit(next(iter(backend.live)), 1)
        detail = await job.wait()
        text = "Array stopped: 2 of its children FAILED (max_failures 2)"
        assert (detail.status, detail.status_reason) == (JobStatus.FAILED, text)
        assert len(backend.stopped) == 3
        async with kernel.events(after=seen) as events:
            told = [await anext(events) for _ in range(3)]
        assert [(e.status.value, e.status_reason, e.indexes and list(e.indexes)) for e in told[1:2]] == [
            ("FAILED", text, [5])
        ]
        assert [(await child.describe()).status_reason for child in job][-1] == text
        assert (await job.explain())[0].text == f"its 6 children have ended: 6 FAILED; {text}"
        assert await job.rerun() == (JobRerun(id=job.id, name="shards", children=6),)
        await until(lambda: len(backend.live) == 4)
        backend.exit(next(iter(backend.live)), 1)
        while not (await job.describe()).status.is_terminal:
            backend.exit_all()
            await turns()
        detail = await job.describe()
        assert (detail.status_reason, detail.status_summary and detail.status_summary[JobStatus.FAILED]) == (
            "Array Child Job failed",
            1,
        )
    with pytest.raises(InvalidValue, match="on_max_failures: 'stop' is not allowed; it is 'cancel' .*or 'terminate'"):
        bodies.definition(command=["x"], on_max_failures="stop")


async def test_an_exit_code_that_asks_to_be_run_again(tmp_path: Path) -> None:
    """Over a restart between two checkpoints."""
    path, backend = tmp_path / "batch.db", LastingBackend()
    async with kernel_on(backend, path) as kernel:
        job = await submit(kernel, "long", checkpoint_exit_codes=[85, 86], max_checkpoints=2)
        await until(lambda: backend.live)
        seen = await kernel.last_event_id()
        backend.exit(next(iter(backend.live)), 85)
        await until(lambda: len(backend.launched) == 2)
        async with kernel.events(after=seen) as events:
            told = await anext(e async for e in events if e.exit_codes)
        assert (told.status, told.exit_codes, told.status_reason) == (JobStatus.RUNNABLE, (85,), "Checkpointed")
    async with kernel_on(backend, path) as kernel:
        job = await kernel.job(job.id)
        detail = await job.describe()
        assert (detail.checkpoint_exit_codes, detail.max_checkpoints) == ((85, 86), 2)
        assert "attempt 2 of 2 after 1 checkpoint (at most 2: max_checkpoints)" in (await job.explain())[0].text
        await until(lambda: not backend.closed)
        backend.exit(next(iter(backend.live)), 86)
        await until(lambda: backend.live)
        backend.exit(next(iter(backend.live)), 85)
        detail = await job.wait()
        assert (detail.status, detail.status_reason) == (
            JobStatus.FAILED,
            "Checkpointed more than 2 times (max_checkpoints)",
        )
        assert [(a.number, a.exit_code, a.failure_class) for a in detail.attempts] == [
            (1, 85, FailureClass.CHECKPOINTED),
            (2, 86, FailureClass.CHECKPOINTED),
            (3, 85, FailureClass.APPLICATION_EXIT),
        ]
        made = await kernel.register_job_definition("d", command=["x"], checkpoint_exit_codes=[85])
        assert (made.checkpoint_exit_codes, made.max_checkpoints) == ((85,), 1000)


async def test_an_array_with_indexes_of_its_own(tmp_path: Path) -> None:
    """Over a restart: ids, handles, lists, logs, events and what backends are told all have the user's index."""
    path, backend = tmp_path / "batch.db", LastingBackend()
    async with kernel_on(backend, path) as kernel:
        job = await submit(kernel, "picked", array=[9, 3, 7, 40], vcpus=0.25)
        pairs = await submit(kernel, "pairs", array="3-9:4,9,40", vcpus=0.25, depends_on=[n_to_n(job)])
        one = await submit(kernel, "one", vcpus=0.25, depends_on=[job[7]])
        assert [child.id for child in job] == [f"{job.id}:{n}" for n in (3, 7, 9, 40)]
        assert (len(job), list(job.indexes), job.array_size) == (4, [3, 7, 9, 40], 4)
        with pytest.raises(NotFound, match="its indexes are 3, 7, 9, 40"):
            job[4]
        await until(lambda: len(backend.live) == 4)
        assert [key.index for key in backend.live] == [3, 7, 9, 40]
        variables = next(iter(backend.live.values())).variables(40)
        assert variables["AWS_BATCH_JOB_ID"] == f"{job.id}:40"
        assert (variables["AWS_BATCH_JOB_ARRAY_INDEX"], variables["AWS_BATCH_JOB_ARRAY_SIZE"]) == ("40", "4")
        assert (await one.describe()).depends_on[0].job_id == f"{job.id}:7"
        assert (await job.describe()).array == "3,7,9,40"
    async with kernel_on(backend, path) as kernel:
        job, seen = await kernel.job(job.id), await kernel.last_event_id()
        await until(lambda: backend.known)
        assert [key.index for launch in backend.known for key in launch.attempts()] == [3, 7, 9, 40]
        waits = asyncio.ensure_future(job[40].wait())
        backend.exit(AttemptKey(job.id, 40, 1), 5)
        child = await waits
        assert (child.id, child.index, child.exit_code, child.array) == (f"{job.id}:40", 40, 5, None)
        await job[9].terminate()
        await until(lambda: backend.stopped)
        assert backend.stopped == [AttemptKey(job.id, 9, 1)]
        backend.exit(AttemptKey(job.id, 3, 1))
        backend.exit(AttemptKey(job.id, 7, 1))
        assert (await job.wait()).status is JobStatus.FAILED
        listed = [summary async for summary in kernel.list_jobs(parent=job, status="FAILED")]
        assert [(s.id, s.index, s.exit_code) for s in listed] == [(f"{job.id}:9", 9, 143), (f"{job.id}:40", 40, 5)]
        rest = [summary.index async for summary in kernel.list_jobs(parent=job, after=listed[0].position)]
        assert rest == [40]
        assert await job[40].read_logs() == b"log of 1"
        async with kernel.events(after=seen) as events:
            told = [e async for e in _until(events, job.id)]
        assert {i for e in told if e.status is JobStatus.FAILED for i in e.indexes or ()} == {9, 40}
        assert {one.job_id for e in told for one in e.expand() if e.exit_codes} == {
            f"{job.id}:{n}" for n in job.indexes
        }
        assert (await job.rerun())[0].children == 2
        await until(lambda: AttemptKey(job.id, 40, 2) in backend.live)
        assert {(key.index, key.number) for key in backend.live if key.job_id == job.id} == {(9, 2), (40, 2)}
        backend.exit_all()
        assert [c.index for c in [await child.describe() for child in await kernel.job(pairs.id)]] == [3, 7, 9, 40]


async def _until(events: AsyncIterator[JobEvent], job_id: str) -> AsyncIterator[JobEvent]:
    """Events up to the end of this job."""
    async for event in events:
        yield event
        if event.job_id == job_id and event.indexes is None and event.status.is_terminal:
            return


async def test_events_of_a_forgotten_array_have_its_indexes() -> None:
    async with kernel_on(NullBackend()) as kernel:
        await kernel.update_job_queue("q", retain_succeeded=0.001)
        job = await submit(kernel, "picked", array=[3, 7, 9])
        await job.wait()
        while [one async for one in kernel.list_jobs()]:
            await asyncio.sleep(0)
        async with kernel.events() as events:
            told = [e async for e in _until(events, job.id)]
        assert [sorted(e.indexes) for e in told if e.indexes is not None][-1] == [3, 7, 9]


async def test_entries_show_as_they_are_written() -> None:
    shown = [SEQUENTIAL, sequential(on="any"), after_any("a"), after_failure("a"), n_to_n("a"), n_to_n("a", on="any")]
    assert [repr(entry) for entry in shown] == [
        "SEQUENTIAL",
        "sequential(on='any')",
        "after_any('a')",
        "after_failure('a')",
        "n_to_n('a')",
        "n_to_n('a', on='any')",
    ]


async def test_a_rerun_in_the_same_job_with_what_failed_by_it(tmp_path: Path) -> None:
    """Over a restart: who waits, who reads events and who looks at attempts sees one job that goes on."""
    path, backend = tmp_path / "batch.db", ManualBackend()
    async with kernel_on(backend, path) as kernel:
        job = await submit(kernel, "shards", array_size=3)
        last = await submit(kernel, "last", depends_on=[job])
        await until(lambda: len(backend.live) == 3)
        for key, code in zip(list(backend.live), (0, 7, 0), strict=True):
            backend.exit(key, code)
        assert [(await one.wait()).status for one in (job, last)] == ["FAILED", "FAILED"]
        seen = await kernel.last_event_id()
    async with kernel_on(backend, path) as kernel:
        job, last = await kernel.job(job.id), await kernel.job(last.id)
        again = await job.rerun(dependents=True)
        assert again == (JobRerun(id=job.id, name="shards", children=1), JobRerun(id=last.id, name="last", children=1))
        assert (await job.describe()).status is JobStatus.PENDING
        waits = asyncio.ensure_future(job.wait())
        await until(lambda: backend.live)
        assert [(key.index, key.number) for key in backend.live] == [(1, 2)]
        backend.exit_all()
        detail = await waits
        assert (detail.status, detail.reruns) == (JobStatus.SUCCEEDED, 1)
        await until(lambda: backend.live)
        backend.exit_all()
        assert (await last.wait()).status is JobStatus.SUCCEEDED
        child = await job[1].describe()
        assert [(attempt.number, attempt.exit_code) for attempt in child.attempts] == [(1, 7), (2, 0)]
        assert await job[1].read_logs(attempt=1) == b"log of 1"
        with pytest.raises(Conflict, match="only that is run again"):
            await kernel.rerun(job)
        with pytest.raises(InvalidValue, match="dependents: 1"):
            await job.rerun(dependents=1)  # type: ignore[arg-type]
        told = []
        async with kernel.events(after=seen) as events:
            async for event in events:
                told.append((event.job_name, event.status.value, event.indexes and list(event.indexes)))
                if event.job_name == "last" and event.status is JobStatus.SUCCEEDED:
                    break
        assert told == [
            ("shards", "PENDING", None),
            ("shards", "PENDING", [1]),
            ("shards", "RUNNABLE", [1]),
            ("last", "PENDING", None),
            ("shards", "STARTING", [1]),
            ("shards", "RUNNING", [1]),
            ("shards", "SUCCEEDED", [1]),
            ("shards", "SUCCEEDED", None),
            ("last", "RUNNABLE", None),
            ("last", "STARTING", None),
            ("last", "RUNNING", None),
            ("last", "SUCCEEDED", None),
        ]
