"""Contract 3: what jobs wait for, and what becomes of them if it fails."""

from __future__ import annotations

import pytest
from anybatch.kernel.core import events as ev
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.effects import WANT_PLAN, NotifyChildren, NotifyJob
from anybatch.kernel.core.errors import Conflict, InvalidValue, NotFound, QuotaExceeded
from anybatch.kernel.core.model import Dependency, DependencyType
from core_rig import DISABLED, SEQUENTIAL, Rig, after, job_id, n_to_n

FAILED_TEXT = "Dependent Job failed"
NO_TYPE_JOB = ask.DependencyRequest(DependencyType.AFTER_SUCCESS)
SEQUENTIAL_OF = ask.DependencyRequest(DependencyType.SEQUENTIAL, job_id(1))


def test_dep_1_at_most_20_dependencies(rig: Rig) -> None:
    first = rig.id(rig.submit())
    assert rig.status(rig.submit("many", *[after(first)] * 20)) == "PENDING"
    with pytest.raises(QuotaExceeded, match="Job cannot have more than 20 dependencies"):
        rig.submit("more", *[after(first)] * 21)


def test_dep_2_plain_waits_for_the_whole_job(rig: Rig) -> None:
    first = rig.submit(size=2)
    second = rig.submit("second", after(rig.id(first)), size=2)
    rig.run(first, 0)
    assert rig.statuses(second) == "PP"
    rig.exit(first, 1)
    assert rig.statuses(second) == "RR"


def test_dep_2_n_to_n_waits_child_by_child(rig: Rig) -> None:
    first = rig.submit(size=4)
    second = rig.submit("second", n_to_n(rig.id(first)), size=4)
    rig.place()
    step = rig.exit(first, 2, 1)
    assert step.events[-1:] == [ev.WorkReleased(second, 0, 0, [2, 1])]
    assert rig.statuses(second) == "PRRP"


def test_dep_2_sequential_frees_one_child_after_the_other(rig: Rig) -> None:
    job = rig.submit("steps", SEQUENTIAL, size=3)
    assert rig.statuses(job) == "RPP"
    rig.run(job, 0)
    assert rig.statuses(job) == "+RP"
    rig.run(job, 1)
    assert rig.statuses(job) == "++R"
    rig.run(job, 2)
    assert rig.status(job) == "SUCCEEDED"


def test_dep_3_kinds_are_mixed_and_all_must_hold(rig: Rig) -> None:
    gate, pairs = rig.submit(), rig.submit("pairs", size=3)
    job = rig.submit("mixed", after(rig.id(gate)), n_to_n(rig.id(pairs)), SEQUENTIAL, size=3)
    rig.place()
    rig.exit(pairs, 1)
    rig.exit(pairs, 0)
    assert rig.statuses(job) == "PPP"
    rig.exit(gate)
    assert rig.statuses(job) == "RPP"
    rig.run(job, 0)
    assert rig.statuses(job) == "+RP"
    rig.run(job, 1)
    assert rig.statuses(job) == "++P"
    rig.exit(pairs, 2)
    assert rig.statuses(job) == "++R"


def test_dep_3_a_plain_dependency_gates_every_child(rig: Rig) -> None:
    gate = rig.submit()
    job = rig.submit("steps", after(rig.id(gate)), SEQUENTIAL, size=2)
    assert rig.statuses(job) == "PP"
    rig.run(gate)
    assert rig.statuses(job) == "RP"


def test_dep_4_dependencies_cross_queues(rig: Rig) -> None:
    rig.queue("other")
    first = rig.submit()
    second = rig.submit("second", after(rig.id(first)), queue="other")
    rig.run(first)
    assert rig.status(second) == "RUNNABLE"


@pytest.mark.parametrize("size", [None, 3])
def test_dep_5_what_has_succeeded_already_is_satisfied(rig: Rig, size: int | None) -> None:
    first = rig.submit(size=size)
    rig.place()
    rig.exit(first, *range(size or 1))
    step = rig.submit_step("second", after(rig.id(first)))
    assert step.events[1:] == [ev.WorkReleased(2, 0, 1, None)]


