"""What is said of SSH hosts: by an environment's options, an inventory file, OpenSSH's configuration, registration."""

from __future__ import annotations

import fnmatch
import glob
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from ..kernel.core.errors import BackendError

HOSTS_MAX: Final = 10_000
SAFE_PATH: Final = r"^[A-Za-z0-9_./:+~-]+$"
"""What may stand in the one command that a login shell reads."""
INCLUDES_MAX: Final = 100
"""Files that OpenSSH's configuration may include."""

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400 * 365)]


class HostOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What may be said of one host. What is left out is the environment's, or OpenSSH's configuration's.

    `address`: where it is reached (default: its name, which may be an alias of OpenSSH's configuration). `identity`:
    files of private keys. `host_key`: its public key, or several, pinned, as in `ssh-ed25519 AAAA...`; known_hosts is
    not looked at then. `proxy_jump`: hosts to go through, as in `user@gate:22,inner`. `vcpus`, `memory` (MiB) and
    `gpus` (device indexes) are what it offers (default: what is found there). `python`: the interpreter to use.
    """

    address: str | None = None
    port: Port | None = None
    user: str | None = None
    identity: tuple[str, ...] | None = None
    host_key: str | tuple[str, ...] | None = None
    proxy_jump: str | None = None
    zone: str | None = None
    vcpus: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] | None = None
    memory: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)] | None = None
    gpus: tuple[Annotated[int, msgspec.Meta(ge=0, le=1023)], ...] | None = None
    python: Annotated[str, msgspec.Meta(pattern=SAFE_PATH)] | None = None


class SshOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Options of a compute environment of SSH hosts (docs/ssh.md says more of them).

    Hosts: `hosts` names them, as `lab1`, `user@lab2:2222`, or maps a name to `HostOptions`; `inventory`: a TOML file
    with a table `hosts` of the same form; `ssh_config_hosts`: patterns of aliases to take from OpenSSH's configuration.
    `user`, `port`, `identity`, `proxy_jump`, `zone` and `python` hold for hosts that do not say otherwise.

    Security: `known_hosts`: files (default: those of OpenSSH's configuration). `ssh_config`: OpenSSH's configuration
    (default: ~/.ssh/config if it is there; "none": nothing of it). `use_agent`: ask SSH_AUTH_SOCK's agent for keys.

    On the hosts: `folder` is where the agent and what it keeps goes; `path` where programs are looked for. `workdirs`:
    whether a job's `workdir` is one of the hosts ("there"), or one of the kernel's machine: sent to a host before the
    job's first attempt on it ("send"), and what has changed fetched after each attempt ("send and fetch").
    `memory_enforcement`, `log_bytes_max`, `lookahead` and `ignore_image` are as for local processes.

    Seconds: `connect_timeout` for a connection to be made; `keepalive` between signs of life of an idle host, of which
    three may be missing; `grace` until a host that cannot be reached is given up, and its attempts with it;
    `quarantine` that a host which keeps failing takes no attempts.
    """

    hosts: tuple[str, ...] | dict[str, HostOptions] = ()
    inventory: str | None = None
    ssh_config_hosts: tuple[str, ...] = ()
    user: str | None = None
    port: Port | None = None
    identity: tuple[str, ...] = ()
    proxy_jump: str | None = None
    zone: str | None = None
    python: Annotated[str, msgspec.Meta(pattern=SAFE_PATH)] | None = None
    known_hosts: str | tuple[str, ...] | None = None
    ssh_config: str | None = None
    use_agent: bool = True
    folder: Annotated[str, msgspec.Meta(pattern=r"^(~/|/)[^\0\n]+$")] = "~/.anybatch"
    path: Annotated[str, msgspec.Meta(pattern=SAFE_PATH)] = "/usr/local/bin:/usr/bin:/bin"
    workdirs: Literal["there", "send", "send and fetch"] = "there"
    memory_enforcement: Literal["auto", "cgroup", "watch", "none"] = "auto"
    log_bytes_max: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] = 64 << 20
    lookahead: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 256
    ignore_image: bool = False
    connect_timeout: Seconds = 15
    keepalive: Seconds = 15
    grace: Seconds = 120
    quarantine: Seconds = 300


class HostSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A host as it is to be reached: what is said of it, with what the environment says for all."""

    name: str
    address: str
    port: int | None = None
    user: str | None = None
    identity: tuple[str, ...] = ()
    host_keys: tuple[str, ...] = ()
    proxy_jump: str | None = None
    zone: str | None = None
    vcpus_milli: int | None = None
    memory_mib: int | None = None
    gpus: tuple[int, ...] | None = None
    python: str | None = None


def ssh_config_files(options: SshOptions) -> list[str]:
    """OpenSSH's configuration, as far as it is to be looked at."""
    if options.ssh_config == "none":
        return []
    if options.ssh_config is not None:
        path = Path(options.ssh_config).expanduser()
        if not path.is_file():
            raise BackendError(f"ssh_config: {str(path)!r} is no file that can be read")
        return [str(path)]
    default = Path("~/.ssh/config").expanduser()
    return [str(default)] if default.is_file() else []


def host_specs(options: SshOptions, registered: Mapping[str, Mapping[str, Any]]) -> dict[str, HostSpec]:
    """Every host of an environment, by name. One that was registered is as it was registered.

    Raises:
        BackendError: the inventory or OpenSSH's configuration cannot be read; the message names file and field.
    """
    said: dict[str, HostOptions] = {}
    for pattern in options.ssh_config_hosts:
        for alias in aliases(ssh_config_files(options)):
            if fnmatch.fnmatchcase(alias, pattern):
                said[alias] = HostOptions()
    if options.inventory is not None:
        said |= _inventory(options.inventory)
    if isinstance(options.hosts, Mapping):
        said |= options.hosts
    else:
        said |= dict(map(_from_text, options.hosts))
    said |= {name: msgspec.convert(settings, HostOptions) for name, settings in registered.items()}
    if len(said) > HOSTS_MAX:
        raise BackendError(f"hosts: there are {len(said)}; an environment has at most {HOSTS_MAX}")
    return {name: _spec(name, about, options) for name, about in said.items()}


def _from_text(text: str) -> tuple[str, HostOptions]:
    """`[user@]name[:port]`; an address of IPv6 with a port stands in brackets."""
    found = re.fullmatch(
        r"(?:([^@\s]+)@)?(\[[0-9A-Fa-f:.%]+\]|[^@:\s\[\]]+|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*)(?::(\d+))?", text
    )
    if found is None or (found[3] and not 1 <= int(found[3]) <= 65535):
        raise BackendError(f"hosts: {text!r} is not of the form [user@]name[:port]")
    name = found[2].strip("[]")
    return name, HostOptions(user=found[1], port=int(found[3]) if found[3] else None)


def _spec(name: str, about: HostOptions, options: SshOptions) -> HostSpec:
    keys = about.host_key or ()
    return HostSpec(
        name=name,
        address=about.address or name,
        port=about.port or options.port,
        user=about.user or options.user,
        identity=about.identity if about.identity is not None else options.identity,
        host_keys=(keys,) if isinstance(keys, str) else keys,
        proxy_jump=about.proxy_jump or options.proxy_jump,
        zone=about.zone or options.zone,
        vcpus_milli=None if about.vcpus is None else max(1, round(about.vcpus * 1000)),
        memory_mib=about.memory,
        gpus=about.gpus,
        python=about.python or options.python,
    )


def _inventory(name: str) -> dict[str, HostOptions]:
    path = Path(name).expanduser()
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BackendError(f"inventory: {str(path)!r} cannot be read: {error}") from error
    try:
        found = msgspec.convert(table, Inventory)
    except msgspec.ValidationError as error:
        raise BackendError(f"inventory: {str(path)!r}: {error}") from error
    return found.hosts


class Inventory(msgspec.Struct, forbid_unknown_fields=True):
    """An inventory file: `[hosts.lab1]` and so on."""

    hosts: dict[str, HostOptions] = {}


def aliases(files: list[str]) -> Iterator[str]:
    """The names that OpenSSH's configuration has a `Host` entry for, patterns left out."""
    waiting, seen = list(files), 0
    while waiting:
        name, seen = waiting.pop(0), seen + 1
        if seen > INCLUDES_MAX:
            raise BackendError(f"ssh_config: more than {INCLUDES_MAX} files are included")
        try:
            lines = Path(name).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BackendError(f"ssh_config: {name!r} cannot be read: {error}") from error
        for line in lines:
            keyword, _, rest = line.strip().replace("=", " ", 1).partition(" ")
            try:
                words = shlex.split(rest, comments=True)
            except ValueError:
                continue
            if keyword.lower() == "host":
                yield from (word for word in words if not set("*?!") & set(word))
            elif keyword.lower() == "include":
                for word in words:
                    path = Path(word).expanduser()
                    full = path if path.is_absolute() else Path("~/.ssh").expanduser() / path
                    waiting += sorted(glob.glob(str(full)))
