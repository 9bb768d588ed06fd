"""Contract 6.1, 6.2, 7.1, 7.4 and 7.6: queues and environments: what may be created, changed and deleted when."""

from __future__ import annotations

from typing import Any

import pytest
from anybatch.kernel.core import events as ev
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.effects import WANT_PLAN, CloseEnvironment, StartEnvironment
from anybatch.kernel.core.errors import Conflict, InvalidValue, NotFound, QuotaExceeded
from anybatch.kernel.core.model import EnvironmentBody, QueueBody, Quotas, ResourceStatus
from core_rig import DISABLED, ENABLED, Rig, after, launches, ready_rig, stops


def delete_queue(rig: Rig, name: str = "queue") -> list[ev.AnyEvent]:
    rig.do(ask.UpdateQueue(name=name, state=DISABLED))
    return rig.do(ask.DeleteQueue(name=name)).events


# -- queues -----------------------------------------------------------------------------------------


def test_jq_1_creating_a_queue_is_one_event(rig: Rig) -> None:
    body = QueueBody(priority=7, compute_environments=("env",))
    step = rig.do(ask.CreateQueue(name="new", body=body, principal="ann", request_id="r1"))
    assert step.events == [ev.QueuePut("new", body, "ann", "r1")]
    assert step.effects == [WANT_PLAN]
    assert rig.state.queues["new"].status is ResourceStatus.VALID


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "é"])
def test_jq_1_names(rig: Rig, name: str) -> None:
    with pytest.raises(InvalidValue, match="name: .* 1 to 128 letters"):
        rig.queue(name)


@pytest.mark.parametrize("priority", [-1, 1_000_001])
def test_jq_1_priorities(rig: Rig, priority: int) -> None:
    with pytest.raises(InvalidValue, match="higher goes first"):
        rig.queue("new", priority=priority)
    rig.queue("new", priority=0)


def test_jq_1_there_is_a_quota_of_queues() -> None:
    rig = ready_rig(Quotas(job_queues_max=2))
    rig.queue("second")
    with pytest.raises(QuotaExceeded, match="at most 2 job queues"):
        rig.queue("third")


@pytest.mark.parametrize(
    ("environments", "error", "text"),
    [
        ((), QuotaExceeded, "a queue has 1 to 3 compute environments"),
        (("a", "b", "c", "env"), QuotaExceeded, "a queue has 1 to 3 compute environments"),
        (("env", "env"), InvalidValue, "each environment is named once"),
        (("env", "nothing"), NotFound, "compute environment 'nothing' does not exist"),
    ],
)
def test_jq_2_a_queue_has_one_to_three_environments(
    rig: Rig, environments: tuple[str, ...], error: type[Exception], text: str
) -> None:
    for name in ("a", "b", "c"):
        rig.environment(name)
    body = QueueBody(priority=1, compute_environments=environments)
    with pytest.raises(error, match=text):
        rig.do(ask.CreateQueue(name="new", body=body))
    with pytest.raises(error, match=text):
        rig.do(ask.UpdateQueue(name="queue", compute_environments=environments))


@pytest.mark.parametrize("failed", [False, True])
def test_jq_3_an_environment_must_be_valid_before_it_is_attached(rig: Rig, failed: bool) -> None:
    rig.do(ask.CreateEnvironment(name="new", body=EnvironmentBody(backend="null", max_vcpus_milli=1)))
    if failed:
        rig.do(ask.EnvironmentFailed(environment="new", reason="broken"))
    with pytest.raises(Conflict, match="It must be valid before attaching it to the job queue."):
        rig.queue("other", "env", "new")
    with pytest.raises(Conflict, match="INVALID .broken." if failed else "CREATING"):
        rig.do(ask.UpdateQueue(name="queue", compute_environments=("new",)))


def test_jq_3_an_environment_that_turned_invalid_later_does_not_block_other_updates(rig: Rig) -> None:
    rig.do(ask.EnvironmentFailed(environment="env", reason="broken"))
    rig.do(ask.UpdateQueue(name="queue", priority=9))
    assert rig.state.queues["queue"].body.priority == 9
    assert rig.status(rig.submit()) == "RUNNABLE"


