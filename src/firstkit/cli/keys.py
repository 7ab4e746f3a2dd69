"""``first keys``: make, list and revoke API keys."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstkit.auth.permissions import Scope
from firstkit.cli.admin import actor, login
from firstkit.cli.common import ConfigOption, JsonOption, fail
from firstkit.cli.moments import parse_duration
from firstkit.cli.showing import show, show_json
from firstkit.cli.stored import ask

if TYPE_CHECKING:
    from firstkit.store.database import Database

Row = dict[str, Any]
app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is called, in lists and reports.")],
    user: Annotated[str | None, typer.Option(help="Who will use it; default: you. Made when new.")] = None,
    project: Annotated[str, typer.Option(help="What its use is charged to. Made when new.")] = "default",
    scope: Annotated[list[Scope] | None, typer.Option(help="May be repeated; default: inference.")] = None,
    expires: Annotated[str | None, typer.Option(help="How long it is good, such as 90d; default: for ever.")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Make a key and print it, the only time that it can be seen."""
    scopes = [item.value for item in scope or [Scope.INFERENCE]]
    made = make(config, name, user, project, scopes, None if expires is None else _seconds(expires))
    if as_json:
        show_json(made)
        return
    until = f"good until {_minute(made['expires_at'])}" if made["expires_at"] else "good until it is revoked"
    about = f"Key '{made['name']}' of {made['user']}, charged to {made['project']}, for {', '.join(made['scopes'])}"
    print(f"{about}, {until}.", "Keep it now: it cannot be shown again.", sep="\n", file=sys.stderr)
    print(made["key"])


@app.command("list")
def list_(
    include_dead: Annotated[bool, typer.Option("--all", help="Expired and revoked keys too.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """List keys; their secrets are stored nowhere."""

    async def directly(db: Database) -> Row:
        from firstkit.auth import api_keys

        return {"data": [info.as_row() for info in await api_keys.list_keys(db, include_dead=include_dead)]}

    found = ask(config, f"/admin/keys?include_dead={include_dead}", None, directly)["data"]
    if as_json:
        show_json(found)
        return
    columns = ("name", "prefix", "user", "project", "scopes", "status", "created", "expires")
    show(columns, [_line(row) for row in found])
    if not found:
        print("No keys yet: 'first keys create NAME' makes one.", file=sys.stderr)


@app.command()
def revoke(
    name_or_prefix: Annotated[str, typer.Argument(metavar="NAME_OR_PREFIX", help="The key's name or prefix.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """End a key: within 5 seconds nobody can use it any more."""
    revoked = end(config, name_or_prefix)
    if as_json:
        show_json(revoked)
    else:
        print(f"Revoked the key '{revoked['name']}' ({revoked['prefix']}) of {revoked['user']}.")


def make(
    config: Path | None,
    name: str,
    user: str | None = None,
    project: str = "default",
    scopes: Sequence[str] = (Scope.INFERENCE.value,),
    expires_in_s: float | None = None,
) -> Row:
    """A new key with its text; ends the command when it fails."""
    wanted: Row = {"user": user or login(), "project": project, "scopes": list(scopes), "expires_in_s": expires_in_s}

    async def directly(db: Database) -> Row:
        from firstkit.auth import api_keys

        text, info = await api_keys.create(db, name, **wanted, actor=actor())
        return {"key": text, **info.as_row()}

    made: Row = ask(config, "/admin/keys", {"name": name, **wanted}, directly)
    return made


def end(config: Path | None, name_or_prefix: str) -> Row:
    """The key that was revoked; ends the command when that fails."""

    async def directly(db: Database) -> Row:
        from firstkit.auth import api_keys

        return (await api_keys.revoke(db, name_or_prefix, actor=actor())).as_row()

    revoked: Row = ask(config, "/admin/keys/revoke", {"name_or_prefix": name_or_prefix}, directly)
    return revoked


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as exc:
        fail(f"--expires: {exc}", "Leave --expires out for a key that is good until it is revoked.")


def _line(row: Row) -> list[str]:
    names = (row["name"], row["prefix"], row["user"], row["project"], ", ".join(row["scopes"]), row["status"])
    return [*names, row["created_at"][:10], (row["expires_at"] or "")[:10]]


def _minute(moment: str) -> str:
    """An ISO 8601 time of ours, which is in UTC, as people write it."""
    return f"{moment[:16].replace('T', ' ')} UTC"
