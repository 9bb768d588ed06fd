"""What the conformance kit has attempts do: a few acts, as shell programs and as coroutine functions.

An act is a word and its arguments. `Programs` spells it as an `AttemptSpec`, or returns None where a backend's
attempts cannot do it; the checks that need it do not apply then. Acts that end by themselves: `exit CODE`,
`index` (the exit code is the array index, modulo 256), `die SIGNAL`, `environment` (prints it, NUL after each),
`speak N` (N lines to each of stdout and stderr, in turns), `flood BYTES`, `missing` (a program that does not exist),
and `gate CODE SECONDS` (ends when the file `gate` appears among the marks; after so long where files are not shared).
Acts that go on until stopped: `wait`, `goodbye CODE` (a last line on SIGTERM, then this code), `stubborn`
(ignores SIGTERM), `beat` (a mark every 50 ms), `family` (a tree that ignores SIGTERM but for its root). They
print `ready` once they are ready to be stopped.

Marks are files in the folder that the variable MARKS names, one per attempt, with a line for each run and beat.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

import anyio
from anybatch.kernel.backend import AttemptKey, AttemptSpec

MARKS: Final = "ANYBATCH_KIT_MARKS"
BEAT_S: Final = 0.05
BEATS_MAX: Final = 1200
"""A minute's worth: what a wrong backend leaves behind ends by itself."""

Programs = Callable[..., AttemptSpec | None]
"""`programs(act, *args)`: an act as a spec; None where attempts cannot do it."""


def marks_name(key: AttemptKey, array: bool) -> str:
    """The file in the folder of marks that belongs to an attempt."""
    return f"{key.job_id}:{key.index}.{key.number}" if array else f"{key.job_id}.{key.number}"


# -- as shell programs --------------------------------------------------------------------------------

PRELUDE: Final = f"""
file="${MARKS}/$AWS_BATCH_JOB_ID.$AWS_BATCH_JOB_ATTEMPT"
mark() {{ if [ -n "${MARKS}" ]; then echo "$1" >>"$file$2"; fi; }}
beats() {{ i=0; while [ $i -lt {BEATS_MAX} ]; do mark beat "$1"; sleep {BEAT_S}; i=$((i+1)); done; }}
rest() {{ echo ready; exec 2>/dev/null; i=0; while [ $i -lt 10 ]; do sleep 60 & wait $!; i=$((i+1)); done; }}
mark run
"""

SHELL: Final[Mapping[str, str]] = {
    "exit": 'exit "$1"',
    "index": 'exit "$((AWS_BATCH_JOB_ARRAY_INDEX & 255))"',
    "die": 'kill -"$1" $$; sleep 5',
    "environment": "exec env -0",
    "speak": 'i=0; while [ $i -lt "$1" ]; do echo "out $i"; echo "err $i" >&2; i=$((i+1)); done',
    "flood": "head -c \"$1\" /dev/zero | tr '\\0' x",
    "wait": "trap 'kill $! 2>/dev/null; exit 143' TERM; rest",
    "goodbye": "trap 'kill $! 2>/dev/null; echo bye; mark bye; exit '\"$1\" TERM; rest",
    "stubborn": f"trap '' TERM; echo ready; i=0; while [ $i -lt {BEATS_MAX} ]; do sleep {BEAT_S}; i=$((i+1)); done",
    "beat": "trap 'exit 143' TERM; echo ready; beats",
    "gate": f"""
        if [ -n "${MARKS}" ]; then
            i=0; while [ ! -e "${MARKS}/gate" ] && [ $i -lt {BEATS_MAX} ]; do sleep {BEAT_S}; i=$((i+1)); done
        else sleep "$2"; fi
        echo through; mark through; exit "$1" """,
    "family": """
        trap 'exit 143' TERM
        (trap '' TERM; beats .child) &
        if command -v setsid >/dev/null; then setsid sh -c '
            trap "" TERM; i=0
            while [ $i -lt 1200 ]; do echo beat >>"$0"; sleep 0.05; i=$((i+1)); done' "$file.far" &
        fi
        echo ready; while :; do sleep 60 & wait $!; done""",
}


