"""Who does what and from where, as the audit log wants to know it of every change and every denial."""

from __future__ import annotations

from typing import TypedDict

from fastapi import Request
from pydantic import BaseModel, ConfigDict

from firstkit.auth.permissions import Identity
from firstkit.errors import ApiError
from firstkit.gateway.identity import identity_of
from firstkit.gateway.request import RequestHead
from firstkit.gateway.state import gateway_of


class By(TypedDict):
    """``actor``: a name; ``source``: the address that they came from, empty for this machine."""

    actor: str
    source: str


class Body(BaseModel):
    """A body in JSON. A field that nobody knows is refused: what it asks for would not be done."""

    model_config = ConfigDict(extra="forbid")


def by(request: Request) -> By:
    """Who does what this request asks for."""
    return By(actor=identity_of(request).user_name, source=source_of(request))


def source_of(request: Request) -> str:
    """The address that a request came from; empty for this machine."""
    return gateway_of(request).sources.of(request.scope.get("client"), _forwarded(request))


def note_denial(request: Request, error: ApiError) -> None:
    """Have it written to the audit log if it is one."""
    found = getattr(request.state, "identity", None)
    identity = found if isinstance(found, Identity) else None
    what = f"{request.method} {request.scope['path']}"
    gateway_of(request).denied(error, identity, what, request.scope.get("client"), _forwarded(request))


def _forwarded(request: Request) -> list[bytes]:
    return head_of(request).values(b"x-forwarded-for")


def head_of(request: Request) -> RequestHead:
    """The head of a request to an ASGI route."""
    return RequestHead(request.method, request.scope["path"], request.scope["headers"])
