"""Policies: default deny, explicit deny, wildcards, condition keys; by themselves, and through boto3."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest
from anybatch.plugins.aws.conditions import OPERATORS, Context
from anybatch.plugins.aws.policy import Policy, Resource, is_allowed, matches, parse_policy
from aws_rig import EC2, REGION, Served, add_queue, container, define

BASE = f"arn:aws:batch:{REGION}:123456789012:"


def policy(*statements: Mapping[str, Any]) -> Policy:
    return parse_policy("policy", {"Version": "2012-10-17", "Statement": list(statements)})


def allow(action: Any = "batch:*", resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": resource, **more}


def deny(action: Any = "batch:*", resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {**allow(action, resource, **more), "Effect": "Deny"}


def allowed(
    given: Policy,
    action: str = "batch:SubmitJob",
    arn: str = BASE + "job-queue/q",
    tags: Mapping[str, str] | None = None,
    request_tags: Mapping[str, str] | None = None,
    **values: str,
) -> bool:
    context = Context({name.replace("_", ":"): (value,) for name, value in values.items()}, request_tags)
    return is_allowed([given], action, Resource(arn, tags or {}), context)


def test_nothing_is_allowed_by_default() -> None:
    assert not is_allowed([], "batch:SubmitJob", Resource("*"), Context({}))
    assert not allowed(policy(allow("batch:CancelJob")))
    assert not allowed(policy(allow(resource=BASE + "job-queue/other")))


def test_a_denial_wins_whatever_the_order() -> None:
    assert allowed(policy(allow()))
    assert not allowed(policy(allow(), deny("batch:Submit*")))
    assert not allowed(policy(deny(resource=BASE + "job-queue/q"), allow()))
    assert allowed(policy(deny(resource=BASE + "job-queue/x"), allow()))


def test_wildcards() -> None:
    for pattern, text, fits in (
        ("batch:*", "batch:SubmitJob", True),
        ("BATCH:submitjob", "batch:SubmitJob", False),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("a*c", "ac", True),
        ("a.c", "abc", False),
        ("*", "anything\nelse", True),
    ):
        assert matches(pattern, text) is fits
    assert matches("BATCH:submitjob", "batch:SubmitJob", ignore_case=True)
    assert allowed(policy(allow("BATCH:submit*", "arn:aws:batch:*:123456789012:job-queue/?")))
    # what a call cannot be restricted for is "*", which a pattern of an ARN does not cover
    assert not allowed(policy(allow(resource=BASE + "*")), "batch:ListJobs", "*")
    assert allowed(policy(allow(resource="*")), "batch:ListJobs", "*")


def test_not_action_and_not_resource() -> None:
    assert allowed(policy({"Effect": "Allow", "NotAction": ["iam:*"], "Resource": "*"}))
    assert not allowed(policy({"Effect": "Allow", "NotAction": ["batch:Submit*"], "Resource": "*"}))
    assert not allowed(policy(allow(), {"Effect": "Deny", "Action": "*", "NotResource": BASE + "job-queue/x"}))
    assert allowed(policy(allow(), {"Effect": "Deny", "Action": "*", "NotResource": BASE + "job-queue/q"}))


def test_conditions() -> None:
    def found(operator: str, key: str, value: Any, **call: Any) -> bool:
        return allowed(policy(allow(Condition={operator: {key: value}})), **call)

    assert found("StringEquals", "batch:ShareIdentifier", ["a", "b"], batch_shareidentifier="b")
    assert not found("StringEquals", "batch:ShareIdentifier", "a", batch_shareidentifier="b")
    assert not found("StringEquals", "batch:ShareIdentifier", "a")
    assert found("StringEqualsIfExists", "batch:ShareIdentifier", "a")
    assert found("StringNotEquals", "batch:ShareIdentifier", "a", batch_shareidentifier="b")
    assert found("StringNotEquals", "batch:ShareIdentifier", "a")
    assert not found("StringNotEquals", "batch:ShareIdentifier", ["a", "b"], batch_shareidentifier="b")
    assert found("StringLike", "batch:Image", "repo/*:1.?", batch_image="repo/tool:1.2")
    assert not found("StringLike", "batch:Image", "repo/*", batch_image="Repo/x")
    assert found("Bool", "batch:Privileged", False, batch_privileged="false")
    assert not found("Bool", "batch:Privileged", "true", batch_privileged="false")
    assert found("Null", "batch:ShareIdentifier", "true")
    assert not found("Null", "batch:ShareIdentifier", True, batch_shareidentifier="x")
    assert found("StringEquals", "aws:ResourceTag/Team", "a", tags={"Team": "a"})
    assert not found("StringEquals", "aws:ResourceTag/Team", "a", tags={"team": "a"})
    assert found("StringEquals", "aws:RequestTag/team", "a", request_tags={"team": "a"})
    assert not found("StringEquals", "aws:RequestTag/team", "a", request_tags={"team": "b"})
    assert found("ForAllValues:StringEquals", "aws:TagKeys", ["a", "b"], request_tags={"a": "", "b": ""})
    assert not found("ForAllValues:StringEquals", "aws:TagKeys", ["a"], request_tags={"a": "", "b": ""})
    assert found("ForAllValues:StringEquals", "aws:TagKeys", ["a"])
    assert found("ForAnyValue:StringEquals", "aws:TagKeys", ["a"], request_tags={"a": "", "b": ""})
    assert not found("ForAnyValue:StringEquals", "aws:TagKeys", ["a"])
    assert found("IpAddress", "aws:SourceIp", "127.0.0.0/8", aws_sourceip="127.0.0.1")
    assert found("NotIpAddress", "aws:SourceIp", ["10.0.0.0/8"], aws_sourceip="127.0.0.1")
    assert found("DateLessThan", "aws:CurrentTime", "2030-01-01T00:00:00Z", aws_currenttime="1800000000")
    assert not found("DateGreaterThan", "aws:CurrentTime", "2030-01-01T00:00:00Z", aws_currenttime="1800000000")
    assert found("NumericLessThanEquals", "batch:SchedulingPriority", 5, batch_schedulingpriority="5")
    assert len(OPERATORS) > 100
    both = policy(allow(Condition={"StringEquals": {"batch:User": "a", "batch:Image": "b"}}))
    assert allowed(both, batch_user="a", batch_image="b")
    assert not allowed(both, batch_user="a", batch_image="c")


def test_a_users_name_in_a_resource_is_text() -> None:
    own = policy(allow(resource=BASE + "job-queue/${aws:username}-*"))
    assert allowed(own, arn=BASE + "job-queue/ann-1", aws_username="ann")
    assert not allowed(own, arn=BASE + "job-queue/ann-1", aws_username="bob")
    assert not allowed(own, arn=BASE + "job-queue/ann-1", aws_username="*")
    assert not allowed(own, arn=BASE + "job-queue/ann-1")


# -- through boto3 ----------------------------------------------------------------------------------

PEOPLE: dict[str, list[Any]] = {
    "nobody": [],
    "submitter": [
        allow("batch:SubmitJob", [BASE + "job-queue/open", BASE + "job-definition/ok*"]),
        allow(["batch:Describe*", "batch:ListJobs"]),
        deny("batch:SubmitJob", BASE + "job-definition/ok-not:*"),
    ],
    "owner": [
        allow(["batch:TerminateJob", "batch:CancelJob"], BASE + "job/*",
              Condition={"StringEquals": {"aws:ResourceTag/owner": "me"}}),
    ],
    "tagger": [
        allow("batch:SubmitJob", [BASE + "job-queue/*", BASE + "job-definition/*"]),
        allow("batch:TagResource", BASE + "job/*", Condition={"StringEquals": {"aws:RequestTag/team": "a"}}),
    ],
    "registrar": [
        allow("batch:RegisterJobDefinition", BASE + "job-definition/team-*",
              Condition={"Bool": {"batch:Privileged": "false"}, "StringLike": {"batch:Image": "trusted/*"}}),
        allow("iam:PassRole", "arn:aws:iam::123456789012:role/team",
              Condition={"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}}),
    ],
    "builder": [
        allow(["batch:CreateJobQueue", "batch:UpdateJobQueue"], BASE + "job-queue/mine*"),
        deny("batch:CreateJobQueue", BASE + "compute-environment/secret"),
    ],
}  # fmt: skip


AWSLOGS = {
    "logDriver": "awslogs",
    "options": {
        "awslogs-create-group": "true",
        "awslogs-group": "g",
        "awslogs-region": "r",
        "awslogs-stream-prefix": "p",
    },
}
POD = {
    "containers": [
        {
            "image": "pod/x",
            "securityContext": {"privileged": True, "runAsUser": 7, "runAsGroup": 8},
            "resources": {"limits": {"cpu": "1", "memory": "64Mi"}},
        }
    ],
    "serviceAccountName": "account",
    "metadata": {"namespace": "space"},
}
KEYED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "image": ({"StringEquals": {"batch:Image": "bad/x"}}, {"image": "bad/x"}),
    "user": ({"StringEquals": {"batch:User": "root"}}, {"user": "root"}),
    "privileged": ({"Bool": {"batch:Privileged": "true"}}, {"privileged": True}),
    "driver": ({"StringEquals": {"batch:LogDriver": "syslog"}}, {"logConfiguration": {"logDriver": "syslog"}}),
    "creategroup": ({"Bool": {"batch:AWSLogsCreateGroup": "true"}}, {"logConfiguration": AWSLOGS}),
    "group": ({"StringEquals": {"batch:AWSLogsGroup": "g"}}, {"logConfiguration": AWSLOGS}),
    "region": ({"StringEquals": {"batch:AWSLogsRegion": "r"}}, {"logConfiguration": AWSLOGS}),
    "prefix": ({"StringEquals": {"batch:AWSLogsStreamPrefix": "p"}}, {"logConfiguration": AWSLOGS}),
    "tags": ({"StringEquals": {"aws:RequestTag/team": "a"}}, {"tags": {"team": "a"}}),
    "tagkeys": ({"ForAnyValue:StringEquals": {"aws:TagKeys": ["team"]}}, {"tags": {"team": "b"}}),
    "eksimage": ({"StringLike": {"batch:EKSImage": "pod/*"}}, {"pod": POD}),
    "eksnamespace": ({"StringEquals": {"batch:EKSNamespace": "space"}}, {"pod": POD}),
    "eksprivileged": ({"Bool": {"batch:EKSPrivileged": "true"}}, {"pod": POD}),
    "eksuser": ({"NumericEquals": {"batch:EKSRunAsUser": 7}}, {"pod": POD}),
    "eksgroup": ({"NumericEquals": {"batch:EKSRunAsGroup": 8}}, {"pod": POD}),
    "eksaccount": ({"StringEquals": {"batch:EKSServiceAccountName": "account"}}, {"pod": POD}),
}
"""By name of a principal: when it may not register (section 11), and what of a definition is such a case."""
PEOPLE |= {
    name: [allow("batch:*"), deny("batch:RegisterJobDefinition", Condition=condition)]
    for name, (condition, _) in KEYED.items()
}
PEOPLE["sharer"] = [
    allow("batch:SubmitJob"), deny("batch:SubmitJob", Condition={"StringLike": {"batch:ShareIdentifier": "a*"}}),
]  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("aws") / "keys.json"
    admin = {"name": "admin", "access_key_id": "AKIAADMINADMIN000000", "policies": [{"Statement": allow("*")}]}
    people = [
        {"name": name, "access_key_id": f"AKIA{name.upper():0<16}", "policies": [{"Statement": s}] if s else []}
        for name, s in PEOPLE.items()
    ]
    principals = [{**one, "secret_access_key": f"{one['name']}-secret-secret"} for one in (admin, *people)]
    path.write_text(json.dumps({"version": 1, "principals": principals, "session_secret": "s" * 32}))
    path.chmod(0o600)
    with Served(credentials=path) as served:
        client = served.client()
        for name in ("open", "closed", "secret"):
            add_queue(client, name)
        for name in ("ok", "ok-not", "other"):
            define(client, name, "true")
        yield served


def as_user(served: Served, name: str) -> Any:
    return served.client(key=f"AKIA{name.upper():0<16}", secret=f"{name}-secret-secret")


def denied(call: Any, action: str, **arguments: Any) -> None:
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(**arguments)
    error = caught.value.response["Error"]
    assert error["Code"] == "AccessDeniedException"
    assert f"is not authorized to perform: {action} on resource: " in error["Message"]


def test_a_principal_without_a_policy_may_do_nothing(served: Served) -> None:
    client = as_user(served, "nobody")
    denied(client.describe_job_queues, "batch:DescribeJobQueues")
    denied(client.list_jobs, "batch:ListJobs", jobQueue="open")
    denied(client.submit_job, "batch:SubmitJob", jobName="x", jobQueue="open", jobDefinition="ok")
    denied(client.list_scheduling_policies, "batch:ListSchedulingPolicies")
    denied(client.list_tags_for_resource, "batch:ListTagsForResource", resourceArn=BASE + "job-queue/open")
    denied(client.delete_job_queue, "batch:DeleteJobQueue", jobQueue="open")
    found = served.client("sts", key=f"AKIA{'NOBODY':0<16}", secret="nobody-secret-secret").get_caller_identity()
    assert found["Arn"] == "arn:aws:iam::123456789012:user/nobody"


def test_submits_by_queue_and_definition(served: Served) -> None:
    client = as_user(served, "submitter")
    job = client.submit_job(jobName="x", jobQueue="open", jobDefinition="ok")["jobId"]
    client.submit_job(jobName="x", jobQueue=BASE + "job-queue/open", jobDefinition=BASE + "job-definition/ok:1")
    for queue, definition in (("closed", "ok"), ("open", "other"), ("open", "ok-not"), ("open", "ok-not:1")):
        denied(client.submit_job, "batch:SubmitJob", jobName="x", jobQueue=queue, jobDefinition=definition)
    assert client.describe_jobs(jobs=[job])["jobs"][0]["jobId"] == job
    denied(client.terminate_job, "batch:TerminateJob", jobId=job, reason="x")
    assert served.run(served.kernel.describe_job(job)).principal == "submitter"


def test_ct_7_the_bulk_calls_are_allowed_job_by_job(served: Served) -> None:
    admin, client = served.client(), as_user(served, "owner")
    define(admin, "sleep", "sleep", "600")
    mine, other = (
        admin.submit_job(jobName="x", jobQueue="open", jobDefinition="sleep", tags=tags)["jobId"]
        for tags in ({"owner": "me"}, {"owner": "you"})
    )
    answer = client.terminate_jobs(jobs=[mine, other], reason="x")
    assert answer["successful"] == [mine]
    assert [(one["job"], one["code"]) for one in answer["errors"]] == [(other, "AccessDenied")]
    denied(client.terminate_job, "batch:TerminateJob", jobId=other, reason="x")
    assert not admin.describe_jobs(jobs=[other])["jobs"][0]["isTerminated"]
    admin.terminate_job(jobId=other, reason="done")


def test_tags_at_submit_need_the_right_to_tag(served: Served) -> None:
    client = as_user(served, "tagger")
    job = {"jobName": "x", "jobQueue": "open", "jobDefinition": "ok"}
    client.submit_job(**job)
    client.submit_job(**job, tags={"team": "a"})
    denied(client.submit_job, "batch:TagResource", **job, tags={"team": "b"})
    denied(client.submit_job, "batch:TagResource", **job, tags={"other": "a"})


def test_registrations_by_image_privilege_and_role(served: Served) -> None:
    client = as_user(served, "registrar")

    def arguments(name: str = "team-a", **more: Any) -> dict[str, Any]:
        properties = container("true", **{"image": "trusted/x", **more})
        return {"jobDefinitionName": name, "type": "container", "containerProperties": properties}

    client.register_job_definition(**arguments())
    client.register_job_definition(**arguments(jobRoleArn="arn:aws:iam::123456789012:role/team"))
    action = "batch:RegisterJobDefinition"
    denied(client.register_job_definition, action, **arguments("other"))
    denied(client.register_job_definition, action, **arguments(image="else/x"))
    denied(client.register_job_definition, action, **arguments(privileged=True))
    denied(
        client.register_job_definition, "iam:PassRole", **arguments(jobRoleArn="arn:aws:iam::123456789012:role/admin")
    )
    # in a task or a group of nodes it is the same
    bad = {"name": "a", "image": "else/x", "command": ["true"]}
    task = {"taskProperties": [{"containers": [{**bad, "image": "trusted/x"}, {**bad, "name": "b"}]}]}
    denied(client.register_job_definition, action, jobDefinitionName="team-a", type="container", ecsProperties=task)
    group = {"targetNodes": "0:", "container": container("true")}
    nodes = {"numNodes": 1, "mainNode": 0, "nodeRangeProperties": [group]}
    denied(client.register_job_definition, action, jobDefinitionName="team-a", type="multinode", nodeProperties=nodes)


@pytest.mark.parametrize("name", sorted(KEYED))
def test_section_11_every_condition_key_of_a_registration(served: Served, name: str) -> None:
    client, met = as_user(served, name), dict(KEYED[name][1])
    client.register_job_definition(jobDefinitionName="k", type="container", containerProperties=container("true"))
    arguments: dict[str, Any] = {"tags": met.pop("tags")} if "tags" in met else {}
    if "pod" in met:
        arguments["eksProperties"] = {"podProperties": met.pop("pod")}
    else:
        arguments["containerProperties"] = container("true", **met)
    denied(
        client.register_job_definition, "batch:RegisterJobDefinition", jobDefinitionName="k", type="container",
        **arguments,
    )  # fmt: skip


def test_section_11_the_share_of_a_submit(served: Served) -> None:
    client = as_user(served, "sharer")
    client.submit_job(jobName="x", jobQueue="open", jobDefinition="ok")
    denied(client.submit_job, "batch:SubmitJob", jobName="x", jobQueue="open", jobDefinition="ok", shareIdentifier="ab")


def test_an_optional_resource_can_be_denied(served: Served) -> None:
    client = as_user(served, "builder")

    def arguments(name: str, environment: str) -> dict[str, Any]:
        order = [{"order": 1, "computeEnvironment": environment}]
        return {"jobQueueName": name, "priority": 1, "computeEnvironmentOrder": order}

    client.create_job_queue(**arguments("mine", "open"))
    denied(client.create_job_queue, "batch:CreateJobQueue", **arguments("mine2", "secret"))
    denied(client.create_job_queue, "batch:CreateJobQueue", **arguments("theirs", "open"))
    denied(client.create_compute_environment, "batch:CreateComputeEnvironment", computeEnvironmentName="x",
           type="MANAGED", computeResources=EC2)  # fmt: skip


def test_a_call_that_is_not_allowed_changes_nothing_and_tells_nothing(served: Served) -> None:
    client = as_user(served, "nobody")
    denied(client.submit_job, "batch:SubmitJob", jobName="x", jobQueue="no-such-queue", jobDefinition="none")
    denied(client.describe_jobs, "batch:DescribeJobs", jobs=["x"])


def test_a_second_start_reads_the_same_file(tmp_path: Path) -> None:
    for _ in range(2):
        with Served(credentials=tmp_path / "keys.json") as served:
            served.client().describe_job_queues()
