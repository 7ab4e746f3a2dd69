"""A gateway somewhere, asked as whoever is logged in there."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from firstkit.cli import saved_login
from firstkit.cli.admin import PATIENCE_S, GatewayAway, exchange
from firstkit.cli.common import fail
from firstkit.cli.oidc_login import LoginFailed
from firstkit.cli.saved_login import Login

FRESH_S = 60.0
"""A token that is good for less is made new before it is used."""


@dataclass(frozen=True)
class Remote:
    """A gateway, by its base URL with ``/v1``, and the token for it."""

    base_url: str
    token: str

    def fetch(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer to ``GET path``, or to ``POST path`` with a body. Raises GatewayAway, Refusal."""
        parsed = urlsplit(self.base_url)
        connection = _connection(parsed.scheme, str(parsed.hostname), parsed.port)
        headers = {"authorization": f"Bearer {self.token}"}
        try:
            return json.loads(exchange(connection, parsed.path.removesuffix("/v1") + path, headers, body))
        except (OSError, http.client.HTTPException) as exc:
            raise GatewayAway(f"{parsed.netloc} does not answer: {exc or type(exc).__name__}.") from exc
        except ValueError as exc:
            raise GatewayAway(f"{parsed.netloc} answers, but not as FIRST does.") from exc


def logged_in() -> Remote | None:
    """Where somebody is logged in, with a token that is good; None: nowhere. Ends the command when that is over."""
    login = saved_login.load()
    if login is None:
        return None
    if login.expires_at - time.time() < FRESH_S:
        login = _renewed()
    return Remote(login.server, login.access_token)


def _renewed() -> Login:
    with saved_login.alone():
        login = saved_login.load()
        if login is None:
            fail("the login has ended meanwhile.", saved_login.AGAIN)
        if login.expires_at - time.time() >= FRESH_S:
            return login  # another command was faster
        if not login.refresh_token:
            fail("the login is over: its token has expired.", f"Log in again: first login --server {login.server}")
        try:
            new = _refresh(login)
        except LoginFailed as exc:
            fail(exc.message, f"Log in again: first login --server {login.server}")
        saved_login.save(new)
    return new


def _refresh(login: Login) -> Login:
    if login.kind == "globus":
        from firstkit.cli import globus_login

        tokens = globus_login.refresh(login.client_id, login.refresh_token)
    else:
        from firstkit.cli import oidc_login

        tokens = oidc_login.refresh(oidc_login.discover(login.issuer, login.client_id), login.refresh_token)
    return replace(
        login,
        access_token=tokens.access_token,
        expires_at=tokens.expires_at,
        refresh_token=tokens.refresh_token,
    )


def _connection(scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
    if scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=PATIENCE_S, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port, timeout=PATIENCE_S)
