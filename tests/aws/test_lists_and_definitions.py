"""Lists, pages and filters; definitions and their revisions: with boto3, each answer compared with botocore's model."""

from __future__ import annotations

from typing import Any

from aws_rig import REGION, Served, add_queue, container, define, ended, refused, until

ACCOUNT = "123456789012"


# -- lists ------------------------------------------------------------------------------------------


def test_pg_1_pages_of_everything(client: Any) -> None:
    for n in range(3):
        add_queue(client, f"page{n}")
        define(client, f"page{n}", "true")
    for n in range(5):
        client.submit_job(jobName=f"listed{n}", jobQueue="page0", jobDefinition="page0")
    for operation, key, name in (
        ("describe_compute_environments", "computeEnvironments", "computeEnvironmentName"),
        ("describe_job_queues", "jobQueues", "jobQueueName"),
        ("describe_job_definitions", "jobDefinitions", "jobDefinitionName"),
    ):
        pages = list(client.get_paginator(operation).paginate(PaginationConfig={"PageSize": 1}))
        names = [entry[name] for page in pages for entry in page[key]]
        assert {f"page{n}" for n in range(3)} <= set(names)
        assert names == sorted(names)
        assert all(len(page[key]) == 1 for page in pages)
        with refused(client, "maxResults"):
            getattr(client, operation)(maxResults=0)
        with refused(client, "nextToken"):
            getattr(client, operation)(nextToken="made up")
    done = {"jobQueue": "page0", "jobStatus": "SUCCEEDED"}
    until(lambda: len(client.list_jobs(**done)["jobSummaryList"]) == 5)
    pages = list(client.get_paginator("list_jobs").paginate(**done, PaginationConfig={"PageSize": 2}))
    assert [len(page["jobSummaryList"]) for page in pages] == [2, 2, 1]
    assert [one["jobName"] for page in pages for one in page["jobSummaryList"]] == [f"listed{4 - n}" for n in range(5)]
    children = client.submit_job(
        jobName="many", jobQueue="page0", jobDefinition="page0", arrayProperties={"size": 5}
    )["jobId"]  # fmt: skip
    ended(client, children)
    whole = client.get_paginator("list_jobs").paginate(
        arrayJobId=children, jobStatus="SUCCEEDED", PaginationConfig={"PageSize": 2}
    )
    assert [one["arrayProperties"]["index"] for page in whole for one in page["jobSummaryList"]] == [0, 1, 2, 3, 4]


def test_lj_1_to_3_what_is_listed(client: Any) -> None:
    add_queue(client, "lists")
    define(client, "lists-a", "true")
    define(client, "lists-b", "true")
    define(client, "lists-b", "true")
    names = (("Alpha", "lists-a"), ("alphabet", "lists-b:1"), ("beta", "lists-b"))
    ids = {name: client.submit_job(jobName=name, jobQueue="lists", jobDefinition=d)["jobId"] for name, d in names}
    created = {name: ended(client, job)["createdAt"] for name, job in ids.items()}
    assert client.list_jobs(jobQueue="lists")["jobSummaryList"] == []  # LJ-2: RUNNING only

    def listed(name: str, *values: str) -> list[str]:
        found = client.list_jobs(jobQueue="lists", filters=[{"name": name, "values": list(values)}])
        return [one["jobName"] for one in found["jobSummaryList"]]

    assert listed("JOB_NAME", "ALPHA") == ["Alpha"]
    assert listed("JOB_NAME", "alpha*") == ["alphabet", "Alpha"]
    assert listed("JOB_NAME", "alpha", "beta") == ["beta", "Alpha"]
    assert listed("JOB_DEFINITION", "lists-b") == ["beta", "alphabet"]
    assert listed("JOB_DEFINITION", "lists-*") == ["beta", "alphabet", "Alpha"]
    assert listed("JOB_DEFINITION", f"arn:aws:batch:{REGION}:{ACCOUNT}:job-definition/lists-b:1") == ["alphabet"]
    assert listed("BEFORE_CREATED_AT", str(created["Alpha"])) == []
    assert "beta" in listed("AFTER_CREATED_AT", str(created["Alpha"] - 1))
    assert listed("SHARE_IDENTIFIER", "x") == []
    for match, arguments in (
        ("Exactly one", {}),
        ("Exactly one", {"jobQueue": "lists", "arrayJobId": ids["beta"]}),
        ("Job status is not one of SUBMITTED | PENDING", {"jobQueue": "lists", "jobStatus": "BOGUS"}),
        ("A filter is one of", {"jobQueue": "lists", "filters": [{"name": "job_name", "values": ["x"]}]}),
        ("Only one filter", {"jobQueue": "lists", "filters": [{"name": "JOB_NAME", "values": ["x"]}] * 2}),
        ("JobQueue nope not found.", {"jobQueue": "nope"}),
        ("time in milliseconds", {"jobQueue": "lists", "filters": [{"name": "BEFORE_CREATED_AT", "values": ["x"]}]}),
    ):
        with refused(client, match):
            client.list_jobs(**arguments)
    assert client.list_jobs(multiNodeJobId=ids["beta"])["jobSummaryList"] == []


