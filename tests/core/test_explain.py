"""explain: every rule that can hold a job back names itself, with a stable code and a sentence that has the figures."""

from __future__ import annotations

from pathlib import Path

from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.container import ContainerSpec
from anybatch.kernel.core.explain import NAMED_MAX, Code, Reason, explain
from anybatch.kernel.core.model import Action, EvaluateOnExit, ExitKind, On, ResourceStatus, RetryStrategy
from anybatch.kernel.core.placement import PASSED_MS_MAX
from anybatch.kernel.core.reports import UNKNOWN_MS_MAX
from anybatch.kernel.core.states import STATUSES
from core_rig import DISABLED, SEQUENTIAL, SEQUENTIAL_ANY, Rig, after, after_any, after_failure, n_to_n


def reasons(rig: Rig, job: int, index: int | None = None, *, placing: bool = True) -> list[tuple[Code, str]]:
    found = explain(rig.state, rig.job(job), index, rig.now_ms, placing=placing)
    assert all(isinstance(reason, Reason) for reason in found)
    return [(reason.code, reason.text) for reason in found]


def codes(rig: Rig, job: int, index: int | None = None) -> list[Code]:
    return [code for code, _ in reasons(rig, job, index)]


# -- what has ended, and what is under way --------------------------------------------------------------------


def test_a_job_that_succeeded_says_how_it_ended(rig: Rig) -> None:
    job = rig.submit()
    rig.run(job)
    assert reasons(rig, job) == [(Code.SUCCEEDED, "Essential container in task exited; exit code 0")]


def test_a_job_that_failed_says_with_what_and_after_how_many_attempts(rig: Rig) -> None:
    job = rig.submit(attempts=2)
    rig.run(job, code=1)
    rig.place()
    rig.start(job)
    rig.exit(job, code=137, reason="OutOfMemoryError: killed")
    text = "Essential container in task exited; OutOfMemoryError: killed; exit code 137; 2 of 2 attempts were made"
    assert reasons(rig, job) == [(Code.FAILED, text)]


def test_a_job_that_failed_without_an_attempt_says_why(rig: Rig) -> None:
    job = rig.submit()
    rig.cancel(job, "no more")
    assert reasons(rig, job) == [(Code.FAILED, "no more; 0 of 1 attempts were made")]


def test_a_job_handed_to_a_backend_is_starting_on_a_host(rig: Rig) -> None:
    job = rig.submit(attempts=3)
    rig.place()
    text = (
        "attempt 1 of 3 has been handed to the backend on host 'host' of environment 'env', "
        "which has not said that it runs"
    )
    assert reasons(rig, job) == [(Code.STARTING, text)]


def test_a_job_that_is_taken_ahead_waits_for_room_on_its_host(rig: Rig) -> None:
    rig.host(vcpus=1, lookahead=5)
    for _ in range(40):
        short = rig.submit()
        rig.place()
        rig.start(short, at_ms=[rig.now_ms])
        rig.exit(short, at_ms=[rig.now_ms])
    running, ahead, behind = rig.submit(), rig.submit(), rig.submit(memory_mib=7, vcpus=5)
    rig.place()
    rig.start(running)
    text = "attempt 1 of 1 is held ready on host 'host' of environment 'env', and begins when there is room"
    assert reasons(rig, ahead) == [(Code.STARTING, text)]
    assert codes(rig, behind) == [Code.NEVER_FITS]
    many = rig.submit(size=9)
    rig.place()
    text = "child 4: needs 1 vCPU; environment 'env' has 1 vCPU, of which 0 vCPU are free"
    assert reasons(rig, many)[0] == (Code.NO_CAPACITY, f"{text} (children: 5 RUNNABLE, 4 STARTING)")


