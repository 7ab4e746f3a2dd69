"""When a cluster is left: drained by an operator, or for maintenance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from firstkit.config.clusters import Maintenance


@dataclass(frozen=True, slots=True)
class Site:
    """What is known of a cluster beside its jobs.

    ``closed``: why nothing may run there now, or "". ``window``: the maintenance that is now or comes next.
    ``leaves_at``: the start of one that is to come: nothing runs beyond it.
    """

    closed: str = ""
    window: Maintenance | None = None
    leaves_at: datetime | None = None


def site(windows: Iterable[Maintenance], drained: str | None, now: datetime) -> Site:
    """The state of a cluster. ``drained``: the message of whoever drained it; None: nobody did."""
    coming = sorted((window for window in windows if window.end > now), key=lambda window: window.start)
    present = next((window for window in coming if window.start <= now), None)
    leaves_at = next((window.start for window in coming if window.start > now), None)
    closed = ""
    if drained is not None:
        closed = _with_message("the cluster is drained", drained)
    elif present is not None:
        closed = _with_message(f"the cluster is in maintenance until {present.end:%Y-%m-%d %H:%M %Z}", present.message)
    return Site(closed, coming[0] if coming else None, leaves_at)


def why_too_late(where: Site, walltime_s: float | None, load_s: float | None, now: datetime) -> str:
    """Why a replica that is started now would be gone too soon to be worth it; "" where it would not."""
    if where.closed:
        return where.closed
    if where.leaves_at is None:
        return ""
    left_s = (where.leaves_at - now).total_seconds()
    if left_s < max((walltime_s or 0.0) / 2, 2 * (load_s or 0.0)):
        words = f"maintenance begins at {where.leaves_at:%Y-%m-%d %H:%M %Z}, too soon for a new replica"
        return _with_message(words, where.window.message if where.window is not None else "")
    return ""


def _with_message(words: str, message: str) -> str:
    return f"{words}: {message}" if message else words
