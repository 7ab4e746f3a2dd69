"""Logins of browsers at Globus, which gives several tokens at once; and the parts that need no provider."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from firstkit.auth.oauth_client import OAuthClient
from firstkit.auth.web_login import GLOBUS, Secrets, WebLogin, access_token, globus_login, oidc_login
from firstkit.config import Globus, Oidc
from firstkit.errors import ConfigError, ProviderUnavailable, Unauthenticated
from unit.auth.loopback_issuer import LoopbackIssuer, loopback_issuer, rsa, signed

CLIENT = "0123abcd-0123-0123-0123-0123456789ab"
POLICY = "89abcdef-0123-0123-0123-0123456789ab"
SCOPE = f"https://auth.globus.org/scopes/{CLIENT}/action_all"
REDIRECT = "https://first.example.org/auth/callback"


@pytest.fixture
async def globus(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoopbackIssuer]:
    """It describes itself as Globus does, and where it really is the environment says, as for its SDK."""
    async with loopback_issuer() as made:
        made.metadata["issuer"] = GLOBUS
        monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_AUTH", f"{made.url}/")
        yield made


@pytest.fixture
async def login(globus: LoopbackIssuer, folder: Path) -> AsyncIterator[WebLogin]:
    made = globus_login(settings(folder), REDIRECT)
    yield made
    await made.close()


def settings(folder: Path) -> Globus:
    secret = folder / "secret"
    secret.write_text("canary-secret")
    secret.chmod(0o600)
    return Globus(client_id=CLIENT, client_secret_file=secret, policies=(POLICY,))


def tokens(globus: LoopbackIssuer, nonce: str, **changes: Any) -> dict[str, Any]:
    """As Globus gives them: that for itself first, then that for us."""
    at = int(time.time())
    claims = {"iss": GLOBUS, "aud": CLIENT, "sub": "x", "iat": at, "exp": at + 600, "nonce": nonce, **changes}
    ours = {"access_token": "ours", "scope": SCOPE, "token_type": "Bearer", "resource_server": CLIENT}
    return {
        "access_token": "theirs",
        "scope": "email openid profile",
        "token_type": "Bearer",
        "id_token": signed(globus.keys[0], claims, alg="RS512", typ="JWT"),
        "other_tokens": [{"access_token": "else", "scope": "urn:else", "token_type": "Bearer"}, ours],
    }


async def test_a_login_at_globus(globus: LoopbackIssuer, login: WebLogin) -> None:
    secrets = Secrets()
    url = urlsplit(await login.address(secrets))
    asked = dict(parse_qsl(url.query))
    assert f"{url.scheme}://{url.netloc}" == globus.url
    assert asked["scope"].split() == ["openid", "profile", "email", SCOPE]
    assert asked["session_required_policies"] == POLICY
    globus.answers["/token"] = (200, tokens(globus, secrets.nonce))
    assert await login.redeem("code", None, secrets.nonce, secrets.verifier) == "ours"


async def test_an_id_token_of_its_stand_in_is_not_one_of_globus(globus: LoopbackIssuer, login: WebLogin) -> None:
    globus.answers["/token"] = (200, tokens(globus, "n", iss=globus.url))
    with pytest.raises(Unauthenticated):
        await login.redeem("code", None, "n", "v")


async def test_new_keys_are_learned_at_a_login(globus: LoopbackIssuer, login: WebLogin) -> None:
    login._issuer._pause_s = 0.0
    await login.address(Secrets())
    globus.keys = [rsa("two")]
    globus.answers["/token"] = (200, tokens(globus, "n"))
    assert await login.redeem("code", None, "n", "v") == "ours"
    globus.answers["/token"] = (200, {**tokens(globus, "n"), "id_token": globus.token(rsa("thief"), {"alg": "RS512"})})
    with pytest.raises(Unauthenticated, match="no key"):
        await login.redeem("code", None, "n", "v")


def test_without_the_environment_it_is_globus_itself(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.delenv("GLOBUS_SDK_SERVICE_URL_AUTH", raising=False)
    assert globus_login(settings(folder), REDIRECT)._issuer.url == GLOBUS


def test_a_secret_that_is_not_there(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"auth\.globus\.client_secret_file"):
        globus_login(Globus(client_id=CLIENT, client_secret_file=folder / "none"), REDIRECT)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"access_token": "t", "token_type": "Bearer", "scope": "openid"},
        {"access_token": "t", "token_type": "Bearer", "scope": f"{SCOPE}x"},
        {"access_token": "", "token_type": "Bearer", "scope": SCOPE},
        {"access_token": "t", "token_type": "mac", "scope": SCOPE},
        {"other_tokens": "x"},
        {"other_tokens": {"access_token": "t", "token_type": "Bearer", "scope": SCOPE}},
        {"other_tokens": [None, "x", 7]},
    ],
    ids=str,
)
def test_an_answer_without_the_token_that_is_needed(body: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated):
        access_token(body, SCOPE)


async def test_what_is_asked_of_an_openid_provider() -> None:
    async with loopback_issuer() as issuer:
        issuer.metadata["authorization_endpoint"] = f"{issuer.url}/auth?tenant=7"
        config = Oidc(issuer=issuer.url, audience="first", scopes=("email", "offline_access", "openid"))
        login = oidc_login(config, OAuthClient("gw", "s"), REDIRECT)
        address = await login.address(Secrets())
        assert address.startswith(f"{issuer.url}/auth?tenant=7&")
        assert dict(parse_qsl(urlsplit(address).query))["scope"] == "openid email", "a browser keeps no refresh token"
        await login.close()


@pytest.mark.parametrize("endpoint", [None, "http://login.example.org/auth", "javascript:alert(1)"])
async def test_a_provider_that_would_send_browsers_elsewhere(endpoint: str | None) -> None:
    async with loopback_issuer() as issuer:
        issuer.metadata["authorization_endpoint"] = endpoint
        login = oidc_login(Oidc(issuer=issuer.url, audience="first"), OAuthClient("gw", "s"), REDIRECT)
        with pytest.raises(ProviderUnavailable):
            await login.address(Secrets())
        await login.close()


def test_a_client_does_not_show_its_secret() -> None:
    assert "canary" not in repr(OAuthClient("gw", "canary"))
