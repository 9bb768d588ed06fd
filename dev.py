#!/usr/bin/env python3
"""Sets up this checkout and runs things in it, with nothing but Python 3.11+ and pip or venv.

    python3 dev.py example            run the example pipeline
    python3 dev.py test [ARG ...]     run every check; ARGs go to pytest, which without any runs in two processes
    python3 dev.py lint               run the static checks alone
    python3 dev.py setup              only make .venv
    python3 dev.py lock [ARG ...]     make requirements/*.lock again; ARGs go to uv (e.g. --upgrade)

Each makes what it needs first: a virtual environment in .venv with the locked dependencies and this
project, editable. Later runs find it done and ask no network. PYTHON=python3.12 in the environment
chooses an interpreter, and keeps its environment apart (.venv-3.12).

This file starts on an older Python too (its syntax is that of 3.6), looks for a newer one and goes on there.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, Iterator, List, NoReturn, Optional, Tuple

ROOT = Path(__file__).resolve().parent
OLDEST = (3, 11)
CANDIDATES = ("python3.13", "python3.12", "python3.11", "python3.14", "python3")
LOCKS = {  # level -> what it installs
    "run": ("requirements/run.lock", "requirements/build.lock"),
    "dev": ("requirements/dev.lock",),
}
WHOLE = ("-n", "2", "--dist", "loadfile")  # pytest-xdist: two processes, and each file of tests in one of them
PROBE = "import sys; print('%d.%d' % sys.version_info[:2])"


class Failure(Exception):
    """Something that the person at the terminal has to see to."""


# --------------------------------------------------------------------------- the interpreter


def version_of(python: str) -> Optional[Tuple[int, int]]:
    """(major, minor) of an interpreter; None if it does not run."""
    try:
        done = subprocess.run(
            [python, "-I", "-S", "-c", PROBE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        major, minor = done.stdout.decode().split(".")
        return int(major), int(minor)
    except (OSError, ValueError):
        return None


def find_python() -> Tuple[str, Tuple[int, int], Path]:
    """The interpreter to use, its version, and where its environment goes."""
    asked = os.environ.get("PYTHON")
    if asked:
        found = shutil.which(asked)
        version = version_of(found) if found else None
        if found is None or version is None:
            raise Failure(f"PYTHON={asked}: there is no such interpreter, or it does not run.")
        if version < OLDEST:
            raise Failure(f"PYTHON={asked}: it is Python {dotted(version)}; anybatch needs {dotted(OLDEST)} or newer.")
        return found, version, ROOT / f".venv-{dotted(version)}"
    if sys.version_info[:2] >= OLDEST:
        # The one beneath, if this one is in a virtual environment: that may be the very one to be remade.
        own = getattr(sys, "_base_executable", None) or sys.executable
        return own, sys.version_info[:2], ROOT / ".venv"
    for name in CANDIDATES:
        found = shutil.which(name)
        version = version_of(found) if found else None
        if found is not None and version is not None and version >= OLDEST:
            return found, version, ROOT / ".venv"
    raise Failure(
        f"anybatch needs Python {dotted(OLDEST)} or newer. This is {dotted(sys.version_info[:2])}, and on PATH none of "
        f"{', '.join(CANDIDATES[:-1])} runs. Install one, or name it: PYTHON=/path/to/python3.12 python3 dev.py ..."
    )


def dotted(version: Tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


# --------------------------------------------------------------------------- the environment


def digest(*names: str) -> str:
    found = hashlib.sha256()
    for name in names:
        found.update((ROOT / name).read_bytes())
    return found.hexdigest()


def read_stamp(venv: Path) -> Dict[str, str]:
    """What a finished set-up left in the environment; empty if it is unfinished or damaged."""
    try:
        stamp = json.loads((venv / "anybatch-dev.json").read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(venv: Path, stamp: Dict[str, str]) -> None:
    (venv / "anybatch-dev.json").write_text(json.dumps(stamp, indent=1))


def is_usable(venv: Path, stamp: Dict[str, str], version: Tuple[int, int]) -> bool:
    """Whether the environment can be kept and added to; else it is made anew."""
    if stamp.get("place") != str(venv) or stamp.get("python") != dotted(version):
        return False
    if any(stamp.get(level, digest(*names)) != digest(*names) for level, names in LOCKS.items()):
        return False
    scripts = [script for key, script in (("project", "anybatch"), ("dev", "pytest")) if key in stamp]
    return all((venv / "bin" / name).exists() for name in scripts) and version_of(str(venv / "bin/python")) == version


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Holds off a second set-up of this checkout."""
    with open(__file__, "rb") as file:
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def setup(level: str) -> Path:
    """Make the environment hold what `level` needs; return its folder."""
    python, version, venv = find_python()
    with one_at_a_time():
        stamp = read_stamp(venv)
        if not is_usable(venv, stamp, version):
            make_venv(python, version, venv)
            stamp = {"place": str(venv), "python": dotted(version)}
        if level not in stamp and "dev" not in stamp:
            say(f"installing the locked dependencies ({', '.join(LOCKS[level])})")
            write_stamp(venv, {})
            requirements = [part for name in LOCKS[level] for part in ("-r", str(ROOT / name))]
            pip(python, venv, "--require-hashes", "--no-deps", "--only-binary", ":all:", *requirements)
            stamp[level] = digest(*LOCKS[level])
            write_stamp(venv, stamp)
        if stamp.get("project") != digest("pyproject.toml"):
            pip(python, venv, "--no-deps", "--no-build-isolation", "--no-index", "--editable", str(ROOT))
            stamp["project"] = digest("pyproject.toml")
            write_stamp(venv, stamp)
    return venv


