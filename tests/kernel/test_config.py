"""load_config: one file for a kernel's start and for apply, with every mistake at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from anybatch import ConfigError, Kernel, load_config
from anybatch.kernel.backend import Capacity, EnvironmentSettings, Expectation, ExpectedHost
from anybatch.kernel.config_check import judge
from anybatch.kernel.config_fit import Fit, fits, misfits
from anybatch.kernel.config_read import config_of_mapping
from anybatch.kernel.core.state import KernelState
from anybatch.kernel.registry import BackendRegistry
from anybatch.testing.null import NullBackend
from kernel_rig import ManualBackend

SERVICE = """
[kernel]
retain_events = 3600
retain_events_bytes = 5_000_000
quotas = { array_size_max = 20_000 }

[environments.e]
backend = "null"
max_vcpus = 2
options = { memory = 1024 }

[queues.q]
priority = 3
compute_environments = ["e"]

[definitions.d]
script = "d.sh"
memory = "512MiB"

[jobs.j]
definition = "d"
array_size = 20_000
"""


def written(folder: Path, text: str) -> Path:
    (folder / "d.sh").write_text("#!/bin/sh\n")
    file = folder / "anybatch.toml"
    file.write_text(text)
    return file


@pytest.mark.asyncio
async def test_a_file_is_what_a_kernel_starts_with_and_what_apply_takes(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, SERVICE))
    async with Kernel(tmp_path / "j.db", **config.kernel_arguments()) as kernel:
        applied = await kernel.apply(config)
        assert applied.created == ("environments.e", "queues.q", "definitions.d")
        (definition,) = await kernel.describe_job_definitions("d")
        assert (definition.script, definition.memory_mib) == ("#!/bin/sh\n", 512)
        job = await kernel.submit_job("j", queue="q", definition="d", array_size=20_000)
        assert (await job.wait()).status == "SUCCEEDED", "its quota is the kernel's"
        assert len([one async for one in kernel.list_jobs()]) == 1, "apply submits no jobs"
    config = load_config(tmp_path / "anybatch.toml")
    async with Kernel(tmp_path / "j.db", **config.kernel_arguments()) as kernel:
        assert (await kernel.apply(config)).unchanged == applied.created


@pytest.mark.asyncio
async def test_what_cannot_be_changed_is_told_with_its_line(tmp_path: Path) -> None:
    file = written(tmp_path, SERVICE)
    async with Kernel() as kernel:
        await kernel.apply(load_config(file))
        other = SERVICE.replace('"null"', '"inline"').replace("max_vcpus = 2", "managed = false")
        file.write_text(other)
        with pytest.raises(ConfigError) as caught:
            await kernel.apply(load_config(file))
        found = [(one.file, one.line, one.key) for one in caught.value.mistakes]
        assert found == [(str(file), 8, "environments.e.backend")]
        file.write_text(SERVICE.replace("max_vcpus = 2", "managed = false"))
        with pytest.raises(ConfigError, match=f"{file}:9: environments.e.managed: .* its managed cannot be changed"):
            await kernel.apply(load_config(file))
        (environment,) = await kernel.describe_compute_environments()
        assert environment.backend == "null"


def test_backends_that_the_kernel_will_be_given_are_known(tmp_path: Path) -> None:
    file = written(tmp_path, SERVICE.replace('"null"', '"mine"'))
    with pytest.raises(ConfigError, match="'mine' is not allowed; a backend is one of"):
        load_config(file)
    assert load_config(file, backends={"mine": NullBackend}).environments["e"]["backend"] == "mine"


def test_all_mistakes_come_at_once_and_in_order(tmp_path: Path) -> None:
    text = SERVICE.replace("max_vcpus = 2", "max_vcpus = -2").replace('["e"]', '["f"]').replace('"512MiB"', '"lots"')
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text))
    assert [one.key for one in caught.value.mistakes] == [
        "environments.e.max_vcpus", "queues.q.compute_environments[0]", "definitions.d.memory",
    ]  # fmt: skip
    assert str(caught.value).count("\n") == 2


@pytest.mark.asyncio
async def test_a_mapping_has_all_its_mistakes_told_too() -> None:
    config = {"environment": {}, "queues": {"q": {"compute_environments": ["e"]}}, 7: 8}
    async with Kernel() as kernel:
        with pytest.raises(ConfigError) as caught:
            await kernel.apply(config)  # type: ignore[arg-type]
    assert [one.key for one in caught.value.mistakes] == [
        "environment", "", "queues.q.priority", "queues.q.compute_environments[0]",
    ]  # fmt: skip


def test_a_backend_that_cannot_be_loaded_is_a_mistake_at_its_key() -> None:
    class Broken:
        def __init__(self) -> None:
            raise RuntimeError("no engine")

    config, checker = config_of_mapping({"environments": {"e": {"backend": "broken"}}})
    judge(config, BackendRegistry({"broken": Broken}), KernelState(), checker)  # type: ignore[dict-item]
    (mistake,) = checker.mistakes
    assert mistake.key == "environments.e.backend"
    assert "no engine" in mistake.message


def fit_of(environments: dict[str, object], job: dict[str, object]) -> list[Fit]:
    config, checker = config_of_mapping({"environments": environments, "jobs": {"j": {"command": ["x"], **job}}})
    registry, state = BackendRegistry({"null": NullBackend, "manual": ManualBackend, "lab": LabBackend}), KernelState()
    judged = judge(config.completed(), registry, state, checker)
    checker.finish()
    return fits(judged, registry, state)


@pytest.mark.parametrize(
    ("options", "job", "at_once", "limited_by"),
    [
        ({}, {"array_size": 9}, 4, ("vcpus",)),
        ({"memory": 100}, {"array_size": 9, "memory": 40}, 2, ("memory",)),
        ({"memory": 100}, {"array_size": 9, "memory": 25}, 4, ("vcpus", "memory")),
        ({"gpus": [3]}, {"array_size": 9, "gpus": 1}, 1, ("gpus",)),
        ({}, {"array_size": 3}, 3, ()),
        ({}, {"array_size": 9, "max_running": 3}, 3, ("max_running",)),
        ({}, {"array_size": 9, "max_running": 5}, 4, ("vcpus",)),
        ({}, {}, 1, ()),
        ({}, {"gpus": 1}, 0, ("gpus",)),
        ({"memory": 100}, {"memory": 101, "vcpus": 5}, 0, ("vcpus", "memory")),
    ],
)
def test_how_many_fit_and_which_limit_binds(
    options: dict[str, object], job: dict[str, object], at_once: int, limited_by: tuple[str, ...]
) -> None:
    (fit,) = fit_of({"e": {"backend": "null", "max_vcpus": 4, "options": options}}, job)
    assert (fit.at_once, fit.limited_by, fit.fits) == (at_once, limited_by, at_once > 0)
    assert bool(misfits([fit])) is (at_once == 0)


def test_what_a_backend_does_not_tell_is_not_known() -> None:
    environments: dict[str, object] = {"e": {"backend": "manual", "max_vcpus": 4}}
    (fit,) = fit_of(environments, {"memory": 1 << 20})
    assert (fit.fits, fit.at_once) == (None, None)
    (fit,) = fit_of(environments, {"vcpus": 5})
    assert (fit.fits, fit.limited_by) == (False, ("vcpus",))


class LabOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    hosts: dict[str, dict[str, int]] = {}


class LabBackend(ManualBackend):
    """Of some hosts only they themselves can tell what they have."""

    Options: ClassVar[type[msgspec.Struct]] = LabOptions

    @staticmethod
    def expects(settings: EnvironmentSettings) -> Expectation:
        hosts = []
        for name, said in settings.options["hosts"].items():
            probed = frozenset(limit for limit in ("vcpus", "memory", "gpus") if limit not in said)
            capacity = Capacity(vcpus_milli=1000 * said.get("vcpus", 0), memory_mib=said.get("memory"), gpus=())
            hosts.append(ExpectedHost(name=name, capacity=capacity, probed=probed))
        return Expectation(hosts=hosts)


KNOWN = {"vcpus": 4, "memory": 100, "gpus": 0}


@pytest.mark.parametrize(
    ("hosts", "job", "fits", "at_once", "text"),
    [
        ({}, {}, None, None, "it has no host: `anybatch hosts register e HOST`, or name some in its options"),
        ({"a": {}}, {}, None, None, "it depends: the vCPUs of a are known once the environment has started"),
        ({"a": {"vcpus": 2}}, {"memory": 50, "vcpus": 2}, None, None,
         "it depends: the memory of a is known once the environment has started"),
        ({"a": {"vcpus": 2}}, {"vcpus": 2}, True, 1, "fits"),
        ({"a": {"vcpus": 2}}, {"vcpus": 3, "memory": 1}, False, 0,
         "never: needs 3 vCPUs; environment 'e' has 2 vCPUs"),
        ({"a": KNOWN, "b": {}}, {"array_size": 9}, True, None,
         "4 at once and more: the vCPUs of b are known once the environment has started"),
        ({"a": KNOWN, "b": {}}, {"array_size": 9, "gpus": 1}, None, None,
         "it depends: the vCPUs and GPUs of b are known once the environment has started"),
        ({"a": KNOWN, "b": {}}, {"array_size": 9, "max_running": 3}, True, 3, "3 at once, limited by max_running"),
        ({"a": KNOWN, "b": {}}, {"array_size": 4}, True, 4, "all at once"),
        ({name: {} for name in "abcde"}, {}, None, None,
         "it depends: the vCPUs of a, b, c and 2 more are known once the environment has started"),
    ],
)  # fmt: skip
def test_what_only_a_host_can_tell_is_not_supposed(
    hosts: dict[str, object], job: dict[str, object], fits: bool | None, at_once: int | None, text: str
) -> None:
    environments: dict[str, object] = {"e": {"backend": "lab", "managed": False, "options": {"hosts": hosts}}}
    (fit,) = fit_of(environments, job)
    assert (fit.fits, fit.at_once, fit.text) == (fits, at_once, text)
    assert bool(misfits([fit])) is (fits is False)


def test_a_job_fits_if_one_of_its_environments_has_room() -> None:
    small = {"backend": "null", "max_vcpus": 1}
    found = fit_of({"small": small, "large": {**small, "max_vcpus": 8, "state": "DISABLED"}}, {"vcpus": 2})
    seen = [(fit.environment, fit.fits, fit.enabled) for fit in found]
    assert seen == [("small", False, True), ("large", True, False)]
    assert not misfits(found)


def test_an_image_needs_a_backend_that_makes_containers() -> None:
    def mistakes(**options: object) -> list[str]:
        environments = {"e": {"backend": "process", "options": options}}
        tables = {"environments": environments, "jobs": {"j": {"image": "a", "command": ["x"]}}}
        config, checker = config_of_mapping(tables)
        judge(config.completed(), BackendRegistry(), KernelState(), checker)
        return [f"{mistake.key}: {mistake.message}" for mistake in checker.mistakes]

    assert len(mistakes()) == 1
    assert mistakes()[0].startswith("jobs.j.image: 'a' is not allowed; ")
    assert mistakes(ignore_image=True) == []


def test_what_is_expected_of_a_backend_is_what_it_offers() -> None:
    """The hosts that a check counts on are those that the kernel then has."""
    options = {"memory": 100, "gpus": [0, 1]}
    config = {"e": {"backend": "null", "max_vcpus": 4, "options": options}}

    async def offered() -> tuple[float, int | None, int]:
        async with Kernel(backends={"null": NullBackend}) as kernel:
            await kernel.apply({"environments": config})
            (host,) = (await kernel.describe_compute_environments())[0].hosts
            return host.vcpus, host.memory_mib, len(host.gpus)

    vcpus, memory, gpus = asyncio.run(offered())
    (fit,) = fit_of(dict(config), {"array_size": 99, "vcpus": vcpus, "memory": memory, "gpus": gpus})
    assert (fit.at_once, fit.limited_by) == (1, ("vcpus", "memory", "gpus"))


SINKS = """
[sinks.audit]
plugin = "jsonl"
start = "new"
options.path = "events.jsonl"
options.colour = 1

