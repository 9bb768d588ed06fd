"""Luigi's own BatchTask: a task, one that depends on it, and one that fails. Run by workflow_tools.py."""

import os
from pathlib import Path

import boto3
import luigi
from luigi.contrib.batch import BatchTask

NEEDS = [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "64"}]
batch = boto3.client("batch")
for name, script in (("say", "echo Ref::text > Ref::file"), ("fail", "echo before the end; exit 3")):
    batch.register_job_definition(
        jobDefinitionName=name,
        type="container",
        parameters={"text": "nothing", "file": "/dev/null"},
        containerProperties={"image": "busybox", "command": ["sh", "-c", script], "resourceRequirements": NEEDS},
    )


class Say(BatchTask):  # type: ignore[misc]  # luigi is not installed here
    """Writes a file through a job."""

    text = luigi.Parameter()
    job_definition = "say"
    poll_time = 1

    @property
    def parameters(self) -> dict[str, str]:
        return {"text": self.text, "file": self.output().path}

    def output(self) -> luigi.LocalTarget:
        return luigi.LocalTarget(os.path.abspath(f"{self.text}.txt"))


class After(Say):
    """The same, once another has its file."""

    def requires(self) -> Say:
        return Say(text="first")


class Fail(BatchTask):  # type: ignore[misc]  # luigi is not installed here
    """Fails, with a log."""

    job_definition = "fail"
    poll_time = 1


done = luigi.build([After(text="second")], local_scheduler=True, detailed_summary=True)
assert done.scheduling_succeeded, done.summary_text
assert [Path(f"{name}.txt").read_text() for name in ("first", "second")] == ["first\n", "second\n"]
statuses = [
    job["status"]
    for status in ("SUCCEEDED", "FAILED", "RUNNING")
    for job in batch.list_jobs(jobQueue="default", jobStatus=status)["jobSummaryList"]
]
assert statuses == ["SUCCEEDED"] * 2, statuses

errors: list[str] = []
Fail.event_handler(luigi.Event.FAILURE)(lambda _, error: errors.append(str(error)))
assert not luigi.build([Fail()], local_scheduler=True)
assert [error.partition("failed: ")[2] for error in errors] == ["before the end"], errors
