"""A process that holds a backend until it is killed: the kernel that dies in the conformance kit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final

import anyio
import msgspec
from anybatch.kernel.backend import Backend, BackendFactory, Launch

from .kit_context import ENDS, RecordingContext

if TYPE_CHECKING:
    from .kit_rig import Rig

BOOT: Final = (
    "import pickle, sys\n"
    "with open(sys.argv[1], 'rb') as file:\n"
    "    sys.path[:] = pickle.load(file)\n"
    "    from anybatch.testing.kit_child import main\n"
    "    main(file)\n"
)
TROUBLE_TAIL: Final = 1500


class Holder:
    """Starts a process that starts a backend and launches attempts on it; kills it with SIGKILL."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Holder:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.kill()

    async def hold(self, act: str, indexes: Sequence[int]) -> Launch:
        """Return once the attempts are reported started there, and are ready."""
        from .kit_rig import KitMisused, Session

        rig = self._rig
        session = Session(rig, rig.about.factory(), rig.context(durable=True))
        rig.sessions.append(session)
        session.closed = True  # it is the other process that has it
        launch = session.make(act, indexes)
        session.launched.update(dict.fromkeys(launch.attempts(), launch))
        payload = rig.folder / "payload"
        try:
            data = pickle.dumps(
                (rig.about.factory, rig.about.options, rig.folder, launch, rig.about.logs, act, rig.wait_s)
            )
        except (pickle.PicklingError, AttributeError, TypeError) as e:
            raise KitMisused(
                f"the factory {rig.about.factory!r} cannot be taken to another process ({e}); "
                "give a class, a module's function, or a functools.partial of one"
            ) from e
        payload.write_bytes(pickle.dumps(sys.path) + data)
        trouble = rig.folder / "trouble"
        with trouble.open("wb") as errors:
            # A copy of the environment: threads of this process may change its own while the new one begins with it.
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", BOOT, str(payload), stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE, stderr=errors, env=dict(os.environ),
            )  # fmt: skip
        assert self._process.stdout is not None
        line = b""
        with anyio.move_on_after(2 * rig.wait_s):
            line = await self._process.stdout.readline()
        if not line.startswith(b"ready "):
            text = trouble.read_text(errors="replace")[-TROUBLE_TAIL:]
            raise rig.broken(f"in a process of its own: {line.decode(errors='replace').strip()} {text}".strip())
        launch = msgspec.structs.replace(launch, host=json.loads(line[6:]))
        session.launched.update(dict.fromkeys(launch.attempts(), launch))
        return launch

    async def kill(self) -> None:
        """As `kill -9` does: no clean-up, no farewell."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            assert process.stdout is not None
            await process.stdout.read()
            process._transport.close()  # type: ignore[attr-defined]


def main(file: IO[bytes]) -> None:
    """What the child process does."""
    asyncio.run(_hold(*pickle.load(file)))  # noqa: S301  # the kit's own


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def _hold(
    factory: BackendFactory, options: dict[str, Any], folder: Path, launch: Launch, logs: bool, act: str, wait_s: float
) -> None:
    context = RecordingContext(folder, options=options, durable=True)
    backend: Backend = factory()
    await backend.start(context, [])
    launch = msgspec.structs.replace(launch, host=next(iter(context.hosts)))
    await backend.launch([launch])
    for key in launch.attempts():
        if not await context.until(partial(context.told_of, key), wait_s):
            _say("no report of a start")
            return
        if {one.kind for one in context.told_of(key)} & {*ENDS} or context.failures:
            _say(f"reports: {[*map(str, context.told_of(key)), *context.failures]}")
            return
        while logs and not act.startswith("gate"):
            if b"ready" in b"".join([piece async for piece in backend.logs(key, follow=False)]):
                break
            await asyncio.sleep(0.02)
    _say(f"ready {json.dumps(launch.host)}")
    await asyncio.Event().wait()
