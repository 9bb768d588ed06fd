"""`anybatch queues`, `environments` and `drain`: where jobs wait, and where they run."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any, Final

import anybatch

from .output import note, print_json, print_table, say
from .target import add_command, add_options, carry_out, kernel_of

DRAIN_LOOK_S: Final = 0.5
"""Between two looks at what still runs, at the least."""
QUEUES_EXAMPLES: Final = """
  anybatch queues
  anybatch queues --json | jq '.[] | {name, unfinished}'
"""
ENVIRONMENTS_EXAMPLES: Final = """
  anybatch environments                           each environment, with its hosts
  anybatch environments --json | jq '.[] | select(.status != "VALID")'
"""
DRAIN_EXAMPLES: Final = """
  anybatch drain local                            place nothing more there, and wait until nothing runs there
  anybatch drain local --host node-3              the same for one host of it
  anybatch drain --all                            all environments: before the machine goes down
  anybatch drain --undo local                     place there again
"""


def add_parsers(commands: Any) -> None:
    """Tell the command line about these commands."""
    queues = add_command(
        commands, "queues", queues_main, brief="list job queues", text="List job queues.", examples=QUEUES_EXAMPLES
    )
    queues.add_argument("queues", nargs="*", metavar="NAME", help="only these")
    add_options(queues)
    environments = add_command(
        commands, "environments", environments_main, brief="list compute environments and their hosts",
        text="List compute environments with their hosts, and what is free there.", examples=ENVIRONMENTS_EXAMPLES,
    )  # fmt: skip
    environments.add_argument("environments", nargs="*", metavar="NAME", help="only these")
    add_options(environments)
    drain = add_command(
        commands, "drain", drain_main, brief="place nothing more in an environment or on a host",
        text="Place nothing more in environments (they become DISABLED), or on hosts, and wait until nothing runs "
        "there.\nWhat runs goes on, what waits keeps its place. It holds until it is undone, for later kernels too.",
        examples=DRAIN_EXAMPLES,
    )  # fmt: skip
    drain.add_argument("environments", nargs="*", metavar="ENVIRONMENT", help="the environments")
    drain.add_argument("--all", action="store_true", help="all environments")
    drain.add_argument("--host", action="append", metavar="HOST", help="only this host of it; may be given again")
    drain.add_argument("--undo", action="store_true", help="place there again")
    drain.add_argument("--no-wait", action="store_true", help="do not wait for what runs")
    add_options(drain)


def queues_main(options: argparse.Namespace) -> int:
    """List queues."""

    async def work() -> int:
        async with kernel_of(options, looks=True) as kernel:
            found = await kernel.describe_job_queues(options.queues or None)
        if options.json:
            print_json(found)
            return 0
        rows = [
            (q.name, str(q.priority), state_of(q.state, q.status), str(q.unfinished), ", ".join(q.compute_environments))
            for q in sorted(found, key=lambda q: (-q.priority, q.name))
        ]
        print_table(("name", "priority", "status", "unfinished", "environments"), rows, status=2)
        return 0

    return carry_out(options, work)


def state_of(state: str, status: str) -> str:
    """One word: what keeps it from working comes first."""
    return str(state if status == "VALID" and state != "ENABLED" else status)


def environments_main(options: argparse.Namespace) -> int:
    """List environments and their hosts."""

    async def work() -> int:
        async with kernel_of(options, looks=True) as kernel:
            found = await kernel.describe_compute_environments(options.environments or None)
        if options.json:
            print_json(found)
            return 0
        rows = []
        for one in found:
            rows.append(
                (
                    one.name,
                    one.backend,
                    state_of(one.state, one.status),
                    vcpus_of(one.hosts),
                    memory_of(one.hosts),
                    _attempts(one),
                )
            )
            rows += [
                (f"  {host.name}", "", str(host.state), vcpus_of((host,)), memory_of((host,)), str(host.attempts))
                for host in one.hosts
            ]
        print_table(("name", "backend", "status", "vCPUs used", "MiB used", "attempts"), rows, status=2)
        for one in found:
            if one.status is anybatch.ResourceStatus.INVALID:
                say(f"{one.name}: {one.status_reason}")
            for host in one.hosts:
                if host.state_reason is not None:
                    say(f"{host.name}: {host.state_reason}")
        return 0

    return carry_out(options, work)


def vcpus_of(hosts: tuple[anybatch.HostDetail, ...]) -> str:
    """How many vCPUs are in use, of all; what is sent ahead of a free slot uses none yet."""
    total = sum(host.vcpus for host in hosts)
    return f"{total - sum(max(host.free_vcpus, 0) for host in hosts):g}/{total:g}"


def memory_of(hosts: tuple[anybatch.HostDetail, ...]) -> str:
    """How much memory is in use, of all, where it is counted."""
    counted = [host for host in hosts if host.memory_mib is not None]
    if not counted:
        return "not counted" if hosts else "0/0"
    total = sum(host.memory_mib or 0 for host in counted)
    return f"{total - sum(max(host.free_memory_mib or 0, 0) for host in counted)}/{total}"


def _attempts(environment: anybatch.EnvironmentDetail) -> str:
    return str(sum(host.attempts for host in environment.hosts))


# -- drain ------------------------------------------------------------------------------------------


def drain_main(options: argparse.Namespace) -> int:
    """Drain, or undo it."""

    async def work() -> int:
        if bool(options.environments) == options.all:
            raise anybatch.InvalidValue("ENVIRONMENT", options.environments, "name environments, or give --all")
        if options.host and len(options.environments) != 1:
            raise anybatch.InvalidValue("--host", options.host, "name the one environment that the hosts are of")
        async with kernel_of(options) as kernel:
            names = options.environments or [one.name for one in await kernel.describe_compute_environments()]
            await kernel.describe_compute_environments(names)  # all of them are there
            for name in names:
                await _drain(kernel, name, options)
            if not options.undo and not options.no_wait:
                await _wait_idle(kernel, names, options)
            if options.json:
                print_json(await kernel.describe_compute_environments(names))
        return 0

    return carry_out(options, work)


async def _drain(kernel: anybatch.Kernel, name: str, options: argparse.Namespace) -> None:
    what, verb = f"environment {name}", "takes attempts again" if options.undo else "takes no more attempts"
    if not options.host:
        await kernel.update_compute_environment(name, state="ENABLED" if options.undo else "DISABLED")
    for host in options.host or ():
        await kernel.drain_host(name, host, undo=options.undo)
        what = f"host {host} of environment {name}"
    if not options.json:
        say(f"{what} {verb}")


async def _wait_idle(kernel: anybatch.Kernel, names: list[str], options: argparse.Namespace) -> None:
    """Return once nothing runs there. Says how much does when that changes."""
    said = None
    while True:
        found = await kernel.describe_compute_environments(names)
        hosts = [host for one in found for host in one.hosts if not options.host or host.name in options.host]
        left = sum(host.attempts for host in hosts)
        if not left:
            break
        if left != said:
            note(
                f"{left} attempt{'s' if left > 1 else ''} still run{'s' if left == 1 else ''} there; Ctrl-C leaves them"
            )
            said = left
        await asyncio.sleep(DRAIN_LOOK_S)
    if not options.json:
        say("nothing runs there any more")
