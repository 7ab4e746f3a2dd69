"""Opaque tokens: the provider is asked about each, and what it says is held against our rules."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from firstkit.auth.authority import Vouched
from firstkit.errors import ConfigError, LoginRefused, ProviderUnavailable, Unauthenticated
from unit.auth.loopback_issuer import ALICE, AUDIENCE, LoopbackIssuer, loopback_issuer, provider_at

TOKEN = "opaque-Token_1~+/=="
SECRET = "canary s3cret:%"


@pytest.fixture
async def issuer() -> AsyncIterator[LoopbackIssuer]:
    async with loopback_issuer() as made:
        say(made)
        yield made


@pytest.fixture
def config(folder: Path) -> dict[str, Any]:
    path = folder / "secret"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    return {"introspection": True, "client_id": "first gw", "client_secret_file": str(path), "login_client_id": "cli"}


def say(issuer: LoopbackIssuer, status: int = 200, **changes: Any) -> None:
    """What it says of every token; a claim of None is left out."""
    at = int(time.time())
    made = {"active": True, "iss": issuer.url, "aud": AUDIENCE, "exp": at + 600, "iat": at, "client_id": "cli"}
    made |= {"token_type": "Bearer", **ALICE, **changes}
    issuer.answers["/introspect"] = (status, {name: value for name, value in made.items() if value is not None})


async def told(issuer: LoopbackIssuer, config: dict[str, Any], token: str = TOKEN) -> Vouched:
    async with provider_at(issuer, **config) as provider:
        assert provider.may_know(token)
        return await provider.look_up(token)


async def test_a_good_one(issuer: LoopbackIssuer, config: dict[str, Any]) -> None:
    vouched = await told(issuer, config)
    assert (vouched.subject, vouched.domains) == ("a-1", {"anl.gov"})
    assert vouched.good_for_s == pytest.approx(630, abs=5)
    assert issuer.forms[-1] == {"token": TOKEN, "token_type_hint": "access_token"}
    basic = base64.b64decode(issuer.heads[-1]["authorization"].removeprefix("Basic ")).decode()
    assert basic == "first+gw:canary+s3cret%3A%25"


async def test_the_secret_in_the_form_where_the_provider_wants_it_so(
    issuer: LoopbackIssuer, config: dict[str, Any]
) -> None:
    issuer.metadata["introspection_endpoint_auth_methods_supported"] = ["client_secret_post"]
    await told(issuer, config)
    assert (issuer.forms[-1]["client_id"], issuer.forms[-1]["client_secret"]) == ("first gw", SECRET)
    assert "authorization" not in issuer.heads[-1]


async def test_a_jwt_is_checked_here_all_the_same(issuer: LoopbackIssuer, config: dict[str, Any]) -> None:
    assert (await told(issuer, config, issuer.token())).subject == "a-1"
    assert "/introspect" not in issuer.asked
    async with provider_at(issuer, **config) as provider:
        assert not provider.may_know(issuer.token(iss="https://other.example.org"))


BAD: list[dict[str, Any]] = [
    {"active": False},
    {"active": "true"},
    {"active": 1},
    {"active": None},
    {"iss": "https://other.example.org"},
    {"aud": "other"},
    {"aud": ["other"]},
    {"aud": []},
    {"aud": None, "client_id": "other"},
    {"aud": None, "client_id": None},
    {"aud": None, "token_type": None},
    {"exp": 1},
    {"exp": None},
    {"nbf": 2**40},
    {"token_type": "DPoP"},
    {"token_type": "refresh_token"},
    {"typ": "Refresh"},
    {"cnf": {"jkt": "x"}},
]


@pytest.mark.parametrize("said", BAD, ids=str)
async def test_those_that_are_not(issuer: LoopbackIssuer, config: dict[str, Any], said: dict[str, Any]) -> None:
    say(issuer, **said)
    with pytest.raises(Unauthenticated):
        await told(issuer, config)


@pytest.mark.parametrize("client_id", ["cli", "first gw"])
async def test_without_an_audience_those_of_our_own_clients(
    issuer: LoopbackIssuer, config: dict[str, Any], client_id: str
) -> None:
    say(issuer, aud=None, iss=None, client_id=client_id)
    assert (await told(issuer, config)).subject == "a-1"


@pytest.mark.parametrize("sub", ["\ud800", "a\0", None, ""])
async def test_a_subject_that_cannot_be_stored(issuer: LoopbackIssuer, config: dict[str, Any], sub: Any) -> None:
    say(issuer, sub=sub)
    with pytest.raises(LoginRefused):
        await told(issuer, config)


@pytest.mark.parametrize("status", [401, 400, 404, 429, 500, 503])
async def test_an_answer_that_says_nothing(
    issuer: LoopbackIssuer, config: dict[str, Any], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    say(issuer, status)
    with pytest.raises(ProviderUnavailable):
        await told(issuer, config)
    assert TOKEN not in caplog.text
    assert "s3cret" not in caplog.text
    assert ("auth.oidc.client_id" in caplog.text) == (status == 401)


async def test_a_provider_that_cannot_be_asked(issuer: LoopbackIssuer, config: dict[str, Any]) -> None:
    issuer.metadata["introspection_endpoint"] = None
    with pytest.raises(ProviderUnavailable):
        await told(issuer, config)


async def test_an_outage_and_the_return(issuer: LoopbackIssuer, config: dict[str, Any]) -> None:
    async with provider_at(issuer, **config) as provider:
        await provider.look_up(TOKEN)
        issuer.is_down = True
        with pytest.raises(ProviderUnavailable):
            await provider.look_up(TOKEN)
        issuer.is_down = False
        assert (await provider.look_up(TOKEN)).subject == "a-1"


async def test_a_provider_that_hangs(
    issuer: LoopbackIssuer, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with provider_at(issuer, **config) as provider:
        await provider.look_up(TOKEN)
        monkeypatch.setattr("firstkit.auth.provider_http.LIMIT_S", 0.1)
        issuer.gate.clear()
        with pytest.raises(ProviderUnavailable):
            await provider.look_up(TOKEN)
        issuer.gate.set()
        monkeypatch.undo()
        assert (await provider.look_up(TOKEN)).subject == "a-1"


@pytest.mark.parametrize("token", ["", "first-session-x", "a b", "a\n", "é", "x" * 20_000, "a=b"])
async def test_it_is_not_asked_about_what_is_no_token(
    issuer: LoopbackIssuer, config: dict[str, Any], token: str
) -> None:
    async with provider_at(issuer, **config) as provider:
        assert not provider.may_know(token)


async def test_it_is_not_asked_where_that_is_not_configured(issuer: LoopbackIssuer, config: dict[str, Any]) -> None:
    async with provider_at(issuer, **{**config, "introspection": False}) as provider:
        assert not provider.may_know(TOKEN)
        with pytest.raises(Unauthenticated):
            await provider.look_up(TOKEN)
    assert "/introspect" not in issuer.asked


async def test_a_secret_that_others_may_read(issuer: LoopbackIssuer, config: dict[str, Any]) -> None:
    Path(config["client_secret_file"]).chmod(0o644)
    with pytest.raises(ConfigError, match=r"auth\.oidc\.client_secret_file"):
        async with provider_at(issuer, **config):
            pass
