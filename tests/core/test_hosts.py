"""Hosts that are registered, drained and deregistered, and hosts that a backend keeps from taking attempts."""

from __future__ import annotations

import pytest
from anybatch.kernel.core import events as ev
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.effects import StartEnvironment
from anybatch.kernel.core.errors import Conflict, InvalidValue, NotFound
from anybatch.kernel.core.explain import Code, explain, never_fits
from anybatch.kernel.core.hosts import HOST_CHARS_MAX
from anybatch.kernel.core.model import EnvironmentBody
from core_rig import Rig


def lab(rig: Rig, *hosts: str) -> None:
    """An unmanaged environment "lab" with these registered hosts, each of them up, and the queue "queue" on it."""
    body = EnvironmentBody(backend="null", max_vcpus_milli=1_000_000, managed=False)
    rig.do(ask.CreateEnvironment(name="lab", body=body))
    for host in hosts:
        rig.do(ask.RegisterHost(environment="lab", host=host, settings={"address": host}))
        rig.host(host, 2, environment="lab")
    rig.do(ask.AllListed(environment="lab", hosts=hosts))
    if "queue" not in rig.state.queues:
        rig.queue("queue", "lab")


def drain(rig: Rig, host: str, reason: str | None = "new disks") -> None:
    rig.do(ask.DrainHost(environment="lab", host=host, reason=reason))


def pause(rig: Rig, host: str, reason: str | None) -> list[ev.AnyEvent]:
    return rig.do(ask.HostPaused(environment="lab", host=host, reason=reason)).events


def codes(rig: Rig, job: int) -> list[Code]:
    return [reason.code for reason in explain(rig.state, rig.job(job), None, rig.now_ms)]


def text(rig: Rig, job: int) -> str:
    return explain(rig.state, rig.job(job), None, rig.now_ms)[0].text


def test_registering_tells_the_backend_and_is_kept(bare: Rig) -> None:
    lab(bare)
    step = bare.do(ask.RegisterHost(environment="lab", host="a", settings={"zone": "z1"}))
    assert step.events == [ev.HostRegistered("lab", "a", {"zone": "z1"}, None, None)]
    assert StartEnvironment("lab") in step.effects
    assert bare.state.environments["lab"].registered == {"a": {"zone": "z1"}}
    assert bare.do(ask.RegisterHost(environment="lab", host="a", settings={"zone": "z1"})).events == []


def test_a_drained_host_gets_nothing_more_and_what_runs_goes_on(bare: Rig) -> None:
    lab(bare, "a", "b")
    job = bare.submit(size=4)
    bare.place(1)
    bare.start(job, 0)
    on = bare.state.hosts[bare.job(job).children.hosts()[0]].name
    drain(bare, on)
    bare.place()
    assert bare.statuses(job) == "rssR"
    assert all(bare.state.hosts[bare.job(job).children.hosts()[i]].name != on for i in (1, 2))
    bare.exit(job, 0)
    assert bare.status(job, 0).value == "SUCCEEDED"


def test_explain_says_that_all_hosts_are_drained_and_undoing_it_places(bare: Rig) -> None:
    lab(bare, "a")
    job = bare.submit()
    drain(bare, "a")
    bare.place()
    assert codes(bare, job) == [Code.HOST_DRAINED]
    assert "host 'a' is drained: new disks" in text(bare, job)
    assert never_fits(bare.state, bare.job(job)) is None
    drain(bare, "a", None)
    bare.place()
    assert bare.statuses(job) == "s"


def test_a_drain_outlives_the_hosts_going_and_registering_again_ends_it(bare: Rig) -> None:
    lab(bare, "a")
    drain(bare, "a")
    bare.do(ask.HostDown(environment="lab", host="a", reason="gone"))
    bare.host("a", 2, environment="lab")
    assert bare.state.environments["lab"].by_free == []
    bare.do(ask.RegisterHost(environment="lab", host="a", settings={"address": "a"}))
    assert len(bare.state.environments["lab"].by_free) == 1


