"""CloudWatch Logs: DescribeLogGroups, DescribeLogStreams, GetLogEvents, FilterLogEvents over the kernel's logs."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

from .api import Api
from .arns import Place
from .authorize import Need, check
from .call import Call, make_token, read_number_token
from .errors import ApiError, unsupported
from .log_reader import GROUP, Event, Stream, all_streams, no_group
from .policy import Resource
from .shape import Int, Shape

EVENTS_MAX: Final = 10_000
BYTES_MAX: Final = 1 << 20
EVENT_OVERHEAD: Final = 26
"""Bytes that CloudWatch counts per event beside its message."""
STREAMS_MAX: Final = 50
FILTER_STREAMS_MAX: Final = 100
"""Streams that one FilterLogEvents looks at, the newest first; name streams to see older ones."""


class DescribeLogGroupsRequest(Shape):
    """Which groups there are."""

    logGroupNamePrefix: str | None = None
    logGroupNamePattern: str | None = None
    limit: Int | None = None
    nextToken: str | None = None


class DescribeLogStreamsRequest(Shape):
    """Which streams there are."""

    logGroupName: str | None = None
    logGroupIdentifier: str | None = None
    logStreamNamePrefix: str | None = None
    orderBy: str | None = None
    descending: bool | None = None
    nextToken: str | None = None
    limit: Int | None = None


class GetLogEventsRequest(Shape):
    """Events of one stream."""

    logStreamName: str
    logGroupName: str | None = None
    logGroupIdentifier: str | None = None
    startTime: Int | None = None
    endTime: Int | None = None
    nextToken: str | None = None
    limit: Int | None = None
    startFromHead: bool | None = None


class FilterLogEventsRequest(Shape):
    """Events of several streams."""

    logGroupName: str | None = None
    logGroupIdentifier: str | None = None
    logStreamNames: list[str] | None = None
    logStreamNamePrefix: str | None = None
    startTime: Int | None = None
    endTime: Int | None = None
    filterPattern: str | None = None
    nextToken: str | None = None
    limit: Int | None = None


def invalid(message: str) -> ApiError:
    """A parameter is not as it should be."""
    return ApiError(message, code="InvalidParameterException")


def _check_group(call: Call, request: Any, action: str, stream: str = "*") -> None:
    """The caller may do it, and the group is the one that there is."""
    if not call.principal.is_unrestricted:
        arn = f"arn:aws:logs:{call.place.region}:{call.place.account}:log-group:{GROUP}:log-stream:{stream}"
        check(call, Need(f"logs:{action}", (Resource(arn),)))
    name = request.logGroupName or request.logGroupIdentifier
    if not name:
        raise invalid("logGroupName or logGroupIdentifier must be given")
    if name != GROUP and name.removesuffix(":*").partition(":log-group:")[2] != GROUP:
        raise no_group()


def _limit(asked: int | None, most: int) -> int:
    if asked is None:
        return most
    if not 1 <= asked <= most:
        raise invalid(f"limit must be between 1 and {most}")
    return asked


def _stream_arn(place: Place, name: str) -> str:
    return f"arn:aws:logs:{place.region}:{place.account}:log-group:{GROUP}:log-stream:{name}"


async def describe_log_groups(api: Api, call: Call, request: DescribeLogGroupsRequest) -> dict[str, Any]:
    """The one group that there is."""
    if not call.principal.is_unrestricted:
        arn = f"arn:aws:logs:{call.place.region}:{call.place.account}:log-group:*"
        check(call, Need("logs:DescribeLogGroups", (Resource(arn),)))
    if not GROUP.startswith(request.logGroupNamePrefix or "") or (request.logGroupNamePattern or "") not in GROUP:
        return {"logGroups": []}
    arn = f"arn:aws:logs:{call.place.region}:{call.place.account}:log-group:{GROUP}"
    group = {"logGroupName": GROUP, "arn": f"{arn}:*", "logGroupArn": arn, "metricFilterCount": 0, "creationTime": 0}
    return {"logGroups": [group]}


async def describe_log_streams(api: Api, call: Call, request: DescribeLogStreamsRequest) -> dict[str, Any]:
    """The streams that begin with a prefix: the newest jobs first, whatever order is asked for (docs/aws.md)."""
    _check_group(call, request, "DescribeLogStreams")
    size = _limit(request.limit, STREAMS_MAX)
    prefix = request.logStreamNamePrefix or ""
    token = read_number_token("streams", request.nextToken)
    found: list[Stream] = []
    skip, position = (0, None) if token is None else (token & 0xFFFF_FFFF, token >> 32)
    # The token: the newest job that is not wholly told, and how many of its streams were.
    last, told = position, skip
    more = False
    if (only := await _named(api, prefix)) is not None:
        return {"logStreams": [_stream_shape(call.place, only)]}
    streams = all_streams(api.kernel, None if position is None else position + 1)
    try:
        passed = 0
        async for at, stream in streams:
            if at == position and passed < skip:
                passed += 1
                continue
            if not stream.name.startswith(prefix):
                told = told + 1 if at == last else 1
                last = at
                continue
            if len(found) == size:
                more = True
                break
            told = told + 1 if at == last else 1
            last = at
            found.append(stream)
    finally:
        await streams.aclose()  # type: ignore[attr-defined]  # it is a generator
    result: dict[str, Any] = {"logStreams": [_stream_shape(call.place, stream) for stream in found]}
    if more and last is not None:
        result["nextToken"] = make_token("streams", (last << 32) | told)
    return result


async def _named(api: Api, prefix: str) -> Stream | None:
    """The stream of this whole name, which is what most clients give as a prefix."""
    try:
        return await api.logs.find(prefix)
    except ApiError:
        return None


def _stream_shape(place: Place, stream: Stream) -> dict[str, Any]:
    began = stream.began_ms
    found = {
        "logStreamName": stream.name,
        "creationTime": began,
        "firstEventTimestamp": began,
        "arn": _stream_arn(place, stream.name),
        "storedBytes": 0,
    }
    if stream.attempt.stopped_at is not None:
        found["lastEventTimestamp"] = found["lastIngestionTime"] = round(stream.attempt.stopped_at.timestamp() * 1000)
    return found


async def get_log_events(api: Api, call: Call, request: GetLogEventsRequest) -> dict[str, Any]:
    """A page of one stream. At the end the forward token stays the same, as on AWS."""
    _check_group(call, request, "GetLogEvents", request.logStreamName)
    size = _limit(request.limit, EVENTS_MAX)
    stream = await api.logs.find(request.logStreamName)
    events = await api.logs.events(stream)
    direction, at = _read_position(request, len(events))
    low, high = request.startTime or 0, request.endTime if request.endTime is not None else 1 << 62
    step = 1 if direction == "f" else -1
    found: list[Event] = []
    room, first = BYTES_MAX, at
    while (at < len(events) if step == 1 else at > 0) and len(found) < size:
        event = events[at if step == 1 else at - 1]
        if low <= event.at_ms < high:
            room -= len(event.message) + EVENT_OVERHEAD
            if room < 0 and found:
                break
            found.append(event)
        at += step
    start, stop = (first, at) if step == 1 else (at, first)
    if step == -1:
        found.reverse()
    return {
        "events": [{"timestamp": one.at_ms, "message": one.message, "ingestionTime": one.at_ms} for one in found],
        "nextForwardToken": f"f/{stop:056d}",
        "nextBackwardToken": f"b/{start:056d}",
    }


def _read_position(request: GetLogEventsRequest, count: int) -> tuple[str, int]:
    """The direction, and the event to begin at."""
    if request.nextToken is None:
        return ("f", 0) if request.startFromHead else ("b", count)
    match = re.fullmatch(r"([fb])/([0-9]{56})", request.nextToken)
    if match is None:
        raise invalid("The specified nextToken is invalid.")
    return match[1], min(int(match[2]), count)


async def filter_log_events(api: Api, call: Call, request: FilterLogEventsRequest) -> dict[str, Any]:
    """Events of the streams named, or of the newest; by time, and by the words of the pattern."""
    _check_group(call, request, "FilterLogEvents")
    size = _limit(request.limit, EVENTS_MAX)
    low, high = request.startTime or 0, request.endTime if request.endTime is not None else 1 << 62
    wanted = _words(request.filterPattern)
    if request.logStreamNames is not None and request.logStreamNamePrefix is not None:
        raise invalid("Only one of logStreamNames and logStreamNamePrefix can be given")
    skip = read_number_token("events", request.nextToken) or 0
    found: list[tuple[int, str, int, str]] = []
    for stream in await _streams(api, request, low):
        for number, event in enumerate(await api.logs.events(stream)):
            if low <= event.at_ms < high and all(word in event.message for word in wanted):
                found.append((event.at_ms, stream.name, number, event.message))
    found.sort(key=lambda one: one[:3])
    page: list[dict[str, Any]] = []
    room = BYTES_MAX
    for at_ms, name, number, message in found[skip : skip + size]:
        room -= len(message) + EVENT_OVERHEAD
        if room < 0 and page:
            break
        page.append(
            {
                "logStreamName": name,
                "timestamp": at_ms,
                "message": message,
                "ingestionTime": at_ms,
                "eventId": _event_id(name, number),
            }
        )
    result: dict[str, Any] = {"events": page, "searchedLogStreams": []}
    if skip + len(page) < len(found):
        result["nextToken"] = make_token("events", skip + len(page))
    return result


async def _streams(api: Api, request: FilterLogEventsRequest, low: int) -> list[Stream]:
    if request.logStreamNames:
        if len(request.logStreamNames) > FILTER_STREAMS_MAX:
            raise invalid(f"logStreamNames has at most {FILTER_STREAMS_MAX} entries")
        return [await api.logs.find(name) for name in request.logStreamNames]
    prefix = request.logStreamNamePrefix or ""
    if (only := await _named(api, prefix)) is not None:
        return [only]
    found: list[Stream] = []
    streams = all_streams(api.kernel)
    try:
        async for _, stream in streams:
            stopped = stream.attempt.stopped_at
            if stream.name.startswith(prefix) and (stopped is None or stopped.timestamp() * 1000 >= low):
                found.append(stream)
                if len(found) == FILTER_STREAMS_MAX:
                    break
    finally:
        await streams.aclose()  # type: ignore[attr-defined]  # it is a generator
    return found


def _words(pattern: str | None) -> list[str]:
    """The words, or quoted phrases, that all have to be in a message."""
    text = (pattern or "").strip()
    words = re.findall(r'"([^"]*)"|([A-Za-z0-9_.:/@=,-]+)', text)
    found = [quoted or bare for quoted, bare in words]
    if re.sub(r'"[^"]*"|[A-Za-z0-9_.:/@=,-]+|\s', "", text) or any(bare.startswith("-") for _, bare in words):
        raise unsupported("A filterPattern of more than words and quoted phrases")
    return found


def _event_id(stream: str, number: int) -> str:
    digest = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:16])
    return f"{digest:040d}{number:016d}"
