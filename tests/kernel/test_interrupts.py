"""Event loops that end under a kernel: Ctrl-C, and a main task that does not wait for the kernel's."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from kernel_rig import LastingBackend, ManualBackend, kernel_on, submit, until


@pytest.fixture(params=["file", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "j.db" if request.param == "file" else None


def test_a_keyboard_interrupt_closes_the_kernel(path: Path | None) -> None:
    backend = LastingBackend()

    async def main() -> None:
        async with kernel_on(backend, path) as kernel:
            await submit(kernel)
            await until(lambda: backend.live)
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), 2)
            await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert backend.closed


def test_a_loop_that_cancels_all_its_tasks_closes_the_kernel_in_time(path: Path | None) -> None:
    backend = ManualBackend()

    async def body() -> None:
        async with kernel_on(backend, path) as kernel:
            await submit(kernel)
            await asyncio.Event().wait()

    async def main() -> None:
        asyncio.get_running_loop().body = asyncio.ensure_future(body())  # type: ignore[attr-defined]  # a reference
        await until(lambda: backend.live)

    asyncio.run(main())
    assert backend.closed
