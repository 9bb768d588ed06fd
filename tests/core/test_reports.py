"""Reports of backends: late, early, twice, of earlier attempts, about hosts, and after a restart."""

from __future__ import annotations

import pytest
from anybatch.kernel.core import events as ev
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.effects import WANT_PLAN, LaunchAttempts, NotifyJob
from anybatch.kernel.core.events import HostLeft
from anybatch.kernel.core.machine import next_timer_ms
from anybatch.kernel.core.model import DependencyType, ExitKind
from anybatch.kernel.core.reports import UNKNOWN_MS_MAX
from anybatch.kernel.core.states import SUCCEEDED
from core_rig import KERNEL_ID, Rig, launches

NOTHING: tuple[list[object], list[object]] = ([], [])


def test_an_exit_with_0_overtakes_the_start(rig: Rig) -> None:
    job = rig.submit()
    rig.place()
    step = rig.exit(job)
    assert step.events == [
        ev.AttemptsStarted(job, 0, 1, None, 1, 0),
        ev.AttemptsEnded(job, 0, 1, None, 1, SUCCEEDED, 0, 0, None, None, True),
    ]
    assert step.effects == [WANT_PLAN, NotifyJob(job)]
    step = rig.start(job)
    assert (step.events, step.effects) == NOTHING


def test_a_failure_overtakes_the_start(rig: Rig) -> None:
    job = rig.submit(attempts=2)
    rig.place()
    rig.exit(job, code=1)
    step = rig.start(job, number=1)
    assert (step.events, step.effects) == NOTHING
    assert rig.status(job) == "RUNNABLE"


def test_an_array_part_of_which_exits_before_it_starts(rig: Rig) -> None:
    job = rig.submit(size=4)
    rig.place()
    rig.start(job, 1, 3)
    step = rig.do(ask.Ended(environment="env", job=job, number=1, indexes=[3, 2, 1, 0], codes=[0, 0, 1, 1]))
    assert [type(event).__name__ for event in step.events] == [
        "AttemptsEnded",
        "AttemptsStarted",
        "AttemptsEnded",
        "AttemptsEnded",
        "AttemptsEnded",
        "ParentEnded",
    ]
    assert rig.statuses(job) == "--++"


@pytest.mark.parametrize("again", ["start", "exit", "lose"])
def test_reports_that_come_twice_change_nothing(rig: Rig, again: str) -> None:
    job = rig.submit(attempts=3)
    rig.place()
    rig.start(job)
    if again == "start":
        step = rig.start(job)
    else:
        rig.exit(job)
        step = rig.exit(job, code=1) if again == "exit" else rig.lose(job)
    assert (step.events, step.effects) == NOTHING


def test_a_child_named_twice_in_one_report_counts_once(rig: Rig) -> None:
    job = rig.submit(size=2)
    rig.place()
    rig.start(job, 1, 0, 1, 1)
    assert rig.statuses(job) == "rr"
    rig.exit(job, 1, 1, 0, 0)
    assert rig.status(job) == "SUCCEEDED"


@pytest.mark.parametrize("number", [0, 1, 3, 99])
@pytest.mark.parametrize("what", ["start", "exit", "lost", "unknown"])
def test_a_report_of_another_attempt_changes_nothing(rig: Rig, what: str, number: int) -> None:
    job = rig.submit(attempts=3)
    rig.run(job, code=1)
    rig.place()
    items: dict[str, ask.Input] = {
        "start": ask.Started(environment="env", job=job, number=number, indexes=[0]),
        "exit": ask.Ended(environment="env", job=job, number=number, indexes=[0]),
        "lost": ask.Ended(environment="env", job=job, number=number, indexes=[0], kind=ExitKind.LOST, codes=[None]),
        "unknown": ask.Unknown(environment="env", job=job, number=number, indexes=[0]),
    }
    step = rig.do(items[what])
    assert (step.events, step.effects) == NOTHING
    assert rig.status(job) == "STARTING"
    assert next_timer_ms(rig.state) is None


def test_a_late_report_between_two_attempts_changes_nothing(rig: Rig) -> None:
    job = rig.submit(attempts=3)
    rig.run(job, code=1)
    step = rig.exit(job, number=1)
    assert (step.events, step.effects) == NOTHING
    assert rig.status(job) == "RUNNABLE"


