"""Every failed attempt says what kind of failure it was, the latest and earlier ones, live and after a reopen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.model import (
    TEXT_NOT_STARTED,
    Action,
    EvaluateOnExit,
    ExitKind,
    FailureClass,
    RetryStrategy,
)
from anybatch.kernel.core.snapshot import decode, encode
from anybatch.kernel.core.state import KernelState
from anybatch.kernel.views import attempt_details
from core_rig import DISABLED, Rig

HOUR_MS = 3_600_000
APPLICATION, TIMEOUT, MEMORY, START, LOST, CANCELLED, CLOSED, CHECKPOINTED = FailureClass


def classes(rig: Rig, job: int, index: int = 0) -> list[FailureClass | None]:
    """Of all attempts, oldest first; the same in a kernel recovered from the log and from a snapshot."""

    def of(state: KernelState) -> list[FailureClass | None]:
        return [attempt.failure_class for attempt in attempt_details(state, state.jobs[job], index)]

    found = of(rig.state)
    assert of(rig.replayed()) == of(decode(encode(rig.state), rig.quotas)) == found
    return found


def exits(rig: Rig, job: int) -> None:
    rig.exit(job, code=3)


def is_killed(rig: Rig, job: int) -> None:
    rig.exit(job, code=137)


def ends_without_a_code(rig: Rig, job: int) -> None:
    rig.exit(job, code=None)


def runs_out_of_memory(rig: Rig, job: int) -> None:
    rig.exit(job, code=137, reason="OutOfMemoryError: Container killed due to memory usage")


def runs_out_of_memory_and_exits_with_0(rig: Rig, job: int) -> None:
    rig.exit(job, code=0, reason="OutOfMemoryError: a process of it was killed")


def cannot_start(rig: Rig, job: int) -> None:
    rig.exit(job, code=None, reason="no such program", status_reason=TEXT_NOT_STARTED)


def is_lost(rig: Rig, job: int) -> None:
    rig.lose(job)


def loses_its_host(rig: Rig, job: int) -> None:
    rig.host_down()
    rig.host()


def is_not_found(rig: Rig, job: int) -> None:
    rig.unknown(job)
    rig.advance(60_000)


def is_closed(rig: Rig, job: int) -> None:
    rig.do(ask.StopRunning())
    rig.exit(job, code=143)


CAUSES: dict[Callable[[Rig, int], None], FailureClass] = {
    exits: APPLICATION,
    is_killed: APPLICATION,
    ends_without_a_code: APPLICATION,
    runs_out_of_memory: MEMORY,
    runs_out_of_memory_and_exits_with_0: MEMORY,
    cannot_start: START,
    is_lost: LOST,
    loses_its_host: LOST,
    is_not_found: LOST,
}


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("started", [True, False], ids=["running", "starting"])
def test_the_latest_attempt_says_why_it_failed(rig: Rig, cause: Callable[[Rig, int], None], started: bool) -> None:
    job = rig.submit()
    rig.place()
    if started:
        rig.start(job)
    assert classes(rig, job) == [None]
    cause(rig, job)
    assert rig.status(job) == "FAILED"
    assert classes(rig, job) == [CAUSES[cause]]


@pytest.mark.parametrize("cause", [*CAUSES, is_closed])
def test_an_earlier_attempt_says_why_it_failed(rig: Rig, cause: Callable[[Rig, int], None]) -> None:
    expected = {**CAUSES, is_closed: CLOSED}[cause]
    job = rig.submit(attempts=2)
    rig.place()
    rig.start(job)
    cause(rig, job)
    assert rig.status(job) == "RUNNABLE"
    assert classes(rig, job) == [expected]
    rig.place()
    rig.start(job)
    assert classes(rig, job) == [expected, None]
    rig.exit(job)
    assert classes(rig, job) == [expected, None], "the second has not failed"


def test_an_attempt_that_succeeded_has_no_class(rig: Rig) -> None:
    job = rig.submit()
    assert classes(rig, job) == []
    rig.run(job)
    assert classes(rig, job) == [None]


@pytest.mark.parametrize("by_whom", ["kernel", "backend"])
def test_a_timeout_is_a_timeout_whoever_ends_the_attempt(rig: Rig, by_whom: str) -> None:
    job = rig.submit(attempts=3, timeout_ms=1_000)
    rig.place()
    rig.start(job)
    if by_whom == "kernel":
        rig.advance(1_000)
        rig.exit(job, code=143)
    else:
        rig.exit(job, code=137, kind=ExitKind.TIMED_OUT)
    assert rig.status(job) == "FAILED"
    assert classes(rig, job) == [TIMEOUT]


def test_a_terminated_attempt_is_cancelled(rig: Rig) -> None:
    job = rig.submit(attempts=3)
    rig.place()
    rig.start(job)
    rig.terminate(job)
    rig.exit(job, code=143)
    assert classes(rig, job) == [CANCELLED]


def test_an_attempt_whose_queue_is_deleted_is_cancelled(rig: Rig) -> None:
    job = rig.submit(attempts=3)
    rig.place()
    rig.do(ask.UpdateQueue(name="queue", state=DISABLED))
    rig.do(ask.DeleteQueue(name="queue"))
    rig.exit(job, code=143)
    assert classes(rig, job) == [CANCELLED]


def test_an_attempt_that_asks_to_be_run_again_is_checkpointed_and_the_one_too_many_has_failed(rig: Rig) -> None:
    job = rig.submit(checkpoint_exit_codes=(85,), max_checkpoints=1)
    for code in (85, 85):
        rig.run(job, code=code)
    assert rig.status(job) == "FAILED"
    assert classes(rig, job) == [CHECKPOINTED, APPLICATION]


def test_a_job_that_is_cancelled_while_it_waits_has_no_attempt_to_say_so(rig: Rig) -> None:
    never, again = rig.submit(vcpus=5), rig.submit(attempts=2)
    rig.run(again, code=1)
    rig.cancel(never)
    rig.cancel(again)
    assert classes(rig, never) == []
    assert classes(rig, again) == [APPLICATION], "its first attempt failed by itself"


def test_the_first_cause_decides_the_class(rig: Rig) -> None:
    """What is being stopped and is then lost was stopped; what ran out of memory on the way too."""
    stopped, late = rig.submit(attempts=3), rig.submit(attempts=3, timeout_ms=1_000)
    rig.place()
    rig.start(stopped)
    rig.start(late)
    rig.terminate(stopped)
    rig.advance(1_000)
    rig.exit(stopped, code=137, reason="OutOfMemoryError: killed")
    rig.lose(late)
    assert classes(rig, stopped) == [CANCELLED]
    assert classes(rig, late) == [TIMEOUT]


def test_a_closing_kernel_ends_a_cancelled_array_for_good(rig: Rig) -> None:
    job = rig.submit(size=2, vcpus=4)
    rig.place()
    rig.start(job, 0)
    rig.cancel(job)
    rig.do(ask.StopRunning())
    rig.exit(job, 0, code=143)
    assert rig.statuses(job) == "--"
    assert classes(rig, job, 0) == [CLOSED]
    assert classes(rig, job, 1) == []


def test_each_child_has_classes_of_its_own(rig: Rig) -> None:
    job = rig.submit(size=4, attempts=2)
    rig.place()
    for index in range(4):
        rig.start(job, index)
    rig.exit(job, 0, code=1)
    rig.lose(job, 1)
    rig.exit(job, 2, code=137, reason="OutOfMemoryError: killed")
    rig.exit(job, 3)
    rig.place()
    for index in (0, 1, 2):
        rig.start(job, index)
    rig.exit(job, 0, code=None, status_reason=TEXT_NOT_STARTED)
    rig.exit(job, 1)
    rig.exit(job, 2, code=2)
    assert [classes(rig, job, index) for index in range(4)] == [
        [APPLICATION, START],
        [LOST, None],
        [MEMORY, APPLICATION],
        [None],
    ]


def test_every_class_is_kept_in_order_over_many_attempts(rig: Rig) -> None:
    job = rig.submit(attempts=9)
    order = [*CAUSES, is_closed]
    for cause in order[:8]:
        rig.place()
        rig.start(job)
        cause(rig, job)
    assert classes(rig, job) == [{**CAUSES, is_closed: CLOSED}[cause] for cause in order[:8]]


# -- the budget for lost hosts ------------------------------------------------------------------------------------


def lose_again(rig: Rig, job: int, times: int) -> None:
    for _ in range(times):
        rig.place()
        rig.start(job)
        rig.lose(job)


def test_hosts_that_are_lost_do_not_cost_attempts_within_their_budget(rig: Rig) -> None:
    job = rig.submit(retry=RetryStrategy(2, host_lost_retries=3))
    lose_again(rig, job, 3)
    assert rig.job(job).lost == {0: 3}
    assert rig.job(job).uncounted == {0: 3}
    rig.run(job, code=1)
    assert rig.status(job) == "RUNNABLE", "the first that counts"
    rig.run(job, code=1)
    assert rig.status(job) == "FAILED"
    assert classes(rig, job) == [LOST, LOST, LOST, APPLICATION, APPLICATION]


def test_beyond_its_budget_a_lost_host_costs_an_attempt(rig: Rig) -> None:
    job = rig.submit(retry=RetryStrategy(2, host_lost_retries=1))
    lose_again(rig, job, 2)
    assert rig.job(job).uncounted == {0: 1}
    assert rig.status(job) == "RUNNABLE"
    lose_again(rig, job, 1)
    assert rig.status(job) == "FAILED"
    assert classes(rig, job) == [LOST, LOST, LOST]


def test_without_a_budget_a_lost_host_costs_an_attempt(rig: Rig) -> None:
    job = rig.submit(attempts=1)
    lose_again(rig, job, 1)
    assert rig.status(job) == "FAILED"


def test_an_entry_that_says_exit_ends_a_job_within_its_budget(rig: Rig) -> None:
    ends = (EvaluateOnExit(Action.EXIT, on_status_reason="Host EC2*"),)
    job = rig.submit(retry=RetryStrategy(5, ends, host_lost_retries=5))
    lose_again(rig, job, 1)
    assert rig.status(job) == "FAILED"
    assert classes(rig, job) == [LOST]


def test_an_entry_that_says_retry_does_not_use_up_attempts_within_the_budget(rig: Rig) -> None:
    again = (
        EvaluateOnExit(Action.RETRY, on_status_reason="Host EC2*"),
        EvaluateOnExit(Action.EXIT, on_reason="*"),
    )
    job = rig.submit(retry=RetryStrategy(2, again, host_lost_retries=2))
    lose_again(rig, job, 3)
    assert rig.status(job) == "RUNNABLE"
    assert rig.job(job).uncounted == {0: 2}
    rig.run(job, code=1)
    assert rig.status(job) == "FAILED"


def test_the_budget_is_for_lost_hosts_alone(rig: Rig) -> None:
    job = rig.submit(retry=RetryStrategy(1, host_lost_retries=5))
    rig.run(job, code=1)
    assert rig.status(job) == "FAILED"


def test_each_child_has_a_budget_of_its_own(rig: Rig) -> None:
    job = rig.submit(size=2, retry=RetryStrategy(1, host_lost_retries=1))
    rig.place()
    rig.host_down()
    assert rig.statuses(job) == "RR"
    rig.host()
    rig.place()
    rig.lose(job, 1)
    rig.start(job, 0)
    rig.exit(job, 0)
    assert rig.statuses(job) == "+-"


def test_the_budget_used_up_survives_a_reopen(rig: Rig) -> None:
    job = rig.submit(retry=RetryStrategy(1, host_lost_retries=2))
    lose_again(rig, job, 1)
    rig.state = decode(encode(rig.state), rig.quotas)
    lose_again(rig, job, 1)
    rig.state = rig.replayed()
    assert rig.status(job) == "RUNNABLE"
    lose_again(rig, job, 1)
    assert rig.status(job) == "FAILED"


def test_a_kernel_that_closes_uses_up_neither(rig: Rig) -> None:
    job = rig.submit(retry=RetryStrategy(1, host_lost_retries=1))
    for _ in range(3):
        rig.place()
        rig.start(job)
        is_closed(rig, job)
    assert rig.job(job).lost == {}
    lose_again(rig, job, 1)
    assert rig.status(job) == "RUNNABLE"
    rig.run(job, code=1)
    assert classes(rig, job) == [CLOSED, CLOSED, CLOSED, LOST, APPLICATION]
