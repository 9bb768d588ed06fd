"""Junk anywhere in a configuration: it is judged as a whole, and what is wrong is told, never raised."""

from __future__ import annotations

from typing import Any

from anybatch.kernel.config_check import judge
from anybatch.kernel.config_fit import fits
from anybatch.kernel.config_read import (
    DEFINITION_KEYS,
    ENVIRONMENT_KEYS,
    JOB_KEYS,
    KERNEL_KEYS,
    QUEUE_KEYS,
    SINK_KEYS,
    TABLES,
    config_of_mapping,
)
from anybatch.kernel.core.snapshot import encode
from anybatch.kernel.core.state import KernelState
from anybatch.kernel.registry import BackendRegistry
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "b", "default", "no good", "x", ""])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 20_000),
    st.just(10**30),
    st.floats(),
    NAMES,
    st.sampled_from(["process", "null", "10GiB", "ENABLED", "DISABLED", "#!/bin/sh", "\ud800", "N_TO_N", "SEQUENTIAL"]),
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["job", "type", "attempts", "evaluate_on_exit", "action", "memory", "gpus", "a"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)
GOOD: dict[str, Any] = {
    "backend": st.sampled_from(["process", "null", "inline"]),
    "compute_environments": st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=2, unique=True),
    "priority": st.integers(0, 5),
    "command": st.just(["x"]),
    "queue": st.sampled_from(["a", "b", "default"]),
    "definition": st.sampled_from(["a", "b"]),
    "depends_on": st.lists(
        st.sampled_from(["a", "b", {"type": "SEQUENTIAL"}, {"job": "b", "type": "N_TO_N"}]), max_size=2
    ),
    "array_size": st.integers(2, 5),
}


def tables(keys: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """Mostly sensible tables, with junk at some of their keys."""
    good = st.fixed_dictionaries({}, optional={key: GOOD[key] for key in keys if key in GOOD})
    junk = st.dictionaries(st.sampled_from([*keys, "unknown"]), JUNK, max_size=2)
    table = st.builds(lambda a, b: {**a, **b}, good, junk)
    return st.one_of(st.dictionaries(NAMES, st.one_of(table, table, JUNK), max_size=3), JUNK)


CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "run": JUNK,
        "kernel": st.one_of(st.dictionaries(st.sampled_from(KERNEL_KEYS), JUNK, max_size=2), JUNK),
        "sinks": tables(tuple(SINK_KEYS)),
        "environments": tables(ENVIRONMENT_KEYS),
        "queues": tables(QUEUE_KEYS),
        "definitions": tables(DEFINITION_KEYS),
        "jobs": tables(JOB_KEYS),
        "unknown": JUNK,
    },
)


@given(CONFIGS)
@example({"queues": {"a": {}}, "jobs": {"a": {"image": "a"}}})
@example({"jobs": {"a": {"depends_on": ["b"]}, "b": {"depends_on": ["a"]}}})
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=300)
def test_junk_is_told_and_changes_nothing(config: dict[str, Any]) -> None:
    state, registry = KernelState(), BackendRegistry()
    before = encode(state)
    given_config, checker = config_of_mapping(config)
    config_with = given_config.completed() if given_config.jobs else given_config
    judged = judge(config_with, registry, state, checker)
    fits(judged, registry, state)
    assert encode(state) == before
    assert {change.path.partition(".")[0] for change in judged.changes} <= set(TABLES)
    for mistake in checker.mistakes:
        assert mistake.message
        str(mistake)
