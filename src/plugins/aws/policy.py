"""Policies in IAM's JSON: parsed and checked when they are loaded, evaluated for each call.

Nothing is allowed unless a statement allows it, and a statement that denies wins over all that allow. What this cannot
evaluate (an operator, a key or a variable that is not known here) is refused when the policy is loaded, so that no
condition is ever passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from anybatch import InvalidValue
from msgspec import Struct

from .conditions import OPERATORS, Context, Operator

VERSIONS: Final = ("2012-10-17", "2008-10-17")
ELEMENTS: Final = frozenset(("Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Condition"))
KEYS: Final = (
    "aws:username", "aws:userid", "aws:principalarn", "aws:principalaccount", "aws:sourceip", "aws:currenttime",
    "aws:epochtime", "aws:securetransport", "aws:requestedregion", "aws:useragent", "aws:tagkeys",
    "batch:shareidentifier", "batch:image", "batch:logdriver", "batch:privileged", "batch:user",
    "batch:awslogscreategroup", "batch:awslogsgroup", "batch:awslogsregion", "batch:awslogsstreamprefix",
    "batch:eksimage", "batch:eksnamespace", "batch:eksprivileged", "batch:eksrunasgroup", "batch:eksrunasuser",
    "batch:eksserviceaccountname", "batch:schedulingpriority", "iam:passedtoservice",
)  # fmt: skip
"""Condition keys that are known here, in lower case; beside them aws:RequestTag/<key> and aws:ResourceTag/<key>."""
TAG_KEYS: Final = ("aws:requesttag/", "aws:resourcetag/", "batch:resourcetag/")
_VARIABLE: Final = re.compile(r"\$\{([^}]*)\}")
VARIABLES: Final = ("aws:username", "aws:userid", "*", "?", "$")


class Resource(Struct, frozen=True):
    """What a call is about: its ARN (or "*"), and its tags where it has any."""

    arn: str
    tags: Mapping[str, str] = {}


class Condition(Struct, frozen=True):
    """One line of a condition block."""

    operator: Operator
    key: str
    values: tuple[str, ...]


class Statement(Struct, frozen=True):
    """A statement, ready to be evaluated."""

    allows: bool
    actions: tuple[str, ...]
    not_actions: bool
    resources: tuple[str, ...]
    not_resources: bool
    conditions: tuple[Condition, ...]

    def applies(self, action: str, resource: Resource, context: Context) -> bool:
        """Whether it says something about this."""
        if any(matches(pattern, action, ignore_case=True) for pattern in self.actions) is self.not_actions:
            return False
        found = any(matches(_filled(pattern, context), resource.arn) for pattern in self.resources)
        if found is self.not_resources:
            return False
        return all(one.operator.holds(context.values(one.key, resource.tags), one.values) for one in self.conditions)


Policy = tuple[Statement, ...]


def parse_policy(field: str, given: object) -> Policy:
    """A policy document.

    Raises:
        InvalidValue: it is no policy, or has something that cannot be evaluated here.
    """
    if isinstance(given, str):
        text = given
        try:
            given = json.loads(text)
        except ValueError as e:
            raise InvalidValue(field, text[:100], f"it is a policy in JSON: {e}") from None
    if not isinstance(given, Mapping):
        raise InvalidValue(field, given, "a policy is an object with Version and Statement")
    if given.get("Version", VERSIONS[0]) not in VERSIONS:
        raise InvalidValue(f"{field}.Version", given.get("Version"), f"a version is one of {', '.join(VERSIONS)}")
    unknown = set(given) - {"Version", "Id", "Statement"}
    if unknown:
        raise InvalidValue(f"{field}.{min(map(str, unknown))}", None, "a policy has Version, Id and Statement")
    statements = given.get("Statement")
    entries = [statements] if isinstance(statements, Mapping) else statements
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise InvalidValue(f"{field}.Statement", statements, "it is a statement, or a list of statements")
    return tuple(_statement(f"{field}.Statement[{n}]", entry) for n, entry in enumerate(entries))


def _statement(field: str, given: object) -> Statement:
    if not isinstance(given, Mapping):
        raise InvalidValue(field, given, "a statement is an object")
    unknown = set(given) - ELEMENTS
    if unknown:
        raise InvalidValue(f"{field}.{min(map(str, unknown))}", None, f"a statement has {', '.join(sorted(ELEMENTS))}")
    if given.get("Effect") not in ("Allow", "Deny"):
        raise InvalidValue(f"{field}.Effect", given.get("Effect"), "an effect is Allow or Deny")
    actions, not_actions = _patterns(field, given, "Action")
    resources, not_resources = _patterns(field, given, "Resource")
    for action in actions:
        if action != "*" and ":" not in action:
            raise InvalidValue(f"{field}.Action", action, "an action is service:Action, such as batch:SubmitJob, or *")
    for pattern in resources:
        _check_variables(f"{field}.Resource", pattern)
    conditions = []
    block = given.get("Condition", {})
    if not isinstance(block, Mapping):
        raise InvalidValue(f"{field}.Condition", block, "it maps operators to keys")
    for operator, lines in block.items():
        if operator not in OPERATORS:
            raise InvalidValue(f"{field}.Condition", operator, f"operators here are {', '.join(OPERATORS)}")
        if not isinstance(lines, Mapping):
            raise InvalidValue(f"{field}.Condition.{operator}", lines, "it maps condition keys to values")
        for key, values in lines.items():
            conditions.append(_condition(f"{field}.Condition.{operator}", operator, key, values))
    return Statement(
        given["Effect"] == "Allow", tuple(actions), not_actions, tuple(resources), not_resources, tuple(conditions)
    )


def _patterns(field: str, given: Mapping[Any, Any], name: str) -> tuple[list[str], bool]:
    if (name in given) == (f"Not{name}" in given):
        raise InvalidValue(field, None, f"a statement has either {name} or Not{name}")
    value = given.get(name, given.get(f"Not{name}"))
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(one, str) and one for one in found):
        raise InvalidValue(f"{field}.{name}", value, "it is a text, or a list of texts")
    return found, f"Not{name}" in given


def _condition(field: str, operator: str, key: object, given: object) -> Condition:
    name = str(key).lower()
    if name not in KEYS and not name.startswith(TAG_KEYS):
        raise InvalidValue(
            field, key, f"condition keys here are {', '.join(KEYS)}, aws:RequestTag/*, aws:ResourceTag/*"
        )
    # A tag's own key keeps its case.
    for prefix in TAG_KEYS:
        if name.startswith(prefix):
            name = prefix + str(key)[len(prefix) :]
    values = given if isinstance(given, list) else [given]
    texts = []
    for value in values:
        if isinstance(value, bool):
            value = "true" if value else "false"
        if not isinstance(value, str | int | float):
            raise InvalidValue(f"{field}.{key}", value, "a value is text, a number, or true or false")
        _check_variables(f"{field}.{key}", str(value), allowed=())
        texts.append(str(value))
    try:
        return Condition(OPERATORS[operator], name, OPERATORS[operator].check(texts))
    except ValueError as e:
        raise InvalidValue(f"{field}.{key}", given, f"{operator}: {e}") from None


def _check_variables(field: str, text: str, allowed: Iterable[str] = VARIABLES) -> None:
    for name in _VARIABLE.findall(text):
        if name not in allowed:
            raise InvalidValue(
                field, text, "policy variables here, in resources, are ${aws:username} and ${aws:userid}"
            )


def _filled(pattern: str, context: Context) -> str:
    if "${" not in pattern:
        return pattern

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name in ("*", "?", "$"):
            return {"*": "[*]", "?": "[?]", "$": "$"}[name]
        # What stands for the user is text, whatever characters it has.
        return "".join(f"[{c}]" if c in "*?" else c for c in next(iter(context.values(name, {}) or ()), "\0"))

    return _VARIABLE.sub(value, pattern)


@lru_cache(maxsize=4096)
def _compiled(pattern: str, ignore_case: bool) -> Callable[[str], Any]:
    parts = {"*": ".*", "?": "."}
    text = re.split(r"(\[\*\]|\[\?\]|\*|\?)", pattern)
    expression = "".join(
        re.escape(part[1]) if part in ("[*]", "[?]") else parts.get(part, re.escape(part)) for part in text
    )
    return re.compile(expression, re.DOTALL | (re.IGNORECASE if ignore_case else 0)).fullmatch


def matches(pattern: str, text: str, *, ignore_case: bool = False) -> bool:
    """Whether a pattern with `*` and `?` fits."""
    return _compiled(pattern, ignore_case)(text) is not None


def is_denied(policies: Sequence[Policy], action: str, resource: Resource, context: Context) -> bool:
    """Whether a statement denies it."""
    return any(
        not statement.allows and statement.applies(action, resource, context)
        for policy in policies
        for statement in policy
    )


def is_allowed(policies: Sequence[Policy], action: str, resource: Resource, context: Context) -> bool:
    """Whether a statement allows it, and none denies it."""
    return not is_denied(policies, action, resource, context) and any(
        statement.allows and statement.applies(action, resource, context) for policy in policies for statement in policy
    )
