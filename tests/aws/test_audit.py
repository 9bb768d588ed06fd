"""CT-10, CT-11: every call is recorded, allowed or refused, reads included, as CloudTrail records it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from anybatch import AuditRecord
from aws_rig import Served, define, refused


def records(served: Served) -> list[AuditRecord]:
    async def read() -> list[AuditRecord]:
        return [record async for record in served.kernel.audit()]

    return served.run(read())


def last(served: Served) -> AuditRecord:
    return records(served)[-1]


def test_ct_10_a_change_is_recorded_with_what_was_asked_and_answered(served: Served, client: Any) -> None:
    define(client, "d", "true")
    answer = client.submit_job(jobName="j", jobQueue="q", jobDefinition="d")

    record = last(served)
    assert (record.front_end, record.operation, record.principal) == ("aws", "SubmitJob", "admin")
    assert (record.read_only, record.error_code) == (False, None)
    assert record.request_id == answer["ResponseMetadata"]["RequestId"]
    detail = record.detail
    assert (detail["eventSource"], detail["eventName"], detail["readOnly"]) == (
        "batch.amazonaws.com",
        "SubmitJob",
        False,
    )
    assert detail["requestParameters"] == {"jobName": "j", "jobQueue": "q", "jobDefinition": "d"}
    assert detail["responseElements"]["jobId"] == answer["jobId"]
    assert detail["userIdentity"]["arn"].endswith(":user/admin")
    assert detail["userIdentity"]["accessKeyId"] == served.key
    assert (detail["awsRegion"], detail["sourceIPAddress"]) == ("us-east-1", "127.0.0.1")
    assert "Boto3" in detail["userAgent"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", detail["eventTime"])
    assert "errorCode" not in detail


def test_ct_11_a_read_has_no_response_elements(served: Served, client: Any) -> None:
    client.describe_job_queues()
    record = last(served)
    assert (record.operation, record.read_only) == ("DescribeJobQueues", True)
    assert (record.detail["responseElements"], record.detail["readOnly"]) == (None, True)


def test_a_refused_call_is_recorded_with_its_error(served: Served, client: Any) -> None:
    with refused(client, "nowhere"):
        client.submit_job(jobName="j", jobQueue="nowhere", jobDefinition="d")
    record = last(served)
    assert (record.operation, record.error_code, record.read_only) == ("SubmitJob", "ClientException", False)
    assert record.detail["errorCode"] == "ClientException"
    assert "nowhere" in record.detail["errorMessage"]
    assert record.detail["responseElements"] is None


@pytest.mark.parametrize(
    ("path", "body", "operation"),
    [
        ("/v1/submitjob", b"{", "SubmitJob"),
        ("/v1/describejobs", b"\xff", "DescribeJobs"),
        ("/v1/nosuch", b"{}", "UnknownOperation"),
    ],
)
def test_what_is_no_call_at_all_is_recorded_too(served: Served, path: str, body: bytes, operation: str) -> None:
    status, _, headers = served.post(path, body)
    assert status >= 400
    record = last(served)
    assert (record.operation, record.request_id) == (operation, headers["x-amzn-RequestId"])
    assert record.error_code == headers["x-amzn-ErrorType"]


def test_a_call_by_nobody_known_is_recorded_as_anonymous(served: Served) -> None:
    status, _, headers = served.post("/v1/describejobs", signed=False)
    assert status == 403
    record = last(served)
    assert (record.principal, record.operation, record.error_code) == (
        "anonymous", "DescribeJobs", headers["x-amzn-ErrorType"],
    )  # fmt: skip


def test_w_10_what_no_record_can_hold_costs_the_record_its_parameters_and_never_the_call(served: Served) -> None:
    define(served.client(), "d", "true")
    body = b'{"jobName": "odd", "jobQueue": "q", "jobDefinition": "d", "unknown": 1' + b"0" * 40 + b"}"
    status, answer, _ = served.post("/v1/submitjob", body, User_Agent="ag\xe9nt")
    assert status == 200
    record = last(served)
    assert (record.operation, record.error_code) == ("SubmitJob", None)
    assert record.detail["requestParameters"] == {"omitted": "it has values that cannot be recorded"}
    assert record.detail["requestID"] == record.request_id
    assert record.detail["userAgent"].startswith("ag")
    assert answer["jobId"]
