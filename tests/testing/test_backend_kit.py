"""The conformance kit for backends: right ones pass, and each check is able to fail, by the name of its rule."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anybatch.testing.backend_kit as kit
import pytest
from anybatch.backends.inline import InlineBackend
from anybatch.backends.process import ProcessBackend
from anybatch.kernel.backend import AttemptKey, Capacity
from anybatch.testing.backend_kit import (
    FUNCTIONS,
    Check,
    Description,
    KitMisused,
    NotConforming,
    RecordingContext,
    RuleBroken,
    check_backend,
    checks_for,
    function_programs,
    no_programs,
    shell_programs,
)
from anybatch.testing.null import NullBackend
from testing.broken import BROKEN, Wrapped

from testing import broken_ending, broken_lasting, broken_running

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"


def inline() -> InlineBackend:
    return InlineBackend(FUNCTIONS)


def waits_only(act: str, *args: str) -> Any:
    """What a null backend's attempts do whose model takes long: nothing, until they are stopped."""
    return shell_programs(act, *args) if act == "wait" else None


PATIENCE = 5.0
"""However busy the machine is."""
INLINE = Description(factory=inline, programs=function_programs, kills_trees=False, patience=PATIENCE)
NULL = Description(
    factory=NullBackend, programs=no_programs, logs=False, shares_files=False, kills_trees=False, patience=PATIENCE
)
NULL_MODEL = Description(
    factory=partial(NullBackend, lambda key: (1000.0, 0)),
    programs=waits_only,
    logs=False,
    shares_files=False,
    kills_trees=False,
    patience=PATIENCE,
)
PROCESS = Description(factory=partial(ProcessBackend, agent_idle_ms=1_000), enforces_timeouts=True, patience=PATIENCE)

RIGHT = {"inline": INLINE, "null": NULL, "null with a model": NULL_MODEL, "process": PROCESS}
EACH = [pytest.param(check, id=f"{name}-{check}") for name, about in RIGHT.items() for check in checks_for(about)]


@pytest.mark.parametrize("check", EACH)
def test_right_backends_keep_every_rule_that_applies(check: Check) -> None:
    check.run()


TRIES = 5
MODULES = (broken_running, broken_ending, broken_lasting)

WRONG = [
    pytest.param(rule, about, id=f"{rule}-{getattr(about.factory, '__name__', '')}")
    for rule, wrong in BROKEN.items()
    for about in wrong
]


@pytest.mark.parametrize(("rule", "about"), WRONG)
def test_a_wrong_backend_breaks_the_rule_by_its_name(rule: str, about: Description) -> None:
    (check,) = [check for check in checks_for(about, all_=True) if check.name == rule]
    assert check.not_applicable is None

    def broken() -> RuleBroken | None:
        try:
            check.run()
        except RuleBroken as error:
            return error
        return None

    # What is done too early can come late on a machine that is busy: then it is looked for once more.
    found = next(filter(None, (broken() for _ in range(TRIES))), None)
    assert found is not None
    assert found.rule == rule
    assert str(found) == f"{rule}: {found.seen}"


def test_every_rule_has_a_wrong_backend() -> None:
    assert set(BROKEN) == set(kit.RULE_NAMES), MODULES


def test_what_the_wrong_ones_wrap_is_right() -> None:
    """So that it is the one change that the kit finds."""
    about = Description(factory=Wrapped, programs=function_programs, kills_trees=False)
    for check in checks_for(about):
        if check.name in ("exit_codes_are_reported", "following_ends_with_the_attempt", "stopping_gives_notice_first"):
            check.run()


def test_every_rule_is_run_on_a_backend_of_ours() -> None:
    assert {check.name for about in RIGHT.values() for check in checks_for(about)} == set(kit.RULE_NAMES)


# -- the entry points ---------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_report_lists_what_passed_and_why_the_rest_does_not_apply() -> None:
    told: list[str] = []

    report = await check_backend(
        NULL,
        leave_out={"times_are_in_order": "no clock", "launching_twice_at_once_ends_once": ""},
        progress=told.append,
    )

    assert report.passed == told == [name for name in kit.RULE_NAMES if name in told]
    assert {*report.passed, *report.not_applicable} == set(kit.RULE_NAMES)
    assert not report.broken
    assert report.not_applicable["times_are_in_order"] == "left out: no clock"
    assert report.not_applicable["exit_codes_are_reported"] == "its attempts cannot `exit 3`"
    assert report.not_applicable["commands_are_programs"] == "capabilities.commands is not set"
    assert str(report).startswith(f"{len(told)} passed\nn/a ")


def only(*names: str) -> dict[str, str]:
    return dict.fromkeys(set(kit.RULE_NAMES) - {*names}, "not now")


