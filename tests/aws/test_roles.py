"""Job roles: credentials for attempts, found by unmodified SDKs in processes; they end with the attempt."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import botocore.exceptions
import pytest
from anybatch import InvalidValue
from anybatch.plugins.aws import AwsFrontEnd, AwsSettings, RoleSource
from anybatch.plugins.aws.roles import Urls, urls_of
from aws_rig import Served, add_queue, container, define, ended, in_status, until

PROGRAM: Final = str(Path(__file__).with_name("role_program.py"))
ROLE: Final = "arn:aws:iam::123456789012:role/batch/submitter"
SUBMIT_ONLY: Final = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Action": "batch:SubmitJob", "Resource": "*"},
        {"Effect": "Allow", "Action": "batch:DescribeJobs", "Resource": "*"},
    ],
}
PRINTED: Final = {"Version": 1, "AccessKeyId": "AKIAFROMELSEWHERE000", "SecretAccessKey": "elsewhere", "Extra": 1}


def credentials_file(path: Path) -> Path:
    """A file of credentials with an administrator, and with `ann`, who may submit."""
    path.write_text(
        json.dumps(
            {
                "version": 1,
                "session_secret": "s" * 40,
                "principals": [
                    {
                        "name": "admin",
                        "access_key_id": "AKIAADMINADMINADMIN0",
                        "secret_access_key": "the secret of admin",
                        "policies": [
                            {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}}
                        ],
                    },
                    {
                        "name": "ann",
                        "access_key_id": "AKIAANNANNANNANNANN0",
                        "secret_access_key": "the secret of ann",
                        "policies": [SUBMIT_ONLY],
                    },
                ],
            }
        )
    )
    path.chmod(0o600)
    return path


def with_roles(tmp_path: Path, roles: dict[str, RoleSource], *, path: Path | None = None, **more: Any) -> Served:
    keys = tmp_path / "keys.json"
    if not keys.exists():
        credentials_file(keys)
    settings = AwsSettings(images="local", roles=roles, **more.pop("settings", {}))
    return Served(path, settings, credentials=keys, **more)


def define_with_role(client: Any, name: str, *command: str, role: str = ROLE, **more: Any) -> Any:
    needs = [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "512"}]
    properties = container(*command, jobRoleArn=role, resourceRequirements=needs, **more)
    return client.register_job_definition(jobDefinitionName=name, type="container", containerProperties=properties)


def said(served: Served, job: dict[str, Any]) -> Any:
    """What a job printed last."""
    text = served.run(served.kernel.read_logs(job["jobId"])).decode()
    assert job["status"] == "SUCCEEDED", text
    return json.loads(text.splitlines()[-1])


def ask(served: Served, token: str) -> tuple[int, Any]:
    """Ask for credentials as SDKs do."""
    request = urllib.request.Request(served.url + "/v1/credentials", headers={"Authorization": token})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_a_job_submits_jobs_with_an_unmodified_sdk(tmp_path: Path) -> None:
    journal = tmp_path / "b.db"
    with with_roles(tmp_path, {"submitter": RoleSource(principal="ann")}, path=journal) as served:
        client = served.client()
        add_queue(client)
        define(client, "child", "true")
        answer = define_with_role(client, "parent", sys.executable, PROGRAM, "submit")
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        assert "jobRoleArn" not in headers.get("x-anybatch-ignored", "")
        [definition] = client.describe_job_definitions(jobDefinitions=["parent"])["jobDefinitions"]
        assert definition["containerProperties"]["jobRoleArn"] == ROLE
        job = client.submit_job(jobName="p", jobQueue="q", jobDefinition="parent")["jobId"]
        found = said(served, ended(client, job))
        assert found["method"] == "container-role"
        assert found["arn"] == f"arn:aws:sts::123456789012:assumed-role/submitter/{job}-1"
        assert found["refused"] == "AccessDeniedException"
        assert ended(client, found["job"])["status"] == "SUCCEEDED"
        assert served.run(served.kernel.describe_job(found["job"])).principal == "ann"
        records = served.run(_records(served))
    assumed = [one.detail for one in records if one.operation == "AssumeRole"]
    assert assumed[0]["requestParameters"] == {"roleArn": ROLE, "roleSessionName": f"{job}-1"}
    assert set(assumed[0]["responseElements"]) == {"RoleArn", "AccessKeyId", "Expiration"}
    [submitted] = [one.detail for one in records if one.operation == "SubmitJob" and one.principal == "ann"]
    assert submitted["userIdentity"]["type"] == "AssumedRole"
    assert submitted["userIdentity"]["sessionContext"]["sessionIssuer"]["userName"] == "submitter"
    # The attempt's token is a text of its own: nothing that was written down has the beginning of one.
    for file in [one for one in tmp_path.rglob("*") if one.is_file()]:
        assert f"{job}:-:1:".encode() not in file.read_bytes(), file


async def _records(served: Served) -> list[Any]:
    return [one async for one in served.kernel.audit()]


ODD: Final = "\u00e9:-:1:" + "0" * 64
SHOW_TOKEN: Final = 'echo "\\"$AWS_CONTAINER_AUTHORIZATION_TOKEN\\""'


def test_the_token_is_the_attempts_and_ends_with_it(tmp_path: Path) -> None:
    with with_roles(tmp_path, {ROLE: RoleSource(principal="ann")}) as served:
        client = served.client()
        add_queue(client)
        define_with_role(client, "loud", "sh", "-c", f"{SHOW_TOKEN}; exec sleep 600")
        jobs = []
        for more in ({}, {"arrayProperties": {"size": 2}}):
            job = client.submit_job(jobName="a", jobQueue="q", jobDefinition="loud", **more)["jobId"]
            jobs += [f"{job}:{n}" for n in range(2)] if more else [job]
        tokens = {}
        for job in jobs:
            in_status(client, job, "RUNNING")
            text = until(lambda job=job: served.run(served.kernel.read_logs(job)))  # type: ignore[misc]
            tokens[job] = json.loads(text)
        assert len(set(tokens.values())) == 3
        sessions = {}
        for job, token in tokens.items():
            status, found = ask(served, token)
            assert status == 200
            assert found["RoleArn"] == ROLE
            ends = datetime.fromisoformat(found["Expiration"])
            assert timedelta(minutes=55) < ends - datetime.now(UTC) <= timedelta(hours=1)
            keys = {"key": found["AccessKeyId"], "secret": found["SecretAccessKey"], "token": found["Token"]}
            sessions[job] = served.client("sts", **keys), served.client(**keys)
            assert sessions[job][0].get_caller_identity()["Arn"].endswith(f"/{job.replace(':', '.')}-1")
        first, second, third = jobs
        for token in ("", "x", tokens[first][:-1], tokens[first].replace(":1:", ":2:"), tokens[third] + ":1", ODD):
            assert ask(served, token)[0] == 403
        client.terminate_job(jobId=second, reason="enough")
        ended(client, second)
        status, found = ask(served, tokens[second])
        assert (status, found["__type"]) == (403, "AttemptEnded")
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            sessions[second][1].describe_jobs(jobs=[first])
        assert caught.value.response["Error"]["Code"] == "ExpiredTokenException"
        assert ask(served, tokens[third])[0] == 200
        assert sessions[first][1].describe_jobs(jobs=[first])["jobs"]
        for job in (first, third):
            client.terminate_job(jobId=job, reason="done")
            ended(client, job)


def test_the_token_outlives_a_restart_of_the_kernel(tmp_path: Path) -> None:
    roles = {"submitter": RoleSource(principal="ann")}
    with with_roles(tmp_path, roles, path=tmp_path / "b.db") as served:
        client = served.client()
        add_queue(client)
        define_with_role(client, "loud", "sh", "-c", f"{SHOW_TOKEN}; exec sleep 600")
        job = client.submit_job(jobName="a", jobQueue="q", jobDefinition="loud")["jobId"]
        in_status(client, job, "RUNNING")
        token = json.loads(until(lambda: served.run(served.kernel.read_logs(job))))
        found = ask(served, token)[1]
    with with_roles(tmp_path, roles, path=tmp_path / "b.db") as served:
        in_status(served.client(), job, "RUNNING")
        assert ask(served, token)[0] == 200
        keys = {"key": found["AccessKeyId"], "secret": found["SecretAccessKey"], "token": found["Token"]}
        assert served.client(**keys).describe_jobs(jobs=[job])["jobs"]
        served.client().terminate_job(jobId=job, reason="done")
        ended(served.client(), job)


def test_credentials_come_from_a_program_a_file_or_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = (datetime.now(UTC) + timedelta(hours=6)).strftime("%Y-%m-%dT%H:%M:%SZ")
    printed = tmp_path / "printed.json"
    printed.write_text(json.dumps(PRINTED))
    calls = tmp_path / "calls"
    program = tmp_path / "program"
    answer = json.dumps({**PRINTED, "AccessKeyId": "ASIAFROMTHEPROGRAM00", "SessionToken": "t", "Expiration": ends})
    program.write_text(f"#!/bin/sh\necho called >> {calls}\necho '{answer}'\n")
    program.chmod(0o755)
    aws = tmp_path / "aws"
    aws.write_text("[data]\naws_access_key_id = AKIAOFTHEPROFILE0000\naws_secret_access_key = s\n")
    config = tmp_path / "config"
    config.write_text(f"[profile run]\ncredential_process = {program} x\n[profile sso]\nsso_session = a\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(aws))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    roles = {
        "program": RoleSource(process=(str(program),)),
        "file": RoleSource(file=str(printed)),
        "profile": RoleSource(profile="data"),
        "run": RoleSource(profile="run"),
        "sso": RoleSource(profile="sso"),
        "none": RoleSource(profile="none"),
        "gone": RoleSource(file=str(tmp_path / "gone")),
        "bad": RoleSource(process=("sh", "-c", "echo secret")),
        "fails": RoleSource(process=("sh", "-c", "exit 3")),
    }
    wanted = {
        "program": "ASIAFROMTHEPROGRAM00",
        "file": "AKIAFROMELSEWHERE000",
        "profile": "AKIAOFTHEPROFILE0000",
        "run": "ASIAFROMTHEPROGRAM00",
        "sso": "the profile 'sso' has neither keys nor a credential_process; use process",
        "none": "there is no profile 'none'",
        "gone": "gone cannot be read: No such file or directory",
        "bad": "sh does not give JSON with Version 1",
        "fails": "sh ended with 3",
    }
    with with_roles(tmp_path, roles) as served:
        client = served.client()
        add_queue(client)
        for role in roles:
            define_with_role(client, role, "sh", "-c", f"{SHOW_TOKEN}; exec sleep 600", role=role)
            job = client.submit_job(jobName="a", jobQueue="q", jobDefinition=role)["jobId"]
            in_status(client, job, "RUNNING")
            token = json.loads(until(lambda job=job: served.run(served.kernel.read_logs(job))))  # type: ignore[misc]
            for _ in range(2):
                status, found = ask(served, token)
                if status == 200:
                    assert found["AccessKeyId"] == wanted[role]
                    assert isinstance(found["Token"], str)
                else:
                    assert (status, wanted[role] in found["message"]) == (500, True), found
                    assert "secret" not in found["message"]
            client.terminate_job(jobId=job, reason="done")
            ended(client, job)
        define_with_role(client, "sdk", sys.executable, PROGRAM, role="program")
        job = client.submit_job(jobName="a", jobQueue="q", jobDefinition="sdk")["jobId"]
        found = said(served, ended(client, job))
        assert found == {"method": "container-role", "key": "ASIAFROMTHEPROGRAM00"}
    # Kept until it has to be asked again: once for the role, once as the profile's, with another argument.
    assert calls.read_text().count("called") == 2


def test_st_8_a_role_that_is_not_known_fails_the_attempt_with_a_reason(tmp_path: Path) -> None:
    with with_roles(tmp_path, {"known": RoleSource(principal="ann")}) as served:
        client = served.client()
        add_queue(client)
        define_with_role(client, "d", "true", role="arn:aws:iam::123456789012:role/unknown")
        job = client.submit_job(jobName="a", jobQueue="q", jobDefinition="d", retryStrategy={"attempts": 2})["jobId"]
        found = ended(client, job)
        assert found["status"] == "FAILED"
        assert [one["statusReason"] for one in found["attempts"]] == ["Task failed to start"] * 2
        assert found["container"]["reason"] == (
            "the role arn:aws:iam::123456789012:role/unknown is not known here; those of the configuration are known"
        )


def test_without_roles_or_with_the_lenient_profile_they_have_no_effect(tmp_path: Path) -> None:
    known = {"known": RoleSource(principal="ann")}
    for roles, settings, ignored in (({}, {}, True), (known, {"profile": "lenient"}, False)):
        with with_roles(tmp_path, roles, settings=settings) as served:
            client = served.client()
            add_queue(client)
            answer = define_with_role(client, "d", "sh", "-c", 'test -z "$AWS_CONTAINER_AUTHORIZATION_TOKEN"')
            headers = answer["ResponseMetadata"]["HTTPHeaders"]
            assert ("jobRoleArn" in headers.get("x-anybatch-ignored", "")) is ignored
            job = client.submit_job(jobName="a", jobQueue="q", jobDefinition="d")["jobId"]
            assert ended(client, job)["status"] == "SUCCEEDED"


def test_a_server_that_attempts_cannot_ask_says_so(tmp_path: Path) -> None:
    roles = {"submitter": RoleSource(principal="ann")}
    with with_roles(tmp_path, roles) as served:
        served.run(served.kernel.create_compute_environment("far", backend="null", max_vcpus=1))
    urls = urls_of(("192.0.2.7", 8642), None, secure=False, hosts=["batch.example"])
    assert urls == Urls(None, None, None)


LOOPBACK: Final = "http://127.0.0.1:8642"
LINK: Final = "http://169.254.170.2:80"


@pytest.mark.parametrize(
    ("main", "jobs", "secure", "hosts", "wanted"),
    [
        ("127.0.0.1", None, False, [], Urls(LOOPBACK, None, None)),
        ("0.0.0.0", None, False, [], Urls(LOOPBACK, None, None)),
        ("::1", None, False, [], Urls("http://[::1]:8642", None, None)),
        ("192.0.2.7", None, False, ["batch.example"], Urls(None, None, None)),
        ("192.0.2.7", "127.0.0.1", False, [], Urls("http://127.0.0.1:80", None, None)),
        ("192.0.2.7", "169.254.170.2", False, [], Urls(LINK, LINK, None)),
        ("169.254.170.2", None, False, [], Urls("http://169.254.170.2:8642", "http://169.254.170.2:8642", None)),
        ("127.0.0.1", "169.254.170.2", False, [], Urls(LINK, LINK, None)),
        ("0.0.0.0", None, True, [], Urls(None, None, None)),
        ("0.0.0.0", None, True, ["b.example"], Urls(*["https://b.example:8642"] * 3)),
        ("0.0.0.0", "127.0.0.1", True, ["b.example"], Urls("http://127.0.0.1:80", *["https://b.example:8642"] * 2)),
    ],
)
def test_where_sdks_would_ask(main: str, jobs: str | None, secure: bool, hosts: list[str], wanted: Urls) -> None:
    assert urls_of((main, 8642), None if jobs is None else (jobs, 80), secure=secure, hosts=hosts) == wanted


def test_roles_that_cannot_be_are_refused_at_the_start(tmp_path: Path) -> None:
    keys = credentials_file(tmp_path / "keys.json")
    kernel: Any = None
    for roles, match in (
        ({"a": RoleSource()}, "roles.a: .*one of principal"),
        ({"a": RoleSource(principal="ann", profile="x")}, "roles.a: .*one of principal"),
        ({"a": RoleSource(process=())}, "roles.a.process: .*not empty"),
        ({"a": RoleSource(principal="bob")}, "roles.a.principal: 'bob' .*admin, ann"),
        ({"arn:aws:iam::1:user/x": RoleSource(file="x")}, "roles.arn:aws:iam::1:user/x: .*a role is its name"),
    ):
        with pytest.raises(InvalidValue, match=match):
            AwsFrontEnd(kernel, settings=AwsSettings(roles=roles), credentials=keys)
    for bind, no_auth, match in (
        ("192.0.2.1:80", False, "bind_jobs: .*169.254.170.2"),
        ("169.254.170.2:80", True, "bind_jobs: .*loopback"),
    ):
        with pytest.raises(InvalidValue, match=match):
            AwsFrontEnd(kernel, bind_jobs=bind, no_auth=no_auth)


def test_an_address_of_its_own_serves_attempts_beside_one_that_sdks_would_not_ask(tmp_path: Path) -> None:
    roles = {"submitter": RoleSource(principal="ann")}
    with with_roles(tmp_path, roles, bind_jobs="127.0.0.2:0") as served:
        client = served.client()
        add_queue(client)
        define(client, "child", "true")
        define_with_role(client, "parent", sys.executable, PROGRAM, "submit")
        define_with_role(client, "where", "sh", "-c", 'echo "\\"$AWS_ENDPOINT_URL_BATCH\\""')
        job = client.submit_job(jobName="p", jobQueue="q", jobDefinition="where")["jobId"]
        assert said(served, ended(client, job)).startswith("http://127.0.0.2:")
        job = client.submit_job(jobName="p", jobQueue="q", jobDefinition="parent")["jobId"]
        assert said(served, ended(client, job))["refused"] == "AccessDeniedException"


def test_process_lists_do_not_show_the_token(tmp_path: Path) -> None:
    with with_roles(tmp_path, {ROLE: RoleSource(principal="ann")}) as served:
        client = served.client()
        add_queue(client)
        define_with_role(client, "d", "sleep", "600")
        job = client.submit_job(jobName="a", jobQueue="q", jobDefinition="d")["jobId"]
        in_status(client, job, "RUNNING")
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                assert f"{job}:-:1:".encode() not in file.read_bytes()
            except OSError:
                continue
        client.terminate_job(jobId=job, reason="done")
        ended(client, job)


def test_pass_role_is_needed_to_give_a_job_its_role(tmp_path: Path) -> None:
    with with_roles(tmp_path, {ROLE: RoleSource(principal="admin")}) as served:
        add_queue(served.client())
        ann = served.client(key="AKIAANNANNANNANNANN0", secret="the secret of ann")
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            define_with_role(ann, "d", "true")
        assert caught.value.response["Error"]["Code"] == "AccessDeniedException"