def shell_programs(act: str, *args: str) -> AttemptSpec | None:
    """Acts as programs for /bin/sh and the usual tools (also those of busybox)."""
    if act == "missing":
        return AttemptSpec(command=("/anybatch-kit/no-such-program",))
    return AttemptSpec(command=("/bin/sh", "-c", PRELUDE + SHELL[act], "kit", *args))


# -- as coroutine functions ---------------------------------------------------------------------------


class Doing(Protocol):
    """What the functions need of what an inline attempt is given."""

    @property
    def args(self) -> tuple[str, ...]: ...

    @property
    def environment(self) -> Mapping[str, str]: ...

    def write(self, text: str | bytes) -> None: ...


def _mark(attempt: Doing, word: str) -> None:
    variables = attempt.environment
    if folder := variables.get(MARKS):
        name = f"{variables.get('AWS_BATCH_JOB_ID')}.{variables.get('AWS_BATCH_JOB_ATTEMPT')}"
        with (Path(folder) / name).open("a") as file:
            file.write(f"{word}\n")


async def _exit(attempt: Doing) -> int:
    return int(attempt.args[0])


async def _index(attempt: Doing) -> int:
    return int(attempt.environment["AWS_BATCH_JOB_ARRAY_INDEX"]) & 255


async def _environment(attempt: Doing) -> None:
    attempt.write(b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in attempt.environment.items()))


async def _speak(attempt: Doing) -> None:
    for n in range(int(attempt.args[0])):
        attempt.write(f"out {n}\nerr {n}\n")


async def _flood(attempt: Doing) -> None:
    attempt.write(b"x" * int(attempt.args[0]))


async def _rest(attempt: Doing) -> None:
    attempt.write("ready\n")
    await asyncio.Event().wait()


async def _goodbye(attempt: Doing) -> int:
    try:
        await _rest(attempt)
    except asyncio.CancelledError:
        attempt.write("bye\n")
        _mark(attempt, "bye")
    return int(attempt.args[0])


async def _stubborn(attempt: Doing) -> None:
    try:
        await _rest(attempt)
    except asyncio.CancelledError:
        await asyncio.Event().wait()


async def _beat(attempt: Doing) -> None:
    attempt.write("ready\n")
    for _ in range(BEATS_MAX):
        _mark(attempt, "beat")
        await anyio.sleep(BEAT_S)


async def _gate(attempt: Doing) -> int:
    folder = attempt.environment.get(MARKS)
    for _ in range(BEATS_MAX if folder else 0):
        if (Path(folder or "") / "gate").exists():
            break
        await anyio.sleep(BEAT_S)
    if folder is None:
        await anyio.sleep(float(attempt.args[1]))
    attempt.write("through\n")
    _mark(attempt, "through")
    return int(attempt.args[0])


def _marked(function: Callable[[Doing], Awaitable[int | None]]) -> Callable[[Doing], Awaitable[int | None]]:
    async def marked(attempt: Doing) -> int | None:
        _mark(attempt, "run")
        return await function(attempt)

    return marked


FUNCTIONS: Final[Mapping[str, Callable[[Doing], Awaitable[int | None]]]] = {
    "exit": _marked(_exit),
    "index": _marked(_index),
    "environment": _marked(_environment),
    "speak": _marked(_speak),
    "flood": _marked(_flood),
    "wait": _marked(_rest),
    "goodbye": _marked(_goodbye),
    "stubborn": _marked(_stubborn),
    "beat": _marked(_beat),
    "gate": _marked(_gate),
}
"""The acts for a backend that runs coroutine functions by name: `InlineBackend(FUNCTIONS)`."""


def function_programs(act: str, *args: str) -> AttemptSpec | None:
    """Acts as commands whose first word is one of `FUNCTIONS`."""
    if act == "missing":
        return AttemptSpec(command=("anybatch-kit-no-such-function",))
    return AttemptSpec(command=(act, *args)) if act in FUNCTIONS else None


def no_programs(act: str, *args: str) -> AttemptSpec | None:
    """For a backend that runs nothing: attempts only end, with exit code 0."""
    return AttemptSpec(command=("exit", "0")) if (act, args) == ("exit", ("0",)) else None
