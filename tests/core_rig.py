"""Drives the pure core by hand: time is a number, and every input is written down and checked three ways.

`verify` (called at the end of every test that uses the `rig` fixture) says that the invariants hold, that the
events as the journal keeps them, applied to a fresh state, give the live state, and that a kernel which had
been closed and opened from a snapshot after any of the inputs would have gone on in exactly the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.children import NO_CODE, PastAttempt
from anybatch.kernel.core.effects import Effect, LaunchAttempts, NotifyChildren, NotifyJob, StopAttempts, WantPlan
from anybatch.kernel.core.errors import RequestError
from anybatch.kernel.core.events import AnyEvent
from anybatch.kernel.core.indexes import Indexes
from anybatch.kernel.core.invariants import check_invariants
from anybatch.kernel.core.machine import Step, handle, next_timer_ms, replay
from anybatch.kernel.core.model import (
    DefinitionBody,
    DependencyType,
    EnvironmentBody,
    ExitKind,
    On,
    Overrides,
    QueueBody,
    Quotas,
    ResourceState,
    RetryStrategy,
)
from anybatch.kernel.core.snapshot import decode, encode
from anybatch.kernel.core.state import JobRow, KernelState
from anybatch.kernel.core.states import STATUSES, JobStatus

START_MS = 1_800_000_000_000
KERNEL_ID = "0123456789ab"
SEQUENTIAL = ask.DependencyRequest(DependencyType.SEQUENTIAL)
SEQUENTIAL_ANY = ask.DependencyRequest(DependencyType.SEQUENTIAL, on=On.ANY)
DISABLED, ENABLED = ResourceState.DISABLED, ResourceState.ENABLED
EVENTS_DECODER = msgspec.msgpack.Decoder(list[AnyEvent])
RULE_STEPS_MAX = 60
"""Up to this many inputs a test is repeated from the snapshot after each of them; a longer one from a few."""


def job_id(number: int) -> str:
    """A UUID that tells which submit it came from."""
    return f"{number:08x}-0000-4000-8000-000000000000"


def after(job: str | None) -> ask.DependencyRequest:
    return ask.DependencyRequest(DependencyType.AFTER_SUCCESS, job)


def after_any(job: str | None) -> ask.DependencyRequest:
    return ask.DependencyRequest(DependencyType.AFTER_ANY, job)


def after_failure(job: str | None) -> ask.DependencyRequest:
    return ask.DependencyRequest(DependencyType.AFTER_FAILURE, job)


def n_to_n(job: str | None, on: On = On.SUCCESS) -> ask.DependencyRequest:
    return ask.DependencyRequest(DependencyType.N_TO_N, job, on)


def as_kept(events: Sequence[AnyEvent]) -> list[AnyEvent]:
    """Events as they come back from the journal."""
    return EVENTS_DECODER.decode(msgspec.msgpack.encode(events))


def plain(step: Step) -> tuple[list[AnyEvent], list[tuple[type, Any]], Any]:
    """A step with its ranges spelled out, to compare it with another."""
    effects: list[tuple[type, Any]] = []
    for effect in step.effects:
        values = [getattr(effect, field) for field in effect.__struct_fields__]
        effects.append((type(effect), [list(v) if isinstance(v, range | list | tuple) else v for v in values]))
    return as_kept(step.events), effects, step.reply


def same_time(state: KernelState, now_ms: int) -> bytes:
    """A state's bytes, its idea of the time aside: inputs without events move it and leave no trace in the log."""
    kept, state.now_ms = state.now_ms, now_ms
    try:
        return encode(state)
    finally:
        state.now_ms = kept


class Taken(NamedTuple):
    """An input, what it led to, and the state behind it."""

    item: ask.Input
    now_ms: int
    step: Step
    commit: bytes
    snapshot: bytes
    unknown: dict[tuple[int, int, int], int]


