"""Contract 2.2: array jobs."""

from __future__ import annotations

import pytest
from anybatch.kernel.core import events as ev
from anybatch.kernel.core.effects import WANT_PLAN, LaunchAttempts, NotifyChildren, NotifyJob
from anybatch.kernel.core.errors import InvalidValue, NotFound, QuotaExceeded
from anybatch.kernel.core.model import Quotas
from anybatch.kernel.core.states import SUCCEEDED
from core_rig import Rig, after, launches, ready_rig


def test_ar_1_a_size_makes_an_array_and_children_have_ids(rig: Rig) -> None:
    step = rig.submit_step("array", size=3)
    assert step.events[1:] == [ev.ParentHeld(1), ev.WorkReleased(1, 0, 3, None)]
    rig.cancel(rig.child(1, 2))
    assert rig.statuses(1) == "RR-"


@pytest.mark.parametrize("size", [1, 0, -1])
def test_ar_1_a_size_below_2_is_refused(rig: Rig, size: int) -> None:
    with pytest.raises(InvalidValue, match="array_size: .* an array has 2 to 10000 children"):
        rig.submit(size=size)


def test_ar_1_the_size_has_a_quota(rig: Rig) -> None:
    with pytest.raises(QuotaExceeded, match="quota array_size_max"):
        rig.submit(size=10_001)
    assert rig.status(rig.submit(size=10_000)) == "PENDING"


def test_ar_1_the_quota_can_be_raised() -> None:
    rig = ready_rig(Quotas(array_size_max=20_000))
    assert rig.job(rig.submit(size=20_000)).children.size == 20_000


@pytest.mark.parametrize("index", [3, 999_999])
def test_ar_1_there_is_no_child_beyond_the_size(rig: Rig, index: int) -> None:
    job = rig.submit(size=3)
    with pytest.raises(NotFound, match="its indexes are 0 to 2"):
        rig.cancel(f"{rig.id(job)}:{index}")


def test_ar_1_a_single_job_has_no_children(rig: Rig) -> None:
    job = rig.submit()
    with pytest.raises(NotFound, match="that job is not an array"):
        rig.cancel(rig.child(job, 0))


def test_ar_2_a_parent_takes_no_resources_and_has_no_attempts(rig: Rig) -> None:
    job = rig.submit(size=6, timeout_ms=1000)
    rig.place()
    host = rig.state.hosts[1]
    assert (host.free_vcpus_milli, host.load) == (0, {job: 4})
    assert rig.statuses(job) == "ssssRR"
    assert rig.status(job) == "PENDING"


def test_ar_3_a_parent_is_pending_from_its_submit_on(rig: Rig) -> None:
    free = rig.submit(size=2)
    waiting = rig.submit("waiting", after(rig.id(free)), size=2)
    assert (rig.status(free), rig.status(waiting)) == ("PENDING", "PENDING")


def test_ar_4_a_parent_succeeds_with_its_last_child(rig: Rig) -> None:
    job = rig.submit(size=3)
    rig.place()
    rig.start(job, 0, 1, 2)
    step = rig.exit(job, 2, 0)
    assert step.events == [ev.AttemptsEnded(job, 0, 0, [2, 0], 1, SUCCEEDED, 0, 0, None, None, True)]
    assert step.effects == [WANT_PLAN, NotifyChildren(job, [2, 0])]
    assert rig.status(job) == "PENDING"
    step = rig.exit(job, 1)
    assert step.events == [
        ev.AttemptsEnded(job, 1, 2, None, 1, SUCCEEDED, 0, 0, None, None, True),
        ev.ParentEnded(job, True),
    ]
    assert step.effects == [WANT_PLAN, NotifyChildren(job, range(1, 2)), NotifyJob(job)]
    assert rig.status(job) == "SUCCEEDED"


def test_ar_5_a_parent_fails_only_after_its_last_child_and_stops_nobody(rig: Rig) -> None:
    job = rig.submit(size=3)
    rig.place()
    rig.start(job, 0, 1, 2)
    step = rig.exit(job, 0, code=1)
    assert len(step.events) == 1
    assert step.effects == [WANT_PLAN, NotifyChildren(job, range(1))]
    assert (rig.status(job), rig.statuses(job)) == ("PENDING", "-rr")
    rig.exit(job, 1)
    step = rig.exit(job, 2)
    assert step.events[1:] == [ev.ParentEnded(job, False)]
    assert (rig.status(job), rig.statuses(job)) == ("FAILED", "-++")


