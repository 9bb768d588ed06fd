"""The AWS API, beside moto's server: SubmitJob and DescribeJobs of 100 ids, with and without signature checks.

Each server is a process of its own; the load comes from this one, over a few connections that stay open, with requests
made and signed beforehand, so that the client's work is small. moto's server is started from the Python that
ANYBATCH_BENCH_PEERS names (with moto[server,batch]), with its simple Batch, which makes no containers; where there is
none its figures are left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anybatch
import botocore.auth
import botocore.awsrequest
import botocore.credentials
from anybatch.cli.collector import settle
from anybatch.plugins.aws import AwsFrontEnd, AwsSettings
from harness import Figure, figure, folder, main

REGION = "us-east-1"
READY_S = 60
ROUTE = {
    "SubmitJob": "/v1/submitjob", "DescribeJobs": "/v1/describejobs", "CreateJobQueue": "/v1/createjobqueue",
    "CreateComputeEnvironment": "/v1/createcomputeenvironment",
    "UpdateComputeEnvironment": "/v1/updatecomputeenvironment", "RegisterJobDefinition": "/v1/registerjobdefinition",
}  # fmt: skip
PEER_CODE = """
import sys
import boto3
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
iam = boto3.client("iam", "us-east-1", endpoint_url=f"http://{host}:{port}",
                   aws_access_key_id="x", aws_secret_access_key="x")
role = iam.create_role(RoleName="batch", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
print(port, role, flush=True)
sys.stdin.read()
"""
ROLE = "arn:aws:iam::123456789012:role/batch"


class Target(NamedTuple):
    """A server under load."""

    port: int
    key: str
    secret: str


def request(target: Target, operation: str, body: dict[str, Any]) -> bytes:
    """A whole request, signed."""
    data = json.dumps(body).encode()
    url = f"http://127.0.0.1:{target.port}{ROUTE[operation]}"
    found = botocore.awsrequest.AWSRequest("POST", url, {"Content-Type": "application/json"}, data)
    credentials = botocore.credentials.Credentials(target.key, target.secret)
    botocore.auth.SigV4Auth(credentials, "batch", REGION).add_auth(found)
    lines = [f"POST {ROUTE[operation]} HTTP/1.1", f"Host: 127.0.0.1:{target.port}", f"Content-Length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in found.headers.items() if name.lower() != "host"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bytes:
    """One answer's body."""
    writer.write(data)
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").lower().split("\r\n")
    length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
    body = await reader.readexactly(length)
    assert lines[0].split()[1] == "200", body[:500]
    if "connection: close" in lines:
        raise ConnectionError("the server closes its connections")
    return body


async def load(target: Target, requests: Sequence[bytes], connections: int) -> tuple[float, list[float], list[bytes]]:
    """Send all of them; returns the seconds it took, the latencies and the answers."""
    waiting = iter(requests)
    latencies: list[float] = []
    answers: list[bytes] = []

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        try:
            for data in waiting:
                began = time.perf_counter()
                try:
                    answers.append(await send(reader, writer, data))
                except (ConnectionError, asyncio.IncompleteReadError):  # moto's server closes after each answer
                    writer.close()
                    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
                    continue
                finally:
                    latencies.append(time.perf_counter() - began)
        finally:
            writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(connections)))
    return time.perf_counter() - began, latencies, answers


async def once(target: Target, operation: str, body: dict[str, Any]) -> Any:
    _, _, answers = await load(target, [request(target, operation, body)], 1)
    return json.loads(answers[0]) if answers else None


# -- servers ------------------------------------------------------------------------------------------


async def serve(journal: str, auth: bool) -> None:
    """Our server, in a process of its own; it ends with its standard input."""
    async with anybatch.Kernel(journal) as kernel:
        front_end = AwsFrontEnd(
            kernel, bind="127.0.0.1:0", settings=AwsSettings(images="local"), no_auth=not auth,
        )  # fmt: skip
        async with front_end:
            first = front_end.identity.first if front_end.identity is not None else None
            key, secret = ("none", "none") if first is None else (first.key, first.secret)
            settle()  # as `anybatch serve` does
            print(json.dumps([front_end.port, key, secret]), flush=True)
            await asyncio.to_thread(sys.stdin.read)


