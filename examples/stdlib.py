#!/usr/bin/env python3
"""The stages of pipeline.toml. AWS Batch's variables say which child this is, so this runs there unchanged."""

import builtins
import json
import keyword
import os
import re
import sys
import sysconfig
from collections import Counter
from pathlib import Path

OUT = Path(os.environ["OUT"])


def files() -> list[Path]:
    """The standard library's .py files, in one order for all children."""
    found = Path(sysconfig.get_path("stdlib")).rglob("*.py")
    return sorted(path for path in found if path.is_file() and not any(p.endswith("-packages") for p in path.parts))


def count(index: int, size: int) -> None:
    """Count the lines and names of every size-th file."""
    result = {"files": 0, "lines": 0}
    names: Counter[str] = Counter()
    for path in files()[index::size]:
        text = path.read_bytes()
        result["files"] += 1
        result["lines"] += text.count(b"\n")
        names.update(word.decode() for word in re.findall(rb"[A-Za-z_][A-Za-z_0-9]*", text))
    (OUT / f"count-{index}.json").write_text(json.dumps({**result, "names": names}))
    print(f"{result['files']} files, {result['lines']} lines")


def names(index: int) -> None:
    """Leave out of one child's names what is Python itself."""
    result = json.loads((OUT / f"count-{index}.json").read_text())
    known = {*keyword.kwlist, *dir(builtins), "self", "cls"}
    result["names"] = {name: n for name, n in result["names"].items() if name not in known and len(name) > 3}
    (OUT / f"names-{index}.json").write_text(json.dumps(result))
    print(f"{len(result['names'])} names")


def total(size: int) -> None:
    """Add up what all children found."""
    names: Counter[str] = Counter()
    results = [json.loads((OUT / f"names-{index}.json").read_text()) for index in range(size)]
    for result in results:
        names.update(result["names"])
    print("most used:", ", ".join(f"{name} {n}" for name, n in names.most_common(5)))
    print(f"{sum(r['files'] for r in results)} files, {sum(r['lines'] for r in results)} lines")


OUT.mkdir(parents=True, exist_ok=True)
if sys.argv[1] == "count":
    count(int(os.environ["AWS_BATCH_JOB_ARRAY_INDEX"]), int(os.environ["AWS_BATCH_JOB_ARRAY_SIZE"]))
elif sys.argv[1] == "names":
    names(int(os.environ["AWS_BATCH_JOB_ARRAY_INDEX"]))
else:
    total(int(sys.argv[2]))
