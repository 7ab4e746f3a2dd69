"""Roles and scopes as data: what somebody may do, and the checks that ask. What stands nowhere here nobody may do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple, Protocol

from firstkit.errors import Forbidden, InvalidRequest, NotFound


class Scope(str, Enum):
    """A part of the service. Each route needs one of them."""

    INFERENCE = "inference"
    ACCOUNT = "account"
    METRICS = "metrics"
    AUDIT = "audit"
    ADMIN = "admin"


class Role(str, Enum):
    """What somebody is to the service. A manager is one of a project, and of no other."""

    USER = "user"
    MANAGER = "manager"
    AUDITOR = "auditor"
    OPERATOR = "operator"


SCOPES: dict[Scope, str] = {
    Scope.INFERENCE: "Send requests to models; see models, clusters and jobs, and what became of one's own requests.",
    Scope.ACCOUNT: "See who one is, one's projects, their budgets and one's own usage; make and revoke one's own keys; "
    "choose one's default project. Managers: also the members and the usage of the projects that they manage.",
    Scope.METRICS: "Read the metrics of the gateway.",
    Scope.AUDIT: "Read everybody's usage, node-hours and budgets, and the audit log. Changes nothing.",
    Scope.ADMIN: "Operate: status, logs, drain and resume; everybody's keys, users, roles, projects and budgets.",
}
"""What each scope opens."""

ROLES: dict[Role, tuple[str, frozenset[Scope]]] = {
    Role.USER: ("Everybody who may log in.", frozenset((Scope.INFERENCE, Scope.ACCOUNT))),
    Role.MANAGER: ("Who looks after a project: its members and what they use.", frozenset()),
    Role.AUDITOR: ("Who looks at usage and at the audit log.", frozenset((Scope.AUDIT, Scope.METRICS))),
    Role.OPERATOR: ("Who runs the service.", frozenset((Scope.ADMIN, Scope.METRICS, Scope.AUDIT))),
}
"""What each role is, and the scopes that come with it."""

ALL_SCOPES: frozenset[str] = frozenset(scope.value for scope in Scope)


def scopes_of(roles: Iterable[Role]) -> frozenset[str]:
    """All scopes that come with ``roles``."""
    return frozenset(scope.value for role in roles for scope in ROLES[role][1])


class ProjectNotFound(NotFound):
    """There is no such project, or you do not belong to it."""

    code = "project_not_found"
    is_denial = True  # whether or not there is such a project: for strangers that is not looked up


class ProjectRequired(InvalidRequest):
    """You belong to several projects: name the one that is charged by the header 'x-first-project', or choose a
    default."""

    code = "project_required"


class NoProject(Forbidden):
    """You belong to no project, so that nothing can be charged; ask whoever manages yours."""

    code = "no_project"


class Membership(NamedTuple):
    """A project that somebody's requests may be charged to."""

    project_id: str
    project: str
    is_manager: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, whom it is charged to, and what they may do.

    ``project_id`` is empty where a request has to name its project, of ``memberships``. ``key_prefix``: that of the
    API key, or ``globus``, ``oidc``, ``session`` for those who came by a login. ``models``: the canonical names of
    those that a key is for; None: all. ``groups`` and ``domains``: as the identity provider told.
    """

    user_id: str
    user_name: str
    project_id: str
    key_prefix: str
    scopes: frozenset[str]
    project_name: str = ""
    memberships: tuple[Membership, ...] = ()
    roles: frozenset[Role] = frozenset()
    groups: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    models: frozenset[str] | None = None

    @property
    def has_key(self) -> bool:
        """Whether they came with an API key."""
        return len(self.key_prefix) == 12

    @property
    def limited_by(self) -> str:
        """What limits of a key count for: the key, or all logins of one kind of a user."""
        return self.key_prefix if self.has_key else f"{self.key_prefix}:{self.user_id}"

    @property
    def projects(self) -> frozenset[str]:
        """The name of the project that is charged; of all that may be, where a request has to say which."""
        names = (self.project_name,) if self.project_name else (each.project for each in self.memberships)
        return frozenset(names)

    def charged_to(self, project: str) -> Identity:
        """The same who asks, charged to another of their projects; raises ProjectNotFound."""
        if project == self.project_name:
            return self
        for membership in self.memberships:
            if membership.project == project:
                return replace(self, project_id=membership.project_id, project_name=project)
        raise ProjectNotFound(f"There is no project '{project[:100]}', or you do not belong to it.")

    def manages(self, project_id: str) -> bool:
        """Whether they look after a project."""
        return any(each.is_manager and each.project_id == project_id for each in self.memberships)


def require(identity: Identity, scope: Scope) -> None:
    """Raise Forbidden unless ``identity`` holds ``scope``."""
    if scope.value not in identity.scopes:
        raise Forbidden(f"You do not have the scope '{scope.value}' that this route needs.")


def require_project(identity: Identity) -> None:
    """Raise ProjectRequired, or NoProject, where nobody knows what a request is charged to."""
    if identity.project_id:
        return
    if not identity.memberships:
        raise NoProject
    names = ", ".join(sorted(each.project for each in identity.memberships))
    raise ProjectRequired(
        f"You belong to several projects: name the one that is charged by the header 'x-first-project': {names}.",
        param="x-first-project",
    )


class Rule(Protocol):
    """Whom something is for: any of these is enough."""

    @property
    def projects(self) -> tuple[str, ...]: ...
    @property
    def users(self) -> tuple[str, ...]: ...
    @property
    def groups(self) -> tuple[str, ...]: ...
    @property
    def domains(self) -> tuple[str, ...]: ...


def may_use(rule: Rule, identity: Identity) -> bool:
    """Whether something with this rule is for ``identity``, charged as it is; where the project is not chosen yet, to
    any of theirs."""
    return (
        not identity.projects.isdisjoint(rule.projects)
        or identity.user_name in rule.users
        or not identity.groups.isdisjoint(rule.groups)
        or not identity.domains.isdisjoint(rule.domains)
    )


def check_grant(wanted: Iterable[Scope], held: frozenset[str]) -> None:
    """Raise Forbidden when somebody who holds ``held`` would give away more than that."""
    excess = sorted(scope.value for scope in wanted if scope.value not in held)
    if excess:
        raise Forbidden(f"Nobody can grant scopes that they do not hold: {', '.join(excess)}.")
