"""What an identity provider is to us: somebody who vouches for the holder of a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Vouched:
    """What an identity provider says of the holder of a token.

    ``subject``: who they are to ``issuer``, for ever. ``name``: a name that no two people of that provider have, and
    that they cannot choose freely. ``domains``: those that it vouches for. ``projects``: names of those that they
    belong to, where it tells. ``good_for_s``: the token is good for so many seconds more.
    """

    issuer: str
    subject: str
    name: str
    email: str | None
    groups: frozenset[str]
    domains: frozenset[str]
    projects: frozenset[str]
    good_for_s: float


class Authority(Protocol):
    """An identity provider. Safe to call from several tasks at once; never holds up the event loop."""

    name: str
    """``globus`` or ``oidc``: stands in the ledger in place of the prefix of a key."""

    def may_know(self, token: str) -> bool:
        """Whether a token looks like one of its; asks nobody."""

    async def look_up(self, token: str) -> Vouched:
        """Who holds ``token``. Raises Unauthenticated where the provider said that it is not good, LoginRefused where
        it is and our rules do not admit its holder, ProviderUnavailable where the provider said nothing."""

    async def close(self) -> None:
        """Let go of connections."""
