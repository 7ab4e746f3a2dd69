"""``first budgets``: say how much may be used, and see what is left."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from firstkit.accounting.terms import number, terms_of
from firstkit.cli.admin import actor
from firstkit.cli.common import ConfigOption, JsonOption, fail, has_config, open_config
from firstkit.cli.showing import show, show_json
from firstkit.cli.stored import ask

if TYPE_CHECKING:
    from pathlib import Path

    from firstkit.config import Budget
    from firstkit.store.database import Database

Row = dict[str, Any]
NUMBERS = ("used", "reserved", "left")
WHICH = "'first budgets list' shows the budgets that there are, 'first budgets set --help' what one may say."
app = typer.Typer(help="Say how much may be used, and see what is left.", no_args_is_help=True)


@app.command("list")
def list_(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """List all budgets and what is left of them; whoever is logged in at a gateway sees those of their projects.

    Of a budget of each user or project the numbers are those of whoever used the most.
    """
    rows = _all(config) if has_config(config) else _mine(config)
    if as_json:
        show_json(rows)
        return
    show(("id", "whose", "budget", "stop", *NUMBERS, "until"), [_line(row) for row in rows], NUMBERS)
    if not rows:
        print("No budgets yet: 'first budgets set' makes one.", file=sys.stderr)


@app.command("set")
def set_(
    project: Annotated[str | None, typer.Option(help="Use that is charged to this project; default: to any.")] = None,
    user: Annotated[str | None, typer.Option(help="Use of this user; default: of all.")] = None,
    model: Annotated[str | None, typer.Option(help="Use of this model; default: of all.")] = None,
    each: Annotated[str | None, typer.Option(help="'user' or 'project': as much for each of those.")] = None,
    tokens: Annotated[str | None, typer.Option(help="So many of prompts and answers, such as 50M.")] = None,
    node_hours: Annotated[str | None, typer.Option(help="Or so many of jobs, by what they served.")] = None,
    period: Annotated[str, typer.Option(help="A day, week, month or year of UTC, or 'total'.")] = "month",
    soft: Annotated[bool, typer.Option("--soft", help="Only warn, and stop nobody.")] = False,
    warn_at: Annotated[str, typer.Option(help="Warn from this part of it on.")] = "0.8",
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Set a budget. One that was set for the same use, unit and period is changed."""
    whose: Row = {"project": project, "user": user, "model": model, "each": each}
    terms: Row = {"period": period, "stop": "soft" if soft else "hard", "warn_at": warn_at}
    body = {**whose, "tokens": tokens, "node_hours": node_hours, **terms}

    async def directly(db: Database) -> Row:
        from firstkit.store.budgets import NewBudget, set_budget

        budget = _checked(body, config)
        return (await set_budget(db, NewBudget(**budget.model_dump()), actor=actor())).as_row()

    made = ask(config, "/admin/budgets", body, directly, hint=WHICH)
    if as_json:
        show_json(made)
    else:
        print(
            f"Set {made['id']}: {_said(made)}. It {'stops' if made['stop'] == 'hard' else 'warns'} whoever is beyond."
        )


@app.command()
def remove(
    budget: Annotated[str, typer.Argument(metavar="ID", help="The budget, by its id.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Remove a budget that was set. Those of the configuration are removed there."""

    async def directly(db: Database) -> Row:
        from firstkit.store.budgets import remove_budget

        return (await remove_budget(db, budget, actor=actor())).as_row()

    gone = ask(config, "/admin/budgets/remove", {"id": budget}, directly, hint=WHICH)
    if as_json:
        show_json(gone)
    else:
        print(f"Removed {gone['id']}: {_said(gone)}.")


def _all(config: Path | None) -> list[Row]:
    async def directly(db: Database) -> Row:
        from firstkit.accounting.budgets import rows_of_store

        return {"data": await rows_of_store(db, open_config(config))}

    rows: list[Row] = ask(config, "/admin/budgets", None, directly, hint=WHICH)["data"]
    return rows


def _mine(config: Path | None) -> list[Row]:
    """Those that are about any of one's projects, each once."""
    found: list[Row] = []
    for project in _own(config, "/v1/projects")["data"]:
        found += _own(config, f"/v1/projects/{quote(project['name'], safe='')}")["budgets"]
    return [row for place, row in enumerate(found) if row not in found[:place]]


def _own(config: Path | None, path: str) -> Row:
    async def nowhere(_: Database) -> Row:
        fail("there is no configuration, and nobody is logged in.", "Log in: first login --server URL.")

    found: Row = ask(config, path, None, nowhere, mine=path)
    return found


def _checked(body: Row, config: Path | None) -> Budget:
    """What the gateway would make of ``body``; raises InvalidRequest."""
    from pydantic import ValidationError

    from firstkit.config import Budget
    from firstkit.errors import InvalidRequest, ModelNotFound

    try:
        budget = Budget.model_validate(body)
    except ValidationError as exc:
        first = exc.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InvalidRequest(f"'{field}': {first['msg']}." if field else f"{first['msg']}.") from None
    models = open_config(config).models
    names = {name: model for model, entry in models.items() for name in (model, *entry.aliases)}
    if budget.model is not None and budget.model not in names:
        raise ModelNotFound(f"There is no model '{budget.model}'.")
    return budget if budget.model is None else budget.model_copy(update={"model": names[budget.model]})


def _said(row: Row) -> str:
    terms = terms_of(row)
    return f"{terms.what} of {terms.whose()}"


def _line(row: Row) -> list[str]:
    terms = terms_of(row)
    numbers = ["unknown" if row[name] is None else number(row[name]) for name in NUMBERS]
    stop = [row["id"] or "configuration", terms.whose(), terms.what, row["stop"]]
    return [*stop, *numbers, (row["ends_at"] or "for ever")[:10]]
