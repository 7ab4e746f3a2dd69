"""What an engine says of its own load, in the text format of Prometheus. Pure; what cannot be true is not believed.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Optional

METRICS_PATH = "/metrics"
MOST_REQUESTS = 1_000_000
_SAMPLE = rb"^%b(?:\{[^\n]*\})?[ \t]+([^ \t\r\n]+)"


@dataclass(frozen=True)
class Load:
    """Requests (or parts of one, as the answers of ``n``) that an engine works on, those that wait inside of it, and
    the share of its cache that is taken, from 0 to 1. None: it does not say."""

    running: Optional[int] = None
    waiting: Optional[int] = None
    cache_use: Optional[float] = None

    @property
    def requests(self) -> int:
        return (self.running or 0) + (self.waiting or 0)


def read_load(text: bytes, names: Mapping[str, str]) -> Load:
    """The load in an engine's metrics; ``names``: see ``Engine.metric_names``. Where an engine has several parts, each
    with its own numbers, requests are added up, and the fullest cache counts."""
    cache = _samples(text, names.get("cache_use"))
    return Load(
        _count(_samples(text, names.get("running"))),
        _count(_samples(text, names.get("waiting"))),
        round(min(1.0, max(cache)), 3) if cache else None,
    )


def _samples(text: bytes, name: Optional[str]) -> list[float]:
    """All values of one metric that can be true."""
    if name is None:
        return []
    found = re.findall(_SAMPLE % re.escape(name.encode()), text, re.MULTILINE)
    return [value for value in map(_number, found) if isfinite(value) and value >= 0]


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _count(samples: list[float]) -> Optional[int]:
    return int(min(sum(samples), MOST_REQUESTS)) if samples else None
