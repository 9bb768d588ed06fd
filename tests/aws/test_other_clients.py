"""boto3, the AWS CLI and the AWS SDK for JavaScript as they are, each through the whole life of jobs.

Their environment is what the front end's export lines say.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from aws_rig import EC2, UNTIL_S, Served, container, until

JS: Final = Path(__file__).parent / "js"
AWS: Final = Path(sys.executable).with_name("aws")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a shell in which the export lines were pasted."""
    with Served(credentials=tmp_path_factory.mktemp("keys") / "keys.json") as served:
        found = dict(line.removeprefix("export ").split("=", 1) for line in served.front_end.export_lines())
        nowhere = str(tmp_path_factory.mktemp("home"))
        yield {"PATH": os.environ["PATH"], "HOME": nowhere, "AWS_PAGER": "", **found}


# -- Python -----------------------------------------------------------------------------------------


def test_boto3_through_the_whole_life_of_jobs(exported: dict[str, str]) -> None:
    script = str(Path(__file__).with_name("life.py"))
    done = subprocess.run(
        [sys.executable, script], env=exported, capture_output=True, text=True, timeout=2 * UNTIL_S
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


# -- the command line -------------------------------------------------------------------------------


def aws(environment: dict[str, str], *arguments: str, fails: bool = False) -> Any:
    done = subprocess.run(
        [AWS, *arguments, "--output", "json"], env=environment, capture_output=True, text=True, timeout=UNTIL_S
    )
    assert (done.returncode != 0) is fails, done.stderr
    return done.stderr if fails else json.loads(done.stdout or "null")


@pytest.mark.timeout(600)  # some sixty commands, of a second or two each
def test_the_aws_cli_through_the_whole_life_of_jobs(exported: dict[str, str]) -> None:
    def batch(command: str, *arguments: str, **more: Any) -> Any:
        return aws(exported, "batch", command, *arguments, **more)

    def job(job_id: str) -> Any:
        return batch("describe-jobs", "--jobs", job_id)["jobs"][0]

    def ended(job_id: str) -> Any:
        return until(lambda: found if (found := job(job_id))["status"] in ("SUCCEEDED", "FAILED") else None)

    def submit(name: str, definition: str, *arguments: str, after: Any = None) -> Any:
        arguments = arguments if after is None else (*arguments, "--depends-on", f"jobId={after['jobId']}")
        return batch("submit-job", "--job-name", name, "--job-queue", "cli", "--job-definition", definition, *arguments)

    assert aws(exported, "sts", "get-caller-identity")["Arn"].endswith(":user/admin")
    batch("create-compute-environment", "--compute-environment-name", "cli", "--type", "MANAGED",
          "--compute-resources", json.dumps(EC2))  # fmt: skip
    batch("create-job-queue", "--job-queue-name", "cli", "--priority", "1",
          "--compute-environment-order", "order=1,computeEnvironment=cli")  # fmt: skip
    scripts = (("cli-hello", "echo hello from cli"), ("cli-sleep", "sleep 600"), ("cli-fails", "exit 3"))
    for name, script in scripts:
        batch("register-job-definition", "--job-definition-name", name, "--type", "container",
              "--container-properties", json.dumps(container("sh", "-c", script)))  # fmt: skip

    # a single job, a chain from it through an array to the last, and its log; a chain whose first job fails
    single = submit("single", "cli-hello", "--tags", "team=a")
    array = submit("array", "cli-hello", "--array-properties", "size=2", after=single)
    last = submit("last", "cli-hello", after=submit("after", "cli-hello", after=array))
    assert ended(last["jobId"])["status"] == "SUCCEEDED"
    done = job(array["jobId"])
    assert (done["status"], done["arrayProperties"]["statusSummary"]["SUCCEEDED"]) == ("SUCCEEDED", 2)
    children = batch("list-jobs", "--array-job-id", array["jobId"], "--job-status", "SUCCEEDED")["jobSummaryList"]
    assert [child["arrayProperties"]["index"] for child in children] == [0, 1]
    end = submit("end", "cli-hello", after=submit("behind", "cli-hello", after=submit("fails", "cli-fails")))
    assert ended(end["jobId"])["statusReason"] == "Dependent Job failed"
    stream = job(single["jobId"])["container"]["logStreamName"]
    answer = aws(exported, "logs", "get-log-events", "--log-group-name", "/aws/batch/job", "--log-stream-name", stream)
    assert [event["message"] for event in answer["events"]] == ["hello from cli"]
    answer = aws(exported, "logs", "filter-log-events", "--log-group-name", "/aws/batch/job", "--filter-pattern", "cli")
    assert [event["message"] for event in answer["events"]] == ["hello from cli"] * 5

    # cancel, terminate
    running = submit("running", "cli-sleep")["jobId"]
    waiting = submit("waiting", "cli-sleep", after={"jobId": running})["jobId"]
    until(lambda: job(running)["status"] == "RUNNING")
    batch("cancel-job", "--job-id", waiting, "--reason", "not wanted")
    batch("terminate-job", "--job-id", running, "--reason", "enough")
    assert ended(waiting)["statusReason"] == "not wanted"
    assert ended(running)["statusReason"] == "enough"

    # tags, pages, errors
    batch("tag-resource", "--resource-arn", single["jobArn"], "--tags", json.dumps({"b b": "2"}))
    batch("untag-resource", "--resource-arn", single["jobArn"], "--tag-keys", "team", "none")
    assert batch("list-tags-for-resource", "--resource-arn", single["jobArn"])["tags"] == {"b b": "2"}
    listed = batch("list-jobs", "--job-queue", "cli", "--job-status", "FAILED", "--page-size", "1")
    assert [one["jobName"] for one in listed["jobSummaryList"]] == ["waiting", "running", "end", "behind", "fails"]
    named = ("list-jobs", "--job-queue", "cli", "--job-status", "FAILED", "--max-items", "2")
    first = batch(*named)
    second = batch(*named, "--starting-token", first["NextToken"])
    names = [[one["jobName"] for one in page["jobSummaryList"]] for page in (first, second)]
    assert names == [["waiting", "running"], ["end", "behind"]]
    error = batch("submit-job", "--job-name", "x", "--job-queue", "nope", "--job-definition", "cli-hello", fails=True)
    assert "(ClientException) when calling the SubmitJob operation: JobQueue nope not found." in error
    assert "(UnrecognizedClientException)" in aws(
        {**exported, "AWS_ACCESS_KEY_ID": "AKIAUNKNOWNUNKNOWN00"}, "batch", "describe-job-queues", fails=True
    )


# -- JavaScript -------------------------------------------------------------------------------------


def install() -> None:
    """The SDK as the lock file says, unless it is there already."""
    stamp = JS / "node_modules" / ".anybatch"
    wanted = hashlib.sha256((JS / "package-lock.json").read_bytes()).hexdigest()
    with (JS / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == wanted:
            return
        npm = shutil.which("npm")
        assert npm is not None, "npm is not installed: .ci/run installs it"
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(command, cwd=JS, capture_output=True, text=True, timeout=UNTIL_S)
        assert done.returncode == 0, done.stderr
        stamp.write_text(wanted)


@pytest.mark.timeout(180)
def test_the_sdk_for_javascript_through_the_whole_life_of_jobs(exported: dict[str, str]) -> None:
    install()
    node = shutil.which("node")
    assert node is not None
    done = subprocess.run(
        [node, str(JS / "life.mjs")], env=exported, capture_output=True, text=True, timeout=2 * UNTIL_S
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_the_lock_file_names_no_host() -> None:
    assert "resolved" not in (JS / "package-lock.json").read_text()
    assert "://" not in (JS / "package-lock.json").read_text()
