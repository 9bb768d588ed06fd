"""`anybatch hosts`: the hosts of environments: listed, registered, drained and taken away."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from typing import Any, Final

import anybatch
import msgspec

from .output import print_json, print_table, say, when
from .target import add_command, add_options, carry_out, kernel_of

HEADS: Final = (
    "host", "environment", "zone", "state", "vCPUs used", "MiB used", "GPUs used", "attempts", "load", "last contact",
)  # fmt: skip
LIST_EXAMPLES: Final = """
  anybatch hosts list                                  every host: capacity, zone, load, state, last contact
  anybatch hosts list lab --json | jq '.[] | select(.state != "ACTIVE")'
"""
REGISTER_EXAMPLES: Final = """
  anybatch hosts register lab lab4                     reached as `ssh lab4` is
  anybatch hosts register lab lab5 address=10.0.0.5 user=batch zone=b 'host_key=ssh-ed25519 AAAA...'
  anybatch hosts register lab lab5 vcpus=8 gpus=[0,1]  registered again: the new settings replace the old ones
"""
DRAIN_EXAMPLES: Final = """
  anybatch hosts drain lab lab4 --reason "new disks"   what runs goes on, nothing more is placed there
  anybatch hosts drain lab lab4 --undo
"""
DEREGISTER_EXAMPLES: Final = """
  anybatch hosts deregister lab lab4
  anybatch hosts deregister lab lab4 --force           also with attempts on it: they are lost, and ended
"""


def add_parsers(commands: Any) -> None:
    """Tell the command line about these commands."""
    parser = commands.add_parser(
        "hosts", help="list, register, drain and deregister hosts", description="The hosts of compute environments."
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    found = add_command(
        actions, "list", list_main, brief="list hosts", text="List the hosts of environments.", examples=LIST_EXAMPLES
    )
    found.add_argument("environments", nargs="*", metavar="ENVIRONMENT", help="only of these")
    register = add_command(
        actions, "register", register_main, brief="add a host to an unmanaged environment",
        text="Add a host to an unmanaged environment while it works, or tell of it anew. It is kept for later kernels.",
        examples=REGISTER_EXAMPLES,
    )  # fmt: skip
    drain = add_command(
        actions, "drain", drain_main, brief="place nothing more on a host",
        text="Place nothing more on a host; what runs there goes on. It holds until it is undone.",
        examples=DRAIN_EXAMPLES,
    )  # fmt: skip
    deregister = add_command(
        actions, "deregister", deregister_main, brief="take a registered host away",
        text="Take away a host that was registered.", examples=DEREGISTER_EXAMPLES,
    )  # fmt: skip
    for one in (register, drain, deregister):
        one.add_argument("environment", metavar="ENVIRONMENT")
        one.add_argument("host", metavar="HOST")
    register.add_argument(
        "settings",
        nargs="*",
        metavar="NAME=VALUE",
        help="what its backend is told of it; values as in TOML",
    )
    drain.add_argument("--reason", default="drained by request", help="is shown with it (default: drained by request)")
    drain.add_argument("--undo", action="store_true", help="place there again")
    deregister.add_argument("--force", action="store_true", help="also with attempts on it, which are lost")
    for one in (found, register, drain, deregister):
        add_options(one)


def list_main(options: argparse.Namespace) -> int:
    """List hosts."""

    async def work() -> int:
        async with kernel_of(options, looks=True) as kernel:
            found = await kernel.describe_compute_environments(options.environments or None)
        pairs = [(one.name, host) for one in found for host in one.hosts]
        if options.json:
            print_json([{"environment": name, **msgspec.structs.asdict(host)} for name, host in pairs])
            return 0
        print_table(HEADS, [(host.name, name, *_about(host)) for name, host in pairs], status=3)
        for _, host in pairs:
            if host.state_reason is not None:
                say(f"{host.name}: {host.state_reason}")
        return 0

    return carry_out(options, work)


def _about(host: anybatch.HostDetail) -> Sequence[str]:
    memory = "not counted"
    if host.memory_mib is not None and host.free_memory_mib is not None:
        memory = f"{host.memory_mib - max(host.free_memory_mib, 0)}/{host.memory_mib}"
    return (
        host.zone or "-",
        host.state,
        f"{host.vcpus - max(host.free_vcpus, 0):g}/{host.vcpus:g}",
        memory,
        f"{len(host.gpus) - len(host.free_gpus)}/{len(host.gpus)}",
        str(host.attempts),
        "-" if host.load is None else f"{host.load:.1f}",
        when(host.last_contact),
    )


def register_main(options: argparse.Namespace) -> int:
    """Register a host."""

    async def work() -> int:
        settings = dict(map(_setting, options.settings))
        async with kernel_of(options) as kernel:
            _tell(options, await kernel.register_host(options.environment, options.host, settings=settings))
        return 0

    return carry_out(options, work)


def _setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE: a value of TOML, or else the text as it is."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise anybatch.InvalidValue("settings", text, "it is of the form NAME=VALUE")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def _tell(options: argparse.Namespace, host: anybatch.HostDetail) -> None:
    if options.json:
        print_json(host)
    elif host.state_reason is None:
        say(f"host {host.name} of environment {options.environment} is {host.state}")
    else:
        say(f"host {host.name} of environment {options.environment} is {host.state}: {host.state_reason}")


def drain_main(options: argparse.Namespace) -> int:
    """Drain a host, or undo it."""

    async def work() -> int:
        async with kernel_of(options) as kernel:
            reason = options.reason
            _tell(options, await kernel.drain_host(options.environment, options.host, reason=reason, undo=options.undo))
        return 0

    return carry_out(options, work)


def deregister_main(options: argparse.Namespace) -> int:
    """Take a host away."""

    async def work() -> int:
        async with kernel_of(options) as kernel:
            await kernel.deregister_host(options.environment, options.host, force=options.force)
        if not options.json:
            say(f"host {options.host} is no longer of environment {options.environment}")
        return 0

    return carry_out(options, work)