@pytest.mark.asyncio
async def test_all_that_is_broken_is_said_at_once() -> None:
    about = Description(factory=broken_running.EndsTwice, programs=function_programs)

    with pytest.raises(NotConforming, match=r"2 rules are broken:\n  each_attempt_ends_once: ") as caught:
        await check_backend(about, leave_out=only("reports_are_well_formed", "each_attempt_ends_once"))

    broken = caught.value.report.broken
    assert broken.keys() == {"reports_are_well_formed", "each_attempt_ends_once"}
    assert broken["reports_are_well_formed"].rule == "each_attempt_ends_once"  # seen in passing, by its own name


@pytest.mark.asyncio
async def test_a_factory_alone_is_enough_for_a_backend_of_programs() -> None:
    report = await check_backend(ProcessBackend, leave_out=only("exit_codes_are_reported"))

    assert report.passed == ["exit_codes_are_reported"]


def test_a_check_to_leave_out_must_exist() -> None:
    with pytest.raises(KitMisused, match="no checks are named nonsense"):
        checks_for(INLINE, leave_out={"nonsense": ""})


def test_a_factory_that_cannot_be_taken_elsewhere_is_the_authors_to_change() -> None:
    about = Description(factory=lambda: ProcessBackend(agent_idle_ms=1_000))
    (check,) = [check for check in checks_for(about) if check.name == "attempts_outlive_a_killed_kernel"]

    with pytest.raises(KitMisused, match="cannot be taken to another process"):
        check.run()


def test_an_error_in_a_backend_breaks_the_rule_that_met_it() -> None:
    class Raises(Wrapped):
        async def launch(self, launches: Any) -> None:
            raise OSError("no disk")

    (check, *_) = [c for c in checks_for(Description(factory=Raises, programs=function_programs)) if "codes" in c.name]
    with pytest.raises(RuleBroken, match="exit_codes_are_reported: launch raised OSError: no disk"):
        check.run()


def test_the_kit_needs_no_test_framework() -> None:
    code = "import sys, anybatch.testing.backend_kit; print('pytest' in sys.modules, 'hypothesis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_the_page_lists_every_rule() -> None:
    _, tables = PAGE.read_text().split("\n## ", 1)
    listed = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", tables, re.MULTILINE))
    assert listed == kit.rules()


# -- the recording context, for authors' own tests ----------------------------------------------------


@pytest.mark.asyncio
async def test_the_context_writes_down_and_waits(tmp_path: Path) -> None:
    context = RecordingContext(tmp_path, options={"memory": 7})
    key = AttemptKey("j", 1, 2)
    assert context.settings.options == {"memory": 7}
    assert not await context.until(lambda: context.ends_of(key), 0.02)

    context.started("j", 2, [0, 1], [5, 6])
    context.exited("j", 2, [1], [3], reason="r")

    assert await context.until(lambda: context.ends_of(key))
    assert [(one.kind, one.at_ms, one.code) for one in context.told_of(key)] == [
        ("started", 6, None),
        ("exited", None, 3),
    ]
    assert context.kinds_of(AttemptKey("j", 0, 2)) == ["started"]
    assert context.faults == []


@pytest.mark.asyncio
async def test_the_context_holds_back_what_is_to_become_durable(tmp_path: Path) -> None:
    context = RecordingContext(tmp_path)
    called: list[int] = []
    context.when_durable(lambda: called.append(1))
    assert not called
    assert await context.until(lambda: called)

    context.hold_durable = True
    context.when_durable(lambda: called.append(2))
    assert not await context.until(lambda: len(called) > 1, 0.02)


MALFORMED: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("started", (7, 1, [0]), {}),
    ("started", ("j", "1", [0]), {}),
    ("started", ("j", 1, [0.5]), {}),
    ("started", ("j", 1, [True]), {}),
    ("started", ("j", 1, [0], [1, 2]), {}),
    ("exited", ("j", 1, [0], [0], [1.5]), {}),
    ("exited", ("j", 1, [0], ["0"]), {}),
    ("exited", ("j", 1, [0], [-9]), {}),
    ("exited", ("j", 1, [0], []), {}),
    ("exited", ("j", 1, [0], [1]), {"reason": "x" * 256}),
    ("exited", ("j", 1, [0], [1]), {"status_reason": 1}),
    ("timed_out", ("j", 1, [0], [256]), {}),
    ("lost", ("j", 1, [0]), {"reason": None}),
    ("unknown", ("j", 1, [None]), {}),
    ("host_down", ("h", None), {}),
    ("host_up", ("h", Capacity(vcpus_milli=-1)), {}),
    ("host_up", ("h", Capacity(vcpus_milli=1, gpus=(1, 1))), {}),
    ("host_up", (None, Capacity(vcpus_milli=1)), {}),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("report", "args", "more"), MALFORMED)
async def test_the_context_notices_what_cannot_be(tmp_path: Path, report: str, args: Any, more: Any) -> None:
    context = RecordingContext(tmp_path)

    getattr(context, report)(*args, **more)

    assert {rule for rule, _ in context.faults} == {"reports_are_well_formed"}
