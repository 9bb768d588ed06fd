"""What a run is to do: its settings, definitions and jobs, checked as a whole before anything is submitted.

A plan comes from a file (`runfile.py`) or from a command line, and is kept beside the journal for a resume.
Values are judged by the kernel itself: a scratch kernel in memory, whose only environment is DISABLED, is given
every definition and job, so what `run` refuses and what the kernel refuses cannot drift apart.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final, TypeVar

import anybatch
import msgspec
from anybatch.backends.process import MEMORY_SHARE, machine_memory_mib
from msgspec import Struct

ENVIRONMENT: Final = "local"
QUEUE: Final = "default"
"""The one compute environment and the one queue of a run."""
FORMAT: Final = 1

Place = tuple[str | int, ...]
"""Where a value stands in the source: ("jobs", "squares", "array_size")."""
Result = TypeVar("Result")


class Mistake(Struct, frozen=True, kw_only=True):
    """Something wrong with what a run was asked to do. `line` None: it has none."""

    file: str | None
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        where = self.file or "anybatch run"
        if self.line is not None:
            where = f"{where}:{self.line}"
        return ": ".join(part for part in (where, self.key, self.message) if part)


class BadPlan(Exception):
    """The run cannot be begun as asked. Attribute: `mistakes`, all that were found."""

    def __init__(self, mistakes: Collection[Mistake]) -> None:
        super().__init__("\n".join(map(str, mistakes)))
        self.mistakes = list(mistakes)


def bad(key: str, message: str) -> BadPlan:
    """What to raise for something wrong with the command line."""
    return BadPlan([Mistake(file=None, line=None, key=key, message=message)])


class After(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An entry of `depends_on`. `job` None: the job's own children, in sequence. `at`: its place in the source."""

    job: str | None = None
    type: str | None = None
    at: int = 0


class PlannedJob(Struct, kw_only=True):
    """A job, with its arguments as `Kernel.submit_job` takes them."""

    name: str
    definition: str | None = None
    depends_on: list[After] = []
    arguments: dict[str, Any] = {}


class Settings(Struct, kw_only=True):
    """What the run may use. None: what the machine has; `memory` in MiB, `gpus` device indexes."""

    max_vcpus: float | None = None
    memory: int | None = None
    gpus: tuple[int, ...] = ()
    quotas: dict[str, int] = {}

    def make_quotas(self) -> anybatch.Quotas:
        """The kernel's quotas, with those that were changed."""
        return anybatch.Quotas(**self.quotas)

    def options(self) -> dict[str, Any]:
        """The options of the process backend."""
        found: dict[str, Any] = {"gpus": list(self.gpus)} if self.gpus else {}
        return found if self.memory is None else {**found, "memory": self.memory}


class Plan(Struct, kw_only=True):
    """All of it. `folder` is where attempts run; `jobs` stand in the order of the source."""

    name: str
    source: str | None
    folder: str
    settings: Settings
    definitions: dict[str, dict[str, Any]]
    jobs: list[PlannedJob]
    format: int = FORMAT

    def digest(self, job: PlannedJob) -> str:
        """Stands for everything that the job is: equal for equal jobs only."""
        definition = None if job.definition is None else (job.definition, self.definitions.get(job.definition))
        after = [(one.job, one.type) for one in job.depends_on]
        return _hash([job.name, definition, after, job.arguments])

    def digests(self) -> dict[str, str]:
        """Of each job, by name."""
        return {job.name: self.digest(job) for job in self.jobs}

    def token(self, job: PlannedJob) -> str:
        """The client token under which the job is submitted, the same in each resume."""
        return f"run:{_hash(job.name)[:20]}:{self.digest(job)[:20]}"

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


def _hash(value: object) -> str:
    encoded = msgspec.json.encode(value, order="deterministic", enc_hook=str)
    return hashlib.sha256(encoded).hexdigest()


def depends_on(job: PlannedJob, handles: Mapping[str, anybatch.JobHandle]) -> list[Any]:
    """The job's dependencies as `submit_job` takes them; a name without a handle is left to the kernel to refuse."""
    entries: list[Any] = []
    for after in job.depends_on:
        entry: dict[str, Any] = {} if after.type is None else {"type": after.type}
        if after.job is not None:
            entry["job"] = handles.get(after.job, after.job)
        entries.append(entry)
    return entries


