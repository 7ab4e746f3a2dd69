"""Periods of UTC: where they begin and end, and that a moment is in exactly one of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.accounting.periods import ALWAYS, Period, span_of


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("period", "moment", "begin", "end"),
    [
        ("day", "2026-11-27 00:00", "2026-11-27", "2026-11-28"),
        ("day", "2026-11-27 23:59:59.999999", "2026-11-27", "2026-11-28"),
        ("week", "2026-11-27 12:00", "2026-11-23", "2026-11-30"),
        ("week", "2026-11-30 00:00", "2026-11-30", "2026-12-07"),
        ("week", "2026-01-01 12:00", "2025-12-29", "2026-01-05"),
        ("month", "2026-11-30 23:59", "2026-11-01", "2026-12-01"),
        ("month", "2026-12-31 12:00", "2026-12-01", "2027-01-01"),
        ("month", "2028-02-29 12:00", "2028-02-01", "2028-03-01"),
        ("year", "2026-11-27 12:00", "2026-01-01", "2027-01-01"),
    ],
)
def test_begin_and_end(period: str, moment: str, begin: str, end: str) -> None:
    assert span_of(Period(period), at(moment)) == (at(begin), at(end))


def test_a_total_has_neither() -> None:
    assert span_of(Period.TOTAL, at("2026-11-27")) == ALWAYS


def test_moments_of_other_zones_are_taken_as_what_they_are_in_utc() -> None:
    late = datetime(2026, 11, 30, 22, tzinfo=timezone(timedelta(hours=-6)))
    assert span_of(Period.MONTH, late) == (at("2026-12-01"), at("2027-01-01"))


@given(
    st.sampled_from(Period),
    st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
)
def test_periods_follow_one_another(period: Period, moment: datetime) -> None:
    begin, end = span_of(period, moment)
    assert begin <= moment < end
    assert span_of(period, begin) == (begin, end)
    assert span_of(period, end - timedelta(microseconds=1)) == (begin, end)
    if period is not Period.TOTAL:
        assert span_of(period, end).begin == end
        assert span_of(period, begin - timedelta(microseconds=1)).end == begin
        assert (period is not Period.WEEK) or begin.weekday() == 0