def test_jq_7_a_disabled_queue_takes_no_jobs_and_finishes_those_that_it_has(rig: Rig) -> None:
    job = rig.submit()
    rig.do(ask.UpdateQueue(name="queue", state=DISABLED))
    with pytest.raises(Conflict, match="it is DISABLED and takes no jobs") as caught:
        rig.submit()
    assert caught.value.field == "queue"
    rig.run(job)
    assert rig.status(job) == "SUCCEEDED"
    rig.do(ask.UpdateQueue(name="queue", state=ENABLED))
    rig.submit()


def test_jq_10_only_a_disabled_queue_is_deleted(rig: Rig) -> None:
    with pytest.raises(Conflict, match="Cannot delete: it is ENABLED"):
        rig.do(ask.DeleteQueue(name="queue"))
    assert delete_queue(rig) == [ev.QueueDeleted("queue", True, None, None)]
    assert rig.state.queues == {}


def test_jq_10_the_jobs_of_a_deleted_queue_are_ended(rig: Rig) -> None:
    rig.queue("other")
    running, waiting = rig.submit(vcpus=4, attempts=9), rig.submit(size=2)
    rig.place()
    rig.start(running)
    pending = rig.submit("pending", after(rig.id(waiting)))
    outside = rig.submit("outside", after(rig.id(pending)), queue="other")
    events = delete_queue(rig)
    assert events[0] == ev.QueueDeleted("queue", False, None, None)
    assert stops(rig.taken[-1].step) == [(running, [(0, 1)])]
    assert rig.state.queues["queue"].status is ResourceStatus.DELETING
    assert [rig.status(job) for job in (running, waiting, pending, outside)] == ["RUNNING", *["FAILED"] * 3]
    assert rig.reason(waiting) == "Job queue was deleted"
    assert rig.reason(outside) == "Dependent Job failed"
    step = rig.exit(running, code=143)
    assert step.events[-1] == ev.QueueDeleted("queue", True, None, None)
    assert (rig.status(running), rig.reason(running)) == ("FAILED", "Job queue was deleted")
    assert "queue" not in rig.state.queues


def test_jq_10_a_queue_being_deleted_takes_neither_jobs_nor_updates(rig: Rig) -> None:
    rig.submit()
    rig.place()
    delete_queue(rig)
    with pytest.raises(Conflict, match="it is DELETING"):
        rig.submit()
    with pytest.raises(Conflict, match="it is being deleted"):
        rig.do(ask.UpdateQueue(name="queue", state=ENABLED))
    assert rig.do(ask.DeleteQueue(name="queue")).events == []
    with pytest.raises(Conflict, match="Object already exists"):
        rig.queue()


def test_jq_10_unknown_queues(rig: Rig) -> None:
    for item in (ask.DeleteQueue(name="nothing"), ask.UpdateQueue(name="nothing", priority=1)):
        with pytest.raises(NotFound, match="job queue 'nothing' does not exist"):
            rig.do(item)
    with pytest.raises(NotFound, match="job queue 'nothing' does not exist"):
        rig.submit(queue="nothing")


def test_jq_11_the_name_of_a_deleted_queue_is_free_and_its_jobs_are_still_there(rig: Rig) -> None:
    old = rig.submit()
    rig.run(old)
    delete_queue(rig)
    rig.queue()
    new = rig.submit()
    rig.run(new)
    assert (rig.status(old), rig.status(new)) == ("SUCCEEDED", "SUCCEEDED")


def test_jq_12_an_existing_name_is_refused(rig: Rig) -> None:
    with pytest.raises(Conflict, match="Object already exists"):
        rig.queue()
    assert rig.queue(exist_ok=True).events == []
    with pytest.raises(Conflict, match="exists with another priority: 1 is there, 5 was asked for") as caught:
        rig.queue(priority=5, exist_ok=True)
    assert caught.value.field == "priority"


