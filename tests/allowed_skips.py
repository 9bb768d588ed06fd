"""The one list of reasons for which a test may be skipped in CI: what a kernel or a machine may lack.

A test skips with one of these (`pytest.skip(NEEDS_CGROUP)`, `@pytest.mark.skipif(..., reason=NEEDS_CGROUP)`).
Under CI=true any other skip fails the run (tests/conftest.py). A missing program or package is no
reason: `.ci/run` and the lock files install what the tests need.
"""

from __future__ import annotations

from typing import Final

NEEDS_BRIDGE: Final = "needs an engine that makes bridge networks, and the right to add an address to this machine"
"""Containers that reach the machine by the address of ECS: in containers an engine seldom may."""

NEEDS_CGROUP: Final = "needs a cgroup v2 tree that this user may write to"
"""Memory limits by the kernel: containers often mount the tree read-only."""

NEEDS_CHATTR: Final = "needs chattr +i, for root ignores modes"
"""A file that even root cannot write to: the file systems of containers often lack the attribute, or root the right."""

NEEDS_MOUNT: Final = "needs the right to mount a tmpfs"
"""A small disk that gets full: containers are seldom allowed to mount."""

NEEDS_NAMESPACE: Final = "needs the right to make a pid namespace"
"""A process that sees other process ids than the test does: containers are seldom allowed to."""

NEEDS_OLD_PYTHON: Final = "needs an interpreter as old as Python 3.8"
"""The agent runs on hosts that have none newer; no current system ships one."""

NEEDS_PODMAN: Final = "needs root, and a Podman that starts containers here"
"""Its socket in place of Docker's: inside of containers it seldom may."""

NEEDS_STRACE: Final = "needs strace, and the right to trace a child"
"""The real system calls, in their order."""

ALLOWED: Final = frozenset(
    {
        NEEDS_BRIDGE,
        NEEDS_CGROUP,
        NEEDS_CHATTR,
        NEEDS_MOUNT,
        NEEDS_NAMESPACE,
        NEEDS_OLD_PYTHON,
        NEEDS_PODMAN,
        NEEDS_STRACE,
    }
)
