"""What arrays and dependencies can do beyond AWS, through the public calls (the rules are in tests/core)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from anybatch import (
    SEQUENTIAL,
    Code,
    Conflict,
    DependencyDetail,
    DependencyType,
    InvalidValue,
    JobRerun,
    JobStatus,
    On,
    after_any,
    after_failure,
    n_to_n,
    sequential,
)
from kernel_rig import ManualBackend, kernel_on, submit, until

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
