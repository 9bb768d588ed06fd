"""The lifecycle table against the contract's, row by row and both ways, and docs/states.md against the table."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from anybatch.kernel.core.children import Children
from anybatch.kernel.core.errors import KernelBug
from anybatch.kernel.core.states import BEYOND_AWS, STATUSES, TRANSITIONS, JobStatus, Kind, Trigger, next_status
from anybatch.testing.states_doc import states_page
from core_rig import Rig

W, P, S, T = Kind.WORK, Kind.PARENT, JobStatus, Trigger

CONTRACT_2_4 = [
    # (from, to, the contract's trigger, what has the status, how the kernel calls the trigger)
    (S.SUBMITTED, S.PENDING, "unfinished dependencies; array parent (AR-3)", {(W, T.HOLD), (P, T.HOLD)}),
    (S.SUBMITTED, S.RUNNABLE, "none outstanding", {(W, T.RELEASE)}),
    (S.SUBMITTED, S.FAILED, "cancel/terminate", {(W, T.CANCEL), (W, T.TERMINATE)}),
    (S.PENDING, S.RUNNABLE, "all dependencies SUCCEEDED", {(W, T.RELEASE)}),
    (
        S.PENDING,
        S.FAILED,
        "dependency failed; cancel/terminate; array parent with failed child",
        {(W, T.DEPENDENCY_FAILED), (W, T.CANCEL), (W, T.TERMINATE), (P, T.FAIL)},
    ),
    (S.PENDING, S.SUCCEEDED, "array parent, all children SUCCEEDED", {(P, T.SUCCEED)}),
    (S.RUNNABLE, S.STARTING, "placement", {(W, T.PLACE)}),
    (S.RUNNABLE, S.FAILED, "cancel/terminate; queue deletion", {(W, T.CANCEL), (W, T.TERMINATE)}),
    (S.STARTING, S.RUNNING, "container up", {(W, T.START)}),
    (S.STARTING, S.RUNNABLE, "attempt failed, retry allowed", {(W, T.RETRY)}),
    (S.STARTING, S.FAILED, "attempt failed, no retry; terminate", {(W, T.FAIL)}),
    (S.RUNNING, S.SUCCEEDED, "exit 0", {(W, T.SUCCEED)}),
    (S.RUNNING, S.RUNNABLE, "attempt failed, retry allowed", {(W, T.RETRY)}),
    (S.RUNNING, S.FAILED, "attempt failed, no retry; timeout; terminate", {(W, T.FAIL)}),
]
ROWS = [
    pytest.param(kind, before, trigger, after, id=f"{kind.value}-{before}-{trigger.value.replace(' ', '_')}")
    for before, after, _, rows in CONTRACT_2_4
    for kind, trigger in sorted(rows, key=lambda row: (row[0].value, row[1].value))
]
OTHERS = [
    pytest.param(kind, status, trigger, id=f"{kind.value}-{status}-{trigger.value.replace(' ', '_')}")
    for kind in Kind
    for status in JobStatus
    for trigger in Trigger
    if (kind, status, trigger) not in TRANSITIONS
]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "states.md"


@pytest.mark.parametrize(("kind", "before", "trigger", "after"), ROWS)
def test_each_edge_of_contract_2_4_is_in_the_table(
    kind: Kind, before: JobStatus, trigger: Trigger, after: JobStatus
) -> None:
    assert next_status(kind, before, trigger) is after


def test_the_table_has_no_edge_that_contract_2_4_has_not() -> None:
    allowed = {(kind, before, trigger, after) for before, after, _, rows in CONTRACT_2_4 for kind, trigger in rows}
    assert {(*key, after) for key, after in TRANSITIONS.items() if key not in BEYOND_AWS} == allowed


def test_the_edges_beyond_aws_are_those_of_a_rerun_and_of_an_array_that_stops() -> None:
    assert {(*key, TRANSITIONS[key]) for key in BEYOND_AWS} == {
        (W, S.FAILED, T.RERUN, S.PENDING),
        (P, S.FAILED, T.RERUN, S.PENDING),
        (W, S.PENDING, T.STOP, S.FAILED),
        (W, S.RUNNABLE, T.STOP, S.FAILED),
    }


@pytest.mark.parametrize(("kind", "status", "trigger"), OTHERS)
def test_every_other_pair_is_a_bug_of_the_kernel(kind: Kind, status: JobStatus, trigger: Trigger) -> None:
    with pytest.raises(KernelBug, match=f"no transition for a {kind.value} in {status} on '{trigger.value}'"):
        next_status(kind, status, trigger)


def test_terminal_statuses_have_no_rows_but_for_a_rerun() -> None:
    assert {status for status in JobStatus if status.is_terminal} == {S.SUCCEEDED, S.FAILED}
    assert {key for key in TRANSITIONS if key[1].is_terminal} == {(W, S.FAILED, T.RERUN), (P, S.FAILED, T.RERUN)}


def test_ar_2_a_parent_is_only_ever_submitted_pending_succeeded_or_failed() -> None:
    seen = {status for (kind, before, _), after in TRANSITIONS.items() if kind is P for status in (before, after)}
    assert seen == {S.SUBMITTED, S.PENDING, S.SUCCEEDED, S.FAILED}


def test_every_status_is_reached_and_left_or_final() -> None:
    for kind, first in ((W, S.SUBMITTED), (P, S.SUBMITTED)):
        reached = {first} | {after for (k, _, _), after in TRANSITIONS.items() if k is kind}
        left = {key[1] for key in TRANSITIONS if key[0] is kind and key not in BEYOND_AWS}
        assert reached == left | {S.SUCCEEDED, S.FAILED}


def test_children_move_along_the_tables_edges_only() -> None:
    edges = {(source, target) for (kind, source, _), target in TRANSITIONS.items() if kind is W}
    for source, target in product(JobStatus, repeat=2):
        children = Children(2)
        children.counts[0] = 0
        children.counts[STATUSES.index(source)] = 2
        move = (range(2), STATUSES.index(source), STATUSES.index(target))
        if (source, target) in edges:
            children.move(*move)
        else:
            with pytest.raises(KernelBug):
                children.move(*move)


def test_docs_states_is_generated_from_the_table() -> None:
    """If this fails: python3 -m anybatch.testing.states_doc > docs/states.md."""
    assert PAGE.read_text() == states_page()


@pytest.mark.parametrize("row", sorted(TRANSITIONS, key=str), ids=str)
def test_docs_states_draws_each_row(row: tuple[Kind, JobStatus, Trigger]) -> None:
    kind, before, trigger = row
    section = states_page().split("## ")[1 if kind is W else 2]
    edges = [line.strip() for line in section.splitlines() if "-->" in line]
    assert any(
        line.startswith(f"{before} --> {TRANSITIONS[row]}: ") and trigger.value in line.split(": ")[1].split(", ")
        for line in edges
    )


def test_ar_2_a_running_array_shows_as_pending(rig: Rig) -> None:
    job = rig.submit(size=3)
    seen = [rig.status(job)]
    rig.place()
    seen.append(rig.status(job))
    rig.start(job, 0, 1, 2)
    seen.append(rig.status(job))
    rig.exit(job, 0, 1, 2)
    assert [*seen, rig.status(job)] == ["PENDING", "PENDING", "PENDING", "SUCCEEDED"]
