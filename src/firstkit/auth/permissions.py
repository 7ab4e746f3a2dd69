"""Scopes as data: what a key may do, and the one check that asks."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from enum import Enum

from firstkit.errors import Forbidden


class Scope(str, Enum):
    """A part of the service that a key opens."""

    INFERENCE = "inference"
    METRICS = "metrics"
    ADMIN = "admin"


ALL_SCOPES: frozenset[str] = frozenset(scope.value for scope in Scope)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, whom it is charged to, and what they may do."""

    user_id: str
    user_name: str
    project_id: str
    key_prefix: str
    scopes: frozenset[str]
    project_name: str = ""


def require(identity: Identity, scope: Scope) -> None:
    """Raise Forbidden unless ``identity`` holds ``scope``."""
    if scope.value not in identity.scopes:
        raise Forbidden(f"This key does not have the scope '{scope.value}' that this route needs.")


def may_use(projects: Container[str], users: Container[str], identity: Identity) -> bool:
    """Whether something that is for these projects and users, by name, is for ``identity``."""
    return identity.user_name in users or identity.project_name in projects


def check_grant(wanted: Iterable[Scope], held: frozenset[str]) -> None:
    """Raise Forbidden when somebody who holds ``held`` would give away more than that."""
    excess = sorted(scope.value for scope in wanted if scope.value not in held)
    if excess:
        raise Forbidden(f"Nobody can grant scopes that they do not hold: {', '.join(excess)}.")
