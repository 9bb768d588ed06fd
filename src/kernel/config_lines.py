"""Where things stand in a TOML document: the line of every table, key and array entry.

tomllib gives values without their places. `Lines` walks the text of a document that tomllib has accepted, so
it need not check anything: it only has to skip strings, comments and brackets rightly.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from typing import Any, Final

Path = tuple[str | int, ...]
"""Keys and list indexes from the root: ("jobs", "squares", "command", 0)."""

_BLANK: Final = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACE: Final = re.compile(r"[ \t]*")
_BARE_VALUE: Final = re.compile(r"[^,\]}#\n]*")
_KEY_PART: Final = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_STRING: Final = re.compile(
    r'''"""(?:[^\\]|\\.)*?"""(?:"{0,2}(?!"))|\'\'\'.*?\'\'\'(?:'{0,2}(?!'))|"(?:[^"\\\n]|\\.)*"|'[^'\n]*\'''', re.DOTALL
)


class SyntaxMistake(ValueError):
    """The document is no TOML. Attributes: `line` (None: not known) and `text`."""

    def __init__(self, line: int | None, text: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text


def load(text: str) -> tuple[dict[str, Any], Lines]:
    """The document's values, and where they stand.

    Raises:
        SyntaxMistake: it is no TOML; the line is tomllib's.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    try:
        return tomllib.loads(text), Lines(text)
    except tomllib.TOMLDecodeError as e:
        message = str(e)
        found = re.search(r" \(at line (\d+), column (\d+)\)$", message)
        if found:
            raise SyntaxMistake(int(found[1]), f"{message[: found.start()]} (column {found[2]})") from None
        last = text.rstrip("\n").count("\n") + 1
        raise SyntaxMistake(last, message.replace(" (at end of document)", " at the end of the file")) from None
    except RecursionError:
        raise SyntaxMistake(None, "values are nested too deeply") from None


class Lines:
    """The line on which each path of a document first stands."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._lines: dict[Path, int] = {(): 1}
        self._counts: dict[Path, int] = {}
        self._document()

    def of(self, path: Path) -> int:
        """The line of this path, or of the nearest thing around it that has one."""
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]

    def all(self) -> dict[Path, int]:
        """Every path that has a line of its own."""
        return dict(self._lines)

    def _note(self, path: Path) -> None:
        line = bisect_right(self._starts, self._at)
        for length in range(1, len(path) + 1):
            self._lines.setdefault(path[:length], line)

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        assert match is not None, "tomllib accepted what this does not"
        self._at = match.end()
        return match[0]

    def _next_is(self, mark: str) -> bool:
        return self._text.startswith(mark, self._at)

    def _document(self) -> None:
        table: Path = ()
        while True:
            self._skip(_BLANK)
            if self._at >= len(self._text):
                return
            if self._next_is("["):
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Path:
        """`[a.b]` or `[[a.b]]`; returns the path of the table that it opens."""
        many = self._next_is("[[")
        start = self._at
        self._at += 2 if many else 1
        keys = self._key()
        self._skip(_SPACE)
        end = self._at + (2 if many else 1)
        self._at = start
        path: Path = ()
        for key in keys[:-1]:
            path = self._latest((*path, key))
        path = (*path, keys[-1])
        if many:
            self._note(path)
            self._counts[path] = self._counts.get(path, 0) + 1
        path = self._latest(path)
        self._note(path)
        # A table may have been noted before, by the header of one inside it: its own header says more.
        self._lines[path] = bisect_right(self._starts, start)
        self._at = end
        return path

    def _latest(self, path: Path) -> Path:
        """The newest entry, where the path is an array of tables."""
        return (*path, self._counts[path] - 1) if path in self._counts else path

    def _key(self) -> list[str]:
        """A key, which may be dotted and quoted."""
        keys = []
        while True:
            self._skip(_SPACE)
            part = self._skip(_KEY_PART)
            keys.append(next(iter(tomllib.loads(f"{part} = 0"))))
            after = self._at
            self._skip(_SPACE)
            if not self._next_is("."):
                self._at = after
                return keys
            self._at += 1

    def _pair(self, table: Path) -> None:
        start = self._at
        keys = self._key()
        end, self._at = self._at, start
        path = (*table, *keys)
        self._note(path)
        self._at = end
        self._skip(_SPACE)
        self._at += 1  # the "="
        self._skip(_SPACE)
        self._value(path)

    def _value(self, path: Path) -> None:
        if self._next_is("["):
            self._array(path)
        elif self._next_is("{"):
            self._inline_table(path)
        elif self._next_is('"') or self._next_is("'"):
            self._skip(_STRING)
        else:
            self._skip(_BARE_VALUE)

    def _array(self, path: Path) -> None:
        self._at += 1
        index = 0
        while True:
            self._skip(_BLANK)
            if self._next_is("]"):
                self._at += 1
                return
            self._note((*path, index))
            self._value((*path, index))
            index += 1
            self._skip(_BLANK)
            if self._next_is(","):
                self._at += 1

    def _inline_table(self, path: Path) -> None:
        self._at += 1
        while True:
            self._skip(_BLANK)
            if self._next_is("}"):
                self._at += 1
                return
            self._pair(path)
            self._skip(_BLANK)
            if self._next_is(","):
                self._at += 1
