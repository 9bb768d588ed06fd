"""The rig of the core's tests: checked in every way it can be when the test is over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from core_rig import Rig, ready_rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A kernel's core with the environment "env", its host "host" (4 vCPUs), and the queue "queue"."""
    made = ready_rig()
    yield made
    made.verify()


@pytest.fixture
def bare() -> Iterator[Rig]:
    """A kernel's core with nothing in it."""
    made = Rig()
    yield made
    made.verify()
