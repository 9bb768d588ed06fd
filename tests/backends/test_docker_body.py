"""What the Docker backend asks of an engine that no engine here can do: GPUs."""

from __future__ import annotations

import pytest
from anybatch.kernel.backend import AttemptKey, AttemptSpec, Launch

pytest.importorskip("aiodocker")
from anybatch.backends._docker_spec import Defaults, Owner, create_body

DEFAULTS = Defaults(image="busybox", network=None, init=False, cpu_limit=False)


def test_gpus_that_the_kernel_assigned_are_device_requests() -> None:
    launch = Launch(
        job_id="j", number=1, indexes=[0, 1], host="h", spec=AttemptSpec(command=("true",), gpus=2), array_size=2,
        gpus={0: (0, 3), 1: (1, 2)},
    )  # fmt: skip
    body = create_body(Owner("k", "e"), AttemptKey("j", 1, 1), launch, DEFAULTS, {})
    assert body["HostConfig"]["DeviceRequests"] == [{"DeviceIDs": ["1", "2"], "Capabilities": [["gpu"]]}]
    assert "NVIDIA_VISIBLE_DEVICES=1,2" in body["Env"]


@pytest.mark.parametrize(("vcpus_milli", "shares"), [(1, 2), (250, 256), (1500, 1536), (1_000_000_000, 262_144)])
def test_vcpus_are_shares_within_what_an_engine_takes(vcpus_milli: int, shares: int) -> None:
    spec = AttemptSpec(command=("true",), vcpus_milli=vcpus_milli)
    launch = Launch(job_id="j", number=1, indexes=[0], host="h", spec=spec)
    body = create_body(Owner("k", "e"), AttemptKey("j", 0, 1), launch, DEFAULTS, {})
    assert body["HostConfig"]["CpuShares"] == shares
    assert "NanoCpus" not in body["HostConfig"]
