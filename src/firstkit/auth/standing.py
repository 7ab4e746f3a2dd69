"""What somebody is and may do at one moment: by what the store holds, the configuration says and a provider told.

Pure: values in, values out. ``firstkit.auth.people`` reads the store for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from firstkit.auth.permissions import Identity, Membership, Role, scopes_of
from firstkit.config.accounting import Project
from firstkit.config.auth import Auth


class Belonging(NamedTuple):
    """A project that the store knows. ``role``: what a user was added to it as; None: they were not."""

    project_id: str
    project: str
    role: str | None


@dataclass(frozen=True, slots=True)
class Person:
    """A row of ``users``. ``groups``, ``domains`` and ``claimed``, names of projects: as the last login told."""

    id: str
    name: str
    granted: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    claimed: frozenset[str] = frozenset()
    default_project_id: str | None = None
    seen_at: datetime | None = None
    disabled_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """A row of ``api_keys``. ``further``: names of projects beside its own; ``models``: None for all."""

    prefix: str
    project_id: str
    scopes: frozenset[str]
    further: frozenset[str] = frozenset()
    models: frozenset[str] | None = None
    is_personal: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """All that somebody is: whoever comes with a login is just this, and who comes with a key at most this."""

    person: Person
    memberships: tuple[Membership, ...]
    roles: frozenset[Role]
    default: Membership | None
    """What is charged where a request names no project."""

    @property
    def scopes(self) -> frozenset[str]:
        return scopes_of(self.roles)


class Rules:
    """What the configuration says of people."""

    def __init__(self, auth: Auth, projects: Mapping[str, Project]) -> None:
        self.auth = auth
        self.projects = projects
        self._by_user = _by((name, entry.users) for name, entry in projects.items())
        self._by_group = _by((name, entry.groups) for name, entry in projects.items())
        self._by_domain = _by((name, entry.domains) for name, entry in projects.items())
        self._managed = _by((name, entry.managers) for name, entry in projects.items())

    def current(self, person: Person, at: datetime) -> Person:
        """``person`` without what their provider told too long ago: by then they may have left there."""
        return person if self.is_seen(person, at) else _without_login(person)

    def is_seen(self, person: Person, at: datetime) -> bool:
        """Whether the last login is recent enough for what hangs on it."""
        return self.seen_for_s(person, at) > 0

    def seen_for_s(self, person: Person, at: datetime) -> float:
        """How many seconds more the last login counts; none or less: it does not."""
        if person.seen_at is None:
            return 0.0
        within_s = self.auth.personal_keys.login_within
        return min(within_s, within_s - (at - person.seen_at).total_seconds())  # clocks of machines differ

    def belongs(self, person: Person) -> dict[str, bool]:
        """The projects that ``person`` is of by the configuration and their provider, by name: whether as a manager."""
        found = dict.fromkeys(person.claimed, False)
        if person.seen_at is not None and self.auth.default_project is not None:
            found[self.auth.default_project] = False
        found.update(dict.fromkeys(self._by_user.get(person.name, ()), False))
        for table, names in ((self._by_group, person.groups), (self._by_domain, person.domains)):
            for name in names:
                found.update(dict.fromkeys(table.get(name, ()), False))
        found.update(dict.fromkeys(self._managed.get(person.name, ()), True))
        return found

    def standing(self, person: Person, rows: Iterable[Belonging]) -> Standing:
        """What ``person`` is; ``rows``: the projects that they were added to, and those of ``belongs``."""
        named = self.belongs(person)
        memberships = tuple(
            Membership(row.project_id, row.project, row.role == "manager" or named.get(row.project, False))
            for row in sorted(rows, key=lambda row: row.project)
            if row.role is not None or row.project in named
        )
        roles = self._roles(person, any(each.is_manager for each in memberships))
        return Standing(person, memberships, roles, self._default(person, memberships))

    def _roles(self, person: Person, is_manager: bool) -> frozenset[Role]:
        found = {Role.USER}
        for role, holders in ((Role.OPERATOR, self.auth.roles.operators), (Role.AUDITOR, self.auth.roles.auditors)):
            is_named = person.name in holders.users or not person.groups.isdisjoint(holders.groups)
            if is_named or role.value in person.granted:
                found.add(role)
        return frozenset(found | {Role.MANAGER} if is_manager else found)

    def _default(self, person: Person, memberships: tuple[Membership, ...]) -> Membership | None:
        """The one that was chosen, else the only one, else the one that everybody belongs to."""
        chosen = [each for each in memberships if each.project_id == person.default_project_id]
        for_all = [each for each in memberships if each.project == self.auth.default_project]
        own = [each for each in memberships if each not in for_all]
        return next(iter(chosen or (own if len(own) == 1 else for_all)), None)


def login_identity(standing: Standing, kind: str) -> Identity:
    """Who comes with a login; ``kind``: ``globus``, ``oidc`` or ``session``."""
    return _identity(standing, kind, standing.scopes, standing.memberships, standing.default)


def key_identity(standing: Standing, key: Key) -> Identity | None:
    """Who comes with a key; None: its user is not of its project."""
    own = next((each for each in standing.memberships if each.project_id == key.project_id), None)
    if own is None:
        return None
    memberships = tuple(each for each in standing.memberships if each is own or each.project in key.further)
    scopes = key.scopes & standing.scopes if key.is_personal else key.scopes
    return _identity(standing, key.prefix, scopes, memberships, own, key.models)


def _identity(
    standing: Standing,
    prefix: str,
    scopes: frozenset[str],
    memberships: tuple[Membership, ...],
    charged: Membership | None,
    models: frozenset[str] | None = None,
) -> Identity:
    person = standing.person
    return Identity(
        user_id=person.id,
        user_name=person.name,
        project_id=charged.project_id if charged else "",
        key_prefix=prefix,
        scopes=scopes,
        project_name=charged.project if charged else "",
        memberships=memberships,
        roles=standing.roles,
        groups=person.groups,
        domains=person.domains,
        models=models,
    )


def _by(entries: Iterable[tuple[str, tuple[str, ...]]]) -> dict[str, tuple[str, ...]]:
    """Which projects name somebody, from whom projects name."""
    found: dict[str, tuple[str, ...]] = {}
    for project, names in entries:
        for name in names:
            found[name] = (*found.get(name, ()), project)
    return found


def _without_login(person: Person) -> Person:
    return Person(
        person.id,
        person.name,
        person.granted,
        default_project_id=person.default_project_id,
        disabled_at=person.disabled_at,
    )
