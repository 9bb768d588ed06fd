"""Job roles: credentials for attempts, as AWS's SDKs look for them in containers.

An attempt with a role gets two variables: where to ask for credentials, and what to say there.

    AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1:8642/v1/credentials
    AWS_CONTAINER_AUTHORIZATION_TOKEN=<job>:<child or ->:<number>:<mac>

SDKs ask again before the credentials expire. The token names the attempt and carries a MAC made with the server's
session secret, so it is stored nowhere and survives a restart; it is good while that attempt is STARTING or RUNNING.
The kernel's own temporary credentials name the attempt too, and end with it. Over plain HTTP SDKs ask loopback
addresses and those of `LINK_LOCAL` alone, which decides where a role can be delivered to.
"""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from anybatch import BackendError, InvalidValue, JobStatus, Kernel, RequestError
from anybatch.kernel.backend import AttemptKey
from anybatch.kernel.roles import RoleRequest

from .addresses import is_loopback, url_of
from .errors import ApiError, denied
from .identity import AttemptName, Credentials, Identity, Principal
from .role_sources import STATIC_S, RoleSource, SourceError, Sources, check_source
from .settings import DEFAULT_REGION, AwsSettings

CREDENTIALS_PATH: Final = "/v1/credentials"
LINK_LOCAL: Final = frozenset(("169.254.170.2", "169.254.170.23", "fd00:ec2::23"))
"""Beside loopback, the addresses that SDKs take credentials from over plain HTTP."""
ENDPOINTS: Final = ("BATCH", "CLOUDWATCH_LOGS", "ECS", "STS")
HERE: Final = frozenset(("process", "inline", "null"))
"""Backends whose attempts share the server's network and files."""


class Urls(NamedTuple):
    """By which addresses attempts reach the server; None: by none that SDKs would take credentials from.

    `here`: on this machine's network. `containers`: on a network of their own on this machine. `elsewhere`: on others.
    """

    here: str | None
    containers: str | None
    elsewhere: str | None


def check_roles(roles: Mapping[str, RoleSource], identity: Identity | None) -> None:
    """What the settings say of roles.

    Raises:
        InvalidValue: a role has no source, or one that is not there.
    """
    for name, source in roles.items():
        field = f"roles.{name}"
        if not name or (name.startswith("arn:") and ":role/" not in name):
            raise InvalidValue(field, name, "a role is its name or its ARN, arn:aws:iam::ACCOUNT:role/NAME")
        check_source(field, source)
        if source.principal is not None and identity is not None and source.principal not in identity.principals:
            raise InvalidValue(
                f"{field}.principal", source.principal, f"the principals are {', '.join(identity.principals)}"
            )


