"""`anybatch plugins`: what is installed, and why anything failed to load."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final

import anybatch
import msgspec
from rich.text import Text

from .console import Out, plain
from .table import columns

HEADS: Final = ("kind", "name", "from", "implemented by", "state")
EXAMPLES: Final = """\
examples:
  anybatch plugins
  anybatch plugins --json | jq '.[] | select(.error != null)'

The exit status is 0, also if a plugin failed to load: that costs its own name only.
"""


def add_parser(commands: Any) -> None:
    """Tell the command line about this command."""
    parser = commands.add_parser(
        "plugins",
        help="list what is installed, and why anything failed to load",
        description="List the installed backends, sinks and front ends, and why anything failed to load.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array, one object for each plugin")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Print the list."""
    plugins = anybatch.list_plugins()
    if options.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(plugins), indent=2).decode() + "\n")
        return 0
    rows = [
        (
            plugin.group.removeprefix("anybatch.").removesuffix("s"),
            plugin.name,
            f"{plugin.distribution} {plugin.version}",
            plugin.target,
            "ok" if plugin.error is None else "FAILED TO LOAD",
        )
        for plugin in plugins
    ]
    console = Out()
    head, *lines = columns([HEADS, *rows])
    console.print(Text(head, style="bold"), soft_wrap=True)
    for line, plugin in zip(lines, plugins, strict=True):
        console.print(Text(line, style="" if plugin.error is None else "red"), soft_wrap=True)
        if plugin.error is not None:
            console.print(Text(f"    {plain(plugin.error)}"), soft_wrap=True)
    return 0
