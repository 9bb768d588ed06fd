"""What a user types, as the README has it, on real processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import anybatch
import pytest
import pytest_asyncio
from anybatch import JobFailed, JobStatus
from anybatch.backends.process import ProcessBackend
from kernel_rig import nothing_left

pytestmark = pytest.mark.asyncio


@pytest.fixture(params=["file", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return str(tmp_path / "batch.db") if request.param == "file" else None


@pytest_asyncio.fixture
async def kernel(path: str | None) -> AsyncIterator[anybatch.Kernel]:
    """One whose agents do not stay for long after the test."""
    backends = {"process": lambda: ProcessBackend(agent_idle_ms=1_000)}
    async with anybatch.Kernel(path, backends=backends, on_close="stop") as kernel:
        yield kernel


async def test_the_example_of_the_readme(path: str | None) -> None:
    for _ in range(2):  # all of it may be said again
        async with anybatch.Kernel(path) as kernel:
            await kernel.create_compute_environment("local", backend="process", max_vcpus=2, exist_ok=True)
            await kernel.create_job_queue("default", priority=10, compute_environments=["local"], exist_ok=True)
            await kernel.register_job_definition(
                "square", vcpus=1, memory=64, timeout=60, retry=3, exist_ok=True,
                command=["sh", "-c", "echo $((AWS_BATCH_JOB_ARRAY_INDEX * AWS_BATCH_JOB_ARRAY_INDEX))"])  # fmt: skip
            job = await kernel.submit_job("squares", queue="default", definition="square", array_size=20)
            detail = await job.wait()
            assert detail.status == "SUCCEEDED"
            assert detail.status_reason is None
            assert detail.status_summary is not None
            assert detail.status_summary[JobStatus.SUCCEEDED] == 20
            assert detail.attempts == ()
            assert await job[7].read_logs() == b"49\n"
            seen = []
            async with kernel.events(after=None) as events:
                async for event in events:
                    seen.append((event.job_id, event.status))
                    if (event.job_id, event.status, event.indexes) == (job.id, JobStatus.SUCCEEDED, None):
                        break
            assert seen.count((job.id, JobStatus.SUBMITTED)) == 1


async def test_run_needs_nothing_created_before(kernel: anybatch.Kernel) -> None:
    result = await kernel.run(["echo", "hi"])
    assert (result.status, result.exit_code, result.output) == (JobStatus.SUCCEEDED, 0, b"hi\n")
    assert result.raise_for_status() is result
    assert [queue.name for queue in await kernel.describe_job_queues()] == ["anybatch-run"]

    again = await asyncio.gather(*(kernel.run(["sh", "-c", f"echo {n}; exit {n}"]) for n in range(4)))
    assert [(one.exit_code, one.output) for one in again] == [(n, f"{n}\n".encode()) for n in range(4)]
    with pytest.raises(JobFailed, match="exit code 3") as failed:
        again[3].raise_for_status()
    assert (failed.value.job_id, failed.value.exit_code) == (again[3].job.id, 3)


async def test_two_first_runs_at_once_share_what_they_make(kernel: anybatch.Kernel) -> None:
    results = await asyncio.gather(*(kernel.run(["true"]) for _ in range(3)))
    assert [result.exit_code for result in results] == [0, 0, 0]


async def test_run_takes_a_script_variables_and_a_folder(kernel: anybatch.Kernel, tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text('#!/bin/sh\necho "$0 $1 $WORD $(pwd)" | cut -d" " -f2-\n')
    result = await kernel.run(["one"], script=script, environment={"WORD": "two"}, workdir=str(tmp_path))
    assert result.output.decode() == f"one two {tmp_path}\n"


async def test_run_that_is_cancelled_terminates_its_job(kernel: anybatch.Kernel) -> None:
    running = asyncio.ensure_future(kernel.run(["sleep", "100"], name="sleeper"))
    async with kernel.events() as events:
        async for event in events:
            if event.status is JobStatus.RUNNING:
                break
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    detail = await kernel.wait("sleeper")
    assert (detail.status, detail.status_reason) == (JobStatus.FAILED, "The call that ran it was cancelled")


async def test_a_log_is_followed_while_it_is_written_and_complete_at_the_end(
    kernel: anybatch.Kernel, tmp_path: Path
) -> None:
    await kernel.create_compute_environment("local", backend="process", max_vcpus=2)
    await kernel.create_job_queue("q", priority=1, compute_environments=["local"])
    go = tmp_path / "go"
    command = ["sh", "-c", f"echo one; while [ ! -e {go} ]; do sleep 0.01; done; echo two"]
    job = await kernel.submit_job("talks", queue="q", command=command)
    found = b""
    async for piece in job.logs(follow=True):
        found += piece
        if found == b"one\n":
            assert (await job.describe()).status is JobStatus.RUNNING
            go.touch()
    assert found == b"one\ntwo\n"
    await job.wait()
    assert await job.read_logs() == found


async def test_a_terminated_tree_of_processes_is_gone_and_a_timeout_is_kept(kernel: anybatch.Kernel) -> None:
    await kernel.create_compute_environment("local", backend="process", max_vcpus=2)
    await kernel.create_job_queue("q", priority=1, compute_environments=["local"])
    slow = await kernel.submit_job("slow", queue="q", command=["sh", "-c", "sleep 100 & wait"], timeout=0.2, retry=3)
    other = await kernel.submit_job("other", queue="q", command=["sh", "-c", "sleep 100 & wait"])
    async with kernel.events() as events:
        async for event in events:
            if (event.job_id, event.status) == (other.id, JobStatus.RUNNING):
                break
    await other.terminate("enough")
    assert (await other.wait()).status_reason == "enough"
    detail = await slow.wait()
    assert detail.status_reason == "Job attempt duration exceeded timeout"
    assert len(detail.attempts) == 1


async def test_a_kernel_in_memory_takes_its_processes_and_agent_with_it() -> None:
    with nothing_left():
        async with anybatch.Kernel() as kernel:
            await kernel.create_compute_environment("local", backend="process", max_vcpus=2)
            await kernel.create_job_queue("q", priority=1, compute_environments=["local"])
            job = await kernel.submit_job("x", queue="q", command=["sh", "-c", "echo $$; exec sleep 1000"])
            pid = 0
            async for piece in job.logs(follow=True):
                pid = int(piece)
                break
            assert Path(f"/proc/{pid}").exists()
        assert not Path(f"/proc/{pid}/cmdline").exists()
