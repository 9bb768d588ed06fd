"""The Docker backend keeps every rule of the conformance kit, on a real engine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
from anybatch.backends.docker import DockerBackend
from anybatch.kernel.backend import AttemptSpec
from anybatch.kernel.core.container import ContainerSpec, MountPoint, Volume
from anybatch.testing.backend_kit import Description, checks_for, rules
from anybatch.testing.kit_programs import shell_programs
from docker_rig import IMAGE, TestEngine

TIME_SCALE = 3.0
CROWD = 24
WITHOUT_INIT = "what_cannot_start_is_reported"
"""With an init process it is that which starts, and ends with 127 when it does not find the program."""


def image_programs(folder: str, act: str, *args: str) -> AttemptSpec | None:
    """The acts for /bin/sh, in an image, with the kit's folder where it is outside."""
    made = shell_programs(act, *args)
    if made is None:
        return None
    container = ContainerSpec(
        image=IMAGE,
        volumes=(Volume(name="kit", host_path=folder),),
        mount_points=(MountPoint(source_volume="kit", container_path=folder),),
    )
    return msgspec.structs.replace(made, container=container)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ab-kit-", dir="/tmp") as path:
        yield Path(path)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", list(rules()))
def test_conformance(name: str, docker: TestEngine, folder: Path) -> None:
    about = Description(
        factory=partial(DockerBackend),
        programs=partial(image_programs, str(folder)),
        options={"engines": [docker.url], "network": "none", "init": name != WITHOUT_INIT},
        orders_streams=False,
        crowd=CROWD,
        time_scale=TIME_SCALE,
        folder=folder,
    )
    check = next(check for check in checks_for(about, all_=True) if check.name == name)
    if check.not_applicable is None:
        check.run()
