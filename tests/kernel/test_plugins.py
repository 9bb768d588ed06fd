"""Backends are found by entry point; one that is broken costs only its own name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from anybatch import InvalidValue, JobStatus, Kernel, PluginError, ResourceStatus, list_plugins
from anybatch.testing.null import NullBackend
from kernel_rig import ManualBackend, add_queue, submit

MODULE = """
from anybatch.testing.null import NullBackend, NullOptions

class Good(NullBackend):
    pass

class Future(NullBackend):
    api_version = 99

class Poor:
    api_version = 1
    Options = NullOptions
    capabilities = None
"""
ENTRIES = """[anybatch.backends]
good = fake_backends:Good
future = fake_backends:Future
poor = fake_backends:Poor
absent = fake_backends:Nothing
missing = no_such_module_at_all:Backend
broken = fake_broken:Backend

[anybatch.sinks]
sink = no_such_module_at_all:Sink
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed distribution with good and bad entry points."""
    (tmp_path / "fake_backends.py").write_text(MODULE)
    (tmp_path / "fake_broken.py").write_text("raise RuntimeError('no such device')\n")
    info = tmp_path / "fake_plugins-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-plugins\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    for name in ("fake_backends", "fake_broken"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("plugins")
def test_every_plugin_is_listed_with_why_it_cannot_be_used() -> None:
    found = {(info.group, info.name): info for info in list_plugins()}
    errors = {name: found["anybatch.backends", name].error for name in ("good", "future", "poor", "absent", "broken")}
    assert errors["good"] is None
    assert "version 99" in (errors["future"] or "")
    assert "lacks start" in (errors["poor"] or "")
    assert "Nothing" in (errors["absent"] or "")
    assert errors["broken"] == "RuntimeError: no such device"
    assert "no_such_module_at_all" in (found["anybatch.sinks", "sink"].error or "")
    good = found["anybatch.backends", "good"]
    assert (good.distribution, good.version, good.target) == ("fake-plugins", "1.2", "fake_backends:Good")


def test_what_comes_with_anybatch_can_be_used() -> None:
    found = {info.name: info.error for info in list_plugins() if info.distribution == "anybatch"}
    assert {"inline": None, "null": None, "process": None}.items() <= found.items()


@pytest.mark.asyncio
@pytest.mark.usefixtures("plugins")
async def test_a_broken_plugin_costs_only_its_own_name() -> None:
    async with Kernel() as kernel:
        for name in ("absent", "missing", "broken"):
            with pytest.raises(PluginError, match=f"backend '{name}' .* failed to load"):
                await kernel.create_compute_environment(name, backend=name)
        for name, reason in (("future", "version 99"), ("poor", "lacks")):
            made = await kernel.create_compute_environment(name, backend=name, max_vcpus=1)
            assert made.status is ResourceStatus.INVALID
            assert reason in made.status_reason
        await add_queue(kernel, "good")
        assert (await (await submit(kernel)).wait()).status is JobStatus.SUCCEEDED


@pytest.mark.asyncio
async def test_an_unknown_backend_is_refused_with_those_that_there_are() -> None:
    async with Kernel(backends={"mine": NullBackend}) as kernel:
        with pytest.raises(InvalidValue, match="inline, mine, null, process"):
            await kernel.create_compute_environment("x", backend="yours")


@pytest.mark.asyncio
async def test_what_is_passed_in_goes_before_what_is_installed() -> None:
    class Mine(NullBackend):
        made = 0

        def __init__(self) -> None:
            super().__init__()
            Mine.made += 1

    async with Kernel(backends={"null": Mine}) as kernel:
        await add_queue(kernel, "null")
        assert Mine.made == 1


@pytest.mark.asyncio
async def test_a_backend_object_serves_one_environment_at_a_time() -> None:
    backend = ManualBackend()
    async with Kernel(backends={"b": backend}) as kernel:
        await add_queue(kernel)
        second = await kernel.create_compute_environment("second", backend="b", max_vcpus=1)
        assert second.status is ResourceStatus.INVALID
        assert "serves environment 'b'" in second.status_reason
        await kernel.update_job_queue("q", state="DISABLED")
        await kernel.delete_job_queue("q")
        await kernel.update_compute_environment("b", state="DISABLED")
        await kernel.delete_compute_environment("b")
        assert (await kernel.update_compute_environment("second")).status is ResourceStatus.VALID


@pytest.mark.asyncio
@pytest.mark.parametrize("make", [lambda: type("Old", (ManualBackend,), {"api_version": 0})(), None])
async def test_a_backend_object_for_another_protocol_is_not_used(make: Callable[[], Any] | None) -> None:
    backend: Any = make() if make is not None else lambda: object()
    async with Kernel(backends={"b": backend}) as kernel:
        try:
            made = await kernel.create_compute_environment("b", backend="b", max_vcpus=1)
        except PluginError:
            return
        assert made.status is ResourceStatus.INVALID
        assert "version 0" in made.status_reason


@pytest.mark.asyncio
async def test_a_reopened_kernel_without_the_backend_has_the_environment_invalid(tmp_path: Path) -> None:
    async with Kernel(tmp_path / "j.db", backends={"mine": NullBackend}) as kernel:
        await add_queue(kernel, "mine")
    async with Kernel(tmp_path / "j.db") as kernel:
        job = await submit(kernel)
        (environment,) = await kernel.describe_compute_environments()
        assert (environment.status, "'mine'" in environment.status_reason) == (ResourceStatus.INVALID, True)
        assert (await job.describe()).status is JobStatus.RUNNABLE
    async with Kernel(tmp_path / "j.db", backends={"mine": NullBackend}) as kernel:
        assert (await kernel.wait(job.id)).status is JobStatus.SUCCEEDED
