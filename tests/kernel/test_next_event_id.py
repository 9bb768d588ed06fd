"""Kernel.next_event_id: whoever looks at how things stand is told when to look again."""

from __future__ import annotations

import asyncio

import pytest
from anybatch import InvalidValue, KernelClosed
from anybatch.plugins.aws.changes import Changes
from kernel_rig import ManualBackend, kernel_on, submit, turns

pytestmark = pytest.mark.asyncio


async def test_it_returns_once_something_has_changed() -> None:
    async with kernel_on(ManualBackend()) as kernel:
        last = await kernel.last_event_id()
        assert await kernel.next_event_id((last.epoch, last.sequence - 1)) == last
        waiting = asyncio.create_task(kernel.next_event_id(last))
        given_up = asyncio.create_task(kernel.next_event_id(last))
        await turns()
        assert not waiting.done()
        given_up.cancel()
        await kernel.update_compute_environment("b", state="DISABLED")  # no job's event
        assert last < await waiting <= await kernel.last_event_id()
        with pytest.raises(InvalidValue, match="newest event"):
            await kernel.next_event_id((last.epoch, last.sequence + 1000))
        assert given_up.cancelled()
        waiting = asyncio.create_task(kernel.next_event_id(await kernel.last_event_id()))
        await turns()
    with pytest.raises(KernelClosed):
        await waiting


async def test_changes_wait_for_news_or_a_time() -> None:
    async with kernel_on(ManualBackend()) as kernel:
        changes = Changes(kernel, pause_s=0)
        await changes.wait()  # the first time at once
        await changes.wait(at_most_s=0.0)
        waiting = asyncio.create_task(changes.wait())
        await turns()
        assert not waiting.done()
        job = await submit(kernel)
        await waiting
        await job.terminate("done")
        await changes.wait()  # what happened between two waits counts
    waiting = asyncio.create_task(changes.wait())
    with pytest.raises(KernelClosed):
        await waiting
