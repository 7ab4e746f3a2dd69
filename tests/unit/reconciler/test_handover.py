from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.reconciler.handover import ENDLESS, Life, end_of, life_of
from firstkit.states import JobState
from unit.reconciler.support import NOW, job, report

HOUR = timedelta(hours=1)


def test_the_scheduler_has_the_last_word_on_the_end() -> None:
    said = report(ends_at=NOW.timestamp() + 5)
    assert end_of(job(), None) is None
    assert end_of(job(), said) == NOW.timestamp() + 5
    assert end_of(job(ends_at=NOW + HOUR), said) == (NOW + HOUR).timestamp()


def test_a_life_ends_with_the_job_or_when_its_cluster_is_left() -> None:
    row = job(started_at=NOW - HOUR, ends_at=NOW + HOUR)
    assert life_of(row, None, None, NOW) == Life(7200, 3600)
    assert life_of(row, None, NOW + HOUR / 2, NOW) == Life(5400, 1800)
    assert life_of(row, None, NOW + 2 * HOUR, NOW) == Life(7200, 3600)


def test_a_job_that_waits_or_has_no_end_lives_for_ever() -> None:
    assert life_of(job(), None, None, NOW) == ENDLESS
    assert life_of(job(state=JobState.PENDING, ends_at=NOW), None, NOW, NOW) == ENDLESS
    assert not ENDLESS.is_leaving(1e9)
    assert not ENDLESS.is_over


def test_the_lead_is_what_a_successor_needs_and_the_time_to_drain() -> None:
    assert Life(36000, 0).lead_s(600) == 645
    assert Life(1000, 0).lead_s(600) == 500, "never in the first half"
    assert Life(60, 0).drain_s == 15 + 7.5, "short jobs give a part of what they have"


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_what_leaves_is_nearly_leaving_and_what_is_over_leaves(whole_s: float, left_s: float, warm_s: float) -> None:
    life = Life(whole_s, left_s)
    assert not life.is_over or life.is_leaving(warm_s)
    assert not life.is_leaving(warm_s) or life.is_nearly_leaving(warm_s)
    assert life.margin_s <= life.drain_s <= life.lead_s(warm_s) or whole_s == pytest.approx(0, abs=1e-9)
    assert life.lead_s(warm_s) <= whole_s / 2
