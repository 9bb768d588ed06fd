"""The conformance kit for backends: every rule of the protocol as a check, free of any test framework.

    report = await check_backend(MyBackend)                       # all that apply, at once

    ABOUT = Description(factory=MyBackend, time_scale=3)          # or one test per check
    @pytest.mark.parametrize("check", checks_for(ABOUT), ids=str)
    def test_conformance(check):
        check.run()

A broken rule raises `RuleBroken`, which names the rule and says what was seen. docs/conformance.md lists the rules.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from anybatch.kernel.backend import Backend, BackendFactory

from . import kit_ending, kit_lasting, kit_running
from .kit_context import RecordingContext, RuleBroken, Seen
from .kit_programs import (
    FUNCTIONS,
    Programs,
    function_programs,
    no_programs,
    shell_programs,
)
from .kit_rig import RULES, Description, KitMisused, Rule, rig_for

__all__ = [
    "FUNCTIONS",
    "RULE_NAMES",
    "Check",
    "Description",
    "KitMisused",
    "NotConforming",
    "Programs",
    "RecordingContext",
    "Report",
    "RuleBroken",
    "Seen",
    "check_backend",
    "checks_for",
    "function_programs",
    "no_programs",
    "rules",
    "shell_programs",
]

_MODULES: Final = [module.__name__ for module in (kit_running, kit_ending, kit_lasting)]
_RULES: Final = dict(sorted(RULES.items(), key=lambda item: _MODULES.index(item[1].body.__module__)))
RULE_NAMES: Final = tuple(_RULES)
"""Every check's name, in the order in which they run."""


class NotConforming(AssertionError):
    """A backend broke rules. Attribute: `report`."""

    def __init__(self, report: Report) -> None:
        lines = [f"  {error}" for error in report.broken.values()]
        super().__init__(f"{len(lines)} rules are broken:\n" + "\n".join(lines))
        self.report = report


class Report(msgspec.Struct, kw_only=True):
    """What came of the checks, by their names in order: `passed`, `not_applicable` with reasons, `broken`."""

    passed: list[str] = []
    not_applicable: dict[str, str] = {}
    broken: dict[str, RuleBroken] = {}

    def __str__(self) -> str:
        lines = [f"{len(self.passed)} passed", *(f"BROKEN {error}" for error in self.broken.values())]
        lines += [f"n/a    {name}: {why}" for name, why in self.not_applicable.items()]
        return "\n".join(lines)


class Check:
    """One rule for one backend. Call it (async), or `run` it in an event loop of its own."""

    def __init__(self, found: Rule, about: Description, not_applicable: str | None) -> None:
        self.name = found.name
        self.rule = found.text
        """The rule, in words."""
        self.not_applicable = not_applicable
        """Why this does not apply (None: it does)."""
        self._body = found.body
        self._about = about

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__

    async def __call__(self) -> None:
        """Check.

        Raises:
            RuleBroken: it does not hold.
            KitMisused: the kit cannot check it as it was told.
        """
        async with rig_for(self.name, self._about) as rig:
            try:
                await self._body(rig)
            except (RuleBroken, KitMisused):
                raise
            except Exception as e:
                raise rig.broken(f"{type(e).__name__}: {e}") from e

    def run(self) -> None:
        """Check, in an event loop made for it."""
        asyncio.run(self())


def rules() -> dict[str, str]:
    """Every check's name, with its rule."""
    return {name: found.text for name, found in _RULES.items()}


def _described(backend: BackendFactory | Description) -> Description:
    return backend if isinstance(backend, Description) else Description(factory=backend)


def checks_for(
    backend: BackendFactory | Description, *, leave_out: Mapping[str, str] | None = None, all_: bool = False
) -> list[Check]:
    """The checks that apply to a backend; with `all_` also the others, whose `not_applicable` says why not.

    `leave_out`: checks that are known to fail, each with a reason.

    Raises:
        KitMisused: a check to leave out does not exist.
    """
    about = _described(backend)
    left_out = leave_out or {}
    if strange := [name for name in left_out if name not in _RULES]:
        raise KitMisused(f"no checks are named {', '.join(strange)}")
    one: Backend = about.factory()
    found = []
    for name, each in _RULES.items():
        why = f"left out: {left_out[name]}" if name in left_out else each.missing(about, one)
        if all_ or why is None:
            found.append(Check(each, about, why))
    return found


async def check_backend(
    backend: BackendFactory | Description,
    *,
    leave_out: Mapping[str, str] | None = None,
    progress: Callable[[str], object] = lambda name: None,
) -> Report:
    """Run every check that applies, one after the other. `progress` is told the name of each before it runs.

    Raises:
        NotConforming: rules are broken; its report has them all.
        KitMisused: the kit cannot do its work as it was told.
    """
    report = Report()
    for check in checks_for(backend, leave_out=leave_out, all_=True):
        if check.not_applicable is not None:
            report.not_applicable[check.name] = check.not_applicable
            continue
        progress(check.name)
        try:
            await check()
            report.passed.append(check.name)
        except RuleBroken as error:
            report.broken[check.name] = error
    if report.broken:
        raise NotConforming(report)
    return report
