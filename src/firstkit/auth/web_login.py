"""Logins of browsers at an identity provider: the authorization code flow, with PKCE, state and nonce."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from firstkit.auth.claims import check_id_token
from firstkit.auth.discovery import Issuer, Provider
from firstkit.auth.jwks import Signed, UnknownKey, unproven
from firstkit.auth.oauth import base64url, challenge_of
from firstkit.auth.oauth_client import OAuthClient
from firstkit.auth.provider_http import ProviderHttp
from firstkit.auth.secret_file import read_secret
from firstkit.config import Globus, Oidc
from firstkit.errors import LoginRefused, ProviderUnavailable, Unauthenticated
from firstkit.ids import new_secret

logger = logging.getLogger("firstkit.auth")
GLOBUS = "https://auth.globus.org"
GLOBUS_ALGORITHMS = ("RS512", "RS256")
GLOBUS_LEEWAY_S = 30.0
_HASHES = {"256": hashlib.sha256, "384": hashlib.sha384, "512": hashlib.sha512}


@dataclass(frozen=True, slots=True)
class Secrets:
    """What belongs to one login and to nothing else."""

    state: str = field(default_factory=new_secret)
    nonce: str = field(default_factory=new_secret)
    verifier: str = field(default_factory=new_secret)


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked for. ``needed``: the scope that the access token must have, of those that the provider gives; None:
    it gives one. ``more``: further parameters."""

    redirect_uri: str
    scopes: tuple[str, ...]
    algorithms: tuple[str, ...]
    leeway_s: float
    needed: str | None = None
    more: Mapping[str, str] = field(default_factory=dict)


class WebLogin:
    """Logins at one provider, as a confidential client of it. ``wall``: seconds since 1970."""

    def __init__(
        self, url: str, names: tuple[str, ...], client: OAuthClient, terms: Terms,
        wall: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        """``url`` and ``names``: as of ``Issuer``."""
        self._http = ProviderHttp()
        self._issuer = Issuer(url, self._http, names)
        self._client = client
        self._terms = terms
        self._wall = wall

    async def address(self, secrets: Secrets) -> str:
        """Where the browser is sent; raises ProviderUnavailable."""
        provider = await self._issuer.provider()
        asked = {
            **self._terms.more,
            "response_type": "code",
            "client_id": self._client.id,
            "redirect_uri": self._terms.redirect_uri,
            "scope": " ".join(self._terms.scopes),
            "state": secrets.state,
            "nonce": secrets.nonce,
            "code_challenge": challenge_of(secrets.verifier),
            "code_challenge_method": "S256",
        }
        url = provider.endpoint("authorization_endpoint")
        return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(asked)}"

    async def redeem(self, code: str, said_issuer: str | None, nonce: str, verifier: str) -> str:
        """The access token of whoever logged in. ``said_issuer``: whom the answer says that it is from.

        Raises LoginRefused where the provider does not take the code, Unauthenticated where its answer is not for this
        login, ProviderUnavailable.
        """
        provider = await self._issuer.provider()
        must_say = provider.metadata.get("authorization_response_iss_parameter_supported") is True
        if said_issuer != provider.issuer and (must_say or said_issuer is not None):
            raise Unauthenticated("The answer is not from the identity provider that was asked.")
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._terms.redirect_uri,
            "code_verifier": verifier,
        }
        status, body = await self._client.post(self._http, provider, "token_endpoint", form)
        if isinstance(body, dict) and body.get("error") == "invalid_client":
            logger.warning("%s does not take our client and its secret", self._issuer.url, extra={"action": "login"})
            raise ProviderUnavailable("The identity provider does not know this service; tell its operators.")
        if status in (400, 401, 403):
            raise LoginRefused("The identity provider does not take back what it gave for this login: begin anew.")
        if status != 200 or not isinstance(body, dict):
            raise ProviderUnavailable
        await self._check(body, provider, nonce)
        return access_token(body, self._terms.needed)

    async def close(self) -> None:
        """Let go of connections."""
        await self._http.close()

    async def _check(self, body: dict[str, Any], provider: Provider, nonce: str) -> None:
        """Raise Unauthenticated unless the ID token in an answer is for this login."""
        signed = unproven(str(body.get("id_token")))
        if signed is None:
            raise Unauthenticated("The identity provider gave no ID token.")
        provider = await self._proven(signed, provider)
        check_id_token(signed.claims, provider.issuer, self._client.id, nonce, self._terms.leeway_s, self._wall())
        check_hash(signed, [str(each.get("access_token")) for each in _grants(body)])

    async def _proven(self, signed: Signed, provider: Provider) -> Provider:
        try:
            provider.keys.check(signed, self._terms.algorithms)
        except UnknownKey:
            provider = await self._issuer.newer(provider)
            try:
                provider.keys.check(signed, self._terms.algorithms)
            except UnknownKey:
                raise Unauthenticated("The ID token is signed by no key of the identity provider.") from None
        return provider


def oidc_login(config: Oidc, client: OAuthClient, redirect_uri: str) -> WebLogin:
    """Logins at the provider of a configuration."""
    scopes = ("openid", *(scope for scope in config.scopes if scope not in ("openid", "offline_access")))
    terms = Terms(redirect_uri, scopes, config.algorithms, config.leeway, more={"audience": config.audience})
    return WebLogin(config.issuer, (), client, terms)


def globus_login(config: Globus, redirect_uri: str) -> WebLogin:
    """Logins at Globus Auth. Raises ConfigError for a secret that cannot be read."""
    client = OAuthClient(config.client_id, read_secret(config.client_secret_file, "auth.globus.client_secret_file"))
    url = (os.environ.get("GLOBUS_SDK_SERVICE_URL_AUTH") or GLOBUS).rstrip("/")  # the SDK reads the same
    needed = config.needed_scope
    more = {"session_required_policies": ",".join(config.policies)} if config.policies else {}
    terms = Terms(
        redirect_uri, ("openid", "profile", "email", needed), GLOBUS_ALGORITHMS, GLOBUS_LEEWAY_S, needed, more
    )
    return WebLogin(url, (GLOBUS,), client, terms)


def access_token(body: Mapping[str, Any], needed: str | None) -> str:
    """The access token in an answer, that with the scope ``needed`` where there are several; raises Unauthenticated."""
    for each in _grants(body):
        is_it = needed is None or needed in str(each.get("scope", "")).split()
        token = each.get("access_token")
        if is_it and isinstance(token, str) and token and str(each.get("token_type", "")).lower() == "bearer":
            return token
    raise Unauthenticated("The identity provider gave no access token for this service.")


def check_hash(signed: Signed, tokens: Iterable[str]) -> None:
    """Raise Unauthenticated where an ID token says that it came with another access token than one of ``tokens``."""
    said = signed.claims.get("at_hash")
    make = _HASHES.get(str(signed.header.get("alg"))[-3:])
    if said is None or make is None:
        return
    wholes = [make(token.encode()).digest() for token in tokens]
    if str(said) not in [base64url(whole[: len(whole) // 2]) for whole in wholes]:
        raise Unauthenticated("The ID token belongs to another access token.")


def _grants(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tokens in an answer: Globus gives one for each service, the others in a list of their own."""
    others = body.get("other_tokens")
    return [body, *(each for each in others if isinstance(each, dict))] if isinstance(others, list) else [body]
