"""What somebody is, by every source that says so."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.auth.permissions import ALL_SCOPES, Membership, Role, Scope, scopes_of
from firstkit.auth.standing import Belonging, Key, Person, Rules, Standing, key_identity, login_identity
from firstkit.clock import now
from firstkit.config.accounting import Project
from firstkit.config.auth import Auth

AT = now()
ADA = Person("user-1", "ada", seen_at=AT)
NAMES = ("climate", "fusion", "genome", "common")
USER_SCOPES = scopes_of([Role.USER])


def rules(auth: dict[str, Any] | None = None, **projects: dict[str, Any]) -> Rules:
    return Rules(
        Auth.model_validate(auth or {}), {name: Project.model_validate(told) for name, told in projects.items()}
    )


def standing(person: Person, by: Rules, **roles: str) -> Standing:
    """Where the store has all projects; ``roles``: what the person was added to, as what."""
    named = by.belongs(person)
    return by.standing(
        person, [Belonging(f"id-{name}", name, roles.get(name)) for name in NAMES if name in roles or name in named]
    )


def projects(of: Standing) -> dict[str, bool]:
    return {each.project: each.is_manager for each in of.memberships}


@pytest.mark.parametrize(
    ("told", "who"),
    [
        ({"users": ["ada"]}, {}),
        ({"groups": ["g"]}, {"groups": frozenset({"f", "g"})}),
        ({"domains": ["uni.example"]}, {"domains": frozenset({"uni.example"})}),
        ({}, {"claimed": frozenset({"climate"})}),
    ],
    ids=["a user of the configuration", "a group", "a domain", "a claim of the provider"],
)
def test_who_belongs_to_a_project_without_being_added(told: dict[str, Any], who: dict[str, Any]) -> None:
    by = rules(climate=told, fusion={"users": ["bob"], "groups": ["h"], "domains": ["lab.example"]})
    assert projects(standing(replace(ADA, **who), by)) == {"climate": False}
    assert projects(standing(replace(ADA, name="eve"), by)) == {}


def test_who_was_added_belongs_to_it() -> None:
    assert projects(standing(ADA, rules(), climate="member", fusion="manager")) == {"climate": False, "fusion": True}


def test_managers_of_the_configuration_manage_whatever_else_says_less() -> None:
    by = rules(climate={"users": ["ada"], "managers": ["ada"], "groups": ["g"]})
    found = standing(replace(ADA, groups=frozenset({"g"}), claimed=frozenset({"climate"})), by, climate="member")
    assert projects(found) == {"climate": True}


def test_one_name_is_enough_for_several_projects() -> None:
    by = rules(climate={"groups": ["g"]}, fusion={"groups": ["g"]}, genome={"groups": ["h"]})
    assert projects(standing(replace(ADA, groups=frozenset({"g"})), by)) == {"climate": False, "fusion": False}


def test_everybody_who_logs_in_belongs_to_the_default_project() -> None:
    by = rules({"default_project": "common"})
    assert projects(standing(ADA, by)) == {"common": False}
    assert projects(standing(replace(ADA, seen_at=None), by)) == {}, "a key that an operator made is no login"


def test_a_claimed_project_that_the_store_does_not_know_is_none() -> None:
    assert standing(replace(ADA, claimed=frozenset({"unheard of"})), rules()).memberships == ()


@pytest.mark.parametrize(
    ("auth", "who", "roles"),
    [
        ({}, {}, {Role.USER}),
        ({}, {"granted": frozenset({"operator"})}, {Role.USER, Role.OPERATOR}),
        ({}, {"granted": frozenset({"auditor"})}, {Role.USER, Role.AUDITOR}),
        ({"operators": {"users": ["ada"]}}, {}, {Role.USER, Role.OPERATOR}),
        ({"operators": {"groups": ["g"]}}, {"groups": frozenset({"g"})}, {Role.USER, Role.OPERATOR}),
        ({"auditors": {"users": ["ada"]}}, {}, {Role.USER, Role.AUDITOR}),
        ({"auditors": {"groups": ["g"]}}, {"groups": frozenset({"g"})}, {Role.USER, Role.AUDITOR}),
        ({"operators": {"users": ["bob"], "groups": ["h"]}}, {"groups": frozenset({"g"})}, {Role.USER}),
        ({}, {"granted": frozenset({"manager", "root", "", "OPERATOR"})}, {Role.USER}),
        ({"operators": {"users": ["g"]}}, {"groups": frozenset({"g"})}, {Role.USER}),
        ({"operators": {"groups": ["ada"]}}, {}, {Role.USER}),
    ],
)
def test_roles_by_every_source(auth: dict[str, Any], who: dict[str, Any], roles: set[Role]) -> None:
    found = standing(replace(ADA, **who), rules({"roles": auth}))
    assert found.roles == roles
    assert found.scopes == scopes_of(roles)


def test_whoever_manages_a_project_is_a_manager_and_may_no_more_elsewhere() -> None:
    found = standing(ADA, rules(), climate="manager", fusion="member")
    assert found.roles == {Role.USER, Role.MANAGER}
    assert found.scopes == USER_SCOPES
    identity = login_identity(found, "oidc")
    assert (identity.manages("id-climate"), identity.manages("id-fusion")) == (True, False)


# -- what is charged where nothing is named ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("added", "chosen", "default_project", "charged"),
    [
        ([], None, None, None),
        (["climate"], None, None, "climate"),
        (["climate", "fusion"], None, None, None),
        (["climate", "fusion"], "id-fusion", None, "fusion"),
        (["climate"], "id-fusion", None, "climate"),
        (["climate", "fusion"], "id-genome", None, None),
        ([], None, "common", "common"),
        (["climate"], None, "common", "climate"),
        (["climate", "fusion"], None, "common", "common"),
        (["climate", "fusion"], "id-climate", "common", "climate"),
        (["climate"], "id-common", "common", "common"),
        (["climate", "fusion"], "id-genome", "common", "common"),
    ],
)
def test_what_is_charged_by_default(
    added: list[str], chosen: str | None, default_project: str | None, charged: str | None
) -> None:
    by = rules({"default_project": default_project} if default_project else {})
    found = standing(replace(ADA, default_project_id=chosen), by, **dict.fromkeys(added, "member"))
    assert (found.default and found.default.project) == charged
    identity = login_identity(found, "session")
    assert (identity.project_name, identity.project_id) == (charged or "", f"id-{charged}" if charged else "")


# -- keys -------------------------------------------------------------------------------------------------------------


def key(**told: Any) -> Key:
    return Key(**{"prefix": "abcdefghijkl", "project_id": "id-climate", "scopes": USER_SCOPES, **told})


def test_a_personal_key_may_no_more_than_its_user() -> None:
    found = standing(ADA, rules(), climate="member")
    identity = key_identity(found, key(scopes=ALL_SCOPES, is_personal=True))
    assert identity is not None
    assert identity.scopes == USER_SCOPES
    identity = key_identity(found, key(scopes=frozenset({"admin"}), is_personal=True))
    assert identity is not None
    assert identity.scopes == frozenset()


def test_a_key_of_an_operator_has_the_scopes_that_it_was_given() -> None:
    identity = key_identity(standing(ADA, rules(), climate="member"), key(scopes=frozenset({"metrics"})))
    assert identity is not None
    assert identity.scopes == {"metrics"}


def test_a_key_is_for_its_projects_as_far_as_its_user_belongs_to_them() -> None:
    found = standing(ADA, rules(), climate="member", fusion="manager", genome="member")
    identity = key_identity(found, key(further=frozenset({"fusion", "unheard of"})))
    assert identity is not None
    assert identity.memberships == (Membership("id-climate", "climate"), Membership("id-fusion", "fusion", True))
    assert (identity.project_name, identity.charged_to("fusion").project_id) == ("climate", "id-fusion")
    assert key_identity(found, key(project_id="id-common", further=frozenset({"fusion"}))) is None


def test_a_key_says_what_models_it_is_for() -> None:
    found = standing(replace(ADA, groups=frozenset({"g"}), domains=frozenset({"d"})), rules(), climate="member")
    identity = key_identity(found, key(models=frozenset({"m"})))
    assert identity is not None
    told = (identity.models, identity.groups, identity.domains)
    assert told == (frozenset({"m"}), frozenset({"g"}), frozenset({"d"}))
    assert login_identity(found, "oidc").models is None


@given(
    st.frozensets(st.sampled_from(sorted(ALL_SCOPES))),
    st.frozensets(st.sampled_from(["operator", "auditor"])),
    st.frozensets(st.sampled_from(NAMES)),
    st.frozensets(st.sampled_from(NAMES)),
    st.sampled_from(NAMES),
)
def test_no_personal_key_ever_opens_more_than_a_login(
    scopes: frozenset[str], granted: frozenset[str], added: frozenset[str], further: frozenset[str], own: str
) -> None:
    found = standing(replace(ADA, granted=granted), rules(), **dict.fromkeys(added, "member"))
    login = login_identity(found, "oidc")
    identity = key_identity(found, key(scopes=scopes, further=further, project_id=f"id-{own}", is_personal=True))
    assert (identity is None) == (own not in added)
    if identity is not None:
        assert identity.scopes <= login.scopes & scopes
        assert {each.project for each in identity.memberships} <= added & (further | {own})
        assert set(identity.memberships) <= set(login.memberships)


# -- how long a login counts ------------------------------------------------------------------------------------------


def test_what_a_provider_told_too_long_ago_counts_no_more() -> None:
    by = rules({"personal_keys": {"login_within": "30d"}, "default_project": "common"}, climate={"groups": ["g"]})
    person = replace(ADA, groups=frozenset({"g"}), claimed=frozenset({"fusion"}), granted=frozenset({"auditor"}))
    assert by.current(person, AT + timedelta(days=29)) == person
    stale = by.current(person, AT + timedelta(days=30))
    assert projects(standing(stale, by, genome="member")) == {"genome": False}
    assert standing(stale, by).roles == {Role.USER, Role.AUDITOR}, "what operators granted stays"


def test_a_login_in_the_future_counts_no_longer_than_one_of_now() -> None:
    by = rules({"personal_keys": {"login_within": "1d"}})
    assert by.seen_for_s(replace(ADA, seen_at=AT + timedelta(days=9)), AT) == 86400
    assert by.seen_for_s(replace(ADA, seen_at=AT - timedelta(hours=23)), AT) == 3600
    assert by.seen_for_s(replace(ADA, seen_at=None), AT) == 0


def test_scopes_that_roles_bring() -> None:
    assert Scope.ADMIN.value not in scopes_of([Role.USER, Role.MANAGER, Role.AUDITOR])
    assert scopes_of([]) == frozenset()
