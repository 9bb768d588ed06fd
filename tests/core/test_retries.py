"""Contract 4.1 and 4.2: attempts, and evaluateOnExit."""

from __future__ import annotations

from typing import Any

import pytest
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.errors import InvalidValue, QuotaExceeded
from anybatch.kernel.core.model import Action, EvaluateOnExit, ExitKind, Overrides, Quotas, RetryStrategy
from anybatch.kernel.core.retry import is_match, matches, wants_retry
from core_rig import DISABLED, Rig, after, launches, ready_rig

RETRY, EXIT = Action.RETRY, Action.EXIT
SPOT = (EvaluateOnExit(RETRY, on_status_reason="Host EC2*"), EvaluateOnExit(EXIT, on_reason="*"))


def strategy(attempts: int, *entries: EvaluateOnExit, host_lost_retries: int = 0) -> dict[str, Any]:
    return {"retry": RetryStrategy(attempts, entries, host_lost_retries)}


@pytest.mark.parametrize("attempts", [1, 3, 10])
def test_rt_1_attempts_is_the_total(rig: Rig, attempts: int) -> None:
    job = rig.submit(attempts=attempts)
    for number in range(1, attempts + 1):
        assert launches(rig.place()) == [(job, number, [0], 1)]
        rig.exit(job, code=1)
    assert rig.status(job) == "FAILED"
    assert [attempt.number for attempt in rig.past(job)] == list(range(1, attempts))


@pytest.mark.parametrize("attempts", [0, 11, -1])
def test_rt_1_attempts_are_1_to_10(rig: Rig, attempts: int) -> None:
    with pytest.raises(QuotaExceeded, match=r"retry.attempts: .* attempts are 1 to 10"):
        rig.submit(attempts=attempts)


def test_rt_1_the_default_is_one_attempt(rig: Rig) -> None:
    job = rig.submit()
    rig.run(job, code=1)
    assert rig.status(job) == "FAILED"


def test_rt_1_the_quota_can_be_raised() -> None:
    rig = ready_rig(Quotas(attempts_max=100))
    assert rig.job(rig.submit(attempts=100)).spec.retry.attempts == 100


def test_rt_2_the_submits_strategy_replaces_the_definitions_as_a_whole(rig: Rig) -> None:
    rig.define(retry=RetryStrategy(5, SPOT))
    assert rig.job(rig.submit(definition="definition")).spec.retry == RetryStrategy(5, SPOT)
    assert rig.job(rig.submit(definition="definition", attempts=2)).spec.retry == RetryStrategy(2)


@pytest.mark.parametrize("how", ["start", "lost"])
def test_rt_3_an_attempt_that_never_ran_counts(rig: Rig, how: str) -> None:
    job = rig.submit(attempts=2)
    for _ in range(2):
        rig.place()
        if how == "lost":
            rig.lose(job)
        else:
            rig.exit(job, code=None, status_reason="Task failed to start")
    assert rig.status(job) == "FAILED"
    (first,) = rig.past(job)
    assert (first.number, first.started_ms, first.code) == (1, 0, -1)
    assert first.stopped_ms == rig.now_ms


def test_rt_4_numbers_count_up_and_the_job_goes_to_the_front(rig: Rig) -> None:
    first, second = rig.submit(vcpus=4, attempts=3), rig.submit(vcpus=4)
    for number in (1, 2, 3):
        assert launches(rig.place()) == [(first, number, [0], 1)]
        rig.exit(first, code=1)
    assert launches(rig.place()) == [(second, 1, [0], 1)]


