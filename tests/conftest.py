"""What holds for all tests: hypothesis profiles, and which tests may be skipped in CI."""

from __future__ import annotations

import os
import signal

import hypothesis
import pytest
from allowed_skips import ALLOWED

IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")

# A failure prints the blob that repeats it (@reproduce_failure), and the run's header names the profile.
hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=5_000)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci" if IN_CI else "default")
hypothesis.settings.load_profile(PROFILE)


def pytest_configure() -> None:
    # A shell that runs something in the background has it ignore Ctrl-C, and so would all that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    return f"hypothesis profile: {PROFILE}; skips {'fail unless excused' if IN_CI else 'are allowed'}"


def skips(config: pytest.Config) -> list[tuple[str, str]]:
    """(test or file, reason) of each skip so far."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return []
    found = []
    for report in reporter.stats.get("skipped", []):
        longrepr = report.longrepr
        text = str(longrepr[2] if isinstance(longrepr, tuple) else longrepr)
        found.append((report.nodeid, text.removeprefix("Skipped: ")))
    return found


def unexcused(config: pytest.Config) -> list[tuple[str, str]]:
    """The skips that fail this run."""
    return [(test, reason) for test, reason in skips(config) if reason not in ALLOWED] if IN_CI else []


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == pytest.ExitCode.OK and unexcused(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not IN_CI:
        return
    failing = unexcused(config)
    excused = [skip for skip in skips(config) if skip not in failing]
    for title, found in (("skips excused by tests/allowed_skips.py", excused), ("SKIPS THAT FAIL CI", failing)):
        if found:
            terminalreporter.section(title)
            for test, reason in found:
                terminalreporter.line(f"{test}: {reason}")
