"""The soak, for a few seconds; and that it notices what grows."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(360)
CAMPAIGNS = Path(__file__).resolve().parents[2] / "campaigns"


def run(*arguments: object) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, str(CAMPAIGNS / "soak.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(CAMPAIGNS))
    return importlib.import_module("soak")


def test_a_short_soak_runs_jobs_and_samples_everything(soak: Any) -> None:
    code, result, table = run("--minutes", 0.1, "--every", 0.5, "--retain", 600, "--trimmed")
    assert {*soak.FLAT, *soak.GROWING} == result["figures"].keys()
    assert [problem for problem in result["problems"] if "has grown" not in problem] == []
    assert code == (1 if result["problems"] else 0)
    assert result["jobs"] > 0
    assert (
        result["figures"]["known_jobs"]["last"] >= result["jobs"] - soak.UNFINISHED_MOST
    )  # none is forgotten so early
    header, *rows = table.splitlines()
    assert set(soak.FLAT) <= set(header.split())
    assert len(rows) >= soak.SAMPLES_LEAST
    assert len({len(row.split()) for row in (header, *rows)}) == 1


def course(soak: Any, name: str, per_s: float, start: float = 1000.0) -> list[dict[str, float]]:
    """Samples of five minutes in which one figure rises."""
    flat = dict.fromkeys((*soak.FLAT, *soak.GROWING), start)
    return [{**flat, "s": float(s), name: start + per_s * s} for s in range(0, 300, 5)]


def names() -> list[str]:
    sys.path.insert(0, str(CAMPAIGNS))
    try:
        return [*importlib.import_module("soak").FLAT]
    finally:
        sys.path.remove(str(CAMPAIGNS))


@pytest.mark.parametrize("name", names())
def test_each_figure_that_grows_is_a_problem(soak: Any, name: str) -> None:
    bound = soak.FLAT[name]
    much = max(bound.absolute, bound.share * 1000) / 200
    assert soak.judge(course(soak, name, 0), trimmed=False)[1] == []
    assert soak.judge(course(soak, name, much / 4), trimmed=False)[1] == []
    (problem,) = soak.judge(course(soak, name, much * 2), trimmed=False)[1]
    assert problem.startswith(f"{name} has grown by")


def test_a_rise_during_the_warm_up_is_none(soak: Any) -> None:
    samples = course(soak, "rss_kib", 0, 40_000)
    for sample in samples:
        sample["rss_kib"] -= max(0, 80 - sample["s"]) * 400
    assert soak.judge(samples, trimmed=False)[1] == []


def test_the_journal_may_grow_unless_it_is_trimmed(soak: Any) -> None:
    samples = course(soak, "journal_kib", 1_000)
    assert soak.judge(samples, trimmed=False)[1] == []
    assert soak.judge(samples, trimmed=True)[1] != []


def test_slopes_are_per_minute(soak: Any) -> None:
    figures, _ = soak.judge(course(soak, "rss_kib", 2.0), trimmed=False)
    assert figures["rss_kib"]["slope_per_minute"] == pytest.approx(120)
    assert figures["threads"]["slope_per_minute"] == 0


def test_too_few_samples_are_no_verdict(soak: Any) -> None:
    assert soak.judge([], trimmed=False)[1] == ["too few samples after the warm-up"]
