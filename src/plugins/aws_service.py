"""`anybatch serve --bind ...`: the AWS Batch HTTP API on a kernel that is being served.

Imported for its options alone wherever the command line is; what needs aiohttp is imported when it is used.
"""

from __future__ import annotations

import argparse
import contextlib
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import anybatch
import msgspec
from anybatch import InvalidValue, PluginError

if TYPE_CHECKING:
    from .aws import AwsFrontEnd, AwsSettings, Certificate

LOCAL: Final = "local"
DOCKER: Final = "docker"
QUEUE: Final = "default"
LATER: Final = "anybatch.environments-to-come"
"""In the metadata of the default queue: environments that it gets once they are VALID."""
NAMED_MAX: Final = 20
"""Environments and queues that the lines at the start name; the rest is counted."""


class AwsFile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What `--aws-config` may say; docs/aws.md has every key."""

    account: str = "123456789012"
    region: str | None = None
    hosts: list[str] = []
    submit_rate: float | None = None
    environments: dict[str, dict[str, Any]] = {}
    roles: dict[str, dict[str, Any]] = {}
    bind_jobs: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None


class AwsService:
    """The AWS Batch HTTP API as a front end of `anybatch serve`."""

    api_version: ClassVar[int] = 1

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """The options of `anybatch serve` that are this front end's."""
        group = parser.add_argument_group("the AWS Batch HTTP API (docs/aws.md)")
        group.add_argument("--bind", metavar="HOST:PORT", help="serve it there, such as 127.0.0.1:8642")
        group.add_argument(
            "--profile",
            choices=("aws-strict", "lenient"),
            default="aws-strict",
            help="refuse what AWS would refuse (default), or accept what harms nobody",
        )
        group.add_argument(
            "--images",
            choices=("docker", "local"),
            default="docker",
            help="run container definitions in containers (default), or their commands as programs of this machine",
        )
        group.add_argument("--no-auth", action="store_true", help="every caller may do everything; on loopback only")
        group.add_argument("--credentials", metavar="FILE", help="keys and policies (default: <journal>.keys.json)")
        group.add_argument("--aws-config", metavar="FILE.toml", help="account, region, environments, TLS")

    @staticmethod
    def is_wanted(options: argparse.Namespace) -> bool:
        """Whether the options ask for it."""
        return options.bind is not None

    @staticmethod
    @contextlib.asynccontextmanager
    async def serve(kernel: anybatch.Kernel, options: argparse.Namespace, journal: Path) -> AsyncIterator[list[str]]:
        """The front end for as long as the `async with` lasts; gives the lines to print.

        Raises:
            RequestError: an option, or a file that one names, is not as it should be.
            PluginError: aiohttp is not installed.
        """
        try:
            from .aws import AwsFrontEnd
        except ImportError as e:
            raise PluginError(f"--bind needs aiohttp: install anybatch[aws] ({e})") from e
        file = _read(options.aws_config)
        front_end = AwsFrontEnd(
            kernel,
            bind=options.bind,
            settings=_settings(file, options),
            credentials=None if options.no_auth else options.credentials or f"{journal}.keys.json",
            no_auth=options.no_auth,
            hosts=file.hosts,
            tls=_tls(file),
            bind_jobs=file.bind_jobs,
        )
        made = await _defaults(kernel, options.images)
        try:
            async with front_end:
                yield [*made, *await _active(kernel), *_lines(front_end, options)]
        except OSError as e:
            raise InvalidValue("bind", options.bind, f"it cannot be listened on: {e.strerror or e}") from e


