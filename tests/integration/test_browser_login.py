"""Logins by a real browser, at a real OpenID provider, into a real gateway."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import http.server
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from sqlalchemy import update

from firstkit.clock import now
from firstkit.ids import digest
from firstkit.store.tables import audit, logins, sessions, users
from firstkit.testing.globus_cloud import GlobusCloud
from integration.browser import Chromium, Tab, chromium
from integration.oidc_provider import SECRET, RealProvider, check_installed, real_provider
from lab import Lab, wait_for

COOKIE = "first_session"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    check_installed()
    engine = {"kind": "external", "url": "http://127.0.0.1:1/v1"}
    made = Lab.make({"m": {"deployments": [{"cluster": "outside", "engine": engine}]}})
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def provider(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealProvider]:
    redirects = [f"http://127.0.0.1:{lab.port}/auth/callback"]
    with real_provider(tmp_path_factory.mktemp("oidc"), redirect_uris=redirects) as made:
        yield made


@pytest.fixture(scope="module")
def globus(lab: Lab) -> Iterator[GlobusCloud]:
    """With Ada at the browser."""
    with GlobusCloud() as cloud:
        cloud.visitor = cloud.log_in(cloud.add_identity("ada@lab.gov", "a lab"))
        yield cloud


@pytest.fixture(scope="module")
def site(lab: Lab, provider: RealProvider, globus: GlobusCloud) -> str:
    """The address of a gateway whose people log in at both."""
    url = f"http://127.0.0.1:{lab.port}"
    service = globus.add_service(f"{url}/auth/callback")
    oidc = {
        "issuer": provider.url,
        "audience": "first",
        "client_id": "first-gateway",
        "client_secret_file": secret_file(lab, "oidc", SECRET),
        "scopes": ["openid", "email", "groups"],
        "groups": ["first-users"],
        "claims": {"projects": "projects"},
    }
    by_globus = {"client_id": service.id, "client_secret_file": secret_file(lab, "globus", service.secret or "")}
    config = yaml.safe_load(lab.config_path.read_text())
    config["server"]["public_url"] = url
    config["auth"] = {"oidc": oidc, "globus": by_globus, "default_project": "everybody"}
    lab.config_path.write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in globus.environ.items():
            patch.setenv(name, value)
        lab.start_gateway()
    return url


def secret_file(lab: Lab, name: str, secret: str) -> str:
    path = lab.folder / f"{name}-secret"
    path.write_text(secret)
    path.chmod(0o600)
    return str(path)


@pytest.fixture(scope="module")
def chrome(site: str) -> Iterator[Chromium]:
    with chromium() as made:
        yield made


@pytest.fixture
def tab(chrome: Chromium) -> Tab:
    return chrome.new_browser()


def log_in(tab: Tab, site: str, user: str = "alice", start: str = "/auth/login?provider=oidc") -> None:
    """Through the pages of the provider, until we are back."""
    tab.go(site + start)
    for _ in range(5):
        if tab.url.startswith(site):
            return
        if tab.has("input[name=login]"):
            tab.fill("input[name=login]", user)
            tab.fill("input[name=password]", "any")
        tab.click("button[type=submit]")
    raise AssertionError(f"the login does not end: {tab.url}")


def callback_of(tab: Tab) -> str:
    """The address by which the browser came back from the provider."""
    return next(url for url in reversed(tab.visited) if "/auth/callback?" in url)


def ask(site: str, path: str, **headers: str) -> int:
    """The status of a request by a program."""
    connection = http.client.HTTPConnection(urlsplit(site).netloc, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        answer.read()
        return answer.status


def test_a_login_from_the_first_page_to_the_last(tab: Tab, site: str, provider: RealProvider, lab: Lab) -> None:
    tab.go(f"{site}/auth/account")
    assert tab.url == f"{site}/auth/login", "who is not logged in shall log in"
    tab.click("a[href*='provider=oidc']")
    assert tab.url.startswith(provider.url)
    log_in(tab, site, start="/auth/login?provider=oidc&return_to=/auth/account")
    assert tab.url == f"{site}/auth/account"
    assert "alice" in tab.text
    assert "fusion" in tab.text
    assert "everybody" in tab.text
    assert tab.complaints_of(site) == []
    assert tab.fetched_by(site) == []
    assert all(url.startswith((site, provider.url)) for url in tab.visited)
    entry = next(row for row in lab.rows(audit) if row["action"] == "user.login")
    assert (entry["actor"], entry["source"]) == ("alice", "127.0.0.1")


def test_a_login_at_globus(tab: Tab, site: str, globus: GlobusCloud, lab: Lab) -> None:
    tab.go(f"{site}/auth/login")
    tab.click("a[href*='provider=globus']")
    assert tab.url == f"{site}/auth/account", "Globus knows who sits there, and sends them back at once"
    assert "ada@lab.gov" in tab.text
    assert ask(site, "/v1/models", cookie=f"{COOKIE}={tab.cookies[COOKIE]['value']}") == 200
    assert globus.calls["introspect"] == 1
    assert "https://auth.globus.org" in [row["issuer"] for row in lab.rows(sessions)]


def test_a_login_that_globus_refuses(tab: Tab, site: str, globus: GlobusCloud) -> None:
    visitor, globus.visitor = globus.visitor, None
    tab.go(f"{site}/auth/login?provider=globus")
    globus.visitor = visitor
    assert "access_denied" in tab.text
    assert COOKIE not in tab.cookies


def test_the_cookie_of_a_session(tab: Tab, site: str, lab: Lab) -> None:
    log_in(tab, site)
    cookie = tab.cookies[COOKIE]
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"], cookie["secure"]) == (True, "Lax", "/", False)
    assert cookie["domain"] == "127.0.0.1"
    assert not cookie["session"], "it ends with the session of the service, not with the browser"
    assert tab.run("document.cookie") == "", "scripts see none"
    assert "first_login" not in tab.cookies
    assert digest(cookie["value"]) in [row["sha256"] for row in lab.rows(sessions)]


def test_the_session_is_good_by_every_door(tab: Tab, site: str) -> None:
    log_in(tab, site)
    token = tab.cookies[COOKIE]["value"]
    tab.go(f"{site}/v1/models")
    assert '"id":"m"' in tab.text.replace(" ", "")
    assert ask(site, "/v1/models", cookie=f"{COOKIE}={token}") == 200
    assert ask(site, "/v1/models", authorization=f"Bearer {token}") == 200
    assert ask(site, "/v1/models", x_api_key=token) == 200
    assert ask(site, "/v1/models", authorization=f"Bearer {token[:-1]}") == 401


def test_somebody_is_the_same_by_a_browser_and_by_a_program(
    tab: Tab, site: str, provider: RealProvider, lab: Lab
) -> None:
    log_in(tab, site)
    token = provider.by_device("alice")["access_token"]
    assert ask(site, "/v1/models", authorization=f"Bearer {token}") == 200
    assert ask(site, "/v1/models", x_api_key=token) == 200
    assert ask(site, "/v1/models", authorization=f"Bearer {token[:-2]}") == 401
    assert ask(site, "/metrics", authorization=f"Bearer {token}") == 403
    assert [row["name"] for row in lab.rows(users)].count("alice") == 1


def test_logging_out(tab: Tab, site: str, lab: Lab) -> None:
    log_in(tab, site)
    token = tab.cookies[COOKIE]["value"]
    tab.click("form[action=logout] button")
    assert tab.url == f"{site}/auth/login"
    assert COOKIE not in tab.cookies
    assert ask(site, "/v1/models", authorization=f"Bearer {token}") == 401, "at once"
    assert digest(token) not in [row["sha256"] for row in lab.rows(sessions)]
    assert tab.complaints_of(site) == []
    tab.go(f"{site}/auth/account")
    assert tab.url == f"{site}/auth/login"


def test_a_second_login_replaces_the_session(tab: Tab, site: str) -> None:
    log_in(tab, site)
    first = tab.cookies[COOKIE]["value"]
    log_in(tab, site)
    second = tab.cookies[COOKIE]["value"]
    assert first != second
    assert ask(site, "/v1/models", authorization=f"Bearer {first}") == 401
    assert ask(site, "/v1/models", authorization=f"Bearer {second}") == 200


def test_a_callback_that_is_played_again(tab: Tab, site: str) -> None:
    log_in(tab, site)
    before = tab.cookies[COOKIE]["value"]
    tab.go(callback_of(tab))
    assert "This did not work" in tab.text
    assert tab.cookies[COOKIE]["value"] == before


def test_a_state_that_is_stolen(chrome: Chromium, site: str) -> None:
    """The thief sees the address by which the victim comes back, before the victim does, and opens it."""
    victim, thief = chrome.new_browser(), chrome.new_browser()
    state, address = stopped_before_the_end(site, victim, "alice")
    thief.go(f"{site}/auth/login?provider=oidc")  # a login of their own is under way
    thief.go(address)
    assert "This did not work" in thief.text
    assert COOKIE not in thief.cookies
    assert state in address


def stopped_before_the_end(site: str, tab: Tab, user: str) -> tuple[str, str]:
    """Somebody is back from the provider, but their browser did not reach us: the state and the address."""
    tab._chromium.call("Network.setBlockedURLs", tab._session, urls=["*/auth/callback*"])
    tab.go(f"{site}/auth/login?provider=oidc")
    state = parse_qs(urlsplit(next(url for url in tab.visited if "state=" in url)).query)["state"][0]
    for _ in range(5):
        if any("/auth/callback?" in url for url in tab.visited):
            break
        if tab.has("input[name=login]"):
            tab.fill("input[name=login]", user)
            tab.fill("input[name=password]", "any")
        tab.click("button[type=submit]")
    return state, callback_of(tab)


@pytest.mark.parametrize("path", ["//evil.example", "https://evil.example", "/\\evil.example", "/%09/evil.example"])
def test_open_redirects(tab: Tab, site: str, path: str) -> None:
    tab.go(f"{site}/auth/login?provider=oidc&return_to={path}")
    assert tab.url.startswith(f"{site}/auth/login?")
    assert "must be a path on this service" in tab.text


@contextlib.contextmanager
def page_of_others(content: str) -> Iterator[str]:
    """Its address: another origin, and by its name another site."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = content.encode()
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f":{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_form_on_a_page_of_others(tab: Tab, site: str, lab: Lab, host: str) -> None:
    """``localhost`` is another site, so that its form comes without the cookie; another port of the same host is the
    same site to a browser, and only the origin tells."""
    log_in(tab, site)
    token = tab.cookies[COOKIE]["value"]
    with page_of_others(f"<form method='post' action='{site}/auth/logout'><button>win</button></form>") as address:
        tab.go(f"http://{host}{address}")
        tab.click("button")
    assert ask(site, "/v1/models", authorization=f"Bearer {token}") == 200
    assert tab.cookies[COOKIE]["value"] == token
    assert ("This did not work" in tab.text) == (host == "127.0.0.1")


