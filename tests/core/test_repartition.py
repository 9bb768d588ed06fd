"""How inputs are batched does not matter: not into commits, not over openings, not into reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec
from anybatch.kernel.core import events as ev
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.machine import handle, replay
from anybatch.kernel.core.snapshot import decode, encode
from anybatch.kernel.core.state import KernelState
from core_rig import START_MS, Rig, plain, ready_rig, same_time
from core_scenario import full_life
from hypothesis import given
from hypothesis import strategies as st

LIFE = Rig()
full_life(LIFE)


def batches(cuts: Sequence[bool]) -> Iterator[tuple[int, list[ev.AnyEvent]]]:
    """The events of the life, in commits that end where asked for, and wherever time moves on."""
    pending: list[ev.AnyEvent] = []
    for n, taken in enumerate(LIFE.taken):
        pending += taken.step.events
        last = n + 1 == len(LIFE.taken)
        if last or cuts[n % len(cuts)] or LIFE.taken[n + 1].now_ms != taken.now_ms:
            yield taken.now_ms, pending
            pending = []


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_any_batching_into_commits_gives_the_same_state(cuts: list[bool]) -> None:
    state = KernelState(LIFE.quotas)
    for at_ms, events in batches(cuts):
        replay(state, msgspec.msgpack.decode(msgspec.msgpack.encode(events), type=list[ev.AnyEvent]), at_ms)
    assert same_time(state, 0) == same_time(LIFE.state, 0)


@given(st.lists(st.sampled_from(("go on", "log", "snapshot")), min_size=1, max_size=40))
def test_a_recovery_between_any_two_inputs_gives_the_same_steps(how: list[str]) -> None:
    """Whatever is left of the kernel after an input: the live state, its log, or its snapshot."""
    state = KernelState(LIFE.quotas)
    for n, taken in enumerate(LIFE.taken):
        assert plain(handle(state, taken.item, taken.now_ms)) == plain(taken.step)
        if (then := how[n % len(how)]) != "go on":
            unknown = state.unknown
            state = LIFE.replayed(until=n + 1) if then == "log" else decode(encode(state), LIFE.quotas)
            state.unknown, state.now_ms = unknown, taken.now_ms
    assert encode(state) == encode(LIFE.state)


def test_the_same_inputs_give_the_same_events_byte_for_byte() -> None:
    again = Rig()
    full_life(again)
    assert [taken.commit for taken in again.taken] == [taken.commit for taken in LIFE.taken]


@given(st.sets(st.integers(1, 11)), st.integers(0, 1))
def test_one_report_about_many_is_many_reports_about_few(cuts: set[int], code: int) -> None:
    """The state is the same; only the events are cut as the reports were."""
    whole, cut = ready_rig(), ready_rig()
    edges = [0, *sorted(cuts), 12]
    for rig, pieces in ((whole, [(0, 12)]), (cut, list(pairwise(edges)))):
        rig.host(vcpus=12)
        job = rig.submit(size=12, attempts=2)
        rig.place()
        rig.advance(10)
        for start, stop in pieces:
            rig.start(job, *range(start, stop), at_ms=[START_MS + i for i in range(start, stop)])
        for start, stop in pieces:
            rig.exit(job, *range(start, stop), code=code)
        rig.place()
    assert encode(whole.state) == encode(cut.state)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12))
def test_planning_in_small_portions_comes_to_the_same(portions: list[int]) -> None:
    whole, cut = ready_rig(), ready_rig()
    for rig in (whole, cut):
        rig.host("second", 3)
        rig.submit(size=5, vcpus=0.5)
        rig.submit(vcpus=2)
        rig.submit(size=3)
    whole.place()
    for portion in [*portions, 10_000]:
        cut.place(portion)
    assert encode(whole.state) == encode(cut.state)


def test_a_plan_more_changes_nothing() -> None:
    rig = ready_rig()
    rig.submit(size=6)
    rig.place()
    before = encode(rig.state)
    assert rig.do(ask.Plan()).events == []
    assert encode(rig.state) == before
