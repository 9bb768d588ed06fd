"""boto3, unchanged, through the whole life of jobs. Every answer is compared with botocore's model by the rig."""

from __future__ import annotations

import time
from typing import Any

import pytest
from anybatch.plugins.aws import AwsSettings
from aws_rig import EC2, REGION, Served, add_queue, container, define, ended, in_status, refused

ACCOUNT = "123456789012"
JOB_ARN = f"arn:aws:batch:{REGION}:{ACCOUNT}:job/"


# -- jobs -------------------------------------------------------------------------------------------


def test_a_single_job_from_submit_to_its_end(client: Any) -> None:
    arn = define(client, "single", "sh", "-c", 'echo "$GREETING Ref::who"; exit 3', parameters={"who": "world"})
    answer = client.submit_job(
        jobName="one",
        jobQueue="q",
        jobDefinition="single",
        containerOverrides={"environment": [{"name": "GREETING", "value": "hello"}]},
        tags={"team": "a"},
    )
    assert answer["jobArn"] == JOB_ARN + answer["jobId"]
    assert answer["jobName"] == "one"

    job = ended(client, answer["jobId"])

    # DJ-1, DJ-3, ST-12, ST-13, SJ-6
    assert job["status"] == "FAILED"
    assert job["statusReason"] == "Essential container in task exited"
    assert job["jobDefinition"] == arn
    assert job["jobQueue"] == f"arn:aws:batch:{REGION}:{ACCOUNT}:job-queue/q"
    assert job["container"]["exitCode"] == 3
    assert job["container"]["command"] == ["sh", "-c", 'echo "$GREETING world"; exit 3']
    assert job["container"]["environment"] == [{"name": "GREETING", "value": "hello"}]
    assert job["container"]["image"] == "busybox"
    assert job["container"]["logStreamName"].startswith("single/default/")
    assert job["parameters"] == {"who": "world"}
    assert job["tags"] == {"team": "a"}
    assert (job["isCancelled"], job["isTerminated"], job["dependsOn"]) == (False, False, [])
    assert job["retryStrategy"] == {"attempts": 1, "evaluateOnExit": []}
    [attempt] = job["attempts"]
    assert attempt["container"]["exitCode"] == 3
    assert attempt["container"]["taskArn"] == job["container"]["taskArn"]
    assert job["createdAt"] <= job["startedAt"] == attempt["startedAt"] <= job["stoppedAt"] == attempt["stoppedAt"]
    assert abs(job["createdAt"] - time.time() * 1000) < 120_000


def test_ev_2_a_job_sees_what_it_runs_on_and_nobody_reads_it_back(served: Served, client: Any) -> None:
    print_it = ("sh", "-c", "echo $AWS_EXECUTION_ENV")
    define(client, "plain", *print_it)
    own = container(*print_it, environment=[{"name": "AWS_EXECUTION_ENV", "value": "x"}])
    client.register_job_definition(jobDefinitionName="own", type="container", containerProperties=own)
    for name, seen in (("plain", "AWS_ECS_EC2\n"), ("own", "x\n")):
        job = ended(client, client.submit_job(jobName="j", jobQueue="q", jobDefinition=name)["jobId"])
        assert served.run(served.kernel.read_logs(job["jobId"])).decode() == seen
        assert [pair["value"] for pair in job["container"]["environment"]] == ([] if name == "plain" else ["x"])


def test_rt_4_a_retried_job_lists_its_attempts(client: Any) -> None:
    define(client, "flaky", "sh", "-c", "test $AWS_BATCH_JOB_ATTEMPT -ge 3", retryStrategy={"attempts": 5})
    job = ended(client, client.submit_job(jobName="flaky", jobQueue="q", jobDefinition="flaky")["jobId"])
    assert job["status"] == "SUCCEEDED"
    assert [one["container"]["exitCode"] for one in job["attempts"]] == [1, 1, 0]
    assert job["startedAt"] == job["attempts"][2]["startedAt"]
    streams = [one["container"]["logStreamName"] for one in job["attempts"]]
    assert len(set(streams)) == 3


def test_ex_9_actions_read_back_in_lower_case_and_decide(client: Any) -> None:
    entries = [{"onExitCode": "7", "action": "EXIT"}, {"onReason": "*", "action": "RETRY"}]
    define(client, "exits", "sh", "-c", "exit 7", retryStrategy={"attempts": 3, "evaluateOnExit": entries})
    job = ended(client, client.submit_job(jobName="exits", jobQueue="q", jobDefinition="exits")["jobId"])
    assert len(job["attempts"]) == 1
    assert [one["action"] for one in job["retryStrategy"]["evaluateOnExit"]] == ["exit", "retry"]


