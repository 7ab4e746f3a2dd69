"""Logins at Globus Auth from a command line, by its own library."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from firstkit.cli.oidc_login import LoginFailed, Tokens

MISSING = "Globus' library is missing here: pip install 'firstkit[globus]'"


def log_in(client_id: str, scope: str, policies: str, tell: Callable[[str], None], ask: Callable[[], str]) -> Tokens:
    """Log in with any browser, which shows a code that ``ask`` gets. ``policies``: ids of those that the session must
    meet, joined by commas. Raises LoginFailed."""
    client = _client(client_id)
    client.oauth2_start_flow(requested_scopes=[scope], refresh_tokens=True)
    asked = {"session_required_policies": policies} if policies else {}
    tell(f"Log in with any browser: go to\n  {client.oauth2_get_authorize_url(query_params=asked)}")
    with _told():
        answer = client.oauth2_exchange_code_for_tokens(ask().strip())
        return _tokens(answer, scope)


def refresh(client_id: str, refresh_token: str) -> Tokens:
    """New tokens for an old one. Raises LoginFailed where Globus wants a new login."""
    with _told():
        [data] = _client(client_id).oauth2_refresh_token(refresh_token).by_resource_server.values()
    return _read(data, refresh_token)


def revoke(client_id: str, token: str) -> None:
    """Tell Globus that a token is not needed any more. Raises LoginFailed."""
    with _told():
        _client(client_id).oauth2_revoke_token(token)


def _client(client_id: str) -> Any:
    try:
        from globus_sdk import NativeAppAuthClient
    except ImportError:
        raise LoginFailed(MISSING) from None
    return NativeAppAuthClient(client_id, app_name="first")


@contextmanager
def _told() -> Iterator[None]:
    """Tell what goes wrong at Globus as LoginFailed."""
    from globus_sdk import AuthAPIError, GlobusError

    try:
        yield
    except AuthAPIError as exc:
        raise LoginFailed(f"Globus said no: {exc.message or exc.code or exc.http_status}.") from exc
    except (GlobusError, ValueError, KeyError) as exc:
        raise LoginFailed(f"Globus does not answer: {type(exc).__name__}.") from exc


def _tokens(answer: Any, scope: str) -> Tokens:
    """Those of the resource server that knows ``scope``; others may have come with it."""
    found = [data for data in answer.by_resource_server.values() if scope in str(data["scope"]).split()]
    if not found:
        raise LoginFailed("Globus gave no token for this service.")
    return _read(found[0], "")


def _read(data: dict[str, Any], refresh_token: str) -> Tokens:
    expires_at = float(data.get("expires_at_seconds") or time.time() + 3600)
    return Tokens(str(data["access_token"]), expires_at, str(data.get("refresh_token") or refresh_token))
