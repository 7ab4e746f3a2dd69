"""Logins of browsers that are under way, and browsers that are logged in, by the digests of their secrets."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Table, and_, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.clock import now
from firstkit.ids import digest
from firstkit.store.tables import logins, sessions, users

SWEPT_AT_ONCE = 200
"""Expired rows that go with each new one."""


@dataclass(frozen=True, slots=True)
class Login:
    """A login that a browser has begun. ``return_to``: a path of ours."""

    provider: str
    nonce: str
    verifier: str
    return_to: str
    expires_at: datetime


async def add_login(conn: AsyncConnection, state: str, browser: str, login: Login) -> None:
    """Remember a login by its state and the secret of the browser that began it."""
    await _sweep(conn, logins, "state_sha256")
    told = {name: getattr(login, name) for name in Login.__slots__}
    await conn.execute(insert(logins).values(state_sha256=digest(state), browser_sha256=digest(browser), **told))


async def logins_under_way(conn: AsyncConnection) -> int:
    """How many there are."""
    query = select(func.count()).select_from(logins).where(logins.c.expires_at > now())
    return int((await conn.execute(query)).scalar_one())


async def take_login(conn: AsyncConnection, state: str, browser: str) -> Login | None:
    """The login of this state, if this browser began it and its time is not over. Nobody gets it a second time."""
    its = and_(logins.c.state_sha256 == digest(state), logins.c.browser_sha256 == digest(browser))
    row = (await conn.execute(select(*[logins.c[name] for name in Login.__slots__]).where(its))).one_or_none()
    if row is None or (await conn.execute(delete(logins).where(its))).rowcount != 1:
        return None
    login = Login(*row)
    return login if login.expires_at > now() else None


async def add_session(conn: AsyncConnection, token: str, user_id: str, issuer: str, expires_at: datetime) -> str:
    """Let whoever shows ``token`` be this user; returns their name."""
    await _sweep(conn, sessions, "sha256")
    row = {"sha256": digest(token), "user_id": user_id, "issuer": issuer, "created_at": now(), "expires_at": expires_at}
    await conn.execute(insert(sessions).values(row))
    return str((await conn.execute(select(users.c.name).where(users.c.id == user_id))).scalar_one())


async def end_session(conn: AsyncConnection, token: str) -> str | None:
    """Nobody is anybody by ``token`` any more; returns who was, None where nobody was."""
    its = sessions.c.sha256 == digest(token)
    query = select(users.c.name).join(sessions, sessions.c.user_id == users.c.id).where(its)
    name: str | None = (await conn.execute(query)).scalar_one_or_none()
    ended = await conn.execute(delete(sessions).where(its))
    return name if ended.rowcount == 1 else None


async def _sweep(conn: AsyncConnection, table: Table, key: str) -> None:
    expired = select(table.c[key]).where(table.c.expires_at <= now()).limit(SWEPT_AT_ONCE)
    await conn.execute(delete(table).where(table.c[key].in_(expired)))
