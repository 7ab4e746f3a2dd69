"""An OpenID provider on a port of its own, in the loop of the test: it rotates keys, lies, and falls silent."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any
from urllib.parse import parse_qsl

from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from firstkit.auth.oidc import OpenIdProvider
from firstkit.config import Oidc
from firstkit.testing.tiny_http import Connection, Request, serve

AUDIENCE = "first"
ALICE = {"sub": "a-1", "email": "alice@anl.gov", "email_verified": True, "groups": ["physics", "first-users"]}
Private = RSAKey | ECKey | OKPKey


@cache
def rsa(kid: str) -> RSAKey:
    """The same key for the same name: making one takes a tenth of a second."""
    return RSAKey.generate_key(2048, {"kid": kid})


@cache
def ec(kid: str) -> ECKey:
    return ECKey.generate_key("P-256", {"kid": kid})


@cache
def ed25519(kid: str) -> OKPKey:
    return OKPKey.generate_key("Ed25519", {"kid": kid})


class AnyAlgorithm(JWSRegistry):
    """Signs with whatever a test wants."""

    def get_alg(self, name: str) -> Any:
        return self.algorithms[name]


def signed(key: Private, claims: dict[str, Any], **header: Any) -> str:
    """A JWT; a header of None is left out."""
    whole = {"alg": "RS256", "kid": key.kid, "typ": "at+jwt", **header}
    whole = {name: value for name, value in whole.items() if value is not None}
    registry = AnyAlgorithm(strict_check_header=False)
    return jws.serialize_compact(whole, json.dumps(claims), key, registry=registry)


def unsigned(claims: dict[str, Any], **header: Any) -> str:
    """A JWT up to the dot before its signature."""
    return f"{coded({'typ': 'at+jwt', **header})}.{coded(claims)}."


def coded(part: Any) -> str:
    """A part of a JWT: bytes as they are, all else as JSON."""
    data = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class LoopbackIssuer:
    """``keys``: those that it publishes; the first signs. ``asked``: the paths that were asked for, in order."""

    def __init__(self) -> None:
        self.url = ""
        self.keys: list[Any] = [rsa("one")]
        self.asked: list[str] = []
        self.forms: list[dict[str, str]] = []
        self.heads: list[dict[str, str]] = []
        self.metadata: dict[str, Any] = {}
        self.answers: dict[str, tuple[int, Any]] = {}
        self.is_down = False
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def discovery(self) -> dict[str, Any]:
        made = {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/jwks",
            "authorization_endpoint": f"{self.url}/auth",
            "token_endpoint": f"{self.url}/token",
            "introspection_endpoint": f"{self.url}/introspect",
            **self.metadata,
        }
        return {name: value for name, value in made.items() if value is not None}

    @property
    def jwks(self) -> dict[str, Any]:
        return {"keys": [key if isinstance(key, dict) else key.as_dict(private=False) for key in self.keys]}

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Of an access token that is good; a claim of None is left out."""
        at = int(time.time())
        made = {"iss": self.url, "aud": AUDIENCE, "iat": at, "exp": at + 600, "client_id": "cli", **ALICE, **changes}
        return {name: value for name, value in made.items() if value is not None}

    def token(self, key: Private | None = None, header: dict[str, Any] | None = None, **changes: Any) -> str:
        return signed(key or self.keys[0], self.claims(**changes), **(header or {}))

    async def handle(self, request: Request, connection: Connection) -> None:
        path = request.path.partition("?")[0]
        self.asked.append(path)
        self.heads.append(request.headers)
        self.forms.append(dict(parse_qsl(request.body.decode())))
        await self.gate.wait()
        if self.is_down:
            await connection.answer(503, {})
            return
        known = {"/.well-known/openid-configuration": (200, self.discovery), "/jwks": (200, self.jwks)}
        status, body = {**known, **self.answers}.get(path, (404, {}))
        await connection.answer(status, body)


@asynccontextmanager
async def loopback_issuer() -> AsyncIterator[LoopbackIssuer]:
    issuer = LoopbackIssuer()
    server = await serve(issuer.handle, None, 0)
    issuer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield issuer
    finally:
        issuer.gate.set()
        server.close()
        await asyncio.sleep(0)


@asynccontextmanager
async def provider_at(
    issuer: LoopbackIssuer, wall: Callable[[], float] = time.time, pause_s: float = 0.0, clock: Any = time.monotonic,
    **config: Any,
) -> AsyncIterator[OpenIdProvider]:  # fmt: skip
    """Our end of it. ``wall`` and ``clock``: what our clocks say."""
    settings = Oidc.model_validate({"issuer": issuer.url, "audience": AUDIENCE, **config})
    made = OpenIdProvider(settings, clock, wall, pause_s)
    try:
        yield made
    finally:
        await made.close()
