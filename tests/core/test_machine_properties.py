"""Random commands, reports and time against the whole core: what must hold of every run, whatever happens.

`HYPOTHESIS_PROFILE=thorough` looks for much longer. A failure prints the steps and the line that repeats it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import pytest
from anybatch.kernel.core import evolve, follow, machine, placement, rerun, snapshot, waits
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.errors import RequestError
from anybatch.kernel.core.events import RerunRequested
from anybatch.kernel.core.explain import Code, explain
from anybatch.kernel.core.indexes import Indexes, made_of
from anybatch.kernel.core.inputs import DependencyRequest
from anybatch.kernel.core.model import (
    Action,
    DefinitionBody,
    EnvironmentBody,
    EvaluateOnExit,
    ExitKind,
    On,
    OnMaxFailures,
    ResourceStatus,
    RetryStrategy,
    Shape,
)
from anybatch.kernel.core.snapshot import decode, encode
from anybatch.kernel.core.state import EnvironmentRow, HostRow, JobRow, KernelState, Lane
from anybatch.kernel.core.states import FAILED, RUNNABLE, RUNNING, STARTING, STATUSES, SUCCEEDED
from core_oracle import Oracle
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
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

T = TypeVar("T")
ENVIRONMENTS, QUEUES, HOSTS = ("a", "b"), ("high", "low"), ("h1", "h2", "h3")
JOBS_MAX = 12
DRAIN_ROUNDS_MAX = 100
BIG = 64_000
DAY_MS = 86_400_000
THOROUGH = settings.default is not None and settings.default.max_examples > 1000
EXAMPLES, STEPS = (4000, 100) if THOROUGH else (300, 50)

numbers = st.integers(0, 1 << 16)
"""Picks something of what is there, modulo how much there is."""
STRATEGIES = (
    RetryStrategy(1),
    RetryStrategy(2),
    RetryStrategy(4),
    RetryStrategy(4, (EvaluateOnExit(Action.RETRY, "Host EC2*"), EvaluateOnExit(Action.EXIT, on_reason="*"))),
    RetryStrategy(3, (EvaluateOnExit(Action.EXIT, on_exit_code="2*"),)),
    RetryStrategy(1, host_lost_retries=2),
)
SHAPES = (Shape(500, 0, 0), Shape(1000, 100, 0), Shape(2000, 0, 0), Shape(1000, 300, 1), Shape(250, 50, 2))


ONS = (On.SUCCESS, On.SUCCESS, On.ANY, On.FAILURE)
AFTER = {On.SUCCESS: after, On.ANY: after_any, On.FAILURE: after_failure}


class AskedJob(NamedTuple):
    """A submit, with what it waits for given by numbers."""

    queue: str
    size: int | None
    shape: Shape
    retry: RetryStrategy
    timeout_ms: int | None
    sequential: On | None
    waits: list[tuple[int, str, On]]
    token: str | None
    max_running: int | None
    max_failures: int | None
    on_max_failures: OnMaxFailures
    checkpoints: tuple[tuple[int, ...], int]
    spread: int | None


asked_jobs = st.builds(
    AskedJob,
    st.sampled_from(QUEUES),
    st.sampled_from((None, 2, 3, 5)),
    st.sampled_from(SHAPES),
    st.sampled_from(STRATEGIES),
    st.sampled_from((None, 1, 5_000)),
    st.sampled_from((None, None, On.SUCCESS, On.ANY)),
    st.lists(st.tuples(numbers, st.sampled_from(("job", "child", "n_to_n", "name")), st.sampled_from(ONS)), max_size=2),
    st.sampled_from((None, None, None, None, "x")),
    st.sampled_from((None, None, 1, 2)),
    st.sampled_from((None, None, 1, 2)),
    st.sampled_from(OnMaxFailures),
    st.sampled_from((((), 1), ((1, 2, 137), 1), ((1, 2, 137), 2))),
    st.sampled_from((None, None, None, 1, 2)),
)


def spread_out(size: int, how: int) -> Indexes:
    """Indexes that are no places: evenly spaced ones, or others."""
    return made_of([7 + 3 * n**how for n in range(size)])


def pick(items: Sequence[T], number: int) -> T:
    return items[number % len(items)]


class KernelMachine(RuleBasedStateMachine):
    """The core under everything at once."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.oracle = Oracle()

    def do(self, item: ask.Input) -> None:
        """An input; refusals are fine, and the rig checks that they change nothing."""
        try:
            step = self.rig.do(item)
        except RequestError:
            return
        self.oracle.take(step, self.rig.state, adopted=isinstance(item, ask.Found))

    # -- what is there ------------------------------------------------------------------------------

    def children(self, *statuses: int) -> list[tuple[int, int]]:
        return [
            (serial, i)
            for serial, job in self.rig.state.jobs.items()
            for i in range(job.children.size)
            if job.children.status[i] in statuses
        ]

    def group(self, number: int, *statuses: int) -> tuple[int, int, list[int]] | None:
        """(job, attempt number, some children that share it and have one of these statuses)."""
        found = self.children(*statuses)
        if not found:
            return None
        serial, i = pick(found, number)
        column, where = self.rig.job(serial).children.number, self.rig.where(serial, i)
        share = [j for s, j in found if s == serial and column[j] == column[i] and self.rig.where(s, j) == where]
        chosen = [j for n, j in enumerate(share) if j == i or number >> (n % 16) & 1]
        return serial, column[i], chosen[::-1] if number & 1 else chosen

    # -- rules: requests ----------------------------------------------------------------------------

    @initialize(shared=st.booleans(), vcpus=st.integers(1, 4), first=st.lists(asked_jobs, min_size=2, max_size=5))
    def furnish(self, shared: bool, vcpus: int, first: list[AskedJob]) -> None:
        for name in ENVIRONMENTS:
            self.make_environment(name)
            self.do(ask.AllListed(environment=name, hosts=()))
        self.do(ask.HostUp(environment="a", host="h1", vcpus_milli=1000 * vcpus, memory_mib=400, gpus=(0, 1)))
        self.make_queue("high", 2, ("a", "b"))
        self.make_queue("low", 1, ("a", "b") if shared else ("b",))
        self.submit(first)

    @rule(jobs=st.lists(asked_jobs, min_size=1, max_size=3))
    def submit(self, jobs: list[AskedJob]) -> None:
        for job in jobs:
            if len(self.rig.state.jobs) < JOBS_MAX:
                self.submit_one(job)

    def submit_one(self, asked: AskedJob) -> None:
        size, shape = asked.size, asked.shape
        depends_on: list[DependencyRequest] = []
        if asked.sequential is not None and size is not None:
            depends_on.append(SEQUENTIAL_ANY if asked.sequential is On.ANY else SEQUENTIAL)
        jobs = list(self.rig.state.jobs.values())
        for number, kind, on in asked.waits if jobs else ():
            other = pick(jobs, number)
            if kind == "child" and other.size is not None:
                depends_on.append(AFTER[on](other.child_id(number % other.size)))
            elif kind == "n_to_n" and size is not None:
                same = [job for job in jobs if job.size == size] or [other]
                depends_on.append(n_to_n(pick(same, number).job_id, on))
            else:
                depends_on.append(AFTER[on](other.name if kind == "name" else other.job_id))
        try:
            step = self.rig.submit_step(
                f"job-{len(jobs) % 5}",
                *depends_on,
                queue=asked.queue,
                size=size,
                indexes=None if size is None or asked.spread is None else spread_out(size, asked.spread),
                token=asked.token,
                max_running=None if size is None else asked.max_running,
                max_failures=None if size is None else asked.max_failures,
                on_max_failures=None if size is None or asked.max_failures is None else asked.on_max_failures,
                checkpoint_exit_codes=asked.checkpoints[0],
                max_checkpoints=asked.checkpoints[1] if asked.checkpoints[0] else None,
                retry=asked.retry,
                timeout_ms=asked.timeout_ms,
                vcpus_milli=shape.vcpus_milli,
                memory_mib=shape.memory_mib,
                gpus=shape.gpus,
            )
        except RequestError:
            return
        self.oracle.take(step, self.rig.state)

    @precondition(lambda self: self.rig.state.jobs)
    @rule(number=numbers, terminate=st.booleans(), one=st.booleans())
    def stop(self, number: int, terminate: bool, one: bool) -> None:
        job = pick(list(self.rig.state.jobs.values()), number)
        reference = job.child_id((number >> 4) % job.size if one and job.size is not None else None)
        self.do(ask.StopJob(job=reference, reason="asked", terminate=terminate))

    @precondition(lambda self: self.rig.state.jobs)
    @rule(number=numbers, one=st.booleans(), dependents=st.booleans())
    def run_again(self, number: int, one: bool, dependents: bool) -> None:
        jobs = list(self.rig.state.jobs.values())
        job = pick([job for job in jobs if job.children.counts[FAILED]] or jobs, number)
        reference = job.child_id((number >> 4) % job.size if one and job.size is not None else None)
        self.do(ask.RerunJob(job=reference, dependents=dependents))

    def make_queue(self, name: str, priority: int, environments: tuple[str, ...]) -> None:
        try:
            step = self.rig.queue(name, *environments, priority=priority)
        except RequestError:
            return
        self.oracle.take(step, self.rig.state)

    def make_environment(self, name: str) -> None:
        self.do(ask.CreateEnvironment(name=name, body=EnvironmentBody(backend="null", max_vcpus_milli=BIG)))

    @rule(what=st.integers(0, 13), queue=st.sampled_from(QUEUES), environment=st.sampled_from(ENVIRONMENTS))
    def change_resources(self, what: int, queue: str, environment: str) -> None:
        """Queues, environments and definitions come, change and go."""
        disabled = ENABLED if what & 1 else DISABLED
        match what // 2:
            case 0:
                self.do(ask.UpdateQueue(name=queue, state=disabled))
            case 1:
                orders = (("a",), ("b", "a"))
                self.do(ask.UpdateQueue(name=queue, priority=what, compute_environments=orders[what & 1]))
                self.do(ask.UpdateQueue(name=queue, retain_succeeded_ms=20_000, retain_failed_ms=100_000_000 * what))
            case 2 if queue in self.rig.state.queues:
                self.do(ask.UpdateQueue(name=queue, state=DISABLED))
                self.do(ask.DeleteQueue(name=queue))
            case 2:
                self.make_queue(queue, 1, ENVIRONMENTS)
            case 3:
                self.do(ask.UpdateEnvironment(name=environment, state=disabled))
            case 4:
                self.do(ask.UpdateEnvironment(name=environment, options={"n": what}))
            case 5 if environment in self.rig.state.environments and what & 1:
                self.do(ask.UpdateEnvironment(name=environment, state=DISABLED))
                self.do(ask.DeleteEnvironment(name=environment))
            case 5:
                self.make_environment(environment)
            case 6 if what & 1:
                self.do(ask.RegisterDefinition(name="d", body=DefinitionBody(command=(queue,))))
            case _:
                self.do(ask.DeregisterDefinition(name="d", revision=1))

    # -- rules: reports -----------------------------------------------------------------------------

    @rule(
        environment=st.sampled_from(ENVIRONMENTS),
        host=st.sampled_from(HOSTS),
        vcpus=st.integers(1, 4),
        memory_mib=st.sampled_from((None, 300, 900)),
        gpus=st.sampled_from(((), (0, 1), (1, 2), (0, 1, 2, 3))),
        lookahead=st.sampled_from((0, 0, 0, 2)),
    )
    def host_up(
        self, environment: str, host: str, vcpus: int, memory_mib: int | None, gpus: tuple[int, ...], lookahead: int
    ) -> None:
        self.do(
            ask.HostUp(
                environment=environment,
                host=host,
                vcpus_milli=1000 * vcpus,
                memory_mib=memory_mib,
                gpus=gpus,
                lookahead=lookahead,
            )
        )

    @rule(what=st.integers(0, 2), environment=st.sampled_from(ENVIRONMENTS), keep=st.integers(0, 7))
    def hosts_and_environments_come_and_go(self, what: int, environment: str, keep: int) -> None:
        match what:
            case 0:
                self.do(ask.HostDown(environment=environment, host=pick(HOSTS, keep), reason="gone"))
            case 1:
                hosts = tuple(host for n, host in enumerate(HOSTS) if keep >> n & 1)
                self.do(ask.AllListed(environment=environment, hosts=hosts))
            case _:
                self.do(ask.EnvironmentFailed(environment=environment, reason="broken"))

    @rule(number=numbers, early=st.sampled_from((None, 0, 3, 100_000, -50)))
    def started(self, number: int, early: int | None) -> None:
        self._started(self.group(number, STARTING), early)

    def _started(self, group: tuple[int, int, list[int]] | None, early: int | None) -> None:
        if group is not None:
            serial, attempt, indexes = group
            at_ms = None if early is None else [self.rig.now_ms - early - n for n in range(len(indexes))]
            self.do(
                ask.Started(
                    environment=self.rig.where(serial, *indexes),
                    job=serial,
                    number=attempt,
                    indexes=indexes,
                    at_ms=at_ms,
                )
            )

    @rule(
        number=numbers,
        codes=st.lists(st.sampled_from((0, 0, 0, 1, 2, 137, None)), min_size=5, max_size=5),
        kind=st.sampled_from((ExitKind.EXITED, ExitKind.EXITED, ExitKind.EXITED, ExitKind.LOST, ExitKind.TIMED_OUT)),
        early=st.sampled_from((None, 0, 3, 100_000, -50)),
        reason=st.sampled_from((None, None, "OutOfMemoryError: killed")),
    )
    def ended(
        self, number: int, codes: list[int | None], kind: ExitKind, early: int | None, reason: str | None
    ) -> None:
        group = self.group(number, STARTING, RUNNING, RUNNING)
        if group is None:
            return
        serial, attempt, indexes = group
        at_ms = None if early is None else [self.rig.now_ms - early - n for n in range(len(indexes))]
        self.do(
            ask.Ended(
                environment=self.rig.where(serial, *indexes),
                job=serial,
                number=attempt,
                indexes=indexes,
                kind=kind,
                at_ms=at_ms,
                reason=reason,
                codes=codes[: len(indexes)] if kind is not ExitKind.LOST else [None] * len(indexes),
            )
        )

    @rule(number=numbers)
    def unknown(self, number: int) -> None:
        group = self.group(number, STARTING, RUNNING)
        if group is not None:
            self.do(
                ask.Unknown(
                    environment=self.rig.where(group[0], *group[2]), job=group[0], number=group[1], indexes=group[2]
                )
            )

    @rule(number=numbers, environment=st.sampled_from(ENVIRONMENTS), host=st.sampled_from(HOSTS))
    def found(self, number: int, environment: str, host: str) -> None:
        """A host holds attempts whose placement was lost."""
        group = self.group(number, RUNNABLE)
        if group is not None:
            self.do(
                ask.Found(
                    environment=environment,
                    host=host,
                    job=group[0],
                    number=group[1] + 1 - number % 8 // 7,
                    indexes=group[2],
                )
            )

    @precondition(lambda self: self.rig.state.jobs)
    @rule(number=numbers, off=st.sampled_from((-1, 0, 1)), kind=st.integers(0, 2))
    def late_duplicate_or_early(self, number: int, off: int, kind: int) -> None:
        """A report about an attempt that is not the live one, of any child: nothing happens."""
        serial = pick(list(self.rig.state.jobs), number)
        children = self.rig.job(serial).children
        indexes = [i for i in range(children.size) if off or children.status[i] not in (STARTING, RUNNING)]
        attempt = children.number[0] + off
        indexes = [i for i in indexes if children.number[i] != attempt or children.status[i] not in (STARTING, RUNNING)]
        items: tuple[ask.Input, ...] = (
            ask.Started(environment="a", job=serial, number=attempt, indexes=indexes),
            ask.Ended(environment="a", job=serial, number=attempt, indexes=indexes),
            ask.Unknown(environment="a", job=serial, number=attempt, indexes=indexes),
        )
        step = self.rig.do(pick(items, kind))
        assert step.events == []
        assert step.effects == []

    # -- rules: time, planning, closing and opening -------------------------------------------------------

    @rule(most=st.sampled_from((1, 2, 10_000, 10_000)))
    def plan(self, most: int) -> None:
        step = self.rig.place(most)
        self.oracle.take(step, self.rig.state)

    @rule(number=numbers, code=st.sampled_from((0, 0, 0, 1)))
    def work_along_more(self, number: int, code: int) -> None:
        """The same again: rules are chosen alike, and this one should come often."""
        self.work_along_with(number, code)

    @rule(number=numbers, code=st.sampled_from((0, 0, 0, 1)))
    def work_along(self, number: int, code: int) -> None:
        self.work_along_with(number, code)

    def work_along_with(self, number: int, code: int) -> None:
        """Place what can be, start all of it, and end some: keeps runs from standing still."""
        self.plan(10_000)
        while (group := self.group(0xFFFE, STARTING)) is not None:
            self._started(group, None)
        group = self.group(number, RUNNING)
        if group is not None:
            codes: list[int | None] = [code] * len(group[2])
            where = self.rig.where(group[0], *group[2])
            self.do(ask.Ended(environment=where, job=group[0], number=group[1], indexes=group[2], codes=codes))

    @rule(ms=st.sampled_from((1, 100, 5_000, 30_000, 61_000, 310_000, 8 * DAY_MS)))
    def time_passes(self, ms: int) -> None:
        end_ms = self.rig.now_ms + ms
        for _ in range(1000):
            due = machine.next_timer_ms(self.rig.state)
            if due is None or due > end_ms:
                break
            self.rig.now_ms = max(self.rig.now_ms, due)
            self.do(ask.Tick())
        else:
            raise AssertionError("timers never come to an end")
        self.rig.now_ms = end_ms
        self.do(ask.Tick())

    @rule(which=st.sampled_from((None, ("a",), ("b",))))
    def stop_running(self, which: tuple[str, ...] | None) -> None:
        self.do(ask.StopRunning(environments=which))

    @rule(how=st.sampled_from(("log", "snapshot")), keep=st.integers(0, 7), listed=st.booleans())
    def open_again(self, how: str, keep: int, listed: bool) -> None:
        """A crash: what is in the journal, or in its snapshot, is all that is left."""
        self.swap(how)
        self.rig.state.unknown.clear()
        self.do(ask.OpenKernel(kernel_id="of-no-use"))
        for name in ENVIRONMENTS if listed else ():
            self.do(ask.AllListed(environment=name, hosts=tuple(h for n, h in enumerate(HOSTS) if keep >> n & 1)))

    @rule(how=st.sampled_from(("log", "snapshot")))
    def swap(self, how: str) -> None:
        """Go on with the state as recovered. (What is unknown is asked for again, so it is carried over.)"""
        rig, unknown, now_ms = self.rig, self.rig.state.unknown, self.rig.state.now_ms
        rig.state = rig.replayed() if how == "log" else decode(encode(rig.state), rig.quotas)
        rig.state.unknown, rig.state.now_ms = unknown, now_ms

    # -- what holds ---------------------------------------------------------------------------------

    @invariant()
    def what_waits_while_it_fits_is_placed_by_a_plan(self) -> None:
        """After a plan that had enough to give, no open environment has room for a head of one of its queues."""
        taken = self.rig.taken[-1]
        if not isinstance(taken.item, ask.Plan) or taken.item.most < 10_000:
            return
        state = self.rig.state
        held = placement.reservations(state)
        for job in state.jobs.values():
            if job.children.counts[RUNNABLE] and job.room(1):
                for name in state.queues[job.queue].body.compute_environments:
                    environment = state.environments.get(name)
                    if environment is not None and placement.is_open(environment):
                        hosts = [state.hosts[serial] for serial in environment.hosts.values() if serial not in held]
                        assert not any(host.fits(job.shape, 1) for host in hosts)

    @invariant()
    def no_attempt_is_past_its_time(self) -> None:
        """When time has passed, what runs longer than it may is being stopped, where its host can be heard."""
        state = self.rig.state
        if not isinstance(self.rig.taken[-1].item, ask.Tick):
            return
        for serial, i in self.children(RUNNING):
            job = state.jobs[serial]
            if job.spec.timeout_ms is None or i in job.stopping:
                continue
            host = state.hosts[job.children.hosts()[i]]
            if state.environments[host.environment].listed:
                due = job.children.times()[0][i] + job.spec.timeout_ms
                assert due > state.now_ms, "a job outlives its timeout"

    @invariant()
    def every_job_and_child_is_explained(self) -> None:
        """Never with nothing; and after a plan that had enough to give, nobody is told that he is placed next."""
        state, taken = self.rig.state, self.rig.taken[-1]
        is_planned = isinstance(taken.item, ask.Plan) and taken.item.most >= 10_000
        for job in state.jobs.values():
            for index in (None, *range(job.size or 0)):
                reasons = explain(state, job, index, self.rig.now_ms)
                assert reasons, f"nothing is said about {job.serial}:{index}"
                assert all(reason.text for reason in reasons)
                deciding = reasons[0].code
                assert not (is_planned and deciding in (Code.NEXT, Code.BEHIND_OTHERS)), (job.serial, index, reasons)
                status = job.status if index is None else STATUSES[job.children.status[index]]
                if status.is_terminal or deciding in (Code.SUCCEEDED, Code.FAILED):
                    assert deciding == status.value, (job.serial, index, reasons)

    def teardown(self) -> None:
        if self.rig.state.queues or self.rig.state.jobs:
            self.drain()
        self.rig.verify()

    def drain(self) -> None:
        """Once hosts suffice and attempts end, every job ends."""
        for name in ENVIRONMENTS:
            if name not in self.rig.state.environments:
                self.make_environment(name)
            self.do(ask.UpdateEnvironment(name=name, state=ENABLED))
            for host in HOSTS:
                self.do(ask.HostUp(environment=name, host=host, vcpus_milli=BIG, gpus=tuple(range(16))))
            self.do(ask.AllListed(environment=name, hosts=HOSTS))
            assert self.rig.state.environments[name].status is ResourceStatus.VALID
        for _ in range(DRAIN_ROUNDS_MAX):
            if all(job.ended for job in self.rig.state.jobs.values()):
                break
            self.plan(10_000)
            while (group := self.group(0xFFFE, STARTING, RUNNING)) is not None:
                before = len(self.children(STARTING, RUNNING))
                self.do(
                    ask.Ended(
                        environment=self.rig.where(group[0], *group[2]), job=group[0], number=group[1], indexes=group[2]
                    )
                )
                assert len(self.children(STARTING, RUNNING)) < before, (
                    f"the end of live attempts changes nothing: {group}, {self.rig.taken[-1]}"
                )
        left = {s: self.rig.statuses(s) for s, job in self.rig.state.jobs.items() if not job.ended}
        assert left == {}, "jobs that never end"
        assert self.rig.state.unfinished == 0
        assert [q.name for q in self.rig.state.queues.values() if q.status is ResourceStatus.DELETING] == []
        assert not any(host.load for host in self.rig.state.hosts.values())


