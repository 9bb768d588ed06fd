"""One front end for a whole file of tests that do not mind each other's jobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from aws_rig import Served, add_queue


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served() as served:
        add_queue(served.client())
        yield served


@pytest.fixture
def client(served: Served) -> Any:
    return served.client()
