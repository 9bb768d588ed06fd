"""Ids from outside the core: where randomness comes in."""

from __future__ import annotations

import os
import secrets
from typing import Final, Protocol

_VERSION_4: Final = 0x4000_8000_0000_0000_0000
_OTHERS: Final = ~0xF000_C000_0000_0000_0000
"""The bits of a UUID that do not say of which version and variant it is."""
UUID_BYTES: Final = 16
POOL_BYTES: Final = 4096
"""Fetched from the system at a time: a system call lets other threads have the interpreter, and waits for it again."""


def uuid_text(random_bits: int) -> str:
    """A UUID of version 4, from 128 random bits."""
    digits = f"{random_bits & _OTHERS | _VERSION_4:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class IdSource(Protocol):
    """Makes ids; tests pass one that repeats itself."""

    def kernel_id(self) -> str:
        """A new journal's kernel id: 12 hexadecimal digits."""

    def job_id(self) -> str:
        """A job's id: a UUID."""


class RandomIds:
    """Ids that nobody else has. For one thread of one process, as a kernel is."""

    def __init__(self) -> None:
        self._random = bytearray()

    def kernel_id(self) -> str:
        return secrets.token_hex(6)

    def job_id(self) -> str:
        if not self._random:
            self._random += os.urandom(POOL_BYTES)
        value = int.from_bytes(self._random[-UUID_BYTES:])
        del self._random[-UUID_BYTES:]
        return uuid_text(value)
