"""One engine for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from docker_rig import PrivateEngine, TestEngine, engine_or_skip


@pytest.fixture(scope="session")
def docker() -> Iterator[TestEngine]:
    with engine_or_skip() as found:
        yield found


@pytest.fixture
def private(docker: TestEngine) -> PrivateEngine:
    """An engine that may be killed and started again."""
    if not isinstance(docker, PrivateEngine):
        pytest.skip("needs an engine of its own, to stop it")
    return docker


@pytest.fixture
def options(docker: TestEngine) -> dict[str, Any]:
    return {"engines": [docker.url], "network": "none"}
