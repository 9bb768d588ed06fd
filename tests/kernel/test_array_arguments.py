"""`array=`: the forms in which people write the indexes of an array (beyond AWS, decision 0044)."""

from __future__ import annotations

import tracemalloc
from array import array
from typing import Any

import pytest
from anybatch import InvalidValue
from anybatch.kernel.array_arguments import LISTED_MAX, array_of

GIVEN: list[tuple[Any, list[int]]] = [
    (range(10, 100, 5), list(range(10, 100, 5))),
    (range(9, 2, -3), [3, 6, 9]),
    (range(7, 8, 100), [7]),
    ([3, 7, 9], [3, 7, 9]),
    ((9, 3, 7), [3, 7, 9]),
    ([5], [5]),
    ({"start": 10, "stop": 20, "step": 5}, [10, 15]),
    ({"start": 8, "stop": 10}, [8, 9]),
    ("7", [7]),
    ("0-15:4,20", [0, 4, 8, 12, 20]),
    ("0-15:5", [0, 5, 10, 15]),
    (" 20 , 1-3 ", [1, 2, 3, 20]),
    ("999999999", [999_999_999]),
]


@pytest.mark.parametrize(("given", "indexes"), GIVEN, ids=str)
def test_each_form_is_read(given: Any, indexes: list[int]) -> None:
    size, found = array_of(None, given)
    assert found is not None
    assert (size, list(found)) == (len(indexes), indexes)


@pytest.mark.parametrize("given", [range(5), [0, 1, 2, 3, 4], {"stop": 5}, "0-4", range(4, -1, -1)], ids=str)
def test_indexes_from_0_on_are_a_plain_array(given: Any) -> None:
    assert array_of(None, given) == (5, None) == array_of(5, None)


def test_a_single_job_has_neither() -> None:
    assert array_of(None, None) == (None, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "array: 5 is not allowed; it is a range, a list of indexes, {start, stop, step}, or a text such as"),
        (b"1", "array: b'1' is not allowed"),
        ({1, 2}, "array: {1, 2} is not allowed"),
        ([], r"array: \[\] is not allowed; there is no index in it"),
        (range(0), r"array: range\(0, 0\) is not allowed; there is no index in it"),
        ({"start": 5, "stop": 5}, r"array: range\(5, 5\) is not allowed; there is no index"),
        ([3, 7, 3], r"array: \[3, 7, 3\] is not allowed; each index is given once, and 3 is there twice"),
        ("1-5,3", "array: '1-5,3' is not allowed; each index is given once, and 3 is there twice"),
        ([1, -1], r"array\[1\]: -1 is not allowed; an index is a whole number \(int\), 0 to 999999999"),
        ([1, 2.0], r"array\[1\]: 2.0 is not allowed; an index is a whole number"),
        ([1, True], r"array\[1\]: True is not allowed"),
        ([1, "2"], r"array\[1\]: '2' is not allowed"),
        ([1_000_000_000], r"array\[0\]: 1000000000 is not allowed"),
        (range(-5, 5), r"array: range\(-5, 5\) is not allowed; an index is 0 to 999999999, and -5 is among these"),
        (range(10**12), "and 999999999999 is among these"),
        ("5-1", "array: '5-1' is not allowed; part '5-1' goes from low to high, in steps of 1 or more"),
        ("1-5:0", "part '1-5:0' goes from low to high"),
        ("", "array: '' is not allowed; it is made of parts such as 7, 0-15 or 0-15:4, with commas between"),
        ("1,,2", "array: '1,,2' is not allowed; it is made of parts"),
        ("-1", "array: '-1' is not allowed; it is made of parts"),
        ("0-15%4", "array: '0-15%4' is not allowed; .* max_running is what Slurm's %N is"),
        ("0-9999999999", "and 9999999999 is among these"),
        ("0-900000000:1,900000001", f"several parts have at most {LISTED_MAX} indexes together"),
        ({"start": 1, "end": 5}, "array: 'end' is not allowed; a range has start, stop"),
        ({"start": 1}, "array.stop: None is not allowed; a range says where it stops"),
        ({"stop": "5"}, "array.stop: '5' is not allowed; it is a whole number"),
        ({"stop": 5, "step": 0}, "array.step: 0 is not allowed; a step is not 0"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(given: Any, message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        array_of(None, given)


def test_size_and_indexes_are_one_thing() -> None:
    with pytest.raises(InvalidValue, match="array_size: 3 is not allowed; array says which children there are"):
        array_of(3, [1, 2, 3])


def test_a_long_range_is_not_spelled_out() -> None:
    tracemalloc.start()
    assert array_of(None, "5-999999999:2")[0] == 499_999_998
    assert array_of(None, {"start": 1, "stop": 900_000_000})[0] == 899_999_999
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_a_list_is_kept_in_four_bytes_each() -> None:
    found = array_of(None, [n * n for n in range(1000)])[1]
    assert isinstance(found, array)
    assert found.itemsize == 4
