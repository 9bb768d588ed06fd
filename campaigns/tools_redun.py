"""redun's AWS Batch executor: tasks after one another, an array of them, one that fails; its S3 is moto's server.

Run by workflow_tools.py.
"""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

WORKFLOW = """
import os
from redun import task

redun_namespace = "works"


@task(executor="batch", memory=1)
def square(number: int) -> int:
    print("in job", os.environ["AWS_BATCH_JOB_ID"])
    return number ** 2


@task(executor="batch", memory=1)
def total(numbers: list) -> int:
    return sum(numbers)


@task(executor="batch", memory=1)
def fails() -> int:
    raise ValueError("before the end")


@task()
def main(count: int = 3) -> int:
    return total([square(number) for number in range(count)])
"""
ROLE = "arn:aws:iam::123456789012:role/tool"

logging.getLogger("werkzeug").setLevel(logging.ERROR)
s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
s3.start()
url = "http://{}:{}".format(*s3.get_host_and_port())
boto3.client("s3", endpoint_url=url).create_bucket(Bucket="flows")
path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
Path("workflow.py").write_text(WORKFLOW)
# The jobs find redun and S3 by variables of their definition.
variables = [{"name": "PATH", "value": path}, {"name": "AWS_ENDPOINT_URL_S3", "value": url}]
Path(".redun").mkdir()
Path(".redun/redun.ini").write_text(
    f"""[backend]
db_uri = sqlite:///redun.db

[executors.batch]
type = aws_batch
image = none
queue = default
s3_scratch = s3://flows/redun
role = {ROLE}
job_monitor_interval = 0.5
job_stale_time = 1
min_array_size = 5
job_def_extra = {json.dumps({"containerProperties": {"environment": variables}})}
"""
)
environment = {**os.environ, "PATH": path, "AWS_ENDPOINT_URL_S3": url, "USER": "anybatch"}


def run(*arguments: str) -> tuple[int, str, str]:
    """The exit status, the result, and what redun tells beside."""
    done = subprocess.run(
        ["redun", "run", "workflow.py", *arguments], env=environment, capture_output=True, text=True, timeout=240
    )
    return done.returncode, done.stdout.strip(), done.stderr


batch = boto3.client("batch")


def jobs(status: str) -> list[dict[str, Any]]:
    pages = batch.get_paginator("list_jobs").paginate(jobQueue="default", jobStatus=status)
    return [job for page in pages for job in page["jobSummaryList"]]


code, result, said = run("main")
assert (code, result) == (0, "5"), said
assert len(jobs("SUCCEEDED")) == 4, said
code, result, said = run("main", "--count", "8")
assert (code, result) == (0, "140"), said
[array] = [job for job in jobs("SUCCEEDED") if "arrayProperties" in job]
assert array["arrayProperties"]["size"] == 5, array  # the first three are known
code, _, said = run("fails")
assert code != 0
assert "before the end" in said, said
assert len(jobs("FAILED")) == 1
s3.stop()
