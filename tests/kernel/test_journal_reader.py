"""Looking at the journal of a kernel that does not run: all that was committed, and nothing is written."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import anybatch
import pytest
from anybatch import JournalError, NotRunning
from anybatch.kernel.backend import AttemptKey
from kernel_rig import LastingBackend, as_killed, kernel_on, submit, until

pytestmark = pytest.mark.asyncio

GOLDEN = Path(__file__).parents[1] / "journal" / "golden" / "v1.db"


def fingerprint(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file()
    }


async def make(path: Path) -> tuple[LastingBackend, str]:
    """A journal with a job that has ended and an array of which one child has."""
    backend = LastingBackend()
    async with kernel_on(backend, path) as kernel:
        done = await submit(kernel, "done")
        await until(lambda: backend.live)
        backend.exit_all(3)
        await done.wait()
        job = await submit(kernel, "arr", array_size=2)
        await until(lambda: len(backend.live) == 2)
        backend.exit(AttemptKey(job.id, 0, 1))
        await job[0].wait()
        as_killed(path)
    return backend, job.id


@pytest.mark.parametrize("how", ["closed", "killed", "killed and copied"])
async def test_it_shows_what_was_committed_and_writes_nothing(tmp_path: Path, how: str) -> None:
    path = tmp_path / "j.db"
    _, job = await make(path)
    if how != "closed":
        path = tmp_path / "killed-0" / "j.db"
        assert path.with_name("j.db-wal").exists()
    if how == "killed":
        path.with_name("j.db-shm").touch()  # which a kernel leaves, and the copy has not
    before = fingerprint(path.parent)
    async with anybatch.read_journal(path) as kernel:
        assert [(one.name, one.status) async for one in kernel.list_jobs()] == [("arr", "PENDING"), ("done", "FAILED")]
        assert [one.status async for one in kernel.list_jobs(parent=job)] == ["SUCCEEDED", "RUNNING"]
        assert (await kernel.wait("done")).exit_code == 3
        assert (await kernel.wait(f"{job}:0")).status == "SUCCEEDED"
        assert (await kernel.explain(f"{job}:1"))[0].code == "RUNNING"
        (environment,) = await kernel.describe_compute_environments()
        assert environment.hosts[0].attempts == 1
        assert (await kernel.describe_job_queues())[0].unfinished == 1
        last = await kernel.last_event_id()
        async with kernel.events() as events:
            seen = [event async for event in events]
        assert seen[-1].id <= last
        assert [event.status for event in seen if event.job_name == "done"][-1] == "FAILED"
        assert kernel.as_of.tzinfo is not None
        assert await kernel.read_logs("done") == b""
        for call in (kernel.wait(job), kernel.cancel_job(job, "x"), submit(kernel), kernel.drain_host("b", "host")):
            with pytest.raises(NotRunning, match="it can be looked at, but nothing can be changed or waited for"):
                await call
    assert fingerprint(path.parent) == before


async def test_a_kernel_may_be_running_on_it(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    async with kernel_on(path=path) as kernel:
        job = await submit(kernel)
        await job.wait()
        async with anybatch.read_journal(path) as reader:
            assert await reader.describe_job(job.id) == await kernel.describe_job(job)
        again = await submit(kernel)
        assert (await again.wait()).status == "SUCCEEDED"


async def test_a_log_is_found_where_backends_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    async with anybatch.Kernel(path, on_close="stop") as kernel:
        result = await kernel.run(["echo", "hello"])
    async with anybatch.read_journal(path) as reader:
        assert await reader.read_logs(result.job.id) == b"hello\n"
        with pytest.raises(anybatch.NotFound, match="has had 1 attempts"):
            await reader.read_logs(result.job.id, attempt=2)


async def test_a_journal_of_the_first_version_is_shown(tmp_path: Path) -> None:
    path = shutil.copy(GOLDEN, tmp_path / "v1.db")
    async with anybatch.read_journal(path) as reader:
        assert [one async for one in reader.list_jobs()] != []


async def test_what_is_no_journal_is_said(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("something else")
    for name, why in (("none", "is not there"), ("text", "is not a journal of anybatch"), ("", "cannot be read")):
        with pytest.raises(JournalError, match=why):
            async with anybatch.read_journal(tmp_path / name):
                pass
