"""Contract 2.1 and 4.3: single jobs from SUBMITTED to their end, and their timeouts. Whole steps are compared."""

from __future__ import annotations

import pytest
from anybatch.kernel.core import events as ev
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.effects import WANT_PLAN, LaunchAttempts, NotifyJob, StopAttempts
from anybatch.kernel.core.errors import InvalidValue
from anybatch.kernel.core.machine import replay
from anybatch.kernel.core.model import TEXT_TIMED_OUT, ExitKind, StopKind
from anybatch.kernel.core.states import FAILED, RUNNABLE, SUCCEEDED
from core_rig import START_MS, Rig, after, job_id, launches, stops

ONE = (0, 1, None)
"""start, stop, indexes of an event about a single job."""


def ended(job: int, number: int, status: int, code: int, **more: object) -> ev.AttemptsEnded:
    fields = {"ages": 0, "status_reason": None, "reason": None, "counts": True, "failure": None} | more
    return ev.AttemptsEnded(job, *ONE, number, status, code, **fields)  # type: ignore[arg-type]


def test_st_1_st_2_a_job_without_dependencies_is_submitted_then_runnable(rig: Rig) -> None:
    step = rig.submit_step("job")

    spec = rig.job(1).spec
    assert step.events == [
        ev.JobSubmitted(1, job_id(1), "job", "queue", spec, None, (), None, None, None),
        ev.WorkReleased(1, *ONE),
    ]
    assert step.effects == [WANT_PLAN]
    assert step.reply == 1


def test_st_1_the_first_status_is_submitted(rig: Rig) -> None:
    rig.submit()
    submitted = rig.taken[-1].step.events[:1]
    state = rig.replayed(until=len(rig.taken) - 1)
    replay(state, submitted, rig.now_ms)
    assert state.jobs[1].status == "SUBMITTED"


def test_st_2_a_job_with_unfinished_dependencies_is_pending(rig: Rig) -> None:
    first = rig.submit()
    step = rig.submit_step("second", after(rig.id(first)))
    assert step.events[1:] == [ev.WorkHeld(2, *ONE)]
    assert step.effects == []
    assert rig.status(2) == "PENDING"


def test_st_3_success_of_every_dependency_releases(rig: Rig) -> None:
    first, second = rig.submit(), rig.submit()
    third = rig.submit("third", after(rig.id(first)), after(rig.id(second)))
    rig.run(first)
    assert rig.status(third) == "PENDING"
    step = rig.run(second)
    assert step.events == [ended(second, 1, SUCCEEDED, 0), ev.WorkReleased(third, *ONE)]
    assert step.effects == [WANT_PLAN, NotifyJob(second), WANT_PLAN]


def test_st_3_the_first_failed_dependency_fails(rig: Rig) -> None:
    first, second = rig.submit(), rig.submit()
    third = rig.submit("third", after(rig.id(first)), after(rig.id(second)))
    rig.run(first, code=1)
    assert rig.status(third) == "FAILED"
    assert rig.status(second) == "STARTING"


def test_st_4_a_runnable_job_waits_as_long_as_it_takes(rig: Rig) -> None:
    rig.submit(vcpus=3)
    waiting = rig.submit(vcpus=3)
    rig.place()
    assert rig.advance(10**10) == []
    assert rig.place().events == []
    assert rig.status(waiting) == "RUNNABLE"


def test_st_5_placement_makes_it_starting_and_launches_it(rig: Rig) -> None:
    job = rig.submit()
    step = rig.place()
    assert step.events == [ev.AttemptsPlaced(job, *ONE, 1, 1, None)]
    assert step.effects == [LaunchAttempts(job, 1, range(1), 1)]
    assert rig.status(job) == "STARTING"


def test_st_6_started_at_is_the_moment_of_running(rig: Rig) -> None:
    job = rig.submit()
    rig.advance(1000)
    rig.place()
    rig.advance(1000)
    step = rig.start(job, at_ms=[START_MS + 1500])
    assert step.events == [ev.AttemptsStarted(job, *ONE, 1, 500)]
    assert step.effects == []
    assert rig.status(job) == "RUNNING"
    assert rig.times(job) == (1500, 0)


def test_st_6_a_start_in_the_future_counts_as_now_and_one_before_the_job_as_the_jobs(rig: Rig) -> None:
    early, late = rig.submit(), rig.submit()
    rig.advance(10)
    rig.place()
    rig.start(early, at_ms=[5])
    rig.start(late, at_ms=[START_MS + 10**9])
    assert rig.times(early)[0] == 0 or rig.job(early).children.times()[0][0] == START_MS
    assert rig.times(late) == (10, 0)


def test_st_7_exit_code_0_succeeds(rig: Rig) -> None:
    job = rig.submit(attempts=3)
    rig.place()
    rig.start(job)
    rig.advance(7)
    step = rig.exit(job)
    assert step.events == [ended(job, 1, SUCCEEDED, 0)]
    assert step.effects == [WANT_PLAN, NotifyJob(job)]
    assert (rig.status(job), rig.times(job), rig.code(job), rig.reason(job)) == ("SUCCEEDED", (0, 7), 0, None)


