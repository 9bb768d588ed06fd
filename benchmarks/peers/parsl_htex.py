"""Parsl's HighThroughputExecutor with a local block: python apps in worker processes."""

from __future__ import annotations

import os
import sys
import tempfile
from concurrent.futures import wait

from peer import WARM_UP, WORK, Took, run


def measure(n: int, slots: int, work: str) -> tuple[Took, str]:
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    here = os.path.dirname(os.path.abspath(__file__))
    os.environ["PATH"] = os.path.dirname(sys.executable) + ":" + os.environ["PATH"]
    os.environ["PYTHONPATH"] = here
    app = parsl.python_app(WORK[work])
    pool = HighThroughputExecutor(
        max_workers_per_node=slots,
        address="127.0.0.1",
        cores_per_worker=0.01,
        encrypted=False,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        config = Config(executors=[pool], run_dir=folder, usage_tracking=0, initialize_logging=False, strategy="none")
        with parsl.load(config):
            wait([app(i) for i in range(WARM_UP)])
            with Took() as took:
                futures = [app(i) for i in range(n)]
                wait(futures)
            assert all(future.exception() is None for future in futures)
        os.chdir("/")
    return took, parsl.__version__


if __name__ == "__main__":
    run("parsl_htex", measure)
