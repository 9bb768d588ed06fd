"""`anybatch plugins`: what is installed, also what is broken."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conftest import Cli

ENTRY_POINTS = """
[anybatch.backends]
gone = no_such_module_anywhere:Backend
old = old_backend:Backend
[anybatch.sinks]
mailer = mailer:Sink
"""


def broken(cli: Cli) -> None:
    """Install a distribution whose plugins fail in different ways."""
    old = "class Backend:\n    api_version = 0\n"
    cli.install(
        "brittle", "3.1", ENTRY_POINTS, old_backend=old, mailer="raise RuntimeError('no mail\\x1b[31m today')\n"
    )


def test_what_is_installed(cli: Cli) -> None:
    done = cli("plugins").expect(0)
    rows = {line.split()[1]: line for line in done.out.splitlines()[1:]}
    assert {"inline", "process"} <= set(rows)
    assert rows["process"].split()[0] == "backend"
    assert rows["process"].endswith(" ok")
    assert "\x1b" not in done.out


def test_why_something_failed_to_load(cli: Cli) -> None:
    broken(cli)
    done = cli("plugins").expect(0)
    lines = done.out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.split()[:2] == ["backend", "gone"])
    assert "brittle 3.1" in lines[at]
    assert "no_such_module_anywhere:Backend" in lines[at]
    assert lines[at].endswith("FAILED TO LOAD")
    assert lines[at + 1] == "    ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    assert "protocol version 0" in done.out
    assert "RuntimeError: no mail today" in done.out
    assert any(line.split()[:2] == ["backend", "process"] and line.endswith(" ok") for line in lines)


def test_for_programs(cli: Cli) -> None:
    broken(cli)
    found = {(p["group"], p["name"]): p for p in cli("plugins", "--json").expect(0).json}
    assert found["anybatch.backends", "process"]["error"] is None
    assert found["anybatch.sinks", "mailer"] == {
        "group": "anybatch.sinks", "name": "mailer", "target": "mailer:Sink", "distribution": "brittle",
        "version": "3.1", "error": "RuntimeError: no mail\x1b[31m today",
    }  # fmt: skip


def test_a_broken_plugin_costs_its_own_name_only(cli: Cli) -> None:
    broken(cli)
    cli("run", "--", "true").expect(0)


def test_help_and_version(cli: Cli) -> None:
    assert cli("--version").expect(0).out.startswith("anybatch ")
    for arguments in (["--help"], ["run", "--help"], ["plugins", "--help"]):
        done = cli(*arguments).expect(0)
        assert "examples:" in done.out
        assert done.err == ""
    assert "usage: anybatch" in cli().expect(2).err
    assert "invalid choice: 'rum'" in cli("rum").expect(2).err