@pytest.mark.parametrize("code", [1, 2, 137, 255])
def test_st_7_another_exit_code_fails(rig: Rig, code: int) -> None:
    job = rig.submit()
    rig.place()
    rig.start(job)
    step = rig.exit(job, code=code)
    assert step.events == [ended(job, 1, FAILED, code)]
    assert step.effects == [WANT_PLAN, NotifyJob(job)]
    assert (rig.status(job), rig.code(job)) == ("FAILED", code)


def test_st_7_another_exit_code_with_attempts_left_is_runnable_again(rig: Rig) -> None:
    job = rig.submit(attempts=2)
    rig.place()
    rig.start(job)
    step = rig.exit(job, code=3)
    assert step.events == [ended(job, 1, RUNNABLE, 3)]
    assert step.effects == [WANT_PLAN]
    assert rig.status(job) == "RUNNABLE"


def test_st_7_times_never_run_backwards(rig: Rig) -> None:
    """An exit dated before its start (another clock) counts as having taken no time; and retries keep it so."""
    job = rig.submit(attempts=2)
    rig.advance(1000)
    rig.place()
    rig.start(job)
    rig.exit(job, code=1, at_ms=[START_MS + 998])
    rig.run(job)
    (first,) = rig.past(job)
    assert first.stopped_ms >= first.started_ms


@pytest.mark.parametrize("attempts", [1, 2])
def test_st_8_what_cannot_start_fails_or_is_tried_again(rig: Rig, attempts: int) -> None:
    job = rig.submit(attempts=attempts)
    rig.place()
    rig.exit(job, code=None, status_reason="Task failed to start", reason="CannotPullContainerError: no")
    assert rig.status(job) == ("FAILED" if attempts == 1 else "RUNNABLE")
    cause = rig.job(job).children.cause_of(0) if attempts == 1 else rig.past(job)[0].cause
    assert cause[:2] == ("Task failed to start", "CannotPullContainerError: no")


def test_st_9_a_retried_job_goes_to_the_front_of_its_queue(rig: Rig) -> None:
    first = rig.submit(vcpus=4, attempts=2)
    second = rig.submit(vcpus=4)
    rig.run(first, code=1)
    assert launches(rig.place()) == [(first, 2, [0], 1)]
    rig.exit(first)
    assert launches(rig.place()) == [(second, 1, [0], 1)]


def test_st_9_several_retried_jobs_keep_the_order_in_which_they_came_back(rig: Rig) -> None:
    one, two, three = (rig.submit(vcpus=2, attempts=2) for _ in range(3))
    rig.place()
    rig.exit(two, code=1)
    rig.exit(one, code=1)
    assert launches(rig.place()) == [(two, 2, [0], 1), (one, 2, [0], 1)]
    assert rig.status(three) == "RUNNABLE"


def test_st_9_retried_work_of_another_shape_is_also_first(rig: Rig) -> None:
    small = rig.submit(vcpus=1, attempts=2)
    rig.run(small, code=1)
    big = rig.submit(vcpus=4)
    assert launches(rig.place()) == [(small, 2, [0], 1)]
    assert rig.status(big) == "RUNNABLE"


def test_st_12_times_reason_and_code_are_those_of_the_latest_attempt(rig: Rig) -> None:
    job = rig.submit(attempts=2)
    rig.run(job, code=5)
    assert (rig.times(job), rig.code(job)) == ((0, 0), None)
    rig.advance(100)
    rig.place()
    rig.start(job)
    rig.advance(50)
    rig.exit(job, code=6)
    assert (rig.times(job), rig.code(job)) == ((100, 150), 6)
    (past,) = rig.past(job)
    assert (past.number, past.code, past.started_ms, past.stopped_ms) == (1, 5, START_MS, START_MS)


# -- timeouts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout_ms", [1, 59_999, 60_000])
def test_to_1_any_length_above_zero_is_allowed(rig: Rig, timeout_ms: int) -> None:
    job = rig.submit(timeout_ms=timeout_ms)
    rig.place()
    rig.start(job)
    assert rig.advance(timeout_ms - 1) == []
    assert rig.advance(1) == [ev.StopRequested(job, *ONE, 1, StopKind.TIMEOUT)]


@pytest.mark.parametrize("timeout_ms", [0, -1])
def test_to_1_zero_and_less_is_refused(rig: Rig, timeout_ms: int) -> None:
    with pytest.raises(InvalidValue, match="timeout: .* a timeout is above 0 seconds"):
        rig.submit(timeout_ms=timeout_ms)


def test_to_1_without_a_timeout_a_job_runs_for_ever(rig: Rig) -> None:
    job = rig.submit()
    rig.place()
    rig.start(job)
    assert rig.advance(10**12) == []


