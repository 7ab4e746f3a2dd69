"""API keys: ``first-<prefix>-<secret>``; the prefix is public and finds the row, of the rest only SHA-256 is kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, Table, and_, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.auth.names import check_names, is_name
from firstkit.auth.permissions import ALL_SCOPES, Scope, check_grant
from firstkit.auth.personal_keys import Personal
from firstkit.auth.tokens import parse_key
from firstkit.clock import now
from firstkit.errors import InvalidRequest, NotFound
from firstkit.ids import digest, new_id, new_secret
from firstkit.store.audit import note
from firstkit.store.database import Database
from firstkit.store.sql import insert_new
from firstkit.store.tables import api_keys, members, projects, users

__all__ = ["KeyInfo", "KeyNameTaken", "KeyNotFound", "Personal", "create", "list_keys", "parse_key", "revoke"]

MOST_NAMED = 100
"""How many projects, and how many models, a key may name."""
_PREFIX = re.compile(r"(?:first-)?([a-z2-7]{12})")


class KeyNameTaken(InvalidRequest):
    """A living key of this user has this name already."""

    code = "key_name_taken"


class KeyNotFound(NotFound):
    """No living key has this name or prefix."""

    code = "key_not_found"


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What may be shown of a key. Times are aware, in UTC.

    ``projects``: those that a request may name, beside ``project``, which is charged where it names none. ``models``:
    the canonical names of those that it is for; None: all. ``is_personal``: its user made it.
    """

    prefix: str
    name: str
    user: str
    project: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    projects: tuple[str, ...] = ()
    models: tuple[str, ...] | None = None
    is_personal: bool = False

    @property
    def status(self) -> str:
        """``living``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now() else "living"

    def as_row(self) -> dict[str, Any]:
        """Plain values for JSON and tables; times as ISO 8601."""
        return {
            "name": self.name,
            "prefix": f"first-{self.prefix}",
            "user": self.user,
            "project": self.project,
            "projects": list(self.projects),
            "models": None if self.models is None else list(self.models),
            "scopes": list(self.scopes),
            "is_personal": self.is_personal,
            "status": self.status,
            "created_at": self.created_at.isoformat(),
            "expires_at": self.expires_at and self.expires_at.isoformat(),
            "revoked_at": self.revoked_at and self.revoked_at.isoformat(),
        }


async def create(
    db: Database,
    name: str,
    *,
    user: str,
    project: str = "default",
    scopes: Iterable[str] = (Scope.INFERENCE.value,),
    expires_in_s: float | None = None,
    projects: Sequence[str] = (),
    models: Sequence[str] | None = None,
    actor: str | None = None,
    held: frozenset[str] = ALL_SCOPES,
    personal: Personal | None = None,
    source: str = "",
) -> tuple[str, KeyInfo]:
    """Make a key for ``user``, charged to ``project`` (both are made when they are new); its text, and what it is.

    The text exists only here: it can never be shown again. ``projects``: further ones that a request may name;
    ``models``: canonical names of those that it is for, None for all. ``actor`` is who does this (``user`` where nobody
    is named), ``held`` are the scopes of whoever does, ``source`` their address. With ``personal`` it is a key that
    ``user`` makes for themselves: it must expire, and goes no further than they do; nothing else is made. Raises
    InvalidRequest, KeyNameTaken, Forbidden; for personal ones also ProjectNotFound, ModelNotFound, LoginNeeded and
    TooManyKeys.
    """
    wanted = _checked(name, user, project, projects, models, scopes, expires_in_s)
    if personal is not None:
        personal.check_lifetime(expires_in_s)
        wanted = replace(wanted, user=personal.maker.user_name, models=personal.models(wanted.models), is_personal=True)
    check_grant(map(Scope, wanted.scopes), held if personal is None else held & personal.maker.scopes)
    text = f"first-{wanted.prefix}-{new_secret()}"
    try:
        async with db.begin() as conn:
            owner = await (_named(conn, wanted) if personal is None else _own(conn, wanted, personal))
            await _free_expired_name(conn, owner.user_id, name, actor or user)
            await _insert_key(conn, wanted, owner, digest(text))
            await _audit(conn, actor or user, "key.create", wanted, source)
    except IntegrityError:
        raise KeyNameTaken(f"A living key has the name '{name}' already; revoke it or choose another name.") from None
    return text, wanted


async def list_keys(db: Database, *, include_dead: bool = False, user_id: str | None = None) -> list[KeyInfo]:
    """All living keys, or those of one user, oldest first; with ``include_dead`` the revoked and expired ones too."""
    query = _keys().order_by(api_keys.c.created_at, api_keys.c.prefix)
    if user_id is not None:
        query = query.where(api_keys.c.user_id == user_id)
    if not include_dead:
        query = query.where(
            api_keys.c.revoked_at.is_(None), or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now())
        )
    async with db.read() as conn:
        return [_info(row) for row in await conn.execute(query)]


async def revoke(
    db: Database, name_or_prefix: str, *, actor: str, user_id: str | None = None, source: str = ""
) -> KeyInfo:
    """End a key by its name, its prefix or its whole text, with ``user_id`` one of that user; raises KeyNotFound,
    InvalidRequest when several fit."""
    if not is_name(name_or_prefix):
        raise KeyNotFound  # no name of any key, and not fit to ask a database
    match = _PREFIX.fullmatch(name_or_prefix)
    prefix = parse_key(name_or_prefix) or (match[1] if match else name_or_prefix)
    query = _keys().where(or_(api_keys.c.name == name_or_prefix, api_keys.c.prefix == prefix))
    if user_id is not None:
        query = query.where(api_keys.c.user_id == user_id)
    async with db.begin() as conn:
        found = [_info(row) for row in await conn.execute(query.where(api_keys.c.revoked_at.is_(None)))]
        if name_or_prefix != prefix:  # 'first-' and a prefix means that one, whatever others are called
            found = [key for key in found if key.prefix == prefix] or found
        if len(found) > 1:
            raise InvalidRequest("Several keys are called so: say 'first-' and the prefix of the one that is meant.")
        if not found:
            error = KeyNotFound()
            error.is_denial = user_id is not None  # whether or not somebody else has it: that is not looked up
            raise error
        return await _revoke(conn, found[0], actor, source)


def _checked(
    name: str,
    user: str,
    project: str,
    projects: Sequence[str],
    models: Sequence[str] | None,
    scopes: Iterable[str],
    expires_in_s: float | None,
) -> KeyInfo:
    """The key that is wanted, not yet made; raises InvalidRequest."""
    check_names(name=name, user=user, project=project)
    for what, names in (("projects", projects), ("models", models or ())):
        if len(names) > MOST_NAMED or (what == "models" and models is not None and not models):
            raise InvalidRequest(f"{what}: 1 to {MOST_NAMED} names, or nothing.", param=what)
        for each in names:
            check_names(**{what: each})
    if expires_in_s is not None and not 0 < expires_in_s < 36525 * 86400:
        raise InvalidRequest("A key must expire in the future, within 100 years.", param="expires_in_s")
    at = now()
    return KeyInfo(
        prefix=new_secret()[:12],
        name=name,
        user=user,
        project=project,
        scopes=_scopes(scopes),
        created_at=at,
        expires_at=None if expires_in_s is None else at + timedelta(seconds=expires_in_s),
        revoked_at=None,
        projects=tuple(dict.fromkeys(each for each in projects if each != project)),
        models=None if models is None else tuple(dict.fromkeys(models)),
    )


def _scopes(names: Iterable[str]) -> tuple[str, ...]:
    """The scopes of that name, each once, in a fixed order; raises InvalidRequest for none and for unknown ones."""
    wanted = set(names)
    if wanted - ALL_SCOPES or not wanted:
        allowed = ", ".join(scope.value for scope in Scope)
        raise InvalidRequest(f"A key needs one or more of these scopes: {allowed}.", param="scopes")
    return tuple(scope.value for scope in Scope if scope.value in wanted)


@dataclass(frozen=True, slots=True)
class _Owner:
    user_id: str
    project_id: str


async def _named(conn: AsyncConnection, wanted: KeyInfo) -> _Owner:
    """The user and the project of these names, and all memberships that the key needs, made where they are new."""
    user_id = await _id_of(conn, users, wanted.user, "user", is_admin=False)
    ids = [await _id_of(conn, projects, name, "project", description="") for name in (wanted.project, *wanted.projects)]
    for project_id in ids:
        row = {"user_id": user_id, "project_id": project_id, "role": "member", "created_at": wanted.created_at}
        await conn.execute(insert_new(members, conn.dialect.name).values(row))
    return _Owner(user_id, ids[0])


async def _own(conn: AsyncConnection, wanted: KeyInfo, personal: Personal) -> _Owner:
    """Whoever makes the key, and their project; raises what says that they may not."""
    ids = personal.project_ids((wanted.project, *wanted.projects))
    await personal.admit(conn, wanted.created_at, wanted.expires_at)
    return _Owner(personal.maker.user_id, ids[0])


async def _insert_key(conn: AsyncConnection, info: KeyInfo, owner: _Owner, secret_sha256: str) -> None:
    row = {
        "prefix": info.prefix,
        "secret_sha256": secret_sha256,
        "name": info.name,
        "user_id": owner.user_id,
        "project_id": owner.project_id,
        "scopes": list(info.scopes),
        "is_personal": info.is_personal,
        "created_at": info.created_at,
        "expires_at": info.expires_at,
    }
    if info.projects:
        row["projects"] = list(info.projects)
    if info.models is not None:
        row["models"] = list(info.models)
    await conn.execute(insert(api_keys).values(row))


async def _id_of(conn: AsyncConnection, table: Table, name: str, kind: str, **values: Any) -> str:
    """The id of the user or project called ``name``, made when it is new."""
    row = {"id": new_id(kind), "name": name, "created_at": now(), **values}
    await conn.execute(insert_new(table, conn.dialect.name).values(row))
    found: str = (await conn.execute(select(table.c.id).where(table.c.name == name))).scalar_one()
    return found


async def _free_expired_name(conn: AsyncConnection, user_id: str, name: str, actor: str) -> None:
    """Revoke an expired key of the user that still holds ``name``."""
    held = and_(api_keys.c.user_id == user_id, api_keys.c.name == name, api_keys.c.revoked_at.is_(None))
    for row in (await conn.execute(_keys().where(held, api_keys.c.expires_at <= now()))).all():
        await _revoke(conn, _info(row), actor)


async def _revoke(conn: AsyncConnection, info: KeyInfo, actor: str, source: str = "") -> KeyInfo:
    at = now()
    living = and_(api_keys.c.prefix == info.prefix, api_keys.c.revoked_at.is_(None))
    done = await conn.execute(update(api_keys).where(living).values(revoked_at=at))
    if done.rowcount != 1:
        raise KeyNotFound
    await _audit(conn, actor, "key.revoke", info, source)
    return replace(info, revoked_at=at)


async def _audit(conn: AsyncConnection, actor: str, action: str, info: KeyInfo, source: str) -> None:
    row = info.as_row()
    shown = ("name", "user", "project", "projects", "models", "scopes", "is_personal", "expires_at")
    await note(conn, actor, action, f"first-{info.prefix}", {what: row[what] for what in shown}, source)


def _keys() -> Select[Any]:
    return (
        select(api_keys, users.c.name.label("user_name"), projects.c.name.label("project_name"))
        .join(users, users.c.id == api_keys.c.user_id)
        .join(projects, projects.c.id == api_keys.c.project_id)
    )


def _info(row: Any) -> KeyInfo:
    return KeyInfo(
        row.prefix,
        row.name,
        row.user_name,
        row.project_name,
        tuple(row.scopes),
        row.created_at,
        row.expires_at,
        row.revoked_at,
        tuple(row.projects or ()),
        None if row.models is None else tuple(row.models),
        row.is_personal,
    )
