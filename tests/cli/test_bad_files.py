"""Every mistake in a file is told at once, each with its line and key, and nothing is begun."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import anybatch
import pytest
from anybatch import ConfigError
from anybatch.cli.plan import read_plan
from anybatch.kernel.config_read import DEFINITION_KEYS, ENVIRONMENT_KEYS, JOB_KEYS, QUEUE_KEYS

if TYPE_CHECKING:
    from .conftest import Cli

# A comment `#! key | words` says which mistake its line has, `;;` parts several; `#! -` begins one without a key.
CASES = {
    "unknown keys": """
        [runs]                          #! runs | unknown key; did you mean run? (allowed: run, kernel, sinks,
        [run]
        names = "x"                     #! run.names | did you mean name? (allowed: name)
        [kernel]
        retain_event = 2                #! kernel.retain_event | did you mean retain_events?
        [kernel.quotas]
        array_size = 20                 #! kernel.quotas.array_size | did you mean array_size_max?
        [environments.e]
        backend = "process"
        max_vcpu = 2                    #! environments.e.max_vcpu | did you mean max_vcpus?
        options.memroy = 2              #! environments.e.options.memroy | did you mean memory?
        options.gpus = 3                #! environments.e.options.gpus | Expected `array`
        [queues.q]                      #! queues.q.compute_environments | it has to be given
        priority = 1
        environments = ["e"]            #! queues.q.environments | did you mean compute_environments?
        [definitions.d]
        cmd = ["a"]                     #! definitions.d.cmd | unknown key
        array_size = 2                  #! definitions.d.array_size | unknown key
        [jobs.squares]
        command = ["a"]
        array_sise = 2                  #! jobs.squares.array_sise | did you mean array_size? (allowed: queue,
        depends_on = [{ jobs = "b" }] #! jobs.squares.depends_on[0].jobs | job? ;; jobs.squares.depends_on[0] | an entry
        """,
    "what comes later": """
        [frontends.aws]                 #! frontends | unknown key (allowed: run, kernel,
        [jobs.a]
        command = ["a"]
        """,
    "environments and queues": """
        [environments.e]                #! environments.e.backend | it has to be given
        [environments.f]
        backend = "proces"              #! environments.f.backend | a backend is one of
        [environments.g]
        backend = "process"
        max_vcpus = 0                   #! environments.g.max_vcpus | max_vcpus is above 0
        min_vcpus = -1                  #! environments.g.min_vcpus | a number of vCPUs
        state = "ON"                    #! environments.g.state | ENABLED or DISABLED
        tags = { a = 1 }                #! environments.g.tags.a | values are text
        [environments."b c"]            #! environments."b c".name | 128 letters
        backend = "process"
        [queues.q]
        priority = "high"               #! queues.q.priority | it is a whole number
        compute_environments = [
            "e",
            "h",                        #! queues.q.compute_environments[1] | name environments of this configuration
            "f",
            "b c",
            "zzz",                      #! queues.q.compute_environments[4] | that are there (e, f, g, b c)
        ]
        retain_failed = 0               #! queues.q.retain_failed | a number of seconds above 0
        [queues.r]                      #! queues.r.priority | it has to be given
        compute_environments = []       #! queues.r.compute_environments | 1 to 3 compute environments
        [queues.s]
        priority = -1                   #! queues.s.priority | 0 to
        compute_environments = ["g", "g"]   #! queues.s.compute_environments | each environment is named once
        [queues.default]
        priority = 1
        compute_environments = "g"      #! queues.default.compute_environments | it is a list of names
        [queues.off]
        priority = 1
        compute_environments = ["g"]
        state = "DISABLED"
        [jobs.a]
        command = ["a"]
        queue = "Q"                     #! jobs.a.queue | no queue 'Q' (the queues are q, r, s, default, off)
        [jobs.b]
        command = ["a"]
        queue = "off"                   #! jobs.b.queue | it is DISABLED and takes no jobs
        [jobs.c]
        command = ["a"]
        queue = 3                       #! jobs.c.queue | 3 is not allowed; it is a queue's name
        [jobs.d]
        command = ["a"]
        """,
    "no queue is the one": """
        [environments.e]
        backend = "process"
        [queues.q]
        priority = 1
        compute_environments = ["e"]
        [queues.r]
        priority = 1
        compute_environments = ["e"]
        [jobs.a]                        #! jobs.a.queue | there are several (the queues are q, r)
        command = ["a"]
        """,
    "tables of another form": """
        jobs = [["a"]]                  #! jobs | write one table for each: [jobs.NAME]
        run = 3                         #! run | 3 is not allowed; this is a table: [run]
        definitions.d = "x"             #! definitions.d | 'x' is not allowed; this is a table
        """,
    "an array of jobs": """
        [[jobs]]                        #! jobs | [[jobs]] is not allowed; write one table for each: [jobs.NAME]
        name = "a"
        """,
    "no jobs": """                      #! jobs | the file has no jobs
        [definitions.d]
        command = ["a"]
        """,
    "settings": """
        [run]
        name = 3                        #! run.name | it is text
        [kernel]
        retain_events = 0               #! kernel.retain_events | it is a number of seconds above 0
        retain_events_bytes = "1GB"     #! kernel.retain_events_bytes | it is a whole number
        quotas.tags_max = 0             #! kernel.quotas.tags_max | a quota is 1 or more
        quotas.attempts_max = "3"       #! kernel.quotas.attempts_max | it is a whole number
        [jobs.a]
        command = ["a"]
        """,
    "types": """
        [jobs.a]
        command = "echo hi"             #! jobs.a.command | a command is a list of texts
        array_size = "3"                #! jobs.a.array_size | it is a whole number
        environment = ["A=1"]           #! jobs.a.environment | it maps names to texts
        parameters.p = 1                #! jobs.a.parameters.p | values are text
        vcpus = "many"                  #! jobs.a.vcpus | it is a number of vCPUs
        memory = 1.5                    #! jobs.a.memory | it is a whole number
        gpus = true                     #! jobs.a.gpus | it is a whole number
        retry = "3"                     #! jobs.a.retry | it is a number of attempts
        timeout = "1h"                  #! jobs.a.timeout | it is a number
        workdir = 7                     #! jobs.a.workdir | it is text
        scratch = 1                     #! jobs.a.scratch | it is True or False
        tags = { owner = 3 }            #! jobs.a.tags.owner | values are text
        scheduling_priority = 1.0       #! jobs.a.scheduling_priority | it is a whole number
        max_running = "2"               #! jobs.a.max_running | it is a whole number
        max_failures = true             #! jobs.a.max_failures | it is a whole number
        checkpoint_exit_codes = 85      #! jobs.a.checkpoint_exit_codes | it is a list of exit codes, such as [85]
        max_checkpoints = "2"           #! jobs.a.max_checkpoints | it is a whole number
        on_max_failures = "stop"        #! jobs.a.on_max_failures | 'cancel' (what runs goes on), or 'terminate'
        depends_on = "b"                #! jobs.a.depends_on | it is a list
        definition = 3                  #! jobs.a.definition | it is a definition's name
        """,
    "indexes": """
        [jobs.a]
        command = ["a"]
        array = [3, 7, 3]               #! jobs.a.array | each index is given once, and 3 is there twice
        max_running = 0                 #! jobs.a.max_running | 1 or more children
        [jobs.b]
        command = ["a"]
        array_size = 3                  #! jobs.b.array_size | array says which children there are
        array = "1-3"
        [jobs.c]
        command = ["a"]
        array = { start = 1, end = 5 }  #! jobs.c.array | a range has start, stop
        [jobs.d]
        command = ["a"]
        array = [0, "1"]                #! jobs.d.array[1] | an index is a whole number
        [jobs.e]
        command = ["a"]
        array = "0-15%4"                #! jobs.e.array | max_running is what Slurm's %N is
        [jobs.f]
        command = ["a"]
        array = [3, 7, 9]
        [jobs.g]
        command = ["a"]
        array_size = 3
        depends_on = [
            { job = "f", type = "N_TO_N" },  #! jobs.g.depends_on[0] | both arrays have the same indexes
            { job = "a", type = "N_TO_N" },
        ]
        """,
    "ranges": """
        [definitions.d]
        command = ["a"]
        retry = 11                      #! definitions.d.retry.attempts | attempts are 1 to 10
        vcpus = -1                      #! definitions.d.vcpus | -1 is not allowed
        timeout = 0                     #! definitions.d.timeout | a number of seconds above 0
        workdir = "out"                 #! definitions.d.workdir | an absolute path
        [jobs.one]
        definition = "d"
        array_size = 1                  #! jobs.one.array_size | an array has 2 to 10000 children
        [jobs.many]
        command = ["a", "b\\u0000"]     #! jobs.many.command[1] | no zero byte
        array_size = 10001              #! jobs.many.array_size | or with --quota array_size_max=N
        retry = { attempts = 2, evaluate_on_exit = [
            { action = "retry" },       #! jobs.many.retry.evaluate_on_exit[0] | at least one of
        ] }
        max_running = 0                 #! jobs.many.max_running | 1 or more children
        scheduling_priority = 10000     #! jobs.many.scheduling_priority | 0 to 9999
        """,
    "inside a retry strategy": """
        [jobs.a]
        command = ["a"]
        [jobs.a.retry]
        attempts = 3
        [[jobs.a.retry.evaluate_on_exit]]
        action = "exit"
        on_exit_code = 1
        [[jobs.a.retry.evaluate_on_exit]]
        action = "stop"                 #! jobs.a.retry.evaluate_on_exit[1].action | 'retry' or 'exit'
        on_reason = "x"
        """,
    "variables": """
        [jobs.a]
        command = ["a"]
        [jobs.a.environment]
        GOOD = "1"
        AWS_BATCH_X = "1"               #! jobs.a.environment.AWS_BATCH_X | reserved
        N = 1                           #! jobs.a.environment.N | write numbers as '1'
        "with.dot" = 2                  #! jobs.a.environment."with.dot" | values are text
        """,
    "names": """
        [jobs."a b"]                    #! jobs."a b".name | a job name is 1 to 128 letters
        command = ["a"]
        [jobs.-x]                       #! jobs.-x.name | the first a letter or digit
        command = ["a"]
        [definitions."d:1"]             #! definitions."d:1".name | 128 letters
        command = ["a"]
        """,
    "nothing to run": """
        [definitions.empty]             #! definitions.empty.command | a definition has a command, a script or an image
        vcpus = 1
        [jobs.a]
        definition = "empty"
        [jobs.b]                        #! jobs.b.command | a job has a command, a script or an image
        """,
    "parameters without a value": """
        [definitions.d]
        command = ["echo", "Ref::what", "Ref::where"]
        parameters.where = "here"
        [jobs.a]                        #! jobs.a.parameters.what | No parameter found for reference what
        definition = "d"
        [jobs.b]
        definition = "d"
        parameters.what = "this"
        """,
    "unknown names": """
        [definitions.square]
        command = ["a"]
        [jobs.a]
        definition = "squares"          #! jobs.a.definition | no definition 'squares'; did you mean square?
        depends_on = [
            "b",
            "bb",                       #! jobs.a.depends_on[1] | no job 'bb'; did you mean b? (the file's jobs are
            { job = "zzz" },            #! jobs.a.depends_on[2] | no job 'zzz' (the file's jobs are a, b
            7,                          #! jobs.a.depends_on[3] | an entry is
        ]
        [jobs.b]
        command = ["a"]
        """,
    "dependencies that do not fit": """
        [jobs.last]
        command = ["a"]
        array_size = 3
        depends_on = [
            { job = "one", type = "N_TO_N" },           #! jobs.last.depends_on[0] | N_TO_N names an array job
            { job = "four", type = "N_TO_N" },          #! jobs.last.depends_on[1] | has 4 children and this job 3
            { job = "one", type = "n_to_n" },           #! jobs.last.depends_on[2].type | a type is AFTER_SUCCESS
            { job = "four", type = "SEQUENTIAL" },      #! jobs.last.depends_on[3].job | names no other job
            { job = "one", on = "end" },                #! jobs.last.depends_on[4].on | it is 'success', 'any'
            { job = "one", on = "any" },                #! jobs.last.depends_on[5].on | on goes with N_TO_N and
            { type = "SEQUENTIAL", on = "failure" },    #! jobs.last.depends_on[6].on | a SEQUENTIAL goes on after
        ]
        [jobs.one]
        command = ["a"]
        depends_on = [
            { type = "SEQUENTIAL" },                    #! jobs.one.depends_on[0] | only an array job can be SEQUENTIAL
            { job = "four", type = "N_TO_N" },          #! jobs.one.depends_on[1] | only an array job can depend N_TO_N
        ]
        [jobs.four]
        command = ["a"]
        array_size = 4
        """,
    "one mistake is one message": """
        [jobs.first]
        command = ["a"]
        array_size = 0                                  #! jobs.first.array_size | 2 to 10000
        depends_on = [{ type = "SEQUENTIAL" }]
        [jobs.second]
        command = ["a"]
        array_size = 5
        depends_on = [{ job = "first", type = "N_TO_N" }]
        [jobs.third]
        definition = "d"
        [definitions.d]
        command = 3                                     #! definitions.d.command | a command is a list
        """,
    "a circle": """
        [jobs.a]
        command = ["a"]
        depends_on = ["b"]
        [jobs.b]
        command = ["a"]
        depends_on = ["d", "c"]
        [jobs.c]
        command = ["a"]
        depends_on = ["a"]                              #! jobs.c.depends_on[0] | in a circle: a -> b -> c -> a
        [jobs.d]
        command = ["a"]
        [jobs.e]
        command = ["a"]
        depends_on = ["c", "e"]                         #! jobs.e.depends_on[1] | a job cannot depend on itself
        """,
    "too many dependencies": """
        [kernel.quotas]
        dependencies_max = 1
        [jobs.a]
        command = ["a"]
        depends_on = ["b", "c"]                         #! jobs.a.depends_on | 2 entries; at most 1
        [jobs.b]
        command = ["a"]
        [jobs.c]
        command = ["a"]
        """,
    "what can never run": """
        [environments.e]
        backend = "process"
        max_vcpus = 2
        options = { memory = 1024, gpus = [0] }
        [environments.f]
        backend = "process"
        max_vcpus = 1
        options = { memory = 2048 }
        [jobs.a]
        command = ["a"]
        vcpus = 3                                       #! jobs.a.vcpus | never: needs 3 vCPUs and 2 GPUs
        memory = "1MiB"
        gpus = 2
        [definitions.d]
        command = ["a"]
        memory = "2049MiB"
        [jobs.b]                                        #! jobs.b.memory | environment 'f' has 2048 MiB
        command = ["a"]
        definition = "d"
        [jobs.c]
        memory = 1025                                   #! jobs.c.memory | 1024 MiB; never: needs 2 vCPUs
        vcpus = 2
        command = ["a"]
        [jobs.d]
        memory = 1025
        command = ["a"]
        """,
    "scripts": """
        [jobs.a]
        script = "missing.sh"           #! jobs.a.script | cannot be read: No such file or directory (a path is taken
        [jobs.b]
        script = "no-interpreter.sh"    #! jobs.b.script | 'no-interpreter.sh' is not allowed; a script's first line
        [jobs.c]
        script = "echo\\n"                              #! jobs.c.script | a script's first line
        [jobs.d]
        script = 3                                      #! jobs.d.script | a text that begins with '#!'
        """,
    "syntax": """
        [jobs.a]
        command = ["a"
        vcpus = 1                                       #! - | Unclosed array (column 9)
        """,
    "a key twice": """
        [jobs.a]
        command = ["a"]
        command = ["b"]                                 #! - | Cannot overwrite a value
        """,
}  # fmt: skip


def expected(text: str) -> list[tuple[int, str, str]]:
    """(line, key, words) of each mistake, as the text itself says."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        for mistake in filter(None, line.partition("#!")[2].split(";;")):
            key, _, words = mistake.strip().partition(" | ")
            found.append((number, key.removeprefix("-") if key == "-" else key, words.strip()))
    return found


def bare(text: str) -> str:
    """The text without what it says of its mistakes (the lines stay)."""
    return re.sub(r"\s*#! \S.*", "", text)


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in CASES.items()])
def test_each_mistake_has_its_line_and_key(text: str, tmp_path: Path) -> None:
    (tmp_path / "no-interpreter.sh").write_text("echo\n")
    file = tmp_path / "bad.toml"
    file.write_text(bare(text))
    with pytest.raises(ConfigError) as caught:
        read_plan(str(file), str(tmp_path))
    mistakes = [(mistake.line, mistake.key, mistake.message) for mistake in caught.value.mistakes]
    wanted = expected(text)
    assert sorted((line or 0, key) for line, key, _ in mistakes) == sorted((line, key) for line, key, _ in wanted), (
        f"{mistakes}"
    )
    for line, key, words in wanted:
        assert any(words in message for found, name, message in mistakes if (found, name) == (line, key)), mistakes


