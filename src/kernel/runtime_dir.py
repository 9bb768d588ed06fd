"""The short private folder for sockets: their paths have to stay under 100 bytes."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from .core.errors import BackendError

PATH_BYTES_MAX: Final = 60
"""Of the folder, so that a socket's path in it stays under 100 bytes."""


def runtime_dir(kernel_id: str, given: str | os.PathLike[str] | None = None) -> Path:
    """A folder of mode 0700 for this kernel: where told, else the user's runtime folder, else a temporary one.

    Raises:
        BackendError: it cannot be made, or belongs to somebody else.
    """
    if given is not None:
        parents = [Path(given)]
    else:
        parents = [Path(tempfile.gettempdir()) / f"anybatch-{os.getuid()}", Path("/tmp") / f"anybatch-{os.getuid()}"]
        if runtime := os.environ.get("XDG_RUNTIME_DIR"):
            parents.insert(0, Path(runtime) / "anybatch")
    for parent in parents:
        if (
            len(os.fsencode(parent)) + 1 + len(kernel_id) > PATH_BYTES_MAX
            and given is None
            and parent is not parents[-1]
        ):
            continue
        try:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = parent / kernel_id
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
        except OSError as e:
            if parent is parents[-1]:
                raise BackendError(f"cannot make the runtime folder {parent}: {e.strerror}") from e
            continue
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise BackendError(f"the runtime folder {folder} is not a folder of this user's alone (mode 0700)")
        return folder
    raise BackendError("there is no place for a runtime folder; give runtime_dir")
