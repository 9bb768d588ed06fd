"""Kernel.register_host, drain_host and deregister_host: told to the backend, and kept by the journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from anybatch import Code, Conflict, HostState, InvalidValue, Kernel
from anybatch.kernel.backend import BackendContext, Capacity, HostStatus, Launch
from kernel_rig import ManualBackend, turns, until


class HostOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    vcpus: int = 1
    zone: str | None = None


class HostsBackend(ManualBackend):
    """Offers the hosts that are registered."""

    HostOptions: ClassVar[type[msgspec.Struct]] = HostOptions

    def __init__(self) -> None:
        super().__init__()
        self.forgotten: list[str] = []

    async def start(self, context: BackendContext, known: Sequence[Launch]) -> None:
        self.calls.append("start")
        self.context, self.known = context, list(known)
        for name, settings in context.settings.hosts.items():
            about = msgspec.convert(settings, HostOptions)
            context.host_up(name, Capacity(vcpus_milli=about.vcpus * 1000), about.zone)

    def host_status(self) -> Mapping[str, HostStatus]:
        return {"a": HostStatus(last_contact_ms=1_800_000_000_000, load=0.5)}

    async def forget(self, job_ids: Sequence[str]) -> None:
        self.forgotten += job_ids


async def ready(kernel: Kernel) -> None:
    await kernel.create_compute_environment("lab", backend="hosts", managed=False, exist_ok=True)
    await kernel.create_job_queue("queue", priority=1, compute_environments=["lab"], exist_ok=True)


def host_of(detail: Any, name: str) -> Any:
    return next(host for host in detail.hosts if host.name == name)


@pytest.mark.asyncio
async def test_a_host_joins_is_drained_and_leaves(tmp_path: Path) -> None:
    backend = HostsBackend()
    async with Kernel(tmp_path / "db", backends={"hosts": backend}) as kernel:
        await ready(kernel)
        job = await kernel.submit_job("j", queue="queue", command=["x"])
        assert [reason.code for reason in await kernel.explain(job)] == [Code.NO_HOST]
        made = await kernel.register_host("lab", "a", settings={"vcpus": 2, "zone": "z1"})
        assert (made.vcpus, made.zone, made.state, made.is_registered) == (2.0, "z1", HostState.ACTIVE, True)
        await until(lambda: backend.live)
        assert (await kernel.drain_host("lab", "a", reason="new disks")).state is HostState.DRAINING
        with pytest.raises(Conflict, match="attempts run on it"):
            await kernel.deregister_host("lab", "a")
        for launch in list(backend.live.values()):
            backend.context.exited(launch.job_id, launch.number, launch.indexes, [0])
        await job.wait()
        (detail,) = await kernel.describe_compute_environments(["lab"])
        host = host_of(detail, "a")
        assert (host.state, host.state_reason, host.load) == (HostState.DRAINED, "new disks", 0.5)
        assert host.last_contact is not None
        assert (await kernel.drain_host("lab", "a", undo=True)).state is HostState.ACTIVE
        backend.context.host_paused("a", "it cannot be reached")
        await turns()
        (detail,) = await kernel.describe_compute_environments(["lab"])
        assert host_of(detail, "a").state is HostState.UNAVAILABLE
        await kernel.deregister_host("lab", "a")
        (detail,) = await kernel.describe_compute_environments(["lab"])
        assert detail.hosts == ()


@pytest.mark.asyncio
async def test_registered_and_drained_hosts_are_there_for_the_next_kernel(tmp_path: Path) -> None:
    async with Kernel(tmp_path / "db", backends={"hosts": HostsBackend}) as kernel:
        await ready(kernel)
        await kernel.register_host("lab", "a")
        await kernel.register_host("lab", "b", settings={"vcpus": 3})
        await kernel.drain_host("lab", "b")
    async with Kernel(tmp_path / "db", backends={"hosts": HostsBackend}) as kernel:
        await kernel.update_compute_environment("lab", max_vcpus=1)
        (detail,) = await kernel.describe_compute_environments(["lab"])
        assert {host.name: (host.vcpus, host.state.value) for host in detail.hosts} == {
            "a": (1.0, "ACTIVE"), "b": (3.0, "DRAINED"),
        }  # fmt: skip


@pytest.mark.asyncio
async def test_settings_of_a_host_are_checked_by_its_backend() -> None:
    async with Kernel(backends={"hosts": HostsBackend, "manual": ManualBackend}) as kernel:
        await ready(kernel)
        with pytest.raises(InvalidValue, match="settings"):
            await kernel.register_host("lab", "a", settings={"vcpu": 2})
        await kernel.create_compute_environment("other", backend="manual", managed=False)
        with pytest.raises(Conflict, match="takes no hosts"):
            await kernel.register_host("other", "a")


@pytest.mark.asyncio
async def test_a_backend_is_told_what_is_forgotten(tmp_path: Path) -> None:
    backend = HostsBackend()
    async with Kernel(tmp_path / "db", backends={"hosts": backend}) as kernel:
        await ready(kernel)
        await kernel.update_job_queue("queue", retain_succeeded=0.001, retain_failed=0.001)
        job = await kernel.submit_job("j", queue="queue", command=["x"])
        await job.terminate("not wanted")
        await until(lambda: backend.forgotten == [job.id])
