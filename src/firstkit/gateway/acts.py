"""Who does what, as the audit log wants to know it of every change."""

from __future__ import annotations

from typing import TypedDict

from fastapi import Request
from pydantic import BaseModel, ConfigDict

from firstkit.gateway.identity import identity_of
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
    forwarded = (value.encode("latin-1") for value in request.headers.getlist("x-forwarded-for"))
    source = gateway_of(request).sources.of(request.scope.get("client"), forwarded)
    return By(actor=identity_of(request).user_name, source=source)
