"""docs/config.md has a line for each option of the shipped backends, with its default and an example that is taken."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from anybatch.backends._ssh_options import HostOptions, SshOptions
from anybatch.backends.docker import DockerOptions, EngineOptions
from anybatch.backends.process import ProcessOptions

PAGE = Path(__file__).resolve().parents[2] / "docs" / "config.md"
TABLES: list[tuple[str, type[msgspec.Struct]]] = [
    ("`options` of the backend `process`", ProcessOptions),
    ("`options` of the backend `ssh`", SshOptions),
    ("A host's own settings", HostOptions),
    ("`options` of the backend `docker`", DockerOptions),
    ("An engine's own keys", EngineOptions),
]


def rows(begin: str) -> dict[str, tuple[str, str]]:
    """The default and the example of each key in the table after these words."""
    text = PAGE.read_text().split(f"\n{begin}", 1)[1]
    table = text[text.index("\n|") + 1 :].split("\n\n", 1)[0].splitlines()
    assert table[0] == "| key | value | unit | default | example |"
    found = {}
    for line in table[2:]:
        key, _, _, default, example = (cell.strip() for cell in line.strip("|").split("|"))
        found[key.strip("`")] = (default, example.strip("`"))
    return found


def as_written(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else f"{value:.10g}"


@pytest.mark.parametrize(("begin", "options"), TABLES, ids=lambda one: getattr(one, "__name__", ""))
def test_every_option_is_there_with_an_example_that_is_taken(begin: str, options: type[msgspec.Struct]) -> None:
    found = rows(begin)
    fields = {field.name: field for field in msgspec.structs.fields(options)}
    assert set(found) == set(fields)
    examples = tomllib.loads("\n".join(f"{key} = {example}" for key, (_, example) in found.items()))
    given = msgspec.convert(examples, options)
    assert {name for name, field in fields.items() if getattr(given, name) == field.default} == set()
    for name, field in fields.items():
        default = found[name][0]
        if field.default is msgspec.NODEFAULT:
            assert default == "has to be given"
        elif isinstance(field.default, bool | int | float | str):
            value = re.match(r"`?\"?([^`\"]*?)\"?`?( \(.*\))?$", default)
            assert value is not None
            assert value[1] == as_written(field.default), name