# -- checking ---------------------------------------------------------------------------------------


class Checker:
    """Collects mistakes. `line_of` finds the line of a place in the source; `name_of` how its key is written."""

    def __init__(
        self, file: str | None, line_of: Callable[[Place], int | None], name_of: Callable[[Place], str] | None = None
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

    def add_error(self, place: Place, error: anybatch.RequestError, arguments: Mapping[str, Any] | None = None) -> None:
        """Note what the kernel refused about the thing at this place, which was given these arguments."""
        if not isinstance(error, anybatch.InvalidValue):
            self.add(place, str(error))
            return
        text = error.allowed
        quota = re.search(r"\(quota (\w+)\)", text) if isinstance(error, anybatch.QuotaExceeded) else None
        if quota is not None:
            text += f"; raise it with --quota {quota[1]}=N, or in [run.quotas]"
        if error.value is not None and error.value != []:
            text = f"{shown(_as_given(error, arguments or {}))} is not allowed; {text}"
        self.add((*place, *parts(error.field)), text)

    def finish(self) -> None:
        """Raise BadPlan if there was any mistake, with all of them in the order of the source."""
        if self.mistakes:
            raise BadPlan(sorted(self.mistakes, key=lambda mistake: mistake.line or 0))


def _as_given(error: anybatch.InvalidValue, arguments: Mapping[str, Any]) -> object:
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
    return text if len(text) <= 120 else f"{text[:117]}..."


_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_FIELD: Final = re.compile(r"\[(\d+)\]|\.?([^.\[]+)")
MAPPINGS: Final = ("environment", "parameters", "tags")


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


async def check(plan: Plan, checker: Checker) -> None:
    """Note every value that the kernel would refuse, and every job that could never run."""
    settings = plan.settings
    try:
        quotas = settings.make_quotas()
    except (TypeError, msgspec.ValidationError):  # noted by whoever read them
        quotas = anybatch.Quotas()
    backends = {"scratch": anybatch.InlineBackend()}
    async with anybatch.Kernel(backends=backends, quotas=quotas) as kernel:

        async def create(**arguments: Any) -> anybatch.EnvironmentDetail:
            return await kernel.create_compute_environment(
                ENVIRONMENT, backend="scratch", state="DISABLED", **arguments
            )

        given = {} if settings.max_vcpus is None else {"max_vcpus": settings.max_vcpus}
        environment, _ = await _accepted(create, given, ("run",), checker)
        if environment is None:
            return
        await kernel.create_job_queue(QUEUE, priority=1, compute_environments=[ENVIRONMENT])
        scratch = _Scratch(kernel, plan, checker, environment.max_vcpus)
        for name, arguments in plan.definitions.items():
            await scratch.register(name, arguments)
        for job in plan.ordered():
            await scratch.submit(job)


class _Scratch:
    """The scratch kernel, and what of the plan it has taken."""

    def __init__(self, kernel: anybatch.Kernel, plan: Plan, checker: Checker, max_vcpus: float) -> None:
        self._kernel, self._plan, self._checker = kernel, plan, checker
        self._max_vcpus = max_vcpus
        self._definitions: dict[str, anybatch.DefinitionDetail] = {}
        self._handles: dict[str, anybatch.JobHandle] = {}
        self._unsized: set[str] = set()

    async def register(self, name: str, arguments: dict[str, Any]) -> None:
        async def call(name: str, **arguments: Any) -> anybatch.DefinitionDetail:
            return await self._kernel.register_job_definition(name, **arguments)

        place = ("definitions", name)
        made, _ = await _accepted(call, {"name": name, **arguments}, place, self._checker)
        if made is not None:
            self._definitions[name] = made

    async def submit(self, job: PlannedJob) -> None:
        async def call(name: str, **arguments: Any) -> anybatch.JobHandle:
            return await self._kernel.submit_job(name, queue=QUEUE, **arguments)

        place, arguments = ("jobs", job.name), {"name": job.name, **job.arguments}
        if job.definition in self._definitions:
            arguments["definition"] = self._definitions[job.definition]
        elif job.definition is not None:  # unknown, or broken: noted already
            arguments.setdefault("command", ["true"])
        # A job or size that is wrong has been noted; what depends on it is not wrong for that.
        known = [after for after in job.depends_on if after.job is None or after.job in self._handles]
        known = [after for after in known if after.type != "N_TO_N" or after.job not in self._unsized]
        most = self._plan.settings.quotas.get("dependencies_max", anybatch.Quotas().dependencies_max)
        if len(job.depends_on) > most:
            self._checker.add((*place, "depends_on"), f"{len(job.depends_on)} entries; at most {most}")
            known = known[:most]
        checked = PlannedJob(name=job.name, depends_on=known)
        arguments["depends_on"] = depends_on(checked, self._handles)
        handle, wrong = await _accepted(call, arguments, place, self._checker, [after.at for after in known])
        if "array_size" in wrong or handle is None:
            self._unsized.add(job.name)
        if handle is not None:
            self._handles[job.name] = handle
            self._check_fits(place, await handle.describe())

    def _check_fits(self, place: Place, job: anybatch.JobDetail) -> None:
        """A job that no host here can ever hold would wait for good."""
        settings = self._plan.settings
        memory = settings.memory if settings.memory is not None else int(machine_memory_mib() * MEMORY_SHARE)
        for key, asked, offered, unit in (
            ("vcpus", job.vcpus, self._max_vcpus, "vCPUs (run.max_vcpus, --max-vcpus)"),
            ("memory", job.memory_mib, memory, "MiB (run.memory)"),
            ("gpus", job.gpus, len(settings.gpus), "GPUs (run.gpus)"),
        ):
            if asked > offered:
                message = f"{asked:g} can never run: this run has {offered:g} {unit}"
                self._checker.add((*place, key), message)


async def _accepted(
    call: Callable[..., Awaitable[Result]],
    arguments: dict[str, Any],
    place: Place,
    checker: Checker,
    entries: list[int] | None = None,
) -> tuple[Result | None, set[str]]:
    """Call until nothing is refused any more: note each refusal, put something harmless there, and try again.

    Returns the result (None: there was no way) and the names of the arguments that were refused. `entries` are
    the places of the `depends_on` entries in the source.
    """
    arguments, at, wrong, seen = dict(arguments), list(entries or []), set[str](), set[str]()
    while True:
        try:
            return await call(**arguments), wrong
        except anybatch.RequestError as error:
            field = error.field if isinstance(error, anybatch.InvalidValue) else ""
            found = parts(field)
            if isinstance(error, anybatch.InvalidValue) and _is_entry(found, len(at)):
                index = int(found[1])
                field = f"depends_on[{at.pop(index)}]{field.partition(']')[2]}"
                named = getattr(arguments["depends_on"][index].get("job"), "name", error.value)
                checker.add_error(place, anybatch.InvalidValue(field, named, error.allowed))
                arguments["depends_on"] = [e for n, e in enumerate(arguments["depends_on"]) if n != index]
                wrong.add("depends_on")
                continue
            checker.add_error(place, error, arguments)
            if not found or field in seen or not _repair(arguments, found):
                return None, wrong
            seen.add(field)
            wrong.add(str(found[0]))


def _is_entry(found: Place, entries: int) -> bool:
    return len(found) > 1 and found[0] == "depends_on" and isinstance(found[1], int) and found[1] < entries


def _repair(arguments: dict[str, Any], found: Place) -> bool:
    """Put something harmless where a value was refused; False if nothing can be done."""
    head, rest = str(found[0]), found[1:]
    value = arguments.get(head)
    if head == "name":
        arguments["name"] = "x"
    elif head == "script":
        arguments["script"] = "#!/bin/sh"
    elif head == "command":
        if isinstance(value, list) and rest and isinstance(rest[0], int):
            arguments["command"] = [*value[: rest[0]], "true", *value[rest[0] + 1 :]]
        else:
            arguments["command"] = ["true"]
    elif head == "parameters" and rest and isinstance(value or {}, Mapping):
        arguments["parameters"] = {**(value or {}), str(rest[0]): "x"}
    elif head in MAPPINGS and rest and isinstance(value, Mapping) and rest[0] in value:
        arguments[head] = {name: entry for name, entry in value.items() if name != rest[0]}
    elif head == "array_size":
        del arguments["array_size"]
        arguments["depends_on"] = []  # what only arrays may have is not wrong for that
    elif head in arguments:
        del arguments[head]
    else:
        return False
    return True
