"""Contract 2.5: cancel and terminate, in every status, for single jobs, arrays and single children."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from anybatch.kernel.core import events as ev
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.effects import NotifyJob, StopAttempts
from anybatch.kernel.core.errors import InvalidValue, NotFound, QuotaExceeded
from anybatch.kernel.core.model import StopKind
from core_rig import DISABLED, SEQUENTIAL, Rig, after, launches, stops

STATUSES = ("PENDING", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED", "FAILED")
WAITING, LIVE = STATUSES[:2], STATUSES[2:4]
ATTEMPTS = 5
"""Of every job here: that nothing is tried again is not for want of attempts."""


class Target(NamedTuple):
    """What is to be stopped."""

    serial: int
    at: int
    reference: str


def bring(rig: Rig, status: str, *, array: bool) -> Target:
    """A single job, or child 1 of an array of 3, in this status; its siblings wait or have done the same."""
    blocker = rig.submit("blocker", vcpus=3)
    depends_on = (after(rig.id(blocker)),) if status == "PENDING" else ()
    job = rig.submit("target", *depends_on, size=3 if array else None, attempts=ATTEMPTS, vcpus=1)
    index = 1 if array else 0
    if status not in WAITING:
        rig.cancel(blocker)
        rig.place()
    everyone = (0, 1, 2) if array else (0,)
    if status in ("RUNNING", "SUCCEEDED"):
        rig.start(job, *everyone)
    if status == "SUCCEEDED":
        rig.exit(job, index)
    if status == "FAILED":
        rig.exit(job, index, code=1)
        for _ in range(ATTEMPTS - 1):
            rig.run(job, index, code=1)
    assert rig.status(job, index) == status
    return Target(job, index, rig.child(job, 1) if array else rig.id(job))


@pytest.mark.parametrize("array", [False, True], ids=["single", "child"])
@pytest.mark.parametrize("terminate", [False, True], ids=["cancel", "terminate"])
@pytest.mark.parametrize("status", WAITING)
def test_ct_what_waits_fails_at_once_with_the_callers_reason(
    rig: Rig, status: str, terminate: bool, array: bool
) -> None:
    target = bring(rig, status, array=array)
    step = rig.terminate(target.reference, "why") if terminate else rig.cancel(target.reference, "why")
    assert step.events == [
        ev.CancelRequested(target.serial, 1 if array else None, terminate, "why", None, None),
        ev.WorkFailed(target.serial, target.at, target.at + 1, None, "why"),
    ]
    assert stops(step) == []
    assert rig.status(target.serial, target.at) == "FAILED"
    assert rig.reason(target.serial, target.at) == "why"
    assert rig.past(target.serial, target.at) == []


@pytest.mark.parametrize("array", [False, True], ids=["single", "child"])
@pytest.mark.parametrize("status", LIVE)
def test_ct_cancel_of_what_starts_or_runs_has_no_effect(rig: Rig, status: str, array: bool) -> None:
    target = bring(rig, status, array=array)
    step = rig.cancel(target.reference)
    assert (step.events, step.effects) == ([], [])
    rig.exit(target.serial, target.at, code=1)
    assert rig.status(target.serial, target.at) == "RUNNABLE"


@pytest.mark.parametrize("code", [0, 143, None])
@pytest.mark.parametrize("array", [False, True], ids=["single", "child"])
@pytest.mark.parametrize("status", LIVE)
def test_ct_2_terminate_of_what_starts_or_runs_stops_it_and_it_is_never_tried_again(
    rig: Rig, status: str, array: bool, code: int | None
) -> None:
    target = bring(rig, status, array=array)
    step = rig.terminate(target.reference, "why")
    assert step.events == [ev.CancelRequested(target.serial, 1 if array else None, True, "why", None, None)]
    assert step.effects == [StopAttempts(target.serial, [(target.at, 1)])]
    assert rig.status(target.serial, target.at) == status
    rig.exit(target.serial, target.at, code=code)
    assert rig.status(target.serial, target.at) == "FAILED"
    assert rig.reason(target.serial, target.at) == "why"
    if array:
        siblings = rig.statuses(target.serial)[::2]
        assert set(siblings) == {"s"} if status == "STARTING" else {"r"}


@pytest.mark.parametrize("array", [False, True], ids=["single", "child"])
@pytest.mark.parametrize("terminate", [False, True], ids=["cancel", "terminate"])
@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED"])
def test_ct_8_what_has_ended_stays_as_it_is(rig: Rig, status: str, terminate: bool, array: bool) -> None:
    target = bring(rig, status, array=array)
    before = rig.job(target.serial).children.cause_of(target.at)
    step = rig.terminate(target.reference) if terminate else rig.cancel(target.reference)
    assert (step.events, step.effects) == ([], [])
    assert rig.status(target.serial, target.at) == status
    assert rig.job(target.serial).children.cause_of(target.at) == before


@pytest.mark.parametrize("terminate", [False, True], ids=["cancel", "terminate"])
@pytest.mark.parametrize("status", WAITING)
def test_ct_3_a_parent_whose_children_wait_fails_with_all_of_them(rig: Rig, status: str, terminate: bool) -> None:
    job = bring(rig, status, array=True).serial
    step = rig.terminate(job, "why") if terminate else rig.cancel(job, "why")
    assert step.events == [
        ev.CancelRequested(job, None, terminate, "why", None, None),
        ev.WorkFailed(job, 0, 3, None, "why"),
        ev.ParentEnded(job, False),
    ]
    assert NotifyJob(job) in step.effects
    assert stops(step) == []


@pytest.mark.parametrize("status", LIVE)
def test_ct_3_cancel_of_a_parent_lets_its_running_children_go_on(rig: Rig, status: str) -> None:
    job = bring(rig, status, array=True).serial
    step = rig.cancel(job)
    assert stops(step) == []
    assert rig.status(job) == "PENDING"
    rig.exit(job, 0, 1)
    rig.exit(job, 2)
    assert (rig.statuses(job), rig.status(job)) == ("+++", "SUCCEEDED")


@pytest.mark.parametrize("status", LIVE)
def test_ct_3_terminate_of_a_parent_stops_every_live_child(rig: Rig, status: str) -> None:
    job = bring(rig, status, array=True).serial
    step = rig.terminate(job, "why")
    assert step.events == [ev.CancelRequested(job, None, True, "why", None, None)]
    assert step.effects == [StopAttempts(job, [(0, 1), (1, 1), (2, 1)])]
    rig.exit(job, 0, 1, 2, code=143)
    assert (rig.statuses(job), rig.status(job)) == ("---", "FAILED")


@pytest.mark.parametrize("terminate", [False, True], ids=["cancel", "terminate"])
def test_ct_3_a_mixed_parent(rig: Rig, terminate: bool) -> None:
    job = rig.submit("mixed", SEQUENTIAL, size=3, attempts=ATTEMPTS)
    rig.run(job, 0)
    rig.place()
    assert rig.statuses(job) == "+sP"
    step = rig.terminate(job) if terminate else rig.cancel(job)
    assert rig.statuses(job) == "+s-"
    assert stops(step) == ([(job, [(1, 1)])] if terminate else [])
    rig.exit(job, 1, code=1)
    assert (rig.statuses(job), rig.status(job)) == ("+--", "FAILED")


@pytest.mark.parametrize("terminate", [False, True], ids=["cancel", "terminate"])
@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED"])
def test_ct_3_a_parent_that_has_ended_stays_as_it_is(rig: Rig, status: str, terminate: bool) -> None:
    job = rig.submit(size=2)
    rig.place()
    rig.exit(job, 0, 1, code=0 if status == "SUCCEEDED" else 1)
    assert rig.status(job) == status
    step = rig.terminate(job) if terminate else rig.cancel(job)
    assert (step.events, step.effects) == ([], [])


@pytest.mark.parametrize("terminate", [False, True], ids=["cancel", "terminate"])
def test_ct_1_a_reason_is_required_and_has_at_most_1024_characters(rig: Rig, terminate: bool) -> None:
    job = rig.submit()
    with pytest.raises(InvalidValue, match="reason: '' is not allowed"):
        rig.do(ask.StopJob(job=rig.id(job), reason="", terminate=terminate))
    with pytest.raises(QuotaExceeded, match="at most 1024 characters"):
        rig.do(ask.StopJob(job=rig.id(job), reason="x" * 1025, terminate=terminate))
    assert rig.status(job) == "RUNNABLE"
    rig.do(ask.StopJob(job=rig.id(job), reason="x" * 1024, terminate=terminate))
    assert rig.reason(job) == "x" * 1024


def test_ct_an_unknown_job_is_an_error_of_the_caller(rig: Rig) -> None:
    """The AWS front end answers 200 for it; an embedding service is told."""
    with pytest.raises(NotFound, match="job 'nobody' does not exist"):
        rig.cancel("nobody")


@pytest.mark.parametrize("live", [False, True])
def test_ct_2_after_a_cancel_of_the_array_no_child_is_tried_again(rig: Rig, live: bool) -> None:
    job = rig.submit(size=2, attempts=ATTEMPTS)
    rig.place()
    if live:
        rig.start(job, 0, 1)
    rig.cancel(job)
    rig.exit(job, 0, code=1)
    rig.lose(job, 1)
    assert (rig.statuses(job), rig.status(job)) == ("--", "FAILED")


def test_ct_5_dependents_of_a_cancelled_job_fail(rig: Rig) -> None:
    first = rig.submit()
    second = rig.submit("second", after(rig.id(first)))
    third = rig.submit("third", after(rig.id(second)))
    step = rig.cancel(first)
    assert [type(event).__name__ for event in step.events] == ["CancelRequested", *["WorkFailed"] * 3]
    assert [rig.reason(job) for job in (second, third)] == ["Dependent Job failed"] * 2


def test_ct_6_flags_are_true_from_the_request_on(rig: Rig) -> None:
    job = rig.submit(size=3)
    rig.place()
    rig.terminate(rig.child(job, 1))
    assert (rig.job(job).cancelled, rig.job(job).terminated, rig.job(job).flags) == (False, False, {1: True})
    rig.cancel(job)
    rig.terminate(job)
    assert (rig.job(job).cancelled, rig.job(job).terminated) == (True, True)
    assert rig.statuses(job) == "sss"


def test_ct_8_an_exit_recorded_before_the_terminate_wins(rig: Rig) -> None:
    job = rig.submit()
    rig.run(job)
    assert rig.terminate(job).events == []
    assert rig.status(job) == "SUCCEEDED"


def test_ct_8_a_terminate_recorded_before_the_exit_wins(rig: Rig) -> None:
    job = rig.submit()
    rig.place()
    rig.start(job)
    rig.terminate(job, "why")
    rig.exit(job, code=0)
    assert (rig.status(job), rig.reason(job)) == ("FAILED", "why")


def test_ct_8_a_timeout_recorded_before_the_terminate_wins(rig: Rig) -> None:
    job = rig.submit(timeout_ms=10)
    rig.place()
    rig.start(job)
    rig.advance(10)
    assert rig.terminate(job, "why").events == []
    rig.exit(job, code=143)
    assert rig.reason(job) == "Job attempt duration exceeded timeout"


def test_ct_8_a_second_terminate_changes_nothing(rig: Rig) -> None:
    job = rig.submit()
    rig.place()
    rig.terminate(job, "first")
    step = rig.terminate(job, "second")
    assert (step.events, step.effects) == ([], [])
    rig.exit(job, code=143)
    assert rig.reason(job) == "first"


@pytest.mark.parametrize("loss", ["report", "host"])
def test_ct_2_a_terminated_attempt_that_is_lost_is_not_tried_again(rig: Rig, loss: str) -> None:
    job = rig.submit(attempts=ATTEMPTS)
    rig.place()
    rig.start(job)
    rig.terminate(job, "why")
    if loss == "host":
        rig.host_down()
    else:
        rig.lose(job)
    assert (rig.status(job), rig.reason(job)) == ("FAILED", "why")


# -- the kernel's own closing -----------------------------------------------------------------------------


def test_stop_running_makes_jobs_runnable_again_without_counting_the_attempt(rig: Rig) -> None:
    job = rig.submit(size=3, attempts=1)
    rig.place()
    rig.start(job, 0, 1)
    step = rig.do(ask.StopRunning())
    assert step.events == [ev.StopRequested(job, 0, 3, None, 1, StopKind.SHUTDOWN)]
    assert step.effects == [StopAttempts(job, [(0, 1), (1, 1), (2, 1)])]
    rig.exit(job, 0, 1, 2, code=143)
    assert rig.statuses(job) == "RRR"
    for number in (2, 3):
        assert launches(rig.place()) == [(job, number, [0, 1, 2], 1)]
        rig.do(ask.StopRunning())
        rig.exit(job, 0, 1, 2, code=143)
    rig.run(job, 0, 1, 2, code=1)
    assert rig.statuses(job) == "---"
    assert [attempt.number for attempt in rig.past(job, 0)] == [1, 2, 3]


def test_stop_running_concerns_the_named_environments_only(rig: Rig) -> None:
    rig.environment("other")
    rig.host("far", environment="other")
    rig.queue("far", "other")
    here, there = rig.submit(), rig.submit(queue="far")
    rig.place()
    assert stops(rig.do(ask.StopRunning(environments=("other",)))) == [(there, [(0, 1)])]
    assert stops(rig.do(ask.StopRunning(environments=("nowhere",)))) == []
    assert stops(rig.do(ask.StopRunning())) == [(here, [(0, 1)])]
    assert rig.do(ask.StopRunning()).events == []


@pytest.mark.parametrize("array", [False, True])
def test_ct_2_a_terminate_wins_over_the_kernels_closing(rig: Rig, array: bool) -> None:
    """What was acknowledged as terminated does not come back when the journal is opened again."""
    job = rig.submit(size=2 if array else None, attempts=ATTEMPTS)
    rig.place()
    rig.do(ask.StopRunning())
    step = rig.terminate(rig.child(job, 0) if array else job, "why")
    assert step.events == [ev.CancelRequested(job, 0 if array else None, True, "why", None, None)]
    rig.exit(job, 0, code=143)
    assert (rig.status(job, 0), rig.reason(job)) == ("FAILED", "why")
    if array:
        rig.exit(job, 1, code=143)
        assert rig.statuses(job) == "-R"


def test_ct_2_a_cancelled_arrays_child_does_not_run_again_after_a_close(rig: Rig) -> None:
    job = rig.submit(size=2, attempts=ATTEMPTS)
    rig.place()
    rig.cancel(job)
    rig.do(ask.StopRunning())
    rig.exit(job, 0, 1, code=143)
    assert rig.statuses(job) == "--"


def test_rt_5_the_deletion_of_a_queue_wins_over_the_kernels_closing(rig: Rig) -> None:
    job = rig.submit(attempts=ATTEMPTS)
    rig.place()
    rig.do(ask.StopRunning())
    rig.do(ask.UpdateQueue(name="queue", state=DISABLED))
    rig.do(ask.DeleteQueue(name="queue"))
    rig.exit(job, code=143)
    assert (rig.status(job), rig.reason(job)) == ("FAILED", "Job queue was deleted")
    assert "queue" not in rig.state.queues
