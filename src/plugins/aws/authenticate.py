"""Whose call it is: the checks that keep web pages out, then the signature."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from .errors import ApiError, denied
from .identity import ANYBODY, Identity, Principal
from .sigv4 import check_signature, check_time, invalid, parse_authorization

JSON_TYPES: Final = ("application/json", "application/x-amz-json-1.0", "application/x-amz-json-1.1")
"""Of requests with a body: what a web page cannot send without asking first, and is then refused."""
FORM_TYPE: Final = "application/x-www-form-urlencoded"
"""STS's, whose answers tell a page nothing that it may read."""
LOCAL_NAMES: Final = frozenset(("localhost", "127.0.0.1", "[::1]"))


class Caller(NamedTuple):
    """Who calls, the region that the call was signed for (None: it was not signed), and by which key."""

    principal: Principal
    region: str | None
    access_key: str = ""


def check_source(headers: Mapping[str, str], hosts: frozenset[str], *, has_body: bool, forms: bool) -> None:
    """Refuse what a web page in somebody's browser could send (also one whose name was made to point here).

    Raises:
        ApiError: 403 or 415.
    """
    host = headers.get("host", "")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
    if name.lower() not in hosts:
        raise denied(f"The host {host[:100]!r} is not one of this server's: {', '.join(sorted(hosts))}")
    if "origin" in headers or headers.get("sec-fetch-site", "none") != "none":
        raise denied("Calls from web pages are not served")
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if has_body and content_type not in JSON_TYPES and not (forms and content_type == FORM_TYPE):
        given = f"it is {content_type[:100]!r}" if content_type else "there is none"
        raise ApiError(f"The Content-Type of a request is application/json: {given}", status=415,
                       code="UnsupportedMediaTypeException")  # fmt: skip


def authenticate(
    identity: Identity | None,
    service: str,
    *,
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    body: bytes,
) -> Caller:
    """The caller of a signed request. Without an identity (`--no-auth`) everybody is one principal.

    Raises:
        ApiError: 403, as AWS refuses it.
    """
    if identity is None:
        try:
            region = parse_authorization(headers.get("authorization")).region
        except ApiError:
            region = None
        return Caller(ANYBODY, region)
    authorization = parse_authorization(headers.get("authorization"))
    if authorization.service != service:
        raise invalid(f"Credential should be scoped to correct service: '{service}'. ")
    secret, principal = identity.find(authorization.key, headers.get("x-amz-security-token"))
    time = check_time(headers.get("x-amz-date"), authorization.date, datetime.now(UTC))
    check_signature(authorization, secret, method=method, path=path, query=query, headers=headers, body=body, time=time)
    return Caller(principal, authorization.region, authorization.key)
