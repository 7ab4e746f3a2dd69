"""Routes for operators about everybody's API keys."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from pydantic import Field

from firstkit.auth import api_keys
from firstkit.auth.permissions import Identity, Scope
from firstkit.clock import now
from firstkit.errors import Forbidden
from firstkit.gateway.acts import Body, by
from firstkit.gateway.identity import grantable, identity_of, needs
from firstkit.gateway.me import DeadKey
from firstkit.gateway.state import gateway_of
from firstkit.store.database import Database

router = APIRouter(prefix="/admin/keys", dependencies=[needs(Scope.ADMIN)], tags=["administration"])


class NewKey(Body):
    """A key to be made; user and projects are made when they are new."""

    name: str
    user: str
    project: str = "default"
    projects: list[str] = Field(default=[], max_length=api_keys.MOST_NAMED)
    models: list[str] | None = Field(default=None, max_length=api_keys.MOST_NAMED)
    scopes: list[str] = Field(default=[Scope.INFERENCE.value])
    expires_in_s: float | None = None


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(router)


@router.get("")
async def list_keys(request: Request, include_dead: bool = False) -> dict[str, Any]:
    """Living keys, oldest first; with ``include_dead`` the revoked and expired ones too. Their secrets are stored
    nowhere."""
    found = await api_keys.list_keys(gateway_of(request).db, include_dead=include_dead)
    return {"data": [info.as_row() for info in found]}


@router.post("", status_code=201)
async def create_key(request: Request, new: NewKey) -> dict[str, Any]:
    """Make a key, with no scopes that you do not hold. Its text is in the answer, and nowhere else, ever."""
    gateway, identity = gateway_of(request), identity_of(request)
    models = None if new.models is None else [gateway.canonical(model) for model in new.models]
    _check_models(identity, models)
    await _check_end(gateway.db, identity, new.expires_in_s)
    text, info = await api_keys.create(
        gateway.db,
        new.name,
        user=new.user,
        project=new.project,
        projects=new.projects,
        models=models,
        scopes=new.scopes,
        expires_in_s=new.expires_in_s,
        held=grantable(identity),
        **by(request),
    )
    return {"key": text, **info.as_row()}


@router.post("/revoke")
async def revoke_key(request: Request, dead: DeadKey) -> dict[str, Any]:
    """End a key: within 5 seconds nobody can use it any more."""
    return (await api_keys.revoke(gateway_of(request).db, dead.name_or_prefix, **by(request))).as_row()


def _check_models(identity: Identity, models: list[str] | None) -> None:
    """Raise Forbidden where a key that is for some models would make one that is for others."""
    if identity.models is not None and (models is None or not identity.models.issuperset(models)):
        raise Forbidden(f"This key makes keys for its own models only: {', '.join(sorted(identity.models))}.")


async def _check_end(db: Database, identity: Identity, expires_in_s: float | None) -> None:
    """Raise Forbidden where a key that an operator has made for themselves would make one that outlives it."""
    keys = await api_keys.list_keys(db, user_id=identity.user_id)
    own = next((key for key in keys if key.is_personal and key.prefix == identity.key_prefix), None)
    if own is None or own.expires_at is None:
        return
    left_s = (own.expires_at - now()).total_seconds()
    if expires_in_s is None or expires_in_s > left_s:
        raise Forbidden(f"A key of your own makes none that outlives it: 'expires_in_s' must be at most {left_s:.0f}.")
