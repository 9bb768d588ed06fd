"""The examples give the results that they say."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import anybatch
import msgspec
import pytest
from anybatch import Mistake
from anybatch.backends.process import ProcessOptions
from anybatch.cli.check import CheckReport, JobCheck
from anybatch.cli.summary import Failure, JobReport, RunReport
from anybatch.kernel.config_fit import Fit
from anybatch.kernel.config_read import (
    DEFINITION_KEYS,
    ENVIRONMENT_KEYS,
    JOB_KEYS,
    KERNEL_KEYS,
    QUEUE_KEYS,
    QUOTA_KEYS,
    RUN_KEYS,
)

if TYPE_CHECKING:
    from .conftest import Cli

KEYS = {
    *JOB_KEYS, *DEFINITION_KEYS, *RUN_KEYS, *QUOTA_KEYS, *KERNEL_KEYS, *ENVIRONMENT_KEYS, *QUEUE_KEYS,
}  # fmt: skip
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.timeout(180)  # it reads the whole library 32 times, on whatever machine this is
def test_the_pipelines_result_is_the_one_counted_by_hand(cli: Cli) -> None:
    """By the very command in the file's first lines."""
    file = EXAMPLES / "pipeline.toml"
    done = cli("run", str(file)).expect(0)
    (result,) = re.findall(r"^    \| (\d+) files, (\d+) lines$", done.out, re.MULTILINE)
    comment = "\n".join(line.removeprefix("#").strip() for line in file.read_text().splitlines() if line[:1] == "#")
    command = re.search(r"^find .*?wc -l$", comment, re.DOTALL | re.MULTILINE)
    assert command is not None
    counted = subprocess.run(
        ["sh", "-c", command[0]], env=cli.environment, capture_output=True, text=True, check=True, cwd=cli.folder
    )
    assert int(result[1]) == int(counted.stdout)
    assert int(result[0]) > 500
    assert len(list((cli.folder / "build/example").glob("names-*.json"))) == 32


def test_the_first_file_of_the_documentation(cli: Cli) -> None:
    text = (EXAMPLES.parent / "docs/run.md").read_text()
    block = text.partition("Save this as `squares.toml`:")[2].partition("    $ anybatch run")[0]
    cli.write("squares.toml", textwrap.dedent(block))
    told = text.partition("    $ anybatch run squares.toml\n")[2].partition("\n\n")[0]
    done = cli("run", "squares.toml").expect(0)
    varying = r"(?<=\()/\S+|(?<=journal: )\S+|\d+\.\d s"
    assert re.sub(varying, "...", done.out.rstrip()) == re.sub(varying, "...", textwrap.dedent(told))


def test_every_key_is_documented() -> None:
    for page, structs, keys in (
        ("run", (RunReport, JobReport, Failure, Mistake, anybatch.PluginInfo), set[str]()),
        ("config", (CheckReport, JobCheck, Fit, Mistake, ProcessOptions), set[str](KEYS)),
    ):
        text = (EXAMPLES.parent / f"docs/{page}.md").read_text()
        keys |= {field.name for struct in structs for field in msgspec.structs.fields(struct)} - {"job"}
        assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


def test_embedding() -> None:
    done = subprocess.run([sys.executable, EXAMPLES / "embed.py"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert "SUCCEEDED: 8 of 8" in lines
    assert "resize 3: RUNNABLE ConnectionError: the store hung up" in lines
    assert sum(": SUCCEEDED" in line for line in lines) == 8
    assert "ConnectionError: the store hung up" in lines
    assert done.stderr == ""
