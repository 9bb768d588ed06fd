"""AWS's container definitions on a real Docker Engine, through the API alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anybatch.plugins.aws import AwsSettings, BackendChoice
from aws_rig import Served, add_queue, container, ended, in_status, refused, until
from docker_rig import DEFAULT_COMMAND, IMAGE, TestEngine, engine_or_skip
from serve_rig import serving

SECRET = "arn:aws:ssm:us-east-1:123456789012:parameter/password"


@pytest.fixture(scope="module")
def docker() -> Iterator[TestEngine]:
    with engine_or_skip() as found:
        yield found


@pytest.fixture(scope="module")
def client(docker: TestEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    secrets = tmp_path_factory.mktemp("secrets")
    (secrets / "password").write_text("hunter2")
    options = {"engines": [docker.url], "network": "none", "secrets": str(secrets)}
    settings = AwsSettings(environments={"EC2": BackendChoice(backend="docker", options=options)})
    with Served(settings=settings) as served:
        client = served.client()
        client.logs = served.client("logs")
        add_queue(client)
        yield client


def run(client: Any, name: str, *command: str, **more: Any) -> dict[str, Any]:
    """A job of a definition of its own, once it has ended."""
    submit = {key: more.pop(key) for key in ("containerOverrides", "parameters", "arrayProperties") if key in more}
    client.register_job_definition(
        jobDefinitionName=name,
        type="container",
        retryStrategy=more.pop("retryStrategy", {"attempts": 1}),
        containerProperties={**container(*command), "image": IMAGE, **more},
    )
    return ended(client, client.submit_job(jobName=name, jobQueue="q", jobDefinition=name, **submit)["jobId"])


def lines(client: Any, job: dict[str, Any]) -> list[str]:
    """A job's log, as clients of AWS Batch read it."""
    name = job["container"]["logStreamName"]
    answer = client.logs.get_log_events(logGroupName="/aws/batch/job", logStreamName=name, startFromHead=True)
    return [event["message"] for event in answer["events"]]


def test_a_container_is_what_its_definition_says(client: Any, docker: TestEngine, tmp_path: Path) -> None:
    script = (
        'echo "$GREETING $WHOM Ref::mark"; id -u; ulimit -n; cat /data/given; echo back > /data/made; '
        "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes; "
        "(echo x > /x) 2>&1 | wc -l"
        "; df -m /scratch | tail -1 | awk '{print $2}'; exit 3"
    )
    (tmp_path / "given").write_text("from the host\n")
    tmp_path.chmod(0o777)
    job = run(
        client,
        "all",
        "sh", "-c", script,
        parameters={"mark": "!"},
        environment=[{"name": "GREETING", "value": "hello"}, {"name": "WHOM", "value": "nobody"}],
        containerOverrides={
            "environment": [{"name": "WHOM", "value": "world"}],
            "resourceRequirements": [{"type": "MEMORY", "value": "64"}],
        },
        user="nobody",
        ulimits=[{"name": "nofile", "softLimit": 100, "hardLimit": 200}],
        readonlyRootFilesystem=True,
        volumes=[{"name": "data", "host": {"sourcePath": str(tmp_path)}}],
        mountPoints=[{"sourceVolume": "data", "containerPath": "/data"}],
        linuxParameters={"tmpfs": [{"containerPath": "/scratch", "size": 8}], "initProcessEnabled": True},
    )  # fmt: skip
    assert (job["status"], job["container"]["exitCode"]) == ("FAILED", 3)
    assert job["statusReason"] == "Essential container in task exited"
    assert lines(client, job) == [
        "hello world !", "65534", "100", "from the host", str(64 << 20), "1", "8",
    ]  # fmt: skip
    assert (tmp_path / "made").read_text() == "back\n"
    assert job["container"]["image"] == IMAGE
    assert job["container"]["ulimits"] == [{"name": "nofile", "softLimit": 100, "hardLimit": 200}]
    until(lambda: not docker.containers(job=job["jobId"]))  # it is removed once its log is kept


def test_an_image_without_a_command_runs_its_own(client: Any) -> None:
    client.register_job_definition(
        jobDefinitionName="image",
        type="container",
        containerProperties={
            "image": IMAGE,
            "resourceRequirements": [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "32"}],
        },
    )
    job = ended(client, client.submit_job(jobName="image", jobQueue="q", jobDefinition="image")["jobId"])
    assert (job["status"], job["container"]["command"]) == ("SUCCEEDED", [])
    assert lines(client, job) == [DEFAULT_COMMAND[-1].removeprefix("echo ")]


def test_a_secret_reaches_the_container_and_nothing_else(client: Any) -> None:
    given = {"executionRoleArn": "arn:aws:iam::123456789012:role/execution"}
    secrets = [{"name": "PASSWORD", "valueFrom": "password"}]
    job = run(client, "secret", "sh", "-c", "echo got $PASSWORD", secrets=secrets, **given)
    assert lines(client, job) == ["got hunter2"]
    assert job["container"]["secrets"] == secrets
    assert "hunter2" not in str(job)
    job = run(client, "nosecret", "true", secrets=[{"name": "P", "valueFrom": SECRET}], **given)
    assert (job["status"], job["statusReason"]) == ("FAILED", "Task failed to start")
    assert job["container"]["reason"].startswith("ResourceInitializationError: ")
    assert "exitCode" not in job["container"]


