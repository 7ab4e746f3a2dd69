"""What a new replica would take on one cluster, and what that is known by: what ``first estimate`` shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from firstkit.config.clusters import Maintenance
from firstkit.reconciler.forecast import AT_ONCE_S, Experience, spread


class By(StrEnum):
    """What a wait is known by."""

    ROOM = "room"
    """A job that runs has room."""
    FREE = "free"
    """The scheduler says that resources are free."""
    PLAN = "plan"
    """The scheduler's plan, which is later than what was learned."""
    WAITS = "waits"
    """Waits of other jobs."""
    NOBODY = "nobody"
    """Nothing is known."""


@dataclass(frozen=True, slots=True)
class Start:
    """A replica that is started now. Seconds; None: nobody can say. ``late_…``: what nine of ten would not exceed.

    ``wait_s`` counts until it begins to load. ``after``: the maintenance after which it would begin, since before that
    its job could not finish.
    """

    wait_s: float | None
    late_wait_s: float | None
    load_s: float | None
    late_load_s: float | None
    by: By
    after: Maintenance | None = None


def start_of(
    known: Experience,
    said_s: float | None,
    wait_s: float,
    walltime_s: float | None,
    windows: Iterable[Maintenance],
    now: datetime,
) -> Start:
    """What a start takes. ``said_s``: until a new job would start by its scheduler's word; ``wait_s``: what placement
    counts with: nothing where a job that runs has room."""
    learned_s = known.usual_wait_s if known.waits else None
    by = _by(said_s, learned_s, wait_s)
    usual_s: float | None = None if by is By.NOBODY else wait_s
    late_s = usual_s
    if by in (By.PLAN, By.WAITS) and usual_s is not None:
        late_s = max(usual_s, known.late_wait_s or 0.0)
    load = spread(known.loads)
    load_s, late_load_s = (None, None) if load is None else (load.usual, load.late)
    needs_s = 2 * (load_s or 0.0) if by is By.ROOM else walltime_s or 0.0
    moved_s, after = beyond(windows, wait_s, needs_s, now)
    if after is not None and usual_s is not None and late_s is not None:
        usual_s, late_s = moved_s, moved_s + late_s - usual_s
    return Start(usual_s, late_s, load_s, late_load_s, by, after)


def _by(said_s: float | None, learned_s: float | None, wait_s: float) -> By:
    soonest_s = min((one for one in (said_s, learned_s) if one is not None), default=0.0)
    if wait_s == 0 and soonest_s > AT_ONCE_S:
        return By.ROOM
    if said_s is not None and said_s <= AT_ONCE_S:
        return By.FREE
    if said_s is not None and (learned_s is None or said_s > learned_s):
        return By.PLAN
    return By.NOBODY if learned_s is None else By.WAITS


def beyond(
    windows: Iterable[Maintenance], wait_s: float, needs_s: float, now: datetime
) -> tuple[float, Maintenance | None]:
    """How long a job waits that needs so much time, where nothing may run in ``windows``; and the last of them that it
    waits for, None: it finishes before the next. After each it waits as long again: others have waited, too."""
    begins, last = now + timedelta(seconds=wait_s), None
    for window in sorted(windows, key=lambda one: one.start):
        if window.end > now and begins < window.end and begins + timedelta(seconds=needs_s) > window.start:
            begins, last = window.end + timedelta(seconds=wait_s), window
    return wait_s if last is None else (begins - now).total_seconds(), last
