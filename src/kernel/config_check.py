"""What a configuration's values may be, judged by the core itself on a copy of a kernel's resources.

Each thing is turned into the very request that would make it, and decided about; what is refused is noted, something
harmless is put in its place, and it is tried again. So all mistakes are found at once, and what this refuses and
what the kernel refuses cannot drift apart.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeVar

from msgspec import Struct, structs

from . import arguments as args
from . import bodies
from .config_model import MAPPINGS, Checker, Config, Place, PlannedJob, parts
from .core.container import CONTAINER_FIELDS, IMAGE_COMMAND
from .core.errors import BackendError, Conflict, InvalidValue, PluginError, RequestError
from .core.inputs import (
    ChangeTags,
    CreateEnvironment,
    CreateQueue,
    RegisterDefinition,
    Request,
    UpdateEnvironment,
    UpdateQueue,
)
from .core.machine import handle
from .core.model import DefinitionBody, EnvironmentBody, QueueBody, ResourceStatus, TaggedKind
from .core.state import EnvironmentRow, JobRow, KernelState, QueueRow
from .registry import BackendRegistry

Result = TypeVar("Result")
Verb = Literal["created", "updated", "unchanged"]

EVERY_FIELD: Final = tuple(sorted({*CONTAINER_FIELDS, IMAGE_COMMAND}))
"""Of a container: for an environment of which it is not known yet what it honours."""
GIVEN: Final = "it has to be given"
HARMLESS: Final[Mapping[str, Any]] = {"name": "x", "script": "#!/bin/sh", "command": ["true"], "priority": 1}
"""What is put in the place of a value that was refused; without an entry here, the key is left out."""


class Change(NamedTuple):
    """What one entry of a configuration comes to; without requests it is as it should be. `path`: "queues.default"."""

    path: str
    verb: Verb
    requests: tuple[Request, ...] = ()


class Judged(Struct):
    """What a configuration comes to: the changes, in the order in which they are made, and its jobs.

    `state` is what the kernel's resources would be then, with the jobs (by name) queued.
    """

    changes: list[Change]
    state: KernelState
    jobs: dict[str, JobRow]


def judge(
    config: Config, registry: BackendRegistry, state: KernelState, checker: Checker, *, jobs: bool = True
) -> Judged:
    """Note every mistake in the configuration's values, for a kernel in this state, which is left as it is."""
    judge = _Judge(config, registry, state, checker)
    judge.environments()
    judge.queues()
    judge.definitions()
    if jobs:
        for job in config.ordered():
            judge.job(job)
    return Judged(judge.changes, judge.state, judge.jobs)


def _copy(state: KernelState) -> KernelState:
    """The resources, without hosts and jobs."""
    copy = KernelState(state.quotas)
    copy.now_ms = state.now_ms
    for name, row in state.environments.items():
        environment = copy.environments[name] = EnvironmentRow(name, row.body, row.created_ms)
        creating = row.status is ResourceStatus.CREATING  # it is waited for when its time comes
        environment.status = ResourceStatus.VALID if creating else row.status
        environment.status_reason = row.status_reason
        environment.container = row.container
    for name, there in state.queues.items():
        copy.queues[name] = QueueRow(name, there.body, there.created_ms)
        copy.queues[name].status = there.status
    copy.definitions = {name: dict(revisions) for name, revisions in state.definitions.items()}
    return copy


