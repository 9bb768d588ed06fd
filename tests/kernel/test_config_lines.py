"""The lines of a TOML document's keys, against a document that says them itself and against any document."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from anybatch.kernel.config_lines import Lines, Path, SyntaxMistake, load
from hypothesis import given
from hypothesis import strategies as st

# Each comment `# @ path` names a path (as JSON) whose line this is.
DOCUMENT = r'''
a = 1                                   # @ ["a"]
"q.x" = """three lines
[not.a.table]
not = 3 \""" still one
""" # @ ["never mind"]
b.c . 'd' = [1, # ]                     # @ ["b", "c", "d"]   @ ["b"]   @ ["b", "c", "d", 0]
  "x]", '#',                            # @ ["b", "c", "d", 1]   @ ["b", "c", "d", 2]
  { y = 1, z.w = [ 2 ] },               # @ ["b", "c", "d", 3, "y"]   @ ["b", "c", "d", 3, "z", "w", 0]
]
[t.u]   # comment                       # @ ["t"]   @ ["t", "u"]
v = 1979-05-27 07:32:00Z                # @ ["t", "u", "v"]
e = ""                                  # @ ["t", "u", "e"]
f = ''                                  # @ ["t", "u", "f"]
[ t . "w" ]                             # @ ["t", "w"]
k = "s # no"                            # @ ["t", "w", "k"]
[[rows]]                                # @ ["rows"]   @ ["rows", 0]
name = 'a'                              # @ ["rows", 0, "name"]
[rows.env]                              # @ ["rows", 0, "env"]
A = "1"                                 # @ ["rows", 0, "env", "A"]
[[rows]]                                # @ ["rows", 1]
name = """"q""""                        # @ ["rows", 1, "name"]
empty = """"""                          # @ ["rows", 1, "empty"]
raw = \'\'\'\'x
y = 1\'\'\'\'\'                               # @ ["never mind either"]
[rows.env]                              # @ ["rows", 1, "env"]
[[rows.many]]                           # @ ["rows", 1, "many", 0]
inf = -inf                              # @ ["rows", 1, "many", 0, "inf"]
[t]                                     # @ ["t"]
own = 1                                 # @ ["t", "own"]
'''.replace(r"\'", "'")


def paths(value: Any, prefix: Path = ()) -> list[Path]:
    """Of everything in a document."""
    if isinstance(value, dict):
        return [prefix, *(p for key, entry in value.items() for p in paths(entry, (*prefix, key)))]
    if isinstance(value, list):
        return [prefix, *(p for n, entry in enumerate(value) for p in paths(entry, (*prefix, n)))]
    return [prefix]


def exact(lines: Lines, path: Path) -> bool:
    """Whether the path itself has a line."""
    return path in lines._lines


def test_each_key_stands_where_the_document_says() -> None:
    values, lines = load(DOCUMENT)
    expected: dict[Path, int] = {}
    for number, line in enumerate(DOCUMENT.split("\n"), 1):
        for found in re.findall(r"@ (\[.*?\])(?=\s|$)", line.partition("# @")[1][1:] + line.partition("# @")[2]):
            expected[tuple(json.loads(found))] = number
    expected = {path: line for path, line in expected.items() if "never" not in str(path[0])}
    assert len(expected) > 25
    assert {path: lines.of(path) for path in expected} == expected
    assert [path for path in paths(values) if not exact(lines, path)] == []


def test_what_is_not_there_is_where_its_surroundings_are() -> None:
    _, lines = load("a = 1\n[b]\nc = { d = 2 }\n")
    assert lines.of(("b", "c", "e", 4)) == 3
    assert lines.of(("b", "missing")) == 2
    assert lines.of(("nothing",)) == 1


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_line_ends(newline: str) -> None:
    text = newline.join(["\ufeffa = 1", "b = '''", "x", "'''", "c = 2", ""])
    _, lines = load(text)
    assert lines.of(("c",)) == 5


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a = 1\nb 2\n", 2, "Expected '=' after a key"),
        ("a = 1\na = 2\n", 2, "Cannot overwrite a value"),
        ("[a]\n\n[a]\n", 3, "Cannot declare"),
        ("a = [1,\n", 1, "at the end of the file"),
        ("x = 1\na = 'open\n", 2, "Expected"),
        ("a = " + "[" * 20_000, None, "nested too deeply"),
    ],
)
def test_a_mistake_of_syntax_has_tomllibs_line(text: str, line: int | None, words: str) -> None:
    with pytest.raises(SyntaxMistake, match=re.escape(words)) as caught:
        load(text)
    assert caught.value.line == line


KEYS = st.one_of(
    st.sampled_from(["a", "b-c", "'d.e'", '"f \\" g"', '"#"', "1"]), st.from_regex(r"[a-z0-9_-]{1,3}", fullmatch=True)
)
BLANKS = st.sampled_from(["", " ", "\n", " # ] } ' \" = [\n", "\t"])
SCALARS = st.sampled_from(
    [
        "1", "-0.5", "true", '"x"', "''", '"\\\\"', "1979-05-27 07:32:00", "'\"'", '""""x"""""',
        '"""\n"a" # \\\n  """', "'''\n]\n'x'''",
    ]
)  # fmt: skip


def arrays(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    entry = st.tuples(BLANKS, values, BLANKS).map("".join)
    return st.tuples(st.lists(entry, max_size=3), st.booleans()).map(
        lambda found: "[" + ",".join(found[0]) + ("," if found[0] and found[1] else "") + "]"
    )


def inline_tables(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.lists(st.tuples(KEYS, values).map(" = ".join), max_size=3)
    return pairs.map(lambda found: "{ " + ", ".join(found) + " }")


VALUES = st.recursive(SCALARS, lambda inner: arrays(inner) | inline_tables(inner), max_leaves=6)
DOTTED = st.lists(KEYS, min_size=1, max_size=3).map(" . ".join)
STATEMENTS = st.one_of(
    st.tuples(DOTTED, VALUES).map(" = ".join),
    DOTTED.map("[{}]".format),
    DOTTED.map("[[{}]]".format),
    st.just("# comment ' \" ["),
    st.just(""),
)


@given(st.lists(STATEMENTS, max_size=12))
def test_every_value_of_any_document_has_a_line(statements: list[str]) -> None:
    """What tomllib refuses is left out, statement by statement; a value's line is one of its own statement."""
    text = ""
    before: set[Path] = set()
    for statement in statements:
        try:
            values, lines = load(f"{text}{statement}\n")
        except SyntaxMistake:
            continue
        first = text.count("\n") + 1
        text = f"{text}{statement}\n"
        found = set(paths(values))
        assert [path for path in found if not exact(lines, path)] == []
        assert all(first <= lines.of(path) <= text.count("\n") for path in found - before)
        before = found