def make_venv(python: str, version: Tuple[int, int], venv: Path) -> None:
    say(f"making {venv.name} with Python {dotted(version)} ({python})")
    if venv.is_symlink() or venv.is_file():
        venv.unlink()
    elif venv.exists():
        shutil.rmtree(venv)
    # Without pip: Debian keeps what would put it there (ensurepip) in a package of its own.
    done = output_of([python, "-I", "-m", "venv", "--without-pip", str(venv)])
    if done.returncode != 0 or version_of(str(venv / "bin/python")) != version:
        raise Failure(
            f"{python} could not make a virtual environment in {venv}:\n{done.stdout}\n"
            "Where Python comes without its venv module, the system's package for it helps "
            "(Debian and Ubuntu: apt install python3-venv)."
        )


def pip(python: str, venv: Path, *arguments: str) -> None:
    """Run `pip install` for the environment: its own pip, else one from ensurepip, else one from outside."""
    inside = str(venv / "bin/python")
    tries = [[inside, "-I", "-m", "pip"]]
    if not runs(tries[0]):
        runs([inside, "-I", "-m", "ensurepip", "--default-pip"])
    if not runs(tries[0]):
        tries = [[python, "-m", "pip", "--python", inside]]
        tries += [[found, "--python", inside] for found in map(shutil.which, ("pip3", "pip")) if found]
        tries = [command for command in tries if runs(command)]
    if not tries:
        raise Failure(
            f"{python} has neither ensurepip nor pip 22.3 or newer, and PATH has no such pip.\n"
            "Debian and Ubuntu: apt install python3-venv (or python3-pip)."
        )
    done = output_of([*tries[0], "install", "--no-input", "--progress-bar", "off", *arguments], PIP_USER="0")
    if done.returncode != 0:
        raise Failure(
            f"{done.stdout}\npip could not install ({' '.join(arguments)}): its own words are above. "
            "The first set-up needs a package index that pip can reach."
        )


def runs(command: List[str]) -> bool:
    return output_of([*command, *([] if "ensurepip" in command else ["--version"])]).returncode == 0


