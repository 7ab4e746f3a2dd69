"""A stand-in for Globus Auth and Globus Groups on a port of this machine, which checks what the real ones check."""

from __future__ import annotations

import base64
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import uuid4

from joserfc import jwt
from joserfc.jwk import RSAKey

from firstkit.testing.background import Background
from firstkit.testing.broken_answers import FAULTS, answer_wrongly
from firstkit.testing.globus_records import (
    AUTH_SERVER,
    GROUPS_SERVER,
    VIEW_GROUPS,
    Client,
    Code,
    Records,
    Refused,
    Session,
    Token,
)
from firstkit.testing.tiny_http import Connection, Request

CODE_PAGE = "/v2/web/auth-code"
"""Where Globus shows the code of a login to people who then type it in elsewhere."""
SIGNED_BY = "RS512"


@dataclass
class Redirect:
    """The answer that sends a browser elsewhere."""

    url: str


@dataclass
class Asked:
    """One request: its query and form together, and who asks."""

    fields: dict[str, str]
    authorization: str

    def get(self, name: str) -> str:
        return self.fields.get(name, "")

    @property
    def bearer(self) -> str:
        kind, _, token = self.authorization.partition(" ")
        return token if kind == "Bearer" else ""

    @property
    def basic(self) -> tuple[str, str] | None:
        kind, _, text = self.authorization.partition(" ")
        if kind != "Basic":
            return None
        name, _, secret = base64.b64decode(text).decode().partition(":")
        return name, secret


