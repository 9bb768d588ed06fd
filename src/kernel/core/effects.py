"""Effects: what the core asks of the outside, once the events behind them are committed. All idempotent."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct


class Effect(Struct, frozen=True):
    """Root of all effects."""


class LaunchAttempts(Effect, frozen=True):
    """Run attempt `number` of these children on this host (a serial)."""

    job: int
    number: int
    indexes: Sequence[int]
    host: int


class StopAttempts(Effect, frozen=True):
    """End these attempts, each (index, number), wherever they run."""

    job: int
    attempts: Sequence[tuple[int, int]]


class StartEnvironment(Effect, frozen=True):
    """Start this environment's backend, or tell it of an update."""

    name: str


class CloseEnvironment(Effect, frozen=True):
    """Close this environment's backend: the environment is gone."""

    name: str


class ForgetJobs(Effect, frozen=True):
    """What is kept of these jobs (ids) outside, logs and folders, may go."""

    job_ids: Sequence[str]


class NotifyJob(Effect, frozen=True):
    """The job as a whole has ended."""

    job: int


class NotifyChildren(Effect, frozen=True):
    """These children have ended."""

    job: int
    indexes: Sequence[int]


class WantPlan(Effect, frozen=True):
    """Something changed that may let waiting work be placed."""


WANT_PLAN = WantPlan()
