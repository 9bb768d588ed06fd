"""Dependencies that wait for another end than success (beyond AWS). Decision 0041."""

from __future__ import annotations

import pytest
from anybatch.kernel.core import events as ev
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.errors import InvalidValue
from anybatch.kernel.core.model import TEXT_DEPENDENCY_FAILED, TEXT_NOT_NEEDED, DependencyType, On, Quotas
from anybatch.kernel.core.snapshot import decode, encode
from core_rig import DISABLED, SEQUENTIAL, SEQUENTIAL_ANY, Rig, after, after_any, after_failure, n_to_n, ready_rig

KINDS = {On.SUCCESS: after, On.ANY: after_any, On.FAILURE: after_failure}
ENDS = [
    # what is waited for, the exit code of the first job, what becomes of the second
    (On.SUCCESS, 0, "RUNNABLE", None),
    (On.SUCCESS, 1, "FAILED", TEXT_DEPENDENCY_FAILED),
    (On.ANY, 0, "RUNNABLE", None),
    (On.ANY, 1, "RUNNABLE", None),
    (On.FAILURE, 0, "FAILED", TEXT_NOT_NEEDED),
    (On.FAILURE, 1, "RUNNABLE", None),
]


@pytest.mark.parametrize(("on", "code", "status", "reason"), ENDS)
@pytest.mark.parametrize("ended_before", [False, True])
def test_a_single_job(rig: Rig, on: On, code: int, status: str, reason: str | None, ended_before: bool) -> None:
    first = rig.submit()
    if ended_before:
        rig.run(first, code=code)
    second = rig.submit("second", KINDS[on](rig.id(first)))
    if not ended_before:
        assert rig.status(second) == "PENDING"
        rig.run(first, code=code)
    assert (rig.status(second), rig.reason(second)) == (status, reason)


@pytest.mark.parametrize(("on", "code", "status", "reason"), ENDS)
@pytest.mark.parametrize("ended_before", [False, True])
def test_one_child(rig: Rig, on: On, code: int, status: str, reason: str | None, ended_before: bool) -> None:
    first = rig.submit(size=3)
    if ended_before:
        rig.run(first, 1, code=code)
    second = rig.submit("second", KINDS[on](rig.child(first, 1)), size=2)
    if not ended_before:
        rig.run(first, 1, code=code)
    assert rig.statuses(second) == {"RUNNABLE": "RR", "FAILED": "--"}[status]
    assert rig.reason(second) == reason


@pytest.mark.parametrize(
    ("on", "end"), [(On.SUCCESS, "+-P"), (On.ANY, "RRP"), (On.FAILURE, "-RP")], ids=["success", "any", "failure"]
)
@pytest.mark.parametrize("ended_before", [False, True])
def test_child_by_child(rig: Rig, on: On, end: str, ended_before: bool) -> None:
    first = rig.submit(size=3)
    rig.place()

    def both() -> None:
        rig.exit(first, 0)
        rig.exit(first, 1, code=1)

    if ended_before:
        both()
    second = rig.submit("second", n_to_n(rig.id(first), on), size=3)
    if not ended_before:
        both()
    assert rig.statuses(second) == end.replace("+", "R")
    reasons = {On.SUCCESS: [None, TEXT_DEPENDENCY_FAILED], On.ANY: [None] * 2, On.FAILURE: [TEXT_NOT_NEEDED, None]}
    assert [rig.reason(second, i) for i in (0, 1)] == reasons[on]


def test_a_whole_array_counts_by_its_own_end(rig: Rig) -> None:
    """It has FAILED when one of its children has, and only once all have ended."""
    first = rig.submit(size=2)
    mend, tidy = rig.submit("mend", after_failure(rig.id(first))), rig.submit("tidy", after_any(rig.id(first)))
    rig.run(first, 0, code=1)
    assert (rig.status(mend), rig.status(tidy)) == ("PENDING", "PENDING")
    rig.exit(first, 1)
    assert (rig.status(mend), rig.status(tidy)) == ("RUNNABLE", "RUNNABLE")


def test_a_sequence_that_goes_on_after_a_failure(rig: Rig) -> None:
    job = rig.submit("steps", SEQUENTIAL_ANY, size=4)
    assert rig.statuses(job) == "RPPP"
    rig.run(job, 0, code=1)
    assert rig.statuses(job) == "-RPP"
    rig.run(job, 1)
    rig.cancel(rig.child(job, 2))
    assert rig.statuses(job) == "-+-R"
    rig.run(job, 3)
    assert rig.status(job) == "FAILED"


