"""A call as CloudTrail records one (contract CT-10, CT-11), and whether it only reads."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import msgspec

from .call import Call
from .errors import ApiError
from .request_ids import request_id

FRONT_END: Final = "aws"
READS: Final = ("Describe", "List", "Get", "Filter")
"""How the names of operations begin that change nothing."""
UNKNOWN: Final = "UnknownOperation"
"""The operation of a call that was refused before it was clear what it asks for."""
HIDDEN: Final = frozenset({"SecretAccessKey", "SessionToken", "Token"})
"""Members of responses that no record may have."""


def is_read_only(operation: str) -> bool:
    """CT-11."""
    return operation.startswith(READS)


def cloudtrail(call: Call, error: ApiError | None, body: Any) -> dict[str, Any]:
    """The record. `body`: what was answered, where it succeeded."""
    operation = call.operation or UNKNOWN
    read_only = is_read_only(operation)
    record: dict[str, Any] = {
        "eventVersion": "1.08",
        "userIdentity": _who(call),
        "eventTime": _text_of(int(time.time())),
        "eventSource": f"{call.service}.amazonaws.com",
        "eventName": operation,
        "awsRegion": call.place.region,
        "sourceIPAddress": call.remote,
        "userAgent": call.user_agent,
        "requestParameters": _parameters(call.given),
        "responseElements": None if read_only or error is not None else _elements(body),
        "requestID": call.request_id,
        "eventID": request_id(),
        "readOnly": read_only,
        "eventType": "AwsApiCall",
        "managementEvent": True,
        "recipientAccountId": call.place.account,
        "eventCategory": "Management",
    }
    if error is not None:
        record |= {"errorCode": error.code, "errorMessage": error.message}
    return record


def _who(call: Call) -> dict[str, Any]:
    principal, account = call.principal, call.place.account
    found: dict[str, Any] = {
        "type": "IAMUser" if principal.role is None else "AssumedRole",
        "principalId": principal.user_id,
        "arn": principal.arn(account),
        "accountId": account,
    }
    if principal.role is None:
        found["userName"] = principal.name
    else:
        issuer = {
            "type": "Role",
            "principalId": principal.role,
            "arn": principal.principal_arn(account),
            "accountId": account,
            "userName": principal.role,
        }
        found["sessionContext"] = {"sessionIssuer": issuer, "attributes": {"mfaAuthenticated": "false"}}
    if call.access_key:
        found["accessKeyId"] = call.access_key
    return found


@lru_cache(maxsize=2)
def _text_of(second: int) -> str:
    """Many calls come in one second."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def reduced(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what cannot be kept: numbers beyond 64 bits, and text that is no UTF-8."""
    found = dict(record)
    for name, value in record.items():
        if isinstance(value, str):
            found[name] = value.encode(errors="replace").decode()
    for name in ("requestParameters", "responseElements"):
        if record[name] is not None:
            found[name] = {"omitted": "it has values that cannot be recorded"}
    return found


def _parameters(given: bytes | Mapping[str, Any] | None) -> Any:
    if not isinstance(given, bytes):
        return given
    try:
        return msgspec.json.decode(given) if given.strip() else {}
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _elements(body: Any) -> Any:
    """A response's members; None for one that is no JSON, or has none."""
    if not isinstance(body, Mapping):
        return None
    return {name: value for name, value in body.items() if name not in HIDDEN} or None