@pytest.mark.parametrize("how", ["cancel", "terminate", "timeout", "dependency", "queue"])
def test_rt_5_what_is_not_retried(rig: Rig, how: str) -> None:
    rig.queue("other")
    first = rig.submit("first")
    job = rig.submit("job", after(rig.id(first)), queue="other", attempts=10, timeout_ms=10)
    if how == "dependency":
        rig.run(first, code=1)
    else:
        rig.run(first)
        if how == "cancel":
            rig.cancel(job)
        else:
            rig.place()
            rig.start(job)
        if how == "terminate":
            rig.terminate(job)
        if how == "timeout":
            rig.advance(10)
        if how == "queue":
            rig.do(ask.UpdateQueue(name="other", state=DISABLED))
            rig.do(ask.DeleteQueue(name="other"))
        if how != "cancel":
            rig.exit(job, code=1)
    assert rig.status(job) == "FAILED"


@pytest.mark.parametrize("how", ["code", "signal", "no code", "host", "lost", "memory"])
def test_rt_6_what_is_retried(rig: Rig, how: str) -> None:
    job = rig.submit(attempts=2)
    rig.place()
    rig.start(job)
    if how == "host":
        rig.host_down()
    elif how == "lost":
        rig.lose(job)
    elif how == "memory":
        rig.exit(job, code=137, reason="OutOfMemoryError: Container killed due to memory usage")
    else:
        rig.exit(job, code={"code": 1, "signal": 139, "no code": None}[how])
    assert rig.status(job) == "RUNNABLE"


# -- evaluateOnExit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [5, 6])
def test_ex_1_up_to_five_entries(rig: Rig, entries: int) -> None:
    retry = strategy(2, *[EvaluateOnExit(EXIT, on_exit_code="1")] * entries)
    if entries == 5:
        assert len(rig.job(rig.submit(**retry)).spec.retry.evaluate_on_exit) == 5
    else:
        with pytest.raises(QuotaExceeded, match="evaluate_on_exit has at most 5 entries"):
            rig.submit(**retry)


def test_ex_1_more_if_the_quota_says_so() -> None:
    rig = ready_rig(Quotas(evaluate_on_exit_max=6))
    rig.submit(**strategy(2, *[EvaluateOnExit(EXIT, on_exit_code="1")] * 6))


def test_ex_2_an_entry_has_at_least_one_condition(rig: Rig) -> None:
    with pytest.raises(InvalidValue, match=r"retry.evaluate_on_exit\[1\]: .* at least one of"):
        rig.submit(**strategy(2, EvaluateOnExit(EXIT, on_exit_code="1"), EvaluateOnExit(EXIT)))


def test_ex_2_the_same_checks_hold_for_a_definition(rig: Rig) -> None:
    with pytest.raises(InvalidValue, match="at least one of"):
        rig.define(retry=RetryStrategy(2, (EvaluateOnExit(RETRY),)))


def test_ex_3_the_first_entry_that_matches_decides(rig: Rig) -> None:
    retry_first = rig.submit(
        **strategy(3, EvaluateOnExit(RETRY, on_exit_code="7"), EvaluateOnExit(EXIT, on_exit_code="*"))
    )
    exit_first = rig.submit(
        **strategy(3, EvaluateOnExit(EXIT, on_exit_code="*"), EvaluateOnExit(RETRY, on_exit_code="7"))
    )
    rig.place()
    rig.exit(retry_first, code=7)
    rig.exit(exit_first, code=7)
    assert (rig.status(retry_first), rig.status(exit_first)) == ("RUNNABLE", "FAILED")


@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [(1, "OutOfMemoryError: x", "FAILED"), (1, "other", "RUNNABLE"), (2, "OutOfMemoryError: x", "RUNNABLE")],
)
def test_ex_3_the_conditions_of_an_entry_are_anded(rig: Rig, code: int, reason: str, status: str) -> None:
    job = rig.submit(**strategy(2, EvaluateOnExit(EXIT, on_exit_code="1", on_reason="OutOfMemoryError:*")))
    rig.place()
    rig.exit(job, code=code, reason=reason)
    assert rig.status(job) == status


def test_ex_3_a_success_is_not_evaluated(rig: Rig) -> None:
    job = rig.submit(**strategy(2, EvaluateOnExit(RETRY, on_exit_code="0")))
    rig.run(job)
    assert rig.status(job) == "SUCCEEDED"


