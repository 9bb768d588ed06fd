"""The one list of reasons for which a test may be skipped in CI: what a kernel or a machine may lack.

A test skips with one of these (`pytest.skip(NEEDS_CGROUP)`, `@pytest.mark.skipif(..., reason=NEEDS_CGROUP)`).
Under CI=true any other skip fails the run (tests/conftest.py). A missing program or package is no
reason: `.ci/run` and the lock files install what the tests need.
"""

from __future__ import annotations

from typing import Final

NEEDS_CGROUP: Final = "needs a cgroup v2 tree that this user may write to"
"""Memory limits by the kernel: containers often mount the tree read-only."""

ALLOWED: Final = frozenset({NEEDS_CGROUP})
