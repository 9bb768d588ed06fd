"""The whole life of jobs through boto3 as it is: `life.mjs` in Python. Every step asserts; the last line is "ok"."""

from __future__ import annotations

import sys
import time
from typing import Any

import boto3
import botocore.exceptions
import pytest

# Endpoints, region and credentials come from the environment, as on any other machine.
batch, logs = boto3.client("batch"), boto3.client("logs")
bound = time.monotonic() + 60


def until(job_id: str, *statuses: str) -> Any:
    while True:
        [job] = batch.describe_jobs(jobs=[job_id])["jobs"]
        if job["status"] in statuses:
            return job
        assert time.monotonic() < bound, f"{job_id} is still {job['status']}"
        time.sleep(0.05)


def ended(job_id: str) -> Any:
    return until(job_id, "SUCCEEDED", "FAILED")


def define(name: str, script: str) -> Any:
    needs = [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "32"}]
    properties = {"image": "busybox", "command": ["sh", "-c", script], "resourceRequirements": needs}
    return batch.register_job_definition(jobDefinitionName=name, type="container", containerProperties=properties)


def submit(name: str, definition: str, *after: Any, **more: Any) -> Any:
    depends_on = [{"jobId": job["jobId"]} for job in after]
    return batch.submit_job(jobName=name, jobQueue="py", jobDefinition=definition, dependsOn=depends_on, **more)


assert boto3.client("sts").get_caller_identity()["Arn"].endswith(":user/admin")
resources = {
    "type": "EC2", "minvCpus": 0, "maxvCpus": 4, "subnets": ["subnet-1"], "securityGroupIds": ["sg-1"],
    "instanceTypes": ["optimal"], "instanceRole": "role",
}  # fmt: skip
batch.create_compute_environment(computeEnvironmentName="py", type="MANAGED", computeResources=resources)
order = [{"order": 1, "computeEnvironment": "py"}]
batch.create_job_queue(jobQueueName="py", priority=1, computeEnvironmentOrder=order)

# a single job, and its log
definition = define("py-hello", "echo hello from py; exit 3")["jobDefinitionArn"]
single = submit("single", definition, tags={"team": "a"})
job = ended(single["jobId"])
assert (job["status"], job["container"]["exitCode"], len(job["attempts"])) == ("FAILED", 3, 1)
where = {"logGroupName": "/aws/batch/job", "logStreamName": job["container"]["logStreamName"]}
assert [event["message"] for event in logs.get_log_events(**where)["events"]] == ["hello from py"]

# an array, and a chain behind it; a chain whose first job fails
define("py-ok", "true")
array = submit("array", "py-ok", arrayProperties={"size": 3})
after = submit("after", "py-ok", array)
last = submit("last", "py-ok", after)
assert ended(last["jobId"])["status"] == "SUCCEEDED"
assert ended(array["jobId"])["arrayProperties"]["statusSummary"]["SUCCEEDED"] == 3
children = batch.list_jobs(arrayJobId=array["jobId"], jobStatus="SUCCEEDED")["jobSummaryList"]
assert [child["arrayProperties"]["index"] for child in children] == [0, 1, 2]
fails = submit("fails", definition)
behind = submit("behind", "py-ok", fails)
end = submit("end", "py-ok", behind)
assert ended(end["jobId"])["statusReason"] == "Dependent Job failed"

# cancel, terminate
define("py-sleep", "sleep 600")
running = submit("running", "py-sleep")
waiting = submit("waiting", "py-sleep", running)
until(running["jobId"], "RUNNING")
batch.cancel_job(jobId=waiting["jobId"], reason="not wanted")
assert ended(waiting["jobId"])["statusReason"] == "not wanted"
batch.terminate_job(jobId=running["jobId"], reason="enough")
assert ended(running["jobId"])["statusReason"] == "enough"

# tags
arn = single["jobArn"]
batch.tag_resource(resourceArn=arn, tags={"b b": "2"})
assert batch.list_tags_for_resource(resourceArn=arn)["tags"] == {"team": "a", "b b": "2"}
batch.untag_resource(resourceArn=arn, tagKeys=["b b", "none"])
assert batch.list_tags_for_resource(resourceArn=arn)["tags"] == {"team": "a"}

# pages
pages = batch.get_paginator("list_jobs").paginate(
    jobQueue="py", jobStatus="FAILED", PaginationConfig={"PageSize": 1}
)  # fmt: skip
names = [[one["jobName"] for one in page["jobSummaryList"]] for page in pages]
assert [name for page in names for name in page] == ["waiting", "running", "end", "behind", "fails", "single"], names
assert max(map(len, names)) == 1

# errors
batch.deregister_job_definition(jobDefinition=definition)
with pytest.raises(batch.exceptions.ClientException, match="py-hello does not exist or is not in ACTIVE status"):
    submit("x", "py-hello")
with pytest.raises(botocore.exceptions.ClientError, match="not supported here"):
    batch.list_scheduling_policies()
sys.stdout.write("ok\n")
