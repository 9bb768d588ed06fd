"""The indexes of an array's children, where they are not 0 to n - 1. Decision 0044.

Inside, a child is its place: the columns, events and effects count from 0 without gaps. What is outside sees its
index: ids, variables, logs, public events, words. An array without indexes of its own has the same for both, and
nothing is looked up. Indexes ascend; evenly spaced ones are a range and cost nothing for each child, others are a
column of four bytes for each.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, TypeAlias

Indexes: TypeAlias = "range | array[int]"
"""Ascending, without repetition."""
Kept: TypeAlias = tuple[int, int, int] | bytes | None
"""As they stand in the journal: start, stop and step, or four bytes for each, the lowest first."""
INDEX_MAX: Final = 999_999_999
"""Of a child: ids have nine digits for it."""
NAMED_MAX: Final = 8
"""Indexes that a message names."""
_IS_LITTLE: Final = array("H", [1]).tobytes()[0] == 1
"""Whether this machine has the lowest byte first."""


def keep(indexes: Indexes | None) -> Kept:
    """For the journal."""
    if indexes is None:
        return None
    if isinstance(indexes, range):
        return indexes.start, indexes.stop, indexes.step
    return _little(indexes).tobytes()


def kept(data: Kept) -> Indexes | None:
    """From the journal."""
    if data is None:
        return None
    if isinstance(data, tuple):
        return range(*data)
    column = array("I")
    column.frombytes(data)
    return _little(column)


def _little(column: array[int]) -> array[int]:
    if not _IS_LITTLE:
        column = column[:]
        column.byteswap()
    return column


def made_of(found: Sequence[int]) -> Indexes:
    """As they are kept: ascending ones without repetition; a range where they are evenly spaced."""
    first, last = found[0], found[-1]
    step = found[1] - first if len(found) > 1 else 1
    spaced = range(first, last + 1, step)
    if len(spaced) == len(found) and all(a == b for a, b in zip(spaced, found, strict=True)):
        return spaced
    return array("I", found)


def place_of(indexes: Indexes | None, size: int, index: int) -> int | None:
    """The place of the child with this index; None: there is none."""
    if indexes is None:
        return index if 0 <= index < size else None
    if isinstance(indexes, range):
        return indexes.index(index) if index in indexes else None
    at = bisect_left(indexes, index)
    return at if at < len(indexes) and indexes[at] == index else None


def shown(indexes: Indexes | None, places: Sequence[int]) -> Sequence[int]:
    """The indexes of the children at these places."""
    if indexes is None:
        return places
    if isinstance(places, range):
        found = indexes[places.start : places.stop : places.step]
        return found if isinstance(found, range) else list(found)
    return [indexes[place] for place in places]


def in_text(indexes: Indexes) -> str:
    """As a user may write them: `10-95:5`, `3,7,9-12`."""
    if isinstance(indexes, range):
        return _part(indexes[0], indexes[-1], indexes.step)
    parts, first = [], indexes[0]
    for a, b in pairwise(indexes):
        if b - a > 1:
            parts.append(_part(first, a, 1))
            first = b
    return ",".join([*parts, _part(first, indexes[-1], 1)])


def _part(first: int, last: int, step: int) -> str:
    if first == last:
        return str(first)
    return f"{first}-{last}" + (f":{step}" if step > 1 else "")


def in_words(indexes: Indexes | None, size: int) -> str:
    """What indexes there are, for a message."""
    if indexes is None:
        return f"0 to {size - 1}"
    if isinstance(indexes, range) and size > NAMED_MAX:
        return f"{indexes[0]} to {indexes[-1]}" + (f" in steps of {indexes.step}" if indexes.step > 1 else "")
    if size <= NAMED_MAX:
        return ", ".join(map(str, indexes))
    return f"{', '.join(map(str, indexes[: NAMED_MAX - 1]))}, ..., {indexes[-1]} ({size} in all)"
