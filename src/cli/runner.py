"""One run from the opened journal to the last report: submits, waits, shows, and ends in order when it is told to."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import anybatch
from anybatch.backends.process import ProcessBackend
from anybatch.kernel.core.model import TEXT_NOT_NEEDED
from rich.console import Console

from .journals import EngineFailure, keep
from .plan import Plan, children_of, depends_on
from .progress import Progress, Row, make_progress
from .summary import Gathered, RunReport, gather, job_report, why

SUCCEEDED, JOB_FAILED, BAD_USE, ENGINE_FAILED = 0, 1, 2, 3
TICK_S: Final = 0.2
"""Between two looks at the jobs."""
STOP_TICK_S: Final = 0.01
"""The same while the run is being stopped, to tell how it was left."""
HEALTH_EVERY_S: Final = 1.0
"""Between two looks at the compute environment."""
NAMED_MAX: Final = 5
"""Failed children of a job that are named while it runs."""
AGENT_IDLE_MS: Final = 2_000
"""For the agent to end once nobody needs it."""


HELP_DOCKER: Final = """
Is Docker running, and may this user use it? DOCKER_HOST names another engine (unix:///path or tcp://host:port).
With --ignore-image the commands run as local processes, without their images."""


class Run:
    """One call of `anybatch run`, from the opened journal to the last report."""

    def __init__(
        self, plan: Plan, journal: Path, *, resumes: bool, errors: Console, options: argparse.Namespace
    ) -> None:
        self._plan = plan
        self._journal = journal
        self._logs = journal.with_name(journal.name + ".d") / "logs"
        self._resumes = resumes
        self._errors = errors
        self._options = options
        self._began = time.monotonic()
        self._signal: signal.Signals | None = None
        self._signals = 0
        self._stopping = asyncio.Event()
        self._error: str | None = None
        self._rows = {job.name: Row(job.name, children_of(job)) for job in plan.config.jobs}
        self._handles: dict[str, anybatch.JobHandle] = {}
        self._gathered: dict[str, Gathered] = {}
        self._named: dict[str, set[int]] = {}
        self._body: asyncio.Task[None] | None = None
        self._progress: Progress | None = None

    async def main(self) -> int:
        """Run to the end, and return the exit status."""
        self._say(f"{'going on with' if self._resumes else 'journal:'} {self._journal}")
        if not self._resumes:
            try:
                keep(self._plan, self._journal)
            except EngineFailure as e:
                self._error = str(e)
                return ENGINE_FAILED
        stays = self._options.json or not sys.stdout.isatty()  # else the summary takes its place
        self._progress = make_progress(self._plan.config.name, self._errors, keep=stays)
        self._body = asyncio.create_task(self._run(), name="anybatch-run")
        with self._signals_handled():
            try:
                await self._body
            except asyncio.CancelledError:
                if self._signal is None:
                    raise
            except EngineFailure as e:
                self._error = str(e)
            except anybatch.AnyBatchError as e:
                self._error = f"{type(e).__name__}: {e}"
            except Exception as e:
                self._errors.print("".join(traceback.format_exception(e)), soft_wrap=True)
                self._error = f"{type(e).__name__}: {e}"
            finally:
                self._progress.close()
        return self._status()

    def _status(self) -> int:
        statuses = [row.status for row in self._rows.values()]
        ended = all(status in ("succeeded", "failed") for status in statuses) and len(self._handles) == len(statuses)
        if self._error is not None:
            return ENGINE_FAILED
        if not ended and self._signal is not None:
            return 128 + self._signal
        return JOB_FAILED if any(map(self._has_failed, self._rows.values())) else SUCCEEDED

    def _has_failed(self, row: Row) -> bool:
        """Whether a job counts as failed: one that was to run after a failure only, and is not needed, does not."""
        if row.status != "failed":
            return False
        found = self._gathered.get(row.name, Gathered())
        reasons = {failure.status_reason for failure in found.failures}
        return bool(found.other_failures) or reasons != {TEXT_NOT_NEEDED}

    async def _run(self) -> None:
        folder, environment = self._plan.folder, self._environment()
        backends = {
            "process": lambda: ProcessBackend(base_environment=environment, workdir=folder, agent_idle_ms=AGENT_IDLE_MS)
        }
        ticker: asyncio.Task[None] | None = None
        try:
            async with self._opened(backends) as kernel:
                try:
                    await kernel.apply(self._plan.config)
                except anybatch.RequestError:  # such as a queue's, over environments of which none works
                    await self._check_health(kernel)
                    raise
                await self._check_health(kernel)
                try:
                    await self._submit(kernel)
                    ticker = asyncio.create_task(self._tick(kernel), name="anybatch-run-progress")
                    await self._wait(ticker)
                finally:
                    with contextlib.suppress(anybatch.KernelClosed):
                        await self._look(kernel)
                        for handle in self._handles.values():
                            self._gathered[handle.name] = await gather(kernel, handle, self._logs)
                    self._show()
        finally:
            if ticker is not None:
                ticker.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await ticker

    @contextlib.asynccontextmanager
    async def _opened(self, backends: dict[str, Any]) -> AsyncIterator[anybatch.Kernel]:
        """The kernel, with a control socket; where there can be none, the run goes on without."""
        arguments = {**self._plan.config.kernel_arguments(), "backends": backends, "on_close": "stop"}
        async with contextlib.AsyncExitStack() as stack:
            try:
                kernel = await stack.enter_async_context(anybatch.Kernel(self._journal, control=True, **arguments))
            except anybatch.ControlError as e:
                self._say(f"this run cannot be looked at while it goes on: {e}")
                kernel = await stack.enter_async_context(anybatch.Kernel(self._journal, **arguments))
            yield kernel

    def _environment(self) -> dict[str, str]:
        """The caller's variables, without those of a batch job that this may run in, and what is no text."""
        found, left_out = {}, []
        for name, value in os.environ.items():
            try:
                f"{name}{value}".encode()
            except UnicodeEncodeError:
                left_out.append(name.encode(errors="replace").decode())
                continue
            if not name.startswith("AWS_BATCH_"):
                found[name] = value
        if left_out:
            self._say(f"left out of the environment, because they are no UTF-8: {', '.join(left_out)}")
        return found

    async def _check_health(self, kernel: anybatch.Kernel) -> None:
        """Give up once a job has no environment left in its queue that works and runs what it is."""
        config = self._plan.config
        details = {one.name: one for one in await kernel.describe_compute_environments()}
        for job in config.jobs:
            row = self._rows.get(job.name)
            if row is not None and row.status in ("succeeded", "failed"):
                continue
            queue = config.queue_of(job) or ""
            names = [one for one in config.queues[queue]["compute_environments"] if config.takes(one, job)]
            found = [details[name] for name in names if name in details]
            if found and all(one.status is anybatch.ResourceStatus.INVALID for one in found):
                why = "; ".join(f"{one.name}: {one.status_reason}" for one in found)
                help_ = HELP_DOCKER if any(one.backend == "docker" for one in found) else ""
                raise EngineFailure(
                    f"no environment of queue {queue!r} that could run {job.name!r} works: {why}{help_}"
                )

    async def _submit(self, kernel: anybatch.Kernel) -> None:
        """Everything, in an order in which each job finds those that it waits for. A known token changes nothing."""
        config = self._plan.config
        for job in config.ordered():
            self._handles[job.name] = await kernel.submit_job(
                job.name,
                queue=config.queue_of(job) or "",
                definition=job.definition,
                depends_on=depends_on(job, self._handles),
                client_token=self._plan.token(job),
                **job.arguments,
            )

    async def _wait(self, ticker: asyncio.Task[None]) -> None:
        ended = asyncio.gather(*(handle.wait() for handle in self._handles.values()))
        try:
            both: set[asyncio.Future[Any]] = {ended, ticker}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if ticker.done():
                ticker.result()
            if ended.done():
                ended.result()
        finally:
            ended.cancel()
            with contextlib.suppress(asyncio.CancelledError, anybatch.KernelClosed):
                await ended

    # -- progress ---------------------------------------------------------------------------------

    async def _tick(self, kernel: anybatch.Kernel) -> None:
        """Look and show until cancelled, also while the kernel closes."""
        health_at, is_open = 0.0, True
        while True:
            if is_open:
                try:
                    await self._look(kernel)
                    if time.monotonic() >= health_at and self._signal is None:
                        health_at = time.monotonic() + HEALTH_EVERY_S
                        await self._check_health(kernel)
                except anybatch.KernelClosed:
                    is_open = False
            self._show()
            if self._signal is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), TICK_S)
            else:
                await asyncio.sleep(STOP_TICK_S)

    async def _look(self, kernel: anybatch.Kernel) -> None:
        """See how the jobs stand that have not been seen to end."""
        rows = [row for row in self._rows.values() if row.detail is None or not row.detail.status.is_terminal]
        rows = [row for row in rows if row.name in self._handles]
        details = await kernel.describe_jobs([self._handles[row.name] for row in rows])
        now = time.monotonic()
        for row, detail in zip(rows, details, strict=True):
            row.see(detail, now)
            if row.counts["failed"] > len(self._named.get(row.name, ())):
                await self._name_failures(kernel, row)

    async def _name_failures(self, kernel: anybatch.Kernel, row: Row) -> None:
        """Say which have failed, the first few of each job: a look at every child, but no more often than that."""
        named = self._named.setdefault(row.name, set())
        if row.size is None and row.detail is not None:
            named.add(0)
            row.why = why(row.detail.exit_code, row.detail.status_reason, row.detail.reason)
        elif len(named) < NAMED_MAX:
            async for child in kernel.list_jobs(parent=self._handles[row.name], status="FAILED"):
                if child.index is not None and child.index not in named and len(named) < NAMED_MAX:
                    named.add(child.index)
                    reasons = why(child.exit_code, child.status_reason, None)
                    self._say(f"{row.name}: child {child.index} failed: {reasons}")

    def _show(self) -> None:
        if self._progress is not None:
            self._progress.show(list(self._rows.values()))

    def _say(self, text: str) -> None:
        if self._progress is not None:
            self._progress.note(text)
        else:
            self._errors.print(text, soft_wrap=True)

    # -- signals ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals_handled(self) -> Any:
        """Ctrl-C and SIGTERM end the run; a signal that the caller had us ignore stays ignored."""
        loop = asyncio.get_running_loop()
        mine = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) is not signal.SIG_IGN]
        for number in mine:
            loop.add_signal_handler(number, self._signalled, number)
        try:
            yield
        finally:
            for number in mine:
                loop.remove_signal_handler(number)

    def _signalled(self, number: signal.Signals) -> None:
        self._signals += 1
        if self._signals == 1 and self._body is not None:
            self._signal = number
            self._stopping.set()
            self._body.cancel()
            text = "stopping: running attempts have up to 30 s to end after SIGTERM; what has finished is kept"
        elif self._signals == 2:
            text = "still stopping; once more leaves at once, and what still runs is ended without anybody waiting"
        else:
            if self._progress is not None:
                self._progress.close()
            self._errors.print(f"to go on with this run: {shlex.join(self._resume())}", soft_wrap=True)
            os._exit(128 + number)
        if self._progress is not None:
            self._progress.stopping(text)
            self._show()

    # -- the end ----------------------------------------------------------------------------------

    def _resume(self) -> list[str]:
        """The command that goes on with this run."""
        program = Path(sys.argv[0]).name
        words = [sys.executable, "-m", "anybatch"] if program == "__main__.py" else ["anybatch"]
        words += ["run", "--journal", str(self._journal)]
        if self._options.max_vcpus is not None:
            words += ["-j", str(self._options.max_vcpus)]
        return words

    def report(self, status: int) -> RunReport:
        """What to tell."""
        interrupted = status > 128
        outcomes = {SUCCEEDED: "succeeded", JOB_FAILED: "failed", ENGINE_FAILED: "engine failed"}
        jobs = [
            job_report(row.detail, self._gathered.get(row.name, Gathered()), self._logs, stopped=interrupted)
            for row in self._rows.values()
            if row.detail is not None
        ]
        ended = status in (SUCCEEDED, JOB_FAILED)
        return RunReport(
            name=self._plan.config.name,
            source=self._plan.config.source,
            outcome=outcomes.get(status, "interrupted"),
            exit_status=status,
            error=self._error,
            journal=str(self._journal),
            resume=None if ended else self._resume(),
            elapsed_s=time.monotonic() - self._began,
            jobs=jobs,
        )
