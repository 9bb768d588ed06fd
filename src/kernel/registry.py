"""Finding plugins by entry point. What fails to load costs only its own name, with the error kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import msgspec

from .backend import API_VERSION, Backend, BackendFactory, EnvironmentSettings, Expectation, Foretells
from .core.errors import InvalidValue, PluginError
from .front_end import FRONT_END_API_VERSION, FRONT_END_MEMBERS, FrontEnd

BACKEND_MEMBERS: Final = ("capabilities", "Options", "start", "launch", "stop", "logs", "close")
GROUPS: Final = ("anybatch.backends", "anybatch.sinks", "anybatch.frontends")


class PluginInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An installed plugin: where it comes from, and why it cannot be used (None: it can)."""

    group: str
    name: str
    target: str
    distribution: str
    version: str
    error: str | None


def list_plugins() -> list[PluginInfo]:
    """Every plugin that is installed, loaded once to see whether it can be."""
    found = []
    for group in GROUPS:
        for point in sorted(entry_points(group=group), key=lambda p: p.name):
            error = None
            try:
                plugin = point.load()
                if group == "anybatch.backends":
                    _check(point.name, plugin)
                elif group == "anybatch.frontends":
                    _check_members("front end", point.name, plugin, FRONT_END_API_VERSION, FRONT_END_MEMBERS)
            except Exception as e:
                error = load_error(point, e)
            name = point.dist.name if point.dist else "?"
            version = point.dist.version if point.dist else "?"
            found.append(
                PluginInfo(
                    group=group, name=point.name, target=point.value, distribution=name, version=version, error=error
                )
            )
    return found


def load_error(point: EntryPoint, error: Exception) -> str:
    """Why a plugin failed to load, and what to install where an extra is missing."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError) and point.extras and point.dist:
        text += f"; pip install '{point.dist.name}[{','.join(point.extras)}]'"
    return text


class BackendRegistry:
    """The backends that a kernel can use: those passed in, then those installed.

    What is passed in is a factory (a class, or any callable that returns a backend), or one backend, which
    then serves one environment.
    """

    def __init__(self, given: Mapping[str, Backend | BackendFactory] | None = None) -> None:
        if given is not None and not isinstance(given, Mapping):
            raise InvalidValue("backends", given, "it maps names to backends, or to what makes one")
        self._given = dict(given or {})
        for name, backend in self._given.items():
            if not isinstance(name, str) or not (isinstance(backend, Backend) or callable(backend)):  # type: ignore[redundant-expr]  # callers may be untyped
                raise InvalidValue(
                    f"backends.{name}", backend, "it is a backend, or a class or function that makes one"
                )
        self._lent: dict[str, str] = {}

    def names(self) -> list[str]:
        """The names that can be asked for."""
        return sorted({*self._given, *(point.name for point in entry_points(group=GROUPS[0]))})

    def options(self, name: str) -> type[msgspec.Struct]:
        """The type that checks the options of an environment on this backend."""
        found: Any = self._find(name)
        try:
            options: type[msgspec.Struct] = found.Options if hasattr(found, "Options") else found().Options
        except Exception as e:
            raise PluginError(f"backend {name!r} cannot be made: {type(e).__name__}: {e}") from e
        return options

    def host_options(self, name: str) -> type[msgspec.Struct] | None:
        """The type that checks the settings of a registered host; None: the backend takes no such hosts."""
        return getattr(self._find(name), "HostOptions", None)

    def expects(self, name: str, settings: EnvironmentSettings) -> Expectation | None:
        """What an environment would be, as far as its backend's class can tell (`Foretells`; None: it cannot).

        Raises:
            BackendError: it could not be started with these options.
        """
        found = self._find(name)
        # An object that was passed in may be more than its options say.
        return found.expects(settings) if isinstance(found, type) and issubclass(found, Foretells) else None

    def is_remote(self, name: str) -> bool:
        """Whether a backend's hosts are other machines, as far as it can be asked without being made."""
        try:
            found: Any = self._find(name)
        except (InvalidValue, PluginError):
            return False
        return bool(getattr(getattr(found, "capabilities", None), "remote", False))

    def make(self, name: str, environment: str) -> Backend:
        """A backend for an environment.

        Raises:
            PluginError: it cannot be loaded, or speaks another version of the protocol.
        """
        found = self._find(name)
        if isinstance(found, Backend) and not isinstance(found, type):
            if self._lent.setdefault(name, environment) != environment:
                text = f"the backend passed in as {name!r} serves environment {self._lent[name]!r}"
                raise PluginError(f"{text}; pass a factory to use it for {environment!r} too")
            _check(name, found)
            return found
        made = found()
        _check(name, made)
        return made

    def release(self, name: str, environment: str) -> None:
        """The environment no longer uses its backend."""
        if self._lent.get(name) == environment:
            del self._lent[name]

    def _find(self, name: str) -> Backend | Callable[[], Backend]:
        if name in self._given:
            return self._given[name]
        points: dict[str, EntryPoint] = {point.name: point for point in entry_points(group=GROUPS[0])}
        if name not in points:
            raise InvalidValue("backend", name, f"a backend is one of {', '.join(self.names())}")
        try:
            loaded: Callable[[], Backend] = points[name].load()
        except Exception as e:
            raise PluginError(
                f"backend {name!r} ({points[name].value}) failed to load: {load_error(points[name], e)}"
            ) from e
        return loaded


def find_front_ends() -> tuple[dict[str, type[FrontEnd]], dict[str, str]]:
    """The installed front ends by name, and why others cannot be used."""
    found, failed = {}, {}
    for point in sorted(entry_points(group="anybatch.frontends"), key=lambda point: point.name):
        try:
            plugin = point.load()
            _check_members("front end", point.name, plugin, FRONT_END_API_VERSION, FRONT_END_MEMBERS)
            found[point.name] = plugin
        except Exception as e:
            failed[point.name] = load_error(point, e)
    return found, failed


def _check(name: str, plugin: Any) -> None:
    _check_members("backend", name, plugin, API_VERSION, BACKEND_MEMBERS)


def _check_members(kind: str, name: str, plugin: Any, version: int, members: Sequence[str]) -> None:
    theirs = getattr(plugin, "api_version", None)
    if theirs != version:
        raise PluginError(f"{kind} {name!r} is for protocol version {theirs}; this kernel speaks version {version}")
    missing = [member for member in members if not hasattr(plugin, member)]
    if missing:
        raise PluginError(f"{kind} {name!r} lacks {', '.join(missing)}")
