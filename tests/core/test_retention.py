"""Ended jobs are forgotten when their queue says so, never while an unfinished job depends on them."""

from __future__ import annotations

import pytest
from anybatch.kernel.core import events as ev
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core import retention
from anybatch.kernel.core.effects import ForgetJobs
from anybatch.kernel.core.errors import NotFound
from anybatch.kernel.core.machine import next_timer_ms
from anybatch.kernel.core.model import QueueBody
from anybatch.kernel.core.snapshot import decode, encode
from core_rig import DISABLED, SEQUENTIAL, Rig, after, n_to_n, ready_rig

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def forgotten(events: list[ev.AnyEvent]) -> list[int]:
    return [job.serial for event in events if isinstance(event, ev.JobsForgotten) for job in event.jobs]


def retain(rig: Rig, succeeded_ms: int | None = None, failed_ms: int | None = None, name: str = "queue") -> None:
    rig.do(ask.UpdateQueue(name=name, retain_succeeded_ms=succeeded_ms, retain_failed_ms=failed_ms))


# -- when -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "kept_ms"), [(0, DAY_MS), (1, 7 * DAY_MS)])
@pytest.mark.parametrize("size", [None, 3])
def test_a_job_is_kept_for_a_day_if_it_succeeded_and_for_a_week_if_it_failed(
    rig: Rig, code: int, kept_ms: int, size: int | None
) -> None:
    job = rig.submit(size=size)
    rig.advance(5_000)
    rig.place()
    for index in range(size or 1):
        rig.start(job, index)
        rig.exit(job, index, code=code)
    assert forgotten(rig.advance(kept_ms - 1)) == []
    assert rig.status(job) == ("FAILED" if code else "SUCCEEDED")
    assert forgotten(rig.advance(1)) == [job]
    assert rig.state.jobs == {}


def test_a_cancelled_job_is_kept_as_a_failed_one(rig: Rig) -> None:
    job = rig.submit()
    rig.cancel(job)
    assert forgotten(rig.advance(7 * DAY_MS - 1)) == []
    assert forgotten(rig.advance(1)) == [job]


def test_time_runs_from_the_end_not_from_the_submit(rig: Rig) -> None:
    job = rig.submit()
    rig.advance(3 * DAY_MS)
    rig.run(job)
    assert forgotten(rig.advance(DAY_MS - 1)) == []
    assert forgotten(rig.advance(1)) == [job]


def test_an_unfinished_job_is_never_forgotten(rig: Rig) -> None:
    job, array = rig.submit(), rig.submit(size=2)
    rig.place()
    rig.start(array, 0)
    rig.exit(array, 0)
    assert forgotten(rig.advance(365 * DAY_MS)) == []
    assert rig.status(job) == "STARTING"
    assert rig.statuses(array) == "+s"


def test_a_tick_is_due_when_the_first_is_to_go(rig: Rig) -> None:
    job = rig.submit()
    rig.run(job)
    assert next_timer_ms(rig.state) == rig.now_ms + DAY_MS


def test_many_go_in_several_steps_and_none_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = ready_rig()
    monkeypatch.setattr(retention, "FORGOTTEN_MOST", 4)
    jobs = [rig.submit() for _ in range(10)]
    for job in jobs:
        rig.run(job)
    events = rig.advance(DAY_MS)
    assert forgotten(events) == jobs
    assert [len(event.jobs) for event in events if isinstance(event, ev.JobsForgotten)] == [4, 4, 2]
    assert next_timer_ms(rig.state) is None
    rig.verify()


# -- per queue ------------------------------------------------------------------------------------------------