def test_an_array_counts_its_children(client: Any) -> None:
    define(client, "array", "sh", "-c", "exit $((AWS_BATCH_JOB_ARRAY_INDEX == 2))")
    parent = client.submit_job(
        jobName="array", jobQueue="q", jobDefinition="array", arrayProperties={"size": 4}
    )["jobId"]  # fmt: skip
    job = ended(client, parent)
    # AR-5, AR-6, AR-7
    assert job["status"] == "FAILED"
    assert job["statusReason"] == "Array Child Job failed"
    assert job["attempts"] == []
    array = job["arrayProperties"]
    assert array["size"] == 4
    assert array["statusSummary"] == {
        "SUBMITTED": 0, "PENDING": 0, "RUNNABLE": 0, "STARTING": 0, "RUNNING": 0, "SUCCEEDED": 3, "FAILED": 1,
    }  # fmt: skip
    assert array["statusSummaryLastUpdatedAt"] >= job["createdAt"]
    children = client.describe_jobs(jobs=[f"{parent}:{n}" for n in range(5)])["jobs"]
    assert [child["arrayProperties"] for child in children] == [{"index": n} for n in range(4)]
    assert [child["status"] for child in children] == ["SUCCEEDED", "SUCCEEDED", "FAILED", "SUCCEEDED"]
    assert children[2]["jobArn"] == f"{JOB_ARN}{parent}:2"
    # AR-9, LJ-5
    listed = client.list_jobs(arrayJobId=parent, jobStatus="SUCCEEDED")["jobSummaryList"]
    assert [one["arrayProperties"]["index"] for one in listed] == [0, 1, 3]
    assert client.list_jobs(arrayJobId=parent)["jobSummaryList"] == []


def test_an_array_with_indexes_that_aws_does_not_have_is_told_as_any_other(served: Served, client: Any) -> None:
    """Submitted beside the API; nothing of it can be asked for there."""

    async def submit() -> str:
        job = await served.kernel.submit_job("picked", queue="q", definition="picked", array=[3, 70_000, 7])
        await job.wait()
        return job.id

    define(client, "picked", "sh", "-c", "echo $AWS_BATCH_JOB_ARRAY_INDEX")
    parent = served.run(submit())
    job = ended(client, parent)
    assert (job["status"], job["arrayProperties"]["size"]) == ("SUCCEEDED", 3)
    listed = client.list_jobs(arrayJobId=parent, jobStatus="SUCCEEDED")["jobSummaryList"]
    assert [one["arrayProperties"]["index"] for one in listed] == [3, 7, 70_000]
    (child,) = client.describe_jobs(jobs=[f"{parent}:70000"])["jobs"]
    assert child["arrayProperties"] == {"index": 70_000}
    assert client.describe_jobs(jobs=[f"{parent}:1"])["jobs"] == []
    logs = served.client("logs")
    stream = child["container"]["logStreamName"]
    events = logs.get_log_events(logGroupName="/aws/batch/job", logStreamName=stream)["events"]
    assert [one["message"] for one in events] == ["70000"]


def test_a_chain_runs_in_order_and_fails_with_its_first(client: Any) -> None:
    define(client, "chain", "sh", "-c", "exit Ref::code", parameters={"code": "0"})

    def submit(name: str, *after: str, **more: Any) -> str:
        depends_on = [{"jobId": job} for job in after]
        found: str = client.submit_job(
            jobName=name, jobQueue="q", jobDefinition="chain", dependsOn=depends_on, **more
        )["jobId"]  # fmt: skip
        return found

    first = submit("first")
    second = submit("second", first)
    bad = submit("bad", second, parameters={"code": "1"})
    last = submit("last", bad, first)
    # DEP-5, DEP-6, DEP-11
    assert ended(client, second)["status"] == "SUCCEEDED"
    job = ended(client, last)
    assert (job["status"], job["statusReason"]) == ("FAILED", "Dependent Job failed")
    assert job["dependsOn"] == [{"jobId": bad}, {"jobId": first}]
    assert job["attempts"] == []
    assert "startedAt" not in job
    assert ended(client, first)["stoppedAt"] <= ended(client, second)["startedAt"]


