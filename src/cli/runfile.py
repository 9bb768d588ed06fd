"""A TOML file of definitions and jobs, as a plan. docs/run.md describes the format.

The tables `environments` and `queues` are kept free: a kernel that people operate will have them in this file.
"""

from __future__ import annotations

import asyncio
import difflib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import anybatch
from anybatch.kernel import arguments as args

from .plan import After, BadPlan, Checker, Mistake, Place, Plan, PlannedJob, Settings, check, shown
from .toml_lines import SyntaxMistake, load

TABLES: Final = ("run", "definitions", "jobs")
RUN_KEYS: Final = ("name", "max_vcpus", "memory", "gpus", "quotas")
DEFINITION_KEYS: Final = (
    "command", "script", "environment", "parameters", "vcpus", "memory", "gpus", "retry", "timeout", "workdir",
    "scratch", "image", "container", "tags", "scheduling_priority", "max_running",
)  # fmt: skip
JOB_KEYS: Final = ("definition", "array_size", "depends_on", *DEFINITION_KEYS)
QUOTA_KEYS: Final = (
    "array_size_max", "dependencies_max", "attempts_max", "evaluate_on_exit_max", "unfinished_jobs_max", "tags_max",
    "definition_bytes_max", "submit_bytes_max", "script_bytes_max",
)  # fmt: skip
DEPENDENCY_FORM: Final = 'an entry is "name", { job = "name", type = "N_TO_N" } or { type = "SEQUENTIAL" }'
LATER: Final = {
    "environments": "`anybatch run` brings one compute environment of its own, whose limits stand in [run]",
    "queues": "`anybatch run` brings one queue of its own",
    "queue": "`anybatch run` brings one queue of its own",
}


def read_plan(file: str, *, max_vcpus: float | None = None, quotas: Mapping[str, int] | None = None) -> Plan:
    """The file's plan, checked as a whole; `max_vcpus` and `quotas` lead over the file's.

    Raises:
        BadPlan: the file cannot be read, or has mistakes: all that were found, each with its line and key.
    """
    text = _read(file)
    try:
        document, lines = load(text)
    except SyntaxMistake as e:
        raise BadPlan([Mistake(file=file, line=e.line, key="", message=e.text)]) from None
    checker = Checker(file, lines.of)
    reader = _Reader(document, checker, Path(file).absolute().parent)
    plan = reader.plan(file)
    if max_vcpus is not None:
        plan.settings.max_vcpus = max_vcpus
    plan.settings.quotas.update(quotas or {})
    if not reader.tangled:
        asyncio.run(check(plan, checker))
    checker.finish()
    return plan


def _read(file: str) -> str:
    try:
        data = Path(file).read_bytes()
    except OSError as e:
        raise BadPlan([Mistake(file=file, line=None, key="", message=f"cannot be read: {e.strerror}")]) from None
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise BadPlan([Mistake(file=file, line=line, key="", message="the file is no text in UTF-8")]) from None


