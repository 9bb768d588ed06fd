"""Roles: what a job's role gives its attempts, from who supplies it; kept nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from anybatch import BackendError, Conflict, InlineAttempt, InlineBackend, JobStatus, Kernel
from anybatch.backends.process import ProcessBackend
from anybatch.kernel.backend import AttemptKey, Launch
from anybatch.kernel.roles import RoleRequest, supply_roles
from kernel_rig import LastingBackend, ManualBackend, add_queue, kernel_on, submit, turns, until

pytestmark = pytest.mark.asyncio

SECRET = "a-secret-of-the-role"


class Supplier:
    """Gives every attempt a variable of its own."""

    def __init__(self) -> None:
        self.asked: list[RoleRequest] = []

    def __call__(self, request: RoleRequest) -> Mapping[AttemptKey, Mapping[str, str]]:
        self.asked.append(request)
        return {key: {"TOKEN": f"{SECRET}-{key.index}-{key.number}", "SET": "by the role"} for key in request.attempts}


async def echo(attempt: InlineAttempt) -> int:
    attempt.print(f"{attempt.environment.get('TOKEN')} {attempt.environment.get('SET')}")
    return 1 if attempt.number == 1 else 0


async def output(kernel: Kernel, job: str, attempt: int | None = None) -> str:
    return (await kernel.read_logs(job, attempt=attempt)).decode().strip()


async def test_each_attempt_gets_its_own_variables_and_what_the_job_sets_stays() -> None:
    supplier = Supplier()
    async with Kernel(backends={"inline": InlineBackend({"echo": echo})}) as kernel:
        await add_queue(kernel, "inline", name="q", vcpus=2)
        with supply_roles(kernel, supplier):
            await kernel.register_job_definition(
                "d", command=["echo"], role="etl", retry=2, environment={"SET": "mine"}
            )
            job = await kernel.submit_job("j", queue="q", definition="d", array_size=2)
            plain = await kernel.submit_job("p", queue="q", command=["echo"], retry=2)
            other = await kernel.submit_job("o", queue="q", definition="d", role="other")
            for one in (job, plain, other):
                assert (await one.wait()).status is JobStatus.SUCCEEDED
        assert await output(kernel, f"{job.id}:1", 1) == f"{SECRET}-1-1 mine"
        assert await output(kernel, f"{job.id}:0", 2) == f"{SECRET}-0-2 mine"
        assert await output(kernel, plain.id, 2) == "None None"
        assert {request.role for request in supplier.asked} == {"etl", "other"}
        assert {(request.backend, request.environment) for request in supplier.asked} == {
            ("inline", (await kernel.describe_compute_environments())[0].name)
        }
        assert (await kernel.describe_job(job.id)).role == "etl"
        assert (await kernel.describe_job_definition("d")).role == "etl"


async def test_a_process_gets_them_and_the_journal_does_not(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with Kernel(path, backends={"process": lambda: ProcessBackend(agent_idle_ms=500)}, on_close="stop") as kernel:
        await add_queue(kernel, "process", name="q", vcpus=2)
        with supply_roles(kernel, Supplier()):
            # Reversed, so that the log does not hold the text either.
            command = ["sh", "-c", 'echo "$TOKEN" | rev']
            job = await kernel.submit_job("j", queue="q", command=command, role="etl", array_size=2)
            await job.wait()
        assert await output(kernel, f"{job.id}:1") == f"{SECRET}-1-1"[::-1]
    for file in [one for one in tmp_path.rglob("*") if one.is_file()]:
        assert SECRET.encode() not in file.read_bytes(), file


async def test_a_supplier_that_refuses_costs_the_attempts_with_its_reason() -> None:
    def refuse(request: RoleRequest) -> Mapping[AttemptKey, Mapping[str, str]]:
        if request.role == "raises":
            raise ZeroDivisionError("oh")
        raise BackendError(f"no {request.role} here")

    async with Kernel(backends={"inline": InlineBackend({"echo": echo})}) as kernel:
        await add_queue(kernel, "inline", name="q", vcpus=2)
        with supply_roles(kernel, refuse):
            for role, reason in (
                ("etl", "no etl here"),
                ("raises", "the role 'raises' could not be supplied: ZeroDivisionError: oh"),
            ):
                job = await kernel.submit_job("j", queue="q", command=["echo"], role=role, retry=2)
                detail = await job.wait()
                assert [(one.status_reason, one.reason) for one in detail.attempts] == [
                    ("Task failed to start", reason),
                    ("Task failed to start", reason),
                ]
        good = await kernel.submit_job("j", queue="q", command=["echo"], retry=2)
        assert (await good.wait()).status is JobStatus.SUCCEEDED


async def test_attempts_wait_for_a_supplier_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel:
        await submit(kernel, role="etl")
        await turns()
        assert not backend.launched
        with supply_roles(kernel, Supplier()):
            await until(lambda: backend.launched)
            with pytest.raises(Conflict, match="somebody else supplies them"), supply_roles(kernel, Supplier()):
                pass
        backend.exit_all()
    monkeypatch.setattr("anybatch.kernel.roles.SUPPLIER_S_MAX", 0.0)
    backend = ManualBackend()
    async with kernel_on(backend) as kernel:
        job = await submit(kernel, role="etl")
        detail = await job.wait()
        assert detail.reason == "nobody supplies the role 'etl' to this kernel"
        assert not backend.launched


class Again(LastingBackend):
    """Launches what it was given at its start, for it has not run."""

    def settle(self, launch: Launch) -> None:
        self.live.update(dict.fromkeys(launch.attempts(), launch))


async def test_what_had_not_started_when_the_kernel_went_gets_them_at_the_next_start(tmp_path: Path) -> None:
    backend = Again(starts=False)
    async with kernel_on(backend, tmp_path / "b.db") as kernel:
        with supply_roles(kernel, Supplier()):
            await submit(kernel, role="etl", array_size=2)
            await until(lambda: len(backend.launched) == 2)
    backend.live.clear()
    async with kernel_on(backend, tmp_path / "b.db") as kernel:
        with supply_roles(kernel, Supplier()):
            await until(lambda: len(backend.live) == 2)
            found = {key.index: launch.spec.environment["TOKEN"] for key, launch in backend.live.items()}
            assert found == {0: f"{SECRET}-0-1", 1: f"{SECRET}-1-1"}
            backend.exit_all()


async def test_what_had_not_started_and_gets_none_any_more_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Again(starts=False)
    async with kernel_on(backend, tmp_path / "b.db") as kernel:
        with supply_roles(kernel, Supplier()):
            job = await submit(kernel, role="etl")
            await until(lambda: backend.launched)
    monkeypatch.setattr("anybatch.kernel.roles.SUPPLIER_S_MAX", 0.0)
    async with kernel_on(backend, tmp_path / "b.db") as kernel:
        detail = await kernel.wait(job.id)
        assert detail.reason == "nobody supplies the role 'etl' to this kernel"
        await until(lambda: backend.stopped)
        assert not backend.live
