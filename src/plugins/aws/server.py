"""The HTTP side: one function from a request to a response. What it answers is always JSON in AWS's form.

Nothing that a client sends may make it fail: an error of ours is logged, counted, and answered 500 with no more said.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import msgspec
import structlog
from aiohttp import web
from anybatch import KernelClosed, RequestError

from .arns import Place
from .call import Api, Call
from .errors import ApiError, refused, translate, unsupported
from .operations import POSTED, TAG_OPERATIONS, TAGS_PATH, Operation
from .settings import DEFAULT_REGION, READ_S_MAX

log = structlog.stdlib.get_logger("anybatch.aws")

CONTENT_TYPES: Final = ("application/json", "application/x-amz-json-1.0", "application/x-amz-json-1.1")
IGNORED_CHARS_MAX: Final = 4000
"""Of the header `x-anybatch-ignored`."""
BURST_S: Final = 1.0
"""How many seconds' worth of submits may come at once."""


class Throttle:
    """A bucket of calls that fills at a rate."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._level = rate * BURST_S
        self._at = time.monotonic()

    def take(self) -> None:
        """One call.

        Raises:
            ApiError: there have been too many.
        """
        now = time.monotonic()
        self._level = min(self._rate * BURST_S, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            raise ApiError("Too Many Requests", code="TooManyRequestsException", status=429)
        self._level -= 1


class Server:
    """Answers requests. One per front end."""

    def __init__(self, api: Api) -> None:
        self._api = api
        rate = api.settings.submit_rate
        self._throttle = None if rate is None else Throttle(rate)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        call = Call(Place(self._api.settings.account, self._api.settings.region or DEFAULT_REGION), "", "", [])
        call.request_id = str(uuid.uuid4())
        try:
            return self._respond(call, 200, await self._answer(call, request))
        except ApiError as e:
            return self._fail(call, e)
        except RequestError as e:
            return self._fail(call, translate(e))
        except KernelClosed as e:
            return self._fail(call, ApiError(f"{e}", code="ServerException", status=503))
        except web.HTTPException as e:
            return self._fail(call, ApiError(e.reason, code="ClientException", status=e.status))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("aws_call_failed", path=request.raw_path[:200], request=call.request_id)
            return self._fail(call, ApiError("An internal error has occurred", code="ServerException", status=500))

    async def _answer(self, call: Call, request: web.BaseRequest) -> Any:
        path, _, query = request.raw_path.partition("?")
        try:
            async with asyncio.timeout(READ_S_MAX):
                body = await request.read()
        except TimeoutError:
            raise ApiError("The request took too long to arrive", status=408) from None
        call.principal = "anonymous"
        if path.startswith(TAGS_PATH):
            operation = TAG_OPERATIONS.get(request.method)
            if operation is not None:
                return await self._call(call, operation, _tag_arguments(path, query, body, request.method))
        else:
            operation = POSTED.get(path)
            if operation is not None and request.method == "POST":
                return await self._call(call, operation, body)
        raise ApiError(f"Unable to determine service/operation name to be authorized: {path[:200]}", status=404,
                       code="UnknownOperationException")  # fmt: skip

    async def _call(self, call: Call, operation: Operation, given: bytes | dict[str, Any]) -> Any:
        api = self._api
        if operation.handler is None or operation.request is None:
            raise unsupported(operation.name)
        most = operation.bytes_max
        if isinstance(given, bytes) and most is not None and api.settings.is_strict and len(given) > most:
            raise refused(f"The request has {len(given)} bytes; {operation.name} takes at most {most}")
        if operation.name == "SubmitJob" and self._throttle is not None:
            self._throttle.take()
        request = _decode(operation, given)
        with api.kernel.acting_as(call.principal, request_id=call.request_id):
            return await operation.handler(api, call, request)

    def _respond(self, call: Call, status: int, body: Any) -> web.Response:
        response = web.Response(
            status=status, body=msgspec.json.encode(body), headers={"x-amzn-RequestId": call.request_id}
        )
        response.content_type = "application/json"
        if call.ignored:
            response.headers["x-anybatch-ignored"] = ", ".join(call.ignored)[:IGNORED_CHARS_MAX]
        return response

    def _fail(self, call: Call, error: ApiError) -> web.Response:
        call.ignored = []
        response = self._respond(call, error.status, {"message": error.message, "__type": error.code})
        response.headers["x-amzn-ErrorType"] = error.code
        return response


def _decode(operation: Operation, given: bytes | dict[str, Any]) -> Any:
    assert operation.request is not None
    try:
        if isinstance(given, dict):
            return msgspec.convert(given, operation.request)
        return msgspec.json.decode(given.strip() or b"{}", type=operation.request)
    except msgspec.ValidationError as e:
        raise refused(f"Error executing request, Exception : {e}") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as e:
        raise ApiError(f"The body is not valid JSON: {e}", code="SerializationException") from None


def _tag_arguments(path: str, query: str, body: bytes, method: str) -> dict[str, Any]:
    """The ARN from the path, encoded or not (W-3), and the keys from the query (W-4)."""
    try:
        arn = unquote(path[len(TAGS_PATH) :], errors="strict")
    except UnicodeDecodeError:
        raise refused("The ARN in the path is not UTF-8") from None
    found: dict[str, Any] = {"resourceArn": arn}
    if method == "DELETE":
        found["tagKeys"] = [value for name, value in parse_qsl(query, keep_blank_values=True) if name == "tagKeys"]
    if method == "POST":
        try:
            given = json.loads(body or b"{}")
        except (ValueError, RecursionError) as e:
            raise ApiError(f"The body is not valid JSON: {e}", code="SerializationException") from None
        if not isinstance(given, dict):
            raise refused("The body is not a JSON object")
        found["tags"] = given.get("tags")
    return found
