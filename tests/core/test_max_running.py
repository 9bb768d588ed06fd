"""max_running (beyond AWS): how many children of an array run at once. Decision 0040."""

from __future__ import annotations

import pytest
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.errors import InvalidValue
from anybatch.kernel.core.placement import PASSED_MS_MAX
from core_rig import Rig, launches


def test_no_more_children_run_than_the_cap(rig: Rig) -> None:
    job = rig.submit(size=6, max_running=2)
    assert launches(rig.place()) == [(job, 1, [0, 1], 1)]
    assert launches(rig.place()) == []
    rig.start(job, 0, 1)
    rig.exit(job, 1)
    assert launches(rig.place()) == [(job, 1, [2], 1)]
    rig.exit(job, 0, 2, number=1)
    rig.place()
    assert rig.statuses(job) == "+++ssR"


def test_a_capped_array_holds_nobody_up_behind_it(rig: Rig) -> None:
    first, second = rig.submit(size=6, max_running=1), rig.submit("second", size=2)
    assert [(j, i) for j, _, i, _ in launches(rig.place())] == [(first, [0]), (second, [0, 1])]


def test_it_goes_on_where_it_stood_in_the_queue(rig: Rig) -> None:
    """Before later jobs, as soon as it may run one more."""
    first, second = rig.submit(size=6, max_running=1), rig.submit("second", size=20)
    rig.place()
    rig.exit(second, 0)
    rig.exit(first, 0)
    assert [(j, i) for j, _, i, _ in launches(rig.place())] == [(first, [1]), (second, [3])]


def test_retried_children_go_first_and_in_the_order_in_which_they_came_back(rig: Rig) -> None:
    job = rig.submit(size=6, max_running=3, attempts=3)
    rig.place()
    rig.exit(job, 2, code=1)
    rig.exit(job, 0, code=1)
    assert launches(rig.place()) == [(job, 2, [2, 0], 1)]
    rig.exit(job, 1, code=1)
    assert launches(rig.place()) == [(job, 2, [1], 1)]
    assert rig.statuses(job) == "sssRRR"


def test_retried_children_kept_out_by_the_cap_come_back_in_their_order(rig: Rig) -> None:
    """Adopted attempts fill the cap while retried children wait."""
    job = rig.submit(size=6, max_running=2, attempts=3)
    rig.place()
    rig.exit(job, 1, code=1)
    rig.exit(job, 0, code=1)
    rig.do(ask.Found(environment="env", host="host", job=job, number=1, indexes=[4, 5]))
    assert rig.statuses(job) == "RRRRss"
    assert launches(rig.place()) == []
    rig.exit(job, 4, number=1)
    assert launches(rig.place()) == [(job, 2, [1], 1)]
    rig.exit(job, 5, number=1)
    assert launches(rig.place()) == [(job, 2, [0], 1)]


def test_what_runs_already_is_adopted_beyond_the_cap(rig: Rig) -> None:
    job = rig.submit(size=4, max_running=1)
    rig.place()
    rig.do(ask.Found(environment="env", host="host", job=job, number=1, indexes=[1, 2]))
    assert rig.statuses(job) == "sssR"
    rig.exit(job, 0, 1)
    assert launches(rig.place()) == []
    rig.exit(job, 2)
    assert launches(rig.place()) == [(job, 1, [3], 1)]


def test_time_spent_below_the_cap_only_counts_towards_a_reservation(rig: Rig) -> None:
    """An array that its own cap has held back has not been passed by others for that long."""
    wide = rig.submit("wide", size=3, max_running=1, vcpus=4)
    rig.place()
    rig.advance(2 * PASSED_MS_MAX)
    rig.submit("narrow", size=9)
    rig.exit(wide, 0)
    assert rig.job(wide).waiting_since_ms == rig.now_ms


def test_a_definition_may_have_a_cap_and_a_submit_another(rig: Rig) -> None:
    rig.define("d", max_running=1)
    first, second = rig.submit(size=3, definition="d"), rig.submit("b", size=3, definition="d", max_running=2)
    single = rig.submit("single", definition="d")
    rig.place()
    assert (rig.statuses(first), rig.statuses(second), rig.statuses(single)) == ("sRR", "ssR", "s")


@pytest.mark.parametrize(
    ("size", "cap", "allowed"), [(3, 0, "1 or more children"), (None, 2, "only an array job has children")]
)
def test_a_cap_that_means_nothing_is_refused(rig: Rig, size: int | None, cap: int, allowed: str) -> None:
    with pytest.raises(InvalidValue, match=f"max_running: {cap} is not allowed; .*{allowed}"):
        rig.submit_step(size=size, max_running=cap)
