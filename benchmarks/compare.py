"""Compares two files written by `benchmarks/run.py --out`: python benchmarks/compare.py BEFORE.json AFTER.json

A figure that has a peer is compared by its ratio to it, any other by its value. It is marked where the two ranges
(lowest to highest round) do not overlap and the medians differ by more than --least, or by more than the figure itself
says (1 % where instructions are counted); fewer than three rounds on either side have no range worth the name, and
are never marked. With --fail the exit status is 1 if one is worse.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROUNDS_LEAST = 3


def judged(one: dict[str, Any]) -> dict[str, float]:
    """What a figure is compared by."""
    found: dict[str, float] = one.get("ratio") or one
    return found


def verdict(before: dict[str, Any], after: dict[str, Any], least: float) -> str:
    """WORSE, better, or nothing where the difference is within the spread."""
    a, b = judged(before), judged(after)
    least = before.get("least", least)
    if before["better"] == "neither" or min(a["n"], b["n"]) < ROUNDS_LEAST:
        return ""
    if max(a["min"], b["min"]) <= min(a["max"], b["max"]) or abs(b["median"] - a["median"]) <= least * abs(a["median"]):
        return ""
    return "better" if (b["median"] < a["median"]) is (before["better"] == "less") else "WORSE"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--least", type=float, default=0.03, help="the least relative difference that counts (0.03)")
    parser.add_argument("--fail", action="store_true", help="exit with 1 if a figure is worse")
    options = parser.parse_args()
    files = [json.loads(path.read_text()) for path in (options.before, options.after)]
    for name in ("machine", "versions"):
        if files[0][name] != files[1][name]:
            changed = [key for key in files[1][name] if files[0][name].get(key) != files[1][name][key]]
            print(
                f"{name} differ: " + ", ".join(f"{k} {files[0][name].get(k)} -> {files[1][name][k]}" for k in changed)
            )
    before, after = ({(one["benchmark"], one["name"]): one for one in file["figures"]} for file in files)
    print("| benchmark | figure | compared by | before | after | after/before | |\n|---|---|---|---|---|---|---|")
    worse = 0
    for key in [key for key in before if key in after]:
        a, b = judged(before[key]), judged(after[key])
        mark = verdict(before[key], after[key], options.least)
        worse += mark == "WORSE"
        by = "ratio to peer" if a is not before[key] else before[key]["unit"]
        times = f"{b['median'] / a['median']:.3f}" if a["median"] else ""
        print(
            f"| {key[0]} | {key[1]} | {by} | {a['median']:.4g} ({a['min']:.4g}-{a['max']:.4g}) "
            f"| {b['median']:.4g} ({b['min']:.4g}-{b['max']:.4g}) | {times} | {mark} |"
        )
    for title, keys in (("only before", before.keys() - after.keys()), ("only after", after.keys() - before.keys())):
        if keys:
            print(f"{title}: " + ", ".join("/".join(key) for key in sorted(keys)))
    print(f"{worse} figures are worse beyond the spread")
    return 1 if worse and options.fail else 0


if __name__ == "__main__":
    sys.exit(main())
