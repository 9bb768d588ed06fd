"""What fits nowhere is passed for a bounded time, then holds a host: it neither blocks what fits nor starves."""

from __future__ import annotations

import random

import pytest
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core import placement
from anybatch.kernel.core.placement import PASSED_MS_MAX, reservations
from anybatch.kernel.core.snapshot import decode, encode
from core_rig import Rig, after, launches

HOUR_MS = 3_600_000


def held(rig: Rig) -> dict[str, int]:
    """The names of the hosts that are kept now, each with the job that it is kept for."""
    rig.do(ask.Tick())
    return {rig.state.hosts[host].name: job.serial for host, job in reservations(rig.state).items()}


def test_nothing_is_kept_before_the_time_is_over(rig: Rig) -> None:
    rig.submit(vcpus=1)
    rig.place()
    big = rig.submit(vcpus=4)
    rig.advance(PASSED_MS_MAX - 1)
    assert held(rig) == {}
    rig.advance(1)
    assert held(rig) == {"host": big}


def test_what_is_next_after_a_placement_of_its_own_waits_anew(rig: Rig) -> None:
    """An array of which one child is placed now and then is not passed over."""
    array = rig.submit(vcpus=3, size=2)
    rig.place()
    rig.advance(PASSED_MS_MAX - 1)
    rig.exit(array, 0)
    rig.submit(vcpus=1)
    assert [job for job, *_ in launches(rig.place())] == [array, array + 1]
    third = rig.submit(vcpus=4)
    rig.advance(PASSED_MS_MAX - 1)
    assert held(rig) == {}
    rig.advance(1)
    assert held(rig) == {"host": third}


def test_time_as_pending_does_not_count(rig: Rig) -> None:
    gate = rig.submit("gate", vcpus=1)
    big = rig.submit("big", after(rig.id(gate)), vcpus=4)
    rig.place()
    rig.advance(HOUR_MS)
    rig.submit(vcpus=1)
    rig.place()
    rig.exit(gate)
    assert rig.status(big) == "RUNNABLE"
    assert held(rig) == {}
    rig.advance(PASSED_MS_MAX)
    assert held(rig) == {"host": big}


def test_the_host_that_lacks_least_is_kept_whatever_else_is_free(bare: Rig) -> None:
    """Free vCPUs are of no use to what lacks memory."""
    bare.environment()
    bare.host("wide", 16, memory=1000)
    bare.host("deep", 2, memory=4000)
    bare.queue()
    bare.submit(vcpus=1, memory_mib=3500)
    bare.submit(vcpus=1, memory_mib=1000)
    bare.place()
    assert {h.name: h.free_memory_mib for h in bare.state.hosts.values()} == {"wide": 0, "deep": 500}
    big = bare.submit(vcpus=1, memory_mib=900)
    bare.place()
    bare.advance(PASSED_MS_MAX)
    assert held(bare) == {"deep": big}


def test_gpus_count_as_much_as_the_rest(bare: Rig) -> None:
    bare.environment()
    bare.host("none", 16, gpus=(0, 1))
    bare.host("one", 4, gpus=(0, 1))
    bare.queue()
    bare.submit(vcpus=1, gpus=1)
    bare.submit(vcpus=4, gpus=2)
    bare.place()
    taken = {h.name: (h.free_vcpus_milli, len(h.free_gpus)) for h in bare.state.hosts.values()}
    assert taken == {"none": (12_000, 0), "one": (3_000, 1)}
    big = bare.submit(vcpus=1, gpus=2)
    bare.advance(PASSED_MS_MAX)
    assert held(bare) == {"one": big}


def test_only_one_host_is_kept_and_others_go_on(bare: Rig) -> None:
    bare.environment()
    for name in ("a", "b"):
        bare.host(name, 4)
    bare.queue()
    first = [bare.submit(vcpus=2) for _ in range(4)]
    bare.place()
    big = bare.submit(vcpus=4)
    bare.advance(PASSED_MS_MAX)
    bare.exit(first[0])
    assert held(bare) == {"a": big}
    bare.exit(first[2])
    small = bare.submit(vcpus=2)
    assert launches(bare.place()) == [(small, 1, [0], 2)]
    bare.exit(first[1])
    assert launches(bare.place()) == [(big, 1, [0], 1)]


def test_each_shape_keeps_a_host_of_its_own_in_order(bare: Rig) -> None:
    bare.environment()
    for name in ("a", "b"):
        bare.host(name, 4)
    bare.queue()
    for _ in range(4):
        bare.submit(vcpus=2)
    bare.place()
    big, bigger, last = bare.submit(vcpus=3), bare.submit(vcpus=4), bare.submit(vcpus=3.5)
    bare.advance(PASSED_MS_MAX)
    assert held(bare) == {"a": big, "b": bigger}
    assert last not in held(bare).values()


