"""Points in time as clients write them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator


def _utc(moment: datetime) -> datetime:
    """Times without a zone are taken as UTC."""
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("not between the years 1 and 9999") from None


Moment = Annotated[datetime, AfterValidator(_utc)]
"""A parameter of a route, in UTC."""
