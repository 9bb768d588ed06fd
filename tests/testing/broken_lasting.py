"""Backends that each break one rule of new settings, closing, and reattachment."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import msgspec
from anybatch.backends.inline import InlineBackend
from anybatch.kernel.backend import (
    API_VERSION,
    AttemptKey,
    BackendContext,
    Capabilities,
    Capacity,
    Launch,
    log_path,
)
from testing.broken import SOON, Through, Wrapped, WrappedProcesses, breaks

LEFT_ALONE: list[asyncio.subprocess.Process] = []
"""Processes that nobody waits for any more, on purpose: kept, as Python complains of such that it collects."""

# -- new settings -------------------------------------------------------------------------------------


@breaks("new_settings_are_reported")
class KeepsItsSize(Wrapped):
    size: Any = None

    class through(Through):
        def host_up(self, host: str, capacity: Capacity, *rest: Any) -> None:
            self.by.size = self.by.size or capacity
            self.to.host_up(host, self.by.size, *rest)


@breaks("new_settings_keep_attempts_running")
class StartsAfresh(Wrapped):
    async def start(self, context: BackendContext, known: Sequence[Launch]) -> None:
        await self.inner.close()
        self.inner = self.make()
        await super().start(context, known)


@breaks("new_settings_replace_the_context", time_scale=SOON)
class Clings(Wrapped):
    """It reports hosts to the new context, and goes on with the old one."""

    async def start(self, context: BackendContext, known: Sequence[Launch]) -> None:
        if self.context is None:
            await super().start(context, known)
        else:
            context.host_up("inline", Capacity(vcpus_milli=context.settings.max_vcpus_milli))


# -- closing ------------------------------------------------------------------------------------------


@breaks("nothing_is_reported_after_close")
class LastWords(Wrapped):
    async def close(self) -> None:
        for key in self.launched:
            report = partial(self.context.exited, key.job_id, key.number, [key.index], [143])
            asyncio.get_running_loop().call_later(0.05, report)
        await super().close()


@breaks("closing_ends_what_nobody_comes_back_to", time_scale=SOON)
@breaks("what_is_lost_has_ended", time_scale=SOON)
class WalksAway(Wrapped):
    async def close(self) -> None:
        pass


@breaks("closing_leaves_nothing_behind", time_scale=SOON)
class LeavesATask(Wrapped):
    async def close(self) -> None:
        await super().close()
        self.task = asyncio.create_task(asyncio.sleep(60))


@breaks("closing_leaves_nothing_behind", time_scale=SOON)
class LeavesAThread(Wrapped):
    async def close(self) -> None:
        await super().close()
        threading.Thread(target=threading.Event().wait, args=(10,), daemon=True).start()


@breaks("closing_leaves_nothing_behind", time_scale=SOON)
class LeavesAFile(Wrapped):
    async def close(self) -> None:
        await super().close()
        os.open("/dev/null", os.O_RDONLY)


@breaks("closing_needs_no_start")
class NeedsItsContext(Wrapped):
    async def close(self) -> None:
        await super().close()
        assert self.context.durable is not None


# -- found again --------------------------------------------------------------------------------------


@breaks("start_settles_every_known_attempt", time_scale=SOON)
@breaks("what_was_never_launched_is_settled", time_scale=SOON)
class ForgetsTheKnown(Wrapped):
    async def start(self, context: BackendContext, known: Sequence[Launch]) -> None:
        await super().start(context, [])


@breaks("known_attempts_are_reported_lost")
class MakesUpCodes(Wrapped):
    class through(Through):
        def lost(self, job_id: str, number: int, indexes: Any, *, reason: str) -> None:
            self.to.exited(job_id, number, indexes, [1] * len(indexes), reason=reason)


@breaks("known_attempts_are_reported_lost")
class RunsAgain(Wrapped):
    """It runs what ended with its process once more."""

    async def start(self, context: BackendContext, known: Sequence[Launch]) -> None:
        await super().start(context, [])
        await self.launch(known)


@breaks("attempts_outlive_close")
class EndsAllOnClose(WrappedProcesses):
    async def close(self) -> None:
        await self.inner.stop([*self.launched], 0)
        await super().close()


@breaks("ends_after_close_are_reported")
class GuessesCodes(WrappedProcesses):
    class through(Through):
        def exited(self, job_id: str, number: int, indexes: Any, codes: Any, *rest: Any, **more: Any) -> None:
            if AttemptKey(job_id, indexes[0], number) not in self.by.launched:
                codes = [0] * len(indexes)
            self.to.exited(job_id, number, indexes, codes, *rest, **more)


@breaks("ends_are_kept_until_durable")
class AcknowledgesAtOnce(WrappedProcesses):
    class through(Through):
        def when_durable(self, callback: Callable[[], None]) -> None:
            callback()


@breaks("strangers_that_are_adopted_are_reported", time_scale=SOON)
class FindsAndForgets(WrappedProcesses):
    """It reports on what it has launched, and not on what it has found."""

    class through(Through):
        def exited(self, job_id: str, number: int, indexes: Any, *rest: Any, **more: Any) -> None:
            if AttemptKey(job_id, indexes[0], number) in self.by.launched:
                self.to.exited(job_id, number, indexes, *rest, **more)


@breaks("logs_outlive_the_backend")
class ShowsItsOwnLogs(WrappedProcesses):
    async def logs(self, attempt: AttemptKey, *, follow: bool) -> AsyncIterator[bytes]:
        async for piece in self.inner.logs(attempt, follow=follow):
            if attempt in self.launched:
                yield piece


@breaks("stopping_ends_the_whole_tree", time_scale=0.3)
@breaks("attempts_outlive_a_killed_kernel")
@breaks("ends_after_a_kill_are_reported")
@breaks("strangers_are_found_and_can_be_stopped")
class SignalsOne:
    """Runs programs, signals only the one it has started, and has no memory, although it says so."""

    api_version: ClassVar[int] = API_VERSION
    capabilities: ClassVar[Capabilities] = Capabilities(reattach=True)
    Options: ClassVar[type[msgspec.Struct]] = InlineBackend.Options

    def __init__(self) -> None:
        self.running: dict[AttemptKey, asyncio.Task[None]] = {}
        self.pids: dict[AttemptKey, int] = {}

    async def start(self, context: BackendContext, known: Sequence[Launch]) -> None:
        self.context = context
        context.host_up("here", Capacity(vcpus_milli=context.settings.max_vcpus_milli))
        for launch in known:
            context.lost(launch.job_id, launch.number, launch.indexes, reason="never heard of it")

    async def launch(self, launches: Sequence[Launch]) -> None:
        for launch in launches:
            for key in launch.attempts():
                self.running[key] = asyncio.create_task(self._run(launch, key))

    async def _run(self, launch: Launch, key: AttemptKey) -> None:
        log = log_path(self.context.logs_dir, key)
        log.parent.mkdir(parents=True, exist_ok=True)
        variables: Mapping[str, str] = {
            **launch.spec.environment,
            **launch.variables(key.index),
            "PATH": "/usr/bin:/bin",
        }
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(*launch.spec.command, env=variables, stdout=out, stderr=out)
        LEFT_ALONE.append(process)
        self.pids[key] = process.pid
        self.context.started(key.job_id, key.number, [key.index])
        code = await process.wait()
        del self.pids[key]
        self.context.exited(key.job_id, key.number, [key.index], [128 - code if code < 0 else code])

    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        for key in attempts:
            if key in self.pids:
                os.kill(self.pids[key], signal.SIGTERM)

    async def logs(self, attempt: AttemptKey, *, follow: bool) -> AsyncIterator[bytes]:
        yield log_path(self.context.logs_dir, attempt).read_bytes()

    async def close(self) -> None:
        for task in self.running.values():
            task.cancel()
        if self.running:
            await asyncio.wait(self.running.values())
