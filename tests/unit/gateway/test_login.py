"""Logins of browsers: to a provider, back from it, and out again."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from sqlalchemy import update

from firstkit.auth.people import People
from firstkit.clock import now
from firstkit.config import Config
from firstkit.errors import InvalidRequest, RateLimited
from firstkit.gateway.app import build_app
from firstkit.gateway.guard import Guard
from firstkit.gateway.identity import Identify
from firstkit.gateway.login import methods_of
from firstkit.gateway.logins import BURST_S, PACE_S, Pace, own_path
from firstkit.gateway.state import Gateway
from firstkit.ids import digest
from firstkit.store.tables import logins, sessions
from unit.auth.loopback_issuer import AUDIENCE, LoopbackIssuer
from unit.gateway.login_site import (
    CLIENT,
    GLOBUS_CLIENT,
    HTTP,
    HTTPS,
    SAME,
    Site,
    configured,
    cookies,
    is_refused,
    made,
)


@pytest.fixture
async def secure_site(gateway: Gateway, issuer: LoopbackIssuer, folder: Path) -> AsyncIterator[Site]:
    """By TLS, which a proxy ends."""
    config = configured(folder, issuer.url, public_url=HTTPS, trusted_proxies=["192.0.2.0/24"])
    async for site in made(gateway, issuer, config):
        yield site


# -- what there is -----------------------------------------------------------------------------------------------------


async def test_methods_say_how_a_program_logs_in(site: Site, browser: httpx.AsyncClient) -> None:
    assert (await browser.get("/auth/methods")).json() == {
        "data": [
            {
                "kind": "oidc",
                "issuer": site.issuer.url,
                "client_id": "cli",
                "scopes": ["openid", "profile", "email", "offline_access"],
                "audience": AUDIENCE,
            }
        ],
        "browser": True,
    }


async def test_without_providers_there_are_none(gateway: Gateway) -> None:
    transport = httpx.ASGITransport(app=Guard(Identify(build_app(gateway), gateway.identify)))
    async with httpx.AsyncClient(transport=transport, base_url=HTTP) as browser:
        assert (await browser.get("/auth/methods")).json() == {"data": [], "browser": False}
        for query in ("", "?provider=oidc"):
            answer = await browser.get(f"/auth/login{query}")
            assert answer.status_code == 404
            assert answer.headers["content-type"].startswith("text/html")


def test_only_providers_with_a_client_for_programs_are_listed(folder: Path) -> None:
    config = configured(folder, "https://idp.example.org")
    auth = config.auth.model_dump()
    auth["oidc"]["login_client_id"] = None
    globus = {
        "client_id": GLOBUS_CLIENT,
        "client_secret_file": str(folder / "secret"),
        "login_client_id": GLOBUS_CLIENT,
    }
    listed = methods_of(type(config.auth).model_validate({**auth, "globus": globus}))
    scope = f"https://auth.globus.org/scopes/{GLOBUS_CLIENT}/action_all"
    assert listed == [{"kind": "globus", "client_id": GLOBUS_CLIENT, "scope": scope, "policies": []}]


async def test_browsers_need_an_address_that_they_know(gateway: Gateway, issuer: LoopbackIssuer, folder: Path) -> None:
    async for site in made(gateway, issuer, configured(folder, issuer.url)):
        async with site.browser() as browser:
            assert (await browser.get("/auth/methods")).json()["browser"] is False
            assert (await browser.get("/auth/login", params={"provider": "oidc"})).status_code == 404


async def test_a_page_to_choose_from(browser: httpx.AsyncClient) -> None:
    page = await browser.get("/auth/login", params={"return_to": "/docs?a=b&c='"})
    assert page.status_code == 200
    links = re.findall(r"href='([^']+)'", page.text)
    assert links == ["login?provider=oidc&amp;return_to=%2Fdocs%3Fa%3Db%26c%3D%27"]
    assert (await browser.get("/auth/login", params={"provider": "nobody"})).status_code == 404


async def test_pages_bring_nothing_from_elsewhere_and_are_not_kept(site: Site, browser: httpx.AsyncClient) -> None:
    await site.log_in(browser)
    pages = [
        await browser.get(path) for path in ("/auth/login", "/auth/account", "/auth/callback", "/auth/login?provider=x")
    ]
    pages.append(await browser.post("/auth/logout"))
    for page in pages:
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["cache-control"] == "no-store"
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        style = re.search(r"<style>(.*?)</style>", page.text)
        assert style is not None
        assert base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode() in policy
        assert not re.search(r"<script|src=|https?://|style=|onclick", page.text)


# -- a login -----------------------------------------------------------------------------------------------------------


async def test_the_browser_is_sent_to_the_provider(site: Site, browser: httpx.AsyncClient) -> None:
    answer = await browser.get("/auth/login", params={"provider": "oidc"})
    url = urlsplit(answer.headers["location"])
    asked = dict(parse_qsl(url.query))
    assert f"{url.scheme}://{url.netloc}{url.path}" == f"{site.issuer.url}/auth"
    assert (asked["response_type"], asked["client_id"]) == ("code", CLIENT)
    assert asked["redirect_uri"] == f"{HTTP}/auth/callback"
    assert asked["scope"] == "openid profile email"
    assert asked["audience"] == AUDIENCE
    (row,) = await site.rows(logins)
    assert row.state_sha256 == digest(asked["state"])
    assert row.nonce == asked["nonce"]
    assert asked["code_challenge_method"] == "S256"
    challenge = base64.urlsafe_b64encode(hashlib.sha256(row.verifier.encode()).digest()).decode().rstrip("=")
    assert asked["code_challenge"] == challenge
    cookie = cookies(answer)["first_login"]
    assert row.browser_sha256 == digest(cookie["value"])
    assert (cookie["httponly"], cookie["samesite"], cookie["path"], cookie["max-age"]) == (True, "lax", "/", "600")
    assert len({asked["state"], asked["nonce"], row.verifier, cookie["value"]}) == 4


async def test_and_comes_back_with_a_session(site: Site, browser: httpx.AsyncClient) -> None:
    answer = await site.log_in(browser)
    assert answer.headers["location"] == f"{HTTP}/auth/account"
    told = site.issuer.asked.index("/token")
    form = site.issuer.forms[told]
    assert (form["grant_type"], form["code"], form["redirect_uri"]) == (
        "authorization_code",
        "c0de",
        f"{HTTP}/auth/callback",
    )
    assert len(form["code_verifier"]) >= 43
    assert base64.b64decode(site.issuer.heads[told]["authorization"].split()[1]) == b"first-gateway:canary-secret"
    cookie = cookies(answer)["first_session"]
    assert (cookie["httponly"], cookie["samesite"], cookie["path"], cookie["secure"]) == (True, "lax", "/", "")
    assert cookie["domain"] == ""
    assert cookie["max-age"] == str(12 * 3600)
    assert cookies(answer)["first_login"]["max-age"] == "0"
    (row,) = await site.rows(sessions)
    assert row.sha256 == digest(cookie["value"])
    assert (row.issuer, await site.rows(logins)) == (site.issuer.url, [])
    assert row.expires_at - row.created_at == pytest.approx(timedelta(hours=12), abs=timedelta(seconds=5))
    assert ("a-1", "user.login", "192.0.2.7") in await site.acts()


async def test_who_is_logged_in_may_look_around(site: Site, browser: httpx.AsyncClient) -> None:
    assert (await browser.get("/auth/account")).headers["location"] == "login"
    await site.log_in(browser)
    page = await browser.get("/auth/account")
    assert "<h1>a-1</h1>" in page.text
    assert "You belong to no project." in page.text
    assert (await browser.get("/v1/models")).status_code == 200
    assert (await browser.get("/metrics")).status_code == 403, "a session can do what its user may"


async def test_projects_are_shown(site: Site, browser: httpx.AsyncClient) -> None:
    config = site.gateway.config
    whole = {**config.model_dump(mode="json"), "projects": {"<b>fusion": {"users": ["a-1"], "managers": ["a-1"]}}}
    site.gateway.people.rules = People(site.gateway.db, Config.model_validate(whole)).rules
    await site.gateway.people.prepare()
    await site.log_in(browser)
    page = await browser.get("/auth/account")
    assert "<li>&lt;b&gt;fusion (charged unless another is named, yours to manage)</li>" in page.text


async def test_by_https_cookies_that_only_this_host_can_set(secure_site: Site) -> None:
    async with secure_site.browser() as browser:
        asked = await secure_site.begin(browser)
        answer = await secure_site.back(browser, asked)
        assert answer.headers["location"] == f"{HTTPS}/auth/account"
        assert set(cookies(answer)) == {"__Host-first_session", "__Host-first_login"}
        for cookie in cookies(answer).values():
            assert (cookie["secure"], cookie["httponly"], cookie["path"], cookie["domain"]) == (True, True, "/", "")
        assert (await browser.get("/auth/account")).status_code == 200


async def test_the_audit_log_knows_who_stands_behind_a_proxy(secure_site: Site) -> None:
    async with secure_site.browser() as browser:
        browser.headers["x-forwarded-for"] = "203.0.113.9"
        await secure_site.log_in(browser)
    assert ("a-1", "user.login", "203.0.113.9") in await secure_site.acts()


# -- where to go afterwards --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/auth/account?x=1", "/a/b-c_d.~e?q=/x?y=%20&z=http:", "/%2F%2Fevil.org", "/@evil.org"]
)
async def test_a_path_of_this_service(site: Site, browser: httpx.AsyncClient, path: str) -> None:
    assert (await site.log_in(browser, return_to=path)).headers["location"] == HTTP + path


AWAY = [
    "", "docs", "//evil.org", "///evil.org", "/\\evil.org", "\\\\evil.org", "/\t/evil.org", "/\n/evil.org", " /docs",
    "https://evil.org", "javascript:alert(1)", "/docs//evil.org", "/docs\r\nset-cookie: x=y", "/docs#x", "/a b", "/é",
    "//evil.org/%2e%2e", "http:evil.org", "/" + "x" * 500, "/\0", "@evil.org", ".evil.org", "/docs\u2028",
]  # fmt: skip


@pytest.mark.parametrize("path", AWAY)
async def test_nowhere_else(site: Site, browser: httpx.AsyncClient, path: str) -> None:
    for query in ({"provider": "oidc"}, {}):
        answer = await browser.get("/auth/login", params={**query, "return_to": path})
        assert answer.status_code == 400
        assert "evil" not in answer.text
    assert await site.rows(logins) == []
    with pytest.raises(InvalidRequest):
        own_path(path)


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_a_new_login_ends_the_session_that_the_browser_had(site: Site, browser: httpx.AsyncClient) -> None:
    first = cookies(await site.log_in(browser))["first_session"]["value"]
    assert (await browser.get("/v1/models")).status_code == 200
    second = cookies(await site.log_in(browser))["first_session"]["value"]
    assert first != second
    assert [row.sha256 for row in await site.rows(sessions)] == [digest(second)]
    async with site.browser() as other:
        assert (await other.get("/v1/models", headers={"authorization": f"Bearer {first}"})).status_code == 401
        assert (await other.get("/v1/models", headers={"authorization": f"Bearer {second}"})).status_code == 200


async def test_a_session_that_somebody_planted_is_not_taken_over(site: Site, browser: httpx.AsyncClient) -> None:
    planted = f"first-session-{'a' * 52}"
    browser.cookies.set("first_session", planted)
    answer = await site.log_in(browser)
    assert cookies(answer)["first_session"]["value"] != planted
    assert digest(planted) not in [row.sha256 for row in await site.rows(sessions)]


async def test_logging_out(site: Site, browser: httpx.AsyncClient) -> None:
    token = cookies(await site.log_in(browser))["first_session"]["value"]
    async with site.browser() as elsewhere:
        await site.log_in(elsewhere)
        assert (await browser.get("/v1/models")).status_code == 200
        answer = await browser.post("/auth/logout", headers=SAME)
        assert (answer.status_code, answer.headers["location"]) == (303, "login")
        assert cookies(answer)["first_session"]["max-age"] == "0"
        assert "first_session" not in browser.cookies
        ask = {"headers": {"authorization": f"Bearer {token}"}}
        assert (await browser.get("/v1/models", **ask)).status_code == 401, "at once"
        assert (await elsewhere.get("/v1/models")).status_code == 200, "only here"
    assert len(await site.rows(sessions)) == 1
    assert ("a-1", "user.logout", "192.0.2.7") in await site.acts()


async def test_logging_out_without_being_logged_in(site: Site, browser: httpx.AsyncClient) -> None:
    assert (await browser.post("/auth/logout")).headers["location"] == "login"
    browser.cookies.set("first_session", f"first-session-{'a' * 52}")
    assert (await browser.post("/auth/logout", headers=SAME)).headers["location"] == "login"
    assert await site.acts() == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.org"},
        {"origin": "null"},
    ],
)
async def test_no_page_of_others_logs_somebody_out(
    site: Site, browser: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    await site.log_in(browser)
    assert is_refused(await browser.post("/auth/logout", headers=headers), 403)
    assert len(await site.rows(sessions)) == 1
    assert (await browser.get("/v1/models")).status_code == 200
    assert ("unknown", "denied", "192.0.2.7") in await site.acts()


async def test_logging_out_is_no_link(browser: httpx.AsyncClient) -> None:
    assert (await browser.get("/auth/logout")).status_code == 405


async def test_no_page_of_others_does_anything_else(site: Site, browser: httpx.AsyncClient) -> None:
    await site.log_in(browser)
    answer = await browser.post("/v1/me", json={}, headers={"origin": "https://evil.org"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site_request")


async def test_a_session_ends_by_itself(site: Site, browser: httpx.AsyncClient) -> None:
    await site.log_in(browser)
    async with site.gateway.db.begin() as conn:
        await conn.execute(update(sessions).values(expires_at=now() - timedelta(seconds=1)))
    assert (await browser.get("/auth/account")).headers["location"] == "login"


# -- crowds ------------------------------------------------------------------------------------------------------------


def begun(pace: Pace, source: str) -> int:
    """How many logins it lets begin, one right after the other."""
    for number in range(2000):
        try:
            pace.enter(source)
        except RateLimited as refusal:
            assert 0 < (refusal.retry_after_s or 0) <= 2 * PACE_S
            return number
    raise AssertionError("there is no limit")


def test_one_address_begins_so_many_logins_at_a_time() -> None:
    at = [1000.0]
    pace = Pace(lambda: at[0])
    assert begun(pace, "192.0.2.1") == pytest.approx(BURST_S / PACE_S, abs=2)
    assert begun(pace, "192.0.2.2") > 1, "that is no matter of others"
    at[0] += 10 * PACE_S
    assert begun(pace, "192.0.2.1") == 10


async def test_so_many_logins_are_under_way(
    site: Site, browser: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firstkit.gateway.logins.MOST_UNDER_WAY", 3)
    for _ in range(3):
        await site.begin(browser)
    assert is_refused(await browser.get("/auth/login", params={"provider": "oidc"}), 503)
    async with site.gateway.db.begin() as conn:
        await conn.execute(update(logins).values(expires_at=now() - timedelta(seconds=1)))
    await site.begin(browser)
