"""Whose call it is goes along with the call."""

from __future__ import annotations

from pathlib import Path

import pytest
from control_rig import both

pytestmark = pytest.mark.asyncio


async def test_a_call_is_recorded_as_the_principals_that_it_was_made_as(tmp_path: Path) -> None:
    async with both(tmp_path) as (kernel, remote):
        with remote.acting_as("anna", request_id="r1"):
            job = await remote.submit_job("job", queue="q", command=["x"])
        other = await remote.submit_job("job", queue="q", command=["x"])
        assert [(await kernel.describe_job(one.id)).principal for one in (job, other)] == ["anna", None]