def test_dep_5_n_to_n_children_that_have_succeeded_already_are_satisfied(rig: Rig) -> None:
    first = rig.submit(size=3)
    rig.place()
    rig.exit(first, 1)
    second = rig.submit("second", n_to_n(rig.id(first)), size=3)
    assert rig.statuses(second) == "PRP"


def test_dep_6_failed_dependency_fails_the_dependent_at_the_first_failure(rig: Rig) -> None:
    first, slow = rig.submit(), rig.submit()
    dependent = rig.submit("dependent", after(rig.id(slow)), after(rig.id(first)), attempts=5)
    last = rig.submit("last", after(rig.id(dependent)))
    rig.place()
    step = rig.exit(first, code=1)
    assert step.events[1:] == [
        ev.WorkFailed(dependent, 0, 1, None, FAILED_TEXT),
        ev.WorkFailed(last, 0, 1, None, FAILED_TEXT),
    ]
    assert step.effects == [WANT_PLAN, NotifyJob(first), NotifyJob(dependent), NotifyJob(last)]
    assert rig.reason(last) == FAILED_TEXT
    assert rig.job(dependent).children.number[0] == 0


@pytest.mark.parametrize("how", ["exit", "timeout", "cancel", "terminate", "lost", "queue"])
def test_dep_6_whatever_made_it_fail(rig: Rig, how: str) -> None:
    rig.queue("other")
    first = rig.submit(timeout_ms=10, queue="other")
    dependent = rig.submit("dependent", after(rig.id(first)))
    if how == "cancel":
        rig.cancel(first)
    elif how == "queue":
        rig.do(ask.UpdateQueue(name="other", state=DISABLED))
        rig.do(ask.DeleteQueue(name="other"))
    else:
        rig.place()
        rig.start(first)
        if how == "terminate":
            rig.terminate(first)
        if how == "timeout":
            rig.advance(10)
        if how == "lost":
            rig.host_down()
        else:
            rig.exit(first, code=1)
    assert (rig.status(dependent), rig.reason(dependent)) == ("FAILED", FAILED_TEXT)


@pytest.mark.parametrize("size", [None, 2])
def test_dep_6_what_has_failed_already_fails_the_dependent_at_submit(rig: Rig, size: int | None) -> None:
    first = rig.submit()
    rig.cancel(first)
    step = rig.submit_step("late", after(rig.id(first)), size=size)
    assert rig.status(2) == "FAILED"
    assert ev.WorkFailed(2, 0, size or 1, None, FAILED_TEXT) in step.events
    assert ev.WorkHeld(2, 0, size or 1, None) in step.events


def test_dep_6_two_ways_to_the_same_dependent_fail_it_once(rig: Rig) -> None:
    top = rig.submit()
    left, right = rig.submit("left", after(rig.id(top))), rig.submit("right", after(rig.id(top)))
    bottom = rig.submit("bottom", after(rig.id(left)), after(rig.id(right)))
    step = rig.cancel(top)
    assert [event.job for event in step.events if isinstance(event, ev.WorkFailed)] == [top, left, bottom, right]


def test_dep_6_a_long_chain_fails_in_one_step(rig: Rig) -> None:
    first = last = rig.submit()
    for _ in range(50):
        last = rig.submit("link", after(rig.id(last)))
    assert len(rig.cancel(first).events) == 52
    assert rig.status(last) == "FAILED"


def test_dep_7_n_to_n_fails_only_the_matching_child(rig: Rig) -> None:
    first = rig.submit(size=3)
    second = rig.submit("second", n_to_n(rig.id(first)), size=3)
    rig.place()
    step = rig.exit(first, 1, code=1)
    assert step.events[1:] == [ev.WorkFailed(second, 1, 2, None, FAILED_TEXT)]
    assert NotifyChildren(second, range(1, 2)) in step.effects
    rig.exit(first, 0, 2)
    assert rig.statuses(second) == "R-R"
    rig.run(second, 0, 2)
    assert rig.status(second) == "FAILED"


def test_dep_7_children_that_have_failed_already_fail_theirs_at_submit(rig: Rig) -> None:
    first = rig.submit(size=4)
    rig.place()
    rig.exit(first, 3)
    rig.exit(first, 0, 2, code=1)
    second = rig.submit("second", n_to_n(rig.id(first)), size=4)
    assert rig.statuses(second) == "-P-R"


