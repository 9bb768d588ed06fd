"""An attempt as the body of a "create container" request, and names that lead back to it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from ..kernel.backend import AttemptKey, AttemptSpec, Launch
from ..kernel.core.container import ContainerSpec, LinuxParameters

LABEL: Final = "anybatch."
KERNEL, ENVIRONMENT = f"{LABEL}kernel", f"{LABEL}environment"
JOB, INDEX, NUMBER, VOLUMES = f"{LABEL}job", f"{LABEL}index", f"{LABEL}number", f"{LABEL}volumes"
SHARES_PER_VCPU: Final = 1024
SHARES_MIN, SHARES_MAX = 2, 262_144
NANO_PER_MILLI: Final = 1_000_000
MIB: Final = 1 << 20
SCRIPT: Final = ".anybatch-script"
SCRIPT_FOLDER: Final = "/.anybatch"
"""A volume of its own for the script, where the root file system is read-only."""
SCRATCH_FOLDER: Final = "/.anybatch-scratch"
PERMISSIONS: Final = {"READ": "r", "WRITE": "w", "MKNOD": "m"}


class Owner:
    """Whose containers: those of one environment of one kernel."""

    def __init__(self, kernel_id: str, environment: str) -> None:
        self.kernel_id = kernel_id
        self.environment = environment

    def name(self, key: AttemptKey) -> str:
        """A container's name."""
        return f"ab-{self.kernel_id}-{key.job_id}-{key.index}-{key.number}"

    def labels(self, key: AttemptKey) -> dict[str, str]:
        """What tells that a container is ours, and which attempt it is."""
        return {
            KERNEL: self.kernel_id,
            ENVIRONMENT: self.environment,
            JOB: key.job_id,
            INDEX: str(key.index),
            NUMBER: str(key.number),
        }

    def filters(self) -> list[str]:
        """The labels by which the engine finds ours, and no others."""
        return [f"{KERNEL}={self.kernel_id}", f"{ENVIRONMENT}={self.environment}"]

    def key(self, labels: Mapping[str, str]) -> AttemptKey | None:
        """Which attempt a container is; None if it is not one of ours."""
        if (labels.get(KERNEL), labels.get(ENVIRONMENT)) != (self.kernel_id, self.environment):
            return None
        index, number = labels.get(INDEX, ""), labels.get(NUMBER, "")
        if not labels.get(JOB) or not index.isdecimal() or not number.isdecimal():
            return None
        return AttemptKey(labels[JOB], int(index), int(number))


class Defaults:
    """What the environment's options say for jobs that do not."""

    def __init__(self, *, image: str | None, network: str | None, init: bool, cpu_limit: bool) -> None:
        self.image = image
        self.network = network
        self.init = init
        self.cpu_limit = cpu_limit


def image_of(spec: AttemptSpec, defaults: Defaults) -> str | None:
    """The image that an attempt runs."""
    given = spec.container.image if spec.container is not None else None
    return given or defaults.image


def create_body(
    owner: Owner, key: AttemptKey, launch: Launch, defaults: Defaults, secrets: Mapping[str, str]
) -> dict[str, Any]:
    """The body of the request. `secrets`: the values of the container's secrets, by name."""
    spec = launch.spec
    container = spec.container or ContainerSpec()
    labels = owner.labels(key)
    host = _host_config(owner, key, spec, container, defaults)
    shared = shared_volumes(owner, key, container)
    if shared:
        labels[VOLUMES] = ",".join(shared.values())
    variables = {
        **spec.environment,
        **launch.variables(key.index),
        **{k: v for k, v in secrets.items() if "/" not in k},
    }
    if spec.scratch:
        host.setdefault("Mounts", []).append({"Type": "volume", "Target": SCRATCH_FOLDER})
        variables["ANYBATCH_SCRATCH"] = variables["TMPDIR"] = SCRATCH_FOLDER
    gpus = launch.gpus.get(key.index)
    if gpus:
        host["DeviceRequests"] = [{"DeviceIDs": [str(gpu) for gpu in gpus], "Capabilities": [["gpu"]]}]
    if container.log_configuration is not None:
        log = container.log_configuration
        options = {**log.options, **{s.name: secrets[f"log/{s.name}"] for s in log.secret_options}}
        host["LogConfig"] = {"Type": log.log_driver, "Config": options}
    body: dict[str, Any] = {
        "Image": image_of(spec, defaults),
        "Env": [f"{name}={value}" for name, value in variables.items()],
        "Labels": labels,
        "HostConfig": host,
        "StopSignal": "SIGTERM",
    }
    if spec.script is not None:
        body["Entrypoint"] = [script_path(container)]
        body["Cmd"] = list(spec.command)
    elif spec.command:
        body["Cmd"] = list(spec.command)
    if spec.workdir is not None:
        body["WorkingDir"] = spec.workdir
    if container.user is not None:
        body["User"] = container.user
    return body