def test_what_a_backend_pauses_is_passed_by_and_explained(bare: Rig) -> None:
    lab(bare, "a", "b")
    assert pause(bare, "a", "it cannot be reached") == [ev.HostHeld(1, "it cannot be reached")]
    assert pause(bare, "a", "it cannot be reached") == []
    job = bare.submit(size=3)
    bare.place()
    assert bare.statuses(job) == "ssR"
    reasons = explain(bare.state, bare.job(job), 2, bare.now_ms)
    assert reasons[0].code is Code.NO_CAPACITY
    assert "host 'a' takes none for now: it cannot be reached" in reasons[0].text
    pause(bare, "a", None)
    bare.place()
    assert bare.statuses(job) == "sss"


def test_a_host_that_was_never_reached_may_be_large_enough(bare: Rig) -> None:
    lab(bare)
    bare.host("a", 0, environment="lab")
    pause(bare, "a", "its key is not known")
    job = bare.submit(vcpus=64)
    bare.place()
    assert codes(bare, job) == [Code.HOST_UNAVAILABLE]
    assert "its key is not known" in text(bare, job)
    assert never_fits(bare.state, bare.job(job)) is None


def test_a_drained_host_is_not_reserved(bare: Rig) -> None:
    lab(bare, "a", "b")
    small, large = bare.submit(size=4), bare.submit(vcpus=2)
    bare.place()
    drain(bare, "a")
    bare.advance(400_000)
    assert codes(bare, large)[0] in (Code.NO_CAPACITY, Code.BEHIND_OTHERS)
    bare.place()
    assert bare.statuses(small) == "ssss"


def test_deregistering_takes_an_idle_host_and_refuses_a_busy_one(bare: Rig) -> None:
    lab(bare, "a", "b")
    job = bare.submit(attempts=2)
    bare.place()
    bare.start(job)
    on = bare.state.hosts[bare.job(job).children.hosts()[0]].name
    other = "b" if on == "a" else "a"
    bare.do(ask.DeregisterHost(environment="lab", host=other))
    with pytest.raises(Conflict, match="1 attempts run on it"):
        bare.do(ask.DeregisterHost(environment="lab", host=on))
    step = bare.do(ask.DeregisterHost(environment="lab", host=on, force=True))
    assert [type(event) for event in step.events] == [ev.AttemptsEnded, ev.HostLeft, ev.HostDeregistered]
    assert bare.past(job)[0].cause.failure == "host lost"
    assert bare.state.environments["lab"].registered == {}
    assert bare.statuses(job) == "R"


def test_what_cannot_be_asked_of_hosts(rig: Rig) -> None:
    with pytest.raises(Conflict, match="it is managed"):
        rig.do(ask.RegisterHost(environment="env", host="a", settings={}))
    with pytest.raises(NotFound, match="the hosts of environment 'env' are host"):
        rig.do(ask.DrainHost(environment="env", host="nowhere", reason="x"))
    with pytest.raises(Conflict, match="it was not registered"):
        rig.do(ask.DeregisterHost(environment="env", host="host"))
    lab(rig)
    for name in ("", " a", "a\n", "x" * (HOST_CHARS_MAX + 1)):
        with pytest.raises(InvalidValue, match="printable"):
            rig.do(ask.RegisterHost(environment="lab", host=name, settings={}))
    with pytest.raises(NotFound, match="it has no host"):
        rig.do(ask.DeregisterHost(environment="lab", host="a"))


def test_attempts_not_found_are_lost_after_the_time_that_their_backend_gives(rig: Rig) -> None:
    job = rig.submit()
    rig.place()
    rig.start(job)
    rig.do(ask.Unknown(environment="env", job=job, number=1, indexes=[0], for_ms=600_000))
    rig.advance(599_000)
    assert rig.statuses(job) == "r"
    rig.advance(2_000)
    assert rig.statuses(job) in ("-", "R")
