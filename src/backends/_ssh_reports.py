"""What a host's agent reports, on its way to the kernel: held back until files are fetched, and looked at for the
host's own trouble.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from ..kernel.backend import BackendContext
from ..kernel.core.model import TEXT_NOT_STARTED

if TYPE_CHECKING:
    from ._ssh_host import SshHost

HOST_TROUBLE: Final = tuple(
    os.strerror(number)
    for number in (
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN,
    )
)  # fmt: skip
"""Reasons for which an attempt cannot start that are the host's, not the attempt's."""


class HostReports:
    """A `BackendContext` for one host's agent client."""

    def __init__(self, host: SshHost, context: BackendContext) -> None:
        self._host = host
        self.context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)  # what is not looked at here

    def started(self, job_id: str, number: int, indexes: Sequence[int], at_ms: Sequence[int] | None = None) -> None:
        self._host.note_start()
        self.context.started(job_id, number, indexes, at_ms)

    def exited(
        self,
        job_id: str,
        number: int,
        indexes: Sequence[int],
        codes: Sequence[int | None],
        at_ms: Sequence[int] | None = None,
        *,
        reason: str | None = None,
        status_reason: str | None = None,
        started_ms: Sequence[int] | None = None,
    ) -> None:
        if status_reason == TEXT_NOT_STARTED:
            if reason is not None and any(trouble in reason for trouble in HOST_TROUBLE):
                self._host.note_failure(reason, len(indexes))
        else:
            self._host.note_start()

        def tell(failed: str | None = None) -> None:
            told = codes if failed is None else [None if code == 0 else code for code in codes]
            self.context.exited(
                job_id, number, indexes, told, at_ms, reason=failed or reason, status_reason=status_reason,
                started_ms=started_ms,
            )  # fmt: skip

        self._host.files.after(job_id, tell)

    def timed_out(
        self,
        job_id: str,
        number: int,
        indexes: Sequence[int],
        codes: Sequence[int | None],
        at_ms: Sequence[int] | None = None,
    ) -> None:
        def tell(failed: str | None = None) -> None:
            self.context.timed_out(job_id, number, indexes, codes, at_ms)

        self._host.files.after(job_id, tell)

    def failed(self, reason: str) -> None:
        self._host.quarantine(reason)

    def when_durable(self, callback: Callable[[], None]) -> None:
        """As soon as what is held back has been reported, too."""
        self._host.files.when_told(lambda: self.context.when_durable(callback))
