"""What must hold of every state. Used by tests, the simulator and debugging; looks at everything."""

from __future__ import annotations

from .model import PLAIN
from .snapshot import decode, encode
from .state import MEMORY_UNCOUNTED, JobRow, KernelState
from .states import FAILED, PENDING, RUNNABLE, RUNNING, STARTING, STATUSES, SUBMITTED, SUCCEEDED
from .waits import is_answered, is_answered_for, is_lost, is_met, status_of


class InvariantBroken(AssertionError):
    """A rule does not hold; the message names the rule and the row."""


def check_invariants(state: KernelState) -> None:
    """Check every rule.

    Raises:
        InvariantBroken: one does not hold.
    """
    for job in state.jobs.values():
        _check_counts(job)
        _check_parent(job)
        _check_waiting(state, job)
    _check_hosts(state)
    _check_names(state)
    _check_snapshot(state)


def _require(truth: bool, rule: str, *about: object) -> None:
    if not truth:
        raise InvariantBroken(f"{rule}: {about}")


def _check_counts(job: JobRow) -> None:
    children = job.children
    found = [children.status.count(byte) for byte in range(len(STATUSES))]
    _require(
        found == children.counts, "the status summary counts the status column", job.serial, found, children.counts
    )
    _require(sum(children.counts) == children.size, "the status summary sums to the size", job.serial)
    runnable = children.status.find(RUNNABLE)
    _require(runnable < 0 or children.cursor <= runnable, "no child below the cursor is runnable", job.serial)
    for i in range(children.size):
        status = children.status[i]
        live = status in (STARTING, RUNNING)
        _require(i not in job.stopping or live, "only live attempts are being stopped", job.serial, i)
        _require(not live or children.number[i] > 0, "a live child has an attempt", job.serial, i)
        _require(status != SUCCEEDED or children.code[i] == 0, "what SUCCEEDED has exit code 0", job.serial, i)
        counted = children.number[i] - job.uncounted.get(i, 0)
        _require(counted <= job.spec.retry.attempts, "no more tries than the retry strategy gives", job.serial, i)


def _check_parent(job: JobRow) -> None:
    if job.size is None:
        return
    ended = job.children.counts[SUCCEEDED] + job.children.counts[FAILED] == job.size
    _require(
        job.parent in (PENDING, SUCCEEDED, FAILED), "a parent is PENDING or has ended (AR-2)", job.serial, job.parent
    )
    _require(job.ended == ended, "a parent ends with its last child (AR-4, AR-5)", job.serial)
    if ended:
        all_fine = not job.children.counts[FAILED]
        _require((job.parent == SUCCEEDED) == all_fine, "a parent SUCCEEDED if all children did", job.serial)


def _check_waiting(state: KernelState, job: JobRow) -> None:
    """A PENDING child waits for something; a RUNNABLE one for nothing, and it is in its lane."""
    if not job.ended:
        _check_blockers(state, job)
    for i in range(job.children.size):
        status = job.children.status[i]
        _require(status != SUBMITTED, "nothing stays SUBMITTED after a step", job.serial, i)
        others = [(n, state.jobs[serial], on) for n, serial, on in job.n_to_n if serial in state.jobs]
        if status == PENDING:
            asked = [(on, other.children.status[i]) for n, other, on in others if not is_answered_for(job, n, i)]
        else:  # by what they are: nothing that has been run again is among them
            asked = [(on, other.children.status[i]) for n, other, on in others if not other.reruns]
        if job.sequential is not None and i and (status == PENDING or not job.reruns):
            asked.append((job.sequential, job.children.status[i - 1]))
        blockers = 0 if status == PENDING and job.children.number[i] else job.blockers
        free = not blockers and all(is_met(on, other) for on, other in asked)
        if status == PENDING:
            _require(not free, "a PENDING child waits for something", job.serial, i)
            lost = any(is_lost(on, other) for on, other in asked)
            _require(not lost, "what depends on a FAILED job is FAILED (DEP-6)", job.serial, i)
        elif status in (RUNNABLE, STARTING, RUNNING, SUCCEEDED):
            _require(free, "what may run waits for nothing (ST-3)", job.serial, i)
    waiting = job.children.counts[PENDING] + job.children.counts[RUNNABLE]
    _require(not job.is_given_up or not waiting, "nothing waits of what is given up", job.serial, waiting)
    queue = state.queues.get(job.queue)
    if job.children.counts[RUNNABLE] and queue is not None:
        lane = queue.lanes.get(job.shape)
        is_there = lane is not None and job.serial in lane.members
        _require(is_there or not job.room(1), "runnable work is in its lane", job.serial)


