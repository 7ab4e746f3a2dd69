"""What Globus said of a token, read strictly, and whether our rules admit its holder. Decides; asks nobody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from firstkit.auth.authority import Vouched
from firstkit.config import Globus as Settings
from firstkit.errors import FirstError, LoginRefused, Unauthenticated

ISSUER = "https://auth.globus.org"
SERVICE_ACCOUNTS = "clients.auth.globus.org"
"""Behind the ``@`` in the username of a client that logs in as itself."""
GROUPS_SERVICE = "groups.api.globus.org"
GROUPS_SCOPE = "urn:globus:auth:scope:groups.api.globus.org:view_my_groups_and_memberships"
LEEWAY_S = 60.0
"""How far our clock may be from that of Globus."""
LATEST = 2.0**53
"""No time is so late."""


class NotUnderstood(FirstError):
    """Globus answered with something that is no answer."""


@dataclass(frozen=True, slots=True)
class GlobusIdentity:
    """Who somebody is at one identity provider, whose id is ``provider``. ``authenticated_at``: when they proved it in
    the session of the token, in seconds since 1970; None where it is merely linked to one that they proved."""

    id: str
    username: str
    email: str | None
    provider: str
    authenticated_at: float | None


@dataclass(frozen=True, slots=True)
class Introspection:
    """What Globus says of an active token. Times in seconds since 1970; ``policies``: those that it evaluated."""

    subject: str
    username: str
    scopes: frozenset[str]
    audience: frozenset[str]
    not_before: float
    expires_at: float
    identities: tuple[GlobusIdentity, ...]
    policies: Mapping[str, bool]

    @property
    def is_service_account(self) -> bool:
        return _domain(self.username) == SERVICE_ACCOUNTS

    @property
    def itself(self) -> GlobusIdentity:
        """The identity that the token was issued to, proved or not."""
        own = [each for each in self.identities if each.id == self.subject]
        return own[0] if own else GlobusIdentity(self.subject, self.username, None, "", None)

    @property
    def proved(self) -> tuple[GlobusIdentity, ...]:
        """The identities that its holder proved in this session: the token's own first, then the latest."""
        proved = [each for each in self.identities if each.authenticated_at is not None]
        return tuple(sorted(proved, key=lambda each: (each.id != self.subject, -(each.authenticated_at or 0), each.id)))


def needs_groups(settings: Settings) -> bool:
    """Whether one of these rules is about groups."""
    return bool(settings.groups) or any(provider.groups for provider in settings.identity_providers)


def check_token(said: Introspection, settings: Settings, at: float) -> None:
    """Raise Unauthenticated unless the token is for this service, and now."""
    scope = settings.needed_scope
    if scope not in said.scopes:
        raise Unauthenticated(f"This Globus token is for another service: it does not have the scope {scope}.")
    if said.audience.isdisjoint((settings.client_id, _server_of(scope))):
        raise Unauthenticated("This Globus token is for another service: see its audience.")
    if said.expires_at + LEEWAY_S <= at:
        raise Unauthenticated("This Globus token has expired: log in again.")
    if said.not_before - LEEWAY_S > at:
        raise Unauthenticated("This Globus token is not valid yet.")


def admit(said: Introspection, settings: Settings) -> tuple[GlobusIdentity, ...]:
    """Those of the holder's identities under which they may come in, as far as rules go that are not about groups.

    Never empty: raises LoginRefused, with a sentence that says how to log in.
    """
    if said.is_service_account:
        if said.subject not in settings.service_accounts:
            raise LoginRefused(f"The service account {said.username} is not one of those that this service admits.")
        return (said.itself,)
    providers = {provider.id for provider in settings.identity_providers}
    fit = tuple(each for each in said.proved if not providers or each.provider in providers)
    if providers and not fit:
        raise LoginRefused(_how_to_prove(said, providers))
    _check_policies(said, settings.policies)
    return fit or (said.itself,)


def vouch(
    said: Introspection, fit: tuple[GlobusIdentity, ...], groups: frozenset[str], settings: Settings, at: float
) -> Vouched:
    """What we say of the holder, who may come in under one of ``fit`` and is in ``groups``; raises LoginRefused.

    Groups count whichever of the holder's identities is the member, as everywhere at Globus.
    """
    if settings.groups and groups.isdisjoint(settings.groups):
        raise LoginRefused("You are in none of the Globus groups that this service admits.")
    wanted = {provider.id: provider.groups for provider in settings.identity_providers}
    members = [
        each for each in fit if not wanted.get(each.provider) or not groups.isdisjoint(wanted.get(each.provider, ()))
    ]
    if not members:
        raise LoginRefused(
            f"{fit[0].username} is in none of the Globus groups that its identity provider is admitted for."
        )
    return Vouched(
        issuer=ISSUER,
        subject=said.subject,
        name=members[0].username,
        email=members[0].email,
        groups=groups,
        domains=frozenset(domain for each in said.proved if (domain := _domain(each.username))),
        projects=frozenset(),
        good_for_s=max(said.expires_at - at, 1.0),  # Globus called it active a moment ago, whatever our clock says
    )


