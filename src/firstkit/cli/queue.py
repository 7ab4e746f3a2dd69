"""``first queue``: who waits for what."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from firstkit.cli.common import ConfigOption, JsonOption
from firstkit.cli.showing import duration, show, show_json
from firstkit.cli.stored import ask

Row = dict[str, Any]
OWN = ("request", "model", "place", "waited", "project", "priority")
WHOLE = ("model", "project", "user", "share", "factor", "used", "waiting", "in flight")
NUMBERS = ("place", "waited", "share", "factor", "used", "waiting", "in flight")
HINT = "'first whoami' shows who you are, and what you may see."


def queue(
    everybody: Annotated[
        bool, typer.Option("--all", help="Everybody's, where you are logged in as an operator or auditor.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show who waits for what, and how it is shared.

    Operators see projects and users; whoever is logged in at a gateway sees their own requests.
    """
    mine = "/admin/queue" if everybody else "/v1/queue"
    rows: list[Row] = ask(config, "/admin/queue", None, None, mine=mine, hint=HINT)["data"]
    if as_json:
        show_json(rows)
    elif not rows:
        print("None of your requests waits.", file=sys.stderr)
    elif "position" in rows[0]:
        show(OWN, [_own(row) for row in rows], NUMBERS)
    elif lines := [line for row in rows for line in _of_model(row)]:
        show(WHOLE, lines, NUMBERS)
    else:
        print("Nobody waits, and nothing was used of late.", file=sys.stderr)


def _own(row: Row) -> list[object]:
    waited = duration(row["waited_s"])
    return [row["request"], row["model"], row["position"], waited, row["project"], row["priority"]]


def _of_model(row: Row) -> list[list[object]]:
    return [[row["model"], *line] for project in row["projects"] for line in _of_project(project)]


def _of_project(row: Row) -> list[list[object]]:
    whole = [row["project"], None, f"{row['share']:g}", *_standing(row)]
    return [whole, *([row["project"], user["user"], None, *_standing(user)] for user in row["users"])]


def _standing(row: Row) -> list[object]:
    return [f"{row['factor']:.2f}", row["used"], row["waiting"], row["in_flight"]]
