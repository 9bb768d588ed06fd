"""What the tests of the AWS front end share: a kernel and front end in a thread, real clients, a judge of answers.

The judge compares every answer that a boto3 client of this rig gets with botocore's own model: a member that the model
does not know, or one that it requires and that is missing, fails the test.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import anybatch
import boto3
import botocore.auth
import botocore.awsrequest
import botocore.config
import botocore.credentials
import botocore.session
import pytest
from anybatch.plugins.aws import AwsFrontEnd, AwsSettings

T = TypeVar("T")

UNTIL_S: Final = 60.0
REGION: Final = "us-east-1"
ABSENT: Final[dict[str, frozenset[str]]] = {
    # W-16: required in the model, absent until there is something to say.
    "JobDetail": frozenset({"startedAt"}),
}


class Served:
    """A kernel with a front end, on an event loop of its own thread."""

    def __init__(self, path: Path | None = None, settings: AwsSettings | None = None, **more: Any) -> None:
        self.settings = settings or AwsSettings(images="local")
        self._path = path
        self._more = more
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="aws-rig", daemon=True)
        self.failure: BaseException | None = None
        self.kernel: anybatch.Kernel
        self.front_end: AwsFrontEnd

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        except BaseException as e:
            self.failure = e
            self._ready.set()
        finally:
            self._loop.close()

    async def _main(self) -> None:
        async with anybatch.Kernel(self._path) as kernel:
            front_end = AwsFrontEnd(kernel, bind="127.0.0.1:0", settings=self.settings, **self._more)
            async with front_end:
                self.kernel, self.front_end = kernel, front_end
                self._ready.set()
                await self._stop.wait()

    def __enter__(self) -> Served:
        self._thread.start()
        assert self._ready.wait(UNTIL_S)
        if self.failure is not None:
            raise self.failure
        return self

    def __exit__(self, *_: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(UNTIL_S)
        assert not self._thread.is_alive()
        if self.failure is not None:
            raise self.failure

    @property
    def url(self) -> str:
        return self.front_end.url

    @property
    def key(self) -> str:
        return "no-auth" if self.front_end.identity is None else self.front_end.identity.first.key

    @property
    def secret(self) -> str:
        return "no-auth" if self.front_end.identity is None else self.front_end.identity.first.secret

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Something on the kernel's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(UNTIL_S)

    def start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """The same, without waiting for its end."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def client(self, service: str = "batch", **more: Any) -> Any:
        """A boto3 client whose answers are judged."""
        session = boto3.Session(
            aws_access_key_id=more.pop("key", self.key),
            aws_secret_access_key=more.pop("secret", self.secret),
            aws_session_token=more.pop("token", None),
            region_name=more.pop("region", REGION),
        )
        config = botocore.config.Config(**{"retries": {"total_max_attempts": 1}, **more})
        client = session.client(service, endpoint_url=self.url, config=config)
        client.meta.events.register("before-parse", _judge)
        return client

    def post(
        self, path: str, body: bytes = b"{}", *, method: str = "POST", signed: bool = True, **headers: str
    ) -> tuple[int, Any, Any]:
        """A bare HTTP call: (status, decoded body, headers)."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if method == "POST":
            headers = {"Content-Type": "application/json", **headers}
        if signed:
            headers = self.sign(path, b"" if method == "GET" else body, method, headers)
        request = urllib.request.Request(
            self.url + path, data=None if method == "GET" else body, method=method, headers=headers
        )
        try:
            with urllib.request.urlopen(request, timeout=UNTIL_S) as answer:
                return answer.status, json.loads(answer.read() or b"null"), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null"), error.headers

    def sign(
        self, path: str, body: bytes, method: str, headers: dict[str, str], *, service: str = "batch"
    ) -> dict[str, str]:
        """The headers of a request that botocore signs."""
        credentials = botocore.credentials.Credentials(self.key, self.secret)
        request = botocore.awsrequest.AWSRequest(method, self.url + path, headers, body)
        botocore.auth.SigV4Auth(credentials, service, REGION).add_auth(request)
        return dict(request.headers)


def _judge(operation_model: Any, response_dict: dict[str, Any], **_: Any) -> None:
    assert "x-amzn-requestid" in {name.lower() for name in response_dict["headers"]}
    if response_dict["status_code"] != 200 or operation_model.output_shape is None:
        return
    if operation_model.service_model.metadata["protocol"] != "query":
        compare(json.loads(response_dict["body"] or b"{}"), operation_model.output_shape, operation_model.name)


def compare(value: Any, shape: Any, path: str) -> None:
    """Fail on what the model does not know, on what it requires and lacks, and on another type."""
    match shape.type_name:
        case "structure":
            assert isinstance(value, dict), (path, value)
            unknown = set(value) - set(shape.members)
            assert not unknown, f"{path}: unknown to the model: {sorted(unknown)}"
            missing = set(shape.required_members) - set(value) - ABSENT.get(shape.name, frozenset())
            assert not missing, f"{path}: missing: {sorted(missing)}"
            for name, member in value.items():
                compare(member, shape.members[name], f"{path}.{name}")
        case "list":
            assert isinstance(value, list), (path, value)
            for n, entry in enumerate(value):
                compare(entry, shape.member, f"{path}[{n}]")
        case "map":
            assert isinstance(value, dict), (path, value)
            for name, entry in value.items():
                compare(entry, shape.value, f"{path}.{name}")
        case "string":
            assert isinstance(value, str), (path, value)
        case "integer" | "long":
            assert type(value) is int, (path, value)
        case "boolean":
            assert type(value) is bool, (path, value)
        case "timestamp" | "float" | "double":
            assert isinstance(value, int | float), (path, value)
        case other:
            raise AssertionError(f"{path}: what is a {other}?")


def service_model(name: str = "batch") -> Any:
    """Botocore's model of a service."""
    return botocore.session.get_session().get_service_model(name)


