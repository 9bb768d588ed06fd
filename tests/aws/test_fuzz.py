"""Whatever a client sends: never a 500, and never a changed state after a refusal.

The values are generated from botocore's model: every member of every operation with values of its own type at and
beyond its limits, and with values of every other type; and whole requests mixed at random.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

import pytest
from anybatch.plugins.aws import listener
from anybatch.plugins.aws.operations import ECS, LOGS, NOT_SERVED, SERVED, TAG_OPERATIONS
from aws_rig import EC2, Served, add_queue, container, define, service_model

MODEL: Final = service_model()
ODD: Final[list[Any]] = [
    None, True, False, 0, -1, 1, 1.5, 1e308, 2**63, -(2**63) - 1, 10**40, "", "x", "\0", "\u0000\ud7ff\U0001f600",
    "x" * 5000, "arn:aws:batch:us-east-1:123456789012:job-queue/q", "arn:", "NaN", [], [None], [[]], {}, {"": ""},
    {"a": {"b": []}}, [1, "x", {}], "../../etc/passwd", "%s%n", "Ref::x", "*", "-",
]  # fmt: skip
WORDS: Final = ("q", "ok", "x1", "spare", "ok:1", "", "10", "a*")
MIXED: Final = 1500
SEED: Final = 8


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served(no_auth=True) as served:
        client = served.client()
        add_queue(client)
        add_queue(client, "spare", state="DISABLED")
        define(client, "ok", "true")
        served.kernel._live.placing = False  # no job runs, so that nothing happens but what calls bring about
        yield served


GOOD: Final[dict[str, dict[str, Any]]] = {
    "SubmitJob": {"jobName": "x", "jobQueue": "q", "jobDefinition": "ok"},
    "DescribeJobs": {"jobs": ["0668da57-1bcc-478b-bc14-5d4f1c1cef48"]},
    "ListJobs": {"jobQueue": "q"},
    "CancelJob": {"jobId": "0668da57-1bcc-478b-bc14-5d4f1c1cef48", "reason": "x"},
    "RegisterJobDefinition": {
        "jobDefinitionName": "fuzzed", "type": "container", "containerProperties": container("true"),
    },
    "CreateJobQueue": {
        "jobQueueName": "new", "priority": 1, "computeEnvironmentOrder": [{"order": 1, "computeEnvironment": "q"}],
    },
    "UpdateJobQueue": {"jobQueue": "spare"},
    "CreateComputeEnvironment": {"computeEnvironmentName": "new", "type": "MANAGED", "computeResources": dict(EC2)},
    "UpdateComputeEnvironment": {"computeEnvironment": "spare"},
}  # fmt: skip


class Caller:
    """Calls over one connection, and looks at the state after each refusal."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.connection = http.client.HTTPConnection("127.0.0.1", served.front_end.port, timeout=60)
        self.calls = 0
        self.refused = 0

    def events(self) -> int:
        """How many facts the kernel has recorded; nothing runs here, so they are all of calls."""

        async def look() -> int:
            return (await self.served.kernel.last_event_id()).sequence

        return self.served.run(look())

    def call(self, path: str, body: bytes, *, method: str = "POST", look: bool = True, **headers: str) -> int:
        before = self.events() if look else 0
        sent = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
        self.connection.request(method, path, body, sent)
        with self.connection.getresponse() as response:
            status, answer = response.status, json.loads(response.read())
        self.calls += 1
        assert status < 500, (path, body[:2000], answer)
        if status != 200:
            self.refused += 1
            assert 400 <= status < 500
            assert set(answer) == {"message", "__type"}
            if look:
                assert self.events() == before, (path, body[:2000], answer)
        return status


@pytest.fixture
def caller(served: Served) -> Iterator[Caller]:
    found = Caller(served)
    yield found
    found.connection.close()


