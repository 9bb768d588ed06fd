"""Every event and every input has its place in the tables that say what it does."""

from __future__ import annotations

from typing import get_args

from anybatch.kernel.core import machine
from anybatch.kernel.core.events import AnyEvent
from anybatch.kernel.core.evolve import CHANGES
from anybatch.kernel.core.inputs import Input, Report, Request


def test_every_event_changes_the_state_in_some_way() -> None:
    assert set(get_args(AnyEvent)) == CHANGES.keys()


def test_every_input_is_decided_by_one_rule() -> None:
    roots = {Input, Request, Report}
    inputs = {one for root in roots for one in root.__subclasses__() if one.__module__ == Input.__module__} - roots
    assert inputs == machine.ANSWERED.keys() | machine.DECISIONS.keys()
    assert not machine.ANSWERED.keys() & machine.DECISIONS.keys()
