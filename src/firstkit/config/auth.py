"""Section ``auth``: who may come in, how they log in, and what they are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from firstkit.config.kinds import Domain, Folder, Line, Seconds, Section, Uuid, Web

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class People(Section):
    """Whom something is for: anybody whom one of these names."""

    projects: tuple[Line, ...] = ()
    users: tuple[Line, ...] = ()
    groups: tuple[Line, ...] = ()
    domains: tuple[Domain, ...] = ()

    @property
    def names_nobody(self) -> bool:
        return not (self.projects or self.users or self.groups or self.domains)


class Access(People):
    """Who may use a cluster or a model: members of one of the projects or groups, the users, and those whose identity
    provider vouches for one of the domains. Absent: everybody."""

    @model_validator(mode="after")
    def _names_somebody(self) -> Access:
        if self.names_nobody:
            raise ValueError(
                "at least one of projects, users, groups and domains is needed; leave 'access' out to admit everybody"
            )
        return self


class Holders(Section):
    """Who has a role, beside those who got it by ``first users grant``."""

    users: tuple[Line, ...] = ()
    groups: tuple[Line, ...] = ()


class Roles(Section):
    """Who runs the service, and who looks at its books."""

    operators: Holders = Holders()
    auditors: Holders = Holders()


class PersonalKeys(Section):
    """Keys that people make themselves after a login."""

    max_lifetime: Seconds = Field(default=90 * 86400.0, gt=0)
    login_within: Seconds = Field(default=30 * 86400.0, gt=0)
    most: int = Field(default=20, ge=0, le=1000)


class GlobusProvider(Section):
    """An identity provider whose people may come in, those of one of the groups where some are named."""

    id: Uuid
    groups: tuple[Uuid, ...] = ()


class Globus(Section):
    """Logins by Globus Auth: a confidential client of the service, and a native one for ``first login``."""

    client_id: Uuid
    client_secret_file: Folder
    login_client_id: Uuid | None = None
    scope: Line | None = None
    policies: tuple[Uuid, ...] = ()
    identity_providers: tuple[GlobusProvider, ...] = ()
    groups: tuple[Uuid, ...] = ()
    service_accounts: tuple[Uuid, ...] = ()

    @property
    def needed_scope(self) -> str:
        """What a token must be for."""
        return self.scope or f"https://auth.globus.org/scopes/{self.client_id}/action_all"


class Claims(Section):
    """Which claims of a token say what. ``user`` must be one that no two people ever have."""

    user: Line = "sub"
    email: Line = "email"
    groups: Line = "groups"
    projects: Line | None = None


class Oidc(Section):
    """Logins by any OpenID provider."""

    issuer: Web
    audience: Line
    client_id: Line | None = None
    client_secret_file: Folder | None = None
    login_client_id: Line | None = None
    scopes: tuple[Line, ...] = ("openid", "profile", "email", "offline_access")
    algorithms: tuple[Algorithm, ...] = Field(default=("RS256", "ES256"), min_length=1)
    leeway: Seconds = Field(default=30.0, le=300)
    introspection: bool = False
    groups: tuple[Line, ...] = ()
    claims: Claims = Claims()

    @model_validator(mode="after")
    def _can_introspect(self) -> Oidc:
        if self.introspection and (self.client_id is None or self.client_secret_file is None):
            raise ValueError("introspection: client_id and client_secret_file are needed with it")
        return self


class Auth(Section):
    """Who may come in: holders of API keys, always; and people who log in."""

    api_keys: Literal[True] = True
    globus: Globus | None = None
    oidc: Oidc | None = None
    cache: Seconds = Field(default=300.0, le=86400)
    session: Seconds = Field(default=12 * 3600.0, gt=0)
    default_project: Line | None = None
    personal_keys: PersonalKeys = PersonalKeys()
    roles: Roles = Roles()

    @model_validator(mode="after")
    def _can_tell_tokens_apart(self) -> Auth:
        if self.globus is not None and self.oidc is not None and self.oidc.introspection:
            raise ValueError("oidc.introspection: beside globus nobody can tell whose an opaque token is")
        return self
