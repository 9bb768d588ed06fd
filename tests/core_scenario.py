"""One long life of a kernel, with something of everything: recorded, cut short, re-batched and spoilt by tests."""

from __future__ import annotations

from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.indexes import made_of
from anybatch.kernel.core.model import Action, EvaluateOnExit, ExitKind, On, OnMaxFailures, RetryStrategy
from anybatch.kernel.core.states import FAILED
from core_rig import (
    DISABLED,
    ENABLED,
    SEQUENTIAL,
    SEQUENTIAL_ANY,
    Rig,
    after,
    after_any,
    after_failure,
    n_to_n,
)  # fmt: skip

HOST_LOSS_ONLY = RetryStrategy(
    4, (EvaluateOnExit(Action.RETRY, on_status_reason="Host EC2*"), EvaluateOnExit(Action.EXIT, on_reason="*"))
)


def furnish(rig: Rig) -> None:
    """Two environments, three hosts, three queues, a definition."""
    rig.environment("env")
    rig.environment("spare")
    rig.host("one", 4, memory=1000, gpus=(0, 1, 2))
    rig.host("two", 2)
    rig.host("far", 2, environment="spare")
    rig.queue("high", "env", "spare", priority=5)
    rig.queue("queue", "env", priority=1)
    rig.queue("doomed", "spare", priority=0)
    rig.define("step", command=("run", "Ref::what"), environment={"A": "1"}, retry=RetryStrategy(2), timeout_ms=60_000)
    rig.define("step", command=("run", "newer"), parameters={"what": "x"})


def lives(rig: Rig) -> None:
    """Jobs of every kind come, run, fail, are stopped and are lost, over two openings."""
    pairs = rig.submit("pairs", size=6, attempts=5, queue="high", token="once")
    rig.advance(10)
    follow = rig.submit("follow", n_to_n("pairs"), size=6, queue="queue", vcpus=0.5, attempts=5)
    steps = rig.submit("steps", SEQUENTIAL, after(rig.child(pairs, 0)), size=4, queue="high", attempts=5)
    gpu = rig.submit("gpu", size=2, gpus=1, memory_mib=100, retry=HOST_LOSS_ONLY)
    rig.submit("never", after("follow"), after("steps"), definition="step:1", parameters={"what": "never"})
    late = rig.submit("late", after("pairs"), definition="step:1", parameters={"what": "late"})
    slow = rig.submit("slow", definition="step", timeout_ms=500, queue="high", attempts=3)
    gone = rig.submit("gone", size=3, queue="doomed")
    rig.submit("gone-too", after(rig.id(gone)), queue="queue")
    rig.place()
    rig.advance(5)
    rig.start(pairs, 0, 1, 2, at_ms=[rig.now_ms - 3, rig.now_ms - 2, rig.now_ms - 3])
    rig.exit(pairs, 0)
    rig.exit(pairs, 1, code=7, reason="OutOfMemoryError: Container killed due to memory usage")
    rig.exit(pairs, 3)
    rig.place()
    rig.advance(20)
    rig.cancel(rig.child(follow, 4), "not this one")
    rig.unknown(pairs, 2)
    rig.host_down("two", "reclaimed")
    rig.place()
    rig.do(ask.UpdateQueue(name="doomed", state=DISABLED))
    rig.do(ask.DeleteQueue(name="doomed"))
    rig.host("two", 4, gpus=(4, 5))
    rig.place()
    for serial in (slow, gpu, steps):
        live = [i for i, status in enumerate(rig.statuses(serial)) if status == "s"]
        if live:
            rig.start(serial, *live)
    rig.advance(600)
    finish_live(rig, code=143)
    rig.place()
    rig.do(ask.StopRunning(environments=("env",)))
    finish_live(rig, code=None)
    rig.do(ask.OpenKernel(kernel_id="of-no-use"))
    rig.do(ask.HostUp(environment="env", host="one", vcpus_milli=6000, memory_mib=1000, gpus=(0, 2)))
    rig.do(ask.AllListed(environment="env", hosts=("one", "two")))
    rig.do(ask.AllListed(environment="spare", hosts=()))
    rig.host("far", 3, environment="spare")
    rig.place()
    rig.terminate(rig.child(steps, 2), "enough of it")
    rig.do(ask.EnvironmentFailed(environment="spare", reason="broken"))
    rig.do(ask.UpdateEnvironment(name="spare", options={"try": "again"}))
    rig.do(ask.AllListed(environment="spare", hosts=("far",)))
    rig.submit("again", queue="high", token="once")
    rig.submit("more", after("late"), size=2, queue="high")
    rig.submit("tidy", SEQUENTIAL_ANY, after_any("steps"), n_to_n(rig.id(steps), On.ANY), size=4, queue="high")
    rig.submit("mend", after_failure("slow"), queue="high")
    rig.submit("idle", n_to_n(rig.id(pairs), On.FAILURE), size=6, queue="high")
    rig.submit("few", size=4, max_running=1, vcpus=0.5, attempts=2, queue="high")
    rig.submit("frail", size=5, max_failures=1, on_max_failures=OnMaxFailures.TERMINATE, vcpus=0.5, queue="high")
    rig.submit("long", size=2, checkpoint_exit_codes=(1,), max_checkpoints=1, vcpus=0.5, queue="high")
    rig.submit("picked", size=3, indexes=made_of([3, 7, 9]), vcpus=0.5, queue="high")
    rig.submit("spaced", SEQUENTIAL_ANY, size=3, indexes=range(10, 25, 5), vcpus=0.5, queue="high")
    rig.do(ask.DeregisterDefinition(name="step", revision=2))
    for round_number in range(40):
        if all(job.ended for job in rig.state.jobs.values()):
            break
        rig.advance(50)
        rig.place()
        finish_live(rig, code=1 if round_number == 1 else 0)
    assert late in rig.state.jobs
    for n, serial in enumerate(sorted(rig.state.jobs)):
        job = rig.job(serial)
        tried = [i for i in job.children.with_status(FAILED) if job.children.number[i]]
        if tried and job.ended and job.queue in rig.state.queues:
            rig.rerun(serial, dependents=n % 2 == 0)
    for round_number in range(40):
        if all(job.ended for job in rig.state.jobs.values()):
            break
        rig.advance(50)
        rig.place()
        finish_live(rig, code=1 if round_number < 2 else 0)


def finish_live(rig: Rig, *, code: int | None) -> None:
    """All that is live ends, in one report per job, environment and attempt number."""
    for serial in list(rig.state.jobs):
        groups: dict[tuple[str, int], list[int]] = {}
        for i in rig.job(serial).live():
            groups.setdefault((rig.where(serial, i), rig.job(serial).children.number[i]), []).append(i)
        for (_, number), indexes in groups.items():
            rig.exit(serial, *indexes, code=code, number=number, kind=ExitKind.EXITED)


def close_down(rig: Rig) -> None:
    """An empty queue and an environment go; ended jobs are forgotten."""
    rig.do(ask.UpdateQueue(name="queue", state=DISABLED))
    rig.do(ask.DeleteQueue(name="queue"))
    rig.do(ask.UpdateQueue(name="high", compute_environments=("env",), retain_succeeded_ms=100, retain_failed_ms=2000))
    rig.do(ask.UpdateEnvironment(name="spare", state=DISABLED))
    rig.do(ask.DeleteEnvironment(name="spare"))
    rig.do(ask.UpdateEnvironment(name="env", state=ENABLED))
    rig.advance(5_000)


def full_life(rig: Rig) -> None:
    """All of it."""
    furnish(rig)
    lives(rig)
    close_down(rig)
