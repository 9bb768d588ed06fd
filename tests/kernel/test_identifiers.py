"""Ids are UUIDs of version 4, whatever the random bits, and none comes twice."""

from __future__ import annotations

import uuid

import pytest
from anybatch.kernel.identifiers import POOL_BYTES, UUID_BYTES, RandomIds, uuid_text


@pytest.mark.parametrize("bits", [0, (1 << 128) - 1, 0x0123_4567_89AB_CDEF_0123_4567_89AB_CDEF])
def test_any_bits_make_a_uuid_of_version_4(bits: int) -> None:
    found = uuid.UUID(uuid_text(bits))
    assert (found.version, found.variant) == (4, uuid.RFC_4122)
    assert str(found) == uuid_text(bits)
    kept = ~(0xF000_C000_0000_0000_0000)
    assert found.int & kept == bits & kept


def test_no_job_id_comes_twice_across_what_is_fetched_at_a_time() -> None:
    ids = RandomIds()
    count = 3 * POOL_BYTES // UUID_BYTES + 1
    assert len({ids.job_id() for _ in range(count)}) == count
