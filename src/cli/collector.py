"""Python's garbage collector in a process that is the kernel's own.

What is there at the start, and every job that is kept, is looked at again and again for cycles that it never has. A
service that embeds a kernel decides about its collector itself.
"""

from __future__ import annotations

import gc
from typing import Final

YOUNG_MAX: Final = 20_000
"""Objects made and not freed before those are looked at (Python's default: 700)."""


def settle() -> None:
    """Take what is there now out of the collector's sight, and let it look less often at what comes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX, 10, 10)
