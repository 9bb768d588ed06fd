"""The walk of docs/cli.md, to the letter: an array fails, is explained from a second terminal, mended, and run again.

What the page shows is compared with what the commands say, but for ids, and for how long something took.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conftest import Quick, Serve


PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
SECTION = "## An array that fails, and its end\n"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def blocks() -> list[str]:
    """The indented blocks of the section."""
    section = PAGE.read_text().partition(SECTION)[2].partition("\n## ")[0]
    found = re.findall(r"(?:^    .*\n)+", section, re.MULTILINE)
    return ["".join(line[4:] + "\n" for line in block.splitlines()) for block in found]


def commands(block: str) -> list[tuple[str, str]]:
    """Each command of a terminal, with what it is shown to say."""
    pieces = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
    return list(zip(pieces[1::2], pieces[2::2], strict=True))


def plain(text: str, ids: dict[str, str]) -> str:
    """With ids by the order in which they came up, and without times."""
    text = UUID.sub(lambda match: ids.setdefault(match[0], f"<id {len(ids)}>"), text)
    return re.sub(r"\b\d+\.\d s", "N s", text)


def test_the_walk_of_the_page_is_what_happens(quick: Quick, serve: Serve) -> None:
    script, terminal = blocks()
    steps = commands(terminal)
    assert len(steps) == 10
    quick.write("work.sh", script, mode=0o755)
    (quick.folder / "input").mkdir()
    for n in {*range(8)} - {3}:
        quick.write(f"input/{n}", "hello\n")
    path = f"{Path(sys.executable).parent}{os.pathsep}{quick.environment['PATH']}"
    shown_ids: dict[str, str] = {}
    seen_ids: dict[str, str] = {}
    with serve("--config", "anybatch.toml", "--on-close", "stop"):
        for command, shown in steps:
            done = subprocess.run(
                command, shell=True, cwd=quick.folder, env={**quick.environment, "PATH": path}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=300,
            )  # fmt: skip
            assert plain(done.stdout, seen_ids) == plain(shown, shown_ids), command
