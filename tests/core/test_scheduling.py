"""Contract 6.3, and the design's placement: which waiting work goes where, and in which order."""

from __future__ import annotations

import pytest
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.effects import LaunchAttempts
from anybatch.kernel.core.events import AttemptsPlaced
from anybatch.kernel.core.placement import PASSED_MS_MAX
from core_rig import DISABLED, Rig, after, launches


def test_sc_1_jobs_start_in_submission_order(rig: Rig) -> None:
    jobs = [rig.submit(vcpus=2) for _ in range(4)]
    assert [job for job, *_ in launches(rig.place())] == jobs[:2]
    rig.exit(jobs[1])
    rig.exit(jobs[0])
    assert [job for job, *_ in launches(rig.place())] == jobs[2:]


def test_sc_1_submission_order_holds_across_shapes(rig: Rig) -> None:
    jobs = [rig.submit(vcpus=vcpus) for vcpus in (1, 0.5, 1, 0.5)]
    assert [job for job, *_ in launches(rig.place())] == jobs


def test_sc_1_a_job_released_later_keeps_its_place(rig: Rig) -> None:
    gate = rig.submit(vcpus=4)
    early = rig.submit("early", after(rig.id(gate)), vcpus=4)
    late = rig.submit(vcpus=4)
    rig.run(gate)
    assert launches(rig.place()) == [(early, 1, [0], 1)]
    rig.exit(early)
    assert launches(rig.place()) == [(late, 1, [0], 1)]


def test_sc_1_what_does_not_fit_is_passed_by_what_does(rig: Rig) -> None:
    rig.submit(vcpus=3)
    rig.place()
    big, small = rig.submit(vcpus=2), rig.submit(vcpus=1)
    assert launches(rig.place()) == [(small, 1, [0], 1)]
    assert rig.status(big) == "RUNNABLE"


def test_sc_1_what_is_passed_for_too_long_holds_a_host(rig: Rig) -> None:
    """Small jobs come for ever; the big one starts all the same once enough of them have ended."""
    running = [rig.submit(vcpus=2) for _ in range(2)]
    rig.place()
    big = rig.submit(vcpus=4)
    rig.advance(PASSED_MS_MAX - 1)
    small = rig.submit(vcpus=2)
    rig.exit(running[0])
    assert launches(rig.place()) == [(small, 1, [0], 1)]
    rig.advance(1)
    another = rig.submit(vcpus=2)
    rig.exit(small)
    assert launches(rig.place()) == []
    rig.exit(running[1])
    assert launches(rig.place()) == [(big, 1, [0], 1)]
    assert rig.status(another) == "RUNNABLE"


def test_sc_2_the_queue_of_higher_priority_goes_first(rig: Rig) -> None:
    rig.queue("high", priority=2)
    low, high = rig.submit(vcpus=4), rig.submit(vcpus=4, queue="high")
    assert launches(rig.place()) == [(high, 1, [0], 1)]
    rig.exit(high)
    assert launches(rig.place()) == [(low, 1, [0], 1)]


def test_sc_2_a_lower_queue_starts_what_the_higher_cannot_use(rig: Rig) -> None:
    rig.queue("high", priority=2)
    too_big = rig.submit(vcpus=5, queue="high")
    low = rig.submit(vcpus=4)
    assert launches(rig.place()) == [(low, 1, [0], 1)]
    assert rig.status(too_big) == "RUNNABLE"


def test_sc_2_nothing_is_preempted(rig: Rig) -> None:
    rig.queue("high", priority=2)
    low = rig.submit(vcpus=4)
    rig.place()
    rig.submit(vcpus=4, queue="high")
    step = rig.place()
    assert (step.events, step.effects) == ([], [])
    assert rig.status(low) == "STARTING"


def test_sc_2_a_change_of_priority_counts_from_the_next_plan(rig: Rig) -> None:
    rig.queue("other", priority=0)
    first, other = rig.submit(vcpus=4), rig.submit(vcpus=4, queue="other")
    rig.do(ask.UpdateQueue(name="other", priority=9))
    assert launches(rig.place()) == [(other, 1, [0], 1)]
    assert rig.status(first) == "RUNNABLE"


def test_sc_2_equal_priorities_go_by_name(rig: Rig) -> None:
    rig.queue("a")
    rig.submit(vcpus=4)
    job = rig.submit(vcpus=4, queue="a")
    assert launches(rig.place()) == [(job, 1, [0], 1)]


def two_environments(rig: Rig) -> None:
    rig.environment("spare")
    rig.host("spare", 4, environment="spare")
    rig.queue("both", "spare", "env")


def test_sc_3_environments_are_tried_in_the_queues_order(rig: Rig) -> None:
    two_environments(rig)
    first, second, third = (rig.submit(vcpus=4, queue="both") for _ in range(3))
    assert launches(rig.place()) == [(first, 1, [0], 2), (second, 1, [0], 1)]
    assert rig.status(third) == "RUNNABLE"


@pytest.mark.parametrize("why", ["invalid", "disabled", "unlisted", "too small"])
def test_sc_3_an_environment_that_cannot_is_skipped(rig: Rig, why: str) -> None:
    two_environments(rig)
    if why == "invalid":
        rig.do(ask.EnvironmentFailed(environment="spare", reason="broken"))
    if why == "disabled":
        rig.do(ask.UpdateEnvironment(name="spare", state=DISABLED))
    if why == "unlisted":
        rig.do(ask.OpenKernel(kernel_id="x"))
        rig.do(ask.AllListed(environment="env", hosts=("host",)))
    if why == "too small":
        rig.host("spare", 1, environment="spare")
    job = rig.submit(vcpus=2, queue="both")
    assert launches(rig.place()) == [(job, 1, [0], 1)]


