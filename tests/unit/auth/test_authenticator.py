from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import delete, update

from firstkit.auth import api_keys, authenticator
from firstkit.auth.authenticator import FRESH_S, GRACE_S, PATIENCE_S
from firstkit.clock import now
from firstkit.errors import StoreUnavailable, Unauthenticated
from firstkit.ids import new_secret
from firstkit.store.database import Database
from firstkit.store.tables import api_keys as table
from firstkit.store.tables import members
from unit.auth.support import Setting


@pytest.fixture
def at(db: Database) -> Setting:
    return Setting(db)


@pytest.fixture
async def key(db: Database) -> str:
    return (await api_keys.create(db, "k", user="ada", project="climate", scopes=["inference", "metrics"]))[0]


async def test_a_good_key(at: Setting, key: str) -> None:
    identity = await at.authenticator.identify(key)
    assert (identity.user_name, identity.key_prefix) == ("ada", key[6:18])
    assert identity.scopes == {"inference", "metrics"}
    assert identity.user_id.startswith("user-")
    assert identity.project_id.startswith("project-")
    assert identity.project_name == "climate"


async def test_it_is_remembered_for_a_while(at: Setting, key: str) -> None:
    assert at.authenticator.cached(key) is None
    identity = await at.authenticator.identify(key)
    assert at.authenticator.cached(key) is identity
    assert await at.authenticator.identify(key) is identity
    assert at.store.asked == 1
    at.clock.pass_s(FRESH_S)
    assert at.authenticator.cached(key) is None
    await at.authenticator.identify(key)
    assert at.store.asked == 2


@pytest.mark.parametrize("token", ["", "x", "first-abc-def", "Bearer x", "first-" + "a" * 12 + "-" + "B" * 52])
async def test_what_has_not_the_form_of_a_key_is_not_looked_up(at: Setting, token: str) -> None:
    with pytest.raises(Unauthenticated):
        await at.authenticator.identify(token)
    assert at.store.asked == 0


async def test_a_wrong_secret_behind_a_right_prefix(at: Setting, key: str) -> None:
    await at.authenticator.identify(key)
    guess = f"{key[:19]}{new_secret()}"
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await at.authenticator.identify(guess)
    assert at.store.asked == 2  # a no of the store is remembered too
    assert at.authenticator.cached(key) is not None
    at.clock.pass_s(FRESH_S)
    with pytest.raises(Unauthenticated):
        await at.authenticator.identify(guess)
    assert at.store.asked == 3


async def test_a_revoked_key_ends_within_the_time_of_memory(at: Setting, db: Database, key: str) -> None:
    await at.authenticator.identify(key)
    await api_keys.revoke(db, "k", actor="a")
    at.clock.pass_s(FRESH_S)
    with pytest.raises(Unauthenticated):
        await at.authenticator.identify(key)
    at.store.is_down = True
    at.clock.pass_s(FRESH_S)
    with pytest.raises(StoreUnavailable):
        await at.authenticator.identify(key)


async def test_a_user_who_left_the_project(at: Setting, db: Database, key: str) -> None:
    async with db.begin() as conn:
        await conn.execute(delete(members))
    with pytest.raises(Unauthenticated):
        await at.authenticator.identify(key)


async def test_an_expired_key(at: Setting, db: Database) -> None:
    key, _ = await api_keys.create(db, "short", user="ada", expires_in_s=60)
    await at.authenticator.identify(key)
    async with db.begin() as conn:
        await conn.execute(update(table).values(expires_at=now() - timedelta(seconds=1)))
    at.clock.pass_s(FRESH_S)
    with pytest.raises(Unauthenticated):
        await at.authenticator.identify(key)


async def test_silence_is_no_reason_to_outlive_the_expiry(at: Setting, db: Database) -> None:
    key, _ = await api_keys.create(db, "short", user="ada", expires_in_s=60)
    await at.authenticator.identify(key)
    at.store.is_down = True
    at.clock.pass_s(59)
    await at.authenticator.identify(key)
    at.clock.pass_s(2)
    with pytest.raises(StoreUnavailable):
        await at.authenticator.identify(key)


async def test_a_silent_store_with_a_known_and_an_unknown_key(at: Setting, key: str) -> None:
    await at.authenticator.identify(key)
    at.store.is_down = True
    at.clock.pass_s(FRESH_S)
    identity = await at.authenticator.identify(key)
    assert at.authenticator.cached(key) is identity  # the store is left alone for a moment
    with pytest.raises(StoreUnavailable):
        await at.authenticator.identify(f"first-{'a' * 12}-{new_secret()}")
    at.clock.pass_s(GRACE_S - 1)
    await at.authenticator.identify(key)
    at.clock.pass_s(PATIENCE_S)
    with pytest.raises(StoreUnavailable):
        await at.authenticator.identify(key)
    at.store.is_down = False
    await at.authenticator.identify(key)


async def test_a_hanging_store_does_not_hold_up_known_keys(
    at: Setting, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authenticator, "PATIENCE_S", 0.01)
    await at.authenticator.identify(key)
    at.clock.pass_s(FRESH_S)
    at.store.hangs = True
    await asyncio.wait_for(at.authenticator.identify(key), 2)


async def test_many_who_ask_at_once_ask_the_store_once(at: Setting, key: str) -> None:
    found = await asyncio.gather(*(at.authenticator.identify(key) for _ in range(50)))
    assert len(set(map(id, found))) == 1
    assert at.store.asked == 1


async def test_one_who_leaves_does_not_disturb_the_others(at: Setting, key: str) -> None:
    first = asyncio.ensure_future(at.authenticator.identify(key))
    second = asyncio.ensure_future(at.authenticator.identify(key))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).user_name == "ada"


async def test_guesses_push_out_no_known_key(db: Database, key: str) -> None:
    at = Setting(db, remembered=5)
    await at.authenticator.identify(key)
    for _ in range(20):
        with pytest.raises(Unauthenticated):
            await at.authenticator.identify(f"first-{'a' * 12}-{new_secret()}")
    assert at.authenticator.cached(key) is not None
    assert len(at.authenticator._refused) == 5
