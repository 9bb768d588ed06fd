"""That the benchmark commands work, at small sizes. Nothing here looks at a time."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import docker_rig
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SUMMARY = {"n", "median", "min", "max"}


def run(program: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / program, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmarks") / "results.json"
    table = run("run.py", "--quick", "--n", 20, "--out", path)
    assert table.startswith("| benchmark | figure |")
    return path


def test_every_figure_says_what_it_is_and_how_it_spreads(results: Path) -> None:
    result: dict[str, Any] = json.loads(results.read_text())
    assert {"format", "at", "versions", "machine", "folders", "missing", "rounds"} <= result.keys()
    assert all({"benchmark", "at", "load", "others", "took_s", "figures"} <= one.keys() for one in result["rounds"])
    names = [(one["benchmark"], one["name"]) for one in result["figures"]]
    assert len(set(names)) == len(names)
    for one in result["figures"]:
        assert SUMMARY | {"unit", "better", "values"} <= one.keys()
        assert ("ratio" in one) == ("peer" in one)
    for benchmark, name in [("null_array", "children_per_s_10000@64"), ("inline_array", "children_per_s_10000@64")]:
        (one,) = [one for one in result["figures"] if (one["benchmark"], one["name"]) == (benchmark, name)]
        assert one["peer"]["name"] == "taskgroup_per_s_10000@64"
        assert one["ratio"]["median"] == pytest.approx(one["median"] / one["peer"]["median"])
        assert len(one["cpu_s"]) == len(one["wall_s"]) == one["n"]


def test_a_run_leaves_its_table_and_a_plot_and_names_the_peers_that_are_not_there(results: Path) -> None:
    result = json.loads(results.read_text())
    measured = {one["name"].removesuffix("_per_s") for one in result["figures"]}
    table = results.with_suffix(".md").read_text()
    for engine in ("parsl_threads", "parsl_htex", "ray", "dask", "arq", "saq", "hyperqueue", "gnu_parallel"):
        assert engine in measured or f"Without {engine}: " in table
    plot = ET.parse(results.with_suffix(".svg")).getroot()
    texts = [text.text for text in plot.iter("{http://www.w3.org/2000/svg}text")]
    assert {"anybatch, null backend", "anybatch, inline backend", "taskgroup"} <= set(texts)


def test_instructions_are_counted_where_valgrind_is_there(results: Path) -> None:
    counted = [one for one in json.loads(results.read_text())["figures"] if one["benchmark"] == "instructions"]
    if shutil.which("valgrind") is None:
        assert "Without instructions: there is no valgrind in PATH" in results.with_suffix(".md").read_text()
        return
    per = {one["name"]: one["median"] for one in counted if one["unit"] == "instructions"}
    assert set(per) == {"instructions_per_child_8_slots", "instructions_per_submit"}
    assert min(per.values()) > 1000
    assert [one["name"] for one in counted if one["unit"] == "blocks"] == ["blocks_per_submit"]


def test_a_figure_may_say_itself_which_difference_counts(tmp_path: Path) -> None:
    for least, mark in [({}, " |  |"), ({"least": 0.01}, "| WORSE |")]:
        paths = []
        for name, values in (("before", (99.9, 100.0, 100.1)), ("after", (101.9, 102.0, 102.1))):
            paths.append(tmp_path / f"{name}.json")
            figures = [made(*values) | least]
            paths[-1].write_text(json.dumps({"format": 1, "machine": {}, "versions": {}, "figures": figures}))
        assert mark in run("compare.py", *paths)


def test_files_are_compared_and_a_regression_beyond_the_spread_is_marked(results: Path, tmp_path: Path) -> None:
    assert "0 figures are worse" in run("compare.py", results, results)
    before = {"format": 1, "machine": {}, "versions": {}, "figures": [made(10.0, 11.0, 12.0)]}
    for values, mark in [
        ((11.5, 12.0, 13.0), " |  |"),
        ((20.0, 21.0, 22.0), "| WORSE |"),
        ((5.0, 5.5, 6.0), "| better |"),
    ]:
        paths = []
        for name, figures in (("before", before["figures"]), ("after", [made(*values)])):
            paths.append(tmp_path / f"{name}.json")
            paths[-1].write_text(json.dumps({**before, "figures": figures}))
        assert mark in run("compare.py", *paths)


def made(low: float, median: float, high: float) -> dict[str, Any]:
    """A figure of which less is better."""
    found: dict[str, Any] = {"benchmark": "b", "name": "f", "unit": "us", "better": "less"}
    return found | {"values": [low, median, high], "n": 3, "min": low, "median": median, "max": high}


def test_the_benchmark_of_ssh_hosts_works() -> None:
    """Not among the quick ones: it needs a real sshd."""
    for who, delay_ms in (("ssh", 2), ("session", 0)):
        figures = json.loads(run("ssh_hosts.py", json.dumps({"who": who, "n": 20, "slots": 4, "delay_ms": delay_ms})))
        assert figures[0]["value"] > 0


def test_the_benchmark_of_docker_containers_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is this: it needs a Docker Engine."""
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(docker_rig.engine())
        except docker_rig.NoEngine as e:
            pytest.skip(str(e))
        monkeypatch.setenv("ANYBATCH_TEST_DOCKER", found.url)
        small: list[dict[str, Any]] = [{"n": 4}, {"n": 4, "size": 20}, {"n": 4, "who": "bare", "at_once": [2]}]
        for parameters in small:
            figures = json.loads(run("docker_containers.py", json.dumps(parameters)))
            assert figures[0]["value"] > 0
