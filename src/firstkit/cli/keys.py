"""``first keys``: make, list and revoke API keys."""

from __future__ import annotations

import getpass
import os
import sys
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstkit.cli.common import ConfigOption, JsonOption, fail, open_server
from firstkit.cli.moments import parse_duration
from firstkit.cli.showing import show, show_json
from firstkit.cli.stored import ask_store
from firstkit.clock import now

if TYPE_CHECKING:
    from firstkit.auth.api_keys import KeyInfo
    from firstkit.store.database import Database

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


class ScopeName(str, Enum):
    """The scopes, known here without importing the store."""

    INFERENCE = "inference"
    METRICS = "metrics"
    ADMIN = "admin"


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is called, in lists and reports.")],
    user: Annotated[str | None, typer.Option(help="Who will use it; default: you. Made when new.")] = None,
    project: Annotated[str, typer.Option(help="What its use is charged to. Made when new.")] = "default",
    scope: Annotated[list[ScopeName] | None, typer.Option(help="May be repeated; default: inference.")] = None,
    expires: Annotated[str | None, typer.Option(help="How long it is good, such as 90d; default: for ever.")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Make a key and print it, the only time that it can be seen."""
    expires_in_s = None if expires is None else _seconds(expires)
    scopes = [item.value for item in scope or [ScopeName.INFERENCE]]

    async def work(db: Database) -> tuple[str, KeyInfo]:
        from firstkit.auth import api_keys

        text = await api_keys.create(
            db, name, user=user or _login(), project=project, scopes=scopes, expires_in_s=expires_in_s, actor=_actor()
        )
        prefix = api_keys.parse_key(text)
        return text, next(info for info in await api_keys.list_keys(db) if info.prefix == prefix)

    text, info = ask_store(config, work)
    if as_json:
        show_json({"key": text, **_fields(info)})
        return
    until = f"good until {_time(info.expires_at)}" if info.expires_at else "good until it is revoked"
    about = f"Key '{info.name}' of {info.user}, charged to {info.project}, for {', '.join(info.scopes)}, {until}."
    print(about, "Keep it now: it cannot be shown again.", sep="\n", file=sys.stderr)
    print(text)


@app.command("list")
def list_(
    include_dead: Annotated[bool, typer.Option("--all", help="Expired and revoked keys too.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """List keys; their secrets are stored nowhere."""

    from firstkit.cli import sqlite_lists

    async def work(db: Database) -> list[KeyInfo]:
        from firstkit.auth import api_keys

        return await api_keys.list_keys(db, include_dead=include_dead)

    found = sqlite_lists.list_keys(open_server(config).database_url, now(), include_dead)
    if found is None:
        found = [_fields(info) for info in ask_store(config, work)]
    if as_json:
        show_json(found)
        return
    columns = ("name", "prefix", "user", "project", "scopes", "status", "created_at", "expires_at")
    show([column.removesuffix("_at") for column in columns], [[_cell(row[c]) for c in columns] for row in found])
    if not found:
        print("No keys yet: 'first keys create NAME' makes one.", file=sys.stderr)


@app.command()
def revoke(
    name_or_prefix: Annotated[str, typer.Argument(metavar="NAME_OR_PREFIX", help="The key's name or prefix.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """End a key: within 5 seconds nobody can use it any more."""

    async def work(db: Database) -> KeyInfo:
        from firstkit.auth import api_keys

        return await api_keys.revoke(db, name_or_prefix, actor=_actor())

    info = ask_store(config, work)
    if as_json:
        show_json(_fields(info))
    else:
        print(f"Revoked the key '{info.name}' (first-{info.prefix}) of {info.user}.")


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as exc:
        fail(f"--expires: {exc}", "Leave --expires out for a key that is good until it is revoked.")


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without an entry in the password database
        return f"uid-{os.getuid()}"


def _actor() -> str:
    return f"cli:{_login()}"


def _fields(info: KeyInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "prefix": f"first-{info.prefix}",
        "user": info.user,
        "project": info.project,
        "scopes": list(info.scopes),
        "status": info.status,
        "created_at": info.created_at,
        "expires_at": info.expires_at,
        "revoked_at": info.revoked_at,
    }


def _cell(value: object) -> object:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d")
    return ", ".join(value) if isinstance(value, list) else value


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")
