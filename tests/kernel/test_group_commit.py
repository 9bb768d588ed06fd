"""Requests that come while a sync is under way are taken in one turn when it ends. Decision 0012."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from anybatch import JournalError, NotFound
from kernel_rig import ManualBackend, RecordedKernel, kernel_on, live, turns, until

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def recorded(path: Path, backend: ManualBackend | None = None) -> AsyncIterator[RecordedKernel]:
    async with kernel_on(backend or ManualBackend(), path, kind=RecordedKernel) as kernel:
        assert isinstance(kernel, RecordedKernel)
        try:
            yield kernel
        finally:
            kernel.recorded.hold_sync = False


def submits(kernel: RecordedKernel) -> list[int]:
    """How many jobs each commit took in, where it took any."""
    counts = [
        about.count("JobSubmitted") for kind, about in kernel.trace if kind == "commit" and isinstance(about, tuple)
    ]
    return [count for count in counts if count]


async def begun(kernel: RecordedKernel, name: str) -> asyncio.Task[object]:
    """A submit that is committed, and waits for a sync that is held up. It fits nowhere, so nothing is launched."""
    kernel.recorded.hold_sync = True
    before = len(submits(kernel))
    first = asyncio.ensure_future(kernel.submit_job(name, queue="q", command=["x"], vcpus=99))
    await until(lambda: len(submits(kernel)) > before)
    return first


async def test_requests_during_a_sync_are_one_commit_after_it(tmp_path: Path) -> None:
    async with recorded(tmp_path / "j.db") as kernel:
        first = await begun(kernel, "first")
        others = [
            asyncio.ensure_future(kernel.submit_job(f"n{n}", queue="q", command=["x"], vcpus=99)) for n in range(5)
        ]
        refused = asyncio.ensure_future(kernel.submit_job("n", queue="nowhere", command=["x"]))
        await turns()
        assert len(live(kernel)._inbox) == 6
        assert submits(kernel) == [1]
        assert not first.done()
        kernel.recorded.hold_sync = False
        await asyncio.gather(first, *others)
        assert submits(kernel) == [1, 5]
        with pytest.raises(NotFound):
            await refused


async def test_a_report_does_not_wait_for_a_sync_and_takes_requests_along(tmp_path: Path) -> None:
    backend = ManualBackend()
    async with recorded(tmp_path / "j.db", backend) as kernel:
        job = await kernel.submit_job("runs", queue="q", command=["x"])
        await until(lambda: bool(backend.live))
        first = await begun(kernel, "first")
        other = asyncio.ensure_future(kernel.submit_job("other", queue="q", command=["x"], vcpus=99))
        await turns()
        assert len(live(kernel)._inbox) == 1
        backend.context.started(job.id, 1, [0])
        await until(lambda: submits(kernel)[-2:] == [1, 1] and not live(kernel)._inbox)
        kernel.recorded.hold_sync = False
        await asyncio.gather(first, other)


async def test_requests_that_wait_for_a_sync_get_its_failure(tmp_path: Path) -> None:
    with pytest.raises(JournalError):
        async with recorded(tmp_path / "j.db") as kernel:
            first = await begun(kernel, "first")
            other = asyncio.ensure_future(kernel.submit_job("other", queue="q", command=["x"], vcpus=99))
            await turns()
            assert len(live(kernel)._inbox) == 1
            kernel.recorded.fail_sync, kernel.recorded.hold_sync = True, False
            for task in (first, other):
                with pytest.raises(Exception, match="the kernel has stopped"):
                    await task
            raise JournalError("as it ends")