def test_a_cancelled_sequence_does_not_go_on(rig: Rig) -> None:
    job = rig.submit("steps", SEQUENTIAL_ANY, size=4)
    step = rig.cancel(job)
    assert rig.statuses(job) == "----"
    assert not [event for event in step.events if isinstance(event, ev.WorkReleased)]


def test_a_sequence_with_children_that_fail_at_submit_goes_on_with_the_next(rig: Rig) -> None:
    first = rig.submit(size=3)
    rig.run(first, 0, code=1)
    rig.exit(first, 1, 2)
    job = rig.submit("steps", SEQUENTIAL_ANY, n_to_n(rig.id(first)), size=3)
    assert rig.statuses(job) == "-RP"


def test_a_sequence_that_ends_with_one_failure_frees_all_that_waits_child_by_child(rig: Rig) -> None:
    """The parent ends while the first child's end is still being followed up."""
    first = rig.submit("steps", SEQUENTIAL, size=3)
    second = rig.submit("second", n_to_n(rig.id(first), On.ANY), size=3)
    rig.run(first, 0, code=1)
    assert (rig.statuses(first), rig.statuses(second)) == ("---", "RRR")


def test_all_entries_must_be_answered_and_one_that_never_is_leads(rig: Rig) -> None:
    """Also where one end answers one entry and loses the other."""
    first, other = rig.submit(), rig.submit("other")
    both = rig.submit("both", after_any(rig.id(first)), after(rig.id(first)))
    waits = rig.submit("waits", after_any(rig.id(first)), after(rig.id(other)))
    rig.run(first, code=1)
    assert (rig.status(both), rig.status(waits)) == ("FAILED", "PENDING")
    rig.exit(other)
    assert rig.status(waits) == "RUNNABLE"


def test_what_is_not_needed_fails_what_waits_for_its_success(rig: Rig) -> None:
    first = rig.submit()
    mend = rig.submit("mend", after_failure(rig.id(first)))
    last, tidy = rig.submit("last", after(rig.id(mend))), rig.submit("tidy", after_any(rig.id(mend)))
    rig.run(first)
    assert (rig.reason(mend), rig.reason(last), rig.status(tidy)) == (
        TEXT_NOT_NEEDED,
        TEXT_DEPENDENCY_FAILED,
        "RUNNABLE",
    )


def test_a_deleted_queue_takes_along_what_its_end_frees(rig: Rig) -> None:
    first = rig.submit()
    tidy = rig.submit("tidy", after_any(rig.id(first)))
    rig.do(ask.UpdateQueue(name="queue", state=DISABLED))
    rig.do(ask.DeleteQueue(name="queue"))
    assert (rig.status(first), rig.status(tidy), rig.reason(tidy)) == ("FAILED", "FAILED", "Job queue was deleted")
    assert "queue" not in rig.state.queues


def test_what_waits_is_found_after_what_it_waits_for_is_forgotten(rig: Rig) -> None:
    """The indexes hold who names a job until either is forgotten."""
    rig.do(ask.UpdateQueue(name="queue", retain_succeeded_ms=1000, retain_failed_ms=2000))
    first = rig.submit(size=2)
    second = rig.submit(
        "second", after_any(rig.child(first, 1)), after_any(rig.id(first)), n_to_n(rig.id(first)), size=2
    )
    rig.run(first, 0, 1)
    rig.run(second, 0, 1)
    rig.advance(10_000)
    assert first not in rig.state.jobs
    assert second not in rig.state.jobs
    third = rig.submit("third")
    late = [rig.submit(f"late-{n}", after_any(rig.id(third))) for n in range(3)]
    for job in late:
        rig.cancel(job)
    rig.advance(10_000)
    assert rig.job(third).dependents == {}
    rig.run(third)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (ask.DependencyRequest(DependencyType.SEQUENTIAL, on=On.FAILURE), r"depends_on\[0\].on: 'failure'.*'any' end"),
        (ask.DependencyRequest(DependencyType.AFTER_ANY), "an entry names a job"),
    ],
)
def test_what_makes_no_sense_is_refused(rig: Rig, entry: ask.DependencyRequest, text: str) -> None:
    with pytest.raises(InvalidValue, match=text):
        rig.submit_step("job", entry, size=2)


def test_a_snapshot_keeps_the_answers_of_more_dependencies_than_a_number_has_bits() -> None:
    quotas = Quotas(dependencies_max=100)
    rig = ready_rig(quotas)
    jobs = [rig.submit(f"job-{n}") for n in range(100)]
    last = rig.submit("last", *(after(rig.id(job)) for job in jobs))
    for job in jobs[1:]:
        rig.run(job)
    assert decode(encode(rig.state), quotas).jobs[last].answered == (1 << 100) - 2
    rig.run(jobs[0])
    assert rig.status(last) == "RUNNABLE"
