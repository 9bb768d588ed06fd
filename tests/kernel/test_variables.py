"""The AWS_BATCH_* variables reach every attempt under AWS's names (contract 5.5)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from anybatch import InlineAttempt, InlineBackend, Kernel
from anybatch.backends.process import ProcessBackend
from anybatch.kernel.backend import Backend, BackendFactory
from kernel_rig import add_queue

pytestmark = pytest.mark.asyncio


async def env(attempt: InlineAttempt) -> int:
    """What `env` is for processes; the first attempt fails."""
    for name, value in attempt.environment.items():
        attempt.print(f"{name}={value}")
    return 0 if attempt.number == 2 else 1


@pytest_asyncio.fixture(params=["inline", "process"])
async def kernel(request: pytest.FixtureRequest) -> AsyncIterator[Kernel]:
    backends: dict[str, Backend | BackendFactory] = {
        "inline": InlineBackend({"sh": env}),
        "process": lambda: ProcessBackend(agent_idle_ms=1_000),
    }
    async with Kernel(backends=backends) as kernel:
        await add_queue(kernel, request.param, name="the-queue", vcpus=2)
        yield kernel


async def variables(kernel: Kernel, job: str, attempt: int) -> dict[str, str]:
    text = (await kernel.read_logs(job, attempt=attempt)).decode()
    found = dict(line.split("=", 1) for line in text.splitlines())
    return {name: value for name, value in found.items() if name.startswith(("AWS_BATCH", "OWN"))}


COMMAND = ["sh", "-c", 'env; [ "$AWS_BATCH_JOB_ATTEMPT" = 2 ]']


async def test_ev_1_a_single_job(kernel: Kernel) -> None:
    job = await kernel.submit_job("j", queue="the-queue", command=COMMAND, retry=2, environment={"OWN": "a b"})
    (environment,) = await kernel.describe_compute_environments()
    await job.wait()
    for attempt in (1, 2):
        assert await variables(kernel, job.id, attempt) == {
            "AWS_BATCH_JOB_ID": job.id,
            "AWS_BATCH_JOB_ATTEMPT": str(attempt),
            "AWS_BATCH_JQ_NAME": "the-queue",
            "AWS_BATCH_CE_NAME": environment.name,
            "OWN": "a b",
        }


async def test_ev_1_a_child_of_an_array(kernel: Kernel) -> None:
    job = await kernel.submit_job("j", queue="the-queue", command=COMMAND, retry=2, array_size=3)
    (environment,) = await kernel.describe_compute_environments()
    await job.wait()
    for index in range(3):
        assert await variables(kernel, job[index].id, 2) == {
            "AWS_BATCH_JOB_ID": f"{job.id}:{index}",
            "AWS_BATCH_JOB_ATTEMPT": "2",
            "AWS_BATCH_JQ_NAME": "the-queue",
            "AWS_BATCH_CE_NAME": environment.name,
            "AWS_BATCH_JOB_ARRAY_INDEX": str(index),
            "AWS_BATCH_JOB_ARRAY_SIZE": "3",
        }


async def test_parameters_are_put_in_wherever_they_are_referred_to(kernel: Kernel) -> None:
    await kernel.register_job_definition(
        "d", command=["sh", "-c", "echo Ref::a.Ref::b Ref::a"], parameters={"a": "1", "b": "2"}
    )
    job = await kernel.submit_job("j", queue="the-queue", definition="d", parameters={"b": "x y"})
    assert (await job.wait()).command == ("sh", "-c", "echo 1.x y 1")
    other = await kernel.submit_job("k", queue="the-queue", command=["sh", "-c", "Ref::none"], parameters={"none": ""})
    assert (await other.describe()).command[2] == ""
