"""The same token by every door; and a browser's session only for what a page of ours sent."""

from __future__ import annotations

import base64
from typing import cast

import pytest

from firstkit.auth.authenticator import Authenticator
from firstkit.errors import InvalidRequest, Unauthenticated
from firstkit.gateway.apis import APIS
from firstkit.gateway.call import Patience
from firstkit.gateway.callers import read_caller
from firstkit.gateway.doors import CrossSiteRequest, cookie_name, cookie_of, identify, token_of
from firstkit.gateway.request import RequestHead
from firstkit.ids import digest
from unit.gateway.support import HOST, IDENTITY, Keys

TOKEN = f"first-session-{'a' * 52}"
COOKIE = f"first_session={TOKEN}"
SECURE_COOKIE = f"__Host-first_session={TOKEN}"
PUBLIC = "https://first.example.org"
CHAT = "/v1/chat/completions"


def head(*headers: str, method: str = "GET", path: str = "/v1/models") -> RequestHead:
    pairs = [header.partition(": ") for header in headers]
    return RequestHead(method, path, [HOST, *((name.encode(), value.encode()) for name, _, value in pairs)])


def basic(password: str) -> str:
    return f"authorization: Basic {base64.b64encode(f'anybody:{password}'.encode()).decode()}"


@pytest.mark.parametrize(
    "header",
    [
        f"authorization: Bearer {TOKEN}",
        f"authorization: bearer  {TOKEN} ",
        f"x-api-key: {TOKEN}",
        basic(TOKEN),
        f"cookie: {COOKIE}",
    ],
)
def test_one_token_by_each_door(header: str) -> None:
    assert token_of(head(header)) == TOKEN


@pytest.mark.parametrize(
    "header",
    [
        "",
        "x: y",
        "authorization: Token x",
        "authorization: Basic ???",
        "x-api-key: ",
        "cookie: ",
        "cookie: other=x",
        "cookie: first_session=",
    ],
)
def test_no_token_at_all(header: str) -> None:
    with pytest.raises(Unauthenticated):
        token_of(head(*filter(None, [header])))


def test_what_a_program_sends_comes_before_what_a_browser_adds() -> None:
    cross = "sec-fetch-site: cross-site"
    assert token_of(head("authorization: Bearer k", f"cookie: {COOKIE}", cross, method="POST")) == "k"
    assert token_of(head("x-api-key: k", f"cookie: {COOKIE}", cross, method="POST")) == "k"
    with pytest.raises(Unauthenticated):
        token_of(head("authorization: Nonsense", f"cookie: {COOKIE}"))


def test_a_door_may_be_used_once() -> None:
    for name in ("authorization", "x-api-key"):
        with pytest.raises(InvalidRequest):
            token_of(head(f"{name}: Bearer a", f"{name}: Bearer b"))


# -- cookies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (COOKIE, TOKEN),
        (f"a=b; {COOKIE};c=d", TOKEN),
        (f"a=b;{COOKIE}", TOKEN),
        (f"{COOKIE}; {COOKIE}", TOKEN),
        (f"{COOKIE}; first_session=other", None),
        (f"x{COOKIE}", None),
        (f"First_Session={TOKEN}", None),
        (f"a={COOKIE}", None),
        ("first_session", None),
        ("first_session=a=b", "a=b"),
        ("; ; =; \xe9=\xe9", None),
    ],
)
def test_cookies_are_read_as_browsers_write_them(header: str, found: str | None) -> None:
    assert cookie_of(RequestHead("GET", "/", [HOST, (b"cookie", header.encode("latin-1"))]), "first_session") == found


def test_a_proxy_may_have_split_the_header() -> None:
    assert cookie_of(head("cookie: a=b", f"cookie: {COOKIE}"), "first_session") == TOKEN
    assert cookie_of(head(f"cookie: {COOKIE}", "cookie: first_session=planted"), "first_session") is None


def test_by_https_only_a_cookie_that_no_other_host_can_set() -> None:
    assert token_of(head(f"cookie: {SECURE_COOKIE}"), PUBLIC) == TOKEN
    assert token_of(head(f"cookie: {SECURE_COOKIE}; first_session=planted"), PUBLIC) == TOKEN
    with pytest.raises(Unauthenticated):
        token_of(head(f"cookie: {COOKIE}"), PUBLIC)
    for without_tls in (None, "http://first.example.org"):
        assert token_of(head(f"cookie: {COOKIE}"), without_tls) == TOKEN
        with pytest.raises(Unauthenticated):
            token_of(head(f"cookie: {SECURE_COOKIE}"), without_tls)
    assert cookie_name("x", PUBLIC) == "__Host-x"


