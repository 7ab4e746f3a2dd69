"""Any OpenID provider as an authority: its JWTs are checked here, its opaque tokens by asking it."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any

from firstkit.auth.authority import Vouched
from firstkit.auth.claims import Rules, check_access_token, check_introspection, vouched_for
from firstkit.auth.discovery import PAUSE_S, Issuer, Provider
from firstkit.auth.jwks import Signed, UnknownKey, unproven
from firstkit.auth.oauth import is_private
from firstkit.auth.oauth_client import OAuthClient
from firstkit.auth.provider_http import ProviderHttp
from firstkit.auth.secret_file import read_secret
from firstkit.auth.tokens import LONGEST, OURS
from firstkit.clock import monotonic
from firstkit.config import Oidc
from firstkit.errors import ConfigError, ProviderUnavailable, Unauthenticated

logger = logging.getLogger("firstkit.auth")
_OPAQUE = re.compile(r"[A-Za-z0-9._~+/-]+=*")


def client_of(config: Oidc) -> OAuthClient | None:
    """The service as a client; None where it is none. Raises ConfigError."""
    if config.client_id is None or config.client_secret_file is None:
        return None
    return OAuthClient(config.client_id, read_secret(config.client_secret_file, "auth.oidc.client_secret_file"))


class OpenIdProvider:
    """An ``Authority``: see there. Raises ConfigError for an issuer without TLS, and a secret that cannot be read."""

    name = "oidc"

    def __init__(
        self,
        config: Oidc,
        clock: Callable[[], float] = monotonic,
        wall: Callable[[], float] = time.time,
        pause_s: float = PAUSE_S,
    ) -> None:
        """``wall``: seconds since 1970, by which tokens begin and end; ``pause_s``: as of ``Issuer``."""
        if not is_private(config.issuer):
            raise ConfigError(f"auth.oidc.issuer: '{config.issuer}' must begin with https://, or be on this machine")
        self.config = config
        self.http = ProviderHttp()
        self.issuer = Issuer(config.issuer, self.http, clock=clock, pause_s=pause_s)
        self._wall = wall
        self.client = client_of(config)
        self._clients = frozenset(filter(None, (config.client_id, config.login_client_id)))

    def may_know(self, token: str) -> bool:
        """Whether it is a JWT that says that it is of our issuer, or may be an opaque token where we may ask."""
        if (signed := unproven(token)) is not None:
            return self.issuer.is_called(signed.claims.get("iss"))
        if not self.config.introspection or len(token) > LONGEST or token.startswith(OURS):
            return False
        return _OPAQUE.fullmatch(token) is not None

    async def look_up(self, token: str) -> Vouched:
        """As of ``Authority``."""
        provider = await self.issuer.provider()
        signed = unproven(token)
        if signed is None:
            return await self._introspected(token, provider)
        try:
            provider.keys.check(signed, self.config.algorithms)
        except UnknownKey:
            provider = await self._newer_keys(signed, provider)
        left_s = check_access_token(signed.header, signed.claims, self._rules(provider), self._wall())
        return vouched_for(signed.claims, self.config, provider.issuer, left_s)

    async def close(self) -> None:
        """As of ``Authority``."""
        await self.http.close()

    def _rules(self, provider: Provider) -> Rules:
        return Rules(provider.issuer, self.config.audience, self.config.leeway, self._clients)

    async def _newer_keys(self, signed: Signed, provider: Provider) -> Provider:
        """The provider with newer keys, one of which signed this. A token that is not good whatever its signature is
        refused before the provider is asked."""
        check_access_token(signed.header, signed.claims, self._rules(provider), self._wall())
        newer = await self.issuer.newer(provider)
        try:
            newer.keys.check(signed, self.config.algorithms)
        except UnknownKey:
            raise Unauthenticated("The token is signed by no key of the identity provider.") from None
        return newer

    async def _introspected(self, token: str, provider: Provider) -> Vouched:
        claims = await self._asked_about(token, provider)
        left_s = check_introspection(claims, self._rules(provider), self._wall())
        return vouched_for(claims, self.config, provider.issuer, left_s)

    async def _asked_about(self, token: str, provider: Provider) -> dict[str, Any]:
        if not self.config.introspection or self.client is None:
            raise Unauthenticated
        form = {"token": token, "token_type_hint": "access_token"}
        status, body = await self.client.post(self.http, provider, "introspection_endpoint", form)
        if status != 200 or not isinstance(body, dict):
            logger.warning(
                "the identity provider answered %d when it was asked about a token%s", status,
                ": it does not take auth.oidc.client_id with its secret" if status == 401 else "",
                extra={"action": "introspect"},
            )  # fmt: skip
            raise ProviderUnavailable
        return body
