"""Several engines in one environment: over Unix sockets, TCP and TLS, in zones; and one of them lost."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anybatch
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from docker_proxy import Proxy
from docker_rig import IMAGE, NoEngine, PrivateEngine, TestEngine
from docker_wait import docker_kernel, is_running, until

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(180)]
FILES = ("ca.pem", "cert.pem", "key.pem")


def make_certificates(folder: Path) -> None:
    """A new authority, and one certificate of it for both sides, under the names that Docker's clients look for."""
    folder.mkdir()
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "engine")}
    names = {name: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in keys}
    for name, file in (("ca", "ca.pem"), ("engine", "cert.pem")):
        made = (
            x509.CertificateBuilder()
            .subject_name(names[name])
            .issuer_name(names["ca"])
            .public_key(keys[name].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - timedelta(days=1))
            .not_valid_after(datetime.now(UTC) + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        )
        if name == "engine":
            uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            made = made.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        signed = made.sign(keys["ca"], hashes.SHA256())
        (folder / file).write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    pem = keys["engine"].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (folder / "key.pem").write_bytes(pem)


class Second(PrivateEngine):
    """Another engine, that is spoken to over TLS at `tls_url` with what is in `certificates`."""

    def __init__(self, certificates: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.tls_url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        self.certificates = certificates
        ca, cert, key = (f"{certificates}/{file}" for file in FILES)
        super().__init__(
            f"--host={self.tls_url}", "--tlsverify", f"--tlscacert={ca}", f"--tlscert={cert}", f"--tlskey={key}"
        )


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Second]:
    folder = tmp_path_factory.mktemp("tls") / "certificates"
    make_certificates(folder)
    try:
        made = Second(folder)
    except NoEngine as e:
        pytest.skip(str(e))
    try:
        made.start()
        made.make_image()
        yield made
    finally:
        made.clean_up()


@pytest.fixture
def both(options: dict[str, Any], docker: TestEngine, second: Second) -> dict[str, Any]:
    """Options: the first engine over its Unix socket, the second over TLS, two vCPUs each."""
    return {
        **options,
        "init": True,
        "lost_after": 0.5,
        "engines": [
            {"url": docker.url, "name": "near", "zone": "here", "vcpus": 2},
            {"url": second.tls_url, "name": "far", "zone": "there", "vcpus": 2, "tls": str(second.certificates)},
        ],
    }


async def four(kernel: anybatch.Kernel, folder: Path) -> anybatch.JobHandle:
    """An array of four that wait for a file named "go"; all of them run."""
    command = "echo ready; while ! test -e /out/go; do sleep 0.05; done; echo $AWS_BATCH_JOB_ATTEMPT"
    container = {
        "volumes": [{"name": "out", "host_path": str(folder)}],
        "mount_points": [{"source_volume": "out", "container_path": "/out"}],
    }
    job = await kernel.submit_job(
        "four", queue="q", image=IMAGE, command=["sh", "-c", command], container=container, array_size=4,
        retry={"attempts": 1, "host_lost_retries": 1},
    )  # fmt: skip
    await asyncio.gather(*(is_running(job[index]) for index in range(4)))
    return job


async def test_each_engine_is_a_host_with_its_own_capacity_and_zone(
    tmp_path: Path, both: dict[str, Any], docker: TestEngine, second: Second
) -> None:
    async with docker_kernel(tmp_path / "batch.db", both) as kernel:
        (detail,) = await kernel.describe_compute_environments()
        assert {(host.name, host.zone, host.vcpus) for host in detail.hosts} == {
            ("near", "here", 2),
            ("far", "there", 2),
        }
        job = await four(kernel, tmp_path)
        assert [len(engine.containers(job=job.id)) for engine in (docker, second)] == [2, 2]
        (tmp_path / "go").touch()
        assert (await job.wait()).status == "SUCCEEDED"
        for index in range(4):
            assert await job[index].read_logs() == b"ready\n1\n"
        await until(lambda: not docker.containers(job=job.id) + second.containers(job=job.id), "all are removed")


async def test_rt_6_an_engine_that_is_lost_costs_its_own_attempts_only(
    tmp_path: Path, both: dict[str, Any], docker: TestEngine, second: Second
) -> None:
    async with docker_kernel(tmp_path / "batch.db", both) as kernel:
        job = await four(kernel, tmp_path)
        on_far = [i for i in range(4) if (await job[i].describe()).attempts[0].host == "far"]
        second.kill()
        try:
            (tmp_path / "go").touch()
            assert (await job.wait()).status == "SUCCEEDED"
            for index in range(4):
                attempts = (await job[index].describe()).attempts
                if index in on_far:
                    assert [(one.host, one.failure_class) for one in attempts] == [("far", "host lost"), ("near", None)]
                else:
                    assert [one.host for one in attempts] == ["near"]
        finally:
            second.start()  # in this thread: with it the engine would end
        await until(lambda: not second.containers(job=job.id), "what was given up is removed when it is back")


async def test_a_kernel_opens_with_one_of_its_engines_away(
    tmp_path: Path, both: dict[str, Any], docker: TestEngine, second: Second
) -> None:
    """What is there works; what ran on the other one is lost after its time, and runs here."""
    journal = tmp_path / "batch.db"
    async with docker_kernel(journal, both, on_close="detach") as kernel:
        job = await four(kernel, tmp_path)
    second.kill()
    try:
        async with anybatch.Kernel(journal, on_close="stop") as kernel:
            (tmp_path / "go").touch()
            assert (await kernel.wait(job.id)).status == "SUCCEEDED"
            (detail,) = await kernel.describe_compute_environments()
            states = {host.name: host.state_reason for host in detail.hosts}
            assert states["near"] is None
            assert "cannot be reached" in (states["far"] or "")
    finally:
        second.start()  # in this thread: with it the engine would end


async def test_an_engine_over_tcp(tmp_path: Path, options: dict[str, Any], docker: TestEngine) -> None:
    async with Proxy(None, docker.path) as proxy:
        about = {**options, "engines": [proxy.url]}
        async with docker_kernel(tmp_path / "batch.db", about) as kernel:
            job = await kernel.submit_job("job", queue="q", image=IMAGE, command=["echo", "hello"])
            assert (await job.wait()).status == "SUCCEEDED"
            assert await job.read_logs() == b"hello\n"


async def test_who_is_not_trusted_is_told_so(tmp_path: Path, options: dict[str, Any], second: Second) -> None:
    make_certificates(tmp_path / "other")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"url": second.tls_url, "tls": str(tmp_path / "other")}, "certificate verify failed"),
        ({"url": second.tls_url}, "HTTPS server"),
    ]
    async with anybatch.Kernel() as kernel:
        for n, (engine, words) in enumerate(wrong):
            made = await kernel.create_compute_environment(
                f"e{n}", backend="docker", options={**options, "engines": [engine]}
            )
            assert made.status == "INVALID"
            assert words in made.status_reason, made.status_reason
