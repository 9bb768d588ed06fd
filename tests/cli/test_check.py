"""`anybatch check`: what a file would do, told without doing it; and `run` with environments and queues."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conftest import Cli

DOCS = Path(__file__).resolve().parents[2] / "docs"

TWO = """
[environments.small]
backend = "process"
max_vcpus = 1
[environments.large]
backend = "process"
max_vcpus = 4
options = { memory = 4096 }
[queues.first]
priority = 10
compute_environments = ["large"]
[queues.default]
priority = 1
compute_environments = ["small"]
[definitions.where]
command = ["sh", "-c", "echo $AWS_BATCH_JQ_NAME on $AWS_BATCH_CE_NAME $1 >> ran", "-"]
[jobs.a]
definition = "where"
queue = "first"
array_size = 3
[jobs.b]
definition = "where"
depends_on = ["a"]
"""


def test_a_run_in_the_environments_and_queues_of_its_file(cli: Cli) -> None:
    cli.write("two.toml", TWO)
    checked = cli("check", "two.toml").expect(0)
    assert "environments.large: would be created" in checked.out.splitlines()
    assert "a    3 children  first    large        all at once" in checked.out.splitlines()
    assert checked.out.endswith("two.toml: fine\n")
    assert not cli.state.exists()
    assert [path.name for path in cli.folder.iterdir()] == ["two.toml"], "nothing was run"
    cli("run", "--journal", "j.db", "two.toml").expect(0)
    lines = (cli.folder / "ran").read_text().splitlines()
    assert sorted(lines) == ["default on small", *["first on large"] * 3]
    cli.write("two.toml", TWO.replace("max_vcpus = 4", "max_vcpus = 3").replace("priority = 10", "priority = 20"))
    cli("run", "--journal", "j.db", "two.toml").expect(0)
    assert len((cli.folder / "ran").read_text().splitlines()) == 4, (
        "settings may differ; what has ended is not run again"
    )
    cli.write("two.toml", TWO.replace('queue = "first"\n', ""))
    assert "(different: a)" in cli("run", "--journal", "j.db", "two.toml").expect(2).err


def test_one_option_cannot_say_it_for_two_environments(cli: Cli) -> None:
    cli.write("two.toml", TWO)
    done = cli("run", "-j", "2", "two.toml").expect(2)
    why = "there are 2 environments (small, large); each has its own max_vcpus in the file"
    assert done.err == f"anybatch run: --max-vcpus: {why}\n"


def test_what_can_never_run_is_status_1(cli: Cli) -> None:
    cli.write("big.toml", '[jobs.big]\ncommand = ["x"]\nvcpus = 10_000\n[jobs.small]\ncommand = ["x"]\n')
    done = cli("check", "big.toml").expect(1)
    assert done.err.startswith("big.toml:3: jobs.big.vcpus: never: needs 10000 vCPUs; environment 'local' has ")
    assert done.out.endswith("big.toml: a job can never run\n")
    document = cli("check", "--json", "big.toml").expect(1).json
    assert list(document) == [
        "format", "file", "outcome", "exit_status", "mistakes", "created", "updated", "unchanged", "brings", "jobs",
    ]  # fmt: skip
    assert [job["can_run"] for job in document["jobs"]] == [False, True]
    assert document["brings"] == document["created"] == ["environments.local", "queues.default"]


def test_mistakes_are_status_2(cli: Cli) -> None:
    cli.write("bad.toml", '[jobs.a]\ncommand = ["x"]\nvcpus = 10_000\nqueue = "q"\n[jobs.b]\n[que.q]\n')
    done = cli("check", "bad.toml").expect(2)
    assert done.out == ""
    assert [line.split(": ")[:2] for line in done.err.splitlines()] == [
        ["bad.toml:4", "jobs.a.queue"], ["bad.toml:5", "jobs.b.command"], ["bad.toml:6", "que"],
    ]  # fmt: skip
    assert cli("check", "--json", "bad.toml").expect(2).json["outcome"] == "mistakes"
    assert "cannot be read" in cli("check", "nowhere.toml").expect(2).err


def test_a_file_of_a_service_needs_no_jobs(cli: Cli) -> None:
    cli.write("s.toml", '[environments.e]\nbackend = "process"\n')
    assert cli("check", "s.toml").expect(0).out == "environments.e: would be created\ns.toml: fine\n"
    assert "the file has no jobs" in cli("run", "s.toml").expect(2).err


def test_against_a_journal_it_says_what_would_change(cli: Cli) -> None:
    cli.write("two.toml", TWO)
    cli("run", "--journal", "j.db", "two.toml").expect(0)
    before = {path: path.read_bytes() for path in cli.folder.rglob("*") if path.is_file()}
    changed = TWO.replace("max_vcpus = 4", "max_vcpus = 3").replace('"echo', '"echo;').replace("[jobs.b]", "[jobs.c]")
    cli.write("changed.toml", f'{changed}[environments.new]\nbackend = "process"\n')
    document = cli("check", "--json", "--journal", "j.db", "changed.toml").expect(0).json
    assert document["created"] == ["environments.new"]
    assert document["updated"] == ["environments.large", "definitions.where"]
    assert document["unchanged"] == ["environments.small", "queues.first", "queues.default"]
    assert [job["name"] for job in document["jobs"]] == ["a", "c"]
    cli.write("changed.toml", TWO.replace('backend = "process"', 'backend = "null"', 1))
    done = cli("check", "--journal", "j.db", "changed.toml").expect(2)
    assert done.err.startswith("changed.toml:3: environments.small.backend: ")
    assert "its backend cannot be changed ('process' is there, 'null' was asked for)" in done.err
    assert {path: path.read_bytes() for path in before} == before
    done = cli("check", "--journal", "nowhere.db", "two.toml").expect(3)
    assert done.err.endswith("nowhere.db is not there\n")


def test_the_documentations_files_are_fine(cli: Cli) -> None:
    for page, after in (("config", "# The configuration file"), ("run", "## The file\n")):
        text = (DOCS / f"{page}.md").read_text().partition(after)[2]
        block = "\n".join(line for line in text[text.index("    [") :].split("\n\nT")[0].split("\n\nW")[0].splitlines())
        assert "[jobs." in block
        cli.write("page.toml", textwrap.dedent(block))
        cli("check", "page.toml").expect(0)


DOCKER = """
[environments.d]
backend = "docker"
max_vcpus = 4
{options}
[jobs.plain]
image = "alpine:3"
array_size = 9
{job}
"""


def test_docker_environments_are_checked_without_an_engine(cli: Cli) -> None:
    cli.environment["DOCKER_HOST"] = "unix:///nowhere/docker.sock"

    def checked(status: int, options: str = "", job: str = "") -> str:
        cli.write("d.toml", DOCKER.format(options=options, job=job))
        done = cli("check", "d.toml").expect(status)
        return done.out if status == 0 else done.err

    assert "  4 at once, limited by vcpus\n" in checked(0)
    assert "it depends: the memory of docker is known once the environment has started" in checked(
        0, job="memory = 100"
    )
    assert "  1 at once, limited by memory\n" in checked(0, "options.memory = 150", "memory = 100")
    two = 'options.engines = ["unix:///run/a.sock", {{ url = "tcp://lab:2376", name = "b", vcpus = {} }}]'.format
    assert "it depends: the vCPUs of unix:///run/a.sock are known once" in checked(0, two(2), "vcpus = 3")
    assert "3 at once and more: the vCPUs of unix:///run/a.sock are" in checked(0, two(9), "vcpus = 3")
    wrong = checked(2, 'options.refuse = ["privileged"]', "container.privileged = true")
    assert "jobs.plain.container.privileged: True is not allowed; no environment of queue 'default' honours it" in wrong
    wrong = checked(2, 'options.refuse = ["colour"]')
    assert "d.toml:5: environments.d.options.refuse: 'colour' is no container field" in wrong
    wrong = checked(2, 'options.engines = ["http://here"]')
    assert "environments.d.options.engines: 'http://here' is not allowed; an engine is unix:///path or tcp://" in wrong
    cli.write("d.toml", DOCKER.format(options="", job='command = ["x"]').replace('image = "alpine:3"\n', ""))
    err = cli("check", "d.toml").expect(2).err
    assert err == "d.toml:6: jobs.plain.image: the environments of queue 'default' run only what has an image\n"
