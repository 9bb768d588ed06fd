"""Contract 5.1, 5.3, 5.4 and 5.5: definitions, resources, parameters, overrides, environment variables."""

from __future__ import annotations

from typing import Any

import pytest
from anybatch.kernel.core import events as ev
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.errors import Conflict, InvalidValue, NotFound, QuotaExceeded
from anybatch.kernel.core.model import DefinitionBody
from core_rig import Rig


def deregister(rig: Rig, revision: int, name: str = "definition") -> list[ev.AnyEvent]:
    return rig.do(ask.DeregisterDefinition(name=name, revision=revision)).events


def test_jd_1_revisions_count_up_from_1_and_are_never_used_again(rig: Rig) -> None:
    assert [rig.define().reply for _ in range(3)] == [("definition", n) for n in (1, 2, 3)]
    deregister(rig, 3)
    assert rig.define().reply == ("definition", 4)
    assert rig.define("other").reply == ("other", 1)


def test_jd_1_registering_is_one_event(rig: Rig) -> None:
    body = DefinitionBody(command=("a",))
    step = rig.do(ask.RegisterDefinition(name="d", body=body, principal="ann", request_id="r1"))
    assert step.events == [ev.DefinitionRegistered("d", 1, body, "ann", "r1")]
    assert step.effects == []


@pytest.mark.parametrize("name", ["", "a b", "a:1", "x" * 129, "é", "a/b"])
def test_jd_1_names(rig: Rig, name: str) -> None:
    with pytest.raises(InvalidValue, match="name: .* 1 to 128 letters, digits"):
        rig.define(name)
    rig.define("x" * 128)
    rig.define("_-A9")


def test_jd_3_a_new_revision_inherits_nothing(rig: Rig) -> None:
    rig.define(environment={"A": "1"}, timeout_ms=9, vcpus_milli=2000)
    rig.define(command=("b",))
    spec = rig.job(rig.submit(definition="definition")).spec
    assert (spec.command, spec.environment, spec.timeout_ms, spec.vcpus_milli) == (("b",), {}, None, 1000)


def test_jd_3_a_revision_never_changes(rig: Rig) -> None:
    rig.define(command=("a",))
    rig.define(command=("b",))
    assert rig.job(rig.submit(definition="definition:1")).spec.command == ("a",)


def test_jd_4_a_bare_name_is_the_newest_active_revision(rig: Rig) -> None:
    for word in ("a", "b", "c"):
        rig.define(command=(word,))
    deregister(rig, 3)
    job = rig.job(rig.submit(definition="definition"))
    assert (job.spec.command, job.spec.definition) == (("b",), "definition:2")
    deregister(rig, 2)
    assert rig.job(rig.submit(definition="definition")).spec.definition == "definition:1"


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("nothing", "job definition 'nothing' does not exist"),
        ("nothing:1", "does not exist"),
        ("definition:3", "its revisions are 1 to 2"),
        ("definition:x", "its revisions are 1 to 2"),
        ("definition:1", "that revision is INACTIVE"),
    ],
)
def test_jd_6_unknown_and_inactive_revisions_are_refused(rig: Rig, reference: str, text: str) -> None:
    rig.define()
    rig.define()
    deregister(rig, 1)
    with pytest.raises(NotFound, match=text):
        rig.submit(definition=reference)
    deregister(rig, 2)
    with pytest.raises(NotFound, match="all its revisions are INACTIVE"):
        rig.submit(definition="definition")


def test_jd_6_queued_jobs_carry_on_and_inactive_revisions_stay(rig: Rig) -> None:
    rig.define(command=("a",))
    job = rig.submit(definition="definition")
    deregister(rig, 1)
    assert not rig.state.definitions["definition"][1].active
    rig.run(job)
    assert rig.status(job) == "SUCCEEDED"


def test_jd_7_deregistering_twice_succeeds_and_an_unknown_one_does_not(rig: Rig) -> None:
    rig.define()
    assert deregister(rig, 1) == [ev.DefinitionDeregistered("definition", 1, None, None)]
    assert deregister(rig, 1) == []
    with pytest.raises(NotFound, match="'definition:2' does not exist"):
        deregister(rig, 2)
    with pytest.raises(NotFound):
        deregister(rig, 1, "other")


