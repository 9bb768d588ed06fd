"""From what users write of a container to a ContainerSpec: under our names or AWS's, each error naming its field."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from .core.container import (
    ContainerSpec,
    Device,
    LinuxParameters,
    LogConfiguration,
    MountPoint,
    Secret,
    Tmpfs,
    Ulimit,
    Volume,
)
from .core.errors import InvalidValue

PARTS: Final[Mapping[type, Mapping[str, type[msgspec.Struct]]]] = {
    ContainerSpec: {
        "volumes": Volume,
        "mount_points": MountPoint,
        "ulimits": Ulimit,
        "linux_parameters": LinuxParameters,
        "secrets": Secret,
        "log_configuration": LogConfiguration,
    },
    LinuxParameters: {"devices": Device, "tmpfs": Tmpfs},
    LogConfiguration: {"secret_options": Secret},
}
"""Fields that hold structs of their own, or lists of them."""

ARGUMENTS: Final = {
    "command": "command",
    "environment": "environment",
    "vcpus": "vcpus",
    "memory": "memory",
    "job_role_arn": "role",
    "resource_requirements": "vcpus, memory and gpus",
}
"""What AWS has among the containerProperties, and is an argument of its own here."""

ELSEWHERE: Final = {
    "execution_role_arn": "registry credentials come from Docker's own configuration",
    "network_configuration": "it is Fargate's; a network is an option of the compute environment",
    "network_mode": "a network is an option of the compute environment",
    "fargate_platform_configuration": "there is no Fargate here",
    "ephemeral_storage": "it is Fargate's; use volumes",
    "runtime_platform": "the engine decides; use an environment whose engine has the platform",
    "instance_type": "there are no instance types here",
    "repository_credentials": "registry credentials come from Docker's own configuration",
    "enable_execute_command": "use the engine's own `docker exec`",
    "efs_volume_configuration": "mount the file system on the host, and give its host_path",
    "s3files_volume_configuration": "mount the file system on the host, and give its host_path",
}
"""What AWS has, and nothing here can honour: refused by name, never passed over."""

_PATH: Final = re.compile(r"^(?P<text>.*?) - at `\$\.?(?P<path>.*)`$", re.DOTALL)
_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def make_container(image: object, container: object) -> ContainerSpec | None:
    """The arguments `image` and `container` as one; None where neither is given.

    Raises:
        InvalidValue: a field that there is not, or of a wrong type; `field` is its path.
    """
    if image is not None and (not isinstance(image, str) or not image):
        raise InvalidValue("image", image, "an image is text, such as 'busybox:1.36'")
    if container is None:
        return None if image is None else ContainerSpec(image=image)
    if isinstance(container, ContainerSpec):
        container = msgspec.to_builtins(container)
    if not isinstance(container, Mapping):
        raise InvalidValue("container", container, "it is a ContainerSpec, or maps its fields to values")
    plain = _plain("container", container, ContainerSpec)
    if image is not None and plain.setdefault("image", image) != image:
        allowed = f"image says {image!r}; give it once"
        raise InvalidValue("container.image", plain["image"], allowed)
    try:
        return msgspec.convert(plain, ContainerSpec)
    except msgspec.ValidationError as e:
        match = _PATH.match(str(e))
        path, text = (match["path"], match["text"]) if match else ("", str(e))
        field = f"container.{path}" if path else "container"
        raise InvalidValue(field, _at(plain, path), text[:1].lower() + text[1:]) from None


def _at(value: Any, path: str) -> Any:
    """The value at a path such as `volumes[0].name`; a missing one is None."""
    for part in re.findall(r"[^.\[\]]+", path):
        try:
            value = value[int(part)] if isinstance(value, list | tuple) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return value


def _plain(field: str, given: Mapping[Any, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """A mapping under our names: AWS's are translated, and what there is not is refused."""
    known, parts = kind.__struct_fields__, PARTS.get(kind, {})
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = _HUMP.sub("_", key).lower() if isinstance(key, str) else ""
        if kind is Volume and name == "host" and isinstance(value, Mapping):  # {"host": {"sourcePath": ...}}, as on AWS
            name, value = "host_path", value.get("sourcePath", value.get("source_path"))
        if name not in known:
            raise InvalidValue(f"{field}.{key}", value, _refusal(name, known))
        if name in found:
            raise InvalidValue(f"{field}.{key}", value, "it is given twice")
        if value is None:
            continue  # as on AWS, null is absent
        part = parts.get(name)
        if part is not None:
            value = _part(f"{field}.{name}", value, part)
        found[name] = value
    return found


def _part(field: str, value: Any, kind: type[msgspec.Struct]) -> Any:
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value)
    if isinstance(value, Mapping):
        return _plain(field, value, kind)
    if isinstance(value, list | tuple):
        return [_part(f"{field}[{n}]", entry, kind) for n, entry in enumerate(value)]
    return value


def _refusal(name: str, known: tuple[str, ...]) -> str:
    if name in ARGUMENTS:
        return f"it is an argument of its own: {ARGUMENTS[name]}"
    if name in ELSEWHERE:
        return f"no backend honours it: {ELSEWHERE[name]}"
    near = difflib.get_close_matches(name, known, n=1)
    return f"the fields here are {', '.join(known)}" + (f"; did you mean {near[0]}?" if near else "")
