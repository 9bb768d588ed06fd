"""Parsl's thread pool in this process: python apps."""

from __future__ import annotations

import tempfile
from concurrent.futures import wait

from peer import WARM_UP, WORK, Took, run


def measure(n: int, slots: int, work: str) -> tuple[Took, str]:
    import parsl
    from parsl.config import Config
    from parsl.executors import ThreadPoolExecutor

    app = parsl.python_app(WORK[work])
    pool = ThreadPoolExecutor(max_threads=slots)
    with tempfile.TemporaryDirectory() as folder:
        config = Config(executors=[pool], run_dir=folder, usage_tracking=0, initialize_logging=False, strategy="none")
        with parsl.load(config):
            wait([app(i) for i in range(WARM_UP)])
            with Took() as took:
                futures = [app(i) for i in range(n)]
                wait(futures)
            assert all(future.exception() is None for future in futures)
    return took, parsl.__version__


if __name__ == "__main__":
    run("parsl_threads", measure)
