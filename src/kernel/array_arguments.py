"""`array=` of a job: the indexes of its children, in any of the forms in which people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from .arguments import whole
from .core.errors import InvalidValue
from .core.indexes import INDEX_MAX, Indexes, made_of

LISTED_MAX: Final = 5_000_000
"""Indexes in a list, or in a text of several parts; a range may have as many as the kernel's quota. So many fit in a
frame of the control socket."""
FORMS: Final = "it is a range, a list of indexes, {start, stop, step}, or a text such as '0-15:4,20'"
_PART: Final = re.compile(r"\s*([0-9]{1,10})(?:-([0-9]{1,10})(?::([0-9]{1,10}))?)?\s*")


def array_of(size: object, array: object) -> tuple[int | None, Indexes | None]:
    """How many children a job has (None: it is a single one), and their indexes (None: from 0 on)."""
    count = None if size is None else whole("array_size", size)
    if array is None:
        return count, None
    if count is not None:
        raise InvalidValue("array_size", count, "array says which children there are; give one of the two")
    found = _indexes(array)
    if isinstance(found, range) and found.start == 0 and found.step == 1 and len(found) > 1:
        return len(found), None
    return len(found), found


def _indexes(value: object) -> Indexes:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return _range(_mapping(value))
    if isinstance(value, range):
        return _range(value)
    if isinstance(value, bytes) or not isinstance(value, Sequence):
        raise InvalidValue("array", value, FORMS)
    if len(value) > LISTED_MAX:
        raise InvalidValue("array", len(value), f"a list has at most {LISTED_MAX} indexes; give a range")
    return _listed([_index(f"array[{n}]", index) for n, index in enumerate(value)], value)


def _index(field: str, index: object) -> int:
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index <= INDEX_MAX:
        raise InvalidValue(field, index, f"an index is a whole number (int), 0 to {INDEX_MAX}")
    return index


def _range(found: range) -> range:
    """Ascending, its last index the one before its end."""
    if not found:
        raise InvalidValue("array", found, "there is no index in it")
    if found.step < 0:
        found = found[::-1]
    for edge in (found[0], found[-1]):
        if not 0 <= edge <= INDEX_MAX:
            raise InvalidValue("array", found, f"an index is 0 to {INDEX_MAX}, and {edge} is among these")
    step = found.step if len(found) > 1 else 1
    return range(found[0], found[-1] + 1, step)


def _mapping(value: Mapping[object, object]) -> range:
    unknown = [key for key in value if key not in ("start", "stop", "step")]
    if unknown:
        raise InvalidValue("array", unknown[0], "a range has start, stop (which is not in it) and step")
    if "stop" not in value:
        raise InvalidValue("array.stop", None, "a range says where it stops (that index is not in it)")
    start, step = whole("array.start", value.get("start", 0)), whole("array.step", value.get("step", 1))
    if step == 0:
        raise InvalidValue("array.step", step, "a step is not 0")
    return range(start, whole("array.stop", value["stop"]), step)


def _text(value: str) -> Indexes:
    """As Slurm's --array has it: `0-15:4,20`, the last index of each part included."""
    parts = []
    for text in value.split(","):
        match = _PART.fullmatch(text)
        if match is None:
            more = "; max_running is what Slurm's %N is" if "%" in text else ""
            raise InvalidValue(
                "array", value, f"it is made of parts such as 7, 0-15 or 0-15:4, with commas between{more}"
            )
        first, last, step = (None if found is None else int(found) for found in match.groups())
        assert first is not None
        if step == 0 or (last is not None and last < first):
            raise InvalidValue("array", value, f"part {text.strip()!r} goes from low to high, in steps of 1 or more")
        parts.append(_range(range(first, (first if last is None else last) + 1, step or 1)))
    if len(parts) == 1:
        return parts[0]
    if sum(map(len, parts)) > LISTED_MAX:
        raise InvalidValue("array", value, f"several parts have at most {LISTED_MAX} indexes together")
    return _listed([index for part in parts for index in part], value)


def _listed(found: list[int], value: object) -> Indexes:
    if not found:
        raise InvalidValue("array", value, "there is no index in it")
    found.sort()
    twice = next((a for a, b in pairwise(found) if a == b), None)
    if twice is not None:
        raise InvalidValue("array", value, f"each index is given once, and {twice} is there twice")
    return made_of(found)
