"""Routes about projects: for their members, their managers and for operators."""

from __future__ import annotations

import urllib.parse
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Request

from firstkit.accounting import projects
from firstkit.auth.permissions import Identity, Membership, ProjectNotFound, Scope
from firstkit.errors import Forbidden, NotFound
from firstkit.gateway.acts import Body, by
from firstkit.gateway.identity import identity_of, needs
from firstkit.gateway.state import gateway_of
from firstkit.store import people

router = APIRouter(prefix="/v1/projects", tags=["account"])
operators = APIRouter(prefix="/admin/projects", dependencies=[needs(Scope.ADMIN)], tags=["administration"])
OF_ONE = [needs(Scope.ACCOUNT, Scope.ADMIN)]


class NotManager(Forbidden):
    """Only managers of this project, and operators, may do this."""

    code = "not_manager"


class Whom(Body):
    """A user, by name."""

    user: str


class Added(Whom):
    """A user, and what they are to a project."""

    role: Literal["member", "manager"] = "member"


class NewProject(Body):
    """A project that nobody belongs to yet."""

    name: str
    description: str = ""


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(router)
    app.include_router(operators)


# -- for members and managers ------------------------------------------------------------------------------------------


@router.get("", dependencies=[needs(Scope.ACCOUNT)])
async def list_own(request: Request) -> dict[str, Any]:
    """The projects that you belong to."""
    gateway, identity = gateway_of(request), identity_of(request)
    known = await people.list_projects(gateway.db, ids=[each.project_id for each in identity.memberships])
    about = {project.id: project.description for project in known}
    return {
        "data": [
            {**standing(identity, each), "description": about.get(each.project_id, "")} for each in identity.memberships
        ]
    }


# Before the shorter paths: a name may hold what they end in.
@router.post("/{name:path}/members/remove", dependencies=OF_ONE)
async def remove_member(request: Request, name: str, whom: Whom) -> dict[str, Any]:
    """Let somebody belong to a project no more. For its managers and for operators."""
    _check_segment(request, name)
    _check_manager(identity_of(request), name)
    return (await people.remove_member(gateway_of(request).db, name, whom.user, **by(request))).as_row()


@router.post("/{name:path}/members", dependencies=OF_ONE)
async def add_member(request: Request, name: str, added: Added) -> dict[str, Any]:
    """Let a user belong to a project, or change what they are to it. For its managers and for operators."""
    _check_segment(request, name)
    _check_manager(identity_of(request), name)
    return (await people.add_member(gateway_of(request).db, name, added.user, added.role, **by(request))).as_row()


@router.get("/{name:path}", dependencies=OF_ONE)
async def retrieve(request: Request, name: str) -> dict[str, Any]:
    """A project that you belong to, with the budgets that cover your use of it; where you are a manager of it, also
    who else belongs to it."""
    _check_segment(request, name)
    gateway, identity = gateway_of(request), identity_of(request)
    own = membership(identity, name)
    project = await projects.find(gateway.db, name)
    found = projects.described(project, gateway.config.projects)
    found["budgets"] = gateway.budgets.standing(project.id, "" if own is None else identity.user_id)
    if own is not None:
        found |= standing(identity, own)
    if may_manage(identity, own):
        found |= await projects.belonging(gateway.db, name, gateway.config.projects)
    return found


# -- for operators -----------------------------------------------------------------------------------------------------


@operators.get("")
async def list_all(request: Request) -> dict[str, Any]:
    """All projects by name, with how many users were added to each."""
    gateway = gateway_of(request)
    return {"data": await projects.list_all(gateway.db, gateway.config.projects)}


@operators.post("", status_code=201)
async def create(request: Request, new: NewProject) -> dict[str, Any]:
    """Make a project that nobody belongs to yet."""
    gateway = gateway_of(request)
    made = await people.create_project(gateway.db, new.name, new.description, **by(request))
    return projects.shown(made, gateway.config.projects)


# -- who may what ------------------------------------------------------------------------------------------------------


def membership(identity: Identity, name: str) -> Membership | None:
    """What ``identity`` is to a project; None: an operator who does not belong to it. Raises ProjectNotFound."""
    own = next((each for each in identity.memberships if each.project == name), None)
    if own is None and Scope.ADMIN.value not in identity.scopes:
        raise ProjectNotFound(f"There is no project '{name[:100]}', or you do not belong to it.")
    return own


def may_manage(identity: Identity, own: Membership | None) -> bool:
    """Whether they may see the members of the project that ``own`` is of, and change them."""
    return Scope.ADMIN.value in identity.scopes or (own is not None and own.is_manager)


def standing(identity: Identity, own: Membership) -> dict[str, Any]:
    """What somebody is to one of their projects. ``default``: this request is charged to it."""
    role = "manager" if own.is_manager else "member"
    return {"name": own.project, "role": role, "default": own.project_id == identity.project_id}


def _check_manager(identity: Identity, name: str) -> None:
    """Raise ProjectNotFound for strangers to a project, NotManager for its other members."""
    if not may_manage(identity, membership(identity, name)):
        raise NotManager


def _check_segment(request: Request, name: str) -> None:
    """Raise NotFound unless ``name`` is one segment of the path, in which ``%2F`` is a part of the name."""
    segment = "/".join(request.scope["raw_path"].decode("latin-1").split("/")[3:4])
    if urllib.parse.unquote(segment) != name:
        raise NotFound
