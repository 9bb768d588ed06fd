"""Deciding a submit: names looked up, dependencies resolved, everything checked; all or nothing (SJ-3, SJ-4)."""

from __future__ import annotations

import msgspec
from msgspec import structs

from .checks import CHILD_ID, check_body, check_job_name, check_tags, merge
from .container import IMAGE_COMMAND, IMAGE_REQUIRED, check_whole
from .errors import Conflict, InvalidValue, NotFound, QuotaExceeded
from .events import JobSubmitted
from .indexes import in_words, keep, place_of
from .inputs import DependencyRequest, SubmitJob
from .model import (
    NO_OVERRIDES,
    PLAIN,
    DefinitionBody,
    Dependency,
    DependencyType,
    JobSpec,
    On,
    Overrides,
    ResourceState,
    ResourceStatus,
)
from .state import DefinitionRow, JobRow, KernelState, QueueRow

REVISION_DIGITS_MAX = 9
"""Of a revision's number in a reference; no definition has a billion revisions."""


def decide_submit(state: KernelState, request: SubmitJob) -> tuple[list[JobSubmitted], int]:
    """The event, or none where the client token is known; and the serial of the job."""
    if request.client_token is not None:
        if not 1 <= len(request.client_token) <= 64:
            raise InvalidValue("client_token", request.client_token, "a client token has 1 to 64 characters")
        known = state.tokens.get(request.client_token)
        if known is not None:
            return [], known
    if request.job_id in state.ids:
        raise Conflict("job", request.job_id, "a job with this id exists", field="job_id")
    quotas = state.quotas
    check_job_name("name", request.name)
    queue = state.queues.get(request.queue)
    if queue is None:
        raise NotFound("job queue", request.queue)
    if queue.status is not ResourceStatus.VALID:
        raise Conflict("job queue", request.queue, f"it is {queue.status}; submit to a VALID one", field="queue")
    if queue.body.state is not ResourceState.ENABLED:
        why = "it is DISABLED and takes no jobs; update it to ENABLED, or submit to another"
        raise Conflict("job queue", request.queue, why, field="queue")
    if state.unfinished >= quotas.unfinished_jobs_max:
        allowed = f"at most {quotas.unfinished_jobs_max} unfinished jobs (quota unfinished_jobs_max)"
        raise QuotaExceeded("name", request.name, allowed)
    spec = _spec(state, request)
    _check_container(state, queue, spec)
    size = _check_size(request, quotas.array_size_max)
    _check_array_only(request, spec)
    bound = request.overrides.max_checkpoints
    if bound is not None and not spec.checkpoint_exit_codes:
        raise InvalidValue(
            "max_checkpoints", bound, "it bounds checkpoint_exit_codes, of which there are none; give both"
        )
    depends_on = _dependencies(state, request)
    event = JobSubmitted(
        state.next_serial, request.job_id, request.name, request.queue, spec, size, depends_on,
        request.client_token, request.principal, request.request_id, keep(request.indexes),
    )  # fmt: skip
    return [event], state.next_serial


def _check_size(request: SubmitJob, most: int) -> int | None:
    size = request.size
    if size is None:
        return None
    if request.indexes is not None:
        if size > most:
            raise QuotaExceeded("array", size, f"an array has 1 to {most} children (quota array_size_max)")
        return size
    if size < 2:
        raise InvalidValue("array_size", size, f"an array has 2 to {most} children; leave it out for a single job")
    if size > most:
        raise QuotaExceeded("array_size", size, f"an array has 2 to {most} children (quota array_size_max)")
    return size


def _check_array_only(request: SubmitJob, spec: JobSpec) -> None:
    """What is about children is for arrays; in a definition it stands for those of its jobs that are."""
    for field in ("max_running", "max_failures", "on_max_failures") if request.size is None else ():
        given = getattr(request.overrides, field)
        if given is not None:
            raise InvalidValue(field, given, "only an array job has children to count; give array_size")
    stops = request.overrides.on_max_failures
    if stops is not None and spec.max_failures is None:
        raise InvalidValue(
            "on_max_failures", stops, "it says what max_failures does, of which there is none; give both"
        )


def _spec(state: KernelState, request: SubmitJob) -> JobSpec:
    row = None if request.definition is None else find_definition(state, request.definition)
    if row is None or request.overrides is not NO_OVERRIDES:
        return _merged(state, row, request.overrides)
    if row.plain is None:
        row.plain = _merged(state, row, NO_OVERRIDES)
    return row.plain


def _merged(state: KernelState, row: DefinitionRow | None, overrides: Overrides) -> JobSpec:
    check_body(overrides, state.quotas)
    if row is None:
        body, label = DefinitionBody(tags={}), None
    else:
        body, label = row.body, f"{row.name}:{row.revision}"
    spec = merge(body, overrides, label)
    if spec.container is not None:
        check_whole(spec.container, spec.memory_mib)
    elif not spec.command and spec.script is None:
        raise InvalidValue("command", [], "a job has a command, a script or an image, its own or its definition's")
    check_tags(spec.tags, state.quotas)
    size = len(msgspec.msgpack.encode(structs.replace(overrides, script=None, metadata={})))
    if size > state.quotas.submit_bytes_max:
        allowed = (
            f"a submit has at most {state.quotas.submit_bytes_max} bytes beside its script (quota submit_bytes_max)"
        )
        raise QuotaExceeded("command", size, allowed)
    return spec