def test_an_attempt_that_cannot_be_found_says_when_it_counts_as_lost(rig: Rig) -> None:
    job = rig.submit()
    rig.place()
    rig.start(job)
    rig.unknown(job)
    rig.now_ms += 1000
    where = "on host 'host' of environment 'env'"
    lost = f"attempt 1 of 1 could not be found {where}; unless it is heard of, it counts as lost"
    runs = f"attempt 1 of 1 has run {where} for 1.0 s"
    assert reasons(rig, job) == [
        (Code.UNKNOWN, f"{lost} in {UNKNOWN_MS_MAX / 1000 - 1:.0f} s"), (Code.RUNNING, runs)
    ]  # fmt: skip
    rig.start(job)
    assert codes(rig, job) == [Code.RUNNING]


def test_a_running_job_says_where_and_for_how_long(rig: Rig) -> None:
    bounded, free = rig.submit(timeout_ms=90_500), rig.submit()
    rig.place()
    rig.start(bounded)
    rig.start(free)
    rig.advance(2_500)
    where = "attempt 1 of 1 has run on host 'host' of environment 'env' for 2.5 s"
    assert reasons(rig, bounded) == [(Code.RUNNING, f"{where} of at most 90.5")]
    assert reasons(rig, free) == [(Code.RUNNING, where)]


def test_an_attempt_that_is_being_stopped_says_for_whom(rig: Rig) -> None:
    asked, late = rig.submit(), rig.submit(timeout_ms=1_000)
    rig.place()
    rig.start(asked)
    rig.start(late)
    rig.terminate(asked, "enough")
    rig.advance(1_000)
    where = "attempt 1 of 1 is being stopped on host 'host' of environment 'env'"
    assert reasons(rig, asked)[0] == (Code.STOPPING, f"{where} (terminate: enough)")
    assert reasons(rig, late)[0] == (Code.STOPPING, f"{where} (timeout)")
    assert codes(rig, asked) == [Code.STOPPING, Code.RUNNING]


def test_attempts_that_did_not_count_are_counted_on_both_sides(rig: Rig) -> None:
    """Neither "attempt 3 of 1" nor "3 of 1 attempts were made"."""
    job = rig.submit(retry=RetryStrategy(1, host_lost_retries=2))
    for _ in range(2):
        rig.place()
        rig.lose(job)
    rig.place()
    rig.start(job)
    assert reasons(rig, job)[0][1].startswith("attempt 3 of 3 has run")
    rig.exit(job, code=1)
    assert reasons(rig, job)[0][1].endswith("exit code 1; 3 of 3 attempts were made")


# -- what waits for others ------------------------------------------------------------------------------------


def test_a_job_names_the_jobs_that_it_waits_for(rig: Rig) -> None:
    single, array = rig.submit("single"), rig.submit("array", size=3)
    rig.place()
    rig.start(array, 0)
    rig.exit(array, 0)
    job = rig.submit("job", after(rig.id(single)), after(rig.id(array)))
    assert reasons(rig, job) == [
        (Code.WAITS_FOR_JOB, f"waits for job 'single' ({rig.id(single)}), which is STARTING"),
        (
            Code.WAITS_FOR_JOB,
            f"waits for job 'array' ({rig.id(array)}), which is PENDING with 1 of 3 children SUCCEEDED",
        ),
    ]
    rig.start(single)
    rig.exit(single)
    assert codes(rig, job) == [Code.WAITS_FOR_JOB]


def test_a_job_names_the_single_children_that_it_waits_for(rig: Rig) -> None:
    array = rig.submit("array", size=3)
    job, twin = rig.submit("job", after(rig.child(array, 2))), rig.submit("twin", n_to_n(rig.id(array)), size=3)
    text = f"waits for child {{}} of job 'array' ({rig.id(array)}), which is RUNNABLE"
    assert reasons(rig, job) == [(Code.WAITS_FOR_CHILD, text.format(2))]
    assert reasons(rig, twin, 1) == [(Code.WAITS_FOR_CHILD, text.format(1))]


