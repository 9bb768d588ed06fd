"""A benchmark that dies costs its own figures only, and the run says so."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_benchmark_that_dies_costs_its_own_figures_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import run as program

    good = {"name": "rate", "value": 2.0, "unit": "1/s", "better": "more", "peer": None}

    def measure(part: Any, missing: dict[str, str]) -> list[dict[str, Any]]:
        if part.file == "dies":
            raise subprocess.CalledProcessError(-9, ["python", "/x/dies.py"])
        return [dict(good)]

    parts = [program.Benchmark(name, 2, (program.Part(name, {}),)) for name in ("first", "dies", "last")]
    monkeypatch.setattr(program, "measure", measure)
    monkeypatch.setattr(program, "plan", lambda **_: parts)
    monkeypatch.setattr("sys.argv", ["run.py", "--out", str(tmp_path / "r.json")])

    assert program.main() == 1
    result = json.loads((tmp_path / "r.json").read_text())
    assert [figure["benchmark"] for figure in result["figures"]] == ["first", "last"]
    assert result["missing"] == {"dies": "dies.py ended with status -9"}
    assert "Without dies: dies.py ended with status -9" in capsys.readouterr().out
