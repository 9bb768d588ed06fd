"""CloudWatch Logs and ECS on the same port, as AWS Batch's clients use them; compared with botocore's models."""

from __future__ import annotations

import time
from typing import Any

import botocore.exceptions
import pytest
from anybatch.plugins.aws import ecs
from anybatch.plugins.aws.operations import ECS, LOGS
from aws_rig import Served, define, ended, in_status, service_model, until

GROUP = "/aws/batch/job"


@pytest.fixture
def logs(served: Served) -> Any:
    return served.client("logs")


def run(client: Any, name: str, script: str, **more: Any) -> dict[str, Any]:
    define(client, name, "sh", "-c", script)
    return ended(client, client.submit_job(jobName=name, jobQueue="q", jobDefinition=name, **more)["jobId"])


def stream_of(job: dict[str, Any]) -> dict[str, str]:
    return {"logGroupName": GROUP, "logStreamName": job["container"]["logStreamName"]}


def messages(answer: dict[str, Any]) -> list[str]:
    return [event["message"] for event in answer["events"]]


def test_the_shapes_are_of_the_models() -> None:
    for service, operations in (("logs", LOGS), ("ecs", ECS)):
        for operation in operations:
            assert operation.request is not None
            shape = service_model(service).operation_model(operation.name).input_shape
            assert set(operation.request.__struct_fields__) <= set(shape.members)
    assert ecs.VCPU_UNITS == 1024


def test_st_14_a_jobs_log_in_pages(client: Any, logs: Any) -> None:
    job = run(client, "pages", "for i in 0 1 2 3 4 5 6; do echo line $i; done; printf 'no end'")
    stream = stream_of(job)
    whole = [*(f"line {n}" for n in range(7)), "no end"]
    answer = logs.get_log_events(**stream, startFromHead=True)
    assert messages(answer) == whole
    assert all(job["startedAt"] <= event["timestamp"] <= job["stoppedAt"] for event in answer["events"])

    # forward, in threes; at the end the token stays the same
    token: dict[str, str] = {}
    seen: list[str] = []
    while True:
        answer = logs.get_log_events(**stream, startFromHead=True, limit=3, **token)
        seen += messages(answer)
        if token == {"nextToken": answer["nextForwardToken"]}:
            break
        token = {"nextToken": answer["nextForwardToken"]}
    assert seen == whole
    # without a token and not from the head: the newest page; then backward
    answer = logs.get_log_events(**stream, limit=3)
    assert messages(answer) == whole[5:]
    answer = logs.get_log_events(**stream, limit=3, nextToken=answer["nextBackwardToken"])
    assert messages(answer) == whole[2:5]
    answer = logs.get_log_events(**stream, limit=3, nextToken=answer["nextBackwardToken"])
    assert messages(answer) == whole[:2]
    again = logs.get_log_events(**stream, limit=3, nextToken=answer["nextBackwardToken"])
    assert (again["events"], again["nextBackwardToken"]) == ([], answer["nextBackwardToken"])
    # by time
    assert messages(logs.get_log_events(**stream, startTime=job["stoppedAt"] + 1)) == []
    assert messages(logs.get_log_events(**stream, endTime=job["startedAt"])) == []
    assert len(messages(logs.get_log_events(**stream, startTime=job["startedAt"]))) == 8


def test_a_running_jobs_log_grows_and_its_times_go_on(client: Any, logs: Any, tmp_path: Any) -> None:
    gate = tmp_path / "gate"
    define(
        client, "grows", "sh", "-c", f"echo first; printf 'half '; while [ ! -e {gate} ]; do sleep 0.05; done; echo two"
    )
    job_id = client.submit_job(jobName="grows", jobQueue="q", jobDefinition="grows")["jobId"]
    stream = stream_of(in_status(client, job_id, "RUNNING"))
    first = until(lambda: logs.get_log_events(**stream, startFromHead=True)["events"])
    assert [event["message"] for event in first] == ["first"]  # a line that is being written is not told yet
    token = logs.get_log_events(**stream, startFromHead=True)["nextForwardToken"]
    time.sleep(0.002)
    gate.touch()
    job = ended(client, job_id)
    answer = logs.get_log_events(**stream, nextToken=token)
    assert messages(answer) == ["half two"]
    # a client that follows by time sees each line once, and its time stays
    assert answer["events"][0]["timestamp"] > first[0]["timestamp"]
    assert logs.get_log_events(**stream, startFromHead=True)["events"] == [*first, *answer["events"]]
    assert answer["events"][0]["timestamp"] <= job["stoppedAt"] + 1000


def test_attempts_and_children_have_streams_of_their_own(client: Any, logs: Any) -> None:
    job = run(client, "tries", "echo try $AWS_BATCH_JOB_ATTEMPT; exit 1", retryStrategy={"attempts": 2})
    names = [attempt["container"]["logStreamName"] for attempt in job["attempts"]]
    for n, name in enumerate(names, 1):
        assert messages(logs.get_log_events(logGroupName=GROUP, logStreamName=name)) == [f"try {n}"]
    parent = run(client, "kids", "echo child $AWS_BATCH_JOB_ARRAY_INDEX", arrayProperties={"size": 3})
    children = client.describe_jobs(jobs=[f"{parent['jobId']}:{n}" for n in range(3)])["jobs"]
    for n, child in enumerate(children):
        assert messages(logs.get_log_events(**stream_of(child))) == [f"child {n}"]
    # DescribeLogStreams: whole names, prefixes, pages
    [one] = logs.describe_log_streams(logGroupName=GROUP, logStreamNamePrefix=names[0])["logStreams"]
    assert (one["logStreamName"], one["arn"].split(":")[2]) == (names[0], "logs")
    for size in (1, 2, 50):
        pages = logs.get_paginator("describe_log_streams").paginate(
            logGroupName=GROUP, logStreamNamePrefix="kids/", PaginationConfig={"PageSize": size}
        )
        found = [stream["logStreamName"] for page in pages for stream in page["logStreams"]]
        assert found == [child["container"]["logStreamName"] for child in children]
        every = logs.get_paginator("describe_log_streams").paginate(
            logGroupName=GROUP, PaginationConfig={"PageSize": size}
        )
        found = [stream["logStreamName"] for page in every for stream in page["logStreams"]]
        assert len(found) == len(set(found)) >= 5
        assert {*names} <= set(found)