def test_lk_1_to_3_unknown_ids_are_left_out(client: Any) -> None:
    unknown = "0668da57-1bcc-478b-bc14-5d4f1c1cef48"
    assert client.describe_jobs(jobs=[unknown, "x", f"{unknown}:3", f"{unknown}#1"])["jobs"] == []
    assert client.describe_job_queues(jobQueues=["nope"])["jobQueues"] == []
    assert client.describe_compute_environments(computeEnvironments=["nope"])["computeEnvironments"] == []
    assert client.describe_job_definitions(jobDefinitions=["nope:1", "nope"])["jobDefinitions"] == []
    with refused(client, "Maximum number of jobs supported is 100"):
        client.describe_jobs(jobs=[unknown] * 101)
    with refused(client, "jobs must not be empty"):
        client.describe_jobs(jobs=[])


# -- definitions ------------------------------------------------------------------------------------


def test_jd_1_to_7_revisions(client: Any) -> None:
    assert [define(client, "rev", "true", parameters={"n": str(n)}) for n in (1, 2)] == [
        f"arn:aws:batch:{REGION}:{ACCOUNT}:job-definition/rev:{n}" for n in (1, 2)
    ]
    client.deregister_job_definition(jobDefinition="rev:2")
    job = client.submit_job(jobName="x", jobQueue="q", jobDefinition="rev")["jobId"]
    assert client.describe_jobs(jobs=[job])["jobs"][0]["jobDefinition"].endswith("rev:1")
    with refused(client, "is not in ACTIVE status"):
        client.submit_job(jobName="x", jobQueue="q", jobDefinition="rev:2")
    client.deregister_job_definition(jobDefinition=f"arn:aws:batch:{REGION}:{ACCOUNT}:job-definition/rev:1")
    with refused(client, "JobDefinition name rev does not exist or is not in ACTIVE status"):
        client.submit_job(jobName="x", jobQueue="q", jobDefinition="rev")
    assert define(client, "rev", "true").endswith("rev:3")
    found = client.describe_job_definitions(jobDefinitionName="rev")["jobDefinitions"]
    assert [(one["revision"], one["status"]) for one in found] == [(3, "ACTIVE"), (2, "INACTIVE"), (1, "INACTIVE")]
    assert found[0]["parameters"] == {}  # JD-3: nothing is inherited
    found = client.describe_job_definitions(jobDefinitionName="rev", status="ACTIVE")["jobDefinitions"]
    assert [one["revision"] for one in found] == [3]
    with refused(client, "can not be combined"):
        client.describe_job_definitions(jobDefinitions=["rev:1"], status="ACTIVE")
    with refused(client, "does not name a revision"):
        client.deregister_job_definition(jobDefinition="rev")


def test_jd_10_a_definition_reads_back_whole(client: Any) -> None:
    given = container(
        "true",
        environment=[{"name": "B", "value": "2"}, {"name": "EMPTY", "value": ""}],
        jobRoleArn="arn:aws:iam::123456789012:role/job",
        volumes=[{"name": "v", "host": {"sourcePath": "/tmp"}}],
        mountPoints=[{"sourceVolume": "v", "containerPath": "/v", "readOnly": True}],
        ulimits=[{"name": "nofile", "softLimit": 10, "hardLimit": 20}],
        linuxParameters={"initProcessEnabled": True, "sharedMemorySize": 64},
        logConfiguration={"logDriver": "awslogs", "options": {"awslogs-group": "g"}},
        user="nobody",
        readonlyRootFilesystem=True,
    )
    client.register_job_definition(
        jobDefinitionName="whole",
        type="container",
        containerProperties=given,
        retryStrategy={"attempts": 2},
        timeout={"attemptDurationSeconds": 60},
        tags={"a": "b"},
    )
    [found] = client.describe_job_definitions(jobDefinitions=["whole:1"])["jobDefinitions"]
    expected = {**given, "environment": [{"name": "B", "value": "2"}], "secrets": []}
    expected["linuxParameters"] = {"devices": [], "tmpfs": [], **given["linuxParameters"]}
    expected["logConfiguration"] = {"secretOptions": [], **given["logConfiguration"]}
    assert found["containerProperties"] == expected
    assert found["retryStrategy"] == {"attempts": 2, "evaluateOnExit": []}
    assert found["timeout"] == {"attemptDurationSeconds": 60}
    assert (found["tags"], found["type"], found["status"]) == ({"a": "b"}, "container", "ACTIVE")