class _Judge:
    def __init__(self, config: Config, registry: BackendRegistry, state: KernelState, checker: Checker) -> None:
        self._config = config
        self._registry = registry
        self._checker = checker
        self._there = {**state.environments, **config.environments}
        self.state = _copy(state)
        self.changes: list[Change] = []
        self.jobs: dict[str, JobRow] = {}
        self._unsized: set[str] = set()
        self._broken: set[str] = set()
        """Definitions that could not be made: what uses them is not wrong for that."""

    def _needed(self, place: Place, table: dict[str, Any], keys: Iterable[str]) -> list[str]:
        """Note the keys that have to be there and are not; returns them."""
        missing = [key for key in keys if key not in table]
        for key in missing:
            self._checker.add((*place, key), GIVEN)
        return missing

    def _carry_out(self, path: str, verb: Verb, *requests: Request) -> Change:
        for request in requests:
            handle(self.state, request, self.state.now_ms)
        return Change(path, verb, requests)

    # -- environments -----------------------------------------------------------------------------

    def environments(self) -> None:
        for name, table in self._config.environments.items():
            place = ("environments", name)
            if not self._needed(place, table, ["backend"]):
                change, _ = accepted(self._environment, {"name": name, **table}, place, self._checker)
                if change is not None:
                    self.changes.append(change)
            row = self.state.environments.get(name)
            if row is None:
                self._stand_in(name)
            elif row.status is ResourceStatus.CREATING:
                row.status = ResourceStatus.VALID
                row.container = self._honoured(name, row.body)

    def _honoured(self, name: str, body: EnvironmentBody) -> tuple[str, ...]:
        """The container fields that an environment will honour; all, where its backend cannot tell before its start."""
        try:
            expected = self._registry.expects(body.backend, bodies.settings(name, body))
        except BackendError:
            expected = None  # that is told elsewhere
        return EVERY_FIELD if expected is None else tuple(sorted(expected.container))

    def _stand_in(self, name: str) -> None:
        """For an environment that has a mistake: what names it is not wrong for that."""
        if name not in self.state.environments:
            row = EnvironmentRow(name, EnvironmentBody(backend="", max_vcpus_milli=1), 0)
            row.status, row.container = ResourceStatus.VALID, EVERY_FIELD
            self.state.environments[name] = row

    def _is_bad(self, section: str, name: str) -> bool:
        """Whether nothing can be said about this name, because it is no table, or the section is none."""
        return self._checker.has(section) or self._checker.has(section, name)

    def _environment(self, *, name: str, **arguments: Any) -> Change:
        try:
            body = bodies.environment(self._registry, **arguments)
        except PluginError as e:
            raise InvalidValue("backend", arguments["backend"], str(e)) from None
        path, row = f"environments.{name}", self.state.environments.get(name)
        if row is None:
            return self._carry_out(path, "created", CreateEnvironment(name=name, body=body))
        works = row.status is not ResourceStatus.INVALID  # else it is tried again, as it may well come right by that
        if row.body == body and works:
            return Change(path, "unchanged")
        _only("compute environment", name, row.body, body, ("backend", "managed"))
        tags = _tags(TaggedKind.COMPUTE_ENVIRONMENT, name, row.body.tags, body.tags)
        if structs.replace(row.body, tags=body.tags) == body and works:
            return self._carry_out(path, "updated", *tags)
        update = UpdateEnvironment(
            name=name,
            state=body.state,
            min_vcpus_milli=body.min_vcpus_milli,
            max_vcpus_milli=body.max_vcpus_milli,
            options=dict(body.options),
            metadata=dict(body.metadata),
        )
        change = self._carry_out(path, "updated", *tags, update)
        self.state.environments[name].status = ResourceStatus.VALID  # it is tried again
        return change

    # -- queues -----------------------------------------------------------------------------------

    def queues(self) -> None:
        for name, table in self._config.queues.items():
            place = ("queues", name)
            missing = self._needed(place, table, ["priority", "compute_environments"])
            arguments = {"name": name, **dict.fromkeys(missing, 1), **table}
            if "compute_environments" not in missing:
                change, _ = accepted(self._queue, arguments, place, self._checker)
                if change is not None:
                    self.changes.append(change)
            if name not in self.state.queues:
                self._stand_in("")
                self.state.queues[name] = QueueRow(name, QueueBody(priority=1, compute_environments=("",)), 0)

    def _queue(self, *, name: str, **arguments: Any) -> Change:
        body = bodies.queue(**arguments)
        for n, environment in enumerate(body.compute_environments):
            if self._is_bad("environments", environment):
                self._stand_in(environment)
            elif environment not in self.state.environments:
                near, names = args.meant(environment, self._there), ", ".join(self._there)
                allowed = f"name environments of this configuration, or that are there{near} ({names or 'none is'})"
                raise InvalidValue(f"compute_environments[{n}]", environment, allowed)
        path, there = f"queues.{name}", self.state.queues.get(name)
        if there is None:
            return self._carry_out(path, "created", CreateQueue(name=name, body=body))
        if there.body == body:
            return Change(path, "unchanged")
        tags = _tags(TaggedKind.JOB_QUEUE, name, there.body.tags, body.tags)
        fields = ("priority", "state", "compute_environments", "retain_succeeded_ms", "retain_failed_ms")
        update = UpdateQueue(
            name=name, metadata=dict(body.metadata), **{field: getattr(body, field) for field in fields}
        )
        return self._carry_out(path, "updated", *tags, update)

    # -- definitions and jobs ---------------------------------------------------------------------

    def definitions(self) -> None:
        for name, table in self._config.definitions.items():
            change, _ = accepted(self._definition, {"name": name, **table}, ("definitions", name), self._checker)
            if change is not None:
                self.changes.append(change)
            else:
                self._broken.add(name)

    def _definition(self, *, name: str, **arguments: Any) -> Change:
        body: DefinitionBody = bodies.definition(**arguments)
        path, revisions = f"definitions.{name}", self.state.definitions.get(name, {})
        newest = revisions[max(revisions)] if revisions else None
        if newest is not None and newest.active and newest.body == body:
            return Change(path, "unchanged")
        verb: Verb = "created" if newest is None else "updated"
        return self._carry_out(path, verb, RegisterDefinition(name=name, body=body))

    def job(self, job: PlannedJob) -> None:
        place, arguments = ("jobs", job.name), {"name": job.name, **job.arguments}
        arguments["queue"] = self._named(job, "queue", self._config.queue_of(job), self.state.queues)
        if arguments["queue"] is None:
            return
        if job.definition is not None:
            known = {**self.state.definitions, **dict.fromkeys(self._broken)}
            arguments["definition"] = self._named(job, "definition", job.definition, known)
            if arguments["definition"] is None or arguments["definition"] in self._broken:
                del arguments["definition"]
                arguments.setdefault("command", ["true"])
        # A job or size that is wrong has been noted; what depends on it is not wrong for that.
        known_jobs = [after for after in job.depends_on if after.job is None or after.job in self.jobs]
        known_jobs = [after for after in known_jobs if after.type != "N_TO_N" or after.job not in self._unsized]
        most = self.state.quotas.dependencies_max
        if len(job.depends_on) > most:
            self._checker.add((*place, "depends_on"), f"{len(job.depends_on)} entries; at most {most}")
            known_jobs = known_jobs[:most]
        arguments["depends_on"] = [
            after.entry(None if after.job is None else self.jobs[after.job].job_id) for after in known_jobs
        ]
        row, wrong = accepted(self._submit, arguments, place, self._checker, [after.at for after in known_jobs])
        if {"array_size", "array"} & wrong or row is None:
            self._unsized.add(job.name)
        if row is not None:
            self.jobs[job.name] = row

    def _named(self, job: PlannedJob, key: str, name: str | None, there: Collection[str]) -> str | None:
        """The name of a queue or definition, if it stands for one; else the mistake is noted."""
        place = ("jobs", job.name, key)
        names = ", ".join(there)
        if name is None:
            self._checker.add(place, f"{GIVEN}, for there are several (the {key}s are {names})")
        elif name in there:
            return name
        elif name and not self._is_bad(f"{key}s", name):
            those = f"the {key}s are {names}" if there else f"there is none; write [{key}s.{name}]"
            self._checker.add(place, f"no {key} {name!r}{args.meant(name, there)} ({those})")
        return None

    def _submit(self, **arguments: Any) -> JobRow:
        job_id = str(uuid.UUID(int=len(self.state.jobs) + 1))
        request = bodies.submission(job_id, **arguments)
        serial = handle(self.state, request, self.state.now_ms).reply
        return self.state.jobs[serial]


