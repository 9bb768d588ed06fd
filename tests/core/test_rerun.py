"""rerun (beyond AWS): what FAILED of a job runs again, in the same job. Decision 0042."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from anybatch.kernel.core import events as ev
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.children import NUMBER_MAX
from anybatch.kernel.core.errors import Conflict, NotFound, QuotaExceeded
from anybatch.kernel.core.model import TEXT_DEPENDENCY_FAILED, On, Quotas, RetryStrategy
from core_rig import (
    DISABLED,
    ENABLED,
    SEQUENTIAL,
    SEQUENTIAL_ANY,
    Rig,
    after,
    after_any,
    after_failure,
    launches,
    n_to_n,
    notified,
    ready_rig,
)  # fmt: skip

DAY_MS = 86_400_000


def failed_array(rig: Rig, size: int = 4, failing: tuple[int, ...] = (1, 3), **more: Any) -> int:
    """An array that has ended, with these children FAILED."""
    job = rig.submit(size=size, **more)
    while not rig.job(job).ended:
        rig.place()
        for i in [i for i, status in enumerate(rig.statuses(job)) if status == "s"]:
            rig.exit(job, i, code=int(i in failing))
    return job


# -- what runs again ------------------------------------------------------------------------------------------


def test_only_the_failed_children_run_again_in_the_same_job(rig: Rig) -> None:
    job = failed_array(rig)
    step = rig.rerun(job)
    assert step.reply == [(job, 2)]
    assert step.events == [
        ev.RerunRequested(job, None, False, None, None),
        ev.ParentReopened(job),
        ev.WorkReopened(job, 0, 0, [1, 3]),
        ev.WorkReleased(job, 0, 0, [1, 3]),
    ]
    assert (rig.statuses(job), rig.status(job)) == ("+R+R", "PENDING")
    assert launches(rig.place()) == [(job, 2, [1], 1), (job, 2, [3], 1)]
    rig.exit(job, 1, 3)
    assert rig.status(job) == "SUCCEEDED"


def test_a_failed_single_job_runs_again(rig: Rig) -> None:
    job = rig.submit()
    rig.run(job, code=3)
    step = rig.rerun(job)
    assert step.reply == [(job, 1)]
    assert [type(event) for event in step.events] == [ev.RerunRequested, ev.WorkReopened, ev.WorkReleased]
    assert rig.status(job) == "RUNNABLE"
    step = rig.run(job)
    assert (rig.status(job), notified(step)) == ("SUCCEEDED", [(job, None)])


def test_one_child_runs_again_and_the_other_stays_as_it_is(rig: Rig) -> None:
    job = failed_array(rig)
    assert rig.rerun(rig.child(job, 3)).reply == [(job, 1)]
    assert rig.statuses(job) == "+-+R"
    step = rig.run(job, 3)
    assert (rig.statuses(job), rig.status(job)) == ("+-++", "FAILED")
    assert notified(step) == [(job, [3]), (job, None)]


def test_an_array_that_still_runs_is_run_again_in_its_failed_children(rig: Rig) -> None:
    job = rig.submit(size=4)
    rig.run(job, 1, code=1)
    step = rig.rerun(job)
    assert not [event for event in step.events if isinstance(event, ev.ParentReopened)]
    assert rig.statuses(job) == "sRss"
    rig.place()
    rig.exit(job, 0, 2, 3)
    rig.exit(job, 1)
    assert rig.status(job) == "SUCCEEDED"


def test_attempts_are_kept_and_their_numbers_go_on(rig: Rig) -> None:
    job = rig.submit(attempts=2)
    rig.run(job, code=3)
    rig.run(job, code=4)
    rig.advance(100)
    rig.rerun(job)
    assert [(past.number, past.code) for past in rig.past(job)] == [(1, 3), (2, 4)]
    assert (rig.code(job), rig.times(job)) == (None, (0, 0))
    assert launches(rig.place()) == [(job, 3, [0], 1)]
    rig.exit(job)
    assert (rig.job(job).children.number[0], len(rig.past(job))) == (3, 2)


def test_retry_budgets_count_from_the_rerun(rig: Rig) -> None:
    job = rig.submit(retry=RetryStrategy(2, host_lost_retries=1))
    ends: list[Callable[[], object]] = [
        lambda: rig.lose(job),
        lambda: rig.exit(job, code=1),
        lambda: rig.exit(job, code=1),
    ]
    for _ in range(2):
        for n, end in enumerate(ends):
            rig.place()
            assert rig.status(job) == "STARTING"
            end()
            assert rig.status(job) == ("FAILED" if n == 2 else "RUNNABLE")
        if rig.job(job).children.number[0] == 3:
            rig.rerun(job)
    assert rig.job(job).children.number[0] == 6


def test_what_was_cancelled_or_terminated_runs_again_and_is_tried_again(rig: Rig) -> None:
    job = rig.submit(size=6, attempts=2)
    rig.run(job, 0)
    rig.cancel(rig.child(job, 5))
    rig.terminate(job)
    rig.exit(job, 1, 2, 3, code=143)
    assert rig.statuses(job) == "+-----"
    rig.rerun(job)
    assert rig.statuses(job) == "+RRRRR"
    rig.place()
    rig.exit(job, 1, code=1)
    assert rig.statuses(job)[1] == "R"
    row = rig.job(job)
    assert (row.cancelled, row.terminated, row.flags) == (False, False, {})


def test_it_can_be_run_again_and_again(rig: Rig) -> None:
    job = failed_array(rig, size=2, failing=(0, 1))
    for n in range(2, 6):
        rig.rerun(job)
        rig.place()
        rig.exit(job, 0, 1, code=1)
        assert (rig.status(job), rig.job(job).reruns) == ("FAILED", n - 1)
    assert [past.number for past in rig.past(job, 1)] == [1, 2, 3, 4]


def test_a_stopped_attempt_may_not_be_waited_for_by_a_rerun(rig: Rig) -> None:
    job = rig.submit(size=8)
    rig.place()
    rig.terminate(job)
    with pytest.raises(Conflict, match="it was terminated, and 4 of its attempts have yet to end; wait for them first"):
        rig.rerun(job)


# -- what it waits for ------------------------------------------------------------------------------------------


def test_children_that_failed_by_a_dependency_are_looked_at_anew(rig: Rig) -> None:
    first = failed_array(rig)
    second = rig.submit("second", n_to_n(rig.id(first)), size=4)
    assert rig.statuses(second) == "R-R-"
    rig.rerun(first)
    rig.rerun(second)
    assert rig.statuses(second) == "RPRP"
    rig.place()
    rig.exit(first, 1)
    rig.exit(first, 3, code=1)
    assert rig.statuses(second) == "sRs-"


def test_a_job_that_failed_by_a_dependency_runs_once_that_has_succeeded(rig: Rig) -> None:
    first = rig.submit()
    second = rig.submit("second", after(rig.id(first)))
    rig.run(first, code=1)
    rig.rerun(first)
    rig.run(first)
    rig.rerun(second)
    assert rig.status(second) == "RUNNABLE"


def test_waits_already_answered_stay_answered(rig: Rig) -> None:
    """Of those who waited for any end, or for the failure: it has come, whatever comes next."""
    first, gate = rig.submit(size=2), rig.submit("gate")
    waits = [
        rig.submit("whole", after_any(rig.id(first)), after(rig.id(gate))),
        rig.submit("mend", after_failure(rig.id(first)), after(rig.id(gate))),
        rig.submit("child", after_failure(rig.child(first, 0)), after(rig.id(gate))),
        rig.submit("pairs", n_to_n(rig.id(first), On.ANY), after(rig.id(gate)), size=2),
        rig.submit("mends", n_to_n(rig.id(first), On.FAILURE), after(rig.id(gate)), size=2),
    ]
    rig.place()
    rig.exit(first, 0, code=1)
    rig.exit(first, 1, code=1)
    rig.rerun(first)
    rig.do(ask.OpenKernel(kernel_id="again"))
    rig.do(ask.AllListed(environment="env", hosts=("host",)))
    rig.exit(gate)
    assert [rig.statuses(job) for job in waits] == ["R", "R", "R", "RR", "RR"]
    rig.place()
    rig.exit(first, 0, 1)
    assert [rig.job(job).ended for job in waits] == [False] * 5


def test_what_has_run_waits_for_nothing_a_second_time(rig: Rig) -> None:
    first = rig.submit(size=2)
    second = rig.submit("second", after_any(rig.id(first)), n_to_n(rig.id(first), On.ANY), size=2)
    rig.place()
    rig.exit(first, 0, 1, code=1)
    rig.place()
    rig.exit(second, 0, 1, code=1)
    rig.rerun(first)
    rig.rerun(second)
    assert (rig.statuses(first), rig.statuses(second)) == ("RR", "RR")


def test_a_sequence_keeps_its_order(rig: Rig) -> None:
    job = rig.submit("steps", SEQUENTIAL, size=4)
    rig.run(job, 0)
    rig.run(job, 1, code=1)
    assert rig.statuses(job) == "+---"
    rig.rerun(job)
    assert rig.statuses(job) == "+RPP"
    rig.run(job, 1)
    assert rig.statuses(job) == "++RP"


def test_a_sequence_after_any_end_runs_its_failed_children_one_after_the_other(rig: Rig) -> None:
    """Where neighbours run again: the order is not a question that is answered once."""
    job = rig.submit("steps", SEQUENTIAL_ANY, size=5)
    for i, code in enumerate((1, 1, 0, 1, 0)):
        rig.run(job, i, code=code)
    rig.rerun(job)
    assert rig.statuses(job) == "RP+R+"
    rig.run(job, 0, code=1)
    assert rig.statuses(job) == "-R+s+"


def test_what_stays_lost_is_left_as_it_is(rig: Rig) -> None:
    first = failed_array(rig)
    second = rig.submit("second", n_to_n(rig.id(first)), size=4)
    rig.place()
    rig.exit(second, 0, code=1)
    rig.exit(second, 2)
    assert rig.rerun(second).reply == [(second, 1)]
    assert rig.statuses(second) == "R-+-"


# -- dependents ---------------------------------------------------------------------------------------------------


def chain(rig: Rig) -> list[int]:
    first = failed_array(rig)
    pairs = rig.submit("pairs", n_to_n(rig.id(first)), SEQUENTIAL, size=4)
    other = rig.submit("other")
    last = rig.submit("last", after(rig.id(pairs)), after(rig.id(other)))
    child = rig.submit("child", after(rig.child(first, 3)))
    rig.place()
    rig.exit(pairs, 0)
    rig.exit(other)
    return [first, pairs, last, child]


def test_without_dependents_nobody_follows(rig: Rig) -> None:
    first, pairs, last, child = chain(rig)
    assert rig.rerun(first).reply == [(first, 2)]
    assert (rig.statuses(pairs), rig.status(last), rig.status(child)) == ("+---", "FAILED", "FAILED")


def test_dependents_follow_each_after_all_that_it_waits_for(rig: Rig) -> None:
    first, pairs, last, child = chain(rig)
    step = rig.rerun(first, dependents=True)
    assert step.reply == [(first, 2), (pairs, 3), (last, 1), (child, 1)]
    assert (rig.statuses(pairs), rig.status(last), rig.status(child)) == ("+PPP", "PENDING", "PENDING")
    while not rig.job(last).ended:
        rig.place()
        for job in (first, pairs, last, child):
            live = rig.job(job).live()
            if live:
                rig.exit(job, *live)
    assert [rig.status(job) for job in (first, pairs, last)] == ["SUCCEEDED"] * 3


def test_dependents_of_one_child_follow_where_they_wait_for_it(rig: Rig) -> None:
    first, pairs, last, child = chain(rig)
    assert rig.rerun(rig.child(first, 3), dependents=True).reply == [(first, 1), (child, 1)]
    assert rig.statuses(first) == "+-+R"
    assert rig.statuses(pairs) == "+---", "child 2 of it failed before child 3"
    assert rig.status(child) == "PENDING"


def test_a_dependent_that_another_dependency_has_lost_does_not_follow(rig: Rig) -> None:
    first, second = rig.submit(), rig.submit("second")
    both = rig.submit("both", after(rig.id(first)), after(rig.id(second)))
    rig.place()
    rig.exit(first, code=1)
    rig.exit(second, code=1)
    assert rig.rerun(first, dependents=True).reply == [(first, 1)]
    assert rig.status(both) == "FAILED"
    assert rig.rerun(second, dependents=True).reply == [(second, 1), (both, 1)]
    assert rig.status(both) == "PENDING"


def test_dependents_that_were_cancelled_or_are_not_needed_do_not_follow(rig: Rig) -> None:
    first = rig.submit(size=2)
    cancelled = rig.submit("cancelled", after(rig.id(first)))
    mend = rig.submit("mend", after_failure(rig.child(first, 1)))
    rig.cancel(cancelled)
    rig.place()
    rig.exit(first, 0, code=1)
    rig.exit(first, 1)
    assert rig.rerun(first, dependents=True).reply == [(first, 1)]
    assert (rig.status(cancelled), rig.status(mend)) == ("FAILED", "FAILED")


def test_a_dependent_submitted_after_the_failure_follows_too(rig: Rig) -> None:
    first = rig.submit()
    rig.run(first, code=1)
    late = rig.submit("late", after(rig.id(first)), size=2)
    assert (rig.statuses(late), rig.reason(late)) == ("--", TEXT_DEPENDENCY_FAILED)
    assert rig.rerun(first, dependents=True).reply == [(first, 1), (late, 2)]


def test_a_dependent_whose_queue_takes_no_jobs_is_left(rig: Rig) -> None:
    rig.queue("other")
    first = rig.submit()
    rig.submit("late", after(rig.id(first)), queue="other")
    rig.run(first, code=1)
    rig.do(ask.UpdateQueue(name="other", state=DISABLED))
    assert rig.rerun(first, dependents=True).reply == [(first, 1)]


# -- what else is found where unfinished jobs are --------------------------------------------------------------


def test_retention_counts_from_the_new_end(rig: Rig) -> None:
    job = failed_array(rig)
    rig.advance(7 * DAY_MS - 1000)
    rig.rerun(job)
    rig.advance(2 * DAY_MS)
    assert job in rig.state.jobs
    rig.place()
    rig.exit(job, 1, 3, code=1)
    rig.advance(7 * DAY_MS - 1000)
    assert job in rig.state.jobs
    rig.advance(2000)
    assert job not in rig.state.jobs


def test_it_keeps_what_it_depends_on_and_goes_on_without_what_is_forgotten(rig: Rig) -> None:
    rig.do(ask.UpdateQueue(name="queue", retain_succeeded_ms=1000))
    first, pairs = rig.submit(), rig.submit("pairs", size=2)
    job = rig.submit("job", after(rig.id(first)), n_to_n(rig.id(pairs)), SEQUENTIAL, size=2)
    rig.place()
    rig.exit(first)
    rig.exit(pairs, 0, 1)
    rig.run(job, 0, code=1)
    rig.advance(5000)
    assert first not in rig.state.jobs
    rig.rerun(job)
    assert rig.statuses(job) == "RP"
    rig.run(job, 0)
    assert rig.statuses(job) == "+R"


def test_a_job_is_found_by_its_name_as_an_unfinished_one(rig: Rig) -> None:
    job = failed_array(rig)
    rig.run(rig.submit())
    rig.rerun(job)
    assert rig.do(ask.StopJob(job="job", reason="r", terminate=False)).events[0] == ev.CancelRequested(
        job, None, False, "r", None, None
    )


def test_a_deleted_queue_ends_what_runs_again(rig: Rig) -> None:
    job = failed_array(rig)
    rig.rerun(job)
    rig.do(ask.UpdateQueue(name="queue", state=DISABLED))
    rig.do(ask.DeleteQueue(name="queue"))
    assert rig.statuses(job) == "+-+-"
    assert "queue" not in rig.state.queues


def test_the_cap_and_the_timeout_hold_again(rig: Rig) -> None:
    job = failed_array(rig, size=5, failing=(0, 1, 2, 3), max_running=2, timeout_ms=1000)
    rig.rerun(job)
    rig.place()
    assert rig.statuses(job) == "ssRR+"
    rig.start(job, 0, 1)
    assert [type(event) for event in rig.advance(1500)] == [ev.StopRequested]


# -- refusals -----------------------------------------------------------------------------------------------------


def test_only_what_has_failed_is_run_again(rig: Rig) -> None:
    job = failed_array(rig)
    fine = rig.submit("fine")
    with pytest.raises(Conflict, match="it is RUNNABLE: nothing of it has FAILED"):
        rig.rerun(fine)
    rig.run(fine)
    with pytest.raises(Conflict, match="it is SUCCEEDED: nothing of it has FAILED, and only that is run again"):
        rig.rerun(fine)
    with pytest.raises(Conflict, match="it is SUCCEEDED; only what has FAILED is run again"):
        rig.rerun(rig.child(job, 0))
    with pytest.raises(NotFound):
        rig.do(ask.RerunJob(job="nobody"))
    with pytest.raises(NotFound, match="its indexes are 0 to 3"):
        rig.rerun(rig.child(job, 4))


def test_what_cannot_run_yet_says_what_to_run_first(rig: Rig) -> None:
    first = rig.submit()
    second = rig.submit("second", after(rig.id(first)))
    pairs = failed_array(rig, size=2, failing=(1,))
    third = rig.submit("third", n_to_n(rig.id(pairs)), size=2)
    steps = rig.submit("steps", SEQUENTIAL, size=3)
    rig.run(first, code=1)
    rig.exit(third, 0)
    rig.exit(steps, 0, code=1)
    text = f"failed by its dependency on {rig.id(first)}, which is still FAILED; run that again, with dependents=True"
    with pytest.raises(Conflict, match=text):
        rig.rerun(second)
    with pytest.raises(Conflict, match=f"failed by its dependency on {rig.child(pairs, 1)}, which is still FAILED"):
        rig.rerun(third)
    with pytest.raises(Conflict, match="child 1, after which child 2 runs, is FAILED; run it again too"):
        rig.rerun(rig.child(steps, 2))


def test_what_failed_by_a_forgotten_job_cannot_run_again(rig: Rig) -> None:
    first = rig.submit()
    rig.queue("long")
    rig.do(ask.UpdateQueue(name="queue", retain_failed_ms=1000))
    second = rig.submit("second", after(rig.id(first)), queue="long")
    first_id = rig.id(first)
    rig.run(first, code=1)
    rig.advance(5000)
    with pytest.raises(Conflict, match=f"a dependency on job {first_id}, which is no longer kept; submit it again"):
        rig.rerun(second)


def test_a_queue_that_takes_no_jobs_takes_none_again(rig: Rig) -> None:
    job = failed_array(rig)
    rig.do(ask.UpdateQueue(name="queue", state=DISABLED))
    with pytest.raises(Conflict, match="its queue 'queue' is DISABLED and takes no jobs; update it to ENABLED first"):
        rig.rerun(job)
    rig.do(ask.UpdateQueue(name="queue", state=ENABLED))
    rig.do(ask.UpdateQueue(name="queue", state=DISABLED))
    rig.do(ask.DeleteQueue(name="queue"))
    with pytest.raises(Conflict, match="its queue 'queue' is gone; submit it again, to another"):
        rig.rerun(job)


def test_the_quota_of_unfinished_jobs_holds() -> None:
    rig = ready_rig(Quotas(unfinished_jobs_max=1))
    job = rig.submit()
    rig.run(job, code=1)
    rig.submit("other")
    with pytest.raises(QuotaExceeded, match="at most 1 unfinished jobs"):
        rig.rerun(job)


def test_attempts_in_all_have_a_bound() -> None:
    rig = ready_rig()  # not verified: what is written into its state here has no log
    job = rig.submit(attempts=3)
    rig.run(job, code=1)
    row = rig.job(job)
    row.children.number[0], row.uncounted = NUMBER_MAX - 1, {0: NUMBER_MAX - 2}
    rig.place()
    rig.exit(job, code=1)
    assert rig.status(job) == "FAILED"
    with pytest.raises(Conflict, match="it has had 65535 attempts, the most that are counted"):
        rig.rerun(job)


def test_a_place_in_the_queue_from_before_the_rerun_is_out_of_date(rig: Rig) -> None:
    """Of a child that was cancelled while it was to be tried again: it stands where its job stands."""
    first, job = rig.submit("first", size=9), rig.submit(attempts=3)
    rig.place()
    rig.exit(first, 0, 1, 2, 3)
    rig.place()
    rig.exit(first, 4, 5, 6, 7)
    rig.place()
    rig.exit(job, code=1)
    rig.cancel(job)
    rig.rerun(job)
    earlier = rig.submit("wide", size=3, vcpus=4)
    assert rig.job(job).reopened == {0: rig.state.turn}
    rig.place()
    assert (rig.status(job), rig.statuses(earlier)) == ("STARTING", "RRR")
