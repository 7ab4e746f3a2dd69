from __future__ import annotations

from dataclasses import replace

import pytest

from firstkit.auth.permissions import (
    ALL_SCOPES,
    ROLES,
    SCOPES,
    Identity,
    Membership,
    NoProject,
    ProjectNotFound,
    ProjectRequired,
    Role,
    Scope,
    check_grant,
    may_use,
    require,
    require_project,
)
from firstkit.config import Access
from firstkit.errors import Forbidden

IDENTITY = Identity(
    "user-1",
    "ada",
    "project-1",
    "abcdefghijkl",
    frozenset({"inference"}),
    "astro",
    (Membership("project-1", "astro"), Membership("project-2", "climate", True)),
    groups=frozenset({"g"}),
    domains=frozenset({"uni.example"}),
)


def test_a_scope_that_is_held() -> None:
    require(IDENTITY, Scope.INFERENCE)


@pytest.mark.parametrize("scope", [Scope.ADMIN, Scope.METRICS, Scope.AUDIT, Scope.ACCOUNT])
def test_a_scope_that_is_not_held(scope: Scope) -> None:
    with pytest.raises(Forbidden, match=scope.value):
        require(IDENTITY, scope)


def test_nobody_grants_more_than_they_hold() -> None:
    check_grant([Scope.INFERENCE], IDENTITY.scopes)
    check_grant(list(Scope), ALL_SCOPES)
    with pytest.raises(Forbidden, match="admin"):
        check_grant([Scope.INFERENCE, Scope.ADMIN], IDENTITY.scopes)


def test_every_scope_and_role_says_what_it_is() -> None:
    assert set(SCOPES) == set(Scope)
    assert set(ROLES) == set(Role)
    assert all(SCOPES.values())
    assert all(what for what, _ in ROLES.values())


# -- access rules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "may"),
    [
        ({"users": ["ada"]}, True),
        ({"projects": ["astro"]}, True),
        ({"groups": ["g", "h"]}, True),
        ({"domains": ["uni.example"]}, True),
        ({"projects": ["chem"], "users": ["bob"], "groups": ["h"], "domains": ["lab.example"]}, False),
        ({"projects": ["ada", "g", "uni.example", "project-1"]}, False),
        ({"users": ["astro", "g", "user-1"]}, False),
        ({"groups": ["ada", "astro"]}, False),
        ({"projects": ["climate"]}, False),
    ],
)
def test_what_is_for_some_is_for_them_by_name(rule: dict[str, list[str]], may: bool) -> None:
    assert may_use(Access.model_validate(rule), IDENTITY) is may


def test_who_charges_another_project_may_use_what_is_for_that() -> None:
    assert may_use(Access(projects=("climate",)), IDENTITY.charged_to("climate"))


def test_who_has_not_said_what_is_charged_may_use_what_is_for_any_of_their_projects() -> None:
    nobody = replace(IDENTITY, project_id="", project_name="", groups=frozenset(), domains=frozenset())
    assert may_use(Access(projects=("climate",)), nobody)
    assert not may_use(Access(projects=("chem",)), nobody)


def test_who_has_no_project_is_in_none() -> None:
    nobody = Identity("user-1", "ada", "", "oidc", frozenset())
    assert not may_use(Access(projects=("astro", "climate")), nobody)


# -- projects ---------------------------------------------------------------------------------------------------------


def test_a_project_of_ones_own_may_be_charged() -> None:
    assert IDENTITY.charged_to("astro") is IDENTITY
    other = IDENTITY.charged_to("climate")
    assert (other.project_id, other.project_name, other.scopes) == ("project-2", "climate", IDENTITY.scopes)


@pytest.mark.parametrize("project", ["chem", "", "Astro", "project-2", "x" * 500])
def test_a_project_of_others_is_no_project(project: str) -> None:
    with pytest.raises(ProjectNotFound):
        IDENTITY.charged_to(project)


def test_managers_manage_their_project_and_no_other() -> None:
    assert [IDENTITY.manages(each) for each in ("project-1", "project-2", "project-3", "")] == [False, True] + [
        False
    ] * 2


def test_something_has_to_be_charged() -> None:
    require_project(IDENTITY)
    with pytest.raises(ProjectRequired, match="astro, climate") as caught:
        require_project(replace(IDENTITY, project_id=""))
    assert caught.value.param == "x-first-project"
    with pytest.raises(NoProject):
        require_project(replace(IDENTITY, project_id="", memberships=()))


def test_keys_are_limited_by_themselves_and_logins_by_their_user() -> None:
    assert IDENTITY.limited_by == "abcdefghijkl"
    assert replace(IDENTITY, key_prefix="session").limited_by == "session:user-1"
