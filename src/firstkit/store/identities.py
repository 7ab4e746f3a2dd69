"""What is read of the store for every login, session and key, and what a login writes there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Row, Select, bindparam, exists, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.clock import now
from firstkit.ids import new_id
from firstkit.store.sql import insert_new
from firstkit.store.tables import api_keys, identities, members, projects, sessions, users

Rows = Sequence[Row[Any]]
_ADDED = (projects.c.id.label("added_id"), projects.c.name.label("added_name"), members.c.role.label("added_as"))
_KEY = ("prefix", "secret_sha256", "project_id", "scopes", "projects", "models", "is_personal", "expires_at")


def _with_projects(of: FromClause, *columns: ColumnElement[Any]) -> Select[Any]:
    theirs = of.outerjoin(members, members.c.user_id == users.c.id)
    theirs = theirs.outerjoin(projects, projects.c.id == members.c.project_id)
    return select(users, *columns, *_ADDED).select_from(theirs)


# Made once: to put a statement together costs as much as to run it, and these are run all the time.
_BY_ID = _with_projects(users).where(users.c.id == bindparam("user_id"))
_BY_SESSION = _with_projects(
    sessions.join(users, users.c.id == sessions.c.user_id), sessions.c.expires_at
).where(sessions.c.sha256 == bindparam("session"))  # fmt: skip
_BY_KEY = _with_projects(
    api_keys.join(users, users.c.id == api_keys.c.user_id), *(api_keys.c[name].label(f"key_{name}") for name in _KEY)
).where(api_keys.c.prefix == bindparam("key"), api_keys.c.revoked_at.is_(None))


async def user_by_id(conn: AsyncConnection, user_id: str) -> Rows:
    """The row of ``users``, once for each project that they were added to: ``added_id``, ``added_name`` and
    ``added_as``; those are None where there is no such project."""
    return await _all(conn, _BY_ID, {"user_id": user_id})


async def user_by_session(conn: AsyncConnection, sha256: str) -> Rows:
    """The same for the user of a session, with its ``expires_at``."""
    return await _all(conn, _BY_SESSION, {"session": sha256})


async def user_by_key(conn: AsyncConnection, prefix: str) -> Rows:
    """The same for the user of a key that was not revoked, with what the key is, under names of ``key_``."""
    return await _all(conn, _BY_KEY, {"key": prefix})


async def project_ids(conn: AsyncConnection, names: Collection[str]) -> dict[str, str]:
    """The ids of the projects of these names, as far as there are such."""
    query = select(projects.c.name, projects.c.id).where(projects.c.name.in_(sorted(names)))
    return {row.name: row.id for row in await conn.execute(query)}


async def user_by_subject(conn: AsyncConnection, issuer: str, subject: str, lock: bool = False) -> Row[Any] | None:
    """The row of ``users`` of whoever is ``subject`` to ``issuer``; ``lock``: nobody else changes it meanwhile."""
    query = (
        select(users)
        .join(identities, identities.c.user_id == users.c.id)
        .where(identities.c.issuer == issuer, identities.c.subject == subject)
    )
    return (await conn.execute(query.with_for_update(of=users) if lock else query)).one_or_none()


async def is_free(conn: AsyncConnection, name: str) -> bool:
    """Whether no user has this name."""
    return not await conn.scalar(select(exists().where(users.c.name == name)))


async def add_user(conn: AsyncConnection, names: Iterable[str], values: Mapping[str, Any]) -> tuple[str, str]:
    """Make a user with the first of ``names`` that is free; their id and name. One of the names has to be free."""
    for name in names:
        row = {"id": new_id("user"), "name": name, "is_admin": False, "created_at": now(), **values}
        if (await conn.execute(insert_new(users, conn.dialect.name).values(row))).rowcount == 1:
            return str(row["id"]), name
    raise RuntimeError("no name for a new user is free")


async def add_subject(conn: AsyncConnection, issuer: str, subject: str, user_id: str) -> None:
    """Let ``subject`` of ``issuer`` be that user for ever; raises IntegrityError when they are one already."""
    row = {"issuer": issuer, "subject": subject, "user_id": user_id, "created_at": now()}
    await conn.execute(insert(identities).values(row))


async def _all(conn: AsyncConnection, query: Select[Any], values: Mapping[str, str]) -> Rows:
    rows: Rows = (await conn.execute(query, dict(values))).all()
    return rows


async def update_user(conn: AsyncConnection, user_id: str, values: Mapping[str, Any]) -> None:
    """Write down what is new of a user; raises IntegrityError when somebody else has the name by now."""
    await conn.execute(update(users).where(users.c.id == user_id).values(dict(values)))


async def ensure_projects(conn: AsyncConnection, descriptions: Mapping[str, str]) -> None:
    """Make the projects of these names that there are not yet, and tell the rest what they are for now, where it is
    said."""
    if not descriptions:
        return
    query = select(projects.c.name, projects.c.description).where(projects.c.name.in_(list(descriptions)))
    known = {row.name: row.description for row in await conn.execute(query)}
    for name, description in sorted(descriptions.items()):
        if name not in known:
            row = {"id": new_id("project"), "name": name, "description": description, "created_at": now()}
            await conn.execute(insert_new(projects, conn.dialect.name).values(row))
        elif description and description != known[name]:
            await conn.execute(update(projects).where(projects.c.name == name).values(description=description))
