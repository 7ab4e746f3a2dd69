"""Routes about who waits for what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from fastapi import APIRouter, FastAPI, Request
from pydantic import Field
from sqlalchemy import Table, select

from firstkit.auth.permissions import Scope
from firstkit.clock import monotonic
from firstkit.gateway.identity import identity_of, needs
from firstkit.gateway.schemas import Answer
from firstkit.gateway.state import gateway_of
from firstkit.routing.admission import Standing
from firstkit.store.database import Database
from firstkit.store.tables import projects, users

ASKED_AT_ONCE = 500
"""Names that are read by one statement."""
router = APIRouter(prefix="/v1", dependencies=[needs(Scope.ACCOUNT)], tags=["account"])
operators = APIRouter(prefix="/admin", dependencies=[needs(Scope.ADMIN, Scope.AUDIT)], tags=["administration"])


class Waiting(Answer):
    """One of your requests that waits for a replica."""

    request: str | None = Field(description="Its id.")
    model: str
    position: int = Field(description="1 for the next to be served, if nobody came or went.")
    waited_s: float
    project: str
    priority: Literal["interactive", "batch"]


class WaitingList(Answer):
    """All of your requests that wait."""

    object: Literal["list"] = "list"
    data: list[Waiting]


class UserStanding(Answer):
    """A user of a project who has something waiting or under way."""

    user: str
    factor: float = Field(description="By which the past use of the user lowers their part of the project's.")
    used: int = Field(description="Tokens; what is older counts for less.")
    waiting: int
    in_flight: int


class ProjectStanding(Answer):
    """A project of which a model was lately used, or is asked for now."""

    project: str
    share: float = Field(description="As configured.")
    factor: float = Field(description="By which its past use lowers its share.")
    used: int = Field(description="Tokens; what is older counts for less.")
    waiting: int
    in_flight: int
    users: list[UserStanding]


class ModelQueue(Answer):
    """Who waits for a model, and how it is shared."""

    model: str
    waiting: int
    in_flight: int
    projects: list[ProjectStanding]


class QueueList(Answer):
    """All models, with who waits for them."""

    object: Literal["list"] = "list"
    data: list[ModelQueue]


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(router)
    app.include_router(operators)


@router.get("/queue")
async def own_queue(request: Request) -> WaitingList:
    """Your requests that wait for a replica, and how many are before each."""
    gateway, identity = gateway_of(request), identity_of(request)
    waiting = list(gateway.room.of_user(identity.user_id))
    names = await _names(gateway.db, projects, {ticket.claim.project for _, ticket in waiting})
    at = monotonic()
    found = [
        Waiting(
            request=ticket.request_id,
            model=model,
            position=gateway.room.position(model, ticket),
            waited_s=round(at - ticket.came_at, 3),
            project=names.get(ticket.claim.project, ticket.claim.project),
            priority="batch" if ticket.claim.is_batch else "interactive",
        )
        for model, ticket in waiting
    ]
    return WaitingList(data=[each for each in found if each.position])


@operators.get("/queue")
async def whole_queue(request: Request) -> QueueList:
    """By model and project: the share, what past use makes of it, and who has what waiting and under way."""
    gateway = gateway_of(request)
    standings = gateway.room.standings()
    known = [project for found in standings.values() for project in found]
    people = {user.id for project in known for user in project.members}
    names = _Names(
        await _names(gateway.db, projects, {project.id for project in known}),
        await _names(gateway.db, users, people),
    )
    return QueueList(
        data=[
            ModelQueue(
                model=model,
                waiting=gateway.room.waiting(model),
                in_flight=pool.in_flight,
                projects=sorted(
                    (_project(each, names) for each in standings.get(model, ())), key=lambda each: each.project
                ),
            )
            for model, pool in gateway.table.pools.items()
        ]
    )


class _Names(NamedTuple):
    """By id."""

    projects: Mapping[str, str]
    users: Mapping[str, str]


def _project(found: Standing, names: _Names) -> ProjectStanding:
    known = [
        UserStanding(
            user=names.users.get(user.id, user.id),
            factor=round(user.factor, 3),
            used=round(user.use),
            waiting=user.waiting,
            in_flight=user.in_flight,
        )
        for user in found.members
    ]
    return ProjectStanding(
        project=names.projects.get(found.id, found.id),
        share=found.share,
        factor=round(found.factor, 3),
        used=round(found.use),
        waiting=found.waiting,
        in_flight=found.in_flight,
        users=sorted(known, key=lambda user: user.user),
    )


async def _names(db: Database, table: Table, ids: Iterable[str]) -> dict[str, str]:
    """By id the names that there are. Raises StoreUnavailable."""
    found: dict[str, str] = {}
    wanted = sorted(ids)
    for start in range(0, len(wanted), ASKED_AT_ONCE):
        some = wanted[start : start + ASKED_AT_ONCE]
        async with db.read() as conn:
            rows = await conn.execute(select(table.c.id, table.c.name).where(table.c.id.in_(some)))
            found |= {row.id: row.name for row in rows}
    return found
