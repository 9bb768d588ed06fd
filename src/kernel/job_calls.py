"""The Kernel's methods on jobs: submit, describe, list, wait, cancel, terminate, logs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from . import arguments as args
from . import bodies
from .backend import AttemptKey
from .calls import Calls
from .core.container import ContainerSpec
from .core.errors import Conflict, InvalidValue, NotFound
from .core.explain import Code, Reason, blocked, explain, never_fits
from .core.indexes import kept
from .core.inputs import RerunJob, StopJob, SubmitJob
from .core.model import RetryStrategy
from .core.placement import queue_head
from .core.resources import get_queue
from .core.state import JobRow
from .core.states import RUNNABLE, STARTING, STATUSES, SUCCEEDED, JobStatus
from .core.submit import find_job
from .handles import JobHandle
from .logs import Log
from .trimming import ForgottenJobs
from .views import DefinitionDetail, JobDetail, JobRerun, JobSummary, job_detail, job_summary

log = Log("anybatch.kernel")

JobReference = str | JobHandle
DependsOn = Iterable["JobReference | args.After | args.NToN | args.Sequential | Mapping[str, Any]"]

Array = range | Sequence[int] | Mapping[str, int] | str
"""Indexes of an array's children: `range(10, 100, 5)`, `[3, 7, 9]`, `{"start": 10, "stop": 100}`, `"0-15:4,20"`."""

LIST_PAGE: Final = 500
"""Jobs that `list_jobs` looks at between two pauses for the event loop."""