def _read(path: str | None) -> AwsFile:
    if path is None:
        return AwsFile()
    try:
        return msgspec.convert(tomllib.loads(Path(path).read_text()), AwsFile)
    except OSError as e:
        raise InvalidValue("aws_config", path, f"it cannot be read: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as e:
        raise InvalidValue("aws_config", path, f"it is not as it should be: {e}") from e


def _settings(file: AwsFile, options: argparse.Namespace) -> AwsSettings:
    from .aws import AwsSettings, BackendChoice, RoleSource

    roles = {}
    for name, given in file.roles.items():
        try:
            roles[name] = msgspec.convert(given, RoleSource)
        except msgspec.ValidationError as e:
            allowed = f"a role has one of principal, profile, file, process: {e}"
            raise InvalidValue(f"aws_config.roles.{name}", given, allowed) from e
    environments = {}
    for kind, given in file.environments.items():
        try:
            environments[kind] = msgspec.convert(given, BackendChoice)
        except msgspec.ValidationError as e:
            raise InvalidValue(f"aws_config.environments.{kind}", given, f"it has backend and options: {e}") from e
    return AwsSettings(
        account=file.account,
        region=file.region,
        profile=options.profile,
        images=options.images,
        environments=environments,
        submit_rate=file.submit_rate,
        roles=roles,
    )


def _tls(file: AwsFile) -> Certificate | None:
    from .aws import Certificate

    if file.tls_certificate is not None:
        try:
            return Certificate(file.tls_certificate, file.tls_key)
        except InvalidValue as e:
            raise InvalidValue(f"aws_config.{e.field}", e.value, e.allowed) from e
    if file.tls_key is not None:
        raise InvalidValue("aws_config.tls_key", file.tls_key, "it goes with tls_certificate")
    return None


async def _defaults(kernel: anybatch.Kernel, images: str) -> list[str]:
    """Environments and a queue, on a kernel that has none; the lines that say so."""
    if await kernel.describe_job_queues() or await kernel.describe_compute_environments():
        return await _completed(kernel)
    options = {"ignore_image": True} if images == "local" else {}
    await kernel.create_compute_environment(LOCAL, backend="process", options=options)
    made, found, lines = [LOCAL], [LOCAL], []
    if images == "docker" and any(
        plugin.name == DOCKER and plugin.group == "anybatch.backends" and plugin.error is None
        for plugin in anybatch.list_plugins()
    ):
        detail = await kernel.create_compute_environment(DOCKER, backend=DOCKER)
        made.append(DOCKER)
        if detail.status is anybatch.ResourceStatus.VALID:
            found.append(DOCKER)
    elif images == "docker":
        lines.append("no Docker backend is installed: definitions with an image need one, or --images local")
    metadata = {} if made == found else {LATER: [DOCKER]}
    await kernel.create_job_queue(QUEUE, priority=1, compute_environments=found, metadata=metadata)
    return [*lines, f"made: compute environment{'s' * (len(made) > 1)} {', '.join(made)}, job queue {QUEUE}"]


async def _completed(kernel: anybatch.Kernel) -> list[str]:
    """INVALID environments are tried again; the default queue gets one that was so when both were made."""
    for environment in await kernel.describe_compute_environments():
        if environment.status is anybatch.ResourceStatus.INVALID:
            await kernel.update_compute_environment(environment.name)
    valid = {e.name for e in await kernel.describe_compute_environments() if e.status is anybatch.ResourceStatus.VALID}
    for queue in await kernel.describe_job_queues():
        missing = [name for name in queue.metadata.get(LATER, ()) if name in valid]
        if queue.name != QUEUE or not missing:
            continue
        metadata = {name: value for name, value in queue.metadata.items() if name != LATER}
        environments = [*queue.compute_environments, *missing]
        await kernel.update_job_queue(QUEUE, compute_environments=environments, metadata=metadata)
        return [f"updated: job queue {QUEUE}, which has {', '.join(missing)} now"]
    return []


async def _active(kernel: anybatch.Kernel) -> list[str]:
    """What jobs can run on, in lines."""
    from .aws import status_reason

    lines = []
    environments = await kernel.describe_compute_environments()
    for environment in environments[:NAMED_MAX]:
        about = f"compute environment {environment.name}: {environment.status}, backend {environment.backend}"
        if environment.status is not anybatch.ResourceStatus.VALID:
            about += f"; {status_reason(environment)}"
        lines.append(about)
    queues = await kernel.describe_job_queues()
    lines += [f"job queue {q.name}: {q.state}, over {', '.join(q.compute_environments)}" for q in queues[:NAMED_MAX]]
    for kind, count in (("compute environments", len(environments)), ("job queues", len(queues))):
        if count > NAMED_MAX:
            lines.append(f"and {count - NAMED_MAX} more {kind}")
    return lines


def _lines(front_end: AwsFrontEnd, options: argparse.Namespace) -> list[str]:
    who = "no authentication: every caller on this machine may do everything"
    if front_end.identity is not None:
        who = f"keys and policies: {front_end.identity.path}"
    rate = front_end.settings.submit_rate
    limit = "" if rate is None else f", at most {rate:g} SubmitJob a second"
    return [
        f"AWS Batch API: {front_end.url}, profile {options.profile}, images {options.images}{limit}; {who}",
        "in a shell:",
        "    unset AWS_SESSION_TOKEN",  # one of other keys would go with these, and be refused
        *(f"    {line}" for line in front_end.export_lines()),
    ]
