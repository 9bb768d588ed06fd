"""TL-3: a RUNNABLE job that cannot be placed says why, in AWS's words; one that waits for its turn says nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from anybatch import Code, Reason
from anybatch.kernel.clock import SystemClock
from anybatch.plugins.aws import AwsSettings, BackendChoice, time_limits
from anybatch.plugins.aws.blocked import KEPT_S, Blocked, in_aws_words
from anybatch.plugins.aws.time_limits import TimeLimits
from aws_rig import Served, add_queue, container, define, ended, in_status, until


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """Nothing is sent ahead of a free slot: what waits is RUNNABLE."""
    choice = BackendChoice(backend="process", options={"ignore_image": True, "lookahead": 0})
    with Served(settings=AwsSettings(images="local", environments={"EC2": choice})) as served:
        add_queue(served.client())
        yield served


def needing(client: Any, name: str, **needs: str) -> str:
    """A job in RUNNABLE that needs this."""
    requirements = [{"type": kind, "value": value} for kind, value in {"VCPU": "1", "MEMORY": "32", **needs}.items()]
    client.register_job_definition(
        jobDefinitionName=name,
        type="container",
        containerProperties={**container("true"), "resourceRequirements": requirements},
    )
    job: str = client.submit_job(jobName=name, jobQueue="q", jobDefinition=name)["jobId"]
    return job


def reason(client: Any, job_id: str) -> str | None:
    """What DescribeJobs and ListJobs say; the former may remember for a moment."""

    def look() -> tuple[str | None] | None:
        [job] = client.describe_jobs(jobs=[job_id])["jobs"]
        assert job["status"] == "RUNNABLE"
        listed = client.list_jobs(jobQueue="q", jobStatus="RUNNABLE")["jobSummaryList"]
        [summary] = [one for one in listed if one["jobId"] == job_id]
        found = job.get("statusReason")
        return (found,) if summary.get("statusReason") == found else None

    return until(look)[0]


def test_tl_3_more_than_the_environments_have(client: Any) -> None:
    job = needing(client, "vcpus", VCPU="64")
    text = reason(client, job)
    assert text is not None
    assert text.startswith(
        "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE - CE(s) associated with the job queue cannot meet the CPU "
        "requirement of the job. ("
    )
    assert "needs 64 vCPU" in text
    for kind, needs in (("MEMORY", {"MEMORY": "99999999"}), ("GPU", {"GPU": "1"})):
        other = needing(client, kind.lower(), **needs)
        text = reason(client, other)
        assert text is not None
        assert text.startswith(
            "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - The job resource requirement (vCPU/memory/GPU) is higher than "
            "that can be met by the CE(s) attached to the job queue. ("
        )
        client.cancel_job(jobId=other, reason="done")
    # more vCPUs: it is placed, and the reason goes
    client.update_compute_environment(computeEnvironment="q", computeResources={"maxvCpus": 64})
    assert ended(client, job)["statusReason"] == "Essential container in task exited"
    client.update_compute_environment(computeEnvironment="q", computeResources={"maxvCpus": 4})


def test_tl_3_a_job_that_waits_for_its_turn_has_no_reason(client: Any) -> None:
    define(client, "sleep", "sleep", "600")
    full = [{"type": "VCPU", "value": "4"}]
    running = client.submit_job(
        jobName="x", jobQueue="q", jobDefinition="sleep", containerOverrides={"resourceRequirements": full}
    )["jobId"]
    in_status(client, running, "RUNNING")
    waiting = needing(client, "waits")
    assert reason(client, waiting) is None
    client.terminate_job(jobId=running, reason="done")
    assert ended(client, waiting)["status"] == "SUCCEEDED"


def test_tl_3_an_environment_that_takes_nothing(client: Any) -> None:
    client.update_compute_environment(computeEnvironment="q", state="DISABLED")
    job = needing(client, "disabled")
    text = reason(client, job)
    assert text is not None
    assert text.startswith("UNDETERMINED - Batch job is blocked, root cause is undetermined. (")
    assert "DISABLED" in text
    client.update_compute_environment(computeEnvironment="q", state="ENABLED")
    assert ended(client, job)["status"] == "SUCCEEDED"


def test_tl_3_no_hosts_and_invalid_environments(tmp_path: Any) -> None:
    choice = BackendChoice(backend="ssh", options={"ignore_image": True, "ssh_config": "none", "use_agent": False})
    with Served(settings=AwsSettings(images="local", environments={"UNMANAGED": choice})) as served:
        client = served.client()
        role = "arn:aws:iam::123456789012:role/batch"
        client.create_compute_environment(computeEnvironmentName="own", type="UNMANAGED", serviceRole=role)
        client.create_job_queue(
            jobQueueName="q", priority=1, computeEnvironmentOrder=[{"order": 1, "computeEnvironment": "own"}]
        )
        job = needing(client, "nowhere")
        text = reason(client, job)
        assert text is not None
        assert text.startswith(
            "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - Service cannot fulfill the capacity requested for instance type "
            "[optimal] ("
        )
        # a host that turns the environment INVALID: its inventory cannot be read
        options = {**choice.options, "inventory": str(tmp_path / "none.toml")}
        served.run(served.kernel.update_compute_environment("own", options=options))
        text = reason(client, job)
        assert text is not None
        assert text.startswith("ACTION_REQUIRED - CE(s) associated with the job queue are invalid. (")


def test_an_array_s_children_say_it_too(client: Any) -> None:
    define(client, "array", "true")
    parent = client.submit_job(
        jobName="a",
        jobQueue="q",
        jobDefinition="array",
        arrayProperties={"size": 3},
        containerOverrides={"resourceRequirements": [{"type": "VCPU", "value": "64"}]},
    )["jobId"]
    [above, child] = client.describe_jobs(jobs=[parent, f"{parent}:1"])["jobs"]
    assert (above["status"], "statusReason" in above) == ("PENDING", False)
    assert child["statusReason"].startswith("MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE - ")
    client.cancel_job(jobId=parent, reason="done")


def test_the_kernel_is_asked_once_for_many_jobs_of_one_kind(served: Served, client: Any) -> None:
    jobs = [needing(client, "same", VCPU="64") for _ in range(3)]
    kernel, asked = served.kernel, 0

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(kernel, name)

        async def blocked(self, job: Any) -> tuple[Reason, ...]:
            nonlocal asked
            asked += 1
            return await kernel.blocked(job)

    async def look() -> set[str | None]:
        found = Blocked(Counting())  # type: ignore[arg-type]  # a kernel that counts
        details = await kernel.describe_jobs(jobs)
        return {await found.status_reason(one) for one in details if one.definition == details[0].definition}

    assert len(served.run(look())) == 1
    assert asked == 1
    assert KEPT_S <= 1
    client.terminate_jobs(jobs=jobs, reason="done")


def test_tl_2_what_is_blocked_for_too_long_is_cancelled_with_the_reason(served: Served, client: Any) -> None:
    def limits(*reasons: str) -> None:
        actions = [
            {"reason": reason, "state": "RUNNABLE", "maxTimeSeconds": 600, "action": "CANCEL"} for reason in reasons
        ]
        answer = client.update_job_queue(jobQueue="q", jobStateTimeLimitActions=actions)
        assert "x-anybatch-ignored" not in answer["ResponseMetadata"]["HTTPHeaders"]

    start, clock = SystemClock().now_ms(), [0.0]
    watch = TimeLimits(served.kernel, Blocked(served.kernel), lambda: start + round(clock[0] * 1000))

    def look(*at: float) -> float | None:
        due = None
        for now in at:
            clock[0] = now
            due = served.run(watch.look())
        return due

    reason_code = "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE"
    blocked = needing(client, "too-long", VCPU="64")
    define(client, "kids", "true")
    array = client.submit_job(
        jobName="kids",
        jobQueue="q",
        jobDefinition="kids",
        arrayProperties={"size": 2},
        containerOverrides={"resourceRequirements": [{"type": "VCPU", "value": "64"}]},
    )["jobId"]
    waits = client.submit_job(jobName="w", jobQueue="q", jobDefinition="kids", dependsOn=[{"jobId": blocked}])["jobId"]

    def statuses() -> list[str]:
        return [job["status"] for job in client.describe_jobs(jobs=[blocked, array, waits])["jobs"]]

    # another reason (TL-4), too early, and once more after an interruption: nothing happens
    limits("MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT")
    look(1000.0, 5000.0)
    limits(reason_code)
    assert look(5001.0) == 600.0
    assert look(5600.5) == 0.5
    assert statuses() == ["RUNNABLE", "PENDING", "PENDING"]
    limits()
    look(5600.9)
    limits(reason_code, "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY")
    look(6000.0, 6599.0)
    assert statuses() == ["RUNNABLE", "PENDING", "PENDING"]

    assert look(6600.0) is None

    job = ended(client, blocked)
    text = f"Canceled by JobStateTimeLimit action due to reason: {reason_code}"
    assert (job["status"], job["statusReason"], job["attempts"]) == ("FAILED", text, [])
    assert ended(client, array)["status"] == "FAILED"
    assert ended(client, f"{array}:1")["statusReason"] == text
    assert ended(client, waits)["statusReason"] == "Dependent Job failed"
    limits()


def test_tl_2_the_time_is_that_of_the_head(served: Served, client: Any) -> None:
    """It is of the queue's head alone, and of no job longer than that has been RUNNABLE."""
    too_large = "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE"
    action = {"reason": too_large, "state": "RUNNABLE", "maxTimeSeconds": 600, "action": "CANCEL"}
    client.update_job_queue(jobQueue="q", jobStateTimeLimitActions=[action])
    clock = [0]
    watch = TimeLimits(served.kernel, Blocked(served.kernel), lambda: SystemClock().now_ms() + clock[0] * 1000)
    first = needing(client, "gpus", GPU="1")
    jobs = [needing(client, f"behind-{n}", VCPU=str(64 + n)) for n in range(2)]
    alike = client.submit_job(jobName="late", jobQueue="q", jobDefinition="behind-1")["jobId"]

    def failed() -> list[str]:
        found = client.describe_jobs(jobs=[first, *jobs, alike])["jobs"]
        return [job["jobName"] for job in found if job["status"] == "FAILED"]

    served.run(watch.look())
    clock[0] = 3_600
    assert served.run(watch.look()) is None  # another reason holds the head: what is behind it is not acted on
    assert failed() == []
    client.cancel_job(jobId=first, reason="done")
    due = served.run(watch.look())
    assert due is not None
    assert 590 < due <= 600
    clock[0] += 601
    due = served.run(watch.look())
    assert failed() == ["gpus", "behind-0"]  # the next head is of another size: its time begins
    assert due is not None
    assert 590 < due <= 600
    clock[0] += 601
    assert served.run(watch.look()) is None
    assert failed() == ["gpus", "behind-0", "behind-1", "late"]  # what is blocked alike goes with it
    client.update_job_queue(jobQueue="q", jobStateTimeLimitActions=[])


