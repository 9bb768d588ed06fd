"""Where the commands write: for people at a terminal, in colour; else plain, and never in the way of the work."""

from __future__ import annotations

import os
import re
from typing import Final

from rich.console import Console

_STEERING: Final = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def plain(text: str) -> str:
    """Somebody else's text without what could steer a terminal."""
    return _STEERING.sub("", text)


class Out(Console):
    """A console that shows text as it is, and falls silent when nobody reads it any more."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """The reader has gone; what the command does is not for its reader alone."""
        self.quiet = True
        silence(2 if self.stderr else 1)


def silence(descriptor: int) -> None:
    """Throw away what is written from here on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
