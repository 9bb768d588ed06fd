"""A host that outlives this machine gets a launch only when the placement is on disk: the power may go at any time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from anybatch import JobStatus, KernelClosed
from anybatch.kernel.backend import AttemptKey, Capabilities, Launch
from anybatch.kernel.core.events import AttemptsPlaced
from kernel_rig import LastingBackend, RecordedKernel, kernel_on, live, submit, turns, until

pytestmark = pytest.mark.asyncio


class Local(LastingBackend):
    """Writes into the journal's trace what it is handed, with how far the log was synced by then."""

    kernel: RecordedKernel

    def note(self, what: str, keys: Sequence[AttemptKey]) -> None:
        self.kernel.trace.append((what, (list(keys), live(self.kernel).synced)))

    async def launch(self, launches: Sequence[Launch]) -> None:
        self.note("launch", [key for launch in launches for key in launch.attempts()])
        await super().launch(launches)

    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        self.note("stop", attempts)
        await super().stop(attempts, grace_ms)


class Remote(Local):
    capabilities: ClassVar[Capabilities] = Capabilities(commands=False, reattach=True, remote=True)


@asynccontextmanager
async def recorded(backend: Local, path: Path, vcpus: float = 4) -> AsyncIterator[RecordedKernel]:
    async with kernel_on(backend, path, kind=RecordedKernel, vcpus=vcpus) as kernel:
        assert isinstance(kernel, RecordedKernel)
        backend.kernel = kernel
        yield kernel
        kernel.recorded.hold_sync = False


def placed(kernel: RecordedKernel) -> dict[AttemptKey, int]:
    """Every attempt with the sequence number of the event that placed it."""
    found, state, after = {}, live(kernel).state, 0
    while records := live(kernel).journal.read(after):
        for record in records:
            for n, event in enumerate(record.events):
                if isinstance(event, AttemptsPlaced):
                    job_id = state.jobs[event.job].job_id
                    found.update({AttemptKey(job_id, i, event.number): record.first + n for i in event.each()})
        after = records[-1].last
    return found


def handed(kernel: RecordedKernel, what: str) -> list[tuple[AttemptKey, int]]:
    """(attempt, up to where the log was synced) of all that was handed over."""
    return [
        (key, about[1]) for kind, about in kernel.trace if kind == what and isinstance(about, tuple) for key in about[0]
    ]


