"""arq and saq on a Redis server of their own: everything is enqueued while a worker process runs.

The tool is named by the file's second argument, "arq" or "saq". A counter in Redis says how many tasks are done.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from peer import Took, run

TOOL = sys.argv[2] if len(sys.argv) > 2 else "saq"
ENQUEUED_AT_ONCE = 50  # calls in flight: a caller that awaits each would measure its round trips
STARTS_S = 20.0

Call = Callable[[int], Awaitable[Any]]
BODY = {"noop": "pass", "true": "assert await (await asyncio.create_subprocess_exec('/bin/true')).wait() == 0"}
ARQ = """
import asyncio
from arq.connections import RedisSettings
async def work(ctx, i):
    {body}
    await ctx["redis"].incr("done")
class WorkerSettings:
    functions = [work]
    redis_settings = RedisSettings(port={port})
    max_jobs = {slots}
    poll_delay = 0.01
    keep_result = 0
"""
SAQ = """
import asyncio
import redis.asyncio
from saq import Queue
queue = Queue.from_url("redis://127.0.0.1:{port}")
counter = redis.asyncio.Redis(port={port})
async def work(ctx, *, i):
    {body}
    await counter.incr("done")
settings = {{"queue": queue, "functions": [work], "concurrency": {slots}}}
"""


def measure(n: int, slots: int, work: str) -> tuple[Took, str]:
    version = metadata.version(TOOL)  # PackageNotFoundError is an ImportError
    import redis

    server, folder = shutil.which("redis-server"), tempfile.mkdtemp()
    if server is None:
        raise FileNotFoundError("there is no redis-server")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL)]
    client = redis.Redis(port=port)
    try:
        until(lambda: answers(client))
        source = (ARQ if TOOL == "arq" else SAQ).format(body=BODY[work], port=port, slots=slots)
        (Path(folder) / "tasks.py").write_text(source)
        sys.path.insert(0, folder)
        program = str(Path(sys.executable).with_name(TOOL))
        worker = [program, "tasks.WorkerSettings" if TOOL == "arq" else "tasks.settings"]
        environment = {**os.environ, "PYTHONPATH": folder}
        quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        processes.append(subprocess.Popen(worker, env=environment, cwd=folder, **quiet))
        took = asyncio.run(timed(client, n))
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)
    return took, version


async def timed(client: Any, n: int) -> Took:
    await enqueue(2)
    await asyncio.to_thread(until, lambda: int(client.get("done") or 0) >= 2)
    with Took() as took:
        await enqueue(n)
        await asyncio.to_thread(until, lambda: int(client.get("done")) >= n + 2, 600.0)
    return took


async def enqueue(count: int) -> None:
    import tasks

    if TOOL == "arq":
        from arq import create_pool

        pool = await create_pool(tasks.WorkerSettings.redis_settings)
        call: Call = lambda i: pool.enqueue_job("work", i)  # noqa: E731
    else:
        await tasks.queue.connect()
        call = lambda i: tasks.queue.enqueue("work", i=i, timeout=0)  # noqa: E731
    for start in range(0, count, ENQUEUED_AT_ONCE):
        await asyncio.gather(*(call(i) for i in range(start, min(start + ENQUEUED_AT_ONCE, count))))


def answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except OSError:
        return False
    except Exception as error:
        if "Connection" in type(error).__name__:
            return False
        raise


def until(condition: Any, seconds: float = STARTS_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("nothing happens")
        time.sleep(0.005)


if __name__ == "__main__":
    run(TOOL, measure)