def test_a_script_on_a_page_of_others(tab: Tab, site: str, lab: Lab) -> None:
    log_in(tab, site)
    sends = f"fetch('{site}/v1/me', {{method: 'POST', mode: 'no-cors', credentials: 'include', body: '{{}}'}})"
    reads = f"fetch('{site}/v1/models', {{credentials: 'include'}})"
    with page_of_others("<p>look at this</p>") as address:
        tab.go(f"http://127.0.0.1{address}")
        assert tab.run(f"{sends}.then(answer => answer.type)") == "opaque"
        assert tab.run(f"{reads}.then(() => 'read', () => 'blocked')") == "blocked"
    wait_for("the denial is written", lambda: refusals(lab, "cross_site_request"))


def test_somebody_in_none_of_the_groups(tab: Tab, site: str, lab: Lab) -> None:
    log_in(tab, site, "eve")
    assert "in none of the groups" in tab.text
    assert COOKIE not in tab.cookies
    denied = wait_for("the refusal is written", lambda: refusals(lab, "login_refused"))
    assert denied[-1]["subject"] == "GET /auth/callback"


def refusals(lab: Lab, code: str) -> list[Any]:
    return [row for row in lab.rows(audit) if row["action"] == "denied" and row["details"]["code"] == code]


def test_who_is_shut_out_is_so_in_their_browser(tab: Tab, site: str, lab: Lab) -> None:
    log_in(tab, site, "bob")
    token = tab.cookies[COOKIE]["value"]
    assert ask(site, "/v1/models", authorization=f"Bearer {token}") == 200

    async def shut_out() -> None:
        async with lab.database() as db, db.begin() as conn:
            await conn.execute(update(users).where(users.c.name == "bob").values(disabled_at=now()))

    asyncio.run(shut_out())
    wait_for("they are shut out", lambda: ask(site, "/v1/models", authorization=f"Bearer {token}") in (401, 403), 10)


def test_nothing_is_left_of_logins_that_ended(lab: Lab, site: str, tab: Tab) -> None:
    before = len(lab.rows(logins))
    log_in(tab, site)
    assert len(lab.rows(logins)) <= before