def values(shape: Any, rng: random.Random, depth: int = 0) -> Any:
    """A value of a shape: mostly well formed, at times at a limit."""
    match shape.type_name:
        case "structure":
            names = [n for n in shape.members if n in shape.required_members or rng.random() < 0.4 / (depth + 1)]
            return {name: mixed(shape.members[name], rng, depth + 1) for name in names}
        case "list":
            return [mixed(shape.member, rng, depth + 1) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
        case "map":
            return {rng.choice(("a", "b c", "", "aws:x")): mixed(shape.value, rng, depth + 1) for _ in range(2)}
        case "string":
            return rng.choice(shape.enum or WORDS)
        case "integer" | "long":
            return rng.choice((0, 1, 2, 5, 60, 100, 1000, 10_000, 10_001, -1, 2**31, 2**40))
        case "boolean":
            return rng.random() < 0.5
        case _:
            return 1.5


def mixed(shape: Any, rng: random.Random, depth: int) -> Any:
    return rng.choice(ODD) if rng.random() < 0.05 else values(shape, rng, depth)


def members(shape: Any, path: tuple[Any, ...] = (), depth: int = 0) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every place in a request, with its shape."""
    if depth > 7:
        return
    if path:
        yield path, shape
    match shape.type_name:
        case "structure":
            for name, member in shape.members.items():
                yield from members(member, (*path, name), depth + 1)
        case "list":
            yield from members(shape.member, (*path, 0), depth + 1)
        case "map":
            yield from members(shape.value, (*path, "key"), depth + 1)


def filled(shape: Any, depth: int = 0) -> Any:
    """The smallest value that has what is required."""
    match shape.type_name:
        case "structure":
            return {name: filled(shape.members[name], depth + 1) for name in shape.required_members}
        case "list":
            return [filled(shape.member, depth + 1)]
        case "map":
            return {"key": filled(shape.value, depth + 1)}
        case "string":
            return shape.enum[0] if shape.enum else "x"
        case "boolean":
            return True
        case _:
            return 1


def put(request: Any, shape: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The request with this value at a place; what is missing on the way is made."""
    if not path:
        return value
    head, *rest = path
    if shape.type_name == "list":
        inner = request[0] if isinstance(request, list) and request else filled(shape.member)
        return [put(inner, shape.member, tuple(rest), value)]
    if shape.type_name == "map":
        return {"key": put(None, shape.value, tuple(rest), value)}
    found = dict(request) if isinstance(request, dict) else filled(shape)
    found[head] = put(found.get(head), shape.members[head], tuple(rest), value)
    return found


def clear(served: Served) -> None:
    """Remove what accepted calls have made, so that limits on counts do not hide everything else."""
    client = served.client()
    for queue in client.describe_job_queues()["jobQueues"]:
        if queue["jobQueueName"] not in ("q", "spare"):
            client.update_job_queue(jobQueue=queue["jobQueueName"], state="DISABLED")
            client.delete_job_queue(jobQueue=queue["jobQueueName"])
    for environment in client.describe_compute_environments()["computeEnvironments"]:
        if environment["computeEnvironmentName"] not in ("q", "spare"):
            client.update_compute_environment(
                computeEnvironment=environment["computeEnvironmentName"], state="DISABLED"
            )
            client.delete_compute_environment(computeEnvironment=environment["computeEnvironmentName"])


@pytest.mark.parametrize("name", [operation.name for operation in SERVED])
def test_w_11_every_type_in_every_place_of_every_operation(served: Served, caller: Caller, name: str) -> None:
    shape = MODEL.operation_model(name).input_shape
    rng = random.Random(SEED)
    base = GOOD.get(name, filled(shape))
    for path, _ in members(shape):
        few = ODD if len(path) <= 1 else rng.sample(ODD, 4)
        for value in few:
            body = json.dumps(put(base, shape, path, value)).encode()
            caller.call(f"/v1/{name.lower()}", body, look=len(path) == 1)
    assert caller.refused
    clear(served)


def test_requests_mixed_at_random_change_nothing_when_refused(served: Served, caller: Caller) -> None:
    rng = random.Random(SEED)
    names = [operation.name for operation in SERVED]
    for _ in range(MIXED):
        name = rng.choice(names)
        request = values(MODEL.operation_model(name).input_shape, rng)
        if name in GOOD and rng.random() < 0.5:
            request = {**GOOD[name], **request}
        caller.call(f"/v1/{name.lower()}", json.dumps(request).encode(), look=rng.random() < 0.3)
    assert MIXED // 4 < caller.refused < MIXED
    clear(served)


def test_tags_of_any_arn_with_any_body(served: Served, caller: Caller) -> None:
    arns = [
        "",
        "x",
        "arn:aws:batch:us-east-1:1:job-queue/q",
        "arn:aws:batch:us-east-1:1:job/\u00fc",
        "%FF",
        "%",
        "a/b/c",
        "\0",
    ]
    for arn in arns:
        path = "/v1/tags/" + (arn if arn.startswith("%") else quote(arn, safe=""))
        for value in ODD:
            caller.call(path, json.dumps({"tags": value}).encode(), look=False)
        for method in ("GET", "DELETE"):
            for query in ("", "?tagKeys=a", "?tagKeys=", "?x=%FF&tagKeys=%FF", "?&&=&"):
                caller.call(path + query, b"", method=method, look=False)
    assert caller.calls > 200
    assert set(TAG_OPERATIONS) == {"GET", "POST", "DELETE"}


def test_the_other_services_and_what_is_not_served(served: Served, caller: Caller) -> None:
    rng = random.Random(SEED)
    for service, prefix, operations in (
        ("logs", "Logs_20140328", LOGS),
        ("ecs", "AmazonEC2ContainerServiceV20141113", ECS),
    ):
        for operation in operations:
            shape = service_model(service).operation_model(operation.name).input_shape
            for _ in range(60):
                body = json.dumps(mixed(shape, rng, 0)).encode()
                caller.call("/", body, look=False, X_Amz_Target=f"{prefix}.{operation.name}")
    for name in NOT_SERVED[:5]:
        caller.call(f"/v1/{name.lower()}", b"\xff", look=False)
    for target in ("", "Logs_20140328.Nope", "x" * 5000):
        caller.call("/", b"{}", look=False, X_Amz_Target=target)


def test_malformed_bodies(served: Served, caller: Caller) -> None:
    for body in (
        b"", b" ", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"{" * 100_000, b"[" * 100_000, b'{"a":' * 50_000,
        b"{}{}", b'{"jobName": "\\ud800"}', b'{"jobName": 1e999}', b"\0" * 10, "{\u00fc}".encode("utf-16"),
    ):  # fmt: skip
        for path in ("/v1/submitjob", "/v1/describejobqueues", "/v1/tags/x"):
            caller.call(path, body)
    status, answer, headers = served.post("/v1/submitjob", b"{" + b" " * (2 << 20) + b"}", signed=False)
    assert (status, headers["x-amzn-ErrorType"]) == (413, "ClientException")


def test_clients_that_are_slow_or_speak_no_http_hold_up_nobody(served: Served) -> None:
    address = ("127.0.0.1", served.front_end.port)
    slow = [socket.create_connection(address) for _ in range(50)]
    try:
        begun = b"POST /v1/submitjob HTTP/1.1\r\nHost: localhost\r\nContent-Le"
        for n, connection in enumerate(slow):
            connection.sendall((begun, b"\x16\x03\x01", b"\r\n", b"")[n % 4])
        assert served.post("/v1/describejobqueues", signed=False)[0] == 200
    finally:
        for connection in slow:
            connection.close()
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n")
        connection.settimeout(60)
        assert connection.recv(100).split()[1] == b"400"
    with urllib.request.urlopen(
        urllib.request.Request(served.url + "/v1/describejobqueues", b"{}", {"Content-Type": "application/json"})
    ) as answer:
        assert answer.status == 200


def test_connections_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "CONNECTIONS_MAX", 5)
    monkeypatch.setattr(listener, "READ_S_MAX", 0.5)
    with Served(no_auth=True) as served:
        address = ("127.0.0.1", served.front_end.port)
        silent = [socket.create_connection(address, timeout=60) for _ in range(8)]
        for connection in silent:  # three at once, the others when they have said nothing for too long
            with connection:
                connection.sendall(b"POST /v1/describejobqueues HTTP/1.1\r\nHost: loc")
                assert gone(connection)
        assert served.post("/v1/describejobqueues", signed=False)[0] == 200


def gone(connection: socket.socket) -> bool:
    try:
        return connection.recv(10) == b""
    except ConnectionError:
        return True
