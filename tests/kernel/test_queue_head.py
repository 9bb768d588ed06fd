"""Kernel.queue_head: which job of a queue is the first in turn (SC-1), whether or not it can run."""

from __future__ import annotations

import heapq

import pytest
from anybatch import NotFound
from anybatch.kernel.backend import AttemptKey
from anybatch.kernel.core.placement import _first
from anybatch.kernel.core.states import RUNNABLE
from kernel_rig import ManualBackend, kernel_on, submit, until

pytestmark = pytest.mark.asyncio


async def test_sc_1_the_oldest_that_waits_is_the_head_and_what_was_retried_goes_first() -> None:
    backend = ManualBackend()
    async with kernel_on(backend, vcpus=1) as kernel:
        assert await kernel.queue_head("q") is None
        running = await submit(kernel, "running", retry=2)
        await until(lambda: backend.live)
        assert await kernel.queue_head("q") is None
        large = await submit(kernel, "large", vcpus=9, array_size=2)
        behind = await submit(kernel, "behind")
        last = await submit(kernel, "last", vcpus=9)

        async def head() -> str | None:
            found = await kernel.queue_head("q")
            return None if found is None else found.id

        assert await head() == f"{large.id}:0"
        await large.terminate("enough")
        assert await head() == behind.id
        kernel._live.placing = False
        backend.exit(AttemptKey(running.id, 0, 1), 1)
        await until(lambda: not backend.live)
        await kernel.describe_job(running)
        await until(lambda: kernel._live.state.jobs[kernel._live.state.ids[running.id]].children.counts[RUNNABLE] == 1)
        assert await head() == running.id
        await running.terminate("enough")
        assert await head() == behind.id
        await behind.cancel("enough")
        assert await head() == last.id
        await last.cancel("enough")
        assert await head() is None
        with pytest.raises(NotFound):
            await kernel.queue_head("none")


async def test_sc_1_finding_the_head_looks_at_no_more_than_what_no_longer_waits() -> None:
    heap = [*range(1_000)]
    heapq.heapify(heap)
    seen: list[int] = []

    def holds(entry: int) -> bool:
        seen.append(entry)
        return entry not in (0, 1, 2, 5)

    assert _first(heap, holds) == 3
    assert seen == [0, 1, 2, 3]
    assert _first(heap, lambda _: False) is None
    assert _first([7], lambda entry: entry == 7) == 7
    assert heap == [*range(1_000)]
