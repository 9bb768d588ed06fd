"""TLS from the configuration, a graceful stop, clients that take their time, keys that change while it runs."""

from __future__ import annotations

import asyncio
import datetime as dt
import http.client
import ipaddress
import json
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any, Final

import boto3
import botocore.config
import botocore.exceptions
import pytest
from anybatch.plugins.aws import Certificate, front_end, listener, reload, server
from aws_rig import REGION, UNTIL_S, Served, add_queue, until
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from serve_rig import SERVE, serving

LIST: Final = "/v1/describejobqueues"


# -- TLS --------------------------------------------------------------------------------------------


def certificate(
    folder: Path, name: str, issuer: tuple[x509.Certificate, Any] | None = None
) -> tuple[x509.Certificate, Any]:
    """An authority, or what it has signed for this machine; kept as <name>.pem and <name>.key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    made = builder.sign(key if issuer is None else issuer[1], hashes.SHA256())
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / f"{name}.key").write_bytes(text)
    return made, key


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with ca.pem, server.pem, server.key and other.pem, an authority that has signed nothing."""
    folder = tmp_path / "tls"
    folder.mkdir()
    certificate(folder, "server", certificate(folder, "ca"))
    certificate(folder, "other")
    return folder


def test_tls_from_the_configuration(tmp_path: Path, made: Path) -> None:
    config = tmp_path / "aws.toml"
    config.write_text(f'tls_certificate = "{made}/server.pem"\ntls_key = "{made}/server.key"\n')
    arguments = ("--bind", "127.0.0.1:0", "--images", "local", "--aws-config", str(config))
    with serving(tmp_path, *arguments) as service:
        url = service.exported["AWS_ENDPOINT_URL_BATCH"]
        assert url.startswith("https://127.0.0.1:")

        def client(authority: str) -> Any:
            session = boto3.Session(
                service.exported["AWS_ACCESS_KEY_ID"], service.exported["AWS_SECRET_ACCESS_KEY"], region_name=REGION
            )
            config = botocore.config.Config(retries={"total_max_attempts": 1})
            return session.client("batch", endpoint_url=url, verify=str(made / authority), config=config)

        assert client("ca.pem").describe_job_queues()["jobQueues"][0]["jobQueueName"] == "default"
        with pytest.raises(botocore.exceptions.SSLError):
            client("other.pem").describe_job_queues()
        port = int(url.rpartition(":")[2])
        plain = http.client.HTTPConnection("127.0.0.1", port, timeout=UNTIL_S)
        plain.request("POST", LIST, b"{}")
        with pytest.raises((http.client.HTTPException, OSError)):
            plain.getresponse()
        plain.close()
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection(("127.0.0.1", port), timeout=UNTIL_S) as raw,
            old.wrap_socket(raw, server_hostname="localhost") as wrapped,
        ):
            assert wrapped.version() == "TLSv1.2"
        assert client("ca.pem").describe_job_queues()["jobQueues"]
        assert service.end() == 0


def served_serials(port: int) -> set[int]:
    """Of the certificate, to a client that names the server and to one that does not."""
    found = set()
    for name in ("localhost", None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", port), timeout=UNTIL_S) as raw,
            context.wrap_socket(raw, server_hostname=name) as wrapped,
        ):
            der = wrapped.getpeercert(binary_form=True)
            assert der is not None
            found.add(x509.load_der_x509_certificate(der).serial_number)
    return found


