"""What a job says of its container, under AWS's names (contract 5.2): image, mounts, limits, secrets, logging.

A field of None is not given: the backend's default holds, or at a submit the definition's value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct, structs

from .errors import InvalidValue

ULIMITS: Final = (
    "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
    "rttime", "sigpending", "stack",
)  # fmt: skip
IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@#-]{0,254}")
VOLUME_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,255}")
DOCKER_VOLUME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
SWAPPINESS_MAX: Final = 100
MIB_MAX: Final = 1 << 40
LIMIT_MAX: Final = (1 << 63) - 1

Permission = Literal["READ", "WRITE", "MKNOD"]


class Volume(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that can be mounted: a path of the host, a volume of the engine, or (neither) an empty one.

    An empty one is the attempt's own, and goes with it.
    """

    name: str
    host_path: str | None = None
    docker_volume: str | None = None


class MountPoint(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where in the container a volume is mounted."""

    source_volume: str
    container_path: str
    read_only: bool = False


class Ulimit(Struct, frozen=True, kw_only=True):
    """A limit of the container's processes; -1: none."""

    name: str
    soft_limit: int
    hard_limit: int


class Device(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A device of the host; `container_path` None: under the same path."""

    host_path: str
    container_path: str | None = None
    permissions: tuple[Permission, ...] = ("READ", "WRITE", "MKNOD")


class Tmpfs(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file system in memory; `size` in MiB."""

    container_path: str
    size: int
    mount_options: tuple[str, ...] = ()


class LinuxParameters(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What only Linux has. `shared_memory_size` and `max_swap` in MiB; `swappiness` 0 to 100."""

    devices: tuple[Device, ...] | None = None
    init_process_enabled: bool | None = None
    shared_memory_size: int | None = None
    tmpfs: tuple[Tmpfs, ...] | None = None
    max_swap: int | None = None
    swappiness: int | None = None


class Secret(Struct, frozen=True, kw_only=True):
    """A variable (or option) whose value the backend looks up by `value_from` when an attempt starts."""

    name: str
    value_from: str


class LogConfiguration(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The engine's own log driver, beside what anybatch keeps."""

    log_driver: str
    options: Mapping[str, str] = {}
    secret_options: tuple[Secret, ...] = ()


class ContainerSpec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an attempt's container is made."""

    image: str | None = None
    user: str | None = None
    privileged: bool | None = None
    readonly_root_filesystem: bool | None = None
    volumes: tuple[Volume, ...] | None = None
    mount_points: tuple[MountPoint, ...] | None = None
    ulimits: tuple[Ulimit, ...] | None = None
    linux_parameters: LinuxParameters | None = None
    secrets: tuple[Secret, ...] | None = None
    log_configuration: LogConfiguration | None = None

    def fields(self) -> tuple[str, ...]:
        """The fields that are given, by name; those of `linux_parameters` one by one, with a dot."""
        found = [name for name in self.__struct_fields__ if getattr(self, name) is not None]
        linux = self.linux_parameters
        if linux is not None:
            at = found.index("linux_parameters")
            given = [name for name in linux.__struct_fields__ if getattr(linux, name) is not None]
            found[at : at + 1] = [f"linux_parameters.{name}" for name in given]
        return tuple(found)


IMAGE_COMMAND: Final = "command"
"""Stands beside the names of fields for: run what the image itself runs, where a job has neither command nor script."""
IMAGE_REQUIRED: Final = "an image"
"""Stands there for: it runs nothing but containers, so a job without one is not for it."""
CONTAINER_FIELDS: Final = frozenset(
    {
        *(name for name in ContainerSpec.__struct_fields__ if name != "linux_parameters"),
        *(f"linux_parameters.{name}" for name in LinuxParameters.__struct_fields__),
        IMAGE_COMMAND,
    }
)
"""All that a job can ask to be honoured."""


def overlaid(below: ContainerSpec | None, above: ContainerSpec | None) -> ContainerSpec | None:
    """A definition's container with what a submit gives; each field as a whole, those of `linux_parameters` too."""
    if below is None or above is None:
        return below if above is None else above
    given = {name: value for name in above.__struct_fields__ if (value := getattr(above, name)) is not None}
    if below.linux_parameters is not None and above.linux_parameters is not None:
        linux = above.linux_parameters
        more = {name: value for name in linux.__struct_fields__ if (value := getattr(linux, name)) is not None}
        given["linux_parameters"] = structs.replace(below.linux_parameters, **more)
    return structs.replace(below, **given)


def container_needs(container: ContainerSpec | None, *, has_program: bool) -> tuple[str, ...]:
    """What an environment has to honour to run this; `has_program`: there is a command or a script."""
    if container is None:
        return ()
    return container.fields() if has_program else (*container.fields(), IMAGE_COMMAND)


# -- checks -----------------------------------------------------------------------------------------


def check_whole(container: ContainerSpec, memory_mib: int) -> None:
    """What must hold of a definition's or a job's container as a whole."""
    if container.image is None:
        raise InvalidValue("image", None, "a container has an image; give it as image, or leave the container out")
    known = [volume.name for volume in container.volumes or ()]
    for n, mount in enumerate(container.mount_points or ()):
        if mount.source_volume not in known:
            there = f"the volumes are {', '.join(known)}" if known else "there are no volumes"
            field = f"container.mount_points[{n}].source_volume"
            raise InvalidValue(
                field, mount.source_volume, f"a mount point names a volume of container.volumes; {there}"
            )
    linux = container.linux_parameters
    if linux is not None and linux.swappiness is not None and linux.max_swap is None:
        allowed = "swappiness needs max_swap beside it"
        raise InvalidValue("container.linux_parameters.swappiness", linux.swappiness, allowed)
    if linux is not None and linux.max_swap is not None and not memory_mib:
        allowed = "max_swap is beyond the memory, so it needs memory above 0"
        raise InvalidValue("container.linux_parameters.max_swap", linux.max_swap, allowed)


def check_container(container: ContainerSpec) -> None:
    """The values of a container's fields."""
    if container.image is not None and not IMAGE.fullmatch(container.image):
        allowed = "an image is 1 to 255 letters, digits and '- _ . : / @ #', such as 'busybox:1.36'"
        raise InvalidValue("image", container.image, allowed)
    if container.user is not None and not USER.fullmatch(container.user):
        raise InvalidValue("container.user", container.user, "a user is a name or number, or user:group")
    _check_volumes(container)
    for n, ulimit in enumerate(container.ulimits or ()):
        field = f"container.ulimits[{n}]"
        if ulimit.name not in ULIMITS:
            raise InvalidValue(f"{field}.name", ulimit.name, f"a ulimit is one of {', '.join(ULIMITS)}")
        if not -1 <= ulimit.soft_limit <= LIMIT_MAX or not -1 <= ulimit.hard_limit <= LIMIT_MAX:
            raise InvalidValue(field, (ulimit.soft_limit, ulimit.hard_limit), "limits are 0 or more, or -1 for none")
    if container.linux_parameters is not None:
        _check_linux(container.linux_parameters)
    _check_secrets("container.secrets", container.secrets or ())
    log = container.log_configuration
    if log is not None:
        if not log.log_driver:
            raise InvalidValue("container.log_configuration.log_driver", "", "a log driver has a name")
        _check_secrets("container.log_configuration.secret_options", log.secret_options)


def _check_volumes(container: ContainerSpec) -> None:
    names = [volume.name for volume in container.volumes or ()]
    for n, volume in enumerate(container.volumes or ()):
        field = f"container.volumes[{n}]"
        if not VOLUME_NAME.fullmatch(volume.name) or names.count(volume.name) > 1:
            allowed = "a volume's name is 1 to 255 letters, digits, '-' and '_', each used once"
            raise InvalidValue(f"{field}.name", volume.name, allowed)
        if volume.host_path is not None and volume.docker_volume is not None:
            raise InvalidValue(field, volume.name, "a volume has a host_path or a docker_volume, not both")
        if volume.host_path is not None:
            _check_path(f"{field}.host_path", volume.host_path)
        if volume.docker_volume is not None and not DOCKER_VOLUME.fullmatch(volume.docker_volume):
            allowed = "an engine's volume has a name of letters, digits, '_', '.' and '-', the first a letter or digit"
            raise InvalidValue(f"{field}.docker_volume", volume.docker_volume, allowed)
    for n, mount in enumerate(container.mount_points or ()):
        _check_path(f"container.mount_points[{n}].container_path", mount.container_path)


def _check_linux(linux: LinuxParameters) -> None:
    field = "container.linux_parameters"
    for n, device in enumerate(linux.devices or ()):
        _check_path(f"{field}.devices[{n}].host_path", device.host_path)
        if device.container_path is not None:
            _check_path(f"{field}.devices[{n}].container_path", device.container_path)
        if not device.permissions:
            raise InvalidValue(f"{field}.devices[{n}].permissions", [], "permissions are READ, WRITE, MKNOD")
    for n, tmpfs in enumerate(linux.tmpfs or ()):
        _check_path(f"{field}.tmpfs[{n}].container_path", tmpfs.container_path)
        if not 1 <= tmpfs.size <= MIB_MAX:
            raise InvalidValue(f"{field}.tmpfs[{n}].size", tmpfs.size, "a tmpfs has 1 or more MiB")
    if linux.shared_memory_size is not None and not 1 <= linux.shared_memory_size <= MIB_MAX:
        raise InvalidValue(f"{field}.shared_memory_size", linux.shared_memory_size, "it is 1 or more MiB")
    if linux.max_swap is not None and not 0 <= linux.max_swap <= MIB_MAX:
        raise InvalidValue(f"{field}.max_swap", linux.max_swap, "it is 0 (no swap) or more MiB")
    if linux.swappiness is not None and not 0 <= linux.swappiness <= SWAPPINESS_MAX:
        raise InvalidValue(f"{field}.swappiness", linux.swappiness, f"it is 0 to {SWAPPINESS_MAX}")


def _check_secrets(field: str, secrets: tuple[Secret, ...]) -> None:
    for n, secret in enumerate(secrets):
        if not secret.name or "=" in secret.name or "\0" in secret.name or secret.name.startswith("AWS_BATCH"):
            allowed = "a name is not empty, has no '=' or zero byte, and does not begin with AWS_BATCH"
            raise InvalidValue(f"{field}[{n}].name", secret.name, allowed)
        if not secret.value_from:
            raise InvalidValue(
                f"{field}[{n}].value_from", "", "it says which secret: a file's name, or a resolver's id"
            )


def _check_path(field: str, path: str) -> None:
    if not path.startswith("/") or "\0" in path or ":" in path:
        raise InvalidValue(field, path, "it is an absolute path, without ':'")