def test_2_6_what_cannot_start_or_outgrows_its_memory_says_so(client: Any) -> None:
    job = run(client, "noprogram", "/no/such/program")
    assert (job["statusReason"], "exitCode" in job["container"]) == ("Task failed to start", False)
    assert job["container"]["reason"].startswith("CannotStartContainerError: ")
    job = run(client, "noimage", "true", image="127.0.0.1:1/nothing:1")
    assert job["statusReason"] == "Task failed to start"
    assert job["container"]["reason"].startswith("CannotPullContainerError: ")
    job = run(client, "oom", "sh", "-c", "tail /dev/zero")
    assert job["container"]["exitCode"] == 137
    assert job["container"]["reason"] == "OutOfMemoryError: Container killed due to memory usage"
    assert job["attempts"][0]["container"]["reason"] == job["container"]["reason"]


def test_rt_4_and_ar_7_attempts_and_children_have_containers_of_their_own(client: Any) -> None:
    parent = run(
        client,
        "array",
        "sh", "-c", "echo child $AWS_BATCH_JOB_ARRAY_INDEX try $AWS_BATCH_JOB_ATTEMPT of $AWS_BATCH_JQ_NAME;"
                    "test $AWS_BATCH_JOB_ARRAY_INDEX != 1 -o $AWS_BATCH_JOB_ATTEMPT = 2",
        arrayProperties={"size": 3},
        retryStrategy={"attempts": 2},
    )  # fmt: skip
    assert parent["status"] == "SUCCEEDED"
    children = client.describe_jobs(jobs=[f"{parent['jobId']}:{n}" for n in range(3)])["jobs"]
    assert [len(child["attempts"]) for child in children] == [1, 2, 1]
    assert [lines(client, child) for child in children] == [
        ["child 0 try 1 of q"], ["child 1 try 2 of q"], ["child 2 try 1 of q"],
    ]  # fmt: skip


def test_ct_terminate_ends_the_container(client: Any, docker: TestEngine) -> None:
    client.register_job_definition(
        jobDefinitionName="sleep",
        type="container",
        containerProperties={
            **container("sh", "-c", 'trap "echo told; exit 9" TERM; echo ready; while :; do sleep 0.05; done'),
            "image": IMAGE,
        },
    )
    job_id = client.submit_job(jobName="sleep", jobQueue="q", jobDefinition="sleep")["jobId"]
    running = in_status(client, job_id, "RUNNING")
    until(lambda: lines(client, running) == ["ready"])
    assert len(docker.containers(job=job_id)) == 1
    client.terminate_job(jobId=job_id, reason="enough")
    job = ended(client, job_id)
    assert (job["status"], job["statusReason"], job["container"]["exitCode"]) == ("FAILED", "enough", 9)
    assert lines(client, job) == ["ready", "told"]
    until(lambda: not docker.containers(job=job_id))


def test_what_an_environment_may_not_do_is_refused_at_the_submit(docker: TestEngine) -> None:
    options = {"engines": [docker.url], "network": "none", "refuse": ["privileged"]}
    settings = AwsSettings(environments={"EC2": BackendChoice(backend="docker", options=options)})
    with Served(settings=settings) as served:
        client = served.client()
        add_queue(client)
        client.register_job_definition(
            jobDefinitionName="root",
            type="container",
            containerProperties={**container("true"), "image": IMAGE, "privileged": True},
        )
        with refused(client, "privileged"):
            client.submit_job(jobName="x", jobQueue="q", jobDefinition="root")
        assert client.list_jobs(jobQueue="q", jobStatus="RUNNABLE")["jobSummaryList"] == []


def test_with_an_engine_and_no_configuration_it_can_be_used_at_once(docker: TestEngine, tmp_path: Path) -> None:
    def submit(client: Any) -> str:
        job: str = client.submit_job(jobName="x", jobQueue="default", jobDefinition="hello")["jobId"]
        return job

    with serving(tmp_path, "--bind", "127.0.0.1:0", DOCKER_HOST=f"unix://{tmp_path}/none") as service:
        client = service.client()
        client.register_job_definition(
            jobDefinitionName="hello",
            type="container",
            containerProperties={**container("sh", "-c", "exit 7"), "image": IMAGE},
        )
        with refused(client, "Start a Docker Engine"):
            submit(client)
        assert service.end() == 0
    # the engine is started later: the same queue has it
    with serving(tmp_path, "--bind", "127.0.0.1:0", DOCKER_HOST=docker.url) as service:
        assert "compute environment docker: VALID, backend docker\n" in service.out
        assert "updated: job queue default, which has docker now\n" in service.out
        assert "job queue default: ENABLED, over local, docker\n" in service.out
        client = service.client()
        job = ended(client, submit(client))
        assert job["container"]["exitCode"] == 7
        assert "/docker_Batch_" in job["container"]["containerInstanceArn"]
        assert service.end() == 0