# -- pages of others ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "proof",
    [
        ["sec-fetch-site: same-origin"],
        ["sec-fetch-site: same-origin", "origin: https://first.example.org"],
        ["origin: https://first.example.org"],
        ["origin: HTTPS://First.Example.ORG"],
        ["origin: https://localhost"],
    ],
    ids=str,
)
def test_a_page_of_ours_may_change_things(proof: list[str]) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert token_of(head(f"cookie: {SECURE_COOKIE}", *proof, method=method), PUBLIC) == TOKEN


@pytest.mark.parametrize(
    "proof",
    [
        [],
        ["sec-fetch-site: cross-site"],
        ["sec-fetch-site: same-site"],
        ["sec-fetch-site: none"],
        ["sec-fetch-site: "],
        ["sec-fetch-site: cross-site", "origin: https://first.example.org"],
        ["origin: null"],
        ["origin: "],
        ["origin: https://evil.example.org"],
        ["origin: https://first.example.org.evil.org"],
        ["origin: https://first.example.org:8443"],
        ["origin: http://first.example.org"],
        ["origin: https://evil@first.example.org"],
        ["origin: first.example.org"],
        ["origin: file://localhost"],
        ["origin: http://localhost"],
        ["origin: http://localhost:81"],
        ["referer: https://first.example.org/"],
    ],
    ids=str,
)
def test_no_other_page_may(proof: list[str]) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "post"):
        with pytest.raises(CrossSiteRequest) as refusal:
            token_of(head(f"cookie: {SECURE_COOKIE}", *proof, method=method), PUBLIC)
        assert (refusal.value.status, refusal.value.code, refusal.value.is_denial) == (403, "cross_site_request", True)


def test_where_nothing_is_said_of_an_address_that_of_the_request_counts() -> None:
    for origin in ("http://localhost", "https://localhost"):
        assert token_of(head(f"cookie: {COOKIE}", f"origin: {origin}", method="POST")) == TOKEN
    with pytest.raises(CrossSiteRequest):
        token_of(head(f"cookie: {COOKIE}", "origin: http://localhost:81", method="POST"))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_to_look_needs_no_proof(method: str) -> None:
    """Whoever looks from elsewhere does not see the answer."""
    assert token_of(head(f"cookie: {COOKIE}", "sec-fetch-site: cross-site", method=method)) == TOKEN


def test_twice_the_proof_is_none() -> None:
    twice = ["origin: https://first.example.org", "origin: https://evil.example.org"]
    with pytest.raises(InvalidRequest):
        token_of(head(f"cookie: {SECURE_COOKIE}", *twice, method="POST"), PUBLIC)


def test_the_path_of_the_public_address_is_no_part_of_its_origin() -> None:
    post = head(f"cookie: {SECURE_COOKIE}", "origin: https://first.example.org", method="POST")
    assert token_of(post, f"{PUBLIC}/first") == TOKEN


# -- who it is ---------------------------------------------------------------------------------------------------------


def authenticator() -> Authenticator:
    keys = Keys()
    keys.identities[TOKEN] = IDENTITY
    return cast(Authenticator, keys)


@pytest.mark.parametrize(
    "header", [f"authorization: Bearer {TOKEN}", f"x-api-key: {TOKEN}", basic(TOKEN), f"cookie: {COOKIE}"]
)
async def test_who_it_is_does_not_depend_on_the_door(header: str) -> None:
    assert await identify(head(header), authenticator()) is IDENTITY


async def test_a_session_of_another_page_is_nobody() -> None:
    with pytest.raises(CrossSiteRequest):
        await identify(head(f"cookie: {COOKIE}", method="POST"), authenticator())


def test_routes_to_models_keep_to_the_same_rule() -> None:
    for proof, is_known in (("sec-fetch-site: same-origin", True), ("sec-fetch-site: cross-site", False)):
        post = head(f"cookie: {SECURE_COOKIE}", proof, "content-type: application/json", method="POST", path=CHAT)
        caller = read_caller(post, APIS[CHAT], True, Patience(1, 2), PUBLIC)
        assert (caller.key_digest == digest(TOKEN)) == is_known
        assert (caller.refusal is None) == is_known
        assert is_known or isinstance(caller.refusal, CrossSiteRequest)
