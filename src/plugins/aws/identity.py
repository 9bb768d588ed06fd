"""Who may call: principals with their keys and policies, kept in one file that only its owner can read.

    {"version": 1,
     "principals": [{"name": "admin", "access_key_id": "AKIA...", "secret_access_key": "...",
                     "policies": [{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", ...}]}]}],
     "session_secret": "..."}

It is made at the first start with one principal, `admin`, that may do everything. A principal without a policy may do
nothing. `session_secret` signs the temporary credentials that this kernel gives to jobs.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from anybatch import InvalidValue
from msgspec import Struct, structs

from .errors import denied
from .policy import Policy, parse_policy
from .reload import Stamp, stamp

FILE_VERSION: Final = 1
ADMIN: Final = "admin"
ALLOW_ALL: Final = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
FILE_BYTES_MAX: Final = 4 << 20
SESSION_S: Final = 3600
"""How long temporary credentials are good."""
_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


class AttemptName(NamedTuple):
    """An attempt: the id of its job or child, and its number."""

    job: str
    number: int

    @property
    def session(self) -> str:
        """As the name of a session in a role: of the characters that AWS has there."""
        return f"{self.job.replace(':', '.')}-{self.number}"


class Principal(Struct, frozen=True):
    """Somebody who calls."""

    name: str
    policies: tuple[Policy, ...] = ()

    is_unrestricted: bool = False
    """Whether its policies allow everything and deny nothing, so that nothing has to be looked up."""
    role: str | None = None
    """The role in which an attempt acts as this principal."""
    attempt: AttemptName | None = None
    """That attempt."""

    @property
    def session(self) -> str:
        """The name of its session in a role; empty if there is none."""
        return "" if self.attempt is None else self.attempt.session

    @property
    def user_id(self) -> str:
        """As AWS gives it: of a session in a role with the session's name."""
        return self.name if self.role is None else f"{self.role}:{self.session}"

    def arn(self, account: str) -> str:
        """As in AWS's messages and records."""
        if self.role is not None:
            return f"arn:aws:sts::{account}:assumed-role/{self.role}/{self.session}"
        return f"arn:aws:iam::{account}:user/{self.name}"

    def principal_arn(self, account: str) -> str:
        """The condition key aws:PrincipalArn: of a session it is its role's."""
        return self.arn(account) if self.role is None else f"arn:aws:iam::{account}:role/{self.role}"


def make_principal(name: str, policies: tuple[Policy, ...]) -> Principal:
    """A principal with these policies."""
    statements = [statement for policy in policies for statement in policy]
    everything = any(
        one.actions == ("*",)
        and one.resources == ("*",)
        and not (one.not_actions or one.not_resources or one.conditions)
        for one in statements
    )
    return Principal(name, policies, everything and all(one.allows for one in statements))


ANYBODY: Final = make_principal("no-auth", (parse_policy("no-auth", ALLOW_ALL),))
"""Every caller with `--no-auth`."""
NOBODY: Final = Principal("anonymous")
"""The caller of a call until it is known who that is: may do nothing."""


class Credentials(Struct, frozen=True):
    """A key pair; `token` and `expires_at` (epoch seconds) where it is a temporary one."""

    key: str
    secret: str
    token: str | None = None
    expires_at: int | None = None


class _Entry(Struct, forbid_unknown_fields=True):
    name: str
    access_key_id: str
    secret_access_key: str
    policies: list[dict[str, Any]] = []


class _File(Struct, forbid_unknown_fields=True):
    version: int
    principals: list[_Entry]
    session_secret: str


