"""Queues and environments, alike: found by name or ARN, or listed in pages by name (contract 9.2, 9.3)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from anybatch import NotFound

from .arns import Place, resource_name
from .call import check_ids, make_token, page_size, read_text_token, take_page
from .errors import refused


class Named(Protocol):
    """What has a name."""

    @property
    def name(self) -> str:
        """By which it is found."""


T = TypeVar("T", bound=Named)
Describe = Callable[[Sequence[str] | None], Awaitable[list[T]]]
"""The kernel's call: those of these names, or (None) all; NotFound if one is not there."""


async def find_one(kind: str, describe: Describe[T], place: Place, given: str) -> T:
    """The one of a name or ARN.

    Raises:
        ApiError: it does not exist, in the words that clients look for.
    """
    name = resource_name(kind, given)
    try:
        return (await describe([name]))[0]
    except NotFound:
        raise refused(f"{place.arn(kind, name[:200])} does not exist") from None


async def find_some(
    kind: str, describe: Describe[T], given: list[str] | None, most: int | None, token: str | None
) -> tuple[list[T], str | None]:
    """Those named that there are, or a page of all with the token of the next one."""
    what = f"{kind.replace('-', ' ')}s"
    if given:
        found: list[T] = []
        for one in check_ids(given, what):
            try:
                found += await describe([resource_name(kind, one)])
            except NotFound:
                continue
        return found, None
    size, after = page_size(most), read_text_token(what, token)
    details = {detail.name: detail for detail in await describe(None)}
    names, last = take_page(sorted(details), after, size)
    return [details[name] for name in names], None if last is None else make_token(what, last)
