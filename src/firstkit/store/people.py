"""Users and projects in the store, and who belongs to what: each change writes its line of the audit log with it.

What the configuration and the identity providers say of people comes on top of this: see ``firstkit.auth.people``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Row, and_, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.auth.names import check_names, check_text, is_name
from firstkit.auth.permissions import ProjectNotFound, Role
from firstkit.clock import now
from firstkit.errors import InvalidRequest, NotFound
from firstkit.ids import new_id
from firstkit.store.audit import note
from firstkit.store.database import Database
from firstkit.store.tables import api_keys, members, projects, sessions, users

Membership = Literal["member", "manager"]
GRANTED = (Role.OPERATOR, Role.AUDITOR)
"""The roles that operators give. Everybody is a user, and managers are so of a project."""


class UserNotFound(NotFound):
    """There is no such user: people become users by their first login, or with their first key."""

    code = "user_not_found"


class MemberNotFound(NotFound):
    """This user was not added to this project."""

    code = "member_not_found"


class ProjectNameTaken(InvalidRequest):
    """There is a project of this name already."""

    code = "project_name_taken"


@dataclass(frozen=True, slots=True)
class User:
    """A user as the store knows them. ``roles``: those that operators granted; ``groups`` and ``domains``: as the last
    login told; ``projects``: those that they were added to. Times are aware, in UTC."""

    id: str
    name: str
    email: str | None
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    domains: tuple[str, ...]
    projects: tuple[str, ...]
    keys: int
    created_at: datetime
    seen_at: datetime | None
    disabled_at: datetime | None

    def as_row(self) -> dict[str, Any]:
        """Plain values for JSON and tables; times as ISO 8601. ``keys``: how many living ones they have."""
        return {
            "name": self.name,
            "email": self.email,
            "roles": list(self.roles),
            "groups": list(self.groups),
            "domains": list(self.domains),
            "projects": list(self.projects),
            "keys": self.keys,
            "created_at": self.created_at.isoformat(),
            "seen_at": self.seen_at and self.seen_at.isoformat(),
            "disabled_at": self.disabled_at and self.disabled_at.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class Project:
    """A project as the store knows it. ``members``: how many users were added to it."""

    id: str
    name: str
    description: str
    members: int
    created_at: datetime

    def as_row(self) -> dict[str, Any]:
        """Plain values for JSON and tables; times as ISO 8601."""
        return {
            "name": self.name,
            "description": self.description,
            "members": self.members,
            "created_at": self.created_at.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody who was added to a project; ``role``: ``member`` or ``manager``."""

    user_id: str
    user: str
    role: str
    created_at: datetime

    def as_row(self) -> dict[str, Any]:
        """Plain values for JSON and tables; times as ISO 8601."""
        return {"user": self.user, "role": self.role, "created_at": self.created_at.isoformat()}


# -- users -------------------------------------------------------------------------------------------------------------


async def list_users(db: Database, *, name: str | None = None) -> list[User]:
    """All users by name; with ``name`` only that one, or nobody."""
    query = select(users, _living_keys().label("living")).order_by(users.c.name)
    if name is not None:
        query = query.where(users.c.name == name)
    if name is not None and not is_name(name):
        return []
    async with db.read() as conn:
        rows = (await conn.execute(query)).all()
        belongs = await _projects_by_user(conn, None if name is None else [row.id for row in rows])
    return [_user(row, belongs.get(row.id, ())) for row in rows]


async def grant(db: Database, user: str, role: str, *, actor: str, source: str = "") -> User:
    """Give a role, ``operator`` or ``auditor``; raises UserNotFound, InvalidRequest."""
    return await _set_role(db, user, role, True, actor, source)


async def ungrant(db: Database, user: str, role: str, *, actor: str, source: str = "") -> User:
    """Take away a role that was granted; the configuration may still give it. Raises UserNotFound, InvalidRequest."""
    return await _set_role(db, user, role, False, actor, source)


