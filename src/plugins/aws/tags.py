"""TagResource, UntagResource, ListTagsForResource (contract 9.6)."""

from __future__ import annotations

from typing import Any, Final

from anybatch import NotFound, TaggedKind

from .api import Api
from .arns import parse_arn
from .call import Call
from .checks import check_tags
from .errors import refused, unsupported
from .requests import ListTagsForResourceRequest, TagResourceRequest, UntagResourceRequest

KINDS: Final = {
    "compute-environment": TaggedKind.COMPUTE_ENVIRONMENT,
    "job-queue": TaggedKind.JOB_QUEUE,
    "job-definition": TaggedKind.JOB_DEFINITION,
    "job": TaggedKind.JOB,
}
KEYS_MAX: Final = 50


async def list_tags(api: Api, call: Call, request: ListTagsForResourceRequest) -> dict[str, Any]:
    """The tags of an ARN."""
    return {"tags": await _change(api, request.resourceArn, {}, [])}


async def tag_resource(api: Api, call: Call, request: TagResourceRequest) -> dict[str, Any]:
    """Add tags, or overwrite those of the same keys."""
    await _change(api, request.resourceArn, check_tags(request.tags), [])
    return {}


async def untag_resource(api: Api, call: Call, request: UntagResourceRequest) -> dict[str, Any]:
    """Remove tags; keys that are not there are passed over."""
    if not 1 <= len(request.tagKeys) <= KEYS_MAX:
        raise refused(f"tagKeys has 1 to {KEYS_MAX} entries")
    await _change(api, request.resourceArn, {}, request.tagKeys)
    return {}


async def _change(api: Api, arn: str, put: dict[str, str], remove: list[str]) -> dict[str, str]:
    named = parse_arn(arn)
    kind = KINDS.get(named.kind)
    if kind is None:
        raise unsupported(f"Tagging a {named.kind[:50]}")
    if kind is TaggedKind.JOB and ("#" in named.name or ":" in named.name):
        raise refused("The children of an array and the nodes of a multi-node job have no tags of their own")
    try:
        return dict(await api.kernel.tag_resource(kind, named.name, put, remove=remove))
    except NotFound:
        raise refused(f"{arn[:300]} does not exist") from None