class GlobusCloud(Records):
    """Use as a context manager; ``url`` serves both. ``environ`` has what points the real SDK here.

    ``visitor``: who sits at the browser that comes to log in; None: nobody. ``delay_s``: how long each answer takes.
    ``calls`` counts requests by route, ``most_in_flight`` those at a time; they may be read from any thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self.visitor: Session | None = None
        self.delay_s = 0.0
        self.calls: Counter[str] = Counter()
        self.in_flight = 0
        self.most_in_flight = 0
        self.url = ""
        self._faults: dict[str, int | str] = {}
        self._background = Background()
        self._routes: dict[str, tuple[str, Callable[[Asked], Any]]] = {
            "GET /.well-known/openid-configuration": ("discovery", self._discovery),
            "GET /jwk.json": ("keys", self._keys),
            "GET /v2/oauth2/authorize": ("authorize", self._authorize),
            f"GET {CODE_PAGE}": ("code_page", lambda asked: {"code": asked.get("code")}),
            "POST /v2/oauth2/token": ("token", self._token),
            "POST /v2/oauth2/token/introspect": ("introspect", self._introspect),
            "POST /v2/oauth2/token/revoke": ("revoke", self._revoke),
            "GET /v2/oauth2/userinfo": ("userinfo", self._userinfo),
            "GET /v2/groups/my_groups": ("groups", self._groups),
        }

    def __enter__(self) -> GlobusCloud:
        self._background.__enter__()
        self.url = self._background.serve(self._handle).removesuffix("v1")
        return self

    def __exit__(self, *exc: object) -> None:
        self._background.__exit__(*exc)

    @property
    def environ(self) -> dict[str, str]:
        """Variables that make the SDK, in this process or another, ask this stand-in."""
        return {"GLOBUS_SDK_SERVICE_URL_AUTH": self.url, "GLOBUS_SDK_SERVICE_URL_GROUPS": self.url}

    def fail(self, route: str, fault: int | str) -> None:
        """From now on a route (``introspect``, ``token``, ``groups``...) answers with a status or one of FAULTS."""
        if route not in {name for name, _ in self._routes.values()}:
            raise ValueError(f"there is no route {route!r}")
        if not isinstance(fault, int) and fault not in FAULTS:
            raise ValueError(f"there is no fault {fault!r}: {', '.join(FAULTS)}, or a status")
        self._faults[route] = fault

    def mend(self) -> None:
        """No route fails any more."""
        self._faults.clear()

    # -- HTTP ----------------------------------------------------------------------------------------------------------

    async def _handle(self, request: Request, connection: Connection) -> None:
        url = urlsplit(request.path)
        name, answer = self._routes.get(f"{request.method} {url.path}", ("", None))
        self.calls[name] += 1
        with self._counted():
            await connection.sleep(self.delay_s)
            if name in self._faults:
                await answer_wrongly(self._faults[name], connection)
            elif answer is None:
                await connection.answer(404, {"error": "not_found"})
            else:
                form = parse_qsl(request.body.decode()) if request.method == "POST" else []
                fields = dict([*parse_qsl(url.query), *form])
                await _send(answer, Asked(fields, request.headers.get("authorization", "")), connection)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1

    # -- clients -------------------------------------------------------------------------------------------------------

    def _client(self, asked: Asked) -> Client:
        """Whoever asks: a confidential client with its secret, or a native one by its id; raises Refused."""
        name, secret = asked.basic or (asked.get("client_id"), asked.get("client_secret") or None)
        client = self.clients.get(name)
        if client is None or client.secret != secret:
            raise Refused(401, "invalid_client")
        return client

    def _confidential(self, asked: Asked) -> Client:
        client = self._client(asked)
        if client.secret is None:
            raise Refused(401, "invalid_client")
        return client

    # -- logins of browsers --------------------------------------------------------------------------------------------

    def _authorize(self, asked: Asked) -> Redirect:
        client, uri = self.clients.get(asked.get("client_id")), asked.get("redirect_uri")
        own = () if client is None or client.secret is not None else (self.url.rstrip("/") + CODE_PAGE,)
        if client is None or uri not in (*client.redirect_uris, *own):
            raise Refused(400, "mismatching_redirect_uri")
        try:
            code = self._code(client, uri, asked)
        except Refused as refused:
            return Redirect(f"{uri}?{urlencode({'error': refused.error, 'state': asked.get('state')})}")
        return Redirect(f"{uri}?{urlencode({'code': code, 'state': asked.get('state')})}")

    def _code(self, client: Client, uri: str, asked: Asked) -> str:
        scopes = tuple(asked.get("scope").split())
        challenge = asked.get("code_challenge") or None
        if asked.get("response_type") != "code" or not scopes:
            raise Refused(400, "invalid_request")
        if challenge is not None and asked.get("code_challenge_method") != "S256":
            raise Refused(400, "invalid_request")
        if client.secret is None and challenge is None:
            raise Refused(400, "invalid_request")
        for scope in scopes:
            self.server_of(scope)
        session = self._proved(asked)
        code = uuid4().hex
        is_offline = asked.get("access_type") == "offline"
        self.codes[code] = Code(session, client.id, scopes, uri, challenge, asked.get("nonce") or None, is_offline)
        return code

    def _proved(self, asked: Asked) -> Session:
        """The visitor's login, made anew where that is asked for; raises Refused where nobody is there, or whoever is
        cannot meet the policies that are asked for."""
        session, wanted = self.visitor, set(filter(None, asked.get("session_required_policies").split(",")))
        if session is None or not wanted <= self.policies.keys():
            raise Refused(403, "access_denied")
        policies = [self.policies[policy] for policy in wanted]
        if asked.get("prompt") == "login" or not all(met(session) for met in policies):
            session = Session(session.identity, dict.fromkeys(session.proofs, time.time()))
        if not all(met(session) for met in policies):
            raise Refused(403, "access_denied")
        return session

    # -- tokens --------------------------------------------------------------------------------------------------------

    def _token(self, asked: Asked) -> Any:
        grants = {
            "authorization_code": self._of_code,
            "refresh_token": self._of_refresh_token,
            "client_credentials": self._of_client,
            "urn:globus:auth:grant_type:dependent_token": self._dependent,
        }
        grant = grants.get(asked.get("grant_type"))
        if grant is None:
            raise Refused(400, "unsupported_grant_type")
        return grant(asked)

    def _of_code(self, asked: Asked) -> Any:
        client, code = self._client(asked), self.codes.pop(asked.get("code"), None)
        if code is None or code.client_id != client.id or code.redirect_uri != asked.get("redirect_uri"):
            raise Refused(401, "invalid_grant")
        if code.challenge is not None and code.challenge != _challenge(asked.get("code_verifier")):
            raise Refused(401, "invalid_grant")
        granted = _together(self.grants(code.session, code.scopes, client, code.is_offline))
        if "openid" in code.scopes:
            granted["id_token"] = self._id_token(code, str(granted["access_token"]))
        return granted

    def _of_refresh_token(self, asked: Asked) -> Any:
        client, token = self._client(asked), self.tokens.get(asked.get("refresh_token"))
        if token is None or not token.is_refresh or not token.is_good or token.client_id != client.id:
            raise Refused(400, "invalid_grant")
        granted = self.grants(token.session, token.scopes, client, is_offline=False)
        return {**_together(granted), "refresh_token": token.text}

    def _of_client(self, asked: Asked) -> Any:
        client = self._confidential(asked)
        session = Session(self.identities[client.id], {})
        return _together(self.grants(session, asked.get("scope").split(), client, is_offline=False))

    def _dependent(self, asked: Asked) -> Any:
        """Tokens by which a resource server may ask others for the holder of a token of its own."""
        client, token = self._confidential(asked), self.good_token(asked.get("token"))
        if token is None or token.server != client.id:
            raise Refused(400, "invalid_grant")
        allowed = {VIEW_GROUPS} if client.depends_on_groups else set()
        wanted = set(asked.get("scope").split()) or allowed
        if not wanted <= allowed:
            raise Refused(403, "consent_required")
        return self.grants(token.session, sorted(wanted), client, asked.get("access_type") == "offline")

    def _introspect(self, asked: Asked) -> Any:
        client, token = self._confidential(asked), self.good_token(asked.get("token"))
        if token is None or client.id not in (token.server, token.client_id):
            return {"active": False}
        return self.introspection(token, asked.get("include"), asked.get("authentication_policies"))

    def _revoke(self, asked: Asked) -> Any:
        client, token = self._client(asked), self.tokens.get(asked.get("token"))
        if token is not None and token.client_id == client.id:
            self.revoke(token.text)
        return {"active": False}

    # -- what tokens open ----------------------------------------------------------------------------------------------

    def _bearer(self, asked: Asked, server: str, scope: str) -> Token:
        token = self.good_token(asked.bearer, server)
        if token is None:
            raise Refused(401, "invalid_token")
        if scope not in token.scopes:
            raise Refused(403, "insufficient_scope")
        return token

    def _groups(self, asked: Asked) -> Any:
        token = self._bearer(asked, GROUPS_SERVER, VIEW_GROUPS)
        return self.my_groups(token.session.identity, asked.get("statuses"))

    def _userinfo(self, asked: Asked) -> Any:
        return self._claims(self._bearer(asked, AUTH_SERVER, "openid").session)

    # -- OpenID Connect ------------------------------------------------------------------------------------------------

    @cached_property
    def _key(self) -> RSAKey:
        return RSAKey.generate_key(2048, {"kid": "k1", "use": "sig", "alg": SIGNED_BY}, auto_kid=False)

    def _discovery(self, _: Asked) -> Any:
        at = self.url.rstrip("/")
        return {
            "issuer": f"https://{AUTH_SERVER}",
            "authorization_endpoint": f"{at}/v2/oauth2/authorize",
            "token_endpoint": f"{at}/v2/oauth2/token",
            "userinfo_endpoint": f"{at}/v2/oauth2/userinfo",
            "revocation_endpoint": f"{at}/v2/oauth2/token/revoke",
            "jwks_uri": f"{at}/jwk.json",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [SIGNED_BY],
        }

    def _keys(self, _: Asked) -> Any:
        return {"keys": [self._key.as_dict(private=False)]}

    def _claims(self, session: Session) -> dict[str, Any]:
        who = session.identity
        found = {"sub": who.id, "name": who.name, "email": who.email, "preferred_username": who.username}
        return {**found, "identity_provider": who.provider}

    def _id_token(self, code: Code, access_token: str) -> str:
        at, issuer = int(time.time()), f"https://{AUTH_SERVER}"
        half = hashlib.sha512(access_token.encode()).digest()[:32]
        claims = {"iss": issuer, "aud": code.client_id, "iat": at, "exp": at + 600, "at_hash": _base64url(half)}
        if code.nonce is not None:
            claims["nonce"] = code.nonce
        head = {"alg": SIGNED_BY, "kid": "k1"}
        return jwt.encode(head, {**claims, **self._claims(code.session)}, self._key, algorithms=[SIGNED_BY])


def _together(granted: list[dict[str, object]]) -> dict[str, object]:
    """Tokens for several resource servers as one answer."""
    if not granted:
        raise Refused(400, "invalid_scope")
    return {**granted[0], "other_tokens": granted[1:], "state": "_default"}


def _challenge(verifier: str) -> str:
    return _base64url(hashlib.sha256(verifier.encode()).digest())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


async def _send(answer: Callable[[Asked], Any], asked: Asked, connection: Connection) -> None:
    try:
        body = answer(asked)
    except Refused as refused:
        await connection.answer(refused.status, {"error": refused.error, "errors": [{"code": refused.error.upper()}]})
        return
    if isinstance(body, Redirect):
        head = f"HTTP/1.1 302 Found\r\nlocation: {body.url}\r\ncontent-length: 0\r\n\r\n"
        await connection.raw(head.encode())
    else:
        await connection.answer(200, body)