def until(condition: Callable[[], T | None], what: str = "") -> T:
    """Ask again until there is something, for a bounded time."""
    end = time.monotonic() + UNTIL_S
    while not (found := condition()):
        assert time.monotonic() < end, what or "it never came to that"
        time.sleep(0.02)
    return found


def ended(client: Any, job_id: str) -> dict[str, Any]:
    """A job once it has ended."""

    def look() -> dict[str, Any] | None:
        job: dict[str, Any] = client.describe_jobs(jobs=[job_id])["jobs"][0]
        return job if job["status"] in ("SUCCEEDED", "FAILED") else None

    return until(look, f"{job_id} does not end")


def in_status(client: Any, job_id: str, *statuses: str) -> dict[str, Any]:
    """A job once it has one of these statuses."""

    def look() -> dict[str, Any] | None:
        job: dict[str, Any] = client.describe_jobs(jobs=[job_id])["jobs"][0]
        return job if job["status"] in statuses else None

    return until(look, f"{job_id} does not become {statuses}")


EC2: Final = {
    "type": "EC2", "minvCpus": 0, "maxvCpus": 4, "subnets": ["subnet-1"], "securityGroupIds": ["sg-1"],
    "instanceTypes": ["optimal"], "instanceRole": "ecsInstanceRole",
}  # fmt: skip


def add_queue(client: Any, name: str = "q", *, vcpus: int = 4, **more: Any) -> None:
    """An environment and a queue over it, both of this name."""
    client.create_compute_environment(
        computeEnvironmentName=name, type="MANAGED", computeResources={**EC2, "maxvCpus": vcpus}
    )
    client.create_job_queue(
        jobQueueName=name, priority=1, computeEnvironmentOrder=[{"order": 1, "computeEnvironment": name}], **more
    )


def container(*command: str, **more: Any) -> dict[str, Any]:
    """Container properties."""
    needs = [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "32"}]
    return {"image": "busybox", "command": list(command), "resourceRequirements": needs, **more}


def define(client: Any, name: str, *command: str, **more: Any) -> str:
    """Register a definition that runs this; returns its ARN."""
    arn: str = client.register_job_definition(
        jobDefinitionName=name, type="container", containerProperties=container(*command), **more
    )["jobDefinitionArn"]
    return arn


@contextlib.contextmanager
def refused(client: Any, match: str) -> Iterator[None]:
    """The block is refused with ClientException, in words that contain this."""
    with pytest.raises(client.exceptions.ClientException) as caught:
        yield
    response = caught.value.response
    assert match in response["Error"]["Message"]
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 400
