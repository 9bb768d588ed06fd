"""Ray on this machine: one remote function call per task."""

from __future__ import annotations

import os

from peer import WARM_UP, WORK, Took, run


def measure(n: int, slots: int, work: str) -> tuple[Took, str]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = os.path.dirname(os.path.abspath(__file__))  # for the workers
    import ray

    ray.init(num_cpus=slots, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    task = ray.remote(WORK[work])
    ray.get([task.remote(i) for i in range(WARM_UP * slots)])  # its workers start one by one
    with Took() as took:
        ray.get([task.remote(i) for i in range(n)])
    version = ray.__version__
    ray.shutdown()
    return took, version


if __name__ == "__main__":
    run("ray", measure)
