"""Files that are read again when they change, while the server runs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final, Protocol

import structlog
from anybatch import InvalidValue

RELOAD_S: Final = 1.0
"""How often files are looked at: a key that is taken out of the file of credentials is good for that long."""

log = structlog.stdlib.get_logger("anybatch.aws")

Stamp = tuple[int, ...]
"""What tells a file from another one, or from itself after a change."""


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file as it is now."""
    return stamp(path.stat())


def stamp(status: os.stat_result) -> Stamp:
    """The stamp of a file of which this is known."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode


class Reloadable(Protocol):
    """What is read from files."""

    @property
    def source(self) -> str:
        """Where it is from, in words."""

    def is_stale(self) -> bool:
        """Whether the files have changed since they were read."""

    def reload(self) -> None:
        """Read them again; raises InvalidValue or OSError, and changes nothing, if they are not as they should be."""


async def keep_fresh(name: str, what: Reloadable) -> None:
    """Read it again each time that it changes, until cancelled. Mistakes are told, once each, and change nothing."""
    told: str | None = None
    while True:
        await asyncio.sleep(RELOAD_S)
        if not what.is_stale():
            continue
        try:
            what.reload()
            log.info(f"{name}_read_again", source=what.source)
            told = None
        except (InvalidValue, OSError) as e:
            if str(e) != told:
                log.error(f"{name}_not_read_again", source=what.source, error=str(e), kept="what was read before holds")
            told = str(e)
