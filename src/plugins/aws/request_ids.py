"""Ids of requests and of audit records: random UUIDs, made without a system call each."""

from __future__ import annotations

import os
import random
from typing import Final

from anybatch.kernel.identifiers import uuid_text

_RANDOM: Final = random.Random()
os.register_at_fork(after_in_child=_RANDOM.seed)


def request_id() -> str:
    """A UUID of version 4."""
    return uuid_text(_RANDOM.getrandbits(128))
