"""The kernel's log: structlog's events, into whatever the embedding service uses.

A service that has configured structlog gets them as it wants them. Otherwise they go to `logging`, under the name
that they were asked for by, with their fields as `key=value`: warnings reach stderr by Python's own default, and
nothing is ever printed on standard output.
"""

from __future__ import annotations

import logging
from typing import Any

import structlog

_PROCESSORS = (
    structlog.stdlib.filter_by_level,
    structlog.processors.format_exc_info,
    structlog.processors.KeyValueRenderer(key_order=["event"]),
)


class Log:
    """A logger of one name: `log.info("attempt_exited", attempt_id=..., exit_code=1)`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._plain: Any = structlog.wrap_logger(
            logging.getLogger(name), processors=_PROCESSORS, wrapper_class=structlog.stdlib.BoundLogger
        )

    def _logger(self) -> Any:
        return structlog.get_logger(self._name) if structlog.is_configured() else self._plain

    def info(self, event: str, **fields: object) -> None:
        """Something that people may want to know."""
        self._logger().info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        """Something that people should look at."""
        self._logger().warning(event, **fields)

    def error(self, event: str, **fields: object) -> None:
        """Something that has stopped work."""
        self._logger().error(event, **fields)
