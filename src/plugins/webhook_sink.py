"""A sink that posts events to an HTTP endpoint, as CloudEvents 1.0 in batches (JSON), signed.

The signature is that of Standard Webhooks: `webhook-id`, `webhook-timestamp` and `webhook-signature` (`v1,` and the
base64 of HMAC-SHA256 over "<id>.<timestamp>.<body>"). The id is the same when a batch is posted again. A reply of 2xx
is an acceptance; anything else, and no reply in time, is an error, after which the kernel posts again, later each time
(or as `Retry-After` asks). The extra `anybatch[webhook]` brings what it needs.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec
from anybatch.kernel.sink import SINK_API_VERSION, SinkContext, SinkError, SinkEvent

from .event_shapes import Shaped, ShapeOptions, end_watch, make_shape

POST_BYTES_MAX: Final = 1 << 20
"""A post's size: a larger batch goes in several, each event whole."""
REPLY_CHARS_MAX: Final = 200
"""How much of a refusing reply is told."""


class WebhookOptions(ShapeOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`url`: where to (http or https). `secret_file` or `secret_env`: where the signing secret is (a text; a part after
    `whsec_` is base64); neither: not signed. `timeout`: seconds for one post. `per_child`: one event per child
    instead of one per run of children. `shape`: what `data` is, "anybatch", or "eventbridge" for what AWS Batch puts
    onto its event bus, with `account` and `region` in its ARNs.
    """

    url: str
    secret_file: str | None = None
    secret_env: str | None = None
    timeout: float = 10.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url: {self.url!r} is no http:// or https:// address")
        if self.secret_file is not None and self.secret_env is not None:
            raise ValueError("secret_file and secret_env: give one of them")
        if not 0 < self.timeout <= 60:
            raise ValueError("timeout is above 0 and at most 60 seconds")
        self.check_shape()


class WebhookSink:
    """Posts batches of CloudEvents; docs/events.md has their types."""

    api_version: ClassVar[int] = SINK_API_VERSION
    Options: ClassVar[type[msgspec.Struct]] = WebhookOptions

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._watching: asyncio.Task[None] | None = None

    async def open(self, context: SinkContext) -> None:
        self._options: WebhookOptions = context.options
        self._kernel_id = context.kernel_id
        self._shape = make_shape(context)
        self._secret = read_secret(self._options, context.folder)
        timeout = aiohttp.ClientTimeout(total=self._options.timeout)
        self._session = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=1))
        watch = self._shape.watch(self._send)
        if watch is not None:
            self._watching = asyncio.create_task(watch, name=f"anybatch-sink-{context.name}-watch")

    async def deliver(self, events: Sequence[SinkEvent]) -> None:
        await self._send(await self._shape.records(events))

    async def _send(self, records: list[Shaped]) -> None:
        batch: list[bytes] = []
        first, size = "", 0
        for one in records:
            data = msgspec.json.encode(cloud_event(one, self._kernel_id))
            if batch and size + len(data) > POST_BYTES_MAX:
                await self._post(first, batch)
                batch, size = [], 0
            first = first if batch else one.id
            batch.append(data)
            size += len(data) + 1
        if batch:
            await self._post(first, batch)

    async def _post(self, ident: str, batch: list[bytes]) -> None:
        assert self._session is not None
        body = b"[" + b",".join(batch) + b"]"
        headers = {"content-type": "application/cloudevents-batch+json; charset=utf-8"}
        stamp = str(int(time.time()))
        headers |= {"webhook-id": ident, "webhook-timestamp": stamp}
        if self._secret is not None:
            headers["webhook-signature"] = signature(self._secret, ident, stamp, body)
        try:
            async with self._session.post(
                self._options.url, data=body, headers=headers, allow_redirects=False
            ) as response:
                if not 200 <= response.status < 300:
                    said = (await response.content.read(REPLY_CHARS_MAX)).decode(errors="replace")
                    text = f"{self._options.url} answered {response.status} {response.reason or ''}: {said}"
                    raise SinkError(text, retry_after_s=retry_after_s(response.headers.get("retry-after")))
        except (aiohttp.ClientError, TimeoutError, OSError) as e:
            raise SinkError(f"{self._options.url} could not be posted to: {type(e).__name__}: {e}") from e

    async def close(self) -> None:
        watching, self._watching = self._watching, None
        await end_watch(watching)
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def read_secret(options: WebhookOptions, folder: Path) -> bytes | None:
    """The signing secret.

    Raises:
        SinkError: it is not where it is said to be.
    """
    if options.secret_env is not None:
        text = os.environ.get(options.secret_env, "")
        where = f"the variable {options.secret_env}"
    elif options.secret_file is not None:
        where = str(folder / options.secret_file)
        try:
            text = Path(where).read_text().strip()
        except OSError as e:
            raise SinkError(f"secret_file: {where} cannot be read: {e.strerror}") from e
    else:
        return None
    if not text:
        raise SinkError(f"the signing secret is empty in {where}")
    if text.startswith("whsec_"):
        try:
            return base64.b64decode(text.removeprefix("whsec_"), validate=True)
        except ValueError as e:
            raise SinkError(f"what follows whsec_ in {where} is not base64") from e
    return text.encode()


def signature(secret: bytes, ident: str, stamp: str, body: bytes) -> str:
    """The value of `webhook-signature` (Standard Webhooks, symmetric scheme v1)."""
    signed = hmac.new(secret, f"{ident}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(signed).decode()


def retry_after_s(value: str | None) -> float | None:
    """The seconds that a reply asks to wait; a date, or nonsense, is None."""
    return float(value) if value is not None and value.isdecimal() else None


def cloud_event(one: Shaped, kernel_id: str) -> dict[str, Any]:
    """An event in CloudEvents' envelope, version 1.0."""
    return {
        "specversion": "1.0",
        "id": one.id,
        "source": f"anybatch/{kernel_id}",
        "type": one.type,
        "time": one.time,
        **({} if one.subject is None else {"subject": one.subject}),
        "datacontenttype": "application/json",
        "data": one.record,
    }
