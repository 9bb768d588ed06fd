"""Contract 5.2, PA-6: what a job says of its container, and that none of it is ever ignored unasked."""

from __future__ import annotations

from typing import Any

import pytest
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.container import (
    CONTAINER_FIELDS,
    IMAGE_REQUIRED,
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
from anybatch.kernel.core.errors import InvalidValue
from anybatch.kernel.core.explain import Code, explain, never_fits
from core_rig import Rig, launches

IMAGE = ContainerSpec(image="busybox")
ALL = tuple(sorted(CONTAINER_FIELDS))


def linux(**fields: Any) -> ContainerSpec:
    return ContainerSpec(image="busybox", linux_parameters=LinuxParameters(**fields))


WHOLE = ContainerSpec(
    image="registry.example:5000/team/tool@sha256:0123456789abcdef",
    user="1000:1000",
    privileged=True,
    readonly_root_filesystem=True,
    volumes=(Volume(name="data", host_path="/data"), Volume(name="cache", docker_volume="cache"), Volume(name="own")),
    mount_points=(MountPoint(source_volume="data", container_path="/mnt", read_only=True),),
    ulimits=(Ulimit(name="nofile", soft_limit=1024, hard_limit=-1),),
    linux_parameters=LinuxParameters(
        devices=(Device(host_path="/dev/null", permissions=("READ",)),),
        init_process_enabled=True,
        shared_memory_size=64,
        tmpfs=(Tmpfs(container_path="/scratch", size=16, mount_options=("noexec",)),),
        max_swap=0,
        swappiness=10,
    ),
    secrets=(Secret(name="TOKEN", value_from="token"),),
    log_configuration=LogConfiguration(log_driver="json-file", options={"max-size": "1m"}),
)


def containers(rig: Rig, *container: str) -> None:
    """An environment "docker" with a host of its own, and a queue "images" on it."""
    rig.environment("docker", backend="docker", container=container or ALL)
    rig.host("engine", environment="docker")
    rig.queue("images", "docker")


def test_a_container_is_kept_with_its_definition_and_its_job(rig: Rig) -> None:
    containers(rig)
    rig.define(container=WHOLE, memory_mib=64)
    job = rig.submit(queue="images", definition="definition")
    assert rig.job(job).spec.container == WHOLE
    assert set(rig.job(job).shape.container) == CONTAINER_FIELDS - {"command"}
    assert launches(rig.place())


def test_an_image_runs_what_it_runs_itself_where_there_is_no_command(rig: Rig) -> None:
    containers(rig)
    job = rig.submit(queue="images", command=(), container=IMAGE)
    assert rig.job(job).shape.container == ("image", "command")


@pytest.mark.parametrize(
    ("container", "field"),
    [
        (ContainerSpec(image="no spaces"), "image"),
        (ContainerSpec(image="x" * 256), "image"),
        (ContainerSpec(image="a", user="a b"), "container.user"),
        (ContainerSpec(image="a", volumes=(Volume(name="a/b"),)), "container.volumes[0].name"),
        (ContainerSpec(image="a", volumes=(Volume(name="a"), Volume(name="a"))), "container.volumes[0].name"),
        (ContainerSpec(image="a", volumes=(Volume(name="a", host_path="data"),)), "container.volumes[0].host_path"),
        (
            ContainerSpec(image="a", volumes=(Volume(name="a", docker_volume="/x"),)),
            "container.volumes[0].docker_volume",
        ),
        (
            ContainerSpec(image="a", volumes=(Volume(name="a", docker_volume="b", host_path="/b"),)),
            "container.volumes[0]",
        ),
        (
            ContainerSpec(image="a", mount_points=(MountPoint(source_volume="a", container_path="/m"),)),
            "container.mount_points[0].source_volume",
        ),
        (
            ContainerSpec(image="a", ulimits=(Ulimit(name="files", soft_limit=1, hard_limit=1),)),
            "container.ulimits[0].name",
        ),
        (ContainerSpec(image="a", ulimits=(Ulimit(name="cpu", soft_limit=-2, hard_limit=1),)), "container.ulimits[0]"),
        (linux(devices=(Device(host_path="dev"),)), "container.linux_parameters.devices[0].host_path"),
        (linux(tmpfs=(Tmpfs(container_path="/t", size=0),)), "container.linux_parameters.tmpfs[0].size"),
        (linux(shared_memory_size=0), "container.linux_parameters.shared_memory_size"),
        (linux(max_swap=-1), "container.linux_parameters.max_swap"),
        (linux(swappiness=101, max_swap=1), "container.linux_parameters.swappiness"),
        (linux(swappiness=1), "container.linux_parameters.swappiness"),
        (linux(max_swap=1), "container.linux_parameters.max_swap"),
        (ContainerSpec(image="a", secrets=(Secret(name="AWS_BATCH_X", value_from="x"),)), "container.secrets[0].name"),
        (ContainerSpec(image="a", secrets=(Secret(name="X", value_from=""),)), "container.secrets[0].value_from"),
        (
            ContainerSpec(image="a", log_configuration=LogConfiguration(log_driver="")),
            "container.log_configuration.log_driver",
        ),
        (ContainerSpec(user="me"), "image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_registration_names_the_field_that_is_wrong(rig: Rig, container: ContainerSpec, field: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        rig.define(container=container)
    assert refused.value.field == field


def test_pa_6_a_submit_lays_its_container_over_the_definitions(rig: Rig) -> None:
    containers(rig)
    rig.define(container=linux(init_process_enabled=True, shared_memory_size=8))
    over = ContainerSpec(image="other", privileged=False, linux_parameters=LinuxParameters(shared_memory_size=16))
    spec = rig.job(rig.submit(queue="images", definition="definition", container=over)).spec
    assert spec.container is not None
    assert (spec.container.image, spec.container.privileged) == ("other", False)
    assert spec.container.linux_parameters == LinuxParameters(init_process_enabled=True, shared_memory_size=16)


def test_an_image_in_a_queue_that_only_runs_processes_is_refused(rig: Rig) -> None:
    with pytest.raises(InvalidValue, match=r"image: 'busybox' .* no environment of queue 'queue' honours it: 'env'"):
        rig.submit(container=IMAGE)


def test_a_field_that_no_environment_honours_is_refused_by_name(rig: Rig) -> None:
    containers(rig, "image", "user")
    rig.submit(queue="images", container=ContainerSpec(image="a", user="me"))
    with pytest.raises(InvalidValue) as refused:
        rig.submit(queue="images", container=ContainerSpec(image="a", user="me", privileged=True))
    assert (refused.value.field, refused.value.value) == ("container.privileged", True)
    with pytest.raises(InvalidValue, match=r"container.linux_parameters.max_swap"):
        rig.submit(queue="images", memory_mib=4, container=linux(max_swap=1))
    with pytest.raises(InvalidValue, match=r"command: .* runs an image's own command; give a command"):
        rig.submit(queue="images", command=(), container=IMAGE)


def test_containers_are_placed_only_where_they_are_honoured(rig: Rig) -> None:
    """A queue over processes and containers: what has an image passes the first environment by, however free it is."""
    containers(rig)
    rig.queue("both", "env", "docker")
    plain = rig.submit(queue="both", vcpus=1)
    held = [rig.submit(queue="both", vcpus=4, container=IMAGE) for _ in range(2)]
    placed = {serial: host for serial, _, _, host in launches(rig.place())}
    names = {serial: rig.state.hosts[host].name for serial, host in placed.items()}
    assert names == {plain: "host", held[0]: "engine"}
    assert rig.status(held[1]) == "RUNNABLE"


def test_what_a_backend_comes_to_honour_is_noted_and_frees_what_waits(rig: Rig) -> None:
    """A queue is moved to processes under a job with an image: it says so and waits, until they take images."""
    containers(rig)
    rig.submit(queue="images", vcpus=4, container=IMAGE)
    rig.place()
    job = rig.submit(queue="images", container=IMAGE)
    rig.do(ask.UpdateQueue(name="images", compute_environments=("env",)))
    assert launches(rig.place()) == []
    (reason,) = explain(rig.state, rig.job(job), None, rig.now_ms)
    text = "environment 'env' (backend null) does not honour image of its container"
    assert (reason.code, reason.text) == (Code.CANNOT_RUN_IT, text)
    assert never_fits(rig.state, rig.job(job)) == text
    rig.do(ask.AllListed(environment="env", hosts=("host",), container=("image",)))
    assert [serial for serial, *_ in launches(rig.place())] == [job]


def test_listing_again_without_news_is_no_event(rig: Rig) -> None:
    containers(rig)
    assert rig.do(ask.AllListed(environment="docker", hosts=("engine",), container=ALL)).events == []


def test_a_host_is_never_kept_for_what_its_environment_cannot_run(rig: Rig) -> None:
    containers(rig)
    rig.queue("both", "env", "docker")
    rig.submit(queue="both", vcpus=4, container=IMAGE)
    rig.place()
    rig.submit(queue="both", vcpus=4, container=IMAGE)
    rig.advance(400_000)
    plain = rig.submit(queue="both", vcpus=1)
    assert [serial for serial, *_ in launches(rig.place())] == [plain]


def test_what_has_no_image_is_not_for_an_environment_that_runs_images_only(rig: Rig) -> None:
    containers(rig, *ALL, IMAGE_REQUIRED)
    rig.queue("both", "docker", "env")
    with pytest.raises(InvalidValue, match=r"image: None .* the environments of queue 'images' run only what has an"):
        rig.submit(queue="images")
    plain = rig.submit(queue="both")
    assert [rig.state.hosts[host].name for _, _, _, host in launches(rig.place())] == ["host"]
    rig.exit(plain)
    moved = rig.submit(queue="both")
    rig.do(ask.UpdateQueue(name="both", compute_environments=("docker",)))
    assert launches(rig.place()) == []
    (reason,) = explain(rig.state, rig.job(moved), None, rig.now_ms)
    text = "environment 'docker' (backend docker) runs only what has an image"
    assert (reason.code, reason.text) == (Code.CANNOT_RUN_IT, text)