def test_5_definitions_are_refused_in_awss_words(client: Any) -> None:
    def register(properties: dict[str, Any] | None = None, **change: Any) -> None:
        given: dict[str, Any] = {
            "jobDefinitionName": "bad",
            "type": "container",
            "containerProperties": container("true"),
        }
        if properties is not None:
            given["containerProperties"] = {**container("true"), **properties}
        given |= change
        client.register_job_definition(**{name: value for name, value in given.items() if value is not None})

    needs = [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "32"}]
    fargate: dict[str, Any] = {"platformCapabilities": ["FARGATE"]}
    for match, properties, change in (
        ("vCPU is not provided.", {"resourceRequirements": needs[1:]}, {}),
        ("Memory is not provided.", {"resourceRequirements": needs[:1]}, {}),
        ("must be greater than 4", {"resourceRequirements": [needs[0], {"type": "MEMORY", "value": "3"}]}, {}),
        ("must contain image", {"image": ""}, {}),
        ("Invalid image", {"image": "a b"}, {}),
        ("does not match regex", {"user": "No Such"}, {}),
        ("networkConfiguration not applicable for EC2.", {"networkConfiguration": {}}, {}),
        ("vcpus is not applicable for Fargate.", {"vcpus": 1}, fargate),
        ("executionRoleArn", {}, fargate),
        ("not valid", {"executionRoleArn": "arn:aws:iam::1:role/x"}, fargate),
        ("Unknown volume", {"mountPoints": [{"sourceVolume": "no", "containerPath": "/x"}]}, {}),
        ("not supported here", {"volumes": [{"name": "v", "efsVolumeConfiguration": {"fileSystemId": "f"}}]}, {}),
        ("exactly one of", None, {"containerProperties": None}),
        ("exactly one of", None, {"nodeProperties": {"numNodes": 1, "mainNode": 0, "nodeRangeProperties": []}}),
        ("should match valid pattern", None, {"jobDefinitionName": "a b"}),
        ("RetryAttempts must be provided", None, {"retryStrategy": {}}),
        ("schedulingPriority", None, {"schedulingPriority": 10_000}),
        ("at least 60", None, {"timeout": {"attemptDurationSeconds": 1}}),
        ("at most 50 tags", None, {"tags": {str(n): "" for n in range(51)}}),
        ("takes at most 24576", {"command": ["x" * 25_000]}, {}),
    ):
        with refused(client, match):
            register(properties, **change)
    assert client.describe_job_definitions(jobDefinitionName="bad")["jobDefinitions"] == []


def test_what_cannot_be_run_is_registered_and_refused_at_submit(served: Served, client: Any) -> None:
    node = {"targetNodes": "0:", "container": container("true")}
    client.register_job_definition(
        jobDefinitionName="nodes",
        type="multinode",
        nodeProperties={"numNodes": 2, "mainNode": 0, "nodeRangeProperties": [node]},
    )
    two = [{"name": name, "image": "busybox", "command": ["true"]} for name in ("a", "b")]
    client.register_job_definition(
        jobDefinitionName="task", type="container", ecsProperties={"taskProperties": [{"containers": two}]}
    )
    client.register_job_definition(
        jobDefinitionName="eks",
        type="container",
        eksProperties={"podProperties": {"containers": [{"image": "busybox", "resources": {"limits": {"cpu": "1"}}}]}},
    )
    for name in ("nodes", "task", "eks"):
        assert client.describe_job_definitions(jobDefinitions=[name])["jobDefinitions"][0]["jobDefinitionName"] == name
        before = served.run(served.kernel.last_event_id())
        with refused(client, "not supported here"):
            client.submit_job(jobName="x", jobQueue="q", jobDefinition=name)
        assert served.run(served.kernel.last_event_id()) == before


def test_sc_1_fair_share_is_refused_and_changes_nothing(served: Served, client: Any) -> None:
    define(client, "shared", "true", schedulingPriority=5)
    before = served.run(served.kernel.last_event_id())
    policy = "arn:aws:batch:us-east-1:123456789012:scheduling-policy/p"
    order = [{"order": 1, "computeEnvironment": "q"}]
    with refused(client, "schedulingPolicyArn: fair share is not supported here"):
        client.create_job_queue(
            jobQueueName="fair", priority=1, computeEnvironmentOrder=order, schedulingPolicyArn=policy
        )
    with refused(client, "schedulingPolicyArn: fair share is not supported here"):
        client.update_job_queue(jobQueue="q", priority=9, schedulingPolicyArn=policy)
    for member in ({"shareIdentifier": "a"}, {"schedulingPriorityOverride": 3}):
        with refused(client, "can only be submitted to job queue with fair share scheduling policy"):
            client.submit_job(jobName="x", jobQueue="q", jobDefinition="shared", **member)
    assert served.run(served.kernel.last_event_id()) == before


def test_a_task_of_one_container_runs(client: Any) -> None:
    needs = [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "32"}]
    only = {"name": "main", "image": "busybox", "command": ["sh", "-c", "exit 4"], "resourceRequirements": needs}
    client.register_job_definition(
        jobDefinitionName="one-task", type="container", ecsProperties={"taskProperties": [{"containers": [only]}]}
    )
    override = {"taskProperties": [{"containers": [{"name": "main", "command": ["sh", "-c", "exit 5"]}]}]}
    job = client.submit_job(
        jobName="x", jobQueue="q", jobDefinition="one-task", ecsPropertiesOverride=override
    )["jobId"]  # fmt: skip
    found = ended(client, job)
    assert "container" not in found
    [task] = found["ecsProperties"]["taskProperties"]
    [one] = task["containers"]
    assert (one["exitCode"], one["command"], one["name"]) == (5, ["sh", "-c", "exit 5"], "main")
    assert task["taskArn"].startswith("arn:aws:ecs:")