def test_each_queue_says_how_long_its_jobs_are_kept(rig: Rig) -> None:
    body = QueueBody(priority=1, compute_environments=("env",), retain_succeeded_ms=1_000, retain_failed_ms=2_000)
    rig.do(ask.CreateQueue(name="short", body=body))
    fine, failed, other = rig.submit(queue="short"), rig.submit(queue="short"), rig.submit()
    rig.run(fine)
    rig.run(failed, code=1)
    rig.run(other)
    assert forgotten(rig.advance(999)) == []
    assert forgotten(rig.advance(1)) == [fine]
    assert forgotten(rig.advance(1_000)) == [failed]
    assert forgotten(rig.advance(DAY_MS - 2_000)) == [other]


def test_a_shorter_time_holds_for_jobs_that_have_ended(rig: Rig) -> None:
    fine, failed = rig.submit(), rig.submit()
    rig.run(fine)
    rig.run(failed, code=1)
    rig.advance(HOUR_MS)
    retain(rig, succeeded_ms=2 * HOUR_MS, failed_ms=3 * HOUR_MS)
    assert forgotten(rig.advance(HOUR_MS - 1)) == []
    assert forgotten(rig.advance(1)) == [fine]
    assert forgotten(rig.advance(HOUR_MS)) == [failed]


def test_a_time_that_is_over_already_is_over_at_once(rig: Rig) -> None:
    job = rig.submit()
    rig.run(job)
    rig.advance(HOUR_MS)
    retain(rig, succeeded_ms=1)
    assert next_timer_ms(rig.state) is not None
    assert forgotten(rig.advance(0)) == [job]


def test_a_longer_time_holds_for_jobs_that_have_ended(rig: Rig) -> None:
    job = rig.submit()
    rig.run(job)
    retain(rig, succeeded_ms=3 * DAY_MS)
    assert forgotten(rig.advance(3 * DAY_MS - 1)) == []
    assert forgotten(rig.advance(1)) == [job]


def test_a_change_of_something_else_changes_no_time(rig: Rig) -> None:
    job = rig.submit()
    rig.run(job)
    rig.do(ask.UpdateQueue(name="queue", priority=7))
    assert len(rig.state.expiries) == 1
    assert forgotten(rig.advance(DAY_MS)) == [job]


def test_jobs_of_a_queue_that_is_gone_are_kept_as_by_default(rig: Rig) -> None:
    retain(rig, succeeded_ms=HOUR_MS, failed_ms=HOUR_MS)
    fine = rig.submit()
    rig.run(fine)
    rig.do(ask.UpdateQueue(name="queue", state=DISABLED))
    rig.do(ask.DeleteQueue(name="queue"))
    assert forgotten(rig.advance(DAY_MS - 1)) == []
    assert forgotten(rig.advance(1)) == [fine]


def test_a_queue_with_a_long_time_that_is_gone_leaves_the_default_with_and_without_a_snapshot(rig: Rig) -> None:
    retain(rig, succeeded_ms=30 * DAY_MS)
    fine = rig.submit()
    rig.run(fine)
    rig.do(ask.UpdateQueue(name="queue", state=DISABLED))
    rig.do(ask.DeleteQueue(name="queue"))
    assert forgotten(rig.advance(DAY_MS)) == [fine]


def test_a_queue_made_anew_says_how_long_the_old_ones_jobs_are_kept(rig: Rig) -> None:
    fine = rig.submit()
    rig.run(fine)
    rig.do(ask.UpdateQueue(name="queue", state=DISABLED))
    rig.do(ask.DeleteQueue(name="queue"))
    body = QueueBody(priority=1, compute_environments=("env",), retain_succeeded_ms=HOUR_MS)
    rig.do(ask.CreateQueue(name="queue", body=body))
    assert forgotten(rig.advance(HOUR_MS)) == [fine]


# -- what an unfinished job depends on -----------------------------------------------------------------------------


