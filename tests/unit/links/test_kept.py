"""What was sent and not acknowledged, as plain bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.links.frames import FrameError
from firstkit.links.kept import Kept


def test_what_is_acknowledged_is_let_go_of_by_buffers() -> None:
    kept = Kept()
    kept.add([b"abc", b"defg"])
    kept.add([b"hi"])
    assert (kept.sent, kept.size_bytes) == (9, 9)
    kept.acknowledge(2)
    assert kept.size_bytes == 9
    kept.acknowledge(7)
    assert kept.size_bytes == 2
    kept.acknowledge(7)
    kept.acknowledge(9)
    assert (kept.sent, kept.size_bytes, list(kept.since(9))) == (9, 0, [])


@pytest.mark.parametrize("count", [1, 6, 2**64 - 1])
def test_what_cannot_have_arrived_is_refused(count: int) -> None:
    kept = Kept()
    kept.add([b"abcde"])
    kept.acknowledge(2)
    with pytest.raises(FrameError, match="acknowledged"):
        kept.acknowledge(count)
    assert not kept.can_resume(count)


def test_a_part_of_something_larger_does_not_keep_it_alive() -> None:
    kept = Kept()
    (written,) = kept.add([memoryview(bytes(1000))[10:20]])
    assert written == bytes(10)
    assert isinstance(written, bytes)


@given(
    parts=st.lists(st.binary(min_size=1, max_size=9), max_size=20),
    acknowledged=st.integers(0, 200),
    count=st.integers(0, 200),
)
def test_all_that_follows_is_there_wherever_the_cut_was(parts: list[bytes], acknowledged: int, count: int) -> None:
    kept, whole = Kept(), b"".join(parts)
    kept.add([*parts])
    acknowledged = min(acknowledged, len(whole))
    kept.acknowledge(acknowledged)
    assert len(whole) - acknowledged <= kept.size_bytes < len(whole) - acknowledged + 9
    assert kept.can_resume(count) == (acknowledged <= count <= len(whole))
    if kept.can_resume(count):
        assert b"".join(kept.since(count)) == whole[count:]