def test_a_child_of_a_sequence_names_the_one_before_it(rig: Rig) -> None:
    job = rig.submit("job", SEQUENTIAL, size=3)
    rig.place()
    text = "waits for child {} of its own array, which is {}"
    assert reasons(rig, job, 1) == [(Code.WAITS_IN_SEQUENCE, text.format(0, "STARTING"))]
    assert reasons(rig, job, 2) == [(Code.WAITS_IN_SEQUENCE, text.format(1, "PENDING"))]


def test_a_job_that_waits_for_many_names_some_and_counts_the_rest(rig: Rig) -> None:
    others = [rig.submit() for _ in range(NAMED_MAX + 3)]
    job = rig.submit("job", *(after(rig.id(other)) for other in others))
    found = reasons(rig, job)
    assert len(found) == NAMED_MAX + 1
    assert found[-1] == (Code.WAITS_FOR_JOB, "waits for 3 more")


# -- what waits for room ----------------------------------------------------------------------------------------


def test_what_needs_more_than_is_free_says_how_much_of_what(rig: Rig) -> None:
    rig.submit(vcpus=3.5)
    rig.place()
    job = rig.submit(vcpus=2)
    text = "needs 2 vCPU; environment 'env' has 4 vCPU, of which 0.5 vCPU are free"
    assert reasons(rig, job) == [(Code.NO_CAPACITY, text)]


def test_figures_name_memory_and_gpus_where_they_are_counted(bare: Rig) -> None:
    bare.environment()
    bare.host("a", 8, memory=1000, gpus=(0, 1))
    bare.host("b", 2, memory=4000)
    bare.queue()
    bare.submit(vcpus=1, memory_mib=600, gpus=1)
    bare.place()
    job = bare.submit(vcpus=1, memory_mib=500, gpus=1)
    text = (
        "needs 1 vCPU, 500 MiB, 1 GPU; environment 'env' has 8 vCPU, 1000 MiB, 2 GPU, "
        "of which 7 vCPU, 400 MiB, 1 GPU are free on its freest host 'a'"
    )
    assert reasons(bare, job) == [(Code.NO_CAPACITY, text)]


def test_what_can_never_fit_says_so_at_once(rig: Rig) -> None:
    job = rig.submit(vcpus=4.5)
    text = "needs 4.5 vCPU; environment 'env' has 4 vCPU in all, so it can never run there"
    assert reasons(rig, job) == [(Code.NEVER_FITS, text)]
    rig.host("larger", 4.25)
    assert reasons(rig, job) == [
        (
            Code.NEVER_FITS,
            "needs 4.5 vCPU; environment 'env' has 4.25 vCPU in all on its largest host 'larger', "
            "so it can never run there",
        )
    ]
    rig.host("large", 5)
    rig.place()
    assert codes(rig, job) == [Code.STARTING]


def test_each_environment_says_why_not_and_what_passes_by_itself_comes_first(bare: Rig) -> None:
    for name, vcpus in (("small", 1), ("busy", 2), ("off", 2)):
        bare.environment(name)
        bare.host(name, vcpus, environment=name)
    bare.queue("queue", "small", "off", "busy")
    bare.do(ask.UpdateEnvironment(name="off", state=DISABLED))
    bare.submit(vcpus=2)
    bare.place()
    job = bare.submit(vcpus=2)
    assert reasons(bare, job) == [
        (Code.NO_CAPACITY, "needs 2 vCPU; environment 'busy' has 2 vCPU, of which 0 vCPU are free"),
        (Code.ENVIRONMENT_DISABLED, "environment 'off' is DISABLED"),
        (Code.NEVER_FITS, "needs 2 vCPU; environment 'small' has 1 vCPU in all, so it can never run there"),
    ]


def test_an_environment_says_that_it_is_invalid_and_why(rig: Rig) -> None:
    job = rig.submit()
    rig.do(ask.EnvironmentFailed(environment="env", reason="no such host"))
    assert reasons(rig, job) == [(Code.ENVIRONMENT_INVALID, "environment 'env' is INVALID: no such host")]


