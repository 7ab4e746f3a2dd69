"""Routes about oneself: who one is, one's keys and default project."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from pydantic import Field

from firstkit.auth import api_keys
from firstkit.auth.permissions import Identity, Role, Scope, require_project
from firstkit.clock import now
from firstkit.gateway.acts import Body, by
from firstkit.gateway.identity import identity_of, needs
from firstkit.gateway.projects import standing
from firstkit.gateway.state import Gateway, gateway_of
from firstkit.store import people

router = APIRouter(prefix="/v1", dependencies=[needs(Scope.ACCOUNT)], tags=["account"])
EARLIER_S = 1.0
"""So much before the key that makes it a new one ends, where nothing is said of its end."""


class Chosen(Body):
    """The project that requests of a login are charged to which name none. Null: nothing is chosen."""

    default_project: str | None


class OwnKey(Body):
    """A key of one's own. It goes no further than whoever makes it: without ``project`` it is charged to what this
    request is charged to, without ``models`` it is for all that its maker may use, without ``expires_in_s`` it is good
    for as long as may be."""

    name: str
    project: str | None = None
    projects: list[str] = Field(default=[], max_length=api_keys.MOST_NAMED)
    models: list[str] | None = Field(default=None, max_length=api_keys.MOST_NAMED)
    scopes: list[str] = Field(default=[Scope.INFERENCE.value])
    expires_in_s: float | None = None


class DeadKey(Body):
    """A key to be ended, by its name, prefix or whole text."""

    name_or_prefix: str


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(router)


@router.get("/me")
async def whoami(request: Request) -> dict[str, Any]:
    """Who you are, how you came, and what you may do."""
    identity = identity_of(request)
    return {
        "object": "user",
        "id": identity.user_id,
        "name": identity.user_name,
        "came_by": "api_key" if identity.has_key else identity.key_prefix,
        "key": f"first-{identity.key_prefix}" if identity.has_key else None,
        "project": identity.project_name or None,
        "projects": [standing(identity, each) for each in identity.memberships],
        "roles": [role.value for role in Role if role in identity.roles],
        "scopes": [scope.value for scope in Scope if scope.value in identity.scopes],
        "models": None if identity.models is None else sorted(identity.models),
        "groups": sorted(identity.groups),
        "domains": sorted(identity.domains),
    }


@router.post("/me")
async def choose(request: Request, chosen: Chosen) -> dict[str, Any]:
    """Choose one of your projects as what is charged where a request names none."""
    identity = identity_of(request)
    project_id = None if chosen.default_project is None else identity.charged_to(chosen.default_project).project_id
    await people.set_default_project(gateway_of(request).db, identity.user_id, project_id, **by(request))
    return {"default_project": chosen.default_project}


@router.get("/keys")
async def list_keys(request: Request, include_dead: bool = False) -> dict[str, Any]:
    """Your living keys, oldest first; with ``include_dead`` the revoked and expired ones too. Their secrets are stored
    nowhere."""
    db, user_id = gateway_of(request).db, identity_of(request).user_id
    found = await api_keys.list_keys(db, include_dead=include_dead, user_id=user_id)
    return {"data": [info.as_row() for info in found]}


@router.post("/keys", status_code=201)
async def create_key(request: Request, wanted: OwnKey) -> dict[str, Any]:
    """Make a key of your own. Its text is in the answer, and nowhere else, ever."""
    gateway, identity = gateway_of(request), identity_of(request)
    if wanted.project is None:
        require_project(identity)
    project = identity.project_name if wanted.project is None else wanted.project
    text, info = await api_keys.create(
        gateway.db,
        wanted.name,
        user=identity.user_name,
        project=project,
        projects=wanted.projects,
        models=_seen(gateway, wanted.models, [identity.charged_to(each) for each in (project, *wanted.projects)]),
        scopes=wanted.scopes,
        expires_in_s=await _longest_s(gateway, identity) if wanted.expires_in_s is None else wanted.expires_in_s,
        personal=api_keys.Personal(identity, gateway.config.auth.personal_keys),
        **by(request),
    )
    return {"key": text, **info.as_row()}


@router.post("/keys/revoke")
async def revoke_key(request: Request, dead: DeadKey) -> dict[str, Any]:
    """End a key of yours: within 5 seconds nobody can use it any more."""
    db, user_id = gateway_of(request).db, identity_of(request).user_id
    return (await api_keys.revoke(db, dead.name_or_prefix, user_id=user_id, **by(request))).as_row()


def _seen(gateway: Gateway, models: list[str] | None, identities: list[Identity]) -> list[str] | None:
    """The same models by their canonical names; raises ModelNotFound for one that none of the ``identities``, who are
    one user charged to several projects, may see."""
    found = []
    for model in models or ():
        name = gateway.canonical(model)
        who = next((each for each in identities if gateway.reach.sees(each, name)), identities[0])
        found.append(gateway.canonical(model, who))
    return None if models is None else found


async def _longest_s(gateway: Gateway, identity: Identity) -> float:
    """How long a key may be good that ``identity`` makes for themselves: at most as long as the one that they use."""
    keys = await api_keys.list_keys(gateway.db, user_id=identity.user_id)
    end = next((key.expires_at for key in keys if key.prefix == identity.key_prefix), None)
    most_s = gateway.config.auth.personal_keys.max_lifetime
    return most_s if end is None else min(most_s, (end - now()).total_seconds() - EARLIER_S)
