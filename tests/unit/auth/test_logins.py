"""Logins: whoever a provider vouched for goes on until that ends, and silence of a provider is not a no."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import cast

import pytest

from firstkit.auth import sources
from firstkit.auth.authenticator import FRESH_S, GRACE_S, Authenticator
from firstkit.errors import LoginRefused, ProviderUnavailable, StoreUnavailable, Unauthenticated
from firstkit.store import people as stored
from firstkit.store.database import Database
from unit.auth.support import ADA, PlayedAuthority, Setting, add_project, add_session, change_user, wall_clock

CACHE_S = 300.0


@pytest.fixture
def at(db: Database) -> Setting:
    return Setting(db)


async def test_a_good_login(at: Setting) -> None:
    token = await at.logged_in(groups=["g"], domains=["example.org"], projects=["climate"])
    identity = await at.authenticator.identify(token)
    assert (identity.user_name, identity.key_prefix, identity.project_name) == ("ada", "oidc", "climate")
    assert (identity.groups, identity.domains) == (frozenset({"g"}), frozenset({"example.org"}))
    assert identity.scopes == {"inference", "account"}
    assert identity.limited_by == f"oidc:{identity.user_id}"


async def test_the_provider_is_asked_once_and_the_store_every_few_seconds(at: Setting) -> None:
    token = await at.logged_in()
    identity = await at.authenticator.identify(token)
    assert at.authenticator.cached(token) is identity
    asked = at.store.asked
    at.later()
    assert at.authenticator.cached(token) is None
    await at.authenticator.identify(token)
    assert len(at.authority.asked) == 1
    assert at.store.asked == asked + 1


async def test_the_provider_is_asked_again_when_what_it_said_is_old(at: Setting) -> None:
    token = await at.logged_in()
    await at.authenticator.identify(token)
    at.clock.pass_s(CACHE_S - 0.1)
    await at.authenticator.identify(token)
    assert len(at.authority.asked) == 1
    at.clock.pass_s(0.1)
    assert at.authenticator.cached(token) is None, "the memory of the identity ends with the vouching"
    await at.authenticator.identify(token)
    assert len(at.authority.asked) == 2


async def test_a_token_is_good_no_longer_than_it_lives(at: Setting) -> None:
    token = await at.logged_in(good_for_s=3.0)
    await at.authenticator.identify(token)
    del at.authority.holders[token]
    at.clock.pass_s(2.9)
    assert at.authenticator.cached(token) is not None
    at.clock.pass_s(0.1)
    assert at.authenticator.cached(token) is None
    with pytest.raises(Unauthenticated):
        await at.authenticator.identify(token)


@pytest.mark.parametrize("good_for_s", [0.0, -1.0, math.nan, -math.inf])
async def test_a_token_that_has_ended_is_no_good_whatever_the_provider_says(at: Setting, good_for_s: float) -> None:
    with pytest.raises(Unauthenticated):
        await at.authenticator.identify(await at.logged_in(good_for_s=good_for_s))


async def test_a_token_without_end_is_asked_about_again(at: Setting) -> None:
    token = await at.logged_in(good_for_s=math.inf)
    await at.authenticator.identify(token)
    at.clock.pass_s(CACHE_S)
    await at.authenticator.identify(token)
    assert len(at.authority.asked) == 2


async def test_without_a_cache_the_provider_is_asked_every_time(db: Database) -> None:
    at = Setting(db, "auth: {cache: 0s}")
    token = await at.logged_in()
    for _ in range(3):
        assert (await at.authenticator.identify(token)).user_name == "ada"
        assert at.authenticator.cached(token) is None
    assert len(at.authority.asked) == 3


@pytest.mark.parametrize("ahead_s", [-86400.0, 86400.0])
async def test_the_clock_on_the_wall_does_not_move_what_a_provider_said(
    at: Setting, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    token = await at.logged_in(good_for_s=10.0)
    await at.authenticator.identify(token)
    wall_clock(monkeypatch, ahead_s)
    at.authority.error = ProviderUnavailable()
    at.clock.pass_s(9.9)
    await at.authenticator.identify(token)
    at.clock.pass_s(0.1)
    with pytest.raises(ProviderUnavailable):
        await at.authenticator.identify(token)


async def test_many_who_ask_at_once_ask_the_provider_once(at: Setting) -> None:
    token = await at.logged_in()
    found = await asyncio.gather(*(at.authenticator.identify(token) for _ in range(50)))
    assert len(set(map(id, found))) == 1
    assert at.authority.asked == [token]


async def test_who_came_by_one_provider_is_not_who_came_by_another(db: Database) -> None:
    at, other = Setting(db), PlayedAuthority("globus-")
    other.name = "globus"
    other.holders["globus-1"] = replace(ADA, issuer="https://auth.globus.org")
    both = Authenticator(db, at.people, [at.authority, other], at.clock)
    first, second = await both.identify(await at.logged_in()), await both.identify("globus-1")
    assert (first.user_name, first.key_prefix) == ("ada", "oidc")
    assert (second.user_name, second.key_prefix) == ("ada (auth.globus.org)", "globus")
    assert (at.authority.asked, other.asked) == (["eyJ.ada"], ["globus-1"])


# -- when the provider does not answer --------------------------------------------------------------------------------


async def test_a_provider_that_is_down(at: Setting) -> None:
    token = await at.logged_in()
    await at.authenticator.identify(token)
    at.authority.error = ProviderUnavailable()
    at.clock.pass_s(CACHE_S - 1)
    assert (await at.authenticator.identify(token)).user_name == "ada"
    with pytest.raises(ProviderUnavailable):
        await at.authenticator.identify(await at.logged_in(token="eyJ.new"))
    at.clock.pass_s(1)
    with pytest.raises(ProviderUnavailable):
        await at.authenticator.identify(token)
    at.authority.error = None
    for each in (token, "eyJ.new"):
        assert (await at.authenticator.identify(each)).user_name == "ada", "nothing of the outage was remembered"


async def test_a_provider_that_does_not_answer_at_all(at: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PROVIDER_S", 0.01)
    at.authority.hangs = True
    with pytest.raises(ProviderUnavailable):
        await at.authenticator.identify(await at.logged_in())
    at.authority.hangs = False
    assert (await at.authenticator.identify("eyJ.ada")).user_name == "ada"


async def test_a_provider_that_is_down_and_a_change_of_rights(at: Setting) -> None:
    token = await at.logged_in()
    user_id = (await at.authenticator.identify(token)).user_id
    at.authority.error = ProviderUnavailable()
    await add_project(at.db, "climate", user_id)
    at.later()
    assert (await at.authenticator.identify(token)).project_name == "climate"
    await stored.disable(at.db, "ada", actor="op")
    at.later()
    with pytest.raises(LoginRefused):
        await at.authenticator.identify(token)


async def test_a_fault_of_ours_is_no_answer_of_the_provider(at: Setting) -> None:
    token = await at.logged_in()
    at.authority.error = KeyError("sub")
    with pytest.raises(KeyError):
        await at.authenticator.identify(token)
    at.authority.error = None
    assert (await at.authenticator.identify(token)).user_name == "ada"


# -- when it says no --------------------------------------------------------------------------------------------------


async def test_a_no_is_remembered_for_a_moment(at: Setting) -> None:
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await at.authenticator.identify("eyJ.nobody")
    assert len(at.authority.asked) == 1
    at.later()
    with pytest.raises(Unauthenticated):
        await at.authenticator.identify("eyJ.nobody")
    assert len(at.authority.asked) == 2
    await at.logged_in(token="eyJ.nobody")
    at.later()
    assert (await at.authenticator.identify("eyJ.nobody")).user_name == "ada"


async def test_a_no_of_our_rules_is_told_as_what_it_is_every_time(at: Setting) -> None:
    at.authority.error = LoginRefused("Only people of these institutions come in: example.org.")
    for _ in range(2):
        with pytest.raises(LoginRefused, match="these institutions"):
            await at.authenticator.identify("eyJ.ada")
    assert len(at.authority.asked) == 1


async def test_a_login_that_the_provider_ended(at: Setting) -> None:
    token = await at.logged_in()
    await at.authenticator.identify(token)
    del at.authority.holders[token]
    at.clock.pass_s(CACHE_S)
    with pytest.raises(Unauthenticated):
        await at.authenticator.identify(token)
    at.authority.error = ProviderUnavailable()
    at.later()
    with pytest.raises(ProviderUnavailable):
        await at.authenticator.identify(token)


# -- when the store does not answer -----------------------------------------------------------------------------------


async def test_a_silent_store_with_a_known_and_an_unknown_login(at: Setting) -> None:
    token = await at.logged_in()
    identity = await at.authenticator.identify(token)
    at.store.is_down = True
    at.later()
    assert await at.authenticator.identify(token) is identity
    with pytest.raises(StoreUnavailable):
        await at.authenticator.identify(await at.logged_in(token="eyJ.new"))
    at.clock.pass_s(CACHE_S - FRESH_S)
    with pytest.raises(StoreUnavailable):
        await at.authenticator.identify(token)
    at.store.is_down = False
    assert await at.authenticator.identify(token) == identity


async def test_grace_is_no_reason_to_outlive_the_vouching(db: Database) -> None:
    at = Setting(db, "auth: {cache: 20s}")
    token = await at.logged_in()
    await at.authenticator.identify(token)
    at.store.is_down = True
    at.authority.error = ProviderUnavailable()
    at.clock.pass_s(19)
    await at.authenticator.identify(token)
    at.clock.pass_s(1)
    with pytest.raises(ProviderUnavailable):
        await at.authenticator.identify(token)


async def test_a_user_who_is_gone_is_made_again_by_the_next_login(at: Setting) -> None:
    token = await at.logged_in()
    first = await at.authenticator.identify(token)
    async with at.db.begin() as conn:
        await conn.exec_driver_sql("DELETE FROM users")
    at.later()
    with pytest.raises(Unauthenticated):
        await at.authenticator.identify(token)
    at.later()
    assert (await at.authenticator.identify(token)).user_id != first.user_id


# -- browsers ---------------------------------------------------------------------------------------------------------


async def test_a_session_is_who_logged_in(at: Setting) -> None:
    user_id = await at.user_id(projects=frozenset({"climate"}), groups=frozenset({"g"}))
    token = await add_session(at.db, user_id)
    identity = await at.authenticator.identify(token)
    assert (identity.user_id, identity.key_prefix, identity.project_name) == (user_id, "session", "climate")
    assert identity.groups == {"g"}
    assert at.authenticator.cached(token) is identity
    assert at.authority.asked == []


async def test_an_expired_session_is_no_good(at: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    user_id = await at.user_id()
    with pytest.raises(Unauthenticated, match="log in again"):
        await at.authenticator.identify(await add_session(at.db, user_id, 0.0))
    token = await add_session(at.db, user_id, 60.0)
    await at.authenticator.identify(token)
    wall_clock(monkeypatch, 60.0)
    at.later()
    with pytest.raises(Unauthenticated):
        await at.authenticator.identify(token)


async def test_a_session_ends_also_while_the_store_is_silent(at: Setting) -> None:
    token = await add_session(at.db, await at.user_id(), 60.0)
    await at.authenticator.identify(token)
    at.store.is_down = True
    at.clock.pass_s(58)
    await at.authenticator.identify(token)
    at.clock.pass_s(2)
    with pytest.raises(StoreUnavailable):
        await at.authenticator.identify(token)


async def test_a_session_that_was_ended_here_ends_at_once(at: Setting) -> None:
    token = await add_session(at.db, await at.user_id())
    await at.authenticator.identify(token)
    async with at.db.begin() as conn:
        await conn.exec_driver_sql("DELETE FROM sessions")
    at.authenticator.forget(token)
    with pytest.raises(Unauthenticated):
        await at.authenticator.identify(token)


async def test_a_session_of_somebody_who_is_shut_out(at: Setting) -> None:
    user_id = await at.user_id()
    token = await add_session(at.db, user_id)
    await at.authenticator.identify(token)
    await stored.disable(at.db, "ada", actor="op")
    at.later()
    with pytest.raises(Unauthenticated):
        await at.authenticator.identify(token)
    await stored.enable(at.db, "ada", actor="op")
    at.later()
    with pytest.raises(Unauthenticated):
        await at.authenticator.identify(token)
    late = await add_session(at.db, user_id)
    await change_user(at.db, user_id, disabled_at=sources.now())
    with pytest.raises(LoginRefused):
        await at.authenticator.identify(late)


async def test_without_people_and_providers_there_are_keys_and_sessions(at: Setting) -> None:
    token = await add_session(at.db, await at.user_id())
    alone = Authenticator(cast(Database, at.store))
    assert (await alone.identify(token)).user_name == "ada"
    with pytest.raises(Unauthenticated):
        await alone.identify(await at.logged_in())


async def test_no_answer_of_the_store_is_trusted_for_ever(at: Setting) -> None:
    token = await add_session(at.db, await at.user_id(), 86400.0)
    await at.authenticator.identify(token)
    at.store.is_down = True
    at.clock.pass_s(FRESH_S + GRACE_S)
    with pytest.raises(StoreUnavailable):
        await at.authenticator.identify(token)