def test_an_environment_that_is_not_there_is_named(rig: Rig) -> None:
    """No call leads here: what a queue names cannot be deleted. A lost journal might."""
    job = rig.submit()
    row = rig.state.environments.pop("env")
    assert reasons(rig, job) == [(Code.ENVIRONMENT_INVALID, "environment 'env' does not exist any more")]
    rig.state.environments["env"] = row


def test_a_reopened_environment_says_that_its_backend_is_yet_to_speak(rig: Rig) -> None:
    job = rig.submit()
    rig.do(ask.OpenKernel(kernel_id="again"))
    text = "environment 'env' is VALID: its backend has not said yet what it holds"
    assert reasons(rig, job) == [(Code.ENVIRONMENT_STARTING, text)]
    rig.do(ask.AllListed(environment="env", hosts=("host",)))
    assert codes(rig, job) == [Code.NEXT]


def test_an_environment_without_hosts_says_so(bare: Rig) -> None:
    bare.environment()
    bare.queue()
    job = bare.submit()
    assert reasons(bare, job) == [(Code.NO_HOST, "environment 'env' has no host")]


def test_a_host_that_is_kept_names_the_job_that_it_is_kept_for(rig: Rig) -> None:
    rig.submit(vcpus=1)
    rig.place()
    big = rig.submit("big", vcpus=4)
    rig.advance(PASSED_MS_MAX)
    small = rig.submit("small", vcpus=1)
    rig.place()
    text = f"host 'host' of environment 'env' is reserved for job 'big' ({rig.id(big)}), which has waited longer"
    assert reasons(rig, small)[0] == (Code.HOST_RESERVED, text)
    assert codes(rig, big) == [Code.NO_CAPACITY]


def test_what_is_next_says_where(rig: Rig) -> None:
    job = rig.submit()
    text = "environment 'env' has room on host 'host': it is placed in the next round"
    assert reasons(rig, job) == [(Code.NEXT, text)]


# -- what waits behind others ---------------------------------------------------------------------------------


def test_a_job_behind_earlier_ones_counts_them(rig: Rig) -> None:
    rig.submit(vcpus=4)
    rig.place()
    for _ in range(3):
        rig.submit(vcpus=1)
    job = rig.submit(vcpus=1)
    assert reasons(rig, job) == [
        (Code.NO_CAPACITY, "needs 1 vCPU; environment 'env' has 4 vCPU, of which 0 vCPU are free"),
        (Code.BEHIND_OTHERS, "3 jobs of queue 'queue' go first"),
    ]


def test_only_jobs_that_wait_go_first(rig: Rig) -> None:
    rig.submit(vcpus=4)
    rig.place()
    first, cancelled, _ = (rig.submit(vcpus=1) for _ in range(3))
    job = rig.submit(vcpus=1)
    rig.cancel(cancelled)
    assert reasons(rig, job)[1] == (Code.BEHIND_OTHERS, "2 jobs of queue 'queue' go first")
    rig.cancel(first)
    assert reasons(rig, job)[1] == (Code.BEHIND_OTHERS, "1 job of queue 'queue' goes first")


def test_what_can_never_run_holds_up_nobody(rig: Rig) -> None:
    rig.submit(vcpus=5)
    rig.submit(vcpus=4)
    rig.place()
    assert codes(rig, rig.submit(vcpus=1)) == [Code.NO_CAPACITY]


def test_while_there_is_room_a_job_is_behind_those_that_fit(rig: Rig) -> None:
    first, job = rig.submit(vcpus=1), rig.submit(vcpus=1)
    text = "1 job of queue 'queue' goes first; environment 'env' has room on host 'host'"
    assert reasons(rig, job) == [(Code.BEHIND_OTHERS, text)]
    assert codes(rig, first) == [Code.NEXT]


