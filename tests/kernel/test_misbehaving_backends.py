"""A backend that raises, hangs or lies costs its own environment: INVALID with the reason, the others go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ClassVar

import anyio
import pytest
from anybatch import Conflict, EnvironmentDetail, JobStatus, Kernel, ResourceStatus
from anybatch.kernel import environments
from anybatch.kernel.backend import AttemptKey, BackendContext, Capacity, Launch
from anybatch.kernel.core.errors import BackendError
from anybatch.testing.null import NullBackend
from kernel_rig import UNTIL_S, ManualBackend, add_queue, kernel_on, live, nothing_left, submit, turns, until

pytestmark = pytest.mark.asyncio

GOOD = {"good": NullBackend}


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what hangs. (What is well behaved here does not wait for anything, so that no bound is too small for it.)"""
    for name in ("START_S_MAX", "LAUNCH_S_MAX", "STOP_S_MAX", "CLOSE_S_MAX"):
        monkeypatch.setattr(environments, name, 0.05)


class Bad(ManualBackend):
    """Does as told by the functions in `faults`, by the method's name, instead of its duty."""

    def __init__(self, **faults: Callable[[], Any]) -> None:
        super().__init__()
        self.faults = faults

    async def _fault(self, method: str) -> None:
        if method in self.faults:
            await self.faults[method]()

    async def start(self, context: BackendContext, known: Sequence[Launch]) -> None:
        await self._fault("start")
        await super().start(context, known)

    async def launch(self, launches: Sequence[Launch]) -> None:
        await self._fault("launch")
        await super().launch(launches)

    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        await self._fault("stop")
        await super().stop(attempts, grace_ms)

    async def close(self) -> None:
        await super().close()
        await self._fault("close")


def raises(error: BaseException) -> Callable[[], Any]:
    async def fault() -> None:
        raise error

    return fault


async def hangs() -> None:
    await asyncio.Event().wait()


async def swallows_cancellation() -> None:
    for _ in range(3):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass


async def environment(kernel: Kernel, name: str = "b") -> EnvironmentDetail:
    (found,) = await kernel.describe_compute_environments([name])
    return found


async def becomes_invalid(kernel: Kernel, name: str = "b") -> str:
    await until(lambda: live(kernel).state.environments[name].status is ResourceStatus.INVALID)
    return (await environment(kernel, name)).status_reason


async def others_go_on(kernel: Kernel) -> None:
    """The kernel still runs jobs elsewhere."""
    await kernel.create_compute_environment("good", backend="good", max_vcpus=1, exist_ok=True)
    await kernel.create_job_queue("good", priority=1, compute_environments=["good"], exist_ok=True)
    job = await kernel.submit_job("other", queue="good", command=["x"], array_size=3)
    assert (await job.wait()).status is JobStatus.SUCCEEDED


START_FAULTS = {
    "a backend error": (raises(BackendError("no licence")), "backend 'b' did not start: no licence"),
    "any error": (raises(KeyError("k")), "backend 'b' did not start: KeyError: 'k'"),
    "a cancellation of its own": (raises(asyncio.CancelledError()), "did not start"),
    "a hang": (hangs, "took longer than its bound"),
}


@pytest.mark.parametrize("fault", START_FAULTS)
async def test_a_start_that_fails_makes_the_environment_invalid_until_updated(fault: str) -> None:
    behaviour, reason = START_FAULTS[fault]
    backend = Bad(start=behaviour)
    async with Kernel(backends={"b": backend, **GOOD}) as kernel:
        made = await kernel.create_compute_environment("b", backend="b", max_vcpus=2)
        assert made.status is ResourceStatus.INVALID
        assert reason in made.status_reason
        with pytest.raises(Conflict, match="INVALID"):
            await kernel.create_job_queue("q", priority=1, compute_environments=["b"])
        await others_go_on(kernel)

        del backend.faults["start"]
        assert (await kernel.update_compute_environment("b", max_vcpus=3)).status is ResourceStatus.VALID
        await kernel.create_job_queue("q", priority=1, compute_environments=["b"])
        job = await submit(kernel)
        await until(lambda: backend.live)
        backend.exit_all()
        assert (await job.wait()).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize("array_size", [None, 3])
