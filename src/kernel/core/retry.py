"""What becomes of an attempt that has ended: evaluateOnExit and the retry strategy (contract 4.1, 4.2)."""

from __future__ import annotations

from .model import Action, EvaluateOnExit, RetryStrategy


def matches(pattern: str, value: str | None) -> bool:
    """Whether a pattern fits: exact, or a prefix with a trailing `*`; a lone `*` also fits None (EX-5)."""
    if pattern == "*":
        return True
    if value is None:
        return False
    return value.startswith(pattern[:-1]) if pattern.endswith("*") else value == pattern


def is_match(entry: EvaluateOnExit, status_reason: str | None, reason: str | None, exit_code: int | None) -> bool:
    """Whether all the conditions that an entry gives hold (EX-3, EX-6)."""
    code = None if exit_code is None else str(exit_code)
    return all(
        pattern is None or matches(pattern, value)
        for pattern, value in (
            (entry.on_status_reason, status_reason),
            (entry.on_reason, reason),
            (entry.on_exit_code, code),
        )
    )


def wants_retry(
    strategy: RetryStrategy, used: int, status_reason: str | None, reason: str | None, exit_code: int | None
) -> bool:
    """Whether a failed attempt is to be followed by another, `used` attempts having been used up with it.

    Entries are tried in order and the first match decides; without a match the answer is yes (EX-4).
    """
    if used >= strategy.attempts:
        return False
    return matching_action(strategy, status_reason, reason, exit_code) is not Action.EXIT


def matching_action(
    strategy: RetryStrategy, status_reason: str | None, reason: str | None, exit_code: int | None
) -> Action | None:
    """What the first entry that matches says; None where none does."""
    for entry in strategy.evaluate_on_exit:
        if is_match(entry, status_reason, reason, exit_code):
            return entry.action
    return None
