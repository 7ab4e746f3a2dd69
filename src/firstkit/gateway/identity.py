"""Who may use a route: every route names the scope that it needs, and a route that names none is refused to all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

from fastapi import Depends, Request
from fastapi.params import Depends as Dependency
from starlette.types import ASGIApp, Receive, Scope, Send

from firstkit.accounting.limits import Limits
from firstkit.auth.authenticator import Identity
from firstkit.auth.permissions import ALL_SCOPES
from firstkit.auth.permissions import Scope as KeyScope
from firstkit.clock import monotonic
from firstkit.errors import ApiError, Unauthenticated
from firstkit.gateway.request import RequestHead, permit

MAX_ACTOR = 100
OPEN_PATHS = frozenset(
    {
        *("/health", "/ready", "/resource_server/health", "/resource_server/status"),
        *("/auth/methods", "/auth/login", "/auth/callback", "/auth/account", "/auth/logout"),
    }
)
"""By exact match. The last two look for a session themselves: they answer browsers with pages."""
LOCAL_ADMIN = Identity(
    user_id="local-admin",
    user_name="local admin",
    project_id="none",
    key_prefix="none",
    scopes=frozenset({KeyScope.METRICS.value, KeyScope.AUDIT.value, KeyScope.ADMIN.value}),
)
"""Whoever can open the admin socket: the operating system guards it (0600 in a 0700 folder)."""


Denied = Callable[[ApiError, Identity | None, str, Any, Iterable[bytes]], None]
"""As ``Gateway.denied``."""


class Identify:
    """ASGI middleware: nobody passes without an identity, except to the paths that are open, by exact match."""

    def __init__(
        self,
        app: ASGIApp,
        identify_head: Callable[[RequestHead], Awaitable[Identity]],
        limits: Limits | None = None,
        denied: Denied | None = None,
    ) -> None:
        """``limits``: those that requests by this door count for. ``denied``: told of those who do not come in."""
        self.app = app
        self.identify_head = identify_head
        self.limits = limits or Limits()
        self.denied = denied

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        head = RequestHead(scope["method"], scope["path"], scope["headers"])
        identity = await self._identified(head, scope.get("client"))
        scope.setdefault("state", {})["identity"] = identity
        stay = self.limits.enter(identity, monotonic())
        try:
            await self.app(scope, receive, send)
        finally:
            if stay is not None:
                stay.leave(0, monotonic())

    async def _identified(self, head: RequestHead, peer: Any) -> Identity:
        try:
            return await self.identify_head(head)
        except ApiError as error:
            if self.denied is not None:
                self.denied(error, None, f"{head.method} {head.path}", peer, head.values(b"x-forwarded-for"))
            raise


async def local_admin(head: RequestHead) -> Identity:
    """Identity of everybody who comes by the admin socket. The name, for the audit log, is what they say it is."""
    name = head.get(b"x-first-actor")
    return replace(LOCAL_ADMIN, user_name=name[:MAX_ACTOR]) if name else LOCAL_ADMIN


def grantable(identity: Identity) -> frozenset[str]:
    """The scopes that ``identity`` may give to a key. Local administrators could read the database itself."""
    return ALL_SCOPES if identity.user_id == LOCAL_ADMIN.user_id else identity.scopes


def identity_of(request: Request) -> Identity:
    """The identity that the middleware found."""
    identity = getattr(request.state, "identity", None)
    if not isinstance(identity, Identity):
        raise Unauthenticated
    return identity


def needs(scope: KeyScope, *others: KeyScope) -> Dependency:
    """Dependency of a route: only identities with ``scope``, or one of the ``others``, come in."""

    async def check(request: Request) -> None:  # a plain function would cost a thread for each request
        identity = identity_of(request)
        held = (other for other in others if other.value in identity.scopes)
        permit(identity, next(held, scope))

    dependency: Dependency = Depends(check)
    return dependency