SEEDS_MAX = 5
"""Runs in which one complaint of a deliberate mistake has to come."""
SETTINGS = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.timeout(7200 if THOROUGH else 900)  # a failure is made small before it is shown
def test_whatever_happens_the_rules_hold() -> None:
    run_state_machine_as_test(KernelMachine, settings=SETTINGS)


# -- the same, with a mistake in the kernel -----------------------------------------------------------------------


def nothing_is_placed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(machine, "placements", lambda *_: iter(()))


def nothing_is_released(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(follow, "_released", lambda *_: iter(()))


def a_wrong_evolve(patch: pytest.MonkeyPatch) -> None:
    """Of one event: what an attempt took is never given back."""
    patch.setattr(evolve, "_free", lambda *_: None)


def timeouts_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    for module in (evolve, snapshot):
        patch.setattr(module, "arm_timeouts", lambda *_: None)


def every_end_will_do(patch: pytest.MonkeyPatch) -> None:
    for module in (follow, waits):
        patch.setattr(module, "is_met", lambda _, status: status >= SUCCEEDED)


def what_runs_again_is_not_told(patch: pytest.MonkeyPatch) -> None:
    """Of an array that goes on: its parent stays as it is."""
    patch.setattr(rerun, "ParentReopened", lambda job: RerunRequested(job, None, False, None, None))


def caps_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(JobRow, "room", lambda _, most: most)


def what_was_capped_stays_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lane, "take_back", lambda *_: None)


