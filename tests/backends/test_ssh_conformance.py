"""The conformance kit on the SSH backend, over a real sshd."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from anybatch.backends.ssh import SshBackend
from anybatch.testing.backend_kit import Check, Description, checks_for
from ssh_rig import Lab


@pytest.fixture(scope="module")
def shared_lab() -> Iterator[Lab]:
    """One host for all checks: each has a kernel id, and so an agent, of its own folder's."""
    with tempfile.TemporaryDirectory(prefix="ab-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        made = Lab(Path(folder))
        try:
            made.sshd("host")
            yield made
        finally:
            made.close()


NAMES = [check.name for check in checks_for(Description(factory=SshBackend, follows_settings=False))]


@pytest.mark.parametrize("name", NAMES)
def test_conformance(name: str, shared_lab: Lab, tmp_path: Path) -> None:
    options = shared_lab.options("host", folder=str(tmp_path / "far"))
    about = Description(factory=SshBackend, options=options, follows_settings=False, crowd=300)
    check: Check = next(check for check in checks_for(about) if check.name == name)
    check.run()
