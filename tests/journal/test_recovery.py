"""Recovery is `evolve` over the log: from every commit boundary, with and without snapshots, on real files.

The golden journal was recorded by the version that its name tells (`python tests/journal/record_golden.py`); every
later version has to open it and find what it held.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import anybatch
import pytest
from anybatch.kernel.core.invariants import check_invariants
from anybatch.kernel.core.machine import replay
from anybatch.kernel.core.snapshot import decode, encode
from anybatch.kernel.core.state import KernelState
from anybatch.kernel.journal import FileJournal, Journal, MemoryJournal, Record
from anybatch.testing.null import NullBackend
from core_rig import EVENTS_DECODER, Rig
from core_scenario import full_life

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def life() -> Rig:
    rig = Rig()
    full_life(rig)
    return rig


def write(journal: Journal, rig: Rig, until: int, snapshot_at: int | None = None) -> None:
    """The first commits of a life, as the runtime would write them."""
    journal.begin_epoch(1)
    for number, taken in enumerate(rig.taken[:until]):
        events = EVENTS_DECODER.decode(taken.commit)
        if events:
            journal.commit(taken.now_ms, events)
        if number == snapshot_at:
            journal.put_snapshot(taken.snapshot)


def recover(journal: Journal, rig: Rig) -> KernelState:
    snapshot, records = journal.load()
    state = KernelState(rig.quotas) if snapshot is None else decode(snapshot, rig.quotas)
    for record in records if journal.durable else everything(journal):
        replay(state, record.events, record.at_ms)
    return state


def everything(journal: Journal) -> Iterator[Record]:
    """What a journal in memory holds: it is never loaded, but can be read."""
    sequence = 0
    while records := journal.read(sequence):
        yield from records
        sequence = records[-1].last


def at_the_time(state: KernelState, rig: Rig, until: int) -> bytes:
    """Its bytes, with the time of the last input: one that changes nothing is in no log."""
    state.now_ms = rig.taken[until - 1].now_ms
    return encode(state)


def test_from_every_commit_boundary_the_log_gives_the_live_state(life: Rig) -> None:
    assert len(life.taken) > 80
    for until in range(1, len(life.taken) + 1):
        journal = MemoryJournal(Path("nowhere"))
        write(journal, life, until)

        state = recover(journal, life)

        check_invariants(state)
        assert at_the_time(state, life, until) == life.taken[until - 1].snapshot


@pytest.mark.asyncio
async def test_from_a_file_too_with_a_snapshot_anywhere(life: Rig, tmp_path: Path) -> None:
    whole = len(life.taken)
    for until in range(10, whole + 1, 7):
        for snapshot_at in (None, until // 2, until - 1):
            path = tmp_path / f"{until}-{snapshot_at}.db"
            journal = FileJournal(path)
            write(journal, life, until, snapshot_at)
            await journal.close()

            again = FileJournal(path)
            state = recover(again, life)
            await again.close()

            assert at_the_time(state, life, until) == life.taken[until - 1].snapshot


@pytest.mark.asyncio
async def test_a_kernel_on_a_log_cut_at_a_commit_runs_what_is_left_to_its_end(life: Rig, tmp_path: Path) -> None:
    for until in range(12, len(life.taken) + 1, 9):
        path = tmp_path / f"{until}.db"
        journal = FileJournal(path)
        write(journal, life, until)
        await journal.close()

        async with anybatch.Kernel(path, backends={"null": NullBackend}) as kernel:
            for environment in await kernel.describe_compute_environments():
                await kernel.update_compute_environment(environment.name, max_vcpus=64, options={"gpus": [0, 1, 2, 3]})
            jobs = [job.id async for job in kernel.list_jobs()]
            for detail in await kernel.describe_jobs(jobs):
                if detail.queue in {queue.name for queue in await kernel.describe_job_queues()}:
                    assert (await kernel.wait(detail.id)).status.is_terminal


@pytest.mark.asyncio
async def test_a_broken_replay_is_seen(life: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above can fail: one event left out is noticed."""
    journal = MemoryJournal(Path("nowhere"))
    write(journal, life, len(life.taken))
    state = KernelState(life.quotas)
    for n, record in enumerate(everything(journal)):
        if n != 3:
            try:
                replay(state, record.events, record.at_ms)
            except (KeyError, AssertionError, anybatch.KernelBug):
                return
    assert at_the_time(state, life, len(life.taken)) != life.taken[-1].snapshot


@pytest.mark.asyncio
@pytest.mark.parametrize("name", sorted(p.stem for p in GOLDEN.glob("*.db")))
async def test_a_journal_of_every_released_version_opens(name: str, tmp_path: Path) -> None:
    shutil.copy(GOLDEN / f"{name}.db", tmp_path / "old.db")
    told = json.loads((GOLDEN / f"{name}.json").read_text())

    async with anybatch.Kernel(tmp_path / "old.db", backends={"null": NullBackend}) as kernel:
        found = {job.name: job.status.value async for job in kernel.list_jobs()}
        details = await kernel.describe_jobs(told["jobs"])
        async with kernel.events() as events:
            async for event in events:
                assert event.job_name
                if event.id.sequence >= told["last"]:
                    break

    assert {detail.name: len(detail.attempts) for detail in details} == told["attempts"]
    assert all(found[name] == status for name, status in told["ended"].items())


def test_there_is_a_golden_journal() -> None:
    assert list(GOLDEN.glob("*.db"))
