"""The design's look-ahead: a host may hold a few short attempts beyond its capacity, never more than it offers."""

from __future__ import annotations

import pytest
from anybatch.kernel.core.events import AttemptsPlaced
from core_rig import Rig, launches


@pytest.fixture
def short(rig: Rig) -> Rig:
    """One host of 4 vCPUs and 1,000 MiB that takes 5 attempts ahead, on which attempts have been short of late."""
    rig.host(memory=1000, gpus=(0, 1), lookahead=5)
    for _ in range(40):
        serial = rig.submit(vcpus=4)
        rig.place()
        now = rig.now_ms
        rig.start(serial, at_ms=[now - 1])
        rig.exit(serial, at_ms=[now])
    return rig


def placed(rig: Rig) -> list[tuple[int, int]]:
    """(job, how many of its attempts) that a plan places."""
    return [(job, len(indexes)) for job, _, indexes, _ in launches(rig.place())]


def test_a_host_takes_its_capacity_and_its_look_ahead(short: Rig) -> None:
    many = short.submit(size=100, vcpus=1)
    assert placed(short) == [(many, 9)]
    assert placed(short) == []
    short.start(many, 0, 1, 2, 3)
    assert placed(short) == []
    short.exit(many, 0)
    assert placed(short) == []  # the fifth is still on its way: nobody has said that it runs
    short.start(many, 4)
    assert placed(short) == [(many, 1)]


@pytest.mark.parametrize("shapes", [(1, 2, 4, 0.25, 3), (0.25, 4, 1), (4, 3, 2, 1, 0.25)])
def test_the_shapes_that_are_taken_ahead_share_its_number(short: Rig, shapes: tuple[float, ...]) -> None:
    whole = short.submit(vcpus=4)
    assert placed(short) == [(whole, 1)]
    for vcpus in shapes:
        short.submit(size=3, vcpus=vcpus)
    assert sum(n for _, n in placed(short)) == 5
    assert placed(short) == []


def test_shapes_that_differ_in_memory_share_it_too(short: Rig) -> None:
    short.submit(vcpus=1, memory_mib=1000)
    for memory_mib in (1000, 10, 500, 1):
        short.submit(size=4, vcpus=0.25, memory_mib=memory_mib)
    step = short.place()
    room = [event for event in step.events if isinstance(event, AttemptsPlaced)]
    assert sum(len(event) for event in room) == 1 + 5


def test_one_that_ends_before_it_has_begun_makes_room_for_another(short: Rig) -> None:
    many = short.submit(size=100, vcpus=1)
    short.place()
    short.exit(many, 6, code=None)
    assert placed(short) == [(many, 1)]


def test_real_room_is_taken_whatever_is_ahead(short: Rig) -> None:
    whole, small = short.submit(size=20, vcpus=4), short.submit(size=20, vcpus=0.5)
    assert placed(short) == [(whole, 6)]
    short.start(whole, 0, 1, 2, 3, 4, 5)
    short.exit(whole, 0, 1, 2, 3, 4, 5)
    assert placed(short) == [(whole, 6)]
    short.terminate(whole)
    short.exit(whole, *range(6, 12), code=None)
    assert placed(short) == [(small, 8 + 5)]


def test_long_attempts_are_never_taken_ahead(rig: Rig) -> None:
    rig.host(lookahead=5)
    for _ in range(20):
        serial = rig.submit(vcpus=4)
        rig.place()
        rig.start(serial)
        rig.advance(1000)
        rig.exit(serial)
    many = rig.submit(size=100, vcpus=1)
    assert placed(rig) == [(many, 4)]


def test_nothing_that_needs_a_gpu_is_taken_ahead(short: Rig) -> None:
    many = short.submit(size=9, vcpus=1, gpus=1)
    assert placed(short) == [(many, 2)]
    assert placed(short) == []


def test_what_can_never_fit_is_not_taken_ahead(short: Rig) -> None:
    short.submit(vcpus=4.5)
    assert placed(short) == []


def test_a_host_that_offers_less_than_it_holds_takes_no_more(short: Rig) -> None:
    many = short.submit(size=100, vcpus=1)
    assert placed(short) == [(many, 9)]
    short.host(memory=1000, gpus=(0, 1), lookahead=2)
    short.start(many, *range(6))
    short.exit(many, 0, 1)
    assert placed(short) == []
    short.start(many, 6, 7)
    short.exit(many, 2, 3)
    assert placed(short) == [(many, 1)]
