"""Condition operators of IAM policies, and the values that a call gives their keys."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from msgspec import Struct

Test = Callable[[str, str], bool]


class Context:
    """What a call says about itself: condition keys (in lower case) with their values."""

    def __init__(self, values: Mapping[str, Sequence[str]], request_tags: Mapping[str, str] | None = None) -> None:
        self._values = values
        self._request_tags = request_tags or {}

    def values(self, key: str, resource_tags: Mapping[str, str]) -> tuple[str, ...] | None:
        """The values of a key; None if the call does not have it."""
        kind, slash, tag = key.partition("/")
        if slash:
            tags = self._request_tags if kind == "aws:requesttag" else resource_tags
            return (tags[tag],) if tag in tags else None
        found = self._values.get(key)
        if found is None and key == "aws:tagkeys":
            return tuple(self._request_tags) or None
        return None if found is None else tuple(found)


class Operator(Struct, frozen=True):
    """An operator: how one value is compared, and how several are put together.

    `negated`: it holds if no comparison does. `missing`: what it says where the call does not have the key.
    `quantifier`: "all" or "any" for ForAllValues and ForAnyValue.
    """

    test: Test
    check: Callable[[Sequence[str]], tuple[str, ...]]
    negated: bool = False
    missing: bool = False
    quantifier: str = ""
    is_null: bool = False

    def holds(self, found: tuple[str, ...] | None, wanted: tuple[str, ...]) -> bool:
        """Whether the condition holds for these values of its key."""
        if self.is_null:
            return (found is None) == (wanted[0] == "true")
        if found is None:
            return self.missing
        if self.quantifier == "all":
            return all(self._one(value, wanted) for value in found)
        return any(self._one(value, wanted) for value in found)

    def _one(self, value: str, wanted: tuple[str, ...]) -> bool:
        return any(self.test(value, one) for one in wanted) is not self.negated


@lru_cache(maxsize=4096)
def _like(pattern: str, ignore_case: bool) -> re.Pattern[str]:
    parts = {"*": ".*", "?": "."}
    expression = "".join(parts.get(part, re.escape(part)) for part in re.split(r"(\*|\?)", pattern))
    return re.compile(expression, re.DOTALL | (re.IGNORECASE if ignore_case else 0))


def _fits(value: str, pattern: str) -> bool:
    return _like(pattern, False).fullmatch(value) is not None


def _number(compare: Callable[[float, float], bool]) -> Test:
    def test(value: str, wanted: str) -> bool:
        try:
            return compare(float(value), float(wanted))
        except ValueError:
            return False

    return test


def _parse_date(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        when = datetime.fromisoformat(text)
        return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()


def _date(compare: Callable[[float, float], bool]) -> Test:
    def test(value: str, wanted: str) -> bool:
        try:
            return compare(_parse_date(value), _parse_date(wanted))
        except ValueError:
            return False

    return test


def _in_network(value: str, wanted: str) -> bool:
    try:
        return ipaddress.ip_address(value) in ipaddress.ip_network(wanted, strict=False)
    except ValueError:
        return False


def _texts(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(values)


def _checked(parse: Callable[[str], Any]) -> Callable[[Sequence[str]], tuple[str, ...]]:
    def check(values: Sequence[str]) -> tuple[str, ...]:
        for value in values:
            parse(value)
        return tuple(values)

    return check


def _flags(values: Sequence[str]) -> tuple[str, ...]:
    found = tuple(value.lower() for value in values)
    if not found or any(value not in ("true", "false") for value in found):
        raise ValueError("values are true or false")
    return found


def _base() -> dict[str, Operator]:
    numbers = _checked(float)
    dates = _checked(_parse_date)
    networks = _checked(lambda text: ipaddress.ip_network(text, strict=False))
    found = {
        "StringEquals": Operator(lambda a, b: a == b, _texts),
        "StringEqualsIgnoreCase": Operator(lambda a, b: a.casefold() == b.casefold(), _texts),
        "StringLike": Operator(_fits, _texts),
        "ArnEquals": Operator(_fits, _texts),
        "ArnLike": Operator(_fits, _texts),
        "NumericEquals": Operator(_number(lambda a, b: a == b), numbers),
        "NumericLessThan": Operator(_number(lambda a, b: a < b), numbers),
        "NumericLessThanEquals": Operator(_number(lambda a, b: a <= b), numbers),
        "NumericGreaterThan": Operator(_number(lambda a, b: a > b), numbers),
        "NumericGreaterThanEquals": Operator(_number(lambda a, b: a >= b), numbers),
        "DateEquals": Operator(_date(lambda a, b: a == b), dates),
        "DateLessThan": Operator(_date(lambda a, b: a < b), dates),
        "DateLessThanEquals": Operator(_date(lambda a, b: a <= b), dates),
        "DateGreaterThan": Operator(_date(lambda a, b: a > b), dates),
        "DateGreaterThanEquals": Operator(_date(lambda a, b: a >= b), dates),
        "Bool": Operator(lambda a, b: a.lower() == b, _flags),
        "IpAddress": Operator(_in_network, networks),
    }
    for name, of in (
        ("StringNotEquals", "StringEquals"),
        ("StringNotEqualsIgnoreCase", "StringEqualsIgnoreCase"),
        ("StringNotLike", "StringLike"),
        ("ArnNotEquals", "ArnEquals"),
        ("ArnNotLike", "ArnLike"),
        ("NumericNotEquals", "NumericEquals"),
        ("DateNotEquals", "DateEquals"),
        ("NotIpAddress", "IpAddress"),
    ):
        # A negated operator holds where the key is missing, as on AWS.
        found[name] = Operator(found[of].test, found[of].check, negated=True, missing=True)
    return found


def _all() -> dict[str, Operator]:
    found = {}
    for name, operator in _base().items():
        test, check, negated = operator.test, operator.check, operator.negated
        found[name] = operator
        found[f"{name}IfExists"] = Operator(test, check, negated, True)
        for prefix, quantifier, missing in (("ForAllValues", "all", True), ("ForAnyValue", "any", False)):
            found[f"{prefix}:{name}"] = Operator(test, check, negated, missing, quantifier)
            found[f"{prefix}:{name}IfExists"] = Operator(test, check, negated, True, quantifier)
    found["Null"] = Operator(lambda a, b: False, _flags, is_null=True)
    return found


OPERATORS: Final[Mapping[str, Operator]] = _all()
"""Every operator by its name."""
