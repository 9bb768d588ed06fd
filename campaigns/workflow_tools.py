"""Workflow tools that speak AWS Batch, unmodified, against `anybatch serve`.

Each tool gets a virtual environment of its own (made at the first run, kept), and is told of the server by the export
lines alone. What is checked is what its users see: a job that succeeds, one that fails with its log, an array, and that
what the tool asked for is what ran.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

TOOLS: Final = {
    "airflow": ["apache-airflow==3.3.2", "apache-airflow-providers-amazon==9.39.0"],
    "luigi": ["luigi==3.8.1", "boto3"],
    "metaflow": ["metaflow==2.19.39", "boto3", "requests", "moto[s3,server]==5.2.5"],
    "redun": [
        "redun==0.44.1", "aiobotocore==2.25.2", "awscli==1.42.70", "boto3==1.40.70", "botocore==1.40.70",
        "s3fs==2025.10.0", "moto[s3,server]==5.2.5",
    ],
}  # fmt: skip
"""The packages of each; pip looks for minutes, or without end, for those of redun if their versions are not said."""
SAYS: Final = {"airflow": "before the end"}
ROLES: Final = '[roles.tool]\nprincipal = "admin"\n'
"""Of the server's configuration: jobs of some tools have a role, whose credentials they take to S3."""
"""What has to be in a tool's own output: the log of the job that failed."""
RUN_S_MAX: Final = 300
SCRIPTS: Final = Path(__file__).parent


def environment_of(tool: str, folder: Path) -> Path:
    """The tool's Python; installed if it is not there."""
    place = folder / tool
    python = place / "bin" / "python"
    if not (place / "installed").exists():
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *TOOLS[tool]], check=True)
        (place / "installed").touch()
    return python


class Server:
    """`anybatch serve` with local images, and the environment that its export lines make."""

    def __init__(self, folder: Path) -> None:
        (folder / "aws.toml").write_text(ROLES)
        read, write = os.pipe()
        command = [sys.executable, "-m", "anybatch", "serve", "--bind", "127.0.0.1:0", "--images", "local"]
        command += [
            "--aws-config",
            str(folder / "aws.toml"),
            "--journal",
            str(folder / "batch.db"),
            "--ready-fd",
            str(write),
        ]
        self._out = folder / "out"
        with self._out.open("w") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, pass_fds=[write])
        os.close(write)
        with os.fdopen(read) as ready:
            if ready.read() != "ready\n":
                raise SystemExit(f"the server does not start: {self._out.read_text()}")
        lines = [
            line.strip().removeprefix("export ") for line in self._out.read_text().splitlines() if "export " in line
        ]
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        self.environment = {**kept, **dict(line.split("=", 1) for line in lines), "HOME": str(folder)}

    def end(self) -> None:
        """SIGTERM, and what it said if that is not the end of it."""
        self._process.send_signal(signal.SIGTERM)
        if self._process.wait(60) != 0:
            raise SystemExit(f"the server failed: {self._out.read_text()}")


def run(tool: str, python: Path) -> dict[str, object]:
    """What the tool's script found; it says "ok" or what went wrong."""
    with tempfile.TemporaryDirectory(prefix=f"ab-{tool}-") as name:
        folder = Path(name)
        server = Server(folder)
        try:
            done = subprocess.run(
                [python, str(SCRIPTS / f"tools_{tool}.py")],
                cwd=folder,
                env=server.environment,
                capture_output=True,
                text=True,
                timeout=RUN_S_MAX,
            )
        finally:
            server.end()
        found: dict[str, object] = {"tool": tool, "packages": TOOLS[tool], "verdict": "ok"}
        said = done.stdout + done.stderr
        if done.returncode != 0 or SAYS.get(tool, "") not in said:
            found |= {"verdict": "failed", "said": said[-6000:]}
        return found


def main() -> int:
    """Run the tools; the exit status is 1 if any fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tools", nargs="*", choices=[[], *TOOLS], help="which (default: all)")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "anybatch-workflow-tools")
    options = parser.parse_args()
    failed = False
    for tool in options.tools or TOOLS:
        found = run(tool, environment_of(tool, options.environments))
        failed = failed or found["verdict"] != "ok"
        sys.stdout.write(f"{json.dumps(found, indent=1)}\n")
        sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