def test_dep_2_n_to_n_and_sequential(client: Any) -> None:
    define(client, "n", "true")
    size = {"arrayProperties": {"size": 3}}
    first = client.submit_job(jobName="n1", jobQueue="q", jobDefinition="n", **size)["jobId"]
    wanted = [{"jobId": first, "type": "N_TO_N"}, {"type": "SEQUENTIAL"}]
    second = client.submit_job(jobName="n2", jobQueue="q", jobDefinition="n", dependsOn=wanted, **size)["jobId"]
    job = ended(client, second)
    assert (job["status"], job["dependsOn"]) == ("SUCCEEDED", wanted)


def test_ct_1_cancel_and_terminate(client: Any) -> None:
    define(client, "sleep", "sleep", "600")
    running = client.submit_job(jobName="running", jobQueue="q", jobDefinition="sleep")["jobId"]
    waiting = client.submit_job(
        jobName="waiting", jobQueue="q", jobDefinition="sleep", dependsOn=[{"jobId": running}]
    )["jobId"]  # fmt: skip
    in_status(client, running, "RUNNING")
    client.cancel_job(jobId=running, reason="no effect on what runs")
    client.cancel_job(jobId=waiting, reason="not wanted any more")
    job = ended(client, waiting)
    assert (job["statusReason"], job["isCancelled"]) == ("not wanted any more", True)
    assert client.describe_jobs(jobs=[running])["jobs"][0]["status"] == "RUNNING"

    client.terminate_job(jobId=running, reason="enough")
    job = ended(client, running)
    assert (job["statusReason"], job["isTerminated"], len(job["attempts"])) == ("enough", True, 1)
    listed = [one for one in client.list_jobs(jobQueue="q", jobStatus="FAILED")["jobSummaryList"]
              if one["jobId"] in (running, waiting)]  # fmt: skip
    assert [one.get("isTerminated") for one in listed] == [None, True]
    assert [one.get("isCancelled") for one in listed] == [True, None]
    # unknown ids, and what has ended: 200
    client.cancel_job(jobId=running, reason="late")
    client.terminate_job(jobId="0668da57-1bcc-478b-bc14-5d4f1c1cef48", reason="nothing there")
    for call in (client.cancel_job, client.terminate_job):
        with refused(client, "'reason' is a required field (cannot be an empty string)"):
            call(jobId=running, reason="")
        with refused(client, "reason has at most 1024"):
            call(jobId=running, reason="x" * 1025)


def test_ct_7_many_at_once(client: Any) -> None:
    define(client, "sleep", "sleep", "600")
    first = client.submit_job(jobName="bulk", jobQueue="q", jobDefinition="sleep")["jobId"]
    unknown = "0668da57-1bcc-478b-bc14-5d4f1c1cef48"
    answer = client.terminate_jobs(jobs=[first, unknown, "not-an-id", f"{first}#0"], reason="all")
    assert answer["successful"] == [first, unknown]
    assert [(one["job"], one["code"]) for one in answer["errors"]] == [
        ("not-an-id", "ValidationException"),
        (f"{first}#0", "ValidationException"),
    ]
    assert ended(client, first)["statusReason"] == "all"
    assert client.cancel_jobs(jobs=[unknown], reason="x")["errors"] == []
    with refused(client, "Maximum number of jobs supported is 50"):
        client.cancel_jobs(jobs=[unknown] * 51, reason="x")


def test_a_jobs_name_is_no_reference(client: Any) -> None:
    """The kernel takes names where AWS takes ids; through this API a name must never end or describe a job."""
    define(client, "sleep", "sleep", "600")
    job = client.submit_job(jobName="a-name", jobQueue="q", jobDefinition="sleep")["jobId"]
    client.terminate_job(jobId="a-name", reason="x")
    assert client.describe_jobs(jobs=["a-name"])["jobs"] == []
    with refused(client, "a-name does not exist"):
        client.submit_job(jobName="x", jobQueue="q", jobDefinition="sleep", dependsOn=[{"jobId": "a-name"}])
    with pytest.raises(client.exceptions.ClientException):
        client.list_tags_for_resource(resourceArn=JOB_ARN + "a-name")
    assert client.list_jobs(arrayJobId="a-name")["jobSummaryList"] == []
    assert not client.describe_jobs(jobs=[job])["jobs"][0]["isTerminated"]
    client.terminate_job(jobId=job, reason="done")


# -- refusals ---------------------------------------------------------------------------------------


