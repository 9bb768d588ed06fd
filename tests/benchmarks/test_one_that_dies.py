"""A benchmark that dies, or that cannot be run here, costs its own figures only, and the run says so."""

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
    monkeypatch.setenv("ANYBATCH_BENCH_DIR", str(tmp_path))  # a run changes it for good
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


def test_a_benchmark_whose_program_is_not_there_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("ANYBATCH_BENCH_DIR", str(tmp_path))  # a run changes it for good
    import run as program

    parts = [program.Benchmark("counts", 3, (program.Part("counts", {}),), needs="no-such-program")]
    monkeypatch.setattr(program, "plan", lambda **_: parts)
    monkeypatch.setattr("sys.argv", ["run.py", "--out", str(tmp_path / "r.json")])

    assert program.main() == 0
    assert json.loads((tmp_path / "r.json").read_text())["rounds"] == []
    assert "Without counts: there is no no-such-program in PATH" in capsys.readouterr().out
