"""What a shell completes: asked as the shell asks, through the script that it is given."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Quick

ASK = """
source completion.bash
for line; do
    read -ra COMP_WORDS <<< "$line"; [[ "$line" == *" " ]] && COMP_WORDS+=("")
    COMP_LINE=$line COMP_POINT=${#line} COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_TYPE=9 COMPREPLY=()
    _python_argcomplete anybatch "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
    echo "${COMPREPLY[*]}"
done
"""


def test_bash_completes_commands_options_and_names(served: Quick, tmp_path: Path) -> None:
    served("submit", "--name", "compute-primes", "--wait", "--", "true").expect(0)
    (tmp_path / "completion.bash").write_text(served("completion", "bash").expect(0).out)
    program = tmp_path / "bin" / "anybatch"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m anybatch \"$@\"\n")
    program.chmod(0o755)
    asked = {
        "anybatch des": "describe ",
        "anybatch ps --status FA": "FAILED ",
        "anybatch logs -f comp": "compute-primes ",
        "anybatch drain lo": "local ",
        "anybatch describe --journal none.db comp": "",
    }
    environment = {**served.environment, "PATH": f"{program.parent}:{served.environment['PATH']}"}
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "--norc", "-c", ASK, "bash", *asked], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split("\n")[:-1] == list(asked.values()), done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_given_their_own_script(quick: Quick, shell: str) -> None:
    out = quick("completion", shell).expect(0).out
    assert {"zsh": "compdef", "fish": "complete --command anybatch"}[shell] in out


def test_only_known_shells_are_taken(quick: Quick) -> None:
    assert "choose from" in quick("completion", "ksh").expect(2).err
