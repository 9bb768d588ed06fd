"""`anybatch hosts`, on a kernel of local processes and of SSH hosts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ssh_rig import Lab

if TYPE_CHECKING:
    from .conftest import Quick, Serve

LAB = """
[environments.local]
backend = "process"
max_vcpus = 2
[environments.lab]
backend = "ssh"
managed = false
options.folder = "{folder}/far"
options.ssh_config = "none"
options.use_agent = false
[queues.default]
priority = 1
compute_environments = ["lab"]
"""


def test_hosts_are_registered_drained_and_taken_away(lab: Lab, quick: Quick, serve: Serve) -> None:
    host = lab.sshd("lab1")
    quick.write("lab.toml", LAB.format(folder=lab.folder))
    entry = host.entry()
    settings = [f"address={host.address}", f"port={host.port}", f"identity=['{lab.client_key}']", "zone=z1", "vcpus=2"]
    with serve("--config", "lab.toml", "--on-close", "stop"):
        assert quick("hosts", "list", "lab", "--json").expect(0).json == []
        unknown = quick("hosts", "register", "lab", "lab1", *settings).expect(0).out
        assert unknown.startswith("host lab1 of environment lab is UNAVAILABLE: the key of ")
        job = quick("submit", "--name", "j", "--", "sh", "-c", "exit 3").expect(0).out.strip()
        assert quick("explain", "j").expect(0).out.startswith("HOST_UNAVAILABLE  ")
        known = quick("hosts", "register", "lab", "lab1", *settings, f"host_key={entry['host_key']}").expect(0).out
        assert known == "host lab1 of environment lab is ACTIVE\n"
        assert quick("wait", "j").expect(1).out == f"j {job}: FAILED: exit code 3\n"

        listed = quick("hosts", "list").expect(0).out.splitlines()
        (row,) = [line for line in listed if line.startswith("lab1 ")]
        assert re.fullmatch(r"lab1 +lab +z1 +ACTIVE +0/2 +0/\d+ +0/\d+ +0 +[\d.]+ +\d\d:\d\d:\d\d", row)
        assert [line for line in listed if line.startswith("local ")]

        drained = quick("hosts", "drain", "lab", "lab1", "--reason", "new disks").expect(0).out
        assert drained == "host lab1 of environment lab is DRAINED: new disks\n"
        (about,) = quick("hosts", "list", "lab", "--json").expect(0).json
        assert (about["environment"], about["state"], about["state_reason"]) == ("lab", "DRAINED", "new disks")
        assert quick("hosts", "drain", "lab", "lab1", "--undo").expect(0).out.endswith("is ACTIVE\n")
        taken = quick("hosts", "deregister", "lab", "lab1").expect(0).out
        assert taken == "host lab1 is no longer of environment lab\n"
        assert quick("hosts", "list", "lab", "--json").expect(0).json == []


def test_what_cannot_be_done_to_hosts_is_said(served: Quick, tmp_path: Path) -> None:
    refused = served("hosts", "register", "local", "x").expect(2).err
    assert "takes no hosts" in refused
    assert "NAME=VALUE" in served("hosts", "register", "local", "x", "zone").expect(2).err
    assert "it was not registered" in served("hosts", "deregister", "local", "local").expect(2).err
    assert "the hosts of environment 'local' are local" in served("hosts", "drain", "local", "x").expect(2).err
    for action in ("list", "register", "drain", "deregister"):
        out = served("hosts", action, "--help").expect(0).out
        assert f"anybatch hosts {action}" in out.partition("examples:")[2]


def test_a_check_supposes_nothing_of_what_ssh_hosts_have(quick: Quick) -> None:
    text = LAB.format(folder="~") + '[jobs.wide]\ncommand = ["x"]\nvcpus = 64\narray_size = 4\n'
    quick.write("wide.toml", text)
    out = quick("check", "wide.toml").expect(0).out
    assert "what its hosts have is known once its backend 'ssh' has started" in out