def test_mistakes_are_told_and_nothing_is_begun(cli: Cli) -> None:
    cli.write("bad.toml", bare(CASES["unknown keys"]))
    done = cli("run", "bad.toml").expect(2)
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == len(expected(CASES["unknown keys"]))
    message = "unknown key; did you mean array_size? (allowed: queue, definition, array_size, array, depends_on,"
    assert lines[11].startswith(f"bad.toml:22: jobs.squares.array_sise: {message}")
    assert not cli.state.exists()


def test_mistakes_for_programs(cli: Cli) -> None:
    cli.write("bad.toml", "[jobs.a]\ncommand = 'x'\n")
    document = cli("run", "--json", "bad.toml").expect(2).json
    assert (document["outcome"], document["exit_status"], document["jobs"]) == ("refused", 2, [])
    (mistake,) = document["mistakes"]
    assert (mistake["file"], mistake["line"], mistake["key"]) == ("bad.toml", 2, "jobs.a.command")


def test_files_that_cannot_be_read(cli: Cli) -> None:
    assert "missing.toml: cannot be read: No such file" in cli("run", "missing.toml").expect(2).err
    assert "cannot be read: Is a directory" in cli("run", ".").expect(2).err
    (cli.folder / "binary.toml").write_bytes(b"a = 1\n\nb = '\xff'\n")
    assert "binary.toml:3: the file is no text in UTF-8" in cli("run", "binary.toml").expect(2).err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to run"),
        (["--"], "there is no command after it"),
        (["a.toml", "--", "echo"], "not both"),
        (["-a", "3", "a.toml"], "-a: it is for a command"),
        (["-a", "0", "--", "echo"], "-a: 0 is not allowed"),
        (["-a", "x", "--", "echo"], "-a: 'x' is not allowed; it is a whole number"),
        (["-a", "10001", "--", "echo"], "-a: 10001 is not allowed; an array has 2 to 10000 children"),
        (["--quota", "array_size_max=5", "-a", "6", "--", "echo"], "an array has 2 to 5 children"),
        (["--quota", "array_size=5", "--", "echo"], "no quota 'array_size'; did you mean array_size_max?"),
        (["--quota", "tags_max", "--", "echo"], "it is NAME=N"),
        (["--timeout", "0", "--", "echo"], "--timeout: 0.0 is not allowed"),
        (["--timeout", "inf", "--", "echo"], "--timeout: inf is not allowed"),
        (["--retry", "11", "--", "echo"], "--retry: 11 is not allowed; attempts are 1 to 10"),
        (["--memory", "lots", "--", "echo"], "--memory: 'lots' is not allowed"),
        (["--vcpus", "3", "-j", "2", "--", "echo"], "--vcpus: never: needs 3 vCPUs; environment 'local' has 2 vCPUs"),
        (["--max-vcpus", "none", "--", "echo"], "--max-vcpus: 'none' is not allowed"),
        (["--name", "a b", "--", "echo"], "--name: 'a b' is not allowed"),
        (["--journal", "missing.db"], "there is neither a file nor a command"),
        (["-a", "3", "echo", "hi"], "unrecognized arguments: hi"),
        (["--", ""], "COMMAND: '' is not allowed"),
    ],
)
def test_bad_use(arguments: list[str], words: str, cli: Cli) -> None:
    done = cli("run", *arguments).expect(2)
    assert words in done.err
    assert done.out == ""
    assert not cli.state.exists()