[sinks.other]
plugin = "jsonk"

[sinks.third]
start = "new"

[sinks.fourth]
plugin = "log"
start = "middle"
often = true
"""


@pytest.mark.asyncio
async def test_sinks_are_named_in_the_file_and_serve_the_kernel(tmp_path: Path) -> None:
    good = SERVICE + SINKS[: SINKS.index("options.colour")]
    config = load_config(written(tmp_path, good))
    async with Kernel(tmp_path / "j.db", **config.kernel_arguments()) as kernel:
        await kernel.apply(config)
        await (await kernel.submit_job("one", queue="q", definition="d")).wait()
        (sink,) = await kernel.describe_sinks()
        assert (sink.name, sink.plugin) == ("audit", "jsonl")
    assert b'"job_name":"one"' in (tmp_path / "events.jsonl").read_bytes()


def test_every_mistake_in_sinks_has_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, SINKS))
    found = [(one.line, one.key) for one in caught.value.mistakes]
    assert found == [
        (6, "sinks.audit.options.colour"),
        (9, "sinks.other.plugin"),
        (11, "sinks.third.plugin"),
        (16, "sinks.fourth.start"),
        (17, "sinks.fourth.often"),
    ], caught.value.mistakes
    assert "colour" in str(caught.value)
    assert "jsonl, log" in str(caught.value)
