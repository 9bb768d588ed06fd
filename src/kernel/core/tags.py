"""Tags of what is there: deciding about a change, and applying it (contract 9.6)."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import structs

from .checks import check_tags
from .errors import InvalidValue, NotFound
from .events import TagsPut
from .inputs import ChangeTags
from .model import TaggedKind
from .state import DefinitionRow, EnvironmentRow, JobRow, KernelState, QueueRow

Tagged = EnvironmentRow | QueueRow | DefinitionRow | JobRow


def find_tagged(state: KernelState, kind: TaggedKind, name: str) -> Tagged:
    """What has these tags.

    Raises:
        NotFound: there is no such thing.
        InvalidValue: a child, whose tags are its array's (TG-1).
    """
    row: Tagged | None = None
    match kind:
        case TaggedKind.COMPUTE_ENVIRONMENT:
            row = state.environments.get(name)
        case TaggedKind.JOB_QUEUE:
            row = state.queues.get(name)
        case TaggedKind.JOB_DEFINITION:
            base, _, revision = name.partition(":")
            number = int(revision) if revision.isdecimal() and revision.isascii() and len(revision) <= 9 else 0
            row = state.definitions.get(base, {}).get(number)
        case TaggedKind.JOB:
            if name.partition(":")[0] in state.ids and ":" in name:
                raise InvalidValue("name", name, "a child has the tags of its array and none of its own")
            serial = state.ids.get(name)
            row = None if serial is None else state.jobs[serial]
    if row is None:
        raise NotFound(kind.value, name)
    return row


def tags_of(row: Tagged) -> Mapping[str, str]:
    """Its tags."""
    return row.spec.tags if isinstance(row, JobRow) else row.body.tags


def decide_change_tags(state: KernelState, request: ChangeTags) -> list[TagsPut]:
    """Merge, then remove; a key that is not there is removed without complaint (TG-2)."""
    row = find_tagged(state, request.kind, request.name)
    new = {**tags_of(row), **request.put}
    for key in request.remove:
        new.pop(key, None)
    check_tags(new, state.quotas)
    if new == tags_of(row):
        return []
    return [TagsPut(request.kind, request.name, new, request.principal, request.request_id)]


def put_tags(state: KernelState, event: TagsPut) -> None:
    """Apply it."""
    row = find_tagged(state, event.kind, event.name)
    match row:
        case JobRow():
            row.spec = structs.replace(row.spec, tags=event.tags)
        case EnvironmentRow():
            row.body = structs.replace(row.body, tags=event.tags)
        case QueueRow():
            row.body = structs.replace(row.body, tags=event.tags)
        case DefinitionRow():
            row.body = structs.replace(row.body, tags=event.tags)
