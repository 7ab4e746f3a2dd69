"""What a start would take: what is known of the wait, and maintenance that comes before a job could finish."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.config.clusters import Maintenance
from firstkit.reconciler.forecast import Experience
from firstkit.reconciler.starts import By, Start, beyond, start_of
from firstkit.store.jobs import Observation
from unit.reconciler.support import NOW

HOUR_S = 3600.0
KNOWN = Experience(
    loads=tuple(Observation(one, None) for one in (10.0, 12.0, 14.0)),
    waits=tuple(Observation(one, None) for one in (100.0, 200.0)),
)


def window(begins_h: float, ends_h: float) -> Maintenance:
    return Maintenance(start=NOW + timedelta(hours=begins_h), end=NOW + timedelta(hours=ends_h))


def start(known: Experience = KNOWN, said_s: float | None = None, wait_s: float = 150.0, **values: Any) -> Start:
    given: dict[str, Any] = {"walltime_s": HOUR_S, "windows": (), **values}
    return start_of(known, said_s, wait_s, now=NOW, **given)


def test_a_start_waits_and_loads_as_others_did() -> None:
    found = start()
    assert (found.wait_s, found.load_s, found.by) == (150, 12, By.WAITS)
    assert (found.late_wait_s, found.late_load_s) == (pytest.approx(190), pytest.approx(13.6))


def test_where_a_job_has_room_nothing_waits() -> None:
    found = start(wait_s=0.0)
    assert (found.wait_s, found.late_wait_s, found.by) == (0, 0, By.ROOM)


@pytest.mark.parametrize(
    ("said_s", "wait_s", "by", "late_s"),
    [(5.0, 5.0, By.FREE, 5.0), (600.0, 600.0, By.PLAN, 600.0), (20.0, 150.0, By.WAITS, 190.0)],
)
def test_it_says_what_it_is_known_by(said_s: float, wait_s: float, by: By, late_s: float) -> None:
    found = start(said_s=said_s, wait_s=wait_s)
    assert (found.by, found.wait_s, found.late_wait_s) == (by, wait_s, pytest.approx(late_s))


def test_what_nobody_knows_is_not_said() -> None:
    found = start(Experience(), wait_s=0.0)
    assert found == Start(None, None, None, None, By.NOBODY)


def test_no_start_is_promised_that_could_not_finish_before_the_maintenance() -> None:
    before = start(windows=[window(0.5, 2)])
    assert (before.wait_s, before.late_wait_s) == (2 * HOUR_S + 150, pytest.approx(2 * HOUR_S + 190))
    assert before.after == window(0.5, 2)
    assert start(windows=[window(1.1, 2)]).after is None, "it is done by then"
    assert start(windows=[window(-2, -1)]).after is None, "that is over"


def test_a_start_during_maintenance_comes_after_it() -> None:
    assert start(windows=[window(-1, 1)], walltime_s=None).wait_s == HOUR_S + 150


def test_between_two_windows_there_has_to_be_time_for_it() -> None:
    windows = [window(5, 6), window(0.5, 4.5)]
    assert start(windows=windows, walltime_s=2 * HOUR_S).wait_s == 6 * HOUR_S + 150


def test_in_a_running_job_there_has_to_be_time_to_load() -> None:
    assert start(wait_s=0.0, walltime_s=10 * HOUR_S, windows=[window(1, 2)]).after is None


@given(
    st.lists(st.tuples(st.floats(-50, 50), st.floats(0.1, 20)), max_size=5),
    st.floats(0, 1e5),
    st.floats(0, 1e5),
)
def test_what_is_promised_never_runs_into_maintenance(
    spans: list[tuple[float, float]], wait_s: float, needs_s: float
) -> None:
    windows = [window(begins, begins + length) for begins, length in spans]
    found_s, after = beyond(windows, wait_s, needs_s, NOW)
    assert (found_s == wait_s) if after is None else (found_s > wait_s or after.end > NOW)
    begins = NOW + timedelta(seconds=found_s + 0.001)
    for one in windows:
        is_over = begins >= one.end
        assert is_over or begins + timedelta(seconds=needs_s - 0.002) <= one.start
