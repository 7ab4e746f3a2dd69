"""Logins of browsers that must not succeed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from firstkit.clock import now
from firstkit.store.tables import logins, sessions, users
from unit.auth.loopback_issuer import AUDIENCE, rsa, signed
from unit.gateway.login_site import (
    CLIENT,
    Site,
    at_hash,
    is_refused,
)


async def test_a_callback_works_once(site: Site, browser: httpx.AsyncClient) -> None:
    asked = await site.begin(browser)
    cookie = dict(browser.cookies)
    assert (await site.back(browser, asked)).status_code == 303
    redeemed = site.issuer.asked.count("/token")
    browser.cookies.update(cookie)
    assert is_refused(await site.back(browser, asked), 400)
    assert site.issuer.asked.count("/token") == redeemed, "the provider is not asked again"
    assert len(await site.rows(sessions)) == 1
    assert ("unknown", "denied", "192.0.2.7") in await site.acts()


async def test_a_state_is_good_in_one_browser(site: Site, browser: httpx.AsyncClient) -> None:
    asked = await site.begin(browser)
    async with site.browser() as thief:
        assert is_refused(await site.back(thief, asked), 400), "without a login of its own"
        await thief.get("/auth/login", params={"provider": "oidc"})
        assert is_refused(await site.back(thief, asked), 400), "with one"
    assert (await site.back(browser, asked)).status_code == 303, "the thief spoiled nothing"


async def test_a_victim_does_not_become_the_attacker(site: Site, browser: httpx.AsyncClient) -> None:
    """Somebody begins a login and sends the last link of it to another, who is about to log in too."""
    async with site.browser() as attacker:
        theirs = await site.begin(attacker)
    await site.begin(browser)
    assert is_refused(await site.back(browser, theirs), 400)


async def test_a_login_has_ten_minutes(site: Site, browser: httpx.AsyncClient) -> None:
    asked = await site.begin(browser)
    async with site.gateway.db.begin() as conn:
        await conn.execute(update(logins).values(expires_at=now() - timedelta(seconds=1)))
    assert is_refused(await site.back(browser, asked), 400)


@pytest.mark.parametrize(
    "query", [{}, {"state": "x"}, {"code": "x"}, {"state": "", "code": ""}, {"error": "access_denied"}]
)
async def test_a_callback_out_of_nowhere(browser: httpx.AsyncClient, query: dict[str, str]) -> None:
    assert is_refused(await browser.get("/auth/callback", params=query), 400)


async def test_a_provider_that_says_no(site: Site, browser: httpx.AsyncClient) -> None:
    asked = await site.begin(browser)
    said = {"state": asked["state"], "error": "access_denied", "error_description": "<script>x</script>"}
    answer = await browser.get("/auth/callback", params=said)
    assert is_refused(answer, 403)
    assert "access_denied" in answer.text
    assert is_refused(await site.back(browser, asked), 400), "the login is over"


@pytest.mark.parametrize("error", ["<script>alert(1)</script>", "x" * 1000, "&lt;", "'\"><b>"])
async def test_what_the_provider_says_is_not_believed(site: Site, browser: httpx.AsyncClient, error: str) -> None:
    asked = await site.begin(browser)
    answer = await browser.get("/auth/callback", params={"state": asked["state"], "error": error})
    assert is_refused(answer, 403)
    assert error not in answer.text


BAD_ID_TOKENS: list[dict[str, Any]] = [
    {"nonce": "another"},
    {"nonce": None},
    {"aud": AUDIENCE},
    {"aud": ["x"]},
    {"aud": None},
    {"aud": [CLIENT, "x"]},
    {"aud": [CLIENT, "x"], "azp": "x"},
    {"azp": "x"},
    {"iss": "https://other.example.org"},
    {"iss": None},
    {"exp": 1},
    {"exp": None},
    {"iat": 2**40},
    {"at_hash": at_hash("another")},
    {"at_hash": 7},
]


@pytest.mark.parametrize("claims", BAD_ID_TOKENS, ids=str)
async def test_an_id_token_that_is_not_for_this_login(
    site: Site, browser: httpx.AsyncClient, claims: dict[str, Any]
) -> None:
    asked = await site.begin(browser)
    site.answer(**{"nonce": asked["nonce"], **claims})
    assert is_refused(await site.back(browser, asked), 403)
    assert await site.rows(sessions) == []


async def test_one_that_names_its_client_among_others(site: Site, browser: httpx.AsyncClient) -> None:
    asked = await site.begin(browser)
    site.answer(asked["nonce"], aud=[CLIENT, "x"], azp=CLIENT, at_hash=None)
    assert (await site.back(browser, asked)).status_code == 303


@pytest.mark.parametrize("token", [None, "", "x", 7, ["x"], "a.b.c"])
async def test_no_id_token_at_all(site: Site, browser: httpx.AsyncClient, token: Any) -> None:
    asked = await site.begin(browser)
    site.tokens["id_token"] = token
    assert is_refused(await site.back(browser, asked), 403)


async def test_an_id_token_that_somebody_else_signed(site: Site, browser: httpx.AsyncClient) -> None:
    for header in ({}, {"kid": "one"}, {"alg": "PS256", "kid": "one"}):
        asked = await site.begin(browser)
        claims = site.issuer.claims(aud=CLIENT, nonce=asked["nonce"])
        site.tokens["id_token"] = signed(rsa("thief"), claims, **header)
        assert is_refused(await site.back(browser, asked), 403)


async def test_the_answer_of_another_provider(site: Site, browser: httpx.AsyncClient) -> None:
    asked = await site.begin(browser)
    assert is_refused(await site.back(browser, asked, iss="https://other.example.org"), 403)
    asked = await site.begin(browser)
    assert (await site.back(browser, asked, iss=site.issuer.url)).status_code == 303


async def test_an_answer_that_must_say_whom_it_is_from(site: Site, browser: httpx.AsyncClient) -> None:
    site.issuer.metadata["authorization_response_iss_parameter_supported"] = True
    asked = await site.begin(browser)
    assert is_refused(await site.back(browser, asked), 403)


@pytest.mark.parametrize("access", [{"aud": "other"}, {"exp": 1}, {"iss": "https://other.example.org"}])
async def test_an_access_token_that_is_not_for_us(
    site: Site, browser: httpx.AsyncClient, access: dict[str, Any]
) -> None:
    asked = await site.begin(browser)
    site.answer(asked["nonce"], access)
    assert is_refused(await site.back(browser, asked), 403)


@pytest.mark.parametrize("kind", ["DPoP", "mac", None, ""])
async def test_an_access_token_of_another_kind(site: Site, browser: httpx.AsyncClient, kind: str | None) -> None:
    asked = await site.begin(browser)
    site.tokens["token_type"] = kind
    assert is_refused(await site.back(browser, asked), 403)


@pytest.mark.parametrize(("status", "shown"), [(400, 403), (401, 403), (500, 503), (302, 503)])
async def test_a_code_that_the_provider_does_not_take(
    site: Site, browser: httpx.AsyncClient, status: int, shown: int
) -> None:
    asked = await site.begin(browser)
    site.issuer.answers["/token"] = (status, {"error": "invalid_grant"})
    assert is_refused(await site.back(browser, asked), shown)


async def test_a_secret_that_the_provider_does_not_take(
    site: Site, browser: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    asked = await site.begin(browser)
    site.issuer.answers["/token"] = (401, {"error": "invalid_client"})
    answer = await site.back(browser, asked)
    assert is_refused(answer, 503)
    assert "tell its operators" in answer.text
    assert "does not take our client" in caplog.text


async def test_a_provider_that_is_down(site: Site, browser: httpx.AsyncClient) -> None:
    site.issuer.is_down = True
    assert is_refused(await browser.get("/auth/login", params={"provider": "oidc"}), 503)
    assert await site.rows(logins) == []


async def test_somebody_who_is_shut_out(site: Site, browser: httpx.AsyncClient) -> None:
    await site.log_in(browser)
    async with site.gateway.db.begin() as conn:
        await conn.execute(update(users).values(disabled_at=now()))
    assert is_refused(await site.back(browser, await site.begin(browser)), 403)


async def test_secrets_are_in_no_log(site: Site, browser: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "firstkit")
    asked = await site.begin(browser)
    site.answer("another")
    answer = await site.back(browser, asked)
    for text in (caplog.text, answer.text):
        for secret in (*site.tokens.values(), asked["state"], asked["nonce"], "c0de", "canary-secret"):
            assert secret not in text