def _tags(kind: TaggedKind, name: str, there: Mapping[str, str], asked: Mapping[str, str]) -> list[Request]:
    """What brings the tags of something to those asked for."""
    put = {key: value for key, value in asked.items() if there.get(key) != value}
    remove = tuple(key for key in there if key not in asked)
    return [ChangeTags(kind=kind, name=name, put=put, remove=remove)] if put or remove else []


def _only(kind: str, name: str, there: Struct, asked: Struct, fixed: tuple[str, ...]) -> None:
    for field in fixed:
        old, new = getattr(there, field), getattr(asked, field)
        if old != new:
            why = f"its {field} cannot be changed ({old!r} is there, {new!r} was asked for); use another name"
            raise Conflict(kind, name, why, field=field)


# -- all mistakes of one thing ----------------------------------------------------------------------


def accepted(
    call: Callable[..., Result],
    arguments: dict[str, Any],
    place: Place,
    checker: Checker,
    entries: list[int] | None = None,
) -> tuple[Result | None, set[str]]:
    """Call until nothing is refused any more: note each refusal, put something harmless there, and try again.

    Returns the result (None: there was no way) and the names of the arguments that were refused. `entries` are
    the places of the `depends_on` entries in the source.
    """
    arguments, wrong, seen = dict(arguments), set[str](), set[str]()
    lists = {"depends_on": list(entries or [])}
    if isinstance(arguments.get("compute_environments"), list):
        lists["compute_environments"] = list(range(len(arguments["compute_environments"])))
    while True:
        try:
            return call(**arguments), wrong
        except RequestError as error:
            field = error.field if isinstance(error, InvalidValue) else ""
            found = parts(field)
            if isinstance(error, InvalidValue) and _is_entry(found, lists):
                key, index = str(found[0]), int(found[1])
                field = f"{key}[{lists[key].pop(index)}]{field.partition(']')[2]}"
                checker.add_error(place, InvalidValue(field, error.value, error.allowed))
                arguments[key] = [e for n, e in enumerate(arguments[key]) if n != index]
                wrong.add(key)
                if key == "compute_environments" and not arguments[key]:
                    return None, wrong
                continue
            if isinstance(error, Conflict) and error.field in wrong:
                return None, wrong  # it differs from what is there because of what was put in its place
            checker.add_error(place, error, arguments)
            if not found or field in seen or not _repair(arguments, found):
                return None, wrong
            seen.add(field)
            wrong.add(str(found[0]))


