"""Container properties as a job has them, on a real engine: each test looks from inside, or at what the engine says."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anybatch
import pytest
import pytest_asyncio
from anybatch.backends.docker import DockerBackend
from docker_rig import IMAGE, TestEngine
from docker_wait import docker_kernel, until

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]


@pytest_asyncio.fixture
async def kernel(tmp_path: Path, options: dict[str, Any]) -> AsyncIterator[anybatch.Kernel]:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "token").write_text("s3cret\n")
    async with docker_kernel(tmp_path / "batch.db", {**options, "secrets": str(tmp_path / "secrets")}) as kernel:
        yield kernel


async def output(kernel: anybatch.Kernel, *command: str, **arguments: Any) -> str:
    """What a job in a container wrote; it has to have SUCCEEDED."""
    arguments.setdefault("image", IMAGE)
    job = await kernel.submit_job("job", queue="q", command=list(command) or None, **arguments)
    detail = await job.wait()
    text = (await job.read_logs()).decode()
    assert detail.status == "SUCCEEDED", (detail, text)
    return text


async def failed(kernel: anybatch.Kernel, *command: str, **arguments: Any) -> anybatch.AttemptDetail:
    """The latest attempt of a job that FAILED."""
    arguments.setdefault("image", IMAGE)
    job = await kernel.submit_job("job", queue="q", command=list(command) or None, **arguments)
    detail = await job.wait()
    assert detail.status == "FAILED", detail
    return detail.attempts[-1]


async def test_an_image_runs_its_own_command_unless_the_job_has_one(kernel: anybatch.Kernel) -> None:
    assert await output(kernel) == "the image itself\n"
    assert await output(kernel, "echo", "Ref::what", parameters={"what": "mine"}) == "mine\n"


async def test_st_6_st_7_times_and_codes_are_those_of_the_container(kernel: anybatch.Kernel) -> None:
    job = await kernel.submit_job("job", queue="q", image=IMAGE, command=["sh", "-c", "sleep 0.4; exit 3"])
    detail = await job.wait()
    assert (detail.status, detail.exit_code, detail.status_reason) == (
        "FAILED",
        3,
        "Essential container in task exited",
    )
    assert detail.attempts[0].failure_class == "application exit"
    assert detail.started_at is not None
    assert detail.stopped_at is not None
    assert 0.3 <= (detail.stopped_at - detail.started_at).total_seconds() <= 30


async def test_rr_3_memory_is_a_hard_limit_and_its_lack_has_a_class(kernel: anybatch.Kernel) -> None:
    eat = "x=$(head -c 64m /dev/zero | tr '\\0' x); echo $x | wc -c"
    attempt = await failed(kernel, "sh", "-c", eat, memory=16)
    assert attempt.reason == "OutOfMemoryError: Container killed due to memory usage"
    assert attempt.failure_class == "out of memory"
    assert await output(kernel, "sh", "-c", eat, memory=512)


async def test_limits_and_settings_as_the_engine_has_them(
    kernel: anybatch.Kernel, docker: TestEngine, tmp_path: Path
) -> None:
    job = await kernel.submit_job(
        "job", queue="q", image=IMAGE, command=["sh", "-c", "echo ready; exec sleep 60"], vcpus=1.5, memory=64,
        workdir="/tmp",
        container={
            "user": "nobody", "privileged": False, "readonlyRootFilesystem": True,
            "ulimits": [{"name": "nofile", "softLimit": 100, "hardLimit": 200}],
            "linuxParameters": {
                "initProcessEnabled": True, "sharedMemorySize": 32, "maxSwap": 64, "swappiness": 7,
                "tmpfs": [{"containerPath": "/scratch", "size": 8, "mountOptions": ["noexec"]}],
                "devices": [{"hostPath": "/dev/null", "containerPath": "/dev/nothing", "permissions": ["READ"]}],
            },
            "logConfiguration": {"logDriver": "json-file", "options": {"max-size": "1m"}},
        },
    )  # fmt: skip
    async for piece in kernel.logs(job, follow=True):
        if piece == b"ready\n":
            break
    (one,) = docker.containers(job=job.id)
    detail = docker.inspect(one["Id"])
    kernel_id = one["Labels"]["anybatch.kernel"]
    assert one["Names"] == [f"/ab-{kernel_id}-{job.id}-0-1"]
    assert one["Labels"]["anybatch.environment"] == "docker"
    host = detail["HostConfig"]
    assert (host["CpuShares"], host["Memory"], host["MemorySwap"]) == (1536, 64 << 20, 128 << 20)
    assert (host["ShmSize"], host["Init"], host["ReadonlyRootfs"]) == (32 << 20, True, True)
    assert host["MemorySwappiness"] in (7, None)  # None where cgroups are of version 2, which has no such thing
    assert host["Ulimits"] == [{"Name": "nofile", "Soft": 100, "Hard": 200}]
    assert host["Tmpfs"] == {"/scratch": "noexec,size=8m"}
    assert host["Devices"] == [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/nothing", "CgroupPermissions": "r"}]
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1m"}}
    assert host["NetworkMode"] == "none"
    assert (detail["Config"]["User"], detail["Config"]["WorkingDir"]) == ("nobody", "/tmp")
    await job.terminate("seen")
    assert (await job.wait()).attempts[-1].exit_code == 143  # the init process passes SIGTERM on


async def test_what_a_job_sees_inside(kernel: anybatch.Kernel, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "in").write_text("given")
    script = """#!/bin/sh
        set -e
        id -u; pwd; cat /mnt/in; echo; echo "$TOKEN $A $AWS_BATCH_JOB_ATTEMPT $1"
        touch /ro 2>/dev/null || echo read-only
        echo out >/own/a; cat /again/a
        cat /proc/1/comm; ulimit -n; df -m /t | tail -n 1 | awk '{print $2}'
        echo result >/mnt/out
    """
    text = await output(
        kernel, "argument",
        script=script, environment={"A": "b c"}, memory=64, workdir="/tmp",
        container={
            "user": "root", "readonlyRootFilesystem": True,
            "volumes": [{"name": "data", "host": {"sourcePath": str(tmp_path / "data")}}, {"name": "own"}],
            "mountPoints": [
                {"sourceVolume": "data", "containerPath": "/mnt"},
                {"sourceVolume": "own", "containerPath": "/own"},
                {"sourceVolume": "own", "containerPath": "/again"},
            ],
            "ulimits": [{"name": "nofile", "softLimit": 99, "hardLimit": 99}],
            "linuxParameters": {"initProcessEnabled": True, "tmpfs": [{"containerPath": "/t", "size": 8}]},
            "secrets": [{"name": "TOKEN", "valueFrom": "token"}],
        },
    )  # fmt: skip
    lines = text.split("\n")
    assert lines[:6] == ["0", "/tmp", "given", "s3cret b c 1 argument", "read-only", "out"]
    assert lines[7:9] == ["99", "8"]
    assert lines[6] in ("docker-init", "tini", "catatonit", "podman-init")
    assert (tmp_path / "data" / "out").read_text() == "result\n"


async def test_a_named_volume_outlives_the_container_and_an_empty_one_does_not(
    kernel: anybatch.Kernel, docker: TestEngine
) -> None:
    name = f"anybatch-test-{os.getpid()}"
    container = {
        "volumes": [{"name": "cache", "docker_volume": name}, {"name": "own"}],
        "mount_points": [
            {"source_volume": "cache", "container_path": "/cache"},
            {"source_volume": "own", "container_path": "/own"},
            {"source_volume": "own", "container_path": "/too", "read_only": True},
        ],
    }
    try:
        await output(kernel, "sh", "-c", "echo kept >/cache/a; echo gone >/own/a", container=container)
        assert await output(kernel, "sh", "-c", "cat /cache/a; ls /too", container=container) == "kept\n"
        ids = [job.id async for job in kernel.list_jobs()]
        await until(lambda: not _volumes(docker, ids), "volumes of attempts are removed")
    finally:
        docker.ask("DELETE", f"/volumes/{name}?force=1")


def _volumes(docker: TestEngine, jobs: list[str]) -> list[str]:
    volumes = docker.ask("GET", "/volumes")["Volumes"] or []
    return [volume["Name"] for volume in volumes if any(job in volume["Name"] for job in jobs)]


async def test_scratch_is_a_folder_of_the_attempts_own(kernel: anybatch.Kernel) -> None:
    text = await output(kernel, "sh", "-c", "echo $ANYBATCH_SCRATCH; touch $TMPDIR/a && ls $TMPDIR", scratch=True)
    assert text == "/.anybatch-scratch\na\n"


async def test_scripts_run_with_the_command_as_arguments(kernel: anybatch.Kernel) -> None:
    assert await output(kernel, "a b", "c", script='#!/bin/sh\nfor x; do echo "$x"; done') == "a b\nc\n"


async def test_arrays_have_their_indexes_and_their_logs(kernel: anybatch.Kernel, docker: TestEngine) -> None:
    job = await kernel.submit_job(
        "array", queue="q", image=IMAGE, array_size=5, command=["sh", "-c", "echo $AWS_BATCH_JOB_ARRAY_INDEX >&2"]
    )
    assert (await job.wait()).status == "SUCCEEDED"
    assert [await job[i].read_logs() for i in range(5)] == [b"%d\n" % i for i in range(5)]
    await until(lambda: not docker.containers(job=job.id), "containers are removed")


async def test_a_job_that_is_followed_shows_its_log_while_it_runs(kernel: anybatch.Kernel, tmp_path: Path) -> None:
    container = {
        "volumes": [{"name": "d", "host_path": str(tmp_path)}],
        "mount_points": [{"source_volume": "d", "container_path": "/d"}],
    }
    command = ["sh", "-c", "echo first; while ! test -e /d/go; do sleep 0.05; done; echo second"]
    job = await kernel.submit_job("job", queue="q", image=IMAGE, command=command, container=container)
    pieces = b""
    async for piece in kernel.logs(job, follow=True):
        pieces += piece
        if pieces == b"first\n":
            assert await job.read_logs() == b"first\n"
            assert (await job.describe()).status == "RUNNING"
            (tmp_path / "go").touch()
    assert pieces == b"first\nsecond\n"
    assert (await job.wait()).status == "SUCCEEDED"


@pytest.mark.parametrize(
    ("arguments", "words", "failure"),
    [
        ({"command": ["/no/such/program"]}, "CannotStartContainerError: ", "could not start"),
        ({"command": ["true"], "image": "anybatch-test:missing"}, "CannotPullContainerError: ", "could not start"),
        ({"command": ["true"], "container": {"user": "nobodyknows"}}, "CannotStartContainerError: ", "could not start"),
        (
            {"command": ["true"], "container": {"linuxParameters": {"devices": [{"hostPath": "/dev/none"}]}}},
            "CannotStartContainerError: ",
            "could not start",
        ),
        (
            {"command": ["true"], "container": {"secrets": [{"name": "X", "valueFrom": "missing"}]}},
            "ResourceInitializationError: unable to pull secrets: ",
            "could not start",
        ),
        (
            {
                "command": ["true"],
                "container": {"logConfiguration": {"logDriver": "json-file", "options": {"colour": "red"}}},
            },
            "Error: ",
            "could not start",
        ),
    ],
    ids=["program", "image", "user", "device", "secret", "log-driver"],
)
async def test_st_8_what_cannot_start_says_why(
    kernel: anybatch.Kernel, docker: TestEngine, arguments: dict[str, Any], words: str, failure: str
) -> None:
    arguments = {"image": IMAGE, **arguments}
    job = await kernel.submit_job("job", queue="q", **arguments)
    detail = await job.wait()
    attempt = detail.attempts[-1]
    assert (detail.status, detail.status_reason) == ("FAILED", "Task failed to start")
    assert (attempt.exit_code, attempt.failure_class) == (None, failure)
    assert attempt.reason is not None
    assert words in attempt.reason, attempt.reason
    await until(lambda: not docker.containers(job=job.id), "nothing is left of it")


async def test_gpus_that_an_engine_has_no_driver_for_say_so(
    kernel: anybatch.Kernel, docker: TestEngine, options: dict[str, Any]
) -> None:
    """The engine is asked for the devices: there is none on the machines that this runs on."""
    await kernel.update_compute_environment("docker", options={**options, "gpus": [0, 1]})
    job = await kernel.submit_job("job", queue="q", image=IMAGE, command=["true"], gpus=2)
    detail = await job.wait()
    assert (detail.status, detail.status_reason) == ("FAILED", "Task failed to start")
    assert detail.attempts[0].failure_class == "could not start"
    assert "device" in (detail.attempts[0].reason or ""), detail
    await until(lambda: not docker.containers(job=job.id), "nothing is left of it")


async def test_an_interpreter_that_the_image_lacks_is_told_in_the_log(kernel: anybatch.Kernel) -> None:
    job = await kernel.submit_job("job", queue="q", image=IMAGE, script="#!/no/such/shell\n")
    detail = await job.wait()
    text = f"{detail.reason} {(await job.read_logs()).decode()}"
    assert detail.status == "FAILED"
    assert "no such file or directory" in text


async def test_a_long_log_keeps_its_ends(kernel: anybatch.Kernel, options: dict[str, Any]) -> None:
    await kernel.update_compute_environment("docker", options={**options, "log_bytes_max": 1000})
    text = await output(kernel, "sh", "-c", "i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done")
    assert text.startswith("line 0\nline 1\n")
    assert text.endswith("line 498\nline 499\n")
    assert "bytes left out here" in text
    assert len(text) < 1100


async def test_what_an_environment_refuses_is_refused_at_submit(
    kernel: anybatch.Kernel, options: dict[str, Any]
) -> None:
    await kernel.update_compute_environment("docker", options={**options, "refuse": ["privileged", "volumes"]})
    with pytest.raises(anybatch.InvalidValue, match=r"container\.privileged: True"):
        await kernel.submit_job("job", queue="q", image=IMAGE, container={"privileged": True})
    with pytest.raises(anybatch.InvalidValue, match=r"container\.secrets"):
        await kernel.submit_job("job", queue="q", image=IMAGE, container={"secrets": [{"name": "a", "valueFrom": "b"}]})
    with pytest.raises(anybatch.InvalidValue, match=r"image: None .* run only what has an image"):
        await kernel.submit_job("job", queue="q", command=["true"])


async def test_jobs_without_an_image_run_in_the_environments(kernel: anybatch.Kernel, options: dict[str, Any]) -> None:
    await kernel.update_compute_environment("docker", options={**options, "image": IMAGE})
    job = await kernel.submit_job("job", queue="q", command=["cat", "/etc/group"])
    assert (await job.wait()).status == "SUCCEEDED"
    assert await job.read_logs() == b"root:x:0:\n"


async def test_an_embedders_resolver_gives_secrets(tmp_path: Path, options: dict[str, Any]) -> None:
    asked = []

    async def resolve(value_from: str) -> str:
        asked.append(value_from)
        return "from the vault"

    arn = "arn:aws:ssm:eu-west-1:123456789012:parameter/token"
    async with anybatch.Kernel(backends={"vault": lambda: DockerBackend(secrets=resolve)}) as kernel:
        await kernel.create_compute_environment("docker", backend="vault", options=options)
        await kernel.create_job_queue("q", priority=1, compute_environments=["docker"])
        container = {"secrets": [{"name": "TOKEN", "valueFrom": arn}]}
        assert await output(kernel, "sh", "-c", "echo $TOKEN", container=container) == "from the vault\n"
    assert asked == [arn]


async def test_a_wrong_option_or_engine_is_the_environments_reason(tmp_path: Path, options: dict[str, Any]) -> None:
    async with anybatch.Kernel() as kernel:
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"engines": [f"unix://{tmp_path}/none.sock"]}, "no Docker Engine can be reached: unix://"),
            ({"engines": ["ssh://host"]}, "unix:///path or tcp://host:port"),
            ({"engines": [*options["engines"]] * 2}, "two have the name"),
            ({"engines": [{"url": "tcp://127.0.0.1:1", "tls": str(tmp_path)}]}, "ca.pem"),
            ({**options, "refuse": ["colour"]}, "'colour' is no container field"),
        ]
        for n, (given, words) in enumerate(wrong):
            made = await kernel.create_compute_environment(f"e{n}", backend="docker", options=given)
            assert made.status == "INVALID"
            assert words in made.status_reason
        with pytest.raises(anybatch.InvalidValue, match="starts_at_once"):
            await kernel.create_compute_environment("e", backend="docker", options={"starts_at_once": 0})


async def test_the_run_call_takes_an_image(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", options["engines"][0])
    async with anybatch.Kernel() as kernel:
        result = await kernel.run(["echo", "hello"], image=IMAGE, container={"user": "nobody"})
        assert (result.job.status, result.output) == ("SUCCEEDED", b"hello\n")
