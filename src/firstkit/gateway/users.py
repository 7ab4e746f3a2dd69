"""Routes for operators about users: their roles, and who is shut out."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Request

from firstkit.auth.permissions import Identity, Role, Scope, check_grant, scopes_of
from firstkit.errors import InvalidRequest
from firstkit.gateway.acts import Body, by
from firstkit.gateway.identity import LOCAL_ADMIN, grantable, identity_of, needs
from firstkit.gateway.state import gateway_of
from firstkit.store import people

router = APIRouter(prefix="/admin/users", dependencies=[needs(Scope.ADMIN)], tags=["administration"])


class NotOneself(InvalidRequest):
    """Nobody shuts themselves out, or takes their own role of an operator: another operator may."""

    code = "not_oneself"


class Whom(Body):
    """A user, by name."""

    user: str


class Granted(Whom):
    """A user, and a role that operators give. Managers are added to a project."""

    role: Literal["operator", "auditor"]


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(router)


@router.get("")
async def list_users(request: Request, user: str | None = None) -> dict[str, Any]:
    """All users by name, or one: what they were granted and added to, when they logged in last, who is shut out."""
    return {"data": [each.as_row() for each in await people.list_users(gateway_of(request).db, name=user)]}


@router.post("/grant")
async def grant(request: Request, granted: Granted) -> dict[str, Any]:
    """Give a user a role, of which one holds all scopes oneself."""
    check_grant(_scopes(granted.role), grantable(identity_of(request)))
    return (await people.grant(gateway_of(request).db, granted.user, granted.role, **by(request))).as_row()


@router.post("/ungrant")
async def ungrant(request: Request, granted: Granted) -> dict[str, Any]:
    """Take a role away that was granted. The configuration may still give it."""
    if granted.role == Role.OPERATOR.value:
        _check_other(identity_of(request), granted.user)
    return (await people.ungrant(gateway_of(request).db, granted.user, granted.role, **by(request))).as_row()


@router.post("/disable")
async def disable(request: Request, whom: Whom) -> dict[str, Any]:
    """Shut a user out: within 5 seconds no key, login or session of theirs works any more."""
    _check_other(identity_of(request), whom.user)
    return (await people.disable(gateway_of(request).db, whom.user, **by(request))).as_row()


@router.post("/enable")
async def enable(request: Request, whom: Whom) -> dict[str, Any]:
    """Let a user in again: their keys work as before."""
    return (await people.enable(gateway_of(request).db, whom.user, **by(request))).as_row()


def _scopes(role: str) -> list[Scope]:
    return [Scope(name) for name in sorted(scopes_of((Role(role),)))]


def _check_other(identity: Identity, user: str) -> None:
    """Raise NotOneself where somebody would remove their own way in. Who has the admin socket keeps that."""
    if identity.user_id != LOCAL_ADMIN.user_id and identity.user_name == user:
        raise NotOneself
