"""What all handlers share: the kernel, the settings, and what is worked out once."""

from __future__ import annotations

from typing import Final

from anybatch import Kernel, NotFound

from .blocked import Blocked
from .containers import Compiled, compile_definition
from .log_reader import LogReader
from .settings import AwsSettings

COMPILED_MAX: Final = 10_000
"""Revisions of definitions that are held ready; beyond that all are dropped and made again when needed."""


class Api:
    """What all handlers share."""

    def __init__(self, kernel: Kernel, settings: AwsSettings) -> None:
        self.kernel = kernel
        self.settings = settings
        self.logs = LogReader(kernel)
        self.blocked = Blocked(kernel)
        self._compiled: dict[str, Compiled] = {}

    async def compiled(self, reference: str) -> Compiled:
        """A definition, by `name:revision` or by name for its newest ACTIVE revision.

        Raises:
            NotFound: there is none.
        """
        if ":" in reference and reference in self._compiled:
            return self._compiled[reference]
        detail = await self.kernel.describe_job_definition(reference)
        found = self._compiled.get(detail.reference)
        if found is None:
            if len(self._compiled) >= COMPILED_MAX:
                self._compiled.clear()
            found = self._compiled[detail.reference] = compile_definition(detail)
        return found

    async def find_compiled(self, reference: str | None) -> Compiled | None:
        """The same, or None."""
        if reference is None:
            return None
        try:
            return await self.compiled(reference)
        except NotFound:
            return None
