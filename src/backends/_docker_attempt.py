"""One attempt on an engine, and the marks by which a later kernel knows which attempts may have run."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Final

from ..kernel.backend import AttemptKey, Launch

COMPACT_AT: Final = 10_000
"""Lines of the marks' file at which those of ended attempts are left out."""


class Step(Enum):
    """How far an attempt is."""

    WAITING = "waiting"
    """For its image, or for its turn."""
    BEGINNING = "beginning"
    """Its container is being created and started."""
    RUNNING = "running"
    ENDING = "ending"
    """It has ended; its log is being kept."""
    OVER = "over"
    """Its end was reported."""


class Attempt:
    """One attempt; `launch` None: found on the engine, and not launched by this kernel."""

    __slots__ = (
        "code", "container", "ended_ms", "given_up", "key", "kill_at", "killer", "launch", "oom", "started_ms", "step",
        "stopped", "told_started", "token", "tries", "volumes",
    )  # fmt: skip

    def __init__(self, key: AttemptKey, launch: Launch | None, step: Step = Step.WAITING) -> None:
        self.key = key
        self.launch = launch
        self.step = step
        self.container = ""
        self.token = ""
        """What its image is made ready by."""
        self.tries = 0
        """Of creating and starting it, and later of keeping its log, that the engine has not answered."""
        self.started_ms = 0
        self.told_started = False
        self.code: int | None = None
        self.oom = False
        self.ended_ms = 0
        self.stopped = False
        self.given_up = False
        """The engine was out of reach for too long: it was reported lost, and what there is of it goes."""
        self.kill_at: float | None = None
        """By the loop's clock, when it is to be killed."""
        self.killer: asyncio.TimerHandle | None = None
        self.volumes: tuple[str, ...] = ()

    def is_at(self, step: Step) -> bool:
        """How far it is now: what was awaited may have changed that."""
        return self.step is step


def grouped(keys: Iterable[AttemptKey]) -> dict[tuple[str, int], list[int]]:
    """Indexes by job and attempt number: as they are reported."""
    found: dict[tuple[str, int], list[int]] = {}
    for key in keys:
        found.setdefault((key.job_id, key.number), []).append(key.index)
    return found


class Marks:
    """The names of containers that were about to be started, on disk: what stands there and is gone may have run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._live: set[str] = set()
        self._lines = 0
        self._fd = -1

    def load(self) -> None:
        """Read what an earlier kernel has left."""
        try:
            self._live = set(self._path.read_text().split())
        except FileNotFoundError:
            self._live = set()
        self._compact()

    def __contains__(self, name: str) -> bool:
        return name in self._live

    def add(self, name: str) -> None:
        """This one is about to be started. A killed process loses no mark."""
        if name not in self._live:
            self._live.add(name)
            os.write(self._fd, f"{name}\n".encode())
            self._lines += 1

    def drop(self, name: str) -> None:
        """Nobody will ask about this one again."""
        self.drop_all([name])

    def drop_all(self, names: Iterable[str]) -> None:
        """Nobody will ask about these again."""
        self._live.difference_update(names)
        if self._fd >= 0 and self._lines > COMPACT_AT and self._lines > 4 * len(self._live):
            self._compact()

    def _compact(self) -> None:
        self.close()
        beside = self._path.with_name(f"{self._path.name}.new")
        beside.write_text("".join(f"{name}\n" for name in sorted(self._live)))
        os.replace(beside, self._path)
        self._lines = len(self._live)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