def failures_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(follow, "_too_many", lambda *_: iter(()))


def best_hosts_are_overlooked(patch: pytest.MonkeyPatch) -> None:
    for name in ("best_host", "ahead_host"):
        choose = getattr(placement, name)

        def picky(
            state: KernelState, environment: EnvironmentRow, shape: Shape, *held: Any, choose: Any = choose
        ) -> HostRow | None:
            host: HostRow | None = choose(state, environment, shape, *held)
            return None if host is not None and host.load else host

        patch.setattr(placement, name, picky)


@pytest.mark.parametrize(
    ("mistake", "complaint"),
    [
        (nothing_is_placed, "jobs that never end|assert not"),
        (nothing_is_released, "nothing stays SUBMITTED after a step"),
        (a_wrong_evolve, "a host's load counts its live attempts"),
        (timeouts_are_forgotten, "a job outlives its timeout"),
        (best_hosts_are_overlooked, "assert not"),
        (every_end_will_do, "what may run waits for nothing|is released while"),
        (what_runs_again_is_not_told, "a child goes on in an array that does not|a parent ends with its last child"),
        (caps_are_forgotten, "children of .* run, which may have"),
        (what_was_capped_stays_out, "runnable work is in its lane"),
        (failures_are_not_counted, "goes on after . failures"),
    ],
)
def test_a_kernel_with_a_mistake_does_not_pass(
    mistake: Callable[[pytest.MonkeyPatch], None], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    few = settings(SETTINGS, max_examples=300, phases=[Phase.generate], derandomize=False, database=None)
    seen: list[str] = []
    for number in range(
        SEEDS_MAX
    ):  # what an example meets first depends on more than its seed: the constants around it

        class Machine(KernelMachine):
            pass

        try:
            run_state_machine_as_test(seed(number)(Machine), settings=few)
        except Exception as e:  # the kernel's own checks may be the first to notice
            if isinstance(e, AssertionError) and re.search(complaint, str(e)):
                return
            seen.append(f"seed {number}: {str(e).partition(chr(10))[0]}")
        else:
            seen.append(f"seed {number}: nothing")
    pytest.fail(f"nobody complained of {complaint!r}, but: {seen}")
