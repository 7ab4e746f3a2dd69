"""API keys: ``first-<prefix>-<secret>``; the prefix is public and finds the row, of the rest only SHA-256 is kept."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, Table, and_, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.auth.permissions import ALL_SCOPES, Scope, check_grant
from firstkit.clock import now
from firstkit.errors import InvalidRequest, NotFound
from firstkit.ids import digest, new_id, new_secret
from firstkit.store.database import Database
from firstkit.store.sql import insert_new
from firstkit.store.tables import api_keys, audit, members, projects, users

_KEY = re.compile(r"first-([a-z2-7]{12})-[a-z2-7]{52}")
_PREFIX = re.compile(r"(?:first-)?([a-z2-7]{12})")
_UNFIT = r"\x00-\x1f\x7f\ud800-\udfff"  # control characters, and halves of characters, which no database takes
_NAME = re.compile(rf"[^\s{_UNFIT}](?:[^{_UNFIT}]{{0,198}}[^\s{_UNFIT}])?")


class KeyNameTaken(InvalidRequest):
    """A living key has this name already."""

    code = "key_name_taken"


class KeyNotFound(NotFound):
    """No living key has this name or prefix."""

    code = "key_not_found"


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What may be shown of a key. Times are aware, in UTC."""

    prefix: str
    name: str
    user: str
    project: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

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
            "scopes": list(self.scopes),
            "status": self.status,
            "created_at": self.created_at.isoformat(),
            "expires_at": self.expires_at and self.expires_at.isoformat(),
            "revoked_at": self.revoked_at and self.revoked_at.isoformat(),
        }


def parse_key(text: str) -> str | None:
    """The prefix of a well-formed key, None for anything else."""
    match = _KEY.fullmatch(text)
    return match[1] if match else None


async def create(
    db: Database,
    name: str,
    *,
    user: str,
    project: str = "default",
    scopes: Iterable[str] = (Scope.INFERENCE.value,),
    expires_in_s: float | None = None,
    actor: str | None = None,
    held: frozenset[str] = ALL_SCOPES,
) -> tuple[str, KeyInfo]:
    """Make a key for ``user``, charged to ``project`` (both are made when they are new); its text, and what it is.

    The text exists only here: it can never be shown again. ``actor`` is who does this (``user`` where nobody is
    named), ``held`` are the scopes of whoever does. Raises InvalidRequest, KeyNameTaken, Forbidden.
    """
    _check_names(name=name, user=user, project=project)
    if expires_in_s is not None and not 0 < expires_in_s < 36525 * 86400:
        raise InvalidRequest("A key must expire in the future, within 100 years.", param="expires_in_s")
    wanted = _scopes(scopes)
    check_grant(wanted, held)
    at = now()
    expires_at = None if expires_in_s is None else at + timedelta(seconds=expires_in_s)
    prefix = new_secret()[:12]
    text = f"first-{prefix}-{new_secret()}"
    info = KeyInfo(prefix, name, user, project, tuple(scope.value for scope in wanted), at, expires_at, None)
    try:
        async with db.begin() as conn:
            await _free_expired_name(conn, name, actor or user)
            await _insert_key(conn, info, digest(text))
            await _audit(conn, actor or user, "key.create", info)
    except IntegrityError:
        raise KeyNameTaken(f"A living key has the name '{name}' already; revoke it or choose another name.") from None
    return text, info


async def list_keys(db: Database, *, include_dead: bool = False) -> list[KeyInfo]:
    """All living keys, oldest first; with ``include_dead`` the revoked and expired ones too."""
    query = _keys().order_by(api_keys.c.created_at, api_keys.c.prefix)
    if not include_dead:
        query = query.where(
            api_keys.c.revoked_at.is_(None), or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now())
        )
    async with db.read() as conn:
        return [_info(row) for row in await conn.execute(query)]


