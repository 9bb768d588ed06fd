"""apply: a service calls it at every start; it changes what differs, and nothing at all where there is a mistake."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from anybatch import ConfigError, Conflict, InvalidValue, JobStatus, Kernel, KernelClosed
from anybatch.kernel.backend import BackendContext, Launch
from anybatch.kernel.core.errors import BackendError
from anybatch.testing.null import NullBackend
from kernel_rig import ManualBackend, live, snapshot, until

pytestmark = pytest.mark.asyncio

CONFIG: dict[str, Any] = {
    "environments": {
        "local": {"backend": "b", "max_vcpus": 4, "options": {"memory": 8000}, "tags": {"team": "x"}},
        "spare": {"backend": "b", "max_vcpus": 0.5, "min_vcpus": 0.25, "state": "DISABLED"},
    },
    "queues": {
        "default": {"priority": 1, "compute_environments": ["local", "spare"]},
        "urgent": {"priority": 9, "compute_environments": ["local"], "retain_succeeded": 60, "retain_failed": 3600.5},
    },
    "definitions": {
        "hello": {"command": ["echo", "Ref::whom"], "parameters": {"whom": "world"}, "timeout": 1.5, "memory": "1GiB"},
        "retried": {
            "command": ["x"],
            "retry": {
                "attempts": 3,
                "evaluate_on_exit": [{"action": "EXIT", "on_exit_code": 2}],
                "host_lost_retries": 1,
            },
        },
    },
}
ALL = tuple(f"{section}.{name}" for section, tables in CONFIG.items() for name in tables)


def kernel(path: Path | None = None) -> Kernel:
    return Kernel(path, backends={"b": NullBackend, "other": NullBackend})


def changed(path: str, value: object) -> dict[str, Any]:
    """CONFIG with another value at a path; "!" takes it away."""
    config = copy.deepcopy(CONFIG)
    *above, last = path.split(".")
    table = config
    for key in above:
        table = table[key]
    if value == "!":
        del table[last]
    else:
        table[last] = value
    return config


def done(applied: Any) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    return applied.created, applied.updated, applied.unchanged


# -- what it does -------------------------------------------------------------------------------------------------


async def test_all_that_is_not_there_is_created_and_works() -> None:
    async with kernel() as k:
        assert done(await k.apply(CONFIG)) == (ALL, (), ())
        environment, spare = await k.describe_compute_environments(["local", "spare"])
        assert (environment.max_vcpus, environment.options, environment.tags) == (4, {"memory": 8000}, {"team": "x"})
        assert (spare.state, spare.min_vcpus, spare.max_vcpus) == ("DISABLED", 0.25, 0.5)
        urgent = (await k.describe_job_queues(["urgent"]))[0]
        assert (urgent.priority, urgent.retain_succeeded_s, urgent.retain_failed_s) == (9, 60, 3600.5)
        hello = (await k.describe_job_definitions("hello"))[0]
        assert (hello.revision, hello.timeout_s, hello.memory_mib) == (1, 1.5, 1024)
        job = await k.submit_job("job", queue="urgent", definition="hello")
        assert (await job.wait()).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize("config", [{}, {"environments": {}}, {"environments": {}, "queues": {}, "definitions": {}}])
async def test_an_empty_configuration_does_nothing(config: dict[str, Any]) -> None:
    async with kernel() as k:
        await k.apply(CONFIG)
        before = snapshot(k)
        assert done(await k.apply(config)) == ((), (), ())
        assert snapshot(k) == before


async def test_the_same_again_changes_nothing_and_commits_nothing() -> None:
    async with kernel() as k:
        await k.apply(CONFIG)
        before = snapshot(k)
        assert done(await k.apply(copy.deepcopy(CONFIG))) == ((), (), ALL)
        assert snapshot(k) == before


async def test_after_a_reopen_it_changes_nothing(tmp_path: Path) -> None:
    async with kernel(tmp_path / "j.db") as k:
        await k.apply(CONFIG)
    for _ in range(2):
        async with kernel(tmp_path / "j.db") as k:
            assert done(await k.apply(CONFIG)) == ((), (), ALL)
            assert [row.revision for row in await k.describe_job_definitions("hello")] == [1]
            job = await k.submit_job("job", queue="default", definition="hello")
            assert (await job.wait()).status is JobStatus.SUCCEEDED


async def test_what_was_made_by_hand_in_the_same_way_is_unchanged() -> None:
    async with kernel() as k:
        await k.create_compute_environment(
            "local", backend="b", max_vcpus=4, options={"memory": 8000}, tags={"team": "x"}
        )
        await k.register_job_definition("hello", **CONFIG["definitions"]["hello"])
        applied = await k.apply(CONFIG)
        assert applied.unchanged == ("environments.local", "definitions.hello")


async def test_what_is_not_named_is_left_alone() -> None:
    async with kernel() as k:
        await k.apply(CONFIG)
        config = {"queues": {"urgent": CONFIG["queues"]["urgent"]}}
        assert done(await k.apply(config)) == ((), (), ("queues.urgent",))
        assert len(await k.describe_compute_environments()) == len(await k.describe_job_queues()) == 2


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("environments.local.max_vcpus", 8),
        ("environments.local.options", {"memory": 16000}),
        ("environments.local.options", "!"),
        ("environments.local.state", "DISABLED"),
        ("environments.spare.state", "!"),
        ("environments.spare.min_vcpus", "!"),
        ("environments.local.tags", {"team": "y", "more": "z"}),
        ("environments.local.tags", "!"),
        ("queues.default.tags", {"team": "y"}),
        ("queues.default.priority", 2),
        ("queues.default.compute_environments", ["spare", "local"]),
        ("queues.default.state", "DISABLED"),
        ("queues.default.retain_succeeded", 5),
        ("queues.urgent.retain_failed", "!"),
        ("definitions.hello.timeout", "!"),
        ("definitions.hello.command", ["echo", "Ref::whom", "!"]),
        ("definitions.retried.retry", 3),
        ("definitions.hello.tags", {"a": "b"}),
    ],
)
async def test_one_change_updates_one_thing(path: str, value: object) -> None:
    config, thing = changed(path, value), path.rpartition(".")[0]
    async with kernel() as k, kernel() as other:
        await k.apply(CONFIG)
        assert done(await k.apply(config)) == ((), (thing,), tuple(one for one in ALL if one != thing))
        assert done(await k.apply(config)) == ((), (), ALL)
        revisions = {name: max(rows) for name, rows in live(k).state.definitions.items()}
        assert revisions == {"hello": 1, "retried": 1, **({thing.split(".")[1]: 2} if "definitions" in thing else {})}
        await other.apply(config)
        for rows in ("environments", "queues"):
            mine, theirs = getattr(live(k).state, rows), getattr(live(other).state, rows)
            assert {name: row.body for name, row in mine.items()} == {name: row.body for name, row in theirs.items()}


async def test_a_definition_goes_back_by_a_new_revision() -> None:
    async with kernel() as k:
        await k.apply(CONFIG)
        await k.apply(changed("definitions.hello.timeout", 9))
        assert (await k.apply(CONFIG)).updated == ("definitions.hello",)
        assert [row.revision for row in await k.describe_job_definitions("hello")] == [3, 2, 1]


async def test_an_inactive_definition_gets_a_revision_that_is_active() -> None:
    async with kernel() as k:
        await k.apply(CONFIG)
        await k.deregister_job_definition("hello:1")
        assert (await k.apply(CONFIG)).updated == ("definitions.hello",)
        assert [(row.revision, row.is_active) for row in await k.describe_job_definitions("hello")] == [
            (2, True),
            (1, False),
        ]


async def test_a_queue_may_be_moved_to_an_environment_that_the_same_configuration_makes() -> None:
    config = changed("environments.new", {"backend": "b", "max_vcpus": 1})
    config["queues"]["default"]["compute_environments"] = ["new"]
    async with kernel() as k:
        await k.apply(CONFIG)
        applied = await k.apply(config)
        assert (applied.created, applied.updated) == (("environments.new",), ("queues.default",))


async def test_jobs_go_on_while_resources_change() -> None:
    backend = ManualBackend()
    config = {
        "environments": {"e": {"backend": "m", "max_vcpus": 1}},
        "queues": {"q": {"priority": 1, "compute_environments": ["e"]}},
    }
    async with Kernel(backends={"m": backend}) as k:
        await k.apply(config)
        first = await k.submit_job("first", queue="q", command=["x"])
        second = await k.submit_job("second", queue="q", command=["x"])
        backend.settle = lambda launch: None  # type: ignore[method-assign]  # it goes on
        config["environments"]["e"]["max_vcpus"] = 2
        assert (await k.apply(config)).updated == ("environments.e",)
        await until(lambda: len(backend.live) == 2)
        backend.exit_all()
        assert {(await first.wait()).status, (await second.wait()).status} == {JobStatus.SUCCEEDED}


# -- mistakes -----------------------------------------------------------------------------------------------------

MISTAKES: list[tuple[str, object]] = [
    ("queue", {}),
    ("environments", ["local"]),
    ("queues", None),
    ("definitions", "hello"),
    ("environments.local", "b"),
    ("environments.local.backend", "none"),
    ("environments.local.backend", "!"),
    ("environments.local.backend", 7),
    ("environments.local.vcpus", 4),
    ("environments.local.max_vcpus", "many"),
    ("environments.local.max_vcpus", 0),
    ("environments.spare.min_vcpus", 1),
    ("environments.local.options", {"no-such": 1}),
    ("environments.local.state", "ON"),
    ("environments.local.tags", {"a": 1}),
    ("environments.no good", {"backend": "b"}),
    ("queues.default.priority", "!"),
    ("queues.default.priority", "high"),
    ("queues.default.priority", -1),
    ("queues.default.priority", 1_000_001),
    ("queues.default.compute_environments", "!"),
    ("queues.default.compute_environments", "local"),
    ("queues.default.compute_environments", []),
    ("queues.default.compute_environments", ["local", "local"]),
    ("queues.default.compute_environments", ["local", "nowhere"]),
    ("queues.urgent.retain_failed", 0),
    ("queues.urgent.retain_succeeded", "long"),
    ("queues.urgent.name", "urgent"),
    ("queues.no good", {"priority": 1, "compute_environments": ["local"]}),
    ("definitions.hello.command", "!"),
    ("definitions.hello.command", "echo hello"),
    ("definitions.hello.vcpus", 0),
    ("definitions.hello.memory", "much"),
    ("definitions.hello.timeout", -1),
    ("definitions.hello.gpus", 100_000),
    ("definitions.hello.workdir", "relative"),
    ("definitions.hello.script", "/no/such/file"),
    ("definitions.hello.environment", {"AWS_BATCH_X": "1"}),
    ("definitions.hello.exist_ok", True),
    ("definitions.retried.retry", 11),
    ("definitions.retried.retry", {"attempts": 2, "evaluate_on_exit": [{"action": "STOP", "on_reason": "*"}]}),
    ("definitions.no good", {"command": ["x"]}),
]
WHERE = {
    "environments.local.options": "environments.local.options.no-such",
    "environments.local.tags": "environments.local.tags.a",
    "definitions.hello.environment": "definitions.hello.environment.AWS_BATCH_X",
}


@pytest.mark.parametrize("there", [False, True], ids=["at-first", "later"])
@pytest.mark.parametrize(("path", "value"), MISTAKES)
async def test_a_mistake_anywhere_is_named_by_its_path_and_changes_nothing(
    path: str, value: object, there: bool
) -> None:
    mistaken = changed(path, value)
    async with kernel() as k:
        if there:
            await k.apply(CONFIG)
        before = snapshot(k)
        with pytest.raises(ConfigError) as caught:
            await k.apply(mistaken)
        expected = WHERE.get(path, path)
        if path == "queues.default.compute_environments" and isinstance(value, list) and "nowhere" in value:
            expected += "[1]"
        if "no good" in path:
            expected = f'{path.partition(".")[0]}."no good".name'
        if path == "definitions.retried.retry":
            expected = path + (".attempts" if value == 11 else ".evaluate_on_exit[0].action")
        (mistake,) = caught.value.mistakes
        assert (mistake.file, mistake.line, mistake.key) == (None, None, expected)
        assert expected in str(caught.value)
        assert snapshot(k) == before


@pytest.mark.parametrize("config", [None, [], "config.toml", 3])
async def test_what_is_no_configuration_is_refused(config: Any) -> None:
    async with kernel() as k:
        with pytest.raises(InvalidValue, match="config"):
            await k.apply(config)


async def test_a_quota_is_a_mistake_like_any_other() -> None:
    config = changed("environments.third", {"backend": "b", "max_vcpus": 1})
    config["environments"]["fourth"] = {"backend": "b", "max_vcpus": 1}
    config["queues"]["urgent"]["compute_environments"] = ["local", "spare", "third", "fourth"]
    async with kernel() as k:
        with pytest.raises(ConfigError) as caught:
            await k.apply(config)
        assert [mistake.key for mistake in caught.value.mistakes] == ["queues.urgent.compute_environments"]
        assert await k.describe_compute_environments() == []


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("environments.local.backend", "other", "backend"),
        ("environments.local.managed", False, "managed"),
    ],
)
async def test_what_cannot_be_changed_is_a_conflict_and_changes_nothing(path: str, value: object, field: str) -> None:
    config = changed(path, value)
    config["environments"] = {"brand-new": {"backend": "b"}, **config["environments"]}
    config["definitions"]["hello"]["timeout"] = 99
    async with kernel() as k:
        await k.apply(CONFIG)
        before = snapshot(k)
        with pytest.raises(ConfigError) as caught:
            await k.apply(config)
        (mistake,) = caught.value.mistakes
        assert mistake.key == f"{path.rpartition('.')[0]}.{field}"
        assert "cannot be changed" in mistake.message
        assert snapshot(k) == before


async def test_a_queue_that_is_being_deleted_is_a_conflict_and_changes_nothing() -> None:
    backend = ManualBackend(obeys=False)
    config = {
        "environments": {"e": {"backend": "m", "max_vcpus": 1}},
        "queues": {"q": {"priority": 1, "compute_environments": ["e"]}},
    }
    async with Kernel(backends={"m": backend}) as k:
        await k.apply(config)
        await k.submit_job("job", queue="q", command=["x"])
        await until(lambda: backend.live)
        await k.update_job_queue("q", state="DISABLED")
        await k.delete_job_queue("q")
        before = snapshot(k)
        with pytest.raises(ConfigError, match="being deleted"):
            await k.apply({**config, "definitions": {"d": {"command": ["x"]}}})
        assert snapshot(k) == before
        backend.exit_all()


async def test_an_environment_whose_backend_does_not_start_is_there_to_be_mended() -> None:
    class Broken(ManualBackend):
        broken = True

        async def start(self, context: BackendContext, known: Any) -> None:
            if self.broken:
                raise BackendError("no such host")
            await super().start(context, known)

        def settle(self, launch: Launch) -> None:
            raise AssertionError

    backend = Broken()
    config = {
        "environments": {"e": {"backend": "m", "max_vcpus": 1}},
        "queues": {"q": {"priority": 1, "compute_environments": ["e"]}},
    }
    async with Kernel(backends={"m": backend}) as k:
        with pytest.raises(Conflict, match="no such host"):
            await k.apply(config)
        assert (await k.describe_compute_environments())[0].status == "INVALID"
        with pytest.raises(Conflict, match="no such host"):
            await k.apply(config)
        backend.broken = False
        assert done(await k.apply(config)) == (("queues.q",), ("environments.e",), ())  # it was tried again


async def test_a_closed_kernel_says_so() -> None:
    async with kernel() as k:
        pass
    with pytest.raises(KernelClosed):
        await k.apply(CONFIG)
