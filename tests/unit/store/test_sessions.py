"""Logins that are under way, and sessions: by digests, once, and for a time."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from sqlalchemy import insert, select

from firstkit.clock import now
from firstkit.ids import digest
from firstkit.store.database import Database
from firstkit.store.sessions import Login, add_login, add_session, end_session, logins_under_way, take_login
from firstkit.store.tables import logins, sessions, users


def login(life_s: float = 60.0) -> Login:
    return Login("oidc", "nonce", "verifier", "/auth/account", now() + timedelta(seconds=life_s))


async def begun(db: Database, state: str = "state", browser: str = "browser", life_s: float = 60.0) -> None:
    async with db.begin() as conn:
        await add_login(conn, state, browser, login(life_s))


async def taken(db: Database, state: str = "state", browser: str = "browser") -> Login | None:
    async with db.begin() as conn:
        return await take_login(conn, state, browser)


async def make_user(db: Database, name: str = "ada") -> str:
    async with db.begin() as conn:
        await conn.execute(insert(users).values(id=f"user-{name}", name=name, is_admin=False, created_at=now()))
    return f"user-{name}"


async def logged_in(db: Database, token: str, user_id: str, life_s: float = 60.0) -> str:
    async with db.begin() as conn:
        return await add_session(conn, token, user_id, "https://idp", now() + timedelta(seconds=life_s))


async def ended(db: Database, token: str) -> str | None:
    async with db.begin() as conn:
        return await end_session(conn, token)


async def test_a_login_is_taken_once(db: Database) -> None:
    await begun(db)
    found = await taken(db)
    assert found is not None
    assert (found.provider, found.nonce, found.verifier, found.return_to) == (
        "oidc", "nonce", "verifier", "/auth/account",
    )  # fmt: skip
    assert await taken(db) is None


async def test_also_by_many_at_once(db: Database) -> None:
    await begun(db)
    found = await asyncio.gather(*(taken(db) for _ in range(8)))
    assert sum(each is not None for each in found) == 1


async def test_another_browser_gets_nothing_and_spoils_nothing(db: Database) -> None:
    await begun(db)
    assert await taken(db, browser="other") is None
    assert await taken(db, state="other") is None
    assert await taken(db) is not None


async def test_a_login_whose_time_is_over(db: Database) -> None:
    await begun(db, life_s=-1)
    assert await taken(db) is None


async def test_only_digests_are_stored(db: Database) -> None:
    user_id = await make_user(db)
    await begun(db)
    await logged_in(db, "token", user_id)
    async with db.read() as conn:
        row = (await conn.execute(select(logins))).one()
        session = (await conn.execute(select(sessions))).one()
    assert (row.state_sha256, row.browser_sha256) == (digest("state"), digest("browser"))
    assert session.sha256 == digest("token")


async def test_expired_logins_go_as_new_ones_come(db: Database) -> None:
    for number in range(3):
        await begun(db, state=f"old {number}", life_s=-1)
    await begun(db)
    async with db.read() as conn:
        assert len((await conn.execute(select(logins))).all()) == 1
        assert await logins_under_way(conn) == 1


async def test_a_session_and_its_end(db: Database) -> None:
    user_id = await make_user(db)
    assert await logged_in(db, "one", user_id) == "ada"
    assert await logged_in(db, "two", user_id) == "ada"
    assert await ended(db, "one") == "ada"
    assert await ended(db, "one") is None
    assert await ended(db, "nobody's") is None
    assert await ended(db, "two") == "ada"


async def test_expired_sessions_go_as_new_ones_come(db: Database) -> None:
    user_id = await make_user(db)
    await logged_in(db, "old", user_id, life_s=-1)
    await logged_in(db, "new", user_id)
    async with db.read() as conn:
        assert (await conn.execute(select(sessions.c.sha256))).scalars().all() == [digest("new")]
