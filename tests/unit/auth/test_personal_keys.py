"""Keys that people make for themselves go no further than they do, and end."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from firstkit.auth import api_keys
from firstkit.auth.api_keys import KeyInfo, KeyNameTaken, KeyNotFound, Personal
from firstkit.auth.permissions import Identity, ProjectNotFound
from firstkit.auth.personal_keys import LoginNeeded, TooManyKeys
from firstkit.clock import now
from firstkit.config.auth import PersonalKeys
from firstkit.errors import Forbidden, InvalidRequest, ModelNotFound
from firstkit.store.database import Database
from firstkit.store.tables import api_keys as table
from unit.auth.support import Setting, add_project, change_user

BOUNDS = PersonalKeys(max_lifetime=86400.0, most=3)
DAY_S = 86400.0


@pytest.fixture
def at(db: Database) -> Setting:
    return Setting(db)


@pytest.fixture
async def ada(at: Setting) -> Identity:
    identity = await at.authenticator.identify(await at.logged_in(projects=["climate", "fusion"]))
    await add_project(at.db, "genome")
    return identity


async def _make(db: Database, maker: Identity, name: str = "k", **wanted: Any) -> tuple[str, KeyInfo]:
    told = {"project": "climate", "expires_in_s": 3600.0, "personal": Personal(maker, BOUNDS), **wanted}
    return await api_keys.create(db, name, user=maker.user_name, **told)


async def test_a_key_of_ones_own(at: Setting, ada: Identity) -> None:
    text, info = await _make(at.db, ada, projects=["fusion", "climate"], models=["m", "m", "org/n"])
    assert (info.is_personal, info.user, info.project, info.projects) == (True, "ada", "climate", ("fusion",))
    assert info.models == ("m", "org/n")
    [listed] = await api_keys.list_keys(at.db, user_id=ada.user_id)
    assert listed == info
    assert {name: info.as_row()[name] for name in ("project", "projects", "models", "is_personal")} == {
        "project": "climate",
        "projects": ["fusion"],
        "models": ["m", "org/n"],
        "is_personal": True,
    }
    identity = await at.authenticator.identify(text)
    assert (identity.user_id, identity.project_name, identity.models) == (ada.user_id, "climate", {"m", "org/n"})
    assert [each.project for each in identity.memberships] == ["climate", "fusion"]


async def test_a_key_without_models_is_for_all(at: Setting, ada: Identity) -> None:
    text, info = await _make(at.db, ada)
    assert info.models is None
    assert info.as_row()["models"] is None
    assert (await at.authenticator.identify(text)).models is None


@pytest.mark.parametrize("seconds", [None, DAY_S + 1, 0, -1, float("nan"), float("inf")])
async def test_it_must_expire_soon_enough(at: Setting, ada: Identity, seconds: float | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await _make(at.db, ada, expires_in_s=seconds)
    assert caught.value.param == "expires_in_s"
    if seconds in (None, DAY_S + 1):
        assert "must expire, after 86400 seconds (1 days) at most" in str(caught.value)
    assert await api_keys.list_keys(at.db) == []


async def test_it_may_live_just_as_long_as_is_allowed(at: Setting, ada: Identity) -> None:
    _, info = await _make(at.db, ada, expires_in_s=DAY_S)
    assert info.expires_at is not None
    assert info.expires_at - info.created_at == timedelta(days=1)


@pytest.mark.parametrize("project", ["genome", "unheard of", "Climate"])
async def test_it_is_for_ones_own_projects(at: Setting, ada: Identity, project: str) -> None:
    for wanted in ({"project": project}, {"projects": [project]}):
        with pytest.raises(ProjectNotFound):
            await _make(at.db, ada, **wanted)
    async with at.db.read() as conn:
        assert len((await conn.exec_driver_sql("SELECT id FROM projects")).all()) == 3, "and makes none"
        assert (await conn.exec_driver_sql("SELECT * FROM members")).all() == []


@pytest.mark.parametrize("scope", ["admin", "audit", "metrics"])
async def test_it_has_no_scope_that_its_maker_has_not(at: Setting, ada: Identity, scope: str) -> None:
    with pytest.raises(Forbidden, match=scope):
        await _make(at.db, ada, scopes=["inference", scope])
    with pytest.raises(Forbidden, match=scope):
        await _make(at.db, ada, scopes=["inference", scope], held=frozenset({"inference", scope}))


async def test_a_key_makes_none_for_more_than_itself(at: Setting, ada: Identity) -> None:
    text, _ = await _make(at.db, ada, "first", scopes=["account"], models=["m"])
    maker = await at.authenticator.identify(text)
    with pytest.raises(Forbidden, match="inference"):
        await _make(at.db, maker, scopes=["inference"])
    with pytest.raises(ProjectNotFound):
        await _make(at.db, maker, scopes=["account"], project="fusion")
    with pytest.raises(ModelNotFound, match="'other'"):
        await _make(at.db, maker, scopes=["account"], models=["m", "other"])
    with pytest.raises(InvalidRequest, match="outlives") as caught:
        await _make(at.db, maker, scopes=["account"], expires_in_s=3700.0)
    assert caught.value.param == "expires_in_s"
    _, info = await _make(at.db, maker, scopes=["account"], expires_in_s=3000.0)
    assert info.models == ("m",), "nor by saying nothing"


async def test_nobody_has_too_many(at: Setting, ada: Identity) -> None:
    for name in ("a", "b", "c"):
        await _make(at.db, ada, name)
    with pytest.raises(TooManyKeys, match="3 keys"):
        await _make(at.db, ada, "d")
    await api_keys.create(at.db, "given", user="ada", project="climate")
    await api_keys.revoke(at.db, "a", actor="ada", user_id=ada.user_id)
    await _make(at.db, ada, "d")


async def test_expired_keys_do_not_count(at: Setting, ada: Identity) -> None:
    for name in ("a", "b", "c"):
        await _make(at.db, ada, name)
    async with at.db.begin() as conn:
        await conn.execute(update(table).values(expires_at=now()))
    await _make(at.db, ada, "d")


async def test_of_many_that_are_made_at_once_no_more_than_allowed(
    at: Setting, ada: Identity, database_url: str
) -> None:
    other = await Database.open(database_url)
    try:
        stores = [at.db, other] * 4
        done = await asyncio.gather(
            *(_make(each, ada, f"k{i}") for i, each in enumerate(stores)), return_exceptions=True
        )
    finally:
        await other.close()
    assert sum(isinstance(result, tuple) for result in done) == 3
    assert sum(isinstance(result, TooManyKeys) for result in done) == 5


async def test_without_a_login_there_are_none(at: Setting, ada: Identity) -> None:
    given, _ = await api_keys.create(at.db, "given", user="bob", project="climate", scopes=["account"])
    bob = await at.authenticator.identify(given)
    with pytest.raises(LoginNeeded):
        await _make(at.db, bob, scopes=["account"])
    await change_user(at.db, ada.user_id, seen_at=now() - timedelta(days=31))
    with pytest.raises(LoginNeeded):
        await _make(at.db, ada)
    with pytest.raises(LoginNeeded):
        await _make(at.db, replace(ada, user_id="local-admin"))


async def test_a_renamed_user_keeps_their_keys(at: Setting, ada: Identity) -> None:
    text, _ = await _make(at.db, ada)
    await at.user_id(name="countess", projects=frozenset({"climate"}))
    assert (await at.authenticator.identify(text)).user_name == "countess"
    _, info = await _make(at.db, ada, "another")
    assert (await api_keys.list_keys(at.db, user_id=ada.user_id))[1].user == "countess"
    assert info.is_personal


# -- whose keys are whose ---------------------------------------------------------------------------------------------


async def _bob(at: Setting) -> Identity:
    bob = replace(at.authority.holders["eyJ.ada"], subject="sub-2", name="bob")
    return await at.authenticator.identify(await at.logged_in(bob, "eyJ.bob"))


async def test_two_users_may_have_keys_of_one_name(at: Setting, ada: Identity) -> None:
    bob = await _bob(at)
    for each in (ada, bob):
        await _make(at.db, each)
    with pytest.raises(KeyNameTaken):
        await _make(at.db, ada)
    with pytest.raises(InvalidRequest, match="first-"):
        await api_keys.revoke(at.db, "k", actor="op")
    assert (await api_keys.revoke(at.db, "k", actor="bob", user_id=bob.user_id)).user == "bob"
    [left] = await api_keys.list_keys(at.db)
    assert left.user == "ada"


async def test_nobody_sees_or_ends_the_key_of_another(at: Setting, ada: Identity) -> None:
    bob = await _bob(at)
    text, info = await _make(at.db, ada)
    assert await api_keys.list_keys(at.db, user_id=bob.user_id, include_dead=True) == []
    for said in ("k", info.prefix, f"first-{info.prefix}", text):
        with pytest.raises(KeyNotFound):
            await api_keys.revoke(at.db, said, actor="bob", user_id=bob.user_id)
    assert (await api_keys.list_keys(at.db))[0].status == "living"


async def test_a_key_that_is_called_like_the_prefix_of_another_hides_it_from_nobody(at: Setting, ada: Identity) -> None:
    bob = await _bob(at)
    _, info = await _make(at.db, ada)
    for name in (f"first-{info.prefix}", info.prefix):
        await _make(at.db, bob, name)
    with pytest.raises(InvalidRequest):
        await api_keys.revoke(at.db, info.prefix, actor="op")
    assert (await api_keys.revoke(at.db, f"first-{info.prefix}", actor="op")).user == "ada"
    assert (await api_keys.revoke(at.db, f"first-{info.prefix}", actor="op")).user == "bob"


async def test_an_expired_name_of_another_is_left_alone(at: Setting, ada: Identity) -> None:
    bob = await _bob(at)
    await _make(at.db, ada)
    async with at.db.begin() as conn:
        await conn.execute(update(table).values(expires_at=now()))
    await _make(at.db, bob)
    [dead] = await api_keys.list_keys(at.db, user_id=ada.user_id, include_dead=True)
    assert dead.status == "expired"