def test_tl_2_a_server_acts_by_itself_when_the_time_is_over(
    client: Any, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    action = {
        "reason": "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE", "state": "RUNNABLE", "maxTimeSeconds": 600,
        "action": "CANCEL",
    }  # fmt: skip
    looks: list[int] = []

    class Fast(SystemClock):
        """Almost ten minutes pass after the first look."""

        def now_ms(self) -> int:
            looks.append(super().now_ms() + (599_900 if looks else 0))
            return looks[-1]

    monkeypatch.setattr(time_limits, "SystemClock", Fast)
    client.update_job_queue(jobQueue="q", jobStateTimeLimitActions=[action])
    job = needing(client, "by-itself", VCPU="64")
    watch = TimeLimits(served.kernel, Blocked(served.kernel))
    running = served.start(watch.run())
    until(lambda: len(looks) == 1)
    client.cancel_job(jobId=needing(client, "behind", VCPU="64"), reason="done")  # something happens: it looks again
    assert ended(client, job)["statusReason"].startswith("Canceled by JobStateTimeLimit action")
    running.cancel()
    client.update_job_queue(jobQueue="q", jobStateTimeLimitActions=[])


@pytest.mark.parametrize("code", [code for code in Code if code.name in ("NEVER_FITS", "CANNOT_RUN_IT")])
def test_what_can_never_run_is_a_misconfiguration(code: Code) -> None:
    assert in_aws_words([Reason(code, "why")], [], 1).startswith("MISCONFIGURATION:")