class JobCalls(Calls):
    """The methods on jobs."""

    _forgotten: ForgottenJobs

    async def submit_job(
        self,
        name: str,
        *,
        queue: str,
        definition: str | DefinitionDetail | None = None,
        array_size: int | None = None,
        array: Array | None = None,
        depends_on: DependsOn | None = None,
        command: Sequence[str] | None = None,
        script: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
        parameters: Mapping[str, str] | None = None,
        vcpus: float | None = None,
        memory: int | str | None = None,
        gpus: int | None = None,
        retry: int | RetryStrategy | Mapping[str, Any] | None = None,
        timeout: float | None = None,
        workdir: str | None = None,
        scratch: bool | None = None,
        image: str | None = None,
        container: ContainerSpec | Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        scheduling_priority: int | None = None,
        client_token: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        max_running: int | None = None,
        max_failures: int | None = None,
        on_max_failures: str | None = None,
        role: str | None = None,
        checkpoint_exit_codes: Sequence[int] | None = None,
        max_checkpoints: int | None = None,
        job_id: str | None = None,
    ) -> JobHandle:
        """Queue a job; returns once that is on disk.

        `definition` is a name (its newest ACTIVE revision) or `name:revision`; without one, `command` or `script`
        says what to run. `array_size` makes it an array of that many children, with the indexes from 0 on; `array`
        one with these indexes (a range, a list, or a text such as "0-15:4,20"). Of its children `max_running` run at
        once, at most (None: as many as there is room for); it stops when `max_failures` of them have FAILED: with
        `on_max_failures="cancel"` what runs goes on, with "terminate" it is stopped too. `depends_on` lists jobs that
        have to have SUCCEEDED (ids, handles, or names: the one unfinished job of that name, else its newest finished
        one), `after_any(job)`, `after_failure(job)`, `n_to_n(job)` and `SEQUENTIAL`. What else is given overrides the
        definition: `environment` and `parameters` are merged by name, `container` field by field, the rest replaces.
        An attempt that ends with one of `checkpoint_exit_codes` says "checkpointed, run me again": that is done up to
        `max_checkpoints` times (None: 1000), beside the attempts of `retry`. `timeout` is in seconds per attempt,
        `memory` in MiB or a text such as "2GiB". `image` runs it in a container, in an environment whose backend
        makes them (`container` has what else AWS's containerProperties have); without a command the image's own runs.
        A `client_token` used before returns the job that it was first used for. `role` names whose credentials the
        attempts get, from who supplies them to this kernel (`anybatch.kernel.roles`). `metadata` is kept with the job
        and given back by `describe_job`; `job_id` is a UUID of yours for it. A job that nothing in its queue can ever
        fit is queued all the same, for environments change; the handle's `warnings` and the log say so at once.

        Raises:
            InvalidValue, QuotaExceeded, NotFound, Conflict: nothing was queued.
        """
        if isinstance(definition, DefinitionDetail):
            definition = definition.reference
        request = bodies.submission(
            self._ids.job_id() if job_id is None else args.job_id("job_id", job_id),
            name=name, queue=queue, definition=definition, array_size=array_size, array=array, depends_on=depends_on,
            command=command, script=script, environment=environment, parameters=parameters, vcpus=vcpus, memory=memory,
            gpus=gpus, retry=retry, timeout=timeout, workdir=workdir, scratch=scratch, image=image,
            container=container, tags=tags, scheduling_priority=scheduling_priority, client_token=client_token,
            metadata=metadata, max_running=max_running, max_failures=max_failures, on_max_failures=on_max_failures,
            role=role, checkpoint_exit_codes=checkpoint_exit_codes, max_checkpoints=max_checkpoints,
        )  # fmt: skip
        serial = await self._open.request(request)
        job = self._live.state.jobs.get(serial)
        if job is None:  # its queue keeps what has ended for so short that it has been forgotten meanwhile
            return await self._forgotten_handle(serial, request)
        handle = self._handle(job)
        misfit = never_fits(self._live.state, job)
        if misfit is not None:
            handle.warnings = (misfit,)
            log.warning("job_never_fits", job=job.job_id, name=job.name, why=misfit)
        return handle

    async def _forgotten_handle(self, serial: int, request: SubmitJob) -> JobHandle:
        """Of the job that this request, or an earlier one with its client token, has made."""
        gone = await self._forgotten.find(serial)
        if gone is None:
            return JobHandle(self, request.job_id, request.name, request.size, request.indexes)
        return JobHandle(self, gone.job_id, gone.name, gone.size, kept(gone.indexes))

    def _handle(self, job: JobRow, index: int | None = None) -> JobHandle:
        if index is None:
            return JobHandle(self, job.job_id, job.name, job.size, job.indexes)
        return JobHandle(self, job.child_id(index), job.name, None)

    async def job(self, job: JobReference) -> JobHandle:
        """The handle of a job or child."""
        row, index = self._find(job)
        return self._handle(row, index)

    async def describe_job(self, job: JobReference) -> JobDetail:
        """What a job or child is and how it stands."""
        row, index = self._find(job)
        return self._detail(row, index)

    def _detail(self, row: JobRow, index: int | None) -> JobDetail:
        """As the core knows it, with what its backend says of an attempt that has not started yet."""
        detail, note = job_detail(self._live.state, row, index), self._note(row, index)
        if note is None or detail.status_reason is not None:
            return detail
        return msgspec.structs.replace(detail, status_reason=note)

    def _note(self, row: JobRow, index: int | None) -> str | None:
        at, children = index or 0, row.children
        if (row.size is not None and index is None) or children.status[at] != STARTING:
            return None
        host = self._live.state.hosts.get(children.hosts()[at])
        key = AttemptKey(row.job_id, row.index_of(at), children.number[at])
        return self._drivers.note(host.environment, key) if host is not None else None

    async def explain(self, job: JobReference) -> tuple[Reason, ...]:
        """Why a job or child is where it is: stable codes with sentences, the deciding one first; never empty."""
        row, index = self._find(job)
        found = explain(self._live.state, row, index, self._live.clock.now_ms(), placing=self._live.placing)
        note = self._note(row, index)
        if note is None:
            return found
        return tuple(Reason(r.code, f"{r.text}: {note}") if r.code is Code.STARTING else r for r in found)

    async def blocked(self, job: JobReference) -> tuple[Reason, ...]:
        """What keeps a RUNNABLE job or child from every environment of its queue; () if it only waits for its turn.

        The same reasons as in `explain`, at a cost that does not depend on how many jobs wait.
        """
        row, index = self._find(job)
        waits = row.children.counts[RUNNABLE] if index is None else row.children.status[index] == RUNNABLE
        return blocked(self._live.state, row) if waits else ()

    async def queue_head(self, queue: str) -> JobSummary | None:
        """The job or child of a queue that is the first in turn among those that wait for a place; None: none waits.

        One that fits nowhere stays at the head and is passed by others; `blocked` tells of it.
        """
        found = queue_head(self._open.state, get_queue(self._open.state, args.text("queue", queue)))
        if found is None:
            return None
        job, index = found
        return job_summary(job, index if job.size is not None else None)

    async def describe_jobs(self, jobs: Iterable[JobReference]) -> list[JobDetail]:
        """The same for several, in the order asked for.

        Raises:
            NotFound: one of them does not exist.
        """
        state = self._open.state
        found = [find_job(state, reference, "jobs") for reference in args.references("jobs", jobs)]
        return [self._detail(row, index) for row, index in found]

    async def list_jobs(
        self,
        *,
        queue: str | None = None,
        status: JobStatus | str | Iterable[JobStatus | str] | None = None,
        name: str | None = None,
        parent: JobReference | None = None,
        after: int | None = None,
    ) -> AsyncIterator[JobSummary]:
        """Jobs that fit everything given, newest first; or with `parent` the children of an array, by index.

        `after` goes on behind the summary with this `position`, so that a list can be had in parts.

        `name` is exact, or a prefix with a trailing `*`. What is submitted during the iteration may be left out.
        """
        state = self._open.state
        wanted = args.statuses("status", status)
        pattern = args.optional_text("name", name)
        after = None if after is None else args.whole("after", after)
        if queue is not None:
            get_queue(state, args.text("queue", queue))
        if parent is not None:
            row, index = self._find(parent)
            if row.size is None or index is not None:
                raise InvalidValue("parent", getattr(parent, "id", parent), "only an array job has children")
            if (queue is not None and row.queue != queue) or not _fits(row.name, pattern):
                return
            for start in range(0 if after is None else max(0, after + 1), row.size, LIST_PAGE):
                for i in range(start, min(start + LIST_PAGE, row.size)):
                    if wanted is None or STATUSES[row.children.status[i]] in wanted:
                        yield job_summary(row, i)
                await asyncio.sleep(0)
                self._live.check_open()
            return
        found = list(state.jobs) if after is None else [serial for serial in state.jobs if serial < after]
        for serials in _pages(sorted(found, reverse=True)):
            for serial in serials:
                job = state.jobs.get(serial)
                if job is None or (queue is not None and job.queue != queue):
                    continue
                if (wanted is None or job.status in wanted) and _fits(job.name, pattern):
                    yield job_summary(job, None)
            await asyncio.sleep(0)
            self._live.check_open()

    async def wait(self, job: JobReference) -> JobDetail:
        """Return what a job or child is once it has ended. Cancelling the wait does not cancel the job."""
        row, index = self._find(job)
        while True:
            await self._live.wait_ended(row.serial, index)
            detail = job_detail(self._live.state, row, index)
            if detail.status.is_terminal:  # if not, it was run again before the waiter had its turn
                return detail

    async def cancel_job(self, job: JobReference, reason: str) -> None:
        """End what of the job has not reached STARTING: it is FAILED with this reason (contract 2.5).

        What runs goes on, what has ended stays as it is. An array's children are cancelled each by that rule.
        """
        await self._stop_job(job, reason, terminate=False)

    async def terminate_job(self, job: JobReference, reason: str) -> None:
        """End the job in any status: what waits is FAILED, what runs is stopped (SIGTERM, after 30 s SIGKILL).

        Returns once that is asked for; the job is FAILED with this reason when its attempts have ended.
        """
        await self._stop_job(job, reason, terminate=True)

    async def _stop_job(self, job: JobReference, reason: str, *, terminate: bool) -> None:
        reference = args.job_reference("job", job)
        request = StopJob(job=reference, reason=args.text("reason", reason), terminate=terminate)
        await self._open.request(request)

    async def rerun(self, job: JobReference, *, dependents: bool = False) -> tuple[JobRerun, ...]:
        """Run again what FAILED of a job: its failed children, one child, or a single job. Beyond AWS.

        The job, its indexes and its earlier attempts stay; attempt numbers go on, retry budgets count anew, and the
        array is PENDING again. What has run waits for nothing a second time; children that failed by a dependency are
        looked at anew, and stay FAILED where it is still lost. With `dependents`, jobs that failed because of this
        one follow, and those that failed because of them (but for those whose queue takes no jobs). Returns what
        runs again, the job itself first.

        Raises:
            Conflict: nothing of it has FAILED, or what has cannot run, or its queue takes no jobs.
        """
        request = RerunJob(job=args.job_reference("job", job), dependents=args.flag("dependents", dependents))
        told = await self._open.request(request)
        rows = [(self._live.state.jobs[serial], children) for serial, children in told]
        return tuple(JobRerun(id=row.job_id, name=row.name, children=children) for row, children in rows)

    async def logs(
        self, job: JobReference, *, follow: bool = False, attempt: int | None = None
    ) -> AsyncIterator[bytes]:
        """What an attempt has written, in pieces; the latest attempt unless `attempt` is given.

        With `follow` until the attempt has ended (a job that waits is waited for).
        """
        row, index = self._find(job)
        if row.size is not None and index is None:
            raise InvalidValue("job", row.job_id, f"an array's logs are its children's; give {row.job_id}:<index>")
        at = index or 0
        if args.flag("follow", follow) and attempt is None:
            await self._wait_attempt(row, at)
        number = row.children.number[at] if attempt is None else args.whole("attempt", attempt)
        if attempt is not None and not 1 <= number <= row.children.number[at]:
            raise NotFound("attempt", str(attempt), f"{row.job_id} has had {row.children.number[at]} attempts")
        if number == 0:
            return
        past = next((one for one in row.children.past(at) if one.number == number), None)
        host = self._live.state.hosts.get(row.children.hosts()[at] if past is None else past.host)
        if host is None:
            raise Conflict("job", row.job_id, "the host that keeps its logs is gone")
        backend = self._drivers[host.environment].backend
        if backend is None:
            await self._drivers.settle(host.environment)
            backend = self._drivers[host.environment].backend
        if backend is None:
            raise Conflict("compute environment", host.environment, "it is INVALID; its logs cannot be read")
        async for piece in backend.logs(AttemptKey(row.job_id, row.index_of(at), number), follow=follow):
            yield piece

    async def _wait_attempt(self, row: JobRow, index: int) -> None:
        """Return once an attempt of the job runs or has run, or the job has ended without one."""
        news = asyncio.Event()
        unlisten = self._live.listen(news.set)
        try:
            while row.children.status[index] == STARTING or (
                not row.children.number[index] and row.children.status[index] < SUCCEEDED
            ):
                news.clear()
                await news.wait()
                self._live.check_open()
        finally:
            unlisten()

    async def read_logs(self, job: JobReference, *, attempt: int | None = None) -> bytes:
        """All that an attempt has written so far."""
        return b"".join([piece async for piece in self.logs(job, attempt=attempt)])


def _fits(name: str, pattern: str | None) -> bool:
    if pattern is None:
        return True
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _pages(serials: list[int]) -> Iterable[list[int]]:
    return (serials[at : at + LIST_PAGE] for at in range(0, len(serials), LIST_PAGE))