def test_dep_8_sequential_failure_fails_all_that_follow(rig: Rig) -> None:
    job = rig.submit("steps", SEQUENTIAL, size=4)
    rig.run(job, 0)
    step = rig.run(job, 1, code=1)
    assert step.events[1:] == [ev.WorkFailed(job, 2, 4, None, FAILED_TEXT), ev.ParentEnded(job, False)]
    assert (rig.statuses(job), rig.status(job)) == ("+---", "FAILED")
    assert [rig.reason(job, i) for i in range(4)] == [None, None, FAILED_TEXT, FAILED_TEXT]


def test_dep_8_a_cancelled_child_in_the_middle_fails_those_after_it(rig: Rig) -> None:
    job = rig.submit("steps", SEQUENTIAL, size=4)
    rig.cancel(rig.child(job, 2), "why")
    assert rig.statuses(job) == "RP--"
    rig.run(job, 0)
    rig.run(job, 1)
    assert rig.statuses(job) == "++--"
    assert [rig.reason(job, i) for i in (2, 3)] == ["why", FAILED_TEXT]


def test_dep_8_sequential_with_n_to_n_failed_at_submit(rig: Rig) -> None:
    first = rig.submit(size=4)
    rig.place()
    rig.exit(first, 0)
    rig.exit(first, 2, code=1)
    job = rig.submit("steps", SEQUENTIAL, n_to_n(rig.id(first)), size=4)
    assert rig.statuses(job) == "RP--"


def test_dep_9_a_retried_attempt_is_no_failure(rig: Rig) -> None:
    first = rig.submit(attempts=2)
    second = rig.submit("second", after(rig.id(first)))
    rig.run(first, code=1)
    assert rig.status(second) == "PENDING"
    rig.run(first)
    assert rig.status(second) == "RUNNABLE"


def test_dep_11_dependencies_are_kept_as_asked_for(rig: Rig) -> None:
    first = rig.submit(size=2)
    job = rig.submit("second", n_to_n(rig.id(first)), SEQUENTIAL, after(rig.child(first, 1)), size=2)
    assert [(d.type, d.job, d.index) for d in rig.job(job).depends_on] == [
        (DependencyType.N_TO_N, first, None),
        (DependencyType.SEQUENTIAL, -1, None),
        (DependencyType.AFTER_SUCCESS, first, 1),
    ]
    assert rig.job(first).depends_on == ()
    assert isinstance(rig.job(job).depends_on[0], Dependency)


def test_dep_12_no_job_can_name_itself(rig: Rig) -> None:
    with pytest.raises(NotFound):
        rig.submit("self", after(job_id(1)))
    with pytest.raises(NotFound):
        rig.submit("self", after("self"))


@pytest.mark.parametrize(
    ("entry", "size", "error", "text"),
    [
        pytest.param(after(job_id(99)), None, NotFound, "does not exist", id="unknown"),
        pytest.param(after(f"{job_id(2)}:9"), None, NotFound, "its indexes are 0 to 2", id="child_out_of_range"),
        pytest.param(after(f"{job_id(1)}:0"), None, NotFound, "that job is not an array", id="child_of_a_single"),
        pytest.param(after(f"{job_id(1)}#0"), None, NotFound, "does not exist", id="node"),
        pytest.param(n_to_n(None), 3, InvalidValue, r"depends_on\[0\].* an entry names a job", id="n_to_n_of_nobody"),
        pytest.param(n_to_n(job_id(2)), None, InvalidValue, "only an array job can depend N_TO_N", id="n_to_n_single"),
        pytest.param(n_to_n(job_id(1)), 3, InvalidValue, "N_TO_N names an array job", id="n_to_n_on_a_single"),
        pytest.param(n_to_n(f"{job_id(2)}:1"), 3, InvalidValue, "N_TO_N names an array job", id="n_to_n_on_a_child"),
        pytest.param(n_to_n(job_id(2)), 4, InvalidValue, "has 3 children and this job 4", id="n_to_n_sizes"),
        pytest.param(SEQUENTIAL, None, InvalidValue, "only an array job can be SEQUENTIAL", id="sequential_single"),
        pytest.param(SEQUENTIAL_OF, 3, InvalidValue, "names no other job", id="sequential_with_a_job"),
        pytest.param(NO_TYPE_JOB, None, InvalidValue, "an entry names a job", id="neither"),
    ],
)
def test_dep_13_bad_entries_are_refused_and_nothing_is_queued(
    rig: Rig, entry: ask.DependencyRequest, size: int | None, error: type[Exception], text: str
) -> None:
    rig.submit("single")
    rig.submit("array", size=3)
    with pytest.raises(error, match=text):
        rig.submit("bad", entry, size=size)
    assert len(rig.state.jobs) == 2