def test_ex_4_retry_needs_attempts_left(rig: Rig) -> None:
    job = rig.submit(**strategy(2, EvaluateOnExit(RETRY, on_exit_code="*")))
    rig.run(job, code=1)
    assert rig.status(job) == "RUNNABLE"
    rig.run(job, code=1)
    assert rig.status(job) == "FAILED"


def test_ex_4_exit_fails_at_once(rig: Rig) -> None:
    job = rig.submit(**strategy(10, EvaluateOnExit(EXIT, on_exit_code="3")))
    rig.run(job, code=3)
    assert rig.status(job) == "FAILED"


def test_ex_4_without_a_match_it_is_tried_again(rig: Rig) -> None:
    job = rig.submit(**strategy(2, EvaluateOnExit(EXIT, on_exit_code="3")))
    rig.run(job, code=4)
    assert rig.status(job) == "RUNNABLE"


@pytest.mark.parametrize(
    ("pattern", "value", "expected"),
    [
        ("abc", "abc", True),
        ("abc", "abcd", False),
        ("abc", "ab", False),
        ("abc*", "abc", True),
        ("abc*", "abcd", True),
        ("abc*", "xabc", False),
        ("*", "", True),
        ("*", "anything", True),
        ("*", None, True),
        ("abc", None, False),
        ("a*", None, False),
        ("1*", "137", True),
        ("13", "137", False),
        ("137", "137", True),
        ("Host.", "HostX", False),
        ("Host.", "Host.", True),
    ],
)
def test_ex_5_a_pattern_is_exact_or_a_prefix(pattern: str, value: str | None, expected: bool) -> None:
    assert matches(pattern, value) is expected


def test_ex_5_a_lone_star_catches_plain_exits_that_have_no_reason(rig: Rig) -> None:
    job = rig.submit(**strategy(5, EvaluateOnExit(EXIT, on_reason="*")))
    rig.run(job, code=1)
    assert rig.status(job) == "FAILED"


def test_ex_5_a_prefix_does_not_match_what_is_absent(rig: Rig) -> None:
    job = rig.submit(**strategy(5, EvaluateOnExit(EXIT, on_exit_code="1*", on_reason="*")))
    rig.place()
    rig.exit(job, code=None)
    assert rig.status(job) == "RUNNABLE"


def test_ex_6_the_status_reason_of_an_ordinary_end_is_the_usual_text(rig: Rig) -> None:
    job = rig.submit(**strategy(5, EvaluateOnExit(EXIT, on_status_reason="Essential container in task exited")))
    rig.run(job, code=1)
    assert rig.status(job) == "FAILED"


def test_ex_6_each_condition_looks_at_its_own_value() -> None:
    values = ("Task failed to start", "CannotPullContainerError: x", 1)
    assert is_match(EvaluateOnExit(EXIT, "Task failed*", "CannotPull*", "1"), *values)
    assert not is_match(EvaluateOnExit(EXIT, "CannotPull*"), *values)
    assert not is_match(EvaluateOnExit(EXIT, None, "Task*"), *values)
    assert not is_match(EvaluateOnExit(EXIT, None, None, "2"), *values)


@pytest.mark.parametrize("pattern", ["Host EC2*", "a.b:C 9", "*", "x" * 512, "tab\there"])
def test_ex_7_allowed_patterns(rig: Rig, pattern: str) -> None:
    rig.submit(**strategy(1, EvaluateOnExit(EXIT, on_reason=pattern, on_status_reason=pattern)))


@pytest.mark.parametrize("pattern", ["(x)", "a-b", "a*b", "**", "a?", "", "x" * 513, "é", "a_b"])
@pytest.mark.parametrize("field", ["on_reason", "on_status_reason"])
def test_ex_7_refused_patterns(rig: Rig, field: str, pattern: str) -> None:
    entry = EvaluateOnExit(EXIT, **{field: pattern})
    with pytest.raises(InvalidValue, match=rf"retry.evaluate_on_exit\[0\].{field}: "):
        rig.submit(**strategy(1, entry))