def test_best_fit_the_least_free_vcpus_that_are_enough(rig: Rig) -> None:
    rig.host("large", 8)
    rig.host("small", 2)
    job = rig.submit(vcpus=2)
    assert launches(rig.place()) == [(job, 1, [0], 3)]
    another = rig.submit(vcpus=3)
    assert launches(rig.place()) == [(another, 1, [0], 1)]


def test_best_fit_among_equal_vcpus_the_least_memory_then_the_fewest_gpus(bare: Rig) -> None:
    bare.environment()
    bare.queue()
    bare.host("large", 4, memory=4000)
    bare.host("gpus", 4, memory=1000, gpus=(0, 1))
    bare.host("small", 4, memory=1000)
    jobs = [bare.submit(vcpus=4, memory_mib=10) for _ in range(3)]
    assert [(job, host) for job, _, _, host in launches(bare.place())] == list(zip(jobs, (3, 2, 1), strict=True))


def test_best_fit_memory_and_gpus_must_fit_too(bare: Rig) -> None:
    bare.environment()
    bare.queue()
    bare.host("small", 4, memory=100)
    bare.host("gpu", 8, memory=1000, gpus=(0,))
    by_memory = bare.submit(memory_mib=200)
    by_gpu = bare.submit(gpus=1)
    too_much = bare.submit(gpus=2)
    assert [(job, host) for job, _, _, host in launches(bare.place())] == [(by_memory, 2), (by_gpu, 2)]
    assert bare.status(too_much) == "RUNNABLE"


def test_an_array_spreads_over_hosts(rig: Rig) -> None:
    rig.host("second", 2)
    job = rig.submit(size=10)
    assert launches(rig.place()) == [(job, 1, [0, 1], 2), (job, 1, [2, 3, 4, 5], 1)]


def test_memory_that_is_not_counted_is_no_limit(rig: Rig) -> None:
    job = rig.submit(size=4, memory_mib=1 << 39)
    assert launches(rig.place()) == [(job, 1, [0, 1, 2, 3], 1)]


def test_gpus_are_given_out_by_index_and_come_back(bare: Rig) -> None:
    bare.environment()
    bare.queue()
    bare.host(gpus=(0, 2, 5), vcpus=8)
    job = bare.submit(size=3, gpus=2)
    (event,) = bare.place().events
    assert isinstance(event, AttemptsPlaced)
    assert event.gpus == [[0, 2]]
    single = bare.submit(gpus=1)
    bare.place()
    assert (bare.job(job).gpus, bare.job(single).gpus) == ({0: (0, 2)}, {0: (5,)})
    bare.exit(single)
    bare.exit(job, 0)
    bare.place()
    assert bare.job(job).gpus == {1: (0, 2)}
    assert bare.state.hosts[1].free_gpus == [5]


def test_several_children_on_one_host_get_gpus_of_their_own(bare: Rig) -> None:
    bare.environment()
    bare.queue()
    bare.host(gpus=(0, 1, 2, 3, 4), vcpus=8)
    job = bare.submit(size=3, gpus=2)
    bare.place()
    assert bare.job(job).gpus == {0: (0, 1), 1: (2, 3)}


def test_a_gpu_in_use_is_not_given_out_when_it_was_missing_from_an_offer(bare: Rig) -> None:
    bare.environment()
    bare.queue()
    bare.host(gpus=(0, 1))
    first, second = bare.submit(gpus=1), bare.submit(gpus=1)
    bare.place(most=1)
    bare.host(gpus=(1,))
    bare.host(gpus=(0, 1))
    bare.place()
    assert (bare.job(first).gpus, bare.job(second).gpus) == ({0: (0,)}, {0: (1,)})


def test_a_host_whose_offer_changes_keeps_what_runs_on_it(rig: Rig) -> None:
    job = rig.submit(size=6)
    rig.place()
    rig.host(vcpus=2)
    assert rig.state.hosts[1].free_vcpus_milli == -2000
    rig.exit(job, 0, 1, 2)
    assert launches(rig.place()) == [(job, 1, [4], 1)]
    assert rig.host(vcpus=2).events == []


def test_a_plan_places_at_most_what_it_is_asked_for(rig: Rig) -> None:
    job = rig.submit(size=4)
    assert launches(rig.place(most=3)) == [(job, 1, [0, 1, 2], 1)]
    assert launches(rig.place(most=3)) == [(job, 1, [3], 1)]


def test_a_plan_without_anything_to_place_does_nothing(rig: Rig) -> None:
    step = rig.place()
    assert (step.events, step.effects) == ([], [])


def test_when_it_is_planned_does_not_change_what_follows(rig: Rig) -> None:
    """Planning more often only comes to the same placements earlier, here one by one."""
    jobs = [rig.submit(vcpus=1) for _ in range(3)]
    placed = []
    for _ in range(4):
        placed += [effect.job for effect in rig.place(most=1).effects if isinstance(effect, LaunchAttempts)]
    assert placed == jobs


def test_a_cancelled_job_at_the_front_is_passed_over(rig: Rig) -> None:
    first, second = rig.submit(vcpus=4, attempts=2), rig.submit(vcpus=4)
    rig.run(first, code=1)
    rig.cancel(first)
    assert launches(rig.place()) == [(second, 1, [0], 1)]


def test_fractions_of_vcpus_add_up(rig: Rig) -> None:
    job = rig.submit(size=20, vcpus=0.25)
    rig.place()
    assert rig.statuses(job) == "s" * 16 + "R" * 4