def test_a_job_is_behind_those_that_are_tried_again(rig: Rig) -> None:
    early = rig.submit(vcpus=4)
    rig.place()
    mine = rig.submit(vcpus=4)
    late = rig.submit(vcpus=4, attempts=2)
    rig.cancel(mine)
    rig.exit(early)
    rig.place()
    waiting = rig.submit(vcpus=4)
    rig.exit(late, code=1)
    text = "1 job of queue 'queue' goes first, 1 of them to be tried again"
    assert reasons(rig, waiting)[0][1].startswith(text)
    assert codes(rig, late) == [Code.NEXT]


def test_a_queue_of_higher_priority_goes_first_and_is_named(rig: Rig) -> None:
    rig.queue("urgent", priority=7)
    rig.submit(vcpus=4)
    rig.place()
    job = rig.submit(vcpus=1)
    assert codes(rig, job) == [Code.NO_CAPACITY]
    urgent = rig.submit(queue="urgent", vcpus=1)
    text = "queue 'urgent' of priority 7 has work waiting, this one has priority 1"
    assert reasons(rig, job)[1] == (Code.BEHIND_OTHERS, text)
    rig.cancel(urgent)
    assert codes(rig, job) == [Code.NO_CAPACITY]


def test_of_equal_priorities_the_name_decides_and_is_told(rig: Rig) -> None:
    rig.queue("a-queue", priority=1)
    rig.submit(vcpus=4)
    rig.place()
    job, before = rig.submit(vcpus=1), rig.submit(queue="a-queue", vcpus=1)
    text = "queue 'a-queue' of priority 1 has work waiting, this one has priority 1 and comes after it by name"
    assert reasons(rig, job)[1] == (Code.BEHIND_OTHERS, text)
    assert codes(rig, before) == [Code.NO_CAPACITY]


# -- queues and kernels that end ----------------------------------------------------------------------------------


def test_a_kernel_that_closes_says_so_first(rig: Rig) -> None:
    job = rig.submit()
    assert reasons(rig, job, placing=False)[0] == (
        Code.KERNEL_CLOSING,
        "the kernel is closing and starts nothing more",
    )


def test_a_queue_that_is_being_deleted_is_named(rig: Rig) -> None:
    """No step ends here: deleting a queue fails all that waits in it. Whoever looks in between is told."""
    job = rig.submit()
    row = rig.state.queues["queue"]
    row.status = ResourceStatus.DELETING
    assert reasons(rig, job) == [(Code.QUEUE_DELETING, "its queue 'queue' is being deleted")]
    row.status = ResourceStatus.VALID


# -- array parents -----------------------------------------------------------------------------------------------


def test_a_parent_is_explained_by_its_first_child_that_waits_for_room(rig: Rig) -> None:
    job = rig.submit(size=6, vcpus=2)
    rig.place()
    rig.start(job, 0)
    rig.exit(job, 0)
    rig.start(job, 1)
    text = (
        "child 2: environment 'env' has room on host 'host': it is placed in the next round "
        "(children: 4 RUNNABLE, 1 RUNNING, 1 SUCCEEDED)"
    )
    assert reasons(rig, job) == [(Code.NEXT, text)]
    assert codes(rig, job, 0) == [Code.SUCCEEDED]
    assert codes(rig, job, 1) == [Code.RUNNING]


def test_a_parent_whose_children_wait_for_others_names_these(rig: Rig) -> None:
    gate = rig.submit("gate")
    job = rig.submit("job", after(rig.id(gate)), size=2)
    text = f"child 0: waits for job 'gate' ({rig.id(gate)}), which is RUNNABLE (children: 2 PENDING)"
    assert reasons(rig, job) == [(Code.WAITS_FOR_JOB, text)]


def test_a_parent_whose_last_children_are_under_way_says_so(rig: Rig) -> None:
    job = rig.submit(size=2)
    rig.place()
    text = "its last children are under way (children: {})"
    assert reasons(rig, job) == [(Code.STARTING, text.format("2 STARTING"))]
    rig.start(job, 0)
    assert reasons(rig, job) == [(Code.RUNNING, text.format("1 STARTING, 1 RUNNING"))]


