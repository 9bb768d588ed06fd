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
        shown = quick("environments", "lab").expect(0).out.splitlines()
        assert re.fullmatch(r"  lab1 +UNAVAILABLE +0/0 +not counted +0", shown[2])
        assert shown[3].startswith("lab1: the key of ")
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


def test_a_check_tells_what_ssh_hosts_say_of_themselves(quick: Quick) -> None:
    text = LAB.format(folder="~") + '[jobs.wide]\ncommand = ["x"]\nvcpus = 64\narray_size = 4\n'
    quick.write("wide.toml", text)
    assert "it has no host: `anybatch hosts register lab HOST`" in quick("check", "wide.toml").expect(0).out
    some = "options.hosts.lab1 = {{ vcpus = 8 }}\noptions.hosts.lab2 = {{ {} }}\n[queues"
    quick.write("wide.toml", text.replace("[queues", some.format("memory = 1024"), 1))
    out = quick("check", "wide.toml").expect(0).out
    assert "it depends: the vCPUs of lab2 are known once the environment has started" in out
    quick.write("wide.toml", text.replace("[queues", some.format("vcpus = 128"), 1))
    assert "  2 at once, limited by vcpus\n" in quick("check", "wide.toml").expect(0).out
    quick.write("wide.toml", text.replace("[queues", some.format("vcpus = 16"), 1))
    err = quick("check", "wide.toml").expect(1).err
    assert "jobs.wide.vcpus: never: needs 64 vCPUs; environment 'lab' has 8 vCPUs or 16 vCPUs" in err


def test_a_check_reads_the_files_that_name_ssh_hosts(quick: Quick) -> None:
    for said, line in (
        ('options.inventory = "none.toml"', "environments.lab.options.inventory: 'none.toml' cannot be read: "),
        ('options.hosts = ["a b"]', "environments.lab.options.hosts: 'a b' is not of the form [user@]name[:port]"),
    ):
        quick.write("lab.toml", LAB.format(folder="~").replace("options.use_agent = false", said))
        assert line in quick("check", "lab.toml").expect(2).err
    quick.write("lab.toml", LAB.format(folder="~").replace("managed = false\n", ""))
    err = quick("check", "lab.toml").expect(2).err
    assert "lab.toml:5: environments.lab.managed: SSH hosts are nobody's to start or end" in err
    quick.write("hosts.toml", "[hosts.lab1]\nvcpus = 2\nmemory = 100\ngpus = []\n")
    text = LAB.format(folder="~").replace("options.use_agent = false", 'options.inventory = "hosts.toml"')
    quick.write("lab.toml", text + '[jobs.j]\ncommand = ["x"]\narray_size = 5\nmemory = 30\n')
    assert "2 at once, limited by vcpus" in quick("check", "lab.toml").expect(0).out


def test_hosts_that_a_journal_knows_count(lab: Lab, quick: Quick, serve: Serve) -> None:
    host = lab.sshd("lab1")
    quick.write("lab.toml", LAB.format(folder=lab.folder))
    quick.write("job.toml", LAB.format(folder=lab.folder) + '[jobs.j]\ncommand = ["x"]\narray_size = 9\n')
    settings = [f"address={host.address}", f"port={host.port}", f"identity=['{lab.client_key}']", "vcpus=3"]
    with serve("--config", "lab.toml", "--on-close", "stop"):
        journal = str(quick.state / "anybatch" / "batch.db")
        quick("hosts", "register", "lab", "away", f"address={host.address}", "port=1").expect(0)
        out = quick("check", "--journal", journal, "job.toml").expect(0).out
        assert "it depends: the vCPUs of away are known" in out  # never reached: nothing is known of it
        quick("hosts", "register", "lab", "lab1", *settings, f"host_key={host.host_key}").expect(0)
        assert "3 at once and more: the vCPUs of away" in quick("check", "--journal", journal, "job.toml").expect(0).out
