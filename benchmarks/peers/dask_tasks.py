"""Dask's distributed scheduler: a local cluster of two worker processes, one future per task."""

from __future__ import annotations

from peer import WARM_UP, WORK, Took, run


def measure(n: int, slots: int, work: str) -> tuple[Took, str]:
    import distributed

    workers = {"n_workers": min(2, slots), "threads_per_worker": max(1, slots // 2), "processes": True}
    with distributed.LocalCluster(dashboard_address=None, **workers) as cluster, distributed.Client(cluster) as client:
        client.gather(client.map(WORK[work], range(WARM_UP), pure=False))
        with Took() as took:
            futures = client.map(WORK[work], range(n), pure=False)
            distributed.wait(futures)
        assert all(future.status == "finished" for future in futures)
        del futures
    return took, distributed.__version__


if __name__ == "__main__":
    run("dask", measure)
