"""Which budgets there are: those of the configuration and those of the store, with names looked up."""

from __future__ import annotations

import asyncio
from typing import cast

from firstkit.accounting.periods import Period
from firstkit.accounting.terms import Each, Scope, Terms, Unit
from firstkit.config import Budget, Config
from firstkit.store.budgets import StoredBudget, ids_of, stored_budgets
from firstkit.store.database import Database
from firstkit.store.tables import projects, users

NOBODY = "-"
"""Stands for the id of a project or user that is configured and not there yet: nobody has it."""


async def read_terms(db: Database, config: Config) -> list[Terms]:
    """All budgets, those of the configuration first. Raises StoreUnavailable."""
    project_names = {each.project for each in config.budgets if each.project is not None}
    user_names = {each.user for each in config.budgets if each.user is not None}
    async with db.read() as conn:
        project_ids = await ids_of(conn, projects, project_names)
        user_ids = await ids_of(conn, users, user_names)
        found = [_configured(each, project_ids, user_ids) for each in config.budgets]
        async for rows in stored_budgets(conn):
            found += [_stored(row) for row in rows]
            await asyncio.sleep(0)
    return found


def _configured(budget: Budget, project_ids: dict[str, str], user_ids: dict[str, str]) -> Terms:
    scope = Scope(
        unit="node_hours" if budget.tokens is None else "tokens",
        period=Period(budget.period),
        project_id=None if budget.project is None else project_ids.get(budget.project, NOBODY),
        user_id=None if budget.user is None else user_ids.get(budget.user, NOBODY),
        model=budget.model,
        each=budget.each,
    )
    amount = budget.node_hours if budget.tokens is None else budget.tokens
    return Terms(scope, amount or 0, budget.stop == "hard", budget.warn_at, budget.project, budget.user)


def _stored(row: StoredBudget) -> Terms:
    unit: Unit = "node_hours" if row.tokens is None else "tokens"
    scope = Scope(unit, Period(row.period), row.project_id, row.user_id, row.model, cast(Each | None, row.each))
    amount = row.node_hours if row.tokens is None else row.tokens
    return Terms(scope, amount or 0, row.stop == "hard", row.warn_at, row.project, row.user, row.id)
