"""The audit stream: every call that a front end records, in order, kept across kernels; reads cost no commit."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from anybatch import AuditRecord, InvalidValue, JournalError, Kernel
from anybatch.kernel import audit as audit_module
from anybatch.testing.clock import VirtualClock
from kernel_rig import RecordedKernel, as_killed, kernel_on, nothing_left

pytestmark = pytest.mark.asyncio


async def call(kernel: Kernel, operation: str = "SubmitJob", n: int = 0, **more: Any) -> None:
    arguments = {"front_end": "aws", "principal": "ann", "request_id": f"r{n}", **more}
    await kernel.record_call(operation, **arguments)


async def records(kernel: Kernel, **more: Any) -> list[AuditRecord]:
    return [record async for record in kernel.audit(**more)]


@pytest.fixture(params=["file", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "j.db" if request.param == "file" else None


async def test_calls_are_there_in_order_with_all_that_was_told_of_them(path: Path | None) -> None:
    with nothing_left():
        async with kernel_on(path=path) as kernel:
            await call(kernel, n=1, detail={"a": [1, {"b": None}]})
            await call(kernel, "DescribeJobs", 2, read_only=True, principal="bob")
            await call(kernel, "SubmitJob", 3, error_code="AccessDeniedException", principal="bob")
            found = await records(kernel)
            assert [(r.operation, r.request_id, r.principal, r.read_only, r.error_code) for r in found] == [
                ("SubmitJob", "r1", "ann", False, None),
                ("DescribeJobs", "r2", "bob", True, None),
                ("SubmitJob", "r3", "bob", False, "AccessDeniedException"),
            ]
            assert found[0].detail == {"a": [1, {"b": None}]}
            assert found[0].front_end == "aws"
            assert [r.id for r in found] == sorted({r.id for r in found})
            assert await records(kernel, after=found[0].id) == found[1:]
            assert await records(kernel, principal="bob", operation="SubmitJob") == found[2:]


async def test_records_outlive_the_kernel_and_are_its_owners_alone(tmp_path: Path) -> None:
    async with kernel_on(path=tmp_path / "j.db") as kernel:
        await call(kernel, "ListJobs", read_only=True)
        assert kernel._audit._opened is not None
    file = tmp_path / "j.db.d" / "audit.db"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    async with kernel_on(path=tmp_path / "j.db") as kernel:
        (record,) = await records(kernel)
        assert record.operation == "ListJobs"


async def test_a_killed_kernel_has_lost_no_recorded_change(tmp_path: Path) -> None:
    async with kernel_on(path=tmp_path / "j.db") as kernel:
        for n in range(20):
            await call(kernel, n=n)
        left = as_killed(tmp_path / "j.db")
    async with kernel_on(path=left) as kernel:
        assert [record.request_id for record in await records(kernel)] == [f"r{n}" for n in range(20)]


async def test_recording_commits_and_syncs_nothing_in_the_journal(tmp_path: Path) -> None:
    async with kernel_on(path=tmp_path / "j.db", kind=RecordedKernel) as kernel:
        assert isinstance(kernel, RecordedKernel)
        before = len(kernel.trace)
        for n in range(50):
            await call(kernel, "DescribeJobs", n, read_only=True)
        await records(kernel)
        assert kernel.trace[before:] == []


async def test_many_calls_at_once_are_all_there_and_those_of_one_caller_in_order() -> None:
    async with kernel_on() as kernel:

        async def caller(who: int) -> None:
            for n in range(30):
                await call(kernel, n=n, principal=f"p{who}", read_only=n % 3 == 0)

        await asyncio.gather(*[caller(who) for who in range(20)])
        found = await records(kernel)
        assert len(found) == 600
        for who in range(20):
            assert [r.request_id for r in found if r.principal == f"p{who}"] == [f"r{n}" for n in range(30)]


async def test_reading_goes_over_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "PAGE", 7)
    async with kernel_on() as kernel:
        await asyncio.gather(*[call(kernel, n=n) for n in range(21)])
        assert len(await records(kernel)) == 21


async def test_old_records_go_by_age_and_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "TRIM_EVERY_S", 0.0)
    monkeypatch.setattr(audit_module, "TRIM_ROWS", 2)
    clock = VirtualClock()
    async with Kernel(tmp_path / "j.db", clock=clock, retain_audit=100) as kernel:
        for n in range(5):
            await call(kernel, n=n)
            await clock.advance(40)
        assert [record.request_id for record in await records(kernel)] == ["r2", "r3", "r4"]
    async with Kernel(tmp_path / "k.db", clock=clock, retain_audit_bytes=200_000) as kernel:
        for n in range(60):
            await call(kernel, n=n, detail={"text": "x" * 10_000})
        left = [record.request_id for record in await records(kernel)]
        assert 5 < len(left) < 30
        assert left == [f"r{n}" for n in range(60 - len(left), 60)]


async def test_a_detail_that_is_too_large_is_left_out_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "DETAIL_BYTES_MAX", 100)
    async with kernel_on() as kernel:
        await call(kernel, detail={"text": "x" * 101})
        (record,) = await records(kernel)
        assert "omitted" in record.detail


async def test_what_cannot_be_written_is_an_error_and_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kernel_on(path=tmp_path / "j.db") as kernel:
        await call(kernel, n=1)

        def full(*_: object) -> sqlite3.Connection:
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(kernel._audit, "_opened", full)
            with pytest.raises(JournalError, match="disk is full"):
                await call(kernel, n=2)
            patch.setattr(audit_module, "BUFFER_MAX", 1)
            with pytest.raises(JournalError, match="disk is full"):  # no room for more
                await call(kernel, n=3, read_only=True)
        await call(kernel, n=4)
        assert [record.request_id for record in await records(kernel)] == ["r1", "r2", "r4"]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"front_end": 3}, "front_end"),
        ({"principal": None}, "principal"),
        ({"request_id": 7}, "request_id"),
        ({"read_only": "yes"}, "read_only"),
        ({"error_code": 3}, "error_code"),
        ({"detail": [1]}, "detail"),
        ({"detail": {"a": object()}}, "detail"),
        ({"operation": 3}, "operation"),
    ],
)
async def test_bad_calls_name_the_field(arguments: dict[str, Any], field: str) -> None:
    async with kernel_on() as kernel:
        with pytest.raises(InvalidValue) as caught:
            await call(kernel, **arguments)
        assert caught.value.field.startswith(field)
        assert await records(kernel) == []
        for bad in ({"after": "x"}, {"principal": 3}, {"operation": 3}):
            with pytest.raises(InvalidValue):
                await records(kernel, **bad)
