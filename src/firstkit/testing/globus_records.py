"""What the stand-in for Globus knows: identities, groups, policies, clients, sessions and tokens. No HTTP here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from uuid import uuid4

AUTH_SERVER = "auth.globus.org"
GROUPS_SERVER = "groups.api.globus.org"
VIEW_GROUPS = f"urn:globus:auth:scope:{GROUPS_SERVER}:view_my_groups_and_memberships"
IDENTITY_SCOPES = ("openid", "profile", "email")
LIFETIME_S = 48 * 3600


class Refused(Exception):
    """What Globus answers instead: a status, and the word that OAuth has for it."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error


@dataclass(frozen=True)
class Identity:
    """Somebody at one identity provider, whose id is ``provider``."""

    id: str
    username: str
    provider: str
    name: str
    email: str | None


@dataclass(frozen=True)
class Client:
    """A registered program; one with a secret is confidential, and a resource server whose scope is ``scope``."""

    id: str
    secret: str | None
    redirect_uris: tuple[str, ...] = ()
    depends_on_groups: bool = True
    """Whether its scope lets it get tokens for the groups of a user."""

    @property
    def scope(self) -> str:
        return f"https://{AUTH_SERVER}/scopes/{self.id}/action_all"


@dataclass
class Session:
    """A login: which identities were proved in it, and when (seconds since 1970)."""

    identity: Identity
    proofs: dict[str, float]
    id: str = field(default_factory=lambda: str(uuid4()))


@dataclass
class Token:
    """An access token, or a refresh token; ``server``: the resource server that it is for."""

    text: str
    session: Session
    client_id: str
    scopes: tuple[str, ...]
    server: str
    issued_at: int
    expires_at: int
    is_refresh: bool = False
    is_active: bool = True

    @property
    def is_good(self) -> bool:
        return self.is_active and time.time() < self.expires_at


@dataclass
class Code:
    """What a browser brings back from a login."""

    session: Session
    client_id: str
    scopes: tuple[str, ...]
    redirect_uri: str
    challenge: str | None
    nonce: str | None
    is_offline: bool


Policy = Callable[[Session], bool]


def recent(max_age_s: float) -> Policy:
    """A policy that is met while some identity of the session was proved so lately."""
    return lambda session: any(at > time.time() - max_age_s for at in session.proofs.values())