async def test_a_launch_that_cannot_be_repeated_fails_the_attempt_and_the_environment(array_size: int | None) -> None:
    backend = Bad(launch=raises(BackendError("out of disk")))
    async with kernel_on(backend) as kernel:
        job = await submit(kernel, array_size=array_size)
        detail = await job.wait()
        assert detail.status is JobStatus.FAILED
        one = await (job[0] if array_size else job).describe()
        assert one.status_reason == "Task failed to start"
        assert one.reason == "out of disk"
        assert one.exit_code is None
        assert await becomes_invalid(kernel) == "backend 'b' could not launch: out of disk"


async def test_work_waits_while_its_environment_is_invalid_and_runs_once_it_is_back() -> None:
    backend = Bad(launch=raises(OSError("out of disk")))
    async with kernel_on(backend) as kernel:
        job = await submit(kernel, retry=2)
        assert "OSError: out of disk" in await becomes_invalid(kernel)
        await turns()
        assert (await job.describe()).status is JobStatus.RUNNABLE

        backend.faults.clear()
        await kernel.update_compute_environment("b")
        await until(lambda: backend.live)
        backend.exit_all()
        detail = await job.wait()

        assert detail.status is JobStatus.SUCCEEDED
        assert [attempt.status_reason for attempt in detail.attempts] == [
            "Task failed to start",
            "Essential container in task exited",
        ]


async def test_a_retryable_launch_error_costs_the_attempt_alone() -> None:
    backend = Bad(launch=raises(BackendError("busy", retryable=True)))
    async with kernel_on(backend) as kernel:
        job = await submit(kernel, retry=2)
        detail = await job.wait()

        assert detail.status is JobStatus.FAILED
        assert [attempt.reason for attempt in detail.attempts] == ["busy", "busy"]
        assert (await environment(kernel)).status is ResourceStatus.VALID


async def test_what_a_failed_launch_has_started_is_ended_before_it_is_tried_again() -> None:
    class Half(ManualBackend):
        most = 0

        async def launch(self, launches: Sequence[Launch]) -> None:
            await super().launch(launches)
            self.most = max(self.most, len(self.live))
            if len(self.launched) == 1:
                raise BackendError("lost the connection", retryable=True)

    backend = Half()
    async with kernel_on(backend) as kernel:
        job = await submit(kernel, retry=2)
        await until(lambda: len(backend.launched) == 2)
        assert backend.stopped == [AttemptKey(job.id, 0, 1)]
        assert backend.most == 1
        backend.exit_all()
        assert (await job.wait()).status is JobStatus.SUCCEEDED


LATER_FAULTS = {
    "any error": raises(ValueError("odd")),
    "a cancellation of its own": raises(asyncio.CancelledError()),
    "a hang": hangs,
}


@pytest.mark.parametrize("fault", LATER_FAULTS)
async def test_a_launch_that_goes_wrong_makes_the_environment_invalid(fault: str) -> None:
    with nothing_left():
        async with kernel_on(Bad(launch=LATER_FAULTS[fault])) as kernel:
            job = await submit(kernel)
            assert (await job.wait()).status is JobStatus.FAILED
            assert "could not launch" in await becomes_invalid(kernel)


@pytest.mark.parametrize("fault", LATER_FAULTS)
async def test_a_stop_that_goes_wrong_makes_the_environment_invalid(fault: str) -> None:
    backend = Bad(stop=LATER_FAULTS[fault])
    with nothing_left():
        async with kernel_on(backend) as kernel:
            job = await submit(kernel)
            await until(lambda: backend.live)
            await job.terminate("enough")
            assert "could not stop attempts" in await becomes_invalid(kernel)

            backend.exit_all(143)
            assert (await job.wait()).status_reason == "enough"


