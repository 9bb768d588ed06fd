"""checkpoint_exit_codes (beyond AWS): an exit that says "checkpointed, run me again". Decision 0048."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from anybatch.kernel.core import events as ev
from anybatch.kernel.core import evolve
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.errors import InvalidValue
from anybatch.kernel.core.explain import Code, explain
from anybatch.kernel.core.model import Action, EvaluateOnExit, ExitKind, FailureClass, RetryStrategy, StopKind
from core_oracle import Oracle
from core_rig import Rig, launches, ready_rig

AGAIN = 85
TEXT = "Checkpointed"


def checkpointed(rig: Rig, serial: int, index: int = 0) -> int:
    """How many checkpoints are counted."""
    return rig.job(serial).checkpoints.get(index, 0)


def test_it_is_run_again_without_using_up_an_attempt(rig: Rig) -> None:
    job = rig.submit(attempts=2, checkpoint_exit_codes=(AGAIN, 86))
    rig.place()
    step = rig.exit(job, code=AGAIN)
    assert step.events == [ev.AttemptsEnded(job, 0, 1, None, 1, 2, AGAIN, 0, TEXT, None, False, "checkpointed")]
    rig.run(job, code=86)
    rig.run(job, code=1)
    rig.run(job, code=AGAIN)
    assert launches(rig.place()) == [(job, 5, [0], 1)]
    rig.exit(job, code=1)
    assert rig.status(job) == "FAILED"
    assert [(past.number, past.code, past.cause.failure) for past in rig.past(job)] == [
        (1, AGAIN, "checkpointed"),
        (2, 86, "checkpointed"),
        (3, 1, None),
        (4, AGAIN, "checkpointed"),
    ]


def test_it_goes_on_before_what_waits_behind_it(rig: Rig) -> None:
    job = rig.submit(checkpoint_exit_codes=(AGAIN,), vcpus=4)
    rig.submit("later", vcpus=4)
    rig.place()
    rig.exit(job, code=AGAIN)
    assert launches(rig.place()) == [(job, 2, [0], 1)]


def test_it_comes_before_evaluate_on_exit(rig: Rig) -> None:
    entries = (EvaluateOnExit(Action.EXIT, on_exit_code="8*"),)
    job = rig.submit(retry=RetryStrategy(3, entries), checkpoint_exit_codes=(AGAIN,))
    rig.run(job, code=AGAIN)
    assert rig.status(job) == "RUNNABLE"
    rig.run(job, code=86)
    assert rig.status(job) == "FAILED"


def test_more_checkpoints_than_there_may_be_are_a_failure(rig: Rig) -> None:
    """Whatever attempts are left: one that asks for ever has not failed by bad luck."""
    job = rig.submit(size=2, attempts=5, checkpoint_exit_codes=(AGAIN,), max_checkpoints=2)
    for n in range(3):
        assert checkpointed(rig, job) == n
        rig.run(job, 0, code=AGAIN)
    assert rig.statuses(job) == "-s"
    assert rig.reason(job) == "Checkpointed more than 2 times (max_checkpoints)"
    rig.exit(job, 1, number=1, code=AGAIN)
    assert (rig.statuses(job), checkpointed(rig, job, 1)) == ("-R", 1)


@pytest.mark.parametrize(
    ("report", "failure"),
    [
        ({"code": AGAIN, "reason": "OutOfMemoryError: killed"}, FailureClass.OUT_OF_MEMORY),
        ({"code": None, "kind": ExitKind.LOST}, FailureClass.HOST_LOST),
        ({"code": AGAIN, "status_reason": "Task failed to start"}, FailureClass.COULD_NOT_START),
        ({"code": AGAIN, "kind": ExitKind.TIMED_OUT}, FailureClass.TIMEOUT),
    ],
)
def test_only_a_program_that_ended_by_itself_has_checkpointed(
    rig: Rig, report: dict[str, Any], failure: FailureClass
) -> None:
    job = rig.submit(checkpoint_exit_codes=(AGAIN,))
    rig.place()
    rig.exit(job, **report)
    assert (rig.status(job), rig.job(job).children.cause_of(0).failure) == ("FAILED", failure)


def test_each_attempt_has_the_timeout_for_itself(rig: Rig) -> None:
    job = rig.submit(timeout_ms=1000, checkpoint_exit_codes=(AGAIN,))
    for _ in range(3):
        rig.place()
        rig.start(job)
        assert rig.advance(900) == []
        rig.exit(job, code=AGAIN)
    rig.place()
    rig.start(job)
    (stop,) = rig.advance(1000)
    assert stop == ev.StopRequested(job, 0, 1, None, 4, StopKind.TIMEOUT)
    rig.exit(job, code=AGAIN)
    assert (rig.status(job), rig.reason(job)) == ("FAILED", "Job attempt duration exceeded timeout")


# -- with what else ends jobs -------------------------------------------------------------------------------------


def test_a_terminate_recorded_before_the_exit_wins(rig: Rig) -> None:
    job = rig.submit(checkpoint_exit_codes=(AGAIN,))
    rig.place()
    rig.start(job)
    rig.terminate(job, "enough")
    rig.exit(job, code=AGAIN)
    assert (rig.status(job), rig.reason(job)) == ("FAILED", "enough")


@pytest.mark.parametrize("how", ["cancel", "max_failures"])
def test_what_is_given_up_is_not_run_again(rig: Rig, how: str) -> None:
    job = rig.submit(size=6, checkpoint_exit_codes=(AGAIN,), max_failures=1)
    rig.place()
    if how == "cancel":
        rig.cancel(job)
    else:
        rig.exit(job, 3, code=1)
    rig.exit(job, 0, code=AGAIN)
    assert rig.reason(job, 0) == "Checkpointed, but nothing of its job is started any more"
    assert rig.job(job).children.cause_of(0).failure == FailureClass.CANCELLED


def test_a_checkpoint_is_no_failure_and_too_many_are_one(rig: Rig) -> None:
    job = rig.submit(size=3, checkpoint_exit_codes=(AGAIN,), max_checkpoints=1, max_failures=1)
    rig.run(job, 0, code=AGAIN)
    assert rig.job(job).failures == 0
    rig.run(job, 0, code=AGAIN)
    assert (rig.job(job).failures, rig.job(job).stopped is None) == (1, False)


def test_a_checkpoint_as_the_kernel_closes_takes_none_of_the_budget(rig: Rig) -> None:
    """It was asked to end, and goes on with the next kernel in any case."""
    job = rig.submit(checkpoint_exit_codes=(AGAIN,))
    rig.place()
    rig.start(job)
    rig.do(ask.StopRunning())
    rig.exit(job, code=AGAIN)
    assert (rig.status(job), checkpointed(rig, job)) == ("RUNNABLE", 0)


def test_a_rerun_counts_anew_and_numbers_go_on(rig: Rig) -> None:
    job = rig.submit(checkpoint_exit_codes=(AGAIN,), max_checkpoints=1)
    rig.run(job, code=AGAIN)
    rig.run(job, code=AGAIN)
    rig.rerun(job)
    assert checkpointed(rig, job) == 0
    rig.run(job, code=AGAIN)
    assert launches(rig.place()) == [(job, 4, [0], 1)]
    rig.exit(job)
    assert rig.status(job) == "SUCCEEDED"


@pytest.mark.parametrize(
    ("budgets", "complaint"),
    [({"host lost": "lost"}, "has more checkpoints than it may"), ({"checkpointed": "checkpoints"}, None)],
)
def test_the_oracle_of_random_runs_notices_what_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, budgets: dict[str, str], complaint: str | None
) -> None:
    monkeypatch.setattr(evolve, "_BUDGETS", budgets)
    rig, oracle = ready_rig(), Oracle()
    for taken in rig.taken:
        oracle.take(taken.step, rig.state)
    oracle.take(rig.submit_step(checkpoint_exit_codes=(AGAIN,), max_checkpoints=1), rig.state)
    with pytest.raises(AssertionError, match=complaint) if complaint else contextlib.nullcontext():
        for _ in range(2):
            oracle.take(rig.place(), rig.state)
            oracle.take(rig.exit(1, code=AGAIN), rig.state)


# -- what is said, given and refused ------------------------------------------------------------------------------


def test_explain_counts_checkpoints(rig: Rig) -> None:
    job = rig.submit(checkpoint_exit_codes=(AGAIN,), vcpus=4)
    rig.run(job, code=AGAIN)
    waits, told = explain(rig.state, rig.job(job), None, rig.now_ms)
    assert (waits.code, told.code) == (Code.NEXT, Code.CHECKPOINTED)
    assert told.text == "goes on after 1 checkpoint (at most 1000: max_checkpoints)"
    rig.run(job, code=AGAIN)
    rig.place()
    rig.start(job)
    (runs,) = explain(rig.state, rig.job(job), None, rig.now_ms)
    assert runs.text.startswith("attempt 3 of 3 after 2 checkpoints (at most 1000: max_checkpoints) has run on host")


def test_a_definition_says_it_and_a_submit_replaces_it(rig: Rig) -> None:
    rig.define("d", checkpoint_exit_codes=(AGAIN,), max_checkpoints=5)
    jobs = [
        rig.submit("a", definition="d"),
        rig.submit("b", definition="d", attempts=3, max_checkpoints=6),
        rig.submit("c", definition="d", checkpoint_exit_codes=()),
    ]
    specs = [rig.job(job).spec for job in jobs]
    assert [(spec.checkpoint_exit_codes, spec.max_checkpoints) for spec in specs] == [((85,), 5), ((85,), 6), ((), 5)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"checkpoint_exit_codes": (1, 0)}, r"checkpoint_exit_codes\[1\]: 0 is not allowed; .* 1 to 255; 0 is success"),
        ({"checkpoint_exit_codes": (256,)}, r"checkpoint_exit_codes\[0\]: 256 is not allowed"),
        ({"checkpoint_exit_codes": (1,), "max_checkpoints": 0}, "max_checkpoints: 0 is not allowed; .* 1 to 10000"),
        ({"checkpoint_exit_codes": (1,), "max_checkpoints": 10_001}, "max_checkpoints: 10001 is not allowed"),
        ({"max_checkpoints": 3}, "max_checkpoints: 3 is not allowed; it bounds checkpoint_exit_codes"),
    ],
)
def test_what_means_nothing_is_refused(rig: Rig, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        rig.submit_step(**given)