class Records:
    """May be changed from any thread while it is served."""

    def __init__(self) -> None:
        self.clients: dict[str, Client] = {}
        self.identities: dict[str, Identity] = {}
        self.groups: dict[str, str] = {}
        self.policies: dict[str, Policy] = {}
        self.tokens: dict[str, Token] = {}
        self.codes: dict[str, Code] = {}
        self._linked: dict[str, list[Identity]] = {}
        self._memberships: dict[tuple[str, str], str] = {}

    # -- what there is -------------------------------------------------------------------------------------------------

    def add_service(self, *redirect_uris: str, depends_on_groups: bool = True) -> Client:
        """A confidential client, which is a resource server too."""
        client = Client(str(uuid4()), f"secret-of-{uuid4().hex}", redirect_uris, depends_on_groups)
        self.clients[client.id] = client
        identity = Identity(client.id, f"{client.id}@clients.{AUTH_SERVER}", AUTH_SERVER, "A service", None)
        self._add(identity, None)
        return client

    def add_native(self, *redirect_uris: str) -> Client:
        """A client without a secret, for command lines."""
        client = Client(str(uuid4()), None, redirect_uris)
        self.clients[client.id] = client
        return client

    def add_identity(self, username: str, provider: str, *, linked_to: Identity | None = None) -> Identity:
        """Somebody new, or another identity of somebody; the first of a set is the one that tokens are issued to."""
        name = username.partition("@")[0]
        identity = Identity(str(uuid4()), username, provider, name.title(), username)
        self._add(identity, linked_to)
        return identity

    def _add(self, identity: Identity, linked_to: Identity | None) -> None:
        together = self._linked[linked_to.id] if linked_to else []
        together.append(identity)
        self._linked[identity.id] = together
        self.identities[identity.id] = identity

    def add_group(self, name: str) -> str:
        """The id of a new group."""
        group = str(uuid4())
        self.groups[group] = name
        return group

    def join(self, identity: Identity, group: str, status: str = "active") -> None:
        """Set the state of a membership: ``active``, ``invited``, ``pending``, ``left``..."""
        self._memberships[group, identity.id] = status

    def identity_set(self, identity: Identity) -> list[Identity]:
        return list(self._linked[identity.id])

    def memberships(self, identity: Identity) -> list[tuple[str, Identity, str]]:
        """Group, identity and state, of all identities of somebody."""
        mine = {each.id: each for each in self._linked[identity.id]}
        return [(group, mine[who], state) for (group, who), state in self._memberships.items() if who in mine]

    # -- logins and tokens ---------------------------------------------------------------------------------------------

    def log_in(self, *proved: Identity, ago_s: float = 0.0) -> Session:
        """A session in which these identities of one person were proved."""
        return Session(self._linked[proved[0].id][0], {each.id: time.time() - ago_s for each in proved})

    def issue(
        self,
        session: Session,
        *scopes: str,
        client: Client,
        lifetime_s: float = LIFETIME_S,
        starts_in_s: float = 0.0,
        is_refresh: bool = False,
    ) -> Token:
        """A token for scopes that are of one resource server; ``client``: to whom it is issued."""
        at = int(time.time() + starts_in_s)
        text = ("Rg" if is_refresh else "Ag") + uuid4().hex + uuid4().hex
        [server] = {self.server_of(scope) for scope in scopes}
        token = Token(text, session, client.id, scopes, server, at, int(at + lifetime_s), is_refresh)
        self.tokens[text] = token
        return token

    def revoke(self, text: str) -> None:
        """From now on this token is not good; unknown ones are none before."""
        if text in self.tokens:
            self.tokens[text].is_active = False

    def server_of(self, scope: str) -> str:
        """The resource server of a scope; raises Refused for one that nobody has."""
        for server in (AUTH_SERVER, GROUPS_SERVER):
            if scope.startswith(f"urn:globus:auth:scope:{server}:"):
                return server
        if scope in IDENTITY_SCOPES:
            return AUTH_SERVER
        for client in self.clients.values():
            if client.secret is not None and scope == client.scope:
                return client.id
        raise Refused(400, "unknown_scope")

    def good_token(self, text: str, server: str | None = None) -> Token | None:
        """An access token that is good now, for ``server`` where one is named."""
        token = self.tokens.get(text)
        if token is None or token.is_refresh or not token.is_good or server not in (None, token.server):
            return None
        return token

    def grants(
        self, session: Session, scopes: Iterable[str], client: Client, is_offline: bool
    ) -> list[dict[str, object]]:
        """Tokens for scopes, one for each resource server, in the form in which Globus hands them out."""
        by_server: dict[str, list[str]] = {}
        for scope in scopes:
            by_server.setdefault(self.server_of(scope), []).append(scope)
        return [self._grant(session, wanted, client, is_offline) for wanted in by_server.values()]

    def _grant(self, session: Session, scopes: list[str], client: Client, is_offline: bool) -> dict[str, object]:
        token = self.issue(session, *scopes, client=client)
        granted: dict[str, object] = {
            "access_token": token.text,
            "scope": " ".join(scopes),
            "resource_server": token.server,
            "expires_in": LIFETIME_S,
            "token_type": "Bearer",
        }
        if is_offline:
            refresh = self.issue(session, *scopes, client=client, lifetime_s=180 * 86400, is_refresh=True)
            granted["refresh_token"] = refresh.text
        return granted

    # -- what is said of them ------------------------------------------------------------------------------------------

    def introspection(self, token: Token, include: str, policies: str) -> dict[str, object]:
        """What a resource server is told of a token of its own."""
        who = token.session.identity
        said: dict[str, object] = {
            "active": True,
            "token_type": "Bearer",
            "sub": who.id,
            "username": who.username,
            "name": who.name,
            "email": who.email,
            "client_id": token.client_id,
            "scope": " ".join(token.scopes),
            "aud": sorted({AUTH_SERVER, token.server, token.client_id}),
            "iss": f"https://{AUTH_SERVER}",
            "iat": token.issued_at,
            "nbf": token.issued_at,
            "exp": token.expires_at,
            "dependent_tokens_cache_id": uuid4().hex,
        }
        if "identity_set_detail" in include.split(","):
            said["identity_set_detail"] = [self._detail(each) for each in self.identity_set(who)]
        if "session_info" in include.split(","):
            said["session_info"] = self._session_info(token.session)
        if policies:
            known = {policy: self.policies[policy] for policy in policies.split(",") if policy in self.policies}
            said["policy_evaluations"] = {each: {"evaluation": met(token.session)} for each, met in known.items()}
        return said

    def _session_info(self, session: Session) -> Mapping[str, object]:
        proofs = {
            identity: {"idp": self.identities[identity].provider, "auth_time": int(at), "acr": None, "amr": None}
            for identity, at in session.proofs.items()
        }
        return {"session_id": session.id, "authentications": proofs}

    def _detail(self, identity: Identity) -> Mapping[str, object]:
        return {
            "sub": identity.id,
            "username": identity.username,
            "name": identity.name,
            "email": identity.email,
            "identity_provider": identity.provider,
            "identity_provider_display_name": f"Provider {identity.provider[:4]}",
            "organization": None,
            "identity_type": "login",
            "status": "used",
        }

    def my_groups(self, identity: Identity, statuses: str) -> list[Mapping[str, object]]:
        """The groups of somebody, with their own memberships; ``statuses``: only these, joined by commas."""
        wanted = statuses.split(",") if statuses else None
        found: dict[str, list[Mapping[str, object]]] = {}
        for group, who, status in self.memberships(identity):
            if wanted is None or status in wanted:
                mine = {"group_id": group, "identity_id": who.id, "username": who.username, "role": "member"}
                found.setdefault(group, []).append({**mine, "status": status})
        return [
            {"id": group, "name": self.groups[group], "group_type": "regular", "my_memberships": memberships}
            for group, memberships in found.items()
        ]
