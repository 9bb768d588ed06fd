"""Shapes: what clients send, with AWS's own member names.

Unknown members are dropped, null is as good as absent (contract W-6); a value of another type is refused, and the error
tells where it stands. The test of shapes compares each with botocore's model, so a newer model shows what is missing.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

Int = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""An integer of at most 64 bits, as in the journal."""


class Shape(msgspec.Struct, omit_defaults=True):
    """Root of all shapes."""

    def plain(self) -> dict[str, Any]:
        """What was given, as JSON has it."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found
