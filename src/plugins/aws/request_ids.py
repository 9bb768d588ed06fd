"""Ids of requests and of audit records: random UUIDs, made without a system call each."""

from __future__ import annotations

import os
import random
from typing import Final

_RANDOM: Final = random.Random()
os.register_at_fork(after_in_child=_RANDOM.seed)
_VERSION_4: Final = 0x4000_8000_0000_0000_0000
_OTHERS: Final = ~0xF000_C000_0000_0000_0000


def request_id() -> str:
    """A UUID of version 4."""
    digits = f"{_RANDOM.getrandbits(128) & _OTHERS | _VERSION_4:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
