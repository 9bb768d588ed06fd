"""`anybatch serve --bind`: what it says and refuses; kill -9 under load, with every acknowledged submit found."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

import botocore.exceptions
import pytest
from aws_rig import EC2, UNTIL_S, container, ended, refused, until
from serve_rig import SERVE, serving

ACKNOWLEDGED: Final = 150
"""Submits before the kill."""
SUBMITTERS: Final = 4
EVERY: Final = [{"name": "JOB_NAME", "values": ["*"]}]


def test_with_no_configuration_it_can_be_used_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, "--bind", "127.0.0.1:0", "--images", "local") as service:
        first = service.out.splitlines()
        assert first[0] == "made: compute environment local, job queue default"
        assert first[1] == "compute environment local: VALID, backend process"
        assert first[2] == "job queue default: ENABLED, over local"
        assert "profile aws-strict, images local; keys and policies: " in first[3]
        told = service.out.splitlines()
        assert told[told.index("in a shell:") + 1] == "    unset AWS_SESSION_TOKEN"
        client = service.client()
        client.register_job_definition(
            jobDefinitionName="hello", type="container", containerProperties=container("sh", "-c", "exit 9")
        )
        job = client.submit_job(jobName="x", jobQueue="default", jobDefinition="hello")["jobId"]
        assert ended(client, job)["container"]["exitCode"] == 9
        [environment] = client.describe_compute_environments()["computeEnvironments"]
        assert (environment["computeEnvironmentName"], environment["status"]) == ("local", "VALID")
        assert service.end() == 0
    with serving(tmp_path, "--bind", "127.0.0.1:0", "--images", "local", "--no-auth") as service:
        assert "no authentication" in service.out
        assert "made:" not in service.out
        assert service.client().describe_jobs(jobs=[job])["jobs"][0]["status"] == "FAILED"


def test_without_an_engine_it_says_what_to_do(tmp_path: Path) -> None:
    nowhere = f"unix://{tmp_path}/none"
    with serving(tmp_path, "--bind", "127.0.0.1:0", DOCKER_HOST=nowhere) as service:
        [line] = [line for line in service.out.splitlines() if line.startswith("compute environment docker: INVALID")]
        assert nowhere in line
        assert "Start a Docker Engine" in line
        assert "--images local" in line
        assert "job queue default: ENABLED, over local\n" in service.out
        client = service.client()
        [environment] = client.describe_compute_environments(computeEnvironments=["docker"])["computeEnvironments"]
        assert environment["status"] == "INVALID"
        assert "--images local" in environment["statusReason"]
        client.register_job_definition(
            jobDefinitionName="hello", type="container", containerProperties=container("true")
        )
        with refused(client, "docker is INVALID: "):
            client.submit_job(jobName="x", jobQueue="default", jobDefinition="hello")
        client.create_compute_environment(computeEnvironmentName="e", type="MANAGED", computeResources=EC2)
        with refused(client, "--images local"):  # JQ-3
            client.create_job_queue(
                jobQueueName="q", priority=1, computeEnvironmentOrder=[{"order": 1, "computeEnvironment": "e"}]
            )
        assert service.end() == 0


def test_the_configuration_says_whose_account_it_plays(tmp_path: Path) -> None:
    config = tmp_path / "aws.toml"
    config.write_text('account = "111122223333"\nregion = "eu-west-1"\n')
    arguments = ("--bind", "127.0.0.1:0", "--images", "local", "--aws-config", str(config))
    with serving(tmp_path, *arguments) as service:
        assert service.exported["AWS_REGION"] == "eu-west-1"
        [queue] = service.client().describe_job_queues()["jobQueues"]
        assert ":eu-west-1:111122223333:" in queue["jobQueueArn"]


def test_the_command_line_submits_with_a_role(tmp_path: Path) -> None:
    config = tmp_path / "aws.toml"
    config.write_text('[roles.submitter]\nprincipal = "admin"\n')
    ask = (
        "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])",
        "import os; print(os.environ.get('AWS_CONTAINER_CREDENTIALS_FULL_URI'))",
    )
    with serving(tmp_path, "--bind", "127.0.0.1:0", "--images", "local", "--aws-config", str(config)) as service:

        def anybatch(*arguments: str) -> str:
            command = [sys.executable, "-m", "anybatch", *arguments]
            environment = {**os.environ, "ANYBATCH_JOURNAL": str(tmp_path / "b.db")}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=UNTIL_S)
            assert done.returncode == 0, done.stderr
            return done.stdout

        role = ("--role", "submitter")
        anybatch("submit", "--wait", "--name", "with", *role, "--", sys.executable, "-c", ask[0])
        anybatch("submit", "--wait", "--name", "without", "--", sys.executable, "-c", ask[1])
        told = anybatch("describe", "with")
        assert "role:         submitter\n" in told
        job = json.loads(anybatch("describe", "--json", "with"))[0]["id"]
        assert anybatch("logs", "with") == f"arn:aws:sts::123456789012:assumed-role/submitter/{job}-1\n"
        assert anybatch("logs", "without") == "None\n"
        assert service.end() == 0


def test_bad_use_is_told(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("colour = 3\n")
    mode = tmp_path / "open.json"
    mode.write_text("{}")
    mode.chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments, match in (
            (["--bind", "8642"], "bind"),
            (["--bind", "0.0.0.0:0", "--no-auth"], "loopback"),
            (["--bind", f"127.0.0.1:{taken.getsockname()[1]}"], "cannot be listened on"),
            (["--bind", "127.0.0.1:0", "--aws-config", str(tmp_path / "none.toml")], "cannot be read"),
            (["--bind", "127.0.0.1:0", "--aws-config", str(bad)], "colour"),
            (["--bind", "127.0.0.1:0", "--credentials", str(mode)], "chmod 600"),
        ):
            done = subprocess.run(
                [*SERVE, "--journal", str(tmp_path / "b.db"), *arguments],
                capture_output=True,
                text=True,
                timeout=UNTIL_S,
            )
            assert done.returncode == 2, done.stderr
            assert match in done.stderr


@pytest.mark.timeout(180)
def test_w_10_kill_9_under_load_loses_no_acknowledged_submit(tmp_path: Path) -> None:
    arguments = ("--bind", "127.0.0.1:0", "--images", "local")
    acknowledged: list[str] = []
    with serving(tmp_path, *arguments) as service:
        service.client().register_job_definition(
            jobDefinitionName="sleep", type="container", containerProperties=container("sleep", "600")
        )

        def submit() -> None:
            client = service.client()
            with contextlib.suppress(botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
                while True:
                    answer = client.submit_job(jobName="load", jobQueue="default", jobDefinition="sleep")
                    acknowledged.append(answer["jobId"])

        threads = [threading.Thread(target=submit) for _ in range(SUBMITTERS)]
        for thread in threads:
            thread.start()
        until(lambda: len(acknowledged) >= ACKNOWLEDGED)
        service.process.kill()
        service.process.wait()
        for thread in threads:
            thread.join(UNTIL_S)
    with serving(tmp_path, *arguments) as service:
        client = service.client()
        found = {
            job["jobId"]
            for start in range(0, len(acknowledged), 100)
            for job in client.describe_jobs(jobs=acknowledged[start : start + 100])["jobs"]
        }
        assert found == set(acknowledged)
        # Nothing goes on after the test, what was submitted and not acknowledged neither.
        every = client.get_paginator("list_jobs").paginate(jobQueue="default", filters=EVERY).build_full_result()
        left = [job["jobId"] for job in every["jobSummaryList"]]
        assert set(left) >= set(acknowledged)
        for start in range(0, len(left), 50):
            client.terminate_jobs(jobs=left[start : start + 50], reason="done")
        for job in left:
            ended(client, job)
        assert service.end() == 0