def test_jq_an_update_that_changes_nothing_is_no_event(rig: Rig) -> None:
    assert rig.do(ask.UpdateQueue(name="queue", priority=1, state=ENABLED)).events == []


def test_jq_the_number_of_unfinished_jobs_has_a_quota() -> None:
    rig = ready_rig(Quotas(unfinished_jobs_max=1))
    job = rig.submit()
    with pytest.raises(QuotaExceeded, match="at most 1 unfinished jobs"):
        rig.submit()
    rig.run(job)
    rig.submit()


# -- environments -----------------------------------------------------------------------------------


def test_ce_7_an_environment_is_creating_until_its_backend_is_heard_of(bare: Rig) -> None:
    body = EnvironmentBody(backend="null", max_vcpus_milli=1000)
    step = bare.do(ask.CreateEnvironment(name="env", body=body, principal="ann", request_id="r1"))
    assert step.events == [ev.EnvironmentPut("env", body, "ann", "r1")]
    assert step.effects == [StartEnvironment("env"), WANT_PLAN]
    assert bare.state.environments["env"].status is ResourceStatus.CREATING
    step = bare.do(ask.AllListed(environment="env", hosts=()))
    assert step.events == [
        ev.EnvironmentStatusChanged("env", ResourceStatus.VALID, "ComputeEnvironment Healthy"),
        ev.HostsListed("env"),
    ]


def test_ce_7_a_backend_that_cannot_work_makes_it_invalid_and_an_update_repairs_it(rig: Rig) -> None:
    job = rig.submit()
    step = rig.do(ask.EnvironmentFailed(environment="env", reason="broken"))
    assert step.events == [ev.EnvironmentStatusChanged("env", ResourceStatus.INVALID, "broken")]
    assert rig.do(ask.EnvironmentFailed(environment="env", reason="broken")).events == []
    assert rig.place().events == []
    step = rig.do(ask.UpdateEnvironment(name="env"))
    assert StartEnvironment("env") in step.effects
    rig.do(ask.AllListed(environment="env", hosts=("host",)))
    assert launches(rig.place()) == [(job, 1, [0], 1)]


def test_ce_7_running_work_is_not_touched_by_its_environments_failure(rig: Rig) -> None:
    job = rig.submit()
    rig.place()
    rig.start(job)
    rig.do(ask.EnvironmentFailed(environment="env", reason="broken"))
    assert rig.status(job) == "RUNNING"
    rig.exit(job)
    assert rig.status(job) == "SUCCEEDED"


def test_ce_6_a_disabled_environment_takes_no_placements_and_its_jobs_go_on(rig: Rig) -> None:
    running, waiting = rig.submit(vcpus=4), rig.submit()
    rig.place()
    rig.do(ask.UpdateEnvironment(name="env", state=DISABLED))
    rig.start(running)
    rig.exit(running)
    assert rig.status(running) == "SUCCEEDED"
    assert rig.place().events == []
    rig.do(ask.UpdateEnvironment(name="env", state=ENABLED))
    assert launches(rig.place()) == [(waiting, 1, [0], 1)]


def test_ce_6_work_waits_for_another_environment(rig: Rig) -> None:
    rig.environment("spare")
    rig.host("spare", environment="spare")
    rig.queue("both", "env", "spare")
    rig.do(ask.UpdateEnvironment(name="env", state=DISABLED))
    job = rig.submit(queue="both")
    assert launches(rig.place()) == [(job, 1, [0], 2)]


def test_ce_16_only_a_disabled_environment_without_queues_is_deleted(rig: Rig) -> None:
    with pytest.raises(Conflict, match="Cannot delete: it is ENABLED"):
        rig.do(ask.DeleteEnvironment(name="env"))
    rig.do(ask.UpdateEnvironment(name="env", state=DISABLED))
    with pytest.raises(Conflict, match="Cannot delete, found existing JobQueue relationship: queue"):
        rig.do(ask.DeleteEnvironment(name="env"))
    delete_queue(rig)
    step = rig.do(ask.DeleteEnvironment(name="env", principal="ann", request_id="r1"))
    assert step.events == [ev.EnvironmentDeleted("env", "ann", "r1")]
    assert step.effects == [CloseEnvironment("env")]
    assert (rig.state.environments, rig.state.hosts) == ({}, {})