def test_what_is_no_text(cli: Cli) -> None:
    done = cli("run", "--", "echo", os.fsdecode(b"a\xff")).expect(2)
    assert done.err == "anybatch run: COMMAND: 'a\\udcff' is not allowed; names and words are text in UTF-8\n"
    folder = cli.folder / os.fsdecode(b"b\xff")
    folder.mkdir()
    assert "this folder: " in cli("run", "--", "true", cwd=folder).expect(2).err
    cli.environment["ODD"] = os.fsdecode(b"c\xff")
    done = cli("run", "--", "sh", "-c", "test -z $ODD").expect(0)
    assert "left out of the environment, because they are no UTF-8: ODD" in done.err


def test_a_command_goes_with_run_only(cli: Cli) -> None:
    assert "only run and submit take a command" in cli("plugins", "--", "x").expect(2).err


def test_the_keys_of_a_file_are_the_kernels() -> None:
    of_a_job = set(inspect.signature(anybatch.Kernel.submit_job).parameters)
    assert set(JOB_KEYS) == of_a_job - {"self", "name", "client_token", "job_id"}
    of_a_definition = set(inspect.signature(anybatch.Kernel.register_job_definition).parameters)
    assert set(DEFINITION_KEYS) == of_a_definition - {"self", "name", "exist_ok"}
    of_a_queue = set(inspect.signature(anybatch.Kernel.create_job_queue).parameters)
    assert set(QUEUE_KEYS) == of_a_queue - {"self", "name", "exist_ok"}
    of_an_environment = set(inspect.signature(anybatch.Kernel.create_compute_environment).parameters)
    assert set(ENVIRONMENT_KEYS) == of_an_environment - {"self", "name", "exist_ok"}


def test_a_good_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "s.sh").write_text("#!/bin/sh\n")
    file = tmp_path / "good.toml"
    file.write_text(
        """
        jobs.z = { command = ["echo"], depends_on = ["a", "m"] }
        [kernel.quotas]
        array_size_max = 20_000
        [jobs.m]
        script = "s.sh"
        depends_on = [{ job = "a", type = "N_TO_N" }, { type = "SEQUENTIAL" }]
        array_size = 10_001
        [jobs.a]
        definition = "d"
        array_size = 10_001
        [definitions.d]
        command = ["Ref::x"]
        parameters.x = "y"
        """
    )
    plan = read_plan(str(file), "/here", max_vcpus=3, quotas={"tags_max": 7})
    config = plan.config
    assert [job.name for job in config.jobs] == ["z", "m", "a"]
    assert [job.name for job in config.ordered()] == ["a", "m", "z"]
    assert config.jobs[1].arguments["script"] == "#!/bin/sh\n"
    assert (config.name, config.source, plan.folder) == ("good", str(file), "/here")
    assert config.environments == {"local": {"backend": "process", "max_vcpus": 3}}
    assert config.kernel == {"quotas": {"array_size_max": 20_000, "tags_max": 7}}