def test_ar_6_a_child_has_its_own_status_attempts_and_clock(rig: Rig) -> None:
    job = rig.submit(size=2, attempts=2)
    rig.place()
    rig.start(job, 0, 1)
    rig.exit(job, 1, code=7)
    assert rig.statuses(job) == "rR"
    assert launches(rig.place()) == [(job, 2, [1], 1)]
    rig.exit(job, 1, code=7)
    assert rig.statuses(job) == "r-"
    assert [attempt.number for attempt in rig.past(job, 1)] == [1]
    assert rig.past(job, 0) == []


def test_ar_7_the_status_summary_counts_every_child_exactly(rig: Rig) -> None:
    job = rig.submit(size=8, attempts=2)
    rig.place()
    rig.start(job, 0, 1, 2)
    rig.exit(job, 0)
    rig.exit(job, 1, code=1)
    rig.cancel(rig.child(job, 7))
    assert rig.statuses(job) == "+RrsRRR-"
    assert rig.job(job).children.counts == [0, 0, 4, 1, 1, 1, 1]


def test_ar_7_the_summary_has_a_time_of_its_last_change(rig: Rig) -> None:
    job = rig.submit(size=2)
    rig.advance(500)
    rig.place()
    assert rig.job(job).touched_ms == rig.now_ms


def test_ar_8_children_share_everything_of_their_parent(rig: Rig) -> None:
    """They have no queue, spec or shape of their own to differ by."""
    job = rig.submit("array", size=2, attempts=3, timeout_ms=9, environment={"A": "b"})
    step = rig.place()
    assert step.effects == [LaunchAttempts(job, 1, range(2), 1)]
    assert rig.job(job).spec.environment == {"A": "b"}


def test_ar_10_one_child_is_cancelled_alone_and_then_fails_the_parent(rig: Rig) -> None:
    job = rig.submit(size=3)
    step = rig.cancel(rig.child(job, 1), "mine")
    assert step.events == [
        ev.CancelRequested(job, 1, False, "mine", None, None),
        ev.WorkFailed(job, 1, 2, None, "mine"),
    ]
    assert step.effects == [NotifyChildren(job, range(1, 2))]
    rig.run(job, 0, 2)
    assert (rig.statuses(job), rig.status(job), rig.reason(job, 1)) == ("+-+", "FAILED", "mine")


def test_ar_10_a_parents_cancel_reaches_every_child(rig: Rig) -> None:
    job = rig.submit(size=3)
    step = rig.cancel(job)
    assert step.events[-1] == ev.ParentEnded(job, False)
    assert (rig.statuses(job), rig.status(job)) == ("---", "FAILED")


def test_ar_11_a_dependent_on_the_parent_waits_for_the_whole_array(rig: Rig) -> None:
    job = rig.submit(size=2)
    later = rig.submit("later", after(rig.id(job)))
    rig.place()
    rig.exit(job, 0)
    assert rig.status(later) == "PENDING"
    rig.exit(job, 1)
    assert rig.status(later) == "RUNNABLE"


def test_ar_11_a_dependent_on_the_parent_fails_only_when_the_whole_array_has_ended(rig: Rig) -> None:
    job = rig.submit(size=2)
    later = rig.submit("later", after(rig.id(job)))
    rig.place()
    rig.exit(job, 0, code=1)
    assert rig.status(later) == "PENDING"
    rig.exit(job, 1)
    assert rig.status(later) == "FAILED"


def test_ar_12_children_start_in_the_order_of_their_indexes(rig: Rig) -> None:
    job = rig.submit(size=5, vcpus=2)
    assert launches(rig.place()) == [(job, 1, [0, 1], 1)]
    rig.exit(job, 1)
    assert launches(rig.place()) == [(job, 1, [2], 1)]
    rig.exit(job, 0, 2)
    assert launches(rig.place()) == [(job, 1, [3, 4], 1)]


def test_ar_12_a_retried_child_goes_before_those_that_have_not_run(rig: Rig) -> None:
    job = rig.submit(size=4, vcpus=2, attempts=2)
    rig.place()
    rig.exit(job, 1, code=1)
    assert launches(rig.place()) == [(job, 2, [1], 1)]
    rig.exit(job, 0, code=1)
    rig.exit(job, 1)
    assert launches(rig.place()) == [(job, 2, [0], 1), (job, 1, [2], 1)]


def test_a_step_over_a_large_array_speaks_in_runs(rig: Rig) -> None:
    rig.host(vcpus=20_000)
    job = rig.submit(size=10_000)
    assert len(rig.place().events) == 1
    everyone = tuple(range(10_000))
    assert len(rig.start(job, *everyone).events) == 1
    assert len(rig.exit(job, *everyone).events) == 2
    assert rig.status(job) == "SUCCEEDED"