def test_jd_8_an_identical_definition_is_a_new_revision(rig: Rig) -> None:
    assert rig.define().reply == ("definition", 1)
    assert rig.define().reply == ("definition", 2)


def test_exist_ok_gives_the_newest_revision_if_it_is_equal(rig: Rig) -> None:
    rig.define(command=("a",))
    rig.define(command=("b",))
    step = rig.define(command=("b",), exist_ok=True)
    assert (step.events, step.reply) == ([], ("definition", 2))


def test_exist_ok_names_the_field_that_differs(rig: Rig) -> None:
    rig.define(vcpus_milli=500)
    with pytest.raises(Conflict, match="exists with another vcpus_milli: 500 is there, 1000 was asked for") as caught:
        rig.define(exist_ok=True)
    assert caught.value.field == "vcpus_milli"


def test_exist_ok_makes_a_new_one_where_the_newest_is_inactive(rig: Rig) -> None:
    rig.define()
    deregister(rig, 1)
    assert rig.define(exist_ok=True).reply == ("definition", 2)


@pytest.mark.parametrize("where", ["definition", "submit"])
@pytest.mark.parametrize(
    ("field", "value", "error", "text"),
    [
        ("vcpus_milli", 0, InvalidValue, "vcpus are above 0"),
        ("memory_mib", -1, InvalidValue, "memory is 0"),
        ("gpus", -1, InvalidValue, "gpus are 0 to 1024"),
        ("gpus", 1025, InvalidValue, "gpus are 0 to 1024"),
        ("scheduling_priority", 10_000, InvalidValue, "a scheduling priority is 0 to 9999"),
        ("max_running", 0, InvalidValue, "max_running is 1 or more children"),
        ("max_failures", 0, InvalidValue, "max_failures is 1 or more children"),
        ("max_checkpoints", 0, InvalidValue, "max_checkpoints is 1 to 10000"),
        ("workdir", "relative", InvalidValue, "an absolute path"),
        ("script", "echo", InvalidValue, "a script's first line names its interpreter"),
        ("script", "#!/bin/sh\n" + "x" * (256 * 1024), QuotaExceeded, "at most 262144 bytes"),
        ("command", ("a\0b",), InvalidValue, r"command\[0\]"),
        ("command", ("", "a"), InvalidValue, "the program's name is not empty"),
        ("tags", {f"t{n}": "" for n in range(51)}, QuotaExceeded, "at most 50 tags"),
        ("tags", {"aws:x": "1"}, InvalidValue, "does not begin with 'aws:'"),
        ("tags", {"": "1"}, InvalidValue, "1 to 128 characters"),
        ("tags", {"k": "v" * 257}, InvalidValue, "at most 256 characters"),
        ("environment", {"AWS_BATCH_X": "1"}, InvalidValue, "names that begin with AWS_BATCH are reserved"),
        ("environment", {"A=B": "1"}, InvalidValue, "neither '='"),
        ("environment", {"A": "\0"}, InvalidValue, "no zero byte"),
        ("environment", {"A": "x" * 40_000}, QuotaExceeded, "at most"),
    ],
)
def test_rr_1_ev_1_bad_values_are_refused_wherever_they_stand(
    rig: Rig, where: str, field: str, value: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        if where == "definition":
            rig.define(**{field: value})
        else:
            rig.submit(**{field: value})
    assert rig.state.definitions == {}
    assert rig.state.jobs == {}


def test_jd_a_definition_has_a_command_or_a_script(rig: Rig) -> None:
    with pytest.raises(InvalidValue, match="a definition has a command, a script or an image"):
        rig.define(command=())
    rig.define(command=(), script="#!/bin/sh\necho")
    with pytest.raises(InvalidValue, match="a job has a command, a script or an image"):
        rig.submit(command=())


def test_rr_5_overrides_replace_by_type(rig: Rig) -> None:
    rig.define(vcpus_milli=2000, memory_mib=64, gpus=1)
    shape = rig.job(rig.submit(definition="definition", memory_mib=128)).shape
    assert shape == (2000, 128, 1, ())
    assert rig.job(rig.submit(definition="definition", vcpus=0.25, gpus=0)).shape == (250, 64, 0, ())


def test_pa_1_parameters_of_the_submit_go_over_the_definitions(rig: Rig) -> None:
    rig.define(command=("Ref::a", "Ref::b"), parameters={"a": "1", "b": "2"})
    spec = rig.job(rig.submit(definition="definition", parameters={"b": "3", "more": "4"})).spec
    assert spec.parameters == {"a": "1", "b": "3", "more": "4"}
    assert spec.command == ("1", "3")


def test_pa_2_only_the_command_is_substituted(rig: Rig) -> None:
    spec = rig.job(rig.submit(command=("Ref::a",), environment={"E": "Ref::a"}, parameters={"a": "1"})).spec
    assert (spec.command, spec.environment) == (("1",), {"E": "Ref::a"})


def test_pa_3_every_reference_needs_a_value_and_no_job_is_made(rig: Rig) -> None:
    rig.define(command=("echo", "Ref::missing"))
    with pytest.raises(InvalidValue, match="Unable to substitute value. No parameter found for reference missing"):
        rig.submit(definition="definition")
    assert rig.state.jobs == {}
    assert rig.submit(definition="definition", parameters={"missing": ""}) == 1


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("s3://Ref::a/x", "s3://1/x"),
        ("Ref::a-Ref::ab", "dash"),
        ("Ref::ab", "2"),
        ("Ref::aRef::ab", "other"),
        ("ref::a", "ref::a"),
        ("Ref:a", "Ref:a"),
        ("$Ref::a.txt", "$1.txt"),
    ],
)
def test_pa_4_the_longest_name_wins_also_inside_a_word(rig: Rig, word: str, expected: str) -> None:
    values = {"a": "1", "ab": "2", "a-Ref": "dash-Ref", "aRef": "other"}
    if expected == "dash":
        expected = "dash-Ref::ab"  # `-` is a letter of names, so this one is called `a-Ref`
    if expected == "other":
        expected = "other::ab"
    assert rig.job(rig.submit(command=(word,), parameters=values)).spec.command == (expected,)


