"""kill -9 of a kernel with running attempts: after a restart all is there, reattached, and nothing is run twice."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
from anybatch import JobStatus, Kernel
from anybatch.backends.process import ProcessBackend
from kernel_rig import until

pytestmark = pytest.mark.asyncio

SCRIPT = Path(__file__).parent / "scripts" / "killed_kernel.py"
ENDS = {"first": 0, "second": 0, "third": 4, "long": 5, "after": None, "retried": 0}
"""The exit code of each job; None: it never ran, because its dependency failed."""


def backend() -> ProcessBackend:
    return ProcessBackend(agent_idle_ms=3_000)


async def killed(folder: Path, *point: str) -> dict[str, str]:
    """Run a kernel until it is killed, at the latest when it is ready; the jobs that it acknowledged, id by name."""
    command = [sys.executable, str(SCRIPT), str(folder / "j.db"), str(folder), *point]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    jobs = {}
    while line := (await process.stdout.readline()).decode().strip():
        if line == "ready":
            process.send_signal(signal.SIGKILL)
        else:
            job_id, name = line.split()
            jobs[name] = job_id
    assert await process.wait() == -signal.SIGKILL
    return jobs


async def check_ends(kernel: Kernel, jobs: dict[str, str], folder: Path) -> None:
    """Every job that was acknowledged ends as it should, and each of its attempts has run exactly once."""
    expected: Counter[str] = Counter()
    for name, job_id in jobs.items():
        detail = await kernel.wait(job_id)
        details = [detail]
        if name == "array":
            details = [await kernel.describe_job(f"{job_id}:{n}") for n in range(3)]
            assert [child.exit_code for child in details] == [0, 1, 2]
        else:
            assert (name, detail.exit_code, detail.status_reason) == (name, ENDS[name], detail.status_reason)
        for one in details:
            assert one.status is (JobStatus.SUCCEEDED if one.exit_code == 0 else JobStatus.FAILED)
            expected.update(f"{one.id}/{attempt.number}" for attempt in one.attempts)
            tries = 0 if name == "after" else 2 if name == "retried" else 1
            assert len(one.attempts) == tries, one
    ran = Counter((folder / "ran").read_text().split()) if (folder / "ran").exists() else Counter()
    known = {key: number for key, number in ran.items() if key.split("/")[0].split(":")[0] in jobs.values()}
    assert known == expected


async def test_attempts_that_ran_through_a_kill_are_reattached_with_their_real_exit_codes(tmp_path: Path) -> None:
    jobs = await killed(tmp_path)
    assert set(jobs) == {"array", *ENDS}
    async with Kernel(tmp_path / "j.db", backends={"process": backend}, on_close="stop") as kernel:
        long = await kernel.describe_job(jobs["long"])
        assert long.status is JobStatus.RUNNING
        started = long.started_at
        (tmp_path / "go").touch()
        await check_ends(kernel, jobs, tmp_path)
        assert (await kernel.describe_job(jobs["long"])).started_at == started


async def test_attempts_that_ended_while_no_kernel_ran_are_found_with_their_exit_codes(tmp_path: Path) -> None:
    jobs = await killed(tmp_path)
    (tmp_path / "go").touch()
    await until((tmp_path / "long-ended").exists)
    async with Kernel(tmp_path / "j.db", backends={"process": backend}, on_close="stop") as kernel:
        await check_ends(kernel, jobs, tmp_path)


async def test_a_kernel_that_is_killed_again_and_again_still_ends_every_job(tmp_path: Path) -> None:
    jobs = await killed(tmp_path)
    for point in ("after-commit", "before-launch"):
        assert await killed(tmp_path, point, "1", "again") == {}
    (tmp_path / "go").touch()
    async with Kernel(tmp_path / "j.db", backends={"process": backend}, on_close="stop") as kernel:
        await check_ends(kernel, jobs, tmp_path)
        assert (await kernel.last_event_id()).epoch == 4


POINTS = [
    *(("after-commit", count) for count in range(1, 15)),
    *(("before-commit", count) for count in (2, 5, 8, 11)),
    *((point, count) for point in ("before-launch", "after-launch") for count in (1, 2, 4)),
]


@pytest.mark.parametrize(("point", "count"), POINTS)
async def test_a_kill_at_any_point_loses_no_acknowledged_job_and_runs_none_twice(
    tmp_path: Path, point: str, count: int
) -> None:
    jobs = await killed(tmp_path, point, str(count))
    (tmp_path / "go").touch()
    async with Kernel(tmp_path / "j.db", backends={"process": backend}, on_close="stop") as kernel:
        await check_ends(kernel, jobs, tmp_path)
        listed = {job.id async for job in kernel.list_jobs()}
        assert set(jobs.values()) <= listed
        for job_id in listed:
            await kernel.wait(job_id)
