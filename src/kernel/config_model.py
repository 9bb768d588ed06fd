"""What a configuration is: the tables of a file (docs/config.md), read and checked, with the line of each key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from .core.errors import ConfigError, InvalidValue, Mistake, QuotaExceeded, RequestError
from .core.model import Quotas

Place = tuple[str | int, ...]
"""Where a value stands in a configuration: ("jobs", "squares", "array_size")."""

LOCAL: Final = "local"
DOCKER: Final = "docker"
DEFAULT_QUEUE: Final = "default"
"""What jobs run in where their file names neither an environment nor a queue."""

MAPPINGS: Final = ("environment", "options", "parameters", "tags")
SHOWN_MAX: Final = 120
"""Characters of a value that a message shows."""
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_FIELD: Final = re.compile(r"\[(\d+)\]|\.?([^.\[]+)")


class After(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An entry of `depends_on`. `job` None: the job's own children, in sequence. `at`: its place in the source."""

    job: str | None = None
    type: str | None = None
    at: int = 0
    on: str | None = None

    def entry(self, job: Any) -> dict[str, Any]:
        """It as `Kernel.submit_job` takes it, about this job (an id or a handle; None: none)."""
        found = {"job": job, "type": self.type, "on": self.on}
        return {key: value for key, value in found.items() if value is not None}


class PlannedJob(Struct, kw_only=True):
    """A job of a configuration, with its arguments as `Kernel.submit_job` takes them."""

    name: str
    queue: str | None = None
    definition: str | None = None
    depends_on: list[After] = []
    arguments: dict[str, Any] = {}


class Config(Struct, kw_only=True):
    """A configuration, as `load_config` returns it and `Kernel.apply` takes it.

    `environments`, `queues` and `definitions` map names to the arguments of `create_compute_environment`,
    `create_job_queue` and `register_job_definition`; `kernel` and `sinks` hold arguments of `Kernel`
    (`kernel_arguments` has them ready for use). `jobs` are for `anybatch run`. `source` is the file's absolute path;
    `lines` says where each key stands in it.
    """

    name: str = "config"
    source: str | None = None
    kernel: dict[str, Any] = {}
    sinks: dict[str, dict[str, Any]] = {}
    environments: dict[str, dict[str, Any]] = {}
    queues: dict[str, dict[str, Any]] = {}
    definitions: dict[str, dict[str, Any]] = {}
    jobs: list[PlannedJob] = []
    lines: dict[str, int] = {}

    def kernel_arguments(self) -> dict[str, Any]:
        """What `[kernel]` and `[sinks]` say, as keyword arguments: `Kernel(path, **config.kernel_arguments())`."""
        found = dict(self.kernel)
        if "quotas" in found:
            found["quotas"] = Quotas(**found["quotas"])
        if self.sinks:
            found["sinks"] = self.sinks
        return found

    @property
    def quotas(self) -> Quotas:
        """The kernel's quotas, with those that `[kernel.quotas]` changes."""
        return Quotas(**self.kernel.get("quotas", {}))

    def completed(self) -> Config:
        """With what jobs need to run: environments where there are none, and a queue over all where there is none.

        Without environments there is one of processes ("local"), and one of containers ("docker") if jobs have
        images; if all have, only that.
        """
        environments = self.environments
        if not environments:
            kinds = {self.has_image(job) for job in self.jobs} or {False}
            made: dict[bool, dict[str, dict[str, Any]]] = {
                False: {LOCAL: {"backend": "process"}},
                True: {DOCKER: {"backend": "docker"}},
            }
            environments = {name: table for kind in sorted(kinds) for name, table in made[kind].items()}
        queues = self.queues or {DEFAULT_QUEUE: {"priority": 1, "compute_environments": list(environments)}}
        return structs.replace(self, environments=environments, queues=queues)

    def has_image(self, job: PlannedJob) -> bool:
        """Whether a job names an image, itself or by its definition."""
        definition = self.definitions.get((job.definition or "").partition(":")[0], {})
        for table in (job.arguments, definition):
            container = table.get("container")
            if table.get("image") or (isinstance(container, Mapping) and container.get("image")):
                return True
        return False

    def takes(self, environment: str, job: PlannedJob) -> bool:
        """Whether an environment is of a kind that runs jobs with, or without, an image as this one is."""
        table = self.environments[environment]
        options = table.get("options") or {}
        if self.has_image(job):
            return table.get("backend") != "process" or bool(options.get("ignore_image"))
        return table.get("backend") != "docker" or bool(options.get("image"))

    def queue_of(self, job: PlannedJob) -> str | None:
        """The queue that a job goes to: its own, the only one, or the one that is called "default"; None: unclear."""
        if job.queue is not None:
            return job.queue
        if len(self.queues) == 1:
            return next(iter(self.queues))
        return DEFAULT_QUEUE if DEFAULT_QUEUE in self.queues else None

    def ordered(self) -> list[PlannedJob]:
        """The jobs, each after those that it depends on; otherwise in the order of the source."""
        jobs, done = {job.name: job for job in self.jobs}, dict[str, PlannedJob]()
        for first in self.jobs:
            path = [first]
            while path:
                waits = next((jobs[a.job] for a in path[-1].depends_on if a.job in jobs and a.job not in done), None)
                if waits is None:
                    done.setdefault(path[-1].name, path[-1])
                    path.pop()
                elif waits in path:
                    raise ValueError(f"jobs depend on each other: {waits.name}")
                else:
                    path.append(waits)
        return list(done.values())


