"""A kernel used through its control socket is as the kernel itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anybatch
import pytest
from anybatch import (
    ConfigError,
    Conflict,
    ControlError,
    EventsTrimmed,
    InvalidValue,
    JobEvent,
    JobStatus,
    Kernel,
    KernelClosed,
    NotFound,
    NotRunning,
    QuotaExceeded,
)
from anybatch.backends.process import ProcessBackend
from anybatch.kernel.backend import AttemptKey
from anybatch.kernel.control import wire
from control_rig import both, server_of
from kernel_rig import ManualBackend, live, nothing_left, submit, turns, until

pytestmark = pytest.mark.asyncio


# -- the same answers -------------------------------------------------------------------------------


async def test_every_call_answers_as_the_kernel_itself(tmp_path: Path) -> None:
    async with both(tmp_path) as (kernel, remote):
        made = await remote.register_job_definition("d", command=["x", "Ref::n"], retry=anybatch.RetryStrategy(2))
        assert made == (await kernel.describe_job_definitions("d"))[0]
        job = await remote.submit_job("job", queue="q", definition=made, parameters={"n": "1"}, array_size=3)
        detail = await remote.wait(job)
        assert detail == await kernel.describe_job(job.id)
        assert detail.status_summary is not None
        assert detail.status_summary[JobStatus.SUCCEEDED] == 3
        after = await remote.submit_job("after", queue="q", command=["x"], depends_on=[job, {"job": job[1]}])
        pair = await remote.submit_job(
            "pair", queue="q", command=["x"], array_size=3, depends_on=[anybatch.n_to_n(job)]
        )
        line = await remote.submit_job(
            "line", queue="q", command=["x"], array_size=3, depends_on=(anybatch.SEQUENTIAL,)
        )
        for one in (after, pair, line):
            assert (await one.wait()).status == "SUCCEEDED"
        assert await remote.describe_jobs([job, job[0], "after"]) == await kernel.describe_jobs([job, job[0], "after"])
        assert [one async for one in remote.list_jobs()] == [one async for one in kernel.list_jobs()]
        assert [one async for one in remote.list_jobs(parent=job)] == [
            one async for one in kernel.list_jobs(parent=job)
        ]
        assert await remote.explain(job) == await kernel.explain(job.id)
        for name in ("describe_job_definitions", "describe_job_queues", "describe_compute_environments"):
            assert await getattr(remote, name)() == await getattr(kernel, name)()
        assert await remote.last_event_id() == await kernel.last_event_id()
        assert (remote.id, remote.path, remote.journal_loss) == (kernel.id, kernel.path, None)
        assert remote.control_path == kernel.control_path == tmp_path / "j.db.d" / "control.sock"


async def test_what_goes_beyond_aws_travels(tmp_path: Path) -> None:
    """Indexes, with a range that is not spelled out, limits and checkpoints; and a refusal with its values."""
    async with both(tmp_path) as (kernel, remote):
        more: dict[str, Any] = {
            "max_failures": 3,
            "on_max_failures": "terminate",
            "checkpoint_exit_codes": (85,),
            "max_checkpoints": 7,
        }
        for given in (range(10, 100, 5), [9, 3, 7], {"start": 2, "stop": 9, "step": 3}, "0-15:4,20"):
            job = await remote.submit_job("job", queue="q", command=["x"], array=given, **more)
            here = await kernel.job(job.id)
            assert (list(job.indexes), [child.id for child in job]) == (list(here.indexes), [c.id for c in here])
            assert await job.wait() == await here.describe()
            assert list((await remote.job(job.id)).indexes) == list(here.indexes)
        with pytest.raises(InvalidValue, match=r"array: range\(0, 1000000000000\) is not allowed; .*999999999999"):
            await remote.submit_job("job", queue="q", command=["x"], array=range(10**12))


async def test_a_handle_from_afar_works_as_one_from_here(tmp_path: Path) -> None:
    backend = ManualBackend()
    async with both(tmp_path, backend) as (kernel, remote):
        job = await remote.submit_job("job", queue="q", command=["x"], array_size=3, vcpus=5)
        assert job.warnings == (await submit(kernel, vcpus=5)).warnings != ()
        assert job == await kernel.job(job.id)
        assert [child.id for child in job] == [f"{job.id}:{n}" for n in range(3)]
        await job[0].cancel("enough")
        assert (await job[0].describe()).status_reason == "enough"
        assert (await job.explain())[0].code == "NEVER_FITS"
        await job.terminate()
        assert (await job.wait()).status == "FAILED"
        single = await remote.job(await submit(kernel, "single"))
        await until(lambda: backend.live)
        assert await single.read_logs() == b"log of 1"
        assert [piece async for piece in single.logs()] == [b"log of 1"]


async def test_resources_are_made_changed_and_deleted_from_afar(tmp_path: Path) -> None:
    async with both(tmp_path) as (kernel, remote):
        with pytest.raises(anybatch.AnyBatchError, match="serves environment"):
            raise anybatch.PluginError((await remote.create_compute_environment("e", backend="b")).status_reason)
        await remote.update_compute_environment("e", state="DISABLED")
        await remote.delete_compute_environment("e")
        file = tmp_path / "config.toml"
        file.write_text('[definitions.d]\ncommand = ["x"]\n')
        assert (await remote.apply(anybatch.load_config(file))).created == ("definitions.d",)
        wrong = {"queues": {"p": {"priority": "high", "compute_environments": ["b"]}}}
        with pytest.raises(ConfigError) as there:
            await remote.apply(wrong)
        with pytest.raises(ConfigError) as here:
            await kernel.apply(wrong)
        assert there.value.mistakes == here.value.mistakes != ()
        assert await remote.describe_job_queues(["q"]) == await kernel.describe_job_queues(["q"])
        queue = await remote.update_job_queue("q", state="DISABLED", retain_failed=5)
        assert (queue.state, queue.retain_failed_s) == ("DISABLED", 5)
        await remote.delete_job_queue("q")
        with pytest.raises(NotFound):
            await remote.describe_job_queues(["q"])


async def test_a_script_is_read_where_the_caller_is(tmp_path: Path) -> None:
    script = tmp_path / "work.sh"
    script.write_text("#!/bin/sh\necho $((6 * 7))\n")
    backends = {"process": lambda: ProcessBackend(agent_idle_ms=1_000)}
    async with (
        Kernel(tmp_path / "j.db", backends=backends, control=True, on_close="stop") as kernel,
        anybatch.connect(tmp_path / "j.db") as remote,
    ):
        result = await remote.run(script=script)
        assert (result.output, result.raise_for_status().exit_code) == (b"42\n", 0)
        with pytest.raises(InvalidValue, match="script: .* cannot be read"):
            await remote.run(script=tmp_path / "none.sh")
        with pytest.raises(InvalidValue, match="script: 7"):
            await remote.run(script=7)  # type: ignore[arg-type]
        long = "import sys; sys.stdout.write('x' * 1_000_000)"
        job = await remote.submit_job("long", queue="anybatch-run", command=["python3", "-c", long])
        await job.wait()
        assert await job.read_logs() == b"x" * 1_000_000
        assert kernel.path == remote.path


# -- the same errors --------------------------------------------------------------------------------

MISTAKES: dict[str, Callable[[Kernel], Awaitable[Any]]] = {
    "no queue": lambda k: k.submit_job("j", queue="none", command=["x"]),
    "a number": lambda k: k.submit_job("j", queue="q", command=5),  # type: ignore[arg-type]
    "an object": lambda k: k.submit_job(object, queue="q", command=["x"]),  # type: ignore[arg-type]
    "a bytearray": lambda k: k.submit_job(bytearray(b"x"), queue="q", command=["x"]),  # type: ignore[arg-type]
    "too large": lambda k: k.submit_job("j", queue="q", command=["x"], array_size=10_001),
    "huge": lambda k: k.submit_job("j", queue="q", command=["x"], array_size=1 << 99),
    "no text": lambda k: k.submit_job("\ud800", queue="q", command=["x"]),
    "nan": lambda k: k.submit_job("j", queue="q", command=["x"], timeout=float("nan")),
    "a path": lambda k: k.submit_job(Path("x"), queue="q", command=["x"]),  # type: ignore[arg-type]
    "a retry": lambda k: k.submit_job("j", queue="q", command=["x"], retry=anybatch.RetryStrategy(11)),
    "a mapping": lambda k: k.submit_job("j", queue="q", command=["x"], environment={"a": 1}),  # type: ignore[dict-item]
    "a set": lambda k: k.describe_jobs({"nobody"}),
    "no job": lambda k: k.wait("nobody"),
    "no attempt": lambda k: k.read_logs("nobody", attempt=3),
    "it exists": lambda k: k.create_job_queue("q", priority=2, compute_environments=["b"]),
    "it differs": lambda k: k.create_job_queue("q", priority=2, compute_environments=["b"], exist_ok=True),
    "no event": lambda k: first_event(k, (1, 10**6)),
    "a list": lambda k: first_event(k, [1, 2]),
}  # fmt: skip


async def first_event(kernel: Kernel, after: Any) -> JobEvent:
    async with kernel.events(after=after) as events:
        return await anext(events)


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake_is_the_same_error_on_both_sides(tmp_path: Path, mistake: str) -> None:
    async with both(tmp_path) as (kernel, remote):
        with pytest.raises(anybatch.AnyBatchError) as here:
            await MISTAKES[mistake](kernel)
        with pytest.raises(anybatch.AnyBatchError) as there:
            await MISTAKES[mistake](remote)
        assert type(there.value) is type(here.value)
        assert str(there.value) == str(here.value)
        assert list(vars(there.value)) == list(vars(here.value))
        for name in ("field", "allowed", "kind", "name"):
            assert getattr(there.value, name, None) == getattr(here.value, name, None)
    assert isinstance(here.value, InvalidValue | NotFound | Conflict | QuotaExceeded)


async def test_the_value_of_an_error_is_the_one_that_was_given(tmp_path: Path) -> None:
    async with both(tmp_path) as (_, remote):
        with pytest.raises(InvalidValue) as wrong:
            await remote.submit_job("j", queue="q", command=("a", 7))  # type: ignore[arg-type]
        assert (wrong.value.field, wrong.value.value) == ("command[1]", 7)
        with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
            await remote.submit_job("j", queue="q", colour="red")  # type: ignore[call-arg]
        with pytest.raises(InvalidValue, match="not nested so deep"):
            deep: list[Any] = []
            for _ in range(100_000):
                deep = [deep]
            await remote.describe_jobs(deep)


async def test_a_bug_of_the_kernel_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with both(tmp_path) as (kernel, remote):

        async def broken(job: object) -> None:
            raise ZeroDivisionError("by nought")

        monkeypatch.setattr(kernel, "describe_job", broken)
        with pytest.raises(anybatch.KernelBug, match="ZeroDivisionError: by nought"):
            await remote.describe_job("x")
        assert await remote.describe_jobs([]) == []


async def test_an_answer_that_is_too_large_costs_that_call_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with both(tmp_path) as (kernel, remote):
        job = await submit(kernel, environment={"A": "x" * 1000})
        monkeypatch.setattr(wire, "FRAME_BYTES_MAX", 20_000)
        with pytest.raises(ControlError, match="too large for the control socket: .* ask for less"):
            await remote.describe_jobs([job] * 100)
        with pytest.raises(InvalidValue, match="arguments: .* at most 20000"):
            await remote.submit_job("j", queue="q", command=["x" * 30_000])
        assert len(await remote.describe_jobs([job] * 3)) == 3


# -- many at once -----------------------------------------------------------------------------------


async def test_many_calls_go_through_one_connection_at_once(tmp_path: Path) -> None:
    backend = ManualBackend()
    async with both(tmp_path, backend) as (kernel, remote):
        job = await submit(kernel, array_size=4)
        waits = [asyncio.ensure_future(remote.wait(job[n % 4])) for n in range(400)]
        await until(lambda: len(backend.live) == 4)
        assert (await remote.describe_job(job)).status == "PENDING"  # not held up by them
        backend.exit(AttemptKey(job.id, 1, 1), 3)
        done = await asyncio.gather(*waits[1::4])
        assert {detail.exit_code for detail in done} == {3}
        assert not any(wait.done() for wait in waits[::4])
        backend.exit_all()
        assert len(await asyncio.gather(*waits)) == 400


async def test_a_hundred_clients_share_one_kernel(tmp_path: Path) -> None:
    async with both(tmp_path) as (kernel, _), contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(anybatch.connect(tmp_path / "j.db")) for _ in range(100)]

        async def use(n: int) -> str:
            job = await clients[n].submit_job(f"job-{n}", queue="q", command=["x"])
            return (await job.wait()).status

        assert set(await asyncio.gather(*map(use, range(100)))) == {"SUCCEEDED"}
        assert len([one async for one in kernel.list_jobs()]) == 100


async def test_a_wait_that_is_given_up_here_is_given_up_there(tmp_path: Path) -> None:
    backend = ManualBackend()
    async with both(tmp_path, backend) as (kernel, remote):
        job = await submit(kernel, array_size=2)
        await until(lambda: len(backend.live) == 2)
        wait = asyncio.ensure_future(remote.wait(job))
        await until(lambda: live(kernel)._ended)
        wait.cancel()
        await until(lambda: not live(kernel)._ended)
        follow = remote.logs(job[0], follow=True)
        assert await anext(aiter(follow)) == b"log of 1"
        await follow.aclose()  # type: ignore[attr-defined]
        await until(lambda: not any(c._calls or c._streams for c in server_of(kernel)._connections))
        assert (await job.describe()).status == "PENDING"


async def test_run_that_is_given_up_here_terminates_its_job(tmp_path: Path) -> None:
    made: list[ManualBackend] = []

    def make() -> ManualBackend:
        made.append(ManualBackend())
        return made[-1]

    async with both(tmp_path, make) as (kernel, remote):
        await kernel.create_compute_environment("anybatch-run", backend="b", max_vcpus=1)
        run = asyncio.ensure_future(remote.run(["x"]))
        await until(lambda: made[-1].live)
        run.cancel()
        await until(lambda: made[-1].stopped)
        (job,) = [one async for one in remote.list_jobs()]
        detail = await remote.wait(job.id)
        assert (detail.status, detail.status_reason) == ("FAILED", "The call that ran it was cancelled")


# -- streams ----------------------------------------------------------------------------------------


async def test_events_come_as_they_do_in_the_kernels_own_process(tmp_path: Path) -> None:
    async with both(tmp_path) as (kernel, remote):
        jobs = [await submit(kernel, f"job-{n}", array_size=50) for n in range(40)]
        for job in jobs:
            await job.wait()
        last = await kernel.last_event_id()

        async def read(one: Kernel, after: Any = None) -> list[JobEvent]:
            found = []
            async with one.events(after=after) as events:
                async for event in events:
                    found.append(event)
                    if event.job_id == jobs[-1].id and event.indexes is None and event.status.is_terminal:
                        return found
            raise AssertionError(last)

        here, there = await read(kernel), await read(remote)
        assert [(e.id, e.status, e.job_id, list(e.indexes or ())) for e in there] == [
            (e.id, e.status, e.job_id, list(e.indexes or ())) for e in here
        ]
        assert [e.id for e in await read(remote, here[9].id)] == [e.id for e in here[10:]]


async def test_an_event_is_not_lost_when_a_wait_for_it_is_given_up(tmp_path: Path) -> None:
    async with both(tmp_path) as (kernel, remote), remote.events(after=await remote.last_event_id()) as events:
        for n in range(20):
            wait = asyncio.ensure_future(anext(events))
            await turns(n % 5)
            wait.cancel()
            await asyncio.wait({wait})
            assert wait.cancelled()
        job = await submit(kernel)
        await job.wait()
        assert [(await anext(events)).status for _ in range(5)] == [
            "SUBMITTED", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED"
        ]  # fmt: skip


async def test_trimmed_events_are_the_same_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with both(tmp_path) as (kernel, remote):

        def trimmed(after: int) -> Any:
            raise EventsTrimmed((1, after), (2, 77))

        monkeypatch.setattr(live(kernel).journal, "read", trimmed)
        with pytest.raises(EventsTrimmed) as error:
            await first_event(remote, None)
        assert error.value.oldest == (2, 77)


async def test_events_are_used_in_async_with(tmp_path: Path) -> None:
    async with both(tmp_path) as (_, remote):
        with pytest.raises(RuntimeError, match="async with"):
            await anext(remote.events())


# -- the end ----------------------------------------------------------------------------------------


async def test_when_the_kernel_closes_everybody_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    backend = ManualBackend()
    with nothing_left():
        async with contextlib.AsyncExitStack() as stack:
            kernel = await stack.enter_async_context(Kernel(tmp_path / "j.db", backends={"b": backend}, control=True))
            await kernel.create_compute_environment("b", backend="b", max_vcpus=1)
            await kernel.create_job_queue("q", priority=1, compute_environments=["b"])
            async with anybatch.connect(tmp_path / "j.db") as remote:
                jobs = [await submit(kernel), await submit(kernel)]
                await until(lambda: backend.live)
                waits = [asyncio.ensure_future(remote.wait(job)) for job in jobs]
                seen: list[JobEvent] = []

                async def read() -> None:
                    async with remote.events() as events:
                        seen.extend([event async for event in events])

                reading = asyncio.ensure_future(read())
                following = asyncio.ensure_future(remote.read_logs(jobs[1]))
                await until(lambda: len(live(kernel)._ended) == 2)
                await stack.aclose()
                for wait in waits:
                    with pytest.raises(KernelClosed, match="the kernel is closed"):
                        await wait
                await reading
                assert seen
                assert await following == b""
                with pytest.raises(KernelClosed, match="lost: it has ended, or was killed"):
                    await remote.describe_job(jobs[0])
        assert sorted(path.name for path in (tmp_path / "j.db.d").glob("control*")) == []
    with pytest.raises(NotRunning, match="no kernel runs on .*j.db"):
        async with anybatch.connect(tmp_path / "j.db"):
            pass


async def test_leaving_a_client_ends_what_it_waited_for_and_no_more(tmp_path: Path) -> None:
    backend = ManualBackend()
    async with both(tmp_path, backend) as (kernel, remote):
        job = await submit(kernel)
        async with anybatch.connect(tmp_path / "j.db") as other:
            wait = asyncio.ensure_future(other.wait(job))
            await until(lambda: live(kernel)._ended)
        with pytest.raises(KernelClosed, match="connection to the kernel is closed"):
            await wait
        await until(lambda: not live(kernel)._ended)
        with pytest.raises(KernelClosed, match="connection to the kernel is closed"):
            await other.describe_job(job)
        with pytest.raises(KernelClosed, match="used once"):
            await other.__aenter__()
        assert (await remote.describe_job(job)).status == "RUNNING"


async def test_a_client_that_is_not_entered_says_so(tmp_path: Path) -> None:
    remote = anybatch.connect(tmp_path / "j.db")
    for use in (lambda: remote.id, lambda: remote.events()):
        with pytest.raises(KernelClosed, match="not connected; use it in `async with`"):
            use()
    with pytest.raises(KernelClosed, match="not connected"):
        await remote.describe_job("x")
    with pytest.raises(InvalidValue, match="path: None"):
        anybatch.connect(None)  # type: ignore[arg-type]


async def test_a_journal_in_memory_may_have_a_socket_too(tmp_path: Path) -> None:
    async with Kernel(control=True) as kernel:
        assert kernel.control_path is not None
        async with anybatch.connect(kernel.control_path) as remote:
            assert (remote.id, remote.path) == (kernel.id, None)
    async with Kernel(control=tmp_path / "here.sock"), anybatch.connect(tmp_path / "here.sock") as remote:
        assert remote.control_path == tmp_path / "here.sock"
    assert list(tmp_path.iterdir()) == []