async def disable(db: Database, user: str, *, actor: str, source: str = "") -> User:
    """Shut somebody out: no key, login or session of theirs works any more within 5 seconds. Raises UserNotFound."""
    async with db.begin() as conn:
        row = await _locked(conn, user)
        if row.disabled_at is None:
            await conn.execute(update(users).where(users.c.id == row.id).values(disabled_at=now()))
            await conn.execute(delete(sessions).where(sessions.c.user_id == row.id))
            await note(conn, actor, "user.disable", user, source=source)
    return await _found(db, user)


async def enable(db: Database, user: str, *, actor: str, source: str = "") -> User:
    """Let somebody in again who was shut out: their keys work as before. Raises UserNotFound."""
    async with db.begin() as conn:
        row = await _locked(conn, user)
        if row.disabled_at is not None:
            await conn.execute(update(users).where(users.c.id == row.id).values(disabled_at=None))
            await note(conn, actor, "user.enable", user, source=source)
    return await _found(db, user)


async def set_default_project(
    db: Database, user_id: str, project_id: str | None, *, actor: str, source: str = ""
) -> None:
    """What requests of a user are charged to that name no project; None: nothing is chosen.

    Whoever calls has seen that the user belongs to it; once they do not, it counts no more. Raises UserNotFound,
    ProjectNotFound.
    """
    async with db.begin() as conn:
        name = await conn.scalar(select(projects.c.name).where(projects.c.id == project_id))
        if project_id is not None and name is None:
            raise ProjectNotFound
        its = users.c.id == user_id
        user = await conn.scalar(select(users.c.name).where(its).with_for_update())
        if user is None:
            raise UserNotFound
        await conn.execute(update(users).where(its).values(default_project_id=project_id))
        await note(conn, actor, "user.default_project", user, {"project": name}, source)


# -- projects ----------------------------------------------------------------------------------------------------------


async def list_projects(db: Database, *, ids: Iterable[str] | None = None) -> list[Project]:
    """All projects by name, or those of ``ids``."""
    query = select(projects, _members_of().label("members")).order_by(projects.c.name)
    if ids is not None:
        query = query.where(projects.c.id.in_(list(ids)))
    async with db.read() as conn:
        return [_project(row) for row in await conn.execute(query)]


async def create_project(db: Database, name: str, description: str = "", *, actor: str, source: str = "") -> Project:
    """Make a project that nobody belongs to yet; raises InvalidRequest, ProjectNameTaken."""
    check_names(name=name)
    check_text(description=description)
    made = Project(new_id("project"), name, description, 0, now())
    row = {"id": made.id, "name": name, "description": description, "created_at": made.created_at}
    try:
        async with db.begin() as conn:
            await conn.execute(insert(projects).values(row))
            await note(conn, actor, "project.create", name, {"description": description}, source)
    except IntegrityError:
        raise ProjectNameTaken(f"There is a project '{name}' already.", param="name") from None
    return made


async def members_of(db: Database, project: str) -> list[Member]:
    """Who was added to the project of this name, managers first; raises ProjectNotFound."""
    query = (
        select(users.c.id, users.c.name, members.c.role, members.c.created_at)
        .join(members, members.c.user_id == users.c.id)
        .order_by(members.c.role, users.c.name)
    )
    async with db.read() as conn:
        project_id = await project_id_of(conn, project)
        return [Member(*row) for row in await conn.execute(query.where(members.c.project_id == project_id))]


async def add_member(
    db: Database, project: str, user: str, role: Membership = "member", *, actor: str, source: str = ""
) -> Member:
    """Let a user belong to a project, or change what they are to it; raises ProjectNotFound, UserNotFound."""
    if role not in ("member", "manager"):
        raise InvalidRequest("The role must be 'member' or 'manager'.", param="role")
    async with db.begin() as conn:
        project_id = await project_id_of(conn, project)
        row = await _locked(conn, user)
        its = _is_member(row.id, project_id)
        had = (await conn.execute(select(members.c.role, members.c.created_at).where(its))).one_or_none()
        if had is not None and had.role == role:
            return Member(row.id, user, role, had.created_at)
        member = Member(row.id, user, role, now() if had is None else had.created_at)
        if had is None:
            values = {"user_id": row.id, "project_id": project_id, "created_at": member.created_at}
            await conn.execute(insert(members).values(**values, role=role))
        else:
            await conn.execute(update(members).where(its).values(role=role))
        await note(conn, actor, "project.add", project, {"user": user, "role": role}, source)
    return member


