"""An array on the null backend (nothing is run), journal on disk: what a child costs in the kernel.

Measures, from the call of submit to the return of wait: children/s, beside a bare TaskGroup starting as many
no-op coroutines in the same process; CPU per child; bytes of event records, of the files and written to disk per
child. `engines`: peers of the same benchmark to compare with (benchmarks/peers/). `taskgroup` False leaves that peer
out: then the peak of resident memory is the kernel's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import anybatch
from harness import (
    SLOTS,
    Figure,
    Took,
    figure,
    folder,
    kernel,
    main,
    resident_bytes,
    task_group,
    written_bytes,
)


async def measure(
    size: int = 10_000,
    slots: int = SLOTS,
    taskgroup: bool = True,
    first: str = "kernel",
    engines: Sequence[str] = (),
) -> list[Figure]:
    peer, took = Took(), Took()
    if taskgroup and first == "taskgroup":
        with peer:
            await task_group(size)
    with folder() as path:
        async with kernel(path, slots=slots) as opened:
            await opened.register_job_definition("noop", command=["noop"])
            records, written, resident = record_bytes(path), written_bytes(), resident_bytes()
            with took:
                job = await opened.submit_job("array", queue="q", definition="noop", array_size=size)
                detail = await job.wait()
            assert detail.status is anybatch.JobStatus.SUCCEEDED
            resident = resident_bytes("VmHWM") - resident
        records = record_bytes(path) - records
        files = sum(file.stat().st_size for file in path.glob("batch.db*") if file.is_file())
        written = written_bytes() - written
    if taskgroup and first != "taskgroup":
        with peer:
            await task_group(size)
    at = f"{size}@{slots}"
    found = [
        figure(
            f"us_per_child_{at}",
            took.wall_s / size * 1e6,
            "us",
            peer=None if size == 10_000 else f"us_per_child_10000@{slots}",
            took=took,
        ),
        figure(f"cpu_us_per_child_{at}", took.cpu_s / size * 1e6, "us"),
        figure(f"record_bytes_per_child_{at}", records / size, "B"),
        figure(f"file_bytes_per_child_{at}", files / size, "B"),
        figure(f"written_bytes_per_child_{at}", written / size, "B"),
    ]
    found += [
        figure(f"children_per_s_{at}/{one}", size / took.wall_s, "1/s", better="more", peer=f"{one}_per_s", took=took)
        for one in engines
    ]
    if taskgroup:
        rate, bare = f"children_per_s_{at}", f"taskgroup_per_s_{at}"
        found += [
            figure(rate, size / took.wall_s, "1/s", better="more", peer=bare, took=took),
            figure(bare, size / peer.wall_s, "1/s", better="neither", took=peer),
        ]
    else:
        found.append(figure(f"peak_rise_mb_{at}", resident / 1e6, "MB"))
    return found


def record_bytes(path: Path) -> int:
    """Bytes of event records in the journal so far."""
    db = sqlite3.connect(f"file:{path}/batch.db?mode=ro", uri=True)
    try:
        return int(db.execute("SELECT COALESCE(SUM(LENGTH(data)), 0) FROM log").fetchone()[0])
    finally:
        db.close()


if __name__ == "__main__":
    main(measure)