def test_a_new_certificate_holds_without_a_restart_and_a_broken_one_does_not(
    made: Path, quick: None, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ""

    def is_told(what: str) -> bool:
        nonlocal said
        said += caplog.text + capsys.readouterr().out
        caplog.clear()
        return what in said

    with Served(tls=Certificate(made / "server.pem", made / "server.key")) as served:
        port = served.front_end.port
        [first] = served_serials(port)
        with socket.create_connection(("127.0.0.1", port), timeout=UNTIL_S) as raw:
            context = ssl.create_default_context(cafile=str(made / "ca.pem"))
            with context.wrap_socket(raw, server_hostname="localhost") as open_one:
                # A renewal whose parts come one after the other: in between they do not go together.
                new, _ = certificate(made, "new", certificate(made, "ca"))
                (made / "new.pem").rename(made / "server.pem")
                until(lambda: is_told("certificate_not_read_again"))
                assert served_serials(port) == {first}
                (made / "new.key").rename(made / "server.key")
                until(lambda: is_told("certificate_read_again"))
                assert served_serials(port) == {new.serial_number}
                # A connection that was there goes on with what it began with.
                open_one.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert open_one.recv(8) == b"HTTP/1.1"
        said = ""
        (made / "server.pem").write_text("nonsense")
        until(lambda: is_told("certificate_not_read_again"))
        (made / "server.key").unlink()
        assert served_serials(port) == {new.serial_number}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('tls_certificate = "{made}/none.pem"', "tls_certificate"),
        ('tls_certificate = "{made}/server.pem"\ntls_key = "{made}/other.key"', "tls_certificate"),
        ('tls_certificate = "{made}/server.pem"\ntls_key = "{made}/none.key"', "none.key"),
        ('tls_certificate = "{made}/server.pem"\ntls_key = "{made}/locked.key"', "the key is encrypted"),
        ('tls_key = "{made}/server.key"', "tls_key"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_told_at_the_start(
    tmp_path: Path, made: Path, text: str, match: str
) -> None:
    config = tmp_path / "aws.toml"
    config.write_text(text.format(made=made))
    locked = serialization.BestAvailableEncryption(b"a password")
    key = ec.generate_private_key(ec.SECP256R1())
    (made / "locked.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    )
    done = subprocess.run(
        [*SERVE, "--journal", str(tmp_path / "b.db"), "--bind", "127.0.0.1:0", "--aws-config", str(config)],
        capture_output=True,
        text=True,
        timeout=UNTIL_S,
    )
    assert done.returncode == 2, done.stderr
    assert match in done.stderr


# -- a graceful stop --------------------------------------------------------------------------------


class Held:
    """Calls of an operation that are held up until they are let go."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrived = threading.Event()
        self._served = served
        self._gate: asyncio.Event = served.run(self._make())
        describe = type(served.kernel).describe_compute_environments

        async def held(kernel: Any, *arguments: Any) -> Any:
            self.arrived.set()
            await self._gate.wait()
            return await describe(kernel, *arguments)

        monkeypatch.setattr(type(served.kernel), "describe_compute_environments", held)

    async def _make(self) -> asyncio.Event:
        return asyncio.Event()

    async def _open(self) -> None:
        self._gate.set()

    def let_go(self) -> None:
        self._served.run(self._open())


class Asking(threading.Thread):
    """A client that asks, and what it is told."""

    def __init__(self, served: Served) -> None:
        super().__init__(daemon=True)
        self.client = served.client()
        self.answer: Any = None

    def run(self) -> None:
        try:
            self.answer = self.client.describe_compute_environments()
        except botocore.exceptions.BotoCoreError as e:
            self.answer = e


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=UNTIL_S).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_call_that_is_being_answered_when_it_closes_is_finished_and_new_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Served() as served:
        add_queue(served.client())
        held = Held(served, monkeypatch)
        asking = Asking(served)
        asking.start()
        assert held.arrived.wait(UNTIL_S)
        closing = asyncio.run_coroutine_threadsafe(served.front_end.__aexit__(None, None, None), served._loop)
        until(lambda: is_refused(served.front_end.port))
        assert asking.is_alive()
        assert not closing.done()
        held.let_go()
        asking.join(UNTIL_S)
        assert asking.answer["computeEnvironments"][0]["computeEnvironmentName"] == "q"
        closing.result(UNTIL_S)


def test_a_call_that_never_ends_holds_a_stop_up_for_a_bound_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_end, "STOP_S_MAX", 0.2)
    with Served() as served:
        add_queue(served.client())
        held = Held(served, monkeypatch)
        asking = Asking(served)
        asking.start()
        assert held.arrived.wait(UNTIL_S)
    asking.join(UNTIL_S)
    assert isinstance(asking.answer, botocore.exceptions.BotoCoreError)


# -- clients that take their time -------------------------------------------------------------------


def test_a_body_that_does_not_come_is_given_up_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "READ_S_MAX", 0.2)
    monkeypatch.setattr(listener, "READ_S_MAX", UNTIL_S)
    with Served(no_auth=True) as served, socket.create_connection(("127.0.0.1", served.front_end.port)) as connection:
        connection.settimeout(UNTIL_S)
        head = (
            f"POST {LIST} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        )
        connection.sendall(head.encode() + b"{")
        assert b" 408 " in connection.recv(1000).splitlines()[0]
        assert served.post(LIST, signed=False)[0] == 200


def test_an_answer_that_nobody_reads_holds_up_nobody_else() -> None:
    with Served(no_auth=True) as served:
        add_queue(served.client())
        for n in range(20):
            served.run(served.kernel.register_job_definition(f"d{n}", command=["x" * 20_000]))
        connections = []
        try:
            for _ in range(5):
                connection = socket.create_connection(("127.0.0.1", served.front_end.port))
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connections.append(connection)
                body = b"{}"
                head = (
                    "POST /v1/describejobdefinitions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(body)}\r\n\r\n"
                )
                connection.sendall((head.encode() + body) * 20)
            assert served.post(LIST, signed=False)[0] == 200
        finally:
            for connection in connections:
                connection.close()


# -- keys that change -------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "RELOAD_S", 0.05)


def code_of(served: Served, key: str, secret: str) -> str | None:
    try:
        served.client(key=key, secret=secret).describe_job_queues()
    except botocore.exceptions.ClientError as e:
        code: str = e.response["Error"]["Code"]
        return code
    return None


def test_keys_and_policies_can_change_while_it_runs(tmp_path: Path, quick: None) -> None:
    keys = tmp_path / "keys.json"
    with Served(credentials=keys) as served:
        first = served.key, served.secret
        assert code_of(served, *first) is None
        content = json.loads(keys.read_text())
        ann = "AKIAANNANNANNANNANN0", "the secret of ann"
        reads = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "batch:Desc*", "Resource": "*"}}
        entry = {"name": "ann", "access_key_id": ann[0], "secret_access_key": ann[1], "policies": [reads]}
        content["principals"].append(entry)
        keys.write_text(json.dumps(content))
        until(lambda: code_of(served, *ann) is None)
        assert code_of(served, *first) is None
        entry["policies"] = []
        keys.write_text(json.dumps(content))
        until(lambda: code_of(served, *ann) == "AccessDeniedException")
        content["principals"].pop()
        replaced = tmp_path / "new"
        replaced.write_text(json.dumps(content))
        replaced.chmod(0o600)
        replaced.rename(keys)
        until(lambda: code_of(served, *ann) == "UnrecognizedClientException")
        assert code_of(served, *first) is None


def test_a_file_of_keys_with_a_mistake_changes_nothing(
    tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys.json"
    with Served(credentials=keys) as served:
        good = keys.read_text()
        first = served.key, served.secret
        for change in ("{", good.replace('"admin"', '"a b"')):
            keys.write_text(change)
            until(lambda: "credentials_not_read_again" in caplog.text + capsys.readouterr().out)
            caplog.clear()
            assert code_of(served, *first) is None
        keys.chmod(0o644)
        until(lambda: "chmod 600" in caplog.text + capsys.readouterr().out)
        assert code_of(served, *first) is None
        keys.unlink()
        assert code_of(served, *first) is None