class _Reader:
    """Turns a document into a plan, and leaves out what it notes as a mistake."""

    def __init__(self, document: dict[str, Any], checker: Checker, base: Path) -> None:
        self._document = document
        self._checker = checker
        self._base = base
        self.tangled = False
        """Jobs depend on each other in a circle: there is no order in which to check them."""

    def plan(self, file: str) -> Plan:
        self._known((), self._document, TABLES)
        run = self._table(("run",), self._document.get("run", {}))
        definitions = self._tables("definitions")
        jobs = self._tables("jobs")
        if not jobs and self._document.get("jobs", {}) == {}:
            self._checker.add(("jobs",), "the file has no jobs; write at least one [jobs.NAME] table")
        for name, table in definitions.items():
            self._known(("definitions", name), table, DEFINITION_KEYS)
        plan = Plan(
            name=self._name(run, file),
            source=str(Path(file).absolute()),
            folder=os.getcwd(),
            settings=self._settings(run),
            definitions={n: self._arguments(("definitions", n), t, DEFINITION_KEYS) for n, t in definitions.items()},
            jobs=[self._job(name, table, jobs, definitions) for name, table in jobs.items()],
        )
        self._untangle(plan)
        return plan

    def _known(self, place: Place, table: Mapping[str, Any], allowed: Collection[str]) -> None:
        """Note the keys that mean nothing."""
        for key in table:
            if key in allowed:
                continue
            if key in LATER and len(place) in (0, 2):
                self._checker.add((*place, key), f"unknown key; {LATER[key]}")
            else:
                near = meant(key, allowed)
                self._checker.add((*place, key), f"unknown key{near} (allowed: {', '.join(allowed)})")

    def _table(self, place: Place, value: object) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        self._checker.add(place, f"{shown(value)} is not allowed; this is a table: [{'.'.join(map(str, place))}]")
        return {}

    def _tables(self, key: str) -> dict[str, dict[str, Any]]:
        """The tables in a table: [jobs.NAME]."""
        value = self._document.get(key, {})
        if not isinstance(value, dict):
            found = f"[[{key}]]" if isinstance(value, list) else shown(value)
            self._checker.add((key,), f"{found} is not allowed; write one table for each: [{key}.NAME]")
            return {}
        tables = {}
        for name, table in value.items():
            if isinstance(table, dict):
                tables[name] = table
            else:
                self._checker.add((key, name), f"{shown(table)} is not allowed; this is a table: [{key}.NAME]")
        return tables

    # -- [run] ------------------------------------------------------------------------------------

    def _name(self, run: Mapping[str, Any], file: str) -> str:
        name = run.get("name", Path(file).stem)
        if not isinstance(name, str) or not name:
            self._checker.add(("run", "name"), f"{shown(name)} is not allowed; it is text that is not empty")
            return "run"
        return name

    def _settings(self, run: Mapping[str, Any]) -> Settings:
        self._known(("run",), run, RUN_KEYS)
        settings = Settings()
        for key, convert in (("max_vcpus", vcpus), ("memory", _memory), ("gpus", _gpus)):
            if key in run:
                try:
                    setattr(settings, key, convert(key, run[key]))
                except anybatch.InvalidValue as e:
                    self._checker.add_error(("run",), e)
        quotas = self._table(("run", "quotas"), run.get("quotas", {}))
        self._known(("run", "quotas"), quotas, QUOTA_KEYS)
        for key in quotas.keys() & set(QUOTA_KEYS):
            try:
                settings.quotas[key] = quota(key, quotas[key])
            except anybatch.InvalidValue as e:
                self._checker.add_error(("run", "quotas"), e)
        return settings

    # -- definitions and jobs ---------------------------------------------------------------------

    def _arguments(self, place: Place, table: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
        """The keys that go to the kernel as they are, but for a script, which is read."""
        found = {key: value for key, value in table.items() if key in keys}
        if any(key not in JOB_KEYS for key in table) and not {"command", "script", "definition"} & set(table):
            found["command"] = ["true"]  # it was to be what an unknown key, noted already, says
        script = found.get("script")
        if isinstance(script, str) and not script.startswith("#!") and "\n" not in script:
            try:
                found["script"] = args.script("script", str(self._base / script))
            except anybatch.InvalidValue as e:
                allowed = e.allowed
                if "cannot be read" in allowed:
                    allowed = f"{allowed} (a path is taken from the folder of this file)"
                self._checker.add_error(place, anybatch.InvalidValue(e.field, script, allowed))
                found["script"] = "#!/bin/sh"
        return found

    def _job(
        self, name: str, table: Mapping[str, Any], jobs: Mapping[str, Any], definitions: Mapping[str, Any]
    ) -> PlannedJob:
        place = ("jobs", name)
        self._known(place, table, JOB_KEYS)
        definition = table.get("definition")
        if definition is not None and not isinstance(definition, str):
            self._checker.add((*place, "definition"), f"{shown(definition)} is not allowed; it is a definition's name")
            definition = ""
        elif definition is not None and definition not in definitions:
            names = f"the file's definitions are {', '.join(definitions)}" if definitions else "the file has none"
            text = f"no definition {definition!r}{meant(definition, definitions)} ({names})"
            self._checker.add((*place, "definition"), text)
        return PlannedJob(
            name=name,
            definition=definition,
            depends_on=self._depends_on(name, table.get("depends_on", []), jobs),
            arguments=self._arguments(place, table, [k for k in JOB_KEYS if k not in ("definition", "depends_on")]),
        )

    def _depends_on(self, name: str, value: object, jobs: Mapping[str, Any]) -> list[After]:
        place: Place = ("jobs", name, "depends_on")
        if not isinstance(value, list):
            self._checker.add(place, f"{shown(value)} is not allowed; it is a list, and {DEPENDENCY_FORM}")
            return []
        found = [self._after((*place, n), entry, jobs) for n, entry in enumerate(value)]
        return [after for after in found if after is not None]

    def _after(self, place: Place, entry: object, jobs: Mapping[str, Any]) -> After | None:
        table = {"job": entry} if isinstance(entry, str) else entry
        if not isinstance(table, dict) or not table:
            self._checker.add(place, f"{shown(entry)} is not allowed; {DEPENDENCY_FORM}")
            return None
        self._known(place, table, ("job", "type"))
        job, kind, at = table.get("job"), table.get("type"), int(place[-1])
        if kind not in (None, "N_TO_N", "SEQUENTIAL"):
            text = "a type is N_TO_N or SEQUENTIAL; leave it out for a plain one"
            self._checker.add((*place, "type"), f"{shown(kind)} is not allowed; {text}")
        elif kind == "SEQUENTIAL":
            if job is None:
                return After(type=kind, at=at)
            text = "SEQUENTIAL orders the job's own children and names no other job"
            self._checker.add((*place, "job"), f"{shown(job)} is not allowed; {text}")
        elif not isinstance(job, str):
            self._checker.add(place, f"{shown(entry)} is not allowed; {DEPENDENCY_FORM}")
        elif job not in jobs:
            text = f"no job {job!r}{meant(job, jobs)} (the file's jobs are {', '.join(jobs)})"
            self._checker.add(place, text)
        else:
            return After(job=job, type=kind, at=at)
        return None

    def _untangle(self, plan: Plan) -> None:
        """Note each circle of jobs that depend on each other, once, at the entry that closes it."""
        jobs = {job.name: job for job in plan.jobs}
        done: set[str] = set()
        for first in plan.jobs:
            path = [(first.name, 0)]  # jobs, each with the entry of its depends_on to look at next
            while path:
                name, position = path.pop()
                if name in done or position >= len(jobs[name].depends_on):
                    done.add(name)
                    continue
                path.append((name, position + 1))
                after = jobs[name].depends_on[position]
                on_path = [entry[0] for entry in path]
                if after.job in on_path:
                    self.tangled = True
                    circle = [*on_path[on_path.index(after.job) :], after.job]
                    text = f"jobs wait for each other in a circle: {' -> '.join(circle)}"
                    if len(circle) == 2:
                        text = "a job cannot depend on itself"
                    self._checker.add(("jobs", name, "depends_on", after.at), text)
                elif after.job is not None:
                    path.append((after.job, 0))


def vcpus(field: str, value: object) -> float:
    """A number of vCPUs above 0."""
    milli = args.milli(field, value)
    if milli < 1:
        raise anybatch.InvalidValue(field, value, "it is a number of vCPUs above 0, in steps of 0.001")
    return milli / 1000


def _memory(field: str, value: object) -> int:
    mib = args.mebibytes(field, value)
    if mib < 1:
        raise anybatch.InvalidValue(field, value, "memory is 1 or more MiB")
    return mib


def _gpus(field: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value):
        raise anybatch.InvalidValue(field, value, "it is a list of device indexes, such as [0, 1]")
    return tuple(dict.fromkeys(value))


def quota(field: str, value: object) -> int:
    """A quota's value."""
    number = args.whole(field, value)
    if number < 1:
        raise anybatch.InvalidValue(field, value, "a quota is 1 or more")
    return number


def meant(key: str, allowed: Collection[str]) -> str:
    """How a message goes on if something allowed is near; else nothing."""
    close = difflib.get_close_matches(key, allowed, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
