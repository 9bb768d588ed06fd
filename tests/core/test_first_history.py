"""Snapshots of the first days: the start of an earlier attempt took 8 bytes, and told the end of one never run."""

from __future__ import annotations

from array import array

import pytest
from anybatch.kernel.core import children, snapshot
from anybatch.kernel.core.children import History
from anybatch.kernel.core.snapshot import decode, encode
from core_rig import Rig

LONG_MS = children.DURATION_MAX + 5


def as_first_kept(history: History) -> list[memoryview]:
    starts, durations = array("q"), array("I")
    for row in range(len(history.prev)):
        begin, end = history.times(row)
        starts.append(begin or -end)
        durations.append(min(end - begin, children.DURATION_MAX) if begin else 0)
    columns = (history.head, history.prev, starts, durations, history.host, history.code, history.reason)
    return [memoryview(column) for column in columns]


def test_earlier_attempts_of_a_first_snapshot_are_read_as_they_were(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    job = rig.submit(size=3, attempts=3)
    for ms in (7, LONG_MS):  # child 0 is lost before it runs, 1 fails fast and then after 49 days, 2 goes on running
        rig.place()
        rig.lose(job, 0)
        rig.start(job, 1)
        rig.advance(ms)
        rig.exit(job, 1, code=3)
    expected = [list(rig.job(job).children.past(index)) for index in range(3)]
    assert [len(attempts) for attempts in expected[:2]] == [2, 2]
    assert expected[0][0].started_ms == 0 < expected[0][0].stopped_ms
    assert expected[1][1].stopped_ms - expected[1][1].started_ms == LONG_MS

    monkeypatch.setattr(snapshot, "_history", as_first_kept)
    state = decode(encode(rig.state), rig.quotas)

    assert [list(state.jobs[job].children.past(index)) for index in range(3)] == expected
