"""What the claims of a token say: whether it is one for us and still good, and who holds it. Asks nobody."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from firstkit.auth.authority import Vouched
from firstkit.auth.names import is_name
from firstkit.auth.tokens import KEY
from firstkit.config import Oidc
from firstkit.errors import LoginRefused, Unauthenticated

_ACCESS_TOKEN = ("at+jwt", "application/at+jwt")
_OF_ID_TOKENS = ("nonce", "at_hash", "c_hash", "s_hash", "events")
_OF_ACCESS_TOKENS = ("scope", "scp", "scopes", "client_id", "cid", "appid")
_LATEST = 2**53
MOST_SUBJECT, MOST_NAME, MOST_EMAIL = 300, 200, 320
"""Characters, as the store takes them."""
MOST_WORDS = 1000


@dataclass(frozen=True, slots=True)
class Rules:
    """What a token must say to be one for us. ``clients``: those whose tokens are for us even where no audience is
    named, as far as the provider itself says that they are access tokens."""

    issuer: str
    audience: str
    leeway_s: float
    clients: frozenset[str] = frozenset()


def check_access_token(header: Mapping[str, Any], claims: Mapping[str, Any], rules: Rules, now_s: float) -> float:
    """How many seconds more a JWT is good; raises Unauthenticated where it is no access token, not for us, or not good
    now. ``now_s``: since 1970."""
    if claims.get("iss") != rules.issuer:
        raise Unauthenticated("The token is of another issuer.")
    _check_kind(header, claims)
    if rules.audience not in _audience(claims):
        raise Unauthenticated("The token is for another audience.")
    return seconds_left(claims, rules.leeway_s, now_s)


def check_introspection(claims: Mapping[str, Any], rules: Rules, now_s: float) -> float:
    """The same of what a provider says of a token when it is asked."""
    if claims.get("active") is not True:
        raise Unauthenticated("The identity provider says that the token is not good.")
    if claims.get("iss", rules.issuer) != rules.issuer:
        raise Unauthenticated("The token is of another issuer.")
    if str(claims.get("token_type", "bearer")).lower() not in ("bearer", "access_token"):
        raise Unauthenticated("The token is no access token that its holder may just show.")
    _check_kind({"typ": "at+jwt"}, claims)
    is_of_ours = "aud" not in claims and "token_type" in claims and claims.get("client_id") in rules.clients
    if not is_of_ours and rules.audience not in _audience(claims):
        raise Unauthenticated("The token is for another audience.")
    return seconds_left(claims, rules.leeway_s, now_s)


def check_id_token(
    claims: Mapping[str, Any], issuer: str, client_id: str, nonce: str, leeway_s: float, now_s: float
) -> None:
    """Raise Unauthenticated unless an ID token is the answer to the login that had ``nonce``."""
    audience = _audience(claims)
    is_ours = claims.get("iss") == issuer and client_id in audience
    is_to_us = claims.get("azp", client_id) == client_id and (len(audience) == 1 or "azp" in claims)
    if not (is_ours and is_to_us and claims.get("nonce") == nonce):
        raise Unauthenticated("The identity provider's answer is not for this login.")
    seconds_left(claims, leeway_s, now_s)


def seconds_left(claims: Mapping[str, Any], leeway_s: float, now_s: float) -> float:
    """How long a token is good, with the leeway; raises Unauthenticated for one that is not, or never ends."""
    ends, begins, made = (_time(claims, name) for name in ("exp", "nbf", "iat"))
    if ends is None:
        raise Unauthenticated("The token does not say when it ends.")
    if now_s >= ends + leeway_s:
        raise Unauthenticated("The token has expired.")
    if now_s < max(begins or 0.0, made or 0.0) - leeway_s:
        raise Unauthenticated("The token is not good yet.")
    return ends + leeway_s - now_s


def vouched_for(claims: Mapping[str, Any], config: Oidc, issuer: str, good_for_s: float) -> Vouched:
    """Who holds a token with these claims, which were checked; raises LoginRefused."""
    groups = frozenset(words(claim(claims, config.claims.groups)))
    if config.groups and groups.isdisjoint(config.groups):
        raise LoginRefused("The login is good, but you are in none of the groups that this service admits.")
    email, is_verified = _email(claims, config)
    if config.claims.user == config.claims.email and not is_verified:
        raise LoginRefused("The login is good, but the identity provider has not verified your e-mail address.")
    return Vouched(
        issuer=issuer,
        subject=_named(claims, "sub", MOST_SUBJECT),
        name=_named(claims, config.claims.user, MOST_NAME),
        email=email,
        groups=groups,
        domains=frozenset({email.rpartition("@")[2].lower()} if email and is_verified else ()),
        projects=frozenset(words(claim(claims, config.claims.projects)) if config.claims.projects else ()),
        good_for_s=good_for_s,
    )


def claim(claims: Mapping[str, Any], name: str) -> Any:
    """The claim of that name; where there is none, one inside another: ``realm_access.roles``."""
    if name in claims or "." not in name:
        return claims.get(name)
    outer, _, rest = name.partition(".")
    inner = claims.get(outer)
    return claim(inner, rest) if isinstance(inner, dict) else None


def words(value: Any) -> list[str]:
    """What is in a claim that is a list of texts, or one text of several words."""
    found = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    return [each for each in found[:MOST_WORDS] if isinstance(each, str) and is_name(each)]


def _audience(claims: Mapping[str, Any]) -> list[Any]:
    value = claims.get("aud")
    return value if isinstance(value, list) else [value]


def _check_kind(header: Mapping[str, Any], claims: Mapping[str, Any]) -> None:
    """Raise Unauthenticated for what the same keys sign and is no access token, or does not look like one."""
    kind = str(header.get("typ", "JWT")).lower()
    says_so = kind in _ACCESS_TOKEN or claims.get("typ") == "Bearer" or claims.get("token_use") == "access"
    is_other = kind not in (*_ACCESS_TOKEN, "jwt")
    is_other |= claims.get("typ", "Bearer") != "Bearer" or claims.get("token_use", "access") != "access"
    if is_other or not (says_so or _looks_like_access(claims)):
        raise Unauthenticated("The token is no access token.")
    if "cnf" in claims:
        raise Unauthenticated("The token is bound to a key of its holder, which this service cannot check.")


def _looks_like_access(claims: Mapping[str, Any]) -> bool:
    """Whether a token that does not say what it is says what its client may do: an ID token only tells its client who
    somebody is, and may look like an access token for us where our audience is the client's id."""
    if any(name in claims for name in _OF_ID_TOKENS):
        return False
    azp = claims.get("azp")
    return any(name in claims for name in _OF_ACCESS_TOKENS) or (azp is not None and azp not in _audience(claims))


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or (isinstance(value, float) and not math.isfinite(value)) or not 0 <= value <= _LATEST:
        raise Unauthenticated(f"The token's '{name}' is no time.")
    return float(value)


def _named(claims: Mapping[str, Any], name: str, most: int) -> str:
    value = claim(claims, name)
    if not (isinstance(value, str) and 0 < len(value) <= most and value.isprintable()) or KEY.search(value):
        raise LoginRefused(f"The login is good, but its claim '{name}' is no name that can be used here.")
    return value


def _email(claims: Mapping[str, Any], config: Oidc) -> tuple[str | None, bool]:
    """The address, and whether the provider has verified it."""
    value = claim(claims, config.claims.email)
    if not (isinstance(value, str) and len(value) <= MOST_EMAIL and value.isprintable() and "@" in value):
        return None, False
    is_verified = claims.get("email_verified")
    return value, is_verified is True or is_verified == "true"
