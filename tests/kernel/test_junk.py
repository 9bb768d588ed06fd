"""Junk for any argument: the call works, or it is refused and has changed nothing; the kernel always goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from anybatch import SEQUENTIAL, JobHandle, RequestError, n_to_n
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_rig import busy_kernel, live, snapshot


class Odd:
    """Of no use anywhere."""


TEXT = st.text(st.characters(), max_size=12)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-5, max_value=12),
    st.floats(),
    TEXT,
    st.binary(max_size=6),
    st.sampled_from([10**30, "\ud800", "running", "array", "d", "ref:1", "q", "b", "10GiB"]),
    st.builds(Odd),
    st.builds(Path, st.sampled_from(["/tmp", "x", "/etc/passwd"])),
)
JUNK = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=4),
    st.dictionaries(
        st.one_of(TEXT, st.sampled_from(["attempts", "evaluate_on_exit", "job", "type"])), SCALARS, max_size=3
    ),
    st.sampled_from([SEQUENTIAL, [SEQUENTIAL], n_to_n("array"), [n_to_n("array")], range(3), iter(()), object, len]),
)
ARGUMENTS = {
    "submit_job": [
        "queue",
        "definition",
        "array_size",
        "array",
        "depends_on",
        "command",
        "script",
        "environment",
        "parameters",
        "vcpus",
        "memory",
        "gpus",
        "retry",
        "timeout",
        "workdir",
        "scratch",
        "tags",
        "scheduling_priority",
        "max_running",
        "max_failures",
        "on_max_failures",
        "checkpoint_exit_codes",
        "max_checkpoints",
        "client_token",
    ],
    "register_job_definition": [
        "command",
        "script",
        "environment",
        "parameters",
        "vcpus",
        "memory",
        "gpus",
        "retry",
        "timeout",
        "workdir",
        "scratch",
        "tags",
        "scheduling_priority",
        "max_running",
        "max_failures",
        "on_max_failures",
        "checkpoint_exit_codes",
        "max_checkpoints",
        "exist_ok",
    ],
    "create_compute_environment": [
        "backend",
        "max_vcpus",
        "min_vcpus",
        "managed",
        "state",
        "options",
        "tags",
        "exist_ok",
    ],
    "create_job_queue": ["priority", "compute_environments", "state", "tags", "exist_ok"],
    "update_compute_environment": ["state", "min_vcpus", "max_vcpus", "options"],
    "update_job_queue": ["priority", "state", "compute_environments"],
}
GOOD: dict[str, dict[str, Any]] = {
    "submit_job": {"queue": "q", "command": ["x"]},
    "register_job_definition": {"command": ["x"]},
    "create_compute_environment": {"backend": "null"},
    "create_job_queue": {"priority": 1, "compute_environments": ["b"]},
    "update_compute_environment": {},
    "update_job_queue": {},
}


@st.composite
def junk_calls(draw: st.DrawFn) -> tuple[str, Any, dict[str, Any]]:
    method = draw(st.sampled_from(sorted(ARGUMENTS)))
    fields = draw(st.lists(st.sampled_from(ARGUMENTS[method]), max_size=2, unique=True))
    name = draw(st.one_of(st.just("b" if "environment" in method else "q"), JUNK, st.just("fresh")))
    return method, name, {**GOOD[method], **{field: draw(JUNK) for field in fields}}


@pytest.mark.asyncio
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(st.lists(junk_calls(), min_size=1, max_size=25))
async def test_junk_works_or_is_refused_and_never_stops_the_kernel(
    calls: list[tuple[str, Any, dict[str, Any]]],
) -> None:
    async with busy_kernel() as kernel:
        for method, name, arguments in calls:
            before = snapshot(kernel)
            try:
                result = await getattr(kernel, method)(name, **arguments)
            except RequestError:
                assert snapshot(kernel)[0] == before[0]
            else:
                assert not isinstance(result, JobHandle) or (await result.describe()).id == result.id
            assert live(kernel).failure is None, (method, name, arguments)
        if (await kernel.describe_job_queues(["q"]))[0].state == "DISABLED":
            await kernel.update_job_queue("q", state="ENABLED")
