"""The HTTP side: one function from a request to a response.

Nothing that a client sends may make it fail: an error of ours is logged, and answered 500 with no more said.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote

import msgspec
import structlog
from aiohttp import web
from anybatch import JournalError, KernelClosed, RequestError

from . import sts
from .api import Api
from .arns import Place
from .audit import FRONT_END, UNKNOWN, cloudtrail, is_read_only, reduced
from .authenticate import FORM_TYPE, authenticate, check_source
from .authorize import authorize
from .call import Call
from .errors import ApiError, refused, translate, unsupported
from .identity import Identity, Principal
from .operations import POSTED, TAG_OPERATIONS, TAGS_PATH, TARGETS, Operation
from .request_ids import request_id
from .roles import CREDENTIALS_PATH, JobRoles
from .settings import BODY_BYTES_MAX, DEFAULT_REGION, READ_S_MAX
from .sigv4 import invalid

log = structlog.stdlib.get_logger("anybatch.aws")

IGNORED_CHARS_MAX: Final = 4000
"""Of the header `x-anybatch-ignored`."""
BURST_S: Final = 1.0
"""How many seconds' worth of submits may come at once."""
JSON_1_1: Final = "application/x-amz-json-1.1"


class Throttle:
    """A bucket of calls that fills at a rate."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._most = max(1.0, rate * BURST_S)
        self._level = self._most
        self._clock = clock
        self._at = clock()

    def take(self) -> None:
        """One call.

        Raises:
            ApiError: there have been too many.
        """
        now = self._clock()
        self._level = min(self._most, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            raise ApiError("Too Many Requests", code="TooManyRequestsException", status=429)
        self._level -= 1


class Route(NamedTuple):
    """Where a request goes: the service that it has to be signed for, and the operation (None: STS)."""

    service: str
    operation: Operation | None
    given: bytes | dict[str, Any]


class Server:
    """Answers requests. One per front end. `identity` None: every caller may do everything."""

    def __init__(
        self, api: Api, identity: Identity | None, hosts: frozenset[str], roles: JobRoles, *, has_tls: bool
    ) -> None:
        self._api = api
        self._roles = roles
        self._identity = identity
        self._hosts = hosts
        self._has_tls = has_tls
        rate = api.settings.submit_rate
        self._throttle = None if rate is None else Throttle(rate)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        settings = self._api.settings
        call = Call(Place(settings.account, settings.region or DEFAULT_REGION), request_id(), ignored=[])
        call.remote, call.secure = request.remote or "", self._has_tls and request.secure
        response, error, body = await self._outcome(call, request)
        await self._record(call, error, body)
        return response

    async def _outcome(self, call: Call, request: web.BaseRequest) -> tuple[web.Response, ApiError | None, Any]:
        """The response, and what it says: an error, or a body."""
        form = "application/json"
        try:
            headers = {name.lower(): value for name, value in request.headers.items()}
            call.user_agent = headers.get("user-agent", "")
            if request.raw_path == "/" and headers.get("content-type", "").startswith(FORM_TYPE):
                form = FORM_TYPE
            elif "x-amz-target" in headers:
                form = JSON_1_1
            body = await self._answer(call, request, headers)
            return self._respond(call, 200, body, form), None, body
        except ApiError as e:
            error = e
        except RequestError as e:
            error = translate(e)
        except KernelClosed as e:
            error = ApiError(f"{e}", code="ServerException", status=503)
        except web.HTTPException as e:
            error = ApiError(e.reason, status=e.status)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("aws_call_failed", path=request.raw_path[:200], request=call.request_id)
            error = ApiError("An internal error has occurred", code="ServerException", status=500)
        return self._fail(call, error, form), error, None

    async def _record(self, call: Call, error: ApiError | None, body: Any) -> None:
        """Take the call down in the kernel's audit stream. What was done stays done if that fails."""
        record = cloudtrail(call, error, body)
        try:
            try:
                await self._write(call, error, record)
            except RequestError:  # clients may send numbers and characters that no record can hold
                await self._write(call, error, reduced(record))
        except (KernelClosed, JournalError, RequestError) as e:
            log.error("aws_call_not_recorded", request=call.request_id, operation=call.operation, error=str(e))

    async def _write(self, call: Call, error: ApiError | None, record: dict[str, Any]) -> None:
        await self._api.kernel.record_call(
            call.operation or UNKNOWN,
            front_end=FRONT_END,
            principal=call.principal.name,
            request_id=call.request_id,
            read_only=is_read_only(call.operation),
            error_code=None if error is None else error.code,
            detail=record,
        )

    async def _answer(self, call: Call, request: web.BaseRequest, headers: dict[str, str]) -> Any:
        path, _, query = request.raw_path.partition("?")
        check_source(headers, self._hosts, has_body=request.method == "POST", forms=path == "/")
        body = await _read(request)
        if path == CREDENTIALS_PATH and request.method == "GET":
            return await self._credentials(call, headers)
        route = _route(request.method, path, query, headers, body)
        call.service, call.given = route.service, route.given
        call.operation = "GetCallerIdentity" if route.operation is None else route.operation.name
        caller = authenticate(
            self._identity, route.service, method=request.method, path=path, query=query, headers=headers, body=body
        )
        call.principal, call.access_key = caller.principal, caller.access_key
        await self._roles.check(caller.principal)
        if caller.region is not None and caller.region != call.place.region:
            if self._api.settings.region is not None and self._identity is not None:
                raise invalid(f"Credential should be scoped to a valid region: {call.place.region!r}. ")
            if self._api.settings.region is None:
                call.place = Place(call.place.account, caller.region)
        if route.operation is None:
            return sts.answer(call, body)
        return await self._call(call, route.operation, route.given)

    async def _credentials(self, call: Call, headers: dict[str, str]) -> dict[str, Any]:
        """An attempt asks for the credentials of its role, as CloudTrail has it: its role is assumed for it."""
        call.service, call.operation = "sts", "AssumeRole"
        attempt = self._roles.attempt_of(headers.get("authorization", ""))
        call.principal = Principal(f"attempt {attempt.job}/{attempt.number}")
        found = await self._roles.credentials(attempt)
        call.given = {"roleArn": found["RoleArn"], "roleSessionName": attempt.session}
        return found

    async def _call(self, call: Call, operation: Operation, given: bytes | dict[str, Any]) -> Any:
        api = self._api
        if operation.handler is None or operation.request is None:
            await authorize(api, call, operation.name, None)
            raise unsupported(operation.name)
        most = operation.bytes_max
        if isinstance(given, bytes) and most is not None and api.settings.is_strict and len(given) > most:
            raise refused(f"The request has {len(given)} bytes; {operation.name} takes at most {most}")
        if operation.name == "SubmitJob" and self._throttle is not None:
            self._throttle.take()
        request = _decode(operation, given)
        await authorize(api, call, operation.name, request)
        with api.kernel.acting_as(call.principal.name, request_id=call.request_id):
            return await operation.handler(api, call, request)

    def _respond(self, call: Call, status: int, body: Any, form: str) -> web.Response:
        data = body.encode() if isinstance(body, str) else msgspec.json.encode(body)
        headers = {"x-amzn-RequestId": call.request_id, "Content-Type": "text/xml" if form == FORM_TYPE else form}
        if call.ignored:
            headers["x-anybatch-ignored"] = ", ".join(call.ignored)[:IGNORED_CHARS_MAX]
        return web.Response(status=status, body=data, headers=headers)

    def _fail(self, call: Call, error: ApiError, form: str) -> web.Response:
        call.ignored = []
        body: Any = {"message": error.message, "__type": error.code}
        if form == FORM_TYPE:
            body = sts.failure(call, error)
        response = self._respond(call, error.status, body, form)
        response.headers["x-amzn-ErrorType"] = error.code
        return response