def test_9_1_submits_are_refused_in_awss_words(client: Any) -> None:
    define(client, "ok", "echo", "Ref::needed")

    def submit(**change: Any) -> None:
        client.submit_job(
            **{"jobName": "j", "jobQueue": "q", "jobDefinition": "ok", "parameters": {"needed": "1"}, **change}
        )

    before = len(client.list_jobs(jobQueue="q", filters=[{"name": "JOB_NAME", "values": ["*"]}])["jobSummaryList"])
    unknown = "0668da57-1bcc-478b-bc14-5d4f1c1cef48"
    for match, change in (
        ("JobQueue nope not found.", {"jobQueue": "nope"}),
        ("JobDefinition name nope does not exist or is not in ACTIVE status", {"jobDefinition": "nope"}),
        ("not found.", {"jobDefinition": f"arn:aws:batch:{REGION}:{ACCOUNT}:job-definition/nope:1"}),
        ("Job name should match valid pattern", {"jobName": "-x"}),
        ("Job name should match valid pattern", {"jobName": ""}),
        ("Unable to substitute value. No parameter found for reference needed", {"parameters": {}}),
        ("Job cannot have more than 20 dependencies", {"dependsOn": [{"jobId": unknown}] * 21}),
        (f"Job {unknown} does not exist", {"dependsOn": [{"jobId": unknown}]}),
        ("jobId, a type, or both", {"dependsOn": [{}]}),
        ("can only be submitted to job queue with fair share scheduling policy", {"shareIdentifier": "a"}),
        ("Array size must be between 2 and 10000", {"arrayProperties": {"size": 1}}),
        ("at least 60 seconds", {"timeout": {"attemptDurationSeconds": 59}}),
        ("between 1 and 10", {"retryStrategy": {"attempts": 11}}),
        ("RetryAttempts must be provided with retry strategy", {"retryStrategy": {}}),
        ("AWS_BATCH", {"containerOverrides": {"environment": [{"name": "AWS_BATCH_X", "value": "1"}]}}),
        ("empty string", {"containerOverrides": {"command": ["a", ""]}}),
        ("deprecated key", {"containerOverrides": {"vcpus": 2}}),
        ("more than once", {"containerOverrides": {"resourceRequirements": [{"type": "VCPU", "value": "1"}] * 2}}),
        ("at most 50 tags", {"tags": {str(n): "" for n in range(51)}}),
        ("takes at most 30720", {"parameters": {"needed": "x" * 31_000}}),
        ("does not fit the type", {"nodeOverrides": {"numNodes": 2}}),
        ("not supported here", {"consumableResourcePropertiesOverride": {}}),
    ):
        with refused(client, match):
            submit(**change)
    # SJ-3: none of it made a job
    after = client.list_jobs(jobQueue="q", filters=[{"name": "JOB_NAME", "values": ["*"]}])["jobSummaryList"]
    assert len(after) == before


def test_jq_7_a_disabled_queue_takes_no_jobs(client: Any) -> None:
    define(client, "ok", "true")
    add_queue(client, "off", state="DISABLED")
    with refused(client, "DISABLED"):
        client.submit_job(jobName="x", jobQueue="off", jobDefinition="ok")


def test_what_has_no_effect_is_said_in_a_header(client: Any) -> None:
    answer = client.register_job_definition(
        jobDefinitionName="said",
        type="container",
        containerProperties=container("true", privileged=True, jobRoleArn="arn:aws:iam::123456789012:role/x"),
        propagateTags=True,
    )
    said = set(answer["ResponseMetadata"]["HTTPHeaders"]["x-anybatch-ignored"].split(", "))
    assert said == {
        "containerProperties.image", "containerProperties.privileged", "containerProperties.jobRoleArn",
        "propagateTags",
    }  # fmt: skip


# -- queues and environments ------------------------------------------------------------------------