def test_filter_log_events(client: Any, logs: Any) -> None:
    jobs = [run(client, f"filter{n}", f"echo alpha {n}; echo 'beta gamma' {n}; echo delta") for n in (1, 2)]
    names = [job["container"]["logStreamName"] for job in jobs]

    def found(**arguments: Any) -> list[str]:
        pages = logs.get_paginator("filter_log_events").paginate(logGroupName=GROUP, **arguments)
        events = [event for page in pages for event in page["events"]]
        assert len({event["eventId"] for event in events}) == len(events)
        return [event["message"] for event in events]

    assert found(logStreamNames=names[:1]) == ["alpha 1", "beta gamma 1", "delta"]
    assert found(logStreamNames=names, filterPattern="alpha") == ["alpha 1", "alpha 2"]
    assert found(logStreamNames=names, filterPattern='"beta gamma" 2') == ["beta gamma 2"]
    assert found(logStreamNamePrefix="filter1/") == ["alpha 1", "beta gamma 1", "delta"]
    assert found(logStreamNames=names, PaginationConfig={"PageSize": 2}) == found(logStreamNames=names)
    assert {"alpha 1", "alpha 2"} <= set(found())
    assert found(startTime=jobs[1]["stoppedAt"] + 60_000) == []
    with pytest.raises(botocore.exceptions.ClientError, match="more than words"):
        found(filterPattern="{ $.level = 1 }")


def test_what_is_not_there_is_said_as_cloudwatch_says_it(client: Any, logs: Any) -> None:
    job = run(client, "lost", "echo x")
    name = job["container"]["logStreamName"]
    for arguments in (
        {"logGroupName": "/other", "logStreamName": name},
        {"logGroupName": GROUP, "logStreamName": "nope"},
        {"logGroupName": GROUP, "logStreamName": name[:-1] + "7"},
        {"logGroupName": GROUP, "logStreamName": name.replace("lost/", "other/")},
        {"logGroupName": GROUP, "logStreamName": name.replace(job["jobId"][:8], "00000000")},
    ):
        with pytest.raises(logs.exceptions.ResourceNotFoundException):
            logs.get_log_events(**arguments)
    for arguments in ({"nextToken": "x"}, {"limit": 10_001}):
        with pytest.raises(logs.exceptions.InvalidParameterException):
            logs.get_log_events(**stream_of(job), **arguments)
    arn = f"arn:aws:logs:us-east-1:123456789012:log-group:{GROUP}"
    answer = logs.get_log_events(logGroupIdentifier=arn, logStreamName=name)
    assert messages(answer) == ["x"]
    assert logs.describe_log_groups()["logGroups"][0]["logGroupName"] == GROUP


def test_a_line_that_is_too_long_is_cut_and_odd_bytes_are_no_error(client: Any, logs: Any) -> None:
    script = "head -c 300000 /dev/zero | tr '\\0' x; echo; printf 'a\\rb\\377\\n\\n'"
    stream = stream_of(run(client, "odd", script))
    found = messages(logs.get_log_events(**stream, startFromHead=True))
    assert [len(message) for message in found] == [262_144, 37_856, 4, 0]
    assert found[2] == "a\rb\ufffd"


def test_ce_4_an_environments_cluster_and_hosts(served: Served, client: Any) -> None:
    service = served.client("ecs")
    [environment] = client.describe_compute_environments(computeEnvironments=["q"])["computeEnvironments"]
    arn = environment["ecsClusterArn"]
    assert arn in service.list_clusters()["clusterArns"]
    answer = service.describe_clusters(clusters=[arn, "nope"])
    [cluster] = answer["clusters"]
    assert (cluster["clusterArn"], cluster["registeredContainerInstancesCount"]) == (arn, 1)
    assert [failure["reason"] for failure in answer["failures"]] == ["MISSING"]
    [instance] = service.list_container_instances(cluster=arn)["containerInstanceArns"]
    answer = service.describe_container_instances(cluster=arn, containerInstances=[instance, "nope"])
    [host] = answer["containerInstances"]
    resources = {one["name"]: one["integerValue"] for one in host["registeredResources"]}
    assert (host["containerInstanceArn"], resources["CPU"], host["status"]) == (instance, 4096, "ACTIVE")
    assert [failure["reason"] for failure in answer["failures"]] == ["MISSING"]
    job = run(client, "where", "true")
    assert job["container"]["containerInstanceArn"] == instance
    assert job["container"]["taskArn"].split(":task/")[1].split("/")[0] == cluster["clusterName"]
    with pytest.raises(service.exceptions.ClusterNotFoundException):
        service.list_container_instances(cluster="nope")
    with pytest.raises(botocore.exceptions.ClientError, match="not supported here"):
        service.list_tasks(cluster=arn)
