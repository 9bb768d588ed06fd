"""How commands print: tables with local times for people, JSON with UTC times for programs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import anybatch
import msgspec
from rich.text import Text

from .console import Out, plain
from .progress import seconds
from .table import columns

STATUS_STYLES: Final = {
    "SUCCEEDED": "green", "FAILED": "red", "RUNNING": "yellow", "STARTING": "yellow",
    "VALID": "green", "INVALID": "red", "DISABLED": "yellow",
    "ACTIVE": "green", "DRAINING": "yellow", "DRAINED": "yellow", "UNAVAILABLE": "red",
}  # fmt: skip


def _plain(value: Any) -> Any:
    return list(value)


def to_json(value: Any) -> str:
    """A value of the public API as JSON: keys are the fields' names, times UTC in ISO 8601."""
    return msgspec.json.encode(value, enc_hook=_plain).decode()


def print_json(value: Any) -> None:
    """One document."""
    sys.stdout.write(msgspec.json.format(to_json(value), indent=2) + "\n")


def print_line(value: Any) -> None:
    """One line of a stream of documents."""
    sys.stdout.write(to_json(value) + "\n")
    sys.stdout.flush()


def print_error(options: argparse.Namespace, error: anybatch.AnyBatchError) -> None:
    """Why a command was not carried out; with --json also as a document."""
    errors = Out(stderr=True)
    style = "red" if errors.is_terminal else ""
    errors.print(Text(plain(f"anybatch: {error}"), style=style), soft_wrap=True)
    if getattr(options, "json", False):
        found = {name: value for name, value in vars(error).items() if isinstance(value, str | int | None)}
        print_json({"error": {"type": type(error).__name__, "message": str(error), **found}})


def when(at: datetime | None) -> str:
    """A time for people, where they are: the time of today, else with its date."""
    if at is None:
        return "-"
    local = at.astimezone()
    if local.date() == datetime.now().astimezone().date():
        return local.strftime("%H:%M:%S")
    return local.strftime("%Y-%m-%d %H:%M:%S")


def span(started: datetime | None, stopped: datetime | None) -> str:
    """How long something has taken, or takes so far."""
    if started is None:
        return "-"
    return seconds(max(0.0, ((stopped or datetime.now(UTC)) - started).total_seconds()))


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, status: int | None = None) -> None:
    """Rows under their heads. `status`: the column whose text gives the row's colour."""
    out = Out()
    lines = columns([heads, *([plain(cell) for cell in row] for row in rows)])
    out.print(Text(lines[0], style="bold"), soft_wrap=True)
    for row, line in zip(rows, lines[1:], strict=True):
        text = Text(line)
        if status is not None and row[status] in STATUS_STYLES:
            text.highlight_words([row[status]], STATUS_STYLES[row[status]])
        out.print(text, soft_wrap=True)


def say(text: str) -> None:
    """A line for people."""
    Out().print(Text(plain(text)), soft_wrap=True)


def note(text: str) -> None:
    """A line that is not part of the answer."""
    Out(stderr=True).print(Text(plain(text)), soft_wrap=True)
