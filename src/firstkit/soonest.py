"""Where a start would serve soonest: one rule for the controller, which decides by it, and the gateway, which tells it.
Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

TIE_S = 15.0
TIE_SHARE = 0.1
"""Predictions that differ by less say the same: then the order of the file decides."""
LEAST_AVAILABLE = 0.1
"""The share of a day below which one scheduler is as bad as another."""


def usual_load_s(loads_s: Iterable[float | None]) -> float:
    """How long a first load is taken to be: as elsewhere. None: nothing ever loaded there."""
    known = [load_s for load_s in loads_s if load_s is not None]
    return median(known) if known else 0.0


def start_s(wait_s: float, load_s: float, availability: float) -> float:
    """How long until a replica that is started now serves, as starts here are compared with those elsewhere: where the
    scheduler answered only in that share of the last day they count as longer, for it may be silent when it is
    needed."""
    return (wait_s + load_s) / max(LEAST_AVAILABLE, availability)


def soonest(starts_s: Sequence[float]) -> int:
    """The index of the first of ``starts_s``, which are in the order of the file, that is about as soon as any."""
    least_s = min(starts_s)
    limit_s = least_s + max(TIE_S, TIE_SHARE * least_s)
    return next(at for at, one in enumerate(starts_s) if one <= limit_s)