def test_dep_13_duplicates_are_accepted(rig: Rig) -> None:
    first, pairs = rig.submit(), rig.submit("pairs", size=2)
    job = rig.submit("twice", *[after(rig.id(first))] * 2, *[n_to_n(rig.id(pairs))] * 2, size=2)
    rig.place()
    rig.exit(first)
    assert rig.statuses(job) == "PP"
    rig.exit(pairs, 0)
    assert rig.statuses(job) == "RP"
    rig.exit(pairs, 1, code=1)
    assert rig.statuses(job) == "R-"


@pytest.mark.parametrize("code", [0, 1])
def test_dep_14_a_single_child_can_be_waited_for(rig: Rig, code: int) -> None:
    first = rig.submit(size=3)
    job = rig.submit("second", after(rig.child(first, 1)), size=2)
    rig.place()
    rig.exit(first, 0)
    assert rig.statuses(job) == "PP"
    rig.exit(first, 1, code=code)
    assert rig.statuses(job) == ("RR" if code == 0 else "--")


@pytest.mark.parametrize("code", [0, 1])
def test_dep_14_a_child_that_has_ended_already(rig: Rig, code: int) -> None:
    first = rig.submit(size=2)
    rig.place()
    rig.exit(first, 1, code=code)
    assert rig.status(rig.submit("second", after(rig.child(first, 1)))) == ("RUNNABLE" if code == 0 else "FAILED")


# -- by name --------------------------------------------------------------------------------------------


def test_a_name_means_the_one_unfinished_job_of_that_name(rig: Rig) -> None:
    old = rig.submit("step")
    rig.run(old)
    new = rig.submit("step")
    job = rig.submit("next", after("step"))
    assert rig.job(job).depends_on[0].job == new


def test_a_name_means_else_the_newest_finished_one(rig: Rig) -> None:
    for code in (0, 1, 0):
        rig.run(rig.submit("step"), code=code)
    job = rig.submit("next", after("step"))
    assert rig.job(job).depends_on[0].job == 3
    assert rig.status(job) == "RUNNABLE"


def test_a_name_of_several_unfinished_jobs_is_an_error_that_lists_their_ids(rig: Rig) -> None:
    first, second = rig.submit("step"), rig.submit("step", size=2)
    with pytest.raises(Conflict, match=f"{job_id(1)} .RUNNABLE., {job_id(2)} .PENDING.") as caught:
        rig.submit("next", after("step"))
    assert caught.value.field == "depends_on[0]"
    rig.cancel(first)
    assert rig.job(rig.submit("next", after("step"))).depends_on[0].job == second


def test_an_id_goes_before_a_name(rig: Rig) -> None:
    first = rig.submit()
    rig.submit(job_id(1))
    assert rig.job(rig.submit("next", after(job_id(1)))).depends_on[0].job == first


def test_a_name_works_for_arrays_and_for_stopping_too(rig: Rig) -> None:
    array = rig.submit("array", size=2)
    pair = rig.submit("pair", n_to_n("array"), size=2)
    rig.terminate("array")
    assert (rig.statuses(array), rig.statuses(pair)) == ("--", "--")


# -- client tokens ----------------------------------------------------------------------------------------


def test_a_repeated_client_token_returns_the_first_job(rig: Rig) -> None:
    first = rig.submit("first", token="t")
    step = rig.submit_step("other", size=3, token="t")
    assert (step.events, step.effects, step.reply) == ([], [], first)
    rig.run(first)
    assert rig.submit("other", token="t") == first
    assert rig.submit("other", token="u") != first


@pytest.mark.parametrize("token", ["", "x" * 65])
def test_a_client_token_has_1_to_64_characters(rig: Rig, token: str) -> None:
    with pytest.raises(InvalidValue, match="client_token"):
        rig.submit(token=token)