async def test_every_launch_comes_after_the_sync_of_its_placement(tmp_path: Path) -> None:
    backend = Remote()
    async with recorded(backend, tmp_path / "j.db") as kernel:
        jobs = [await submit(kernel, f"job-{n}", array_size=3 if n % 2 else None, retry=2) for n in range(8)]
        for n in range(1000):
            if not live(kernel).state.unfinished:
                break
            await until(lambda: backend.live)
            backend.exit_all(n % 3 // 2)
            await turns()
        assert [(await job.describe()).status.is_terminal for job in jobs] == [True] * 8
        launched, at = handed(kernel, "launch"), placed(kernel)
        assert sorted(key for key, _ in launched) == sorted(at)
        assert [key for key, synced in launched if synced < at[key]] == []


async def test_while_the_disk_does_not_answer_nothing_is_launched(tmp_path: Path) -> None:
    backend = Remote()
    async with recorded(backend, tmp_path / "j.db") as kernel:
        kernel.recorded.hold_sync = True
        submitting = asyncio.ensure_future(submit(kernel))
        await until(lambda: placed(kernel))
        await turns(200)
        assert backend.launched == []
        kernel.recorded.hold_sync = False
        job = await submitting
        await until(lambda: backend.launched == [AttemptKey(job.id, 0, 1)])
        backend.exit_all()
        assert (await job.wait()).status is JobStatus.SUCCEEDED


async def test_a_placement_on_this_machine_waits_for_no_disk(tmp_path: Path) -> None:
    backend = Local()
    async with recorded(backend, tmp_path / "j.db") as kernel:
        kernel.recorded.hold_sync = True
        submitting = asyncio.ensure_future(submit(kernel))
        await until(lambda: backend.launched)
        assert not submitting.done()
        kernel.recorded.hold_sync = False
        await submitting
        backend.exit_all()


async def test_each_environment_waits_for_itself(tmp_path: Path) -> None:
    """A placement far away does not hold up one at home."""
    near, far = Local(), Remote()
    async with RecordedKernel(tmp_path / "j.db", backends={"near": near, "far": far}) as kernel:
        near.kernel = far.kernel = kernel
        for name in ("near", "far"):
            await kernel.create_compute_environment(name, backend=name, max_vcpus=1)
            await kernel.create_job_queue(name, priority=1, compute_environments=[name])
        kernel.recorded.hold_sync = True
        calls = [asyncio.ensure_future(submit(kernel, queue=name)) for name in ("far", "near")]
        await until(lambda: near.launched)
        await turns(100)
        assert far.launched == []
        kernel.recorded.hold_sync = False
        await asyncio.gather(*calls)
        await until(lambda: far.launched)
        near.exit_all()
        far.exit_all()


async def test_a_stop_does_not_overtake_the_launch_that_it_ends(tmp_path: Path) -> None:
    backend = Remote()
    async with recorded(backend, tmp_path / "j.db") as kernel:
        kernel.recorded.hold_sync = True
        submitting = asyncio.ensure_future(submit(kernel))
        await until(lambda: placed(kernel))
        terminating = asyncio.ensure_future(kernel.terminate_job("job", "enough"))
        await turns(200)
        assert backend.calls == ["start"]
        kernel.recorded.hold_sync = False
        job = await submitting
        await terminating
        assert (await job.wait()).status_reason == "enough"
        assert backend.calls == ["start", "launch", "stop"]
        assert backend.live == {}


async def test_a_placement_that_never_came_to_disk_is_never_launched(tmp_path: Path) -> None:
    backend = Remote()

    async def body() -> None:
        async with recorded(backend, tmp_path / "j.db") as kernel:
            kernel.recorded.hold_sync = True
            submitting = asyncio.ensure_future(submit(kernel))
            await until(lambda: placed(kernel))
            kernel.recorded.fail_sync = True
            kernel.recorded.hold_sync = False
            with pytest.raises(KernelClosed):
                await submitting
            await turns(100)
            assert backend.launched == []
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await body()
    assert backend.launched == []


async def test_a_retry_is_a_placement_of_its_own(tmp_path: Path) -> None:
    backend = Remote()
    async with recorded(backend, tmp_path / "j.db") as kernel:
        job = await submit(kernel, retry=2)
        await until(lambda: backend.live)
        kernel.recorded.hold_sync = True
        backend.exit_all(1)
        await until(lambda: AttemptKey(job.id, 0, 2) in placed(kernel))
        await turns(200)
        assert backend.launched == [AttemptKey(job.id, 0, 1)]
        kernel.recorded.hold_sync = False
        await until(lambda: len(backend.launched) == 2)
        backend.exit_all()
        assert (await job.wait()).status is JobStatus.SUCCEEDED


async def test_an_environment_updated_while_a_launch_waits_for_the_disk_runs_nothing_twice(tmp_path: Path) -> None:
    """The backend is asked about an attempt that it was never given, and says that it is lost."""
    backend = Remote()
    async with recorded(backend, tmp_path / "j.db", vcpus=1) as kernel:
        kernel.recorded.hold_sync = True
        submitting = asyncio.ensure_future(submit(kernel, retry=3))
        await until(lambda: placed(kernel))
        updating = asyncio.ensure_future(kernel.update_compute_environment("b", max_vcpus=2))
        await turns(300)
        kernel.recorded.hold_sync = False
        job = await submitting
        await updating
        await until(lambda: backend.live)
        await turns(100)
        assert len(backend.live) == 1, "two attempts of one job at once"
        backend.exit_all()
        await turns(100)
        backend.exit_all()
        assert (await job.wait()).status is JobStatus.SUCCEEDED
