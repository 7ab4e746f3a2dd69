"""Answers of /v1/responses that their owner wanted to be kept, until they expire."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, delete, insert, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.store.tables import responses


@dataclass(frozen=True, slots=True)
class Kept:
    """One answer. ``input``: the list of all items that led to it; ``response``: the object. Both as JSON."""

    user_id: str
    id: str
    model: str
    created_at: datetime
    expires_at: datetime
    input: str
    response: str


_COLUMNS = [responses.c[name] for name in Kept.__slots__]
_KEY = (responses.c.user_id, responses.c.id)


async def add_response(conn: AsyncConnection, kept: Kept) -> None:
    """Keep an answer; raises IntegrityError when its owner has one with this id."""
    await conn.execute(insert(responses).values({name: getattr(kept, name) for name in Kept.__slots__}))


async def response_of(conn: AsyncConnection, user_id: str, response_id: str, at: datetime) -> Kept | None:
    """The answer with this id, if it is of this user and has not expired."""
    row = (await conn.execute(select(*_COLUMNS).where(_is_theirs(user_id, response_id, at)))).one_or_none()
    return None if row is None else Kept(*row)


async def delete_response(conn: AsyncConnection, user_id: str, response_id: str, at: datetime) -> bool:
    """Delete the answer with this id, if it is of this user and has not expired; whether there was one."""
    return bool((await conn.execute(delete(responses).where(_is_theirs(user_id, response_id, at)))).rowcount)


async def delete_expired(conn: AsyncConnection, at: datetime, most: int) -> int:
    """Delete what has expired, but no more than ``most``; returns how many those were."""
    expired = select(*_KEY).where(responses.c.expires_at <= at).limit(most)
    return (await conn.execute(delete(responses).where(tuple_(*_KEY).in_(expired)))).rowcount


def _is_theirs(user_id: str, response_id: str, at: datetime) -> ColumnElement[bool]:
    return (responses.c.user_id == user_id) & (responses.c.id == response_id) & (responses.c.expires_at > at)
