"""Fixtures of the backends' tests."""

from __future__ import annotations

from ssh_rig import bench, lab

__all__ = ["bench", "lab"]
