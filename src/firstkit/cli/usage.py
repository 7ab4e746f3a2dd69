"""``first usage``: what was used, by user, project, model, day, key or cluster; and the node-hours that it took."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import typer

from firstkit.accounting.exports import (
    NODE_HOUR_NUMBERS,
    USAGE_NUMBERS,
    csv_lines,
    node_hour_columns,
    usage_columns,
)
from firstkit.accounting.grouping import Grouping, NodeHourGrouping
from firstkit.accounting.months import parse_month
from firstkit.cli.common import ConfigOption, JsonOption, fail, open_config
from firstkit.cli.moments import moment_option
from firstkit.cli.showing import show, show_json
from firstkit.cli.stored import ask

if TYPE_CHECKING:
    from firstkit.store.database import Database

GROUPINGS = tuple(grouping.value for grouping in Grouping)
NODE_HOUR_GROUPINGS = tuple(grouping.value for grouping in NodeHourGrouping)
_SHOWN = ("since", "until", "cluster", "account", "submit_as", "project", "model", *NODE_HOUR_NUMBERS)
"""Columns of node-hours that people look at."""
WHICH_PROJECTS = "'first projects list' shows the projects that there are."
_Span = tuple[datetime | None, datetime | None]


def usage(
    by: Annotated[
        str | None,
        typer.Option(
            help=f"Broken down by any of {','.join(GROUPINGS)}; node-hours: {','.join(NODE_HOUR_GROUPINGS)}. "
            "Default: project,model; node-hours: month.",
        ),
    ] = None,
    since: Annotated[str | None, typer.Option(help="From then on: 7d, 2026-11-01 or 2026-11-01T12:00 (UTC).")] = None,
    until: Annotated[str | None, typer.Option(help="Before then, written likewise.")] = None,
    month: Annotated[str | None, typer.Option(help="A whole month of UTC, such as 2026-11.")] = None,
    project: Annotated[str | None, typer.Option(help="Only what was charged to this project.")] = None,
    node_hours: Annotated[
        bool,
        typer.Option(
            "--node-hours",
            help="Node-hours of jobs: whom the scheduler charged, and how FIRST itself splits them over projects.",
        ),
    ] = False,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    config: ConfigOption = None,
) -> None:
    """Show requests and tokens from the ledger, or node-hours: everybody's for operators, else your own.

    Days and months are those of UTC. The last second may still be missing. Of node-hours, the scheduler charged the
    account that is shown, as the user that is shown; the split over projects is FIRST's own, by tokens.
    """
    span = _span(since, until, month)
    if node_hours:
        if project is not None:
            fail("--project: node-hours are shown of all projects", "Leave it out, and look at the column 'project'.")
        _show_node_hours(config, _groups("month" if by is None else by, NODE_HOUR_GROUPINGS), span, as_json, as_csv)
    else:
        _show_usage(config, _groups("project,model" if by is None else by, GROUPINGS), span, project, as_json, as_csv)


def _show_usage(
    config: Path | None, groups: list[str], span: _Span, project: str | None, as_json: bool, as_csv: bool
) -> None:
    async def directly(db: Database) -> dict[str, Any]:
        from firstkit.accounting.reports import usage_report
        from firstkit.accounting.served import known_project_id

        project_id = None if project is None else await known_project_id(db, project)
        return {"data": [row.as_row() for row in await usage_report(db, groups, *span, project_id=project_id)]}

    query = _query(groups, span, project)
    rows = ask(config, f"/admin/usage?{query}", None, directly, mine=f"/v1/usage?{query}", hint=WHICH_PROJECTS)["data"]
    columns = usage_columns(groups)
    if as_json:
        show_json(rows)
    elif as_csv:
        sys.stdout.writelines(csv_lines(columns, rows))
    else:
        show(columns, [[row[column] for column in columns] for row in rows], USAGE_NUMBERS)


def _show_node_hours(config: Path | None, groups: list[str], span: _Span, as_json: bool, as_csv: bool) -> None:
    async def directly(db: Database) -> dict[str, Any]:
        from firstkit.accounting.exports import NODE_HOUR_NOTE
        from firstkit.accounting.node_hours import node_hours

        found = await node_hours(db, *span, open_config(config).accounting.idle_project, groups)
        return {"data": [row.as_row() for row in found], "note": NODE_HOUR_NOTE}

    path = f"/admin/node-hours?{_query(groups, span)}"
    answer = ask(config, path, None, directly, mine=path, hint="It is for operators and auditors.")
    columns = node_hour_columns(groups)
    rows = answer["data"]
    if as_json:
        show_json({"data": [{column: row[column] for column in columns} for row in rows], "note": answer["note"]})
    elif as_csv:
        sys.stdout.writelines(csv_lines(columns, rows))
    else:
        shown = [column for column in _SHOWN if column in columns]
        show(shown, [[_text(row[column]) for column in shown] for row in rows], NODE_HOUR_NUMBERS)
        print(answer["note"], file=sys.stderr)


def _text(value: Any) -> Any:
    return f"{value:.3f}" if isinstance(value, float) else value


def _query(groups: list[str], span: _Span, project: str | None = None) -> str:
    limits = [(name, moment.isoformat()) for name, moment in zip(("since", "until"), span, strict=True) if moment]
    charged = [] if project is None else [("project", project)]
    return urlencode([*(("by", group) for group in groups), *limits, *charged])


def _groups(text: str, allowed: tuple[str, ...]) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in allowed]:
        fail(f"--by: '{unknown[0]}' is not known", f"Allowed are {', '.join(allowed)}, joined by commas.")
    return list(dict.fromkeys(names))


def _span(since: str | None, until: str | None, month: str | None) -> _Span:
    first, last = moment_option("--since", since), moment_option("--until", until)
    if month is None:
        if first is not None and last is not None and last <= first:
            fail("--until: must be later than --since", "Requests count that arrived from --since on, before --until.")
        return first, last
    if since is not None or until is not None:
        fail("--month: not together with --since or --until", "Name the month, or when it begins and ends.")
    try:
        return parse_month(month)
    except ValueError as exc:
        fail(f"--month: {exc}", "For parts of months there are --since and --until.")
