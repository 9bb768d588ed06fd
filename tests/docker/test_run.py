"""`anybatch run` with images: Docker is picked where no environment is named, and what to do where it is not there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import anybatch
import pytest
from docker_rig import IMAGE, TestEngine

pytestmark = pytest.mark.timeout(180)
ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`anybatch run` in a folder of its own, against the engine of this url."""

    def run(engine: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DOCKER_HOST": engine, "XDG_STATE_HOME": str(tmp_path / "state")}
        words = [sys.executable, "-m", "anybatch", "run", *arguments]
        return subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def test_the_example_counts_what_is_there(run: Run, docker: TestEngine) -> None:
    docker.make_image("busybox:1.36")
    done = run(docker.url, str(ROOT / "examples/words.toml"))
    assert done.returncode == 0, done
    text = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    words = re.findall(r"[a-z]+", text.lower())
    counts = Counter(word for word in words if len(word) > 3)
    best = sorted(counts, key=lambda word: (-counts[word], word))[:4]
    expected = [f"{len(words)} words", *(f"{counts[word]} {word}" for word in best)]
    assert re.findall(r"^    \| (.*)$", done.stdout, re.MULTILINE) == expected
    docker.ask("DELETE", "/volumes/anybatch-words?force=1")


def test_one_command_in_an_image_and_an_images_own(run: Run, docker: TestEngine) -> None:
    done = run(docker.url, "--image", IMAGE, "-a", "3", "--", "sh", "-c", "exit $AWS_BATCH_JOB_ARRAY_INDEX")
    assert done.returncode == 1
    assert "sh" in done.stdout
    assert "1/3" in done.stdout
    done = run(docker.url, "--image", IMAGE)
    assert done.returncode == 0, done
    assert "| the image itself" in done.stdout


def test_images_and_processes_in_one_file(run: Run, docker: TestEngine, tmp_path: Path) -> None:
    text = f"""
        jobs.first.command = ["sh", "-c", "echo $HOME $0 >here"]
        jobs.second = {{ image = "{IMAGE}", command = ["cat", "/etc/group"], depends_on = ["first"] }}
    """
    (tmp_path / "both.toml").write_text(text)
    done = run(docker.url, "both.toml")
    assert done.returncode == 0, done
    assert "| root:x:0:" in done.stdout
    assert (tmp_path / "here").exists()
    refused = run(docker.url, "-j", "2", "both.toml")
    assert refused.returncode == 2
    assert "there are 2 environments (local, docker)" in refused.stderr


@pytest.mark.parametrize("mixed", [False, True])
def test_no_engine_is_an_error_that_says_what_to_do(run: Run, tmp_path: Path, mixed: bool) -> None:
    text = 'jobs.hello = { image = "busybox:1.36", command = ["echo", "hello"] }\n'
    text += 'jobs.other.command = ["sleep", "600"]\n' if mixed else ""
    (tmp_path / "hello.toml").write_text(text)
    done = run("unix:///no/docker.sock", "hello.toml")
    assert done.returncode == 3
    assert "no Docker Engine can be reached: unix:///no/docker.sock: No such file or directory" in done.stderr
    assert "DOCKER_HOST names another engine" in done.stderr
    assert "--ignore-image" in done.stderr
    if not mixed:
        done = run("unix:///no/docker.sock", "--ignore-image", "hello.toml")
        assert done.returncode == 0, done
        assert "| hello" in done.stdout


def test_a_run_that_was_interrupted_goes_on_in_containers(run: Run, docker: TestEngine, tmp_path: Path) -> None:
    """The journal of the first call has the environment, with its kind."""
    (tmp_path / "file.toml").write_text(f'jobs.hello = {{ image = "{IMAGE}", command = ["echo", "hello"] }}\n')
    assert run("unix:///no/docker.sock", "--journal", "batch.db", "file.toml").returncode == 3
    done = run(docker.url, "--journal", "batch.db")
    assert done.returncode == 0, done
    assert "| hello" in done.stdout


def test_where_no_image_goes_is_found_before_anything_runs(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file.toml").write_text(
        'environments.here.backend = "process"\njobs.hello = { image = "busybox", command = ["true"] }\n'
    )
    done = run("unix:///no/docker.sock", "file.toml")
    assert done.returncode == 2
    assert "jobs.hello.image" in done.stderr
    refused = run("unix:///no/docker.sock", "--ignore-image", "file.toml")
    assert refused.returncode == 2
    assert "options.ignore_image = true" in refused.stderr


def test_host_paths_are_taken_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file.toml").write_text("""
        [jobs.a]
        image = "busybox"
        [jobs.a.container]
        volumes = [{ name = "a", host_path = "data" }, { name = "b", host = { sourcePath = "../b" } }, { name = "c" }]
        mount_points = [{ source_volume = "a", container_path = "/a" }]
    """)
    (job,) = anybatch.load_config(tmp_path / "file.toml").jobs
    first, second, third = job.arguments["container"]["volumes"]
    assert first["host_path"] == str(tmp_path / "data")
    assert second["host"]["sourcePath"] == str(tmp_path.parent / "b")
    assert third == {"name": "c"}