def _host_config(
    owner: Owner, key: AttemptKey, spec: AttemptSpec, container: ContainerSpec, defaults: Defaults
) -> dict[str, Any]:
    shares = spec.vcpus_milli * SHARES_PER_VCPU // 1000
    linux = container.linux_parameters or LinuxParameters()
    init = defaults.init if linux.init_process_enabled is None else linux.init_process_enabled
    host: dict[str, Any] = {"CpuShares": min(max(shares, SHARES_MIN), SHARES_MAX), "Init": init}
    if defaults.cpu_limit:
        host["NanoCpus"] = spec.vcpus_milli * NANO_PER_MILLI
    if spec.memory_mib:
        host["Memory"] = spec.memory_mib * MIB
    if defaults.network is not None:
        host["NetworkMode"] = defaults.network
    if container.privileged is not None:
        host["Privileged"] = container.privileged
    if container.readonly_root_filesystem:
        host["ReadonlyRootfs"] = True
        if spec.script is not None:
            host.setdefault("Mounts", []).append({"Type": "volume", "Target": SCRIPT_FOLDER})
    if container.ulimits:
        host["Ulimits"] = [{"Name": u.name, "Soft": u.soft_limit, "Hard": u.hard_limit} for u in container.ulimits]
    _add_mounts(host, owner, key, container)
    _add_linux(host, spec, linux)
    return host


def _add_linux(host: dict[str, Any], spec: AttemptSpec, linux: LinuxParameters) -> None:
    if linux.devices:
        host["Devices"] = [
            {
                "PathOnHost": device.host_path,
                "PathInContainer": device.container_path or device.host_path,
                "CgroupPermissions": "".join(PERMISSIONS[one] for one in device.permissions),
            }
            for device in linux.devices
        ]
    if linux.shared_memory_size is not None:
        host["ShmSize"] = linux.shared_memory_size * MIB
    if linux.tmpfs:
        host["Tmpfs"] = {t.container_path: ",".join([*t.mount_options, f"size={t.size}m"]) for t in linux.tmpfs}
    if linux.max_swap is not None:
        host["MemorySwap"] = (spec.memory_mib + linux.max_swap) * MIB
    if linux.swappiness is not None:
        host["MemorySwappiness"] = linux.swappiness


def _add_mounts(host: dict[str, Any], owner: Owner, key: AttemptKey, container: ContainerSpec) -> None:
    volumes = {volume.name: volume for volume in container.volumes or ()}
    shared = shared_volumes(owner, key, container)
    for mount in container.mount_points or ():
        volume = volumes[mount.source_volume]
        source = volume.host_path or volume.docker_volume or shared.get(volume.name)
        if source is not None:  # a path that is not there is made, as on ECS
            bind = f"{source}:{mount.container_path}" + (":ro" if mount.read_only else "")
            host.setdefault("Binds", []).append(bind)
        else:
            own = {"Type": "volume", "Target": mount.container_path, "ReadOnly": mount.read_only}
            host.setdefault("Mounts", []).append(own)


def shared_volumes(owner: Owner, key: AttemptKey, container: ContainerSpec) -> dict[str, str]:
    """The attempt's own volumes that are mounted more than once, and so need a name: removed after the container."""
    places = [mount.source_volume for mount in container.mount_points or ()]
    return {
        volume.name: f"{owner.name(key)}-{volume.name}"
        for volume in container.volumes or ()
        if volume.host_path is None and volume.docker_volume is None and places.count(volume.name) > 1
    }


# -- scripts ----------------------------------------------------------------------------------------


def script_path(container: ContainerSpec | None) -> str:
    """Where the script stands in the container."""
    return f"{script_folder(container).rstrip('/')}/{SCRIPT}"


def script_folder(container: ContainerSpec | None) -> str:
    """The folder that it is put into."""
    return SCRIPT_FOLDER if container is not None and container.readonly_root_filesystem else "/"


def script_archive(script: str) -> bytes:
    """The script as an archive that the engine unpacks."""
    data = script.encode()
    entry = tarfile.TarInfo(SCRIPT)
    entry.size, entry.mode = len(data), 0o755
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


# -- times ------------------------------------------------------------------------------------------


def epoch_ms(text: str) -> int:
    """The engine's form of a time ("2026-01-02T03:04:05.678901234Z") in epoch milliseconds; 0 for none."""
    if not text or text.startswith("0001-"):
        return 0
    whole, _, rest = text.partition(".")
    zone = "+00:00"
    if not rest:
        whole, rest = whole.rstrip("Z"), "0"
    digits = rest.rstrip("Z")
    for sign in "+-":
        if sign in digits:
            digits, _, offset = digits.partition(sign)
            zone = sign + offset
    moment = datetime.fromisoformat(f"{whole[:19]}{zone}").astimezone(UTC)
    return int(moment.timestamp()) * 1000 + int(f"{digits:0<3}"[:3])


def names_of(labels: Mapping[str, str]) -> Sequence[str]:
    """The volumes that go with a container."""
    return [name for name in labels.get(VOLUMES, "").split(",") if name]
