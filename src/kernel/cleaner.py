"""Removing what is kept on disk of forgotten jobs: their logs, and the folders that backends made for them.

`<journal>.d/logs/<job id>` and `<journal>.d/environments/<environment>/jobs/<job id>`. Removal happens in a thread, one
job after the other; what a killed kernel left is found by a sweep when the journal is next opened.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

import anyio.to_thread

from .logs import Log

log = Log("anybatch.kernel")

BATCH: Final = 100
"""Folders removed, or looked at, in one visit to the thread."""


class Cleaner:
    """Removes the folders of forgotten jobs, in the background."""

    def __init__(self, files: Path, known: Collection[str]) -> None:
        self._files = files
        self._known = known
        self._todo: list[str] = []
        self._wake = asyncio.Event()
        self._done = False

    def forget(self, job_ids: Collection[str]) -> None:
        """These jobs are gone."""
        self._todo += job_ids
        self._wake.set()

    def finish(self) -> None:
        """End `run`; what is not removed yet is found by the next sweep."""
        self._done = True
        self._wake.set()

    async def run(self) -> None:
        """Sweep, then remove what is forgotten, until `finish`."""
        await self._sweep()
        while not self._done:
            batch, self._todo = self._todo[:BATCH], self._todo[BATCH:]
            if batch:
                try:
                    await anyio.to_thread.run_sync(self._remove, batch)
                except OSError as e:
                    log.warning("folders_not_removed", folder=str(self._files), jobs=len(batch), error=str(e))
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _sweep(self) -> None:
        try:
            found = await anyio.to_thread.run_sync(self._on_disk)
        except OSError as e:  # costs space until the next kernel sweeps
            log.warning("folders_not_swept", folder=str(self._files), error=str(e))
            return
        self._todo += [job_id for job_id in found if job_id not in self._known]

    def _roots(self) -> Iterator[Path]:
        yield self._files / "logs"
        environments = self._files / "environments"
        if environments.is_dir():
            for environment in environments.iterdir():
                yield environment / "jobs"

    def _on_disk(self) -> list[str]:
        found = {entry.name for root in self._roots() if root.is_dir() for entry in os.scandir(root)}
        return sorted(name for name in found if not name.startswith("."))  # a backend's own

    def _remove(self, job_ids: list[str]) -> None:
        roots = list(self._roots())
        for job_id in job_ids:
            for root in roots:
                shutil.rmtree(root / job_id, ignore_errors=True)
