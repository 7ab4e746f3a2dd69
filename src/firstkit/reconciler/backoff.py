"""When a deployment whose replicas failed may try again: later each time, so that a broken engine costs little."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from firstkit.states import ReplicaState
from firstkit.store.jobs import ReplicaRow

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0
LONGEST_PAUSE_AFTER_READY_S = 20.0
"""One that loads well and dies at work is worth another attempt sooner: people wait for it."""
STABLE_S = 60.0
"""A replica that served for so long before it failed was no failure to start."""


def failures(ended: Sequence[ReplicaRow]) -> list[ReplicaRow]:
    """Of replicas that ended, newest first: those that failed in a row, up to now, without serving in between."""
    found = []
    for row in ended:
        if row.state is not ReplicaState.FAILED or _was_stable(row):
            break
        found.append(row)
    return found


def retry_at(ended: Sequence[ReplicaRow], now: datetime | None = None) -> datetime | None:
    """When the next replica may be started; None: at any time. ``ended``: newest first.

    A failure that is yet to come, by a clock that was set back since, keeps nobody waiting for longer than any.
    """
    failed = failures(ended)
    last = max((row.ended_at for row in failed if row.ended_at is not None), default=None)
    if last is None:
        return None
    longest_s = LONGEST_PAUSE_S if failed[0].ready_at is None else LONGEST_PAUSE_AFTER_READY_S
    pause_s = min(longest_s, FIRST_PAUSE_S * 2.0 ** min(len(failed) - 1, 30))
    retry = last + timedelta(seconds=pause_s)
    return retry if now is None or retry <= now + timedelta(seconds=LONGEST_PAUSE_S) else None


def _was_stable(row: ReplicaRow) -> bool:
    if row.ready_at is None or row.ended_at is None:
        return False
    return (row.ended_at - row.ready_at).total_seconds() >= STABLE_S
