"""``first users``: see users, give them roles, shut them out."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstkit.auth.permissions import Role
from firstkit.cli.admin import actor
from firstkit.cli.common import ConfigOption, JsonOption
from firstkit.cli.showing import show, show_json
from firstkit.cli.stored import ask

if TYPE_CHECKING:
    from firstkit.store.database import Database


class Granted(str, Enum):
    """The roles that operators give."""

    OPERATOR = Role.OPERATOR.value
    AUDITOR = Role.AUDITOR.value


Row = dict[str, Any]
UserArgument = Annotated[str, typer.Argument(metavar="USER", help="A user, by name.")]
RoleArgument = Annotated[Granted, typer.Argument(metavar="ROLE", help="operator or auditor.")]
WHICH = "'first users list' shows the users that there are."
COLUMNS = ("name", "roles", "projects", "keys", "seen", "status")
app = typer.Typer(help="See users, give them roles, shut them out.", no_args_is_help=True)


@app.command("list")
def list_(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """List users, with the roles and projects that they were given here, and their last login."""

    async def directly(db: Database) -> Row:
        from firstkit.store import people

        return {"data": [user.as_row() for user in await people.list_users(db)]}

    found = ask(config, "/admin/users", None, directly, hint=WHICH)["data"]
    if as_json:
        show_json(found)
        return
    show(COLUMNS, [_line(row) for row in found], ("keys",))
    if not found:
        print("No users yet: people become users by their first login, or with their first key.", file=sys.stderr)


@app.command()
def grant(user: UserArgument, role: RoleArgument, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Give a user a role: operator or auditor. Managers are added to a project."""
    row = _act(config, "grant", user, role)
    _say(row, as_json, f"'{user}' is an {role.value}.")


@app.command()
def ungrant(user: UserArgument, role: RoleArgument, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Take away a role that was granted. The configuration may still give it."""
    row = _act(config, "ungrant", user, role)
    _say(row, as_json, f"'{user}' is no {role.value} any more, unless the configuration says so.")


@app.command()
def disable(user: UserArgument, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Shut a user out: within 5 seconds no key, login or session of theirs works any more."""
    row = _act(config, "disable", user)
    _say(row, as_json, f"'{user}' is shut out. 'first users enable' lets them in again.")


@app.command()
def enable(user: UserArgument, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Let a user in again who was shut out: their keys work as before."""
    row = _act(config, "enable", user)
    _say(row, as_json, f"'{user}' may come in again.")


def _act(config: Path | None, what: str, user: str, role: Granted | None = None) -> Row:
    """The user after ``what`` was done to them; ends the command when it fails."""
    given = {} if role is None else {"role": role.value}

    async def directly(db: Database) -> Row:
        from firstkit.store import people

        done = getattr(people, what)
        row: Row = (await done(db, user, **given, actor=actor())).as_row()
        return row

    done: Row = ask(config, f"/admin/users/{what}", {"user": user, **given}, directly, hint=WHICH)
    return done


def _say(row: Row, as_json: bool, sentence: str) -> None:
    if as_json:
        show_json(row)
    else:
        print(sentence)


def _line(row: Row) -> list[Any]:
    seen = "never" if row["seen_at"] is None else row["seen_at"][:10]
    status = "good" if row["disabled_at"] is None else "disabled"
    return [row["name"], ", ".join(row["roles"]), ", ".join(row["projects"]), row["keys"], seen, status]