def test_what_an_unfinished_job_depends_on_is_kept_until_it_has_ended(rig: Rig) -> None:
    gate, other = rig.submit("gate"), rig.submit("other")
    rig.run(gate)
    job = rig.submit("job", after(rig.id(gate)), after(rig.id(other)))
    assert forgotten(rig.advance(100 * DAY_MS)) == []
    assert rig.job(gate).referrers == 1
    rig.run(other)
    rig.run(job)
    assert rig.job(gate).referrers == 0
    assert forgotten(rig.advance(0)) == [gate], "its own time was over long ago"
    assert forgotten(rig.advance(DAY_MS)) == [other, job]


@pytest.mark.parametrize("kind", ["child", "n_to_n"])
def test_what_children_depend_on_is_kept(rig: Rig, kind: str) -> None:
    array = rig.submit("array", size=2)
    dependency = after(rig.child(array, 1)) if kind == "child" else n_to_n(rig.id(array))
    rig.run(array, 0)
    rig.start(array, 1)
    rig.exit(array, 1)
    job = rig.submit("job", dependency, size=2)
    assert forgotten(rig.advance(2 * DAY_MS)) == []
    rig.run(job, 0)
    rig.start(job, 1)
    assert forgotten(rig.advance(DAY_MS)) == []
    rig.exit(job, 1)
    assert forgotten(rig.advance(DAY_MS)) == [array, job]


def test_a_sequence_depends_on_no_other_job(rig: Rig) -> None:
    job = rig.submit("job", SEQUENTIAL, size=2)
    rig.run(job, 0)
    rig.run(job, 1)
    assert forgotten(rig.advance(DAY_MS)) == [job]


def test_along_a_chain_each_keeps_the_one_before_it_as_long_as_it_waits(rig: Rig) -> None:
    first = rig.submit("first")
    second = rig.submit("second", after(rig.id(first)))
    third = rig.submit("third", after(rig.id(second)))
    rig.run(first)
    assert forgotten(rig.advance(10 * DAY_MS)) == []
    rig.run(second)
    assert forgotten(rig.advance(0)) == [first]
    assert forgotten(rig.advance(10 * DAY_MS)) == [], "the third waits, and the second is what it depends on"
    rig.run(third)
    assert forgotten(rig.advance(0)) == [second]
    assert forgotten(rig.advance(DAY_MS)) == [third]


def test_a_job_named_twice_is_let_go_twice(rig: Rig) -> None:
    array = rig.submit("array", size=2)
    job = rig.submit("job", after(rig.child(array, 0)), after(rig.child(array, 1)))
    assert rig.job(array).referrers == 2
    rig.run(array, 0)
    rig.start(array, 1)
    rig.exit(array, 1)
    rig.run(job)
    assert rig.job(array).referrers == 0
    assert forgotten(rig.advance(DAY_MS)) == [array, job]


def test_a_job_that_fails_with_its_dependency_lets_it_go(rig: Rig) -> None:
    gate = rig.submit("gate")
    job = rig.submit("job", after(rig.id(gate)))
    rig.run(gate, code=1)
    assert rig.status(job) == "FAILED"
    late = rig.submit("late", after(rig.id(gate)))
    assert rig.status(late) == "FAILED"
    assert rig.job(gate).referrers == 0
    assert forgotten(rig.advance(7 * DAY_MS)) == [gate, job, late]


def test_a_retried_job_keeps_what_it_depends_on(rig: Rig) -> None:
    gate = rig.submit("gate")
    rig.run(gate)
    job = rig.submit("job", after(rig.id(gate)), attempts=2)
    rig.run(job, code=1)
    assert forgotten(rig.advance(2 * DAY_MS)) == []
    rig.run(job)
    assert forgotten(rig.advance(0)) == [gate]


# -- what is gone -----------------------------------------------------------------------------------------------


