"""The unit of docs/serve.md, under a real systemd: a user instance in namespaces of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from allowed_skips import NEEDS_CGROUP, NEEDS_NAMESPACE

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serve.md"
SYSTEMD = shutil.which("systemd", path="/lib/systemd:/usr/lib/systemd") or "/lib/systemd/systemd"
INSIDE = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
CONFIG = """
[environments.local]
backend = "process"
max_vcpus = 2
[queues.default]
priority = 1
compute_environments = ["local"]
"""
STORY = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system "$XDG_RUNTIME_DIR"
"$SYSTEMD" --user --unit=basic.target --log-target=console >"$HOME/systemd.log" 2>&1 &
systemd=$!
until systemctl --user list-units >/dev/null 2>&1; do kill -0 $systemd || exit 77; sleep 0.05; done
pid() { systemctl --user show anybatch -p MainPID --value; }
systemctl --user start anybatch
echo "started: $(systemctl --user is-active anybatch)"
first=$(pid)
work=": >'$HOME/begun'; while [ ! -e '$HOME/gate' ]; do sleep 0.05; done; exit 3"
anybatch submit --name long -- sh -c "$work" >/dev/null
until [ -e "$HOME/begun" ]; do sleep 0.05; done
systemctl --user restart anybatch
second=$(pid)
[ "$second" != "$first" ] && echo "restarted: $(systemctl --user is-active anybatch)"
sed -i 's/priority = 1/priority = 7/' "$HOME/anybatch.toml"
systemctl --user reload anybatch
until anybatch queues | grep -q ' 7 '; do sleep 0.05; done
echo "reloaded: $(pid | sed "s/^$second$/the same process/")"
kill -9 "$second"
until [ "$(pid)" != "$second" ] && [ "$(pid)" != 0 ] && systemctl --user is-active -q anybatch; do sleep 0.05; done
echo "killed: started again"
: >"$HOME/gate"
anybatch wait long | sed 's/ [-0-9a-f]*:/:/' || true
echo "attempts: $(anybatch describe --json long | grep -c '"number"')"
systemctl --user stop anybatch
echo "stopped: $(systemctl --user show anybatch -p Result --value)"
"""


def unit() -> str:
    """The page's."""
    text = PAGE.read_text()
    return textwrap.dedent("    [Unit]" + text.split("    [Unit]", 1)[1].split("\n\n    $ sudo", 1)[0]) + "\n"


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ab-") as folder:
        yield Path(folder)


def test_systemd_has_nothing_to_say_against_it(tmp_path: Path) -> None:
    file = tmp_path / "anybatch.service"
    for text, complaint in ((unit(), ""), (unit().replace("KillMode=process", "KillMode=proces"), "kill mode")):
        file.write_text(text.replace("/opt/anybatch/bin/anybatch", sys.executable))
        done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True)
        said = [line for line in (done.stdout + done.stderr).splitlines() if "anybatch.service" in line]
        assert len(said) == bool(complaint)
        assert complaint in "".join(said)


@pytest.mark.timeout(180)
def test_a_service_is_started_restarted_reloaded_killed_and_stopped_and_work_goes_on(home: Path) -> None:
    if subprocess.run([*INSIDE, "true"], capture_output=True).returncode:
        pytest.skip(NEEDS_NAMESPACE)
    bin_folder, units = home / "bin", home / ".config" / "systemd" / "user"
    for folder in (bin_folder, units):
        folder.mkdir(parents=True)
    journal = home / ".config" / "anybatch" / "batch.db"  # %S of a user's service
    command = bin_folder / "anybatch"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m anybatch "$@"\n')
    command.chmod(0o755)
    (home / "anybatch.toml").write_text(CONFIG)
    text = unit().replace("User=batch\n", "").replace("/opt/anybatch/bin/anybatch", str(command))
    text = text.replace("/var/lib/anybatch/batch.db", "%S/anybatch/batch.db").replace("/etc", str(home))
    (units / "anybatch.service").write_text(text)
    environment = os.environ | {
        "HOME": str(home), "XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}", "SYSTEMD": SYSTEMD,
        "PATH": f"{bin_folder}:{os.environ['PATH']}", "ANYBATCH_JOURNAL": str(journal),
    }  # fmt: skip
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        environment.pop(name, None)
    done = subprocess.run(
        [*INSIDE, "sh", "-c", STORY], env=environment, capture_output=True, text=True, timeout=150, cwd=home
    )
    if done.returncode == 77:  # it has ended by itself: it wants cgroups of its own
        pytest.skip(NEEDS_CGROUP)
    assert done.returncode == 0, (done, (home / "systemd.log").read_text())
    assert done.stdout.splitlines() == [
        "started: active",
        "restarted: active",
        "reloaded: the same process",
        "killed: started again",
        "long: FAILED: exit code 3",
        "attempts: 1",
        "stopped: success",
    ]
