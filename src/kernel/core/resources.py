"""Deciding about definitions, queues and environments: what may be created, changed, deleted when."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import structs

from .checks import PRIORITY_MAX, VCPUS_MILLI_MAX, check_body, check_metadata, check_resource_name, check_tags
from .container import check_whole
from .errors import Conflict, InvalidValue, NotFound, QuotaExceeded
from .events import (
    AnyEvent,
    DefinitionDeregistered,
    DefinitionRegistered,
    EnvironmentDeleted,
    EnvironmentPut,
    QueueDeleted,
    QueuePut,
    StopRequested,
    WorkFailed,
    run_fields,
)
from .inputs import (
    CreateEnvironment,
    CreateQueue,
    DeleteEnvironment,
    DeleteQueue,
    DeregisterDefinition,
    RegisterDefinition,
    UpdateEnvironment,
    UpdateQueue,
)
from .model import TEXT_QUEUE_DELETED, EnvironmentBody, QueueBody, ResourceState, ResourceStatus, StopKind
from .state import EnvironmentRow, KernelState, QueueRow
from .states import PENDING, RUNNABLE, SUBMITTED

# -- definitions ------------------------------------------------------------------------------------


def decide_register(state: KernelState, request: RegisterDefinition) -> tuple[list[AnyEvent], tuple[str, int]]:
    """The next revision (JD-1, JD-3, JD-8), or with `exist_ok` the newest one if it is equal."""
    check_resource_name("name", request.name)
    check_body(request.body, state.quotas)
    if request.body.container is not None:
        check_whole(request.body.container, request.body.memory_mib)
    elif not request.body.command and request.body.script is None:
        raise InvalidValue("command", [], "a definition has a command, a script or an image")
    measured = structs.replace(request.body, script=None, metadata={})
    size = len(msgspec.msgpack.encode(measured))
    if size > state.quotas.definition_bytes_max:
        most = state.quotas.definition_bytes_max
        allowed = f"a definition has at most {most} bytes beside its script (quota definition_bytes_max)"
        raise QuotaExceeded("command", size, allowed)
    revisions = state.definitions.get(request.name, {})
    newest = max(revisions, default=0)
    if request.exist_ok and newest and revisions[newest].active:
        _check_equal("job definition", f"{request.name}:{newest}", revisions[newest].body, request.body)
        return [], (request.name, newest)
    event = DefinitionRegistered(request.name, newest + 1, request.body, request.principal, request.request_id)
    return [event], (request.name, newest + 1)


def _check_equal(kind: str, name: str, there: msgspec.Struct, asked: msgspec.Struct) -> None:
    for field in asked.__struct_fields__:
        old, new = getattr(there, field), getattr(asked, field)
        if old != new:
            why = f"exists with another {field}: {old!r} is there, {new!r} was asked for"
            raise Conflict(kind, name, why, field=field)


def decide_deregister(state: KernelState, request: DeregisterDefinition) -> list[AnyEvent]:
    """INACTIVE from now on; without effect if it is already (JD-6, JD-7)."""
    row = state.definitions.get(request.name, {}).get(request.revision)
    if row is None:
        raise NotFound("job definition", f"{request.name}:{request.revision}")
    if not row.active:
        return []
    return [DefinitionDeregistered(request.name, request.revision, request.principal, request.request_id)]


# -- queues -----------------------------------------------------------------------------------------


def get_queue(state: KernelState, name: str) -> QueueRow:
    """The queue of a name, or NotFound."""
    row = state.queues.get(name)
    if row is None:
        raise NotFound("job queue", name)
    return row


def decide_create_queue(state: KernelState, request: CreateQueue) -> list[AnyEvent]:
    """JQ-1, JQ-2, JQ-3, JQ-12."""
    check_resource_name("name", request.name)
    row = state.queues.get(request.name)
    if row is not None:
        if not request.exist_ok:
            raise Conflict("job queue", request.name, "Object already exists")
        _check_equal("job queue", request.name, row.body, request.body)
        return []
    if len(state.queues) >= state.quotas.job_queues_max:
        raise QuotaExceeded(
            "name", request.name, f"at most {state.quotas.job_queues_max} job queues (quota job_queues_max)"
        )
    _check_queue(state, request.body, request.body.compute_environments)
    return [QueuePut(request.name, request.body, request.principal, request.request_id)]


def _check_queue(state: KernelState, body: QueueBody, changed: tuple[str, ...]) -> None:
    if not 0 <= body.priority <= PRIORITY_MAX:
        raise InvalidValue("priority", body.priority, f"a priority is 0 to {PRIORITY_MAX}; higher goes first")
    check_tags(body.tags, state.quotas)
    check_metadata(body.metadata, state.quotas)
    most, names = state.quotas.environments_per_queue_max, body.compute_environments
    if not 1 <= len(names) <= most:
        raise QuotaExceeded("compute_environments", names, f"a queue has 1 to {most} compute environments")
    if len(set(names)) < len(names):
        raise InvalidValue("compute_environments", names, "each environment is named once")
    for name in names:
        environment = state.environments.get(name)
        if environment is None:
            raise NotFound("compute environment", name)
        if name in changed and environment.status is not ResourceStatus.VALID:
            found = f"it is {environment.status} ({environment.status_reason})"
            why = f"{found}. It must be valid before attaching it to the job queue."
            raise Conflict("compute environment", name, why, field="compute_environments")


def decide_update_queue(state: KernelState, request: UpdateQueue) -> list[AnyEvent]:
    """Change what is given."""
    row = get_queue(state, request.name)
    if row.status is ResourceStatus.DELETING:
        raise Conflict("job queue", request.name, "it is being deleted")
    changed = ("priority", "state", "compute_environments", "retain_succeeded_ms", "retain_failed_ms", "metadata")
    given = {field: getattr(request, field) for field in changed if getattr(request, field) is not None}
    new = structs.replace(row.body, **given)
    if new == row.body:
        return []
    _check_queue(state, new, tuple(set(new.compute_environments) - set(row.body.compute_environments)))
    return [QueuePut(request.name, new, request.principal, request.request_id)]


def decide_delete_queue(state: KernelState, request: DeleteQueue) -> Iterator[AnyEvent]:
    """A DISABLED queue; its waiting jobs fail, its running ones are ended, then it is gone (JQ-10)."""
    row = get_queue(state, request.name)
    if row.body.state is not ResourceState.DISABLED:
        raise Conflict("job queue", request.name, "Cannot delete: it is ENABLED; update it to DISABLED first")
    return iter(()) if row.status is ResourceStatus.DELETING else _delete_queue(state, row, request)


def _delete_queue(state: KernelState, row: QueueRow, request: DeleteQueue) -> Iterator[AnyEvent]:
    yield QueueDeleted(request.name, not row.unfinished, request.principal, request.request_id)
    for serial in sorted(row.unfinished):
        job = state.jobs[serial]
        by_number: dict[int, list[int]] = {}
        for i in job.live():
            by_number.setdefault(job.children.number[i], []).append(i)
        for number, live in by_number.items():
            yield StopRequested(serial, *run_fields(live), number, StopKind.TERMINATE, TEXT_QUEUE_DELETED)
        for status in (SUBMITTED, PENDING, RUNNABLE):
            waiting = job.children.with_status(status)
            if len(waiting):
                yield WorkFailed(serial, *run_fields(waiting), TEXT_QUEUE_DELETED)


# -- environments -----------------------------------------------------------------------------------


def get_environment(state: KernelState, name: str) -> EnvironmentRow:
    """The environment of a name, or NotFound."""
    row = state.environments.get(name)
    if row is None:
        raise NotFound("compute environment", name)
    return row


def decide_create_environment(state: KernelState, request: CreateEnvironment) -> list[AnyEvent]:
    """CE-1; VALID or INVALID follows once its backend has started (CE-7)."""
    check_resource_name("name", request.name)
    row = state.environments.get(request.name)
    if row is not None:
        if not request.exist_ok:
            raise Conflict("compute environment", request.name, "Object already exists")
        _check_equal("compute environment", request.name, row.body, request.body)
        return []
    most = state.quotas.compute_environments_max
    if len(state.environments) >= most:
        allowed = f"at most {most} compute environments (quota compute_environments_max)"
        raise QuotaExceeded("name", request.name, allowed)
    _check_environment(state, request.body)
    return [EnvironmentPut(request.name, request.body, request.principal, request.request_id)]


def _check_environment(state: KernelState, body: EnvironmentBody) -> None:
    check_tags(body.tags, state.quotas)
    check_metadata(body.metadata, state.quotas)
    if not 1 <= body.max_vcpus_milli <= VCPUS_MILLI_MAX:
        raise InvalidValue("max_vcpus", body.max_vcpus_milli / 1000, "max_vcpus is above 0, in steps of 0.001")
    if not 0 <= body.min_vcpus_milli <= body.max_vcpus_milli:
        raise InvalidValue("min_vcpus", body.min_vcpus_milli / 1000, "min_vcpus is 0 to max_vcpus")


def decide_update_environment(state: KernelState, request: UpdateEnvironment) -> list[AnyEvent]:
    """Change what is given; an INVALID environment is tried again (CE-7)."""
    row = get_environment(state, request.name)
    changed = ("state", "min_vcpus_milli", "max_vcpus_milli", "options", "metadata")
    given = {field: getattr(request, field) for field in changed if getattr(request, field) is not None}
    new = structs.replace(row.body, **given)
    if new == row.body and row.status is ResourceStatus.VALID:
        return []
    _check_environment(state, new)
    same = structs.replace(new, state=row.body.state, metadata=row.body.metadata)  # its backend knows neither
    restart = row.status is not ResourceStatus.VALID or same != row.body
    return [EnvironmentPut(request.name, new, request.principal, request.request_id, restart)]


def decide_delete_environment(state: KernelState, request: DeleteEnvironment) -> list[AnyEvent]:
    """A DISABLED environment that no queue names and nothing runs on (CE-16, CE-17)."""
    row = get_environment(state, request.name)
    if row.body.state is not ResourceState.DISABLED:
        raise Conflict("compute environment", request.name, "Cannot delete: it is ENABLED; update it to DISABLED first")
    used = sorted(q.name for q in state.queues.values() if request.name in q.body.compute_environments)
    if used:
        why = f"Cannot delete, found existing JobQueue relationship: {', '.join(used)}"
        raise Conflict("compute environment", request.name, why)
    busy = sum(sum(state.hosts[serial].load.values()) for serial in row.hosts.values())
    if busy:
        raise Conflict("compute environment", request.name, f"Cannot delete: {busy} attempts are still running on it")
    return [EnvironmentDeleted(request.name, request.principal, request.request_id)]
