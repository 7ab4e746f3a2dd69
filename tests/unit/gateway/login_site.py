"""A gateway that knows an OpenID provider, with browsers that log in, all in the loop of the test."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import yaml
from sqlalchemy import select

from firstkit.auth.authenticator import Authenticator
from firstkit.auth.authorities import authorities
from firstkit.auth.people import People
from firstkit.config import Config, parse_config
from firstkit.gateway.app import build_app
from firstkit.gateway.guard import Guard
from firstkit.gateway.identity import Identify
from firstkit.gateway.source import Sources
from firstkit.gateway.state import Gateway
from firstkit.store.tables import audit
from unit.auth.loopback_issuer import AUDIENCE, LoopbackIssuer
from unit.gateway.support import CONFIG

HTTP, HTTPS = "http://first.localhost:8000", "https://first.example.org"
CLIENT = "first-gateway"
GLOBUS_CLIENT = "0123abcd-0123-0123-0123-0123456789ab"
SAME = {"sec-fetch-site": "same-origin"}


@dataclass
class Site:
    """A gateway that knows a provider, and how browsers find it."""

    gateway: Gateway
    app: Any
    issuer: LoopbackIssuer
    url: str

    def browser(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=Guard(Identify(self.app, self.gateway.identify)), client=("192.0.2.7", 1))
        return httpx.AsyncClient(transport=transport, base_url=self.url)

    async def begin(self, browser: httpx.AsyncClient, **query: str) -> dict[str, str]:
        """Begin a login; what the provider is told, and from here on it answers as it should."""
        answer = await browser.get("/auth/login", params={"provider": "oidc", **query})
        assert answer.status_code == 303, answer.text
        asked = dict(parse_qsl(urlsplit(answer.headers["location"]).query))
        self.answer(nonce=asked["nonce"])
        return asked

    def answer(self, nonce: str, access: dict[str, Any] | None = None, **changes: Any) -> None:
        """What the provider gives for a code. ``changes``: of the claims of the ID token; None: left out."""
        token = self.issuer.token(**(access or {}))
        claims = {"aud": CLIENT, "client_id": None, "nonce": nonce, "at_hash": at_hash(token), **changes}
        id_token = self.issuer.token(header={"typ": "JWT"}, **claims)
        self.tokens = {"access_token": token, "token_type": "Bearer", "id_token": id_token}
        self.issuer.answers["/token"] = (200, self.tokens)

    async def back(self, browser: httpx.AsyncClient, asked: dict[str, str], **query: str) -> httpx.Response:
        return await browser.get("/auth/callback", params={"code": "c0de", "state": asked["state"], **query})

    async def log_in(self, browser: httpx.AsyncClient, **query: str) -> httpx.Response:
        answer = await self.back(browser, await self.begin(browser, **query))
        assert answer.status_code == 303, answer.text
        return answer

    async def rows(self, table: Any) -> list[Any]:
        async with self.gateway.db.read() as conn:
            return list((await conn.execute(select(table))).all())

    async def acts(self) -> list[tuple[str, str, str]]:
        """What the audit log says: who did what, from where."""
        await self.gateway.audit.write()
        return [(row.actor, row.action, row.source) for row in await self.rows(audit)]


def at_hash(token: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()[:16]).decode().rstrip("=")


def configured(folder: Path, issuer: str, **server: Any) -> Config:
    secret = folder / "secret"
    secret.write_text("canary-secret")
    secret.chmod(0o600)
    oidc = {"issuer": issuer, "audience": AUDIENCE, "client_id": CLIENT, "client_secret_file": str(secret)}
    auth = {"oidc": {**oidc, "login_client_id": "cli"}}
    whole = {**yaml.safe_load(CONFIG), "server": {"state_dir": str(folder), **server}, "auth": auth}
    return parse_config(yaml.safe_dump(whole))


async def made(gateway: Gateway, issuer: LoopbackIssuer, config: Config) -> AsyncIterator[Site]:
    gateway.config = config
    gateway.people = People(gateway.db, config)
    gateway.authenticator = Authenticator(gateway.db, gateway.people, authorities(config))
    gateway.sources = Sources(config.server.trusted_proxies)
    app = build_app(gateway)
    yield Site(gateway, app, issuer, config.server.public_url or HTTP)
    await app.state.logins.close()
    for authority in gateway.authenticator.authorities.values():
        await authority.close()


def cookies(answer: httpx.Response) -> dict[str, Any]:
    """Those that an answer sets, with their attributes."""
    found = {}
    for line in answer.headers.get_list("set-cookie"):
        found |= {name: {"value": each.value, **each} for name, each in SimpleCookie(line).items()}
    return found


def is_refused(answer: httpx.Response, status: int) -> bool:
    """With a page and without a session."""
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["cache-control"] == "no-store"
    assert "first_session" not in cookies(answer)
    return answer.status_code == status
