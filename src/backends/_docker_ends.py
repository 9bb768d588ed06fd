"""How an attempt ends: its log is kept, its end reported, and, once that is on disk, its container removed."""

from __future__ import annotations

import asyncio
from typing import Final

from ..kernel.backend import AttemptKey, BackendContext, log_path
from ..kernel.logs import Log
from ._docker_attempt import Attempt, Marks, Step
from ._docker_engine import Engine, EngineError, EngineGone, short
from ._docker_logs import keep, note
from ._docker_pool import Pool
from ._docker_spec import Owner, epoch_ms
from ._docker_watch import Watch

log = Log("anybatch.docker")

REASON_CHARS_MAX: Final = 255
OUT_OF_MEMORY: Final = "OutOfMemoryError: Container killed due to memory usage"
REMOVED: Final = "its container was removed from the engine by someone else"
UNANSWERED: Final = "the engine is there, and does not answer about its container"
LOG_TRIES_MAX: Final = 5
"""Of keeping the log of an attempt that has ended, on an engine that is there but does not answer."""
SIGNAL: Final = 128
"""Exit codes above this are 128 and a signal's number."""


class Ends:
    """A base of EngineHost: what becomes of attempts that have ended."""

    engine: Engine
    context: BackendContext
    owner: Owner
    watch: Watch
    log_bytes_max: int
    attempts: dict[AttemptKey, Attempt]
    over: dict[AttemptKey, Attempt]
    _all_durable: asyncio.Event
    """Set while none of those that are over waits for its end to be on disk."""
    _marks: Marks
    _finishers: Pool
    _removers: Pool
    _going: set[str]
    """Containers that are being removed."""

    def _leave(self, attempt: Attempt) -> None:
        attempt.step = Step.OVER
        if attempt.killer is not None:
            attempt.killer.cancel()
        if self.attempts.get(attempt.key) is attempt:
            del self.attempts[attempt.key]

    def _end(self, attempt: Attempt, code: int | None) -> None:
        attempt.step, attempt.code, attempt.tries = Step.ENDING, code, 0
        self._finishers.put(attempt)

    async def _finish(self, attempt: Attempt) -> None:
        """Keep its log, then report its end."""
        if not attempt.is_at(Step.ENDING):  # given up meanwhile
            return
        try:
            gone = await self._ask(attempt)
            if _is_by_signal(attempt):
                await self.engine.probe()
            kept = await self._keep_log(attempt)
        except EngineGone as e:
            attempt.tries += await self.watch.answers_after(e)
            if attempt.tries < LOG_TRIES_MAX:
                self._finishers.put(attempt)
                return
            gone, kept = False, f"its log could not be kept: {short(e)}"
        if not attempt.is_at(Step.ENDING):
            return
        key = attempt.key
        self._leave(attempt)
        if gone and attempt.code != 0:
            self.context.lost(key.job_id, key.number, [key.index], reason=REMOVED)
        elif attempt.code is None:
            self.context.lost(key.job_id, key.number, [key.index], reason=UNANSWERED)
        else:
            self._report(attempt, kept)
        self.over[key] = attempt
        self._all_durable.clear()
        self.context.when_durable(lambda: self._acknowledged(attempt))

    async def _ask(self, attempt: Attempt) -> bool:
        """Have its exit code, and what it died of; whether its container is gone."""
        if attempt.code == 0:
            return False
        try:
            found = await self.engine.inspect(attempt.container)
        except EngineError as e:
            if e.status != 404:
                log.warning("docker_inspect_failed", attempt=str(attempt.key), error=str(e))
            return True
        state = found.get("State") or {}
        if state.get("Status") == "removing":
            return True
        attempt.code = int(state.get("ExitCode", 0)) & 255 if attempt.code is None else attempt.code
        attempt.oom = attempt.oom or bool(state.get("OOMKilled"))
        attempt.started_ms = attempt.started_ms or self.watch.to_ours(epoch_ms(str(state.get("StartedAt", ""))))
        attempt.ended_ms = attempt.ended_ms or self.watch.to_ours(epoch_ms(str(state.get("FinishedAt", ""))))
        return False

    async def _keep_log(self, attempt: Attempt) -> str | None:
        """Keep its log; what was wrong with that, if anything was."""
        if not self.context.is_kept(attempt.key.job_id):  # the job is forgotten, and its logs with it
            return None
        path = log_path(self.context.logs_dir, attempt.key)
        try:
            await keep(self.engine.logs(attempt.container, follow=False), path, self.log_bytes_max)
        except EngineError as e:
            if e.status == 404:
                return REMOVED
            await note(path, f"[anybatch: the engine does not give this log: {short(e.message)}]\n")
        except OSError as e:
            return f"its log could not be kept: {short(e)}"
        return None

    def _report(self, attempt: Attempt, kept: str | None) -> None:
        if _is_by_signal(attempt) and self.watch.was_away(attempt.ended_ms):
            why = f"the engine at {self.engine.place.url} was restarted while it ran (exit code {attempt.code})"
            self.context.lost(attempt.key.job_id, attempt.key.number, [attempt.key.index], reason=why)
            return
        key, now = attempt.key, self.context.clock.now_ms()
        ended = min(attempt.ended_ms or now, now)
        started = min(attempt.started_ms or ended, ended)
        reason: str | None = None
        if attempt.code and attempt.oom:
            reason = OUT_OF_MEMORY
        elif kept is not None:
            reason = kept[:REASON_CHARS_MAX]
        self.context.exited(
            key.job_id, key.number, [key.index], [attempt.code], [ended], reason=reason, started_ms=[started]
        )

    def _acknowledged(self, attempt: Attempt) -> None:
        """Its end is on disk: its container may go."""
        if self.over.pop(attempt.key, None) is not None:
            self._marks.drop(self.owner.name(attempt.key))
            self._clear_away(attempt)
        if not self.over:
            self._all_durable.set()

    def _clear_away(self, attempt: Attempt) -> None:
        """Have its container removed, if it has one."""
        if attempt.container and attempt.container not in self._going:
            self._going.add(attempt.container)
            self._removers.put(attempt)

    async def _remove(self, attempt: Attempt) -> None:
        try:
            await self.engine.remove(attempt.container, attempt.volumes)
        except EngineGone as e:  # found again by the next list
            self.watch.doubt(e)
        except EngineError as e:
            log.warning("docker_remove_failed", attempt=str(attempt.key), error=str(e))
        finally:
            self._going.discard(attempt.container)


def _is_by_signal(attempt: Attempt) -> bool:
    """Whether a signal ended it that we have not sent: somebody else's, or that of an engine that is being stopped."""
    return attempt.code is not None and attempt.code > SIGNAL and not attempt.stopped and not attempt.oom
