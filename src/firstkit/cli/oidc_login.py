"""Logins at an OpenID provider from a command line.

The device flow is RFC 8628; the one with a browser on this machine RFC 8252, with PKCE (RFC 7636).
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from firstkit.auth.oauth import challenge_of, is_private
from firstkit.errors import FirstError

PATIENCE_S = 20.0
LOGIN_S = 600.0
"""So long somebody may take to log in."""
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


class LoginFailed(FirstError):
    """The login did not succeed."""


@dataclass(frozen=True)
class Tokens:
    """What a provider gave. ``expires_at``: of the access token, in seconds since 1970."""

    access_token: str
    expires_at: float
    refresh_token: str = ""


@dataclass(frozen=True)
class Provider:
    """An OpenID provider, as its discovery document tells."""

    client_id: str
    scopes: str
    audience: str
    endpoints: dict[str, Any]

    @property
    def knows_devices(self) -> bool:
        return "device_authorization_endpoint" in self.endpoints

    def post(self, endpoint: str, **fields: str) -> tuple[int, dict[str, Any]]:
        """Status and answer of a form that is sent to one of its endpoints. Raises LoginFailed."""
        return _send(str(self.endpoints[endpoint]), {"client_id": self.client_id, **fields})


def discover(issuer: str, client_id: str, scopes: str = "", audience: str = "") -> Provider:
    """Raises LoginFailed where the provider does not answer, or is another than it should be."""
    _check_address(issuer)
    status, document = _send(f"{issuer.rstrip('/')}/.well-known/openid-configuration", None)
    if status != 200 or str(document.get("issuer", "")).rstrip("/") != issuer.rstrip("/"):
        raise LoginFailed(f"{issuer} has no discovery document of an OpenID provider of that name.")
    for name, address in document.items():
        if name.endswith("_endpoint"):
            _check_address(str(address))
    return Provider(client_id, scopes, audience, document)


def by_device(provider: Provider, tell: Callable[[str], None], sleep: Callable[[float], None] = time.sleep) -> Tokens:
    """Log in on any other device: ``tell`` says where and with which code."""
    wanted = {"scope": provider.scopes, "audience": provider.audience}
    status, begun = provider.post("device_authorization_endpoint", **wanted)
    if status != 200:
        raise LoginFailed(f"the provider began no login: {_reason(begun)}.")
    tell(_where_to_go(begun))
    pause_s = float(begun.get("interval", 5))
    deadline = time.monotonic() + min(float(begun.get("expires_in", LOGIN_S)), LOGIN_S)
    while time.monotonic() < deadline:
        sleep(pause_s)
        status, answer = provider.post("token_endpoint", grant_type=DEVICE_GRANT, device_code=begun["device_code"])
        if status == 200:
            return tokens_in(answer)
        if answer.get("error") == "slow_down":
            pause_s += 5
        elif answer.get("error") != "authorization_pending":
            raise LoginFailed(f"the provider said no: {_reason(answer)}.")
    raise LoginFailed("nobody logged in within the time that the provider gives.")


def by_browser(provider: Provider, tell: Callable[[str], None], open_page: Callable[[str], object]) -> Tokens:
    """Log in with a browser on this machine, which comes back to a port of ours."""
    verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(48)
    with _Listener(state) as listener:
        asked = {
            "response_type": "code",
            "client_id": provider.client_id,
            "redirect_uri": listener.address,
            "scope": provider.scopes,
            "audience": provider.audience,
            "state": state,
            "code_challenge": challenge_of(verifier),
            "code_challenge_method": "S256",
            "prompt": "consent",  # without it some providers give no refresh token
        }
        address = f"{provider.endpoints['authorization_endpoint']}?{urlencode(asked)}"
        tell(f"Log in with the browser that opens, or go to\n  {address}")
        open_page(address)
        code = listener.wait()
    status, answer = provider.post(
        "token_endpoint",
        grant_type="authorization_code",
        code=code,
        redirect_uri=listener.address,
        code_verifier=verifier,
    )
    if status != 200:
        raise LoginFailed(f"the provider said no: {_reason(answer)}.")
    return tokens_in(answer)


def refresh(provider: Provider, refresh_token: str) -> Tokens:
    """New tokens for an old one. Raises LoginFailed where the provider wants a new login."""
    status, answer = provider.post("token_endpoint", grant_type="refresh_token", refresh_token=refresh_token)
    if status != 200:
        raise LoginFailed(f"the login is over: {_reason(answer)}.")
    return tokens_in(answer, refresh_token)


def revoke(provider: Provider, token: str) -> None:
    """Tell the provider that a token is not needed any more. Raises LoginFailed."""
    if "revocation_endpoint" in provider.endpoints:
        provider.post("revocation_endpoint", token=token)


def tokens_in(answer: dict[str, Any], refresh_token: str = "") -> Tokens:
    """The tokens of an answer; ``refresh_token`` stays good where it brings no new one. Raises LoginFailed."""
    try:
        expires_at = time.time() + float(answer.get("expires_in", 3600))
        return Tokens(str(answer["access_token"]), expires_at, str(answer.get("refresh_token") or refresh_token))
    except (KeyError, TypeError, ValueError):
        raise LoginFailed("the provider sent no token.") from None


class _Listener:
    """A port of this machine to which a browser comes back, once."""

    def __init__(self, state: str) -> None:
        self._answer: dict[str, list[str]] | None = None
        self._state = state
        self._server = HTTPServer(("127.0.0.1", 0), self._handler())
        self._server.timeout = 1.0
        self.address = f"http://127.0.0.1:{self._server.server_port}/callback"

    def __enter__(self) -> _Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.server_close()

    def wait(self) -> str:
        """The code that comes with our state. Raises LoginFailed."""
        deadline = time.monotonic() + LOGIN_S
        while self._answer is None and time.monotonic() < deadline:
            self._server.handle_request()
        if self._answer is None:
            raise LoginFailed("no browser came back.")
        if "code" not in self._answer:
            raise LoginFailed(f"the provider said no: {_reason({k: v[0] for k, v in self._answer.items()})}.")
        return self._answer["code"][0]

    def _handler(listener) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the class within has a self of its own
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = urlsplit(self.path)
                given = parse_qs(asked.query)
                is_ours = asked.path == "/callback" and given.get("state") == [listener._state]
                if is_ours:
                    listener._answer = given
                said = b"You may close this page.\n" if is_ours else b"This is not the login that was begun.\n"
                self.send_response(200 if is_ours else 400)
                self.send_header("content-type", "text/plain; charset=utf-8")
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                """Nothing: what it would print holds the code."""

        return Handler


def _check_address(address: str) -> None:
    if not is_private(address):
        raise LoginFailed(f"{address} is not an https:// address: others could read the login.")


def _send(address: str, form: dict[str, str] | None) -> tuple[int, dict[str, Any]]:
    import httpx

    try:
        with httpx.Client(timeout=PATIENCE_S) as client:
            given = {name: value for name, value in (form or {}).items() if value}
            answer = client.get(address) if form is None else client.post(address, data=given)
        document = answer.json() if answer.content else {}
    except httpx.HTTPError as exc:
        raise LoginFailed(f"{urlsplit(address).netloc} does not answer: {exc or type(exc).__name__}.") from exc
    except ValueError as exc:
        raise LoginFailed(f"{urlsplit(address).netloc} answers, but not as an OpenID provider does.") from exc
    return answer.status_code, document if isinstance(document, dict) else {}


def _where_to_go(begun: dict[str, Any]) -> str:
    try:
        page, code = begun["verification_uri"], begun["user_code"]
        whole = begun.get("verification_uri_complete")
        _ = begun["device_code"]
    except KeyError:
        raise LoginFailed("the provider began no login that this command knows.") from None
    qr = f"\n  {whole}\nor to" if whole else ""
    return f"Log in with any browser: go to{qr}\n  {page}\nand give the code {code}"


def _reason(answer: dict[str, Any]) -> str:
    """What a provider says went wrong, as one line that a terminal can show."""
    said = str(answer.get("error_description") or answer.get("error") or "no reason given")
    return "".join(letter if letter.isprintable() else " " for letter in said)[:300].rstrip(".")


def tell(words: str) -> None:
    """For people, so that what a command prints can be used."""
    print(words, file=sys.stderr, flush=True)
