"""What must be true of any run of the core, worked out from its events and effects alone.

It keeps its own books (statuses, live attempts, load per host) and never looks at how the core keeps its own,
except to compare at the end of a step. The edges are contract 2.4's, written out here a second time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from anybatch.kernel.core import events as ev
from anybatch.kernel.core.effects import LaunchAttempts, NotifyChildren, NotifyJob, StopAttempts
from anybatch.kernel.core.machine import Step
from anybatch.kernel.core.model import Dependency, Shape
from anybatch.kernel.core.state import KernelState
from anybatch.kernel.core.states import STATUSES

EDGES = {
    ("SUBMITTED", "PENDING"),
    ("SUBMITTED", "RUNNABLE"),
    ("SUBMITTED", "FAILED"),
    ("PENDING", "RUNNABLE"),
    ("PENDING", "FAILED"),
    ("RUNNABLE", "STARTING"),
    ("RUNNABLE", "FAILED"),
    ("STARTING", "RUNNING"),
    ("STARTING", "RUNNABLE"),
    ("STARTING", "FAILED"),
    ("RUNNING", "SUCCEEDED"),
    ("RUNNING", "RUNNABLE"),
    ("RUNNING", "FAILED"),
    ("FAILED", "PENDING"),  # beyond AWS: a rerun
}
Child = tuple[int, int]
MEANT = {"success": {"SUCCEEDED"}, "any": {"SUCCEEDED", "FAILED"}, "failure": {"FAILED"}}
"""The ends that answer a dependency."""


class Oracle:
    """Takes each step as it comes; raises AssertionError where one breaks a rule."""

    def __init__(self) -> None:
        self.status: dict[Child, str] = {}
        self.parent: dict[int, str] = {}
        self.shape: dict[int, Shape] = {}
        self.cap: dict[int, int] = {}
        self.most_failures: dict[int, int] = {}
        self.failures: Counter[int] = Counter()
        """Children of each job that FAILED by their own attempts, since its last rerun."""
        self.checkpoint_codes: dict[int, tuple[tuple[int, ...], int]] = {}
        """Exit codes that ask to be run again, and how often they may."""
        self.checkpoints: Counter[Child] = Counter()
        self.stopped: set[tuple[int, int, int]] = set()
        """Attempts that their backend was told to stop."""
        self.size: dict[int, int] = {}
        self.depends_on: dict[int, tuple[Dependency, ...]] = {}
        self.answered: set[tuple[int, int, int]] = set()
        """(job, place in its depends_on, child): what it waited for has come, whatever it is now."""
        self.queue: dict[int, str] = {}
        self.given_up: set[Child] = set()
        """Children that nothing may be started for any more."""
        self.number: dict[Child, int] = {}
        self.live: dict[Child, int] = {}
        """Live children, each with its host."""
        self.gpus: dict[Child, tuple[int, ...]] = {}
        self.hosts: dict[int, ev.HostJoined] = {}
        self.ahead: dict[Child, int] = {}
        """What was placed where there was no room for it, and has neither begun nor ended; with its host."""
        self.grown: set[int] = set()
        """Hosts on which that became more in this step."""
        self.launched: set[tuple[int, int, int]] = set()
        self.ended: Counter[Child] = Counter()
        self.told: Counter[tuple[int, int | None]] = Counter()
        self.to_launch: set[tuple[int, int, int]] = set()

    def take(self, step: Step, state: KernelState, *, adopted: bool = False) -> None:
        """Check a step, and compare the books with the state behind it. What is `adopted` runs already."""
        placed_on: dict[int, list[Shape]] = {}
        self.grown.clear()
        for event in step.events:
            self._event(event, placed_on)
        for effect in step.effects:
            match effect:
                case LaunchAttempts():
                    for i in effect.indexes:
                        key = (effect.job, i, effect.number)
                        assert key not in self.launched, f"attempt {key} is launched twice"
                        assert key in self.to_launch, f"attempt {key} is launched without having been placed"
                        self.launched.add(key)
                        self.to_launch.discard(key)
                case StopAttempts():
                    for i, number in effect.attempts:
                        key = (effect.job, i, number)
                        assert key in self.launched, f"attempt {key} is stopped but was never launched"
                        self.stopped.add(key)
                case NotifyJob():
                    self.told[effect.job, None] += 1
                case NotifyChildren():
                    self.told.update((effect.job, i) for i in effect.indexes)
        assert not self.to_launch, f"placed but not launched: {self.to_launch}"
        if not adopted:
            self._check_capacity(placed_on)
            self._check_caps({e.job for e in step.events if isinstance(e, ev.AttemptsPlaced)})
        self._check_failures(step)
        self._compare(state)

    def _check_failures(self, step: Step) -> None:
        """An array with as many failures as it may have waits for nothing more, and runs nothing if told so."""
        for job, most in self.most_failures.items():
            if self.failures[job] >= most and job in self.size:
                statuses = {self.status[job, i] for i in range(self.size[job])}
                assert not statuses & {"SUBMITTED", "PENDING", "RUNNABLE"}, f"{job} goes on after {most} failures"
        for event in step.events:
            if isinstance(event, ev.ArrayStopped):
                assert self.failures[event.job] >= self.most_failures[event.job]
                live = {(job, i, self.number[job, i]) for job, i in self.live if job == event.job}
                assert not event.terminate or live <= self.stopped, f"{event.job} is stopped, but not all that runs"

    def _move(self, job: int, i: int, target: str) -> None:
        edge = (self.status[job, i], target)
        assert edge in EDGES, f"{job}:{i} went {edge[0]} -> {edge[1]}"
        self.status[job, i] = target
        if target in ("SUCCEEDED", "FAILED"):
            self.ended[job, i] += 1
            self._answer(job, i, target)
            if job not in self.parent:
                self._answer(job, None, target)

    def _answer(self, job: int, index: int | None, end: str) -> None:
        """A child, or a job as a whole, has ended: note whom that answers."""
        for other, depends_on in self.depends_on.items():
            for n, dependency in enumerate(depends_on):
                if dependency.job != job or end not in MEANT[dependency.on]:
                    continue
                if dependency.type == "N_TO_N":
                    whom = [] if index is None else [index]
                else:
                    whom = list(range(self.size[other])) if dependency.index == index else []
                self.answered.update((other, n, i) for i in whom)

    def _awaited(self, job: int, n: int, index: int) -> str | None:
        """The status of what an entry of `depends_on` is about for this child; None: of nothing."""
        dependency = self.depends_on[job][n]
        if dependency.type == "SEQUENTIAL":
            return self.status[job, index - 1] if index else None
        if dependency.job not in self.size:
            return "FORGOTTEN"
        at = index if dependency.type == "N_TO_N" else dependency.index
        if at is None and dependency.job in self.parent:
            return self.parent[dependency.job]
        return self.status[dependency.job, at or 0]

    def _check_waits(self, event: ev.WorkReleased | ev.WorkFailed) -> None:
        """Nothing is released before all that it waits for has come, nor fails by a dependency without a cause."""
        by_dependency = isinstance(event, ev.WorkFailed) and event.reason.startswith("Dependent Job ")
        for i in event.each():
            causes = set()
            for n, dependency in enumerate(self.depends_on[event.job]):
                status, meant = self._awaited(event.job, n, i), MEANT[dependency.on]
                if isinstance(event, ev.WorkReleased):
                    is_answered = status is None or status in meant or (event.job, n, i) in self.answered
                    assert is_answered, f"{(event.job, i)} is released while {dependency} is {status}"
                if status in MEANT["any"] - meant:
                    causes.add("succeeded: not needed" if status == "SUCCEEDED" else "failed")
                if dependency.type == "SEQUENTIAL" and i - 1 in event.each():
                    causes.add("failed")  # with the one before it
            if isinstance(event, ev.WorkFailed) and by_dependency:
                assert event.reason.removeprefix("Dependent Job ") in causes, f"{(event.job, i)} failed without a cause"

    def _event(self, event: ev.AnyEvent, placed_on: dict[int, list[Shape]]) -> None:
        match event:
            case ev.JobSubmitted(serial=serial, spec=spec, size=size, queue=queue, depends_on=depends_on):
                assert serial not in self.size
                self.size[serial], self.shape[serial] = size or 1, spec.shape
                if spec.max_running is not None:
                    self.cap[serial] = spec.max_running
                if size is not None and spec.max_failures is not None:
                    self.most_failures[serial] = spec.max_failures
                self.checkpoint_codes[serial] = spec.checkpoint_exit_codes, spec.max_checkpoints
                self.queue[serial] = queue
                self.depends_on[serial] = depends_on
                for i in range(size or 1):
                    self.status[serial, i] = "SUBMITTED"
                if size is not None:
                    self.parent[serial] = "SUBMITTED"
                for n, dependency in enumerate(depends_on):
                    for i in range(size or 1):
                        if self._awaited(serial, n, i) in MEANT[dependency.on] and dependency.type != "SEQUENTIAL":
                            self.answered.add((serial, n, i))
            case ev.WorkHeld() | ev.WorkReleased() | ev.WorkFailed():
                kinds = {ev.WorkHeld: "PENDING", ev.WorkReleased: "RUNNABLE", ev.WorkFailed: "FAILED"}
                assert len(event), "an event about nobody"
                if not isinstance(event, ev.WorkHeld):
                    self._check_waits(event)
                for i in event.each():
                    self._move(event.job, i, kinds[type(event)])
            case ev.WorkReopened(job=job):
                assert len(event), "an event about nobody"
                self._reopened(job, event.each())
            case ev.ParentReopened(job=job):
                assert self.parent[job] == "FAILED"
                self.parent[job] = "PENDING"
                self.told[job, None] = 0
            case ev.ParentHeld(job=job):
                assert self.parent[job] == "SUBMITTED"
                self.parent[job] = "PENDING"
            case ev.ParentEnded(job=job, succeeded=succeeded):
                ends = {self.status[job, i] for i in range(self.size[job])}
                assert self.parent[job] == "PENDING"
                assert ends <= {"SUCCEEDED", "FAILED"}
                assert succeeded == (ends == {"SUCCEEDED"})
                self.parent[job] = "SUCCEEDED" if succeeded else "FAILED"
                self._answer(job, None, self.parent[job])
            case ev.AttemptsPlaced():
                placed_on.setdefault(event.host, []).append(self.shape[event.job])
                self._note_ahead(event)
                self._placed(event)
            case ev.AttemptsStarted():
                for i in event.each():
                    assert self.number[event.job, i] == event.number
                    self.ahead.pop((event.job, i), None)
                    self._move(event.job, i, "RUNNING")
            case ev.AttemptsEnded():
                for i in event.each():
                    assert self.number[event.job, i] == event.number
                    assert (event.job, i) in self.live, f"the end of {(event.job, i)}, which was not live"
                    del self.live[event.job, i]
                    self.ahead.pop((event.job, i), None)
                    self.gpus.pop((event.job, i), None)
                    self._move(event.job, i, STATUSES[event.status].value)
                self._check_checkpoints(event)
                if STATUSES[event.status] == "FAILED" and event.failure != "cancelled":
                    self.failures[event.job] += len(event)
            case ev.ArrayStopped(job=job):
                self.given_up.update((job, i) for i in range(self.size[job]))
            case ev.CancelRequested(job=job, index=index):
                self.given_up.update((job, i) for i in (range(self.size[job]) if index is None else (index,)))
            case ev.QueueDeleted(name=name):
                for serial in [serial for serial, queue in self.queue.items() if queue == name]:
                    self.given_up.update((serial, i) for i in range(self.size.get(serial, 0)))
            case ev.JobsForgotten(jobs=forgotten):
                for gone in forgotten:
                    self._forget(gone.serial)
            case ev.HostJoined():
                self.hosts[event.serial] = event
            case ev.HostLeft(serial=serial):
                assert serial not in self.live.values(), "a host left with attempts on it"
                del self.hosts[serial]
            case ev.EnvironmentDeleted(name=name):
                for serial in [s for s, host in self.hosts.items() if host.environment == name]:
                    assert serial not in self.live.values()
                    del self.hosts[serial]
            case ev.StopRequested():
                for i in event.each():
                    assert self.number[event.job, i] == event.number
                    assert (event.job, i) in self.live
            case _:
                pass

    def _check_checkpoints(self, event: ev.AttemptsEnded) -> None:
        """A program that ends by itself with such a code is run again, so often and no oftener, beside its retries."""
        codes, most = self.checkpoint_codes[event.job]
        found = [event.codes] * len(event) if isinstance(event.codes, int) else event.codes
        for i, code in zip(event.each(), found, strict=True):
            if event.failure == "checkpointed":
                assert (STATUSES[event.status], event.counts, code in codes) == ("RUNNABLE", False, True)
                self.checkpoints[event.job, i] += 1
                assert self.checkpoints[event.job, i] <= most, f"{(event.job, i)} has more checkpoints than it may"
            elif event.failure is None and code in codes:
                assert STATUSES[event.status] == "FAILED"
                assert self.checkpoints[event.job, i] == most, f"{(event.job, i)} had checkpoints left"

    def _reopened(self, job: int, indexes: Sequence[int]) -> None:
        """What FAILED goes on, within the promises to those who wait for it, and may be given up anew."""
        self.failures[job] = 0
        for i in indexes:
            assert (job, i) not in self.live
            self._move(job, i, "PENDING")
            self.ended[job, i] -= 1
            self.checkpoints[job, i] = 0
            self.given_up.discard((job, i))
            if job in self.parent:
                assert self.parent[job] == "PENDING", "a child goes on in an array that does not"
                self.told[job, i] -= 1
            else:
                self.told[job, None] -= 1

    def _forget(self, serial: int) -> None:
        """Only an ended job is forgotten, and none that an unfinished one waits for or has waited for."""
        assert self._ended(serial), f"job {serial} is forgotten while it goes on"
        for other, depends_on in self.depends_on.items():
            waits = serial in {dependency.job for dependency in depends_on}
            assert not waits or self._ended(other), f"{other} depends on {serial}, which is forgotten"
        for i in range(self.size.pop(serial)):
            del self.status[serial, i]
        self.parent.pop(serial, None)
        self.depends_on.pop(serial)

    def _ended(self, serial: int) -> bool:
        return {self.status[serial, i] for i in range(self.size[serial])} <= {"SUCCEEDED", "FAILED"}

    def _placed(self, event: ev.AttemptsPlaced) -> None:
        for n, i in enumerate(event.each()):
            child = (event.job, i)
            assert child not in self.live, f"two attempts of {child} at once"
            assert child not in self.given_up, f"{child} was cancelled, terminated or its queue deleted, and runs again"
            assert event.number == self.number.get(child, 0) + 1, f"attempt numbers of {child} go up by one"
            self.number[child] = event.number
            self.live[child] = event.host
            if self.shape[event.job].gpus:
                assert event.gpus is not None
                assert len(event.gpus[n]) == self.shape[event.job].gpus
                self.gpus[child] = tuple(event.gpus[n])
            self._move(event.job, i, "STARTING")
            self.to_launch.add((event.job, i, event.number))

    def _note_ahead(self, event: ev.AttemptsPlaced) -> None:
        """Which of these attempts their host has no room for at the moment."""
        offer, shape = self.hosts[event.host], self.shape[event.job]
        here = [self.shape[job] for (job, _), host in self.live.items() if host == event.host]
        vcpus = offer.vcpus_milli - sum(one.vcpus_milli for one in here)
        memory = (1 << 60 if offer.memory_mib is None else offer.memory_mib) - sum(one.memory_mib for one in here)
        for i in event.each():
            vcpus, memory = vcpus - shape.vcpus_milli, memory - shape.memory_mib
            over = (shape.vcpus_milli and vcpus < 0) or (shape.memory_mib and memory < 0)
            if offer.lookahead and event.gpus is None and over:
                self.ahead[event.job, i] = event.host
                self.grown.add(event.host)

    def _check_capacity(self, placed_on: dict[int, list[Shape]]) -> None:
        """A host holds no more of what it was asked for than it offers. (One that shrank may, until then.)"""
        for serial, shapes in placed_on.items():
            here = [child for child, host in self.live.items() if host == serial]
            offer = self.hosts[serial]
            if not offer.lookahead:  # what is taken ahead takes no capacity until it runs
                assert sum(self.shape[job].vcpus_milli for job, _ in here) <= offer.vcpus_milli, "vCPUs exceeded"
            if not offer.lookahead and offer.memory_mib is not None and any(shape.memory_mib for shape in shapes):
                assert sum(self.shape[job].memory_mib for job, _ in here) <= offer.memory_mib, "memory exceeded"
            devices = [device for child in here for device in self.gpus.get(child, ())]
            assert len(devices) == len(set(devices)), "a GPU is given out twice"
            if serial in self.grown:
                ahead = [child for child, host in self.ahead.items() if host == serial]
                assert len(ahead) <= offer.lookahead, "more is taken ahead than the host has offered"

    def _check_caps(self, placed: set[int]) -> None:
        """No more children of an array run at once than it says. (What is adopted runs in any case.)"""
        for serial in placed & self.cap.keys():
            live = sum(job == serial for job, _ in self.live)
            assert live <= self.cap[serial], f"{live} children of {serial} run, which may have {self.cap[serial]}"

    def _compare(self, state: KernelState) -> None:
        assert all(times <= 1 for times in self.ended.values()), "a child ended twice"
        assert self.size.keys() == state.jobs.keys()
        for serial, size in self.size.items():
            job = state.jobs[serial]
            found = [STATUSES[byte].value for byte in job.children.status]
            assert found == [self.status[serial, i] for i in range(size)]
            assert sum(job.children.counts) == size
            assert job.status.value == self.parent.get(serial, found[0])
            if job.ended:
                assert self.told[serial, None] == 1, f"whoever waits for job {serial} is told once"
            if job.size is not None:
                for i, status in enumerate(found):
                    assert self.told[serial, i] == (status in ("SUCCEEDED", "FAILED"))
