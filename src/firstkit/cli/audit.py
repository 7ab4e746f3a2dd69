"""``first audit``: what administrators did, and what was denied."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import typer

from firstkit.cli.common import ConfigOption, JsonOption
from firstkit.cli.moments import moment_option
from firstkit.cli.showing import show, show_json
from firstkit.cli.stored import ask

if TYPE_CHECKING:
    from firstkit.store.database import Database

COLUMNS = ("at", "actor", "action", "subject", "source", "count", "details")


def audit(
    since: Annotated[str | None, typer.Option(help="From then on: 7d, 2026-11-01 or 2026-11-01T12:00 (UTC).")] = None,
    until: Annotated[str | None, typer.Option(help="Before then, written likewise.")] = None,
    actor: Annotated[str | None, typer.Option(help="Of this user; 'unknown' for those that nobody knew.")] = None,
    action: Annotated[str | None, typer.Option(help="Such as denied, key.revoke, or key for all about keys.")] = None,
    subject: Annotated[str | None, typer.Option(help="To this key, user, project, cluster or path.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="So many, the newest.")] = 100,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show what administrators did and what was denied, the newest last.

    Nobody can change or remove an entry: the database refuses that.
    """
    first, last = moment_option("--since", since), moment_option("--until", until)

    async def directly(db: Database) -> dict[str, Any]:
        from firstkit.store.audit import Sought, find

        async with db.read() as conn:
            found = await find(conn, Sought(first, last, actor, action, subject), limit)
        return {"data": [entry.as_row() for entry in found], "has_more": False}

    wanted = _query(since=first, until=last, actor=actor, action=action, subject=subject, limit=limit)
    path = f"/admin/audit?{wanted}"
    rows = ask(config, path, None, directly, mine=path)["data"][::-1]
    if as_json:
        show_json(rows)
    else:
        show(COLUMNS, [_line(row) for row in rows], ("count",))


def _query(**sought: str | int | datetime | None) -> str:
    given = {name: value for name, value in sought.items() if value is not None}
    return urlencode(
        {name: value.isoformat() if isinstance(value, datetime) else value for name, value in given.items()}
    )


def _line(row: dict[str, Any]) -> list[object]:
    told = {name: value for name, value in row["details"].items() if value not in (None, "", [])}
    details = ", ".join(f"{name}: {_words(value)}" for name, value in told.items())
    return [row["at"][:19].replace("T", " "), *(row[name] for name in COLUMNS[1:-1]), details]


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