def test_a_forgotten_job_is_gone_from_everywhere_and_its_files_are_to_go(rig: Rig) -> None:
    job = rig.submit("night", token="once", size=2)
    reference = rig.id(job)
    rig.run(job, 0)
    rig.start(job, 1)
    rig.exit(job, 1)
    rig.now_ms += DAY_MS
    step = rig.do(ask.Tick())

    assert step.events == [ev.JobsForgotten((ev.ForgottenJob(job, reference, "night", "queue", 2),))]
    assert step.effects == [ForgetJobs((reference,))]
    state = rig.state
    assert (state.jobs, state.ids, state.names, state.tokens, state.expiries) == ({}, {}, {}, {}, [])
    for name in (reference, f"{reference}:0", "night"):
        with pytest.raises(NotFound):
            rig.submit("job", after(name))
        with pytest.raises(NotFound):
            rig.cancel(name)


def test_a_token_can_be_used_again_for_another_job(rig: Rig) -> None:
    job = rig.submit("job", token="once")
    rig.run(job)
    assert rig.submit("job", token="once") == job
    rig.advance(DAY_MS)
    again = rig.submit("job", token="once")
    assert again != job
    assert rig.submit("job", token="once") == again


def test_a_name_stands_for_the_jobs_that_are_left(rig: Rig) -> None:
    old = rig.submit("name")
    rig.run(old)
    rig.advance(HOUR_MS)
    new = rig.submit("name")
    rig.run(new)
    rig.advance(DAY_MS - HOUR_MS)
    assert list(rig.state.jobs) == [new]
    job = rig.submit("job", after("name"))
    assert [dependency.job for dependency in rig.job(job).depends_on] == [new]


def test_serials_are_not_given_twice(rig: Rig) -> None:
    job = rig.submit()
    rig.run(job)
    rig.advance(DAY_MS)
    rig.state = decode(encode(rig.state), rig.quotas)
    assert rig.submit() == job + 1


def test_reports_about_a_forgotten_job_change_nothing(rig: Rig) -> None:
    job = rig.submit(timeout_ms=5_000)
    rig.run(job)
    rig.advance(DAY_MS)
    for item in (
        ask.Started(environment="env", job=job, number=1, indexes=[0]),
        ask.Ended(environment="env", job=job, number=1, indexes=[0]),
        ask.Unknown(environment="env", job=job, number=1, indexes=[0]),
        ask.Found(environment="env", host="host", job=job, number=2, indexes=[0]),
        ask.Tick(),
        ask.Plan(),
    ):
        step = rig.do(item)
        assert (step.events, step.effects) == ([], [])


def test_an_ended_job_that_depended_on_a_forgotten_one_is_kept_whole(rig: Rig) -> None:
    gate = rig.submit("gate")
    gate_id = rig.id(gate)
    rig.run(gate)
    job = rig.submit("job", after(gate_id))
    rig.run(job, code=1)
    assert forgotten(rig.advance(2 * DAY_MS)) == [gate]
    recovered = decode(encode(rig.state), rig.quotas)
    for state in (rig.state, recovered):
        assert [dependency.job_id for dependency in state.jobs[job].depends_on] == [gate_id]


@pytest.mark.parametrize("how", ["log", "snapshot"])
def test_a_recovered_kernel_forgets_at_the_same_time(rig: Rig, how: str) -> None:
    fine, failed, gate = rig.submit(), rig.submit(), rig.submit("gate")
    waiting = rig.submit("waiting", after(rig.id(gate)))
    for job, code in ((fine, 0), (failed, 1)):
        rig.run(job, code=code)
    rig.start(gate)
    rig.exit(gate)
    rig.advance(HOUR_MS)
    rig.state = rig.replayed() if how == "log" else decode(encode(rig.state), rig.quotas)
    rig.do(ask.OpenKernel(kernel_id="again"))
    rig.do(ask.AllListed(environment="env", hosts=("host",)))
    assert forgotten(rig.advance(23 * HOUR_MS - 1)) == []
    assert forgotten(rig.advance(1)) == [fine]
    assert forgotten(rig.advance(6 * DAY_MS)) == [failed]
    rig.run(waiting)
    assert forgotten(rig.advance(0)) == [gate]
