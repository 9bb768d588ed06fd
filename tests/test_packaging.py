"""What is built and installed is the whole package; what is locked is what is declared."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
LOCKS = {name: ROOT / "requirements" / f"{name}.lock" for name in ("run", "build", "dev")}
OURS = [
    "anybatch",
    *(
        f"anybatch.{'.'.join(path.relative_to(SRC).parts)}"
        for path in sorted(SRC.rglob("*"))
        if path.is_dir() and any(path.glob("*.py"))
    ),
]


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(lock: Path) -> dict[str, str]:
    """name -> version of each pinned distribution."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read_text(), re.MULTILINE))


def call(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by way of the source distribution from a copy of what it is made of."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(SRC, tree / "src", ignore=shutil.ignore_patterns("__pycache__"))
    call(sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", "dist", cwd=tree)
    (built,) = (tree / "dist").glob("*.whl")
    return built


def test_every_package_folder_is_declared() -> None:
    assert sorted(pyproject()["tool"]["setuptools"]["packages"]) == sorted(OURS)


def test_every_package_folder_has_an_init() -> None:
    missing = [name for name in OURS if not SRC.joinpath(*name.split(".")[1:], "__init__.py").exists()]
    assert missing == []


def test_wheel_holds_every_file(wheel: Path) -> None:
    expected = {
        f"anybatch/{path.relative_to(SRC)}"
        for path in SRC.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("LICENSE")]
    assert held == expected
    assert "anybatch/py.typed" in held
    assert len(licences) == 1


@pytest.mark.timeout(180)
def test_wheel_imports_from_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """Only the run-time dependencies are at hand there: no test tool, no file of the checkout."""
    clean = tmp_path / "clean"
    venv.create(clean, with_pip=False, symlinks=True)
    python = clean / "bin" / "python"
    call(
        sys.executable,
        "-P",
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        wheel,
        cwd=tmp_path,
    )
    (site,) = (clean / "lib").glob("python*/site-packages")
    for name in pins(LOCKS["run"]):
        link_distribution(name, site)

    report = call(python, "-I", "-W", "error", "-c", IMPORT_ALL, extra_modules(), *OURS, cwd=tmp_path)
    assert report.splitlines() == [str(site / "anybatch"), pyproject()["project"]["version"]]
    assert "usage" in call(clean / "bin" / "anybatch", "--help", cwd=tmp_path).lower()
    assert "usage" in call(python, "-I", "-m", "anybatch", "--help", cwd=tmp_path).lower()


IMPORT_ALL = """
import importlib, importlib.metadata, pathlib, pkgutil, sys
extras = set(sys.argv[1].split(","))
def load(what):
    try:
        return what()
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] not in extras:
            raise
for name in sys.argv[2:]:
    package = load(lambda: importlib.import_module(name))
    for module in pkgutil.iter_modules(package.__path__ if package else (), name + "."):
        if not module.name.endswith("__main__"):
            load(lambda: importlib.import_module(module.name))
for group in ("anybatch.backends", "anybatch.sinks", "anybatch.frontends"):
    for point in importlib.metadata.entry_points(group=group):
        load(point.load) if point.extras else point.load()
print(pathlib.Path(sys.modules["anybatch"].__file__).parent)
print(importlib.metadata.version("anybatch"))
"""


def extra_modules() -> str:
    """What the extras bring, by its import names: the only modules that may be missing in the base install."""
    extras = pyproject()["project"].get("optional-dependencies", {})
    names = {re.split(r"[^\w-]", requirement)[0].replace("-", "_") for each in extras.values() for requirement in each}
    return ",".join(sorted(names))


def link_distribution(name: str, site: Path) -> None:
    """Make an installed distribution importable in `site`, without an index."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:  # pinned for another Python
        return
    for top in {Path(file).parts[0] for file in distribution.files or [] if Path(file).parts[0] != ".."}:
        target = Path(str(distribution.locate_file(top)))
        if target.exists() and top != "__pycache__":
            (site / top).symlink_to(target)


def test_version_has_one_place() -> None:
    version = pyproject()["project"]["version"]
    assert metadata.version("anybatch") == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    copies = [
        str(path.relative_to(ROOT))
        for path in SRC.rglob("*.py")
        if re.search(r"__version__\s*(:.*)?=\s*[\"']", path.read_text())
    ]
    assert copies == [], "the version stands in pyproject.toml"


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_has_hashes_and_no_address(lock: str) -> None:
    text = LOCKS[lock].read_text()
    assert "://" not in text
    assert not re.search(r"^-(?!-hash)", text, re.MULTILINE), (
        "no option lines: each machine's own configuration says where to look"
    )
    requirements = re.split(r"^(?=[a-z0-9-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(requirements) == len(pins(LOCKS[lock])) > 0
    assert [requirement.split()[0] for requirement in requirements if "--hash=sha256:" not in requirement] == []


def test_locks_cover_what_is_declared() -> None:
    project = pyproject()

    def names(requirements: list[Any]) -> set[str]:
        return {re.split(r"[^A-Za-z0-9_.-]", item)[0] for item in requirements if isinstance(item, str)}

    run, build, dev = (pins(LOCKS[name]) for name in ("run", "build", "dev"))
    groups = project["dependency-groups"]
    assert names(project["project"]["dependencies"]) <= run.keys()
    assert names(project["build-system"]["requires"]) <= names(groups["build"]) <= build.keys()
    assert names(groups["dev"]) <= dev.keys()
    assert (run | build).items() <= dev.items(), "what is tested is what is run"


def test_dev_script_starts_on_old_pythons() -> None:
    ast.parse((ROOT / "dev.py").read_text(), feature_version=(3, 7))  # the oldest that ast checks in full


def test_type_checkers_see_the_package() -> None:
    """mypy reads src/ as `anybatch` through a tracked link; a checkout without links would check nothing."""
    assert (ROOT / ".types" / "anybatch").resolve() == SRC
