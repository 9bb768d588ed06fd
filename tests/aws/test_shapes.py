"""The shapes of requests are those of botocore's model, member by member; every operation there is routed."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest
from anybatch.plugins.aws.operations import NOT_SERVED, POSTED, SERVED, TAG_OPERATIONS, TAGS_PATH
from anybatch.plugins.aws.shape import Shape
from aws_rig import Served, service_model
from aws_rig import compare as judge

MODEL = service_model()
SERVED_BY_NAME = {operation.name: operation for operation in (*SERVED, *TAG_OPERATIONS.values())}


def test_w_2_every_operation_of_the_model_is_routed() -> None:
    for name in MODEL.operation_names:
        http = MODEL.operation_model(name).http
        if http["requestUri"].startswith(TAGS_PATH):
            assert TAG_OPERATIONS[http["method"]].name == name
        else:
            assert POSTED[http["requestUri"]].name == name
            assert http["method"] == "POST"
    assert len(MODEL.operation_names) == len(POSTED) + len(TAG_OPERATIONS)
    assert set(SERVED_BY_NAME) | set(NOT_SERVED) == set(MODEL.operation_names)


def fields(kind: type[msgspec.Struct]) -> dict[str, tuple[Any, bool]]:
    hints = typing.get_type_hints(kind)
    return {field.name: (hints[field.name], field.required) for field in msgspec.structs.fields(kind)}


def compare(kind: Any, shape: Any, path: str) -> None:
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    if type(None) in typing.get_args(kind):
        assert len(options) == 1, path
        kind = options[0]
    match shape.type_name:
        case "structure":
            assert issubclass(kind, Shape), path
            own = fields(kind)
            assert set(own) == set(shape.members), path
            for name, (member, required) in own.items():
                assert required == (name in shape.required_members), f"{path}.{name}"
                compare(member, shape.members[name], f"{path}.{name}")
        case "list":
            assert typing.get_origin(kind) is list, path
            compare(typing.get_args(kind)[0], shape.member, f"{path}[]")
        case "map":
            assert typing.get_origin(kind) is dict, path
            compare(typing.get_args(kind)[1], shape.value, f"{path}.*")
        case "string":
            literal = typing.get_origin(kind) is typing.Literal
            assert kind is str or (literal and set(typing.get_args(kind)) == set(shape.enum)), path
        case "integer" | "long":
            assert kind is int, path
        case "boolean":
            assert kind is bool, path
        case other:
            raise AssertionError(f"{path}: {other}")


@pytest.mark.parametrize("name", sorted(SERVED_BY_NAME))
def test_a_request_has_the_members_of_the_model(name: str) -> None:
    compare(SERVED_BY_NAME[name].request, MODEL.operation_model(name).input_shape, name)


def test_the_comparison_can_fail() -> None:
    class Odd(Shape):
        jobs: list[int]

    with pytest.raises(AssertionError):
        compare(Odd, MODEL.operation_model("DescribeJobs").input_shape, "x")


def test_the_judge_of_answers_can_fail() -> None:
    shape = MODEL.operation_model("SubmitJob").output_shape
    good = {"jobArn": "a", "jobName": "b", "jobId": "c"}
    judge(good, shape, "x")
    for bad in ({**good, "more": 1}, {"jobName": "b"}, {**good, "jobId": 1}):
        with pytest.raises(AssertionError):
            judge(bad, shape, "x")


def test_sv_5_what_is_not_served_answers_a_clean_error() -> None:
    with Served() as served:
        before = served.run(served.kernel.last_event_id())
        for name in NOT_SERVED:
            status, body, headers = served.post(f"/v1/{name.lower()}")
            assert status == 400
            assert headers["x-amzn-ErrorType"] == "ClientException"
            assert body["message"] == f"{name} is not supported here (anybatch). Nothing was changed."
        assert served.run(served.kernel.last_event_id()) == before
        status, body, _ = served.post("/v1/nosuchthing")
        assert status == 404