@pytest.mark.parametrize("fault", LATER_FAULTS)
async def test_a_close_that_goes_wrong_holds_up_nobody(fault: str) -> None:
    backend = Bad(close=LATER_FAULTS[fault])
    with nothing_left():
        async with Kernel(backends={"b": backend, **GOOD}) as kernel:
            await add_queue(kernel)
            await others_go_on(kernel)
        assert backend.closed


async def test_every_backend_is_closed_though_one_of_them_cannot() -> None:
    backends = [Bad(close=raises(OSError("x"))), Bad(), Bad(close=hangs), Bad()]
    async with Kernel(backends={f"b{n}": backend for n, backend in enumerate(backends)}) as kernel:
        for n in range(4):
            await kernel.create_compute_environment(f"b{n}", backend=f"b{n}", max_vcpus=1)
    assert [backend.closed for backend in backends] == [True] * 4


async def test_a_hanging_start_does_not_hold_up_the_end_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "START_S_MAX", 1000.0)
    monkeypatch.setattr(environments, "FINISH_S_MAX", 0.05)
    with nothing_left(), anyio.fail_after(UNTIL_S):
        async with Kernel(backends={"b": Bad(start=hangs)}) as kernel:
            creating = asyncio.ensure_future(kernel.create_compute_environment("b", backend="b"))
            await until(lambda: "b" in live(kernel).state.environments)
        done, _ = await asyncio.wait({creating})
        assert done


async def test_a_hanging_launch_does_not_hold_up_the_end_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "LAUNCH_S_MAX", 1000.0)
    monkeypatch.setattr(environments, "FINISH_S_MAX", 0.05)
    monkeypatch.setattr("anybatch.kernel.kernel.STOP_S_MAX", 0.05)
    with nothing_left(), anyio.fail_after(UNTIL_S):
        async with kernel_on(Bad(launch=hangs)) as kernel:
            await submit(kernel)
            await turns()


# -- reports --------------------------------------------------------------------------------------


async def running(kernel: Kernel, backend: ManualBackend, **more: Any) -> AttemptKey:
    """A job that runs; its attempt."""
    await submit(kernel, **more)
    await until(lambda: backend.live)
    await turns()
    (key,) = backend.live
    return key


async def test_reports_about_what_nobody_knows_change_nothing() -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel:
        key = await running(kernel, backend)
        before = await kernel.last_event_id()
        context = backend.context

        context.started("no-such-job", 1, [0])
        context.exited("no-such-job", 1, [0], [0])
        context.exited(key.job_id, 2, [0], [0])
        context.started(key.job_id, 7, [0])
        context.lost("no-such-job", 1, [0], reason="x")
        context.unknown("no-such-job", 1, [0])
        context.host_down("no-such-host", "x")
        context.started(key.job_id, 1, [0])
        context.started(key.job_id, 1, [])
        await turns()

        assert await kernel.last_event_id() == before
        assert (await environment(kernel)).status is ResourceStatus.VALID


async def test_a_report_from_an_earlier_attempt_changes_nothing() -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel:
        first = await running(kernel, backend, retry=2)
        backend.exit(first, 1)
        await until(lambda: backend.live)
        await turns()
        before = await kernel.last_event_id()
        for code in (0, 1, 137):
            backend.context.exited(first.job_id, first.number, [0], [code])
        backend.context.lost(first.job_id, first.number, [0], reason="late")
        backend.context.timed_out(first.job_id, first.number, [0], [143])
        await turns()
        assert await kernel.last_event_id() == before
        backend.exit_all()
        detail = await kernel.wait(first.job_id)
        assert [attempt.exit_code for attempt in detail.attempts] == [1, 0]


