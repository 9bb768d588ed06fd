"""Negative twins: each invariant, and each check of the rig and of the oracle, sees a kernel that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import core_rig
import pytest
from anybatch.kernel.core import events as ev
from anybatch.kernel.core import evolve, follow, machine, placement, reports, snapshot
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.children import ORDINARY, Children
from anybatch.kernel.core.effects import Effect
from anybatch.kernel.core.errors import KernelBug, RequestError
from anybatch.kernel.core.invariants import InvariantBroken, check_invariants
from anybatch.kernel.core.machine import Step
from anybatch.kernel.core.model import StopKind
from anybatch.kernel.core.state import HostRow, JobRow, KernelState, Stop
from anybatch.kernel.core.states import FAILED, PENDING, RUNNABLE, RUNNING, SUBMITTED, SUCCEEDED
from core_oracle import Oracle
from core_rig import Rig, after, n_to_n, ready_rig
from core_scenario import full_life

Spoil = Callable[[KernelState], None]


class WatchedRig(Rig):
    """A rig whose every step the oracle sees."""

    def __init__(self) -> None:
        self.oracle = Oracle()
        super().__init__()

    def do(self, item: ask.Input) -> Step:
        step = super().do(item)
        self.oracle.take(step, self.state)
        return step


def test_the_scenario_passes_every_check() -> None:
    rig = WatchedRig()
    full_life(rig)
    rig.verify()
    for point in range(len(rig.taken)):
        rig.verify_from(point)


# -- invariants, one by one --------------------------------------------------------------------------------


def furnished() -> KernelState:
    """Job 1 runs with a GPU, 2 (an array) has one child of each kind, 3 waits for 1, 4 for 2 child by child."""
    rig = ready_rig()
    rig.host(vcpus=4, gpus=(0, 1))
    single = rig.submit("single", gpus=1)
    array = rig.submit("array", size=6, vcpus=0.5, attempts=2)
    rig.submit("whole", after(rig.id(single)))
    rig.submit("pairs", n_to_n(rig.id(array)), size=6)
    rig.place(most=5)
    rig.start(single)
    rig.start(array, 0, 1)
    rig.exit(array, 0)
    rig.cancel(rig.child(array, 5))
    rig.verify()
    assert rig.statuses(array) == "+rssR-"
    assert rig.statuses(4) == "RPPPP-"
    return rig.state


def spoil_counts(state: KernelState) -> None:
    state.jobs[2].children.counts[RUNNABLE] += 1


def spoil_size(state: KernelState) -> None:
    state.jobs[2].children.size += 1


def spoil_cursor(state: KernelState) -> None:
    state.jobs[2].children.cursor = 5


def spoil_stopping(state: KernelState) -> None:
    state.jobs[2].stopping = {4: Stop(StopKind.TERMINATE, None)}


def spoil_number(state: KernelState) -> None:
    state.jobs[2].children.number[1] = 0


def spoil_code(state: KernelState) -> None:
    state.jobs[2].children.code[0] = 1


def spoil_tries(state: KernelState) -> None:
    state.jobs[2].children.number[4] = 3


def spoil_parent(state: KernelState) -> None:
    state.jobs[2].parent = RUNNING


def spoil_parents_end(state: KernelState) -> None:
    state.jobs[2].parent = FAILED


def spoil_parents_outcome(state: KernelState) -> None:
    job = state.jobs[2]
    job.children.status[:] = bytes((SUCCEEDED, *[FAILED] * 5))
    job.children.counts[:] = [0, 0, 0, 0, 0, 1, 5]
    job.parent = SUCCEEDED


def spoil_blockers(state: KernelState) -> None:
    state.jobs[3].blockers = 0


def set_status(job: JobRow, index: int, status: int) -> None:
    job.children.counts[job.children.status[index]] -= 1
    job.children.counts[status] += 1
    job.children.status[index] = status


def spoil_submitted(state: KernelState) -> None:
    set_status(state.jobs[2], 4, SUBMITTED)


def spoil_pending(state: KernelState) -> None:
    set_status(state.jobs[4], 0, PENDING)


def spoil_dependents_of_failed(state: KernelState) -> None:
    set_status(state.jobs[4], 5, PENDING)


def spoil_released(state: KernelState) -> None:
    set_status(state.jobs[4], 1, RUNNABLE)


def spoil_lane(state: KernelState) -> None:
    state.queues["queue"].lanes.clear()


def spoil_load(state: KernelState) -> None:
    state.hosts[1].load[2] += 1


def spoil_free_vcpus(state: KernelState) -> None:
    state.hosts[1].free_vcpus_milli += 500


def spoil_free_memory(state: KernelState) -> None:
    state.hosts[1].free_memory_mib -= 1


def spoil_gpus_given_twice(state: KernelState) -> None:
    state.jobs[2].gpus = {**state.jobs[2].gpus, 1: (0,)}


def spoil_free_gpus(state: KernelState) -> None:
    state.hosts[1].free_gpus = [0, 1]


def spoil_rank(state: KernelState) -> None:
    state.environments["env"].by_free.append(state.environments["env"].by_free[0])


def spoil_unfinished(state: KernelState) -> None:
    state.unfinished -= 1


def spoil_names(state: KernelState) -> None:
    del state.names["array"].unfinished[2]


def spoil_snapshot(state: KernelState) -> None:
    children = state.jobs[2].children
    children.reasons = [*children.reasons, ORDINARY]


SPOILT: list[tuple[Spoil, str]] = [
    (spoil_counts, "the status summary counts the status column"),
    (spoil_size, "the status summary sums to the size"),
    (spoil_cursor, "no child below the cursor is runnable"),
    (spoil_stopping, "only live attempts are being stopped"),
    (spoil_number, "a live child has an attempt"),
    (spoil_code, "what SUCCEEDED has exit code 0"),
    (spoil_tries, "no more tries than the retry strategy gives"),
    (spoil_parent, "a parent is PENDING or has ended (AR-2)"),
    (spoil_parents_end, "a parent ends with its last child (AR-4, AR-5)"),
    (spoil_parents_outcome, "a parent SUCCEEDED if all children did"),
    (spoil_blockers, "blockers count what has not been answered"),
    (spoil_submitted, "nothing stays SUBMITTED after a step"),
    (spoil_pending, "a PENDING child waits for something"),
    (spoil_dependents_of_failed, "what depends on a FAILED job is FAILED (DEP-6)"),
    (spoil_released, "what may run waits for nothing (ST-3)"),
    (spoil_lane, "runnable work is in its lane"),
    (spoil_load, "a host's load counts its live attempts"),
    (spoil_free_vcpus, "free vCPUs are what is not taken"),
    (spoil_free_memory, "free memory is what is not taken"),
    (spoil_gpus_given_twice, "no GPU is given out twice"),
    (spoil_free_gpus, "free GPUs are what is not taken"),
    (spoil_rank, "a host is ranked once"),
    (spoil_unfinished, "unfinished jobs are counted"),
    (spoil_names, "an unfinished job is found by its name"),
    (spoil_snapshot, "a snapshot gives back the state"),
]


@pytest.mark.parametrize(("spoil", "rule"), SPOILT, ids=[spoil.__name__ for spoil, _ in SPOILT])
def test_a_broken_invariant_is_named(spoil: Spoil, rule: str) -> None:
    state = furnished()
    check_invariants(state)
    spoil(state)
    with pytest.raises(InvariantBroken) as caught:
        check_invariants(state)
    assert str(caught.value).startswith(rule)


# -- kernels with a mistake in them ---------------------------------------------------------------------------


Patch = Callable[[pytest.MonkeyPatch], None]


def nothing_is_freed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(evolve, "_free", lambda *_: None)


def a_move_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    def move(self: Children, indexes: Sequence[int], source: int, target: int) -> None:
        for i in indexes:
            self.status[i] = target

    patch.setattr(Children, "move", move)


def failure_stays_with_the_job(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(follow, "_failed", lambda *_: iter(()))


def every_host_has_room(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HostRow, "fits", lambda _self, _shape, most: most)


def attempts_are_launched_twice(patch: pytest.MonkeyPatch) -> None:
    react = machine.__dict__["react"]

    def twice(state: KernelState, event: ev.AnyEvent) -> Iterator[Effect]:
        effects = list(react(state, event))
        yield from effects
        if isinstance(event, ev.AttemptsPlaced):
            yield from effects

    patch.setattr(machine, "react", twice)


def nobody_is_told(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(machine, "react", lambda *_: iter(()))


def a_placement_is_made_twice(patch: pytest.MonkeyPatch) -> None:
    def twice(state: KernelState, most: int) -> Iterator[ev.AttemptsPlaced]:
        for event in placement.placements(state, most):
            yield event
            yield event
            return

    patch.setattr(machine, "placements", twice)


def snapshots_forget_uncounted_attempts(patch: pytest.MonkeyPatch) -> None:
    row = snapshot._row

    def forgetful(kept: Any) -> JobRow:
        job = row(kept)
        job.uncounted = {}
        return job

    patch.setattr(snapshot, "_row", forgetful)


def evolve_looks_elsewhere(patch: pytest.MonkeyPatch) -> None:
    started, elsewhere = evolve._attempts_started, count(1)

    def impure(state: KernelState, event: ev.AttemptsStarted, at_ms: int) -> None:
        started(state, event, at_ms + next(elsewhere))

    patch.setitem(evolve.CHANGES, ev.AttemptsStarted, impure)


def decide_looks_elsewhere(patch: pytest.MonkeyPatch) -> None:
    best, elsewhere = placement.best_host, count(1)

    def moody(*arguments: Any) -> HostRow | None:
        return None if next(elsewhere) % 7 == 0 else best(*arguments)

    patch.setattr(placement, "best_host", moody)


def what_was_given_up_is_tried_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reports, "is_stopped_for_good", lambda *_: False)
    patch.setattr(reports, "_stopped", lambda *_: reports.Outcome(RUNNABLE, None, None))


def an_end_is_taken_twice(patch: pytest.MonkeyPatch) -> None:
    kind: type[ask.Input] = ask.Ended
    ended = machine.DECISIONS[kind]

    def twice(state: KernelState, report: ask.Ended) -> Iterator[ev.AnyEvent]:
        for event in ended(state, report):
            yield event
            yield event

    patch.setitem(machine.DECISIONS, kind, twice)


MISTAKES: list[tuple[Patch, bool, str]] = [
    # (the mistake, whether the invariants are looked at too or the oracle alone, what the first complaint is)
    (nothing_is_freed, True, "a host's load counts its live attempts"),
    (a_move_is_not_counted, True, "the status summary counts the status column"),
    (failure_stays_with_the_job, True, "what depends on a FAILED job is FAILED (DEP-6)"),
    (every_host_has_room, False, "vCPUs exceeded"),
    (attempts_are_launched_twice, False, "attempt (1, 0, 1) is launched twice"),
    (nobody_is_told, False, "placed but not launched"),
    (a_placement_is_made_twice, False, "two attempts of (1, 0) at once"),
    (snapshots_forget_uncounted_attempts, True, "a snapshot gives back the state"),
    (snapshots_forget_uncounted_attempts, False, "a state from a snapshot goes another way"),
    (evolve_looks_elsewhere, False, "replaying the log gives another state"),
    (decide_looks_elsewhere, False, "Plan(most=10000) does something else after a snapshot"),
    (what_was_given_up_is_tried_again, False, "was cancelled, terminated or its queue deleted, and runs again"),
    (an_end_is_taken_twice, False, "no transition for work from SUCCEEDED to SUCCEEDED"),
]


@pytest.mark.parametrize(
    ("mistake", "invariants", "complaint"), MISTAKES, ids=[f"{mistake.__name__}-{on}" for mistake, on, _ in MISTAKES]
)
def test_a_kernel_with_this_mistake_does_not_pass(
    mistake: Patch, invariants: bool, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    if not invariants:
        monkeypatch.setattr(core_rig, "check_invariants", lambda _: None)
    rig = WatchedRig()
    with pytest.raises((AssertionError, KernelBug)) as caught:
        try:
            full_life(rig)
        except RequestError:  # the scenario went another way
            pass
        rig.verify()
    assert complaint in str(caught.value)
