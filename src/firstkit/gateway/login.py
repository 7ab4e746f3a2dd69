"""Logins of browsers, and what ``first login`` has to know."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response

from firstkit.config import Auth
from firstkit.errors import ApiError, Unauthenticated
from firstkit.gateway import login_pages as pages
from firstkit.gateway.acts import head_of, note_denial, source_of
from firstkit.gateway.admin import OPEN
from firstkit.gateway.doors import COOKIE, check_origin, cookie_name, cookie_of
from firstkit.gateway.logins import HOME, LIMIT_S, Answer, Logins, NoBrowserLogin, own_path
from firstkit.gateway.state import gateway_of

LOGIN_COOKIE = "first_login"
"""The cookie of a browser in which somebody is about to log in."""
router = APIRouter(prefix="/auth", tags=["login"])


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(router)


@router.get("/methods", openapi_extra=OPEN)
async def methods(request: Request) -> dict[str, Any]:
    """How people log in: by a program (``data``, one entry for each identity provider), and whether by a browser."""
    return {"data": methods_of(gateway_of(request).config.auth), "browser": bool(_logins_of(request).providers)}


@router.get("/login", include_in_schema=False)
async def login(request: Request, provider: str | None = None, return_to: str = HOME) -> Response:
    return await _page(request, _login(request, provider, return_to))


@router.get("/callback", include_in_schema=False)
async def callback(
    request: Request,
    state: str | None = None,
    code: str | None = None,
    error: str | None = None,
    iss: str | None = None,
) -> Response:
    return await _page(request, _callback(request, Answer(state, code, error, iss)))


@router.get("/account", include_in_schema=False)
async def account(request: Request) -> Response:
    return await _page(request, _account(request))


@router.post("/logout", include_in_schema=False)
async def logout(request: Request) -> Response:
    return await _page(request, _logout(request))


def methods_of(auth: Auth) -> list[dict[str, Any]]:
    """What a program needs for a login, of each provider where it may begin one."""
    found: list[dict[str, Any]] = []
    if auth.oidc is not None and auth.oidc.login_client_id is not None:
        found.append(
            {
                "kind": "oidc",
                "issuer": auth.oidc.issuer,
                "client_id": auth.oidc.login_client_id,
                "scopes": list(auth.oidc.scopes),
                "audience": auth.oidc.audience,
            }
        )
    if auth.globus is not None and auth.globus.login_client_id is not None:
        found.append(
            {
                "kind": "globus",
                "client_id": auth.globus.login_client_id,
                "scope": auth.globus.needed_scope,
                "policies": list(auth.globus.policies),
            }
        )
    return found


async def _login(request: Request, provider: str | None, return_to: str) -> Response:
    logins = _logins_of(request)
    if not logins.providers:
        raise NoBrowserLogin
    if provider is None:
        return pages.choice(logins.providers, own_path(return_to))
    begun = await logins.begin(provider, return_to, source_of(request))
    response = pages.redirect(begun.address)
    _set_cookie(request, response, LOGIN_COOKIE, begun.browser, LIMIT_S)
    return response


async def _callback(request: Request, answer: Answer) -> Response:
    gateway, browser = gateway_of(request), _cookie(request, LOGIN_COOKIE)
    ended = await _logins_of(request).end(answer, browser, _cookie(request, COOKIE), source_of(request))
    response = pages.redirect(f"{gateway.config.server.public_url}{ended.return_to}")
    _set_cookie(request, response, LOGIN_COOKIE, "", 0)
    _set_cookie(request, response, COOKIE, ended.token, gateway.config.auth.session)
    return response


async def _account(request: Request) -> Response:
    try:
        return pages.account(await gateway_of(request).identify(head_of(request)))
    except Unauthenticated:
        return pages.redirect("login")


async def _logout(request: Request) -> Response:
    token = _cookie(request, COOKIE)
    response = pages.redirect("login")
    if token is not None:
        check_origin(head_of(request), gateway_of(request).config.server.public_url)
        await _logins_of(request).log_out(token, source_of(request))
        _set_cookie(request, response, COOKIE, "", 0)
    return response


async def _page(request: Request, work: Awaitable[Response]) -> Response:
    """The page, or one that says why there is none: people look at it, not programs."""
    try:
        return await work
    except ApiError as error:
        note_denial(request, error)
        return pages.refused(error)


def _set_cookie(request: Request, response: Response, name: str, value: str, life_s: float) -> None:
    """``life_s`` 0: the browser forgets it. Scripts never see it, and no other site's page sends it along."""
    public_url = gateway_of(request).config.server.public_url or ""
    response.set_cookie(
        cookie_name(name, public_url),
        value,
        max_age=int(life_s),
        path="/",
        secure=public_url.startswith("https:"),
        httponly=True,
        samesite="lax",
    )


def _cookie(request: Request, name: str) -> str | None:
    return cookie_of(head_of(request), cookie_name(name, gateway_of(request).config.server.public_url))


def _logins_of(request: Request) -> Logins:
    logins: Logins = request.app.state.logins
    return logins