@contextlib.asynccontextmanager
async def ours(path: Path, *, auth: bool) -> AsyncIterator[Target]:
    command = [sys.executable, __file__, "--serve", str(path / f"{auth}.db"), "auth" if auth else "none"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Target(*json.loads(process.stdout.readline()))
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(READY_S)


@contextlib.asynccontextmanager
async def moto(python: str) -> AsyncIterator[Target]:
    process = subprocess.Popen(
        [python, "-c", PEER_CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().split()[0])
        body = json.dumps({"batch": {"use_docker": False}}).encode()
        urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/config", body, READY_S).close()
        yield Target(port, "AKIDEXAMPLE", "secret")
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.kill()
        process.wait(READY_S)


def has_moto(python: str) -> bool:
    done = subprocess.run([python, "-c", "import moto.moto_server.threaded_moto_server, flask"], capture_output=True)
    return done.returncode == 0


# -- figures ------------------------------------------------------------------------------------------


async def prepare(target: Target) -> None:
    environment: dict[str, Any] = {"computeEnvironmentName": "bench-env", "type": "UNMANAGED", "serviceRole": ROLE}
    await once(target, "CreateComputeEnvironment", environment)
    order = [{"order": 1, "computeEnvironment": f"arn:aws:batch:{REGION}:123456789012:compute-environment/bench-env"}]
    queue = {"jobQueueName": "bench-queue", "priority": 1, "state": "ENABLED", "computeEnvironmentOrder": order}
    await once(target, "CreateJobQueue", queue)
    needs = [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "16"}]
    container = {"image": "busybox", "command": ["true"], "resourceRequirements": needs}
    definition = {"jobDefinitionName": "bench-definition", "type": "container", "containerProperties": container}
    await once(target, "RegisterJobDefinition", definition)
    # All of it waits: what is measured is the API.
    await once(target, "UpdateComputeEnvironment", {"computeEnvironment": "bench-env", "state": "DISABLED"})


def figures(name: str, count: int, took: float, latencies: Sequence[float], peer: str | None) -> list[Figure]:
    ordered = sorted(latencies)
    return [
        figure(f"{name}_per_s", count / took, "1/s", better="more", peer=peer and f"{peer}_per_s"),
        figure(f"{name}_p50_ms", statistics.median(ordered) * 1e3, "ms", peer=peer and f"{peer}_p50_ms"),
        figure(f"{name}_p99_ms", ordered[int(len(ordered) * 0.99)] * 1e3, "ms", peer=peer and f"{peer}_p99_ms"),
    ]


async def both(
    target: Target, name: str, submits: int, describes: int, connections: int, peer: str | None
) -> list[Figure]:
    """SubmitJob, then DescribeJobs of 100 of the jobs."""
    body = {"jobName": "bench-job", "jobQueue": "bench-queue", "jobDefinition": "bench-definition"}
    await once(target, "SubmitJob", body)
    took, latencies, answers = await load(target, [request(target, "SubmitJob", body)] * submits, connections)
    found = figures(f"submit_{name}", submits, took, latencies, peer and f"submit_{peer}")
    ids = [json.loads(answer)["jobId"] for answer in answers][:100]
    describe = request(target, "DescribeJobs", {"jobs": ids})
    took, latencies, answers = await load(target, [describe] * describes, connections)
    assert all(len(json.loads(answer)["jobs"]) == len(ids) for answer in answers[:1])
    return found + figures(f"describe100_{name}", describes, took, latencies, peer and f"describe100_{peer}")


async def arrays(target: Target, turns: int) -> list[Figure]:
    """The latency of one SubmitJob at a time: a single job, and an array of 10,000 children, in turns."""
    body = {"jobName": "bench-job", "jobQueue": "bench-queue", "jobDefinition": "bench-definition"}
    single = request(target, "SubmitJob", body)
    array = request(target, "SubmitJob", {**body, "arrayProperties": {"size": 10_000}})
    times: dict[bytes, list[float]] = {single: [], array: []}
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    for turn in range(turns + 1):
        for data in times:
            began = time.perf_counter()
            await send(reader, writer, data)
            if turn:
                times[data].append(time.perf_counter() - began)
    writer.close()
    return [
        figure("submit_single_ms", statistics.median(times[single]) * 1e3, "ms"),
        figure("submit_array_10000_ms", statistics.median(times[array]) * 1e3, "ms", peer="submit_single_ms"),
    ]


async def measure(
    submits: int = 6000, describes: int = 600, peer_submits: int = 600, turns: int = 30, connections: int = 32
) -> list[Figure]:
    found: list[Figure] = []
    python = os.environ.get("ANYBATCH_BENCH_PEERS", sys.executable)
    peer = None
    if has_moto(python):
        peer = "moto"
        async with moto(python) as target:
            await prepare(target)
            found += await both(target, peer, peer_submits, max(1, describes // 10), connections, None)
    with folder() as path:
        for auth in (True, False):
            async with ours(path, auth=auth) as target:
                await prepare(target)
                found += await both(target, "signed" if auth else "no_auth", submits, describes, connections, peer)
                if auth:
                    found += await arrays(target, turns)
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(serve(sys.argv[2], sys.argv[3] == "auth"))
    else:
        main(measure)
