"""max_failures (beyond AWS): an array stops when so many of its children have FAILED. Decision 0043."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from anybatch.kernel.core import events as ev
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.errors import Conflict, InvalidValue
from anybatch.kernel.core.explain import Code, explain
from anybatch.kernel.core.machine import handle
from anybatch.kernel.core.model import (
    Action,
    EvaluateOnExit,
    ExitKind,
    FailureClass,
    OnMaxFailures,
    Overrides,
    Quotas,
    RetryStrategy,
)
from core_rig import SEQUENTIAL_ANY, Rig, after, after_any, job_id, launches, n_to_n, ready_rig, stops

TERMINATE = OnMaxFailures.TERMINATE
TEXT = "Array stopped: 2 of its children FAILED (max_failures 2)"


def test_what_waits_ends_and_what_runs_goes_on(rig: Rig) -> None:
    job = rig.submit(size=7, max_failures=2)
    rig.place()
    rig.start(job, 0, 1, 2, 3)
    rig.exit(job, 1, code=1)
    assert rig.statuses(job) == "r-rrRRR"
    step = rig.exit(job, 2, code=1)
    assert step.events[1:] == [ev.ArrayStopped(job, False, TEXT), ev.WorkFailed(job, 4, 7, None, TEXT)]
    assert stops(step) == []
    assert (rig.statuses(job), rig.status(job)) == ("r--r---", "PENDING")
    assert [rig.reason(job, i) for i in (1, 2, 4, 6)] == [None, None, TEXT, TEXT]
    rig.exit(job, 0)
    assert rig.exit(job, 3).events[-1] == ev.ParentEnded(job, False, TEXT)
    assert (rig.statuses(job), rig.status(job)) == ("+--+---", "FAILED")


def test_with_terminate_what_runs_is_stopped_too(rig: Rig) -> None:
    job = rig.submit(size=6, attempts=3, max_failures=1, on_max_failures=TERMINATE)
    rig.place()
    rig.start(job, 0, 1, 2)
    for _ in range(2):
        rig.exit(job, 1, code=1)
        rig.place()
        rig.start(job, 1)
    step = rig.exit(job, 1, code=1)
    assert stops(step) == [(job, [(0, 1), (2, 1), (3, 1)])]
    assert rig.statuses(job) == "r-rs--"
    text = "Array stopped: 1 of its children FAILED (max_failures 1)"
    rig.exit(job, 0, 2, 3, code=143)
    assert {rig.reason(job, i) for i in (0, 2, 3, 4, 5)} == {text}
    assert rig.job(job).children.cause_of(0).failure == FailureClass.CANCELLED
    assert rig.status(job) == "FAILED"


def test_a_child_counts_once_and_only_when_its_attempts_are_used_up(rig: Rig) -> None:
    job = rig.submit(size=4, attempts=2, max_failures=2)
    rig.place()
    rig.exit(job, 0, 1, 2, code=1)
    assert rig.statuses(job) == "RRRs"
    rig.run(job, 0, code=1)
    assert rig.statuses(job) == "-sss"
    rig.exit(job, 1, code=1)
    assert rig.statuses(job) == "--ss"


def test_nothing_is_tried_again_once_it_has_stopped(rig: Rig) -> None:
    """What still ran may fail, be lost, or end as the kernel closes: it has had its last attempt."""
    job = rig.submit(size=5, retry=RetryStrategy(9, STOP_AT_9, host_lost_retries=9), max_failures=1, vcpus=0.5)
    rig.place()
    rig.exit(job, 0, code=9)
    assert rig.statuses(job) == "-ssss"
    rig.exit(job, 1, code=1)
    rig.lose(job, 2)
    rig.do(ask.StopRunning())
    rig.exit(job, 3, code=143)
    rig.exit(job, 4, code=0, kind=ExitKind.TIMED_OUT)
    assert (rig.statuses(job), launches(rig.place())) == ("-----", [])


STOP_AT_9 = (EvaluateOnExit(Action.EXIT, on_exit_code="9"),)


def test_a_report_of_what_is_tried_again_and_what_failed(rig: Rig) -> None:
    """In either order, what was to be tried again ends with what waits."""
    for codes in ([1, 9], [9, 1]):
        job = rig.submit(size=4, retry=RetryStrategy(3, STOP_AT_9), max_failures=1)
        rig.place()
        report = ask.Ended(environment="env", job=job, number=1, indexes=[0, 1], codes=codes)
        assert [type(event) for event in rig.do(report).events[-3:]] == [
            ev.AttemptsEnded,
            ev.ArrayStopped,
            ev.WorkFailed,
        ]
        assert rig.statuses(job) == "--ss"
        rig.exit(job, 2, 3)


def test_other_ways_to_fail_do_not_count(rig: Rig) -> None:
    """A child that is terminated, cancelled, or fails by a dependency has not failed by an attempt of its own."""
    first = rig.submit("first", size=5, vcpus=0.5)
    job = rig.submit(*("job", n_to_n("first")), size=5, max_failures=1, vcpus=0.5)
    rig.place()
    rig.exit(first, 0, code=1)
    rig.exit(first, 1, 2, 3)
    rig.place()
    rig.terminate(rig.child(job, 1))
    rig.exit(job, 1, code=143)
    rig.cancel(rig.child(job, 4))
    assert (rig.statuses(job), rig.job(job).failures) == ("--ss-", 0)
    rig.exit(job, 2, code=1)
    assert (rig.job(job).failures, rig.job(job).stopped) == (
        1,
        "Array stopped: 1 of its children FAILED (max_failures 1)",
    )


def test_a_failure_that_leaves_nothing_to_stop_is_an_ordinary_end(rig: Rig) -> None:
    job = rig.submit(size=2, max_failures=2)
    rig.place()
    assert rig.exit(job, 0, 1, code=1).events[1:] == [ev.ParentEnded(job, False)]


def test_several_that_fail_in_one_report_are_told_as_they_are(rig: Rig) -> None:
    job = rig.submit(size=6, max_failures=2)
    rig.place()
    rig.exit(job, 0, 1, 2, code=1)
    assert rig.reason(job, 5) == "Array stopped: 3 of its children FAILED (max_failures 2)"


def test_a_sequence_that_goes_on_after_failures_stops_at_its_limit(rig: Rig) -> None:
    job = rig.submit("job", SEQUENTIAL_ANY, size=5, max_failures=2)
    for i in range(2):
        rig.run(job, i, code=1)
    assert (rig.statuses(job), rig.reason(job, 2)) == ("-----", TEXT)


def test_dependents_see_a_failed_job(rig: Rig) -> None:
    job = rig.submit(size=4, max_failures=1)
    second, tidy = rig.submit("second", after(rig.id(job))), rig.submit("tidy", after_any(rig.id(job)))
    pairs = rig.submit("pairs", n_to_n(rig.id(job)), size=4)
    rig.place()
    rig.exit(job, 0, code=1)
    rig.exit(job, 1, 2, 3)
    assert (rig.reason(second), rig.statuses(tidy), rig.statuses(pairs)) == ("Dependent Job failed", "R", "-RRR")


@pytest.mark.parametrize("terminate", [False, True])
def test_after_a_cancel_only_what_runs_is_left_to_stop(rig: Rig, terminate: bool) -> None:
    job = rig.submit(size=6, max_failures=1, on_max_failures=TERMINATE if terminate else None)
    rig.place()
    rig.cancel(job)
    assert stops(rig.exit(job, 0, code=1)) == ([(job, [(1, 1), (2, 1), (3, 1)])] if terminate else [])
    assert (rig.job(job).stopped is not None) is terminate


def test_it_can_be_terminated_after_it_has_stopped(rig: Rig) -> None:
    job = rig.submit(size=6, max_failures=1)
    rig.place()
    rig.exit(job, 0, code=1)
    assert stops(rig.terminate(job)) == [(job, [(1, 1), (2, 1), (3, 1)])]


# -- rerun ----------------------------------------------------------------------------------------------------------


def test_a_rerun_takes_up_all_that_did_not_succeed_and_counts_anew(rig: Rig) -> None:
    job = rig.submit(size=8, max_failures=2)
    rig.place()
    rig.exit(job, 0, 1, code=1)
    with pytest.raises(Conflict, match="it was stopped by its max_failures, and 2 of its attempts have yet to end"):
        rig.rerun(job)
    rig.exit(job, 2, 3)
    rig.rerun(job)
    assert (rig.statuses(job), rig.status(job)) == ("RR++RRRR", "PENDING")
    assert (rig.job(job).failures, rig.job(job).stopped, rig.reason(job, 7)) == (0, None, None)
    rig.place()
    rig.exit(job, 0, code=1)
    assert rig.statuses(job) == "-s++ssRR"
    rig.exit(job, 4, code=1)
    assert rig.statuses(job) == "-s++-s--"


def test_a_rerun_of_one_child_counts_from_there(rig: Rig) -> None:
    job = rig.submit(size=5, max_failures=2)
    rig.place()
    rig.exit(job, 0, code=1)
    rig.rerun(rig.child(job, 0))
    rig.place()
    rig.exit(job, 1, code=1)
    assert rig.job(job).stopped is None
    rig.exit(job, 0, number=2, code=1)
    assert rig.job(job).stopped == TEXT


# -- what is said, given and refused ------------------------------------------------------------------------------


def test_explain_says_why_it_goes_no_further(rig: Rig) -> None:
    job = rig.submit(size=6, max_failures=2)
    rig.place()
    rig.start(job, 0, 1, 2, 3)
    rig.exit(job, 0, 1, code=1)
    (whole,) = explain(rig.state, rig.job(job), None, rig.now_ms)
    assert whole.code is Code.RUNNING
    assert whole.text == f"{TEXT}; its last children are under way (children: 2 RUNNING, 4 FAILED)"
    (child,) = explain(rig.state, rig.job(job), 5, rig.now_ms)
    assert (child.code, child.text) == (Code.FAILED, f"{TEXT}; 0 of 1 attempts were made")
    rig.exit(job, 2, 3)
    (whole,) = explain(rig.state, rig.job(job), None, rig.now_ms)
    assert whole.text == f"its 6 children have ended: 2 SUCCEEDED, 4 FAILED; {TEXT}"


def test_a_definition_may_have_a_limit_and_a_submit_another(rig: Rig) -> None:
    rig.define("d", max_failures=1, on_max_failures=TERMINATE)
    jobs = [rig.submit(size=3, definition="d"), rig.submit("b", size=3, definition="d", max_failures=2)]
    single = rig.submit("single", definition="d")
    specs = [rig.job(job).spec for job in jobs]
    assert [(spec.max_failures, spec.on_max_failures) for spec in specs] == [(1, TERMINATE), (2, TERMINATE)]
    for job in jobs:
        rig.cancel(job)
    rig.run(single, code=1)
    assert rig.status(single) == "FAILED"


@pytest.mark.parametrize(
    ("size", "given", "message"),
    [
        (3, {"max_failures": 0}, "max_failures: 0 is not allowed; max_failures is 1 or more children"),
        (None, {"max_failures": 2}, "max_failures: 2 is not allowed; only an array job has children"),
        (None, {"on_max_failures": TERMINATE}, "on_max_failures: .*terminate.* only an array job has children"),
        (3, {"on_max_failures": TERMINATE}, "on_max_failures: .*terminate.*; it says what max_failures does"),
    ],
)
def test_a_limit_that_means_nothing_is_refused(rig: Rig, size: int | None, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        rig.submit_step(size=size, **given)


def test_the_stop_of_a_large_array_is_three_events_and_little_memory() -> None:
    """As a cancel is: nothing is made for each child that waits."""
    size = 1_000_000
    rig = ready_rig(Quotas(array_size_max=size))
    state, now = rig.state, rig.now_ms
    job = ask.SubmitJob(
        job_id=job_id(1), name="large", queue="queue", definition=None, size=size,
        overrides=Overrides(command=("x",), max_failures=1),
    )  # fmt: skip
    handle(state, job, now)
    handle(state, ask.Plan(), now)
    handle(state, ask.Ended(environment="env", job=1, number=1, indexes=[1]), now)
    report = ask.Ended(environment="env", job=1, number=1, indexes=[0], codes=[1])
    tracemalloc.start()
    step = handle(state, report, now)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [type(event) for event in step.events] == [ev.AttemptsEnded, ev.ArrayStopped, ev.WorkFailed]
    assert state.jobs[1].children.counts[-1] == size - 3
    assert peak < 6 * size  # the column of reasons, twice while it is filled
