"""One timer watches all calls of a backend: each gets its own bound all the same."""

from __future__ import annotations

import asyncio

import pytest
from anybatch.kernel.bound import Bound

pytestmark = pytest.mark.asyncio

LONG_S = 1000.0
SHORT_S = 0.01


@pytest.fixture
def bound() -> Bound:
    return Bound()


async def at_once() -> None:
    """A call that waits for nothing."""


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_a_call_after_one_that_might_have_taken_longer_is_ended_in_time(bound: Bound) -> None:
    await bound.keep(at_once(), LONG_S)
    with pytest.raises(TimeoutError):
        await bound.keep(for_ever(), SHORT_S)


async def test_a_call_after_one_that_might_have_taken_less_is_left_its_time(bound: Bound) -> None:
    await bound.keep(at_once(), SHORT_S)
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(2 * SHORT_S, over.set)  # the first call's time is over by then
    await bound.keep(wait(over), LONG_S)


async def wait(over: asyncio.Event) -> None:
    await over.wait()


async def test_the_call_after_one_that_was_ended_is_not(bound: Bound) -> None:
    with pytest.raises(TimeoutError):
        await bound.keep(for_ever(), SHORT_S)
    await bound.keep(asyncio.sleep(0), LONG_S)


async def test_what_is_under_way_can_be_given_less_time(bound: Bound) -> None:
    call = asyncio.ensure_future(bound.keep(for_ever(), LONG_S))
    await asyncio.sleep(0)
    bound.shorten(SHORT_S)
    with pytest.raises(TimeoutError):
        await call


async def test_a_cancellation_from_outside_is_no_timeout(bound: Bound) -> None:
    call = asyncio.ensure_future(bound.keep(for_ever(), LONG_S))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
