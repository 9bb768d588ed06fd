"""HyperQueue's local cluster (server and worker in this process): /bin/true as the tasks of one job."""

from __future__ import annotations

import os
import tempfile
from importlib import metadata
from pathlib import Path

from peer import TRUE, Took, run


def measure(n: int, slots: int, work: str) -> tuple[Took, str]:
    from hyperqueue import Job, LocalCluster
    from hyperqueue.cluster import WorkerConfig

    if work != "true":
        raise FileNotFoundError("a task of HyperQueue is a process")
    folder = tempfile.mkdtemp()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with LocalCluster(server_dir=folder, worker_config=WorkerConfig(cores=slots)) as cluster:
        client = cluster.client()
        warm = Job()
        warm.program([TRUE], stdout=None, stderr=None)
        client.wait_for_jobs([client.submit(warm)])
        with Took() as took:
            job = Job(default_workdir=Path(folder))
            for _ in range(n):
                job.program([TRUE], stdout=None, stderr=None)
            client.wait_for_jobs([client.submit(job)])
        version = metadata.version("hyperqueue")
        report(took, version, n)
    return took, version


def report(took: Took, version: str, n: int) -> None:
    """Print at once: the cluster takes its time to end."""
    run("hyperqueue", lambda *_: (took, version))


if __name__ == "__main__":
    run("hyperqueue", measure)
