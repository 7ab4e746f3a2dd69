"""Routes about budgets, for those who run the service and those who look at its books. What is left of their own people
see with their projects."""

from __future__ import annotations

import contextlib
from typing import Any

from fastapi import APIRouter, FastAPI, Request

from firstkit.auth.permissions import Scope
from firstkit.config import Budget
from firstkit.errors import StoreUnavailable
from firstkit.gateway.acts import Body, by
from firstkit.gateway.identity import needs
from firstkit.gateway.state import Gateway, gateway_of
from firstkit.store.budgets import NewBudget, remove_budget, set_budget

router = APIRouter(prefix="/admin/budgets", tags=["administration"])


class DeadBudget(Body):
    """A budget to be removed."""

    id: str


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(router)


@router.get("", dependencies=[needs(Scope.ADMIN, Scope.AUDIT)])
async def list_budgets(request: Request) -> dict[str, Any]:
    """All budgets, those of the configuration first (their `id` is null), with what is used, reserved and left in the
    period that is now; null while that is not known. Of a budget of each user or project the numbers are those of
    whoever used the most, and `subjects` are the hundred who did."""
    return {"data": await gateway_of(request).budgets.rows()}


@router.post("", status_code=201, dependencies=[needs(Scope.ADMIN)])
async def set_one(request: Request, budget: Budget) -> dict[str, Any]:
    """Set a budget, with the fields that it has in the configuration. One that was set before for the same project,
    user, model, `each`, unit and period is changed. It is in force at once."""
    gateway = gateway_of(request)
    model = None if budget.model is None else gateway.canonical(budget.model)
    new = NewBudget(**{**budget.model_dump(), "model": model})
    made = await set_budget(gateway.db, new, **by(request))
    await _take_over(gateway)
    return made.as_row()


@router.post("/remove", dependencies=[needs(Scope.ADMIN)])
async def remove(request: Request, dead: DeadBudget) -> dict[str, Any]:
    """Remove a budget that was set. Those of the configuration are removed there."""
    gateway = gateway_of(request)
    gone = await remove_budget(gateway.db, dead.id, **by(request))
    await _take_over(gateway)
    return gone.as_row()


async def _take_over(gateway: Gateway) -> None:
    """Have the change in force now; where the store does not answer, it is within seconds of its return."""
    with contextlib.suppress(StoreUnavailable):
        await gateway.budgets.refresh()
