"""The configuration of a kernel: one format for a file and for code, checked as a whole (docs/config.md)."""

from __future__ import annotations

import os
from collections.abc import Mapping

from .backend import Backend, BackendFactory
from .config_check import judge
from .config_model import Config
from .config_read import config_of_file
from .core.errors import ConfigError
from .core.state import KernelState
from .registry import BackendRegistry


def load_config(
    path: str | os.PathLike[str], *, backends: Mapping[str, Backend | BackendFactory] | None = None
) -> Config:
    """Read a TOML file of environments, queues, definitions and jobs, and check all of it.

    Use it as `Kernel(journal, **config.kernel_arguments())` and `await kernel.apply(config)`. `backends` are those
    that the kernel will be given beside the installed ones.

    Raises:
        ConfigError: its `mistakes` are all that were found, each with its line and key.
    """
    config, checker = config_of_file(path)
    judge(config.completed() if config.jobs else config, BackendRegistry(backends), KernelState(config.quotas), checker)
    checker.finish()
    return config


__all__ = ["Config", "ConfigError", "load_config"]
