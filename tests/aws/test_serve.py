"""`anybatch serve --bind`: what it says and refuses; kill -9 under load, with every acknowledged submit found."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import boto3
import botocore.config
import botocore.exceptions
import pytest
from aws_rig import UNTIL_S, container, ended, until

SERVE: Final = [sys.executable, "-m", "anybatch", "serve"]
ACKNOWLEDGED: Final = 150
"""Submits before the kill."""
SUBMITTERS: Final = 4


class Service:
    """A process that serves."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        read, write = os.pipe()
        out = (folder / "out").open("w")
        with out:
            self.process = subprocess.Popen(
                [*SERVE, "--journal", str(folder / "b.db"), "--ready-fd", str(write), *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=[write],
                start_new_session=True,
                cwd=folder,
            )
        os.close(write)
        with os.fdopen(read) as ready:
            assert ready.read() == "ready\n", (folder / "out").read_text()
        self.out = (folder / "out").read_text()
        lines = [line.strip() for line in self.out.splitlines()]
        self.exported = dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))

    def client(self) -> Any:
        session = boto3.Session(
            self.exported["AWS_ACCESS_KEY_ID"],
            self.exported["AWS_SECRET_ACCESS_KEY"],
            region_name=self.exported["AWS_REGION"],
        )
        config = botocore.config.Config(retries={"total_max_attempts": 1})
        return session.client("batch", endpoint_url=self.exported["AWS_ENDPOINT_URL_BATCH"], config=config)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(UNTIL_S)


@contextlib.contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Service]:
    service = Service(folder, *arguments)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()


def test_with_no_configuration_it_can_be_used_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, "--bind", "127.0.0.1:0", "--images", "local") as service:
        first = service.out.splitlines()
        assert first[0] == "made: compute environment local (backend process)"
        assert first[1] == "made: job queue default over local"
        assert "profile aws-strict, images local; keys and policies: " in first[2]
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


def test_without_an_engine_a_container_is_refused_and_it_says_what_to_do(tmp_path: Path) -> None:
    config = tmp_path / "aws.toml"
    config.write_text('account = "111122223333"\n[environments.EC2]\nbackend = "process"\n')
    with serving(tmp_path, "--bind", "127.0.0.1:0", "--aws-config", str(config)) as service:
        client = service.client()
        client.register_job_definition(
            jobDefinitionName="hello", type="container", containerProperties=container("true")
        )
        if "over local\n" in service.out:
            assert "--images local" in service.out
            with pytest.raises(botocore.exceptions.ClientError, match="honours"):
                client.submit_job(jobName="x", jobQueue="default", jobDefinition="hello")
        [queue] = client.describe_job_queues()["jobQueues"]
        assert ":111122223333:" in queue["jobQueueArn"]


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
        for start in range(0, len(acknowledged), 50):
            client.terminate_jobs(jobs=acknowledged[start : start + 50], reason="done")
        assert service.end() == 0