def test_pa_4_values_are_not_substituted_again(rig: Rig) -> None:
    spec = rig.job(rig.submit(command=("Ref::a",), parameters={"a": "Ref::b", "b": "1"})).spec
    assert spec.command == ("Ref::b",)


def test_pa_5_an_overriding_command_is_substituted_too(rig: Rig) -> None:
    rig.define(command=("old",), parameters={"a": "1"})
    spec = rig.job(rig.submit(definition="definition", command=("new", "Ref::a"))).spec
    assert spec.command == ("new", "1")


def test_pa_6_environment_is_merged_by_name_and_the_override_wins(rig: Rig) -> None:
    rig.define(environment={"A": "1", "B": "2"})
    spec = rig.job(rig.submit(definition="definition", environment={"B": "3", "C": "4"})).spec
    assert spec.environment == {"A": "1", "B": "3", "C": "4"}


def test_sj_6_the_revision_is_fixed_at_submit(rig: Rig) -> None:
    rig.define(command=("old",))
    job = rig.submit(definition="definition")
    rig.define(command=("new",))
    assert (rig.job(job).spec.command, rig.job(job).spec.definition) == (("old",), "definition:1")


@pytest.mark.parametrize("name", ["", "-x", "_x", "a b", "x" * 129, "a.b"])
def test_sj_4_job_names(rig: Rig, name: str) -> None:
    with pytest.raises(InvalidValue, match="a job name is 1 to 128 letters"):
        rig.submit(name)
    rig.submit("9-_" + "x" * 125)


def test_sj_3_a_refused_submit_uses_up_no_serial(rig: Rig) -> None:
    with pytest.raises(NotFound):
        rig.submit(queue="nowhere")
    assert rig.submit() == 1
