"""What the figures of gateways are held against: a bar that must be met and an aim, as numbers or ratios to a peer.

Pure: figures in, tables out. A figure is a list with one value a round; None where a round has none. Ratios are taken
round by round, between runs that were minutes apart at most, and then the median: a machine that is slower for a while
is slower for all.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Values = Sequence[float | None]
Figures = dict[str, dict[str, Values]]
"""By figure and by target."""
PEERS = ("vllm-router", "nginx")
VARIANTS = ("external", "pilot", "tunnel")
LABELS = {
    "direct": "no gateway",
    "external": "FIRST, external",
    "pilot": "FIRST, pilot",
    "tunnel": "FIRST, tunnel",
}


@dataclass(frozen=True)
class Limit:
    """``value`` times the figure of ``peer``, or just ``value``; at most so much, or with ``is_floor`` at least."""

    value: float
    peer: str = ""
    is_floor: bool = False

    def __str__(self) -> str:
        words = f"{self.value:g} x {self.peer}" if self.peer else f"{self.value:g}"
        return f"at least {words}" if self.is_floor else words

    def is_met(self, values: Values, of_peer: Values) -> bool | None:
        """None: it cannot be said, something was not measured."""
        found = ratio(values, of_peer) if self.peer else median(values)
        if found is None:
            return None
        return found >= self.value if self.is_floor else found <= self.value


def at_least(value: float, peer: str = "") -> Limit:
    return Limit(value, peer, is_floor=True)


@dataclass(frozen=True)
class Row:
    """One figure for some variants of FIRST, with its limits. What costs CPU comes first in ``ROWS``."""

    figure: str
    title: str
    unit: str
    variants: tuple[str, ...]
    bar: Limit | None = None
    aim: Limit | None = None


ROUTER, NGINX = PEERS
ROWS = (
    Row("chat_cpu_ms", "small chat, 64 connections: CPU", "ms/request", VARIANTS, Limit(1, ROUTER), Limit(0.7, ROUTER)),
    Row("s256_cpu_s", "256 streams, 20 ms a token: CPU", "s/Mtok", VARIANTS[1:], Limit(1, ROUTER), Limit(1, NGINX)),
    Row("s256_cpu_s", "256 streams, 20 ms a token: CPU", "s/Mtok", VARIANTS[:1], Limit(1.15, ROUTER), Limit(1, ROUTER)),
    Row("big_cpu_ms", "200 kB prompts: CPU", "ms/request", VARIANTS[:1]),
    Row("big_rps", "200 kB prompts", "requests/s", VARIANTS[:1], at_least(0.7, NGINX), at_least(0.85, NGINX)),
    Row("s1000_failed", "1,000 streams of 200 tokens: failed", "", VARIANTS, Limit(0), Limit(0)),
    Row("s1000_share", "1,000 streams: share of direct's tokens/s", "", VARIANTS[:1], at_least(0.97), at_least(0.98)),
    Row("stream_kib", "memory per open stream", "KiB", VARIANTS, Limit(40), Limit(20)),
    Row("ttft_p50_ms", "added time to first token, 64 streams: p50", "ms", VARIANTS, Limit(2), Limit(1)),
    Row("ttft_p99_ms", "added time to first token, 64 streams: p99", "ms", VARIANTS, Limit(15), Limit(8)),
    Row("lag_p99_ms", "loop lag while 1,000 replicas are planned: p99 at most", "ms", ("gateway",), Limit(5)),
)
ALL = (
    ("chat_cpu_ms", "small chat, 64 connections: CPU ms/request"),
    ("s256_cpu_s", "256 streams: CPU s/Mtok"),
    ("s1000_cpu_s", "1,000 streams: CPU s/Mtok"),
    ("big_cpu_ms", "200 kB prompts: CPU ms/request"),
    ("chat_pilot_ms", "pilot beside it, small chat: CPU ms/request"),
    ("s256_pilot_s", "pilot beside it, 256 streams: CPU s/Mtok"),
    ("chat_controller_ms", "controller beside it, small chat: CPU ms/request"),
    ("s256_controller_s", "controller beside it, 256 streams: CPU s/Mtok"),
    ("chat_rps", "small chat: requests/s"),
    ("big_rps", "200 kB prompts: requests/s"),
    ("s256_tps", "256 streams: tokens/s"),
    ("s1000_tps", "1,000 streams: tokens/s"),
    ("s1000_share", "1,000 streams: share of tokens/s without gateway"),
    ("s1000_failed", "1,000 streams: failed"),
    ("failed", "all loads: failed"),
    ("ttft_p50_ms", "64 streams: added time to first token, p50 ms"),
    ("ttft_p99_ms", "64 streams: added time to first token, p99 ms"),
    ("s256_delay_p99_ms", "256 streams: time of a token under way, p99 ms"),
    ("stream_kib", "memory per open stream, KiB"),
    ("rss_mib", "memory before, MiB"),
)
"""Every figure that the loads yield, for the table of all targets."""


def median(values: Values) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def ratios(values: Values, of_peer: Values) -> list[float]:
    """Round by round, where both have one."""
    pairs = zip(values, of_peer, strict=False)
    return [one / other for one, other in pairs if one is not None and other]


def ratio(values: Values, of_peer: Values) -> float | None:
    return median(ratios(values, of_peer))


@dataclass(frozen=True)
class Judged:
    """A row for one variant. ``is_met`` None: not said."""

    row: Row
    variant: str
    value: float | None
    ratios: dict[str, list[float]]
    is_bar_met: bool | None
    is_aim_met: bool | None

    def cells(self) -> list[str]:
        row = self.row
        value = "not measured" if self.value is None else f"{shown(self.value)} {row.unit}".strip()
        beside = [_ratio_words(self.ratios[peer]) for peer in PEERS]
        limits = [_limit_words(row.bar, self.is_bar_met), _limit_words(row.aim, self.is_aim_met)]
        return [row.title, LABELS.get(self.variant, self.variant), value, *beside, *limits]


def judge(figures: Figures) -> list[Judged]:
    """Every row that has a limit or a ratio, for every variant."""
    return [_judged(row, variant, figures.get(row.figure, {})) for row in ROWS for variant in row.variants]


def verdict_table(judged: Sequence[Judged]) -> str:
    head = ["figure", "through", "measured", *(f"x {peer}" for peer in PEERS), "bar", "aim"]
    return markdown(head, [one.cells() for one in judged])


def whole_table(figures: Figures, targets: Sequence[str]) -> str:
    """All figures of all targets, as medians over the rounds."""
    head = ["median", *(LABELS.get(target, target) for target in targets)]
    rows = []
    for figure, title in ALL:
        found = [median(figures.get(figure, {}).get(target, [])) for target in targets]
        if any(value is not None for value in found):
            rows.append([title, *("-" if value is None else shown(value) for value in found)])
    return markdown(head, rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that can be read as it is, too."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    lines = [_line(head, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    return "\n".join(lines + [_line(row, widths) for row in rows])


def shown(value: float) -> str:
    """Three digits that count, no exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.1 else f"{value:.4f}"


def _judged(row: Row, variant: str, by_target: dict[str, Values]) -> Judged:
    values = by_target.get(variant, [])
    found = {peer: ratios(values, by_target.get(peer, [])) for peer in PEERS}

    def is_met(limit: Limit | None) -> bool | None:
        return None if limit is None else limit.is_met(values, by_target.get(limit.peer, []))

    return Judged(row, variant, median(values), found, is_met(row.bar), is_met(row.aim))


def _ratio_words(found: Sequence[float]) -> str:
    if not found:
        return "-"
    middle = f"{statistics.median(found):.2f}"
    return middle if len(found) < 2 else f"{middle} ({min(found):.2f} to {max(found):.2f})"


def _limit_words(limit: Limit | None, is_met: bool | None) -> str:
    if limit is None:
        return "-"
    return f"{limit}: " + {True: "met", False: "NOT MET", None: "not measured"}[is_met]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