def test_what_fits_nowhere_ever_keeps_nothing(rig: Rig) -> None:
    never = rig.submit(vcpus=5)
    rig.submit(vcpus=4)
    rig.place()
    rig.advance(24 * HOUR_MS)
    assert held(rig) == {}
    assert rig.status(never) == "RUNNABLE"
    small = rig.submit(vcpus=1)
    rig.exit(never + 1)
    assert launches(rig.place()) == [(small, 1, [0], 1)]


def test_a_host_too_small_is_never_kept(bare: Rig) -> None:
    bare.environment()
    bare.host("small", 2)
    bare.host("large", 4)
    bare.queue()
    bare.submit(vcpus=4)
    bare.place()
    big = bare.submit(vcpus=3)
    bare.advance(PASSED_MS_MAX)
    assert held(bare) == {"large": big}
    small = bare.submit(vcpus=2)
    assert [job for job, *_ in launches(bare.place())] == [small]


def test_a_lower_queue_does_not_get_what_is_kept(rig: Rig) -> None:
    rig.queue("low", priority=0)
    rig.submit(vcpus=2)
    rig.place()
    rig.submit(vcpus=4)
    rig.advance(PASSED_MS_MAX)
    low = rig.submit(queue="low", vcpus=1)
    assert launches(rig.place()) == []
    assert rig.status(low) == "RUNNABLE"


def test_a_higher_queue_gets_what_is_kept_for_a_lower_one(rig: Rig) -> None:
    """As on AWS, a queue of lower priority may starve."""
    rig.queue("high", priority=9)
    rig.submit(vcpus=2)
    rig.place()
    rig.submit(vcpus=4)
    rig.advance(PASSED_MS_MAX)
    high = rig.submit(queue="high", vcpus=1)
    assert launches(rig.place()) == [(high, 1, [0], 1)]


def test_a_cancelled_job_gives_its_host_back(rig: Rig) -> None:
    rig.submit(vcpus=2)
    rig.place()
    big = rig.submit(vcpus=4)
    rig.advance(PASSED_MS_MAX)
    small = rig.submit(vcpus=1)
    assert launches(rig.place()) == []
    rig.cancel(big)
    assert held(rig) == {}
    assert launches(rig.place()) == [(small, 1, [0], 1)]


def test_a_host_that_goes_is_replaced_by_the_next_nearest(bare: Rig) -> None:
    bare.environment()
    bare.host("a", 4)
    bare.host("b", 4)
    bare.queue()
    bare.submit(vcpus=1)
    bare.submit(vcpus=4)
    bare.place()
    big = bare.submit(vcpus=4)
    bare.advance(PASSED_MS_MAX)
    assert held(bare) == {"a": big}
    bare.host_down("a")
    assert held(bare) == {"b": big}


def starts_after(hosts: int, seed: int, most_ms: int) -> int | None:
    """Small jobs that always fill what is free, each ending when it likes: when a big one among them starts."""
    rig, chance = Rig(), random.Random(seed)
    rig.environment()
    for n in range(hosts):
        rig.host(f"host-{n}", 4, memory=4000)
    rig.queue()
    ends: dict[int, int] = {}

    def fill() -> None:
        waiting = [serial for serial in ends if rig.status(serial) == "RUNNABLE"]
        for _ in range(4 * hosts + 4 - len(waiting)):
            ends[rig.submit(vcpus=1, memory_mib=500)] = 0
        rig.place()
        for serial in ends:
            if rig.status(serial) == "STARTING":
                rig.start(serial)
                ends[serial] = rig.now_ms + chance.randrange(60_000, 20 * 60_000)

    fill()
    big, began = rig.submit("big", vcpus=4, memory_mib=3000), rig.now_ms
    while rig.status(big) == "RUNNABLE" and rig.now_ms - began < most_ms:
        rig.advance(30_000)
        for serial in [serial for serial, at in ends.items() if 0 < at <= rig.now_ms]:
            rig.exit(serial)
            del ends[serial]
        fill()
    rig.verify()
    return rig.now_ms - began if rig.status(big) == "STARTING" else None


@pytest.mark.parametrize("hosts", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_of_small_jobs_never_starves_a_big_one(hosts: int, seed: int) -> None:
    """From when a host is kept it takes as long as the last job on it; a few that were there before go first."""
    started = starts_after(hosts, seed, 5 * HOUR_MS)
    assert started is not None, "the big job starves"
    assert PASSED_MS_MAX <= started <= PASSED_MS_MAX + 2 * 20 * 60_000 + 60_000


def test_without_the_rule_the_same_stream_starves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "PASSED_MS_MAX", 1 << 60)
    assert starts_after(1, 0, 2 * HOUR_MS) is None


def test_a_recovered_kernel_keeps_the_same_host_for_the_same_job(rig: Rig) -> None:
    rig.host("second", 3)
    for _ in range(3):
        rig.submit(vcpus=2)
    rig.place()
    rig.advance(1234)
    big = rig.submit(vcpus=3.5)
    rig.place()
    rig.advance(PASSED_MS_MAX)
    for recovered in (rig.replayed(), decode(encode(rig.state), rig.quotas)):
        recovered.now_ms = rig.now_ms
        assert {host: job.serial for host, job in reservations(recovered).items()} == {1: big}
