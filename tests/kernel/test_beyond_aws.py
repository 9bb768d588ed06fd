"""What arrays and dependencies can do beyond AWS, through the public calls (the rules are in tests/core)."""

from __future__ import annotations

import pytest
from anybatch import (
    SEQUENTIAL,
    Code,
    DependencyDetail,
    DependencyType,
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