def test_an_ended_parent_counts_its_children(rig: Rig) -> None:
    fine, mixed = rig.submit(size=2), rig.submit(size=2)
    rig.run(fine, 0, 1)
    rig.run(mixed, 0, code=1)
    rig.start(mixed, 1)
    rig.exit(mixed, 1)
    assert reasons(rig, fine) == [(Code.SUCCEEDED, "its 2 children have ended: 2 SUCCEEDED")]
    assert reasons(rig, mixed) == [(Code.FAILED, "its 2 children have ended: 1 SUCCEEDED, 1 FAILED")]


# -- all of them ------------------------------------------------------------------------------------------------


def test_looking_changes_nothing(rig: Rig) -> None:
    """`verify` compares what follows with a kernel where nobody looked."""
    jobs = [rig.submit(vcpus=2, attempts=2) for _ in range(5)]
    rig.place()
    for job in jobs:
        reasons(rig, job)
    rig.exit(jobs[0], code=1)
    rig.cancel(jobs[3])
    for job in jobs:
        reasons(rig, job)
    rig.place()
    for job in jobs:
        reasons(rig, job)


def test_work_whose_hosts_take_no_attempts_says_why(rig: Rig) -> None:
    job = rig.submit()
    rig.do(ask.HostPaused(environment="env", host="host", reason="it cannot be reached"))
    told = "no host of environment 'env' that could run it takes attempts: host 'host'"
    assert reasons(rig, job) == [(Code.HOST_UNAVAILABLE, f"{told} takes none for now: it cannot be reached")]
    rig.do(ask.DrainHost(environment="env", host="host", reason="new disks"))
    assert reasons(rig, job) == [(Code.HOST_DRAINED, f"{told} is drained: new disks")]


def test_an_environment_that_does_not_run_what_the_container_asks_for_says_so(rig: Rig) -> None:
    rig.environment("docker", backend="docker", container=("image",))
    rig.host("engine", environment="docker")
    rig.queue("images", "docker")
    job = rig.submit(queue="images", vcpus=9, container=ContainerSpec(image="busybox"))
    rig.do(ask.UpdateQueue(name="images", compute_environments=("env",)))
    text = "environment 'env' (backend null) does not honour image of its container"
    assert reasons(rig, job) == [(Code.CANNOT_RUN_IT, text)]


def test_which_end_is_waited_for_is_named(rig: Rig) -> None:
    first = rig.submit(size=2)
    first_id = rig.id(first)
    waits = rig.submit(
        "waits",
        SEQUENTIAL_ANY,
        after_any(first_id),
        after_failure(rig.child(first, 1)),
        n_to_n(first_id, On.ANY),
        size=2,
    )
    of = f"job 'job' ({first_id}), which is"
    assert reasons(rig, waits, 1) == [
        (
            Code.WAITS_IN_SEQUENCE,
            "waits for the end, either way, of child 0 of its own array, which is PENDING",
        ),
        (
            Code.WAITS_FOR_END,
            f"waits for the end, either way, of {of} PENDING with 0 of 2 children SUCCEEDED",
        ),
        (Code.WAITS_FOR_FAILURE, f"waits for a failure of child 1 of {of} RUNNABLE"),
        (Code.WAITS_FOR_END, f"waits for the end, either way, of child 1 of {of} RUNNABLE"),
    ]
    rig.run(first, 1, code=1)
    assert codes(rig, waits, 0) == [Code.WAITS_FOR_END, Code.WAITS_FOR_END]


def test_the_cap_of_an_array_is_named(rig: Rig) -> None:
    job = rig.submit(size=6, max_running=2)
    assert codes(rig, job, 0)[0] is Code.NEXT
    rig.place()
    text = "2 children of its array run, and at most 2 may at once (max_running)"
    assert reasons(rig, job, 3) == [(Code.MAX_RUNNING, text)]
    assert reasons(rig, job) == [(Code.MAX_RUNNING, f"child 2: {text} (children: 4 RUNNABLE, 2 STARTING)")]