async def _read(request: web.BaseRequest) -> bytes:
    """The body. Most have arrived with their headers, and need no waiting."""
    if request.content.is_eof():
        body = request.content.read_nowait()
        if len(body) > BODY_BYTES_MAX:
            raise web.HTTPRequestEntityTooLarge(BODY_BYTES_MAX)
        return body
    try:
        async with asyncio.timeout(READ_S_MAX):
            return await request.read()
    except TimeoutError:
        raise ApiError("The request took too long to arrive", status=408) from None


def _route(method: str, path: str, query: str, headers: dict[str, str], body: bytes) -> Route:
    """Where a request goes.

    Raises:
        ApiError: nowhere.
    """
    if path.startswith(TAGS_PATH) and method in TAG_OPERATIONS:
        return Route("batch", TAG_OPERATIONS[method], _tag_arguments(path, query, body, method))
    if method == "POST" and path in POSTED:
        return Route("batch", POSTED[path], body)
    if method == "POST" and path == "/":
        target = headers.get("x-amz-target", "")
        if target in TARGETS:
            service, operation = TARGETS[target]
            return Route(service, operation, body)
        if target:
            raise unsupported(target[:100])
        if headers.get("content-type", "").startswith(FORM_TYPE):
            return Route("sts", None, body)
    raise ApiError(f"Unable to determine service/operation name to be authorized: {method} {path[:200]}", status=404,
                   code="UnknownOperationException")  # fmt: skip


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
        if given.get("tags") is not None:
            found["tags"] = given["tags"]
    return found
