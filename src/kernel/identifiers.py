"""Ids from outside the core: where randomness comes in."""

from __future__ import annotations

import secrets
import uuid
from typing import Protocol


class IdSource(Protocol):
    """Makes ids; tests pass one that repeats itself."""

    def kernel_id(self) -> str:
        """A new journal's kernel id: 12 hexadecimal digits."""

    def job_id(self) -> str:
        """A job's id: a UUID."""


class RandomIds:
    """Ids that nobody else has."""

    def kernel_id(self) -> str:
        return secrets.token_hex(6)

    def job_id(self) -> str:
        return str(uuid.uuid4())
