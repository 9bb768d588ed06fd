"""Arrays with indexes of their own (beyond AWS): places inside, indexes outside. Decision 0044."""

from __future__ import annotations

import tracemalloc
from array import array
from collections.abc import Sequence

import pytest
from anybatch.kernel.core import events as ev
from anybatch.kernel.core import inputs as ask
from anybatch.kernel.core.errors import Conflict, InvalidValue, NotFound, QuotaExceeded
from anybatch.kernel.core.explain import explain
from anybatch.kernel.core.indexes import Indexes, in_text, in_words, keep, kept, made_of, place_of, shown
from anybatch.kernel.core.machine import handle
from anybatch.kernel.core.model import JobSpec, Overrides, Quotas
from anybatch.kernel.core.state import JobRow
from core_rig import SEQUENTIAL, Rig, after, as_kept, job_id, n_to_n, ready_rig
from hypothesis import given
from hypothesis import strategies as st

ODD = array("I", [3, 7, 9])


def submit(rig: Rig, indexes: Indexes, *depends_on: ask.DependencyRequest, name: str = "job") -> int:
    """An array with these indexes."""
    return rig.submit(name, *depends_on, size=len(indexes), indexes=indexes)


# -- the indexes themselves ---------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 999_999_999), min_size=1, max_size=50) | st.sets(st.integers(0, 9), min_size=1))
def test_a_child_has_one_place_and_one_index(chosen: set[int]) -> None:
    """Whatever indexes: there and back, through the journal, in words and as a text."""
    listed = sorted(chosen)
    indexes = made_of(listed)
    assert list(indexes) == listed
    assert [place_of(indexes, len(listed), index) for index in listed] == list(range(len(listed)))
    assert {place_of(indexes, len(listed), index) for index in range(12) if index not in chosen} <= {None}
    assert kept(keep(indexes)) == indexes
    assert list(shown(indexes, range(1, len(listed)))) == listed[1:]
    assert list(shown(indexes, [len(listed) - 1, 0])) == [listed[-1], listed[0]]
    assert in_words(indexes, len(listed)).startswith(str(listed[0]))
    assert spelled_out(in_text(indexes)) == listed


