"""A connection to one SSH host, its key verified. What goes wrong is said with what to do about it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import asyncssh

from ..kernel.core.errors import BackendError
from ._ssh_options import HostSpec, SshOptions, ssh_config_files

KNOWN_HOSTS: Final = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts")
JUMPS_MAX: Final = 8


class HostError(BackendError):
    """A host cannot be used as things are. `lasting`: trying again at once does not help."""

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(message, retryable=not lasting)
        self.lasting = lasting


class _Client(asyncssh.SSHClient):
    """Remembers the key that a server showed and that is not trusted."""

    shown: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.shown = key
        return False


async def connect(spec: HostSpec, options: SshOptions) -> asyncssh.SSHClientConnection:
    """Connect and log in, through the hosts that it says to go through.

    Raises:
        HostError: that is not possible; the message says why, and what to do.
    """
    config = ssh_config_files(options)
    target = _resolved(spec, options, config)
    jumps = _jumps(spec, target)
    opened: list[asyncssh.SSHClientConnection] = []
    try:
        for jump in jumps:
            opened.append(await _connect(jump, options, config, opened[-1] if opened else None))
        connection = await _connect(spec, options, config, opened[-1] if opened else None)
    except BaseException:
        for one in reversed(opened):
            one.abort()
        raise
    for one in opened:
        _close_together(connection, one)
    return connection


def _close_together(connection: asyncssh.SSHClientConnection, jump: asyncssh.SSHClientConnection) -> None:
    """End a connection that was made to go through once the one through it has ended."""

    async def follow() -> None:
        with contextlib.suppress(Exception):
            await connection.wait_closed()
        jump.abort()

    task = asyncio.get_running_loop().create_task(follow())
    connection.set_extra_info(anybatch_jump=task)  # kept until it is done


def jump_task(connection: asyncssh.SSHClientConnection) -> asyncio.Task[None] | None:
    """What ends the connection that this one goes through."""
    found: asyncio.Task[None] | None = connection.get_extra_info("anybatch_jump")
    return found


def _resolved(spec: HostSpec, options: SshOptions, config: Sequence[str]) -> asyncssh.SSHClientConnectionOptions:
    """What OpenSSH's configuration makes of a host."""
    given: dict[str, Any] = {"client_keys": None, "agent_path": None}
    if spec.user is not None:
        given["username"] = spec.user
    try:
        return asyncssh.SSHClientConnectionOptions(
            host=spec.address, port=spec.port or (), config=list(config), known_hosts=b"", **given
        )
    except (asyncssh.Error, asyncssh.ConfigParseError, ValueError, OSError) as error:
        raise HostError(f"OpenSSH's configuration ({', '.join(config)}): {error}", lasting=True) from error


def _jumps(spec: HostSpec, target: asyncssh.SSHClientConnectionOptions) -> list[HostSpec]:
    text = spec.proxy_jump
    if text is None:
        text = target.tunnel if isinstance(target.tunnel, str) else ""
    found = []
    for part in text.split(",") if text and text.lower() != "none" else ():
        user, _, place = part.strip().rpartition("@")
        name, _, port = place.rpartition(":") if place.count(":") == 1 else (place, "", "")
        if not name or (port and not port.isdigit()):
            raise HostError(f"proxy_jump: {part!r} is not of the form [user@]name[:port]", lasting=True)
        found.append(
            HostSpec(
                name=name, address=name, user=user or None, port=int(port) if port else None, identity=spec.identity
            )
        )
    if len(found) > JUMPS_MAX:
        raise HostError(f"proxy_jump: at most {JUMPS_MAX} hosts can be gone through", lasting=True)
    return found


def _known_hosts(spec: HostSpec, options: SshOptions, target: asyncssh.SSHClientConnectionOptions) -> tuple[Any, str]:
    """What verifies the host's key, for asyncssh, and where that is from, in words. Never nothing."""
    if spec.host_keys:
        try:
            keys = [asyncssh.import_public_key(text) for text in spec.host_keys]
        except (asyncssh.KeyImportError, ValueError) as error:
            raise HostError(
                f"host_key: {error}; it is a public key such as 'ssh-ed25519 AAAA...'", lasting=True
            ) from None
        return (keys, [], []), "the pinned host_key"
    if options.known_hosts is not None:
        names: Sequence[str] = (options.known_hosts,) if isinstance(options.known_hosts, str) else options.known_hosts
    else:
        names = [
            *_texts(target.config.get("UserKnownHostsFile", ())),
            *_texts(target.config.get("GlobalKnownHostsFile", ())),
        ] or KNOWN_HOSTS
    files = [path for path in (Path(name).expanduser() for name in names) if path.is_file()]
    return [str(path) for path in files] or b"", ", ".join(map(str, names))


