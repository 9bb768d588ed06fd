"""Where the journal of a run is, and the plan that is kept beside it for a resume."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import time
from pathlib import Path

import msgspec
from msgspec import structs

from .plan import FORMAT, Plan, bad


class EngineFailure(Exception):
    """The run cannot go on, and no job is to blame."""


def state_folder() -> Path:
    """The user's folder for what anybatch keeps."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "anybatch"


def runs_folder() -> Path:
    """Where runs keep their journals, each in a folder of its own."""
    return state_folder() / "runs"


def serve_journal() -> Path:
    """Where `anybatch serve` keeps its journal, unless told otherwise."""
    return state_folder() / "batch.db"


def new_journal(plan: Plan) -> Path:
    """A new place in the user's state folder."""
    label = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(plan.config.source).stem if plan.config.source else plan.config.name)[
        :60
    ]
    folder = f"{label}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    return runs_folder() / folder / "batch.db"


def _kept_path(journal: Path) -> Path:
    return journal.with_name(journal.name + ".d") / "run.json"


def find_kept(journal: Path) -> Plan | None:
    """The plan that was kept beside a journal; None if there is no journal yet.

    Raises:
        ConfigError: what is there is no journal of a run.
    """
    path = _kept_path(journal)
    if not journal.exists() and not path.exists():
        return None
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
        if plan.format == FORMAT:
            return plan
        why = f"format {plan.format}, this anybatch reads {FORMAT}"
    except OSError as e:
        why = f"{journal} is not the journal of an `anybatch run`: {path} cannot be read ({e.strerror})"
        raise bad("--journal", why) from None
    except msgspec.MsgspecError as e:
        why = str(e)
    raise bad("--journal", f"{path} is damaged, or of another version of anybatch: {why}")


def _to_keep(plan: Plan) -> Plan:
    """Without the lines of its source: that may be another one by then."""
    return structs.replace(plan, config=structs.replace(plan.config, lines={}))


def keep(plan: Plan, journal: Path) -> None:
    """Keep the plan beside the journal, before the journal begins.

    Raises:
        EngineFailure: it cannot be written, or another call was quicker.
    """
    path = _kept_path(journal)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        with part.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(_to_keep(plan)), indent=1))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)  # unlike a rename, it takes nothing from another call's run
        finally:
            part.unlink()
    except OSError as e:
        raise EngineFailure(f"cannot write {path}: {e.strerror}") from e


def compare(journal: Path, kept: Plan, plan: Plan) -> None:
    """Refuse a journal whose run was another one."""
    before, now = kept.digests(), plan.digests()
    if before == now:
        return
    kinds = {
        "only in the journal": [name for name in before if name not in now],
        "only in what is given now": [name for name in now if name not in before],
        "different": [name for name in now if name in before and now[name] != before[name]],
    }
    found = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)
    what = kept.config.source or f"the command {shlex.join(map(str, kept.config.jobs[0].arguments.get('command', [])))}"
    raise bad(
        "--journal",
        f"{journal} holds another run, of {what}, whose jobs differ ({found}). To go on with that one as it was: "
        f"anybatch run --journal {shlex.quote(str(journal))}. To start over: leave --journal out, or name a new one.",
    )
