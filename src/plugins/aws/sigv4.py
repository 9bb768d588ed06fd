"""AWS's Signature Version 4, on the side that verifies.

The signature covers the method, the path, the query, the signed headers and the body. It is compared in constant time,
and only after the time, the scope and the key have been found good.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from .errors import ApiError, denied

ALGORITHM: Final = "AWS4-HMAC-SHA256"
WINDOW_S: Final = 300.0
"""How far a request's time may be from ours, as on AWS."""
_CREDENTIAL: Final = re.compile(r"(?P<key>[^/,\s]{1,128})/(?P<date>[0-9]{8})/(?P<region>[a-z0-9-]{1,64})"
                                r"/(?P<service>[a-z0-9-]{1,64})/aws4_request")  # fmt: skip
_SIGNATURE_BEGINS: Final = "Signature="
_SIGNATURE: Final = re.compile(r"[0-9a-f]{64}")
_SPACES: Final = re.compile(r" +")
_TIME: Final = "%Y%m%dT%H%M%SZ"
NOT_MATCHING: Final = (
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key "
    "and signing method. Consult the service documentation for details."
)


class Authorization(NamedTuple):
    """What the header `Authorization` says."""

    key: str
    date: str
    region: str
    service: str
    signed: tuple[str, ...]
    signature: str


def parse_authorization(header: str | None) -> Authorization:
    """Take the header apart.

    Raises:
        ApiError: there is none, or it is not one of Signature Version 4.
    """
    if not header:
        raise denied("Missing Authentication Token", "MissingAuthenticationTokenException")
    before, found, after = header.partition(_SIGNATURE_BEGINS)
    signature, comma, rest = after.partition(",")
    signature = signature.rstrip()
    unsigned = _unsigned(f"{before}{rest}" if comma else before)
    if not found or unsigned is None or not _SIGNATURE.fullmatch(signature):
        raise denied(
            f"Authorization header requires {ALGORITHM} with 'Credential', 'SignedHeaders' and 'Signature' parameters.",
            "IncompleteSignatureException",
        )
    return Authorization(*unsigned[:-1], signature)


@lru_cache(maxsize=256)
def _unsigned(header: str) -> Authorization | None:
    """What the header says but for the signature: the same in all of a client's calls of a day."""
    algorithm, _, rest = header.strip().partition(" ")
    parts = dict(part.strip().partition("=")[::2] for part in rest.split(","))
    credential = _CREDENTIAL.fullmatch(parts.get("Credential", ""))
    signed = tuple(parts.get("SignedHeaders", "").split(";"))
    if algorithm != ALGORITHM or credential is None or signed == ("",):
        return None
    return Authorization(credential["key"], credential["date"], credential["region"], credential["service"], signed, "")


def check_time(header: str | None, date: str, now: datetime) -> str:
    """The request's time, if it is near ours and of the day that the key was made for.

    Raises:
        ApiError: it is not.
    """
    try:
        when = _parse_time(header or "")
    except ValueError:
        raise denied("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.",
                     "IncompleteSignatureException") from None  # fmt: skip
    assert header is not None
    if header[:8] != date:
        raise invalid(f"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date: {date}")
    age = (now - when).total_seconds()
    if abs(age) > WINDOW_S:
        word = "expired" if age > 0 else "not yet current"
        raise invalid(f"Signature {word}: {header} is now {'earlier' if age > 0 else 'later'} than "
                      f"{now.strftime(_TIME)} ({WINDOW_S / 60:.0f} min.)")  # fmt: skip
    return header


@lru_cache(maxsize=64)
def _parse_time(text: str) -> datetime:
    """Many calls come in one second."""
    return datetime.strptime(text, _TIME).replace(tzinfo=UTC)


def invalid(message: str) -> ApiError:
    """The signature cannot be accepted."""
    return denied(message, "InvalidSignatureException")


@lru_cache(maxsize=256)
def signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    """The key of a day, a region and a service."""
    key = b"AWS4" + secret.encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def check_signature(
    authorization: Authorization,
    secret: str,
    *,
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    body: bytes,
    time: str,
) -> None:
    """Compare the signature with ours. `path` and `query` as they were sent, `headers` by lower-case names.

    Raises:
        ApiError: it is another one, or it does not cover what it has to.
    """
    signed = authorization.signed
    unsigned = [name for name in headers if name.startswith("x-amz-") and name not in signed]
    if unsigned or "host" not in signed or not _is_in_order(signed):
        # Also x-amz-target, which says what is asked for.
        raise invalid("'Host' and all 'x-amz-*' headers must be in 'SignedHeaders' in the AWS Signature.")
    payload = hashlib.sha256(body).hexdigest()
    if headers.get("x-amz-content-sha256", payload) != payload:
        raise invalid("The value of x-amz-content-sha256 does not match the body")
    lines = "".join([f"{name}:{_trimmed(headers.get(name, ''))}\n" for name in signed])
    canonical = "\n".join(
        (method, canonical_path(path), canonical_query(query), lines, ";".join(signed), payload)
    )  # fmt: skip
    scope = f"{authorization.date}/{authorization.region}/{authorization.service}/aws4_request"
    text = f"{ALGORITHM}\n{time}\n{scope}\n{hashlib.sha256(canonical.encode(errors='surrogateescape')).hexdigest()}"
    key = signing_key(secret, authorization.date, authorization.region, authorization.service)
    if not hmac.compare_digest(hmac.new(key, text.encode(), "sha256").hexdigest(), authorization.signature):
        raise invalid(NOT_MATCHING)


@lru_cache(maxsize=64)
def _is_in_order(signed: tuple[str, ...]) -> bool:
    """Sorted, and each once."""
    return list(signed) == sorted(set(signed))


def _trimmed(value: str) -> str:
    """A header's value as it is signed: no spaces around it, and one where there are several."""
    value = value.strip()
    return _SPACES.sub(" ", value) if "  " in value else value


@lru_cache(maxsize=1024)
def canonical_path(path: str) -> str:
    """The path as it is signed: encoded once more than it was sent."""
    return quote(path or "/", safe="/~-_.", errors="surrogateescape")


def canonical_query(query: str) -> str:
    """The query as it is signed: sorted, and encoded in one way."""
    if not query:
        return ""
    pairs = []
    for part in query.split("&"):
        name, _, value = part.partition("=")
        pairs.append((_encoded(name), _encoded(value)))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def _encoded(text: str) -> str:
    return quote(unquote(text, errors="surrogateescape"), safe="-_.~", errors="surrogateescape")
