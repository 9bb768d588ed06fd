"""What a run is to do: a configuration and a folder, kept beside the journal for a resume.

It comes from a file or from a command line, completed with what a run brings of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import anybatch
import msgspec
from anybatch.kernel.array_arguments import array_of
from anybatch.kernel.config_check import judge
from anybatch.kernel.config_fit import check_options, fits, misfits
from anybatch.kernel.config_model import LOCAL, Checker, Config, PlannedJob
from anybatch.kernel.config_read import config_of_file
from anybatch.kernel.core.state import KernelState
from anybatch.kernel.registry import BackendRegistry
from msgspec import Struct, structs

FORMAT: Final = 2
"""Of the kept plan."""
RETAIN_S: Final = 36_500 * 86_400.0
"""Ended jobs are kept for good: a run that goes on after a year still knows what not to run again."""


def bad(key: str, message: str) -> anybatch.ConfigError:
    """What to raise for something wrong with the command line."""
    return anybatch.ConfigError([anybatch.Mistake(file=None, line=None, key=key, message=message)])


class Plan(Struct, kw_only=True):
    """All of it. `folder` is where attempts run."""

    config: Config
    folder: str
    format: int = FORMAT

    def digest(self, job: PlannedJob) -> str:
        """Stands for everything that the job is: equal for equal jobs only."""
        definition = None if job.definition is None else (job.definition, self.config.definitions.get(job.definition))
        after = [(one.job, one.type, one.on) if one.on else (one.job, one.type) for one in job.depends_on]
        return _hash([job.name, self.config.queue_of(job), definition, after, job.arguments])

    def digests(self) -> dict[str, str]:
        """Of each job, by name."""
        return {job.name: self.digest(job) for job in self.config.jobs}

    def token(self, job: PlannedJob) -> str:
        """The client token under which the job is submitted, the same in each resume."""
        return f"run:{_hash(job.name)[:20]}:{self.digest(job)[:20]}"


def _hash(value: object) -> str:
    encoded = msgspec.json.encode(value, order="deterministic", enc_hook=str)
    return hashlib.sha256(encoded).hexdigest()


def depends_on(job: PlannedJob, handles: Mapping[str, anybatch.JobHandle]) -> list[Any]:
    """The job's dependencies as `submit_job` takes them."""
    return [after.entry(None if after.job is None else handles[after.job]) for after in job.depends_on]


def children_of(job: PlannedJob) -> int | None:
    """How many children the job has; None: it is a single one."""
    return array_of(job.arguments.get("array_size"), job.arguments.get("array"))[0]


def completed(
    config: Config,
    checker: Checker,
    *,
    max_vcpus: float | None,
    quotas: Mapping[str, int],
    ignore_image: bool = False,
) -> Config:
    """A configuration with what a run brings of its own, and with what the command line says."""
    if ignore_image and config.environments:
        text = "environments are named; write options.ignore_image = true for one with the backend process"
        checker.add_apart("--ignore-image", text)
    elif ignore_image:
        local = {"backend": "process", "options": {"ignore_image": True}}
        config = structs.replace(config, environments={LOCAL: local})
    config = config.completed()
    kernel = {**config.kernel, "quotas": {**config.kernel.get("quotas", {}), **quotas}}
    queues = {name: {"retain_succeeded": RETAIN_S, "retain_failed": RETAIN_S, **q} for name, q in config.queues.items()}
    environments = dict(config.environments)
    if max_vcpus is not None and len(environments) == 1:
        environments = {name: {**table, "max_vcpus": max_vcpus} for name, table in environments.items()}
    elif max_vcpus is not None:
        names = ", ".join(environments)
        text = f"there are {len(environments)} environments ({names}); each has its own max_vcpus in the file"
        checker.add_apart("--max-vcpus", text)
    return structs.replace(config, kernel=kernel, queues=queues, environments=environments)


def read_plan(
    file: str,
    folder: str,
    *,
    max_vcpus: float | None = None,
    quotas: Mapping[str, int] | None = None,
    ignore_image: bool = False,
) -> Plan:
    """The file's plan, checked as a whole; `max_vcpus` and `quotas` lead over the file's.

    `ignore_image`: jobs run as local processes, also those with an image.

    Raises:
        ConfigError: the file cannot be read, or has mistakes: all that were found, each with its line and key.
    """
    config, checker = config_of_file(file)
    if not config.jobs and not any(mistake.key.startswith("jobs") for mistake in checker.mistakes):
        checker.add(("jobs",), "the file has no jobs; write at least one [jobs.NAME] table")
    config = completed(config, checker, max_vcpus=max_vcpus, quotas=quotas or {}, ignore_image=ignore_image)
    plan = Plan(config=config, folder=folder)
    check(plan, checker)
    return plan


def check(plan: Plan, checker: Checker) -> None:
    """Raise ConfigError with all that the kernel would refuse, and every job that could never run."""
    state, registry = KernelState(plan.config.quotas), BackendRegistry()
    judged = judge(plan.config, registry, state, checker)
    check_options(judged, registry, state, checker)
    for name, found in misfits(fits(judged, registry, state)).items():
        text = "; ".join(fit.text for fit in found)
        checker.add(("jobs", name, *found[0].limited_by[:1]), text)
    checker.finish()
