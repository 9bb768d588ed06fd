"""Every guarantee on the page docs/guarantees.md names a test that exists, or the crash campaign."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guarantees.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def named() -> list[tuple[str, str]]:
    return sorted(set(NAMED.findall(PAGE.read_text())))


def rows() -> list[str]:
    """The rows of the page's tables, without their headings."""
    lines = PAGE.read_text().splitlines()
    heads = {n for n, line in enumerate(lines) if n + 1 < len(lines) and lines[n + 1].startswith("|---")}
    return [line for n, line in enumerate(lines) if line.startswith("|") and n not in heads and line[1] != "-"]


def functions_in(path: Path) -> set[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, functions)}


@pytest.mark.parametrize(("path", "name"), named(), ids=lambda part: part)
def test_each_test_that_the_page_names_exists(path: str, name: str) -> None:
    assert name.startswith("test_")
    assert name in functions_in(ROOT / path)


@pytest.mark.parametrize("row", rows())
def test_each_guarantee_is_held_by_a_test_or_the_campaign(row: str) -> None:
    assert NAMED.search(row) or "the crash campaign" in row


def test_the_page_has_its_guarantees_and_the_campaigns_are_there() -> None:
    assert len(rows()) >= 30
    assert "::" not in NAMED.sub("", PAGE.read_text()).replace("`path::name`", ""), "a test that is not named in full"
    for name in ("crash.py", "README.md"):
        assert (ROOT / "campaigns" / name).exists()
