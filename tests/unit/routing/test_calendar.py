"""Which clusters take requests, and until when."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.routing.calendar import Calendar, Window

windows = st.builds(lambda start, length: Window(start, start + length), st.integers(0, 50), st.integers(1, 10))


@given(st.lists(windows, max_size=4), st.integers(0, 70), st.booleans())
def test_it_is_open_until_the_next_window(found: list[Window], now: int, is_drained: bool) -> None:
    calendar = Calendar({"a": found}, {"a": ""} if is_drained else {})
    until = calendar.open_until("a", now)
    is_closed = is_drained or any(window.start <= now < window.end for window in found)
    assert (until == -inf) == is_closed == (calendar.why_closed("a", now) is not None)
    if not is_closed:
        assert until == min((window.start for window in found if window.start > now), default=inf)
        assert until == inf or calendar.why_closed("a", until) is not None
    assert calendar.open_until("b", now) == inf
    assert calendar.why_closed("b", now) is None


@given(st.lists(windows, max_size=4), st.integers(0, 70))
def test_the_next_maintenance(found: list[Window], now: int) -> None:
    window = Calendar({"a": found}).maintenance("a", now)
    assert (window is None) == all(each.end <= now for each in found)
    if window is not None:
        assert window.start == min(each.start for each in found if each.end > now)


@pytest.mark.parametrize(
    ("drained", "now", "said"),
    [
        ({"a": "new cooling"}, 0, "the cluster 'a' is drained: new cooling"),
        ({"a": ""}, 15, "the cluster 'a' is drained"),
        ({}, 15, "the cluster 'a' is in maintenance: yearly"),
        ({}, 9, None),
        ({}, 20, None),
    ],
)
def test_people_are_told_why(drained: dict[str, str], now: int, said: str | None) -> None:
    assert Calendar({"a": [Window(10, 20, "yearly")]}, drained).why_closed("a", now) == said