async def test_of_several_reports_of_an_end_the_first_counts() -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel:
        key = await running(kernel, backend)
        backend.context.exited(key.job_id, 1, [0, 0, 0], [3, 0, 4])
        backend.context.exited(key.job_id, 1, [0], [0])
        backend.context.lost(key.job_id, 1, [0], reason="x")
        detail = await kernel.wait(key.job_id)
        assert (detail.status, detail.exit_code) == (JobStatus.FAILED, 3)


async def test_an_exit_may_overtake_its_start() -> None:
    backend = ManualBackend(starts=False)
    async with kernel_on(backend) as kernel:
        key = await running(kernel, backend)
        backend.exit(key, 0)
        backend.context.started(key.job_id, 1, [0])
        detail = await kernel.wait(key.job_id)
        assert detail.status is JobStatus.SUCCEEDED
        assert detail.started_at is not None


LIES: dict[str, Callable[[BackendContext, str], None]] = {
    "an index beyond the array": lambda c, job: c.exited(job, 1, [5], [0]),
    "a negative index": lambda c, job: c.started(job, 1, [-1]),
    "an index that is no number": lambda c, job: c.lost(job, 1, ["0"], reason="x"),  # type: ignore[list-item]
    "fewer codes than indexes": lambda c, job: c.exited(job, 1, [0, 1], [0]),
    "more times than indexes": lambda c, job: c.started(job, 1, [0], [1, 2]),
    "a code that is no number": lambda c, job: c.exited(job, 1, [0], ["0"]),  # type: ignore[list-item]
    "a number that is none": lambda c, job: c.exited(job, "1", [0], [0]),  # type: ignore[arg-type]
    "a time that is no number": lambda c, job: c.exited(job, 1, [0], [0], [0.5]),  # type: ignore[list-item]
    "indexes that are no list": lambda c, job: c.started(job, 1, 0),  # type: ignore[arg-type]
    "codes that are no list": lambda c, job: c.exited(job, 1, [0], 0),  # type: ignore[arg-type]
    "a job id that is no text": lambda c, job: c.exited(["x"], 1, [0], [0]),  # type: ignore[arg-type]
    "a reason that is no text": lambda c, job: c.exited(job, 1, [0], [1], reason=ValueError("x")),  # type: ignore[arg-type]
    "a status reason that is no text": lambda c, job: c.exited(job, 1, [0], [1], status_reason=7),  # type: ignore[arg-type]
    "a loss without a reason": lambda c, job: c.lost(job, 1, [0], reason=None),  # type: ignore[arg-type]
    "a host of negative size": lambda c, job: c.host_up("h", Capacity(vcpus_milli=-1)),
    "a host of odd size": lambda c, job: c.host_up("h", Capacity(vcpus_milli=1.5)),  # type: ignore[arg-type]
    "a host without a size": lambda c, job: c.host_up("h", None),  # type: ignore[arg-type]
    "a host without a name": lambda c, job: c.host_up(None, Capacity(vcpus_milli=1)),  # type: ignore[arg-type]
    "a host with a huge size": lambda c, job: c.host_up("h", Capacity(vcpus_milli=1 << 70)),
    "a host with one device twice": lambda c, job: c.host_up("h", Capacity(vcpus_milli=1, gpus=(0, 0))),
    "a host in an odd zone": lambda c, job: c.host_up("h", Capacity(vcpus_milli=1), zone=3),  # type: ignore[arg-type]
    "an odd host gone": lambda c, job: c.host_down(["h"], "x"),  # type: ignore[arg-type]
    "a host gone for no reason": lambda c, job: c.host_down("host", None),  # type: ignore[arg-type]
    "a failure without a text": lambda c, job: c.failed(None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_report_that_cannot_be_costs_its_environment_not_the_kernel(lie: str) -> None:
    backend = ManualBackend()
    async with Kernel(backends={"b": backend, **GOOD}) as kernel:
        await add_queue(kernel)
        job = await submit(kernel, array_size=2)
        await until(lambda: len(backend.live) == 2)
        await turns()

        LIES[lie](backend.context, job.id)

        await becomes_invalid(kernel)
        assert (await job.describe()).status is JobStatus.PENDING
        await others_go_on(kernel)
        backend.exit_all()
        await job.wait()


@pytest.mark.parametrize("code", [-1, -9, 256, 40_000, 1 << 70])
async def test_an_odd_exit_code_is_an_end_that_failed(code: int) -> None:
    backend = ManualBackend()
    async with Kernel(backends={"b": backend, **GOOD}) as kernel:
        await add_queue(kernel)
        key = await running(kernel, backend)
        backend.exit(key, code)
        detail = await kernel.wait(key.job_id)
        assert detail.status is JobStatus.FAILED
        await others_go_on(kernel)


async def test_texts_that_are_no_unicode_do_no_harm() -> None:
    """File names, and so the texts of errors, may hold bytes that are no UTF-8."""
    backend = Bad(launch=raises(OSError("no file /tmp/\udcff")))
    async with Kernel(backends={"b": backend, **GOOD}) as kernel:
        await add_queue(kernel)
        job = await submit(kernel)
        assert (await job.wait()).reason == "no file /tmp/\\udcff"
        assert "no file" in await becomes_invalid(kernel)
        backend.faults.clear()
        await kernel.update_compute_environment("b")
        key = await running(kernel, backend, name="second")
        backend.exit(key, 1, reason="\udcff")
        assert (await kernel.wait(key.job_id)).reason == "\\udcff"
        await others_go_on(kernel)


@pytest.mark.parametrize("at_ms", [-(10**15), 0, 10**15, 1 << 70])
async def test_an_odd_time_does_no_harm(at_ms: int) -> None:
    backend = ManualBackend(starts=False)
    async with Kernel(backends={"b": backend, **GOOD}) as kernel:
        await add_queue(kernel)
        key = await running(kernel, backend)
        backend.context.started(key.job_id, 1, [0], [at_ms])
        backend.context.exited(key.job_id, 1, [0], [0], [at_ms])
        await turns()
        await kernel.describe_job(key.job_id)
        await others_go_on(kernel)


async def test_a_backend_speaks_only_of_its_own_attempts() -> None:
    mine, other = ManualBackend(), ManualBackend()
    async with Kernel(backends={"b": mine, "c": other}) as kernel:
        await add_queue(kernel)
        await add_queue(kernel, "c", name="qc")
        key = await running(kernel, mine)
        other.context.exited(key.job_id, 1, [0], [1])
        other.context.lost(key.job_id, 1, [0], reason="x")
        other.context.host_down("host", "mine is gone")
        await turns()
        assert (await kernel.describe_job(key.job_id)).status is JobStatus.RUNNING
        mine.exit_all()
        assert (await kernel.wait(key.job_id)).status is JobStatus.SUCCEEDED


async def test_an_acknowledgement_that_raises_costs_its_environment_not_the_kernel() -> None:
    backend = ManualBackend()
    async with Kernel(backends={"b": backend, **GOOD}) as kernel:
        await add_queue(kernel)
        await running(kernel, backend)

        def broken() -> None:
            raise OSError("the agent is gone")

        backend.context.when_durable(broken)
        assert "the agent is gone" in await becomes_invalid(kernel)
        await others_go_on(kernel)


async def test_reports_after_close_change_nothing(tmp_path: Any) -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel:
        key = await running(kernel, backend)
        context = backend.context
        last = await kernel.last_event_id()
    context.exited(key.job_id, 1, [0], [0])
    context.host_up("late", Capacity(vcpus_milli=1))
    context.host_down("host", "x")
    context.failed("x")
    called: list[int] = []
    context.when_durable(lambda: called.append(1))
    await turns()
    assert called == []
    assert live(kernel).journal.last >= last.sequence


async def test_a_host_that_comes_up_twice_is_one_host() -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel:
        key = await running(kernel, backend)
        before = await kernel.last_event_id()
        backend.context.host_up("host", Capacity(vcpus_milli=4000))
        await turns()
        assert await kernel.last_event_id() == before

        backend.context.host_up("host", Capacity(vcpus_milli=2000))
        await turns()
        (host,) = (await environment(kernel)).hosts
        assert (host.vcpus, host.free_vcpus, host.attempts) == (2, 1, 1)
        backend.exit(key)


async def test_a_host_that_shrinks_below_its_load_takes_nothing_more() -> None:
    backend = ManualBackend()
    async with kernel_on(backend) as kernel:
        job = await submit(kernel, array_size=6)
        await until(lambda: len(backend.live) == 4)
        backend.context.host_up("host", Capacity(vcpus_milli=1000))
        backend.exit(AttemptKey(job.id, 0, 1))
        backend.exit(AttemptKey(job.id, 1, 1))
        await turns()
        assert len(backend.launched) == 4
        backend.exit_all()
        await until(lambda: len(backend.launched) == 5)
        backend.exit_all()
        await until(lambda: len(backend.launched) == 6)
        backend.exit_all()
        await job.wait()


async def test_a_host_that_is_gone_loses_its_attempts_and_what_has_not_been_handed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environments, "LAUNCH_S_MAX", UNTIL_S)
    gate = asyncio.Event()
    backend = Bad(launch=gate.wait)
    async with Kernel(backends={"b": backend, **GOOD}) as kernel:
        await add_queue(kernel)
        first = await submit(kernel, "first", retry=2)
        await turns()
        second = await submit(kernel, "second", retry=2)
        await turns()
        backend.context.host_down("host", "the power is off")
        await turns()
        for job in (first, second):
            detail = await job.describe()
            assert detail.status is JobStatus.RUNNABLE
            assert detail.attempts[0].status_reason == "Host EC2 (instance host) terminated."
            assert detail.attempts[0].reason == "the power is off"

        gate.set()
        backend.context.host_up("host", Capacity(vcpus_milli=4000))
        await until(lambda: AttemptKey(first.id, 0, 2) in backend.live and AttemptKey(second.id, 0, 2) in backend.live)
        assert AttemptKey(second.id, 0, 1) not in backend.launched, "an attempt that is lost is not launched any more"
        backend.exit_all()
        await first.wait()
        await second.wait()
        await others_go_on(kernel)


async def test_logs_that_raise_cost_their_reader_alone() -> None:
    class NoLogs(ManualBackend):
        async def logs(self, attempt: AttemptKey, *, follow: bool) -> AsyncIterator[bytes]:
            if not follow:
                raise OSError("unreadable")
            yield b""

    backend = NoLogs()
    async with Kernel(backends={"b": backend, **GOOD}) as kernel:
        await add_queue(kernel)
        key = await running(kernel, backend)
        with pytest.raises(OSError, match="unreadable"):
            await kernel.read_logs(key.job_id)
        await others_go_on(kernel)
        backend.exit_all()


class Unbuildable:
    """A factory whose product cannot be made."""

    Options: ClassVar = ManualBackend.Options

    def __init__(self) -> None:
        raise RuntimeError("no such library")


async def test_a_factory_that_raises_makes_the_environment_invalid() -> None:
    unbuildable: Any = Unbuildable
    async with Kernel(backends={"b": unbuildable, **GOOD}) as kernel:
        made = await kernel.create_compute_environment("b", backend="b", max_vcpus=1)
        assert made.status is ResourceStatus.INVALID
        assert "no such library" in made.status_reason
        await others_go_on(kernel)


async def test_the_reason_of_a_failure_is_bounded() -> None:
    async with Kernel(backends={"b": Bad(start=raises(BackendError("x" * 100_000)))}) as kernel:
        made = await kernel.create_compute_environment("b", backend="b", max_vcpus=1)
        assert len(made.status_reason) <= 1000