def spelled_out(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        found += range(int(first), int(last or first) + 1, int(step or 1))
    return found


@pytest.mark.parametrize(
    ("listed", "made"),
    [
        ([7], range(7, 8)),
        ([3, 9], range(3, 10, 6)),
        ([10, 15, 20], range(10, 21, 5)),
        ([3, 7, 9], ODD),
        ([0, 1, 2, 9], array("I", [0, 1, 2, 9])),
    ],
)
def test_evenly_spaced_ones_are_a_range(listed: list[int], made: Indexes) -> None:
    assert made_of(listed) == made


@pytest.mark.parametrize(
    ("indexes", "size", "words"),
    [
        (None, 5, "0 to 4"),
        (range(10, 100, 5), 18, "10 to 95 in steps of 5"),
        (range(10, 30), 20, "10 to 29"),
        (ODD, 3, "3, 7, 9"),
        (array("I", [0, *range(5, 15)]), 11, "0, 5, 6, 7, 8, 9, 10, ..., 14 (11 in all)"),
    ],
)
def test_indexes_in_words(indexes: Indexes | None, size: int, words: str) -> None:
    assert in_words(indexes, size) == words


@pytest.mark.parametrize(("indexes", "bytes_each"), [(range(5, 2_000_005, 2), 0), (None, 4)], ids=["range", "list"])
def test_a_range_costs_nothing_for_each_child_and_a_list_four_bytes(indexes: Indexes | None, bytes_each: int) -> None:
    """Beside the columns that every array has: what is kept of a million indexes."""
    size = 1_000_000
    data = keep(array("I", range(0, 3 * size, 3)[:-1]) if indexes is None else indexes)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    row = kept(data)
    after_it, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert row is not None
    assert after_it - before < bytes_each * size * 1.2 + 1000


# -- in the core: places ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indexes", [range(10, 25, 5), ODD, range(7, 8)])
def test_events_name_places_and_the_submit_the_indexes(rig: Rig, indexes: Indexes) -> None:
    job = submit(rig, indexes)
    size = len(indexes)
    (submitted,) = [event for event in as_kept(rig.taken[-1].step.events) if isinstance(event, ev.JobSubmitted)]
    assert (submitted.size, kept(submitted.indexes)) == (size, indexes)
    step = rig.place()
    assert [event.each() for event in step.events if isinstance(event, ev.AttemptsPlaced)] == [range(size)]
    rig.exit(job, *range(size))
    assert rig.status(job) == "SUCCEEDED"


def test_a_childs_id_has_its_index(rig: Rig) -> None:
    job = submit(rig, ODD)
    rig.cancel(rig.child(job, 7))
    assert rig.statuses(job) == "R-R"
    with pytest.raises(NotFound, match=f"child '{rig.id(job)}:8' does not exist; its indexes are 3, 7, 9"):
        rig.cancel(rig.child(job, 8))
    with pytest.raises(NotFound, match="its indexes are 3, 7, 9"):
        rig.cancel(rig.child(job, 0))
    plain = rig.submit("plain", size=3)
    with pytest.raises(NotFound, match="its indexes are 0 to 2"):
        rig.cancel(rig.child(plain, 3))


def test_a_job_that_depends_on_a_child_names_its_index(rig: Rig) -> None:
    job = submit(rig, ODD)
    last = rig.submit("last", after(rig.child(job, 9)))
    (dependency,) = rig.job(last).depends_on
    assert (dependency.index, dependency.child) == (2, 9)
    (reason,) = explain(rig.state, rig.job(last), None, rig.now_ms)
    assert reason.text == f"waits for child 9 of job 'job' ({rig.id(job)}), which is RUNNABLE"
    rig.place()
    rig.exit(job, 2, code=1)
    assert rig.reason(last) == "Dependent Job failed"
    (_, told) = explain(rig.state, rig.job(last), None, rig.now_ms)
    assert told.text == f"it depended on child 9 of job 'job' ({rig.id(job)}), which is FAILED"
    with pytest.raises(Conflict, match=f"failed by its dependency on {rig.child(job, 9)}, which is still FAILED"):
        rig.rerun(last)
    rig.rerun(rig.child(job, 9), dependents=True)
    assert (rig.statuses(job), rig.statuses(last)) == ("ssR", "P")


def test_n_to_n_is_by_index_and_wants_the_same_ones(rig: Rig) -> None:
    first = submit(rig, ODD, name="first")
    second = submit(rig, array("I", ODD), n_to_n("first"), name="second")
    rig.place()
    rig.exit(first, 1)
    assert rig.statuses(second) == "PRP"
    (reason,) = explain(rig.state, rig.job(second), 2, rig.now_ms)
    assert reason.text.startswith("waits for child 9 of job 'first'")
    text = "both arrays have the same indexes; those of 'first' are 3, 7, 9, and this job's "
    with pytest.raises(InvalidValue, match=text + "3, 7, 10"):
        submit(rig, array("I", [3, 7, 10]), n_to_n("first"), name="third")
    with pytest.raises(InvalidValue, match=text + "0 to 2"):
        rig.submit("third", n_to_n("first"), size=3)


def test_a_sequence_goes_by_ascending_index(rig: Rig) -> None:
    job = submit(rig, ODD, SEQUENTIAL)
    assert rig.statuses(job) == "RPP"
    (whole,) = explain(rig.state, rig.job(job), 1, rig.now_ms)
    assert whole.text == "waits for child 3 of its own array, which is RUNNABLE"
    rig.run(job, 0, code=1)
    with pytest.raises(Conflict, match="child 3, after which child 7 runs, is FAILED; run it again too"):
        rig.rerun(rig.child(job, 7))
    rig.rerun(job)
    for place in range(3):
        rig.run(job, place)
    assert rig.status(job) == "SUCCEEDED"


def test_the_whole_names_the_child_that_waits(rig: Rig) -> None:
    job = submit(rig, range(100, 160, 10))
    rig.place()
    (reason,) = explain(rig.state, rig.job(job), None, rig.now_ms)
    assert reason.text.startswith("child 140: needs 1 vCPU")


def test_what_is_forgotten_leaves_its_indexes(rig: Rig) -> None:
    """Events that are older are about them."""
    job = submit(rig, ODD)
    rig.place()
    rig.exit(job, 0, 1, 2)
    (event,) = rig.advance(25 * 3_600_000)
    assert event == ev.JobsForgotten((ev.ForgottenJob(job, job_id(1), "job", "queue", 3, keep(ODD)),))


def test_more_children_than_the_quota_are_refused(rig: Rig) -> None:
    with pytest.raises(QuotaExceeded, match=r"array: 10001 is not allowed; an array has 1 to 10000 children"):
        submit(rig, range(0, 20_002, 2))


def test_the_submit_of_a_range_costs_what_a_plain_array_costs() -> None:
    """Nothing for each child: neither in the step nor in its events."""
    peaks = []
    for indexes in (None, range(10, 10 + 3_000_000, 3)):
        state, now = ready_rig(Quotas(array_size_max=1_000_000)).state, 1_800_000_000_000
        job = ask.SubmitJob(
            job_id=job_id(1), name="large", queue="queue", definition=None, size=1_000_000, indexes=indexes,
            overrides=Overrides(command=("x",)),
        )  # fmt: skip
        tracemalloc.start()
        handle(state, job, now)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.01 + 10_000


def test_rows_without_indexes_of_their_own_look_nothing_up() -> None:
    row = JobRow(1, job_id(1), "job", "queue", JobSpec(), 5, 0)
    places: Sequence[int] = range(1, 3)
    assert row.shown(places) is places