class Checker:
    """Collects mistakes. `line_of` finds the line of a place in the source; `name_of` how its key is written."""

    def __init__(
        self,
        file: str | None,
        line_of: Callable[[Place], int | None] = lambda _: None,
        name_of: Callable[[Place], str] | None = None,
    ) -> None:
        self.file = file
        self.mistakes: list[Mistake] = []
        self._line_of = line_of
        self._name_of = name_of or dotted

    def add(self, place: Place, message: str) -> None:
        """Note a mistake at this place."""
        mistake = Mistake(file=self.file, line=self._line_of(place), key=self._name_of(place), message=message)
        if mistake not in self.mistakes:
            self.mistakes.append(mistake)

    def has(self, *place: str) -> bool:
        """Whether a mistake was noted at this very place."""
        key = self._name_of(place)
        return any(mistake.key == key for mistake in self.mistakes)

    def add_apart(self, key: str, message: str) -> None:
        """Note a mistake that is not in the source."""
        self.mistakes.append(Mistake(file=None, line=None, key=key, message=message))

    def add_error(self, place: Place, error: RequestError, arguments: Mapping[str, Any] | None = None) -> None:
        """Note what the kernel refused about the thing at this place, which was given these arguments."""
        if not isinstance(error, InvalidValue):
            field = getattr(error, "field", None)
            self.add((*place, *parts(field)) if field else place, str(error))
            return
        text = error.allowed
        quota = re.search(r"\(quota (\w+)\)", text) if isinstance(error, QuotaExceeded) else None
        if quota is not None:
            text += f"; raise it in [kernel.quotas], or with --quota {quota[1]}=N"
        if error.value is not None and error.value != []:
            text = f"{shown(_as_given(error, arguments or {}))} is not allowed; {text}"
        self.add((*place, *parts(error.field)), text)

    def finish(self) -> None:
        """Raise ConfigError if there was any mistake, with all of them in the order of the source."""
        if self.mistakes:
            raise ConfigError(sorted(self.mistakes, key=lambda mistake: mistake.line or 0))


def checker_of(config: Config) -> Checker:
    """A checker that knows the lines of a configuration that has been read."""

    def line_of(place: Place) -> int | None:
        while place and dotted(place) not in config.lines:
            place = place[:-1]
        return config.lines.get(dotted(place), 1) if config.lines else None

    return Checker(config.source, line_of)


def _as_given(error: InvalidValue, arguments: Mapping[str, Any]) -> object:
    """The refused value as the source has it: the kernel counts in units of its own."""
    if not isinstance(error.value, int | float | Struct):
        return error.value
    found: Any = arguments
    for part in parts(error.field):
        try:
            found = found[part]
        except (LookupError, TypeError):
            return error.value
    return found


def shown(value: object) -> str:
    """A value for a message, cut to a bearable length."""
    text = repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[: SHOWN_MAX - 3]}..."


def dotted(place: Place) -> str:
    """A place as a key in TOML's own words, with list indexes in brackets."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE.fullmatch(part) else msgspec.json.encode(part).decode())
    return text


def parts(field: str) -> Place:
    """The place that `InvalidValue.field` names. What follows `environment.` is one name, dots and all."""
    head, dot, rest = field.partition(".")
    if dot and head in MAPPINGS:
        return (head, rest)
    return tuple(int(m[1]) if m[1] else m[2] for m in _FIELD.finditer(field))