class Identity:
    """The principals, and the secret behind temporary credentials."""

    def __init__(self, file: _File, path: Path | None = None) -> None:
        self.path = path
        self._stamp: Stamp | None = None
        self._session_secret = file.session_secret.encode()
        self.principals: dict[str, Principal] = {}
        self._keys: dict[str, tuple[str, Principal]] = {}
        self.first = Credentials("", "")
        if file.version != FILE_VERSION:
            raise InvalidValue("version", file.version, f"this anybatch reads version {FILE_VERSION}")
        if len(file.session_secret) < 32:
            raise InvalidValue("session_secret", "...", "it has at least 32 characters")
        for n, entry in enumerate(file.principals):
            self._add(f"principals[{n}]", entry)
        if file.principals:
            self.first = Credentials(file.principals[0].access_key_id, file.principals[0].secret_access_key)

    def _add(self, field: str, entry: _Entry) -> None:
        if not entry.name or not all(c.isascii() and (c.isalnum() or c in "+=,.@_-") for c in entry.name):
            raise InvalidValue(f"{field}.name", entry.name, "a name is letters, digits and +=,.@_-")
        if entry.access_key_id in self._keys:
            raise InvalidValue(f"{field}.access_key_id", entry.access_key_id, "each key is given once")
        if not 16 <= len(entry.access_key_id) <= 128 or not entry.access_key_id.isalnum():
            raise InvalidValue(
                f"{field}.access_key_id", entry.access_key_id, "a key's id is 16 to 128 letters and digits"
            )
        if len(entry.secret_access_key) < 16:
            raise InvalidValue(f"{field}.secret_access_key", "...", "a secret has at least 16 characters")
        policies = tuple(parse_policy(f"{field}.policies[{n}]", one) for n, one in enumerate(entry.policies))
        principal = self.principals.get(entry.name)
        if principal is not None and principal.policies != policies:
            raise InvalidValue(f"{field}.policies", entry.name, "the keys of one principal have the same policies")
        self.principals[entry.name] = make_principal(entry.name, policies)
        self._keys[entry.access_key_id] = entry.secret_access_key, self.principals[entry.name]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Identity:
        """What the file says; made, for its owner alone, if it is not there.

        Raises:
            InvalidValue: others can read it, or it is not as it should be; the message says where.
        """
        path = Path(path)
        try:
            _create(path)
        except FileExistsError:
            pass
        return cls._read(path)

    @classmethod
    def _read(cls, path: Path) -> Identity:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            mode = status.st_mode & 0o777
            data = file.read(FILE_BYTES_MAX + 1)
        if mode & 0o077:
            raise InvalidValue("credentials", str(path), f"it has mode {mode:o}, so others can read it: chmod 600 it")
        if len(data) > FILE_BYTES_MAX:
            raise InvalidValue("credentials", str(path), f"it has at most {FILE_BYTES_MAX} bytes")
        try:
            found = cls(msgspec.json.decode(data, type=_File), path)
        except msgspec.MsgspecError as e:
            raise InvalidValue("credentials", str(path), f"it is not as it should be: {e}") from None
        except InvalidValue as e:
            raise InvalidValue(f"{path}: {e.field}", e.value, e.allowed) from None
        found._stamp = stamp(status)
        return found

    @property
    def source(self) -> str:
        """Where it is from, in words."""
        return "" if self.path is None else str(self.path)

    def is_stale(self) -> bool:
        """Whether the file is another one than was read. One that is gone for the moment is not."""
        try:
            return self.path is not None and stamp(self.path.stat()) != self._stamp
        except OSError:
            return False

    def reload(self) -> None:
        """Read the file again: from now on its keys and policies hold, and no others.

        Raises:
            InvalidValue, OSError: it is not as it should be; what was read before stays.
        """
        if self.path is not None:
            self.__dict__.update(self._read(self.path).__dict__)

    @classmethod
    def new(cls) -> Identity:
        """One administrator with a fresh key, kept nowhere."""
        return cls(_fresh())

    # -- keys -------------------------------------------------------------------------------------

    def find(self, key: str, token: str | None) -> tuple[str, Principal]:
        """The secret and the principal of a key.

        Raises:
            ApiError: the key is unknown, or its token has expired or is not ours.
        """
        if token is not None:
            return self._session(key, token)
        found = self._keys.get(key)
        if found is None:
            raise denied("The security token included in the request is invalid.", "UnrecognizedClientException")
        return found

    def derived_secret(self, use: str) -> bytes:
        """A secret for one use, made of the session secret."""
        return hmac.digest(self._session_secret, b"derived\0" + use.encode(), "sha256")

    def session(
        self,
        name: str,
        now: float | None = None,
        *,
        role: str | None = None,
        attempt: AttemptName | None = None,
    ) -> Credentials:
        """Temporary credentials of a principal, or of an attempt that acts as it in a role.

        Nothing is kept of them: the token says what they are.
        """
        if name not in self.principals:
            raise InvalidValue("principal", name, f"the principals are {', '.join(self.principals)}")
        expires_at = int((time.time() if now is None else now) + SESSION_S)
        key = "ASIA" + "".join(secrets.choice(_ALPHABET) for _ in range(16))
        said: dict[str, Any] = {"k": key, "p": name, "e": expires_at}
        if role is not None and attempt is not None:
            said |= {"r": role, "a": list(attempt)}
        claim = json.dumps(said, separators=(",", ":")).encode()
        token = base64.b64encode(claim).decode() + "." + hmac.new(self._session_secret, claim, "sha256").hexdigest()
        return Credentials(key, self._session_key(token), token, expires_at)

    def _session_key(self, token: str) -> str:
        return base64.b64encode(hmac.digest(self._session_secret, b"secret\0" + token.encode(), "sha256")).decode()

    def _session(self, key: str, token: str) -> tuple[str, Principal]:
        claim, _, mac = token.partition(".")
        try:
            data = base64.b64decode(claim, validate=True)
        except ValueError:
            data = b""
        raw = mac.encode(errors="surrogateescape")  # a header may hold anything, and compare_digest takes ASCII alone
        if not hmac.compare_digest(hmac.new(self._session_secret, data, "sha256").hexdigest().encode(), raw):
            raise denied("The security token included in the request is invalid.", "UnrecognizedClientException")
        found: Mapping[str, Any] = json.loads(data)
        principal = self.principals.get(found["p"])
        if found["k"] != key or principal is None:
            raise denied("The security token included in the request is invalid.", "UnrecognizedClientException")
        if time.time() >= found["e"]:
            raise denied("The security token included in the request is expired", "ExpiredTokenException")
        if "r" in found:
            job, number = found["a"]
            principal = structs.replace(principal, role=found["r"], attempt=AttemptName(job, number))
        return self._session_key(token), principal


def _fresh() -> _File:
    key = "AKIA" + "".join(secrets.choice(_ALPHABET) for _ in range(16))
    admin = _Entry(ADMIN, key, secrets.token_urlsafe(30), [dict(ALLOW_ALL)])
    return _File(FILE_VERSION, [admin], secrets.token_urlsafe(32))


def _create(path: Path) -> None:
    """Write a fresh file, whole or not at all.

    Raises:
        FileExistsError: there is one.
    """
    if path.exists():
        raise FileExistsError(path)
    data = msgspec.json.format(msgspec.json.encode(_fresh()), indent=2)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # never replaces one that another process has made meanwhile
    finally:
        os.unlink(temporary)