class JobRoles:
    """Supplies the roles of a kernel's jobs, and answers when attempts ask for credentials."""

    def __init__(self, kernel: Kernel, settings: AwsSettings, identity: Identity | None) -> None:
        self._kernel = kernel
        self._settings = settings
        self._identity = identity
        self.urls = Urls(None, None, None)
        self._sources = Sources()
        # Without signatures there is no file of secrets: tokens are then good until the server ends.
        self._secret = os.urandom(32)

    # -- what attempts are given --------------------------------------------------------------------

    def supply(self, request: RoleRequest) -> Mapping[AttemptKey, Mapping[str, str]]:
        """The variables of attempts with a role (a `RoleSupplier`).

        Raises:
            BackendError: the role is not known here, or cannot be delivered there.
        """
        roles = self._settings.roles
        source = self.find(request.role)
        if source is None:
            if roles and self._settings.is_strict:
                raise BackendError(
                    f"the role {request.role} is not known here; those of the configuration are {', '.join(roles)}"
                )
            return {key: {} for key in request.attempts}
        url = self._url(request)
        shared = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": url + CREDENTIALS_PATH}
        if source.principal is not None:
            region = self._settings.region or DEFAULT_REGION
            shared |= {f"AWS_ENDPOINT_URL_{name}": url for name in ENDPOINTS}
            shared |= {"AWS_REGION": region, "AWS_DEFAULT_REGION": region}
        if request.backend != "docker":
            # SDKs look into the files of the user first, and those are the server's, or a host's.
            shared |= {"AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_CONFIG_FILE": os.devnull}
        found = {}
        for key in request.attempts:
            job = key.job_id if request.array_size is None else f"{key.job_id}:{key.index}"
            found[key] = {**shared, "AWS_CONTAINER_AUTHORIZATION_TOKEN": self.token(AttemptName(job, key.number))}
        return found

    def find(self, role: str) -> RoleSource | None:
        """The source of a role, which is given by its name or ARN."""
        roles = self._settings.roles
        return roles.get(role) or roles.get(role_name(role))

    def _url(self, request: RoleRequest) -> str:
        where, url = self._where(request.backend, request.options)
        if url is None:
            raise BackendError(
                f"the role {request.role} cannot be delivered to {where}: SDKs take credentials from a loopback "
                "address, 169.254.170.2 or over HTTPS (docs/aws.md, Job roles)"
            )
        return url

    def _where(self, backend: str, options: Mapping[str, Any]) -> tuple[str, str | None]:
        if backend in HERE:
            return "processes of this machine", self.urls.here
        if backend == "docker":
            engines = options.get("engines") or [os.environ.get("DOCKER_HOST", "unix://")]
            if all(_engine_url(engine).startswith("unix://") for engine in engines):
                network = options.get("network")
                if network == "host":
                    return "containers on the host's network", self.urls.here
                if network == "none":
                    return "containers without a network", None
                return "containers on a network of their own", self.urls.containers
        return f"other machines (backend {backend})", self.urls.elsewhere

    # -- when an attempt asks -----------------------------------------------------------------------

    def token(self, attempt: AttemptName) -> str:
        """What an attempt says to be given its credentials."""
        job, _, index = attempt.job.partition(":")
        text = f"{job}:{index or '-'}:{attempt.number}"
        secret = self._secret if self._identity is None else self._identity.derived_secret("attempts")
        return f"{text}:{hmac.new(secret, text.encode(), 'sha256').hexdigest()}"

    def attempt_of(self, token: str) -> AttemptName:
        """The attempt that a token names.

        Raises:
            ApiError: it is none of ours.
        """
        parts = token.split(":")
        if token.isascii() and len(parts) == 4 and parts[2].isdecimal() and len(parts[2]) < 10:
            name = AttemptName(parts[0] if parts[1] == "-" else f"{parts[0]}:{parts[1]}", int(parts[2]))
            if hmac.compare_digest(self.token(name), token):
                return name
        raise denied("The authorization token is not one of an attempt of this server", "InvalidAuthorizationToken")

    async def credentials(self, attempt: AttemptName) -> dict[str, Any]:
        """What SDKs expect of the address.

        Raises:
            ApiError: the attempt has ended, or its role gives nothing.
        """
        role = await self.role_of(attempt)
        source = None if role is None else self.find(role)
        if role is None or source is None:
            raise denied(f"The role {role or ''} of the attempt is not known here", "UnknownRole")
        expires_at: float
        if source.principal is not None:
            own = self._own(source.principal, role, attempt)
            key, secret, session, expires_at = own.key, own.secret, own.token or "", float(own.expires_at or 0)
        else:
            try:
                found = await self._sources.find(source)
            except SourceError as e:
                raise ApiError(f"The role {role}: {e}", code="CredentialsNotAvailable", status=500) from e
            key, secret, session = found.key, found.secret, found.token
            expires_at = found.expires_at or time.time() + STATIC_S
        return {
            "RoleArn": role_arn(role, self._settings.account),
            "AccessKeyId": key,
            "SecretAccessKey": secret,
            "Token": session,
            "Expiration": datetime.fromtimestamp(expires_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    def _own(self, principal: str, role: str, attempt: AttemptName) -> Credentials:
        if self._identity is None:  # any key will do
            return Credentials("no-auth", "no-auth", None, int(time.time() + STATIC_S))
        if principal not in self._identity.principals:  # it was taken out of the file since the start
            raise denied(f"The role {role} is of a principal that is no longer there", "UnknownRole")
        return self._identity.session(principal, role=role_name(role), attempt=attempt)

    async def role_of(self, attempt: AttemptName) -> str | None:
        """The role of an attempt that goes on.

        Raises:
            ApiError: it has ended.
        """
        ended = denied("The attempt of this authorization token has ended", "AttemptEnded")
        try:
            job = await self._kernel.describe_job(attempt.job)
        except RequestError:
            raise ended from None
        number = job.attempts[-1].number if job.attempts else 0
        if job.status not in (JobStatus.STARTING, JobStatus.RUNNING) or number != attempt.number:
            raise ended
        return job.role

    async def check(self, principal: Principal) -> None:
        """Refuse the credentials of an attempt that has ended.

        Raises:
            ApiError: it has.
        """
        if principal.attempt is not None:
            try:
                await self.role_of(principal.attempt)
            except ApiError:
                raise denied("The security token included in the request is expired", "ExpiredTokenException") from None


def role_name(role: str) -> str:
    """The name in a role's ARN, or the name itself."""
    return role.rpartition("/")[2]


def role_arn(role: str, account: str) -> str:
    """The ARN of a role that is given by it or by its name."""
    return role if role.startswith("arn:") else f"arn:aws:iam::{account}:role/{role}"


def _engine_url(engine: Any) -> str:
    return str(engine.get("url", "") if isinstance(engine, Mapping) else engine)


# -- addresses --------------------------------------------------------------------------------------


def check_jobs_host(bind: str, host: str) -> None:
    """An address of its own for attempts is one that SDKs take credentials from.

    Raises:
        InvalidValue: it is not.
    """
    if not (is_loopback(host) or host in LINK_LOCAL):
        raise InvalidValue(
            "bind_jobs", bind, f"SDKs take credentials from loopback addresses and {', '.join(sorted(LINK_LOCAL))}"
        )


def urls_of(main: tuple[str, int], jobs: tuple[str, int] | None, *, secure: bool, hosts: Sequence[str]) -> Urls:
    """By which addresses attempts reach a server that is bound to these."""
    own: str | None = None
    if not secure:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(main[0], main[0])
        own = url_of(host, main[1]) if is_loopback(host) or host in LINK_LOCAL else None
    public = url_of(hosts[0], main[1], "https") if secure and hosts else None
    extra = None if jobs is None else url_of(*jobs)
    reach = [url for host, url in ((main[0], own), (jobs[0] if jobs else "", extra)) if host in LINK_LOCAL]
    return Urls(_first((extra, own, public)), _first((*reach, public)), public)


def _first(found: Iterable[str | None]) -> str | None:
    return next((one for one in found if one is not None), None)