@pytest.mark.parametrize("pattern", ["1a", "-1", " 1", "1.*", "", "*1", "1" * 513])
def test_ex_7_exit_codes_are_digits(rig: Rig, pattern: str) -> None:
    with pytest.raises(InvalidValue, match="on_exit_code"):
        rig.submit(**strategy(1, EvaluateOnExit(EXIT, on_exit_code=pattern)))
    rig.submit(**strategy(1, EvaluateOnExit(EXIT, on_exit_code="13*")))


def test_ex_8_patterns_are_case_sensitive(rig: Rig) -> None:
    job = rig.submit(**strategy(2, EvaluateOnExit(EXIT, on_reason="outofmemory*")))
    rig.place()
    rig.exit(job, code=137, reason="OutOfMemoryError: killed")
    assert rig.status(job) == "RUNNABLE"


def test_ex_9_actions_are_lower_case() -> None:
    assert [action.value for action in Action] == ["retry", "exit"]


def test_ex_10_the_spot_recipe_retries_host_loss_up_to_five_runs(rig: Rig) -> None:
    job = rig.submit(**strategy(5, *SPOT))
    for number in range(1, 6):
        assert launches(rig.place()) == [(job, number, [0], number)]
        rig.start(job)
        rig.host_down()
        rig.host()
    assert rig.status(job) == "FAILED"
    assert rig.reason(job) == "Host EC2 (instance host) terminated."
    assert {attempt.cause.status_reason for attempt in rig.past(job)} == {"Host EC2 (instance host) terminated."}


def test_ex_10_the_spot_recipe_fails_an_exit_code_at_once(rig: Rig) -> None:
    job = rig.submit(**strategy(5, *SPOT))
    rig.run(job, code=1)
    assert rig.status(job) == "FAILED"


def test_ex_10_the_recipe_works_for_what_a_backend_reports_as_lost(rig: Rig) -> None:
    job = rig.submit(**strategy(2, *SPOT))
    rig.place()
    rig.lose(job)
    assert rig.status(job) == "RUNNABLE"


def test_the_reason_of_a_backend_is_cut_at_255_characters(rig: Rig) -> None:
    job = rig.submit()
    rig.place()
    rig.exit(job, code=1, reason="x" * 300)
    assert rig.job(job).children.cause_of(0).reason == "x" * 255


def test_attempts_not_held_against_the_job_do_not_use_up_its_tries() -> None:
    assert wants_retry(RetryStrategy(2), 1, None, None, 1)
    assert not wants_retry(RetryStrategy(2), 2, None, None, 1)


def test_lost_hosts_have_a_budget_of_their_own(rig: Rig) -> None:
    job = rig.submit(**strategy(1, host_lost_retries=2))
    for _ in range(2):
        rig.place()
        rig.lose(job)
        assert rig.status(job) == "RUNNABLE"
    rig.place()
    rig.lose(job)
    assert rig.status(job) == "FAILED"


def test_the_budget_for_lost_hosts_gives_way_to_an_exit(rig: Rig) -> None:
    job = rig.submit(**strategy(1, EvaluateOnExit(EXIT, on_status_reason="Host EC2*"), host_lost_retries=2))
    rig.place()
    rig.lose(job)
    assert rig.status(job) == "FAILED"


def test_a_timed_out_report_of_an_attempt_with_code_0_is_a_timeout(rig: Rig) -> None:
    job = rig.submit(attempts=3, timeout_ms=10)
    rig.place()
    rig.exit(job, code=0, kind=ExitKind.TIMED_OUT)
    assert rig.status(job) == "FAILED"


def test_rt_2_no_override_keeps_the_definitions() -> None:
    assert Overrides().retry is None
