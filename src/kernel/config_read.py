"""From a document (a TOML file, or a mapping made by code) to a configuration: keys known, names there, forms right.

What the values may be is judged by the kernel's own rules, in config_check.py.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

from . import arguments as args
from . import bodies
from .config_lines import Lines, SyntaxMistake, load
from .config_model import After, Checker, Config, Place, PlannedJob, dotted, shown
from .core.errors import ConfigError, InvalidValue, Mistake, PluginError
from .core.model import DependencyType, On, Quotas
from .sink import SinkConfig
from .sinks import make_sinks


def _keys(function: Callable[..., Any], *without: str) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(function).parameters if name not in without)


TABLES: Final = ("run", "kernel", "sinks", "environments", "queues", "definitions", "jobs")
RUN_KEYS: Final = ("name",)
KERNEL_KEYS: Final = ("retain_events", "retain_events_bytes", "retain_audit", "retain_audit_bytes", "quotas")
SINK_KEYS: Final = SinkConfig.__struct_fields__
QUOTA_KEYS: Final = Quotas.__struct_fields__
ENVIRONMENT_KEYS: Final = _keys(bodies.environment, "registry")
QUEUE_KEYS: Final = _keys(bodies.queue)
DEFINITION_KEYS: Final = _keys(bodies.definition)
JOB_KEYS: Final = _keys(bodies.submission, "job_id", "name", "client_token")
NAMES: Final = ("queue", "definition")
"""Keys of a job that name another table."""
DEPENDENCY_FORM: Final = 'an entry is "name", { job = "name", type = "N_TO_N" } or { type = "SEQUENTIAL" }'
FILE_BYTES_MAX: Final = 64 << 20
"""Of a configuration file; larger ones are refused unread."""


def read_file(file: str | os.PathLike[str]) -> tuple[dict[str, Any], Lines]:
    """The document in a TOML file, and where its keys stand.

    Raises:
        ConfigError: it cannot be read, or is no TOML.
    """
    name = os.fspath(file)

    def bad(message: str, line: int | None = None) -> ConfigError:
        return ConfigError([Mistake(file=name, line=line, key="", message=message)])

    try:
        with Path(name).open("rb") as opened:
            data = opened.read(FILE_BYTES_MAX + 1)
    except OSError as e:
        raise bad(f"cannot be read: {e.strerror}") from None
    except ValueError as e:
        raise bad(f"cannot be read: {e}") from None
    if len(data) > FILE_BYTES_MAX:
        raise bad(f"a configuration has at most {FILE_BYTES_MAX >> 20} MiB")
    try:
        return load(data.decode())
    except UnicodeDecodeError as e:
        raise bad("the file is no text in UTF-8", data.count(b"\n", 0, e.start) + 1) from None
    except SyntaxMistake as e:
        raise bad(e.text, e.line) from None


def config_of_file(file: str | os.PathLike[str]) -> tuple[Config, Checker]:
    """The configuration in a file, and the checker that has noted what is wrong with it so far.

    Raises:
        ConfigError: the file cannot be read, or is no TOML.
    """
    document, lines = read_file(file)
    checker = Checker(os.fspath(file), lines.of)
    config = Reader(document, checker, Path(file).absolute().parent).config()
    config.name = config.name or Path(file).stem
    config.source = str(Path(file).absolute())
    config.lines = {dotted(place): line for place, line in lines.all().items()}
    return config, checker


def config_of_mapping(document: Mapping[str, Any]) -> tuple[Config, Checker]:
    """The same for a mapping that code has made."""
    checker = Checker(None)
    return Reader(document, checker, None).config(), checker


class Reader:
    """Turns a document into a configuration, and leaves out what it notes as a mistake."""

    def __init__(self, document: Mapping[str, Any], checker: Checker, base: Path | None) -> None:
        self._document = document
        self._checker = checker
        self._base = base

    def config(self) -> Config:
        """All of it."""
        self._known((), self._document, TABLES)
        run = self._table(("run",), self._document.get("run", {}))
        jobs = self._tables("jobs", JOB_KEYS)
        config = Config(
            name=self._name(run),
            kernel=self._kernel(),
            sinks=self._sinks(),
            environments=self._arguments("environments", ENVIRONMENT_KEYS),
            queues=self._arguments("queues", QUEUE_KEYS),
            definitions=self._arguments("definitions", DEFINITION_KEYS),
            jobs=[self._job(name, table, jobs) for name, table in jobs.items()],
        )
        self._untangle(config)
        return config

    def _known(self, place: Place, table: Mapping[Any, Any], allowed: Collection[str]) -> None:
        """Note the keys that mean nothing."""
        for key in table:
            if not isinstance(key, str):
                self._checker.add(place, f"{shown(key)} is not allowed; keys are text")
            elif key not in allowed:
                near = args.meant(key, allowed)
                self._checker.add((*place, key), f"unknown key{near} (allowed: {', '.join(allowed)})")

    def _table(self, place: Place, value: object) -> dict[str, Any]:
        if isinstance(value, Mapping):
            return dict(value)
        self._checker.add(place, f"{shown(value)} is not allowed; this is a table: [{dotted(place)}]")
        return {}

    def _tables(self, section: str, keys: Collection[str]) -> dict[str, dict[str, Any]]:
        """The tables in a table: [jobs.NAME]."""
        value = self._document.get(section, {})
        if not isinstance(value, Mapping):
            found = f"[[{section}]]" if isinstance(value, list) and value else shown(value)
            self._checker.add((section,), f"{found} is not allowed; write one table for each: [{section}.NAME]")
            return {}
        tables = {}
        for name, table in value.items():
            if not isinstance(name, str):
                self._checker.add((section,), f"{shown(name)} is not allowed; names are text")
            elif isinstance(table, Mapping):
                self._known((section, name), table, keys)
                tables[name] = dict(table)
            else:
                self._checker.add((section, name), f"{shown(table)} is not allowed; this is a table: [{section}.NAME]")
        return tables

    def _arguments(self, section: str, keys: Collection[str]) -> dict[str, dict[str, Any]]:
        return {name: self._kept((section, name), t, keys) for name, t in self._tables(section, keys).items()}

    # -- [run] and [kernel] -----------------------------------------------------------------------

    def _name(self, run: Mapping[str, Any]) -> str:
        self._known(("run",), run, RUN_KEYS)
        name = run.get("name", "")
        if not isinstance(name, str) or ("name" in run and not name):
            self._checker.add(("run", "name"), f"{shown(name)} is not allowed; it is text that is not empty")
            return ""
        return name

    def _kernel(self) -> dict[str, Any]:
        table = self._table(("kernel",), self._document.get("kernel", {}))
        self._known(("kernel",), table, KERNEL_KEYS)
        found: dict[str, Any] = {}
        for key in KERNEL_KEYS:
            if key in table and key != "quotas":
                convert = args.whole if key.endswith("_bytes") else args.milliseconds
                try:
                    convert(key, table[key])
                    found[key] = table[key]
                except InvalidValue as e:
                    self._checker.add_error(("kernel",), e)
        place = ("kernel", "quotas")
        quotas = self._table(place, table.get("quotas", {}))
        self._known(place, quotas, QUOTA_KEYS)
        for key in [key for key in quotas if key in QUOTA_KEYS]:
            try:
                found.setdefault("quotas", {})[key] = quota(key, quotas[key])
            except InvalidValue as e:
                self._checker.add_error(place, e)
        return found

    def _sinks(self) -> dict[str, dict[str, Any]]:
        found = {}
        for name, table in self._tables("sinks", SINK_KEYS).items():
            kept = {key: value for key, value in table.items() if key in SINK_KEYS}
            if "plugin" not in kept:
                self._checker.add(("sinks", name, "plugin"), "it has to be given")
                continue
            try:
                make_sinks({name: kept})
                found[name] = kept
            except InvalidValue as e:
                self._checker.add_error((), e)
            except PluginError as e:
                self._checker.add(("sinks", name, "plugin"), str(e))
        return found

    # -- definitions and jobs ---------------------------------------------------------------------

    def _kept(self, place: Place, table: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
        """The keys that go to the kernel as they are, but for paths that are taken from the folder of the file."""
        found = {key: value for key, value in table.items() if key in keys}
        if "command" not in keys:
            return found
        if any(key not in JOB_KEYS for key in table) and not {"command", "script", "definition"} & set(table):
            found["command"] = ["true"]  # it was to be what an unknown key, noted already, says
        if self._base is not None and isinstance(found.get("container"), Mapping):
            found["container"] = _from_folder(self._base, found["container"])
        script = found.get("script")
        if self._base is not None and isinstance(script, str) and not script.startswith("#!") and "\n" not in script:
            try:
                found["script"] = args.script("script", str(self._base / script))
            except InvalidValue as e:
                allowed = e.allowed
                if "cannot be read" in allowed:
                    allowed = f"{allowed} (a path is taken from the folder of this file)"
                self._checker.add_error(place, InvalidValue(e.field, script, allowed))
                found["script"] = "#!/bin/sh"
        return found

    def _job(self, name: str, table: Mapping[str, Any], jobs: Mapping[str, Any]) -> PlannedJob:
        place = ("jobs", name)
        names: dict[str, str | None] = {}
        for key in NAMES:
            value = names[key] = table.get(key)
            if value is not None and not isinstance(value, str):
                self._checker.add((*place, key), f"{shown(value)} is not allowed; it is a {key}'s name")
                names[key] = ""
        return PlannedJob(
            name=name,
            **names,
            depends_on=self._depends_on(name, table.get("depends_on", []), jobs),
            arguments=self._kept(place, table, [k for k in JOB_KEYS if k not in ("depends_on", *NAMES)]),
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
        if not isinstance(table, Mapping) or not table:
            self._checker.add(place, f"{shown(entry)} is not allowed; {DEPENDENCY_FORM}")
            return None
        self._known(place, table, ("job", "type", "on"))
        job, kind, at, on = table.get("job"), table.get("type"), int(place[-1]), self._on(place, table)
        if kind is not None and kind not in tuple(DependencyType):
            text = f"a type is {', '.join(DependencyType)}; leave it out for AFTER_SUCCESS"
            self._checker.add((*place, "type"), f"{shown(kind)} is not allowed; {text}")
        elif job is None and kind == DependencyType.SEQUENTIAL:
            return After(type=kind, at=at, on=on)
        elif kind == DependencyType.SEQUENTIAL:
            text = "SEQUENTIAL orders the job's own children and names no other job"
            self._checker.add((*place, "job"), f"{shown(job)} is not allowed; {text}")
        elif not isinstance(job, str):
            self._checker.add(place, f"{shown(entry)} is not allowed; {DEPENDENCY_FORM}")
        elif job not in jobs:
            text = f"no job {job!r}{args.meant(job, jobs)} (the file's jobs are {', '.join(jobs)})"
            self._checker.add(place, text)
        else:
            return After(job=job, type=kind, at=at, on=on)
        return None

    def _on(self, place: Place, table: Mapping[str, Any]) -> str | None:
        on = table.get("on")
        if on is None or on in tuple(On):
            return None if on is None else str(on)
        self._checker.add((*place, "on"), f"{shown(on)} is not allowed; it is {', '.join(map(repr, map(str, On)))}")
        return None

    def _untangle(self, config: Config) -> None:
        """Note each circle of jobs that depend on each other, once, at the entry that closes it, and open it there."""
        jobs = {job.name: job for job in config.jobs}
        done: set[str] = set()
        for first in config.jobs:
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
                    circle = [*on_path[on_path.index(after.job) :], after.job]
                    text = f"jobs wait for each other in a circle: {' -> '.join(circle)}"
                    if len(circle) == 2:
                        text = "a job cannot depend on itself"
                    self._checker.add(("jobs", name, "depends_on", after.at), text)
                    del jobs[name].depends_on[position]
                    path[-1] = (name, position)
                elif after.job is not None:
                    path.append((after.job, 0))


def quota(field: str, value: object) -> int:
    """A quota's value."""
    number = args.whole(field, value)
    if number < 1:
        raise InvalidValue(field, value, "a quota is 1 or more")
    return number


def _from_folder(base: Path, container: Mapping[str, Any]) -> dict[str, Any]:
    """A container's table, with its volumes' host paths from this folder on; what is no path is refused elsewhere."""

    def whole(table: Mapping[str, Any]) -> dict[str, Any]:
        paths = {key: table.get(key) for key in ("host_path", "hostPath", "sourcePath", "source_path")}
        made = {key: os.path.normpath(base / path) for key, path in paths.items() if isinstance(path, str) and path}
        host = table.get("host")
        return {**table, **made, **({"host": whole(host)} if isinstance(host, Mapping) else {})}

    volumes = container.get("volumes")
    if not isinstance(volumes, list):
        return dict(container)
    return {**container, "volumes": [whole(one) if isinstance(one, Mapping) else one for one in volumes]}
