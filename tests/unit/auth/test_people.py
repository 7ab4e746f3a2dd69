"""People who log in become users, once each, and never somebody else."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from firstkit.auth import api_keys
from firstkit.auth import people as module
from firstkit.auth.permissions import Role
from firstkit.auth.standing import Standing
from firstkit.clock import now
from firstkit.errors import LoginRefused
from firstkit.store import people as stored
from firstkit.store.database import Database
from firstkit.store.tables import audit, identities, projects, users
from unit.auth.support import ADA, ISSUER, Setting, add_project, change_user

ELSEWHERE = "https://other.example.net/oidc"


@pytest.fixture
def at(db: Database) -> Setting:
    return Setting(db)


async def _row(db: Database, user_id: str) -> Any:
    async with db.read() as conn:
        return (await conn.execute(select(users).where(users.c.id == user_id))).one()


async def _count(db: Database, of: Any) -> int:
    async with db.read() as conn:
        return int(await conn.scalar(select(func.count()).select_from(of)) or 0)


async def _standing(at: Setting, user_id: str) -> Standing:
    async with at.db.read() as conn:
        found = await at.people.standing(conn, user_id)
    assert found is not None
    return found


async def test_the_first_login_makes_a_user_and_the_next_ones_do_not(at: Setting) -> None:
    told = {"groups": frozenset({"g", "f"}), "domains": frozenset({"Example.ORG"})}
    first = await at.user_id(**told)
    assert first == await at.user_id(**told)
    row = await _row(at.db, first)
    assert (row.name, row.email, row.groups, row.domains) == ("ada", "ada@example.org", ["f", "g"], ["example.org"])
    assert abs((now() - row.seen_at).total_seconds()) < 60
    assert (await _count(at.db, users), await _count(at.db, identities)) == (1, 1)


async def test_a_login_says_anew_what_somebody_is(at: Setting) -> None:
    user_id = await at.user_id(groups=frozenset({"g"}), projects=frozenset({"climate"}))
    await at.user_id(groups=frozenset({"h"}), email=None, projects=frozenset())
    row = await _row(at.db, user_id)
    assert (row.groups, row.email, row.claimed_projects) == (["h"], None, [])


async def test_what_is_the_same_is_not_written_again(at: Setting) -> None:
    user_id = await at.user_id()
    seen_at = (await _row(at.db, user_id)).seen_at
    await at.user_id()
    assert (await _row(at.db, user_id)).seen_at == seen_at
    await change_user(at.db, user_id, seen_at=seen_at - timedelta(seconds=module.SEEN_EVERY_S + 1))
    await at.user_id()
    assert (await _row(at.db, user_id)).seen_at >= seen_at
    await change_user(at.db, user_id, seen_at=now() + timedelta(days=400))
    await at.user_id()
    assert (await _row(at.db, user_id)).seen_at < now() + timedelta(seconds=60), "a clock that was wrong is set right"


async def test_claimed_projects_are_made_and_belong_to_who_claims_them(at: Setting) -> None:
    await add_project(at.db, "climate")
    user_id = await at.user_id(projects=frozenset({"climate", "fusion", "bad\nname", ""}))
    found = await _standing(at, user_id)
    assert [each.project for each in found.memberships] == ["climate", "fusion"]
    assert await _count(at.db, projects) == 2


async def test_no_more_projects_are_claimed_than_can_be_kept(at: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CLAIMED", 3)
    user_id = await at.user_id(projects=frozenset(f"p{number}" for number in range(9)))
    assert (await _row(at.db, user_id)).claimed_projects == ["p0", "p1", "p2"]
    assert await _count(at.db, projects) == 3


# -- names ------------------------------------------------------------------------------------------------------------


async def test_a_name_that_another_has_is_never_taken_over(at: Setting) -> None:
    await api_keys.create(at.db, "k", user="ada")
    first, second = await at.user_id(), await at.user_id(issuer=ELSEWHERE)
    third = await at.user_id(issuer=ELSEWHERE, subject="sub-2")
    names = [(await _row(at.db, user_id)).name for user_id in (first, second, third)]
    assert names == ["ada (login.example.org)", "ada (other.example.net)", "ada (other.example.net 2)"]
    assert len({first, second, third}) == 3
    assert await _count(at.db, users) == 4
    assert await at.user_id() == first


async def test_issuer_and_subject_decide_who_somebody_is(at: Setting) -> None:
    first = await at.user_id()
    assert await at.user_id(name="countess") == first
    assert await at.user_id(subject="SUB-1", name="eve") != first
    assert await at.user_id(issuer=f"{ISSUER}/", name="mallory") != first
    assert await at.user_id(subject="sub-1 ", name="oscar") != first


async def test_a_new_name_renames_its_user_and_is_written_down(at: Setting) -> None:
    user_id = await at.user_id()
    assert await at.user_id(name="countess") == user_id
    assert (await _row(at.db, user_id)).name == "countess"
    async with at.db.read() as conn:
        rows = (await conn.execute(select(audit.c.actor, audit.c.action, audit.c.subject).order_by(audit.c.id))).all()
    assert [tuple(row) for row in rows] == [("ada", "user.create", "ada"), ("ada", "user.rename", "countess")]


async def test_a_new_name_that_another_has_changes_nothing(at: Setting) -> None:
    ada, bob = await at.user_id(), await at.user_id(subject="sub-2", name="bob")
    assert await at.user_id(name="bob", groups=frozenset({"g"})) == ada
    assert [(await _row(at.db, user_id)).name for user_id in (ada, bob)] == ["ada", "bob"]
    assert (await _row(at.db, ada)).groups == ["g"]


async def test_who_got_another_name_gets_their_own_when_it_is_free(at: Setting) -> None:
    await at.user_id()
    second = await at.user_id(subject="sub-2")
    await at.user_id(name="countess")
    assert await at.user_id(subject="sub-2") == second
    assert (await _row(at.db, second)).name == "ada"


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("", r"user [0-9a-f]{8} \(login\.example\.org\)"),
        ("\x00\n ", r"user [0-9a-f]{8} \(login\.example\.org\)"),
        (" a\x00d\na ", "ada"),
        ("é" * 300, "é" * 200),
        (f"first-{'a' * 12}-{'b' * 52}", r"user [0-9a-f]{8} \(login\.example\.org\)"),
        ("cli:root", r"cli:root \(login\.example\.org\)"),
        ("local admin", r"local admin \(login\.example\.org\)"),
    ],
)
async def test_names_that_nobody_may_have_are_made_fit(at: Setting, name: str, called: str) -> None:
    row = await _row(at.db, await at.user_id(name=name))
    assert re.fullmatch(called, row.name)


@pytest.mark.parametrize("told", [{"subject": ""}, {"subject": "x" * 301}, {"subject": "a\x00"}, {"issuer": "a\nb"}])
async def test_who_cannot_be_told_apart_for_ever_is_refused(at: Setting, told: dict[str, str]) -> None:
    with pytest.raises(LoginRefused):
        await at.user_id(**told)
    assert await _count(at.db, users) == 0


# -- at the same time -------------------------------------------------------------------------------------------------


async def test_many_first_logins_of_one_person_make_one_user(at: Setting, database_url: str) -> None:
    other = await Database.open(database_url)
    try:
        elsewhere = Setting(other)
        told = {"projects": frozenset({"climate", "fusion"})}
        found = await asyncio.gather(*(each.user_id(**told) for each in (at, elsewhere) for _ in range(4)))
    finally:
        await other.close()
    assert len(set(found)) == 1
    assert [await _count(at.db, of) for of in (users, identities, projects)] == [1, 1, 2]
    assert (await _row(at.db, found[0])).name == "ada"


async def test_first_logins_of_several_with_one_name_make_as_many_users(at: Setting, database_url: str) -> None:
    other = await Database.open(database_url)
    try:
        elsewhere = Setting(other)
        settings = [at, elsewhere, at, elsewhere, at, elsewhere]
        found = await asyncio.gather(*(each.user_id(subject=f"sub-{i}") for i, each in enumerate(settings)))
    finally:
        await other.close()
    assert len(set(found)) == 6
    names = sorted([(await _row(at.db, user_id)).name for user_id in found])
    assert names[:2] == ["ada", "ada (login.example.org 2)"]
    assert len(set(names)) == 6


async def test_a_name_that_is_taken_at_the_same_moment(at: Setting, database_url: str) -> None:
    ada, bob = await at.user_id(), await at.user_id(subject="sub-2", name="bob")
    other = await Database.open(database_url)
    try:
        elsewhere = Setting(other)
        await asyncio.gather(at.user_id(name="new"), elsewhere.user_id(subject="sub-2", name="new"))
    finally:
        await other.close()
    names = {(await _row(at.db, user_id)).name for user_id in (ada, bob)}
    assert names in ({"new", "bob"}, {"ada", "new"})


# -- who is shut out --------------------------------------------------------------------------------------------------


async def test_who_is_shut_out_does_not_come_in_by_a_login(at: Setting) -> None:
    user_id = await at.user_id()
    await stored.disable(at.db, "ada", actor="op")
    with pytest.raises(LoginRefused, match="shut out"):
        await at.user_id(groups=frozenset({"g"}))
    assert (await _row(at.db, user_id)).groups == []
    await stored.enable(at.db, "ada", actor="op")
    assert await at.user_id() == user_id


# -- the configuration ------------------------------------------------------------------------------------------------


async def test_projects_of_the_configuration_are_made_at_the_start(db: Database) -> None:
    await add_project(db, "fusion")
    text = "auth: {default_project: common}\nprojects: {climate: {description: Weather}, fusion: {description: Stars}}"
    for _ in range(2):
        await Setting(db, text).people.prepare()
    told = {each.name: each.description for each in await stored.list_projects(db)}
    assert told == {"climate": "Weather", "common": "", "fusion": "Stars"}
    await Setting(db, "projects: {climate: {}}").people.prepare()
    assert {each.name: each.description for each in await stored.list_projects(db)} == told


async def test_standing_of_the_store_and_the_configuration_together(db: Database) -> None:
    at = Setting(
        db,
        "auth: {default_project: common, roles: {auditors: {groups: [g]}}}\n"
        "projects: {climate: {managers: [ada]}, fusion: {groups: [g]}, genome: {users: [bob]}}",
    )
    await at.people.prepare()
    user_id = await at.user_id(groups=frozenset({"g"}), projects=frozenset({"stars"}))
    await add_project(db, "weather", user_id)
    await add_project(db, "other")
    await stored.grant(db, "ada", "operator", actor="op")
    found = await _standing(at, user_id)
    assert {each.project: each.is_manager for each in found.memberships} == {
        "climate": True,
        "common": False,
        "fusion": False,
        "stars": False,
        "weather": False,
    }
    assert found.roles == {Role.USER, Role.MANAGER, Role.AUDITOR, Role.OPERATOR}
    assert found.default is not None
    assert found.default.project == "common"


async def test_nobody_has_a_standing_who_is_not_there(at: Setting) -> None:
    async with at.db.read() as conn:
        assert await at.people.standing(conn, "user-nobody") is None


async def test_emails_that_no_database_takes_are_left_out(at: Setting) -> None:
    for email, kept in (("\x00", None), ("a\x00@b", "a@b"), ("", None), (None, None)):
        assert (await _row(at.db, await at.people.came(replace(ADA, email=email)))).email == kept
