"""Rules of the tree that no other tool holds: the core is pure, imports run one way, files stay small."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
CORE = SRC / "kernel" / "core"
AGENT = SRC / "backends" / "agent.py"
FILES = sorted(path for path in SRC.rglob("*.py"))

PURE = {
    "__future__", "array", "bisect", "collections", "collections.abc", "dataclasses", "enum", "fnmatch",
    "functools", "heapq", "itertools", "math", "msgspec", "operator", "re", "types", "typing",
}  # fmt: skip
"""What the core may import: nothing that reads a clock, a file, a network, randomness or the environment."""

SHARED_BY_BACKENDS = {"agent", "agent_client"}
"""Modules of src/backends that others there may import; so may any module whose name begins with `_`."""

MAX_FILE_LINES = 600
MAX_AGENT_LINES = 1900  # one file, because it is copied to hosts as it is
MAX_FUNCTION_LINES = 80


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def module_name(path: Path) -> str:
    parts = ("anybatch", *path.relative_to(SRC).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Absolute name of each module that a file imports anywhere in it; `from a import b` is a.b if that is a module."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if is_module(full) else base


def is_module(name: str) -> bool:
    first, *rest = name.split(".")
    path = SRC.joinpath(*rest)
    return first == "anybatch" and bool(rest) and (path.with_suffix(".py").exists() or (path / "__init__.py").exists())


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def each(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", files, ids=[shown(path) for path in files])


@each(sorted(CORE.rglob("*.py")))
def test_core_imports_only_what_is_pure(path: Path) -> None:
    inside = "anybatch.kernel.core"
    others = {
        name for name in imports(path) if name not in PURE and name != inside and not name.startswith(f"{inside}.")
    }
    assert others == set()


@each(sorted(CORE.rglob("*.py")))
def test_core_neither_waits_nor_reaches_out(path: Path) -> None:
    banned = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)
    outside = {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}
    found = [
        f"{shown(path)}:{node.lineno}"
        for node in ast.walk(tree(path))
        if isinstance(node, banned)
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in outside)
    ]
    assert found == []


@each([path for path in FILES if path.is_relative_to(SRC / "kernel") or path.is_relative_to(SRC / "backends")])
def test_what_the_public_api_is_made_of_does_not_import_it(path: Path) -> None:
    assert "anybatch" not in set(imports(path)), "import from the module that defines the name"


@each([path for path in FILES if path.parent == SRC / "backends" and path.name != "__init__.py"])
def test_backends_do_not_import_each_other(path: Path) -> None:
    siblings = {
        name.removeprefix("anybatch.backends.").split(".")[0]
        for name in imports(path)
        if name.startswith("anybatch.backends.")
    }
    assert {name for name in siblings if name not in SHARED_BY_BACKENDS and not name.startswith("_")} == set()


@each([AGENT, SRC / "backends" / "_ssh_far.py"])
def test_what_runs_on_hosts_is_one_file_for_old_pythons(path: Path) -> None:
    ast.parse(path.read_text(), str(path), feature_version=(3, 8))
    assert {name for name in imports(path) if name.split(".")[0] not in sys.stdlib_module_names} == set()


@each(FILES)
def test_files_and_functions_stay_small(path: Path) -> None:
    limit = MAX_AGENT_LINES if path == AGENT else MAX_FILE_LINES
    lines = len(path.read_text().splitlines())
    assert lines <= limit
    long = [
        f"{shown(path)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_one_copy_of_the_package() -> None:
    """Imported as `src` too, there would be two of every class."""
    assert "src" not in sys.modules
    assert [name for name in sys.modules if name.startswith("src.")] == []
