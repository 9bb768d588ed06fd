"""A skip fails a run in CI unless it is excused, in one process and in two."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from allowed_skips import NEEDS_STRACE

HERE = Path(__file__).parent
FILES = {
    "excused": f"import pytest\ndef test_it(): pytest.skip({NEEDS_STRACE!r})\ndef test_more(): pass\n",
    "one": "import pytest\ndef test_it(): pytest.skip('no time')\ndef test_more(): pass\n",
    "whole": "import pytest\npytest.skip('no file', allow_module_level=True)\n",
}


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize(
    ("files", "status", "last"),
    [
        (("excused",), 0, "1 passed, 1 skipped in"),
        (("excused", "one"), 1, "2 passed, 2 skipped in"),
        (("excused", "whole"), 1, "1 passed, 2 skipped in"),
    ],
    ids=["excused", "a test", "a file"],
)
def test_a_skip_fails_unless_it_is_excused(
    tmp_path: Path, processes: int, files: tuple[str, ...], status: int, last: str
) -> None:
    for name in ("conftest.py", "allowed_skips.py"):
        shutil.copy(HERE / name, tmp_path)
    for name in files:
        (tmp_path / f"test_{name}.py").write_text(FILES[name])
    command = [sys.executable, "-m", "pytest", "-n", str(processes), "--dist", "loadfile", "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=tmp_path, env={**environment, "CI": "true"}, capture_output=True, text=True)
    assert (done.returncode, last in done.stdout.splitlines()[-1]) == (status, True), done.stdout + done.stderr
    told, _, failing = done.stdout.partition("SKIPS THAT FAIL CI")
    assert f"test_excused.py::test_it: {NEEDS_STRACE}" in told
    reasons = {"one": "test_one.py::test_it: no time", "whole": "test_whole.py: no file"}
    assert [name for name, line in reasons.items() if line in failing] == [name for name in files if name in reasons]