def _check_blockers(state: KernelState, job: JobRow) -> None:
    """Of an unfinished job: each entry has been answered, or waits for a job or child that goes on."""
    blockers = 0
    for n, dependency in enumerate(job.depends_on):
        if dependency.type not in PLAIN or is_answered(job, n):
            continue
        ended = status_of(state.jobs[dependency.job], dependency.index) >= SUCCEEDED
        waiting = job.children.counts[PENDING] + job.children.counts[RUNNABLE]
        _require(not ended or not waiting, "what depends on a FAILED job is FAILED (DEP-6)", job.serial, n)
        blockers += 1
    rule = "blockers count what has not been answered"
    _require(job.blockers == blockers, rule, job.serial, job.blockers, blockers)


def _check_hosts(state: KernelState) -> None:
    for (serial, i), where in state.ahead.items():
        children = state.jobs[serial].children
        waits = children.status[i] == STARTING and children.hosts()[i] == where
        _require(waits, "only what has not begun is ahead", serial, i, where)
    for host in state.hosts.values():
        ahead = sum(where == host.serial for where in state.ahead.values())
        _require(host.ahead == ahead, "what a host holds ahead is counted", host.name, host.ahead, ahead)
        vcpus = memory = 0
        devices: list[int] = []
        for serial, count in host.load.items():
            job = state.jobs[serial]
            here = [i for i in job.live() if job.children.hosts()[i] == host.serial]
            _require(len(here) == count, "a host's load counts its live attempts", host.name, serial, count, here)
            vcpus += count * job.shape.vcpus_milli
            memory += count * job.shape.memory_mib
            devices += [device for i in here for device in job.gpus.get(i, ())]
        offered = MEMORY_UNCOUNTED if host.memory_mib is None else host.memory_mib
        _require(host.free_vcpus_milli == host.vcpus_milli - vcpus, "free vCPUs are what is not taken", host.name)
        _require(host.free_memory_mib == offered - memory, "free memory is what is not taken", host.name)
        _require(len(devices) == len(set(devices)), "no GPU is given out twice", host.name, devices)
        _require(host.free_gpus == sorted(set(host.gpus) - set(devices)), "free GPUs are what is not taken", host.name)
        ranked = [entry for entry in state.environments[host.environment].by_free if entry[-1] == host.serial]
        place = (host.free_vcpus_milli, host.free_memory_mib, len(host.free_gpus), host.serial)
        expected = [] if host.closed else [place]
        _require(ranked == expected, "a host is ranked once, a closed one never", host.name, ranked)
        drained = host.name in state.environments[host.environment].drained
        _require(host.closed == (drained or host.paused is not None), "what is drained or paused is closed", host.name)


def _check_names(state: KernelState) -> None:
    unfinished = [job for job in state.jobs.values() if not job.ended]
    _require(state.unfinished == len(unfinished), "unfinished jobs are counted", state.unfinished)
    for job in unfinished:
        _require(job.serial in state.names[job.name].unfinished, "an unfinished job is found by its name", job.serial)


def _check_snapshot(state: KernelState) -> None:
    data = encode(state)
    _require(encode(decode(data, state.quotas)) == data, "a snapshot gives back the state")
