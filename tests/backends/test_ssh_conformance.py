"""The conformance kit on the SSH backend, over a real sshd. Checks mostly wait, so a few go on side by side."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from anybatch.backends.ssh import SshBackend
from anybatch.testing.backend_kit import Description, checks_for
from ssh_rig import Lab

AT_ONCE = 4
SCALE = 2
ALONE = ("closing_leaves_nothing_behind",)
"""Looks at the whole process: its threads, tasks and open files."""


def about(**more: object) -> Description:
    return Description(factory=SshBackend, follows_settings=False, crowd=300, time_scale=SCALE, **more)  # type: ignore[arg-type]


NAMES = [check.name for check in checks_for(about())]


@pytest.fixture(scope="module")
def lab_for_all() -> Iterator[Lab]:
    """One host; each check has a folder, and so an agent, of its own there."""
    with tempfile.TemporaryDirectory(prefix="ab-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        made = Lab(Path(folder))
        try:
            made.sshd("host")
            yield made
        finally:
            made.close()


def run(name: str, lab: Lab) -> None:
    options = lab.options("host", folder=f"{lab.folder}/far-{name}")
    (check,) = [check for check in checks_for(about(options=options)) if check.name == name]
    check.run()


@pytest.fixture(scope="module")
def outcomes(lab_for_all: Lab, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[None]]]:
    chosen = {item.callspec.params["name"] for item in request.session.items if hasattr(item, "callspec")
              and item.path == request.path}  # fmt: skip
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(run, name, lab_for_all) for name in NAMES if name in chosen and name not in ALONE}


@pytest.mark.parametrize("name", ALONE)
def test_conformance_alone(name: str, lab_for_all: Lab) -> None:
    run(name, lab_for_all)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ALONE])
def test_conformance(name: str, outcomes: dict[str, Future[None]]) -> None:
    outcomes[name].result(timeout=240)
