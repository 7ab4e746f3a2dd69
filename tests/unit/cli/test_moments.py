from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.cli.moments import parse_duration, parse_moment

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90d", 7_776_000), ("12h", 43_200), ("1.5w", 907_200), ("1y", 31_536_000)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "d", "-1d", "0d", "1 month", "90d90d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="90d"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("7d", datetime(2026, 11, 17, 12, tzinfo=UTC)),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T10:30+02:00", datetime(2026, 11, 1, 8, 30, tzinfo=UTC)),
    ],
)
def test_moments(text: str, moment: datetime) -> None:
    assert parse_moment(text, NOW) == moment


@given(st.text(max_size=30) | st.from_regex(r"\d{1,9}[dwy]", fullmatch=True))
def test_anything_is_a_moment_in_utc_or_refused(text: str) -> None:
    try:
        assert parse_moment(text, NOW).tzinfo is UTC
    except ValueError as exc:
        assert "2026-11-01" in str(exc)