def _is_entry(found: Place, lists: Mapping[str, list[int]]) -> bool:
    return len(found) > 1 and isinstance(found[1], int) and found[1] < len(lists.get(str(found[0]), ()))


def _repair(arguments: dict[str, Any], found: Place) -> bool:
    """Put something harmless where a value was refused; False if nothing can be done."""
    head, rest = str(found[0]), found[1:]
    value = arguments.get(head)
    if head == "command" and isinstance(value, list) and rest and isinstance(rest[0], int):
        arguments["command"] = [*value[: rest[0]], "true", *value[rest[0] + 1 :]]
    elif head in HARMLESS:
        arguments[head] = HARMLESS[head]
    elif head == "parameters" and rest and isinstance(value or {}, Mapping):
        arguments["parameters"] = {**(value or {}), str(rest[0]): "x"}
    elif head in MAPPINGS and rest and isinstance(value, Mapping) and rest[0] in value:
        arguments[head] = {name: entry for name, entry in value.items() if name != rest[0]}
    elif head in ("array_size", "array"):
        arguments.pop("array_size", None)
        arguments.pop("array", None)
        arguments["depends_on"] = []  # what only arrays may have is not wrong for that
    elif head in arguments and head not in ("backend", "compute_environments"):
        del arguments[head]
    else:
        return False
    return True
