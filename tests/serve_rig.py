"""`anybatch serve --bind` in a process of its own, for the tests of the AWS front end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import boto3
import botocore.config
from aws_rig import UNTIL_S

SERVE: Final = [sys.executable, "-m", "anybatch", "serve"]


class Service:
    """A process that serves."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        read, write = os.pipe()
        out = (folder / "out").open("w")
        with out:
            self.process = subprocess.Popen(
                [*SERVE, "--journal", str(folder / "b.db"), "--ready-fd", str(write), *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=[write],
                start_new_session=True,
                cwd=folder,
                env={**os.environ, **environment},
            )
        os.close(write)
        with os.fdopen(read) as ready:
            assert ready.read() == "ready\n", (folder / "out").read_text()
        self.out = (folder / "out").read_text()
        lines = [line.strip() for line in self.out.splitlines()]
        self.exported = dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))

    def client(self, service: str = "batch") -> Any:
        session = boto3.Session(
            self.exported["AWS_ACCESS_KEY_ID"],
            self.exported["AWS_SECRET_ACCESS_KEY"],
            region_name=self.exported["AWS_REGION"],
        )
        config = botocore.config.Config(retries={"total_max_attempts": 1})
        return session.client(service, endpoint_url=self.exported["AWS_ENDPOINT_URL_BATCH"], config=config)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(UNTIL_S)


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, **environment: str) -> Iterator[Service]:
    service = Service(folder, *arguments, **environment)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()
