"""``first projects``: make projects, and look after their members."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

import typer

from firstkit.cli.admin import actor
from firstkit.cli.common import ConfigOption, JsonOption, open_config
from firstkit.cli.showing import show, show_json
from firstkit.cli.stored import ask

if TYPE_CHECKING:
    from firstkit.store.database import Database

Row = dict[str, Any]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The project.")]
UserArgument = Annotated[str, typer.Argument(metavar="USER", help="A user, by name.")]
WHICH = "'first projects list' shows the projects, 'first users list' the users that there are."
app = typer.Typer(help="Make projects, and look after their members.", no_args_is_help=True)


@app.command("list")
def list_(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """List all projects; whoever is logged in at a gateway sees their own."""

    async def directly(db: Database) -> Row:
        from firstkit.accounting import projects

        return {"data": await projects.list_all(db, open_config(config).projects)}

    found = ask(config, "/admin/projects", None, directly, mine="/v1/projects", hint=WHICH)["data"]
    if as_json:
        show_json(found)
        return
    columns = ("name", "description", *(("role", "default") if found and "role" in found[0] else ("members", "share")))
    show(columns, [[_cell(row[column]) for column in columns] for row in found], ("members", "share"))
    if not found:
        print("No projects yet: 'first projects create NAME' makes one.", file=sys.stderr)


@app.command("show")
def show_(name: NameArgument, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Show a project; to its managers and to operators, who belongs to it."""

    async def directly(db: Database) -> Row:
        from firstkit.accounting import projects

        entries = open_config(config).projects
        about = projects.described(await projects.find(db, name), entries)
        return {**about, **await projects.belonging(db, name, entries)}

    found = ask(config, _path(name), None, directly, mine=_path(name), hint=WHICH)
    if as_json:
        show_json(found)
        return
    print(f"{found['name']}: {found['description'] or 'no description'}; share {found['share']:g}.")
    if "members" in found:
        show(("user", "role", "since"), [_member(row) for row in found["members"]])
    for what, names in found.get("configuration", {}).items():
        if names:
            print(f"By the configuration also the {what}: {', '.join(names)}.")


@app.command()
def create(
    name: NameArgument,
    description: Annotated[str, typer.Option(help="What it is about.")] = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Make a project that nobody belongs to yet."""

    async def directly(db: Database) -> Row:
        from firstkit.accounting import projects
        from firstkit.store import people

        made = await people.create_project(db, name, description, actor=actor())
        return projects.shown(made, open_config(config).projects)

    made = ask(config, "/admin/projects", {"name": name, "description": description}, directly, hint=WHICH)
    _say(made, as_json, f"Made the project '{name}'. 'first projects add' lets somebody belong to it.")


@app.command()
def add(
    name: NameArgument,
    user: UserArgument,
    manager: Annotated[bool, typer.Option("--manager", help="Let them look after it.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Let a user belong to a project, or change what they are to it. For operators and its managers."""
    role: Literal["manager", "member"] = "manager" if manager else "member"

    async def directly(db: Database) -> Row:
        from firstkit.store import people

        return (await people.add_member(db, name, user, role, actor=actor())).as_row()

    path = f"{_path(name)}/members"
    added = ask(config, path, {"user": user, "role": role}, directly, mine=path, hint=WHICH)
    _say(added, as_json, f"'{user}' is a {role} of '{name}'.")


@app.command()
def remove(name: NameArgument, user: UserArgument, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Let a user belong to a project no more: within 5 seconds nothing is charged to it for them."""

    async def directly(db: Database) -> Row:
        from firstkit.store import people

        return (await people.remove_member(db, name, user, actor=actor())).as_row()

    path = f"{_path(name)}/members/remove"
    removed = ask(config, path, {"user": user}, directly, mine=path, hint=WHICH)
    _say(removed, as_json, f"'{user}' does not belong to '{name}' any more.")


@app.command()
def use(name: NameArgument, as_json: JsonOption = False) -> None:
    """Choose what your requests are charged to that name no project. For those who are logged in."""
    from firstkit.cli.login import about_me

    chosen = about_me({"default_project": name}, WHICH)
    _say(chosen, as_json, f"Your requests that name no project are charged to '{name}' from now on.")


def _path(name: str) -> str:
    """Of a project: its name is one segment, whatever it holds."""
    return f"/v1/projects/{quote(name, safe='')}"


def _say(row: Row, as_json: bool, sentence: str) -> None:
    if as_json:
        show_json(row)
    else:
        print(sentence)


def _cell(value: Any) -> Any:
    return {True: "yes", False: ""}[value] if isinstance(value, bool) else value


def _member(row: Row) -> list[str]:
    return [row["user"], row["role"], row["created_at"][:10]]