class Rig:
    """One kernel's core. `do` takes any input; the rest are short forms of it."""

    def __init__(self, quotas: Quotas | None = None) -> None:
        self.quotas = quotas or Quotas()
        self.state = KernelState(self.quotas)
        self.now_ms = START_MS
        self.taken: list[Taken] = []
        self.submits = 0
        self.do(ask.OpenKernel(kernel_id=KERNEL_ID))

    # -- inputs -----------------------------------------------------------------------------------

    def do(self, item: ask.Input) -> Step:
        """Handle an input now. A refusal is checked to have changed nothing."""
        try:
            step = handle(self.state, item, self.now_ms)
        except RequestError:
            if self.taken:
                assert same_time(self.state, 0) == same_time(decode(self.taken[-1].snapshot, self.quotas), 0)
            raise
        check_invariants(self.state)
        commit = msgspec.msgpack.encode(step.events)
        self.taken.append(Taken(item, self.state.now_ms, step, commit, encode(self.state), dict(self.state.unknown)))
        return step

    def environment(
        self,
        name: str = "env",
        *,
        state: ResourceState = ENABLED,
        backend: str = "null",
        container: tuple[str, ...] = (),
    ) -> None:
        """An environment without hosts, VALID and listed; `container`: the container fields that it honours."""
        body = EnvironmentBody(backend=backend, max_vcpus_milli=1_000_000, state=state)
        self.do(ask.CreateEnvironment(name=name, body=body))
        self.do(ask.AllListed(environment=name, hosts=(), container=container))

    def host(
        self,
        name: str = "host",
        vcpus: float = 4,
        *,
        memory: int | None = None,
        gpus: Sequence[int] = (),
        lookahead: int = 0,
        environment: str = "env",
    ) -> Step:
        return self.do(
            ask.HostUp(
                environment=environment,
                host=name,
                vcpus_milli=round(vcpus * 1000),
                memory_mib=memory,
                gpus=tuple(gpus),
                lookahead=lookahead,
            )
        )

    def host_down(self, name: str = "host", reason: str = "gone", environment: str = "env") -> Step:
        return self.do(ask.HostDown(environment=environment, host=name, reason=reason))

    def queue(
        self,
        name: str = "queue",
        *environments: str,
        priority: int = 1,
        state: ResourceState = ENABLED,
        exist_ok: bool = False,
    ) -> Step:
        body = QueueBody(priority=priority, compute_environments=environments or ("env",), state=state)
        return self.do(ask.CreateQueue(name=name, body=body, exist_ok=exist_ok))

    def define(self, name: str = "definition", *, exist_ok: bool = False, **body: Any) -> Step:
        body.setdefault("command", ("true",))
        return self.do(ask.RegisterDefinition(name=name, body=DefinitionBody(**body), exist_ok=exist_ok))

    def submit_step(
        self,
        name: str = "job",
        *depends_on: ask.DependencyRequest,
        queue: str = "queue",
        size: int | None = None,
        indexes: Indexes | None = None,
        definition: str | None = None,
        token: str | None = None,
        attempts: int | None = None,
        vcpus: float | None = None,
        timeout_ms: int | None = None,
        **overrides: Any,
    ) -> Step:
        if definition is None:
            overrides.setdefault("command", ("true",))
        if attempts is not None:
            overrides["retry"] = RetryStrategy(attempts)
        if vcpus is not None:
            overrides["vcpus_milli"] = round(vcpus * 1000)
        if timeout_ms is not None:
            overrides["timeout_ms"] = timeout_ms
        self.submits += 1
        return self.do(
            ask.SubmitJob(
                job_id=job_id(self.submits),
                name=name,
                queue=queue,
                definition=definition,
                overrides=Overrides(**overrides),
                size=size,
                indexes=indexes,
                depends_on=depends_on,
                client_token=token,
            )
        )

    def submit(self, name: str = "job", *depends_on: ask.DependencyRequest, **arguments: Any) -> int:
        """Queue a job; returns its serial."""
        reply = self.submit_step(name, *depends_on, **arguments).reply
        assert isinstance(reply, int)
        return reply

    def place(self, most: int = 10_000) -> Step:
        return self.do(ask.Plan(most=most))

    def start(self, serial: int, *indexes: int, number: int | None = None, at_ms: Sequence[int] | None = None) -> Step:
        return self.do(
            ask.Started(
                environment=self.where(serial, *indexes),
                job=serial,
                number=self.number(serial, indexes, number),
                indexes=list(indexes) or [0],
                at_ms=at_ms,
            )
        )

    def exit(
        self,
        serial: int,
        *indexes: int,
        code: int | None = 0,
        number: int | None = None,
        kind: ExitKind = ExitKind.EXITED,
        reason: str | None = None,
        status_reason: str | None = None,
        at_ms: Sequence[int] | None = None,
    ) -> Step:
        """Attempts (of index 0 if none is named) have ended."""
        return self.do(
            ask.Ended(
                environment=self.where(serial, *indexes),
                job=serial,
                number=self.number(serial, indexes, number),
                indexes=list(indexes) or [0],
                kind=kind,
                codes=[code] * (len(indexes) or 1),
                at_ms=at_ms,
                reason=reason,
                status_reason=status_reason,
            )
        )

    def number(self, serial: int, indexes: Sequence[int], number: int | None = None) -> int:
        """The attempt number given, or the latest one of the first child named."""
        return self.job(serial).children.number[indexes[0] if indexes else 0] if number is None else number

    def where(self, serial: int, *indexes: int) -> str:
        """The environment of the first child's latest attempt; only its backend may speak for it."""
        column = self.job(serial).children.host
        host = None if column is None else self.state.hosts.get(column[indexes[0] if indexes else 0])
        return "env" if host is None else host.environment

    def lose(self, serial: int, *indexes: int) -> Step:
        return self.exit(serial, *indexes, code=None, kind=ExitKind.LOST, reason="lost")

    def unknown(self, serial: int, *indexes: int) -> Step:
        return self.do(
            ask.Unknown(
                environment=self.where(serial, *indexes),
                job=serial,
                number=self.number(serial, indexes),
                indexes=list(indexes) or [0],
            )
        )

    def run(self, serial: int, *indexes: int, code: int = 0) -> Step:
        """Place, start and end attempts; returns the last step."""
        self.place()
        self.start(serial, *indexes)
        return self.exit(serial, *indexes, code=code)

    def cancel(self, job: int | str, reason: str = "not wanted") -> Step:
        return self.do(ask.StopJob(job=self.id(job), reason=reason, terminate=False))

    def terminate(self, job: int | str, reason: str = "not wanted") -> Step:
        return self.do(ask.StopJob(job=self.id(job), reason=reason, terminate=True))

    def rerun(self, job: int | str, *, dependents: bool = False) -> Step:
        return self.do(ask.RerunJob(job=self.id(job), dependents=dependents))

    def advance(self, ms: int) -> list[AnyEvent]:
        """Let time pass, with a Tick whenever one is due; returns the events of the Ticks."""
        end_ms, events = self.now_ms + ms, list[AnyEvent]()
        while (due := next_timer_ms(self.state)) is not None and due <= end_ms:
            self.now_ms = max(self.now_ms, due)
            events += self.do(ask.Tick()).events
        self.now_ms = end_ms
        return events

    # -- what is there ------------------------------------------------------------------------------

    def job(self, serial: int) -> JobRow:
        return self.state.jobs[serial]

    def id(self, job: int | str) -> str:
        """The id of a job by serial; an id is returned as it is."""
        return job if isinstance(job, str) else self.state.jobs[job].job_id

    def child(self, serial: int, index: int) -> str:
        return f"{self.id(serial)}:{index}"

    def status(self, serial: int, index: int | None = None) -> JobStatus:
        """Of a job, or of one child."""
        job = self.job(serial)
        return job.status if index is None else STATUSES[job.children.status[index]]

    def statuses(self, serial: int) -> str:
        """Of all children, by initials: Submitted Pending Runnable starting running, + for SUCCEEDED, - for FAILED."""
        return "".join("SPRsr+-"[byte] for byte in self.job(serial).children.status)

    def reason(self, serial: int, index: int = 0) -> str | None:
        """The status reason as kept: None for the ordinary one."""
        return self.job(serial).children.cause_of(index).status_reason

    def code(self, serial: int, index: int = 0) -> int | None:
        """The latest attempt's exit code."""
        code = self.job(serial).children.code[index]
        return None if code == NO_CODE else code

    def past(self, serial: int, index: int = 0) -> list[PastAttempt]:
        return list(self.job(serial).children.past(index))

    def times(self, serial: int, index: int = 0) -> tuple[int, int]:
        """(started, stopped), in milliseconds since the rig's start; of the latest attempt."""
        started, stopped = (column[index] for column in self.job(serial).children.times())
        return (started - START_MS if started else 0, stopped - START_MS if stopped else 0)

    # -- checks -------------------------------------------------------------------------------------

    def replayed(self, until: int | None = None) -> KernelState:
        """A fresh state from the first commits, as the journal keeps them."""
        state = KernelState(self.quotas)
        for taken in self.taken[:until]:
            replay(state, EVENTS_DECODER.decode(taken.commit), taken.now_ms)
        return state

    def verify(self) -> None:
        """Everything that the module's text promises."""
        check_invariants(self.state)
        replayed = self.replayed()
        check_invariants(replayed)
        assert same_time(replayed, 0) == same_time(self.state, 0), "replaying the log gives another state"
        points = range(len(self.taken))
        if len(points) > RULE_STEPS_MAX:
            points = range(0, len(points), len(points) // 3)
        for point in points:
            self.verify_from(point)

    def verify_from(self, point: int) -> None:
        """From the snapshot after that input, the later inputs give the same steps, and the log the same state."""
        taken = self.taken[point]
        again, followed = decode(taken.snapshot, self.quotas), decode(taken.snapshot, self.quotas)
        again.unknown = dict(taken.unknown)
        for later in self.taken[point + 1 :]:
            if isinstance(later.item, ask.OpenKernel):
                again.unknown.clear()  # what could not be found is asked for again
            step = handle(again, later.item, later.now_ms)
            assert plain(step) == plain(later.step), f"{later.item} does something else after a snapshot"
            replay(followed, EVENTS_DECODER.decode(later.commit), later.now_ms)
        assert same_time(again, 0) == same_time(self.state, 0), "a state from a snapshot goes another way"
        assert same_time(followed, 0) == same_time(self.state, 0), "the log after a snapshot gives another state"


def ready_rig(quotas: Quotas | None = None) -> Rig:
    """With the environment "env", one host of 4 vCPUs in it, and the queue "queue" over it."""
    rig = Rig(quotas)
    rig.environment()
    rig.host()
    rig.queue()
    return rig


def launches(step: Step) -> list[tuple[int, int, list[int], int]]:
    """(job, attempt number, indexes, host) of what is to be launched."""
    return [(e.job, e.number, list(e.indexes), e.host) for e in step.effects if isinstance(e, LaunchAttempts)]


def stops(step: Step) -> list[tuple[int, list[tuple[int, int]]]]:
    """(job, [(index, number)]) of what is to be stopped."""
    return [(e.job, list(e.attempts)) for e in step.effects if isinstance(e, StopAttempts)]


def notified(step: Step) -> list[tuple[int, list[int] | None]]:
    """(job, children or None for the whole) of what is told to have ended."""
    told: list[tuple[int, list[int] | None]] = []
    for effect in step.effects:
        if isinstance(effect, NotifyJob):
            told.append((effect.job, None))
        elif isinstance(effect, NotifyChildren):
            told.append((effect.job, list(effect.indexes)))
    return told


def without_plans(step: Step) -> list[Effect]:
    """The effects but for `WantPlan`."""
    return [effect for effect in step.effects if not isinstance(effect, WantPlan)]
