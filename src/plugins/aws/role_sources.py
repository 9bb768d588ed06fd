"""Where the credentials of a role come from: a profile, a file, a program; in the forms that AWS's SDKs read.

What a program gives is kept in memory until it has `REFRESH_S` left, so that an array of ten thousand children
runs it once. Files are read each time.
"""

from __future__ import annotations

import asyncio
import configparser
import os
import shlex
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from anybatch import InvalidValue
from msgspec import Struct

PROCESS_S_MAX: Final = 60.0
"""How long a program may take to give credentials."""
OUTPUT_BYTES_MAX: Final = 64 << 10
"""Of what it writes, and of a file."""
REFRESH_S: Final = 20 * 60
"""Credentials that are good for less than this are not given out again: SDKs ask anew 15 minutes before the end."""
STATIC_S: Final = 3600
"""For how long jobs are told that credentials without an end are good; they ask again then."""
ELSEWHERE: Final = 'use process = ["aws", "configure", "export-credentials", "--profile", "NAME"]'


class RoleSource(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a role's credentials come from; one of them is given.

    `principal`: this kernel, which gives temporary credentials of a principal of its own, so that a job submits jobs.
    `profile`: of the AWS files of the server's user. `file`: JSON as a credential process prints it.
    `process`: a program, with its arguments, that prints such JSON.
    """

    principal: str | None = None
    profile: str | None = None
    file: str | None = None
    process: tuple[str, ...] | None = None


class SourceError(Exception):
    """A source gives no credentials; the message says why, and holds none of them."""


class Found(Struct, frozen=True):
    """Credentials. `expires_at` in epoch seconds; None: they have no end."""

    key: str
    secret: str
    token: str = ""
    expires_at: float | None = None


class _Printed(Struct, rename="pascal"):
    """The JSON of a credential process."""

    access_key_id: str
    secret_access_key: str
    version: int = 1
    session_token: str = ""
    expiration: str | None = None


def check_source(field: str, source: RoleSource) -> None:
    """A source that can be asked.

    Raises:
        InvalidValue: none or several are given, or one is empty.
    """
    given = {name: value for name in source.__struct_fields__ if (value := getattr(source, name)) is not None}
    if len(given) != 1:
        raise InvalidValue(field, dict(given), "a role has one of principal, profile, file, process")
    for name, value in given.items():
        if not value:
            raise InvalidValue(f"{field}.{name}", value, "it is not empty")


class Sources:
    """Asks sources, and keeps what programs have given."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], Found] = {}
        self._asking: dict[tuple[str, ...], asyncio.Lock] = {}

    async def find(self, source: RoleSource) -> Found:
        """The credentials of a source.

        Raises:
            SourceError: it gives none.
        """
        if source.process is not None:
            return await self._run(source.process)
        if source.file is not None:
            return parse_printed(await asyncio.to_thread(_read, source.file), source.file)
        assert source.profile is not None
        found = await asyncio.to_thread(read_profile, source.profile)
        return found if isinstance(found, Found) else await self._run(found)

    async def _run(self, command: Sequence[str]) -> Found:
        key = tuple(command)
        async with self._asking.setdefault(key, asyncio.Lock()):
            kept = self._kept.get(key)
            if kept is not None and kept.expires_at is not None and kept.expires_at - time.time() > REFRESH_S:
                return kept
            found = self._kept[key] = parse_printed(await _output(command), command[0])
            return found


async def _output(command: Sequence[str]) -> bytes:
    """What a program prints. Nothing of it is told: it may hold secrets."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, limit=OUTPUT_BYTES_MAX
        )
    except (OSError, ValueError) as e:
        raise SourceError(f"{command[0]} cannot be run: {e}") from e
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PROCESS_S_MAX):
            data = await process.stdout.read(OUTPUT_BYTES_MAX + 1)
            while len(data) <= OUTPUT_BYTES_MAX and (more := await process.stdout.read(OUTPUT_BYTES_MAX)):
                data += more
            if len(data) > OUTPUT_BYTES_MAX:
                raise SourceError(f"{command[0]} prints more than {OUTPUT_BYTES_MAX} bytes")
            code = await process.wait()
    except TimeoutError:
        raise SourceError(f"{command[0]} takes longer than {PROCESS_S_MAX:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code != 0:
        raise SourceError(f"{command[0]} ended with {code}; what it said is in this server's own error output")
    return data


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(OUTPUT_BYTES_MAX + 1)
    except OSError as e:
        raise SourceError(f"{path} cannot be read: {e.strerror}") from e
    if len(data) > OUTPUT_BYTES_MAX:
        raise SourceError(f"{path} has more than {OUTPUT_BYTES_MAX} bytes")
    return data


def parse_printed(data: bytes, where: str) -> Found:
    """The JSON of a credential process.

    Raises:
        SourceError: it is none, or has expired.
    """
    try:
        printed = msgspec.json.decode(data, type=_Printed)
        ends = None
        if printed.expiration is not None:
            when = datetime.fromisoformat(printed.expiration)
            ends = (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()
    except (msgspec.MsgspecError, UnicodeError, ValueError):
        raise SourceError(
            f"{where} does not give JSON with Version 1, AccessKeyId, SecretAccessKey, SessionToken and Expiration"
        ) from None
    if printed.version != 1:
        raise SourceError(f"{where} gives credentials of version {printed.version}, and 1 is known here")
    if ends is not None and ends <= time.time():
        raise SourceError(f"{where} gives credentials that expired at {printed.expiration}")
    return Found(printed.access_key_id, printed.secret_access_key, printed.session_token, ends)


def read_profile(name: str) -> Found | list[str]:
    """A profile of AWS's files: its keys, or the credential process that it names.

    Raises:
        SourceError: there is no such profile, or it is of another kind.
    """
    home = Path.home() / ".aws"
    section: dict[str, Any] = {}
    config = _sections(os.environ.get("AWS_CONFIG_FILE", home / "config"))
    section |= config.get(f"profile {name}", config.get(name, {}) if name == "default" else {})
    section |= _sections(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", home / "credentials")).get(name, {})
    if not section:
        raise SourceError(f"there is no profile {name!r} in the AWS files of this server's user")
    if "aws_access_key_id" in section and "aws_secret_access_key" in section:
        return Found(
            section["aws_access_key_id"], section["aws_secret_access_key"], section.get("aws_session_token", "")
        )
    if "credential_process" in section:
        try:
            return shlex.split(section["credential_process"])
        except ValueError as e:
            raise SourceError(f"the credential_process of profile {name!r} cannot be split: {e}") from e
    raise SourceError(f"the profile {name!r} has neither keys nor a credential_process; {ELSEWHERE}")


def _sections(path: str | os.PathLike[str]) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(Path(path).expanduser().read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, configparser.Error) as e:
        raise SourceError(f"{path} cannot be read: {type(e).__name__}") from e
    return {name: dict(parser[name]) for name in parser.sections()}
