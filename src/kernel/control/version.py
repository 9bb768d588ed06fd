"""The version of anybatch that this is."""

from __future__ import annotations

from importlib import metadata


def _version() -> str:
    try:
        return metadata.version("anybatch")
    except metadata.PackageNotFoundError:
        return "(not installed)"


VERSION = _version()
