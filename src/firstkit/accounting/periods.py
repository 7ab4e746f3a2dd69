"""Periods of UTC in which budgets are used up and begin anew."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import NamedTuple

from firstkit.accounting.months import month_after, month_of


class Period(str, Enum):
    """How long a budget is for. Weeks begin on Monday; ``total`` is for ever."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"
    TOTAL = "total"


class Span(NamedTuple):
    """One period: from ``begin`` until before ``end``, aware times in UTC."""

    begin: datetime
    end: datetime


ALWAYS = Span(datetime(1970, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
"""The one period of those that never begin anew: from before all that is in any ledger."""


def span_of(period: Period, at: datetime) -> Span:
    """The period that the moment ``at`` is in."""
    midnight = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period is Period.DAY:
        return Span(midnight, midnight + timedelta(days=1))
    if period is Period.WEEK:
        monday = midnight - timedelta(days=midnight.weekday())
        return Span(monday, monday + timedelta(days=7))
    if period is Period.MONTH:
        return Span(month_of(at), month_after(at))
    if period is Period.YEAR:
        new_year = midnight.replace(month=1, day=1)
        return Span(new_year, new_year.replace(year=new_year.year + 1))
    return ALWAYS