def _check_container(state: KernelState, queue: QueueRow, spec: JobSpec) -> None:
    """Some environment of the queue honours every field of the job's container: none is ever ignored unasked."""
    needs = spec.shape.container
    rows = [state.environments[name] for name in queue.body.compute_environments if name in state.environments]
    if not needs:
        if rows and all(IMAGE_REQUIRED in row.container for row in rows):
            raise InvalidValue("image", None, f"the environments of queue {queue.name!r} run only what has an image")
        return
    missing = [[field for field in needs if field not in row.container] for row in rows]
    if not all(missing):
        return
    field = min(missing, key=len)[0]
    where = ", ".join(f"{row.name!r} (backend {row.body.backend})" for row in rows)
    if field == IMAGE_COMMAND:
        allowed = f"no environment of queue {queue.name!r} runs an image's own command; give a command: {where}"
        raise InvalidValue("command", [], allowed)
    value = getattr(spec.container, field.partition(".")[0])
    top = field if field == "image" else f"container.{field}"
    allowed = (
        f"no environment of queue {queue.name!r} honours it: {where}; use one whose environment does, "
        "or let processes run it without (the option ignore_image of the process and SSH backends)"
    )
    raise InvalidValue(top, value, allowed)


def find_definition(state: KernelState, reference: str) -> DefinitionRow:
    """The revision that `name` (newest ACTIVE) or `name:revision` stands for (JD-4, JD-6).

    Raises:
        NotFound: there is none, or it is INACTIVE.
    """
    name, _, number = reference.partition(":")
    revisions = state.definitions.get(name)
    if revisions is None:
        raise NotFound("job definition", reference)
    if number:
        row = revisions.get(int(number)) if number.isdecimal() and len(number) <= REVISION_DIGITS_MAX else None
        if row is None:
            raise NotFound("job definition", reference, f"its revisions are 1 to {len(revisions)}")
        if not row.active:
            raise NotFound("job definition", reference, "that revision is INACTIVE")
        return row
    for revision in sorted(revisions, reverse=True):
        if revisions[revision].active:
            return revisions[revision]
    raise NotFound("job definition", reference, "all its revisions are INACTIVE")


def _dependencies(state: KernelState, request: SubmitJob) -> tuple[Dependency, ...]:
    most, asked = state.quotas.dependencies_max, request.depends_on
    if len(asked) > most:
        raise QuotaExceeded("depends_on", len(asked), f"Job cannot have more than {most} dependencies")
    return tuple(_dependency(state, f"depends_on[{n}]", entry, request) for n, entry in enumerate(asked))


def _dependency(state: KernelState, field: str, entry: DependencyRequest, request: SubmitJob) -> Dependency:
    """One entry, checked (DEP-2, DEP-13, DEP-14)."""
    size = request.size
    if entry.type is DependencyType.SEQUENTIAL:
        if size is None:
            raise InvalidValue(field, "SEQUENTIAL", "only an array job can be SEQUENTIAL; give array_size")
        if entry.job is not None:
            raise InvalidValue(field, entry.job, "SEQUENTIAL orders the job's own children and names no other job")
        if entry.on is On.FAILURE:
            allowed = "a SEQUENTIAL goes on after 'success', or after 'any' end of the child before"
            raise InvalidValue(f"{field}.on", entry.on.value, allowed)
        return Dependency(DependencyType.SEQUENTIAL, on=entry.on)
    if entry.job is None:
        raise InvalidValue(field, None, "an entry names a job: an id, a handle, or a job's name")
    job, index = find_job(state, entry.job, field)
    if entry.type is DependencyType.N_TO_N:
        if size is None:
            raise InvalidValue(field, "N_TO_N", "only an array job can depend N_TO_N; give array_size")
        if job.size is None or index is not None:
            raise InvalidValue(field, entry.job, "N_TO_N names an array job")
        if job.size != size:
            allowed = f"both arrays have one size; {job.name!r} has {job.size} children and this job {size}"
            raise InvalidValue(field, entry.job, allowed)
        if job.indexes != request.indexes:
            own, other = in_words(request.indexes, size), in_words(job.indexes, job.size)
            allowed = f"both arrays have the same indexes; those of {job.name!r} are {other}, and this job's {own}"
            raise InvalidValue(field, entry.job, allowed)
    child = None if index is None or job.indexes is None else job.index_of(index)
    return Dependency(entry.type, job.serial, index, job.job_id, PLAIN.get(entry.type, entry.on), child)


def find_job(state: KernelState, reference: str, field: str = "job") -> tuple[JobRow, int | None]:
    """The job, and the place of the child where a child's id is given, that a reference stands for.

    A reference is a job's id, a child's id `<job>:<index>`, or a job's name: the one unfinished job of
    that name, else the newest finished one that is still kept.

    Raises:
        NotFound: it stands for nothing.
        Conflict: several unfinished jobs have this name; the message lists their ids.
    """
    serial = state.ids.get(reference)
    if serial is not None:
        return state.jobs[serial], None
    child = CHILD_ID.fullmatch(reference)
    if child is not None and child["job"] in state.ids:
        job = state.jobs[state.ids[child["job"]]]
        if job.size is None:
            raise NotFound("child", reference, "that job is not an array")
        place = place_of(job.indexes, job.size, int(child["index"]))
        if place is None:
            raise NotFound("child", reference, f"its indexes are {in_words(job.indexes, job.size)}")
        return job, place
    named = state.names.get(reference)
    if named is not None:
        if len(named.unfinished) > 1:
            rows = [state.jobs[serial] for serial in sorted(named.unfinished)]
            ids = ", ".join(f"{row.job_id} ({row.status})" for row in rows)
            why = f"{len(rows)} unfinished jobs have this name; give one of the ids {ids}"
            raise Conflict("job", reference, why, field=field)
        if named.unfinished:
            return state.jobs[next(iter(named.unfinished))], None
        if named.finished:
            return state.jobs[max(named.finished)], None
    raise NotFound("job", reference)
