"""The Kernel's methods about the audit stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from . import arguments as args
from .audit import Audit, AuditCall, AuditRecord
from .calls import Calls


class AuditCalls(Calls):
    """A base of Kernel: recording and reading what was asked for through front ends."""

    _audit: Audit

    async def record_call(
        self,
        operation: str,
        *,
        front_end: str,
        principal: str,
        request_id: str,
        read_only: bool = False,
        error_code: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Take down a call that a front end has answered, or is about to; code that embeds the kernel need not.

        `error_code` None: it succeeded. `detail` is the front end's own account of it, as values for JSON. What is not
        `read_only` is written when this returns; reads are written within a fifth of a second.

        Raises:
            JournalError: the records cannot be written.
        """
        runtime = self._open
        call = AuditCall(
            at_ms=runtime.clock.now_ms(),
            front_end=args.text("front_end", front_end),
            principal=args.text("principal", principal),
            operation=args.text("operation", operation),
            request_id=args.text("request_id", request_id),
            read_only=args.flag("read_only", read_only),
            error_code=args.optional_text("error_code", error_code),
            detail=args.json_object("detail", detail),
        )
        await self._audit.record(call)

    async def audit(
        self, *, after: int = 0, principal: str | None = None, operation: str | None = None
    ) -> AsyncIterator[AuditRecord]:
        """The calls recorded after this id, oldest first, up to the newest; of one principal or operation only.

        Raises:
            JournalError: the records cannot be read.
        """
        self._open.check_open()
        after, principal = args.whole("after", after), args.optional_text("principal", principal)
        operation = args.optional_text("operation", operation)
        async for record in self._audit.read(after, principal, operation):
            yield record
