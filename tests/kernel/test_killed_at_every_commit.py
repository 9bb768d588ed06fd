"""What a kill leaves at every single commit opens again: nothing acknowledged is missing, and every job ends.

Nothing of these backends outlives the process, so the files alone are what a killed kernel leaves: they are copied
after each commit, and each copy is opened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from anybatch import SEQUENTIAL, InlineAttempt, InlineBackend, JobHandle, JobStatus, Kernel, n_to_n
from anybatch.kernel.core.events import AnyEvent
from anybatch.kernel.core.invariants import check_invariants
from anybatch.testing.null import NullBackend
from kernel_rig import RecordedKernel, add_queue, as_killed, live

pytestmark = pytest.mark.asyncio

Copies = list[tuple[Path, list[str]]]
"""The files after each commit, and the jobs that were acknowledged by then."""


async def work(kernel: Kernel, acknowledged: list[str]) -> list[JobHandle]:
    """A bit of everything."""
    await kernel.register_job_definition("d", command=["x", "Ref::word"], parameters={"word": "a"}, retry=3)

    async def submit(name: str, **more: Any) -> JobHandle:
        job = await kernel.submit_job(name, queue="q", **{"definition": "d", **more})
        acknowledged.append(job.id)
        return job

    array = await submit("array", array_size=4)
    second = await submit("second", array_size=4, depends_on=[n_to_n(array)])
    ordered = await submit("ordered", array_size=3, depends_on=[SEQUENTIAL])
    one = await submit("one", depends_on=[array])
    failing = await submit("failing", command=["x", "fail"], retry=2)
    after = await submit("after", depends_on=[failing])
    last = await submit("last", depends_on=[second, ordered, one])
    cancelled = await submit("cancelled", depends_on=[last])
    await kernel.cancel_job(cancelled, "not wanted")
    jobs = [array, second, ordered, one, failing, after, last, cancelled]
    for job in jobs:
        await job.wait()
    return jobs


async def record(path: Path, backend: Callable[[], Any]) -> Copies:
    copies: Copies = []
    acknowledged: list[str] = []
    async with RecordedKernel(path, backends={"b": backend}) as kernel:

        def copy(events: Sequence[AnyEvent]) -> None:
            copies.append((as_killed(path), list(acknowledged)))

        kernel.recorded.after_commit = copy
        await add_queue(kernel, vcpus=3)
        await work(kernel, acknowledged)
    return copies


async def check(path: Path, acknowledged: list[str], backend: Callable[[], Any]) -> None:
    async with Kernel(path, backends={"b": backend}) as kernel:
        state = live(kernel).state
        check_invariants(state)
        assert set(acknowledged) <= {job.id async for job in kernel.list_jobs()}
        for job_id in list(state.ids):
            detail = await kernel.wait(job_id)
            wanted = detail.name not in ("failing", "after") and not detail.is_cancelled
            assert (detail.name, detail.status is JobStatus.SUCCEEDED) == (detail.name, wanted), detail
        async with kernel.events() as events:
            ids = [(await anext(aiter(events))).id.sequence for _ in range(min(3, len(acknowledged)))]
            assert ids == sorted(ids)
        check_invariants(state)
        left = await kernel.describe_jobs(list(state.ids))
    async with Kernel(path, backends={"b": backend}) as kernel:
        assert await kernel.describe_jobs([job.id for job in left]) == left


class Null(NullBackend):
    """Fails what is called so."""

    async def launch(self, launches: Any) -> None:
        good = [launch for launch in launches if launch.spec.command[-1] != "fail"]
        await super().launch(good)
        for launch in launches:
            if launch not in good:
                self._context.exited(launch.job_id, launch.number, launch.indexes, [9] * len(launch.indexes))


async def coroutine(attempt: InlineAttempt) -> int:
    for _ in range(3):
        await asyncio.sleep(0)
    return 9 if attempt.args == ("fail",) else 0


def inline() -> InlineBackend:
    return InlineBackend({"x": coroutine})


@pytest.mark.parametrize("backend", [Null, inline])
async def test_every_commit_is_a_place_to_begin_again(tmp_path: Path, backend: Callable[[], Any]) -> None:
    (tmp_path / "live").mkdir()
    copies = await record(tmp_path / "live" / "j.db", backend)
    assert len(copies) > 20
    for path, acknowledged in copies:
        await check(path, acknowledged, backend)