def test_to_1_the_value_of_the_submit_replaces_the_definitions(rig: Rig) -> None:
    rig.define(timeout_ms=1000)
    assert rig.job(rig.submit(definition="definition")).spec.timeout_ms == 1000
    assert rig.job(rig.submit(definition="definition", timeout_ms=5)).spec.timeout_ms == 5


def test_to_2_waiting_and_starting_do_not_count(rig: Rig) -> None:
    job = rig.submit(timeout_ms=100)
    assert rig.advance(1000) == []
    rig.place()
    assert rig.advance(1000) == []
    rig.start(job)
    assert rig.advance(99) == []
    assert len(rig.advance(1)) == 1


def test_to_2_the_clock_starts_at_started_at_even_if_it_is_told_late(rig: Rig) -> None:
    job = rig.submit(timeout_ms=100)
    rig.place()
    rig.advance(70)
    rig.start(job, at_ms=[START_MS + 20])
    assert rig.advance(49) == []
    assert len(rig.advance(1)) == 1


def test_to_2_to_4_each_attempt_has_its_own_clock(rig: Rig) -> None:
    job = rig.submit(timeout_ms=100, attempts=3)
    rig.place()
    rig.start(job)
    rig.advance(90)
    rig.exit(job, code=1)
    rig.place()
    rig.start(job)
    assert rig.advance(99) == []
    assert rig.advance(1) == [ev.StopRequested(job, *ONE, 2, StopKind.TIMEOUT)]


@pytest.mark.parametrize("code", [0, 137, 143, None])
def test_to_3_to_4_a_timed_out_attempt_is_stopped_and_never_tried_again(rig: Rig, code: int | None) -> None:
    job = rig.submit(timeout_ms=100, attempts=5)
    rig.place()
    rig.start(job)
    rig.advance(100)
    tick = rig.taken[-1].step
    assert stops(tick) == [(job, [(0, 1)])]
    assert rig.status(job) == "RUNNING"
    rig.advance(30_000)
    step = rig.exit(job, code=code)
    assert step.events == [
        ended(job, 1, FAILED, -1 if code is None else code, status_reason=TEXT_TIMED_OUT, failure="timeout")
    ]
    assert rig.reason(job) == "Job attempt duration exceeded timeout"


def test_to_3_the_agent_is_the_backstop(rig: Rig) -> None:
    """The first that is recorded wins: here the backend ended the attempt by itself."""
    job = rig.submit(timeout_ms=100, attempts=5)
    rig.place()
    rig.start(job)
    rig.exit(job, code=137, kind=ExitKind.TIMED_OUT)
    assert (rig.status(job), rig.reason(job)) == ("FAILED", TEXT_TIMED_OUT)
    assert rig.advance(1000) == []


def test_to_3_a_timeout_is_asked_for_once(rig: Rig) -> None:
    job = rig.submit(timeout_ms=100)
    rig.place()
    rig.start(job)
    assert len(rig.advance(100)) == 1
    assert rig.do(ask.Tick()).events == []
    assert rig.advance(10**6) == []


def test_to_4_an_end_before_its_time_is_an_ordinary_one(rig: Rig) -> None:
    job = rig.submit(timeout_ms=100, attempts=2)
    rig.run(job, code=1)
    assert rig.status(job) == "RUNNABLE"
    rig.run(job)
    assert rig.status(job) == "SUCCEEDED"
    assert rig.advance(1000) == []


def test_to_5_each_child_has_its_own_clock_and_the_parent_none(rig: Rig) -> None:
    job = rig.submit(size=3, timeout_ms=100)
    rig.place()
    rig.start(job, 0, 2)
    rig.advance(60)
    rig.start(job, 1)
    assert rig.advance(40) == [ev.StopRequested(job, 0, 0, [0, 2], 1, StopKind.TIMEOUT)]
    rig.exit(job, 0, 2, code=143)
    assert rig.statuses(job) == "-r-"
    assert rig.advance(60) == [ev.StopRequested(job, 1, 2, None, 1, StopKind.TIMEOUT)]


def test_to_2_after_a_restart_reports_come_before_timers(rig: Rig) -> None:
    """An attempt that ended in time while nobody listened has not timed out, whenever its end is heard of."""
    job = rig.submit(timeout_ms=5_000)
    late = rig.submit(timeout_ms=5_000)
    rig.place()
    rig.start(job)
    rig.start(late)
    rig.now_ms += 60_000
    rig.do(ask.OpenKernel(kernel_id="x"))
    assert rig.do(ask.Tick()).events == []
    rig.exit(job, at_ms=[START_MS + 10])
    rig.do(ask.AllListed(environment="env", hosts=("host",)))
    assert rig.status(job) == "SUCCEEDED"
    assert rig.advance(0) == [ev.StopRequested(late, *ONE, 1, StopKind.TIMEOUT)]
    assert StopAttempts(late, [(0, 1)]) in rig.taken[-1].step.effects
