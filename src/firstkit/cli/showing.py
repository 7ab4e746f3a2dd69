"""Rows for people and for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Literal

SOFT = frozenset(
    {"reason", "found", "how to fix it", "scopes", "aliases", "message", "serves", "requests", "answers", "clusters"}
    | {"details", "models"}
)
"""Columns of words, which may be broken into lines of at least SOFT_WIDTH; others are copied from, and stay whole."""
SOFT_WIDTH = 16
GAP = 2


def show(columns: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[str] = ()) -> None:
    """Rows as a table on a terminal, as tab-separated lines elsewhere; ``numbers``: columns set to the right."""
    texts = [["" if value is None else _one_line(str(value)) for value in row] for row in rows]
    if not sys.stdout.isatty():
        sys.stdout.writelines("\t".join(row) + "\n" for row in [list(columns), *texts])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    headings = [column.replace("_", " ") for column in columns]
    widths = [_least_width(*column) for column in zip(columns, headings, *texts, strict=True)]
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    for column, heading, width in zip(columns, headings, widths, strict=True):
        side: Literal["right", "left"] = "right" if column in numbers else "left"
        is_whole = column not in SOFT  # else rich narrows the whole ones first, and then finds that it may not
        table.add_column(heading, justify=side, overflow="fold", min_width=width, no_wrap=is_whole)
    for row in texts:
        table.add_row(*map(Text, row))
    console = Console()
    console.width = max(console.width, sum(widths) + GAP * len(widths))
    console.print(table, soft_wrap=True)


def _least_width(column: str, heading: str, *cells: str) -> int:
    longest = max(map(len, cells), default=0)
    return max(min(longest, SOFT_WIDTH) if column in SOFT else longest, *map(len, heading.split()))


def show_json(value: Any) -> None:
    """``value`` as indented JSON."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def duration(seconds: float) -> str:
    """``12 s``, ``3 min``, ``5 h``, ``2 days``: one figure is enough to wait by."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def eta(seconds: float | None) -> str:
    return "ETA unknown" if seconds is None else f"ETA {duration(seconds)}"


def _one_line(text: str) -> str:
    return " ".join(text.split()) if "\n" in text or "\t" in text else text
