"""One clock each: wall time for what is stored or shown, monotonic time inside a process."""

from __future__ import annotations

import time
from datetime import datetime, timezone

monotonic = time.monotonic


def now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(timezone.utc)
