"""What a front end is told: whose account it plays, how strict it is, and on what AWS's types of environments run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

from anybatch import InvalidValue
from msgspec import Struct

from .role_sources import RoleSource

Profile = Literal["aws-strict", "lenient"]
Images = Literal["docker", "local"]

DEFAULT_ACCOUNT: Final = "123456789012"
DEFAULT_REGION: Final = "us-east-1"
ENVIRONMENT_TYPES: Final = ("EC2", "SPOT", "FARGATE", "FARGATE_SPOT", "UNMANAGED")
"""The types of environments that can be put on a backend. (ECS_MANAGED_INSTANCES and EKS are not supported here.)"""
BODY_BYTES_MAX: Final = 1 << 20
"""Of any request; AWS's own, smaller limits for a submit and a definition are the strict profile's."""
READ_S_MAX: Final = 20.0
"""How long a client may take to send a request that it has begun."""
IDLE_S_MAX: Final = 60.0
"""How long a connection may be idle."""
CONNECTIONS_MAX: Final = 1000
"""Connections at a time; those beyond are closed."""


class BackendChoice(Struct, frozen=True, kw_only=True):
    """The kernel's backend for one type of environment, with its options."""

    backend: str
    options: Mapping[str, Any] = {}


LOCAL: Final = BackendChoice(backend="process", options={"ignore_image": True})
DOCKER: Final = BackendChoice(backend="docker")


class AwsSettings(Struct, frozen=True, kw_only=True):
    """The settings of an `AwsFrontEnd`.

    `region` None: the one that each call was signed for. `profile` "aws-strict" refuses what AWS would refuse;
    "lenient" accepts what harms nobody. `images` "local" runs the command of a container definition as a program of
    this machine (its image is ignored), "docker" runs it in a container. `environments` maps AWS's types of
    environments (EC2, SPOT, FARGATE, FARGATE_SPOT, UNMANAGED) to backends; what it leaves out goes where `images`
    says. `submit_rate` is how many SubmitJob calls a second are answered before the answer is "Too Many Requests"
    (None: no limit; AWS's is 50). `roles` says where the credentials of job roles come from, by name or ARN; without
    it roles have no effect. One that it does not name fails the attempts of its jobs ("lenient": has no effect).
    """

    account: str = DEFAULT_ACCOUNT
    region: str | None = None
    profile: Profile = "aws-strict"
    images: Images = "docker"
    environments: Mapping[str, BackendChoice] = {}
    submit_rate: float | None = None
    roles: Mapping[str, RoleSource] = {}

    @property
    def is_strict(self) -> bool:
        """Whether AWS's own limits hold."""
        return self.profile == "aws-strict"

    @property
    def ignores_images(self) -> bool:
        """Whether some environments run a container's command without its container."""
        given = [self.choice(kind) for kind in ENVIRONMENT_TYPES]
        return any(choice.options.get("ignore_image") for choice in given)

    def choice(self, kind: str) -> BackendChoice:
        """The backend for a type of environment."""
        found = self.environments.get(kind)
        return found or (LOCAL if self.images == "local" else DOCKER)


def check_settings(settings: AwsSettings) -> AwsSettings:
    """The settings, or the first mistake in them."""
    if not re.fullmatch(r"[0-9]{12}", settings.account):
        raise InvalidValue("account", settings.account, "an account id is 12 digits")
    if settings.region is not None and not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-[0-9]{1,2}", settings.region):
        raise InvalidValue("region", settings.region, "a region is written like us-east-1")
    if settings.profile not in ("aws-strict", "lenient"):
        raise InvalidValue("profile", settings.profile, "it is aws-strict or lenient")
    if settings.images not in ("docker", "local"):
        raise InvalidValue("images", settings.images, "it is docker or local")
    for kind in settings.environments:
        if kind not in ENVIRONMENT_TYPES:
            raise InvalidValue(f"environments.{kind}", kind, f"a type is one of {', '.join(ENVIRONMENT_TYPES)}")
    if settings.submit_rate is not None and not settings.submit_rate > 0:
        raise InvalidValue("submit_rate", settings.submit_rate, "it is a number of calls a second, above 0")
    return settings
