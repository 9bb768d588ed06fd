"""The kernel's and the agent's time: it goes on with the monotonic clock, whatever becomes of the machine's."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from anybatch.backends.agent import Agent
from anybatch.kernel.clock import SystemClock

HOUR_NS = 3_600_000_000_000


class Machine:
    """A machine whose clocks can be set, and which can be suspended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall_ns, self.monotonic_ns = 1_800_000_000 * 1_000_000_000, 5_000_000_000
        monkeypatch.setattr(time, "time_ns", lambda: self.wall_ns)
        monkeypatch.setattr(time, "time", lambda: self.wall_ns / 1e9)
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.monotonic_ns)
        monkeypatch.setattr(time, "monotonic", lambda: self.monotonic_ns / 1e9)

    def run(self, ns: int) -> None:
        self.wall_ns += ns
        self.monotonic_ns += ns

    def suspend(self, ns: int) -> None:
        """As Linux has it: the monotonic clock stands still meanwhile."""
        self.wall_ns += ns


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_a_suspended_machine_costs_no_attempt_its_time(machine: Machine) -> None:
    clock = SystemClock()
    agent_now_ms = agent_clock()
    began, agent_began = clock.now_ms(), agent_now_ms()
    machine.run(HOUR_NS)
    machine.suspend(8 * HOUR_NS)
    machine.run(HOUR_NS)
    assert clock.now_ms() - began == 2 * 3_600_000
    assert agent_now_ms() - agent_began == 2 * 3_600_000
    assert SystemClock().now_ms() - clock.now_ms() == 8 * 3_600_000  # what a kernel that starts now says


@pytest.mark.parametrize("step_ns", [HOUR_NS, -HOUR_NS])
def test_a_clock_that_is_set_changes_no_timeout(machine: Machine, step_ns: int) -> None:
    clock = SystemClock()
    agent_now_ms = agent_clock()
    before = clock.now_ms(), agent_now_ms()
    machine.wall_ns += step_ns
    assert (clock.now_ms(), agent_now_ms()) == before


def test_a_kernel_s_time_begins_no_earlier_than_its_journal_ended(machine: Machine) -> None:
    floor_ms = machine.wall_ns // 1_000_000 + 5_000
    assert SystemClock(floor_ms).now_ms() == floor_ms


def agent_clock() -> Callable[[], int]:
    """The agent's idea of the time, of one that starts now."""
    started: Any = SimpleNamespace(anchor_ns=time.time_ns() - time.monotonic_ns())
    return lambda: Agent.now_ms(started)