async def remove_member(db: Database, project: str, user: str, *, actor: str, source: str = "") -> Member:
    """Let a user belong to a project no more; raises ProjectNotFound, UserNotFound, MemberNotFound for one who does so
    by the configuration or a login, or not at all."""
    async with db.begin() as conn:
        project_id = await project_id_of(conn, project)
        row = await _locked(conn, user)
        its = _is_member(row.id, project_id)
        had = (await conn.execute(select(members.c.role, members.c.created_at).where(its))).one_or_none()
        if had is None:
            raise MemberNotFound(
                f"'{user}' was not added to '{project}': who belongs to it by the configuration or by a login is "
                "removed there."
            )
        await conn.execute(delete(members).where(its))
        await note(conn, actor, "project.remove", project, {"user": user, "role": had.role}, source)
    return Member(row.id, user, had.role, had.created_at)


async def project_id_of(conn: AsyncConnection, name: str) -> str:
    """The id of the project of this name; raises ProjectNotFound."""
    query = select(projects.c.id).where(projects.c.name == name)
    found: str | None = await conn.scalar(query) if is_name(name) else None
    if found is None:
        raise ProjectNotFound(f"There is no project '{name[:100]}'.")
    return found


# -- the rest ----------------------------------------------------------------------------------------------------------


async def _set_role(db: Database, user: str, role: str, is_given: bool, actor: str, source: str) -> User:
    if role not in {each.value for each in GRANTED}:
        allowed = ", ".join(each.value for each in GRANTED)
        raise InvalidRequest(f"The role must be one of: {allowed}. Managers are added to a project.", param="role")
    async with db.begin() as conn:
        row = await _locked(conn, user)
        if (role in row.roles) != is_given:
            roles = sorted({*row.roles, role} if is_given else {*row.roles} - {role})
            await conn.execute(update(users).where(users.c.id == row.id).values(roles=roles))
            await note(conn, actor, "user.grant" if is_given else "user.ungrant", user, {"role": role}, source)
    return await _found(db, user)


async def _locked(conn: AsyncConnection, user: str) -> Row[Any]:
    """The row of the user of this name, which nobody else changes meanwhile; raises UserNotFound."""
    query = select(users).where(users.c.name == user).with_for_update()
    row = (await conn.execute(query)).one_or_none() if is_name(user) else None
    if row is None:
        raise UserNotFound(
            f"There is no user '{user[:100]}': people become users by their first login, or with their first key."
        )
    return row


async def _found(db: Database, user: str) -> User:
    found = await list_users(db, name=user)
    if not found:
        raise UserNotFound
    return found[0]


async def _projects_by_user(conn: AsyncConnection, user_ids: list[str] | None) -> dict[str, tuple[str, ...]]:
    query = select(members.c.user_id, projects.c.name).join(projects).order_by(projects.c.name)
    if user_ids is not None:
        query = query.where(members.c.user_id.in_(user_ids))
    found: dict[str, tuple[str, ...]] = {}
    for user_id, name in await conn.execute(query):
        found[user_id] = (*found.get(user_id, ()), name)
    return found


def _is_member(user_id: str, project_id: str) -> ColumnElement[bool]:
    return and_(members.c.user_id == user_id, members.c.project_id == project_id)


def _living_keys() -> Any:
    is_living = and_(
        api_keys.c.user_id == users.c.id,
        api_keys.c.revoked_at.is_(None),
        (api_keys.c.expires_at.is_(None)) | (api_keys.c.expires_at > now()),
    )
    return select(func.count()).select_from(api_keys).where(is_living).scalar_subquery()


def _members_of() -> Any:
    return select(func.count()).select_from(members).where(members.c.project_id == projects.c.id).scalar_subquery()


def _user(row: Any, belongs: tuple[str, ...]) -> User:
    told = (tuple(row.roles), tuple(row.groups), tuple(row.domains), belongs)
    return User(row.id, row.name, row.email, *told, row.living, row.created_at, row.seen_at, row.disabled_at)


def _project(row: Any) -> Project:
    return Project(row.id, row.name, row.description, row.members, row.created_at)
