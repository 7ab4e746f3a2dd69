"""Logins of browsers, step by step: to the provider, back from it, and out again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from firstkit.auth.memory import Recent
from firstkit.auth.tokens import new_session
from firstkit.clock import monotonic, now
from firstkit.config import Config
from firstkit.errors import AtCapacity, InvalidRequest, LoginRefused, NotFound, RateLimited
from firstkit.ids import new_secret
from firstkit.store.audit import note
from firstkit.store.sessions import Login, add_login, add_session, end_session, logins_under_way, take_login

if TYPE_CHECKING:
    from firstkit.auth.web_login import WebLogin
    from firstkit.gateway.state import Gateway

LIMIT_S = 600.0
"""So long a login may take."""
MOST_UNDER_WAY = 100_000
PACE_S, BURST_S = 0.2, 60.0
"""One address begins a login every 0.2 s, with 300 at once: many people may share one."""
SOURCES = 10_000
HOME = "/auth/account"
_PATH = re.compile(r"/(?!/)[A-Za-z0-9._~!$&'()*+,;=:@%/-]*(\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?")
_REASON = re.compile(r"[a-z_]{1,60}")


class LoginExpired(InvalidRequest):
    """This login was begun in another browser or too long ago, or has ended already: begin anew."""

    code = "login_expired"
    is_denial = True


class NoBrowserLogin(NotFound):
    """This service has no such logins by a browser."""

    code = "no_browser_login"


class Begun(NamedTuple):
    """Where the browser is sent, and the secret by which it is known again."""

    address: str
    browser: str


class Ended(NamedTuple):
    """The session of somebody who has logged in, and where they wanted to go."""

    token: str
    return_to: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a browser brings back from the provider, as far as it does."""

    state: str | None
    code: str | None
    error: str | None
    issuer: str | None


class Pace:
    """How fast one address may begin logins."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._due: Recent[float] = Recent(SOURCES)

    def enter(self, source: str) -> None:
        """Raises RateLimited."""
        at = self._clock()
        due = max(self._due.get(source) or 0.0, at)
        if due - at > BURST_S:
            raise RateLimited("Too many logins were begun from your address.", retry_after_s=due - at - BURST_S)
        self._due.put(source, due + PACE_S)


class Logins:
    """The logins of one gateway, by the names of its authorities; none without an address that browsers know."""

    def __init__(self, gateway: Gateway) -> None:
        """Raises ConfigError for secrets that cannot be read."""
        self._gateway = gateway
        self.providers = web_logins(gateway.config)
        self.pace = Pace()

    async def begin(self, provider: str, return_to: str, source: str) -> Begun:
        """Raises NoBrowserLogin, InvalidRequest, RateLimited, AtCapacity, ProviderUnavailable, StoreUnavailable."""
        from firstkit.auth.web_login import Secrets

        if provider not in self.providers:
            raise NoBrowserLogin
        return_to = own_path(return_to)
        self.pace.enter(source)
        secrets, browser = Secrets(), new_secret()
        address = await self.providers[provider].address(secrets)
        login = Login(provider, secrets.nonce, secrets.verifier, return_to, now() + timedelta(seconds=LIMIT_S))
        async with self._gateway.db.begin() as conn:
            if await logins_under_way(conn) >= MOST_UNDER_WAY:
                raise AtCapacity("Too many logins are under way.", retry_after_s=LIMIT_S)
            await add_login(conn, secrets.state, browser, login)
        return Begun(address, browser)

    async def end(self, answer: Answer, browser: str | None, replaced: str | None, source: str) -> Ended:
        """Whoever comes back from the provider gets a new session; ``replaced``, which their browser had, ends.

        Raises LoginExpired, LoginRefused, Unauthenticated, ProviderUnavailable, StoreUnavailable.
        """
        login = await self._taken(answer, browser)
        if answer.error is not None:
            reason = f": {answer.error}" if _REASON.fullmatch(answer.error) else ""
            raise LoginRefused(f"The identity provider ended the login{reason}.")
        web = self.providers.get(login.provider)
        if web is None or not answer.code:
            raise LoginExpired
        access_token = await web.redeem(answer.code, answer.issuer, login.nonce, login.verifier)
        vouched = await self._gateway.authenticator.authorities[login.provider].look_up(access_token)
        user_id = await self._gateway.people.came(vouched)
        token = await self._session(user_id, vouched.issuer, replaced, source)
        return Ended(token, login.return_to)

    async def log_out(self, token: str, source: str) -> None:
        """End a session: here at once, everywhere within 5 seconds. Raises StoreUnavailable."""
        async with self._gateway.db.begin() as conn:
            name = await end_session(conn, token)
            if name is not None:
                await note(conn, name, "user.logout", name, source=source)
        self._gateway.authenticator.forget(token)

    async def close(self) -> None:
        """Let go of connections."""
        for web in self.providers.values():
            await web.close()

    async def _taken(self, answer: Answer, browser: str | None) -> Login:
        if answer.state is None or browser is None:
            raise LoginExpired
        async with self._gateway.db.begin() as conn:
            login = await take_login(conn, answer.state, browser)
        if login is None:
            raise LoginExpired
        return login

    async def _session(self, user_id: str, issuer: str, replaced: str | None, source: str) -> str:
        token, ends = new_session(), now() + timedelta(seconds=self._gateway.config.auth.session)
        async with self._gateway.db.begin() as conn:
            if replaced is not None:
                await end_session(conn, replaced)
            name = await add_session(conn, token, user_id, issuer, ends)
            await note(conn, name, "user.login", name, {"issuer": issuer}, source)
        if replaced is not None:
            self._gateway.authenticator.forget(replaced)
        return token


def own_path(text: str) -> str:
    """A path of this service, with its query, and nothing that a browser could take for another host; raises
    InvalidRequest."""
    if len(text) > 500 or not _PATH.fullmatch(text) or "//" in text.partition("?")[0]:
        raise InvalidRequest("'return_to' must be a path on this service, such as /auth/account.", param="return_to")
    return text


def web_logins(config: Config) -> Mapping[str, WebLogin]:
    """The logins that a configuration makes possible, by provider. Raises ConfigError."""
    auth, public_url = config.auth, config.server.public_url
    if public_url is None or (auth.oidc is None and auth.globus is None):
        return {}
    from firstkit.auth.oidc import client_of
    from firstkit.auth.web_login import globus_login, oidc_login

    redirect_uri = f"{public_url}/auth/callback"
    found: dict[str, WebLogin] = {}
    if auth.oidc is not None and (client := client_of(auth.oidc)) is not None:
        found["oidc"] = oidc_login(auth.oidc, client, redirect_uri)
    if auth.globus is not None:
        found["globus"] = globus_login(auth.globus, redirect_uri)
    return found