def output_of(command: List[str], **extra: str) -> "subprocess.CompletedProcess[str]":
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", **extra)
    for name in ("PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__"):
        environment.pop(name, None)
    return subprocess.run(
        command,
        cwd=str(ROOT),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


# --------------------------------------------------------------------------- commands


def example(arguments: List[str]) -> NoReturn:
    """Run the example pipeline."""
    anybatch = str(setup("run") / "bin/anybatch")
    os.chdir(str(ROOT))
    os.execv(anybatch, [anybatch, "run", "examples/pipeline.toml", *arguments])


def lint(arguments: List[str]) -> int:
    """Run the static checks; `arguments` must be empty."""
    if arguments:
        raise Failure(f"lint takes no arguments: {' '.join(arguments)}")
    return 1 if failing_checks(setup("dev")) else 0


def failing_checks(venv: Path) -> List[str]:
    checks = {
        "ruff check": ["ruff", "check", "."],
        "ruff format": ["ruff", "format", "--check", "."],
        "mypy": ["mypy"],
        "import-linter": ["lint-imports"],
    }
    return [name for name, command in checks.items() if run(venv, name, command) != 0]


def run(venv: Path, name: str, command: List[str]) -> int:
    say(name)
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # tests start Python so often that it would take twice as long
    return subprocess.call([str(venv / "bin" / command[0]), *command[1:]], cwd=str(ROOT), env=environment)


def test(arguments: List[str]) -> int:
    """Run the static checks, then pytest: the whole of it in two processes, or with `arguments` as they say.

    Pytest comes last, and its last line is its count.
    """
    venv = setup("dev")
    failing = failing_checks(venv)
    if failing:
        say(f"FAILED so far: {', '.join(failing)}")
    code = run(venv, "pytest", ["pytest", *(arguments or WHOLE)])
    if failing:
        say(f"FAILED before pytest: {', '.join(failing)}")
    return code or (1 if failing else 0)


def lock(arguments: List[str]) -> int:
    """Make the lock files again, for all Pythons from the oldest, without the name of any index."""
    python, version, _ = find_python()
    uv = shutil.which("uv")
    with tempfile.TemporaryDirectory() as folder:
        if uv is None:
            make_venv(python, version, Path(folder, "venv"))
            pip(python, Path(folder, "venv"), "uv")
            uv = str(Path(folder, "venv/bin/uv"))
        common = ["pip", "compile", "--quiet", "--universal", "--python-version", dotted(OLDEST), "--generate-hashes"]
        common += ["--no-emit-index-url", "--no-emit-find-links", "--custom-compile-command", "python3 dev.py lock"]
        for name, what in (
            ("run", ["pyproject.toml"]),
            ("build", ["--group", "build"]),
            (
                "dev",
                ["pyproject.toml", "--group", "dev", "-c", "requirements/run.lock", "-c", "requirements/build.lock"],
            ),
        ):
            say(f"requirements/{name}.lock")
            code = subprocess.call([uv, *common, *what, "-o", f"requirements/{name}.lock", *arguments], cwd=str(ROOT))
            if code != 0:
                return code
    return 0


def only_setup(arguments: List[str]) -> int:
    """Make the environment with everything."""
    if arguments:
        raise Failure(f"setup takes no arguments: {' '.join(arguments)}")
    say(f"ready: {setup('dev')}")
    return 0


COMMANDS = {"example": example, "test": test, "lint": lint, "setup": only_setup, "lock": lock}


def say(text: str) -> None:
    print(f"dev.py: {text}", flush=True)


def main(arguments: List[str]) -> int:
    """Carry out one command; return its exit status."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__)
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        print(f"dev.py: no command {arguments[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        if sys.version_info[:2] < OLDEST:
            python = find_python()[0]
            os.execv(python, [python, str(Path(__file__).resolve()), *arguments])
        return COMMANDS[arguments[0]](arguments[1:])
    except Failure as failure:
        print(f"dev.py: {failure}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