def test_ce_17_nothing_may_run_on_a_deleted_environment(rig: Rig) -> None:
    rig.environment("other")
    job = rig.submit()
    rig.place()
    rig.do(ask.UpdateQueue(name="queue", compute_environments=("other",)))
    rig.do(ask.UpdateEnvironment(name="env", state=DISABLED))
    with pytest.raises(Conflict, match="Cannot delete: 1 attempts are still running on it"):
        rig.do(ask.DeleteEnvironment(name="env"))
    rig.exit(job)
    rig.do(ask.DeleteEnvironment(name="env"))
    rig.environment("env")
    assert rig.host().events[0] == ev.HostJoined(2, "env", "host", 4000, None, (), None)


def test_ce_1_an_existing_name_is_refused(rig: Rig) -> None:
    body = rig.state.environments["env"].body
    with pytest.raises(Conflict, match="Object already exists"):
        rig.do(ask.CreateEnvironment(name="env", body=body))
    assert rig.do(ask.CreateEnvironment(name="env", body=body, exist_ok=True)).events == []
    other = EnvironmentBody(backend="other", max_vcpus_milli=1_000_000)
    with pytest.raises(Conflict, match="exists with another backend"):
        rig.do(ask.CreateEnvironment(name="env", body=other, exist_ok=True))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"max_vcpus_milli": 0}, "max_vcpus is above 0"),
        ({"max_vcpus_milli": 10, "min_vcpus_milli": 11}, "min_vcpus is 0 to max_vcpus"),
        ({"max_vcpus_milli": 10, "min_vcpus_milli": -1}, "min_vcpus is 0 to max_vcpus"),
        ({"max_vcpus_milli": 10, "tags": {"aws:": ""}}, "a tag's key"),
    ],
)
def test_ce_1_bad_values_are_refused(bare: Rig, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidValue, match=text):
        bare.do(ask.CreateEnvironment(name="env", body=EnvironmentBody(backend="null", **fields)))
    with pytest.raises(InvalidValue, match="name"):
        bare.do(ask.CreateEnvironment(name="e nv", body=EnvironmentBody(backend="null", max_vcpus_milli=1)))


def test_ce_1_there_is_a_quota_of_environments() -> None:
    rig = ready_rig(Quotas(compute_environments_max=1))
    with pytest.raises(QuotaExceeded, match="at most 1 compute environments"):
        rig.environment("second")


def test_ce_unknown_environments(rig: Rig) -> None:
    for item in (ask.DeleteEnvironment(name="nothing"), ask.UpdateEnvironment(name="nothing")):
        with pytest.raises(NotFound, match="compute environment 'nothing' does not exist"):
            rig.do(item)


def test_ce_an_update_of_a_valid_environment_that_changes_nothing_is_no_event(rig: Rig) -> None:
    assert rig.do(ask.UpdateEnvironment(name="env", state=ENABLED)).events == []


@pytest.mark.parametrize("environment", ["nothing", "env"])
def test_reports_of_what_is_not_there_change_nothing(rig: Rig, environment: str) -> None:
    """A report is never refused: the environment, host, job or attempt may have gone meanwhile."""
    items: list[ask.Input] = [
        ask.HostDown(environment=environment, host="nothing", reason="gone"),
        ask.Started(environment=environment, job=99, number=1, indexes=[0]),
        ask.Ended(environment=environment, job=99, number=1, indexes=[0]),
        ask.Unknown(environment=environment, job=99, number=1, indexes=[0]),
    ]
    if environment == "nothing":
        items += [
            ask.HostUp(environment=environment, host="host", vcpus_milli=1),
            ask.AllListed(environment=environment, hosts=()),
            ask.EnvironmentFailed(environment=environment, reason="broken"),
        ]
    for item in items:
        step = rig.do(item)
        assert (step.events, step.effects) == ([], [])
