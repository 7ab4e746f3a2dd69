"""Days and months of UTC: the intervals by which centres account."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime, timedelta

_MONTH = re.compile(r"([0-9]{4})-([0-9]{2})")


def month_of(moment: datetime) -> datetime:
    """When the month of UTC began that ``moment`` is in."""
    return moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def month_after(moment: datetime) -> datetime:
    """When the next month begins."""
    began = month_of(moment)
    return began.replace(year=began.year + began.month // 12, month=began.month % 12 + 1)


def day_after(moment: datetime) -> datetime:
    """When the next day of UTC begins."""
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def parse_month(text: str) -> tuple[datetime, datetime]:
    """When a month that is written ``2026-11`` begins and when the next one does; raises ValueError."""
    match = _MONTH.fullmatch(text.strip())
    if match is not None:
        with contextlib.suppress(ValueError):  # no such month, or none after it
            began = datetime(int(match[1]), int(match[2]), 1, tzinfo=UTC)
            return began, month_after(began)
    raise ValueError(f"'{text}' is not a month: write for example 2026-11")
