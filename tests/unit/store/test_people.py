"""Users, projects and members: changes that are written down with what they change."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import func, insert, select

from firstkit.auth import api_keys
from firstkit.auth.permissions import ProjectNotFound
from firstkit.clock import now
from firstkit.errors import InvalidRequest
from firstkit.store import people
from firstkit.store.database import Database
from firstkit.store.people import MemberNotFound, ProjectNameTaken, UserNotFound
from firstkit.store.tables import audit, sessions, users


@pytest.fixture
async def ada(db: Database) -> str:
    """The id of ada, who has a key for climate."""
    await api_keys.create(db, "k", user="ada", project="climate", actor="setting")
    return (await people.list_users(db))[0].id


async def _acts(db: Database) -> list[tuple[Any, ...]]:
    columns = (audit.c.actor, audit.c.action, audit.c.subject, audit.c.details, audit.c.source)
    async with db.read() as conn:
        query = select(*columns).where(audit.c.actor != "setting").order_by(audit.c.id)
        return [tuple(row) for row in await conn.execute(query)]


async def test_users_are_listed_with_what_they_are(db: Database, ada: str) -> None:
    await api_keys.create(db, "dead", user="ada", project="fusion")
    await api_keys.revoke(db, "dead", actor="setting")
    await api_keys.create(db, "k2", user="zoe", project="climate")
    found = await people.list_users(db)
    assert [(each.name, each.projects, each.keys) for each in found] == [
        ("ada", ("climate", "fusion"), 1),
        ("zoe", ("climate",), 1),
    ]
    [row] = [each.as_row() for each in await people.list_users(db, name="ada")]
    assert (row["name"], row["roles"], row["seen_at"], row["disabled_at"]) == ("ada", [], None, None)
    assert await people.list_users(db, name="nobody") == await people.list_users(db, name="a\x00") == []


async def test_roles_come_and_go_and_each_is_written_down_once(db: Database, ada: str) -> None:
    for _ in range(2):
        user = await people.grant(db, "ada", "operator", actor="op", source="192.0.2.1")
    assert user.roles == ("operator",)
    assert (await people.grant(db, "ada", "auditor", actor="op")).roles == ("auditor", "operator")
    for _ in range(2):
        user = await people.ungrant(db, "ada", "operator", actor="op")
    assert user.roles == ("auditor",)
    assert await _acts(db) == [
        ("op", "user.grant", "ada", {"role": "operator"}, "192.0.2.1"),
        ("op", "user.grant", "ada", {"role": "auditor"}, ""),
        ("op", "user.ungrant", "ada", {"role": "operator"}, ""),
    ]


@pytest.mark.parametrize("role", ["user", "manager", "root", "", "OPERATOR"])
async def test_other_roles_are_not_granted(db: Database, ada: str, role: str) -> None:
    for act in (people.grant, people.ungrant):
        with pytest.raises(InvalidRequest, match="operator, auditor") as caught:
            await act(db, "ada", role, actor="op")
        assert caught.value.param == "role"


async def test_roles_that_are_granted_at_once_are_all_kept(db: Database, ada: str, database_url: str) -> None:
    other = await Database.open(database_url)
    try:
        stores = [(db, "operator"), (other, "auditor")] * 3
        await asyncio.gather(*(people.grant(each, "ada", role, actor="op") for each, role in stores))
    finally:
        await other.close()
    assert (await people.list_users(db))[0].roles == ("auditor", "operator")
    assert len(await _acts(db)) == 2


async def test_who_is_shut_out_is_so_once_and_without_sessions(db: Database, ada: str) -> None:
    at = now()
    async with db.begin() as conn:
        row = {"sha256": "s", "user_id": ada, "issuer": "i", "created_at": at, "expires_at": at}
        await conn.execute(insert(sessions).values(row))
    first = await people.disable(db, "ada", actor="op")
    assert (await people.disable(db, "ada", actor="op")).disabled_at == first.disabled_at is not None
    async with db.read() as conn:
        assert await conn.scalar(select(func.count()).select_from(sessions)) == 0
    for _ in range(2):
        assert (await people.enable(db, "ada", actor="op")).disabled_at is None
    assert [act[1:3] for act in await _acts(db)] == [("user.disable", "ada"), ("user.enable", "ada")]


async def test_projects_are_made_once(db: Database) -> None:
    made = await people.create_project(db, "fusion", "Stars\non earth", actor="op", source="192.0.2.1")
    with pytest.raises(ProjectNameTaken, match="'fusion'"):
        await people.create_project(db, "fusion", actor="op")
    assert await people.list_projects(db) == [made]
    assert made.as_row() == {
        "name": "fusion",
        "description": "Stars\non earth",
        "members": 0,
        "created_at": made.created_at.isoformat(),
    }
    assert await _acts(db) == [("op", "project.create", "fusion", {"description": "Stars\non earth"}, "192.0.2.1")]


@pytest.mark.parametrize(
    ("name", "description", "param"),
    [("", "", "name"), ("a\nb", "", "name"), ("p", "a\x00", "description"), ("p", "x" * 2001, "description")],
)
async def test_bad_projects_are_refused(db: Database, name: str, description: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await people.create_project(db, name, description, actor="op")
    assert caught.value.param == param
    assert await people.list_projects(db) == []


async def test_projects_are_listed_by_id(db: Database, ada: str) -> None:
    made = await people.create_project(db, "fusion", actor="op")
    assert [(each.name, each.members) for each in await people.list_projects(db)] == [("climate", 1), ("fusion", 0)]
    assert [each.name for each in await people.list_projects(db, ids=[made.id, "project-nothing"])] == ["fusion"]
    assert await people.list_projects(db, ids=[]) == []


async def test_members_come_change_and_go(db: Database, ada: str) -> None:
    await people.create_project(db, "fusion", actor="setting")
    await api_keys.create(db, "k", user="zoe", project="fusion", actor="setting")
    for role in ("member", "member", "manager"):
        member = await people.add_member(db, "fusion", "ada", role, actor="op", source="192.0.2.1")  # type: ignore[arg-type]
    found = await people.members_of(db, "fusion")
    assert [(each.user, each.role) for each in found] == [("ada", "manager"), ("zoe", "member")]
    assert found[0] == member
    assert member.as_row()["role"] == "manager"
    assert (await people.remove_member(db, "fusion", "ada", actor="op")).role == "manager"
    assert [each.user for each in await people.members_of(db, "fusion")] == ["zoe"]
    assert [(act[1], act[2], act[3]) for act in await _acts(db)] == [
        ("project.add", "fusion", {"user": "ada", "role": "member"}),
        ("project.add", "fusion", {"user": "ada", "role": "manager"}),
        ("project.remove", "fusion", {"user": "ada", "role": "manager"}),
    ]


async def test_who_was_not_added_cannot_be_removed(db: Database, ada: str) -> None:
    await people.create_project(db, "fusion", actor="setting")
    with pytest.raises(MemberNotFound, match="configuration"):
        await people.remove_member(db, "fusion", "ada", actor="op")
    assert await _acts(db) == []


async def test_nobody_is_added_as_something_else(db: Database, ada: str) -> None:
    with pytest.raises(InvalidRequest, match="'manager'"):
        await people.add_member(db, "climate", "ada", "owner", actor="op")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["nobody", "", "a\x00b", "\ud800", "Ada", "x" * 300])
async def test_users_and_projects_that_there_are_not(db: Database, ada: str, name: str) -> None:
    for act in (people.disable, people.enable):
        with pytest.raises(UserNotFound):
            await act(db, name, actor="op")
    with pytest.raises(UserNotFound):
        await people.grant(db, name, "operator", actor="op")
    for change in (people.add_member, people.remove_member):
        with pytest.raises(UserNotFound):
            await change(db, "climate", name, actor="op")
        with pytest.raises(ProjectNotFound):
            await change(db, name, "ada", actor="op")
    with pytest.raises(ProjectNotFound):
        await people.members_of(db, name)
    assert await _acts(db) == []


async def test_a_default_project_is_chosen_and_given_up(db: Database, ada: str) -> None:
    [climate] = await people.list_projects(db)

    async def chosen() -> str | None:
        async with db.read() as conn:
            found: str | None = await conn.scalar(select(users.c.default_project_id).where(users.c.id == ada))
            return found

    await people.set_default_project(db, ada, climate.id, actor="ada", source="192.0.2.1")
    assert await chosen() == climate.id
    await people.set_default_project(db, ada, None, actor="ada")
    assert await chosen() is None
    assert [act[1:4] for act in await _acts(db)] == [
        ("user.default_project", "ada", {"project": "climate"}),
        ("user.default_project", "ada", {"project": None}),
    ]
    with pytest.raises(ProjectNotFound):
        await people.set_default_project(db, ada, "project-nothing", actor="ada")
    with pytest.raises(UserNotFound):
        await people.set_default_project(db, "local-admin", climate.id, actor="ada")
