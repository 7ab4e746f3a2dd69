"""The route to the audit log."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request

from firstkit.auth.permissions import Scope
from firstkit.gateway.identity import needs
from firstkit.gateway.moments import Moment
from firstkit.gateway.state import gateway_of
from firstkit.store.audit import Sought, find

router = APIRouter(prefix="/admin", dependencies=[needs(Scope.AUDIT, Scope.ADMIN)], tags=["administration"])


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(router)


@router.get("/audit")
async def audit_log(
    request: Request,
    since: Moment | None = None,
    until: Moment | None = None,
    actor: str | None = None,
    action: str | None = None,
    subject: str | None = None,
    before: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """What administrators did and what was denied, the newest first; go on by `before`, the id of the last one."""
    sought = Sought(since, until, actor, action, subject, before)
    gateway = gateway_of(request)
    await gateway.audit.write()
    async with gateway.db.read() as conn:
        found = await find(conn, sought, limit + 1)
    return {"data": [entry.as_row() for entry in found[:limit]], "has_more": len(found) > limit}