def test_jq_and_ce_the_life_of_a_queue_and_its_environment(client: Any) -> None:
    add_queue(client, "life")
    with refused(client, "already exists"):
        client.create_job_queue(
            jobQueueName="life", priority=1, computeEnvironmentOrder=[{"order": 1, "computeEnvironment": "life"}]
        )
    with refused(client, "already exists"):
        client.create_compute_environment(computeEnvironmentName="life", type="MANAGED", computeResources=EC2)
    environment = f"arn:aws:batch:{REGION}:{ACCOUNT}:compute-environment/life"
    [queue] = client.describe_job_queues(jobQueues=["life"])["jobQueues"]
    assert (queue["state"], queue["status"], queue["statusReason"]) == ("ENABLED", "VALID", "JobQueue Healthy")
    assert queue["computeEnvironmentOrder"] == [{"order": 1, "computeEnvironment": environment}]
    assert queue["jobQueueType"] == "ECS"
    action = {
        "reason": "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT", "state": "RUNNABLE", "maxTimeSeconds": 600,
        "action": "CANCEL",
    }  # fmt: skip
    client.update_job_queue(
        jobQueue=queue["jobQueueArn"], priority=5, state="DISABLED", jobStateTimeLimitActions=[action]
    )
    [queue] = client.describe_job_queues(jobQueues=[queue["jobQueueArn"]])["jobQueues"]
    assert (queue["priority"], queue["state"], queue["jobStateTimeLimitActions"]) == (5, "DISABLED", [action])
    # CE-11, CE-16
    with refused(client, "Manually scaling down compute environment is not supported"):
        client.update_compute_environment(computeEnvironment="life", computeResources={"desiredvCpus": 9})
    client.update_compute_environment(computeEnvironment="life", computeResources={"maxvCpus": 8}, state="DISABLED")
    [found] = client.describe_compute_environments(computeEnvironments=[environment])["computeEnvironments"]
    assert found["computeResources"] == {**EC2, "maxvCpus": 8, "desiredvCpus": 0}
    assert (found["state"], found["statusReason"]) == ("DISABLED", "ComputeEnvironment Healthy")
    with refused(client, "Cannot delete, found existing JobQueue relationship"):
        client.delete_compute_environment(computeEnvironment="life")
    client.delete_job_queue(jobQueue="life")
    assert client.describe_job_queues(jobQueues=["life"])["jobQueues"] == []
    client.delete_compute_environment(computeEnvironment=environment)
    for call, argument in (
        (client.delete_job_queue, "jobQueue"),
        (client.update_job_queue, "jobQueue"),
        (client.delete_compute_environment, "computeEnvironment"),
        (client.update_compute_environment, "computeEnvironment"),
    ):
        with refused(client, "/life does not exist"):
            call(**{argument: "life"})


def test_7_2_environments_are_refused_in_awss_words(client: Any) -> None:
    def create(resources: dict[str, Any] | None = None, **change: Any) -> None:
        merged = {k: v for k, v in {**EC2, **(resources or {})}.items() if v is not None}
        given = {"computeEnvironmentName": "bad", "type": "MANAGED", "computeResources": merged}
        client.create_compute_environment(**{k: v for k, v in {**given, **change}.items() if v is not None})

    fargate = {
        "type": "FARGATE", "minvCpus": None, "instanceTypes": None, "instanceRole": None,
    }  # fmt: skip
    for match, resources, change in (
        ("Instance role is required.", {"instanceRole": None}, {}),
        ("Resource minvCpus is required.", {"minvCpus": None}, {}),
        ("maxvCpus", {"maxvCpus": 0}, {}),
        ("minvCpus <= desiredvCpus <= maxvCpus", {"minvCpus": 9}, {}),
        ("desiredvCpus is not applicable for Fargate.", {**fargate, "desiredvCpus": 1}, {}),
        ("tags is not applicable for Fargate.", {**fargate, "tags": {"a": "b"}}, {}),
        ("computeResources must be provided", None, {"computeResources": None}),
        ("ServiceRole is required.", None, {"type": "UNMANAGED", "computeResources": None}),
        ("not supported here", {"type": "ECS_MANAGED_INSTANCES"}, {}),
        ("valid pattern", None, {"computeEnvironmentName": "a b"}),
    ):
        with refused(client, match):
            create(resources, **change)
    with refused(client, "compute-environment/nope does not exist"):
        client.create_job_queue(
            jobQueueName="bad", priority=1, computeEnvironmentOrder=[{"order": 1, "computeEnvironment": "nope"}]
        )
    with refused(client, "1 to 3"):
        client.create_job_queue(jobQueueName="bad", priority=1, computeEnvironmentOrder=[])