async def revoke(db: Database, name_or_prefix: str, *, actor: str) -> KeyInfo:
    """End a key by its name, its prefix or its whole text; raises KeyNotFound, InvalidRequest when two fit."""
    if not _NAME.fullmatch(name_or_prefix):
        raise KeyNotFound  # no name of any key, and not fit to ask a database
    match = _PREFIX.fullmatch(name_or_prefix)
    prefix = parse_key(name_or_prefix) or (match[1] if match else name_or_prefix)
    fits = or_(api_keys.c.name == name_or_prefix, api_keys.c.prefix == prefix)
    async with db.begin() as conn:
        found = [_info(row) for row in await conn.execute(_keys().where(fits, api_keys.c.revoked_at.is_(None)))]
        if len(found) > 1:
            raise InvalidRequest("This is the name of one key and the prefix of another: say 'first-' and the prefix.")
        if not found:
            raise KeyNotFound
        return await _revoke(conn, found[0], actor)


def _scopes(names: Iterable[str]) -> list[Scope]:
    """The scopes of that name, each once, in a fixed order; raises InvalidRequest for none and for unknown ones."""
    wanted = set(names)
    unknown = wanted - ALL_SCOPES
    if unknown or not wanted:
        allowed = ", ".join(scope.value for scope in Scope)
        raise InvalidRequest(f"A key needs one or more of these scopes: {allowed}.", param="scopes")
    return [scope for scope in Scope if scope in wanted]


def _check_names(**names: str) -> None:
    for what, value in names.items():
        if not _NAME.fullmatch(value) or _KEY.search(value):
            raise InvalidRequest(f"The {what} must be 1 to 200 printable characters, and not a key.", param=what)


async def _insert_key(conn: AsyncConnection, info: KeyInfo, secret_sha256: str) -> None:
    user_id = await _named(conn, users, info.user, "user", is_admin=False)
    project_id = await _named(conn, projects, info.project, "project", description="")
    member = {"user_id": user_id, "project_id": project_id, "role": "member", "created_at": info.created_at}
    await conn.execute(insert_new(members, conn.dialect.name).values(member))
    await conn.execute(
        insert(api_keys).values(
            prefix=info.prefix,
            secret_sha256=secret_sha256,
            name=info.name,
            user_id=user_id,
            project_id=project_id,
            scopes=list(info.scopes),
            created_at=info.created_at,
            expires_at=info.expires_at,
        )
    )


async def _named(conn: AsyncConnection, table: Table, name: str, kind: str, **values: Any) -> str:
    """The id of the user or project called ``name``, made when it is new."""
    row = {"id": new_id(kind), "name": name, "created_at": now(), **values}
    await conn.execute(insert_new(table, conn.dialect.name).values(row))
    found: str = (await conn.execute(select(table.c.id).where(table.c.name == name))).scalar_one()
    return found


async def _free_expired_name(conn: AsyncConnection, name: str, actor: str) -> None:
    """Revoke an expired key that still holds ``name``."""
    held = and_(api_keys.c.name == name, api_keys.c.revoked_at.is_(None), api_keys.c.expires_at <= now())
    for row in (await conn.execute(_keys().where(held))).all():
        await _revoke(conn, _info(row), actor)


async def _revoke(conn: AsyncConnection, info: KeyInfo, actor: str) -> KeyInfo:
    at = now()
    living = and_(api_keys.c.prefix == info.prefix, api_keys.c.revoked_at.is_(None))
    done = await conn.execute(update(api_keys).where(living).values(revoked_at=at))
    if done.rowcount != 1:
        raise KeyNotFound
    await _audit(conn, actor, "key.revoke", info)
    return KeyInfo(
        info.prefix, info.name, info.user, info.project, info.scopes, info.created_at, info.expires_at, revoked_at=at
    )


async def _audit(conn: AsyncConnection, actor: str, action: str, info: KeyInfo) -> None:
    expires_at = None if info.expires_at is None else info.expires_at.isoformat()
    details = {
        "name": info.name,
        "user": info.user,
        "project": info.project,
        "scopes": list(info.scopes),
        "expires_at": expires_at,
    }
    await conn.execute(
        insert(audit).values(at=now(), actor=actor, action=action, subject=f"first-{info.prefix}", details=details)
    )


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
    )
