"""Airflow's BatchOperator, executed as a task would be: a job, an array, one that fails with its log in the task's.

Run by workflow_tools.py.
"""

import json
import os
import time
from typing import Any

# A connection by Airflow's own means. The endpoint is in it: the keys come from the environment that was exported.
os.environ["AIRFLOW_CONN_ANYBATCH"] = json.dumps(
    {
        "conn_type": "aws",
        "login": os.environ["AWS_ACCESS_KEY_ID"],
        "password": os.environ["AWS_SECRET_ACCESS_KEY"],
        "extra": {"region_name": os.environ["AWS_REGION"], "endpoint_url": os.environ["AWS_ENDPOINT_URL_BATCH"]},
    }
)
os.environ.setdefault("AIRFLOW_HOME", os.path.abspath("airflow"))

# Airflow reads its environment when it is imported.
import boto3
from airflow.exceptions import AirflowException
from airflow.providers.amazon.aws.hooks.batch_client import BatchClientHook
from airflow.providers.amazon.aws.operators.batch import BatchOperator

NEEDS = [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "64"}]
batch = boto3.client("batch")
for name, script in (
    ("hello", 'echo "$GREETING Ref::whom"'),
    ("fail", "echo before the end; exit 3"),
    ("sleep", "sleep 600"),
):
    batch.register_job_definition(
        jobDefinitionName=name,
        type="container",
        parameters={"whom": "nobody"},
        containerProperties={"image": "busybox", "command": ["sh", "-c", script], "resourceRequirements": NEEDS},
    )


class TaskInstance:
    """What the operator tells of itself while it runs."""

    def __init__(self) -> None:
        self.said: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any, **_: Any) -> None:
        self.said[key] = value


def operator(name: str, **more: Any) -> BatchOperator:
    found = BatchOperator(task_id=name, job_name=name, job_queue="default", **more)
    found.hook.delay = lambda *_: time.sleep(0.5)  # it asks every half minute otherwise
    return found


def execute(task: BatchOperator) -> dict[str, Any]:
    """Run an operator as a task does; returns its job as AWS describes it."""
    instance = TaskInstance()
    task.execute({"ti": instance, "task_instance": instance})
    return described(task)


def described(task: BatchOperator) -> dict[str, Any]:
    found: dict[str, Any] = batch.describe_jobs(jobs=[task.job_id])["jobs"][0]
    return found


for connection in ("anybatch", None):  # by a connection, and by what was exported alone
    hello = operator(
        f"hello-{connection}",
        job_definition="hello",
        aws_conn_id=connection,
        parameters={"whom": "airflow"},
        container_overrides={"environment": [{"name": "GREETING", "value": "hello"}]},
        tags={"dag": "one"},
        retry_strategy={"attempts": 2},
        submit_job_timeout=60,
    )
    job = execute(hello)
    assert (job["status"], job["tags"], job["timeout"]) == ("SUCCEEDED", {"dag": "one"}, {"attemptDurationSeconds": 60})
    [info] = BatchClientHook(aws_conn_id=connection).get_job_all_awslogs_info(job["jobId"])
    stream = {"logGroupName": info["awslogs_group"], "logStreamName": info["awslogs_stream_name"]}
    events = boto3.client("logs").get_log_events(**stream)["events"]
    assert [event["message"] for event in events] == ["hello airflow"], events

job = execute(operator("array", job_definition="hello", aws_conn_id=None, array_properties={"size": 3}))
assert job["arrayProperties"]["statusSummary"]["SUCCEEDED"] == 3

fails = operator("fails", job_definition="fail", aws_conn_id=None, awslogs_enabled=True)  # its log goes to stdout
said = ""
try:
    execute(fails)
except AirflowException as e:
    said = str(e)
assert "FAILED" in said, "the operator did not fail"
assert described(fails)["container"]["exitCode"] == 3

killed = operator("killed", job_definition="sleep", aws_conn_id=None)
killed.submit_job({"ti": TaskInstance(), "task_instance": TaskInstance()})
killed.on_kill()
while described(killed)["status"] != "FAILED":
    time.sleep(0.1)
assert described(killed)["isTerminated"]