def test_unmanaged_and_fargate_environments_have_local_capacity(client: Any) -> None:
    client.create_compute_environment(
        computeEnvironmentName="own", type="UNMANAGED", serviceRole="arn:aws:iam::1:role/batch", unmanagedvCpus=2
    )
    client.create_compute_environment(
        computeEnvironmentName="far",
        type="MANAGED",
        computeResources={"type": "FARGATE", "maxvCpus": 4, "subnets": ["s"], "securityGroupIds": ["g"]},
    )
    for name in ("own", "far"):
        client.create_job_queue(
            jobQueueName=name, priority=1, computeEnvironmentOrder=[{"order": 1, "computeEnvironment": name}]
        )
    define(client, "ok", "true")
    assert (
        ended(client, client.submit_job(jobName="x", jobQueue="own", jobDefinition="ok")["jobId"])["status"]
        == "SUCCEEDED"
    )
    with refused(client, "can not run Jobs with capability EC2"):  # JD-12
        client.submit_job(jobName="x", jobQueue="far", jobDefinition="ok")
    needs = [{"type": "VCPU", "value": "0.25"}, {"type": "MEMORY", "value": "512"}]
    client.register_job_definition(
        jobDefinitionName="far",
        type="container",
        platformCapabilities=["FARGATE"],
        containerProperties=container(
            "true", resourceRequirements=needs, executionRoleArn="arn:aws:iam::1:role/x",
        ),
    )  # fmt: skip
    job = ended(client, client.submit_job(jobName="x", jobQueue="far", jobDefinition="far")["jobId"])
    assert (job["status"], job["platformCapabilities"]) == ("SUCCEEDED", ["FARGATE"])
    with refused(client, "one kind"):  # JQ-3
        client.create_job_queue(
            jobQueueName="mixed",
            priority=1,
            computeEnvironmentOrder=[
                {"order": 1, "computeEnvironment": "own"},
                {"order": 2, "computeEnvironment": "far"},
            ],
        )


# -- tags -------------------------------------------------------------------------------------------


def test_tg_2_tags_of_everything(served: Served, client: Any) -> None:
    add_queue(client, "tagged")
    definition = define(client, "tagged", "true")
    job = client.submit_job(jobName="x", jobQueue="tagged", jobDefinition="tagged", tags={"a": "0"})["jobArn"]
    base = f"arn:aws:batch:{REGION}:{ACCOUNT}:"
    for arn in (base + "compute-environment/tagged", base + "job-queue/tagged", definition, job):
        client.tag_resource(resourceArn=arn, tags={"a": "1", "b b": "2", "c": "3"})
        client.untag_resource(resourceArn=arn, tagKeys=["b b", "c", "never"])
        assert client.list_tags_for_resource(resourceArn=arn)["tags"] == {"a": "1"}
        # W-3: the path with slashes and colons as they are
        status, body, _ = served.post(f"/v1/tags/{arn}", method="GET")
        assert (status, body) == (200, {"tags": {"a": "1"}})
        with refused(client, "at most 50 tags"):
            client.tag_resource(resourceArn=arn, tags={str(n): "" for n in range(51)})
    client.tag_resource(resourceArn=job, tags={})
    assert client.describe_job_queues(jobQueues=["tagged"])["jobQueues"][0]["tags"] == {"a": "1"}
    for arn in (base + "job-queue/nope", base + "job/nope", definition + "9"):
        with refused(client, "does not exist"):
            client.list_tags_for_resource(resourceArn=arn)
    with refused(client, "no tags of their own"):
        client.tag_resource(resourceArn=job + ":0", tags={"a": "b"})
    with refused(client, "Invalid ARN"):
        client.list_tags_for_resource(resourceArn="nonsense")


def test_the_lenient_profile_accepts_what_harms_nobody() -> None:
    with Served(settings=AwsSettings(images="local", profile="lenient")) as served:
        client = served.client()
        resources = {"type": "EC2", "maxvCpus": 2}
        client.create_compute_environment(computeEnvironmentName="e", type="MANAGED", computeResources=resources)
        order = [{"order": 1, "computeEnvironment": "e"}]
        client.create_job_queue(jobQueueName="q", priority=5000, computeEnvironmentOrder=order)
        client.register_job_definition(
            jobDefinitionName="d",
            type="container",
            timeout={"attemptDurationSeconds": 30},
            containerProperties={"image": "x", "command": ["true"], "user": "1000:1000", "networkConfiguration": {}},
        )
        client.deregister_job_definition(jobDefinition="d:7")
        job = client.submit_job(jobName="x", jobQueue="q", jobDefinition="d")["jobId"]
        assert ended(client, job)["status"] == "SUCCEEDED"
        with refused(client, "between 1 and 10"):  # what the kernel cannot do is refused here too
            client.submit_job(jobName="x", jobQueue="q", jobDefinition="d", retryStrategy={"attempts": 11})
