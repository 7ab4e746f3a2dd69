"""Reports in the form that others read them: which columns, in which order, and as CSV that no spreadsheet runs."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from firstkit.accounting.grouping import Grouping, NodeHourGrouping

USAGE_NUMBERS = ("requests", "prompt_tokens", "completion_tokens", "estimated", "failed")
NODE_HOUR_NUMBERS = ("node_hours", "tokens", "requests")
NODE_HOUR_NOTE = (
    "The scheduler charged the whole of each job to 'account', for the user 'submit_as'. How that is split over "
    "projects is FIRST's own attribution, by tokens hour by hour; no scheduler knows of it."
)
"""What of node-hours is internal."""
_STARTS_FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001 - those too


def usage_columns(by: Iterable[Grouping | str]) -> tuple[str, ...]:
    """The columns of usage that is broken down by ``by``."""
    return (*dict.fromkeys(Grouping(name).value for name in by), *USAGE_NUMBERS)


def node_hour_columns(by: Collection[NodeHourGrouping | str]) -> tuple[str, ...]:
    """The columns of node-hours. An interval has two whether it is a month or not."""
    model = ("model",) if NodeHourGrouping.MODEL in by else ()
    names = ("since", "until", "cluster", "account", "submit_as", "project_id", "project", *model)
    return (*names, *NODE_HOUR_NUMBERS)


def csv_lines(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of CSV, headings first, each with its line feed; node-hours have six decimals, what is not known is
    empty."""
    writer = csv.writer(_Lines(), lineterminator="\n")
    yield writer.writerow(columns)
    for row in rows:
        yield writer.writerow([_cell(row[column]) for column in columns])


class _Lines:
    """A file whose ``write`` hands back what was written."""

    def write(self, text: str) -> str:
        return text


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6f}"
    if not isinstance(value, str):
        return value
    value = value.replace("\r", "\n")  # which would not be quoted
    return f"'{value}" if value.startswith(_STARTS_FORMULA) else value  # people choose names: none shall be run
