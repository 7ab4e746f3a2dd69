from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from firstkit.auth import api_keys
from firstkit.auth.api_keys import KeyNameTaken, KeyNotFound
from firstkit.clock import now
from firstkit.errors import Forbidden, InvalidRequest
from firstkit.ids import digest
from firstkit.store.database import Database
from firstkit.store.tables import api_keys as table
from firstkit.store.tables import audit, members, metadata, projects, users


async def _create(db: Database, name: str = "k", **options: Any) -> str:
    return (await api_keys.create(db, name, **{"user": "ada", "actor": "cli:root", **options}))[0]


async def _count(db: Database, of: Any) -> int:
    async with db.read() as conn:
        return int(await conn.scalar(select(func.count()).select_from(of)) or 0)


async def test_a_new_key_makes_its_user_project_and_membership_once(db: Database) -> None:
    for name in ("one", "two"):
        assert api_keys.parse_key(await _create(db, name, project="climate")) is not None
    assert [await _count(db, of) for of in (table, users, projects, members)] == [2, 1, 1, 1]
    info = (await api_keys.list_keys(db))[0]
    assert (info.name, info.user, info.project, info.scopes, info.status) == (
        "one",
        "ada",
        "climate",
        ("inference",),
        "living",
    )


async def test_only_the_digest_is_stored_anywhere(db: Database) -> None:
    text = await _create(db)
    await api_keys.revoke(db, text, actor="cli:root")
    secret = text.rpartition("-")[2]
    async with db.read() as conn:
        stored = [str(row) for name in metadata.tables.values() for row in await conn.execute(select(name))]
    assert any(digest(text) in row for row in stored)
    assert not any(secret in row for row in stored)


async def test_names_are_unique_among_living_keys(db: Database) -> None:
    await _create(db)
    with pytest.raises(KeyNameTaken, match="'k'"):
        await _create(db)
    await api_keys.revoke(db, "k", actor="a")
    await _create(db)
    assert [info.status for info in await api_keys.list_keys(db, include_dead=True)] == ["revoked", "living"]


async def test_of_many_who_want_one_name_one_gets_it(db: Database) -> None:
    done = await asyncio.gather(*(_create(db) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(result, str) for result in done) == 1
    assert sum(isinstance(result, KeyNameTaken) for result in done) == 7


async def test_the_name_of_an_expired_key_is_free(db: Database) -> None:
    await _create(db, expires_in_s=60)
    async with db.begin() as conn:
        await conn.execute(update(table).values(expires_at=now() - timedelta(seconds=1)))
    assert await api_keys.list_keys(db) == []
    assert [info.status for info in await api_keys.list_keys(db, include_dead=True)] == ["expired"]
    await _create(db)
    assert len(await api_keys.list_keys(db)) == 1


async def test_every_change_is_audited(db: Database) -> None:
    text = await _create(db, expires_in_s=60)
    await api_keys.revoke(db, "k", actor="cli:eve")
    with pytest.raises(KeyNotFound):
        await api_keys.revoke(db, "k", actor="cli:eve")
    async with db.read() as conn:
        rows = (await conn.execute(select(audit).order_by(audit.c.id))).all()
    subject = f"first-{api_keys.parse_key(text)}"
    assert [(row.actor, row.action, row.subject) for row in rows] == [
        ("cli:root", "key.create", subject),
        ("cli:eve", "key.revoke", subject),
    ]
    assert rows[0].details["scopes"] == ["inference"]


@pytest.mark.parametrize("way", ["name", "prefix", "prefix with first-", "whole key"])
async def test_revoke_by(db: Database, way: str) -> None:
    text = await _create(db)
    prefix = api_keys.parse_key(text)
    said = {"name": "k", "prefix": prefix, "prefix with first-": f"first-{prefix}", "whole key": text}[way]
    assert (await api_keys.revoke(db, str(said), actor="a")).status == "revoked"
    assert await api_keys.list_keys(db) == []


async def test_a_name_that_is_the_prefix_of_another_key(db: Database) -> None:
    prefix = str(api_keys.parse_key(await _create(db)))
    await _create(db, prefix)
    with pytest.raises(InvalidRequest, match="first-"):
        await api_keys.revoke(db, prefix, actor="a")
    assert (await api_keys.revoke(db, f"first-{prefix}", actor="a")).name == "k"


@pytest.mark.parametrize("name", ["", " ", " a", "a\nb", "x" * 201, "a\x00", f"first-{'a' * 12}-{'b' * 52}"])
async def test_bad_names_are_refused(db: Database, name: str) -> None:
    for options in ({"name": name}, {"user": name}, {"project": name}):
        with pytest.raises(InvalidRequest):
            await _create(db, **options)


async def test_scopes(db: Database) -> None:
    await _create(db, "a", scopes=["admin", "inference", "admin"])
    assert (await api_keys.list_keys(db))[0].scopes == ("inference", "admin")
    for scopes in ([], ["root"]):
        with pytest.raises(InvalidRequest, match="inference"):
            await _create(db, "b", scopes=scopes)
    with pytest.raises(Forbidden):
        await _create(db, "c", scopes=["admin"], held=frozenset({"inference"}))


@pytest.mark.parametrize("seconds", [0, -1, 1e12, float("nan")])
async def test_bad_expiries_are_refused(db: Database, seconds: float) -> None:
    with pytest.raises(InvalidRequest):
        await _create(db, expires_in_s=seconds)


@given(st.text(max_size=90))
def test_anything_else_is_no_key(text: str) -> None:
    assert api_keys.parse_key(text) is None


@given(st.from_regex(r"first-[a-z2-7]{12}-[a-z2-7]{52}", fullmatch=True))
def test_the_form_of_a_key(text: str) -> None:
    assert api_keys.parse_key(text) == text[6:18]
    assert api_keys.parse_key(text + "\n") is None


async def test_a_key_of_an_operator_for_several_projects_and_some_models(db: Database) -> None:
    await _create(db, project="climate", projects=["fusion", "climate"], models=["m"])
    assert await _count(db, members) == 2
    [info] = await api_keys.list_keys(db)
    assert (info.project, info.projects, info.models, info.is_personal) == ("climate", ("fusion",), ("m",), False)


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({"models": []}, "models"),
        ({"models": ["a\x00"]}, "models"),
        ({"models": ["m"] * 101}, "models"),
        ({"projects": [""]}, "projects"),
        ({"projects": ["p"] * 101}, "projects"),
    ],
)
async def test_bad_projects_and_models_are_refused_by_name(db: Database, wanted: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await _create(db, **wanted)
    assert caught.value.param == param
    assert await _count(db, users) == 0


async def test_the_address_that_an_act_came_from_is_kept(db: Database) -> None:
    await _create(db, source="192.0.2.7")
    await api_keys.revoke(db, "k", actor="a", source="2001:db8::1")
    async with db.read() as conn:
        assert list(await conn.scalars(select(audit.c.source).order_by(audit.c.id))) == ["192.0.2.7", "2001:db8::1"]