def test_a_backend_speaks_only_for_its_own_environment(rig: Rig) -> None:
    rig.environment("other")
    job = rig.submit()
    rig.place()
    for item in (
        ask.Started(environment="other", job=job, number=1, indexes=[0]),
        ask.Ended(environment="other", job=job, number=1, indexes=[0]),
    ):
        step = rig.do(item)
        assert (step.events, step.effects) == NOTHING


# -- not found -----------------------------------------------------------------------------------------


def test_an_unknown_attempt_is_lost_only_after_a_while(rig: Rig) -> None:
    job = rig.submit(attempts=2)
    rig.place()
    step = rig.unknown(job)
    assert (step.events, step.effects) == NOTHING
    assert rig.advance(UNKNOWN_MS_MAX - 1) == []
    (event,) = rig.advance(1)
    assert isinstance(event, ev.AttemptsEnded)
    assert event.status_reason == "Host EC2 (instance host) terminated."
    assert rig.status(job) == "RUNNABLE"


def test_an_unknown_attempt_is_not_put_off_by_being_unknown_again(rig: Rig) -> None:
    job = rig.submit()
    rig.place()
    rig.unknown(job)
    rig.advance(UNKNOWN_MS_MAX - 1)
    rig.unknown(job)
    rig.advance(1)
    assert rig.status(job) == "FAILED"


