"""DescribeJobs, ListJobs, CancelJob(s), TerminateJob(s) (contract 2.5, 9.4, 9.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from anybatch import JobStatus, JobSummary, NotFound, RequestError

from .api import Api
from .arns import JOB_ID, NODE_ID, job_id, resource_name
from .authorize import Need, check, job_resource
from .call import Call, check_ids, make_token, page_size, read_number_token, to_ms
from .checks import STATUSES
from .errors import ApiError, refused, translate
from .job_shapes import LISTED_BY_DEFAULT, job_shape, summary_shape
from .requests import (
    CancelJobRequest,
    CancelJobsRequest,
    DescribeJobsRequest,
    ListJobsRequest,
    TerminateJobRequest,
    TerminateJobsRequest,
)

BULK_MAX: Final = 50
LIST_MAX: Final = 1000
"""Entries in a page of ListJobs; with a filter there are at most PAGE_MAX."""
REASON_CHARS_MAX: Final = 1024

Test = Callable[[JobSummary], bool]


async def describe_jobs(api: Api, call: Call, request: DescribeJobsRequest) -> dict[str, Any]:
    """The jobs that there are, in the order asked for; unknown ids are left out (LK-1)."""
    if not request.jobs:
        raise refused("jobs must not be empty")
    found = []
    for given in check_ids(request.jobs, "jobs"):
        name = job_id(given)
        if not JOB_ID.fullmatch(name):
            continue
        try:
            detail = await api.kernel.describe_job(name)
        except NotFound:
            continue
        shape = job_shape(call.place, detail, await api.find_compiled(detail.definition))
        if detail.status is JobStatus.RUNNABLE and (why := await api.blocked.status_reason(detail)) is not None:
            shape["statusReason"] = why
        found.append(shape)
    return {"jobs": found}


# -- lists ------------------------------------------------------------------------------------------


async def list_jobs(api: Api, call: Call, request: ListJobsRequest) -> dict[str, Any]:
    """A page of a queue's jobs, or of an array's children."""
    given = [name for name in ("jobQueue", "arrayJobId", "multiNodeJobId") if getattr(request, name)]
    if len(given) != 1:
        raise refused("Exactly one of jobQueue, arrayJobId and multiNodeJobId must be given")
    filters = request.filters or []
    if len(filters) > 1:
        raise refused("Only one filter can be given")
    if request.jobStatus is not None and request.jobStatus not in STATUSES:
        raise refused(f"Job status is not one of {' | '.join(STATUSES)}")
    status: str | None = request.jobStatus or LISTED_BY_DEFAULT
    size = page_size(request.maxResults, LIST_MAX)
    test: Test | None = None
    if request.jobQueue:
        queue = resource_name("job-queue", request.jobQueue)
        if filters:
            test = _filter(filters[0].name, filters[0].values or [])
            size, status = page_size(request.maxResults), None
        found = api.kernel.list_jobs(queue=queue, status=status, after=_after(queue, request.nextToken))
    else:
        queue = job_id(request.arrayJobId or request.multiNodeJobId or "")
        if filters:
            raise refused("filters do not apply to the children of an array or the nodes of a multi-node job")
        if request.multiNodeJobId or not JOB_ID.fullmatch(queue) or ":" in queue:
            return {"jobSummaryList": []}
        found = api.kernel.list_jobs(parent=queue, status=status, after=_after(queue, request.nextToken))
    page: list[JobSummary] = []
    more = False
    try:
        async for job in found:
            if test is not None and not test(job):
                continue
            if len(page) == size:
                more = True
                break
            page.append(job)
    except NotFound as e:
        if request.jobQueue:
            raise translate(e) from None
    except RequestError:
        return {"jobSummaryList": []}  # no array: it has no children
    finally:
        await found.aclose()  # type: ignore[attr-defined]  # it is a generator
    shapes = [summary_shape(call.place, job) for job in page]
    for job, shape in zip(page, shapes, strict=True):
        if job.status is JobStatus.RUNNABLE and (why := await api.blocked.reason_of(job.id, job.queue)) is not None:
            shape["statusReason"] = why
    result: dict[str, Any] = {"jobSummaryList": shapes}
    if more:
        result["nextToken"] = make_token(f"jobs:{queue}", page[-1].position)
    return result


def _after(of: str, token: str | None) -> int | None:
    return read_number_token(f"jobs:{of}", token)


def _filter(name: str | None, values: list[str]) -> Test:
    """LJ-3; several values: any of them."""
    if not values:
        raise refused("A filter has at least one value")
    match name:
        case "JOB_NAME":
            wanted = [value.lower() for value in values]
            return lambda job: any(_fits(job.name.lower(), value) for value in wanted)
        case "JOB_DEFINITION":
            return lambda job: any(_is_of(job.definition, value) for value in values)
        case "BEFORE_CREATED_AT" | "AFTER_CREATED_AT":
            if any(not value.isdecimal() or not value.isascii() or len(value) > 18 for value in values):
                raise refused(f"{name} is a time in milliseconds")
            times = [int(value) for value in values]
            if name == "BEFORE_CREATED_AT":
                return lambda job: to_ms(job.created_at) < max(times)
            return lambda job: to_ms(job.created_at) > min(times)
        case "SHARE_IDENTIFIER":
            return lambda job: False  # every queue here is FIFO
        case _:
            raise refused(
                "A filter is one of JOB_NAME, JOB_DEFINITION, BEFORE_CREATED_AT, AFTER_CREATED_AT, SHARE_IDENTIFIER"
            )


def _fits(text: str, pattern: str) -> bool:
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern


def _is_of(definition: str | None, pattern: str) -> bool:
    if definition is None:
        return False
    if pattern.startswith("arn:"):
        return definition == resource_name("job-definition", pattern)
    return _fits(definition.partition(":")[0], pattern)


# -- cancel and terminate ---------------------------------------------------------------------------


async def cancel_job(api: Api, call: Call, request: CancelJobRequest) -> dict[str, Any]:
    """End what has not started; unknown ids and what has ended are left alone."""
    await _stop(api, _required("jobId", request.jobId), _reason(request.reason), terminate=False)
    return {}


async def terminate_job(api: Api, call: Call, request: TerminateJobRequest) -> dict[str, Any]:
    """End the job, whatever its status."""
    await _stop(api, _required("jobId", request.jobId), _reason(request.reason), terminate=True)
    return {}


async def cancel_jobs(api: Api, call: Call, request: CancelJobsRequest) -> dict[str, Any]:
    """The same for up to 50 (CT-7)."""
    return await _stop_all(api, call, request.jobs, _reason(request.reason), terminate=False)


async def terminate_jobs(api: Api, call: Call, request: TerminateJobsRequest) -> dict[str, Any]:
    """The same for up to 50 (CT-7)."""
    return await _stop_all(api, call, request.jobs, _reason(request.reason), terminate=True)


def _required(member: str, value: str) -> str:
    if not value:
        raise refused(f"'{member}' is a required field (cannot be an empty string)")
    return value


def _reason(reason: str) -> str:
    if len(_required("reason", reason)) > REASON_CHARS_MAX:
        raise refused(f"reason has at most {REASON_CHARS_MAX} characters")
    return reason


async def _stop(api: Api, given: str, reason: str, *, terminate: bool) -> None:
    name = job_id(given)
    if not JOB_ID.fullmatch(name):
        return  # as good as unknown, and never a job's name
    try:
        if terminate:
            await api.kernel.terminate_job(name, reason)
        else:
            await api.kernel.cancel_job(name, reason)
    except NotFound:
        pass


async def _stop_all(api: Api, call: Call, jobs: list[str], reason: str, *, terminate: bool) -> dict[str, Any]:
    if not jobs:
        raise refused("jobs must not be empty")
    successful: list[str] = []
    errors: list[dict[str, str]] = []
    for given in check_ids(jobs, "jobs", BULK_MAX):
        try:
            if not JOB_ID.fullmatch(job_id(given)):
                code = "ValidationException"
                text = "a node is not stopped by itself" if NODE_ID.fullmatch(given) else "not a job id"
                errors.append({"job": given, "code": code, "message": f"{given[:200]!r}: {text}"})
                continue
            if not call.principal.is_unrestricted:
                action = "batch:TerminateJob" if terminate else "batch:CancelJob"
                check(call, Need(action, (await job_resource(api, call.place, given),)))
            await _stop(api, given, reason, terminate=terminate)
            successful.append(given)
        except ApiError as e:
            code = "AccessDenied" if e.status == 403 else "ValidationException"
            errors.append({"job": given, "code": code, "message": e.message})
        except RequestError as e:
            errors.append({"job": given, "code": "ClientException", "message": str(e)})
    return {"successful": successful, "errors": errors}
