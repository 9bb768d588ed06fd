"""The backend on the page docs/backends.md, which others start from, keeps the rules of the protocol."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from anybatch.testing.backend_kit import Check, Description, RuleBroken, checks_for

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"

KNOWN = {
    "what_cannot_start_is_reported": "`nice` exits with 127 for it",
    "scripts_are_run_with_the_command_as_arguments": "it does not look at `script`",
    "following_shows_what_is_written_meanwhile": "it gives the log at the end",
    "stopping_ends_the_whole_tree": "it signals one process",
    "stopping_what_has_not_started_ends_it": "it forgets a stop that comes before the process",
}
"""Rules that the page's backend breaks still."""


def backend() -> Any:
    source = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert source is not None
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(source[1], str(PAGE), "exec", dont_inherit=True), names)
    return names["SubprocessBackend"]()


def scale(check: Check) -> Check:
    """What is known to fail by waiting in vain need not wait for long."""
    fast = Description(factory=backend, time_scale=0.1)
    return next(one for one in checks_for(fast) if one.name == check.name) if check.name in KNOWN else check


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(
            scale(check),
            id=check.name,
            marks=pytest.mark.xfail(raises=RuleBroken, reason=KNOWN[check.name]) if check.name in KNOWN else (),
        )
        for check in checks_for(Description(factory=backend))
    ],
)
def test_the_pages_backend_keeps_every_rule_that_applies(check: Check) -> None:
    check.run()