@pytest.mark.parametrize("how", ["started", "still running", "exited"])
def test_an_unknown_attempt_that_is_heard_of_again_goes_on(rig: Rig, how: str) -> None:
    job = rig.submit(attempts=3)
    rig.place()
    if how == "still running":
        rig.start(job)
    rig.unknown(job)
    rig.advance(UNKNOWN_MS_MAX // 2)
    if how == "exited":
        rig.exit(job)
    else:
        rig.start(job)
    assert rig.advance(UNKNOWN_MS_MAX * 2) == []
    assert rig.status(job) == ("SUCCEEDED" if how == "exited" else "RUNNING")


def test_an_unknown_attempt_of_a_later_try_is_not_lost_with_the_earlier(rig: Rig) -> None:
    job = rig.submit(attempts=3)
    rig.place()
    rig.unknown(job)
    rig.exit(job, code=1)
    rig.place()
    assert rig.advance(UNKNOWN_MS_MAX) == []
    assert rig.status(job) == "STARTING"


# -- hosts -----------------------------------------------------------------------------------------------


def test_a_host_that_goes_takes_its_attempts_with_it(rig: Rig) -> None:
    rig.host("second")
    stays = rig.submit(vcpus=4)
    single = rig.submit(attempts=2)
    array = rig.submit(size=3)
    rig.place()
    rig.start(array, 1)
    assert rig.state.hosts[2].load == {single: 1, array: 3}
    step = rig.host_down("second", "reclaimed")
    text = "Host EC2 (instance second) terminated."
    assert [type(event).__name__ for event in step.events] == [*["AttemptsEnded"] * 3, "ParentEnded", "HostLeft"]
    assert step.events[-1] == HostLeft(2, "reclaimed")
    assert (rig.status(stays), rig.status(single), rig.statuses(array)) == ("STARTING", "RUNNABLE", "---")
    assert {rig.reason(array, i) for i in range(3)} == {text}
    assert rig.past(single)[0].cause[:2] == (text, "reclaimed")
    assert rig.code(array, 0) is None


def test_a_host_that_comes_back_is_another_one(rig: Rig) -> None:
    rig.host_down()
    assert rig.host().events == [ev.HostJoined(2, "env", "host", 4000, None, (), None)]
    assert rig.host_down("nothing").events == []


def test_late_reports_from_a_host_that_is_gone_change_nothing(rig: Rig) -> None:
    job = rig.submit(attempts=2)
    rig.place()
    rig.host_down()
    for step in (rig.start(job, number=1), rig.exit(job, number=1)):
        assert (step.events, step.effects) == NOTHING
    rig.host()
    assert launches(rig.place()) == [(job, 2, [0], 2)]


def test_hosts_of_one_name_in_two_environments_are_two(rig: Rig) -> None:
    rig.environment("other")
    rig.host("host", 1, environment="other")
    rig.host_down("host", environment="other")
    assert [host.environment for host in rig.state.hosts.values()] == ["env"]


# -- opening again ---------------------------------------------------------------------------------------


def test_opening_raises_the_epoch_and_keeps_the_id(rig: Rig) -> None:
    step = rig.do(ask.OpenKernel(kernel_id="another"))
    assert step.events == [ev.KernelOpened(2, KERNEL_ID)]
    assert step.effects == []


def test_after_an_open_nothing_is_placed_until_all_is_listed(rig: Rig) -> None:
    job = rig.submit()
    rig.do(ask.OpenKernel(kernel_id="x"))
    assert rig.place().events == []
    rig.host("new")
    assert rig.place().events == []
    step = rig.do(ask.AllListed(environment="env", hosts=("host", "new")))
    assert step.events == [ev.HostsListed("env")]
    assert step.effects == [WANT_PLAN]
    assert launches(rig.place()) == [(job, 1, [0], 1)]


def test_after_an_open_running_attempts_go_on_and_are_not_launched_again(rig: Rig) -> None:
    job = rig.submit(size=2)
    rig.place()
    rig.start(job, 0)
    rig.do(ask.OpenKernel(kernel_id="x"))
    rig.start(job, 0, 1)
    rig.exit(job, 1, code=0)
    rig.do(ask.AllListed(environment="env", hosts=("host",)))
    assert not [effect for effect in rig.place().effects if isinstance(effect, LaunchAttempts)]
    rig.exit(job, 0)
    assert rig.status(job) == "SUCCEEDED"


def test_after_an_open_hosts_that_are_not_listed_are_gone(rig: Rig) -> None:
    job = rig.submit(attempts=2)
    rig.place()
    rig.do(ask.OpenKernel(kernel_id="x"))
    step = rig.do(ask.AllListed(environment="env", hosts=()))
    assert [type(event).__name__ for event in step.events] == ["AttemptsEnded", "HostLeft", "HostsListed"]
    assert (rig.status(job), rig.state.hosts) == ("RUNNABLE", {})


def test_listing_again_changes_nothing(rig: Rig) -> None:
    step = rig.do(ask.AllListed(environment="env", hosts=("host",)))
    assert (step.events, step.effects) == NOTHING


def test_time_never_goes_backwards(rig: Rig) -> None:
    rig.advance(1000)
    rig.submit()
    rig.now_ms -= 500
    job = rig.submit()
    rig.now_ms += 500
    assert rig.job(job).created_ms == rig.now_ms


# -- attempts that the log does not know -------------------------------------------------------------------


def found(rig: Rig, job: int, number: int, *indexes: int, host: str = "host") -> ask.Found:
    return ask.Found(environment="env", host=host, job=job, number=number, indexes=list(indexes) or [0])


def test_an_attempt_whose_placement_was_lost_is_adopted_if_its_number_is_the_next(rig: Rig) -> None:
    job = rig.submit(size=3, attempts=2)
    step = rig.do(found(rig, job, 1, 2, 0, 2))
    assert step.events == [ev.AttemptsPlaced(job, 0, 0, [0, 2], 1, 1, None)]
    assert rig.statuses(job) == "sRs"
    rig.exit(job, 0, code=1)
    assert rig.do(found(rig, job, 1)).events == []
    assert rig.do(found(rig, job, 2)).events == [ev.AttemptsPlaced(job, 0, 1, None, 2, 1, None)]


@pytest.mark.parametrize("why", ["number", "pending", "ended", "host", "job"])
def test_other_attempts_that_the_log_does_not_know_are_not_adopted(rig: Rig, why: str) -> None:
    job = rig.submit()
    if why == "ended":
        rig.cancel(job)
    waiting = rig.submit("waiting", ask.DependencyRequest(DependencyType.AFTER_SUCCESS, rig.id(job)))
    items = {
        "number": found(rig, job, 2),
        "pending": found(rig, waiting, 1),
        "ended": found(rig, job, 1),
        "host": found(rig, job, 1, host="nothing"),
        "job": found(rig, 99, 1),
    }
    step = rig.do(items[why])
    assert (step.events, step.effects) == NOTHING