def _in_home(names: Sequence[str]) -> list[str]:
    return [str(Path(name).expanduser()) for name in names]


def _texts(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list | tuple) else []


async def _connect(
    spec: HostSpec, options: SshOptions, config: Sequence[str], tunnel: asyncssh.SSHClientConnection | None
) -> asyncssh.SSHClientConnection:
    target = _resolved(spec, options, config)
    known, source = _known_hosts(spec, options, target)
    client = _Client()
    given: dict[str, Any] = {}
    if spec.user is not None:
        given["username"] = spec.user
    if spec.identity:
        given["client_keys"] = _in_home(spec.identity)
    if not options.use_agent:
        given["agent_path"] = None
    where = f"{target.host}:{target.port}" if target.port != 22 else target.host
    try:
        async with asyncio.timeout(options.connect_timeout):
            return await asyncssh.connect(
                spec.address, spec.port or (), config=list(config), known_hosts=known, client_factory=lambda: client,
                tunnel=tunnel, keepalive_interval=0, agent_forwarding=False, x11_forwarding=False,
                password_auth=False, kbdint_auth=False, send_env=None, encoding=None,
                login_timeout=options.connect_timeout, connect_timeout=options.connect_timeout, **given,
            )  # fmt: skip
    except asyncssh.HostKeyNotVerifiable as error:
        raise HostError(_key_text(spec, where, client.shown, known, source, error), lasting=True) from None
    except asyncssh.PermissionDenied as error:
        raise HostError(_denied(target, where, spec, options, error), lasting=True) from None
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        if not isinstance(error, asyncssh.KeyEncryptionError) and "passphrase" not in str(error).lower():
            raise HostError(f"a private key for {where} cannot be used: {error}", lasting=True) from None
        raise HostError(
            f"a private key for {where} is protected by a passphrase ({error}): add it to an SSH agent (ssh-add), "
            "which is asked through SSH_AUTH_SOCK",
            lasting=True,
        ) from None
    except TimeoutError:
        raise HostError(f"{where} does not answer within {options.connect_timeout:g} s") from None
    except (asyncssh.Error, OSError, ValueError) as error:
        raise HostError(f"{where} cannot be reached: {str(error) or type(error).__name__}") from None


def _key_text(
    spec: HostSpec, where: str, shown: asyncssh.SSHKey | None, known: Any, source: str, error: Exception
) -> str:
    """That a host's key is unknown, or another than it was, and what to do."""
    if shown is None:
        return f"the key of {where} is not accepted: {error}; it was looked for in {source}"
    kind, fingerprint = shown.get_algorithm(), shown.get_fingerprint()
    name = spec.address if ":" not in where else "[{}]:{}".format(*where.rsplit(":", 1))
    if spec.host_keys:
        return (
            f"THE KEY OF {where} IS NOT THE PINNED ONE: it shows {kind} {fingerprint}. Somebody may be in between. "
            "If the host was set up anew, compare that with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on "
            "it, and change host_key"
        )
    expected = asyncssh.match_known_hosts(known, where.rsplit(":", 1)[0], "", _port_of(where))[0] if known else []
    if expected:
        others = ", ".join(sorted(f"{key.get_algorithm()} {key.get_fingerprint()}" for key in expected))
        return (
            f"THE KEY OF {where} HAS CHANGED: it shows {kind} {fingerprint}; known is {others} (looked for in "
            f"{source}). Somebody may be in between. If the host was set up anew: compare it there, then `ssh-keygen "
            f"-R '{name}'` and add the new one"
        )
    return (
        f"the key of {where} is not known: it shows {kind} {fingerprint}, and nothing of it stands in {source}. "
        "Compare that with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the host; then connect once with "
        f'`ssh`, or pin it with host_key = "{kind} ..."'
    )


def _port_of(where: str) -> int | None:
    port = where.rpartition(":")[2]
    return int(port) if ":" in where and port.isdigit() else None


def _denied(
    target: asyncssh.SSHClientConnectionOptions, where: str, spec: HostSpec, options: SshOptions, error: Exception
) -> str:
    keys = ", ".join(spec.identity) or "the usual keys of ~/.ssh"
    agent = "an SSH agent" if options.use_agent and os.environ.get("SSH_AUTH_SOCK") else "no SSH agent"
    return (
        f"{where} does not let user {target.username!r} in ({error}): tried were {keys} and {agent}. Add the public "
        "key to that user's ~/.ssh/authorized_keys there, or name another one with `identity`"
    )
