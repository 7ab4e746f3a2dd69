"""Routes for administrators: API keys, and what was used with them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict

from firstkit.accounting.grouping import Grouping
from firstkit.accounting.reports import usage_report
from firstkit.auth import api_keys
from firstkit.auth.permissions import Scope
from firstkit.gateway.identity import grantable, identity_of, needs
from firstkit.gateway.state import gateway_of

router = APIRouter(prefix="/admin", dependencies=[needs(Scope.ADMIN)], tags=["administration"])


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewKey(_Body):
    """A key to be made. User and project are made when they are new."""

    name: str
    user: str
    project: str = "default"
    scopes: list[Scope] = [Scope.INFERENCE]
    expires_in_s: float | None = None


class DeadKey(_Body):
    """A key to be revoked. In a body, not in a path: people paste whole keys, and paths are written down on the way."""

    name_or_prefix: str


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(router)


@router.post("/keys", status_code=201)
async def create_key(request: Request, new: NewKey) -> dict[str, Any]:
    """Make a key. Its text, ``key``, is in this answer and nowhere else."""
    by = identity_of(request)
    text, info = await api_keys.create(
        gateway_of(request).db,
        new.name,
        user=new.user,
        project=new.project,
        scopes=[scope.value for scope in new.scopes],
        expires_in_s=new.expires_in_s,
        actor=by.user_name,
        held=grantable(by),
    )
    return {"key": text, **info.as_row()}


@router.get("/keys")
async def list_keys(request: Request, include_dead: bool = False) -> dict[str, Any]:
    """Living keys, oldest first; with ``include_dead`` the expired and revoked ones too. Their secrets are not kept."""
    found = await api_keys.list_keys(gateway_of(request).db, include_dead=include_dead)
    return {"data": [info.as_row() for info in found]}


@router.post("/keys/revoke")
async def revoke_key(request: Request, dead: DeadKey) -> dict[str, Any]:
    """End a key: within 5 seconds nobody can use it any more."""
    by = identity_of(request).user_name
    return (await api_keys.revoke(gateway_of(request).db, dead.name_or_prefix, actor=by)).as_row()


@router.get("/usage")
async def usage(
    request: Request,
    by: Annotated[list[Grouping], Query()] = [],  # noqa: B006 - FastAPI copies it
    since: datetime | None = None,
    until: datetime | None = None,
) -> dict[str, Any]:
    """Sums from the ledger, of requests that arrived in [since, until), broken down by any groupings."""
    return {"data": [row.as_row() for row in await usage_report(gateway_of(request).db, by, _utc(since), _utc(until))]}


def _utc(moment: datetime | None) -> datetime | None:
    """Times without a zone are taken as UTC."""
    return moment and (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment)
