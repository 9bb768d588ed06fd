"""Whose call it is, and what all handlers need: times, pages, what is kept with things."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from msgspec import Struct

from .arns import Place
from .errors import refused
from .identity import NOBODY, Principal

PAGE_MAX: Final = 100
"""Entries in a page of all lists but ListJobs (contract 9.3)."""


class Call(Struct):
    """One request of one caller."""

    place: Place
    request_id: str
    principal: Principal = NOBODY
    remote: str = ""
    secure: bool = False
    user_agent: str = ""
    service: str = "batch"
    operation: str = ""
    """Its name; empty until it is clear what is asked for."""
    given: bytes | dict[str, Any] | None = None
    """What came with it."""
    access_key: str = ""
    ignored: list[str] = []
    """Members that were accepted but have no effect here: they go into the header `x-anybatch-ignored`."""

    def ignores(self, *members: str) -> None:
        """Note that these have no effect here."""
        self.ignored += (member for member in members if member not in self.ignored)


def aws_metadata(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """What this front end keeps with a thing; empty if something else made it."""
    found = metadata.get("aws")
    return found if isinstance(found, Mapping) else {}


def to_ms(when: datetime) -> int:
    """Epoch milliseconds (W-13)."""
    return round(when.timestamp() * 1000)


# -- pages ------------------------------------------------------------------------------------------


def page_size(asked: int | None, most: int = PAGE_MAX) -> int:
    """PG-2: below 1 is refused, above the maximum is the maximum."""
    if asked is None:
        return most
    if asked < 1:
        raise refused(f"maxResults must be between 1 and {most}")
    return min(asked, most)


def make_token(kind: str, value: str | int) -> str:
    """Where the next page begins: opaque to clients."""
    return base64.urlsafe_b64encode(json.dumps([kind, value]).encode()).decode().rstrip("=")


def read_token(kind: str, token: str) -> Any:
    """What `make_token` was given.

    Raises:
        ApiError: it is not a token of this list.
    """
    try:
        found = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, UnicodeError, RecursionError):
        found = None
    if not isinstance(found, list) or len(found) != 2 or found[0] != kind or type(found[1]) not in (str, int):
        raise refused("The nextToken is not valid")
    return found[1]


def read_text_token(kind: str, token: str | None) -> str | None:
    """The same where the value is text."""
    if token is None:
        return None
    found = read_token(kind, token)
    if not isinstance(found, str):
        raise refused("The nextToken is not valid")
    return found


def read_number_token(kind: str, token: str | None) -> int | None:
    """The same where the value is a number."""
    if token is None:
        return None
    found = read_token(kind, token)
    if not isinstance(found, int) or not 0 <= found < 1 << 62:
        raise refused("The nextToken is not valid")
    return found


def take_page(names: Iterable[str], after: str | None, size: int) -> tuple[list[str], str | None]:
    """The names of a page, out of sorted ones, and the last of them if more follow."""
    found = [name for name in names if after is None or name > after]
    page = found[:size]
    return page, page[-1] if len(found) > size else None


def check_ids(ids: list[str], what: str, most: int = PAGE_MAX) -> list[str]:
    """A list of ids or names of bounded length."""
    if len(ids) > most:
        raise refused(f"Maximum number of {what} supported is {most}")
    return ids
