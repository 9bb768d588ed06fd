"""How SSH hosts are named, reached and trusted: options, OpenSSH's configuration, keys, jumps, login shells."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from allowed_skips import NEEDS_OLD_PYTHON
from anybatch.backends._ssh_channel import Far
from anybatch.backends._ssh_connect import connect
from anybatch.backends._ssh_host import AGENT, AGENT_SHA
from anybatch.backends._ssh_options import HostSpec, SshOptions, host_specs
from anybatch.backends.ssh import SshBackend
from anybatch.kernel.core.errors import BackendError
from anybatch.testing.backend_kit import RecordingContext
from ssh_rig import Bench, Lab, key, keygen, launch, output, shell, until

pytestmark = pytest.mark.asyncio
OLD_PYTHONS = sorted(Path.home().glob(".pyenv/versions/3.8.*/bin/python3.8"))


def specs(registered: dict[str, Any] | None = None, **options: Any) -> dict[str, HostSpec]:
    return host_specs(msgspec.convert({"ssh_config": "none", **options}, SshOptions), registered or {})


# -- who is a host ------------------------------------------------------------------------------------------


async def test_hosts_are_named_in_short_or_in_full() -> None:
    found = specs(hosts=["lab1", "ann@lab2:2222", "[fe80::1]:22"], user="bob", zone="z")
    assert [(one.name, one.user, one.port, one.zone) for one in found.values()] == [
        ("lab1", "bob", None, "z"), ("lab2", "ann", 2222, "z"), ("fe80::1", "bob", 22, "z"),
    ]  # fmt: skip
    found = specs(hosts={"a": {"address": "10.0.0.1", "vcpus": 1.5, "gpus": [1], "zone": "y"}}, zone="z")
    assert found["a"] == HostSpec(name="a", address="10.0.0.1", zone="y", vcpus_milli=1500, gpus=(1,))


@pytest.mark.parametrize("text", ["", "a b", "a@b@c", "a:0", "a:70000", "a:b", "@a"])
async def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(BackendError, match=r"hosts: .* is not of the form"):
        specs(hosts=[text])


async def test_an_inventory_and_registered_hosts_join_those_of_the_options(tmp_path: Path) -> None:
    (tmp_path / "lab.toml").write_text('[hosts.b]\naddress = "10.0.0.2"\nzone = "z2"\n[hosts.c]\n')
    found = specs({"d": {"port": 2}, "a": {"zone": "new"}}, hosts=["a"], inventory=str(tmp_path / "lab.toml"))
    assert {name: (one.address, one.zone, one.port) for name, one in found.items()} == {
        "a": ("a", "new", None), "b": ("10.0.0.2", "z2", None), "c": ("c", None, None), "d": ("d", None, 2),
    }  # fmt: skip
    (tmp_path / "lab.toml").write_text("[hosts.b]\nadress = 1\n")
    with pytest.raises(BackendError, match=r"lab.toml.*adress"):
        specs(inventory=str(tmp_path / "lab.toml"))
    with pytest.raises(BackendError, match=r"inventory: .*cannot be read"):
        specs(inventory=str(tmp_path / "none.toml"))


async def test_aliases_come_from_openssh_configuration(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("Host lab3\n  Port 3\n")
    (tmp_path / "config").write_text(f"Host lab1 lab2 *.wild !no\nHost=other\nInclude {tmp_path}/more\n")
    found = specs(ssh_config=str(tmp_path / "config"), ssh_config_hosts=["lab*"])
    assert sorted(found) == ["lab1", "lab2", "lab3"]
    with pytest.raises(BackendError, match="ssh_config: .*is no file"):
        specs(ssh_config=str(tmp_path / "none"), ssh_config_hosts=["*"])


async def test_an_alias_of_openssh_configuration_is_all_that_it_takes(lab: Lab, bench: Bench) -> None:
    host = lab.sshd("real")
    (lab.folder / "known").write_text(f"[{host.address}]:{host.port} {host.host_key}\n")
    (lab.folder / "config").write_text(
        f"Host lab*\n HostName {host.address}\n Port {host.port}\n User root\n IdentityFile {lab.client_key}\n"
        f" UserKnownHostsFile {lab.folder}/known\nHost lab7\n"
    )
    _, context = await bench.open(hosts=[], ssh_config=str(lab.folder / "config"), ssh_config_hosts=["lab*"])
    assert set(context.hosts) == {"lab7"}
    assert context.paused == {}


# -- whom to trust ------------------------------------------------------------------------------------------


async def paused(bench: Bench, **options: Any) -> str:
    """Why the one host takes nothing."""
    _, context = await bench.open(**options)
    (reason,) = context.paused.values()
    return reason


def hosts(lab: Lab, **entry: Any) -> dict[str, Any]:
    return {"host": {**lab.hosts["host"].entry(), **entry}}


async def test_an_unknown_key_is_an_error_that_says_what_to_do(lab: Lab, bench: Bench) -> None:
    host = lab.sshd("host")
    entry = hosts(lab)
    del entry["host"]["host_key"]
    known = lab.folder / "known_hosts"
    fingerprint = subprocess.run(
        ["ssh-keygen", "-lf", str(host.folder / "host_key.pub")], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    why = await paused(bench, hosts=entry, known_hosts=str(known))
    assert f"the key of {host.address}:{host.port} is not known: it shows ssh-ed25519 {fingerprint}" in why
    assert "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub" in why
    known.write_text(f"[{host.address}]:{host.port} {keygen(lab.folder / 'another')}\n")
    why = await paused(bench, hosts=entry, known_hosts=str(known))
    assert f"THE KEY OF {host.address}:{host.port} HAS CHANGED: it shows ssh-ed25519 {fingerprint}" in why
    assert f"ssh-keygen -R '[{host.address}]:{host.port}'" in why
    known.write_text(f"[{host.address}]:{host.port} {host.host_key}\n")
    _, context = await bench.open(hosts=entry, known_hosts=str(known))
    assert context.paused == {}


async def test_keys_are_verified_even_where_openssh_is_told_not_to(lab: Lab, bench: Bench) -> None:
    lab.sshd("host")
    entry = hosts(lab)
    del entry["host"]["host_key"]
    (lab.folder / "config").write_text("StrictHostKeyChecking no\nUserKnownHostsFile none\nGlobalKnownHostsFile none\n")
    assert "is not known" in await paused(bench, hosts=entry, ssh_config=str(lab.folder / "config"))


async def test_a_pinned_key_is_the_only_one_that_counts(lab: Lab, bench: Bench) -> None:
    host = lab.sshd("host")
    (lab.folder / "known").write_text(f"[{host.address}]:{host.port} {host.host_key}\n")
    other = keygen(lab.folder / "another")
    why = await paused(bench, hosts=hosts(lab, host_key=other), known_hosts=str(lab.folder / "known"))
    assert "IS NOT THE PINNED ONE" in why
    assert "host_key: " in await paused(bench, hosts=hosts(lab, host_key="nonsense"))
    _, context = await bench.open(hosts=hosts(lab, host_key=[other, host.host_key]))
    assert context.paused == {}


async def test_a_user_who_is_not_let_in_is_told_which_keys_were_tried(lab: Lab, bench: Bench) -> None:
    lab.sshd("host")
    keygen(lab.folder / "stranger")
    why = await paused(bench, hosts=hosts(lab, identity=[str(lab.folder / "stranger")]))
    assert "does not let user 'root' in" in why
    assert "stranger and no SSH agent" in why
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(lab.folder / "locked")], check=True)
    why = await paused(bench, hosts=hosts(lab, identity=[str(lab.folder / "locked")]))
    assert "protected by a passphrase" in why
    assert "secret" not in why


async def test_an_ssh_agent_is_asked_for_keys(lab: Lab, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.sshd("host")
    socket = lab.folder / "agent.sock"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            await asyncio.sleep(0.01)
        subprocess.run(
            ["ssh-add", "-q", str(lab.client_key)], env={**os.environ, "SSH_AUTH_SOCK": str(socket)}, check=True
        )
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        entry = hosts(lab)
        del entry["host"]["identity"]
        _, context = await bench.open(hosts=entry, use_agent=True)
        assert context.paused == {}
    finally:
        agent.terminate()
        agent.wait()


async def test_a_host_behind_another_is_reached_through_it(lab: Lab, bench: Bench) -> None:
    gate, inner = lab.sshd("gate"), lab.sshd("inner")
    known = lab.folder / "known"
    entry = {"inner": inner.entry(proxy_jump=f"root@{gate.address}:{gate.port}")}
    why = await paused(bench, hosts=entry, known_hosts=str(known))
    assert f"the key of {gate.address}:{gate.port} is not known" in why
    known.write_text(f"[{gate.address}]:{gate.port} {gate.host_key}\n")
    backend, context = await bench.open(hosts=entry, known_hosts=str(known))
    assert context.paused == {}
    await backend.launch([launch(shell("exit 3"), host="inner")])
    await until(context, lambda: context.ends_of(key()))
    assert f"Accepted publickey for root from {gate.address}" not in (gate.folder / "sshd.log").read_text()
    assert "Accepted publickey" in (gate.folder / "sshd.log").read_text()


# -- what is at the other end -------------------------------------------------------------------------------


async def test_the_agent_is_uploaded_once_per_version_and_for_this_user_alone(lab: Lab, bench: Bench) -> None:
    lab.sshd("host")
    backend, _ = await bench.open()
    folder = lab.folder / "far"
    agent = folder / "agents" / f"{AGENT_SHA}.py"
    assert agent.read_bytes() == AGENT
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "agents", agent)]
    assert modes == [0o700, 0o700, 0o600]
    inode = agent.stat().st_ino
    await backend.close()
    backend, _ = await bench.open()
    assert agent.stat().st_ino == inode
    await backend.close()
    agent.write_bytes(AGENT[:-100])  # somebody's disk was full
    await bench.open()
    assert agent.read_bytes() == AGENT
    assert [path.name for path in (folder / "agents").iterdir()] == [agent.name]


async def test_a_folder_that_is_not_this_users_own_is_not_used(lab: Lab, bench: Bench) -> None:
    lab.sshd("host")
    (lab.folder / "elsewhere").mkdir()
    (lab.folder / "far").symlink_to(lab.folder / "elsewhere")
    assert "is not a folder of this user's" in await paused(bench)
    assert list((lab.folder / "elsewhere").iterdir()) == []


async def test_a_host_without_a_python_that_is_new_enough_is_refused(lab: Lab, bench: Bench) -> None:
    lab.sshd("host")
    programs = lab.folder / "bin"
    programs.mkdir()
    why = await paused(bench, path=str(programs))
    assert "the host has no Python 3.8 or newer (there is no python3 in the path that is searched)" in why
    old = programs / "python3"
    old.write_text('#!/bin/sh\ncase "$*" in *version_info*) exit 1;; *) echo 3.6.8;; esac\n')
    old.chmod(0o755)
    assert "(there is python3 3.6.8)" in await paused(bench, path=str(programs))
    assert "newer ('/usr/bin/false' is none, or is not there)" in await paused(bench, python="/usr/bin/false")


async def test_what_the_login_shell_prints_and_how_slow_it_is_does_not_matter(lab: Lab, bench: Bench) -> None:
    profile = lab.folder / "shell"
    profile.write_text(
        "#!/bin/sh\necho Welcome; printf 'no newline'; echo noise >&2\n"
        "export LD_PRELOAD=/none PYTHONPATH=/none ENV=/none\n"
        'sleep 0.5\nexport PATH=/none\nexec /bin/sh "$@"\n'
    )
    profile.chmod(0o755)
    lab.machine("host", shell=str(profile))
    backend, context = await bench.open(workdirs="send and fetch")
    assert context.paused == {}
    (lab.folder / "work").mkdir()
    (lab.folder / "work" / "in").write_text("7")
    spec = shell("env; cp in out", workdir=str(lab.folder / "work"), environment={"MINE": "1"})
    await backend.launch([launch(spec, host="host")])
    await until(context, lambda: context.ends_of(key()))
    assert context.ends_of(key())[0].code == 0
    assert (lab.folder / "work" / "out").read_text() == "7"
    said = (await output(backend, key())).decode().splitlines()
    names = {line.partition("=")[0] for line in said}
    assert names & {"LD_PRELOAD", "PYTHONPATH", "ENV", "SSH_CONNECTION", "SSH_CLIENT"} == set()
    assert {"MINE=1", "PATH=/usr/local/bin:/usr/bin:/bin", "USER=root", f"SHELL={profile}"} <= set(said)


@pytest.mark.parametrize("shell_path", ["/usr/bin/tcsh", "/usr/bin/fish"])
async def test_a_login_shell_that_is_no_posix_shell_will_do(lab: Lab, bench: Bench, shell_path: str) -> None:
    assert Path(shell_path).exists()
    lab.machine("host", shell=shell_path)
    backend, context = await bench.open()
    await backend.launch([launch(shell("exit 3"), host="host")])
    await until(context, lambda: context.ends_of(key()))
    assert (context.paused, context.ends_of(key())[0].code) == ({}, 3)


async def test_the_oldest_python_that_is_promised_will_do(lab: Lab, bench: Bench) -> None:
    python = next((str(path) for path in OLD_PYTHONS if path.exists()), None) or shutil.which("python3.8")
    if python is None or subprocess.run([python, "-c", ""], capture_output=True).returncode:
        pytest.skip(NEEDS_OLD_PYTHON)
    lab.sshd("host")
    backend, context = await bench.open(python=python)
    await backend.launch([launch(shell("echo hi; exit 3"), host="host")])
    await until(context, lambda: context.ends_of(key()))
    assert context.ends_of(key())[0].code == 3
    assert await output(backend, key()) == b"hi\n"
    facts = backend._hosts["host"]._facts
    assert facts is not None
    assert facts.python.startswith("3.8.")


def start_refusing(lab: Lab) -> None:
    refuses = lab.folder / "shell"
    refuses.write_text("#!/bin/sh\necho This account is not available.\nexit 1\n")
    refuses.chmod(0o755)
    lab.machine("host", shell=str(refuses))


async def test_a_login_shell_that_runs_nothing_is_said_with_what_it_says(lab: Lab, bench: Bench) -> None:
    start_refusing(lab)
    why = await paused(bench)
    assert "the login shell or our program has ended" in why
    assert "This account is not available." in why


async def test_a_login_shell_that_had_ended_before_anything_was_sent_is_said_too(lab: Lab) -> None:
    start_refusing(lab)
    options = msgspec.convert(lab.options(), SshOptions)
    async with await connect(host_specs(options, {})["host"], options) as connection:
        far = await Far.open(connection, options.path, None)
        while not far.is_closed:
            await asyncio.sleep(0.01)
        with pytest.raises(ConnectionError, match="shell or our program has ended .*This account is not available"):
            await far.ask({})


async def test_capacity_is_probed_unless_it_is_given(lab: Lab, bench: Bench) -> None:
    lab.sshd("host")
    programs = lab.folder / "bin"
    programs.mkdir()
    smi = programs / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '0\\n1\\n3\\n'\n")
    smi.chmod(0o755)
    _, context = await bench.open(path=f"{programs}:/usr/local/bin:/usr/bin:/bin")
    found = context.hosts["host"]
    assert found.vcpus_milli == 1000 * len(os.sched_getaffinity(0))
    assert found.gpus == (0, 1, 3)
    assert found.memory_mib is not None
    assert 0 < found.memory_mib < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    _, context = await bench.open(hosts=hosts(lab, vcpus=1.5, memory=100, gpus=[7]), name="other")
    assert (context.hosts["host"].vcpus_milli, context.hosts["host"].memory_mib) == (1500, 100)
    assert context.hosts["host"].gpus == (7,)


async def test_all_attempts_share_one_connection_and_one_channel_and_nothing_secret_shows(
    lab: Lab, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    host = lab.sshd("host", LogLevel="DEBUG3", MaxSessions="2")
    backend, context = await bench.open()
    spec = shell('test "$TOKEN" = hunter2-secret && grep -ls hunter2-secret /proc/[0-9]*/cmdline; exit 3',
                 environment={"TOKEN": "hunter2-secret"})  # fmt: skip
    quiet = shell('test "$TOKEN" = hunter2-secret', environment={"TOKEN": "hunter2-secret"})
    await backend.launch([launch(quiet, range(300), host="host", array_size=300)])
    await until(context, lambda: len(context.seen) >= 600)
    assert all(context.ends_of(key(i))[0].code == 0 for i in range(300))
    await backend.launch([launch(spec, host="host", number=2)])
    await until(context, lambda: context.ends_of(key(0, 2)))
    assert len((await output(backend, key(0, 2))).splitlines()) == 1  # itself: its own command line has the word
    said = (host.folder / "sshd.log").read_text()
    assert said.count("Accepted publickey") == 1
    assert said.count("Starting session: command") == 2  # the second is for the log
    assert "hunter2-secret" not in said
    assert "hunter2-secret" not in caplog.text


async def test_an_idle_host_is_not_asked_more_often_than_its_keepalive(lab: Lab, bench: Bench) -> None:
    lab.sshd("host")
    backend, context = await bench.open(keepalive=0.5)
    client = backend._hosts["host"].client
    asked: list[float] = []
    ping, loop = client.ping, asyncio.get_running_loop()
    client.ping = lambda: (asked.append(loop.time()), ping())[1]  # type: ignore[method-assign, func-returns-value]
    await until(context, lambda: len(asked) == 4)
    assert asked[-1] - asked[0] > 3 * 0.5 * 0.9
    assert context.paused == {}
    assert backend.host_status()["host"].load is not None
    contact_ms = backend.host_status()["host"].last_contact_ms
    assert contact_ms is not None
    assert contact_ms <= context.clock.now_ms()


async def test_a_managed_environment_is_told_what_to_be(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="managed=False"):
        await SshBackend().start(RecordingContext(tmp_path, managed=True), [])
