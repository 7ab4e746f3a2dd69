"""``first usage``: what was used, by user, project, model, day, key or cluster."""

from __future__ import annotations

import csv
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import typer

from firstkit.accounting.grouping import Grouping
from firstkit.cli.common import ConfigOption, JsonOption, fail
from firstkit.cli.moments import parse_moment
from firstkit.cli.showing import show, show_json
from firstkit.cli.stored import ask
from firstkit.clock import now

if TYPE_CHECKING:
    from firstkit.store.database import Database

GROUPINGS = tuple(grouping.value for grouping in Grouping)
NUMBERS = ("requests", "prompt_tokens", "completion_tokens", "estimated", "failed")


def usage(
    by: Annotated[str, typer.Option(help=f"Broken down by any of {','.join(GROUPINGS)}.")] = "project,model",
    since: Annotated[str | None, typer.Option(help="From then on: 7d, 2026-11-01 or 2026-11-01T12:00 (UTC).")] = None,
    until: Annotated[str | None, typer.Option(help="Before then, written likewise.")] = None,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    config: ConfigOption = None,
) -> None:
    """Show requests and tokens from the ledger.

    Days are those of UTC. The last second may still be missing.
    """
    groups = _groups(by)
    first, last = _moment("--since", since), _moment("--until", until)

    async def directly(db: Database) -> dict[str, Any]:
        from firstkit.accounting.reports import usage_report

        return {"data": [row.as_row() for row in await usage_report(db, groups, first, last)]}

    rows = ask(config, f"/admin/usage?{_query(groups, first, last)}", None, directly)["data"]
    columns = [*groups, *NUMBERS]
    if as_json:
        show_json(rows)
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _inert(value) for name, value in row.items()} for row in rows)
    else:
        show(columns, [[row[column] for column in columns] for row in rows], NUMBERS)


def _query(groups: list[str], first: datetime | None, last: datetime | None) -> str:
    limits = [(name, moment.isoformat()) for name, moment in (("since", first), ("until", last)) if moment]
    return urlencode([*(("by", group) for group in groups), *limits])


def _groups(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in GROUPINGS]:
        fail(f"--by: '{unknown[0]}' is not known", f"Allowed are {', '.join(GROUPINGS)}, joined by commas.")
    return list(dict.fromkeys(names))


def _moment(option: str, text: str | None) -> datetime | None:
    try:
        return None if text is None else parse_moment(text, now())
    except ValueError as exc:
        fail(f"{option}: {exc}", "Times without a zone are UTC.")


def _inert(value: Any) -> Any:
    """Names that spreadsheets would run as a formula are quoted: people choose them."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
