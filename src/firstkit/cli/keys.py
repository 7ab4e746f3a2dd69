"""``first keys``: make, list and revoke API keys."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstkit.auth.permissions import Scope
from firstkit.cli.admin import actor, login
from firstkit.cli.common import ConfigOption, JsonOption, fail, has_config
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
    project: Annotated[str | None, typer.Option(help="What its use is charged to. Made when new.")] = None,
    also: Annotated[list[str] | None, typer.Option(help="A further project that requests may name.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model that it is for; default: all.")] = None,
    scope: Annotated[list[Scope] | None, typer.Option(help="May be repeated; default: inference.")] = None,
    expires: Annotated[str | None, typer.Option(help="How long it is good, such as 90d.")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Make a key and print it, the only time that it can be seen.

    Whoever has no configuration and is logged in at a gateway makes one for themselves.
    """
    wanted = Wanted(
        user=user,
        project=project,
        projects=also or [],
        models=model,
        scopes=[item.value for item in scope or [Scope.INFERENCE]],
        expires_in_s=None if expires is None else _seconds(expires),
    )
    made = make(config, name, wanted)
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

    which = f"include_dead={include_dead}"
    found = ask(config, f"/admin/keys?{which}", None, directly, mine=f"/v1/keys?{which}")["data"]
    if as_json:
        show_json(found)
        return
    columns = ("name", "prefix", "user", "project", "scopes", "models", "status", "created", "expires")
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


@dataclass(frozen=True)
class Wanted:
    """What a new key shall be for. None: of the user, whoever asks; of the project, the usual one; of the models, all;
    of the time, for ever, or as long as people may have keys of their own."""

    user: str | None = None
    project: str | None = None
    projects: Sequence[str] = ()
    models: Sequence[str] | None = None
    scopes: Sequence[str] = (Scope.INFERENCE.value,)
    expires_in_s: float | None = None


def make(config: Path | None, name: str, wanted: Wanted = Wanted()) -> Row:
    """A new key with its text; ends the command when it fails."""
    mine = {**asdict(wanted), "name": name}
    if mine.pop("user") is not None and not has_config(config):
        fail("--user is for operators: a login makes keys for its own user.", "Leave --user out.", status=2)
    body = {**mine, "user": wanted.user or login(), "project": wanted.project or "default"}

    async def directly(db: Database) -> Row:
        from firstkit.auth import api_keys

        text, info = await api_keys.create(db, **body, actor=actor())
        return {"key": text, **info.as_row()}

    made: Row = ask(config, "/admin/keys", body, directly, mine="/v1/keys", my_body=mine)
    return made


def end(config: Path | None, name_or_prefix: str) -> Row:
    """The key that was revoked; ends the command when that fails."""

    async def directly(db: Database) -> Row:
        from firstkit.auth import api_keys

        return (await api_keys.revoke(db, name_or_prefix, actor=actor())).as_row()

    body = {"name_or_prefix": name_or_prefix}
    revoked: Row = ask(config, "/admin/keys/revoke", body, directly, mine="/v1/keys/revoke")
    return revoked


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as exc:
        fail(f"--expires: {exc}", "Leave --expires out for a key that is good until it is revoked.")


def _line(row: Row) -> list[str]:
    names = [row["name"], row["prefix"], row["user"], ", ".join([row["project"], *row["projects"]])]
    opens = [", ".join(row["scopes"]), "all" if row["models"] is None else ", ".join(row["models"])]
    return [*names, *opens, row["status"], row["created_at"][:10], (row["expires_at"] or "")[:10]]


def _minute(moment: str) -> str:
    """An ISO 8601 time of ours, which is in UTC, as people write it."""
    return f"{moment[:16].replace('T', ' ')} UTC"
