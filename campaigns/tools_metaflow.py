"""Metaflow's @batch: a step after another, a foreach, a step that fails; its S3 is moto's server.

Run by workflow_tools.py.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

FLOW = """
import os
from metaflow import FlowSpec, Parameter, batch, environment, step

HERE = {name: os.environ[name] for name in ("PATH", "METAFLOW_SKIP_INSTALL_DEPENDENCIES")}


class Works(FlowSpec):
    fails = Parameter("fails", default=0)

    @environment(vars=HERE)
    @batch(cpu=1, memory=1024)
    @step
    def start(self):
        print("in job", os.environ["AWS_BATCH_JOB_ID"])
        self.numbers = [1, 2, 3]
        self.next(self.square, foreach="numbers")

    @environment(vars=HERE)
    @batch(cpu=1, memory=1024)
    @step
    def square(self):
        assert not self.fails, "before the end"
        self.found = self.input ** 2
        self.next(self.join)

    @environment(vars=HERE)
    @batch(cpu=1, memory=1024)
    @step
    def join(self, inputs):
        self.total = sum(one.found for one in inputs)
        self.next(self.end)

    @step
    def end(self):
        print("the total is", self.total)


if __name__ == "__main__":
    Works()
"""

logging.getLogger("werkzeug").setLevel(logging.ERROR)
s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
s3.start()
host, port = s3.get_host_and_port()
url = f"http://{host}:{port}"
boto3.client("s3", endpoint_url=url).create_bucket(Bucket="flows")
Path("works.py").write_text(FLOW)
environment = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "USER": "anybatch",
    "METAFLOW_DEFAULT_DATASTORE": "s3",
    "METAFLOW_DATASTORE_SYSROOT_S3": "s3://flows/metaflow",
    "METAFLOW_S3_ENDPOINT_URL": url,
    "METAFLOW_BATCH_JOB_QUEUE": "default",
    "METAFLOW_ECS_S3_ACCESS_IAM_ROLE": "arn:aws:iam::123456789012:role/tool",
    "METAFLOW_SKIP_INSTALL_DEPENDENCIES": "1",  # they are on the PATH of the jobs
}


def run(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "works.py", "run", *arguments], env=environment, capture_output=True, text=True, timeout=240
    )
    return done.returncode, done.stdout + done.stderr


code, said = run()
assert code == 0, said
assert "the total is 14" in said, said
batch = boto3.client("batch")
pages = batch.get_paginator("list_jobs").paginate(jobQueue="default", jobStatus="SUCCEEDED")
jobs = [job for page in pages for job in page["jobSummaryList"]]
assert len(jobs) == 5, jobs
assert any(f"in job {job['jobId']}" in said for job in jobs), said
code, said = run("--fails", "1")
assert code != 0
assert "before the end" in said, said
s3.stop()
