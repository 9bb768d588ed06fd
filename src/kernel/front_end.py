"""The protocol between `anybatch serve` and a front end: what lets others reach the kernel, over HTTP or otherwise.

A front end is found by its entry point (`anybatch.frontends`), a class with the members of `FrontEnd`. It lives in the
process of `anybatch serve` and uses the Kernel's public methods; for calls made for somebody it says so with
`Kernel.acting_as`, and writes them down with `Kernel.record_call`. One that cannot be loaded, or that speaks another
version of this protocol, costs its own options only; `anybatch plugins` says why. One that was asked for and cannot be
started ends `serve`.
"""

from __future__ import annotations

import argparse
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

if TYPE_CHECKING:
    from .kernel import Kernel

FRONT_END_API_VERSION: Final = 1
"""The version of this protocol. A front end states the one it was written for as `api_version`."""
FRONT_END_MEMBERS: Final = ("api_version", "add_options", "is_wanted", "serve")


class FrontEnd(Protocol):
    """What `anybatch serve` asks of a front end. It is imported by every command, so it imports little."""

    api_version: ClassVar[int]

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """Add its options to those of `anybatch serve`. None may have a name that is there already."""

    @staticmethod
    def is_wanted(options: argparse.Namespace) -> bool:
        """Whether these options ask for it."""

    @staticmethod
    def serve(kernel: Kernel, options: argparse.Namespace, journal: Path) -> AbstractAsyncContextManager[list[str]]:
        """It serves for as long as this is entered; gives the lines to print before `serve` says that it is ready.

        `journal` is the journal's path, beside which it may keep what is its own. On the way out it ends its
        connections, within seconds: the kernel is closed after it.

        Raises:
            RequestError: an option, or what one names, is not as it should be (exit status 2).
            AnyBatchError: it cannot be served for another reason (exit status 3).
        """
