"""The conformance kit's frame: what is known of a backend, the list of checks, and what a check works with."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import msgspec
from anybatch.kernel.backend import AttemptKey, AttemptSpec, Backend, BackendFactory, Capabilities, Foretells, Launch

from .kit_context import WAIT_S, RecordingContext, RuleBroken, Seen
from .kit_programs import BEAT_S, MARKS, Programs, marks_name, shell_programs

T = TypeVar("T")

CALL_S: Final = 30.0
"""For one call of a backend's method."""
CLEANUP_S: Final = 3.0
"""For what a check has left running to end after it."""
QUIET_S: Final = 0.3
"""How long the kit watches that something does not happen."""
LEFT_S: Final = 5.0
"""For what has to go after a stop or a close to be gone."""
BEATLESS_S: Final = 0.6
"""Without a beat for so long an attempt is dead."""
GRACE_MS: Final = 500
"""Between SIGTERM and SIGKILL where a check waits for the latter."""
HELD_UP_MS: Final = 20_000
"""Where it looks whether the caller does: half of it is too long for a call."""
LONG_GRACE_MS: Final = 60_000
"""Where it must not come to SIGKILL."""
SLACK_MS: Final = 100
"""Between two machines' clocks, or two readings of one."""
GATE_S: Final = 2.0
"""How long a `gate` stays shut where files are not shared."""
VCPUS_MILLI: Final = 4_000
PLACE_CHARS_MAX: Final = 40
"""Of the folder for temporary files, so that sockets in it have paths under 100 bytes."""


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What the kit has to know of a backend that cannot be asked.

    `factory` makes one backend; for the checks that kill a process it must be picklable by reference (a class, a
    module's function, a `functools.partial` of one). `programs` spells acts (see `kit_programs`).
    `options` are those of the environment.

    `logs`: attempts have logs. `orders_streams`: stdout and stderr are kept in the order of their writes (False:
    each for itself only). `shares_files`: attempts see the kit's folder under the same path. `kills_trees`: it
    knows of an attempt's processes (coroutines have none). `follows_settings`: its capacity is the environment's
    `max_vcpus` (False: its hosts' own). `enforces_timeouts`: it ends attempts at their `timeout_ms` by itself.

    `crowd`: how many attempts are launched at once. `time_scale` stretches every wait and every grace, for slow
    backends; `patience` only the waits for what has to come, for busy machines (it costs time only where a rule is
    broken). `folder`: where the kit keeps its files (None: a temporary folder for each check).
    """

    factory: BackendFactory
    programs: Programs = shell_programs
    options: Mapping[str, Any] = {}
    logs: bool = True
    orders_streams: bool = True
    shares_files: bool = True
    kills_trees: bool = True
    follows_settings: bool = True
    enforces_timeouts: bool = False
    crowd: int = 1000
    time_scale: float = 1.0
    patience: float = 1.0
    folder: Path | None = None


class KitMisused(Exception):
    """The kit cannot do its work with what it was given: not the backend's fault."""


Needs = Callable[[Description, Backend], str | None]
"""Why a check does not apply (None: it does)."""


class Rule(msgspec.Struct, frozen=True):
    """A rule with the function that checks it."""

    name: str
    text: str
    body: Callable[[Rig], Awaitable[None]]
    acts: tuple[str, ...]
    needs: tuple[Needs, ...]

    def missing(self, about: Description, backend: Backend) -> str | None:
        """Why this does not apply to a backend (None: it does)."""
        for act in self.acts:
            if about.programs(*act.split()) is None:
                return f"its attempts cannot `{act}`"
        return next((why for need in self.needs if (why := need(about, backend)) is not None), None)


RULES: Final[dict[str, Rule]] = {}


def rule(*acts: str, needs: Sequence[Needs] = ()) -> Callable[[Callable[[Rig], Awaitable[None]]], Rule]:
    """Put a check on the list. Its name names the rule, its docstring states it."""

    def add(body: Callable[[Rig], Awaitable[None]]) -> Rule:
        name = getattr(body, "__name__", "")
        if name in RULES or not body.__doc__:
            raise KitMisused(f"{name}: a rule needs a name of its own, and a docstring")
        made = RULES[name] = Rule(name, " ".join(body.__doc__.split()), body, acts, tuple(needs))
        return made

    return add


def needs_expects(_: Description, backend: Backend) -> str | None:
    """Why a backend cannot be asked what to expect."""
    return None if isinstance(backend, Foretells) else "it does not tell what to expect"


def _if(holds: Callable[[Description, Capabilities], bool], otherwise: str) -> Needs:
    return lambda about, backend: None if holds(about, backend.capabilities) else otherwise


needs_logs: Final = _if(lambda about, _: about.logs, "its attempts have no logs")
needs_files: Final = _if(lambda about, _: about.shares_files, "its attempts do not see the kit's files")
needs_trees: Final = _if(lambda about, _: about.kills_trees, "its attempts are no processes")
needs_timeouts: Final = _if(lambda about, _: about.enforces_timeouts, "it leaves timeouts to the kernel")
needs_commands: Final = _if(lambda _, can: can.commands, "capabilities.commands is not set")
needs_reattach: Final = _if(lambda _, can: can.reattach, "capabilities.reattach is not set")
needs_no_reattach: Final = _if(lambda _, can: not can.reattach, "its attempts outlive it")


class Session:
    """One backend from a start to its close: stands in for the kernel."""

    def __init__(self, rig: Rig, backend: Backend, context: RecordingContext) -> None:
        self.rig = rig
        self.backend = backend
        self.context = context
        self.launched: dict[AttemptKey, Launch] = {}
        self.closed = False

    async def start(self, known: Sequence[Launch] = ()) -> None:
        await self.rig.call("start", self.backend.start(self.context, known))
        self.launched.update({key: launch for launch in known for key in launch.attempts()})
        if not self.context.settings.managed:
            self.rig.expect(bool(self.context.hosts), "start returned without a report of a host", "start_offers_hosts")

    def make(
        self,
        act: str,
        indexes: Sequence[int] = (0,),
        *,
        number: int = 1,
        size: int | None = None,
        job_id: str = "",
        **fields: Any,
    ) -> Launch:
        """A launch of attempts that do this (`act` with its arguments in one string)."""
        spec = self.rig.spec(act, **fields)
        size = max(indexes) + 1 if size is None and len(indexes) > 1 else size
        job_id = job_id or str(uuid.uuid4())
        host = next(iter(self.context.hosts), "")
        return Launch(job_id=job_id, number=number, indexes=indexes, host=host, spec=spec, array_size=size)

    async def launch(self, *launches: Launch) -> None:
        await self.rig.call("launch", self.backend.launch(launches))
        self.launched.update({key: launch for launch in launches for key in launch.attempts()})

    async def run(self, act: str, indexes: Sequence[int] = (0,), **fields: Any) -> list[Seen]:
        """Launch, and give the ends of all once they have ended."""
        launch = self.make(act, indexes, **fields)
        await self.launch(launch)
        return [await self.end_of(key) for key in launch.attempts()]

    async def going(self, act: str, indexes: Sequence[int] = (0,), **fields: Any) -> Launch:
        """Launch attempts that go on until stopped; return once they are reported started, and ready."""
        launch = self.make(act, indexes, **fields)
        await self.launch(launch)
        await self.ready(launch, act)
        return launch

    async def ready(self, launch: Launch, act: str) -> None:
        for key in launch.attempts():
            await self.rig.until(
                self.context, partial(self.context.starts_of, key), f"{act!r} is launched, but no report of its start"
            )
            if self.rig.about.logs and not act.startswith("gate"):
                await self.says(key, b"ready")

    async def says(self, key: AttemptKey, word: bytes) -> None:
        """Wait until an attempt has written this."""
        with anyio.move_on_after(self.rig.wait_s) as scope:
            while word not in (text := await self.log(key)):
                ends = self.context.ends_of(key)
                self.rig.expect(not ends, f"an attempt that should go on has {ends and ends[0]}; its log: {text!r}")
                await anyio.sleep(0.02)
        self.rig.expect(not scope.cancelled_caught, f"an attempt's log never has {word!r}")

    async def end_of(self, key: AttemptKey) -> Seen:
        """The end of an attempt, once it is reported."""
        await self.rig.until(self.context, lambda: self.context.ends_of(key), f"no report of the end of {shown([key])}")
        return self.context.ends_of(key)[0]

    async def stop(self, launch: Launch, grace_ms: int = LONG_GRACE_MS) -> None:
        await self.rig.call("stop", self.backend.stop(launch.attempts(), round(grace_ms * self.rig.scale)))

    async def log(self, key: AttemptKey, *, follow: bool = False) -> bytes:
        async def read() -> bytes:
            return b"".join([piece async for piece in self.backend.logs(key, follow=follow)])

        return await self.rig.call("logs", read())

    async def close(self) -> None:
        self.closed = True
        try:
            await self.rig.call("close", self.backend.close())
        finally:
            self.context.retire()

    def in_flight(self, *, known_started: bool = True) -> list[Launch]:
        """What a kernel would hand to the next start: everything launched here whose end it was not told."""
        left: dict[int, tuple[Launch, list[int]]] = {}
        for key, launch in self.launched.items():
            if not self.context.ends_of(key):
                left.setdefault(id(launch), (launch, []))[1].append(key.index)
        return [
            msgspec.structs.replace(launch, indexes=indexes, known_started=known_started)
            for launch, indexes in left.values()
        ]


class Rig:
    """What one check works with: a folder of its own, and the sessions that it opens."""

    def __init__(self, name: str, about: Description, folder: Path) -> None:
        self.name = name
        self.about = about
        self.scale = about.time_scale
        self.patience = about.time_scale * about.patience
        self.wait_s = WAIT_S * self.patience
        self.folder = folder
        self.marks = folder / "marks"
        self.marks.mkdir()
        self.sessions: list[Session] = []
        self.contexts: list[RecordingContext] = []

    # -- judging --

    def broken(self, seen: str, name: str = "") -> RuleBroken:
        return RuleBroken(name or self.name, seen)

    def expect(self, condition: bool, seen: str, name: str = "") -> None:
        """Without the condition a rule is broken (the check's, unless another is named)."""
        if not condition:
            raise self.broken(seen, name)

    async def until(self, context: RecordingContext, condition: Callable[[], object], missing: str) -> None:
        """Wait for what must come."""
        if not await context.until(condition, self.wait_s):
            raise self.broken(f"{missing} within {self.wait_s:g} s")

    async def quiet(self) -> None:
        """Wait for what must not come."""
        await anyio.sleep(QUIET_S * self.scale)

    async def call(self, what: str, call: Awaitable[T]) -> T:
        """A backend's method, within its bound."""
        seconds = CALL_S * self.patience
        try:
            with anyio.move_on_after(seconds):
                return await call
        except RuleBroken:
            raise
        except Exception as e:
            raise self.broken(f"{what} raised {type(e).__name__}: {e}") from e
        raise self.broken(f"{what} did not return within {seconds:g} s")

    # -- making --

    def spec(self, act: str, **fields: Any) -> AttemptSpec:
        made = self.about.programs(*act.split())
        if made is None:
            raise KitMisused(f"{self.name} needs `{act}`, which it did not say")
        environment = {**made.environment, **fields.pop("environment", {})}
        if self.about.shares_files:
            environment[MARKS] = str(self.marks)
        fields.setdefault("vcpus_milli", 1)
        return msgspec.structs.replace(made, environment=environment, **fields)

    def context(self, *, durable: bool = False, max_vcpus_milli: int = VCPUS_MILLI) -> RecordingContext:
        made = RecordingContext(
            self.folder, options=self.about.options, durable=durable, max_vcpus_milli=max_vcpus_milli
        )
        self.contexts.append(made)
        return made

    async def open(
        self, known: Sequence[Launch] = (), *, durable: bool = False, max_vcpus_milli: int = VCPUS_MILLI
    ) -> Session:
        """A new backend, started."""
        session = Session(self, self.about.factory(), self.context(durable=durable, max_vcpus_milli=max_vcpus_milli))
        self.sessions.append(session)
        await session.start(known)
        return session

    # -- marks --

    def lines(self, launch: Launch, index: int = 0, suffix: str = "") -> list[str]:
        """What an attempt has marked."""
        key = AttemptKey(launch.job_id, index, launch.number)
        path = self.marks / (marks_name(key, launch.array_size is not None) + suffix)
        return path.read_text().split() if path.exists() else []

    def runs(self, launch: Launch, index: int = 0) -> int:
        """How often an attempt has run."""
        return self.lines(launch, index).count("run")

    async def beats(self, launch: Launch, suffix: str = "", *, within_s: float | None = None) -> bool:
        """Whether an attempt (or its relative) is alive: it marks its beats."""
        before = len(self.lines(launch, 0, suffix))
        end = time.monotonic() + (self.wait_s if within_s is None else within_s)
        while len(self.lines(launch, 0, suffix)) <= before:
            if time.monotonic() > end:
                return False
            await anyio.sleep(BEAT_S)
        return True

    async def gone(self, launch: Launch, otherwise: str, suffix: str = "") -> None:
        """Wait until an attempt (or its relative) is dead."""
        end = time.monotonic() + LEFT_S * self.patience
        while await self.beats(launch, suffix, within_s=BEATLESS_S * max(1.0, self.scale)):
            self.expect(time.monotonic() < end, otherwise)

    def open_gate(self) -> None:
        (self.marks / "gate").touch()

    # -- the end --

    def judge(self) -> None:
        """What holds in every check: reports are in order, and each end is reported once."""
        for context in self.contexts:
            for name, text in context.faults:
                raise self.broken(text, name)
            counts = {key: len(context.ends_of(key)) for key in {one.key for one in context.seen}}
            twice = [key for key, count in counts.items() if count > 1]
            if twice:
                told = ", ".join(map(str, context.told_of(twice[0])))
                raise self.broken(f"{len(twice)} attempts with more than one end; the first: {told}", ONCE)

    async def clean_up(self) -> None:
        """End what the check has left. What goes wrong here is no finding."""
        known: list[Launch] = []
        for session in self.sessions:
            if session.closed:
                known += session.in_flight()
                continue
            with contextlib.suppress(Exception), anyio.move_on_after(CLEANUP_S * self.scale):
                await self._end_all(session)
            with contextlib.suppress(Exception), anyio.move_on_after(CLEANUP_S * self.scale):
                await session.backend.close()
        if any(context.durable for context in self.contexts):
            backend = self.about.factory()
            if backend.capabilities.reattach:
                sweeper = Session(self, backend, RecordingContext(self.folder, options=self.about.options))
                with contextlib.suppress(Exception), anyio.move_on_after(2 * CLEANUP_S * self.scale):
                    await backend.start(sweeper.context, known)
                    sweeper.launched = {key: launch for launch in known for key in launch.attempts()}
                    await self._end_all(sweeper)
                with contextlib.suppress(Exception), anyio.move_on_after(CLEANUP_S * self.scale):
                    await backend.close()

    async def _end_all(self, session: Session) -> None:
        left = [key for launch in session.in_flight() for key in launch.attempts()]
        if left:
            await session.backend.stop(left, 0)
            ended = session.context.ends_of
            await session.context.until(lambda: all(ended(key) for key in left), CLEANUP_S * self.scale)


def shown(keys: Sequence[AttemptKey]) -> str:
    """Some attempts in words."""
    first = ", ".join(f"{key.job_id}:{key.index}/{key.number}" for key in keys[:3])
    return first if len(keys) <= 3 else f"{first} and {len(keys) - 3} more"


ONCE: Final = "each_attempt_ends_once"


@contextlib.asynccontextmanager
async def rig_for(name: str, about: Description) -> AsyncIterator[Rig]:
    """A rig, cleaned up afterwards, and judged if the check itself found nothing."""
    place = about.folder or Path(tempfile.gettempdir())
    if about.folder is None and len(str(place)) > PLACE_CHARS_MAX:
        place = Path("/tmp")
    folder = Path(tempfile.mkdtemp(prefix="ab-kit-", dir=place))
    rig = Rig(name, about, folder)
    try:
        try:
            yield rig
            await asyncio.sleep(0)
        finally:
            with anyio.CancelScope(shield=True):
                await rig.clean_up()
        rig.judge()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
