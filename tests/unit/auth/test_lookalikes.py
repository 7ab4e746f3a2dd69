"""Tokens that are nearly good are not good, and are never remembered as if they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from firstkit.auth import api_keys, authenticator, tokens
from firstkit.auth.tokens import LONGEST, is_session, is_token, new_session, parse_key
from firstkit.errors import Unauthenticated
from firstkit.ids import digest
from firstkit.store.database import Database
from unit.auth.support import Setting, add_session

PROVIDERS = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJlLW9mLXRoZS1wcm92aWRlcg"


@pytest.fixture
def at(db: Database) -> Setting:
    return Setting(db, remembered=10_000)


@pytest.fixture(params=["key", "session", "token of a provider"])
async def good(request: pytest.FixtureRequest, at: Setting, db: Database) -> str:
    if request.param == "key":
        return (await api_keys.create(db, "k", user="ada"))[0]
    user_id = await at.user_id()
    return await (add_session(db, user_id) if request.param == "session" else at.logged_in(token=PROVIDERS))


def lookalikes(token: str) -> Iterator[str]:
    for i, letter in enumerate(token):
        yield token[:i] + ("a" if letter != "a" else "b") + token[i + 1 :]
        yield token[:i]
        yield token[:i] + token[i + 1 :]
        yield token[i:] if i else ""
    for more in ("a", "=", " ", "\n", "\r\n", "\t", "\0", "\x7f", "é", "\u200b", "\ud800", ".", "/", "%20"):
        yield token + more
        yield more + token
        yield token[:8] + more + token[8:]
    yield from (token.upper(), token.title(), token.swapcase(), f"{token} {token}", f"{token},{token}", token * 2)
    yield token.replace("a", "а")  # noqa: RUF001 - a Cyrillic letter that looks the same
    yield digest(token)


async def test_what_is_nearly_good_is_refused_and_not_remembered_as_good(at: Setting, good: str) -> None:
    identity = await at.authenticator.identify(good)
    tried = {each for each in lookalikes(good) if each != good}
    assert len(tried) > 250
    for each in tried:
        assert at.authenticator.cached(each) is None
        with pytest.raises(Unauthenticated):
            await at.authenticator.identify(each)
        assert at.authenticator.cached(each) is None
    assert at.authenticator.cached(good) is identity
    assert len(at.authenticator._known) == 1


async def test_no_provider_is_told_anything_that_looks_like_a_key_of_ours(at: Setting) -> None:
    at.authority.mark = ""
    key = (await api_keys.create(at.db, "k", user="ada"))[0]
    session = new_session()
    for each in (key[:-1], key[:30], f"{key}x", "first-", session, session[:-1], f"{session}a", f"{key}.{key}"):
        with pytest.raises(Unauthenticated):
            await at.authenticator.identify(each)
    assert at.authority.asked == []


async def test_a_token_of_absurd_length_is_refused_before_anything_is_done_with_it(
    at: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    at.authority.mark = ""
    longest = "e" * LONGEST
    await at.logged_in(token=longest)
    assert (await at.authenticator.identify(longest)).user_name == "ada"
    assert at.authenticator.cached(longest) is not None
    monkeypatch.setattr(authenticator, "digest", lambda _: pytest.fail("it was hashed"))
    for each in ("e" * (LONGEST + 1), "e" * 10_000_000, "first-" * 1_000_000):
        assert at.authenticator.cached(each) is None
        with pytest.raises(Unauthenticated):
            await at.authenticator.identify(each)
    assert len(at.authority.asked) == 1


async def test_a_digest_that_somebody_read_in_the_store_opens_nothing(at: Setting, db: Database) -> None:
    key = (await api_keys.create(db, "k", user="ada"))[0]
    session = await add_session(db, await at.user_id())
    for each in (digest(key), digest(session), f"first-{key[6:18]}-{digest(key)[:52]}", f"first-{digest(key)}"):
        with pytest.raises(Unauthenticated):
            await at.authenticator.identify(each)


async def test_the_prefix_of_one_key_with_the_secret_of_another(at: Setting, db: Database) -> None:
    one, other = [(await api_keys.create(db, name, user="ada"))[0] for name in ("one", "other")]
    for each in (one, other):
        await at.authenticator.identify(each)
    for each in (one[:19] + other[19:], other[:19] + one[19:]):
        with pytest.raises(Unauthenticated):
            await at.authenticator.identify(each)


def test_forms_of_tokens() -> None:
    session = new_session()
    assert is_session(session)
    assert not is_session(session + "\n")
    assert parse_key(session) is None
    assert is_token(session)
    assert is_token(PROVIDERS + "==")
    assert not any(map(is_token, ("", "=", "a b", "a=b", "a\n", "é", "a,b", "a" * (LONGEST + 1))))
    assert session[:6] == tokens.OURS
