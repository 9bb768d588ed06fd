"""Draws a result file of benchmarks/run.py as SVG: rates as bars on a logarithmic scale, ours beside the peers'."""

from __future__ import annotations

import math
from html import escape
from typing import Any

Figure = dict[str, Any]
WIDTH, LEFT, RIGHT, BAR, GAP, TITLE = 860, 250, 150, 16, 6, 34
OURS, THEIRS, RANGE, TEXT = "#1f6feb", "#9aa4b2", "#24292f", "#24292f"
PANELS = (  # title, and of which benchmarks
    ("No-op children per second (null and inline backend, journal on disk)",
     ("null_array", "inline_array", "engines_noop")),
    ("/bin/true per second, 8 at once", ("true_processes_8", "engines_processes")),
    ("/bin/true per second, 2 at once", ("true_processes_2",)),
)  # fmt: skip


def draw(result: dict[str, Any]) -> str:
    """The SVG text. The thin line on a bar is the range from the lowest to the highest round."""
    parts: list[str] = []
    y = 10
    for title, benchmarks in PANELS:
        rows = _rows([one for one in result["figures"] if one["benchmark"] in benchmarks])
        if rows:
            parts.append(f'<text x="10" y="{y + 18}" font-weight="bold">{escape(title)}</text>')
            y += TITLE
            y = _panel(parts, rows, y) + 2 * GAP
    about = f"{result['at'][:10]}, commit {result['versions']['commit']}, Python {result['versions']['python']}; median"
    parts.append(f'<text x="10" y="{y + 14}" fill="#57606a">{escape(about)}, lowest and highest round</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 26}" font-family="sans-serif" '
        f'font-size="12" fill="{TEXT}"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _rows(figures: list[Figure]) -> list[tuple[str, bool, Figure]]:
    """(label, whether it is ours, figure) of every rate, the fastest first; ours once, however many peers it has."""
    rows: dict[tuple[str, str], tuple[str, bool, Figure]] = {}
    for one in figures:
        if one["unit"] == "1/s" and not one["name"].startswith("fastest_"):  # it has a bar under its own name
            name, ours = one["name"].partition("/")[0], one["better"] == "more"
            label = name.partition("_per_s")[0]
            if ours:
                backend = "inline" if one["benchmark"].startswith("inline") else "null"
                label = f"anybatch, {backend} backend" if label == "children" else "anybatch"
            rows.setdefault((label, "" if ours else one["benchmark"]), (label.replace("_", " "), ours, one))
    return sorted(rows.values(), key=lambda row: -row[2]["median"])


def _panel(parts: list[str], rows: list[tuple[str, bool, Figure]], y: int) -> int:
    low = 10 ** math.floor(math.log10(min(one["min"] for _, _, one in rows)))
    high = 10 ** math.ceil(math.log10(max(one["max"] for _, _, one in rows)))
    room = WIDTH - LEFT - RIGHT

    def at(value: float) -> float:
        return LEFT + room * math.log10(value / low) / math.log10(high / low)

    bottom = y + len(rows) * (BAR + GAP)
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        x = at(10.0**power)
        parts.append(f'<line x1="{x:.1f}" y1="{y - 4}" x2="{x:.1f}" y2="{bottom}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 12}" text-anchor="middle" fill="#57606a">{10**power:,}</text>')
    for label, ours, one in rows:
        middle = y + BAR / 2
        parts.append(f'<text x="{LEFT - 8}" y="{y + BAR - 4}" text-anchor="end">{escape(label)}</text>')
        width = max(1.0, at(one["median"]) - LEFT)
        fill = OURS if ours else THEIRS
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{fill}"/>')
        span = f'x1="{at(one["min"]):.1f}" x2="{at(one["max"]):.1f}"'
        parts.append(f'<line {span} y1="{middle}" y2="{middle}" stroke="{RANGE}"/>')
        x = max(at(one["max"]), LEFT + width) + 6
        parts.append(f'<text x="{x:.1f}" y="{y + BAR - 4}">{one["median"]:,.0f}</text>')
        y += BAR + GAP
    return bottom + 16