def _check_policies(said: Introspection, policies: tuple[str, ...]) -> None:
    for policy in policies:
        if policy not in said.policies:
            raise LoginRefused(
                f"Globus did not evaluate the policy {policy} that this service requires: tell its operator."
            )
        if not said.policies[policy]:
            message = (
                f"This service requires a login that meets its Globus policy {policy}, and yours does not, or not any "
                "more: log in again, as that policy says (how recently, with which identity, with a second factor)."
            )
            asked = {"session_message": message, "session_required_policies": list(policies)}
            raise LoginRefused(message, details={"authorization_parameters": asked})


def _how_to_prove(said: Introspection, providers: set[str]) -> str:
    linked = sorted(each.username for each in said.identities if each.provider in providers)
    if linked:
        which = " or ".join(linked)
        return f"Log in again with {which}: it is linked to your login, but you did not log in with it."
    proved = ", ".join(each.username for each in said.proved) or said.username
    return f"You logged in as {proved}, whose identity provider this service does not admit: log in with another one."


def _domain(username: str) -> str:
    return username.rpartition("@")[2].lower() if "@" in username else ""


def _server_of(scope: str) -> str:
    """The resource server of a scope, which is its client id, or the name that Globus knows it by."""
    path = scope.partition("/scopes/")[2]
    return path.partition("/")[0] if path else scope.removeprefix("urn:globus:auth:scope:").partition(":")[0]


# -- reading -----------------------------------------------------------------------------------------------------------


def read_introspection(answer: object) -> Introspection | None:
    """What Globus answered about a token; None: it is not good, or not ours to ask about. Raises NotUnderstood."""
    said = _mapping(answer)
    if said.get("active") is False:
        return None
    if said.get("active") is not True:
        raise NotUnderstood
    return Introspection(
        subject=_text(said.get("sub")).lower(),
        username=_text(said.get("username")),
        scopes=frozenset(_text(said.get("scope")).split()),
        audience=_audience(said.get("aud")),
        not_before=_number(said.get("nbf") or 0),
        expires_at=_number(said.get("exp")),
        identities=tuple(_identities(said)),
        policies={
            _text(policy).lower(): _mapping(found).get("evaluation") is True
            for policy, found in _mapping(said.get("policy_evaluations") or {}).items()
        },
    )


def read_groups_token(answer: object) -> str | None:
    """The token for groups among dependent tokens; None where there is none. Raises NotUnderstood."""
    for each in _sequence(answer):
        if _mapping(each).get("resource_server") == GROUPS_SERVICE:
            return _text(each.get("access_token"))
    return None


def read_groups(answer: object) -> frozenset[str]:
    """The ids of the groups in which somebody is an active member: not only invited, and not left. Raises
    NotUnderstood."""
    return frozenset(
        _text(group.get("id")).lower()
        for group in map(_mapping, _sequence(answer))
        if any(_mapping(each).get("status") == "active" for each in _sequence(group.get("my_memberships") or []))
    )


def _identities(said: Mapping[str, Any]) -> list[GlobusIdentity]:
    session = _mapping(said.get("session_info") or {})
    proofs = {
        _text(identity).lower(): _mapping(proof)
        for identity, proof in _mapping(session.get("authentications") or {}).items()
    }
    details = map(_mapping, _sequence(said.get("identity_set_detail") or []))
    return [_identity(each, proofs) for each in details]


def _identity(detail: Mapping[str, Any], proofs: Mapping[str, Mapping[str, Any]]) -> GlobusIdentity:
    """One identity of the set. A proof counts for it only where both name the same provider."""
    identity_id = _text(detail.get("sub") or detail.get("id")).lower()
    provider = _text(detail.get("identity_provider")).lower()
    proof = proofs.get(identity_id)
    if proof is not None and _text(proof.get("idp") or provider).lower() != provider:
        proof = None
    return GlobusIdentity(
        id=identity_id,
        username=_text(detail.get("username")),
        email=_text(detail["email"]) if detail.get("email") else None,
        provider=provider,
        authenticated_at=None if proof is None else _number(proof.get("auth_time") or 0),
    )


def _audience(value: object) -> frozenset[str]:
    return frozenset({value} if isinstance(value, str) else map(_text, _sequence(value)))


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise NotUnderstood
    return value


def _sequence(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise NotUnderstood
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise NotUnderstood
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LATEST:
        raise NotUnderstood  # also for NaN, which is neither before nor after anything
    return float(value)
