"""Until when clusters take new requests: maintenance that was announced, and clusters that were drained. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf


@dataclass(frozen=True, slots=True)
class Window:
    """A maintenance, in seconds since 1970."""

    start: float
    end: float
    message: str = ""


@dataclass(slots=True)
class Calendar:
    """``drained``: what people are told, by cluster. A cluster that is in neither takes requests for ever."""

    windows: Mapping[str, Sequence[Window]] = field(default_factory=dict)
    drained: Mapping[str, str] = field(default_factory=dict)

    def open_until(self, cluster: str, now: float) -> float:
        """When the cluster will take nothing new any more; minus infinity: it takes nothing now."""
        if cluster in self.drained:
            return -inf
        until = inf
        for window in self.windows.get(cluster, ()):
            if window.start <= now < window.end:
                return -inf
            if now < window.start:
                until = min(until, window.start)
        return until

    def maintenance(self, cluster: str, now: float) -> Window | None:
        """The present one, or the next."""
        coming = [window for window in self.windows.get(cluster, ()) if now < window.end]
        return min(coming, key=lambda window: window.start, default=None)

    def why_closed(self, cluster: str, now: float) -> str | None:
        """A clause that says why the cluster takes nothing new; None where it does."""
        if cluster in self.drained:
            return _with(f"the cluster '{cluster}' is drained", self.drained[cluster])
        window = self.maintenance(cluster, now)
        if window is not None and window.start <= now:
            return _with(f"the cluster '{cluster}' is in maintenance", window.message)
        return None

    def why_all_closed(self, clusters: Iterable[str], now: float) -> str:
        """Why none of some clusters takes anything new; "" where one does, or there is none."""
        reasons = [self.why_closed(cluster, now) for cluster in clusters]
        return "" if None in reasons else "; ".join(reason for reason in reasons if reason)


def _with(what: str, message: str) -> str:
    return f"{what}: {message}" if message else what
