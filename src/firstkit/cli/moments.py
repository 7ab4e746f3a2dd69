"""Durations and points in time as people write them on a command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from firstkit.cli.common import fail

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhdwy])")


def parse_duration(text: str) -> float:
    """Seconds of ``90d``, ``12h``, ``1.5w``; raises ValueError saying what is allowed."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        raise ValueError(f"'{text}' is not a duration: write for example 12h, 90d, 4w or 1y")
    return float(match[1]) * _UNITS[match[2]]


def parse_moment(text: str, now: datetime) -> datetime:
    """``7d`` (that long before ``now``), ``2026-11-01`` or ``2026-11-01T12:00``, in UTC where no zone is given."""
    try:
        if _DURATION.fullmatch(text.strip()):
            return now - timedelta(seconds=parse_duration(text))
        moment = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError):
        raise ValueError(f"'{text}' is not a time: write for example 7d, 2026-11-01 or 2026-11-01T12:00") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def moment_option(option: str, text: str | None) -> datetime | None:
    """What an option says, None where it is not given; ends the command for what is no time."""
    try:
        return None if text is None else parse_moment(text, datetime.now(UTC))
    except ValueError as exc:
        fail(f"{option}: {exc}", "Times without a zone are UTC.")
