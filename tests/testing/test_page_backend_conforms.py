"""The backend on the page docs/backends.md, which others start from, keeps the rules of the protocol."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from anybatch.testing.backend_kit import Check, Description, checks_for

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"


def backend() -> Any:
    source = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert source is not None
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(source[1], str(PAGE), "exec", dont_inherit=True), names)
    return names["SubprocessBackend"]()


@pytest.mark.parametrize("check", checks_for(Description(factory=backend, crowd=200, patience=5)), ids=str)
def test_the_pages_backend_keeps_every_rule_that_applies(check: Check) -> None:
    check.run()
