"""Changes of rights are in force within seconds, for whoever comes in whatever way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from firstkit.auth import api_keys
from firstkit.auth.api_keys import Personal
from firstkit.auth.authenticator import FRESH_S
from firstkit.clock import now
from firstkit.config.auth import PersonalKeys
from firstkit.errors import Forbidden, LoginRefused, Unauthenticated
from firstkit.store import people as stored
from firstkit.store.database import Database
from unit.auth.support import Setting, add_project, add_session, change_user, wall_clock

WAYS = ("login", "session", "personal key", "key of an operator")


@pytest.fixture
async def at(db: Database) -> Setting:
    """Ada, who belongs to climate and is an operator."""
    at = Setting(db, "auth: {default_project: climate}")
    await at.people.prepare()
    await stored.create_project(db, "fusion", actor="op")
    await at.user_id()
    await stored.add_member(db, "climate", "ada", actor="op")
    await stored.grant(db, "ada", "operator", actor="op")
    return at


@pytest.fixture(params=WAYS)
async def token(request: pytest.FixtureRequest, at: Setting) -> str:
    return await _token(at, request.param)


async def _token(at: Setting, way: str) -> str:
    if way == "login":
        return await at.logged_in()
    if way == "session":
        return await add_session(at.db, await at.user_id())
    scopes = ["inference", "admin"]
    if way == "key of an operator":
        return (await api_keys.create(at.db, "given", user="ada", project="climate", scopes=scopes))[0]
    return await _personal_key(at, scopes=scopes)


async def _personal_key(at: Setting, project: str = "climate", **wanted: object) -> str:
    maker = await at.authenticator.identify(await at.logged_in(token="eyJ.maker"))
    made = Personal(maker, PersonalKeys())
    told = {"user": "ada", "project": project, "expires_in_s": 86400.0, "personal": made, **wanted}
    return (await api_keys.create(at.db, "own", **told))[0]  # type: ignore[arg-type]


async def _before(at: Setting, token: str, change: Callable[[], Awaitable[object]]) -> None:
    """Make the change while the token is known: it works until the memory of it ends, and no longer."""
    identity = await at.authenticator.identify(token)
    await change()
    at.clock.pass_s(FRESH_S - 0.1)
    assert at.authenticator.cached(token) is identity
    at.clock.pass_s(0.1)
    assert at.authenticator.cached(token) is None


async def test_who_is_shut_out_is_out_whatever_the_way(at: Setting, token: str) -> None:
    await _before(at, token, lambda: stored.disable(at.db, "ada", actor="op"))
    with pytest.raises((Unauthenticated, LoginRefused)):
        await at.authenticator.identify(token)


@pytest.mark.parametrize("way", ["login", "personal key", "key of an operator"])
async def test_who_is_let_in_again_is_in(at: Setting, way: str) -> None:
    token = await _token(at, way)
    await stored.disable(at.db, "ada", actor="op")
    with pytest.raises((Unauthenticated, LoginRefused)):
        await at.authenticator.identify(token)
    await stored.enable(at.db, "ada", actor="op")
    at.later()
    assert (await at.authenticator.identify(token)).user_name == "ada"


@pytest.mark.parametrize(("way", "stays"), [*((way, False) for way in WAYS[:3]), (WAYS[3], True)])
async def test_a_role_that_was_taken_away(at: Setting, way: str, stays: bool) -> None:
    token = await _token(at, way)
    assert "admin" in (await at.authenticator.identify(token)).scopes
    await _before(at, token, lambda: stored.ungrant(at.db, "ada", "operator", actor="op"))
    assert ("admin" in (await at.authenticator.identify(token)).scopes) is stays


async def test_a_role_that_was_given_opens_what_a_key_was_made_for_and_no_more(at: Setting) -> None:
    key = await _personal_key(at, scopes=["inference", "admin"])
    await stored.ungrant(at.db, "ada", "operator", actor="op")
    await stored.grant(at.db, "ada", "auditor", actor="op")
    assert (await at.authenticator.identify(key)).scopes == {"inference"}
    await stored.grant(at.db, "ada", "operator", actor="op")
    at.later()
    assert (await at.authenticator.identify(key)).scopes == {"inference", "admin"}


async def test_a_key_of_an_operator_ends_with_the_membership(at: Setting, db: Database) -> None:
    key = (await api_keys.create(db, "given", user="bob", project="fusion"))[0]
    await _before(at, key, lambda: stored.remove_member(db, "fusion", "bob", actor="op"))
    with pytest.raises(Unauthenticated, match="project"):
        await at.authenticator.identify(key)
    await stored.add_member(db, "fusion", "bob", actor="op")
    at.later()
    assert (await at.authenticator.identify(key)).project_name == "fusion"


async def test_a_personal_key_ends_with_the_membership(at: Setting, db: Database) -> None:
    await stored.add_member(db, "fusion", "ada", actor="op")
    key = await _personal_key(at, project="fusion", projects=["climate"])
    assert (await at.authenticator.identify(key)).charged_to("climate").project_name == "climate"
    await _before(at, key, lambda: stored.remove_member(db, "fusion", "ada", actor="op"))
    with pytest.raises(Unauthenticated, match="project"):
        await at.authenticator.identify(key)


async def test_a_further_project_that_its_user_left_is_none_of_the_key(at: Setting, db: Database) -> None:
    await stored.add_member(db, "fusion", "ada", actor="op")
    key = await _personal_key(at, project="climate", projects=["fusion"])
    assert len((await at.authenticator.identify(key)).memberships) == 2
    await _before(at, key, lambda: stored.remove_member(db, "fusion", "ada", actor="op"))
    identity = await at.authenticator.identify(key)
    assert [each.project for each in identity.memberships] == ["climate"]


async def test_a_project_that_the_provider_claims_no_more(at: Setting) -> None:
    token = await at.logged_in(projects=["stars"])
    assert "stars" in {each.project for each in (await at.authenticator.identify(token)).memberships}
    key = await _claimed_key(at)
    assert (await at.authenticator.identify(key)).project_name == "stars"
    await _before(at, key, lambda: at.user_id(projects=frozenset()))
    with pytest.raises(Unauthenticated, match="project"):
        await at.authenticator.identify(key)
    identity = await at.authenticator.identify(token)
    assert [each.project for each in identity.memberships] == ["climate"]


async def _claimed_key(at: Setting) -> str:
    maker = await at.authenticator.identify("eyJ.ada")
    told = Personal(maker, PersonalKeys())
    return (await api_keys.create(at.db, "s", user="ada", project="stars", expires_in_s=60.0, personal=told))[0]


async def test_who_manages_a_project_no_more(at: Setting, db: Database) -> None:
    token = await at.logged_in()
    await stored.add_member(db, "fusion", "ada", "manager", actor="op")
    identity = await at.authenticator.identify(token)
    [fusion] = [each for each in identity.memberships if each.project == "fusion"]
    assert identity.manages(fusion.project_id)
    await _before(at, token, lambda: stored.add_member(db, "fusion", "ada", "member", actor="op"))
    assert not (await at.authenticator.identify(token)).manages(fusion.project_id)


async def test_a_personal_key_needs_a_login_now_and_then(at: Setting) -> None:
    key = await _personal_key(at)
    given = await _token(at, "key of an operator")
    user_id = (await at.authenticator.identify(key)).user_id
    month = timedelta(days=30)
    await _before(at, key, lambda: change_user(at.db, user_id, seen_at=now() - month))
    with pytest.raises(Unauthenticated, match="login"):
        await at.authenticator.identify(key)
    assert (await at.authenticator.identify(given)).user_name == "ada", "an operator made it, not a login"
    await at.user_id()
    at.later()
    assert (await at.authenticator.identify(key)).user_name == "ada"


async def test_a_personal_key_outlives_the_last_login_by_no_second(at: Setting) -> None:
    key = await _personal_key(at)
    user_id = (await at.authenticator.identify(key)).user_id
    await change_user(at.db, user_id, seen_at=now() - timedelta(days=30) + timedelta(seconds=60))
    at.later()
    await at.authenticator.identify(key)
    at.store.is_down = True
    at.clock.pass_s(58)
    await at.authenticator.identify(key)
    at.clock.pass_s(2)
    with pytest.raises(Exception, match="refused") as caught:
        await at.authenticator.identify(key)
    assert caught.value.status == 503  # type: ignore[attr-defined]


async def test_a_revoked_personal_key(at: Setting) -> None:
    key = await _personal_key(at)
    await _before(at, key, lambda: api_keys.revoke(at.db, "own", actor="ada"))
    with pytest.raises(Unauthenticated):
        await at.authenticator.identify(key)


@pytest.mark.parametrize("ahead_s", [0.0, -3600.0])
async def test_a_clock_that_is_set_back_lets_no_key_live_longer_than_it_was_found_to(
    at: Setting, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    key = await _personal_key(at, expires_in_s=60.0)
    await at.authenticator.identify(key)
    wall_clock(monkeypatch, ahead_s)
    at.store.is_down = True
    at.clock.pass_s(61)
    with pytest.raises(Exception, match="refused"):
        await at.authenticator.identify(key)


async def test_a_clock_that_is_ahead_ends_keys_early_and_says_so(at: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    key = await _personal_key(at, expires_in_s=60.0)
    wall_clock(monkeypatch, 61.0)
    with pytest.raises(Unauthenticated, match="expired"):
        await at.authenticator.identify(key)


async def test_groups_of_long_ago_open_nothing_to_a_key(at: Setting, db: Database) -> None:
    user_id = await at.user_id(groups=frozenset({"g"}))
    key = await _token(at, "key of an operator")
    assert (await at.authenticator.identify(key)).groups == {"g"}
    await change_user(db, user_id, seen_at=now() - timedelta(days=31))
    at.later()
    assert (await at.authenticator.identify(key)).groups == frozenset()


async def test_nobody_makes_keys_who_was_shut_out_a_moment_ago(at: Setting) -> None:
    maker = await at.authenticator.identify(await at.logged_in())
    await stored.disable(at.db, "ada", actor="op")
    with pytest.raises(Forbidden):
        await api_keys.create(
            at.db, "k", user="ada", project="climate", expires_in_s=60, personal=Personal(maker, PersonalKeys())
        )


async def test_who_is_added_to_a_project_may_charge_it(at: Setting, db: Database) -> None:
    token = await at.logged_in()
    await at.authenticator.identify(token)
    await add_project(db, "genome", (await at.authenticator.identify(token)).user_id)
    at.later()
    assert (await at.authenticator.identify(token)).charged_to("genome").project_id == "project-genome"
