"""The `anybatch` command: a client of the public API, one file per subcommand."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from typing import TextIO

import structlog

from . import actions, check, completion, hosts, jobs, journal, plugins, resources, run, serve, streams, submit, top
from .console import silence
from .runner import ENGINE_FAILED

EXAMPLES = """\
examples:
  anybatch run pipeline.toml            run a file of jobs, and wait for the end
  anybatch run -a 100 -- ./work.sh      run a command 100 times, as an array
  anybatch check pipeline.toml          say what a file would do, without doing it
  anybatch journal backup batch.db b.db a copy of a journal, also while a kernel runs
  anybatch serve                        keep a kernel running, for other processes
  anybatch submit -- ./work.sh          queue a job on it
  anybatch ps                           how jobs stand: of a `serve` or of a `run`, from a second terminal
  anybatch logs -f JOB                  what a job writes
  anybatch explain JOB                  why it waits, or why it failed
  anybatch top                          watch queues, environments and jobs
  anybatch plugins                      what is installed

`anybatch COMMAND --help` tells more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line (default: the process's own) and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = None
    if "--" in words:
        command = words[words.index("--") + 1 :]
        words = words[: words.index("--")]
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        completion.answer(parser)  # does not return
    try:
        options = parser.parse_args(words)
    except SystemExit as e:  # argparse has said why
        return e.code if isinstance(e.code, int) else 2
    if command is not None and options.main not in (run.main, submit.main):
        sys.stderr.write(f"anybatch: only run and submit take a command after --: {' '.join(command)}\n")
        return 2
    options.command = command
    _log_to_stderr()
    try:
        status: int = options.main(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has gone
        silence(1)
        return 141
    except Exception:
        sys.stderr.write(f"{traceback.format_exc()}anybatch: this is a mistake of anybatch itself; please report it\n")
        return ENGINE_FAILED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="anybatch",
        description="A batch engine with AWS Batch's model of jobs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"anybatch {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    run.add_parser(commands)
    check.add_parser(commands)
    journal.add_parser(commands)
    serve.add_parser(commands)
    submit.add_parser(commands)
    jobs.add_parsers(commands)
    streams.add_parsers(commands)
    actions.add_parsers(commands)
    resources.add_parsers(commands)
    top.add_parser(commands)
    hosts.add_parsers(commands)
    plugins.add_parser(commands)
    completion.add_parser(commands)
    return parser


def _version() -> str:
    try:
        return metadata.version("anybatch")
    except metadata.PackageNotFoundError:
        return "(not installed)"


class _Stderr:
    """Standard error as it is when a line is written: a live display puts itself in its place."""

    def msg(self, message: str) -> None:
        stream: TextIO = sys.stderr
        stream.write(f"{message}\n")
        stream.flush()

    debug = info = warning = error = critical = msg


def _log_to_stderr() -> None:
    """Keep the kernel's own log off standard output, and to what somebody should know."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["level", "event"], bool_as_flag=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(30),
        logger_factory=lambda *_: _Stderr(),
        cache_logger_on_first_use=False,
    )
