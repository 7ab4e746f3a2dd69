"""How figures are shown: each beside its limit."""

from __future__ import annotations


def report(what: str, value: float, unit: str, limit: float) -> None:
    """One line of the table."""
    print(f"{what:44} {value:8.2f} {unit:3} limit {limit:g} {unit}{'' if value <= limit else '   ABOVE'}", flush=True)
