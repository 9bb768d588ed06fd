"""The limit of SubmitJob calls a second: AWS's answer, which SDKs retry by themselves (contract W-9, W-10)."""

from __future__ import annotations

import botocore.exceptions
import pytest
from anybatch import InvalidValue
from anybatch.plugins.aws import AwsSettings
from anybatch.plugins.aws.errors import ApiError
from anybatch.plugins.aws.server import BURST_S, Throttle
from anybatch.plugins.aws.settings import check_settings
from aws_rig import Served, add_queue, define

RATE = 5.0


def test_w_9_beyond_the_rate_it_is_429_and_no_job_and_sdks_come_again() -> None:
    with Served(settings=AwsSettings(images="local", submit_rate=0.001)) as served:
        client = served.client()
        add_queue(client)
        define(client, "d", "true")
        submit = {"jobName": "x", "jobQueue": "q", "jobDefinition": "d"}
        client.submit_job(**submit)
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            client.submit_job(**submit)
        answer = caught.value.response
        assert (answer["Error"]["Code"], answer["Error"]["Message"]) == (
            "TooManyRequestsException", "Too Many Requests",
        )  # fmt: skip
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 429
        every = [{"name": "JOB_NAME", "values": ["x"]}]
        assert len(client.list_jobs(jobQueue="q", filters=every)["jobSummaryList"]) == 1
        client.describe_job_queues()  # no other call is limited
        for record in served.run(_audited(served)):
            assert record in (None, "TooManyRequestsException")


async def _audited(served: Served) -> list[str | None]:
    found = [record.error_code async for record in served.kernel.audit(operation="SubmitJob")]
    assert len(found) == 2
    return found


@pytest.mark.parametrize("mode", ["standard", "legacy", "adaptive"])
def test_w_10_each_retry_mode_of_boto3_gets_through(mode: str) -> None:
    with Served(settings=AwsSettings(images="local", submit_rate=RATE)) as served:
        client = served.client()
        add_queue(client)
        define(client, "d", "true")
        patient = served.client(retries={"mode": mode, "total_max_attempts": 10})
        many = int(RATE * BURST_S) + 3
        answers = [patient.submit_job(jobName="x", jobQueue="q", jobDefinition="d") for _ in range(many)]
        assert len({answer["jobId"] for answer in answers}) == many
        assert sum(answer["ResponseMetadata"]["RetryAttempts"] for answer in answers) > 0


def test_a_bucket_holds_a_second_s_worth_and_fills_at_the_rate() -> None:
    now = 100.0
    bucket = Throttle(RATE, lambda: now)

    def taken() -> int:
        count = 0
        while True:
            try:
                bucket.take()
            except ApiError:
                return count
            count += 1

    assert taken() == RATE * BURST_S
    assert taken() == 0
    now += 0.65
    assert taken() == 3
    now += 3600
    assert taken() == RATE * BURST_S


@pytest.mark.parametrize("rate", [0, -1.0, float("nan")])
def test_a_rate_is_above_zero(rate: float) -> None:
    with pytest.raises(InvalidValue, match="submit_rate"):
        check_settings(AwsSettings(submit_rate=rate))