def test_who_is_held_by_a_cap_does_not_go_first_in_an_explanation(rig: Rig) -> None:
    rig.submit(size=6, max_running=1)
    rig.place()
    second = rig.submit("second", size=2)
    assert codes(rig, second, 0)[0] is Code.NEXT


def test_every_code_is_told_by_a_test_here() -> None:
    text = Path(__file__).read_text()
    assert [code for code in Code if f"Code.{code.name}" not in text] == []


def test_every_status_is_explained(rig: Rig) -> None:
    """Each status of a single job, with a reason that begins with what the status says."""
    exits = RetryStrategy(2, (EvaluateOnExit(Action.EXIT, on_exit_code="9"),))
    gate = rig.submit("gate", retry=exits)
    job = rig.submit("job", after(rig.id(gate)))
    seen = {rig.status(job): codes(rig, job)[0]}
    rig.run(gate)
    seen[rig.status(job)] = codes(rig, job)[0]
    rig.place()
    seen[rig.status(job)] = codes(rig, job)[0]
    rig.start(job)
    seen[rig.status(job)] = codes(rig, job)[0]
    rig.exit(job, code=None, kind=ExitKind.LOST, reason="lost")
    seen[rig.status(job)] = codes(rig, job)[0]
    seen[rig.status(gate)] = codes(rig, gate)[0]
    assert seen == {
        "PENDING": Code.WAITS_FOR_JOB,
        "RUNNABLE": Code.NEXT,
        "STARTING": Code.STARTING,
        "RUNNING": Code.RUNNING,
        "FAILED": Code.FAILED,
        "SUCCEEDED": Code.SUCCEEDED,
    }
    assert set(STATUSES) - set(seen) == {"SUBMITTED"}


def test_what_failed_by_a_dependency_names_it(rig: Rig) -> None:
    first, pairs = rig.submit("first", size=2), rig.submit("pairs", n_to_n("first"), size=2)
    last, steps = rig.submit("last", after("first")), rig.submit("steps", SEQUENTIAL, size=3)
    idle = rig.submit("idle", after_failure(rig.child(first, 0)))
    rig.place()
    rig.exit(first, 0)
    rig.exit(first, 1, code=1)
    rig.place()
    rig.exit(steps, 0, code=1)

    def told(job: int, index: int | None = None) -> list[str]:
        return [reason.text for reason in explain(rig.state, rig.job(job), index, rig.now_ms)]

    ended = "Dependent Job failed; 0 of 1 attempts were made"
    name = f"job 'first' ({rig.id(first)}), which is FAILED"
    assert told(pairs, 1) == [ended, f"it depended on child 1 of {name}"]
    rig.exit(pairs, 0)
    assert told(last) == [ended, f"it depended on {name}"]
    assert told(steps, 1) == [ended, f"it depended on child 0 of job 'steps' ({rig.id(steps)}), which is FAILED"]
    text = f"it depended on child 0 of job 'first' ({rig.id(first)}), which is SUCCEEDED"
    assert told(idle) == ["Dependent Job succeeded: not needed; 0 of 1 attempts were made", text]


def test_more_failed_dependencies_than_are_named_are_counted(rig: Rig) -> None:
    jobs = [rig.submit(f"job-{n}", vcpus=0.5) for n in range(7)]
    last = rig.submit("last", *(after(rig.id(job)) for job in jobs))
    rig.place()
    for job in jobs:
        rig.exit(job, code=1)
    told = [reason.text for reason in explain(rig.state, rig.job(last), None, rig.now_ms)]
    assert len(told) == 7
    assert told[-1] == "and on 2 more that have ended so"


def test_what_goes_on_after_a_checkpoint_says_so_behind_what_it_waits_for(rig: Rig) -> None:
    job = rig.submit(checkpoint_exit_codes=(85,), vcpus=4)
    rig.run(job, code=85)
    assert codes(rig, job) == [Code.NEXT, Code.CHECKPOINTED]
